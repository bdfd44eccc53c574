//! What can go wrong in the engine outside of a peer's bytes (those have [`crate::frame::Error`]).

/// The engine could not be set up or driven.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// libopus refused. At set-up: out of memory, or a build without the feature; there is no way on. While decoding: the
    /// frame is broken; conceal it and go on.
    #[error("opus could not {doing} (code {code})")]
    Opus {
        /// What was asked of it.
        doing: &'static str,
        /// `OPUS_BAD_ARG` and friends, a negative number.
        code: i32,
    },
    /// Only one and two channels exist here: fix the configuration.
    #[error("{0} channels asked for, 1 or 2 are possible")]
    Channels(u8),
}

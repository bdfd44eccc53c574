//! hallway: private voice rooms between terminals.

pub mod transport;

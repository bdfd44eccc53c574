//! hallway

pub mod audio;

//! hallway

pub mod bench;

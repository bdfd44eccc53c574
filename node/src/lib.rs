//! hallway

pub mod rendezvous;

//! hallway

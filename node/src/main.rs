//! hallway
fn main() {}

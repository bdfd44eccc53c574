//! hallway

pub mod identity;
pub mod invite;
pub mod room;
pub mod session;
pub mod text;
pub mod words;

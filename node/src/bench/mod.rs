//! Measuring: bad networks, test speech, and what a listener really heard.
//!
//! | file | question |
//! | --- | --- |
//! | `luck`, `link`, `pipe`, `profile` | what a bad network does to packets (arithmetic, any clock) |
//! | `proxy` | the same between two real programs on this machine |
//! | `speech` | what is said |
//! | `spectrum`, `signal` | how late and how damaged it was heard |
//! | `nodes` | two whole nodes and a rendezvous server as child processes |
//! | `lag`, `report` | `hallway bench lag` and `bench signal`, and their tables |

pub mod link;
pub mod luck;
pub mod pipe;
pub mod profile;
pub mod proxy;
pub mod signal;
pub mod spectrum;
pub mod speech;

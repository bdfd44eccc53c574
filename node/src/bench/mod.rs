//! Measuring: bad networks, test speech, and what a listener really heard.
//!
//! | file | question |
//! | --- | --- |
//! | `luck`, `link`, `pipe`, `profile` | what a bad network does to packets (arithmetic, any clock) |
//! | `proxy` | the same between two real programs on this machine |
//! | `speech` | what is said |
//! | `spectrum`, `signal` | how late and how damaged it was heard |
//! | `nodes`, `log` | whole programs as child processes, and what they say about themselves |
//! | `lag`, `loss`, `room`, `codec`, `live` | one measurement each |
//! | `report`, `page`, `pages`, `plot`, `command` | their tables, their plots, and what can be typed |

pub mod codec;
mod command;
pub mod lag;
pub mod link;
pub mod live;
pub mod log;
pub mod loss;
pub mod luck;
pub mod nodes;
pub mod page;
pub mod pages;
pub mod pipe;
pub mod plot;
pub mod profile;
pub mod proxy;
pub mod report;
pub mod room;
pub mod signal;
pub mod spectrum;
pub mod speech;

pub use command::{BenchArgs, BenchCommand, Out, SignalArgs, run};

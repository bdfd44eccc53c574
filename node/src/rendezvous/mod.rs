//! How peers find each other: libp2p's rendezvous protocol, and a watch that pushes arrivals.
//!
//! A node runs one [`Client`] for each server and namespace, over the [`Behaviour`] in its Swarm; a server runs one
//! [`Server`]. The server sees blinded namespaces and signed records, and answers nobody who does not know a namespace.
//!
//! ```text
//! wire (bytes) > streams (Swarm) > server (tasks) > hub (answers) > store (registrations), watchers (who hears)
//! client (tasks) > record (signatures) > policy (what may be dialled)
//! ```

pub(crate) mod backoff;
pub mod client;
pub mod dial_back;
pub mod hub;
pub mod limits;
mod people;
pub mod policy;
mod polling;
pub mod record;
pub mod server;
pub mod store;
pub mod streams;
pub mod watchers;
pub mod wire;

#[cfg(test)]
mod tests;

pub use client::{Client, ClientConfig, ClientError, ClientEvent, Via};
pub use policy::{DialBudget, Scope, scope_of};
pub use server::{Server, ServerConfig, ServerEvent};
pub use streams::{Behaviour, Incoming, Opener, Target};

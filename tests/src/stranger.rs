//! Somebody who knows the network and means no good: raw connections to a node in a call.

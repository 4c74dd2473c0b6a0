//! What TCP sessions and UDP flows share: admission, the registry, the search for a backend, and
//! what is counted and logged when a session ends.

pub mod admission;
pub mod bandwidth;
pub mod filter;
pub mod per_source;
pub mod rate;
mod rate_table;
pub mod registry;
pub mod retry;
pub mod service;
pub mod sockets;
pub mod summary;

//! What sessions run on: the event loop of a worker, its sockets and timers.

pub mod executor;
pub mod net;
pub mod wheel;

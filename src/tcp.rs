//! TCP and unix stream listeners: accept, connect, relay.

mod connect;
mod listener;
mod session;

pub use connect::{Attempt, SELF_CONNECT_HINT};
pub use listener::{Socket, listen};

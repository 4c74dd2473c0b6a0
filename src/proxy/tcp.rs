//! TCP and unix stream listeners: accept, connect, relay.

mod connect;
mod listener;
mod preamble;
mod session;

pub use listener::{Socket, listen};

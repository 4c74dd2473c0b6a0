//! TCP and unix stream listeners: accept, connect, relay.

mod connect;
mod introduction;
mod listener;
mod session;

pub use listener::{Socket, listen};

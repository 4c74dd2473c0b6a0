//! TCP and unix stream listeners: accept, connect, relay.

mod client_watch;
mod connect;
pub mod handover;
mod listener;
mod preamble;
mod session;
mod stop_signal;
mod wait_before_connect;
mod worker;

pub use listener::{Binding, BoundSocket, SocketId};
pub use worker::{Order, SocketCopy, Worker, spawn_worker};

//! TCP and unix stream listeners: accept, connect, relay.

mod connect;
mod listener;
mod preamble;
mod session;
mod stop_signal;
mod worker;

pub use listener::Socket;
pub use worker::{Binding, Order, Worker, spawn_worker};

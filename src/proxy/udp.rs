//! Datagrams: one thread a worker, with an event loop of its own.
//!
//! Nothing here waits: every call takes what is there. So there is no task for a flow, no waker and
//! no timer, and a flow that is idle costs a few hundred bytes. All datagrams of a flow come to one
//! socket, by the kernel's hash over both addresses, and to one thread: their order is kept.

mod batch;
mod batch_size;
mod context;
mod engine;
mod flow;
mod header;
mod listener;
mod order;
mod own_addresses;
mod peer_workers;
mod per_second;
pub(crate) mod table;
mod token;

pub use crate::proxy::udp::{own_addresses::OwnAddresses, peer_workers::PeerWorkers};
pub use engine::{Worker, spawn_worker};
pub use order::Order;
pub use token::MOST_LISTENERS;

use crate::session::service::Service;
use std::{net::SocketAddr, net::UdpSocket, sync::Arc};
use tokio_util::task::task_tracker::TaskTrackerToken;

/// The sockets of a listener on one worker.
pub struct Binding {
    pub service: Arc<Service>,
    pub sockets: Vec<Port>,
    pub peers: Arc<PeerWorkers>,
    /// Of all UDP listeners of the process.
    pub own: Arc<OwnAddresses>,
    /// Whether this is the worker that takes what all workers get: broadcasts.
    pub is_first: bool,
    /// Held for as long as there is a flow.
    pub alive: TaskTrackerToken,
}

/// A bound socket.
pub struct Port {
    pub socket: UdpSocket,
    pub address: SocketAddr,
}

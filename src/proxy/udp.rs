//! Datagrams: one thread per worker, with a reactor of its own.
//!
//! Nothing here waits: every call takes what has arrived. So a flow has no task and no timer of its
//! own, and an idle one costs a few hundred bytes. All datagrams of a flow come to one socket, by
//! the kernel's hash over both addresses, and to one thread: their order is kept.

mod batch;
mod batch_size;
mod context;
mod engine;
mod flow;
mod flow_receiver;
mod flow_sender;
mod header;
mod listener;
mod order;
mod own_addresses;
mod peer_workers;
mod per_second;
mod port;
pub mod table;
#[cfg(test)]
mod tests;
mod token;

pub use crate::proxy::udp::{own_addresses::OwnAddresses, peer_workers::PeerWorkers};
pub use engine::{Worker, spawn_worker};
pub use flow_receiver::FlowReceiver;
pub use flow_sender::{FlowSender, FlowsSent, HandOverError, Scope, SentListener};
pub use order::{Order, PortCopy};
pub use port::{Port, PortUse, PortUsers, worker_of};
pub use token::MOST_LISTENERS;

use crate::session::service::Service;
use std::{net::SocketAddr, sync::Arc};
use tokio_util::task::task_tracker::TaskTrackerToken;

/// The sockets of a listener on one worker.
pub struct Binding {
    pub id: ListenerId,
    pub service: Arc<Service>,
    pub sockets: Vec<Port>,
    pub peers: Arc<PeerWorkers>,
    /// The addresses of all UDP listeners of the process.
    pub own: Arc<OwnAddresses>,
    /// Held while there is a flow.
    pub alive: TaskTrackerToken,
}

/// What changes for the flows of a listener that begin from now on.
pub struct Update {
    pub id: ListenerId,
    pub service: Arc<Service>,
    pub added: Vec<Port>,
    /// Where flows begin. Sockets of other addresses are closed once their flows have ended; the
    /// listener ends with its last socket.
    pub addresses: Vec<SocketAddr>,
}

/// Where a worker gets its orders.
pub type Orders = crate::runtime::mailbox::Mailbox<Order>;

/// A UDP listener of the process, the same on all workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListenerId(pub u64);

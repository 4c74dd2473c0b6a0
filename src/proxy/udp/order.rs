//! The orders of a worker that carries datagrams.

use super::{Binding, ListenerId, OwnAddresses, Update};
use std::{
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{Arc, mpsc},
};
use tokio_util::task::task_tracker::TaskTrackerToken;

pub enum Order {
    /// Receives from the sockets of a listener.
    Listen(Box<Binding>),
    Update(Box<Update>),
    /// The addresses that all listeners of the process receive at.
    SetOwnAddresses(Arc<OwnAddresses>),
    /// Copies the sockets at which flows begin. The end of the channel says that there are no more.
    CopySockets(mpsc::Sender<PortCopy>),
    /// Receives nothing from clients: another process does with these sockets.
    Pause,
    /// Receives again.
    Resume,
    /// Drops the token, which confirms that the orders before this one were executed.
    Confirm(TaskTrackerToken),
    /// Begins no more flows, and ends those that fall silent.
    Drain,
    /// Ends the flow of this listener that has been idle for longest, for one on another worker.
    Evict(ListenerIndex),
}

/// A second descriptor of a listening socket.
pub struct PortCopy {
    pub listener: ListenerId,
    pub address: SocketAddr,
    /// The number of the worker, and the place of the socket there.
    pub index: (usize, usize),
    pub socket: io::Result<OwnedFd>,
}

/// The number of a listener on one worker.
pub type ListenerIndex = usize;

//! The orders of a worker that carries datagrams.

use super::{Binding, ListenerId, OwnAddresses, Update};
use crate::handover::flows::{
    FlowBatch, FlowChange, FlowState, LateSocket, NamedPeer, SocketBegin,
};
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
    /// Drops the token, which confirms that the orders before this one were executed.
    Confirm(TaskTrackerToken),
    /// Begins no more flows, and ends those that fall silent.
    Drain,
    /// Ends the flow of this listener that has been idle for longest, for one on another worker.
    Evict(ListenerIndex),
    /// A step in giving flows to another process.
    SendFlows(ListenerId, SendStep),
    /// Takes flows over from another process.
    ReceiveFlows(ListenerId, Box<ReceivedFlows>),
}

/// A second descriptor of a listening socket.
pub struct PortCopy {
    pub listener: ListenerId,
    pub address: SocketAddr,
    /// Its place among the sockets of the address.
    pub index: u16,
    pub socket: io::Result<OwnedFd>,
}

/// The number of a listener on one worker.
pub type ListenerIndex = usize;

/// The steps of giving the flows of some addresses of a listener to another process.
pub enum SendStep {
    /// Copies flows that go on here; a later copy goes on where this one ends.
    Copy {
        addresses: Arc<[SocketAddr]>,
        most: usize,
        answer: mpsc::Sender<io::Result<FlowCopies>>,
    },
    /// Stops to carry datagrams, and copies what has changed.
    Freeze {
        addresses: Arc<[SocketAddr]>,
        answer: mpsc::Sender<io::Result<FlowCopies>>,
    },
    /// The other process has all of them but those of these sessions.
    Release { refused: Vec<u64> },
    /// Copies sockets of flows that have ended.
    CopyLate {
        most: usize,
        answer: mpsc::Sender<io::Result<FlowCopies>>,
    },
    /// The other process has not taken over, or has ended.
    TakeBack,
}

/// What is sent to another process.
#[derive(Debug, Default)]
pub struct FlowCopies {
    pub batch: FlowBatch,
    /// One for each flow, then one for each late socket.
    pub sockets: Vec<OwnedFd>,
    pub has_more: bool,
}

/// A batch of another process, or the part of it that is for one listener on one worker.
pub struct ReceivedFlows {
    pub flows: Vec<(FlowState, OwnedFd)>,
    pub changes: Vec<FlowChange>,
    /// The sessions of flows that were taken and have ended in the other process.
    pub ended: Vec<u64>,
    pub peers: Vec<NamedPeer>,
    pub late: Vec<(LateSocket, OwnedFd)>,
    pub begin: Vec<SocketBegin>,
    /// Gets the sessions of flows that are not taken.
    pub answer: mpsc::Sender<Vec<u64>>,
}

impl ReceivedFlows {
    /// Of nothing.
    pub fn new(answer: mpsc::Sender<Vec<u64>>) -> Self {
        Self {
            flows: Vec::new(),
            changes: Vec::new(),
            ended: Vec::new(),
            peers: Vec::new(),
            late: Vec::new(),
            begin: Vec::new(),
            answer,
        }
    }
}

//! The orders of a worker that carries datagrams.

use super::{Binding, OwnAddresses, Update};
use std::sync::Arc;
use tokio_util::task::task_tracker::TaskTrackerToken;

pub enum Order {
    /// Receives from the sockets of a listener.
    Listen(Box<Binding>),
    Update(Box<Update>),
    /// The addresses that all listeners of the process receive at.
    SetOwnAddresses(Arc<OwnAddresses>),
    /// Drops the token, which confirms that the orders before this one were executed.
    Confirm(TaskTrackerToken),
    /// Begins no more flows, and ends those that fall silent.
    Drain,
    /// Ends the flow of this listener that has been idle for longest, for one on another worker.
    Evict(ListenerIndex),
}

/// The number of a listener on one worker.
pub type ListenerIndex = usize;

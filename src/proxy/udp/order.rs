//! What a worker that carries datagrams is told to do.

use super::Binding;

pub enum Order {
    /// Receives from the sockets of a listener.
    Listen(Box<Binding>),
    /// Begins no more flows, and ends those that fall silent.
    Drain,
    /// Ends the flow of this listener that has been idle for longest, for one on another worker.
    Evict(ListenerIndex),
}

/// The number of a listener on one worker.
pub type ListenerIndex = usize;

//! A bound UDP socket, and what keeps the sockets of its address open.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tokio_util::task::task_tracker::TaskTrackerToken;

pub struct Port {
    pub socket: UdpSocket,
    pub address: SocketAddr,
    /// Its place among the sockets of the address, in the order in which they were bound: the
    /// kernel assigns clients by it.
    pub index: u16,
    /// Another process receives from it until it gives its flows over.
    pub is_held: bool,
    pub users: Arc<PortUsers>,
    /// Held until the socket is closed.
    pub open: TaskTrackerToken,
}

/// Counts what uses the sockets of an address, over all workers: its flows, and the listener for as
/// long as the address is its own. Without one of these sockets the kernel would assign the flows
/// of the others anew, so that they are closed together.
#[derive(Debug, Default)]
pub struct PortUsers(AtomicU64);

/// One use of the sockets of an address.
#[derive(Debug)]
pub struct PortUse(Arc<PortUsers>);

/// Which of so many workers has the socket of an address with this index: where there are fewer
/// workers than sockets, some have several.
pub fn worker_of(index: u16, workers: usize) -> usize {
    usize::from(index) % workers.max(1)
}

/// Nothing used the sockets, and nothing can any more.
const CLOSED: u64 = u64::MAX;

impl PortUsers {
    /// `None` where the sockets are closed or about to be.
    pub fn take(self: &Arc<Self>) -> Option<PortUse> {
        let one_more = |n| (n != CLOSED).then(|| n + 1);
        let taken = self.0.fetch_update(Relaxed, Relaxed, one_more);
        taken.is_ok().then(|| PortUse(Arc::clone(self)))
    }

    /// Whether the sockets are to be closed, since nothing uses them; nothing can from then on.
    pub(super) fn close_if_unused(&self) -> bool {
        let closed = self.0.compare_exchange(0, CLOSED, Relaxed, Relaxed);
        closed.map_or_else(|n| n == CLOSED, |_| true)
    }
}

impl Drop for PortUse {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_closed_once_and_only_unused() {
        let users = Arc::new(PortUsers::default());
        let uses = [users.take(), users.take()];
        assert!(uses.iter().all(Option::is_some) && !users.close_if_unused());
        drop(uses);
        assert!(users.close_if_unused() && users.close_if_unused());
        assert!(users.take().is_none());
    }
}

//! How many sockets flows may have, those included that are kept open after their flow.

use crate::session::registry::{Descriptors, take_below};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// The sockets of flows on all workers. Each has a local port and a descriptor, both of which are
/// limited.
#[derive(Debug)]
pub struct FlowSockets {
    max: AtomicU64,
    descriptors: Arc<Descriptors>,
    count: AtomicU64,
}

/// The permit to have one of them, given back when dropped.
#[derive(Debug)]
pub struct SocketPermit(Arc<FlowSockets>);

impl FlowSockets {
    pub fn new(max: u64, descriptors: &Arc<Descriptors>) -> Arc<Self> {
        Arc::new(Self {
            max: AtomicU64::new(max),
            descriptors: Arc::clone(descriptors),
            count: AtomicU64::default(),
        })
    }

    pub fn set_max(&self, max: u64) {
        self.max.store(max, Relaxed);
    }

    /// Whether one more could be taken now.
    pub fn has_free(&self) -> bool {
        self.count.load(Relaxed) < self.max.load(Relaxed) && self.descriptors.has_free_for_flow()
    }

    /// Takes one even beyond the limit.
    pub fn take_anyway(self: &Arc<Self>) -> SocketPermit {
        self.count.fetch_add(1, Relaxed);
        self.descriptors.take_for_flow_anyway();
        SocketPermit(Arc::clone(self))
    }

    pub fn take(self: &Arc<Self>) -> Option<SocketPermit> {
        if !take_below(&self.count, self.max.load(Relaxed)) {
            return None;
        }
        if !self.descriptors.take_for_flow() {
            self.count.fetch_sub(1, Relaxed);
            return None;
        }
        Some(SocketPermit(Arc::clone(self)))
    }
}

impl Drop for SocketPermit {
    fn drop(&mut self) {
        self.0.descriptors.give_back_of_flow();
        self.0.count.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_sockets_is_limited() {
        let sockets = FlowSockets::new(2, &Arc::new(Descriptors::new(0, 9, 0)));
        let both = (sockets.take(), sockets.take());
        assert!(both.0.is_some() && both.1.is_some());
        assert!(sockets.take().is_none() && !sockets.has_free());
        drop(both.0);
        assert!(sockets.has_free() && sockets.take().is_some());
        drop(both.1);
        assert_eq!(sockets.count.load(Relaxed), 0);
    }

    #[test]
    fn without_a_descriptor_there_is_none() {
        let sockets = FlowSockets::new(9, &Arc::new(Descriptors::new(0, 1, 0)));
        let one = sockets.take();
        assert!(one.is_some() && sockets.take().is_none() && !sockets.has_free());
        drop(one);
        assert!(sockets.has_free() && sockets.take().is_some());
        assert_eq!(sockets.count.load(Relaxed), 0);
    }
}

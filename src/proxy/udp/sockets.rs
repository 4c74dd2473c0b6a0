//! How many sockets flows may have, those included that are kept after their flow.

use crate::session::registry::{Descriptors, take_place};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// Of all workers. Each socket has a local port and a descriptor, of which there are only so many.
#[derive(Debug)]
pub struct Sockets {
    most: AtomicU64,
    descriptors: Arc<Descriptors>,
    count: AtomicU64,
}

/// One of them, given back when dropped.
#[derive(Debug)]
pub(super) struct Leave(Arc<Sockets>);

impl Sockets {
    pub fn new(most: u64, descriptors: &Arc<Descriptors>) -> Arc<Self> {
        Arc::new(Self {
            most: AtomicU64::new(most),
            descriptors: Arc::clone(descriptors),
            count: AtomicU64::default(),
        })
    }

    pub fn set_most(&self, most: u64) {
        self.most.store(most, Relaxed);
    }

    /// Whether or not there are as many as there may be.
    pub(super) fn take_anyway(self: &Arc<Self>) -> Leave {
        self.count.fetch_add(1, Relaxed);
        self.descriptors.take_for_flow_anyway();
        Leave(Arc::clone(self))
    }

    pub(super) fn take(self: &Arc<Self>) -> Option<Leave> {
        if !take_place(&self.count, self.most.load(Relaxed)) {
            return None;
        }
        if !self.descriptors.take_for_flow() {
            self.count.fetch_sub(1, Relaxed);
            return None;
        }
        Some(Leave(Arc::clone(self)))
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.0.descriptors.give_back_of_flow();
        self.0.count.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_so_many_and_they_come_back() {
        let sockets = Sockets::new(2, &Arc::new(Descriptors::new(0, 9, 0)));
        let both = (sockets.take(), sockets.take());
        assert!(both.0.is_some() && both.1.is_some());
        assert!(sockets.take().is_none());
        drop(both.0);
        assert!(sockets.take().is_some());
        drop(both.1);
        assert_eq!(sockets.count.load(Relaxed), 0);
    }

    #[test]
    fn without_a_descriptor_there_is_none() {
        let sockets = Sockets::new(9, &Arc::new(Descriptors::new(0, 1, 0)));
        let one = sockets.take();
        assert!(one.is_some() && sockets.take().is_none());
        drop(one);
        assert!(sockets.take().is_some());
        assert_eq!(sockets.count.load(Relaxed), 0);
    }
}

//! How many sockets flows may have, those included that are kept after their flow.

use crate::sessions::take_place;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// Of all workers. Each socket has a local port, of which there are only so many.
#[derive(Debug)]
pub struct Sockets {
    most: u64,
    count: AtomicU64,
}

/// One of them, given back when dropped.
#[derive(Debug)]
pub(super) struct Leave(Arc<Sockets>);

impl Sockets {
    pub fn new(most: u64) -> Arc<Self> {
        Arc::new(Self {
            most,
            count: AtomicU64::default(),
        })
    }

    /// Whether or not there are as many as there may be.
    pub(super) fn take_anyway(self: &Arc<Self>) -> Leave {
        self.count.fetch_add(1, Relaxed);
        Leave(Arc::clone(self))
    }

    pub(super) fn take(self: &Arc<Self>) -> Option<Leave> {
        take_place(&self.count, self.most).then(|| Leave(Arc::clone(self)))
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_so_many_and_they_come_back() {
        let sockets = Sockets::new(2);
        let both = (sockets.take(), sockets.take());
        assert!(both.0.is_some() && both.1.is_some());
        assert!(sockets.take().is_none());
        drop(both.0);
        assert!(sockets.take().is_some());
        drop(both.1);
        assert_eq!(sockets.count.load(Relaxed), 0);
    }
}

//! The same listener on all workers: which of them evicts a flow for one on another.

use crate::{
    proxy::udp::order::{ListenerIndex, Order},
    runtime::mailbox::{Mailbox, Message},
    sys::mutex::Mutex,
};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// Most flows beyond the limit that wait for an eviction: no more are admitted while a worker is
/// slow.
const MOST_PENDING: u64 = 16;

#[derive(Default)]
pub struct PeerWorkers {
    workers: Mutex<Vec<Arc<PeerWorker>>>,
    /// Orders to evict a flow that were not executed yet.
    pending: AtomicU64,
}

/// A listener on one worker, as the others see it.
pub(super) struct PeerWorker {
    pub(super) mailbox: Arc<Mailbox<Order>>,
    pub(super) listener: ListenerIndex,
    pub(super) flows: AtomicU64,
}

impl PeerWorkers {
    pub(super) fn join(&self, worker: Arc<PeerWorker>) {
        self.workers.lock().push(worker);
    }

    /// The share of one worker in so many flows.
    pub(super) fn share(&self, most: u64) -> u64 {
        most.div_ceil(self.workers.lock().len().max(1) as u64)
    }

    /// Admits one flow over the limit by `take`, then asks the worker with most flows to evict one.
    /// The order matters: that worker evicts only if it sees the count above the limit. `None`
    /// where no other worker has a flow.
    pub(super) fn evict_one<T>(
        &self,
        own: &Arc<PeerWorker>,
        take: impl FnOnce() -> T,
    ) -> Option<T> {
        let workers = self.workers.lock();
        let others = workers.iter().filter(|worker| !Arc::ptr_eq(worker, own));
        let most = others.max_by_key(|worker| worker.flows.load(Relaxed));
        let most = most.filter(|worker| worker.flows.load(Relaxed) > 0)?;
        // Under the lock: no other worker counts up meanwhile.
        if self.pending.load(Relaxed) >= MOST_PENDING {
            return None;
        }
        self.pending.fetch_add(1, Relaxed);
        let taken = take();
        most.mailbox
            .send(Message::Order(Order::Evict(most.listener)));
        Some(taken)
    }

    /// An order to evict a flow was executed.
    pub(super) fn note_executed(&self) {
        self.pending.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An order that is sent before the new flow is counted would find no flow too many, and the
    /// listener would stay over its limit.
    #[test]
    fn the_worker_that_evicts_sees_the_flow_that_it_evicts_for() {
        let peers = PeerWorkers::default();
        let [own, other] = [0, 2].map(|flows| {
            Arc::new(PeerWorker {
                mailbox: Arc::new(Mailbox::new().expect("a mailbox")),
                listener: 0,
                flows: AtomicU64::new(flows),
            })
        });
        peers.join(Arc::clone(&own));
        peers.join(Arc::clone(&other));
        let has_order = || !other.mailbox.take().is_empty();
        assert_eq!(peers.evict_one(&own, has_order), Some(false));
        assert!(has_order());
        other.flows.store(0, Relaxed);
        assert_eq!(peers.evict_one(&own, has_order), None);
        assert!(!has_order());
    }
}

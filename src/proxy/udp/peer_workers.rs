//! The same listener on the other workers: who there has to make room for a newcomer here.

use crate::proxy::udp::mailbox::{Bell, Order};
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// So many flows may be there beyond the limit until others have gone for them: not more, if a
/// worker is slow.
const PENDING: u64 = 16;

#[derive(Default)]
pub struct PeerWorkers {
    workers: Mutex<Vec<Arc<PeerWorker>>>,
    /// Orders to end a flow that were not obeyed yet.
    pending: AtomicU64,
}

/// A listener on one worker, as the others see it.
pub(super) struct PeerWorker {
    pub(super) bell: Arc<Bell>,
    /// What that worker calls it.
    pub(super) listener: usize,
    pub(super) flows: AtomicU64,
}

impl PeerWorkers {
    pub(super) fn join(&self, here: Arc<PeerWorker>) {
        self.lock().push(here);
    }

    /// The part of so many flows that is this worker's own.
    pub(super) fn share(&self, most: u64) -> u64 {
        most.div_ceil(self.lock().len().max(1) as u64)
    }

    /// Takes a place beyond the limit, and tells the worker that has most flows to end one for it,
    /// in this order: who is told looks whether there are too many. `None` if there is nobody to
    /// tell.
    pub(super) fn evict_one<T>(&self, me: &Arc<PeerWorker>, take: impl FnOnce() -> T) -> Option<T> {
        let workers = self.lock();
        let others = workers.iter().filter(|here| !Arc::ptr_eq(here, me));
        let most = others.max_by_key(|here| here.flows.load(Relaxed));
        let most = most.filter(|here| here.flows.load(Relaxed) > 0)?;
        // Under the lock: nobody else counts up meanwhile.
        if self.pending.load(Relaxed) >= PENDING {
            return None;
        }
        self.pending.fetch_add(1, Relaxed);
        let taken = take();
        most.bell.ring(Order::Evict(most.listener));
        Some(taken)
    }

    pub(super) fn obeyed(&self) {
        self.pending.fetch_sub(1, Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<PeerWorker>>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Told before the newcomer is counted, it would see nobody too many, and the newcomer would be
    /// one too many for good.
    #[test]
    fn who_has_to_make_room_sees_for_whom() {
        let elsewhere = PeerWorkers::default();
        let [me, other] = [0, 2].map(|flows| {
            Arc::new(PeerWorker {
                bell: Arc::new(Bell::new().expect("a bell")),
                listener: 0,
                flows: AtomicU64::new(flows),
            })
        });
        elsewhere.join(Arc::clone(&me));
        elsewhere.join(Arc::clone(&other));
        let was_told = || !other.bell.answer().is_empty();
        assert_eq!(elsewhere.evict_one(&me, was_told), Some(false));
        assert!(was_told());
        other.flows.store(0, Relaxed);
        assert_eq!(elsewhere.evict_one(&me, was_told), None);
        assert!(!was_told());
    }
}

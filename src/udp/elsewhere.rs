//! The same listener on the other workers: who there has to make room for a newcomer here.

use super::bell::{Bell, Order};
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// So many flows may be there beyond the limit until others have gone for them: not more, if a worker is slow.
const PENDING: u64 = 16;

#[derive(Default)]
pub struct Elsewhere {
    workers: Mutex<Vec<Arc<Here>>>,
    /// Orders to end a flow that were not obeyed yet.
    pending: AtomicU64,
}

/// A listener on one worker, as the others see it.
pub(super) struct Here {
    pub(super) bell: Arc<Bell>,
    /// What that worker calls it.
    pub(super) listener: usize,
    pub(super) flows: AtomicU64,
}

impl Elsewhere {
    pub(super) fn join(&self, here: Arc<Here>) {
        self.lock().push(here);
    }

    /// The part of so many flows that is this worker's own.
    pub(super) fn share(&self, most: u64) -> u64 {
        most.div_ceil(self.lock().len().max(1) as u64)
    }

    /// Tells the worker that has most flows to end one. Whether there is one.
    pub(super) fn evict_one(&self, me: &Arc<Here>) -> bool {
        let workers = self.lock();
        let others = workers.iter().filter(|here| !Arc::ptr_eq(here, me));
        let most = others.max_by_key(|here| here.flows.load(Relaxed));
        let Some(most) = most.filter(|here| here.flows.load(Relaxed) > 0) else {
            return false;
        };
        // Under the lock: nobody else counts up meanwhile.
        if self.pending.load(Relaxed) >= PENDING {
            return false;
        }
        self.pending.fetch_add(1, Relaxed);
        most.bell.ring(Order::Evict(most.listener));
        true
    }

    pub(super) fn obeyed(&self) {
        self.pending.fetch_sub(1, Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Here>>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

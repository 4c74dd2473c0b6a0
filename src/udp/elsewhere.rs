//! The same listener on the other workers: who there has to make room for a newcomer here.

use super::bell::{Bell, Order};
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

#[derive(Default)]
pub struct Elsewhere {
    workers: Mutex<Vec<Arc<Here>>>,
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

    /// Tells the worker that has most flows to end one. Whether there is one.
    pub(super) fn evict_one(&self, me: &Arc<Here>) -> bool {
        let workers = self.lock();
        let others = workers.iter().filter(|here| !Arc::ptr_eq(here, me));
        let most = others.max_by_key(|here| here.flows.load(Relaxed));
        let Some(most) = most.filter(|here| here.flows.load(Relaxed) > 0) else {
            return false;
        };
        most.bell.ring(Order::Evict(most.listener));
        true
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Here>>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! The pool for flows of datagrams: they have no connect that could succeed, and they can move to
//! another backend at any time.

use super::{Pool, Search};
use crate::{plan::reason::CloseReason, upstream::backend::Backend};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

impl Pool {
    /// Counts what may make flows move: while the count is the same, no flow has to.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    pub(super) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// Whether it counts as a failure that this backend gave no reply. Checks know better; and
    /// where no other backend takes sessions, a request that is never answered would take the last
    /// one out.
    pub fn may_be_blamed_for_silence(&self, backend: &Backend, now: Instant) -> bool {
        let inner = self.lock();
        let mut others = inner
            .endpoints
            .iter()
            .filter(|e| e.backend.id != backend.id);
        inner.start_verdict.is_none() && others.any(|e| !e.admission(false, now).is_barred())
    }

    /// A flow is on this backend, which `search` picked last. Whether it may stay there: its flows
    /// can have been terminated since.
    pub fn taken(&self, search: &Search, backend: &Backend, now: Instant) -> bool {
        self.lock().may_stay(search, backend, now)
    }

    /// Why a flow on this backend has to move to another one, if it has to.
    pub fn must_go(&self, backend: &Backend) -> Option<CloseReason> {
        let inner = self.lock();
        let single = inner.balancer.is_single();
        let reason = match inner.index.endpoint(backend.id) {
            Some(i) => inner.endpoints[i].reason_to_leave(single),
            None => Some(CloseReason::BackendRemoved),
        };
        reason.filter(|reason| inner.moves.does(*reason))
    }

    /// The backend that was configured with this text and has this address now.
    pub fn backend_at(&self, text: &str, address: &str) -> Option<Arc<Backend>> {
        let inner = self.lock();
        let backends = &inner.index.backends[inner.index.range_of(text)];
        let found = backends.iter().find(|b| b.addr.to_string() == address);
        found.cloned()
    }

    /// Whether a flow whose backend the network reports as gone has to move to another one.
    pub fn moves_if_unreachable(&self) -> bool {
        self.lock().moves.down
    }
}

impl Search {
    /// This one is not to be picked, as if it had been tried.
    pub fn avoid(&mut self, backend: &Backend) {
        self.tried.push(backend.id);
    }
}

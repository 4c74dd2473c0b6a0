//! The sessions of one worker.

use super::live_session::Session;
use crate::sys::mutex::Mutex;
use slab::Slab;
use std::sync::Arc;

/// How many slots are looked at before the worker may use its table again: some microseconds.
const STEP: usize = 256;

/// A session keeps its slot, so that a look at all of them can be interrupted.
#[derive(Debug, Default)]
pub(super) struct Table(Mutex<Slab<Arc<Session>>>);

/// How far a look at all sessions has come.
#[derive(Debug, Default)]
pub struct TablePosition {
    pub(super) table: usize,
    pub(super) slot: usize,
}

impl Table {
    /// `make` is given the slot.
    pub(super) fn insert(&self, make: impl FnOnce(u32) -> Session) -> Arc<Session> {
        let mut sessions = self.0.lock();
        let entry = sessions.vacant_entry();
        // The number of sessions is limited by that of descriptors, which is below.
        let session = Arc::new(make(entry.key() as u32));
        Arc::clone(entry.insert(session))
    }

    pub(super) fn remove(&self, slot: u32) {
        let removed = self.0.lock().try_remove(slot as usize);
        // Only now, since it may be the last reference.
        drop(removed);
    }

    /// Returns whether there are more.
    pub(super) fn look_at_some(
        &self,
        slot: &mut usize,
        mut selects: impl FnMut(&Session) -> bool,
        found: &mut Vec<Arc<Session>>,
    ) -> bool {
        let sessions = self.0.lock();
        // Slots that were never used count, and are empty.
        let end = sessions.capacity();
        let to = end.min(*slot + STEP);
        let some = (*slot..to).filter_map(|slot| sessions.get(slot));
        found.extend(some.filter(|session| selects(session)).cloned());
        *slot = to;
        to < end
    }
}

//! Tells the sessions of a backend to end, not all in one instant.

use crate::{
    plan::reason::CloseReason,
    session::registry::Sessions,
    upstream::{backend::Backend, balance::Chance, health::Pace, pool::Pool},
};
use ahash::RandomState;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

#[derive(Clone)]
pub(super) struct Telling {
    pub(super) sessions: Arc<Sessions>,
    /// One for the process.
    pub(super) pace: Arc<Mutex<Pace>>,
}

impl Telling {
    /// Returns when all that are on `backend` have been told. Dropped before, it leaves the others
    /// where they are.
    pub(super) async fn all_on(&self, pool: &Pool, backend: &Arc<Backend>, reason: CloseReason) {
        // First those who come are told, then those who are there are looked for: nobody falls
        // between.
        pool.leave(backend);
        let there = self.sessions.on(backend.id);
        if there.is_empty() {
            return;
        }
        tracing::info!(upstream = %pool.name, backend = %backend.text(), address = %backend.place, sessions = there.len(),
            reason = reason.word(), "terminating sessions");
        let began = Instant::now();
        let mut chance = Chance::from_seed(RandomState::new().hash_one(()));
        let mut left = &there[..];
        while !left.is_empty() {
            let n = {
                let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
                pace.take(left.len(), Instant::now())
            };
            let (now, later) = left.split_at(n);
            // Who came too late has moved on by itself, perhaps to one that is well.
            now.iter()
                .for_each(|session| session.end_if_on(backend.id, reason));
            left = later;
            if !left.is_empty() {
                tokio::time::sleep(Pace::pause(chance.draw())).await;
            }
        }
        tracing::info!(upstream = %pool.name, backend = %backend.text(), address = %backend.place, sessions = there.len(),
            took = ?began.elapsed(), reason = reason.word(), "sessions terminated");
    }
}

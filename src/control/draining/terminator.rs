//! Terminates the sessions of a backend or a listener, not all in one instant.

use crate::{
    plan::reason::CloseReason,
    session::registry::{Session, Sessions},
    sys::mutex::Mutex,
    upstream::{backend::Backend, balance::Chance, health::Pace, pool::Pool},
};
use ahash::RandomState;
use std::{sync::Arc, time::Instant};

#[derive(Clone)]
pub(super) struct Terminator {
    pub(super) sessions: Arc<Sessions>,
    /// One for the process.
    pub(super) pace: Arc<Mutex<Pace>>,
}

impl Terminator {
    /// Returns when all sessions on `backend` have been notified to end. Dropped before, it leaves
    /// the others where they are.
    pub(super) async fn terminate_all_on(
        &self,
        pool: &Pool,
        backend: &Arc<Backend>,
        reason: CloseReason,
    ) {
        // First the pool, then the list: a session that is about to be on the backend learns it
        // from the pool, or is on the list already.
        pool.terminate_sessions(backend);
        let found = self.sessions.on(backend.id);
        if found.is_empty() {
            return;
        }
        tracing::info!(upstream = %pool.name, backend = %backend.text(),
            address = %backend.addr, sessions = found.len(),
            reason = reason.word(), "terminating sessions");
        let began = Instant::now();
        // One that learned it from the pool may be on another backend by now.
        let end = |session: &Session| session.end_if_on(backend.id, reason);
        self.end_all(&found, end).await;
        tracing::info!(upstream = %pool.name, backend = %backend.text(),
            address = %backend.addr, sessions = found.len(),
            took = ?began.elapsed(), reason = reason.word(), "sessions terminated");
    }

    /// The same of all sessions of the listener of this name.
    pub(super) async fn terminate_all_of(&self, listener: &str) {
        let reason = CloseReason::ListenerRemoved;
        let found = self
            .sessions
            .find(|session| session.origin.listener == listener);
        if found.is_empty() {
            return;
        }
        tracing::info!(
            listener,
            sessions = found.len(),
            reason = reason.word(),
            "terminating sessions"
        );
        let began = Instant::now();
        self.end_all(&found, |session| session.end(reason)).await;
        tracing::info!(listener, sessions = found.len(), took = ?began.elapsed(),
            reason = reason.word(), "sessions terminated");
    }

    /// At the common pace.
    async fn end_all<R>(&self, found: &[Arc<Session>], end: impl Fn(&Session) -> R) {
        let mut chance = Chance::from_seed(RandomState::new().hash_one(()));
        let mut rest = found;
        while !rest.is_empty() {
            let n = {
                let mut pace = self.pace.lock();
                pace.take(rest.len(), Instant::now())
            };
            let (now, later) = rest.split_at(n);
            for session in now {
                end(session);
            }
            rest = later;
            if !rest.is_empty() {
                tokio::time::sleep(Pace::pause(chance.draw())).await;
            }
        }
    }
}

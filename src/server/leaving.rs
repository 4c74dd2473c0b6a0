//! What becomes of sessions when a check has changed its mind about their backend.

use crate::{
    backend::Backend,
    balance::Chance,
    health::{Pace, Verdict},
    plan::{Check, OnLeave},
    pool::Pool,
    reason::CloseReason,
    sessions::Sessions,
};
use ahash::RandomState;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Ends the sessions of the backends of one upstream.
pub(super) struct Leaving {
    on_down: OnLeave,
    on_role_lost: OnLeave,
    on_recover: OnLeave,
    sessions: Arc<Sessions>,
    /// One for the process.
    pace: Arc<Mutex<Pace>>,
    /// What is under way, or has been since it was last up, by the number of the backend.
    under_way: Mutex<HashMap<u64, Going>>,
    stop: CancellationToken,
}

/// Sessions that are told to end, now or later.
struct Going {
    reason: CloseReason,
    /// When the first is told.
    from: Instant,
    /// Dropping it calls the rest off.
    _guard: DropGuard,
}

impl Leaving {
    pub(super) fn new(
        check: &Check,
        sessions: &Arc<Sessions>,
        pace: &Arc<Mutex<Pace>>,
        stop: &CancellationToken,
    ) -> Self {
        Self {
            on_down: check.on_down,
            on_role_lost: check.on_role_lost,
            on_recover: check.on_recover,
            sessions: Arc::clone(sessions),
            pace: Arc::clone(pace),
            under_way: Mutex::default(),
            stop: stop.clone(),
        }
    }

    /// The verdict about `backend` is another now, and stands in the pool already.
    pub(super) fn after(
        &self,
        pool: &Arc<Pool>,
        backend: &Arc<Backend>,
        backup: bool,
        verdict: Verdict,
    ) {
        match verdict {
            Verdict::Up => {
                // It is well again: who is still on it may stay, unless it was not because of it.
                self.call_off(backend, |reason| reason != CloseReason::Recovered);
                // Only where there is somewhere to go back to.
                if !backup && pool.takes(backend, Instant::now()) {
                    for address in pool.addresses().into_iter().filter(|a| a.backup) {
                        self.leave(
                            pool,
                            address.backend,
                            self.on_recover,
                            CloseReason::Recovered,
                        );
                    }
                }
            }
            Verdict::Down(_) => {
                self.leave(
                    pool,
                    Arc::clone(backend),
                    self.on_down,
                    CloseReason::BackendDown,
                );
            }
            Verdict::WrongRole => {
                let how = self.on_role_lost;
                self.leave(pool, Arc::clone(backend), how, CloseReason::RoleLost);
            }
        }
        if !backup && !verdict.is_up() {
            self.backups_are_needed(pool);
        }
    }

    /// Without a primary server sessions on backups have nowhere to go back to.
    fn backups_are_needed(&self, pool: &Pool) {
        let addresses = pool.addresses();
        if !addresses.iter().any(|a| !a.backup && a.verdict.is_up()) {
            for address in addresses.iter().filter(|a| a.backup) {
                self.call_off(&address.backend, |reason| reason == CloseReason::Recovered);
            }
        }
    }

    fn call_off(&self, backend: &Backend, which: impl Fn(CloseReason) -> bool) {
        let mut under_way = self.under_way();
        if under_way.get(&backend.id).is_some_and(|g| which(g.reason)) {
            under_way.remove(&backend.id);
        }
    }

    fn leave(&self, pool: &Arc<Pool>, backend: Arc<Backend>, how: OnLeave, reason: CloseReason) {
        let wait = match how {
            // What was begun for another reason goes on.
            OnLeave::Keep => return,
            OnLeave::Close => Duration::ZERO,
            OnLeave::CloseAfter(wait) => wait,
        };
        let from = Instant::now() + wait;
        let id = backend.id;
        // What was to begin earlier, or has begun, is not put off by another reason: it was not up in between.
        if self.under_way().get(&id).is_some_and(|g| g.from <= from) {
            return;
        }
        let stop = self.stop.child_token();
        let (pool, sessions) = (Arc::clone(pool), Arc::clone(&self.sessions));
        let pace = Arc::clone(&self.pace);
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            // First those who come are told, then those who are there are looked for: nobody falls between.
            pool.leave(&backend);
            let there = sessions.on(backend.id);
            if there.is_empty() {
                return;
            }
            tracing::info!(upstream = %pool.name, backend = %backend.text(), sessions = there.len(),
                reason = reason.word(), "telling sessions to end");
            let began = Instant::now();
            let mut chance = Chance::from_seed(RandomState::new().hash_one(()));
            let mut left = &there[..];
            while !left.is_empty() {
                let n = {
                    let mut pace = pace.lock().unwrap_or_else(PoisonError::into_inner);
                    pace.take(left.len(), Instant::now())
                };
                let (now, later) = left.split_at(n);
                now.iter().for_each(|session| session.end(reason));
                left = later;
                if !left.is_empty() {
                    tokio::time::sleep(Pace::pause(chance.draw())).await;
                }
            }
            tracing::info!(upstream = %pool.name, backend = %backend.text(), sessions = there.len(),
                took = ?began.elapsed(), reason = reason.word(), "all have been told");
        }));
        let going = Going {
            reason,
            from,
            _guard: stop.drop_guard(),
        };
        self.under_way().insert(id, going);
    }

    fn under_way(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Going>> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

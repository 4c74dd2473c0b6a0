//! What becomes of sessions when a check has changed its mind about their backend, or the operator wants it out.

use crate::{
    backend::Backend,
    balance::Chance,
    health::{Pace, Verdict},
    plan::{OnLeave, Upstream},
    pool::{Address, Pool, Turned, Wish},
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
    on_drain: OnLeave,
    sessions: Arc<Sessions>,
    /// One for the process.
    pace: Arc<Mutex<Pace>>,
    /// What is under way, or has been since it was last up or ready, by the number of the backend.
    under_way: Mutex<HashMap<(u64, Cause), Going>>,
    stop: CancellationToken,
}

/// On whose account sessions are told to end. Two that go on beside each other: when the one takes back what it said, the
/// other does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Cause {
    Verdict,
    Wish,
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
        upstream: &Upstream,
        sessions: &Arc<Sessions>,
        pace: &Arc<Mutex<Pace>>,
        stop: &CancellationToken,
    ) -> Self {
        let check = upstream.check.as_ref();
        Self {
            // Without a check there is no verdict.
            on_down: check.map_or(OnLeave::Keep, |c| c.on_down),
            on_role_lost: check.map_or(OnLeave::Keep, |c| c.on_role_lost),
            on_recover: check.map_or(OnLeave::Keep, |c| c.on_recover),
            on_drain: upstream.on_drain,
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
                if !backup {
                    self.call_back_to(pool, backend);
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

    /// The operator wants something else of these addresses of a backend now, and the pool knows already.
    pub(super) fn wished(&self, pool: &Arc<Pool>, wish: Wish, turned: &[Turned]) {
        for Turned {
            backend, backup, ..
        } in turned
        {
            match wish {
                Wish::Ready => {
                    self.under_way().remove(&(backend.id, Cause::Wish));
                    if !backup {
                        self.call_back_to(pool, backend);
                    }
                }
                Wish::Drain | Wish::Maint => {
                    let reason = CloseReason::BackendDrained;
                    self.leave(pool, Arc::clone(backend), self.on_drain, reason);
                }
            }
        }
        if wish != Wish::Ready && turned.iter().any(|address| !address.backup) {
            self.backups_are_needed(pool);
        }
    }

    /// A server that is no backup is back: sessions on backups may go to it, if it takes any.
    fn call_back_to(&self, pool: &Arc<Pool>, backend: &Arc<Backend>) {
        if !pool.takes(backend, Instant::now()) {
            return;
        }
        for address in pool.addresses().into_iter().filter(|a| a.backup) {
            let reason = CloseReason::Recovered;
            self.leave(pool, address.backend, self.on_recover, reason);
        }
    }

    /// Without a primary server sessions on backups have nowhere to go back to.
    fn backups_are_needed(&self, pool: &Pool) {
        let addresses = pool.addresses();
        let serves = |a: &Address| a.verdict.is_up() && a.wished.wish == Wish::Ready;
        if !addresses.iter().any(|a| !a.backup && serves(a)) {
            for address in addresses.iter().filter(|a| a.backup) {
                self.call_off(&address.backend, |reason| reason == CloseReason::Recovered);
            }
        }
    }

    /// What was begun because of a verdict.
    fn call_off(&self, backend: &Backend, which: impl Fn(CloseReason) -> bool) {
        let mut under_way = self.under_way();
        let key = (backend.id, Cause::Verdict);
        if under_way.get(&key).is_some_and(|g| which(g.reason)) {
            under_way.remove(&key);
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
        let key = match reason {
            CloseReason::BackendDrained => (backend.id, Cause::Wish),
            _ => (backend.id, Cause::Verdict),
        };
        // What was to begin earlier, or has begun, is not put off by another reason: it was not up in between.
        if self.under_way().get(&key).is_some_and(|g| g.from <= from) {
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
        self.under_way().insert(key, going);
    }

    fn under_way(&self) -> std::sync::MutexGuard<'_, HashMap<(u64, Cause), Going>> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

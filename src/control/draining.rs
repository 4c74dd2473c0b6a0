//! What becomes of sessions when a check has changed its mind about their backend, or the operator
//! wants it out.

mod failback;
mod terminator;
#[cfg(test)]
mod tests;

use crate::{
    control::draining::{failback::Recall, terminator::Telling},
    plan::{OnLeave, Upstream, reason::CloseReason},
    session::registry::Sessions,
    upstream::{
        backend::Backend,
        health::{Pace, Verdict},
        pool::{AdminState, Pool, Turned},
    },
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Ends the sessions of the backends of one upstream.
pub(super) struct Leaving {
    on_down: OnLeave,
    on_role_lost: OnLeave,
    on_lag: OnLeave,
    on_drain: OnLeave,
    recall: Recall,
    telling: Telling,
    /// What is under way, or has been since it was last up or ready, by the number of the backend.
    under_way: Mutex<HashMap<(u64, Cause), Going>>,
    stop: CancellationToken,
}

/// On whose account sessions are told to end. Two that go on beside each other: when the one takes
/// back what it said, the other does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Cause {
    Verdict,
    AdminState,
}

/// Sessions that are told to end, now or later.
struct Going {
    /// Of an address that nobody knows any more nothing is to be remembered.
    backend: Weak<Backend>,
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
        let telling = Telling {
            sessions: Arc::clone(sessions),
            pace: Arc::clone(pace),
        };
        let on_recover = check.map_or(OnLeave::Keep, |c| c.on_recover);
        Self {
            // Without a check there is no verdict.
            on_down: check.map_or(OnLeave::Keep, |c| c.on_down),
            on_role_lost: check.map_or(OnLeave::Keep, |c| c.on_role_lost),
            on_lag: check.map_or(OnLeave::Keep, |c| c.on_lag),
            on_drain: upstream.on_drain,
            recall: Recall::new(on_recover, telling.clone(), stop),
            telling,
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
                // It is well again: who is still on it may stay.
                self.call_off(backend, |_| true);
                if !backup {
                    self.call_back_to(pool, backend);
                }
            }
            // Whoever is used all the same keeps what it has.
            Verdict::Down(_) | Verdict::Lagging if pool.in_panic() => {}
            Verdict::Down(_) => self.leave(pool, backend, self.on_down, CloseReason::BackendDown),
            Verdict::Lagging => {
                let how = self.on_lag;
                self.leave(pool, backend, how, CloseReason::Lagging);
            }
            Verdict::WrongRole | Verdict::Standby => {
                let how = self.on_role_lost;
                self.leave(pool, backend, how, CloseReason::RoleLost);
            }
            // It may be right: who is there stays, and what has begun for another reason goes on.
            Verdict::Doubtful => {}
        }
        if !backup && !verdict.is_up() {
            self.backups_are_needed(pool);
        }
    }

    /// From now on all are used whatever their checks say: nobody is told to leave for that.
    pub(super) fn stay(&self, pool: &Pool) {
        for address in pool.addresses() {
            self.call_off(&address.backend, |reason| {
                matches!(reason, CloseReason::BackendDown | CloseReason::Lagging)
            });
        }
    }

    /// The checks count again, and what they said meanwhile.
    pub(super) fn resume(&self, pool: &Arc<Pool>) {
        for address in pool.addresses() {
            if let Verdict::Down(Some(_)) | Verdict::Lagging = address.verdict {
                self.after(pool, &address.backend, address.backup, address.verdict);
            }
        }
    }

    /// The operator wants something else of these addresses of a backend now, and the pool knows
    /// already.
    pub(super) fn admin_state_changed(
        &self,
        pool: &Arc<Pool>,
        admin_state: AdminState,
        turned: &[Turned],
    ) {
        for Turned {
            backend, backup, ..
        } in turned
        {
            match admin_state {
                AdminState::Ready => {
                    self.under_way().remove(&(backend.id, Cause::AdminState));
                    if !backup {
                        self.call_back_to(pool, backend);
                    }
                }
                AdminState::Drain | AdminState::Maint => {
                    let reason = CloseReason::BackendDrained;
                    self.leave(pool, backend, self.on_drain, reason);
                }
            }
        }
        if admin_state != AdminState::Ready && turned.iter().any(|address| !address.backup) {
            self.backups_are_needed(pool);
        }
    }

    /// A server that is no backup is back: sessions on backups are to go to it, if it is up and
    /// wanted.
    fn call_back_to(&self, pool: &Arc<Pool>, backend: &Arc<Backend>) {
        let addresses = pool.addresses();
        let mut up = addresses.iter().filter(|a| failback::is_up(a));
        if up.any(|a| Arc::ptr_eq(&a.backend, backend)) {
            self.recall.begin(pool);
        }
    }

    /// Without a primary server sessions on backups have nowhere to go back to.
    fn backups_are_needed(&self, pool: &Pool) {
        if !failback::anybody_is_up(pool) {
            self.recall.call_off();
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

    fn leave(&self, pool: &Arc<Pool>, backend: &Arc<Backend>, how: OnLeave, reason: CloseReason) {
        let wait = match how {
            // What was begun for another reason goes on.
            OnLeave::Keep | OnLeave::Move => return,
            OnLeave::Close => Duration::ZERO,
            OnLeave::CloseAfter(wait) => wait,
        };
        let from = Instant::now() + wait;
        let key = match reason {
            CloseReason::BackendDrained => (backend.id, Cause::AdminState),
            _ => (backend.id, Cause::Verdict),
        };
        let mut under_way = self.under_way();
        under_way.retain(|_, going| going.backend.strong_count() > 0);
        // What was to begin earlier, or has begun, is not put off by another reason: it was not up
        // in between.
        if under_way.get(&key).is_some_and(|g| g.from <= from) {
            return;
        }
        let stop = self.stop.child_token();
        let going = Going {
            backend: Arc::downgrade(backend),
            reason,
            from,
            _guard: stop.clone().drop_guard(),
        };
        let (pool, telling, known) = (
            Arc::clone(pool),
            self.telling.clone(),
            Arc::downgrade(backend),
        );
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            // Whoever is on it keeps it.
            if let Some(backend) = known.upgrade() {
                telling.all_on(&pool, &backend, reason).await;
            }
        }));
        under_way.insert(key, going);
    }

    fn under_way(&self) -> std::sync::MutexGuard<'_, HashMap<(u64, Cause), Going>> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

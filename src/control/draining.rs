//! What becomes of the sessions of a backend when its state changes.

mod failback;
mod terminator;
#[cfg(test)]
mod tests;

use crate::{
    control::draining::{failback::Failback, terminator::Terminator},
    plan::{
        Check, SessionAction, Upstream,
        reason::{BackendState, CloseReason},
    },
    session::registry::Sessions,
    sys::{mutex::Mutex, task::boxed},
    upstream::{
        backend::Backend,
        health::{Pace, Verdict},
        pool::{AdminState, AdminStateSet, Pool, Transition},
    },
};
use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Ends the sessions of the backends of one upstream.
pub(super) struct Draining {
    actions: Mutex<Actions>,
    failback: Failback,
    terminator: Terminator,
    /// Terminations that have begun or are due since the backend was last up or ready, by the id
    /// of the backend.
    terminations: Mutex<HashMap<(u64, TerminationOrigin), Termination>>,
    stop: CancellationToken,
}

/// What happens to the sessions of a backend when its state changes.
#[derive(Debug, Clone, Copy)]
struct Actions {
    on_down: SessionAction,
    on_role_lost: SessionAction,
    on_lag: SessionAction,
    on_drain: SessionAction,
    on_removed: SessionAction,
    /// What happens to the sessions on backups when a regular backend is up again.
    on_recover: SessionAction,
}

impl From<&Upstream> for Actions {
    fn from(upstream: &Upstream) -> Self {
        let check = upstream.check.as_ref();
        // Without a check there is no verdict.
        let action = |of: fn(&Check) -> SessionAction| check.map_or(SessionAction::Keep, of);
        Self {
            on_down: action(|check| check.on_down),
            on_role_lost: action(|check| check.on_role_lost),
            on_lag: action(|check| check.on_lag),
            on_drain: upstream.on_drain,
            on_removed: upstream.on_removed,
            on_recover: action(|check| check.on_recover),
        }
    }
}

/// Terminates the sessions of a listener that was removed, now or later. Dropping what is returned
/// cancels what has not been terminated by then.
pub(super) fn terminate_of_listener(
    listener: &str,
    how: SessionAction,
    sessions: &Arc<Sessions>,
    pace: &Arc<Mutex<Pace>>,
    stop: &CancellationToken,
) -> Option<DropGuard> {
    let wait = match how {
        // A flow cannot move to another listener.
        SessionAction::Keep | SessionAction::Move => return None,
        SessionAction::Close => Duration::ZERO,
        SessionAction::CloseAfter(wait) => wait,
    };
    let terminator = Terminator {
        sessions: Arc::clone(sessions),
        pace: Arc::clone(pace),
    };
    let (stop, listener) = (stop.child_token(), listener.to_owned());
    tokio::spawn(boxed(stop.clone().run_until_cancelled_owned(async move {
        tokio::time::sleep(wait).await;
        terminator.terminate_all_of(&listener).await;
    })));
    Some(stop.drop_guard())
}

/// What started a termination. They are tracked separately: when one is cancelled, the others
/// continue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum TerminationOrigin {
    Health,
    Operator,
    /// The configuration or the resolver no longer names the address.
    Removal,
}

/// The sessions of a backend are terminated, now or later.
struct Termination {
    /// Weak, so that the entry of an address that is gone can be removed.
    backend: Weak<Backend>,
    reason: CloseReason,
    from: Instant,
    /// Dropping it cancels what has not been terminated yet.
    _guard: DropGuard,
}

/// So many terminations are looked at each time that another begins, more of them only when their
/// table is full.
const FEW: usize = 64;

impl Draining {
    pub(super) fn new(
        upstream: &Upstream,
        sessions: &Arc<Sessions>,
        pace: &Arc<Mutex<Pace>>,
        stop: &CancellationToken,
    ) -> Self {
        let terminator = Terminator {
            sessions: Arc::clone(sessions),
            pace: Arc::clone(pace),
        };
        Self {
            actions: Mutex::new(upstream.into()),
            failback: Failback::new(terminator.clone(), stop),
            terminator,
            terminations: Mutex::default(),
            stop: stop.clone(),
        }
    }

    /// The actions of this plan apply from now on; terminations that have begun go on.
    pub(super) fn set_plan(&self, upstream: &Upstream) {
        *self.actions.lock() = upstream.into();
    }

    fn actions(&self) -> Actions {
        *self.actions.lock()
    }

    /// Follows a transition that checks caused; the pool knows it already.
    pub(super) fn follow_verdict(&self, pool: &Arc<Pool>, transition: &Transition) {
        let Transition {
            backend, is_backup, ..
        } = transition;
        if let Some(to) = transition.to {
            self.follow_state(pool, backend, *is_backup, to);
        }
    }

    fn follow_state(
        &self,
        pool: &Arc<Pool>,
        backend: &Arc<Backend>,
        is_backup: bool,
        state: BackendState,
    ) {
        use BackendState::{
            Disabled, Doubtful, Down, Drained, Failed, Lagging, Maintenance, Removed, Standby,
            Unproven, Up, WrongRole,
        };
        let actions = self.actions();
        let end =
            |how, reason| self.terminate(pool, backend, TerminationOrigin::Health, how, reason);
        match state {
            Up => {
                // The sessions that are still on it may stay.
                self.cancel(backend, |_| true);
                if !is_backup {
                    self.fail_back_to(pool, backend);
                }
            }
            // Sessions stay on a backend that is used in spite of its checks.
            Down | Lagging if pool.in_panic() => {}
            Down => end(actions.on_down, CloseReason::BackendDown),
            Lagging => end(actions.on_lag, CloseReason::Lagging),
            // It is the only one left to read from.
            Standby if pool.stands_in(backend) => {}
            WrongRole | Standby => end(actions.on_role_lost, CloseReason::RoleLost),
            // It may be right: its sessions stay, and what has begun for another reason goes on.
            Doubtful => {}
            // Not from a check.
            Failed | Unproven | Disabled | Drained | Maintenance | Removed => {}
        }
        if !is_backup && state != Up {
            self.cancel_failback_if_useless(pool);
        }
    }

    /// All backends are used from now on: cancels what began because one is down or lags.
    pub(super) fn start_panic(&self, pool: &Pool) {
        for address in pool.addresses() {
            self.cancel(&address.backend, CloseReason::is_cancelled_by_panic);
        }
    }

    /// Checks decide again, by what they have found meanwhile.
    pub(super) fn end_panic(&self, pool: &Arc<Pool>) {
        for address in pool.addresses() {
            if let Verdict::Down(Some(_)) | Verdict::Lagging = address.verdict {
                let state = address.verdict.state();
                self.follow_state(pool, &address.backend, address.is_backup, state);
            }
        }
    }

    /// Follows what an operator has set for a backend; the pool knows it already.
    pub(super) fn follow_admin_state(&self, pool: &Arc<Pool>, set: &AdminStateSet) {
        for (backend, is_backup) in &set.backends {
            let key = (backend.id, TerminationOrigin::Operator);
            match set.order.admin_state {
                AdminState::Ready => {
                    self.terminations.lock().remove(&key);
                    if !is_backup {
                        self.fail_back_to(pool, backend);
                    }
                }
                AdminState::Drain | AdminState::Maint => {
                    let how = match set.order.close_after {
                        Some(wait) => {
                            // The last order holds, also if it allows more time.
                            self.terminations.lock().remove(&key);
                            SessionAction::CloseAfter(wait)
                        }
                        None => self.actions().on_drain,
                    };
                    let reason = CloseReason::BackendDrained;
                    self.terminate(pool, backend, TerminationOrigin::Operator, how, reason);
                    if !is_backup {
                        self.cancel_failback_if_useless(pool);
                    }
                }
            }
        }
    }

    /// Follows that an address is no longer named, or is again; the pool knows it already.
    pub(super) fn follow_names(&self, pool: &Arc<Pool>, transition: &Transition) {
        let backend = &transition.backend;
        match (transition.from, transition.to) {
            (Some(_), None) => {
                let (how, reason) = (self.actions().on_removed, CloseReason::BackendRemoved);
                self.terminate(pool, backend, TerminationOrigin::Removal, how, reason);
            }
            (None, Some(_)) => {
                let key = (backend.id, TerminationOrigin::Removal);
                self.terminations.lock().remove(&key);
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
    }

    /// A server that is no backup is up again: sessions on backups are to go to it, unless the
    /// operator has taken it out.
    fn fail_back_to(&self, pool: &Arc<Pool>, backend: &Arc<Backend>) {
        if pool.address(backend).is_some_and(|a| failback::is_up(&a)) {
            self.failback.begin(pool, self.actions().on_recover);
        }
    }

    /// Without a regular server that is up, sessions on backups have nowhere to go back to.
    fn cancel_failback_if_useless(&self, pool: &Pool) {
        if self.failback.is_active() && !failback::is_any_up(pool) {
            self.failback.cancel();
        }
    }

    /// Cancels the termination that a check led to, if its reason is one of these.
    fn cancel(&self, backend: &Backend, which: impl Fn(CloseReason) -> bool) {
        let mut terminations = self.terminations.lock();
        let key = (backend.id, TerminationOrigin::Health);
        if terminations.get(&key).is_some_and(|t| which(t.reason)) {
            terminations.remove(&key);
        }
    }

    /// Terminates the sessions of a backend, now or later.
    fn terminate(
        &self,
        pool: &Arc<Pool>,
        backend: &Arc<Backend>,
        origin: TerminationOrigin,
        how: SessionAction,
        reason: CloseReason,
    ) {
        let wait = match how {
            // What has begun for another reason goes on.
            SessionAction::Keep | SessionAction::Move => return,
            SessionAction::Close => Duration::ZERO,
            SessionAction::CloseAfter(wait) => wait,
        };
        let from = Instant::now() + wait;
        let key = (backend.id, origin);
        let mut terminations = self.terminations.lock();
        if terminations.len() <= FEW || terminations.len() == terminations.capacity() {
            terminations.retain(|_, t| t.backend.strong_count() > 0);
        }
        // Another reason does not delay what begins earlier or has begun: the backend was not up in
        // between.
        if terminations.get(&key).is_some_and(|t| t.from <= from) {
            return;
        }
        let stop = self.stop.child_token();
        let termination = Termination {
            backend: Arc::downgrade(backend),
            reason,
            from,
            _guard: stop.clone().drop_guard(),
        };
        let (pool, terminator, known) = (
            Arc::clone(pool),
            self.terminator.clone(),
            Arc::downgrade(backend),
        );
        tokio::spawn(boxed(stop.run_until_cancelled_owned(async move {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            // Its sessions keep the backend alive.
            if let Some(backend) = known.upgrade() {
                terminator.terminate_all_on(&pool, &backend, reason).await;
            }
        })));
        terminations.insert(key, termination);
    }
}

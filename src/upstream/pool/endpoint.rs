//! One address of a backend as a candidate for sessions.

use super::{AdminSetting, AdminState, Cause, Checked, Transition, check_record::CheckRecord};
use crate::{
    plan::{self, Role, reason::BackendState},
    upstream::{
        backend::Backend,
        balance::Average,
        health::{Evidence, FailRule, Passive, PrimaryClaim, Verdict, VerdictChange},
    },
};
use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
    time::{Duration, Instant},
};

/// On the heap, so that thousands change their places under the lock by their pointers alone.
pub(super) type BoxedEndpoint = Box<Endpoint>;

#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) config: EndpointConfig,
    /// Of the state, as of the last [`super::Inner::recount`].
    pub(super) condition: Condition,
    pub(super) latency: Average,
    state: EndpointState,
}

#[derive(Debug)]
pub(super) struct EndpointState {
    pub(super) backend: Arc<Backend>,
    /// Failed connects. They, checks and the operator are independent: none erases another.
    pub(super) passive: Passive,
    pub(super) check: CheckRecord,
    pub(super) admin: AdminSetting,
    /// When it recovered, while it starts slowly.
    pub(super) slow_start: Option<Instant>,
    /// While a rebalancing is under way: with so many sessions it gets no other, as long as other
    /// endpoints have fewer than theirs.
    pub(super) ceiling: Option<u64>,
}

impl Deref for Endpoint {
    type Target = EndpointState;

    #[inline]
    fn deref(&self) -> &EndpointState {
        #[cfg(test)]
        super::locked::looks::count(&self.state);
        &self.state
    }
}

impl DerefMut for Endpoint {
    #[inline]
    fn deref_mut(&mut self) -> &mut EndpointState {
        #[cfg(test)]
        super::locked::looks::count(&self.state);
        &mut self.state
    }
}

/// What can be said about an endpoint in its state with any configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) admin_state: AdminState,
    /// The verdict from its own checks, and the one beside the others.
    pub(super) own: Verdict,
    pub(super) effective: Verdict,
    /// See [`CheckRecord`].
    pub(super) admits: bool,
    pub(super) is_stale: bool,
    pub(super) awaits_answer: bool,
    pub(super) checked_once: bool,
    pub(super) has_answered: bool,
    pub(super) has_epoch: bool,
    pub(super) fails: u32,
    pub(super) starts_slowly: bool,
    pub(super) has_ceiling: bool,
}

/// The configuration of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EndpointConfig {
    pub(super) weight: u32,
    pub(super) rule: FailRule,
    /// 0: no limit.
    pub(super) max_connections: u64,
    pub(super) slow_start: Duration,
    pub(super) is_down: bool,
    pub(super) is_backup: bool,
    /// Whether its source drains it.
    pub(super) is_draining: bool,
}

impl From<&plan::Backend> for EndpointConfig {
    fn from(plan: &plan::Backend) -> Self {
        Self {
            weight: plan.weight,
            rule: FailRule {
                max_fails: plan.max_fails,
                fail_timeout: plan.fail_timeout,
            },
            max_connections: plan.max_connections,
            slow_start: plan.slow_start,
            is_down: plan.down,
            is_backup: plan.backup,
            is_draining: plan.origin.is_draining(),
        }
    }
}

impl Endpoint {
    pub(super) fn new(
        backend: Backend,
        config: EndpointConfig,
        admin: AdminSetting,
        verdict: Verdict,
        now: Instant,
    ) -> Self {
        let state = EndpointState {
            backend: Arc::new(backend),
            passive: Passive::default(),
            check: CheckRecord::new(verdict, now),
            admin,
            slow_start: None,
            ceiling: None,
        };
        Self {
            config,
            condition: Condition::of(&state),
            latency: Average::default(),
            state,
        }
    }

    /// Something has happened to it.
    pub(super) fn note_condition(&mut self) {
        self.condition = Condition::of(self);
    }

    /// It has got another configuration in place of this one, and there are checks. Returns whether
    /// what they found is to be looked at again.
    pub(super) fn is_reset_after(&self, before: &EndpointConfig) -> bool {
        let (was, is) = (before, &self.config);
        (was.is_down && !is.is_down) || (was.is_draining && !is.is_draining)
    }

    /// If so.
    pub(super) fn reset_after(
        &mut self,
        before: &EndpointConfig,
        role: Option<Role>,
        now: Instant,
    ) {
        if before.is_down {
            // It was not checked meanwhile.
            self.check.reset(now);
        } else {
            self.check.return_from_drain(role, now);
        }
    }

    /// Records a check; `sign`: see [`CheckRecord::record`]. Returns whether the verdict on this
    /// endpoint or on others may change.
    pub(super) fn record_check(
        &mut self,
        checked: Checked,
        change: Option<VerdictChange>,
        sign: Evidence,
        now: Instant,
    ) -> bool {
        // The first verdict is no recovery, except after a maintenance. Nor is it one for an
        // endpoint that was used all the time.
        let recovers = change.is_some_and(|change| {
            change.to.is_up() && (!change.first || self.check.since.is_some()) && !self.check.admits
        });
        let may_change = self.check.record(checked, change, sign, now);
        if recovers {
            self.start_slowly(now);
        }
        may_change
    }

    /// Its claim to be the primary; `answers`: whether it can be believed now.
    pub(super) fn claim(&self, answers: bool) -> PrimaryClaim<'_> {
        let evidence = &self.check.evidence;
        PrimaryClaim {
            role_since: evidence.role_since,
            epoch: evidence.epoch.as_ref(),
            addr: &self.backend.addr,
            server: evidence.server.as_deref(),
            answers,
        }
    }

    pub(super) fn is_at_ceiling(&self) -> bool {
        (self.ceiling).is_some_and(|ceiling| self.backend.active() >= ceiling)
    }

    /// Whether it is checked, if anything is.
    pub(super) fn is_checked(&self) -> bool {
        self.admin.admin_state != AdminState::Maint
    }

    /// Whether the operator and the configuration let sessions come to it.
    pub(super) fn is_meant_to_serve(&self) -> bool {
        let is_ready = self.admin.admin_state == AdminState::Ready;
        is_ready && !self.config.is_down && !self.config.is_draining
    }

    /// A transition to its present state, from this one.
    pub(super) fn transition(&self, from: BackendState, cause: Cause, now: Instant) -> Transition {
        Transition {
            backend: Arc::clone(&self.backend),
            is_backup: self.config.is_backup,
            from: Some(from),
            to: Some(self.state()),
            cause,
            is_kept_out: false,
            doubted_for: Duration::ZERO,
            sessions: self.backend.active(),
            at: now,
        }
    }

    /// Whether state would be lost if it were dropped now: sessions, failures or a slow start.
    pub(super) fn is_worth_keeping(&self, now: Instant) -> bool {
        self.backend.active() > 0
            || !self.passive.is_available(self.config.rule, now)
            || self.slow_start.is_some() && !self.has_started(now)
    }

    pub(super) fn start_slowly(&mut self, now: Instant) {
        self.slow_start = Some(now).filter(|_| !self.config.slow_start.is_zero());
    }

    /// Ends a slow start whose time has passed. Returns whether it has.
    pub(super) fn end_slow_start(&mut self, now: Instant) -> bool {
        let ended = self.slow_start.is_some() && self.has_started(now);
        if ended {
            self.slow_start = None;
        }
        ended
    }

    fn has_started(&self, now: Instant) -> bool {
        let duration = self.config.slow_start;
        self.slow_start.is_none_or(|since| now >= since + duration)
    }

    /// It comes out of maintenance, and may be another server than it was.
    pub(super) fn restart(&mut self, has_checks: bool, now: Instant) {
        self.passive = Passive::default();
        if has_checks {
            self.check.reset(now);
        } else {
            self.start_slowly(now);
        }
    }
}

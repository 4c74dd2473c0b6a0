//! Whether an endpoint may take a session now, and if not, why. Decided here and in no other file.

use super::{
    AdminState,
    endpoint::{Condition, Endpoint, EndpointConfig, EndpointState},
};
use crate::{
    plan::reason::{BackendState, CloseReason},
    upstream::{balance::FULL, health::Verdict},
};
use std::time::Instant;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// With the whole of its weight, until something happens to it.
    Full,
    /// With so much of [`FULL`] of its weight now. Time, its sessions or its failures may change
    /// that by themselves.
    Part(u32),
    Barred(Bar),
}

/// What keeps sessions away from an endpoint. Of several, the first in this order is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bar {
    /// An operator drains it, or its source.
    Drained,
    /// An operator has it in maintenance.
    Maintenance,
    /// `down` in the configuration.
    Disabled,
    /// This verdict of the checks.
    Check(Verdict),
    /// The checks of a primary have given no certain answer for too long.
    Stale,
    /// Its connects failed, and `fail_timeout` has not passed.
    Failed,
    /// Its weight is 0.
    NoWeight,
    /// It has `max_connections` sessions.
    Full,
}

impl Admission {
    /// How much of [`FULL`] of its weight counts; 0: it takes nothing.
    pub(super) fn share(self) -> u32 {
        match self {
            Self::Full => FULL,
            Self::Part(share) => share,
            Self::Barred(_) => 0,
        }
    }

    pub(super) fn is_barred(self) -> bool {
        self.share() == 0
    }

    /// Whether nothing but the number of its sessions can keep sessions away.
    pub(super) fn is_fit(self) -> bool {
        !self.is_barred() || self.is_full()
    }

    pub(super) fn is_full(self) -> bool {
        self == Self::Barred(Bar::Full)
    }
}

impl Endpoint {
    /// `single`: the upstream has no other endpoint, so that failed connects and a slow start do
    /// not count.
    pub(super) fn admission(&self, single: bool, now: Instant) -> Admission {
        self.admission_with(&self.config, single, now)
    }

    /// The same with another configuration.
    pub(super) fn admission_with(
        &self,
        config: &EndpointConfig,
        single: bool,
        now: Instant,
    ) -> Admission {
        if let Some(bar) = self.lasting_bar_with(config) {
            return Admission::Barred(bar);
        }
        let passive = &self.passive;
        if !single && !passive.is_available(config.rule, now) {
            return Admission::Barred(Bar::Failed);
        }
        if config.weight == 0 {
            return Admission::Barred(Bar::NoWeight);
        }
        let is_limited = config.max_connections > 0;
        if is_limited && self.backend.taken_places() >= config.max_connections {
            return Admission::Barred(Bar::Full);
        }
        let starts = |_: &Instant| !config.slow_start.is_zero();
        match self.slow_start.filter(starts) {
            Some(since) if !single => {
                let passed = now.saturating_duration_since(since).as_secs_f64();
                let part = passed / config.slow_start.as_secs_f64();
                // Never 0: it serves where no other does.
                Admission::Part(((part * f64::from(FULL)) as u32).clamp(1, FULL))
            }
            Some(_) => Admission::Part(FULL),
            None if is_limited || self.ceiling.is_some() => Admission::Part(FULL),
            None if config.rule.max_fails > 0 && passive.fails() > 0 => Admission::Part(FULL),
            None => Admission::Full,
        }
    }

    /// What keeps sessions away from it until something happens: neither time nor the number of
    /// sessions changes it.
    pub(super) fn lasting_bar(&self) -> Option<Bar> {
        self.lasting_bar_with(&self.config)
    }

    fn lasting_bar_with(&self, config: &EndpointConfig) -> Option<Bar> {
        Condition::of(self).lasting_bar(config)
    }

    pub(super) fn state(&self) -> BackendState {
        Condition::of(self).state(&self.config)
    }

    /// Whether failed connects have taken it out, even if `fail_timeout` has passed since.
    pub(super) fn is_failed(&self) -> bool {
        Condition::of(self).is_failed(&self.config)
    }

    /// Why flows on it have to move to another endpoint, if they have to.
    pub(super) fn reason_to_leave(&self, single: bool) -> Option<CloseReason> {
        match self.lasting_bar() {
            Some(Bar::Drained | Bar::Maintenance) => Some(CloseReason::BackendDrained),
            Some(Bar::Disabled) => Some(CloseReason::BackendDown),
            Some(Bar::Check(verdict)) => match verdict {
                Verdict::Down(Some(_)) => Some(CloseReason::BackendDown),
                // It is yet to be checked.
                Verdict::Down(None) => None,
                Verdict::WrongRole | Verdict::Standby => Some(CloseReason::RoleLost),
                Verdict::Lagging => Some(CloseReason::Lagging),
                // It may be right.
                Verdict::Doubtful | Verdict::Up => None,
            },
            None | Some(Bar::Stale | Bar::Failed | Bar::NoWeight | Bar::Full) => {
                let is_failed = self.state() == BackendState::Failed && !single;
                is_failed.then_some(CloseReason::BackendDown)
            }
        }
    }
}

impl Condition {
    #[inline]
    pub(super) fn of(state: &EndpointState) -> Self {
        let EndpointState { check, admin, .. } = state;
        Self {
            admin_state: admin.admin_state,
            own: check.own,
            effective: check.effective,
            admits: check.admits,
            is_stale: check.is_stale,
            awaits_answer: check.awaits_answer.is_some(),
            checked_once: check.checked_once,
            has_answered: check.has_answered(),
            has_epoch: check.evidence.epoch.is_some(),
            fails: state.passive.fails(),
            starts_slowly: state.slow_start.is_some(),
            has_ceiling: state.ceiling.is_some(),
        }
    }

    fn lasting_bar(&self, config: &EndpointConfig) -> Option<Bar> {
        match self.admin_state {
            AdminState::Ready => {}
            AdminState::Drain => return Some(Bar::Drained),
            AdminState::Maint => return Some(Bar::Maintenance),
        }
        if config.is_draining {
            return Some(Bar::Drained);
        }
        if config.is_down {
            return Some(Bar::Disabled);
        }
        match self.effective {
            _ if self.admits => None,
            Verdict::Up => Some(Bar::Stale),
            verdict => Some(Bar::Check(verdict)),
        }
    }

    /// Without what time alone changes: a failed one stays so until it is proven good.
    pub(super) fn state(&self, config: &EndpointConfig) -> BackendState {
        match self.lasting_bar(config) {
            Some(Bar::Drained) => BackendState::Drained,
            Some(Bar::Maintenance) => BackendState::Maintenance,
            Some(Bar::Disabled) => BackendState::Disabled,
            Some(Bar::Check(verdict)) => verdict.state(),
            None | Some(Bar::Stale | Bar::Failed | Bar::NoWeight | Bar::Full) => {
                match self.effective {
                    Verdict::Up if self.is_failed(config) => BackendState::Failed,
                    // In panic it is used although it is not up.
                    verdict => verdict.state(),
                }
            }
        }
    }

    fn is_failed(&self, config: &EndpointConfig) -> bool {
        let most = config.rule.max_fails;
        most > 0 && self.fails >= most
    }

    /// Whether checks and the operator let sessions come to it.
    pub(super) fn is_well(&self, config: &EndpointConfig) -> bool {
        let is_ready = self.admin_state == AdminState::Ready;
        let is_meant = !config.is_down && !config.is_draining;
        self.effective.is_up() && !self.is_stale && is_meant && is_ready
    }

    /// Whether [`Endpoint::admission`] can be another one than [`Admission::Full`], now or later.
    pub(super) fn is_restricted(&self, config: &EndpointConfig) -> bool {
        self.lasting_bar(config).is_some()
            || config.weight == 0
            || config.max_connections > 0
            || self.has_ceiling
            || self.starts_slowly && !config.slow_start.is_zero()
            || self.fails > 0 && config.rule.max_fails > 0
    }
}

//! What an operator has set for backends, independent of checks and failed connects.

#[cfg(test)]
mod tests;

use super::{AdminChange, AdminStateSet, Cause, Event, Inner, Pool, check_record::PrimaryEvidence};
use crate::{
    plan::reason::{BackendState, words},
    upstream::backend::Backend,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

words! {
    #[derive(Default)]
    AdminState {
        /// It serves if it is well.
        #[default]
        Ready = "ready",
        /// It takes no new sessions, and is checked.
        Drain = "drain",
        /// It takes no new sessions, and is not checked.
        Maint = "maint",
    }
}

/// What an operator demands of a configured backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdminOrder {
    pub admin_state: AdminState,
    /// When its sessions are terminated, whatever `on_drain` is; `None`: by `on_drain`. Means
    /// nothing for one that is to be ready.
    pub close_after: Option<Duration>,
}

impl From<AdminState> for AdminOrder {
    fn from(admin_state: AdminState) -> Self {
        Self {
            admin_state,
            close_after: None,
        }
    }
}

/// The admin state of one configured backend. It applies to every address that its name resolves
/// to, now or later.
#[derive(Debug, Clone, Copy, Default)]
pub struct AdminSetting {
    pub admin_state: AdminState,
    /// `None` until an operator sets it for the first time.
    pub since: Option<Instant>,
    /// Counts how often it came out of maintenance: what checks found before is forgotten.
    pub term: u32,
    /// When an order terminates its sessions, or has begun to.
    pub close_at: Option<Instant>,
}

impl AdminState {
    /// The state of a backend with this setting, whatever its checks and connects are like.
    pub fn state(self) -> Option<BackendState> {
        match self {
            Self::Ready => None,
            Self::Drain => Some(BackendState::Drained),
            Self::Maint => Some(BackendState::Maintenance),
        }
    }
}

impl Pool {
    /// Sets the admin state of a configured backend, by its address as configured; `None` if there
    /// is no such backend.
    pub fn set_admin_state(
        &self,
        text: &str,
        order: AdminOrder,
        now: Instant,
    ) -> Option<AdminChange> {
        let admin_state = order.admin_state;
        let mut inner = self.lock();
        let of = inner.index.configured(text)?;
        let configured = Arc::make_mut(&mut inner.configured).get_mut(of)?;
        let configured = Arc::make_mut(configured);
        let was_to_serve = configured.is_to_serve();
        let metrics = Arc::clone(&configured.metrics);
        let setting = &mut configured.admin;
        let was = std::mem::replace(&mut setting.admin_state, admin_state);
        if was != admin_state {
            setting.since = Some(now).filter(|_| admin_state != AdminState::Ready);
            if was == AdminState::Maint {
                setting.term = setting.term.wrapping_add(1);
            }
        }
        match order.close_after {
            _ if admin_state == AdminState::Ready => setting.close_at = None,
            Some(wait) => setting.close_at = Some(now + wait),
            // What has been ordered before goes on.
            None => {}
        }
        let setting = *setting;
        let is_to_serve = configured.is_to_serve();
        let before = AdminSetting {
            admin_state: was,
            ..setting
        };
        inner.generation += 1;
        let serving = &mut inner.totals.serving_backends;
        *serving = *serving + usize::from(is_to_serve) - usize::from(was_to_serve);
        let from = inner.state_of(of, before, now);
        let first = inner.events.len();
        if was != admin_state {
            inner.apply_admin_setting(of, setting, was, now);
            self.changed();
        }
        let change = AdminChange {
            from,
            to: inner.state_of(of, setting, now),
            sessions: metrics.active(),
            age: setting
                .since
                .map_or(Duration::ZERO, |since| now.saturating_duration_since(since)),
            close_after: setting.close_at.map(|at| at.saturating_duration_since(now)),
        };
        if was != admin_state || order.close_after.is_some() {
            let of_it = inner.numbers_of(of);
            let of_it = of_it
                .into_iter()
                .filter_map(|number| inner.outlined(number));
            let set = AdminStateSet {
                backends: of_it
                    .map(|e| (Arc::clone(&e.backend), e.config.is_backup))
                    .collect(),
                metrics,
                order,
                was,
                change,
            };
            // Before what has followed from it.
            inner.events.insert_admin_state(first, set);
        }
        Some(change)
    }

    /// Whether what a check of this address finds still counts, when it began in this term. An
    /// address that is no longer named is checked while it has sessions.
    pub fn is_checked(&self, backend: &Backend, term: u32) -> bool {
        let mut inner = self.lock();
        let is_present = inner.index.endpoint(backend.id).is_some();
        inner.find(backend).is_some_and(|e| {
            let is_same_term = e.admin.term == term && e.is_checked();
            is_same_term && (is_present || e.backend.active() > 0)
        })
    }
}

impl Inner {
    /// Applies the new setting of a configured backend to its endpoints.
    fn apply_admin_setting(
        &mut self,
        of: usize,
        setting: AdminSetting,
        was: AdminState,
        now: Instant,
    ) {
        let mut changed = Vec::new();
        let (has_checks, role) = (self.start_verdict.is_some(), self.review.role);
        let numbers = self.numbers_of(of);
        for number in &numbers {
            let Some(endpoint) = self.outlined_mut(*number) else {
                continue;
            };
            let from = endpoint.state();
            endpoint.admin = setting;
            if setting.admin_state == AdminState::Maint {
                // It is not checked any more, and may become another server.
                endpoint.check.last = None;
                endpoint.check.evidence = PrimaryEvidence::default();
            }
            match (was, setting.admin_state) {
                (AdminState::Maint, _) => endpoint.restart(has_checks, now),
                (AdminState::Drain, AdminState::Ready) if has_checks => {
                    endpoint.check.return_from_drain(role, now);
                }
                (AdminState::Drain | AdminState::Ready, _) => {}
            }
            let cause = Cause::Operator(setting.admin_state);
            let transition = endpoint.transition(from, cause, now);
            changed.push(endpoint.backend.id);
            self.events.push(Event::Transition(transition));
        }
        if setting.admin_state == AdminState::Maint && self.review.elects() {
            // What it had proven does not count against others any more.
            for endpoint in &mut self.endpoints {
                let superseded_by = &mut endpoint.check.evidence.superseded_by;
                superseded_by.take_if(|by| changed.contains(by));
            }
        }
        self.review_some(numbers, None, now);
    }

    /// The endpoints of a configured backend, with those that have departed, by their numbers.
    fn numbers_of(&self, of: usize) -> Vec<usize> {
        let departed = self.departed_index.of(&self.configured[of].metrics.text);
        let departed = departed.iter().map(|i| self.endpoints.len() + i);
        self.index.range(of).chain(departed).collect()
    }

    /// The state of a configured backend, were this set for it.
    fn state_of(&self, of: usize, admin: AdminSetting, now: Instant) -> BackendState {
        let endpoints = self.endpoints[self.index.range(of)].iter();
        let endpoints: Vec<_> = endpoints.collect();
        self.explain_state(&self.configured[of].plan, admin, &endpoints, now)
            .0
    }
}

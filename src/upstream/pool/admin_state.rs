//! What the operator wants of the backends. It stands beside what checks and failed connects say:
//! neither erases the other.

#[cfg(test)]
mod tests;

use super::{AdminChange, AdminStateSet, Cause, Event, Inner, Pool};
use crate::{
    plan::reason::BackendState,
    upstream::{
        backend::Backend,
        health::{Passive, Verdict},
        pool::endpoint::Member,
    },
};
use std::{sync::Arc, time::Instant};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AdminState {
    /// Let it serve, if it is well.
    #[default]
    Ready,
    /// Nothing new; it is checked on.
    Drain,
    /// Nothing new, and no checks.
    Maint,
}

/// The admin state of one configured backend. It applies to every address that its name resolves
/// to, now or later.
#[derive(Debug, Clone, Copy, Default)]
pub struct AdminSetting {
    pub admin_state: AdminState,
    /// `None` until an operator sets it for the first time.
    pub since: Option<Instant>,
    /// Counts how often it came out of maintenance: what was found out before says nothing.
    pub term: u32,
}

impl AdminState {
    pub const ALL: [Self; 3] = [Self::Ready, Self::Drain, Self::Maint];

    pub fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Maint => "maint",
        }
    }

    pub fn of(word: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|admin_state| admin_state.word() == word)
    }

    /// The state that this puts a backend in, whatever checks and connects say.
    pub fn state(self) -> Option<BackendState> {
        match self {
            Self::Ready => None,
            Self::Drain => Some(BackendState::Drained),
            Self::Maint => Some(BackendState::Maintenance),
        }
    }
}

impl Pool {
    /// The configured backends, by their addresses as configured.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.configured.iter().map(|(plan, _)| plan.text.as_str())
    }

    /// Sets the admin state of a configured backend, by its address as configured; `None` if there
    /// is no such backend.
    pub fn set_admin_state(
        &self,
        backend: &str,
        admin_state: AdminState,
        now: Instant,
    ) -> Option<AdminChange> {
        let of = self.texts().position(|text| text == backend)?;
        let metrics = &self.configured[of].1;
        let mut inner = self.lock();
        let state = |inner: &Inner| {
            let members: Vec<_> = inner.members.iter().filter(|m| m.of == of).collect();
            self.state_of(inner, of, &members, now).0
        };
        let from = state(&inner);
        let change = |to| AdminChange {
            from,
            to,
            sessions: metrics.active(),
        };
        let setting = &mut inner.admin_states[of];
        let was = std::mem::replace(&mut setting.admin_state, admin_state);
        if was == admin_state {
            return Some(change(from));
        }
        setting.since = Some(now).filter(|_| admin_state != AdminState::Ready);
        if was == AdminState::Maint {
            setting.term = setting.term.wrapping_add(1);
        }
        let setting = *setting;
        let first = inner.events.len();
        inner.apply_admin_setting(of, setting, was, self.supposed.is_some(), now);
        inner.review(None, now);
        let change = change(state(&inner));
        // Before what has followed from it.
        inner.events.insert_admin_state(
            first,
            AdminStateSet {
                metrics: Arc::clone(metrics),
                admin_state,
                change,
            },
        );
        self.changed();
        Some(change)
    }

    /// Whether what a check of this address finds is still asked for, when it began in this term.
    /// An address that is no longer named is asked as long as there are sessions on it.
    pub fn is_checked(&self, backend: &Arc<Backend>, term: u32) -> bool {
        let mut inner = self.lock();
        let member = inner.find(backend);
        member.is_some_and(|m| {
            let asked = m.admin_state_changed.term == term
                && m.admin_state_changed.admin_state != AdminState::Maint;
            asked && (!m.departed || m.backend.active() > 0)
        })
    }
}

impl Inner {
    /// Applies the new admin state of a configured backend to its addresses.
    fn apply_admin_setting(
        &mut self,
        of: usize,
        setting: AdminSetting,
        was: AdminState,
        is_checked: bool,
        now: Instant,
    ) {
        let all = self.members.iter_mut().chain(&mut self.departed);
        let mut changed = Vec::new();
        for member in all.filter(|m| m.of == of) {
            let from = member.state();
            member.admin_state_changed = setting;
            if setting.admin_state == AdminState::Maint {
                // Nobody will ask whether it is still so, and it may become another server.
                member.checked = None;
                member.known = None;
                member.epoch = None;
                member.server = None;
                member.superseded = None;
            }
            if was == AdminState::Maint {
                member.begin_anew(is_checked, now);
            }
            let cause = Cause::Operator(setting.admin_state);
            let transition = member.transition(from, cause, now);
            self.events.push(Event::Transition(transition));
            changed.push(member.backend.id);
        }
        if setting.admin_state == AdminState::Maint {
            // Nor is what it had proven held against others.
            for member in &mut self.members {
                member.superseded.take_if(|by| changed.contains(by));
            }
        }
    }

    /// Applies the admin state of each configured backend to all its addresses, new ones included.
    pub(super) fn keep_admin_states(&mut self) {
        for member in self.members.iter_mut().chain(&mut self.departed) {
            if let Some(admin_state_changed) = self.admin_states.get(member.of) {
                member.admin_state_changed = *admin_state_changed;
            }
        }
    }
}

impl Member {
    pub(super) fn is_wanted(&self) -> bool {
        self.admin_state_changed.admin_state == AdminState::Ready
    }

    /// Whether it is still asked how it is.
    pub(super) fn is_asked(&self) -> bool {
        self.admin_state_changed.admin_state != AdminState::Maint
    }

    /// It comes out of maintenance, and may be another server than it was. Where there are checks
    /// it waits for their word, whatever `start` says: nobody else is in need of it as at the start
    /// of the process.
    fn begin_anew(&mut self, checked: bool, now: Instant) {
        self.passive = Passive::default();
        if checked {
            self.said = Verdict::Down(None);
            self.verdict = self.said;
            self.verdict_since = Some(now);
            (self.heard, self.stale, self.open) = (false, false, false);
            (self.born, self.certain) = (now, now);
        } else {
            self.start_slowly(now);
        }
    }
}

//! What the operator wants of the backends. It stands beside what checks and failed connects say:
//! neither erases the other.

#[cfg(test)]
mod tests;

use super::{Inner, Pool};
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

/// The effect of an admin state on one address.
#[derive(Debug)]
pub struct Turned {
    pub backend: Arc<Backend>,
    pub backup: bool,
    pub from: BackendState,
    pub to: BackendState,
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

    /// Sets the admin state of the configured backend of this index. Returns the change of each of
    /// its addresses, or `None` if it had that admin state already.
    pub fn set_admin_state(
        &self,
        of: usize,
        admin_state: AdminState,
        now: Instant,
    ) -> Option<Vec<Turned>> {
        let mut inner = self.lock();
        let admin_state_changed = inner
            .admin_states
            .get_mut(of)
            .filter(|w| w.admin_state != admin_state)?;
        let was = std::mem::replace(&mut admin_state_changed.admin_state, admin_state);
        admin_state_changed.since = Some(now).filter(|_| admin_state != AdminState::Ready);
        if was == AdminState::Maint {
            admin_state_changed.term = admin_state_changed.term.wrapping_add(1);
        }
        let admin_state_changed = *admin_state_changed;
        let Inner {
            members, departed, ..
        } = &mut *inner;
        let mut turned = Vec::new();
        for member in members.iter_mut().chain(departed).filter(|m| m.of == of) {
            let (_, from) = member.as_it_is();
            member.admin_state_changed = admin_state_changed;
            if admin_state == AdminState::Maint {
                // Nobody will ask whether it is still so, and it may become another server.
                member.checked = None;
                member.known = None;
                member.epoch = None;
                member.server = None;
                member.superseded = None;
            }
            if was == AdminState::Maint {
                member.begin_anew(self.supposed.is_some(), now);
            }
            let (backend, to) = member.as_it_is();
            let backup = self.configured.get(of).is_some_and(|(plan, _)| plan.backup);
            turned.push(Turned {
                backend,
                backup,
                from,
                to,
            });
        }
        if admin_state == AdminState::Maint {
            // Nor is what it had proven held against others.
            let gone: Vec<u64> = turned.iter().map(|t| t.backend.id).collect();
            for member in &mut inner.members {
                member.superseded.take_if(|by| gone.contains(by));
            }
        }
        inner.review(now);
        self.changed();
        Some(turned)
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

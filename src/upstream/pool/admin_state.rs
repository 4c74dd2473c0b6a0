//! What the operator wants of the backends. It stands beside what checks and failed connects say:
//! neither erases the other.

#[cfg(test)]
mod tests;

use super::{Inner, Pool, snapshot::judged};
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
pub enum Wish {
    /// Let it serve, if it is well.
    #[default]
    Ready,
    /// Nothing new; it is checked on.
    Drain,
    /// Nothing new, and no checks.
    Maint,
}

/// The wish about one configured backend: it holds for every address that its name stands for, now
/// or later.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wished {
    pub wish: Wish,
    /// `None` while nothing has been wished.
    pub since: Option<Instant>,
    /// Counts how often it came out of maintenance: what was found out before says nothing.
    pub term: u32,
}

/// What a wish has made of one address.
#[derive(Debug)]
pub struct Turned {
    pub backend: Arc<Backend>,
    pub backup: bool,
    pub from: BackendState,
    pub to: BackendState,
}

impl Wish {
    pub const ALL: [Self; 3] = [Self::Ready, Self::Drain, Self::Maint];

    pub fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Maint => "maint",
        }
    }

    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|wish| wish.word() == word)
    }

    /// The state that a backend is in by this wish alone.
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

    /// From now on this is wished of the configured backend of this index. What its addresses have
    /// become by that; `None` if it was wished before.
    pub fn set_wish(&self, of: usize, wish: Wish, now: Instant) -> Option<Vec<Turned>> {
        let mut inner = self.lock();
        let wished = inner.wishes.get_mut(of).filter(|w| w.wish != wish)?;
        let was = std::mem::replace(&mut wished.wish, wish);
        wished.since = Some(now).filter(|_| wish != Wish::Ready);
        if was == Wish::Maint {
            wished.term = wished.term.wrapping_add(1);
        }
        let wished = *wished;
        let Inner {
            members, departed, ..
        } = &mut *inner;
        let mut turned = Vec::new();
        for member in members.iter_mut().chain(departed).filter(|m| m.of == of) {
            let (_, from) = member.as_it_is();
            member.wished = wished;
            if wish == Wish::Maint {
                // Nobody will ask whether it is still so, and it may become another server.
                member.checked = None;
                member.known = None;
                member.epoch = None;
                member.server = None;
                member.superseded = None;
            }
            if was == Wish::Maint {
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
        if wish == Wish::Maint {
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
            let asked = m.wished.term == term && m.wished.wish != Wish::Maint;
            asked && (!m.departed || m.backend.active() > 0)
        })
    }
}

impl Inner {
    /// All addresses of a backend are under the wish about it, those that have just come, too.
    pub(super) fn keep_wishes(&mut self) {
        for member in self.members.iter_mut().chain(&mut self.departed) {
            if let Some(wished) = self.wishes.get(member.of) {
                member.wished = *wished;
            }
        }
    }
}

impl Member {
    pub(super) fn is_wanted(&self) -> bool {
        self.wished.wish == Wish::Ready
    }

    /// Whether it is still asked how it is.
    pub(super) fn is_asked(&self) -> bool {
        self.wished.wish != Wish::Maint
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

/// Why a backend is in the state that its wish puts it in; `failed`: by connects.
pub(super) fn why(wish: Wish, members: &[&Member], failed: bool) -> String {
    let besides = match judged(members) {
        _ if wish == Wish::Maint => None,
        None if failed => Some("its connects fail".to_owned()),
        judged => judged.map(|(_, why)| why),
    };
    let besides = besides.map_or_else(String::new, |why| format!("; besides, {why}"));
    format!("the operator says so{besides}")
}

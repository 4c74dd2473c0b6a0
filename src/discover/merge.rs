//! Which backends of a source are in effect, given its answers. Pure.
//!
//! - An error changes nothing.
//! - What is new, or has another weight, is in effect at once.
//! - What is missing is removed at once while it is not more than `max_removed` percent of the
//!   backends within any time of the length `confirm`; beyond that, what has been missing in all
//!   answers for `confirm`.
//! - An answer without backends removes them after `empty_after`.
//! - From one change to the next [`DEBOUNCE`] passes.

use super::{Found, Unknown};
use crate::plan::Discover;
use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

/// The least time from one change to the next: a burst of answers is one change.
pub(crate) const DEBOUNCE: Duration = Duration::from_millis(200);

/// By their addresses.
pub(crate) type Set = BTreeMap<String, Found>;

/// How answers are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rules {
    /// `None`: never.
    pub(crate) empty_after: Option<Duration>,
    /// In percent.
    pub(crate) max_removed: u32,
    pub(crate) confirm: Duration,
}

impl From<&Discover> for Rules {
    fn from(discover: &Discover) -> Self {
        Self {
            empty_after: discover.empty_after,
            max_removed: discover.max_removed,
            confirm: discover.confirm,
        }
    }
}

/// The backends in effect, and what is known about their source.
#[derive(Debug, Default, Clone)]
pub(crate) struct Merged {
    pub(crate) in_effect: Set,
    pub(crate) known: Known,
    /// The last good answer.
    pub(crate) answer: Set,
    /// Whether the last answer was good.
    pub(crate) answers: bool,
    /// Since when the good answers have had no backend.
    pub(crate) empty_since: Option<Instant>,
    /// What is in effect and not in the answer, with the time since which all answers have lacked
    /// it.
    pub(crate) missing: BTreeMap<String, Instant>,
    /// How many were removed, and when, within `confirm`.
    pub(crate) removals: VecDeque<(Instant, usize)>,
    /// Does not go to another process: [`DEBOUNCE`] has passed by then.
    pub(crate) changed_at: Option<Instant>,
}

/// Where the backends in effect come from.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// There has been no answer.
    #[default]
    Nothing,
    /// An earlier process had them from the source, which has not answered since.
    Saved,
    /// The source.
    Answered,
}

/// A backend that stays although the answer lacks it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) address: String,
    pub(crate) reason: HeldReason,
    /// When it is removed if the answer stays as it is; `None`: not by time alone.
    pub(crate) until: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeldReason {
    /// The answer has no backend.
    Empty,
    /// Too many are missing at once.
    TooMany,
    /// A change came less than [`DEBOUNCE`] before.
    Debounce,
    /// The source does not answer.
    NoAnswer,
}

/// What has changed, by addresses.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) added: Vec<String>,
    pub(crate) removed: Vec<String>,
    /// With another weight, or another flag.
    pub(crate) changed: Vec<String>,
}

/// What an answer or the time has led to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) changes: Option<Changes>,
    /// When to look again, even without an answer.
    pub(crate) deadline: Option<Instant>,
}

/// The backends of an answer by their addresses. Of several with one address, the most weight
/// counts, and it is a backup or draining if all are: the order does not matter.
pub(crate) fn collect(backends: impl IntoIterator<Item = Found>) -> Set {
    let mut set = Set::new();
    for found in backends {
        match set.get_mut(&found.address) {
            None => {
                set.insert(found.address.clone(), found);
            }
            Some(known) => {
                known.weight = known.weight.max(found.weight);
                known.backup &= found.backup;
                known.draining &= found.draining;
                known.name = known.name.take().max(found.name);
            }
        }
    }
    set
}

impl Merged {
    /// Backends that an earlier process had; they count until there is an answer. Returns whether
    /// they do.
    pub(crate) fn restore(&mut self, saved: Set) -> bool {
        let is_first = self.known == Known::Nothing;
        if is_first {
            self.in_effect = saved;
            self.known = Known::Saved;
        }
        is_first
    }

    /// Another source is asked from now on.
    pub(crate) fn forget_answer(&mut self) {
        self.answers = false;
    }

    /// What is in effect and may be among what an answer does not tell: it is part of that answer.
    pub(crate) fn fill(&self, answer: &mut Set, unknown: &[Unknown]) {
        for (address, found) in &self.in_effect {
            if unknown.iter().any(|unknown| unknown.may_be(found)) && !answer.contains_key(address)
            {
                answer.insert(address.clone(), found.clone());
            }
        }
    }

    /// Takes an answer; `None`: an error.
    pub(crate) fn merge(&mut self, answer: Option<Set>, rules: Rules, now: Instant) -> Outcome {
        let Some(answer) = answer else {
            self.answers = false;
            return Outcome::default();
        };
        if !self.answers {
            // What there was meanwhile is unknown: what is missing is missing from now on.
            self.missing.clear();
            self.empty_since = None;
        }
        self.answers = true;
        self.empty_since = match answer.is_empty() {
            true => self.empty_since.or(Some(now)),
            false => None,
        };
        self.answer = answer;
        if self.known == Known::Nothing {
            self.known = Known::Answered;
            self.missing.clear();
            let wanted = self.answer.clone();
            return self.change_to(wanted, now);
        }
        self.known = Known::Answered;
        let is_missing = |address: &String| !self.answer.contains_key(address);
        self.missing.retain(|address, _| is_missing(address));
        for address in self.in_effect.keys().filter(|a| is_missing(a)) {
            if !self.missing.contains_key(address) {
                self.missing.insert(address.clone(), now);
            }
        }
        self.tick(rules, now)
    }

    /// What time alone leads to.
    pub(crate) fn tick(&mut self, rules: Rules, now: Instant) -> Outcome {
        if !self.answers || self.in_effect == self.answer {
            return Outcome::default();
        }
        if let Some(next) = self
            .changed_at
            .map(|at| at + DEBOUNCE)
            .filter(|at| *at > now)
        {
            return Outcome {
                changes: None,
                deadline: Some(next),
            };
        }
        while let Some((at, _)) = self.removals.front()
            && *at + rules.confirm <= now
        {
            self.removals.pop_front();
        }
        let mut wanted = self.answer.clone();
        let mut next = None;
        let removal = self.removal(rules, now);
        for (address, since) in &self.missing {
            let until = removal(*since);
            if until.is_some_and(|until| until <= now) {
                continue;
            }
            next = [next, until].into_iter().flatten().min();
            if let Some(found) = self.in_effect.get(address) {
                wanted.insert(address.clone(), found.clone());
            }
        }
        let outcome = match wanted == self.in_effect {
            true => Outcome::default(),
            false => self.change_to(wanted, now),
        };
        Outcome {
            deadline: next,
            ..outcome
        }
    }

    /// When a backend is removed, by the time since which it has been missing, if the answer stays
    /// as it is.
    fn removal(&self, rules: Rules, now: Instant) -> impl Fn(Instant) -> Option<Instant> + use<> {
        let of_empty = self
            .empty_since
            .map(|since| rules.empty_after.map(|after| since + after));
        let at_once = self.may_remove_all(rules, now);
        move |since| match of_empty {
            Some(until) => until,
            None if at_once => Some(now),
            None => Some(since + rules.confirm),
        }
    }

    /// Whether all that is missing may be removed at once.
    fn may_remove_all(&self, rules: Rules, now: Instant) -> bool {
        let recent = self
            .removals
            .iter()
            .filter(|(at, _)| *at + rules.confirm > now);
        let recent: usize = recent.map(|(_, count)| count).sum();
        let (lost, all) = (self.missing.len() + recent, self.in_effect.len() + recent);
        lost as u64 * 100 <= u64::from(rules.max_removed) * all as u64
    }

    fn change_to(&mut self, wanted: Set, now: Instant) -> Outcome {
        let before = std::mem::replace(&mut self.in_effect, wanted);
        let after = &self.in_effect;
        let list = |addresses: Vec<&String>| addresses.into_iter().cloned().collect();
        let removed = before
            .keys()
            .filter(|address| !after.contains_key(*address));
        let added = after
            .keys()
            .filter(|address| !before.contains_key(*address));
        let changed = after.iter().filter(|(address, found)| {
            let known = before.get(*address);
            known.is_some_and(|known| known != *found)
        });
        let changes = Changes {
            added: list(added.collect()),
            removed: list(removed.collect()),
            changed: list(changed.map(|(address, _)| address).collect()),
        };
        self.missing
            .retain(|address, _| after.contains_key(address));
        if !changes.removed.is_empty() {
            self.removals.push_back((now, changes.removed.len()));
        }
        self.changed_at = Some(now);
        Outcome {
            changes: Some(changes),
            deadline: None,
        }
    }

    /// What stays in effect although the last answer lacks it.
    pub(crate) fn held(&self, rules: Rules, now: Instant) -> Vec<Held> {
        let debounce = self
            .changed_at
            .map(|at| at + DEBOUNCE)
            .filter(|at| *at > now);
        let removal = self.removal(rules, now);
        let held = self.missing.iter().map(|(address, since)| {
            let until = removal(*since);
            let (reason, until) = match self.empty_since {
                _ if !self.answers => (HeldReason::NoAnswer, None),
                Some(_) => (HeldReason::Empty, until),
                None if until.is_some_and(|until| until <= now) => (HeldReason::Debounce, debounce),
                None => (HeldReason::TooMany, until),
            };
            Held {
                address: address.clone(),
                reason,
                until,
            }
        });
        held.collect()
    }
}

impl HeldReason {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::TooMany => "max_removed",
            Self::Debounce => "debounce",
            Self::NoAnswer => "no_answer",
        }
    }
}

#[cfg(test)]
mod tests;

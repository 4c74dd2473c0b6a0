//! The sessions that wait for a backend, in the order in which they came. Pure: it picks no backend
//! and wakes no task, and time is passed in.

use super::Search;
use crate::{plan::reason::Shortage, upstream::backend::Lease};
use std::{
    collections::BTreeMap,
    task::Waker,
    time::{Duration, Instant},
};

/// Between two held sessions that go in.
const PACE: Duration = Duration::from_millis(1);
/// Held sessions that go in at once after a late wake-up, as time: so many paces.
const CATCH_UP: Duration = Duration::from_millis(20);
/// Between two held sessions that try a backend while connects fail.
const PROBE_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Debug, Default)]
pub(super) struct Line {
    last_ticket: u64,
    /// Those that take any backend, by ticket.
    any: BTreeMap<u64, Waiter>,
    /// Those that want the backend of their key, by its id, then by ticket.
    own: BTreeMap<u64, BTreeMap<u64, Waiter>>,
    /// What those that have been served got, until their tasks take it.
    served: BTreeMap<u64, Served>,
    counts: [u64; Shortage::COUNT],
    /// When the next held session may go in; `None`: at once.
    release_at: Option<Instant>,
    /// Whether connects of held sessions fail: one after the other tries, until one succeeds.
    is_probing: bool,
    /// Tasks to wake once the pool is unlocked.
    pub(super) woken: Vec<Waker>,
}

/// A session in the line.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) search: Search,
    /// `None` before its task has polled for the first time.
    waker: Option<Waker>,
    lacks: Shortage,
    /// Since when it has lacked that.
    since: Instant,
    left: [Duration; Shortage::COUNT],
}

/// The place of a session in the order, which it keeps if it has to wait again.
#[derive(Debug, Clone, Copy)]
pub struct Position {
    ticket: u64,
    /// For how long it may still wait, by what it lacks.
    left: [Duration; Shortage::COUNT],
}

/// What a session has got.
#[derive(Debug)]
pub struct Served {
    pub lease: Lease,
    pub search: Search,
    pub position: Position,
    /// From when it began to wait until its task took what it has got.
    pub waited: Duration,
    /// What it lacked before.
    pub(super) lacked: Shortage,
}

/// A session that has left the line.
pub(super) enum Left {
    Unserved(Waiter),
    /// Dropping it gives the place back: not under the lock of the pool.
    Served(Served),
}

impl Waiter {
    pub(super) fn lacks(&self) -> Shortage {
        self.lacks
    }

    pub(super) fn deadline(&self) -> Instant {
        self.since + self.left[self.lacks as usize]
    }

    pub(super) fn wake_by(&mut self, waker: &Waker) {
        if !self.waker.as_ref().is_some_and(|own| own.will_wake(waker)) {
            self.waker = Some(waker.clone());
        }
    }

    /// The time that it has waited for what it lacks now counts.
    fn settle(&mut self, now: Instant) {
        self.left = self.left_at(now);
        self.since = now;
    }

    /// For how long it may still wait, by what it lacks.
    pub(super) fn left_at(&self, now: Instant) -> [Duration; Shortage::COUNT] {
        let mut left = self.left;
        let of_this = &mut left[self.lacks as usize];
        *of_this = of_this.saturating_sub(now.saturating_duration_since(self.since));
        left
    }
}

impl Position {
    /// That of a session which has not waited yet.
    pub(super) fn new(ticket: u64, limits: [Duration; Shortage::COUNT]) -> Self {
        Self {
            ticket,
            left: limits,
        }
    }

    pub(super) fn ticket(self) -> u64 {
        self.ticket
    }
}

impl Line {
    /// Whether no session waits.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.counts == [0; Shortage::COUNT]
    }

    /// Sessions that wait, by what they lack.
    pub(super) fn counts(&self) -> [u64; Shortage::COUNT] {
        self.counts
    }

    pub(super) fn draw_ticket(&mut self) -> u64 {
        self.last_ticket += 1;
        self.last_ticket
    }

    pub(super) fn last_ticket(&self) -> u64 {
        self.last_ticket
    }

    /// Tickets up to this one belong to sessions of another process.
    pub(super) fn reserve_tickets(&mut self, last: u64) {
        self.last_ticket = self.last_ticket.max(last);
    }

    /// Whether a session with this ticket is here.
    pub(super) fn has(&self, ticket: u64) -> bool {
        let mut groups = self.own.values().chain([&self.any]);
        self.served.contains_key(&ticket) || groups.any(|group| group.contains_key(&ticket))
    }

    pub(super) fn searches(&self) -> impl Iterator<Item = &Search> {
        let groups = self.own.values().chain([&self.any]);
        groups
            .flat_map(BTreeMap::values)
            .map(|waiter| &waiter.search)
    }

    /// `own`: the id of the backend that it waits for, if it takes no other yet.
    pub(super) fn enter(
        &mut self,
        position: Position,
        search: Search,
        lacks: Shortage,
        own: Option<u64>,
        now: Instant,
    ) {
        let waiter = Waiter {
            search,
            waker: None,
            lacks,
            since: now,
            left: position.left,
        };
        self.counts[lacks as usize] += 1;
        self.group(own).insert(position.ticket, waiter);
    }

    fn group(&mut self, own: Option<u64>) -> &mut BTreeMap<u64, Waiter> {
        match own {
            Some(backend) => self.own.entry(backend).or_default(),
            None => &mut self.any,
        }
    }

    pub(super) fn find(&mut self, ticket: u64, own: Option<u64>) -> Option<&mut Waiter> {
        let own = own.and_then(|backend| self.own.get_mut(&backend)?.get_mut(&ticket));
        own.or_else(|| self.any.get_mut(&ticket))
    }

    pub(super) fn take_served(&mut self, ticket: u64) -> Option<Served> {
        self.served.remove(&ticket)
    }

    pub(super) fn leave(&mut self, ticket: u64, own: Option<u64>) -> Option<Left> {
        if let Some(served) = self.take_served(ticket) {
            return Some(Left::Served(served));
        }
        let waiter = own.and_then(|backend| self.take_own(backend, ticket));
        let waiter = waiter.or_else(|| self.any.remove(&ticket))?;
        self.counts[waiter.lacks as usize] -= 1;
        Some(Left::Unserved(waiter))
    }

    fn take_own(&mut self, backend: u64, ticket: u64) -> Option<Waiter> {
        let group = self.own.get_mut(&backend)?;
        let waiter = group.remove(&ticket);
        if group.is_empty() {
            self.own.remove(&backend);
        }
        waiter
    }

    /// The backends that sessions wait for alone, with the ticket of the first of these.
    pub(super) fn owns(&self) -> impl Iterator<Item = (u64, u64)> {
        let first = |(backend, group): (&u64, &BTreeMap<u64, Waiter>)| {
            group.keys().next().map(|ticket| (*backend, *ticket))
        };
        self.own.iter().filter_map(first)
    }

    /// The session takes any backend from now on.
    pub(super) fn give_up_own(&mut self, ticket: u64, backend: u64) {
        if let Some(waiter) = self.take_own(backend, ticket) {
            self.any.insert(ticket, waiter);
        }
    }

    /// All that wait for this backend take any from now on.
    pub(super) fn give_up_all(&mut self, backend: u64) {
        self.any
            .extend(self.own.remove(&backend).unwrap_or_default());
    }

    /// The first that takes any backend and came after this ticket.
    pub(super) fn next_of_any(&self, after: u64) -> Option<u64> {
        let mut later = self.any.range(after + 1..);
        later.next().map(|(ticket, _)| *ticket)
    }

    /// What a session in the line looks for, while a backend is picked for it; to be put back by
    /// [`Self::refuse`] or [`Self::serve`].
    pub(super) fn take_search(&mut self, ticket: u64, own: Option<u64>) -> Option<Search> {
        let waiter = self.find(ticket, own)?;
        Some(std::mem::take(&mut waiter.search))
    }

    pub(super) fn serve(
        &mut self,
        ticket: u64,
        own: Option<u64>,
        lease: Lease,
        search: Search,
        now: Instant,
    ) {
        let Some(Left::Unserved(mut waiter)) = self.leave(ticket, own) else {
            return;
        };
        if waiter.lacks == Shortage::NoneFit {
            self.count_release(now);
        }
        waiter.settle(now);
        let served = Served {
            lease,
            search,
            position: Position {
                ticket,
                left: waiter.left,
            },
            waited: Duration::ZERO,
            lacked: waiter.lacks,
        };
        self.served.insert(ticket, served);
        self.woken.extend(waiter.waker);
    }

    /// There is no backend for a session that takes any.
    pub(super) fn refuse(&mut self, ticket: u64, search: Search, lacks: Shortage, now: Instant) {
        // What holds for one that has tried no backend holds for all.
        let holds_for_all = search.tried.is_empty();
        if let Some(waiter) = self.any.get_mut(&ticket) {
            waiter.search = search;
            note_shortage(waiter, lacks, now, &mut self.counts, &mut self.woken);
        }
        let of_this = self.counts[lacks as usize];
        if holds_for_all && self.counts.iter().sum::<u64>() > of_this {
            let has_tried = |waiter: &Waiter| !waiter.search.tried.is_empty();
            for waiter in self.any.values_mut() {
                if lacks == Shortage::NoneFit || !has_tried(waiter) {
                    note_shortage(waiter, lacks, now, &mut self.counts, &mut self.woken);
                }
            }
        }
    }

    /// Whether the pace lets this session in now.
    pub(super) fn may_go_in(&self, ticket: u64, now: Instant) -> bool {
        let is_held = |waiter: &Waiter| waiter.lacks == Shortage::NoneFit;
        !self.any.get(&ticket).is_some_and(is_held) || self.release_at.is_none_or(|at| now >= at)
    }

    /// When the pace lets the next held session in, if it holds one back.
    pub(super) fn next_release(&self, now: Instant) -> Option<Instant> {
        let is_held = self.counts[Shortage::NoneFit as usize] > 0;
        self.release_at.filter(|at| is_held && *at > now)
    }

    fn count_release(&mut self, now: Instant) {
        let at = match self.is_probing {
            true => now + PROBE_INTERVAL,
            false => {
                let earliest = now.checked_sub(CATCH_UP).unwrap_or(now);
                self.release_at.unwrap_or(now).max(earliest) + PACE
            }
        };
        self.release_at = Some(at);
    }

    /// A connect of a held session has failed.
    pub(super) fn start_probing(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.is_probing, true) {
            self.release_at = Some(now + PROBE_INTERVAL);
        }
    }

    /// A connect has succeeded, or a verdict has changed.
    pub(super) fn stop_probing(&mut self) {
        if std::mem::take(&mut self.is_probing) {
            self.release_at = None;
        }
    }
}

/// A session that lacks something else than before has another deadline.
fn note_shortage(
    waiter: &mut Waiter,
    lacks: Shortage,
    now: Instant,
    counts: &mut [u64; Shortage::COUNT],
    woken: &mut Vec<Waker>,
) {
    if waiter.lacks == lacks {
        return;
    }
    waiter.settle(now);
    counts[waiter.lacks as usize] -= 1;
    counts[lacks as usize] += 1;
    waiter.lacks = lacks;
    woken.extend(waiter.waker.clone());
}

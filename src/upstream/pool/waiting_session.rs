//! Sessions that find no backend wait, where the upstream lets them: for a place at one that is
//! full (queue), or for one that is fit (hold).
//!
//! Whatever may have made a place free, or a backend fit, calls [`Inner::serve`] under the lock of
//! the pool: it picks for the sessions in the line and hands each its place. A session that comes
//! later never takes what one in the line could have had. The end of a session takes the lock only
//! while there is a line: the line is marked on every backend before the pool looks at their
//! numbers of sessions, and the end of a session counts down before it looks for the mark. One of
//! the two sees the other.

use super::{
    Inner, Pool, Search, View,
    endpoint::BoxedEndpoint,
    locked::Locked,
    waiting_line::{Left, Position, Served},
};
use crate::{
    plan::reason::{Shortage, WaitResult},
    sys::mutex::Mutex,
    upstream::{backend::ReleaseObserver, balance::HashInput},
};
use smallvec::SmallVec;
use std::{
    cell::RefCell,
    sync::{
        Arc,
        atomic::{Ordering::SeqCst, fence},
    },
    task::Waker,
    time::{Duration, Instant},
};

/// A session in the line. Dropped, it leaves, and what it has got goes to the next.
#[derive(Debug)]
pub struct WaitingSession {
    pool: Arc<Pool>,
    ticket: u64,
    /// The backend that it waits for alone, and until when.
    own: Option<(u64, Instant)>,
    began: Instant,
    is_over: bool,
}

/// The wait of a session that goes on in another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carried {
    /// Its place in the order; `None`: after all that wait by then.
    pub ticket: Option<u64>,
    pub lacks: Shortage,
    /// For how long it may still wait, by what it lacks.
    pub left: [Duration; Shortage::COUNT],
    /// For how long it still waits for the backend of its key alone.
    pub stick_left: Option<Duration>,
    pub began: Instant,
}

/// How the wait of a session goes.
#[derive(Debug)]
pub enum WaitProgress {
    Served(Box<Served>),
    /// It has waited for as long as it may. `has_limit`: whether it may wait for what it lacks by
    /// now.
    Ended {
        lacks: Shortage,
        has_limit: bool,
        waited: Duration,
    },
    /// To be polled again when it is woken, also because it lacks something else, and at this time.
    Pending(Shortage, Instant),
}

impl Pool {
    /// The search of a session that waits where the upstream lets it.
    pub fn search_or_wait(&self, client: &HashInput) -> Search {
        Search {
            may_wait: self.waits.is_any(),
            ..self.search(client)
        }
    }

    /// The same for a connection.
    pub fn search_of_connection(&self, client: &HashInput) -> Search {
        Search {
            may_move: true,
            ..self.search_or_wait(client)
        }
    }

    /// Whether sessions may wait for this.
    pub fn lets_wait(&self, lacks: Shortage) -> bool {
        !self.waits.limit(lacks).is_zero()
    }

    /// Enters a session in the line for what its last pick lacked. `again`: its place in the order,
    /// if it has waited before; `has_failed`: whether its connects have failed. `None`: it may not
    /// wait.
    pub fn enter_line(
        self: &Arc<Self>,
        mut search: Search,
        lacks: Shortage,
        again: Option<Position>,
        has_failed: bool,
        now: Instant,
    ) -> Option<WaitingSession> {
        if !search.may_wait {
            return None;
        }
        let mut inner = self.lock();
        let waits = inner.waits;
        let is_full = inner.line.counts()[lacks as usize] >= waits.most(lacks);
        if waits.limit(lacks).is_zero() || is_full {
            return None;
        }
        search.waits_since.get_or_insert(now);
        let own = search.own.map(|backend| (backend, now + waits.queue_stick));
        let position = again.unwrap_or_else(|| {
            let limits = [Shortage::Full, Shortage::NoneFit].map(|lacks| waits.limit(lacks));
            Position::new(inner.line.draw_ticket(), limits)
        });
        inner.line_up(position, search, lacks, own, now);
        if lacks == Shortage::NoneFit && has_failed {
            inner.line.start_probing(now);
        }
        inner.serve(now);
        drop(inner);
        Some(WaitingSession {
            pool: Arc::clone(self),
            ticket: position.ticket(),
            own,
            began: now,
            is_over: false,
        })
    }

    /// Enters a session that has waited in another process, whatever the limits are.
    pub fn enter_carried(
        self: &Arc<Self>,
        mut search: Search,
        carried: &Carried,
        now: Instant,
    ) -> WaitingSession {
        let mut inner = self.lock();
        let own = carried.stick_left.and_then(|left| {
            let backend = inner.full_own(&search, now)?;
            Some((backend, now + left))
        });
        search.own = own.map(|(backend, _)| backend);
        let ticket = carried.ticket.filter(|ticket| inner.is_reserved(*ticket));
        let ticket = ticket.unwrap_or_else(|| inner.line.draw_ticket());
        let position = Position::new(ticket, carried.left);
        inner.line_up(position, search, carried.lacks, own, now);
        inner.serve(now);
        drop(inner);
        WaitingSession {
            pool: Arc::clone(self),
            ticket,
            own,
            began: carried.began.min(now),
            is_over: false,
        }
    }

    /// Sessions that wait now, by what they lack.
    pub fn waiting(&self) -> [u64; Shortage::COUNT] {
        self.lock().line.counts()
    }
}

impl WaitingSession {
    /// The waker is that of the task, for the time until the next poll.
    pub fn poll(&mut self, waker: &Waker, now: Instant) -> WaitProgress {
        let pool = Arc::clone(&self.pool);
        let mut inner = pool.lock();
        if let Some((backend, _)) = self.own.take_if(|(_, until)| now >= *until) {
            inner.line.give_up_own(self.ticket, backend);
            inner.serve(now);
        }
        if let Some(mut served) = inner.line.take_served(self.ticket) {
            self.end(served.lacked, WaitResult::Served, now);
            served.waited = self.waited(now);
            return WaitProgress::Served(Box::new(served));
        }
        let own = self.own.map(|(backend, _)| backend);
        let Some(waiter) = inner.line.find(self.ticket, own) else {
            // It is always in the line until it is over.
            return self.ended(Shortage::NoneFit, false, now);
        };
        let (lacks, deadline) = (waiter.lacks(), waiter.deadline());
        if now < deadline {
            waiter.wake_by(waker);
            let until = self.own.map_or(deadline, |(_, until)| until.min(deadline));
            return WaitProgress::Pending(lacks, until);
        }
        inner.line.leave(self.ticket, own);
        inner.note_left(now);
        let has_limit = !inner.waits.limit(lacks).is_zero();
        drop(inner);
        self.end(lacks, WaitResult::TimedOut, now);
        self.ended(lacks, has_limit, now)
    }

    fn ended(&self, lacks: Shortage, has_limit: bool, now: Instant) -> WaitProgress {
        WaitProgress::Ended {
            lacks,
            has_limit,
            waited: self.waited(now),
        }
    }

    /// What another process needs to go on with the wait, if another process gives the places.
    /// `None`: it does not, or the session has been served.
    pub fn carried(&self, now: Instant) -> Option<Carried> {
        let mut inner = self.pool.lock();
        let last = inner.places.last_ticket()?;
        let own = self.own.map(|(backend, _)| backend);
        let waiter = inner.line.find(self.ticket, own)?;
        Some(Carried {
            ticket: Some(self.ticket).filter(|ticket| *ticket <= last),
            lacks: waiter.lacks(),
            left: waiter.left_at(now),
            stick_left: self
                .own
                .map(|(_, until)| until.saturating_duration_since(now)),
            began: self.began,
        })
    }

    /// Another process goes on with the wait: it is not counted here.
    pub fn forget(mut self) {
        self.is_over = true;
        // A lease among it is dropped now that the pool is unlocked.
        drop(self.leave(Instant::now()));
    }

    fn leave(&self, now: Instant) -> Option<Left> {
        let mut inner = self.pool.lock();
        let own = self.own.map(|(backend, _)| backend);
        let left = inner.line.leave(self.ticket, own);
        inner.note_left(now);
        left
    }

    pub fn waited(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }

    fn end(&mut self, lacked: Shortage, result: WaitResult, now: Instant) {
        self.is_over = true;
        let metrics = &self.pool.metrics.waits[lacked as usize];
        metrics.results[result as usize].add(1);
        metrics.duration.record(self.waited(now));
    }
}

impl Drop for WaitingSession {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let now = Instant::now();
        let left = self.leave(now);
        let lacked = match &left {
            Some(Left::Served(served)) => served.lacked,
            Some(Left::Unserved(waiter)) => waiter.lacks(),
            None => return,
        };
        self.end(lacked, WaitResult::Left, now);
        // A lease among it goes to the next, now that the pool is unlocked.
        drop(left);
    }
}

impl ReleaseObserver for Mutex<Inner> {
    fn observe_release(&self, now: Instant) {
        Locked::lock(self).serve(now);
    }
}

impl Inner {
    /// Gives what is free to the sessions in the line, in their order.
    #[inline]
    pub(super) fn serve(&mut self, now: Instant) {
        if !self.line.is_empty() && !self.places.expects_line() {
            self.serve_line(now);
        }
    }

    /// `own`: the backend that it waits for alone, and until when.
    fn line_up(
        &mut self,
        position: Position,
        search: Search,
        lacks: Shortage,
        own: Option<(u64, Instant)>,
        now: Instant,
    ) {
        let is_first = self.line.is_empty();
        let own = own.map(|(backend, _)| backend);
        self.line.enter(position, search, lacks, own, now);
        if is_first {
            self.watch_releases(true);
        }
    }

    fn serve_line(&mut self, now: Instant) {
        self.give_up_unfit(now);
        while self.serve_next(now) {}
        self.note_left(now);
    }

    /// Sessions have left the line, or have been served.
    fn note_left(&mut self, now: Instant) {
        if self.line.is_empty() {
            self.watch_releases(false);
        }
        let due = self.next_service(now);
        if std::mem::replace(&mut self.service_due, due) != due && due.is_some() {
            self.events.notifier().notify();
        }
    }

    /// No session waits alone for a backend that is unfit, or not named any more.
    fn give_up_unfit(&mut self, now: Instant) {
        let owns: SmallVec<[u64; 4]> = self.line.owns().map(|(backend, _)| backend).collect();
        for backend in owns {
            let single = self.balancer.is_single();
            let endpoint = self.index.endpoint(backend);
            if !endpoint.is_some_and(|i| self.endpoints[i].admission(single, now).is_fit()) {
                self.line.give_up_all(backend);
            }
        }
    }

    /// Serves the first session in the line that can be served. Returns whether there was one.
    fn serve_next(&mut self, now: Instant) -> bool {
        let own = self.first_with_place(now);
        let mut ticket = 0;
        while let Some(next) = self.line.next_of_any(ticket) {
            ticket = next;
            let is_earlier = own.is_some_and(|(first, _)| first < ticket);
            if is_earlier || !self.line.may_go_in(ticket, now) {
                break;
            }
            let Some(mut search) = self.line.take_search(ticket, None) else {
                break;
            };
            let is_new = search.tried.is_empty();
            match self.pick_for(&mut search, &RefCell::default(), now) {
                Ok(lease) => {
                    let since = search.waits_since.unwrap_or(now);
                    self.events.note_wait(now.saturating_duration_since(since));
                    self.line.serve(ticket, None, lease, search, now);
                    return true;
                }
                Err(lacks) => self.line.refuse(ticket, search, lacks, now),
            }
            if is_new {
                // Nor is there a backend for those after it.
                break;
            }
        }
        own.is_some_and(|(ticket, i)| {
            let backend = self.endpoints[i].backend.id;
            let Some(mut search) = self.line.take_search(ticket, Some(backend)) else {
                return false;
            };
            search.own = None;
            let lease = self.take(&mut search, i, now);
            self.line.serve(ticket, Some(backend), lease, search, now);
            true
        })
    }

    /// Of the sessions that wait for one backend alone and could have it, the first: its ticket and
    /// the endpoint.
    fn first_with_place(&self, now: Instant) -> Option<(u64, usize)> {
        let single = self.balancer.is_single();
        let place = |(backend, ticket)| {
            let i = self.index.endpoint(backend)?;
            let has_place = !self.endpoints[i].admission(single, now).is_barred();
            has_place.then_some((ticket, i))
        };
        self.line.owns().filter_map(place).min()
    }

    /// Whether the ends of sessions are reported, for those in the line.
    fn watch_releases(&self, on: bool) {
        self.releases.observe(on);
        fence(SeqCst);
    }

    /// What a session that has come now lacks since others are before it: those that are held, or
    /// those in the line of another process, which are on their way.
    pub(super) fn line_before(&self) -> Option<Shortage> {
        if self.places.expects_line() {
            let is_queue = !self.waits.limit(Shortage::Full).is_zero();
            return Some(match is_queue {
                true => Shortage::Full,
                false => Shortage::NoneFit,
            });
        }
        let held = self.line.counts()[Shortage::NoneFit as usize];
        let is_behind = held > 0 && held < self.waits.most(Shortage::NoneFit);
        is_behind.then_some(Shortage::NoneFit)
    }

    /// The backend of the session's key, if that is fit and full and the session is to wait for it
    /// alone.
    pub(super) fn full_own(&mut self, search: &Search, now: Instant) -> Option<u64> {
        let is_first_pick = search.tried.is_empty() && search.own.is_none();
        if self.waits.queue_stick.is_zero() || !is_first_pick {
            return None;
        }
        let mut lookup = search.lookup.clone();
        let Inner {
            balancer,
            endpoints,
            index,
            ..
        } = self;
        let view = View {
            single: balancer.is_single(),
            fast_path: false,
            bars_backups: false,
            respects_ceilings: false,
            ignores_full: true,
            endpoints,
            backends: &index.backends,
            tried: &[],
            now,
            full: &RefCell::default(),
        };
        let own = balancer.pick_by_key(&mut lookup, &view)?.candidate;
        let single = balancer.is_single();
        let is_full = endpoints[own].admission(single, now).is_full();
        is_full.then(|| endpoints[own].backend.id)
    }

    /// When time alone may let a session in: the pace, or a backend that is tried again.
    fn next_service(&self, now: Instant) -> Option<Instant> {
        if self.line.is_empty() {
            return None;
        }
        let retry = |e: &BoxedEndpoint| e.passive.available_at(e.config.rule, now);
        let is_failing = |e: &&BoxedEndpoint| e.condition.fails > 0;
        let retries = self.endpoints.iter().filter(is_failing).filter_map(retry);
        retries.chain(self.line.next_release(now)).min()
    }
}

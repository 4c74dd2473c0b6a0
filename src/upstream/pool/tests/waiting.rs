//! Sessions that wait: the order, what wakes them, and that no place is lost.

use super::*;
use crate::plan::reason::{Shortage, WaitResult};
use proptest::prelude::*;
use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    task::{Wake, Waker},
    thread::{self, Thread},
};

pub(super) const QUEUE: Duration = Duration::from_secs(10);
pub(super) const HOLD: Duration = Duration::from_secs(20);
pub(super) const BOTH: Waits = Waits {
    queue_timeout: QUEUE,
    queue_length: 100,
    queue_stick: Duration::ZERO,
    hold_timeout: HOLD,
    hold_length: 100,
};

pub(super) fn limited(n: u8, max_connections: u64) -> Planned {
    Planned {
        max_connections,
        slow_start: Duration::ZERO,
        ..planned(n)
    }
}

pub(super) fn waiting_pool(
    balance: Balance,
    backends: Vec<Planned>,
    waits: Waits,
    now: Instant,
) -> Arc<Pool> {
    let mut upstream = upstream(backends, check(CheckKind::Tcp));
    upstream.check = None;
    upstream.balance = balance;
    upstream.waits = waits;
    Arc::new(of(&upstream, now))
}

/// A session as its task sees it.
struct Session {
    search: Search,
    waiting: Option<WaitingSession>,
    lease: Option<Lease>,
    position: Option<Position>,
}

enum Outcome {
    Served,
    Waits(Instant),
    Ended(Shortage, bool),
}

impl Session {
    fn of(pool: &Pool, client: &HashInput) -> Self {
        Self {
            search: pool.search_or_wait(client),
            waiting: None,
            lease: None,
            position: None,
        }
    }

    fn begin(pool: &Arc<Pool>, now: Instant) -> (Self, Outcome) {
        let mut session = Self::of(pool, &HashInput::default());
        let outcome = session.try_next(pool, false, now);
        (session, outcome)
    }

    fn try_next(&mut self, pool: &Arc<Pool>, has_failed: bool, now: Instant) -> Outcome {
        self.lease = None;
        let lacks = match pool.pick(&mut self.search, now) {
            Ok(lease) => {
                self.lease = Some(lease);
                return Outcome::Served;
            }
            Err(lacks) => lacks,
        };
        let search = match has_failed {
            true => pool.search_or_wait(&HashInput::default()),
            false => std::mem::take(&mut self.search),
        };
        self.waiting = pool.enter_line(search, lacks, self.position, has_failed, now);
        match self.waiting {
            Some(_) => self.poll(now),
            None => Outcome::Ended(lacks, false),
        }
    }

    fn poll(&mut self, now: Instant) -> Outcome {
        let waiting = self.waiting.as_mut().expect("a session that waits");
        match waiting.poll(Waker::noop(), now) {
            WaitProgress::Pending(_, until) => Outcome::Waits(until),
            WaitProgress::Served(served) => {
                self.search = served.search;
                self.position = Some(served.position);
                self.lease = Some(served.lease);
                self.waiting = None;
                Outcome::Served
            }
            WaitProgress::Ended {
                lacks, has_limit, ..
            } => {
                self.waiting = None;
                Outcome::Ended(lacks, has_limit)
            }
        }
    }

    #[track_caller]
    fn backend(&self) -> String {
        let lease = self.lease.as_ref().expect("a backend");
        lease.backend().text().to_string()
    }
}

#[track_caller]
fn begin_served(pool: &Arc<Pool>, now: Instant) -> Session {
    let (session, outcome) = Session::begin(pool, now);
    assert!(matches!(outcome, Outcome::Served));
    session
}

#[track_caller]
fn begin_waiting(pool: &Arc<Pool>, now: Instant) -> Session {
    let (session, outcome) = Session::begin(pool, now);
    assert!(matches!(outcome, Outcome::Waits(_)));
    session
}

fn is_served(session: &mut Session, now: Instant) -> bool {
    matches!(session.poll(now), Outcome::Served)
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[test]
fn a_place_goes_to_the_first_that_waits() {
    let now = Instant::now();
    let pool = waiting_pool(Balance::RoundRobin, vec![limited(1, 1)], BOTH, now);
    let first = begin_served(&pool, now);
    let mut waiting: Vec<_> = (0..3).map(|_| begin_waiting(&pool, now)).collect();
    assert_eq!(pool.waiting(), [3, 0]);
    drop(first);
    // One that comes now is behind them, although the first has not taken its place yet.
    let mut last = begin_waiting(&pool, now);
    assert!(!is_served(&mut waiting[1], now) && is_served(&mut waiting[0], now));
    // A session that leaves is passed over, and one that leaves with a place gives it to the next.
    drop(waiting.remove(1));
    drop(waiting.remove(0));
    drop(waiting);
    assert!(is_served(&mut last, now));
    let results = |result: WaitResult| pool.metrics.waits[0].results[result as usize].get();
    assert_eq!(
        WaitResult::ALL
            .iter()
            .map(|r| results(*r))
            .collect::<Vec<_>>(),
        [2, 0, 2]
    );
    assert_eq!(pool.waiting(), [0, 0]);
}

/// The second to be served may be connected before the first.
#[test]
fn the_longest_wait_counts_for_what_took_a_backend_out() {
    let began = Instant::now();
    let s = |n| began + Duration::from_secs(n);
    let pool = waiting_pool(
        Balance::RoundRobin,
        vec![planned(1), planned(2)],
        BOTH,
        began,
    );
    for n in [0, 1] {
        set_admin_state(&pool, n, AdminState::Drain, s(1));
    }
    let mut waiting = [1, 4].map(|n| begin_waiting(&pool, s(n)));
    set_admin_state(&pool, 1, AdminState::Ready, s(5));
    pool.take_events(s(5));
    let [at, later] = [s(6), s(7)];
    pool.take_events(at);
    assert!(waiting.iter_mut().all(|session| is_served(session, at)));
    for session in waiting.iter().rev() {
        let backend = Arc::clone(session.lease.as_ref().expect("a backend").backend());
        assert!(pool.succeeded(&session.search, &backend, later));
    }
    let events = pool.take_events(later).0;
    let waits = events.iter().filter_map(|event| match event {
        Event::FailedOver { waited, at, .. } => Some((*waited, *at)),
        _ => None,
    });
    // From its beginning to its place, and not what its connect takes.
    let waits: Vec<_> = waits.collect();
    assert!(
        matches!(waits[..], [(waited, at)] if waited >= ms(4_000) && at == later),
        "{waits:?}"
    );
}

#[test]
fn a_session_waits_no_longer_than_its_limit_and_not_in_a_full_queue() {
    let now = Instant::now();
    let waits = Waits {
        queue_length: 1,
        ..BOTH
    };
    let pool = waiting_pool(Balance::RoundRobin, vec![limited(1, 1)], waits, now);
    let _held = begin_served(&pool, now);
    let (mut session, outcome) = Session::begin(&pool, now);
    assert!(matches!(outcome, Outcome::Waits(until) if until == now + QUEUE));
    let refused = Session::begin(&pool, now).1;
    assert!(matches!(refused, Outcome::Ended(Shortage::Full, false)));
    assert!(matches!(
        session.poll(now + QUEUE - ms(1)),
        Outcome::Waits(_)
    ));
    assert!(matches!(
        session.poll(now + QUEUE),
        Outcome::Ended(Shortage::Full, true)
    ));
    assert_eq!(pool.waiting(), [0, 0]);
}

#[test]
fn without_limits_of_time_nothing_waits() {
    let now = Instant::now();
    let pool = waiting_pool(
        Balance::RoundRobin,
        vec![limited(1, 1)],
        Waits::default(),
        now,
    );
    let _held = begin_served(&pool, now);
    let outcome = Session::begin(&pool, now).1;
    assert!(matches!(outcome, Outcome::Ended(Shortage::Full, false)));
    pool.set_admin_state("10.0.0.1:1", AdminState::Drain.into(), now);
    let outcome = Session::begin(&pool, now).1;
    assert!(matches!(outcome, Outcome::Ended(Shortage::NoneFit, false)));
}

#[test]
fn what_waits_for_a_place_waits_for_a_backend_when_all_are_drained() {
    let now = Instant::now();
    let pool = waiting_pool(Balance::RoundRobin, vec![limited(1, 1)], BOTH, now);
    let held = begin_served(&pool, now);
    let mut session = begin_waiting(&pool, now);
    let later = now + ms(4_000);
    pool.set_admin_state("10.0.0.1:1", AdminState::Drain.into(), later);
    assert_eq!(pool.waiting(), [0, 1]);
    assert!(matches!(session.poll(later), Outcome::Waits(until) if until == later + HOLD));
    drop(held);
    assert!(!is_served(&mut session, later));
    let last = later + ms(1_000);
    pool.set_admin_state("10.0.0.1:1", AdminState::Ready.into(), last);
    assert!(is_served(&mut session, last));
    // What it has waited counts if it has to wait again.
    let mut other = begin_waiting(&pool, last);
    session.search = pool.search_or_wait(&HashInput::default());
    drop(session.lease.take());
    assert!(is_served(&mut other, last));
    let again = session.try_next(&pool, false, last);
    assert!(matches!(again, Outcome::Waits(until) if until == last + QUEUE - ms(4_000)));
}

#[test]
fn without_hold_the_wait_ends_when_no_backend_is_fit() {
    let now = Instant::now();
    let waits = Waits {
        hold_timeout: Duration::ZERO,
        ..BOTH
    };
    let pool = waiting_pool(Balance::RoundRobin, vec![limited(1, 1)], waits, now);
    let _held = begin_served(&pool, now);
    let mut session = begin_waiting(&pool, now);
    pool.set_admin_state("10.0.0.1:1", AdminState::Maint.into(), now);
    assert!(matches!(
        session.poll(now),
        Outcome::Ended(Shortage::NoneFit, false)
    ));
}

#[test]
fn held_sessions_go_in_at_a_pace_and_before_later_ones() {
    let now = Instant::now();
    let pool = waiting_pool(Balance::RoundRobin, vec![limited(1, 0)], BOTH, now);
    pool.set_admin_state("10.0.0.1:1", AdminState::Drain.into(), now);
    let mut held: Vec<_> = (0..5).map(|_| begin_waiting(&pool, now)).collect();
    pool.set_admin_state("10.0.0.1:1", AdminState::Ready.into(), now);
    held.push(begin_waiting(&pool, now));
    let mut served = |at| {
        held.iter_mut()
            .filter(|s| s.lease.is_none())
            .map(|s| is_served(s, at))
            .collect::<Vec<_>>()
    };
    assert_eq!(served(now), [true, false, false, false, false, false]);
    // The lifecycle of the upstream serves the next when its time has come.
    let due = pool.take_events(now).1;
    assert_eq!(due, Some(now + ms(1)));
    pool.take_events(now + ms(2));
    assert_eq!(served(now + ms(2)), [true, true, false, false, false]);
    assert_eq!(pool.take_events(now + ms(60)).1, None);
    assert_eq!(served(now + ms(60)), [true; 3]);
    assert_eq!(pool.waiting(), [0, 0]);
}

#[test]
fn one_held_session_after_the_other_tries_a_backend_that_fails() {
    let now = Instant::now();
    let pool = waiting_pool(Balance::RoundRobin, vec![limited(1, 0)], BOTH, now);
    let fail = |session: &mut Session, at| session.try_next(&pool, true, at);
    let mut first = begin_served(&pool, now);
    assert!(matches!(fail(&mut first, now), Outcome::Waits(_)));
    let mut second = begin_waiting(&pool, now);
    assert_eq!(pool.take_events(now).1, Some(now + ms(200)));
    pool.take_events(now + ms(200));
    assert!(is_served(&mut first, now + ms(200)) && !is_served(&mut second, now + ms(200)));
    // It keeps its place, and the next try is its own.
    assert!(matches!(fail(&mut first, now + ms(210)), Outcome::Waits(_)));
    pool.take_events(now + ms(400));
    assert!(is_served(&mut first, now + ms(400)) && !is_served(&mut second, now + ms(400)));
    let lease = first.lease.take().expect("a backend");
    assert!(pool.succeeded(&first.search, lease.backend(), now + ms(401)));
    assert!(is_served(&mut second, now + ms(401)));
}

#[test]
fn a_failed_backend_is_tried_again_when_its_time_has_passed() {
    let now = Instant::now();
    let backends = vec![limited(1, 0), limited(2, 0)];
    let pool = waiting_pool(Balance::RoundRobin, backends, BOTH, now);
    for backend in pool.backends() {
        pool.failed(
            &backend,
            FailureOf::Connection,
            ConnectError::Refused,
            &"refused",
            [now; 2],
        );
    }
    let mut session = begin_waiting(&pool, now);
    let due = pool.take_events(now).1.expect("a time");
    assert!(due > now + Duration::from_secs(10) && due < now + Duration::from_secs(11));
    pool.take_events(due);
    assert!(is_served(&mut session, due));
}

#[test]
fn a_key_waits_for_its_own_backend_first() {
    let now = Instant::now();
    let waits = Waits {
        queue_stick: ms(500),
        ..BOTH
    };
    let balance = Balance::ConsistentHash(plan::HashKey::default(), None);
    let backends = vec![limited(1, 1), limited(2, 2)];
    let pool = waiting_pool(balance, backends, waits, now);
    let client = |n| HashInput {
        remote_addr: Some([192, 0, 2, n].into()),
        ..HashInput::default()
    };
    let begin = |n, at| {
        let mut session = Session::of(&pool, &client(n));
        let outcome = session.try_next(&pool, false, at);
        (session, outcome)
    };
    // Clients of the first backend.
    let of_first: Vec<u8> = (1..100)
        .filter(|n| begin(*n, now).0.backend() == "10.0.0.1:1")
        .take(4)
        .collect();
    let holder = begin(of_first[0], now).0;
    let (mut patient, outcome) = begin(of_first[1], now);
    assert!(matches!(outcome, Outcome::Waits(until) if until == now + ms(500)));
    let (mut leaves, _) = begin(of_first[2], now + ms(100));
    // The other backend has a place, which neither takes before its time.
    assert!(!is_served(&mut patient, now + ms(499)));
    assert!(is_served(&mut patient, now + ms(500)));
    assert_eq!(patient.backend(), "10.0.0.2:1");
    drop(holder);
    assert!(is_served(&mut leaves, now + ms(501)));
    assert_eq!(leaves.backend(), "10.0.0.1:1");
    // When their own backend is unfit, there is nothing to wait for.
    let (mut moves, _) = begin(of_first[3], now + ms(600));
    pool.set_admin_state("10.0.0.1:1", AdminState::Drain.into(), now + ms(601));
    assert!(is_served(&mut moves, now + ms(601)));
    assert_eq!(moves.backend(), "10.0.0.2:1");
}

#[test]
fn a_new_plan_with_more_places_serves_at_once() {
    let now = Instant::now();
    let pool = waiting_pool(Balance::RoundRobin, vec![limited(1, 1)], BOTH, now);
    let _held = begin_served(&pool, now);
    let mut waiting: Vec<_> = (0..3).map(|_| begin_waiting(&pool, now)).collect();
    let mut upstream = upstream(vec![limited(1, 3)], check(CheckKind::Tcp));
    upstream.check = None;
    upstream.waits = BOTH;
    pool.set_plan(
        &upstream,
        |_| unreachable!("no backend is new"),
        &Cause::Plan,
        now,
    );
    let served: Vec<bool> = waiting.iter_mut().map(|s| is_served(s, now)).collect();
    assert_eq!(served, [true, true, false]);
}

proptest! {
    /// Whatever comes, ends and leaves: the order of arrival is that of service, no backend has
    /// more than its places, and there is no place left while a session waits.
    #[test]
    fn service_is_in_the_order_of_arrival(
        places in prop::collection::vec(1..4u64, 1..4),
        steps in prop::collection::vec((0..4u8, any::<prop::sample::Index>()), 1..120),
    ) {
        let now = Instant::now();
        let waits = Waits { queue_length: 10_000, ..BOTH };
        let backends = places.iter().zip(1..).map(|(max, n)| limited(n, *max)).collect();
        let pool = waiting_pool(Balance::LeastConn, backends, waits, now);
        let total: u64 = places.iter().sum();
        let (mut on, mut line): (Vec<Session>, VecDeque<Session>) = Default::default();
        for (step, which) in steps {
            match step {
                0 | 1 => match Session::begin(&pool, now) {
                    (session, Outcome::Served) => {
                        prop_assert!(line.is_empty(), "it has overtaken another");
                        on.push(session);
                    }
                    (session, _) => line.push_back(session),
                },
                2 if !on.is_empty() => drop(on.swap_remove(which.index(on.len()))),
                3 if !line.is_empty() => drop(line.remove(which.index(line.len()))),
                _ => {}
            }
            // Tasks are polled in any order.
            let served: Vec<bool> = line.iter_mut().map(|s| is_served(s, now)).collect();
            prop_assert!(served.is_sorted_by(|a, b| a >= b), "{served:?}");
            for _ in served.iter().filter(|served| **served) {
                on.extend(line.pop_front());
            }
            let active: u64 = pool.backends().iter().map(|b| b.active()).sum();
            prop_assert_eq!(active, on.len() as u64);
            prop_assert!(active <= total && (line.is_empty() || active == total));
            prop_assert_eq!(pool.waiting(), [line.len() as u64, 0]);
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Threads that come, wait, leave and end: none waits for a place that is free. A wake-up that is
/// lost leaves its thread parked until the deadline.
#[test]
fn no_wake_up_is_lost_between_threads() {
    const THREADS: usize = 8;
    const ROUNDS: usize = 3_000;
    const PLACES: u64 = 3;
    let now = Instant::now();
    let waits = Waits {
        queue_timeout: Duration::from_secs(60),
        ..BOTH
    };
    let backends = vec![limited(1, 1), limited(2, PLACES - 1)];
    let pool = waiting_pool(Balance::RoundRobin, backends, waits, now);
    let (served, on, late) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (pool, served, on, late) = (&pool, &served, &on, &late);
            scope.spawn(move || {
                let waker = Waker::from(Arc::new(Unpark(thread::current())));
                for round in 0..ROUNDS {
                    let lease = wait_for_lease(pool, &waker, (thread + round) % 7 == 0, late);
                    if lease.is_some() {
                        assert!(on.fetch_add(1, SeqCst) < PLACES);
                        on.fetch_sub(1, SeqCst);
                        served.fetch_add(1, SeqCst);
                    }
                }
            });
        }
    });
    assert_eq!(late.load(SeqCst), 0, "a wake-up was lost");
    assert!(served.load(SeqCst) >= THREADS * ROUNDS * 6 / 7);
    assert_eq!(pool.waiting(), [0, 0]);
    assert!(pool.backends().iter().all(|b| b.active() == 0));
}

fn wait_for_lease(
    pool: &Arc<Pool>,
    waker: &Waker,
    leaves: bool,
    late: &AtomicUsize,
) -> Option<Lease> {
    let now = Instant::now();
    let mut search = pool.search_or_wait(&HashInput::default());
    let lacks = match pool.pick(&mut search, now) {
        Ok(lease) => return Some(lease),
        Err(lacks) => lacks,
    };
    let mut waiting = pool.enter_line(search, lacks, None, false, now)?;
    loop {
        match waiting.poll(waker, Instant::now()) {
            WaitProgress::Served(served) => return Some(served.lease),
            WaitProgress::Ended { .. } => return None,
            WaitProgress::Pending(..) if leaves => return None,
            WaitProgress::Pending(..) => {
                thread::park_timeout(Duration::from_secs(20));
                if now.elapsed() > Duration::from_secs(20) {
                    late.fetch_add(1, SeqCst);
                    return None;
                }
            }
        }
    }
}

/// The protocol between the end of a session and the line, as a model: one place, sessions that
/// end, sessions that come and sessions that leave, each in its atomic steps, in every order.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Model {
    active: u8,
    mark: bool,
    locked: bool,
    line: Vec<u8>,
    served: BTreeSet<u8>,
    threads: Vec<Step>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Step {
    /// A session ends.
    CountDown,
    LookForMark,
    LockToServe,
    ServeAndUnlock,
    /// A session comes, with its number.
    LockToEnter(u8),
    Enter(u8),
    Mark(u8),
    ServeAfterEntering(u8),
    /// It gives up, whatever it has got by now.
    LockToLeave(u8),
    Leave(u8),
    Done,
}

impl Model {
    fn serve(&mut self) {
        while self.active == 0 && !self.line.is_empty() {
            self.active += 1;
            let first = self.line.remove(0);
            self.served.insert(first);
        }
        self.mark &= !self.line.is_empty();
    }

    /// The state after the next step of a thread; `None`: it waits for the lock.
    fn step(&self, thread: usize, leavers: &[u8]) -> Option<Self> {
        let mut next = self.clone();
        let lock = |next: &mut Self| !std::mem::replace(&mut next.locked, true);
        let after = match self.threads[thread] {
            Step::CountDown => {
                next.active -= 1;
                Step::LookForMark
            }
            Step::LookForMark if self.mark => Step::LockToServe,
            Step::LookForMark => Step::Done,
            Step::LockToServe if lock(&mut next) => Step::ServeAndUnlock,
            Step::ServeAndUnlock => {
                next.serve();
                next.locked = false;
                Step::Done
            }
            Step::LockToEnter(n) if lock(&mut next) => Step::Enter(n),
            Step::Enter(n) => {
                next.line.push(n);
                Step::Mark(n)
            }
            Step::Mark(n) => {
                next.mark = true;
                Step::ServeAfterEntering(n)
            }
            Step::ServeAfterEntering(n) => {
                next.serve();
                next.locked = false;
                match leavers.contains(&n) {
                    true => Step::LockToLeave(n),
                    false => Step::Done,
                }
            }
            Step::LockToLeave(n) if lock(&mut next) => Step::Leave(n),
            Step::Leave(n) => {
                next.line.retain(|other| *other != n);
                next.mark &= !next.line.is_empty();
                next.locked = false;
                match next.served.remove(&n) {
                    true => Step::CountDown,
                    false => Step::Done,
                }
            }
            Step::LockToServe | Step::LockToEnter(_) | Step::LockToLeave(_) => return None,
            Step::Done => return None,
        };
        next.threads[thread] = after;
        Some(next)
    }
}

#[test]
fn the_protocol_loses_no_place_in_any_order() {
    for leavers in [&[][..], &[0], &[1], &[0, 1], &[0, 1, 2]] {
        let start = Model {
            active: 1,
            mark: false,
            locked: false,
            line: Vec::new(),
            served: BTreeSet::new(),
            threads: vec![
                Step::CountDown,
                Step::LockToEnter(0),
                Step::LockToEnter(1),
                Step::LockToEnter(2),
            ],
        };
        let (mut seen, mut open) = (HashSet::from([start.clone()]), vec![start]);
        let mut ends = 0;
        while let Some(state) = open.pop() {
            let next: Vec<Model> = (0..state.threads.len())
                .filter_map(|thread| state.step(thread, leavers))
                .collect();
            if next.is_empty() {
                ends += 1;
                assert!(
                    state.threads.iter().all(|step| *step == Step::Done),
                    "{state:?}"
                );
                assert!(state.active == 1 || state.line.is_empty(), "{state:?}");
                assert_eq!(usize::from(state.active), state.served.len(), "{state:?}");
                assert_eq!(state.mark, !state.line.is_empty(), "{state:?}");
            }
            for state in next {
                assert!(state.active <= 1, "{state:?}");
                if seen.insert(state.clone()) {
                    open.push(state);
                }
            }
        }
        assert!(ends > 0);
    }
}

//! Two pools as those of two processes: at no moment do they give more places than there are, and
//! those that wait keep their order.

use super::{
    waiting::{BOTH, HOLD, QUEUE, limited, waiting_pool},
    *,
};
use crate::{handover::places::PlacesRecord, plan::reason::Shortage};
use proptest::prelude::*;
use std::{collections::VecDeque, task::Waker};

const LIMIT: usize = 3;
const LINE: usize = 4;

/// A session in the order of arrival over both processes.
enum Place {
    WaitsInOld(WaitingSession),
    WaitsInNew(WaitingSession),
    HasOld(Lease),
    HasNew(Lease),
    Ended,
}

struct Both {
    old: Arc<Pool>,
    new: Arc<Pool>,
    sessions: Vec<Place>,
    /// On their way to the new process.
    reports: VecDeque<PlacesRecord>,
    now: Instant,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// The end of a session, by its number.
    End(usize),
    /// A client comes to the new process.
    Come,
    /// The first in the line of the old process goes over.
    MoveWaiting,
    /// A session with a backend goes over, by its number.
    Move(usize),
    Report,
    Deliver,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..20_usize).prop_map(Step::End),
        2 => Just(Step::Come),
        2 => Just(Step::MoveWaiting),
        2 => (0..20_usize).prop_map(Step::Move),
        2 => Just(Step::Report),
        2 => Just(Step::Deliver),
    ]
}

impl Both {
    fn new() -> Self {
        let now = Instant::now();
        let pool = || {
            let backends = vec![limited(1, LIMIT as u64)];
            waiting_pool(Balance::RoundRobin, backends, BOTH, now)
        };
        let (old, new) = (pool(), pool());
        let sessions = (0..LIMIT + LINE).map(|_| Self::begin(&old, now));
        let place =
            |(waiting, lease): (Option<WaitingSession>, Option<Lease>)| match (waiting, lease) {
                (Some(waiting), _) => Place::WaitsInOld(waiting),
                (None, Some(lease)) => Place::HasOld(lease),
                (None, None) => panic!("a place in the line"),
            };
        let sessions = sessions.map(place).collect();
        old.hand_places();
        new.note_places(&old.places_record(true), now);
        Self {
            old,
            new,
            sessions,
            reports: VecDeque::new(),
            now,
        }
    }

    fn begin(pool: &Arc<Pool>, now: Instant) -> (Option<WaitingSession>, Option<Lease>) {
        let mut search = pool.search_of_connection(&HashInput::default());
        match pool.pick(&mut search, now) {
            Ok(lease) => (None, Some(lease)),
            Err(lacks) => (pool.enter_line(search, lacks, None, false, now), None),
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::End(n) => {
                if let Some(session) = self.sessions.get_mut(n) {
                    drop(std::mem::replace(session, Place::Ended));
                }
            }
            Step::Come => {
                let place = match Self::begin(&self.new, self.now) {
                    (Some(waiting), _) => Place::WaitsInNew(waiting),
                    (None, lease) => Place::HasNew(lease.expect("a place")),
                };
                self.sessions.push(place);
            }
            Step::MoveWaiting => {
                let waits = |place: &Place| matches!(place, Place::WaitsInOld(_));
                let Some(n) = self.sessions.iter().position(waits) else {
                    return;
                };
                let Place::WaitsInOld(waiting) =
                    std::mem::replace(&mut self.sessions[n], Place::Ended)
                else {
                    return;
                };
                let carried = waiting.carried(self.now).expect("it was not served");
                let search = self.new.search_of_connection(&HashInput::default());
                let entered = self.new.enter_carried(search, &carried, self.now);
                waiting.forget();
                self.sessions[n] = Place::WaitsInNew(entered);
            }
            Step::Move(n) => {
                if let Some(place @ Place::HasOld(_)) = self.sessions.get_mut(n) {
                    let backend = Arc::clone(&self.new.backends()[0]);
                    *place = Place::HasNew(Lease::new(backend));
                }
            }
            Step::Report => {
                let waits = |place: &Place| matches!(place, Place::WaitsInOld(_));
                let has_line = self.sessions.iter().any(waits);
                self.reports.push_back(self.old.places_record(has_line));
            }
            Step::Deliver => {
                if let Some(report) = self.reports.pop_front() {
                    self.new.note_places(&report, self.now);
                }
            }
        }
        self.poll();
    }

    fn poll(&mut self) {
        for place in &mut self.sessions {
            let (Place::WaitsInOld(waiting) | Place::WaitsInNew(waiting)) = place else {
                continue;
            };
            match waiting.poll(Waker::noop(), self.now) {
                WaitProgress::Served(served) => {
                    assert!(
                        matches!(place, Place::WaitsInNew(_)),
                        "the old one gives none"
                    );
                    *place = Place::HasNew(served.lease);
                }
                WaitProgress::Pending(..) => {}
                WaitProgress::Ended { .. } => panic!("time stands still"),
            }
        }
    }

    fn check(&self) {
        let active = |pool: &Pool| pool.backends()[0].active() as usize;
        let sum = active(&self.old) + active(&self.new);
        assert!(sum <= LIMIT, "{sum} connections");
        for place in &self.sessions {
            if let Place::HasOld(lease) | Place::HasNew(lease) = place {
                assert!(lease.backend().active() > 0);
            }
        }
        let waits = |place: &Place| matches!(place, Place::WaitsInOld(_) | Place::WaitsInNew(_));
        if let Some(first) = self.sessions.iter().position(waits) {
            let later = self.sessions[first.max(LIMIT)..].iter();
            let overtakes = |place: &Place| matches!(place, Place::HasNew(_));
            assert!(!later.into_iter().any(overtakes), "a later one has a place");
        }
    }

    /// Whatever has happened, in the end each place is given.
    fn finish(mut self) {
        while self
            .sessions
            .iter()
            .any(|p| matches!(p, Place::WaitsInOld(_)))
        {
            self.take(Step::MoveWaiting);
        }
        for step in [Step::Report].into_iter().chain([Step::Deliver; 50]) {
            self.take(step);
            self.check();
        }
        self.new.take_back_places(self.now);
        for n in 0..self.sessions.len() {
            if let Place::HasOld(_) = self.sessions[n] {
                self.take(Step::End(n));
            }
        }
        self.check();
        let waits = |place: &&Place| matches!(place, Place::WaitsInNew(_));
        let has = |place: &&Place| matches!(place, Place::HasNew(_));
        let waiting = self.sessions.iter().filter(waits).count();
        let served = self.sessions.iter().filter(has).count();
        assert!(
            waiting == 0 || served == LIMIT,
            "{waiting} wait, {served} have a place"
        );
    }
}

proptest! {
    #[test]
    fn two_processes_give_no_more_places_than_there_are(
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let mut both = Both::new();
        for step in steps {
            both.take(step);
            both.check();
        }
        both.finish();
    }
}

#[test]
fn places_that_are_taken_back_go_to_those_that_wait() {
    let mut both = Both::new();
    both.take(Step::End(0));
    let Place::WaitsInOld(first) = &mut both.sessions[LIMIT] else {
        panic!("it waits");
    };
    assert!(matches!(
        first.poll(Waker::noop(), both.now),
        WaitProgress::Pending(..)
    ));
    both.old.take_back_places(both.now);
    assert!(matches!(
        first.poll(Waker::noop(), both.now),
        WaitProgress::Served(_)
    ));
}

#[test]
fn what_is_left_of_a_wait_is_carried() {
    let both = Both::new();
    let Place::WaitsInOld(waiting) = &both.sessions[LIMIT] else {
        panic!("it waits");
    };
    let later = both.now + Duration::from_secs(4);
    let carried = waiting.carried(later).expect("a wait");
    assert_eq!(carried.lacks, Shortage::Full);
    assert_eq!(carried.left, [QUEUE - Duration::from_secs(4), HOLD]);
    assert_eq!((carried.ticket, carried.began), (Some(1), both.now));
}

use super::*;
use crate::{
    plan::{Backend, Check, CheckKind},
    session::registry::{
        Session, SessionKind,
        tests::{arrival, origin},
    },
    upstream::{
        backend::Lease,
        pool::tests::{address, check, of, planned, set_addresses, upstream, verdict},
    },
};

/// Why a session on one of two backends must end when this becomes the verdict about it.
fn termination(check: Check, to: Verdict) -> Option<CloseReason> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let now = Instant::now();
        let sessions = Arc::new(Sessions::new(1, 10, 0, &descriptors(), now));
        let pace = Arc::new(Mutex::new(Pace::new(now)));
        let plan = upstream(vec![planned(1), planned(2)], check);
        let draining = Draining::new(&plan, &sessions, &pace, &CancellationToken::new());
        let pool = Arc::new(of(&plan, now));
        verdict(&pool, 1, Verdict::Up, true, now);
        let backend = Arc::clone(&pool.addresses()[0].backend);
        let session = sessions
            .add(arrival(), &origin(SessionKind::Connection))
            .expect("a session");
        session.set_backend(backend.id);
        verdict(&pool, 0, to, true, now);
        draining.follow_state(&pool, &backend, false, to.state());
        // For the task that terminates.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        session.must_end()
    })
}

/// What is to come when all are used is called off, and comes when the checks count again.
#[test]
fn sessions_of_a_backend_in_panic_mode_are_not_ended_later() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let now = Instant::now();
        let check = Check {
            on_down: SessionAction::CloseAfter(Duration::from_secs(3600)),
            panic_threshold: 60,
            ..check(CheckKind::Tcp)
        };
        let sessions = Arc::new(Sessions::new(1, 10, 0, &descriptors(), now));
        let pace = Arc::new(Mutex::new(Pace::new(now)));
        let plan = upstream((1..=3).map(planned).collect(), check);
        let draining = Draining::new(&plan, &sessions, &pace, &CancellationToken::new());
        let pool = Arc::new(of(&plan, now));
        let turn = |n: usize, to| {
            verdict(&pool, n, to, false, now);
            let backend = &pool.addresses()[n].backend;
            draining.follow_state(&pool, backend, false, to.state());
        };
        let waiting = || draining.terminations.lock().len();
        let down = Verdict::Down(Some(crate::plan::reason::CheckResult::Refused));
        (0..3).for_each(|n| turn(n, Verdict::Up));
        turn(0, down);
        assert_eq!((waiting(), pool.in_panic()), (1, false));
        turn(1, down);
        assert!(pool.in_panic());
        draining.start_panic(&pool);
        assert_eq!(waiting(), 0);
        turn(1, Verdict::Up);
        assert!(!pool.in_panic());
        draining.end_panic(&pool);
        assert_eq!(waiting(), 1, "the first one is still down");
    });
}

#[test]
fn each_reason_has_its_own_rule() {
    let all = |action: SessionAction, check: Check| Check {
        on_down: action,
        on_role_lost: action,
        on_lag: action,
        ..check
    };
    let close = |check: Check| all(SessionAction::Close, check);
    let keep = |check: Check| all(SessionAction::Keep, check);
    let plain = || check(CheckKind::Tcp);
    for (to, reason) in [
        (Verdict::Down(None), CloseReason::BackendDown),
        (Verdict::WrongRole, CloseReason::RoleLost),
        (Verdict::Lagging, CloseReason::Lagging),
    ] {
        assert_eq!(termination(close(plain()), to), Some(reason));
        assert_eq!(termination(keep(plain()), to), None);
        // Flows go by themselves, and sessions of TCP stay.
        assert_eq!(termination(all(SessionAction::Move, plain()), to), None);
        let others = match to {
            Verdict::Lagging => Check {
                on_lag: SessionAction::Keep,
                ..close(plain())
            },
            _ => Check {
                on_lag: SessionAction::Close,
                ..keep(plain())
            },
        };
        assert_eq!(
            termination(others, to),
            None,
            "{to:?} by the rule of another"
        );
    }
    // Its claim may be right; and a backend that is used in a panic keeps its sessions.
    assert_eq!(termination(close(plain()), Verdict::Doubtful), None);
    let in_panic = Check {
        panic_threshold: 100,
        ..close(plain())
    };
    assert_eq!(termination(in_panic.clone(), Verdict::Lagging), None);
    let refused = Verdict::Down(Some(crate::plan::reason::CheckResult::Refused));
    assert_eq!(termination(in_panic, refused), None);
}

/// An upstream whose last backend is a backup, with the terminations of sessions there.
struct Rig {
    sessions: Arc<Sessions>,
    pool: Arc<Pool>,
    draining: Draining,
}

impl Rig {
    fn new(backends: Vec<Backend>, check: Check) -> Self {
        let now = Instant::now();
        let sessions = Arc::new(Sessions::new(1, 1_000, 0, &descriptors(), now));
        let pace = Arc::new(Mutex::new(Pace::new(now)));
        let plan = upstream(backends, check);
        Self {
            draining: Draining::new(&plan, &sessions, &pace, &CancellationToken::new()),
            pool: Arc::new(of(&plan, now)),
            sessions,
        }
    }

    fn backend(&self, n: usize) -> Arc<crate::upstream::backend::Backend> {
        Arc::clone(&self.pool.addresses()[n].backend)
    }

    fn session_on(&self, n: usize) -> Arc<Session> {
        let session = self
            .sessions
            .add(arrival(), &origin(SessionKind::Connection));
        let session = session.expect("a session");
        session.set_backend(self.backend(n).id);
        session
    }

    fn turn(&self, n: usize, to: Verdict) {
        let now = Instant::now();
        verdict(&self.pool, n, to, false, now);
        self.pool.take_events(now);
        let address = &self.pool.addresses()[n];
        self.draining
            .follow_state(&self.pool, &address.backend, address.is_backup, to.state());
    }

    /// Waits until all sessions to be called back have been.
    async fn wait_failback(&self) {
        until(|| !self.draining.failback.is_active()).await;
    }
}

async fn until(holds: impl Fn() -> bool) {
    let patience = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < patience, "it never comes");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    runtime.expect("a runtime").block_on(test);
}

const DOWN: Verdict = Verdict::Down(Some(crate::plan::reason::CheckResult::Refused));

fn backup(n: u8) -> Backend {
    Backend {
        backup: true,
        ..planned(n)
    }
}

/// It takes one session.
fn small(n: u8) -> Backend {
    Backend {
        max_connections: 1,
        slow_start: Duration::ZERO,
        ..planned(n)
    }
}

fn with_failback(on_recover: SessionAction) -> Check {
    Check {
        on_recover,
        on_down: SessionAction::Close,
        ..check(CheckKind::Tcp)
    }
}

#[test]
fn a_backup_that_was_called_back_from_goes_down_like_any_other() {
    block_on(async {
        let rig = Rig::new(
            vec![planned(1), backup(2)],
            with_failback(SessionAction::Close),
        );
        rig.turn(0, Verdict::Up);
        rig.turn(1, Verdict::Up);
        rig.wait_failback().await;
        let session = rig.session_on(1);
        rig.turn(1, DOWN);
        until(|| session.must_end().is_some()).await;
        assert_eq!(session.must_end(), Some(CloseReason::BackendDown));
    });
}

#[test]
fn each_recovery_calls_back() {
    block_on(async {
        let backends = vec![planned(1), planned(2), backup(3)];
        let rig = Rig::new(backends, with_failback(SessionAction::Close));
        (0..3).for_each(|n| rig.turn(n, Verdict::Up));
        for _ in 0..3 {
            rig.wait_failback().await;
            rig.turn(0, DOWN);
            let session = rig.session_on(2);
            rig.turn(0, Verdict::Up);
            until(|| session.must_end().is_some()).await;
            assert_eq!(session.must_end(), Some(CloseReason::Recovered));
        }
    });
}

/// For sessions that have gone to a backup since the others were looked for.
#[test]
fn a_recovery_while_sessions_are_terminated_counts_too() {
    block_on(async {
        let backends = vec![planned(1), planned(2), backup(3)];
        let rig = Rig::new(backends, with_failback(SessionAction::Close));
        let many: Vec<_> = (0..500).map(|_| rig.session_on(2)).collect();
        rig.turn(0, Verdict::Up);
        until(|| many.iter().any(|s| s.must_end().is_some())).await;
        assert!(many.iter().any(|s| s.must_end().is_none()), "one by one");
        let late = rig.session_on(2);
        rig.turn(1, Verdict::Up);
        rig.wait_failback().await;
        assert!(many.iter().all(|s| s.must_end().is_some()));
        assert_eq!(late.must_end(), Some(CloseReason::Recovered));
    });
}

#[test]
fn a_full_backend_takes_sessions_back_when_it_has_places() {
    block_on(async {
        let soon = SessionAction::CloseAfter(Duration::from_millis(20));
        for on_recover in [SessionAction::Close, soon] {
            let rig = Rig::new(vec![small(1), backup(2)], with_failback(on_recover));
            let session = rig.session_on(1);
            let mut lease = Some(Lease::new(rig.backend(0)));
            if on_recover == soon {
                // It takes sessions when it comes back, and no more when it is time.
                lease = None;
            }
            rig.turn(0, Verdict::Up);
            let lease = lease.unwrap_or_else(|| Lease::new(rig.backend(0)));
            // Long enough for a termination.
            tokio::time::sleep(failback::POLL * 2).await;
            assert_eq!(session.must_end(), None);
            assert!(rig.draining.failback.is_active());
            drop(lease);
            rig.wait_failback().await;
            assert_eq!(session.must_end(), Some(CloseReason::Recovered));
        }
    });
}

#[test]
fn a_backend_that_is_not_up_is_not_waited_for() {
    block_on(async {
        let rig = Rig::new(
            vec![small(1), backup(2)],
            with_failback(SessionAction::Close),
        );
        let session = rig.session_on(1);
        let lease = Lease::new(rig.backend(0));
        rig.turn(0, Verdict::Up);
        rig.turn(0, DOWN);
        assert!(!rig.draining.failback.is_active(), "called off");
        rig.turn(0, Verdict::Up);
        assert!(rig.draining.failback.is_active());
        // Its name is gone, and no transition reports it.
        drop(lease);
        let none = [vec![], vec![address(2)]];
        set_addresses(&rig.pool, &none, Instant::now());
        rig.wait_failback().await;
        assert_eq!(session.must_end(), None);
    });
}

#[test]
fn of_addresses_that_are_gone_nothing_is_remembered() {
    block_on(async {
        for on_down in [
            SessionAction::Close,
            SessionAction::CloseAfter(Duration::from_secs(3600)),
        ] {
            let check = Check {
                on_down,
                ..check(CheckKind::Tcp)
            };
            let rig = Rig::new(vec![planned(1)], check);
            for n in 2..100 {
                rig.turn(0, DOWN);
                let next = [vec![address(n)]];
                set_addresses(&rig.pool, &next, Instant::now());
                tokio::task::yield_now().await;
            }
            rig.turn(0, DOWN);
            let remembered = rig.draining.terminations.lock().len();
            assert!(remembered <= 2, "{remembered} of {on_down:?}");
        }
    });
}

/// A session was found on the backend that is cleared, and moved on by itself before its
/// termination.
#[test]
fn a_session_that_has_moved_on_before_its_termination_stays() {
    block_on(async {
        let rig = Rig::new(vec![planned(1), planned(2)], check(CheckKind::Tcp));
        let all: Vec<_> = (0..500).map(|_| rig.session_on(0)).collect();
        let (ill, well) = (rig.backend(0), rig.backend(1).id);
        let terminating =
            rig.draining
                .terminator
                .terminate_all_on(&rig.pool, &ill, CloseReason::BackendDown);
        let moves = async {
            let waiting = all.iter().filter(|s| s.must_end().is_none());
            let moved: Vec<_> = waiting.step_by(2).collect();
            moved.iter().for_each(|s| s.set_backend(well));
            moved
        };
        let ((), moved) = tokio::join!(biased; terminating, moves);
        assert_eq!(moved.len(), 150, "200 are terminated at once");
        assert!(moved.iter().all(|s| s.must_end().is_none()));
        let ended = all.iter().filter(|s| s.must_end().is_some());
        assert_eq!(ended.count(), 350);
    });
}

fn descriptors() -> Arc<crate::session::registry::Descriptors> {
    Arc::new(crate::session::registry::Descriptors::new(2_000, 0, 0))
}

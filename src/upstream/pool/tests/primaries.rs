//! Writer pools: one primary is believed at a time, and none without a recent answer.

use super::*;
use crate::upstream::health::{Judge, RiseFall};
use CheckResult::{Local, Ok as Primary, Refused, Timeout, WrongRole as Replica};
use proptest::prelude::*;

const STALE: u64 = 30;

/// A pool and the judges of its backends, in virtual time.
struct Scene {
    pool: Pool,
    judges: Vec<Judge>,
    began: Instant,
    now: Instant,
}

impl Scene {
    fn new(n: u8, fall: u32, keys: impl Fn(&mut Planned)) -> Self {
        let now = Instant::now();
        let check = Check {
            stale_after: Some(Duration::from_secs(STALE)),
            ..check(requiring(Role::Primary))
        };
        let backends = (1..=n).map(|n| {
            let mut backend = planned(n);
            keys(&mut backend);
            backend
        });
        let rule = RiseFall { rise: 2, fall };
        Self {
            pool: guarded(backends.collect(), check, now),
            judges: (0..n)
                .map(|_| Judge::new(rule, Verdict::Down(None)))
                .collect(),
            began: now,
            now,
        }
    }

    /// So many seconds after the beginning.
    fn at(&mut self, seconds: u64) -> &mut Self {
        self.now = self.began + Duration::from_secs(seconds);
        self
    }

    /// What a check of backend `n`, counted from 1, finds now.
    fn record(&mut self, n: usize, result: CheckResult, epoch: Option<Epoch>) -> &mut Self {
        let change = self.judges[n - 1].record(result, [self.now; 2]);
        let checked = Checked {
            began: self.now,
            at: self.now,
            took: Duration::ZERO,
            result,
            finding: Finding {
                epoch,
                ..Finding::default()
            },
            transcript: String::new(),
        };
        let backend = &self.pool.addresses()[n - 1].backend;
        self.pool.checked(backend, checked, change, self.now);
        self
    }

    fn check(&mut self, n: usize, result: CheckResult) -> &mut Self {
        self.record(n, result, None)
    }

    /// The numbers of the backends that take sessions, from 1.
    fn takers(&self) -> Vec<usize> {
        let addresses = self.pool.addresses();
        let takes = |i: &usize| self.pool.takes(&addresses[*i - 1].backend, self.now);
        (1..=addresses.len()).filter(takes).collect()
    }

    fn picks(&self) -> Vec<usize> {
        let mut picks: Vec<usize> = (0..8)
            .filter_map(|_| pick(&self.pool, self.now))
            .map(|text| text[7..8].parse().expect("a number"))
            .collect();
        picks.sort_unstable();
        picks.dedup();
        picks
    }

    fn state(&self, n: usize) -> (BackendState, String) {
        let snapshot = self.pool.snapshot(self.now).swap_remove(n - 1);
        (snapshot.state, snapshot.why)
    }

    /// What has happened, in short.
    fn events(&self) -> Vec<String> {
        let short = |event| match event {
            Event::Transition(Transition {
                backend,
                cause: Cause::CheckPassed,
                ..
            }) => format!("{} back", &backend.text()[7..8]),
            Event::Transition(Transition {
                backend,
                to: Some(to),
                ..
            }) => format!("{} {}", &backend.text()[7..8], to.word()),
            Event::Stale(backend) => format!("{} stale", &backend.text()[7..8]),
            Event::Fresh(backend) => format!("{} fresh", &backend.text()[7..8]),
            other => panic!("{other:?}"),
        };
        self.pool
            .take_events(self.now)
            .0
            .into_iter()
            .map(short)
            .collect()
    }
}

fn timeline(n: u32) -> Option<Epoch> {
    Some(Epoch::Timeline(n))
}

#[test]
fn the_longer_primary_is_believed_and_the_other_when_it_is_gone() {
    let mut scene = Scene::new(3, 3, |_| ());
    scene.check(1, Replica).check(2, Primary).check(3, Replica);
    assert_eq!(scene.events(), ["1 wrong_role", "2 up", "3 wrong_role"]);
    scene.at(10).check(1, Primary);
    assert_eq!(scene.takers(), [2]);
    assert_eq!(scene.events(), ["1 doubtful"]);
    let why = "10.0.0.2:1 is primary, too, and has been for longer";
    assert_eq!(scene.state(1), (BackendState::Doubtful, why.to_owned()));
    assert_eq!(scene.pool.guarded(scene.now).primaries, Some(2));
    // As soon as the other one reports to be a replica, or dies.
    scene.at(11).check(2, Replica);
    assert_eq!((scene.takers(), scene.picks()), (vec![1], vec![1]));
    assert_eq!(scene.events(), ["2 wrong_role", "1 up"]);
    scene.at(12).check(2, Primary);
    assert_eq!(scene.events(), ["2 doubtful"]);
    for s in 13..16 {
        scene.at(s).check(1, Timeout);
    }
    assert_eq!(
        (scene.takers(), scene.events()),
        (vec![2], vec!["1 down".to_owned(), "2 up".to_owned()])
    );
}

#[test]
fn from_the_start_on_the_first_in_the_configuration() {
    let mut scene = Scene::new(2, 3, |_| ());
    // The one that answers first after the start has not been primary for longer.
    scene.check(2, Primary);
    assert_eq!(scene.takers(), [2]);
    scene.at(1).check(1, Primary);
    assert_eq!(scene.takers(), [1]);
    let why = "10.0.0.1:1 is primary, too, and stands before it in the configuration";
    assert_eq!(scene.state(2), (BackendState::Doubtful, why.to_owned()));
    // Backups are behind all others.
    let mut scene = Scene::new(2, 3, |b| b.backup = b.text.contains(".1:"));
    scene.check(2, Primary).check(1, Primary);
    let states: Vec<BackendState> = scene
        .pool
        .snapshot(scene.now)
        .iter()
        .map(|b| b.state)
        .collect();
    assert_eq!(states, [BackendState::Doubtful, BackendState::Up]);
}

#[test]
fn a_primary_that_was_away_loses_its_seniority() {
    // Long enough to be down...
    let mut scene = Scene::new(2, 2, |_| ());
    scene.check(1, Primary).check(2, Replica);
    scene.at(1).check(1, Timeout).check(1, Timeout);
    scene.at(2).check(2, Primary);
    assert_eq!(scene.takers(), [2]);
    scene.at(3).check(1, Primary).check(1, Primary);
    assert_eq!(
        (scene.takers(), scene.state(1).0),
        (vec![2], BackendState::Doubtful)
    );
    // ... or only for as long as a restart takes, which is too short for a verdict.
    let mut scene = Scene::new(2, 3, |_| ());
    scene.check(1, Primary).check(2, Replica);
    scene.at(1).check(1, Refused);
    assert_eq!(scene.takers(), [1], "there is no other");
    scene.at(2).check(2, Primary);
    assert_eq!(scene.takers(), [2]);
    scene.at(3).check(1, Primary);
    assert_eq!(
        (scene.takers(), scene.state(1).0),
        (vec![2], BackendState::Doubtful)
    );
    // A late answer is no sign of that.
    let mut scene = Scene::new(2, 3, |_| ());
    scene.check(1, Primary).check(2, Replica);
    scene.at(1).check(1, Timeout).at(2).check(2, Primary);
    assert_eq!(scene.takers(), [1]);
    scene.at(3).check(1, Primary);
    assert_eq!(scene.takers(), [1]);
}

#[test]
fn a_newer_epoch_wins_and_its_proof_outlives_it() {
    let mut scene = Scene::new(3, 1, |_| ());
    scene
        .record(1, Primary, timeline(2))
        .check(2, Replica)
        .check(3, Replica);
    scene.events();
    scene.at(5).record(2, Primary, timeline(3));
    assert_eq!((scene.takers(), scene.picks()), (vec![2], vec![2]));
    assert_eq!(scene.events(), ["1 wrong_role", "2 up"]);
    let why = "superseded by 10.0.0.2:1 (timeline 3 > 2)";
    assert_eq!(scene.state(1), (BackendState::WrongRole, why.to_owned()));
    // The new primary dies: better none than the one that has missed what was written since.
    scene.at(6).check(2, Refused);
    assert_eq!((scene.takers(), scene.picks()), (vec![], vec![]));
    assert_eq!(scene.state(1).1, why);
    scene.at(7).record(1, Primary, timeline(2));
    assert!(scene.takers().is_empty());
    // A third one that follows on is believed; and so would be the old one, were it promoted again.
    scene.at(8).record(3, Primary, timeline(4));
    assert_eq!(scene.takers(), [3]);
    scene.at(9).record(1, Primary, timeline(5));
    assert_eq!(scene.takers(), [1]);
    // A proof no longer counts once its server reports to be a replica.
    scene
        .at(10)
        .check(1, Replica)
        .check(3, Replica)
        .check(2, Replica);
    scene.at(11).record(3, Primary, timeline(1));
    assert_eq!(scene.takers(), [3]);
}

#[test]
fn a_redis_that_was_promoted_follows_on_the_one_before() {
    let redis = |id: &str, before: Option<&str>| {
        Some(Epoch::Replication {
            id: id.into(),
            before: before.map(str::to_owned),
        })
    };
    let mut scene = Scene::new(2, 1, |_| ());
    scene.record(1, Primary, redis("a", None)).check(2, Replica);
    scene.at(5).record(2, Primary, redis("b", Some("a")));
    assert_eq!(scene.takers(), [2]);
    let why = "superseded by 10.0.0.2:1 (promoted from a replica of this one)";
    assert_eq!(scene.state(1), (BackendState::WrongRole, why.to_owned()));
    // Started anew it has another name, and proves nothing any more: still it has not been there
    // for as long.
    scene.at(6).check(1, Refused);
    scene
        .at(7)
        .record(1, Primary, redis("c", None))
        .record(1, Primary, redis("c", None));
    assert_eq!(
        (scene.takers(), scene.state(1).0),
        (vec![2], BackendState::Doubtful)
    );
}

#[test]
fn a_primary_without_a_recent_answer_is_not_used() {
    let mut scene = Scene::new(2, 1000, |b| b.max_fails = 0);
    scene.check(1, Primary).check(2, Replica);
    for s in 1..=STALE - 1 {
        scene.at(s).check(1, Timeout);
        assert_eq!(scene.takers(), [1]);
    }
    scene.events();
    // No check ends any more: the pick itself looks at the time.
    scene.at(STALE);
    assert_eq!((scene.picks(), scene.takers()), (vec![], vec![]));
    scene.at(STALE + 4).check(1, Local);
    assert_eq!(
        (scene.takers(), scene.events()),
        (vec![], vec!["1 stale".to_owned()])
    );
    let why = format!("no certain answer for {} s", STALE + 4);
    assert_eq!(scene.state(1), (BackendState::Up, why));
    assert!(!scene.pool.is_available(scene.now));
    // Another one that reports to be primary now is believed; this one lost its seniority.
    scene.check(2, Primary);
    assert_eq!(scene.takers(), [2]);
    scene.events();
    scene.at(STALE + 5).check(1, Primary);
    assert_eq!(
        (scene.takers(), scene.events()),
        (vec![2], vec!["1 fresh".to_owned(), "1 doubtful".to_owned()])
    );
    scene.check(2, Replica);
    assert_eq!(scene.takers(), [1]);
}

/// A single backend takes the fast path of a pick, which must not overlook the time.
#[test]
fn the_fast_path_of_a_pick_looks_at_the_time() {
    let mut scene = Scene::new(1, 1000, |b| b.max_fails = 0);
    scene.check(1, Primary);
    scene.at(STALE - 1);
    assert!(scene.pool.lock().fast_path);
    assert_eq!(scene.picks(), [1]);
    scene.at(STALE);
    assert!(scene.pool.lock().fast_path, "nothing has happened since");
    assert!(scene.picks().is_empty());
    scene.at(STALE + 1).check(1, Primary);
    assert_eq!(scene.picks(), [1]);
    assert!(scene.pool.lock().fast_path);
}

#[test]
fn supposed_primaries_are_not_all_used_at_once() {
    let now = Instant::now();
    let kind = CheckKind::Redis {
        role: Some(Role::Primary),
        user: None,
        password: None,
        replicating: false,
        max_lag: None,
        min_version: None,
        require_writes: true,
    };
    let check = Check {
        start_up: true,
        ..check(kind)
    };
    let pool = guarded(vec![planned(1), planned(2)], check, now);
    let picks: Vec<_> = (0..4).map(|_| pick(&pool, now)).collect();
    assert_eq!(picks, vec![Some("10.0.0.1:1".to_owned()); 4]);
    assert_eq!(pool.snapshot(now)[1].why, "not checked yet");
    assert!(pool.take_events(now).0.is_empty());
}

#[derive(Debug, Clone)]
enum Step {
    Pass(u64),
    Check(usize, CheckResult, Option<Epoch>),
}

fn step() -> impl Strategy<Value = Step> {
    let result = prop_oneof![
        3 => Just(Primary),
        2 => Just(Replica),
        3 => prop::sample::select(CheckResult::ALL.to_vec()),
    ];
    let epoch = prop::option::of((1..4u32).prop_map(Epoch::Timeline));
    prop_oneof![
        1 => (0..40u64).prop_map(Step::Pass),
        4 => (1..=3usize, result, epoch)
            .prop_map(|(n, result, epoch)| Step::Check(n, result, epoch)),
    ]
}

proptest! {
    /// Whatever answers come, and whenever: never two take sessions; one that does has reported
    /// within `stale_after` that it is the primary, and nothing else since; and without proofs one
    /// takes sessions as long as there is a candidate.
    #[test]
    fn at_most_one_takes_sessions(
        steps in prop::collection::vec(step(), 1..60), fall in 1..4u32, proofs: bool,
    ) {
        let mut scene = Scene::new(3, fall, |b| b.max_fails = 0);
        let limit = Duration::from_secs(STALE);
        // Of each: when it last reported a role, and whether that was primary.
        let mut last: [Option<(Instant, bool)>; 3] = [None; 3];
        for step in steps {
            match step {
                Step::Pass(seconds) => scene.now += Duration::from_secs(seconds),
                Step::Check(n, result, epoch) => {
                    scene.record(n, result, epoch.filter(|_| proofs));
                    match result {
                        Primary | CheckResult::Lagging | CheckResult::NotReplicating => {
                            last[n - 1] = Some((scene.now, true));
                        }
                        CheckResult::Busy => {
                            if let Some((at, true)) = &mut last[n - 1] {
                                *at = scene.now;
                            }
                        }
                        Replica | CheckResult::Standby => last[n - 1] = Some((scene.now, false)),
                        _ => {}
                    }
                }
            }
            let picks = scene.picks();
            prop_assert!(picks.len() <= 1, "{picks:?}");
            prop_assert_eq!(&picks, &scene.takers());
            for n in &picks {
                let (at, primary) = last[n - 1].expect("an answer");
                prop_assert!(primary && scene.now < at + limit);
            }
            let fresh = |n: &usize| last[n - 1].is_some_and(|(at, _)| scene.now < at + limit);
            let backend = |n: usize| scene.pool.addresses()[n - 1].backend.clone();
            let is_up = |n: &usize| scene.pool.own_verdict(&backend(*n)).is_up();
            let own_up: Vec<usize> = (1..=3).filter(is_up).collect();
            let candidates = own_up.iter().filter(|n| fresh(n)).count();
            prop_assert!(proofs || picks.len() == candidates.min(1));
            let inner = scene.pool.lock();
            inner.assert_is_counted();
            drop(inner);
            prop_assert_eq!(scene.pool.guarded(scene.now).primaries, Some(own_up.len()));
        }
    }
}

/// A drained primary may still be written to by the sessions on it, so it is a rival until it
/// reports another role; one in maintenance is no rival, and does not come back before the one that
/// replaced it.
#[test]
fn drained_it_is_a_rival_and_in_maintenance_it_is_none() {
    for admin_state in [AdminState::Drain, AdminState::Maint] {
        let mut scene = Scene::new(2, 3, |_| {});
        scene.check(1, Primary).check(2, Replica);
        assert_eq!(scene.picks(), [1]);
        set_admin_state(&scene.pool, 0, admin_state, scene.now);
        assert_eq!(scene.picks(), [0; 0]);
        scene.at(1).check(2, Primary);
        if admin_state == AdminState::Drain {
            scene.check(1, Primary);
            assert_eq!(
                (scene.picks(), scene.state(2).0),
                (vec![], BackendState::Doubtful)
            );
            // Given back too early it is what it was, once a check has confirmed that.
            set_admin_state(&scene.pool, 0, AdminState::Ready, scene.now);
            assert_eq!(scene.picks(), [0; 0]);
            scene.check(1, Primary);
            assert_eq!(scene.picks(), [1]);
            set_admin_state(&scene.pool, 0, AdminState::Drain, scene.now);
            scene.at(2).check(1, Replica);
            assert_eq!(scene.picks(), [2]);
            continue;
        }
        assert_eq!(scene.picks(), [2]);
        scene.at(2).check(2, Primary);
        set_admin_state(&scene.pool, 0, AdminState::Ready, scene.now);
        scene.judges[0] = Judge::new(RiseFall { rise: 2, fall: 3 }, Verdict::Down(None));
        scene.at(3).check(1, Primary).check(1, Primary);
        assert_eq!(
            (scene.picks(), scene.state(1).0),
            (vec![2], BackendState::Doubtful)
        );
        scene.at(4).check(1, Replica);
        assert_eq!(
            (scene.picks(), scene.state(1).0),
            (vec![2], BackendState::WrongRole)
        );
    }
}

/// What a primary has proven stands while it is drained; in maintenance it does not count.
#[test]
fn a_proof_outlives_a_drain_and_no_maintenance() {
    let newer = || Some(Epoch::Timeline(3));
    for (admin_state, picks) in [(AdminState::Drain, vec![]), (AdminState::Maint, vec![2])] {
        let mut scene = Scene::new(2, 3, |_| {});
        scene.record(1, Primary, newer()).check(2, Replica);
        scene.at(1).record(2, Primary, Some(Epoch::Timeline(2)));
        assert_eq!(
            (scene.picks(), scene.state(2).0),
            (vec![1], BackendState::WrongRole)
        );
        set_admin_state(&scene.pool, 0, admin_state, scene.now);
        assert_eq!(scene.picks(), picks, "{admin_state:?}");
    }
}

fn redis(id: &str, before: Option<&str>) -> Option<Epoch> {
    Some(Epoch::Replication {
        id: id.into(),
        before: before.map(str::to_owned),
    })
}

/// Two switchovers in a row, and a first primary that was not demoted: it is not believed again
/// because the one that had proven to be newer has another role by now.
#[test]
fn a_superseded_primary_stays_superseded() {
    let began = || {
        let mut scene = Scene::new(3, 3, |_| {});
        scene
            .record(1, Primary, redis("a", None))
            .check(2, Replica)
            .check(3, Replica);
        scene.at(10).record(2, Primary, redis("b", Some("a")));
        assert_eq!(
            (scene.picks(), scene.state(1).0),
            (vec![2], BackendState::WrongRole)
        );
        scene.record(1, Primary, redis("a", None));
        scene
    };
    let mut scene = began();
    // It hands over; for a moment no server reports to be the new primary.
    scene.at(20).record(2, Replica, redis("b", Some("a")));
    assert_eq!(
        (scene.picks(), scene.state(1).0),
        (vec![], BackendState::WrongRole)
    );
    scene
        .record(1, Primary, redis("a", None))
        .record(3, Primary, redis("c", Some("b")));
    assert_eq!(
        (scene.picks(), scene.state(1).0),
        (vec![3], BackendState::WrongRole)
    );
    scene
        .record(2, Replica, redis("c", Some("b")))
        .record(1, Primary, redis("a", None));
    assert_eq!(scene.picks(), [3]);
    // After it has reported to be a replica, its claim to be primary counts again.
    scene
        .at(30)
        .check(1, Replica)
        .check(3, Replica)
        .record(1, Primary, redis("d", Some("c")));
    assert_eq!(scene.picks(), [1]);

    // The one that superseded it replicates from it now: both agree.
    let mut scene = began();
    scene.at(20).record(2, Replica, redis("a", Some("b")));
    assert_eq!(
        (scene.picks(), scene.state(1).0),
        (vec![1], BackendState::Up)
    );

    // A replica of its own does not make it right.
    let mut scene = began();
    scene
        .at(20)
        .record(3, Replica, redis("a", None))
        .check(2, Replica);
    assert_eq!(scene.picks(), [0; 0]);
    // A restart does, if there is no other.
    scene.check(1, Refused).record(1, Primary, redis("e", None));
    assert_eq!(scene.picks(), [1]);
}

/// An address that was away while another became the primary is not believed for what it was
/// before.
#[test]
fn one_that_comes_back_by_the_resolver_is_new() {
    let mut scene = Scene::new(2, 3, |_| {});
    scene.check(1, Primary).check(2, Replica);
    let held = scene
        .pool
        .pick(&mut scene.pool.search(&HashInput::default()), scene.now);
    assert!(held.is_ok(), "a session keeps its record");
    set_addresses(&scene.pool, &[vec![], vec![address(2)]], scene.now);
    scene.at(5);
    let both = [vec![address(1)], vec![address(2)]];
    let second = scene.pool.addresses()[0].backend.clone();
    let checked = Checked {
        began: scene.now,
        at: scene.now,
        took: Duration::ZERO,
        result: Primary,
        finding: Finding::default(),
        transcript: String::new(),
    };
    let change = scene.judges[1].record(Primary, [scene.now; 2]);
    scene.pool.checked(&second, checked, change, scene.now);
    set_addresses(&scene.pool, &both, scene.now);
    assert_eq!(scene.picks(), [2]);
    scene.at(6).check(1, Primary);
    assert_eq!(
        (scene.picks(), scene.state(1).0),
        (vec![2], BackendState::Doubtful)
    );
}

/// The only primary was restarted, and a client came too early: a good check is the try that it
/// needs, and the clients need not wait for `fail_timeout`.
#[test]
fn a_good_check_ends_what_failed_connects_began() {
    let mut scene = Scene::new(2, 3, |_| {});
    scene.check(1, Primary).check(2, Replica);
    let first = Arc::clone(&scene.pool.addresses()[0].backend);
    scene.events();
    scene.at(1);
    fail(&scene.pool, &first, scene.now);
    assert_eq!(scene.events(), ["1 failed"]);
    assert_eq!(
        (scene.picks(), scene.state(1).0),
        (vec![], BackendState::Failed)
    );
    // A check that was under way before proves nothing; here it began and ended at the moment of
    // the failure.
    scene.check(1, Primary);
    assert_eq!(scene.picks(), [0; 0]);
    scene.at(2).check(1, Primary);
    assert_eq!(
        (scene.picks(), scene.state(1).0),
        (vec![1], BackendState::Up)
    );
    assert_eq!(scene.events(), ["1 back"]);
}

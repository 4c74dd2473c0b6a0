//! Changes of the plan, and what they leave as it is.

use super::*;
use crate::upstream::explain::Candidate;
use proptest::prelude::*;

fn set_plan(pool: &Pool, backends: Vec<Planned>, now: Instant) {
    let check = Check {
        start_up: true,
        ..check(CheckKind::Tcp)
    };
    apply(pool, &upstream(backends, check), now);
}

pub(super) fn apply(pool: &Pool, plan: &plan::Upstream, now: Instant) {
    let exporter = Exporter::new(1);
    let of_all = exporter.upstream("u");
    let add = |b: &Planned| {
        let Target::Addr(addr) = &b.target else {
            panic!("{b:?}");
        };
        let metrics =
            Arc::new(exporter.backend(&of_all, &b.text, Some(plan::CheckProtocol::Redis)));
        (metrics, vec![addr.clone()])
    };
    pool.set_plan(plan, add, &Cause::Plan, now);
}

/// A dry run must predict what the reload does.
#[test]
fn a_forecast_knows_the_settings_that_come_back_with_a_backend() {
    let now = Instant::now();
    let all = vec![planned(1), planned(2), planned(3)];
    let pool = pool(all.clone(), true);
    set_admin_state(&pool, 1, AdminState::Drain, now);
    pool.set_weight("10.0.0.3:1", Some(9), now)
        .expect("a weight");
    set_plan(&pool, vec![planned(1)], now);
    let plan = upstream(all.clone(), check(CheckKind::Tcp));
    let add = |b: &Planned| match &b.target {
        Target::Addr(addr) => vec![addr.clone()],
        Target::Name { .. } => Vec::new(),
    };
    let forecast = pool.candidates_with(&plan, add, now);
    set_plan(&pool, all, now);
    let now_there = pool.candidates(&plan, now);
    let of = |candidates: &[Candidate]| -> Vec<(u32, u32)> {
        candidates.iter().map(|c| (c.weight, c.share)).collect()
    };
    assert_eq!(of(&forecast), of(&now_there));
    assert_eq!(of(&now_there)[1].1, 0);
    assert_eq!(of(&now_there)[2].0, 9);
}

#[test]
fn addresses_that_stay_keep_their_state_and_get_their_new_settings() {
    let now = Instant::now();
    let pool = pool(vec![planned(1), planned(2), planned(3)], true);
    let ids: Vec<u64> = pool.addresses().iter().map(|a| a.backend.id).collect();
    verdict(&pool, 0, DOWN, true, now);
    set_admin_state(&pool, 1, AdminState::Drain, now);
    fail(&pool, &pool.addresses()[2].backend, now);
    pool.take_events(now);
    let third = Planned {
        weight: 7,
        max_connections: 5,
        ..planned(3)
    };
    set_plan(&pool, vec![planned(4), third, planned(2), planned(1)], now);
    let found: Vec<_> = pool
        .snapshot(now)
        .iter()
        .map(|s| (s.metrics.text.to_string(), s.state, s.weight))
        .collect();
    use BackendState::{Down, Drained, Failed, Up};
    let expected = [(4, Up, 1), (3, Failed, 7), (2, Drained, 1), (1, Down, 1)];
    let expected = expected.map(|(n, state, weight)| (format!("10.0.0.{n}:1"), state, weight));
    assert_eq!(found, expected);
    let after: Vec<u64> = pool.addresses().iter().map(|a| a.backend.id).collect();
    assert_eq!(after[1..], [ids[2], ids[1], ids[0]]);
    assert_eq!(pool.lock().endpoints[1].config.max_connections, 5);
    // Only the one that is new has an event.
    let events = pool.take_events(now).0;
    let [Event::Transition(transition)] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!((transition.from, transition.to), (None, Some(Up)));
    assert_eq!(transition.cause, Cause::Plan);
}

/// It was not checked while the file had it down, and it may be another server; one that its source
/// has drained was checked, and may have another role where one is required.
#[test]
fn one_that_is_put_back_into_service_waits_for_its_check() {
    let now = Instant::now();
    let set_plan = |pool: &Pool, backends| {
        let check = check(requiring(Role::Replica));
        apply(pool, &upstream(backends, check), now);
    };
    let down = || Planned {
        down: true,
        ..planned(1)
    };
    let drained = || Planned {
        origin: plan::Origin::Discovered {
            name: None,
            draining: true,
        },
        ..planned(2)
    };
    let check = check(requiring(Role::Replica));
    let pool = guarded(vec![planned(1), planned(2), planned(3)], check, now);
    for n in 0..3 {
        verdict(&pool, n, Verdict::Up, true, now);
    }
    set_plan(&pool, vec![down(), drained(), planned(3)]);
    set_plan(&pool, vec![planned(1), planned(2), planned(3)]);
    let whys: Vec<_> = pool.snapshot(now).into_iter().map(|s| s.why).collect();
    let since = "not checked since it was put back into service";
    assert_eq!(whys, ["not checked yet", since, ""]);
    let picks: Vec<_> = (0..4).map(|_| pick(&pool, now)).collect();
    assert_eq!(picks, vec![Some("10.0.0.3:1".to_owned()); 4]);
    for n in 0..2 {
        verdict(&pool, n, Verdict::Up, n == 0, now);
    }
    assert!(pool.snapshot(now).iter().all(|s| s.available));
    // Another plan alone asks for no check.
    set_plan(&pool, vec![planned(1), planned(2), planned(3)]);
    assert!(pool.snapshot(now).iter().all(|s| s.available));
}

#[test]
fn a_backend_that_is_removed_keeps_its_sessions_and_gets_no_more() {
    let now = Instant::now();
    let pool = pool(vec![planned(1), planned(2)], true);
    let lease = pool
        .pick(&mut pool.search(&HashInput::default()), now)
        .expect("a backend");
    set_plan(&pool, vec![planned(2)], now);
    assert!(pool.is_checked(lease.backend(), 0), "while it has sessions");
    let picks: Vec<_> = (0..4).map(|_| pick(&pool, now)).collect();
    assert_eq!(picks, vec![Some("10.0.0.2:1".to_owned()); 4]);
    assert_eq!(pool.must_go(lease.backend()), None, "unless flows move");
    let events = pool.take_events(now).0;
    let gone = matches!(&events[..], [Event::Transition(t)] if t.to.is_none());
    assert!(gone, "{events:?}");
}

#[derive(Debug, Clone)]
enum Step {
    Pass(u64),
    Check(usize, bool),
    Fail(usize),
    Succeed,
    Admin(usize, AdminState),
    Weight(usize, u32),
    OperatorWeight(usize, Option<u32>),
    Limit(usize, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let n = || 0..3usize;
    prop_oneof![
        (0..12u64).prop_map(Step::Pass),
        (n(), any::<bool>()).prop_map(|(n, up)| Step::Check(n, up)),
        n().prop_map(Step::Fail),
        Just(Step::Succeed),
        (n(), prop::sample::select(AdminState::ALL.to_vec())).prop_map(|(n, s)| Step::Admin(n, s)),
        (n(), 0..3u32).prop_map(|(n, weight)| Step::Weight(n, weight)),
        (n(), prop::option::of(0..3u32)).prop_map(|(n, weight)| Step::OperatorWeight(n, weight)),
        (n(), 0..2u64).prop_map(|(n, limit)| Step::Limit(n, limit)),
    ]
}

proptest! {
    /// Whatever happens: the fast path is taken if every endpoint takes sessions with the whole of
    /// its weight, and only then; and what is picked is not barred.
    #[test]
    fn the_fast_path_agrees_with_the_admission_of_each(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut now = Instant::now();
        let mut plans: Vec<Planned> = (1..=3).map(planned).collect();
        let pool = pool(plans.clone(), true);
        for step in steps {
            let backend = |n: usize| Arc::clone(&pool.addresses()[n].backend);
            match step {
                Step::Pass(seconds) => now += Duration::from_secs(seconds),
                Step::Check(n, up) => {
                    verdict(&pool, n, if up { Verdict::Up } else { DOWN }, false, now);
                }
                Step::Fail(n) => fail(&pool, &backend(n), now),
                Step::Succeed => {
                    let mut search = pool.search(&HashInput::default());
                    if let Ok(lease) = pool.pick(&mut search, now) {
                        pool.succeeded(&search, lease.backend(), now);
                    }
                }
                Step::Admin(n, state) => {
                    set_admin_state(&pool, n, state, now);
                }
                Step::Weight(n, weight) => {
                    plans[n].weight = weight;
                    set_plan(&pool, plans.clone(), now);
                }
                Step::OperatorWeight(n, weight) => {
                    pool.set_weight(&plans[n].text, weight, now).expect("a backend");
                }
                Step::Limit(n, limit) => {
                    plans[n].max_connections = limit;
                    set_plan(&pool, plans.clone(), now);
                }
            }
            let admitted = |inner: &Inner, text: &str| {
                let endpoint = inner.endpoints.iter().find(|e| **e.backend.text() == *text);
                endpoint.is_some_and(|e| !e.admission(false, now).is_barred())
            };
            pool.lock().assert_is_counted();
            let takes = plans.iter().any(|p| admitted(&pool.lock(), &p.text));
            let may: Vec<bool> = plans.iter().map(|p| admitted(&pool.lock(), &p.text)).collect();
            prop_assert_eq!(pool.is_available(now), takes);
            let picked = pick(&pool, now);
            prop_assert_eq!(picked.is_some(), takes);
            if let Some(picked) = picked {
                let n = plans.iter().position(|p| p.text == picked).expect("one of them");
                prop_assert!(may[n], "{picked} is barred");
            }
        }
    }
}

//! `panic_threshold`: checks that take out too many are not believed.

use super::*;
use proptest::prelude::*;

fn with_threshold(backends: Vec<Planned>, below: u32, start_up: bool) -> Pool {
    let check = Check {
        panic_threshold: below,
        start_up,
        ..check(CheckKind::Tcp)
    };
    guarded(backends, check, Instant::now())
}

fn picks(pool: &Pool, now: Instant) -> Vec<String> {
    let mut picks: Vec<String> = (0..32).filter_map(|_| pick(pool, now)).collect();
    picks.sort_unstable();
    picks.dedup();
    picks
}

fn events(pool: &Pool, now: Instant) -> Vec<String> {
    let short = |event| match event {
        Event::Transition(Transition { to: Some(to), .. }) => to.word().to_owned(),
        Event::PanicStarted { up, total } => format!("panic {up} of {total}"),
        Event::PanicEnded => "panic over".to_owned(),
        other => panic!("{other:?}"),
    };
    pool.take_events(now).0.into_iter().map(short).collect()
}

#[test]
fn below_the_threshold_all_are_used_and_above_it_those_that_are_up() {
    let now = Instant::now();
    let pool = with_threshold((1..=4).map(planned).collect(), 50, true);
    for n in 0..2 {
        verdict(&pool, n, DOWN, false, now);
        assert_eq!(picks(&pool, now).len(), 3 - n);
    }
    assert!(!pool.in_panic(), "two of four are not below a half");
    events(&pool, now);
    verdict(&pool, 2, DOWN, false, now);
    assert_eq!(events(&pool, now), ["down", "panic 1 of 4"]);
    assert_eq!(picks(&pool, now).len(), 4);
    let first = &pool.snapshot(now)[0];
    assert_eq!(
        (first.state, first.why.as_str()),
        (
            BackendState::Down,
            "its check reports: refused; panic threshold: 1 of 4 up"
        )
    );
    assert_eq!(pool.guarded(now).in_panic, Some(true));
    // Endpoints whose connects failed stay out all the same.
    let failed = Arc::clone(&pool.addresses()[0].backend);
    fail(&pool, &failed, now);
    assert_eq!(
        picks(&pool, now),
        ["10.0.0.2:1", "10.0.0.3:1", "10.0.0.4:1"]
    );
    verdict(&pool, 3, DOWN, false, now);
    assert_eq!(events(&pool, now), ["down"]);
    assert_eq!(
        pool.snapshot(now)[1].why,
        "its check reports: refused; panic threshold: 0 of 4 up"
    );
    verdict(&pool, 2, Verdict::Up, false, now);
    assert_eq!(events(&pool, now), ["up"]);
    verdict(&pool, 3, Verdict::Up, false, now);
    assert_eq!(events(&pool, now), ["up", "panic over"]);
    assert_eq!(picks(&pool, now), ["10.0.0.3:1", "10.0.0.4:1"]);
    // They were used all the time: nothing to get used to.
    assert_eq!(pool.snapshot(now)[3].why, "");
}

/// Otherwise backends that are down would be used for as long as the process lives.
#[test]
fn a_panic_ends_with_its_threshold_or_its_check() {
    let now = Instant::now();
    let backends = || (1..=3).map(planned).collect::<Vec<_>>();
    for has_check in [true, false] {
        let pool = with_threshold(backends(), 100, true);
        verdict(&pool, 0, DOWN, false, now);
        assert_eq!(events(&pool, now), ["down", "panic 2 of 3"]);
        let mut plan = upstream(backends(), check(CheckKind::Tcp));
        plan.check = plan.check.filter(|_| has_check);
        super::plans::apply(&pool, &plan, now);
        assert!(!pool.in_panic());
        let events = events(&pool, now);
        assert!(events.contains(&"panic over".to_owned()), "{events:?}");
        if has_check {
            assert_eq!(picks(&pool, now), ["10.0.0.2:1", "10.0.0.3:1"]);
        }
    }
}

/// Otherwise it would be out until its next verdict, which may be the same.
#[test]
fn a_verdict_is_no_longer_stale_without_the_limit() {
    let mut now = Instant::now();
    let limited = Check {
        stale_after: Some(Duration::from_secs(5)),
        start_up: true,
        ..check(CheckKind::Tcp)
    };
    let pool = guarded(vec![planned(1)], limited, now);
    verdict(&pool, 0, Verdict::Up, false, now);
    now += Duration::from_secs(6);
    assert_eq!(pick(&pool, now), None);
    let plan = upstream(vec![planned(1)], check(CheckKind::Tcp));
    super::plans::apply(&pool, &plan, now);
    assert_eq!(pick(&pool, now).as_deref(), Some("10.0.0.1:1"));
}

#[test]
fn the_panic_threshold_does_not_override_the_configuration() {
    let now = Instant::now();
    let with = |n, change: fn(&mut Planned)| {
        let mut backend = planned(n);
        change(&mut backend);
        backend
    };
    let backends = || {
        vec![
            planned(1),
            planned(2),
            with(3, |b| b.down = true),
            with(4, |b| b.weight = 0),
            with(5, |b| b.max_connections = 1),
        ]
    };
    let pool = with_threshold(backends(), 100, true);
    assert_eq!(pool.guarded(now).in_panic, Some(false), "three of three");
    verdict(&pool, 0, DOWN, false, now);
    assert_eq!(events(&pool, now), ["down", "panic 2 of 3"]);
    let held = loop {
        let mut search = pool.search(&HashInput::default());
        let lease = pool.pick(&mut search, now).expect("a backend");
        if **lease.backend().text() == *"10.0.0.5:1" {
            break lease;
        }
    };
    assert_eq!(picks(&pool, now), ["10.0.0.1:1", "10.0.0.2:1"]);
    drop(held);
}

#[test]
fn before_the_first_results_the_start_state_holds() {
    let now = Instant::now();
    let pool = with_threshold(vec![planned(1), planned(2)], 100, false);
    assert!(!pool.in_panic());
    verdict(&pool, 0, DOWN, true, now);
    assert_eq!(picks(&pool, now).len(), 0);
    verdict(&pool, 1, DOWN, true, now);
    assert_eq!(picks(&pool, now).len(), 2);
}

#[test]
fn backups_come_first_where_no_other_is_up() {
    let now = Instant::now();
    let mut backup = planned(3);
    backup.backup = true;
    let pool = with_threshold(vec![planned(1), planned(2), backup], 100, true);
    verdict(&pool, 0, DOWN, false, now);
    assert_eq!(picks(&pool, now), ["10.0.0.1:1", "10.0.0.2:1"]);
    verdict(&pool, 1, DOWN, false, now);
    assert_eq!(picks(&pool, now), ["10.0.0.3:1"]);
    verdict(&pool, 2, DOWN, false, now);
    assert_eq!(picks(&pool, now), ["10.0.0.1:1", "10.0.0.2:1"]);
}

#[test]
fn a_name_without_an_address_is_not_up() {
    let now = Instant::now();
    let pool = with_threshold(vec![planned(1), planned(2)], 60, true);
    set_addresses(&pool, &[vec![address(1)], vec![]], now);
    assert!(pool.in_panic(), "one of two");
    set_addresses(&pool, &[vec![address(1)], vec![address(2)]], now);
    assert!(!pool.in_panic());
}

proptest! {
    #[test]
    fn used_are_those_that_are_up_or_all(
        below in 0..=100u32, changes in prop::collection::vec((0..5usize, any::<bool>()), 1..40),
    ) {
        let now = Instant::now();
        let plans = (1..=5).map(|n| {
            let mut backend = planned(n);
            (backend.slow_start, backend.max_fails) = (Duration::ZERO, 0);
            backend
        });
        let pool = with_threshold(plans.collect(), below, true);
        let mut up = [true; 5];
        for (n, to) in changes {
            if up[n] != to {
                up[n] = to;
                verdict(&pool, n, if to { Verdict::Up } else { DOWN }, false, now);
            }
            let count = up.iter().filter(|up| **up).count();
            let all = count * 100 < below as usize * 5;
            prop_assert_eq!(pool.in_panic(), all);
            let used = if all { 5 } else { count };
            prop_assert_eq!(picks(&pool, now).len(), used);
            prop_assert_eq!(pool.lock().fast_path, used == 5);
        }
    }
}

/// A backend that the operator has taken out is neither missed nor used.
#[test]
fn a_backend_that_is_taken_out_does_not_count() {
    let now = Instant::now();
    for admin_state in [AdminState::Drain, AdminState::Maint] {
        let pool = with_threshold((1..=4).map(planned).collect(), 50, true);
        set_admin_state(&pool, 0, admin_state, now);
        set_admin_state(&pool, 1, admin_state, now);
        assert!(!pool.in_panic(), "two of two are up");
        verdict(&pool, 2, DOWN, false, now);
        assert!(!pool.in_panic(), "one of two is no less than a half");
        verdict(&pool, 3, DOWN, false, now);
        assert!(pool.in_panic());
        assert_eq!(picks(&pool, now), ["10.0.0.3:1", "10.0.0.4:1"]);
        assert!(
            pool.snapshot(now)[2]
                .why
                .ends_with("panic threshold: 0 of 2 up")
        );
        // They are back, and are to be checked, which makes nothing worse.
        set_admin_state(&pool, 0, AdminState::Ready, now);
        set_admin_state(&pool, 1, AdminState::Ready, now);
        assert!(pool.in_panic(), "{admin_state:?}");
        assert_eq!(picks(&pool, now).len(), 4);
        verdict(&pool, 0, Verdict::Up, true, now);
        verdict(&pool, 1, Verdict::Up, true, now);
        assert!(!pool.in_panic(), "{admin_state:?}");
        assert_eq!(picks(&pool, now).len(), 2);
    }
}

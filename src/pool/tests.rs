use super::*;
use crate::reason::CheckResult;
use crate::{
    metrics::Exporter,
    plan::{Backend as Planned, Check, CheckAt, CheckKind, OnLeave, SendProxy, Target, Upstream},
};
use std::net::SocketAddr;

pub(super) fn place(n: u8) -> Place {
    Place::Tcp(SocketAddr::from(([10, 0, 0, n], 1)))
}

pub(super) fn planned(n: u8) -> Planned {
    Planned {
        text: format!("10.0.0.{n}:1"),
        target: Target::Place(place(n)),
        weight: 1,
        max_fails: 1,
        fail_timeout: Duration::from_secs(10),
        max_connections: 0,
        slow_start: Duration::from_secs(10),
        backup: false,
        down: false,
    }
}

pub(super) fn pool(backends: Vec<Planned>, start_up: bool) -> Pool {
    pool_with(Balance::RoundRobin, backends, start_up)
}

pub(super) fn pool_with(balance: Balance, backends: Vec<Planned>, start_up: bool) -> Pool {
    let second = Duration::from_secs(1);
    let plan = Upstream {
        name: "u".into(),
        balance,
        backends,
        resolve_interval: None,
        resolve_required: true,
        send_proxy: SendProxy::Off,
        fail_on_reset: false,
        on_drain: OnLeave::Keep,
        check: Some(Check {
            kind: CheckKind::Tcp,
            interval: second,
            fast_interval: second,
            timeout: second,
            rise: 1,
            fall: 1,
            start_up,
            at: CheckAt::Backend,
            tls: plan::Tls::Off,
            on_down: OnLeave::Keep,
            on_role_lost: OnLeave::Close,
            on_recover: OnLeave::Keep,
        }),
    };
    let exporter = Exporter::new(1).expect("an exporter");
    let name: Arc<str> = "u".into();
    let metrics = |b: &Planned| exporter.backend(&name, &b.text, true);
    let places: Vec<_> = (1..)
        .take(plan.backends.len())
        .map(|n| vec![place(n)])
        .collect();
    Pool::new(&name, &plan, metrics, &places)
}

/// A check that has changed the verdict about the backend of this number.
pub(super) fn verdict(pool: &Pool, n: usize, to: Verdict, first: bool, now: Instant) -> bool {
    let checked = Checked {
        at: now,
        took: Duration::ZERO,
        result: CheckResult::Ok,
        told: crate::probe::Told::default(),
        transcript: String::new(),
    };
    let change = Change {
        from: Verdict::Up,
        to,
        doubted_for: Duration::ZERO,
        first,
    };
    let backend = &pool.addresses()[n].backend;
    pool.checked(backend, checked, Some(change), now)
}

pub(super) fn pick(pool: &Pool, now: Instant) -> Option<String> {
    let lease = pool.pick(&mut pool.search(&Facts::default()), now)?;
    Some(lease.backend().text().to_string())
}

pub(super) const DOWN: Verdict = Verdict::Down(Some(CheckResult::Refused));

#[test]
fn what_a_check_calls_down_takes_nothing_even_alone() {
    let now = Instant::now();
    let alone = pool(vec![planned(1)], true);
    assert!(pick(&alone, now).is_some());
    for verdict_now in [DOWN, Verdict::WrongRole] {
        assert!(!verdict(&alone, 0, verdict_now, false, now));
        assert_eq!(pick(&alone, now), None);
        assert!(!alone.is_available(now));
    }
    assert_eq!(alone.snapshot(now)[0].state, BackendState::WrongRole);
    assert!(verdict(&alone, 0, Verdict::Up, false, now));
    assert!(pick(&alone, now).is_some());
}

#[test]
fn before_the_first_check_the_start_state_holds() {
    let now = Instant::now();
    let waiting = pool(vec![planned(1), planned(2)], false);
    assert_eq!(pick(&waiting, now), None);
    assert_eq!(waiting.snapshot(now)[0].why, "not checked yet");
    verdict(&waiting, 1, Verdict::Up, true, now);
    assert_eq!(pick(&waiting, now).as_deref(), Some("10.0.0.2:1"));
    // The first verdict is no recovery.
    assert_eq!(waiting.snapshot(now)[1].why, "");
}

#[test]
fn checks_and_failed_connects_do_not_erase_each_other() {
    let now = Instant::now();
    let both = pool(vec![planned(1), planned(2)], true);
    let first = Arc::clone(&both.addresses()[0].backend);
    both.failed(&first, now);
    verdict(&both, 0, DOWN, false, now);
    assert_eq!(both.snapshot(now)[0].state, BackendState::Down);
    // The check speaks for it again, the connects do not.
    verdict(&both, 0, Verdict::Up, false, now);
    assert_eq!(both.snapshot(now)[0].state, BackendState::Failed);
    assert_eq!(pick(&both, now).as_deref(), Some("10.0.0.2:1"));
    // Its time has passed, and the check speaks against it.
    let later = now + Duration::from_secs(11);
    verdict(&both, 0, DOWN, false, later);
    let picks: Vec<_> = (0..4).map(|_| pick(&both, later)).collect();
    assert_eq!(picks, vec![Some("10.0.0.2:1".to_owned()); 4]);
}

#[test]
fn after_a_recovery_it_starts_slowly_and_then_all_are_equal_again() {
    let now = Instant::now();
    let both = pool(vec![planned(1), planned(2)], true);
    verdict(&both, 0, DOWN, false, now);
    verdict(&both, 0, Verdict::Up, false, now);
    assert!(
        both.snapshot(now + Duration::from_secs(5))[0]
            .why
            .contains("50 %")
    );
    let later = now + Duration::from_secs(10);
    for _ in 0..4 {
        pick(&both, later);
    }
    assert!(both.lock().all_plain);
}

#[test]
fn new_addresses_keep_what_is_known_of_the_old_ones() {
    let now = Instant::now();
    let both = pool(vec![planned(1), planned(2)], true);
    verdict(&both, 0, DOWN, false, now);
    let known = both.addresses()[0].backend.id;
    both.set_addresses(&[vec![place(1), place(3)], vec![place(2)]], now);
    let addresses = both.addresses();
    assert_eq!(addresses.len(), 3);
    assert_eq!(
        (addresses[0].backend.id, addresses[0].verdict),
        (known, DOWN)
    );
    assert_eq!(addresses[1].verdict, Verdict::Up);
    // One address that is well is enough for the backend.
    assert_eq!(both.snapshot(now)[0].state, BackendState::Up);
}

#[test]
fn who_was_picked_before_a_backend_was_left_must_not_stay() {
    let now = Instant::now();
    let alone = pool(vec![planned(1)], true);
    let mut before = alone.search(&Facts::default());
    let lease = alone.pick(&mut before, now).expect("a backend");
    assert_eq!(alone.succeeded(&before, now), AfterSuccess::Nothing);
    alone.leave(lease.backend());
    assert_eq!(alone.succeeded(&before, now), AfterSuccess::Left);
    let mut after = alone.search(&Facts::default());
    let _lease = alone.pick(&mut after, now).expect("a backend");
    assert_eq!(alone.succeeded(&after, now), AfterSuccess::Nothing);
}

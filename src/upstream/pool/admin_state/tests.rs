use super::super::{
    Transition,
    tests::{
        DOWN, address, check, fail, of, pick, planned, pool, pool_with, requiring, set_addresses,
        set_admin_state, upstream, verdict,
    },
};
use super::*;
use crate::{
    plan::{
        Backend as Planned, Balance, CheckKind, HashKey, Role, TimeOf, Upstream,
        reason::CheckResult,
    },
    upstream::{
        balance::HashInput,
        health::{Finding, Verdict, VerdictChange},
        pool::Checked,
    },
};
use std::time::Duration;

const OUT: [(AdminState, BackendState); 2] = [
    (AdminState::Drain, BackendState::Drained),
    (AdminState::Maint, BackendState::Maintenance),
];

fn states(pool: &Pool, now: Instant) -> Vec<BackendState> {
    pool.snapshot(now).iter().map(|s| s.state).collect()
}

/// Those that have happened since this was called last.
fn transitions(pool: &Pool, now: Instant) -> Vec<(BackendState, BackendState)> {
    let states = |event| match event {
        Event::Transition(Transition { from, to, .. }) => from.zip(to),
        _ => None,
    };
    let events = pool.take_events(now).0;
    events.into_iter().filter_map(states).collect()
}

#[test]
fn a_backend_in_maintenance_gets_nothing_even_alone() {
    let now = Instant::now();
    for (admin_state, state) in OUT {
        let alone = pool(vec![planned(1)], true);
        set_admin_state(&alone, 0, admin_state, now);
        assert_eq!(transitions(&alone, now), [(BackendState::Up, state)]);
        set_admin_state(&alone, 0, admin_state, now);
        assert!(transitions(&alone, now).is_empty(), "nothing new");
        assert_eq!(pick(&alone, now), None);
        assert!(!alone.is_available(now));
        assert_eq!(states(&alone, now), [state]);
        assert_eq!(alone.snapshot(now)[0].since, Some(now));
    }
    let alone = pool(vec![planned(1)], true);
    set_admin_state(&alone, 0, AdminState::Ready, now);
    assert!(transitions(&alone, now).is_empty(), "it is already");
    let change = set_admin_state(&alone, 1, AdminState::Drain, now);
    assert!(change.is_none(), "there is no such");
    set_admin_state(&alone, 0, AdminState::Drain, now);
    set_admin_state(&alone, 0, AdminState::Ready, now);
    verdict(&alone, 0, Verdict::Up, true, now);
    assert!(pick(&alone, now).is_some());
    assert!(alone.lock().fast_path, "as if nothing had been");
    assert_eq!(alone.snapshot(now)[0].admin_since, None);
}

#[test]
fn admin_state_and_verdict_are_independent() {
    let now = Instant::now();
    let both = pool(vec![planned(1), planned(2)], true);
    verdict(&both, 0, DOWN, false, now);
    set_admin_state(&both, 0, AdminState::Drain, now);
    let why = &both.snapshot(now)[0].why;
    assert_eq!(
        why,
        "set by the operator; besides, its check reports: refused"
    );
    // Well again, and still not wanted.
    verdict(&both, 0, Verdict::Up, false, now);
    assert_eq!(both.snapshot(now)[0].why, "set by the operator");
    let picks: Vec<_> = (0..4).map(|_| pick(&both, now)).collect();
    assert_eq!(picks, vec![Some("10.0.0.2:1".to_owned()); 4]);
    // Down again, and wanted.
    verdict(&both, 0, DOWN, false, now);
    set_admin_state(&both, 0, AdminState::Ready, now);
    assert_eq!(states(&both, now)[0], BackendState::Down);
    assert_eq!(pick(&both, now).as_deref(), Some("10.0.0.2:1"));
    // Nor does it erase the record of failed connects.
    verdict(&both, 0, Verdict::Up, false, now);
    fail(&both, &both.addresses()[0].backend, now);
    set_admin_state(&both, 0, AdminState::Drain, now);
    assert!(both.snapshot(now)[0].why.ends_with("its connects fail"));
    set_admin_state(&both, 0, AdminState::Ready, now);
    verdict(&both, 0, Verdict::Up, false, now);
    assert_eq!(states(&both, now)[0], BackendState::Failed);
}

#[test]
fn out_of_maintenance_it_waits_for_its_check_whatever_start_says() {
    let now = Instant::now();
    for start_up in [true, false] {
        let both = pool(vec![planned(1), planned(2)], start_up);
        for n in 0..2 {
            verdict(&both, n, Verdict::Up, true, now);
        }
        let first = Arc::clone(&both.addresses()[0].backend);
        fail(&both, &first, now);
        assert!(both.is_checked(&first, 0));
        set_admin_state(&both, 0, AdminState::Maint, now);
        assert!(!both.is_checked(&first, 0));
        assert!(both.snapshot(now)[0].checked.is_none());
        set_admin_state(&both, 0, AdminState::Ready, now);
        assert!(!both.is_checked(&first, 0), "what began before is void");
        assert!(both.is_checked(&first, 1));
        assert_eq!(states(&both, now)[0], BackendState::Down);
        assert_eq!(both.snapshot(now)[0].why, "not checked yet");
        assert_eq!(pick(&both, now).as_deref(), Some("10.0.0.2:1"));
        // The first good check is a recovery: it starts slowly, and earlier failures no longer
        // count.
        verdict(&both, 0, Verdict::Up, true, now);
        let half = both.snapshot(now + Duration::from_secs(5)).swap_remove(0);
        assert_eq!(half.state, BackendState::Up);
        assert!(half.why.contains("50 %"), "{}", half.why);
    }
}

#[test]
fn a_drain_does_not_make_it_a_stranger() {
    let now = Instant::now();
    let both = pool(vec![planned(1), planned(2)], true);
    let first = Arc::clone(&both.addresses()[0].backend);
    set_admin_state(&both, 0, AdminState::Drain, now);
    assert!(both.is_checked(&first, 0));
    set_admin_state(&both, 0, AdminState::Ready, now);
    assert!(both.is_checked(&first, 0));
    found(&both, CheckResult::Ok, None, now, now);
    assert_eq!(both.snapshot(now)[0].why, "", "no slow start");
    // Through maintenance to a drain: checked again, and anew.
    set_admin_state(&both, 0, AdminState::Maint, now);
    set_admin_state(&both, 0, AdminState::Drain, now);
    assert!(both.is_checked(&first, 1));
    let why = &both.snapshot(now)[0].why;
    assert_eq!(why, "set by the operator; besides, not checked yet");
}

/// A check of the first backend that began and ended then, and what it changes.
fn found(pool: &Pool, result: CheckResult, to: Option<Verdict>, began: Instant, now: Instant) {
    let checked = Checked {
        began,
        at: now,
        took: now - began,
        result,
        finding: Finding::default(),
        transcript: String::new(),
    };
    let change = to.map(|to| VerdictChange {
        from: Verdict::Up,
        to,
        doubted_for: Duration::ZERO,
        first: false,
    });
    let backend = &pool.addresses()[0].backend;
    pool.checked(backend, checked, change, now);
}

/// Without a role nothing can have changed that the last check did not show.
#[test]
fn without_a_role_it_serves_at_once_after_a_drain_if_its_last_check_passed() {
    use BackendState::{Down, Drained, Up};
    let now = Instant::now();
    for (last, state) in [(CheckResult::Ok, Up), (CheckResult::Timeout, Down)] {
        let both = pool(vec![planned(1), planned(2)], true);
        for n in 0..2 {
            verdict(&both, n, Verdict::Up, true, now);
        }
        set_admin_state(&both, 0, AdminState::Drain, now);
        // One that fails is not enough for another verdict.
        found(&both, last, None, now, now);
        both.take_events(now);
        let change = set_admin_state(&both, 0, AdminState::Ready, now).expect("a backend");
        assert_eq!((change.from, change.to), (Drained, state));
        assert_eq!(transitions(&both, now), [(Drained, state)]);
        assert_eq!(both.addresses()[0].awaits_answer, state == Down);
        let snapshot = both.snapshot(now).swap_remove(0);
        assert_eq!(snapshot.available, state == Up, "{}", snapshot.why);
        found(&both, CheckResult::Ok, None, now, now);
        assert!(both.snapshot(now)[0].available);
    }
}

/// The server may have got another role while it was drained.
#[test]
fn after_a_drain_the_answer_to_a_later_check_decides_where_a_role_is_required() {
    use BackendState::{Down, Drained, Standby, Up};
    let began = Instant::now();
    let s = |n| began + Duration::from_secs(n);
    let ready = || {
        let check = check(requiring(Role::Replica));
        let both = of(&upstream(vec![planned(1), planned(2)], check), began);
        for n in 0..2 {
            verdict(&both, n, Verdict::Up, true, began);
        }
        set_admin_state(&both, 0, AdminState::Drain, s(1));
        // While it is drained it is checked, and that changes nothing.
        found(&both, CheckResult::Ok, None, s(2), s(3));
        both.take_events(s(3));
        let change = set_admin_state(&both, 0, AdminState::Ready, s(10)).expect("a backend");
        assert_eq!((change.from, change.to), (Drained, Down));
        let snapshot = both.snapshot(s(10)).swap_remove(0);
        assert_eq!(
            snapshot.why,
            "not checked since it was put back into service"
        );
        assert!(snapshot.awaits_check && !snapshot.available);
        assert_eq!(transitions(&both, s(10)), [(Drained, Down)]);
        // It began before the command.
        found(&both, CheckResult::Ok, None, s(9), s(11));
        // No answer, and not enough for another verdict; nor does this tell its role.
        found(&both, CheckResult::Timeout, None, s(11), s(12));
        found(&both, CheckResult::Busy, None, s(12), s(13));
        let picks: Vec<_> = (0..4).map(|_| pick(&both, s(13))).collect();
        assert_eq!(picks, vec![Some("10.0.0.2:1".to_owned()); 4]);
        assert!(both.addresses()[0].awaits_answer);
        assert!(transitions(&both, s(13)).is_empty());
        both
    };
    let good = ready();
    found(&good, CheckResult::Ok, None, s(13), s(14));
    assert_eq!(transitions(&good, s(14)), [(Down, Up)]);
    assert_eq!(good.snapshot(s(14))[0].why, "");
    assert!(!good.addresses()[0].awaits_answer);
    let demoted = ready();
    let standby = Some(Verdict::Standby);
    found(&demoted, CheckResult::Standby, standby, s(13), s(14));
    assert_eq!(transitions(&demoted, s(14)), [(Down, Standby)]);
    assert_eq!(pick(&demoted, s(14)).as_deref(), Some("10.0.0.2:1"));
    let dead = ready();
    found(&dead, CheckResult::Timeout, Some(DOWN), s(13), s(14));
    assert!(!dead.addresses()[0].awaits_answer);
    found(&dead, CheckResult::Ok, Some(Verdict::Up), s(15), s(16));
    assert_eq!(states(&dead, s(16))[0], Up);
    // Without a check it serves at once.
    let plan = Upstream {
        check: None,
        ..upstream(vec![planned(1), planned(2)], check(CheckKind::Tcp))
    };
    let unchecked = of(&plan, began);
    set_admin_state(&unchecked, 0, AdminState::Drain, began);
    let change = set_admin_state(&unchecked, 0, AdminState::Ready, began).expect("a backend");
    assert_eq!(change.to, Up);
}

/// Clients have been without it since then.
#[test]
fn the_next_session_is_due_to_what_took_a_backend_out_and_not_to_what_its_check_finds_later() {
    let began = Instant::now();
    let s = |n| began + Duration::from_secs(n);
    let ways = [
        (AdminState::Drain, Verdict::Standby),
        (AdminState::Ready, Verdict::Standby),
        (AdminState::Ready, DOWN),
    ];
    for (admin_state, found) in ways {
        let check = check(requiring(Role::Primary));
        let both = of(&upstream(vec![planned(1), planned(2)], check), began);
        verdict(&both, 0, Verdict::Up, true, began);
        verdict(&both, 1, Verdict::Standby, true, began);
        both.take_events(began);
        match admin_state {
            AdminState::Ready => fail(&both, &both.addresses()[0].backend, s(1)),
            _ => drop(set_admin_state(&both, 0, admin_state, s(1))),
        }
        verdict(&both, 0, found, false, s(2));
        verdict(&both, 1, Verdict::Up, false, s(3));
        let mut search = both.search(&HashInput::default());
        let lease = both.pick(&mut search, s(4)).expect("a backend");
        assert!(both.succeeded(&search, lease.backend(), s(4)));
        let (mut outages, mut next) = (Vec::new(), Vec::new());
        for event in both.take_events(s(4)).0 {
            match event {
                Event::Transition(t) if t.is_outage() => outages.push(t.at),
                Event::Transition(t) => assert!(!t.ends_outage() || t.at == s(3), "{t:?}"),
                Event::FailedOver { backend, at, .. } => next.push((backend.addr.clone(), at)),
                _ => {}
            }
        }
        assert_eq!((outages, next), (vec![s(1)], vec![(address(1), s(4))]));
    }
}

/// A verdict that was against it before stands until a later check speaks for it.
#[test]
fn one_that_was_out_by_its_check_keeps_that_state_when_the_drain_ends() {
    let now = Instant::now();
    let later = now + Duration::from_secs(1);
    let both = pool(vec![planned(1), planned(2)], true);
    let standby = Some(Verdict::Standby);
    found(&both, CheckResult::Standby, standby, now, now);
    set_admin_state(&both, 0, AdminState::Drain, now);
    let change = set_admin_state(&both, 0, AdminState::Ready, later).expect("a backend");
    assert_eq!(change.to, BackendState::Standby);
    both.take_events(later);
    // It was promoted and demoted again: this check knows only half of it.
    found(&both, CheckResult::Ok, Some(Verdict::Up), now, later);
    assert_eq!(states(&both, later)[0], BackendState::Standby);
    found(&both, CheckResult::Ok, None, later, later);
    let came = [(BackendState::Standby, BackendState::Up)];
    assert_eq!(transitions(&both, later), came);
}

#[test]
fn it_holds_for_all_addresses_now_and_later() {
    let now = Instant::now();
    let both = pool(vec![planned(1), planned(2)], true);
    let gone = both.pick(&mut both.search(&HashInput::default()), now);
    let gone = gone.expect("a backend");
    set_addresses(&both, &[vec![address(3)], vec![address(2)]], now);
    set_admin_state(&both, 0, AdminState::Drain, now);
    set_addresses(
        &both,
        &[vec![address(3), address(4)], vec![address(2)]],
        now,
    );
    let admin_states: Vec<_> = both
        .addresses()
        .iter()
        .map(|a| a.admin.admin_state)
        .collect();
    use AdminState::{Drain, Ready};
    assert_eq!(
        admin_states,
        [Drain, Drain, Ready, Drain],
        "the last has departed"
    );
    // It comes back while its session lives.
    set_addresses(&both, &[vec![address(1)], vec![address(2)]], now);
    assert_eq!(both.addresses()[0].backend.id, gone.backend().id);
    assert_eq!(pick(&both, now).as_deref(), Some("10.0.0.2:1"));
    set_admin_state(&both, 0, AdminState::Ready, now);
    verdict(&both, 0, Verdict::Up, true, now);
    let picks: Vec<_> = (0..2).filter_map(|_| pick(&both, now)).collect();
    assert!(picks.contains(&"10.0.0.1:1".to_owned()), "{picks:?}");
}

/// The others are picked as beside a server that the configuration has down.
#[test]
fn picks_are_those_beside_one_that_is_down() {
    let now = Instant::now();
    let key = HashKey::default;
    for balance in [
        Balance::RoundRobin,
        Balance::LeastConn,
        Balance::First,
        Balance::IpHash,
        Balance::Hash(key()),
        Balance::ConsistentHash(key(), None),
        Balance::Maglev(key(), None),
        Balance::RandomTwo,
        Balance::LeastTime(TimeOf::Connect),
    ] {
        let four = |down: bool| -> Vec<Planned> {
            let one = |n: u8| Planned {
                weight: u32::from(n),
                down: down && n == 2,
                ..planned(n)
            };
            (1..=4).map(one).collect()
        };
        let down = pool_with(balance.clone(), four(true), true);
        let drained = pool_with(balance.clone(), four(false), true);
        set_admin_state(&drained, 1, AdminState::Drain, now);
        let by_chance = matches!(balance, Balance::RandomTwo | Balance::LeastTime(_));
        for n in 0..200u8 {
            let client = HashInput {
                remote_addr: Some([10, 1, 2, n].into()),
                ..HashInput::default()
            };
            let text = |pool: &Pool| {
                let lease = pool
                    .pick(&mut pool.search(&client), now)
                    .expect("a backend");
                lease.backend().text().to_string()
            };
            let (a, b) = (text(&down), text(&drained));
            assert!(by_chance || a == b, "{balance:?}: {a} {b}");
            assert_ne!(b, "10.0.0.2:1");
        }
    }
}

#[test]
fn a_connecting_session_ends_only_if_sessions_are_terminated() {
    let now = Instant::now();
    let both = pool(vec![planned(1), planned(2)], true);
    let mut search = both.search(&HashInput::default());
    let lease = both.pick(&mut search, now).expect("a backend");
    set_admin_state(&both, 0, AdminState::Drain, now);
    assert!(both.succeeded(&search, lease.backend(), now));
    both.terminate_sessions(lease.backend());
    assert!(!both.succeeded(&search, lease.backend(), now));
}

use super::super::{
    Transition,
    tests::{
        DOWN, address, fail, pick, planned, pool, pool_with, set_addresses, set_admin_state,
        verdict,
    },
};
use super::*;
use crate::{
    plan::{Backend as Planned, Balance, HashKey, TimeOf},
    upstream::{balance::HashInput, health::Verdict},
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
    assert!(pick(&alone, now).is_some());
    assert!(alone.lock().fast_path, "as if nothing had been");
    assert_eq!(alone.snapshot(now)[0].since, None);
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
    assert_eq!(both.snapshot(now)[0].why, "", "no slow start");
    // Through maintenance to a drain: checked again, and anew.
    set_admin_state(&both, 0, AdminState::Maint, now);
    set_admin_state(&both, 0, AdminState::Drain, now);
    assert!(both.is_checked(&first, 1));
    let why = &both.snapshot(now)[0].why;
    assert_eq!(why, "set by the operator; besides, not checked yet");
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

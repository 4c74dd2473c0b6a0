//! Primaries that are used while no replica is up.

use super::*;
use crate::plan::reason::CloseReason;

/// Three replicas that have not been checked.
fn unchecked(role_fallback: bool, now: Instant) -> Pool {
    let check = Check {
        role_fallback,
        ..check(requiring(Role::Replica))
    };
    guarded(vec![planned(1), planned(2), planned(3)], check, now)
}

/// The first is the primary, the others are replicas that are up.
fn checked(role_fallback: bool, now: Instant) -> Pool {
    let pool = unchecked(role_fallback, now);
    for (n, to) in [Verdict::Standby, Verdict::Up, Verdict::Up]
        .into_iter()
        .enumerate()
    {
        verdict(&pool, n, to, true, now);
    }
    pool.take_events(now);
    pool
}

fn picks(pool: &Pool, now: Instant) -> Vec<String> {
    let mut picks: Vec<String> = (0..6).filter_map(|_| pick(pool, now)).collect();
    picks.sort();
    picks.dedup();
    picks
}

/// The beginnings and ends since this was called last.
fn changes(pool: &Pool, now: Instant) -> Vec<(bool, String)> {
    let events = pool.take_events(now).0;
    let change = |event| match event {
        Event::FallbackStarted { backend, .. } => Some((true, backend.text().to_string())),
        Event::FallbackEnded { is_any_up, .. } => Some((false, is_any_up.to_string())),
        _ => None,
    };
    events.into_iter().filter_map(change).collect()
}

#[test]
fn the_primary_is_used_while_no_replica_is_up() {
    let now = Instant::now();
    let pool = checked(true, now);
    let [first, second, third] = [1, 2, 3].map(|n| format!("10.0.0.{n}:1"));
    assert_eq!(picks(&pool, now), [second.clone(), third.clone()]);
    verdict(&pool, 1, DOWN, false, now);
    assert_eq!(picks(&pool, now), [third]);
    assert_eq!(pool.guarded(now).in_role_fallback, Some(false));
    verdict(&pool, 2, Verdict::Lagging, false, now);
    assert_eq!(picks(&pool, now), [first.as_str()]);
    assert_eq!(changes(&pool, now), [(true, first.clone())]);
    assert_eq!(pool.guarded(now).in_role_fallback, Some(true));
    let snapshot = pool.snapshot(now);
    assert_eq!(
        (snapshot[0].state, snapshot[0].available),
        (BackendState::Standby, true)
    );
    assert!(
        snapshot[0].why.ends_with("; used while no replica is up"),
        "{}",
        snapshot[0].why
    );
    assert!(
        !snapshot[1].why.contains("used while"),
        "{}",
        snapshot[1].why
    );
    assert!(pool.is_available(now));

    verdict(&pool, 1, Verdict::Up, false, now);
    assert_eq!(picks(&pool, now), [second]);
    assert_eq!(changes(&pool, now), [(false, "true".to_owned())]);
    assert!(!pool.snapshot(now)[0].available);
    assert!(pool.addresses()[0].stands_in && !pool.addresses()[1].stands_in);

    // With the primary gone nothing is left.
    verdict(&pool, 1, DOWN, false, now);
    verdict(&pool, 0, DOWN, false, now);
    assert_eq!(picks(&pool, now), Vec::<String>::new());
    assert_eq!(
        changes(&pool, now),
        [(true, first), (false, "false".to_owned())]
    );
}

#[test]
fn without_the_key_readers_are_refused() {
    let now = Instant::now();
    let pool = checked(false, now);
    verdict(&pool, 1, DOWN, false, now);
    verdict(&pool, 2, DOWN, false, now);
    assert_eq!(picks(&pool, now), Vec::<String>::new());
    assert!(changes(&pool, now).is_empty() && !pool.is_available(now));
    assert_eq!(pool.guarded(now).in_role_fallback, None);
}

#[test]
fn a_drain_counts_and_an_unchecked_replica_is_waited_for() {
    let now = Instant::now();
    let pool = checked(true, now);
    set_admin_state(&pool, 1, AdminState::Drain, now);
    set_admin_state(&pool, 2, AdminState::Maint, now);
    assert_eq!(picks(&pool, now), ["10.0.0.1:1"]);
    // The primary itself can be taken out, too.
    set_admin_state(&pool, 0, AdminState::Drain, now);
    assert_eq!(picks(&pool, now), Vec::<String>::new());
    set_admin_state(&pool, 0, AdminState::Ready, now);
    assert_eq!(picks(&pool, now), ["10.0.0.1:1"]);
    // Out of maintenance it is not checked yet: the fallback goes on.
    set_admin_state(&pool, 2, AdminState::Ready, now);
    assert_eq!(picks(&pool, now), ["10.0.0.1:1"]);
    set_admin_state(&pool, 1, AdminState::Ready, now);
    assert_eq!(picks(&pool, now), ["10.0.0.1:1"]);
    verdict(&pool, 1, Verdict::Up, false, now);
    assert_eq!(picks(&pool, now), ["10.0.0.2:1"]);

    let pool = unchecked(true, now);
    verdict(&pool, 0, Verdict::Standby, true, now);
    verdict(&pool, 1, DOWN, true, now);
    assert_eq!(
        picks(&pool, now),
        Vec::<String>::new(),
        "the third may be up"
    );
    verdict(&pool, 2, DOWN, true, now);
    assert_eq!(picks(&pool, now), ["10.0.0.1:1"]);
}

#[test]
fn the_last_replica_beside_a_primary_is_known() {
    let now = Instant::now();
    let pool = checked(true, now);
    let is_last = |n: usize| pool.is_last_beside_primary(&pool.addresses()[n].backend);
    assert!(!is_last(1) && !is_last(2), "there are two");
    verdict(&pool, 1, DOWN, false, now);
    assert!(is_last(2) && !is_last(0) && !is_last(1));
    verdict(&pool, 0, DOWN, false, now);
    assert!(!is_last(2), "no primary could stand in");
    let strict = checked(false, now);
    verdict(&strict, 1, DOWN, false, now);
    assert!(!strict.is_last_beside_primary(&strict.addresses()[2].backend));
}

/// The last replica is promoted: it serves its readers as a primary.
#[test]
fn a_promoted_replica_stands_in_for_itself() {
    let now = Instant::now();
    let pool = checked(true, now);
    verdict(&pool, 0, DOWN, false, now);
    verdict(&pool, 1, DOWN, false, now);
    let backend = Arc::clone(&pool.addresses()[2].backend);
    assert!(!pool.stands_in(&backend));
    verdict(&pool, 2, Verdict::Standby, false, now);
    assert!(pool.stands_in(&backend));
    assert_eq!(picks(&pool, now), ["10.0.0.3:1"]);
    // Flows on it need not move.
    assert_eq!(pool.must_go(&backend), None);
}

/// When a primary dies its replicas lag and it is found to be down by as many checks, so that one
/// verdict comes shortly before the other.
#[test]
fn a_primary_in_doubt_does_not_begin_to_stand_in() {
    let now = Instant::now();
    let pool = checked(true, now);
    let first = "10.0.0.1:1".to_owned();
    let check = |result| {
        let checked = Checked {
            began: now,
            at: now,
            took: Duration::ZERO,
            result,
            finding: Finding::default(),
            transcript: String::new(),
        };
        let primary = Arc::clone(&pool.addresses()[0].backend);
        pool.checked(&primary, checked, None, now);
    };
    for failure in [CheckResult::Refused, CheckResult::Timeout] {
        check(failure);
        verdict(&pool, 1, Verdict::Lagging, false, now);
        verdict(&pool, 2, Verdict::Lagging, false, now);
        assert_eq!(picks(&pool, now), Vec::<String>::new());
        assert!(changes(&pool, now).is_empty(), "{failure:?}");
        // It was a blip.
        check(CheckResult::Standby);
        assert_eq!(picks(&pool, now), [first.as_str()]);
        assert_eq!(changes(&pool, now), [(true, first.clone())]);
        // What has begun ends by a verdict.
        check(failure);
        assert_eq!(picks(&pool, now), [first.as_str()]);
        verdict(&pool, 0, DOWN, false, now);
        assert_eq!(changes(&pool, now), [(false, "false".to_owned())]);
        for (n, to) in [Verdict::Standby, Verdict::Up, Verdict::Up]
            .into_iter()
            .enumerate()
        {
            verdict(&pool, n, to, false, now);
        }
        changes(&pool, now);
    }
}

/// The former primary is started again alone while readers use the new one.
#[test]
fn of_two_primaries_one_stands_in() {
    let began = Instant::now();
    let at = |s| began + Duration::from_secs(s);
    let pool = checked(true, began);
    let state = |n: usize, now| {
        let snapshot = pool.snapshot(now).swap_remove(n);
        (snapshot.state, snapshot.why)
    };
    verdict(&pool, 0, DOWN, false, at(1));
    verdict(&pool, 1, Verdict::Standby, false, at(2));
    verdict(&pool, 2, DOWN, false, at(2));
    assert_eq!(picks(&pool, at(2)), ["10.0.0.2:1"]);
    verdict(&pool, 0, Verdict::Standby, false, at(3));
    assert_eq!(picks(&pool, at(3)), ["10.0.0.2:1"]);
    let why = "10.0.0.2:1 is primary, too, and has been for longer".to_owned();
    assert_eq!(state(0, at(3)), (BackendState::Doubtful, why));
    let former = Arc::clone(&pool.addresses()[0].backend);
    assert!(!pool.stands_in(&former));
    // It follows the new one: a replica, which readers prefer.
    verdict(&pool, 0, Verdict::Up, false, at(4));
    assert_eq!(picks(&pool, at(4)), ["10.0.0.1:1"]);
    // The one that is left is believed.
    verdict(&pool, 1, DOWN, false, at(5));
    verdict(&pool, 0, Verdict::Standby, false, at(6));
    assert_eq!(picks(&pool, at(6)), ["10.0.0.1:1"]);
}

#[test]
fn a_proof_decides_which_primary_stands_in() {
    let began = Instant::now();
    let at = |s| began + Duration::from_secs(s);
    let pool = checked(true, began);
    let timeline = |n| Some(Epoch::Timeline(n));
    proven_verdict(&pool, 0, Verdict::Standby, false, timeline(1), at(1));
    verdict(&pool, 1, DOWN, false, at(1));
    verdict(&pool, 2, DOWN, false, at(1));
    assert_eq!(picks(&pool, at(1)), ["10.0.0.1:1"]);
    proven_verdict(&pool, 1, Verdict::Standby, false, timeline(2), at(2));
    assert_eq!(picks(&pool, at(2)), ["10.0.0.2:1"]);
    let former = Arc::clone(&pool.addresses()[0].backend);
    assert_eq!(pool.must_go(&former), Some(CloseReason::RoleLost));
    // What it proved counts also after its end: data that are out of date are not read.
    verdict(&pool, 1, DOWN, false, at(3));
    assert_eq!(picks(&pool, at(3)), Vec::<String>::new());
}

/// A replica that became the primary serves readers again in its new role.
#[test]
fn a_session_on_the_same_server_as_a_fallback_ends_its_outage() {
    let began = Instant::now();
    let s = |n| began + Duration::from_secs(n);
    let pool = checked(true, began);
    verdict(&pool, 2, DOWN, false, s(1));
    verdict(&pool, 0, DOWN, false, s(1));
    verdict(&pool, 1, Verdict::Lagging, false, s(2));
    let mut search = pool.search(&HashInput::default());
    assert!(pool.pick(&mut search, s(3)).is_err());
    verdict(&pool, 1, Verdict::Standby, false, s(4));
    let lease = pool.pick(&mut search, s(5)).expect("the new primary");
    assert!(pool.succeeded(&search, lease.backend(), s(5)));
    let events = pool.take_events(s(6)).0;
    let served = events.iter().filter_map(|event| match event {
        Event::FailedOver {
            backend, to, at, ..
        } => Some((backend.text(), to, *at)),
        _ => None,
    });
    let [new, old] = [2, 3].map(|n| format!("10.0.0.{n}:1").into());
    assert_eq!(
        served.collect::<Vec<_>>(),
        [(&old, &new, s(5)), (&new, &new, s(5))]
    );
}

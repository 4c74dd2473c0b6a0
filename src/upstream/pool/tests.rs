mod panic;
mod places;
mod plans;
mod primaries;
mod role_fallback;
mod scale;
mod totals;
mod waiting;

use super::*;
use crate::{
    plan::{
        Backend as Planned, BackupWhen, Check, CheckAt, CheckKind, FlowsMove, ProxyOn, Role,
        SendProxy, SessionAction, Target, Upstream, reason::CheckResult,
    },
    telemetry::metrics::Exporter,
    upstream::health::{Epoch, FailureOf, Finding, Lag, VerdictChange},
};
use std::{net::SocketAddr, time::Duration};

pub(crate) fn address(n: u8) -> Addr {
    Addr::Tcp(SocketAddr::from(([10, 0, 0, n], 1)))
}

pub(crate) fn planned(n: u8) -> Planned {
    Planned {
        origin: plan::Origin::Configured,
        text: format!("10.0.0.{n}:1"),
        target: Target::Addr(address(n)),
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
    let check = Check {
        start_up,
        ..check(CheckKind::Tcp)
    };
    assembled(balance, backends, check, Instant::now())
}

pub(crate) fn check(kind: CheckKind) -> Check {
    let second = Duration::from_secs(1);
    Check {
        kind,
        interval: second,
        fast_interval: second,
        timeout: second,
        rise: 1,
        fall: 1,
        stale_after: None,
        panic_threshold: 0,
        role_fallback: false,
        start_up: false,
        at: CheckAt::Backend,
        tls: plan::Tls::Off,
        on_down: SessionAction::Keep,
        on_role_lost: SessionAction::Close,
        on_lag: SessionAction::Keep,
        on_recover: SessionAction::Keep,
    }
}

pub(super) fn requiring(role: Role) -> CheckKind {
    CheckKind::Redis {
        role: Some(role),
        user: None,
        password: None,
        replicating: false,
        max_lag: None,
        min_version: None,
        require_writes: role == Role::Primary,
    }
}

pub(crate) fn guarded(backends: Vec<Planned>, check: Check, now: Instant) -> Pool {
    assembled(Balance::RoundRobin, backends, check, now)
}

fn assembled(balance: Balance, backends: Vec<Planned>, check: Check, now: Instant) -> Pool {
    let plan = Upstream {
        balance,
        ..upstream(backends, check)
    };
    of(&plan, now)
}

pub(crate) fn upstream(backends: Vec<Planned>, check: Check) -> Upstream {
    Upstream {
        discover: None,
        name: "u".into(),
        balance: Balance::RoundRobin,
        backends,
        resolve_interval: None,
        resolve_required: true,
        send_proxy: SendProxy::Off,
        fail_on_reset: false,
        backup_when: BackupWhen::Full,
        waits: plan::Waits::default(),
        on_drain: SessionAction::Keep,
        on_removed: SessionAction::Keep,
        send_proxy_on: ProxyOn::First,
        flows_move: FlowsMove::WITHOUT_UDP,
        check: Some(check),
    }
}

pub(crate) fn of(plan: &Upstream, now: Instant) -> Pool {
    let exporter = Exporter::new(1);
    let of_all = exporter.upstream("u");
    let metrics =
        |b: &Planned| exporter.backend(&of_all, &b.text, Some(plan::CheckProtocol::Redis));
    let addresses: Vec<_> = (1..)
        .take(plan.backends.len())
        .map(|n| vec![address(n)])
        .collect();
    Pool::new(&of_all, plan, metrics, &addresses, now)
}

/// A check that has changed the verdict about the backend of this number.
pub(crate) fn verdict(pool: &Pool, n: usize, to: Verdict, first: bool, now: Instant) -> bool {
    proven_verdict(pool, n, to, first, None, now)
}

/// The same with what the server proves.
fn proven_verdict(
    pool: &Pool,
    n: usize,
    to: Verdict,
    first: bool,
    epoch: Option<Epoch>,
    now: Instant,
) -> bool {
    verdict_on(pool, &pool.addresses()[n].backend, to, first, epoch, now)
}

fn verdict_on(
    pool: &Pool,
    backend: &Backend,
    to: Verdict,
    first: bool,
    epoch: Option<Epoch>,
    now: Instant,
) -> bool {
    let checked = Checked {
        began: now,
        at: now,
        took: Duration::ZERO,
        result: match to {
            Verdict::Down(result) => result.unwrap_or(CheckResult::Timeout),
            Verdict::WrongRole => CheckResult::WrongRole,
            Verdict::Standby => CheckResult::Standby,
            Verdict::Lagging => CheckResult::Lagging,
            _ => CheckResult::Ok,
        },
        finding: Finding {
            epoch,
            ..Finding::default()
        },
        transcript: String::new(),
    };
    let change = VerdictChange {
        from: Verdict::Up,
        to,
        doubted_for: Duration::ZERO,
        first,
    };
    pool.checked(backend, checked, Some(change), now)
}

pub(super) fn pick(pool: &Pool, now: Instant) -> Option<String> {
    let lease = pool
        .pick(&mut pool.search(&HashInput::default()), now)
        .ok()?;
    Some(lease.backend().text().to_string())
}

/// A connect to the backend fails.
pub(crate) fn fail(pool: &Pool, backend: &Arc<Backend>, now: Instant) {
    let of = FailureOf::Connection;
    pool.failed(backend, of, ConnectError::Refused, &"refused", [now; 2]);
}

/// Of each configured backend.
pub(crate) fn set_addresses(pool: &Pool, addresses: &[Vec<Addr>], now: Instant) {
    for (text, addresses) in pool.texts().iter().zip(addresses) {
        pool.set_addresses(text, addresses, now);
    }
}

/// Of the configured backend of this number.
pub(crate) fn set_admin_state(
    pool: &Pool,
    n: usize,
    admin_state: AdminState,
    now: Instant,
) -> Option<AdminChange> {
    pool.set_admin_state(&format!("10.0.0.{}:1", n + 1), admin_state.into(), now)
}

pub(crate) const DOWN: Verdict = Verdict::Down(Some(CheckResult::Refused));

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

/// The event is handled at once, and may be before the session has given up its lease.
#[test]
fn a_connection_that_failed_is_no_session_on_the_backend() {
    let now = Instant::now();
    let both = pool(vec![planned(1), planned(2)], true);
    let leases = [(); 4].map(|()| both.pick(&mut both.search(&HashInput::default()), now));
    let leases = leases.map(|lease| lease.expect("a backend"));
    fail(&both, leases[0].backend(), now);
    let events = both.take_events(now).0;
    let [Event::Transition(transition)] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!((transition.sessions, leases[0].backend().active()), (1, 2));
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
    fail(&both, &first, now);
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

/// Until `fail_timeout` has passed failed connects count, whatever the check finds: clients may
/// fail where it succeeds. Then it is the connect that a client would have to try.
#[test]
fn a_good_check_proves_an_unproven_endpoint() {
    use BackendState::{Failed, Unproven, Up};
    let began = Instant::now();
    let s = |n| began + Duration::from_secs(n);
    let good = |pool: &Pool, at| {
        let backend = Arc::clone(&pool.addresses()[0].backend);
        let checked = Checked {
            began: at,
            at,
            took: Duration::ZERO,
            result: CheckResult::Ok,
            finding: Finding::default(),
            transcript: String::new(),
        };
        pool.checked(&backend, checked, None, at);
    };
    let pool_of = |at, failure| {
        let check = Check {
            start_up: true,
            at,
            ..check(CheckKind::Tcp)
        };
        let pool = guarded(vec![planned(1), planned(2)], check, began);
        let backend = Arc::clone(&pool.addresses()[0].backend);
        pool.failed(
            &backend,
            failure,
            ConnectError::Refused,
            &"refused",
            [began; 2],
        );
        pool.take_events(began);
        pool
    };
    let usual = || pool_of(CheckAt::Backend, FailureOf::Connection);
    let state = |pool: &Pool, at| pool.snapshot(at)[0].state;
    let proven = usual();
    good(&proven, s(9));
    assert_eq!(
        (state(&proven, s(9)), state(&proven, s(11))),
        (Failed, Unproven)
    );
    good(&proven, s(11));
    assert_eq!(state(&proven, s(11)), Up);
    assert!(proven.snapshot(s(11))[0].available);
    let events = proven.take_events(s(11)).0;
    let [Event::Transition(Transition { cause, to, .. })] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!((cause, *to), (&Cause::CheckPassed, Some(Up)));
    assert!(proven.snapshot(s(16))[0].why.contains("50 %"), "slow start");
    // A client is trying it: what it finds decides.
    let tried = usual();
    let lease = (0..2).find_map(|_| {
        let lease = tried.pick(&mut tried.search(&HashInput::default()), s(11));
        lease.ok().filter(|l| **l.backend().text() == *"10.0.0.1:1")
    });
    assert!(lease.is_some());
    good(&tried, s(12));
    assert_eq!(state(&tried, s(12)), Failed);
    // A check of another address, or of less than what failed, proves nothing.
    for other in [
        pool_of(CheckAt::Port(9), FailureOf::Connection),
        pool_of(CheckAt::Backend, FailureOf::Answer),
        pool_of(CheckAt::Backend, FailureOf::Flow),
    ] {
        good(&other, s(11));
        assert_eq!(state(&other, s(11)), Unproven);
    }
}

/// An outage begins when the first client is without an answer, whatever finds that first.
#[test]
fn the_doubt_begins_with_the_connect_that_failed_first() {
    let began = Instant::now();
    let ms = |n| began + Duration::from_millis(n);
    let doubt = |pool: &Pool, at| {
        let events = pool.take_events(at).0;
        let [Event::Transition(Transition { doubted_for, .. })] = &events[..] else {
            panic!("{events:?}");
        };
        doubted_for.as_millis()
    };
    let pool_of = |max_fails| {
        let backends = [1, 2].map(|n| Planned {
            max_fails,
            ..planned(n)
        });
        let pool = guarded(backends.into(), check(CheckKind::Tcp), began);
        for n in 0..2 {
            verdict(&pool, n, Verdict::Up, true, began);
        }
        pool.take_events(began);
        pool
    };
    let fails = |pool: &Pool, when: [Instant; 2]| {
        let (of, error) = (FailureOf::Connection, ConnectError::Timeout);
        let backend = Arc::clone(&pool.addresses()[0].backend);
        pool.failed(&backend, of, error, &"no answer", when);
    };
    // Two of two connects, of a second each.
    let connects = pool_of(2);
    fails(&connects, [ms(100), ms(1_100)]);
    fails(&connects, [ms(900), ms(1_900)]);
    assert_eq!(doubt(&connects, ms(1_900)), 1_800);
    // The check alone decides, and sessions have found it before.
    let checked = pool_of(0);
    fails(&checked, [ms(100), ms(1_100)]);
    verdict(&checked, 0, Verdict::Down(None), false, ms(2_000));
    assert_eq!(doubt(&checked, ms(2_000)), 1_900);
    // What passed before a good check is none of it.
    let blip = pool_of(0);
    fails(&blip, [ms(100), ms(1_100)]);
    let backend = Arc::clone(&blip.addresses()[0].backend);
    let good = Checked {
        began: ms(1_200),
        at: ms(1_200),
        took: Duration::ZERO,
        result: CheckResult::Ok,
        finding: Finding::default(),
        transcript: String::new(),
    };
    blip.checked(&backend, good, None, ms(1_200));
    fails(&blip, [ms(1_300), ms(1_400)]);
    verdict(&blip, 0, Verdict::Down(None), false, ms(2_000));
    assert!(doubt(&blip, ms(2_000)) <= 800);
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
    assert!(both.lock().fast_path);
}

#[test]
fn addresses_that_stay_keep_their_state() {
    let now = Instant::now();
    let both = pool(vec![planned(1), planned(2)], true);
    verdict(&both, 0, DOWN, false, now);
    let id = both.addresses()[0].backend.id;
    set_addresses(
        &both,
        &[vec![address(1), address(3)], vec![address(2)]],
        now,
    );
    let addresses = both.addresses();
    assert_eq!(addresses.len(), 3);
    assert_eq!((addresses[0].backend.id, addresses[0].verdict), (id, DOWN));
    assert_eq!(addresses[1].verdict, Verdict::Up);
    // One address that is well is enough for the backend.
    assert_eq!(both.snapshot(now)[0].state, BackendState::Up);
}

#[test]
fn a_session_picked_before_a_termination_must_not_stay() {
    let now = Instant::now();
    let alone = pool(vec![planned(1)], true);
    let mut before = alone.search(&HashInput::default());
    let lease = alone.pick(&mut before, now).expect("a backend");
    assert!(alone.succeeded(&before, lease.backend(), now));
    alone.terminate_sessions(lease.backend());
    assert!(!alone.succeeded(&before, lease.backend(), now));
    let mut after = alone.search(&HashInput::default());
    let after_lease = alone.pick(&mut after, now).expect("a backend");
    assert!(alone.succeeded(&after, after_lease.backend(), now));
}

#[test]
fn a_lagging_backend_takes_nothing_new() {
    let now = Instant::now();
    let both = pool(vec![planned(1), planned(2)], true);
    verdict(&both, 0, Verdict::Lagging, false, now);
    assert_eq!(both.snapshot(now)[0].why, "it is behind");
    let backend = Arc::clone(&both.addresses()[0].backend);
    let checked = Checked {
        began: now,
        at: now,
        took: Duration::ZERO,
        result: CheckResult::Lagging,
        finding: Finding {
            lag: Lag {
                bytes: Some(4096),
                time: Some(Duration::from_millis(12_345)),
            },
            ..Default::default()
        },
        transcript: String::new(),
    };
    both.checked(&backend, checked, None, now);
    let snapshot = &both.snapshot(now)[0];
    assert_eq!(
        (snapshot.state, snapshot.why.as_str()),
        (BackendState::Lagging, "it is behind by 12.3 s, 4096 bytes")
    );
    let picks: Vec<_> = (0..4).map(|_| pick(&both, now)).collect();
    assert_eq!(picks, vec![Some("10.0.0.2:1".to_owned()); 4]);
    verdict(&both, 0, Verdict::Up, false, now);
    assert!(both.snapshot(now)[0].available);
}

/// Connects that fail after a verdict of down, or while the operator has taken it out, cause no
/// transition.
#[test]
fn an_endpoint_that_is_out_is_not_taken_out_again() {
    let now = Instant::now();
    let both = pool(vec![planned(1), planned(2)], true);
    let first = Arc::clone(&both.addresses()[0].backend);
    verdict(&both, 0, DOWN, false, now);
    both.take_events(now);
    fail(&both, &first, now);
    assert!(both.take_events(now).0.is_empty());
    assert_eq!(both.snapshot(now)[0].state, BackendState::Down);
    let second = Arc::clone(&both.addresses()[1].backend);
    set_admin_state(&both, 1, AdminState::Drain, now);
    both.take_events(now);
    fail(&both, &second, now);
    assert!(both.take_events(now).0.is_empty());
    set_admin_state(&both, 1, AdminState::Ready, now);
    verdict(&both, 1, Verdict::Up, true, now);
    let snapshot = both.snapshot(now).swap_remove(1);
    assert_eq!(snapshot.state, BackendState::Failed);
    assert_eq!(snapshot.why, "1 failed connect; tried again in 10 s");
    let until = snapshot.failed_until.expect("a time");
    assert_eq!((until - now).as_secs(), 10);
    let snapshot = both.snapshot(until).swap_remove(1);
    assert_eq!(
        (snapshot.state, snapshot.failed_until),
        (BackendState::Unproven, None)
    );
    let what_ends_it = "the next session tries it, and it is up once that has connected";
    assert!(snapshot.why.ends_with(what_ends_it), "{}", snapshot.why);
    // Flows have no connect.
    let flows = pool(vec![planned(1), planned(2)], true);
    let first = Arc::clone(&flows.addresses()[0].backend);
    let error = ConnectError::Timeout;
    flows.failed(&first, FailureOf::Flow, error, &"no reply", [now; 2]);
    let why = flows.snapshot(now).swap_remove(0).why;
    assert_eq!(why, "1 failed flow; tried again in 10 s");
}

/// An address that is no longer named is checked as long as there are sessions on it.
#[test]
fn a_departed_endpoint_is_checked_while_it_has_sessions() {
    let now = Instant::now();
    let both = pool(vec![planned(1), planned(2)], true);
    let lease = both
        .pick(&mut both.search(&HashInput::default()), now)
        .expect("a backend");
    let gone = Arc::clone(lease.backend());
    fail(&both, &gone, now);
    set_addresses(&both, &[vec![], vec![address(2)]], now);
    assert!(both.is_checked(&gone, 0) && both.addresses().len() == 2);
    drop(lease);
    assert!(!both.is_checked(&gone, 0) && both.addresses().len() == 1);
    // The record of its failed connects is kept.
    set_addresses(&both, &[vec![address(1)], vec![address(2)]], now);
    assert!(both.is_checked(&gone, 0));
    assert_eq!(both.snapshot(now)[0].state, BackendState::Failed);
}

#[test]
fn backups_wait_until_no_regular_backend_is_in_service() {
    let now = Instant::now();
    let regular = Planned {
        max_connections: 1,
        max_fails: 0,
        ..planned(1)
    };
    let backup = Planned {
        backup: true,
        ..planned(2)
    };
    let mut plan = upstream(vec![regular, backup], check(CheckKind::Tcp));
    let [usual, late] = [BackupWhen::Full, BackupWhen::Down].map(|when| {
        plan.backup_when = when;
        let pool = of(&plan, now);
        for n in 0..2 {
            verdict(&pool, n, Verdict::Up, true, now);
        }
        pool
    });
    let text = |lease: Result<Lease, Shortage>| lease.map(|l| l.backend().text().to_string());
    let backup = Ok("10.0.0.2:1".to_owned());
    for (pool, when_full, when_failed) in [
        (&usual, backup.clone(), backup.clone()),
        (&late, Err(Shortage::Full), Err(Shortage::NoneFit)),
    ] {
        let search = || pool.search(&HashInput::default());
        let mut first = search();
        let lease = pool.pick(&mut first, now).expect("the regular backend");
        assert_eq!(text(pool.pick(&mut search(), now)), when_full);
        fail(pool, lease.backend(), now);
        drop(lease);
        assert_eq!(
            text(pool.pick(&mut first, now)),
            when_failed,
            "for this session"
        );
        verdict(pool, 0, DOWN, false, now);
        assert_eq!(text(pool.pick(&mut search(), now)), backup);
    }
}

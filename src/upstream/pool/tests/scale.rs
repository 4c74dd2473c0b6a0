//! What is done under the lock of a pool with thousands of backends.

use super::*;
use crate::upstream::pool::locked::looks;
use std::net::Ipv4Addr;

const MANY: u32 = 2_000;
/// For one endpoint, and some more for what is shown of it.
const FEW: usize = 16;

fn many(first: u32) -> Vec<Planned> {
    let of = |n: u32| {
        let address = SocketAddr::from((Ipv4Addr::from(0x0a00_0000 + n), 1));
        Planned {
            text: address.to_string(),
            target: Target::Addr(Addr::Tcp(address)),
            ..planned(1)
        }
    };
    (first..first + MANY).map(of).collect()
}

fn addresses_of(plan: &Planned) -> Vec<Addr> {
    match &plan.target {
        Target::Addr(addr) => vec![addr.clone()],
        Target::Name { .. } => Vec::new(),
    }
}

struct Large {
    pool: Arc<Pool>,
    exporter: Exporter,
    of_all: Arc<UpstreamMetrics>,
    check: Option<Check>,
    now: Instant,
}

fn plan_of(backends: Vec<Planned>, check: &Option<Check>) -> Upstream {
    Upstream {
        check: check.clone(),
        ..upstream(backends, checked_up())
    }
}

impl Large {
    fn new(check: Option<Check>) -> Self {
        let exporter = Exporter::new(1);
        let of_all = exporter.upstream("u");
        let now = Instant::now();
        let plan = plan_of(many(0), &check);
        let addresses: Vec<_> = plan.backends.iter().map(addresses_of).collect();
        let metrics = |b: &Planned| exporter.backend(&of_all, &b.text, true);
        let pool = Pool::new(&of_all, &plan, metrics, &addresses, now);
        Self {
            pool: Arc::new(pool),
            exporter,
            of_all,
            check,
            now,
        }
    }

    fn replace(&self, backends: Vec<Planned>) {
        let plan = plan_of(backends, &self.check);
        let add = |b: &Planned| {
            let metrics = self.exporter.backend(&self.of_all, &b.text, true);
            (Arc::new(metrics), addresses_of(b))
        };
        self.pool.set_plan(&plan, add, &Cause::Discovery, self.now);
    }
}

fn checked_up() -> Check {
    Check {
        start_up: true,
        ..check(CheckKind::Tcp)
    }
}

#[test]
fn an_exchange_of_all_backends_makes_its_transitions_without_the_lock() {
    exchange_all(&Large::new(Some(checked_up())));
    exchange_all(&Large::new(None));
}

fn exchange_all(large: &Large) {
    let pool = &large.pool;
    pool.take_events(large.now);
    let lease = pool.pick(&mut Search::default(), large.now).expect("one");
    let (most, ()) = looks::most_during(|| large.replace(many(MANY)));
    // Only which of them are worth keeping, some at a time.
    assert!(most <= 256, "{most}");
    assert_eq!(pool.lock().totals.counts.well, MANY as usize);
    pool.lock().assert_is_counted(large.now);
    // All but the one with a session are forgotten.
    assert_eq!(pool.backends().len(), MANY as usize + 1);
    let (most, (events, _)) = looks::most_during(|| pool.take_events(large.now));
    assert!(most < FEW, "{most}");
    let texts = |is_it: fn(&Transition) -> bool| -> Vec<String> {
        let transitions = events.iter().filter_map(|event| match event {
            Event::Transition(transition) if is_it(transition) => Some(transition),
            _ => None,
        });
        transitions.map(|t| t.backend.text().to_string()).collect()
    };
    let planned = |first| -> Vec<String> { many(first).into_iter().map(|b| b.text).collect() };
    assert_eq!(texts(|t| t.to.is_none()), planned(0));
    assert_eq!(texts(|t| t.from.is_none()), planned(MANY));
    assert_eq!(events.len(), 2 * MANY as usize);
    drop(events);
    // The next session has gone over from all of them, and that is one thing for its worker.
    let mut search = Search::default();
    let next = pool.pick(&mut search, large.now).expect("another");
    let queued = || pool.lock().events.len();
    assert!(pool.succeeded(&search, next.backend(), large.now));
    assert_eq!(queued(), 1);
    let (events, _) = pool.take_events(large.now);
    let is_failover = |event: &&Event| matches!(event, Event::FailedOver { .. });
    // Those without sessions are forgotten.
    assert_eq!(events.iter().filter(is_failover).count(), 1);
    drop(lease);
}

#[test]
fn what_happens_to_one_backend_looks_at_no_other() {
    let role = |role| CheckKind::Redis {
        role: Some(role),
        user: None,
        password: None,
        replicating: false,
        max_lag: None,
        min_version: None,
        require_writes: true,
    };
    let with = |change: fn(&mut Check)| {
        let mut check = checked_up();
        change(&mut check);
        check
    };
    let rules = [
        checked_up(),
        with(|check| check.panic_threshold = 50),
        with(|check| check.stale_after = Some(Duration::from_secs(30))),
        Check {
            role_fallback: true,
            kind: role(plan::Role::Replica),
            ..checked_up()
        },
    ];
    for check in rules {
        look_at_one(&Large::new(Some(check)));
    }
    // All others have another role.
    let large = Large::new(Some(Check {
        stale_after: Some(Duration::from_secs(30)),
        ..check(role(plan::Role::Primary))
    }));
    let (pool, now) = (&large.pool, large.now);
    for n in [0, 1] {
        let (most, well) = looks::most_during(|| verdict(pool, n, Verdict::Up, true, now));
        assert!(well && most < 2 * FEW, "{most}");
    }
    assert_eq!(pool.lock().totals.counts.well, 1);
    pool.lock().assert_is_counted(now);
}

fn look_at_one(large: &Large) {
    let (pool, now) = (&large.pool, large.now);
    // The last one: a search from the beginning would not find it soon.
    let last = MANY as usize - 1;
    let (most, well) = looks::most_during(|| verdict(pool, last, DOWN, true, now));
    assert!(well && most < FEW, "{most}");
    assert_eq!(pool.lock().totals.counts.well, last);
    let (most, well) = looks::most_during(|| verdict(pool, last, Verdict::Up, false, now));
    assert!(well && most < FEW, "{most}");
    verdict(pool, last, DOWN, false, now);
    assert_eq!(pool.lock().totals.counts.well, last);
    pool.lock().assert_is_counted(now);
    let addresses = pool.addresses();
    let backend = &addresses[MANY as usize - 2].backend;
    let text = backend.text().to_string();
    let (most, ()) = looks::most_during(|| {
        pool.set_admin_state(&text, AdminState::Drain.into(), now);
        fail(pool, backend, now);
        assert!(!pool.takes(backend, now));
        assert!(pool.must_go(backend).is_none());
        pool.answered(backend, now);
        pool.succeeded(&Search::default(), &addresses[0].backend, now);
        pool.own_verdict(backend);
        pool.is_checked(backend, 0);
    });
    assert!(most < FEW, "{most}");
}

#[test]
fn what_is_shown_and_handed_over_is_read_in_parts() {
    let large = Large::new(Some(checked_up()));
    let (pool, now) = (&large.pool, large.now);
    let leases: Vec<_> = (0..MANY)
        .map(|_| pool.pick(&mut Search::default(), now).expect("one"))
        .collect();
    let read = || (pool.snapshot(now).len(), pool.record().endpoints.len());
    let (most, counts) = looks::most_during(read);
    assert_eq!(counts, (MANY as usize, MANY as usize));
    assert!(most < 64 * FEW, "{most}");
    // All of them leave, and have sessions.
    large.replace(many(MANY));
    let (most, counts) = looks::most_during(read);
    assert_eq!(counts, (2 * MANY as usize, MANY as usize));
    assert!(most < 64 * FEW, "{most}");
    let removed = pool.snapshot(now);
    let removed = removed.iter().filter(|s| s.state == BackendState::Removed);
    let planned = many(0);
    assert!(
        removed
            .map(|s| &*s.metrics.text)
            .eq(planned.iter().map(|b| &*b.text))
    );
    drop(leases);
}

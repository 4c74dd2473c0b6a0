//! What is done under the lock of a pool with thousands of backends.

use super::*;
use crate::upstream::{backend::Lease, pool::locked::looks};
use std::{net::Ipv4Addr, sync::atomic::Ordering::Relaxed, thread};

const MANY: u32 = 5_000;
/// For one endpoint, looked at more than once.
const FEW: usize = 8;
/// So many are looked at before workers get the lock again.
const PART: usize = 256;

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
        let metrics =
            |b: &Planned| exporter.backend(&of_all, &b.text, Some(plan::CheckProtocol::Redis));
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
            let metrics =
                self.exporter
                    .backend(&self.of_all, &b.text, Some(plan::CheckProtocol::Redis));
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
    assert!(most <= PART, "{most}");
    assert_eq!(pool.lock().totals.counts.well, MANY as usize);
    pool.lock().assert_is_counted();
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
        let backend = &pool.backends()[n];
        let judge = || verdict_on(pool, backend, Verdict::Up, true, None, now);
        let (most, well) = looks::most_during(judge);
        assert!(well && most < 2 * FEW, "{most}");
    }
    assert_eq!(pool.lock().totals.counts.well, 1);
    pool.lock().assert_is_counted();
}

/// Of all that come back, or get another configuration, none is looked at.
#[test]
fn an_exchange_of_all_backends_with_sessions_looks_at_none() {
    for check in [Some(checked_up()), None] {
        let large = Large::new(check);
        let (pool, now) = (&large.pool, large.now);
        let mut leases = sessions_on_all(pool, now);
        pool.take_events(now);
        let exchange = |backends| {
            let (most, ()) = looks::most_during(|| large.replace(backends));
            pool.lock().assert_is_counted();
            let (taking, (events, _)) = looks::most_during(|| pool.take_events(now));
            (most.max(taking), events.len())
        };
        assert_eq!(exchange(many(MANY)), (0, 2 * MANY as usize));
        leases.extend(sessions_on_all(pool, now));
        assert_eq!(exchange(many(0)), (0, 2 * MANY as usize));
        let heavier = many(0).into_iter().map(|backend| Planned {
            weight: 2,
            max_fails: 3,
            ..backend
        });
        assert_eq!(exchange(heavier.collect()), (0, 0));
        let inner = pool.lock();
        assert!(inner.endpoints.iter().all(|e| e.config.weight == 2));
        assert_eq!(inner.departed.len(), MANY as usize);
        drop(inner);
        // Those without sessions are forgotten, some at a time.
        drop(leases);
        let (most, ()) = looks::most_during(|| large.replace(many(2 * MANY)));
        assert!(most <= PART, "{most}");
        assert!(pool.lock().departed.is_empty());
    }
}

fn sessions_on_all(pool: &Pool, now: Instant) -> Vec<Lease> {
    let search = || Search::default();
    let leases = (0..MANY).map(|_| pool.pick(&mut search(), now).expect("one"));
    leases.collect()
}

/// With as many that have departed.
#[test]
fn what_looks_at_all_does_so_in_parts() {
    let large = Large::new(Some(checked_up()));
    let (pool, now) = (&large.pool, large.now);
    let leases = sessions_on_all(pool, now);
    large.replace(many(MANY));
    let all = 2 * MANY as usize;
    let (most, ()) = looks::most_during(|| {
        assert_eq!(pool.addresses().len(), all);
        assert_eq!(pool.takers(now).len(), MANY as usize);
        assert_eq!(pool.unchecked_backends().len(), MANY as usize);
        let plan = plan_of(many(MANY), &large.check);
        assert_eq!(pool.candidates(&plan, now).len(), MANY as usize);
        let ceilings = pool.backends().into_iter().map(|b| (b.id, 1));
        assert!(pool.set_ceilings(&ceilings.collect::<Vec<_>>()));
        pool.clear_ceilings();
    });
    assert!(most <= PART, "{most}");
    pool.lock().assert_is_counted();
    let [gone, present] = [0, MANY].map(|first| many(first).swap_remove(7));
    let (most, ()) = looks::most_during(|| {
        assert_eq!(pool.backends().len(), all);
        assert_eq!(pool.backend_metrics().len(), all);
        assert!(pool.is_available(now) && !pool.is_over());
        let named = |plan: &Planned| pool.backend_named(&plan.text, &addresses_of(plan)[0]);
        assert!(named(&gone).is_some() && named(&present).is_some());
        pool.set_admin_state(&present.text, AdminState::Maint.into(), now);
        pool.set_weight(&present.text, Some(3), now)
            .expect("a weight");
        let found = named(&gone).and_then(|backend| pool.address(&backend));
        assert!(found.is_some());
    });
    assert!(most < FEW, "{most}");
    drop(leases);
}

#[test]
fn a_line_that_begins_or_ends_and_old_averages_look_at_few() {
    let large = Large::new(None);
    let (pool, now) = (&large.pool, large.now);
    pool.lock().waits = waiting::BOTH;
    let search = Search {
        may_wait: true,
        ..Search::default()
    };
    let (most, ()) = looks::most_during(|| {
        let waiting = pool.enter_line(search, Shortage::Full, None, false, now);
        assert!(waiting.is_some() && pool.waiting() == [0, 0]);
    });
    assert!(most < FEW, "{most}");
    let (most, ()) = looks::most_during(|| {
        let mut inner = pool.lock();
        inner.endpoints[7]
            .latency
            .add(Duration::from_secs(1), now, Duration::ZERO);
        inner.next_halving = Some(now);
        inner.halve_if_due(now);
        assert!(inner.endpoints[7].latency.seconds < 1.0);
    });
    assert_eq!(most, 1);
}

/// The lock alone would mostly be taken again by the thread that has just released it.
#[test]
fn what_takes_the_lock_again_lets_others_in() {
    let pool = pool(vec![planned(1)], true);
    let got_in = || {
        let inner = pool.lock();
        let is_in = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let _inner = pool.lock();
                is_in.store(true, Relaxed);
            });
            while !locked::is_awaited() {
                thread::yield_now();
            }
            drop(inner);
            let _inner = pool.lock_again();
            is_in.load(Relaxed)
        })
    };
    let times = (0..20).filter(|_| got_in()).count();
    assert!(times > 10, "{times} of 20");
}

/// `cargo test --release --lib lock_is_held -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
#[expect(clippy::print_stderr, reason = "it shows what it measures")]
fn how_long_the_lock_is_held() {
    let large = Large::new(Some(checked_up()));
    let (pool, now) = (&large.pool, large.now);
    let mut longest = std::collections::BTreeMap::new();
    let mut leases = sessions_on_all(pool, now);
    let key: HashInput = HashInput::default();
    for n in 0..20 {
        let (holds, ()) = looks::holds_during(|| {
            large.replace(many((1 + n % 2) * MANY));
            pool.take_events(now);
            pool.addresses();
            pool.backends();
            pool.snapshot(now);
            pool.is_over();
        });
        for hold in holds {
            let of = longest.entry((hold.by.file(), hold.by.line()));
            let times: &mut Vec<(Duration, usize)> = of.or_default();
            times.push((hold.cpu, hold.looks));
        }
        leases.extend((0..MANY).map(|_| pool.pick(&mut pool.search(&key), now).expect("one")));
    }
    for ((file, line), mut times) in longest {
        times.sort_unstable();
        let (median, last) = (times[times.len() / 2].0, times[times.len() - 1].0);
        let looks = times.iter().map(|(_, looks)| looks).max();
        let file = file.rsplit('/').next().unwrap_or(file);
        let count = times.len();
        eprintln!("{file}:{line}: {count} times, median {median:?}, longest {last:?}, {looks:?}");
    }
}

fn look_at_one(large: &Large) {
    let (pool, now) = (&large.pool, large.now);
    // The last one: a search from the beginning would not find it soon.
    let last = MANY as usize - 1;
    let backend = pool.backends().swap_remove(last);
    let judge = |to, first| verdict_on(pool, &backend, to, first, None, now);
    let (most, well) = looks::most_during(|| judge(DOWN, true));
    assert!(well && most < FEW, "{most}");
    assert_eq!(pool.lock().totals.counts.well, last);
    let (most, well) = looks::most_during(|| judge(Verdict::Up, false));
    assert!(well && most < FEW, "{most}");
    verdict(pool, last, DOWN, false, now);
    assert_eq!(pool.lock().totals.counts.well, last);
    pool.lock().assert_is_counted();
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
    let leases = sessions_on_all(pool, now);
    let read = || (pool.snapshot(now).len(), pool.record().endpoints.len());
    let (most, counts) = looks::most_during(read);
    assert_eq!(counts, (MANY as usize, MANY as usize));
    assert!(most <= 64, "{most}");
    // All of them leave, and have sessions.
    large.replace(many(MANY));
    let (most, counts) = looks::most_during(read);
    assert_eq!(counts, (2 * MANY as usize, MANY as usize));
    assert!(most <= 64, "{most}");
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

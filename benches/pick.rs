//! What a pick costs: every policy, at 3, 50 and 1,000 backends, all of them up.
//!
//! `pool` is what a session pays: making the key, the lock, the pick, counting the session in and
//! out. `policy` is the pick alone. Each pick is for another client.

mod shared;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};
use tembuku::internals::{
    balance::{Balancer, Candidates, Entry, FULL, HashInput, LookupState},
    metrics::Exporter,
    plan::{
        Addr, Backend, BackupWhen, Balance, FlowsMove, HashKey, ProxyOn, SendProxy, SessionAction,
        Target, TimeOf, Upstream, Waits,
    },
    pool::{ConnectTimer, Pool},
};

fn policies() -> Vec<(&'static str, Balance)> {
    let key = HashKey::default;
    vec![
        ("round_robin", Balance::RoundRobin),
        ("least_conn", Balance::LeastConn),
        ("random_two", Balance::RandomTwo),
        ("least_time", Balance::LeastTime(TimeOf::Connect)),
        ("first", Balance::First),
        ("hash", Balance::Hash(key())),
        ("ip_hash", Balance::IpHash),
        ("consistent_hash", Balance::ConsistentHash(key(), None)),
        (
            "consistent_hash_bounded",
            Balance::ConsistentHash(key(), Some(125)),
        ),
        ("maglev", Balance::Maglev(key(), None)),
        ("maglev_bounded", Balance::Maglev(key(), Some(125))),
    ]
}

fn texts(count: usize) -> Vec<String> {
    let text = |i| format!("10.0.{}.{}:6379", i / 250, i % 250 + 1);
    (0..count).map(text).collect()
}

/// Another client each time, spread over all networks.
fn client(n: u32) -> HashInput {
    HashInput {
        remote_addr: Some(IpAddr::V4(Ipv4Addr::from(n.wrapping_mul(0x9e37_79b1)))),
        remote_port: Some(40_000),
        ..HashInput::default()
    }
}

/// All candidates are up, each with some sessions and a time of its own.
struct Up(Vec<u64>, Vec<f64>);

impl Candidates for Up {
    fn share(&self, _: usize) -> u32 {
        FULL
    }
    fn connections(&self, i: usize) -> u64 {
        self.0[i]
    }
    fn time(&self, i: usize) -> f64 {
        self.1[i]
    }
}

fn policy(c: &mut Criterion) {
    let mut group = c.benchmark_group("policy");
    for count in [3, 50, 1000] {
        let texts = texts(count);
        let entries: Vec<_> = texts.iter().map(|text| Entry { text, weight: 1 }).collect();
        let sessions = (0..count as u64).map(|i| i * 7 % 5);
        let times = (1..=count as u32).map(|i| f64::from(100_000 + i * 7_919 % 50_021));
        let up = Up(sessions.collect(), times.collect());
        for (name, balance) in policies() {
            let mut balancer = Balancer::new(&balance, &entries, &[]);
            let (mut n, mut state) = (0, 1u64);
            group.bench_function(BenchmarkId::new(name, count), |b| {
                b.iter(|| {
                    n += 1;
                    let mut lookup = LookupState::new(&balance, &client(n));
                    let random = || {
                        state = state
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1);
                        state
                    };
                    black_box(balancer.pick(&mut lookup, &up, random))
                });
            });
        }
    }
}

fn pool(c: &mut Criterion) {
    let exporter = Exporter::new(1);
    let mut group = c.benchmark_group("pool");
    for count in [3, 50, 1000] {
        for (name, balance) in policies() {
            let address = || Addr::Tcp(([127, 0, 0, 1], 6379).into());
            let backends = texts(count).into_iter().map(|text| Backend {
                origin: tembuku::internals::plan::Origin::Configured,
                text,
                target: Target::Addr(address()),
                weight: 1,
                max_fails: 1,
                fail_timeout: Duration::from_secs(10),
                max_connections: 0,
                slow_start: Duration::ZERO,
                backup: false,
                down: false,
            });
            let plan = Upstream {
                discover: None,
                name: name.to_owned(),
                balance,
                backends: backends.collect(),
                resolve_interval: None,
                resolve_required: true,
                send_proxy: SendProxy::Off,
                fail_on_reset: false,
                backup_when: BackupWhen::Full,
                waits: Waits::default(),
                on_drain: SessionAction::Keep,
                on_removed: SessionAction::Keep,
                send_proxy_on: ProxyOn::First,
                flows_move: FlowsMove::WITHOUT_UDP,
                check: None,
            };
            let upstream = exporter.upstream(name);
            let metrics = |b: &Backend| exporter.backend(&upstream, &b.text, None);
            let addresses = vec![vec![address()]; count];
            let pool = Arc::new(Pool::new(
                &upstream,
                &plan,
                metrics,
                &addresses,
                Instant::now(),
            ));
            // Some sessions that stay, and a connect time for each, so that none is unknown.
            let held: Vec<_> = (0..count as u32 * 2)
                .filter_map(|n| pool.pick(&mut pool.search(&client(n)), Instant::now()).ok())
                .collect();
            let began = Instant::now();
            for (lease, ms) in held.iter().zip(1..) {
                let time = Duration::from_nanos(100_000 + ms * 7_919 % 50_021);
                let clock = ConnectTimer::start(&pool, lease.backend(), began);
                clock.and_then(|clock| clock.connected(began + time));
            }
            let mut n = 0;
            let now = Instant::now();
            group.bench_function(BenchmarkId::new(name, count), |b| {
                b.iter(|| {
                    n += 1;
                    black_box(pool.pick(&mut pool.search(&client(n)), now))
                });
            });
            drop(held);
        }
    }
}

criterion_group! {
    name = benches;
    config = shared::criterion(Duration::from_millis(300), Duration::from_secs(1));
    targets = policy, pool
}
criterion_main!(benches);

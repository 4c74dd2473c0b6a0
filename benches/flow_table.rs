//! What a UDP flow costs in the two structures that hold all flows of a worker: the table that
//! finds one by the addresses of a datagram, and the wheel that yields those that have been idle
//! for too long.
//!
//! Keys are stored side by side here. In the program each is part of its flow, a few hundred bytes
//! from the next, so with many flows a look-up misses the cache once more than shown.

mod shared;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};
use tembuku::internals::{
    datagram::Local,
    flow_table::{Key, Table},
    timer_wheel::TimerWheel,
};

const SIZES: [u32; 2] = [1_000, 100_000];
/// So many come, and go, between two looks at the clock: few beside those that are there.
const BATCH: u32 = 100;
/// Milliseconds: the default of `idle_timeout`.
const IDLE: u64 = 60_000;

/// Of another client each: from here to 2^32 none comes twice, and neighbours have nothing in
/// common.
fn key(n: u32) -> Key {
    let address = Ipv4Addr::from(n.wrapping_mul(0x9e37_79b1));
    Key {
        peer: SocketAddr::new(address.into(), 1024 + (n % 60_000) as u16),
        port: 0,
        local: Some(Local {
            ip: IpAddr::from([203, 0, 113, 1]),
            interface: 0,
        }),
        more: None,
    }
}

/// Another number each time, and each one once in `size` calls.
fn stride(n: &mut u32, size: u32) -> u32 {
    *n = (*n + 617) % size;
    *n
}

fn find(c: &mut Criterion) {
    let mut group = c.benchmark_group("table");
    for size in SIZES {
        // The second half of them is never in it.
        let keys: Vec<Key> = (0..2 * size).map(key).collect();
        let mut table = Table::default();
        for n in 0..size {
            table.insert(&keys[n as usize], n, |n| &keys[n as usize]);
        }
        for (name, first, found) in [("find", 0, true), ("find_none", size, false)] {
            let mut n = 0;
            group.bench_function(BenchmarkId::new(name, size), |b| {
                b.iter(|| {
                    let key = &keys[(first + stride(&mut n, size)) as usize];
                    let number = table.find(black_box(key), |n| &keys[n as usize]);
                    assert_eq!(number.is_some(), found);
                });
            });
        }
        // With `size` flows beside them, a batch comes and a batch goes; one of the two is timed.
        for name in ["insert", "remove"] {
            group.bench_function(BenchmarkId::new(name, size), |b| {
                b.iter_custom(|times| {
                    let (mut left, mut spent, mut next) = (times, Duration::ZERO, size);
                    while left > 0 {
                        let batch = left.min(u64::from(BATCH)) as u32;
                        let new = next..next + batch;
                        let start = Instant::now();
                        for n in new.clone() {
                            table.insert(&keys[n as usize], n, |n| &keys[n as usize]);
                        }
                        let between = Instant::now();
                        for n in new {
                            assert!(table.remove(&keys[n as usize], n));
                        }
                        spent += match name {
                            "insert" => between - start,
                            _ => between.elapsed(),
                        };
                        next = if next + 2 * BATCH > 2 * size {
                            size
                        } else {
                            next + BATCH
                        };
                        left -= u64::from(batch);
                    }
                    spent
                });
            });
        }
    }
}

/// `size` flows whose last datagrams are spread over all of the idle time, in no order of their
/// numbers.
fn full(size: u32) -> TimerWheel {
    let mut wheel = TimerWheel::new(IDLE, 0);
    for n in 0..size {
        let last = u64::from(n) * IDLE / u64::from(size);
        wheel.insert(
            (u64::from(n) * 617 % u64::from(size)) as u32,
            last + IDLE,
            last,
        );
    }
    wheel
}

fn idle(c: &mut Criterion) {
    let mut group = c.benchmark_group("wheel");
    for size in SIZES {
        let mut wheel = full(size);
        let now = IDLE - 1;
        for name in ["insert", "remove"] {
            group.bench_function(BenchmarkId::new(name, size), |b| {
                b.iter_custom(|times| {
                    let (mut left, mut spent) = (times, Duration::ZERO);
                    while left > 0 {
                        let batch = left.min(u64::from(BATCH)) as u32;
                        let new = size..size + batch;
                        let start = Instant::now();
                        for n in new.clone() {
                            wheel.insert(n, now + IDLE, now);
                        }
                        let between = Instant::now();
                        for n in new {
                            wheel.remove(black_box(n));
                        }
                        spent += match name {
                            "insert" => between - start,
                            _ => between.elapsed(),
                        };
                        left -= u64::from(batch);
                    }
                    spent
                });
            });
        }
    }
    group.finish();
    // Per flow: time goes on from tick to tick until none is left.
    let mut group = c.benchmark_group("wheel_all");
    for size in SIZES {
        group.throughput(Throughput::Elements(u64::from(size)));
        group.bench_function(BenchmarkId::new("expire", size), |b| {
            let mut due = Vec::with_capacity(size as usize);
            b.iter_custom(|times| {
                let mut spent = Duration::ZERO;
                for _ in 0..times {
                    let mut wheel = full(size);
                    due.clear();
                    let start = Instant::now();
                    while let Some(next) = wheel.next() {
                        wheel.take_due(next, &mut due);
                    }
                    spent += start.elapsed();
                    assert_eq!(due.len(), size as usize);
                }
                spent
            });
        });
    }
}

criterion_group! {
    name = benches;
    config = shared::criterion(Duration::from_millis(300), Duration::from_secs(1));
    targets = find, idle
}
criterion_main!(benches);

//! How long a configuration takes from text to a checked plan: the reference, and one as large as a
//! program writes it.
//!
//! `check --dump` writes a plan back, so that is here, too.

mod shared;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::{fmt::Write as _, hint::black_box, time::Duration};
use tembuku::internals::{
    config::{dump, parse},
    plan::Plan,
};

const REFERENCE: &str = include_str!("../conf/reference.toml");
const LISTENERS: usize = 100;
const BACKENDS: usize = 10;

/// 100 listeners, an upstream for each, ten backends in each: 1,000.
fn generated() -> String {
    let mut text = String::from("[defaults]\nidle_timeout = \"5m\"\nretries = 2\n\n");
    for n in 0..LISTENERS {
        let policy = ["round_robin", "least_conn", "consistent_hash", "maglev"][n % 4];
        write!(
            text,
            "[listeners.service-{n}]\nbind = [\"10.0.0.1:{0}\", \"[2001:db8::1]:{0}\"]\n\
             upstream = \"pool-{n}\"\n\
             max_connections = 5000\n\
             access = [\"deny 10.9.0.0/16\", \"allow 10.0.0.0/8\", \"deny all\"]\n\n\
             [upstreams.pool-{n}]\nbalance = \"{policy}\"\non_down = {{ close_after = \"30s\" }}\n\
             backends = [\n",
            5000 + n,
        )
        .expect("written");
        for backend in 0..BACKENDS {
            let line = match backend {
                0..5 => format!("\"10.1.{n}.{}:6379\"", backend + 1),
                5..9 => format!(
                    "{{ address = \"node-{backend}.pool-{n}.example.org:6379\", weight = {}, \
                     max_fails = 3, fail_timeout = \"15s\" }}",
                    backend - 3
                ),
                _ if policy.contains("hash") || policy == "maglev" => {
                    format!("{{ address = \"10.2.{n}.1:6379\", down = true }}")
                }
                _ => format!("{{ address = \"10.2.{n}.1:6379\", backup = true }}"),
            };
            writeln!(text, "  {line},").expect("written");
        }
        write!(
            text,
            "]\n\n[upstreams.pool-{n}.check]\nkind = \"redis\"\nrole = \"any\"\n\
             interval = \"5s\"\n\n"
        )
        .expect("written");
    }
    text
}

fn plan(text: &str) -> Plan {
    match parse(text, "bench.toml") {
        Ok(plan) => plan,
        Err(problems) => panic!("{problems}"),
    }
}

fn load(c: &mut Criterion) {
    let large = generated();
    let full = plan(&large);
    let backends: usize = full.upstreams.iter().map(|u| u.backends.len()).sum();
    assert_eq!(
        (full.listeners.len(), full.upstreams.len(), backends),
        (LISTENERS, LISTENERS, LISTENERS * BACKENDS)
    );
    let mut group = c.benchmark_group("load");
    for (name, text) in [("reference", REFERENCE), ("1000_backends", &large)] {
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(name, |b| b.iter(|| plan(black_box(text))));
    }
    group.finish();
    let mut group = c.benchmark_group("dump");
    for (name, plan) in [("reference", plan(REFERENCE)), ("1000_backends", full)] {
        group.bench_function(name, |b| b.iter(|| dump(black_box(&plan))));
    }
}

criterion_group! {
    name = benches;
    config = shared::criterion(Duration::from_millis(500), Duration::from_secs(3));
    targets = load
}
criterion_main!(benches);

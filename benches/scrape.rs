//! What a scrape costs the control thread: the answer to `GET /metrics` with 3, 100 and 1,000
//! backends, from the counters to the text. Without HTTP, which `bench-scripts/growth` has besides.
//!
//! The server is a whole one, with a worker, a listener and a connect time for each backend, so
//! that every histogram is shown; no client connects to it.

mod shared;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tembuku::internals::{
    admin, config,
    control::{Prepared, Server},
    pool::Pool,
};
use tokio_util::sync::CancellationToken;

fn configuration(backends: usize) -> String {
    let address = |n: usize| format!("\"10.0.{}.{}:6379\"", n / 250, n % 250 + 1);
    let list: Vec<String> = (0..backends).map(address).collect();
    format!(
        "[process]\nworkers = 1\n[listeners.l]\nbind = \"127.0.0.1:0\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [{}]\n",
        list.join(", ")
    )
}

fn first_pool(server: &Server) -> Arc<Pool> {
    let view = server.state.view();
    Arc::clone(view.pools().next().expect("an upstream"))
}

fn scrape(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("an event loop");
    let mut group = c.benchmark_group("scrape");
    for backends in [3, 100, 1_000] {
        let plan = match config::parse(&configuration(backends), "bench.toml") {
            Ok(plan) => plan,
            Err(problems) => panic!("{problems}"),
        };
        let server =
            match runtime.block_on(async { Server::start(Prepared::new(plan).await?).await }) {
                Ok(server) => server,
                Err(errors) => panic!("{errors}"),
            };
        for backend in first_pool(&server).snapshot(Instant::now()) {
            backend
                .metrics
                .connect_duration
                .record(Duration::from_millis(1));
        }
        let text = String::from_utf8(admin::scrape(&server.state).concat()).expect("text");
        let series = text.matches("\ntembuku_backend_connect_duration_seconds_count{");
        assert_eq!(series.count(), backends);
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(backends), |b| {
            b.iter(|| admin::scrape(&server.state));
        });
        runtime.block_on(server.stop(CancellationToken::new()));
    }
}

criterion_group! {
    name = benches;
    config = shared::criterion(Duration::from_millis(500), Duration::from_secs(3));
    targets = scrape
}
criterion_main!(benches);

//! Sources against servers that misbehave.

mod consul;
mod etcd;
mod failures;
mod fake;
mod http;
mod kubernetes;

use super::{Snapshot, Source, SourceError};
use crate::plan::{Discover, DiscoverSource};
use std::time::Duration;

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        tokio::time::timeout(PATIENCE, work)
            .await
            .expect("an end in time")
    })
}

/// The next answer, or the text of the error.
async fn next(source: &mut impl Source) -> Result<Snapshot, String> {
    source
        .next()
        .await
        .map_err(|SourceError { message }| message)
}

/// The addresses of the next answer, with a minus before those that drain.
async fn addresses(source: &mut impl Source) -> String {
    let snapshot = next(source).await.unwrap_or_else(|e| panic!("{e}"));
    let mut shown: Vec<String> = snapshot
        .backends
        .iter()
        .map(|b| format!("{}{}", if b.draining { "-" } else { "" }, b.address))
        .collect();
    shown.sort();
    shown.join(" ")
}

/// Answers until the addresses are these.
async fn wait_for(source: &mut impl Source, expected: &str) {
    while addresses(source).await != expected {}
}

/// With these times, of any kind.
pub(super) fn settings(interval: Duration, timeout: Duration) -> Discover {
    Discover {
        source: DiscoverSource::Srv {
            name: String::new(),
            nameservers: Vec::new(),
        },
        interval,
        timeout,
        empty_after: None,
        max_removed: 100,
        confirm: Duration::ZERO,
    }
}

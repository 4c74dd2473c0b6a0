//! Makes the counters of listeners, upstreams and backends, with their labels.

use super::{
    BackendMetrics, CheckMetrics, CheckedBy, Counter, Histogram, ListenerMetrics, ProcessMetrics,
    Sharded, UpstreamMetrics, WaitMetrics,
    histogram::{CHECKS, LATENCY, LIFETIME},
    text::labels,
};
use crate::plan::{CheckProtocol, reason::Shortage};
use std::sync::{Arc, atomic::AtomicU64};

/// What is counted is kept with the listener, upstream or backend that counts it, and its series
/// end with it.
#[derive(Debug)]
pub struct Exporter {
    shards: usize,
}

impl Exporter {
    /// `shards`: how many threads count; see [`super::set_shard`].
    pub fn new(shards: usize) -> Self {
        Self { shards }
    }

    pub fn listener(&self, name: &str) -> Arc<ListenerMetrics> {
        Arc::new(ListenerMetrics {
            labels: labels(&[("listener", name)]),
            counts: Sharded::new(self.shards),
            active: AtomicU64::default(),
            sent_shown: super::Shown::default(),
            session_duration: Histogram::new(LIFETIME),
            first_byte_duration: Histogram::new(LATENCY),
        })
    }

    pub fn upstream(&self, name: &str) -> Arc<UpstreamMetrics> {
        Arc::new(UpstreamMetrics {
            name: name.into(),
            labels: labels(&[("upstream", name)]),
            doubt_duration: Histogram::new(LATENCY),
            leave_duration: Histogram::new(LIFETIME),
            resume_duration: Histogram::new(LATENCY),
            unserved: Counter::default(),
            waits: [Shortage::Full, Shortage::NoneFit].map(|lacks| WaitMetrics {
                labels: labels(&[("upstream", name), ("wait", lacks.word())]),
                results: Default::default(),
                duration: Histogram::new(LATENCY),
            }),
        })
    }

    /// `checked`: whether there are checks to count.
    pub fn backend(
        &self,
        upstream: &UpstreamMetrics,
        text: &str,
        checked_by: Option<CheckProtocol>,
    ) -> BackendMetrics {
        let checks = CheckMetrics {
            results: Default::default(),
            duration: Histogram::new(CHECKS),
            has_lag: Default::default(),
        };
        BackendMetrics {
            labels: labels(&[("upstream", &upstream.name), ("backend", text)]),
            upstream: Arc::clone(&upstream.name),
            text: text.into(),
            counts: Sharded::new(self.shards),
            active: AtomicU64::default(),
            sent_shown: super::Shown::default(),
            connect_duration: Histogram::new(LATENCY),
            transitions: Default::default(),
            checks,
            checked_by: CheckedBy::new(checked_by),
        }
    }

    pub fn process(&self) -> ProcessMetrics {
        ProcessMetrics {
            relayed: Sharded::new(self.shards),
            copied_shown: super::Shown::default(),
            accept_errors: Counter::default(),
        }
    }
}

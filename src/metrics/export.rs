//! From our counters to what Prometheus scrapes.

use super::{
    BackendMetrics, CheckMetrics, ListenerMetrics, ProcessMetrics, Sharded,
    names::{COUNTERS, GAUGES, HISTOGRAMS},
};
use crate::{
    plan::Role,
    reason::{
        BackendState, CheckResult, CloseReason, ConnectError, DropReason, RejectReason,
        SpliceFallback,
    },
};
use metrics::{Key, KeyName, Label, Level, Metadata, Recorder, SharedString};
use metrics_exporter_prometheus::{
    BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

/// Seconds. Connects and first bytes: from a loopback's 50 us to a retransmitted SYN.
const LATENCY: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0,
];
/// Seconds. Sessions: from one short request to a pooled connection of a day.
const LIFETIME: &[f64] = &[
    0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 1_800.0, 7_200.0, 43_200.0,
    86_400.0,
];

const METADATA: Metadata<'static> = Metadata::new("tembuku", Level::INFO, None);

/// One registry a server, not one a process: two servers in one process do not mix.
pub struct Exporter {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    process: metrics_process::Collector,
    shards: usize,
    /// Values are set one by one; two scrapes at once must not see each other's half-done work.
    scrape: Mutex<()>,
    applied_at: AtomicU64,
}

impl Exporter {
    /// `shards`: how many threads count; see [`super::set_shard`].
    pub fn new(shards: usize) -> Result<Self, BuildError> {
        let named = |n: &str| Matcher::Full(full(n));
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(named("session_duration_seconds"), LIFETIME)?
            .set_buckets_for_metric(named("upstream_leave_duration_seconds"), LIFETIME)?
            .set_buckets(LATENCY)?
            .build_recorder();
        for (name, help) in COUNTERS {
            recorder.describe_counter(key_name(name), None, SharedString::const_str(help));
        }
        for (name, help) in GAUGES {
            recorder.describe_gauge(key_name(name), None, SharedString::const_str(help));
        }
        for (name, help) in HISTOGRAMS {
            recorder.describe_histogram(key_name(name), None, SharedString::const_str(help));
        }
        let process = metrics_process::Collector::new("tembuku_");
        metrics::with_local_recorder(&recorder, || process.describe());
        let exporter = Self {
            handle: recorder.handle(),
            recorder,
            process,
            shards,
            scrape: Mutex::default(),
            applied_at: AtomicU64::default(),
        };
        exporter.gauge(
            "build_info",
            &[("version", env!("CARGO_PKG_VERSION").into())],
            1.0,
        );
        Ok(exporter)
    }

    pub fn listener(&self, name: &Arc<str>) -> ListenerMetrics {
        let labels = [("listener", Arc::clone(name))];
        ListenerMetrics {
            name: Arc::clone(name),
            counts: Sharded::new(self.shards),
            active: AtomicU64::default(),
            session_duration: self.histogram("session_duration_seconds", &labels),
            first_byte_duration: self.histogram("first_byte_duration_seconds", &labels),
        }
    }

    /// `checked`: whether there are checks to count.
    pub fn backend(&self, upstream: &Arc<str>, text: &str, checked: bool) -> BackendMetrics {
        let text: Arc<str> = text.into();
        let labels = [
            ("upstream", Arc::clone(upstream)),
            ("backend", Arc::clone(&text)),
        ];
        let checks = checked.then(|| CheckMetrics {
            results: Default::default(),
            duration: self.histogram("check_duration_seconds", &labels),
            lag_told: Default::default(),
        });
        let all = &labels[..1];
        BackendMetrics {
            doubt_duration: self.histogram("upstream_doubt_duration_seconds", all),
            leave_duration: self.histogram("upstream_leave_duration_seconds", all),
            resume_duration: self.histogram("upstream_resume_duration_seconds", all),
            connect_duration: self.histogram("backend_connect_duration_seconds", &labels),
            upstream: Arc::clone(upstream),
            text,
            counts: Sharded::new(self.shards),
            active: AtomicU64::default(),
            transitions: Default::default(),
            checks,
        }
    }

    pub fn process(&self) -> ProcessMetrics {
        ProcessMetrics {
            relayed: Sharded::new(self.shards),
            accept_errors: super::Counter::default(),
        }
    }

    /// A configuration has been applied.
    pub fn config_applied(&self, at: SystemTime) {
        let seconds = at.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        self.applied_at.store(seconds, Relaxed);
    }

    /// Histogram samples pile up between scrapes; this folds them into their buckets.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// The text of a scrape, after `publish` has handed over the present values.
    pub fn scrape(&self, publish: impl FnOnce(&Self)) -> String {
        let _one_at_a_time = self.scrape.lock().unwrap_or_else(PoisonError::into_inner);
        metrics::with_local_recorder(&self.recorder, || self.process.collect());
        self.gauge("config_last_reload_successful", &[], 1.0);
        #[expect(clippy::cast_precision_loss, reason = "seconds fit")]
        self.gauge(
            "config_last_reload_success_timestamp_seconds",
            &[],
            self.applied_at.load(Relaxed) as f64,
        );
        publish(self);
        self.handle.render()
    }

    /// `flows`: it is datagrams that come, and no connections.
    pub fn publish_listener(&self, m: &ListenerMetrics, flows: bool) {
        let label = ("listener", Arc::clone(&m.name));
        let one = [label.clone()];
        let c = &m.counts;
        self.counter(
            "listener_connections_total",
            &one,
            c.sum(|c| &c.connections),
        );
        self.counter(
            "listener_received_bytes_total",
            &one,
            c.sum(|c| &c.received),
        );
        self.counter("listener_sent_bytes_total", &one, c.sum(|c| &c.sent));
        self.count("listener_active_connections", &one, m.active());
        if flows {
            self.counter(
                "listener_received_datagrams_total",
                &one,
                c.sum(|c| &c.received_datagrams),
            );
            self.counter(
                "listener_sent_datagrams_total",
                &one,
                c.sum(|c| &c.sent_datagrams),
            );
            for &reason in DropReason::ALL {
                let labels = [label.clone(), ("reason", reason.word().into())];
                self.counter(
                    "listener_dropped_datagrams_total",
                    &labels,
                    c.sum(|c| &c.dropped_datagrams[reason as usize]),
                );
            }
        }
        // What has happened is shown, whatever we think can happen.
        for &reason in RejectReason::ALL {
            let n = c.sum(|c| &c.rejected[reason as usize]);
            if reason.can_befall(flows) || n > 0 {
                let labels = [label.clone(), ("reason", reason.word().into())];
                self.counter("listener_rejected_total", &labels, n);
            }
        }
        for &reason in CloseReason::ALL {
            let n = c.sum(|c| &c.closed[reason as usize]);
            if reason.can_befall(flows) || n > 0 {
                let labels = [label.clone(), ("reason", reason.word().into())];
                self.counter("sessions_closed_total", &labels, n);
            }
        }
    }

    /// `roles`: those that its addresses have, where checks ask for them.
    pub fn publish_backend(
        &self,
        m: &BackendMetrics,
        state: BackendState,
        weight: u32,
        roles: Option<&[Role]>,
    ) {
        let both = [
            ("upstream", Arc::clone(&m.upstream)),
            ("backend", Arc::clone(&m.text)),
        ];
        let with = |name: &'static str, value: &str| {
            [both[0].clone(), both[1].clone(), (name, value.into())]
        };
        let c = &m.counts;
        self.counter(
            "backend_connections_total",
            &both,
            c.sum(|c| &c.connections),
        );
        self.counter("backend_retries_total", &both, c.sum(|c| &c.retries));
        self.counter(
            "backend_received_bytes_total",
            &both,
            c.sum(|c| &c.received),
        );
        self.counter("backend_sent_bytes_total", &both, c.sum(|c| &c.sent));
        self.count("backend_active_connections", &both, m.active());
        self.gauge("backend_weight", &both, f64::from(weight));
        for &reason in ConnectError::ALL {
            let errors = c.sum(|c| &c.connect_errors[reason as usize]);
            self.counter(
                "backend_connect_errors_total",
                &with("reason", reason.word()),
                errors,
            );
        }
        for &each in BackendState::ALL {
            let is = f64::from(u8::from(each == state));
            self.gauge("backend_state", &with("state", each.word()), is);
            self.counter(
                "backend_transitions_total",
                &with("to", each.word()),
                m.transitions[each as usize].get(),
            );
        }
        for each in roles.map_or(&[][..], |_| &Role::ALL) {
            let is = roles.is_some_and(|roles| roles.contains(each));
            self.gauge(
                "backend_role",
                &with("role", each.word()),
                f64::from(u8::from(is)),
            );
        }
        if let Some(checks) = &m.checks {
            for &result in CheckResult::ALL {
                let n = checks.results[result as usize].get();
                self.counter("check_results_total", &with("result", result.word()), n);
            }
        }
    }

    /// How far behind the last answer said that it is. A series that there is once stays, and is no number while nobody
    /// tells: neither the last value nor zero would be true.
    pub fn publish_lag(&self, m: &BackendMetrics, lag: [Option<f64>; 2]) {
        let Some(checks) = &m.checks else {
            return;
        };
        let names = [
            "backend_replication_lag_seconds",
            "backend_replication_lag_bytes",
        ];
        for ((name, lag), told) in names.iter().zip(lag).zip(&checks.lag_told) {
            if told.fetch_or(lag.is_some(), Relaxed) || lag.is_some() {
                let labels = [
                    ("upstream", Arc::clone(&m.upstream)),
                    ("backend", Arc::clone(&m.text)),
                ];
                self.gauge(name, &labels, lag.unwrap_or(f64::NAN));
            }
        }
    }

    /// `primaries` and `serves_anyway`: where that is looked after.
    pub fn publish_upstream(
        &self,
        name: &Arc<str>,
        available: u64,
        primaries: Option<u64>,
        serves_anyway: Option<bool>,
    ) {
        let label = [("upstream", Arc::clone(name))];
        self.count("upstream_available_backends", &label, available);
        if let Some(primaries) = primaries {
            self.count("upstream_primaries", &label, primaries);
        }
        if let Some(anyway) = serves_anyway {
            self.count("upstream_serves_anyway", &label, u64::from(anyway));
        }
    }

    pub fn publish_process(&self, m: &ProcessMetrics, access_log_dropped: u64) {
        let mode = |word: &str| [("mode", word.into())];
        self.counter(
            "relayed_bytes_total",
            &mode("splice"),
            m.relayed.sum(|r| &r.splice),
        );
        self.counter(
            "relayed_bytes_total",
            &mode("copy"),
            m.relayed.sum(|r| &r.copy),
        );
        for &reason in SpliceFallback::ALL {
            let n = m.relayed.sum(|r| &r.fallbacks[reason as usize]);
            self.counter(
                "splice_fallbacks_total",
                &[("reason", reason.word().into())],
                n,
            );
        }
        self.counter("access_log_dropped_total", &[], access_log_dropped);
        self.counter("accept_errors_total", &[], m.accept_errors.get());
    }

    fn counter(&self, name: &str, labels: &[(&'static str, Arc<str>)], value: u64) {
        self.recorder
            .register_counter(&key(name, labels), &METADATA)
            .absolute(value);
    }

    #[expect(clippy::cast_precision_loss, reason = "nobody holds 2^53 sessions")]
    fn count(&self, name: &str, labels: &[(&'static str, Arc<str>)], value: u64) {
        self.gauge(name, labels, value as f64);
    }

    fn gauge(&self, name: &str, labels: &[(&'static str, Arc<str>)], value: f64) {
        self.recorder
            .register_gauge(&key(name, labels), &METADATA)
            .set(value);
    }

    fn histogram(&self, name: &str, labels: &[(&'static str, Arc<str>)]) -> metrics::Histogram {
        self.recorder
            .register_histogram(&key(name, labels), &METADATA)
    }
}

fn full(name: &str) -> String {
    format!("tembuku_{name}")
}

fn key_name(name: &str) -> KeyName {
    KeyName::from(full(name))
}

fn key(name: &str, labels: &[(&'static str, Arc<str>)]) -> Key {
    let labels: Vec<Label> = labels
        .iter()
        .map(|(k, v)| {
            Label::new(
                SharedString::const_str(k),
                SharedString::from_shared(Arc::clone(v)),
            )
        })
        .collect();
    Key::from_parts(full(name), labels)
}

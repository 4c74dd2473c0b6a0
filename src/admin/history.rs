//! The last ten minutes of each listener and backend: sessions, and rates of connects, bytes and
//! errors.
//!
//! The thread of the admin documents takes a sample every five seconds from the counters that
//! metrics show, so that the threads which count have nothing more to do. Listeners and backends
//! are known by their names: what another plan keeps keeps its samples, and what is gone, with its
//! last session, loses them.

use crate::{
    control::State,
    plan::reason::{CloseReason, ConnectError, DropReason, RejectReason},
    session::service::Service,
    telemetry::metrics::BackendMetrics,
};
use std::{
    collections::{BTreeMap, VecDeque, btree_map::Entry},
    fmt::Write as _,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Between two samples.
pub(super) const INTERVAL: Duration = Duration::from_secs(5);
/// Ten minutes.
const MOST_SAMPLES: usize = 120;
/// Listeners and backends with samples: each takes up to 2.5 KiB, so these take 20 MiB. Others
/// have none.
const MOST_SERIES: usize = 8_192;

/// What is counted from the start of a listener or backend on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Totals {
    connects: u64,
    received: u64,
    sent: u64,
    errors: u64,
}

/// A listener or backend at one moment.
#[derive(Debug, Clone, Copy, Default)]
struct Reading {
    sessions: u64,
    totals: Totals,
}

/// Sessions at the end of an interval, and rates over it, in 1/s.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Sample {
    sessions: u32,
    connects: f32,
    received: f32,
    sent: f32,
    errors: f32,
}

type Rate = fn(&Sample) -> f32;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Listener(String),
    Backend { upstream: Arc<str>, text: Arc<str> },
}

#[derive(Debug, Default)]
struct Series {
    /// Of the sample before.
    totals: Totals,
    /// The last one is that of the last sample of all.
    samples: VecDeque<Sample>,
    /// The number of the sample in which it was seen last.
    seen: u64,
}

#[derive(Debug, Default)]
pub(super) struct History {
    /// How many samples have been taken, without the first reading.
    taken: u64,
    /// When the last reading was.
    last: Option<Instant>,
    /// When the samples were taken, as those of a series.
    times: VecDeque<SystemTime>,
    series: BTreeMap<Key, Series>,
    /// Listeners and backends without samples, because there are too many.
    omitted: usize,
}

impl History {
    /// Takes a sample of what the plan in effect has.
    pub(super) fn take_sample(&mut self, state: &State, now: Instant, time: SystemTime) {
        let view = state.view();
        let services = view.services().chain(view.removed_services());
        let listeners =
            services.map(|service| (Key::Listener(service.plan.name.clone()), listener(service)));
        let backends = view.pools().flat_map(|pool| pool.backend_metrics());
        let backends = backends.map(|metrics| {
            let key = Key::Backend {
                upstream: Arc::clone(&metrics.upstream),
                text: Arc::clone(&metrics.text),
            };
            (key, backend(&metrics))
        });
        self.record(listeners.chain(backends), now, time);
    }

    fn record(
        &mut self,
        readings: impl Iterator<Item = (Key, Reading)>,
        now: Instant,
        time: SystemTime,
    ) {
        let passed = self
            .last
            .map(|last| now.saturating_duration_since(last).as_secs_f64());
        self.last = Some(now);
        if passed.is_some() {
            self.taken += 1;
            push(&mut self.times, time);
        }
        self.omitted = 0;
        for (key, reading) in readings {
            let count = self.series.len();
            let series = match self.series.entry(key) {
                Entry::Occupied(series) => {
                    let series = series.into_mut();
                    if let Some(passed) = passed.filter(|passed| *passed > 0.0) {
                        let sample = Sample::between(&series.totals, &reading, passed);
                        push(&mut series.samples, sample);
                    }
                    series
                }
                Entry::Vacant(_) if count >= MOST_SERIES => {
                    self.omitted += 1;
                    continue;
                }
                // The next reading shows how much it counts in an interval.
                Entry::Vacant(vacant) => vacant.insert(Series::default()),
            };
            series.totals = reading.totals;
            series.seen = self.taken;
        }
        let taken = self.taken;
        self.series.retain(|_, series| series.seen == taken);
    }

    /// As JSON: the samples that were taken after the one with the number `after`.
    /// `started`: of the process; the numbers are its own.
    pub(super) fn write(&self, started: SystemTime, after: u64) -> String {
        // A number that is not reached yet is of another process.
        let count = match self.taken.checked_sub(after) {
            Some(count) => usize::try_from(count).unwrap_or(usize::MAX),
            None => usize::MAX,
        };
        let mut out = String::new();
        let _ = write!(
            out,
            "{{\"started\":\"{}\",\"interval_seconds\":{},\"number\":{},\"omitted\":{},\"times\":",
            humantime::format_rfc3339_millis(started),
            INTERVAL.as_secs(),
            self.taken,
            self.omitted,
        );
        list(&mut out, &self.times, count, |out, time| {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            let _ = write!(out, "{}", since.as_secs());
        });
        for (field, is_listed) in [
            ("listeners", Key::is_listener as fn(&Key) -> bool),
            ("backends", |key| !key.is_listener()),
        ] {
            let _ = write!(out, ",\n\"{field}\":[");
            let listed = self.series.iter().filter(|(key, _)| is_listed(key));
            for (n, (key, series)) in listed.enumerate() {
                out.push_str(if n == 0 { "\n" } else { ",\n" });
                series.write(key, count, &mut out);
            }
            out.push(']');
        }
        out.push_str("}\n");
        out
    }
}

impl Key {
    fn is_listener(&self) -> bool {
        matches!(self, Self::Listener(_))
    }
}

impl Sample {
    /// `passed`: seconds between the readings. A counter that starts again, as that of a backend
    /// that was removed and is back, has a rate of 0 once.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "three digits are shown"
    )]
    fn between(before: &Totals, reading: &Reading, passed: f64) -> Self {
        let rate = |before: u64, after: u64| (after.saturating_sub(before) as f64 / passed) as f32;
        let Reading { sessions, totals } = reading;
        Self {
            sessions: u32::try_from(*sessions).unwrap_or(u32::MAX),
            connects: rate(before.connects, totals.connects),
            received: rate(before.received, totals.received),
            sent: rate(before.sent, totals.sent),
            errors: rate(before.errors, totals.errors),
        }
    }
}

impl Series {
    fn write(&self, key: &Key, count: usize, out: &mut String) {
        let text = |text: &str| serde_json::Value::from(text).to_string();
        let _ = match key {
            Key::Listener(name) => write!(out, "{{\"name\":{}", text(name)),
            Key::Backend {
                upstream,
                text: address,
            } => write!(
                out,
                "{{\"upstream\":{},\"backend\":{}",
                text(upstream),
                text(address)
            ),
        };
        out.push_str(",\"sessions\":");
        list(out, &self.samples, count, |out, sample| {
            let _ = write!(out, "{}", sample.sessions);
        });
        let rates: [(&str, Rate); 4] = [
            ("connects", |sample| sample.connects),
            ("received", |sample| sample.received),
            ("sent", |sample| sample.sent),
            ("errors", |sample| sample.errors),
        ];
        for (field, rate) in rates {
            let _ = write!(out, ",\"{field}\":");
            list(out, &self.samples, count, |out, sample| {
                write_rate(out, rate(sample));
            });
        }
        out.push('}');
    }
}

/// Three digits, and none that say nothing.
fn write_rate(out: &mut String, rate: f32) {
    let start = out.len();
    let _ = match rate {
        rate if rate >= 99.95 => write!(out, "{rate:.0}"),
        rate if rate >= 9.995 => write!(out, "{rate:.1}"),
        rate => write!(out, "{rate:.2}"),
    };
    if out[start..].contains('.') {
        let kept = out.trim_end_matches('0').trim_end_matches('.').len();
        out.truncate(kept);
    }
}

/// The last `count` of them.
fn list<T>(out: &mut String, all: &VecDeque<T>, count: usize, write_one: impl Fn(&mut String, &T)) {
    out.push('[');
    for (n, one) in all.iter().skip(all.len().saturating_sub(count)).enumerate() {
        if n > 0 {
            out.push(',');
        }
        write_one(out, one);
    }
    out.push(']');
}

fn push<T>(samples: &mut VecDeque<T>, sample: T) {
    if samples.len() == MOST_SAMPLES {
        samples.pop_front();
    }
    samples.push_back(sample);
}

fn listener(service: &Service) -> Reading {
    let counts = &service.metrics.counts;
    Reading {
        sessions: service.metrics.active(),
        totals: Totals {
            connects: counts.sum(|c| &c.connections),
            received: counts.sum(|c| &c.received),
            sent: counts.sum(|c| &c.sent),
            errors: errors(service),
        },
    }
}

/// Clients that were refused or got no backend; of a UDP listener the datagrams that were not
/// delivered.
pub(super) fn errors(service: &Service) -> u64 {
    let counts = &service.metrics.counts;
    if service.is_udp() {
        let dropped = DropReason::ALL.iter();
        return dropped
            .map(|&reason| counts.sum(|c| &c.dropped_datagrams[reason as usize]))
            .sum();
    }
    let rejected = RejectReason::ALL.iter();
    let rejected = rejected.map(|&reason| counts.sum(|c| &c.rejected[reason as usize]));
    let unserved = CloseReason::ALL.iter().filter(|r| r.leaves_unserved());
    let unserved = unserved.map(|&reason| counts.sum(|c| &c.closed[reason as usize]));
    rejected.chain(unserved).sum()
}

fn backend(metrics: &BackendMetrics) -> Reading {
    let counts = &metrics.counts;
    let errors = ConnectError::ALL.iter();
    Reading {
        sessions: metrics.active(),
        totals: Totals {
            connects: counts.sum(|c| &c.connections),
            received: counts.sum(|c| &c.received),
            sent: counts.sum(|c| &c.sent),
            errors: errors
                .map(|&error| counts.sum(|c| &c.connect_errors[error as usize]))
                .sum(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn key(name: &str) -> Key {
        Key::Listener(name.to_owned())
    }

    fn reading(sessions: u64, connects: u64, errors: u64) -> Reading {
        Reading {
            sessions,
            totals: Totals {
                connects,
                received: connects * 1_000,
                sent: 0,
                errors,
            },
        }
    }

    struct Rig {
        history: History,
        now: Instant,
    }

    impl Rig {
        fn new() -> Self {
            let (history, now) = (History::default(), Instant::now());
            Self { history, now }
        }

        fn record(&mut self, readings: &[(&str, Reading)]) {
            self.now += INTERVAL;
            let readings = readings.iter().map(|(name, reading)| (key(name), *reading));
            self.history.record(readings, self.now, UNIX_EPOCH);
        }

        fn after(&self, number: u64) -> Value {
            serde_json::from_str(&self.history.write(UNIX_EPOCH, number)).expect("JSON")
        }
    }

    #[test]
    fn rates_are_those_of_the_interval() {
        let mut rig = Rig::new();
        rig.record(&[("a", reading(1, 100, 7))]);
        assert_eq!(rig.after(0)["number"], 0);
        rig.record(&[("a", reading(2, 105, 7))]);
        rig.record(&[("a", reading(3, 1_105, 8)), ("b", reading(9, 50, 0))]);
        rig.record(&[("a", reading(0, 1_106, 8)), ("b", reading(1, 0, 0))]);
        let answer = rig.after(0);
        assert_eq!(answer["number"], 3);
        assert_eq!(answer["times"], json!([0, 0, 0]));
        let a = &answer["listeners"][0];
        assert_eq!(a["name"], "a");
        assert_eq!(a["sessions"], json!([2, 3, 0]));
        assert_eq!(a["connects"], json!([1, 200, 0.2]));
        assert_eq!(a["received"], json!([1_000, 200_000, 200]));
        assert_eq!(a["errors"], json!([0, 0.2, 0]));
        // It came later, and its counters have started again.
        let b = &answer["listeners"][1];
        assert_eq!(b["sessions"], json!([1]));
        assert_eq!(b["connects"], json!([0]));
    }

    #[test]
    fn what_is_gone_loses_its_samples_and_the_oldest_are_dropped() {
        let mut rig = Rig::new();
        for n in 0..MOST_SAMPLES as u64 + 10 {
            rig.record(&[("a", reading(n, n, 0)), ("b", reading(1, 1, 0))]);
        }
        rig.record(&[("a", reading(7, 500, 0))]);
        let answer = rig.after(0);
        assert_eq!(answer["listeners"].as_array().map(Vec::len), Some(1));
        let sessions = answer["listeners"][0]["sessions"].as_array();
        let sessions = sessions.expect("a list");
        assert_eq!(sessions.len(), MOST_SAMPLES);
        assert_eq!(
            (&sessions[0], &sessions[MOST_SAMPLES - 1]),
            (&json!(11), &json!(7))
        );
    }

    #[test]
    fn a_reader_gets_what_it_has_not_seen() {
        let mut rig = Rig::new();
        for n in 0..5 {
            rig.record(&[("a", reading(n, 0, 0))]);
        }
        for (after, sessions) in [
            (2, json!([3, 4])),
            (3, json!([4])),
            (4, json!([])),
            // Of a process before this one.
            (5, json!([1, 2, 3, 4])),
        ] {
            assert_eq!(rig.after(after)["listeners"][0]["sessions"], sessions);
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut rig = Rig::new();
        let names: Vec<String> = (0..MOST_SERIES + 3).map(|n| n.to_string()).collect();
        let readings: Vec<_> = names
            .iter()
            .map(|n| (n.as_str(), Reading::default()))
            .collect();
        rig.record(&readings);
        assert_eq!(rig.after(0)["omitted"], 3);
        assert_eq!(size_of::<Sample>() * MOST_SAMPLES, 2_400);
    }

    #[test]
    fn rates_have_three_digits() {
        for (rate, text) in [
            (0.0, "0"),
            (0.204, "0.2"),
            (1.0, "1"),
            (9.99, "9.99"),
            (9.996, "10"),
            (123.4, "123"),
            (1_200.0, "1200"),
        ] {
            let mut out = "0".to_owned();
            write_rate(&mut out, rate);
            assert_eq!(out[1..], *text);
        }
    }
}

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
use serde::{Serialize, Serializer};
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
/// Errors within so many samples, a minute, are recent.
const RECENT_SAMPLES: usize = 12;
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

/// In 1/s, written with three digits, and none that say nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate(f32);

/// Samples of a listener or backend as JSON, the newest last.
#[derive(Debug, Serialize)]
pub(super) struct Samples {
    sessions: Vec<u32>,
    connects: Vec<Rate>,
    received: Vec<Rate>,
    sent: Vec<Rate>,
    errors: Vec<Rate>,
}

/// What the rows of a list are sorted by, in 1/s; of errors the sum over all samples.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Figures {
    pub(super) connects: f32,
    pub(super) bytes: f32,
    pub(super) errors: f32,
    pub(super) has_recent_errors: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    key: &'a Key,
    #[serde(flatten)]
    samples: Samples,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(untagged)]
pub(super) enum Key {
    Listener {
        name: String,
    },
    Backend {
        #[serde(serialize_with = "write_text")]
        upstream: Arc<str>,
        #[serde(serialize_with = "write_text")]
        backend: Arc<str>,
    },
}

#[derive(Debug, Default)]
pub(super) struct Series {
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
        let listeners = services.map(|service| {
            let name = service.plan.name.clone();
            (Key::Listener { name }, listener(service))
        });
        let backends = view.pools().flat_map(|pool| pool.backend_metrics());
        let backends = backends.map(|metrics| {
            let key = Key::Backend {
                upstream: Arc::clone(&metrics.upstream),
                backend: Arc::clone(&metrics.text),
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

    /// How many samples have been taken.
    pub(super) fn number(&self) -> u64 {
        self.taken
    }

    /// How many listeners and backends have none.
    pub(super) fn omitted(&self) -> usize {
        self.omitted
    }

    pub(super) fn series(&self, key: &Key) -> Option<&Series> {
        self.series.get(key)
    }

    /// How many samples were taken after the one with the number `after`.
    pub(super) fn count_after(&self, after: u64) -> usize {
        // A number that is not reached yet is of another process.
        match self.taken.checked_sub(after) {
            Some(count) => usize::try_from(count).unwrap_or(usize::MAX),
            None => usize::MAX,
        }
    }

    /// As JSON: the samples that were taken after the one with the number `after`.
    /// `started`: of the process; the numbers are its own.
    pub(super) fn write(&self, started: SystemTime, after: u64) -> String {
        let count = self.count_after(after);
        let mut out = String::new();
        let _ = write!(
            out,
            "{{\"started\":\"{}\",\"interval_seconds\":{},\"number\":{},\"omitted\":{},\"times\":",
            humantime::format_rfc3339_millis(started),
            INTERVAL.as_secs(),
            self.taken,
            self.omitted,
        );
        let times = last(&self.times, count).map(|time| {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            since.as_secs()
        });
        out.push_str(&json(&times.collect::<Vec<_>>()));
        for (field, is_listed) in [
            ("listeners", Key::is_listener as fn(&Key) -> bool),
            ("backends", |key| !key.is_listener()),
        ] {
            let _ = write!(out, ",\n\"{field}\":[");
            let listed = self.series.iter().filter(|(key, _)| is_listed(key));
            for (n, (key, series)) in listed.enumerate() {
                out.push_str(if n == 0 { "\n" } else { ",\n" });
                let samples = series.samples(count);
                out.push_str(&json(&Line { key, samples }));
            }
            out.push(']');
        }
        out.push_str("}\n");
        out
    }
}

impl Key {
    fn is_listener(&self) -> bool {
        matches!(self, Self::Listener { .. })
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
    /// The last `count` of them.
    pub(super) fn samples(&self, count: usize) -> Samples {
        let rates = |rate: fn(&Sample) -> f32| {
            let samples = last(&self.samples, count);
            samples.map(|sample| Rate(rate(sample))).collect()
        };
        Samples {
            sessions: last(&self.samples, count).map(|s| s.sessions).collect(),
            connects: rates(|sample| sample.connects),
            received: rates(|sample| sample.received),
            sent: rates(|sample| sample.sent),
            errors: rates(|sample| sample.errors),
        }
    }

    pub(super) fn figures(&self) -> Figures {
        let mut recent = last(&self.samples, RECENT_SAMPLES);
        let newest = self.samples.back();
        Figures {
            connects: newest.map_or(0.0, |sample| sample.connects),
            bytes: newest.map_or(0.0, |sample| sample.received + sample.sent),
            errors: self.samples.iter().map(|sample| sample.errors).sum(),
            has_recent_errors: recent.any(|sample| sample.errors > 0.0),
        }
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let rate = f64::from(self.0);
        let rounded = match rate {
            rate if rate >= 99.95 => rate.round(),
            rate if rate >= 9.995 => (rate * 10.0).round() / 10.0,
            rate => (rate * 100.0).round() / 100.0,
        };
        match rounded.fract() == 0.0 {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a whole number that is not negative"
            )]
            true => serializer.serialize_u64(rounded as u64),
            false => serializer.serialize_f64(rounded),
        }
    }
}

fn write_text<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

/// Lists and texts can be written.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// The last `count` of them.
fn last<T>(all: &VecDeque<T>, count: usize) -> impl Iterator<Item = &T> {
    all.iter().skip(all.len().saturating_sub(count))
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
        let name = name.to_owned();
        Key::Listener { name }
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
            assert_eq!(super::json(&Rate(rate)), text);
        }
    }
}

//! Sessions with a clock of the test's own.

use super::*;
use crate::{
    plan::{self, SourcePrefix},
    telemetry::metrics::Exporter,
};
use std::net::IpAddr;

/// The most that a read gets.
const READ: usize = 256 * 1024;

fn source(n: u32) -> Source {
    Source::of(IpAddr::V4(n.into()), SourcePrefix::default())
}

fn down(rate: u64) -> plan::Bandwidth {
    plan::Bandwidth { up: 0, down: rate }
}

struct Simulated {
    shared: Arc<BandwidthLimits>,
    limits: Limits,
    /// The last of some simple random numbers.
    random: u64,
}

/// A session whose backend always has more.
struct Greedy {
    bandwidth: SessionBandwidth,
    /// When it is polled next, in milliseconds.
    next: u64,
    carried: u64,
}

impl Simulated {
    fn new(limits: Limits) -> Self {
        let shared = Arc::new(BandwidthLimits::new(Exporter::new(1).listener("l")));
        shared.set(&limits);
        Self {
            shared,
            limits,
            random: 1,
        }
    }

    fn at(&self, millis: u64) -> Instant {
        self.shared.epoch + Duration::from_millis(millis)
    }

    fn begin(&self, from: u32, millis: u64) -> Greedy {
        let (now, from) = (self.at(millis), Some(source(from)));
        let begun = SessionBandwidth::begin(&self.shared, &self.limits, from, now);
        Greedy {
            bandwidth: begun.expect("a limit"),
            next: millis,
            carried: 0,
        }
    }

    fn random(&mut self, most: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005) + 1;
        (self.random >> 33) % (most + 1)
    }

    /// Runs the sessions from one time to another, each as late as may be by some milliseconds.
    /// `note`: gets the time and what was read then.
    fn run(
        &mut self,
        sessions: &mut [Greedy],
        until: u64,
        lateness: u64,
        mut note: impl FnMut(u64, u64),
    ) {
        loop {
            let late = self.random(lateness);
            let next = sessions.iter_mut().min_by_key(|session| session.next);
            let session = next.expect("a session");
            if session.next >= until {
                return;
            }
            let millis = session.next;
            let now = self.at(millis);
            match session.bandwidth.allowance(Way::Down, now) {
                None => {
                    let resumes = session.bandwidth.resumes_at(now).expect("a pause");
                    let wait = (resumes - now).as_nanos().div_ceil(1_000_000);
                    session.next += wait as u64 + late;
                }
                Some(allowed) => {
                    let n = allowed.min(READ) as u64;
                    session.bandwidth.charge(Way::Down, n, now);
                    session.carried += n;
                    note(millis, n);
                }
            }
        }
    }

    fn over_limit(&self, limit: LimitKind, result: OverLimit) -> u64 {
        let counts = &self.shared.metrics.counts;
        counts.sum(|c| &c.over_limit[limit as usize][result as usize])
    }
}

#[test]
fn a_session_carries_its_rate_whatever_that_is() {
    for rate in [1_000, 10_000, 100_000, 1 << 20, 100_000_000, 1_000_000_000] {
        let mut simulated = Simulated::new(Limits {
            bandwidth: down(rate),
            ..Limits::default()
        });
        let mut sessions = [simulated.begin(1, 0)];
        let mut most_ahead: f64 = 0.0;
        let mut so_far = 0;
        simulated.run(&mut sessions, 10_000, 5, |millis, n| {
            so_far += n;
            let due = rate as f64 * millis as f64 / 1000.0;
            most_ahead = most_ahead.max(so_far as f64 - due);
        });
        let carried = sessions[0].carried as f64 / 10.0 / rate as f64;
        // A read of 512 bytes is half a second of the lowest rate.
        let tolerance = if rate < 10_000 { 0.06 } else { 0.01 };
        assert!((carried - 1.0).abs() < tolerance, "{carried} of {rate}");
        // Never more than the credit and two slices ahead.
        let ahead = most_ahead / rate as f64;
        assert!(ahead < 0.08 || most_ahead <= 2000.0, "{ahead} s of {rate}");
        // One pause for a slice.
        let pauses = simulated.over_limit(LimitKind::Bandwidth, OverLimit::Delayed);
        assert!(pauses <= 10_000, "{pauses} at {rate}");
    }
}

#[test]
fn sessions_that_share_a_limit_alternate() {
    const RATE: u64 = 10_000_000;
    for scope in ["source", "listener"] {
        let mut limits = Limits::default();
        match scope {
            "source" => limits.bandwidth_per_source = down(RATE),
            _ => limits.bandwidth_total = down(RATE),
        }
        let mut simulated = Simulated::new(limits);
        let mut sessions: Vec<Greedy> = (0..50).map(|_| simulated.begin(7, 0)).collect();
        simulated.run(&mut sessions, 20_000, 3, |_, _| {});
        let all: u64 = sessions.iter().map(|session| session.carried).sum();
        let share = all as f64 / 20.0 / RATE as f64;
        // At first each reads a slice.
        assert!((0.99..1.04).contains(&share), "{share}");
        let fair = all as f64 / 50.0;
        for session in &sessions {
            let part = session.carried as f64 / fair;
            // The first one had the credit of the beginning.
            assert!((0.9..1.2).contains(&part), "{part}");
        }
        let pauses: u64 = [LimitKind::BandwidthPerSource, LimitKind::BandwidthTotal]
            .map(|kind| simulated.over_limit(kind, OverLimit::Delayed))
            .iter()
            .sum();
        // However many there are: one for a slice.
        assert!(pauses < 2_200, "{pauses}");
    }
}

/// A wake-up costs as much as carrying some 100 KiB.
#[test]
fn at_a_low_rate_turns_are_rarer() {
    const SECONDS: u64 = 20;
    for (rate, most) in [(1_000_000, 42), (10_000_000, 104)] {
        let mut simulated = Simulated::new(Limits {
            bandwidth_total: down(rate),
            ..Limits::default()
        });
        let mut sessions = [1, 2].map(|from| simulated.begin(from, 0));
        simulated.run(&mut sessions, 1000 * SECONDS, 3, |_, _| {});
        let pauses = simulated.over_limit(LimitKind::BandwidthTotal, OverLimit::Delayed);
        assert!(pauses <= most * SECONDS, "{pauses} at {rate}");
        let shares = sessions.map(|session| session.carried as f64 / (SECONDS * rate) as f64);
        let is_half = |share: &f64| (0.48..0.53).contains(share);
        assert!(shares.iter().all(is_half), "{shares:?}");
    }
}

#[test]
fn each_of_many_that_share_a_limit_has_its_turn_soon() {
    const RATE: u64 = 50_000_000;
    let mut simulated = Simulated::new(Limits {
        bandwidth_total: down(RATE),
        ..Limits::default()
    });
    let mut sessions: Vec<Greedy> = (0..1000).map(|_| simulated.begin(7, 0)).collect();
    for second in 1..=20 {
        let before: Vec<u64> = sessions.iter().map(|session| session.carried).collect();
        simulated.run(&mut sessions, second * 1500, 3, |_, _| {});
        let idle = sessions
            .iter()
            .zip(&before)
            .filter(|(s, b)| s.carried == **b);
        // The first ones had large slices.
        assert!(second < 4 || idle.count() == 0, "in period {second}");
    }
    let all: u64 = sessions.iter().map(|session| session.carried).sum();
    // With what they have taken ahead.
    let share = all as f64 / 31.3 / RATE as f64;
    assert!((0.98..1.02).contains(&share), "{share}");
}

#[test]
fn sources_have_limits_of_their_own() {
    let mut simulated = Simulated::new(Limits {
        bandwidth_per_source: down(1_000_000),
        ..Limits::default()
    });
    let mut sessions = [1, 1, 2].map(|from| simulated.begin(from, 0));
    simulated.run(&mut sessions, 10_000, 2, |_, _| {});
    let [a, b, alone] = sessions.map(|session| session.carried as f64 / 10_000_000.0);
    assert!((0.97..1.03).contains(&(a + b)), "{a} {b}");
    assert!((0.97..1.03).contains(&alone), "{alone}");
}

/// What it owes outlives its sessions.
#[test]
fn a_source_gets_no_more_by_new_sessions() {
    let mut simulated = Simulated::new(Limits {
        bandwidth_per_source: down(100_000),
        ..Limits::default()
    });
    let (mut carried, mut now) = (0, 0);
    while now < 10_000 {
        let mut session = [simulated.begin(1, now)];
        simulated.run(&mut session, now + 7, 0, |_, _| {});
        carried += session[0].carried;
        now += 7;
        // The time of a release is the real one, at which little is owed.
        let [session] = session;
        let owed = session.bandwidth.source.as_ref().expect("a source").1.0[1].load(Relaxed);
        drop(session);
        simulated.shared.left[1].update(&source(1), 0, |_| (Some(owed), ()));
    }
    let share = carried as f64 / 1_000_000.0;
    assert!((0.9..1.05).contains(&share), "{share}");
    let sources = &simulated.shared.sources;
    assert!(sources.iter().all(|shard| shard.lock().is_empty()));
}

#[test]
fn a_new_rate_takes_effect_at_once() {
    let mut simulated = Simulated::new(Limits {
        bandwidth: down(100_000),
        ..Limits::default()
    });
    let mut sessions = [simulated.begin(1, 0)];
    let mut before = 0;
    for (until, rate) in [(1000, 100_000u64), (2000, 10_000_000), (3000, 50_000)] {
        let limits = Limits {
            bandwidth: down(rate),
            ..Limits::default()
        };
        simulated.shared.set(&limits);
        simulated.run(&mut sessions, until, 0, |_, _| {});
        let carried = sessions[0].carried - before;
        before = sessions[0].carried;
        let share = carried as f64 / rate as f64;
        assert!((0.85..1.1).contains(&share), "{share} of {rate}");
    }
    // Without a limit any more.
    simulated.shared.set(&Limits::default());
    let now = simulated.at(4000);
    let allowed = sessions[0].bandwidth.allowance(Way::Down, now);
    assert_eq!(allowed, Some(usize::MAX));
}

/// At the old rate what they have taken would last for minutes.
#[test]
fn a_limit_that_is_raised_frees_what_waits() {
    for scope in ["session", "source", "listener"] {
        let limits = |rate| {
            let (mut limits, rate) = (Limits::default(), down(rate));
            match scope {
                "session" => limits.bandwidth = rate,
                "source" => limits.bandwidth_per_source = rate,
                _ => limits.bandwidth_total = rate,
            }
            limits
        };
        let mut simulated = Simulated::new(limits(1));
        let mut sessions: Vec<Greedy> = (0..200).map(|_| simulated.begin(1, 0)).collect();
        // Its first bytes were read before it began to be relayed.
        for session in &sessions {
            session.bandwidth.charge(Way::Down, 4096, simulated.at(0));
        }
        simulated.run(&mut sessions, 1000, 0, |_, _| {});
        assert_eq!(sessions.iter().map(|s| s.carried).sum::<u64>(), 0);
        simulated.shared.set(&limits(100_000_000));
        sessions.push(simulated.begin(1, 1000));
        simulated.run(&mut sessions, 4000, 0, |_, _| {});
        let least = sessions.iter().map(|session| session.carried).min();
        assert!(least > Some(100_000), "{scope} {least:?}");
    }
}

#[test]
fn a_dry_run_counts_and_pauses_nothing() {
    let simulated = Simulated::new(Limits {
        bandwidth_total: down(100_000),
        dry_run: true,
        ..Limits::default()
    });
    let session = simulated.begin(1, 0).bandwidth;
    for millis in 0..1000 {
        let now = simulated.at(millis);
        assert!(session.allowance(Way::Down, now).is_some());
        session.charge(Way::Down, 1000, now);
    }
    // Ten times the rate.
    let passed = simulated.over_limit(LimitKind::BandwidthTotal, OverLimit::Passed);
    assert!((300..=1000).contains(&passed), "{passed}");
    let delayed = simulated.over_limit(LimitKind::BandwidthTotal, OverLimit::Delayed);
    assert_eq!(delayed, 0);
}

/// Datagrams do not wait: what is over the rate does not pass.
#[test]
fn datagrams_pass_at_the_rate() {
    for (rate, size) in [
        (100_000u64, 100u64),
        (10_000_000, 1200),
        (1_000_000_000, 60_000),
    ] {
        let simulated = Simulated::new(Limits {
            bandwidth: down(rate),
            ..Limits::default()
        });
        let session = simulated.begin(1, 0).bandwidth;
        let mut passed = 0;
        for micros in (0..5_000_000).step_by(50) {
            let now = simulated.shared.epoch + Duration::from_micros(micros);
            passed += match session.admits(Way::Down, size, now) {
                true => size,
                false => 0,
            };
            // The other way has no limit.
            assert!(session.admits(Way::Up, size, now));
        }
        let burst = (rate / 10).max(BURST_BYTES) as f64 + rate as f64 / 20.0;
        let most = rate as f64 * 5.0 + burst;
        assert!((passed as f64) <= most, "{passed} of {most}");
        let sent = 100_000.0 * size as f64;
        assert!(
            passed as f64 > sent.min(rate as f64 * 5.0) * 0.97,
            "{passed}"
        );
    }
}

#[test]
fn without_a_limit_a_session_has_none() {
    let simulated = Simulated::new(Limits::default());
    let now = simulated.at(0);
    let begun = SessionBandwidth::begin(&simulated.shared, &simulated.limits, None, now);
    assert!(begun.is_none());
}

//! How many sessions of a listener may begin in a time: of all clients, and of each source.
//!
//! A bucket of tokens is one number, the time at which it will be full again: a session moves it by
//! the time that one token takes. The bucket is empty when that time is as far ahead as all tokens
//! take.

use super::rate_table::RateTable;
use crate::{
    plan::{
        Limits, Rate, Source,
        reason::{LimitKind, OverLimit, RejectReason},
    },
    telemetry::metrics::ListenerMetrics,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// Sessions of a listener that are delayed at once.
const MOST_DELAYED: u64 = 1000;
/// The longest delay.
const LONGEST_DELAY: Duration = Duration::from_secs(10);

/// Of one listener. It stays when its plan changes: a new rate takes effect at once.
#[derive(Debug)]
pub struct Rates {
    epoch: Instant,
    /// When the bucket of the listener will be full, in nanoseconds since the epoch.
    full_at: AtomicU64,
    sources: RateTable,
    delayed: AtomicU64,
}

/// A session that begins, where there are limits of its rate.
#[derive(Debug, Clone, Copy)]
pub struct RateRequest<'a> {
    pub limits: &'a Limits,
    /// `None`: it has none, or its source has no limit.
    pub source: Option<Source>,
    pub now: Instant,
}

/// A session that has to wait. Counts as delayed until it is dropped.
#[derive(Debug)]
pub struct Delay {
    rates: Arc<Rates>,
    pub until: Instant,
}

#[derive(Debug, Clone, Copy)]
enum RateLimit {
    OfListener,
    OfSource,
}

/// How long tokens take, in nanoseconds.
#[derive(Debug, Clone, Copy)]
struct Tokens {
    one: u64,
    all: u64,
}

impl Tokens {
    fn of(rate: Rate) -> Option<Self> {
        let one = rate.interval_nanos()?;
        Some(Self {
            one,
            all: one * rate.burst(),
        })
    }

    /// The state after one more token is taken, if there will be one within `most`, and for how
    /// long there is none.
    fn take(self, full_at: u64, now: u64, most: u64) -> (u64, u64) {
        // Further ahead only after a lower rate, which a reload has raised.
        let latest = now.saturating_add(self.all).saturating_add(most);
        let before = full_at.min(latest);
        let next = before.max(now).saturating_add(self.one);
        let wait = next.saturating_sub(now).saturating_sub(self.all);
        (if wait <= most { next } else { before }, wait)
    }
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            epoch: Instant::now(),
            full_at: AtomicU64::new(0),
            sources: RateTable::default(),
            delayed: AtomicU64::new(0),
        }
    }
}

impl Rates {
    /// Takes a token of each limit, or of none and returns which limit refuses.
    pub fn admit(
        &self,
        beginning: RateRequest<'_>,
        metrics: &ListenerMetrics,
    ) -> Result<(), RejectReason> {
        let limits = beginning.limits;
        match self.take(beginning, Duration::ZERO) {
            Ok(_) => Ok(()),
            Err(limit) if limits.dry_run => {
                metrics.over_limit(limit.kind(), OverLimit::Passed);
                Ok(())
            }
            Err(limit) => Err(limit.reason()),
        }
    }

    /// The same where sessions are delayed: returns how long this one has to wait, if it has to.
    pub fn admit_later(
        self: &Arc<Self>,
        beginning: RateRequest<'_>,
        metrics: &ListenerMetrics,
    ) -> Result<Option<Delay>, RejectReason> {
        let taken = self.take(beginning, LONGEST_DELAY);
        let Some((limit, wait)) = taken.map_err(RateLimit::reason)? else {
            return Ok(None);
        };
        if self.delayed.fetch_add(1, Relaxed) >= MOST_DELAYED {
            self.delayed.fetch_sub(1, Relaxed);
            self.give_back(beginning);
            return Err(limit.reason());
        }
        metrics.over_limit(limit.kind(), OverLimit::Delayed);
        Ok(Some(Delay {
            rates: Arc::clone(self),
            until: beginning.now + wait,
        }))
    }

    /// Gives back the tokens of a session that was refused for another reason.
    pub fn give_back(&self, beginning: RateRequest<'_>) {
        let RateRequest { limits, source, .. } = beginning;
        let now = self.nanos(beginning.now);
        let of_source = Tokens::of(limits.connection_rate_per_source).zip(source);
        if let Some((tokens, source)) = of_source {
            self.give_back_to_source(tokens, source, now);
        }
        if let Some(tokens) = Tokens::of(limits.connection_rate) {
            let less = |full_at: u64| Some(full_at.saturating_sub(tokens.one));
            let _ = self.full_at.fetch_update(Relaxed, Relaxed, less);
        }
    }

    /// Takes the tokens of a session that may wait for so long. Returns the wait and the limit
    /// behind it, or the limit that takes longer; then no token is taken.
    fn take(
        &self,
        beginning: RateRequest<'_>,
        most: Duration,
    ) -> Result<Option<(RateLimit, Duration)>, RateLimit> {
        let RateRequest { limits, source, .. } = beginning;
        let now = self.nanos(beginning.now);
        let most = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
        let mut wait = (RateLimit::OfListener, 0);
        // A source that is over its own limit takes nothing from others.
        let of_source = Tokens::of(limits.connection_rate_per_source).zip(source);
        if let Some((tokens, source)) = of_source {
            let needed = self.sources.update(&source, now, |full_at| {
                let (next, needed) = tokens.take(full_at, now, most);
                (Some(next), needed)
            });
            if needed > most {
                return Err(RateLimit::OfSource);
            }
            wait = (RateLimit::OfSource, needed);
        }
        if let Some(tokens) = Tokens::of(limits.connection_rate) {
            let mut needed = 0;
            let _ = self.full_at.fetch_update(Relaxed, Relaxed, |full_at| {
                let (next, needs) = tokens.take(full_at, now, most);
                needed = needs;
                Some(next)
            });
            if needed > most {
                if let Some((tokens, source)) = of_source {
                    self.give_back_to_source(tokens, source, now);
                }
                return Err(RateLimit::OfListener);
            }
            if needed > wait.1 {
                wait = (RateLimit::OfListener, needed);
            }
        }
        let (kind, nanos) = wait;
        Ok((nanos > 0).then(|| (kind, Duration::from_nanos(nanos))))
    }

    fn give_back_to_source(&self, tokens: Tokens, source: Source, now: u64) {
        self.sources.update(&source, now, |full_at| {
            (Some(full_at.saturating_sub(tokens.one)), ())
        });
    }

    fn nanos(&self, at: Instant) -> u64 {
        let passed = at.saturating_duration_since(self.epoch);
        u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        self.rates.delayed.fetch_sub(1, Relaxed);
    }
}

impl RateLimit {
    fn kind(self) -> LimitKind {
        match self {
            Self::OfListener => LimitKind::ConnectionRate,
            Self::OfSource => LimitKind::ConnectionRatePerSource,
        }
    }

    fn reason(self) -> RejectReason {
        match self {
            Self::OfListener => RejectReason::ConnectionRate,
            Self::OfSource => RejectReason::ConnectionRatePerSource,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        plan::{OverRate, Period, SourcePrefix},
        telemetry::metrics::Exporter,
    };
    use proptest::prelude::*;
    use std::net::IpAddr;

    fn per_second(connections: u32) -> Rate {
        Rate {
            connections,
            per: Period::Second,
        }
    }

    fn limits(all: u32, each: u32, over_rate: OverRate) -> Limits {
        Limits {
            connection_rate: per_second(all),
            connection_rate_per_source: per_second(each),
            over_rate,
            ..Limits::default()
        }
    }

    struct Listener {
        rates: Arc<Rates>,
        metrics: Arc<ListenerMetrics>,
        limits: Limits,
    }

    impl Listener {
        fn new(limits: Limits) -> Self {
            Self {
                rates: Arc::default(),
                metrics: Exporter::new(1).listener("l"),
                limits,
            }
        }

        fn beginning(&self, source: u32, millis: u64) -> RateRequest<'_> {
            let address = IpAddr::V4(source.into());
            RateRequest {
                limits: &self.limits,
                source: Some(Source::of(address, SourcePrefix::default())),
                now: self.rates.epoch + Duration::from_millis(millis),
            }
        }

        fn admit(&self, source: u32, millis: u64) -> Result<(), RejectReason> {
            let beginning = self.beginning(source, millis);
            self.rates.admit(beginning, &self.metrics)
        }

        fn delay(&self, source: u32, millis: u64) -> Result<Option<Delay>, RejectReason> {
            let beginning = self.beginning(source, millis);
            self.rates.admit_later(beginning, &self.metrics)
        }

        fn over_limit(&self, kind: LimitKind, result: OverLimit) -> u64 {
            let counts = &self.metrics.counts;
            counts.sum(|c| &c.over_limit[kind as usize][result as usize])
        }
    }

    #[test]
    fn a_burst_is_what_a_second_allows() {
        let listener = Listener::new(limits(10, 0, OverRate::Refuse));
        let over = Err(RejectReason::ConnectionRate);
        for n in 0..10 {
            assert_eq!(listener.admit(n, 5000), Ok(()), "{n}");
        }
        assert_eq!(listener.admit(1, 5000), over);
        assert_eq!(listener.admit(1, 5099), over);
        assert_eq!(listener.admit(1, 5100), Ok(()));
        assert_eq!(listener.admit(1, 5100), over);
        // The bucket holds no more than that, however long nothing comes.
        let admitted = (0..50).filter(|n| listener.admit(*n, 60_000).is_ok());
        assert_eq!(admitted.count(), 10);
    }

    /// It takes no tokens of the listener, and the listener's refusal none of the source.
    #[test]
    fn a_noisy_source_leaves_others_their_tokens() {
        let listener = Listener::new(limits(10, 2, OverRate::Refuse));
        let noisy: Vec<_> = (0..100).map(|_| listener.admit(1, 0)).collect();
        assert_eq!(noisy.iter().filter(|admitted| admitted.is_ok()).count(), 2);
        assert_eq!(noisy[99], Err(RejectReason::ConnectionRatePerSource));
        assert!((2..10).all(|source| listener.admit(source, 0).is_ok()));
        for _ in 0..5 {
            assert_eq!(listener.admit(11, 0), Err(RejectReason::ConnectionRate));
        }
        assert!((0..2).all(|_| listener.admit(11, 1000).is_ok()));
        assert!(listener.admit(11, 1000).is_err());
    }

    #[test]
    fn a_token_that_was_not_used_is_given_back() {
        let listener = Listener::new(limits(1, 1, OverRate::Refuse));
        assert!(listener.admit(1, 0).is_ok() && listener.admit(1, 0).is_err());
        listener.rates.give_back(listener.beginning(1, 0));
        assert!(listener.admit(1, 0).is_ok() && listener.admit(1, 0).is_err());
    }

    #[test]
    fn delayed_sessions_go_on_at_the_rate() {
        let listener = Listener::new(limits(100, 0, OverRate::Delay));
        let until = |delay: &Option<Delay>| match delay {
            None => 0,
            Some(delay) => (delay.until - listener.rates.epoch).as_millis(),
        };
        let all: Vec<_> = (0..300).map_while(|n| listener.delay(n, 0).ok()).collect();
        let times: Vec<_> = all.iter().map(until).collect();
        assert_eq!(times.len(), 300);
        assert_eq!((times[99], times[100], times[299]), (0, 10, 2000));
        assert!(times.is_sorted());
        let delayed = listener.over_limit(LimitKind::ConnectionRate, OverLimit::Delayed);
        assert_eq!(delayed, 200);
        // No more than so many, and none for longer than that.
        let more = (0..2000).map_while(|n| listener.delay(n, 0).ok());
        let more: Vec<_> = more.collect();
        assert_eq!(more.len(), 800);
        assert_eq!(until(&more[799]), 10_000);
        drop(all);
        assert!(listener.delay(1, 0).is_err());
        assert_eq!(until(&listener.delay(1, 10).expect("a place")), 10_010);
        drop(more);
        assert_eq!(listener.rates.delayed.load(Relaxed), 0);
    }

    #[test]
    fn a_dry_run_counts_and_admits() {
        let mut limits = limits(0, 1, OverRate::Delay);
        limits.dry_run = true;
        assert!(limits.refuses_over_rate() && !limits.delays_over_rate());
        let listener = Listener::new(limits);
        assert!((0..5).all(|_| listener.admit(1, 0).is_ok()));
        let passed = listener.over_limit(LimitKind::ConnectionRatePerSource, OverLimit::Passed);
        assert_eq!(passed, 4);
    }

    #[test]
    fn a_higher_rate_takes_effect_at_once() {
        let mut listener = Listener::new(limits(0, 0, OverRate::Refuse));
        let per_minute = Rate {
            connections: 1,
            per: Period::Minute,
        };
        listener.limits.connection_rate = per_minute;
        listener.limits.connection_rate_per_source = per_minute;
        assert!(listener.admit(1, 0).is_ok() && listener.admit(1, 1000).is_err());
        listener.limits = limits(10, 10, OverRate::Refuse);
        // Each limit is as empty as it can be, and no more than that.
        assert!(listener.admit(1, 1000).is_err() && listener.admit(1, 1100).is_err());
        assert!(listener.admit(1, 1200).is_ok());
    }

    #[test]
    fn without_a_limit_nothing_is_kept() {
        let listener = Listener::new(Limits::default());
        assert!((0..1000).all(|n| listener.admit(n, 0).is_ok()));
        assert_eq!(listener.rates.full_at.load(Relaxed), 0);
    }

    proptest! {
        /// In no stretch of time more than its length allows, and a second's worth.
        #[test]
        fn no_time_has_more_than_its_rate(
            rate in 1u32..50,
            gaps in prop::collection::vec(0u64..200, 1..200),
        ) {
            let listener = Listener::new(limits(rate, 0, OverRate::Refuse));
            let mut now = 0;
            let mut admitted = Vec::new();
            for gap in gaps {
                now += gap;
                if listener.admit(1, now).is_ok() {
                    admitted.push(now);
                }
            }
            for (n, first) in admitted.iter().enumerate() {
                for (m, last) in admitted.iter().enumerate().skip(n) {
                    let most = u64::from(rate) * (last - first) / 1000 + u64::from(rate) + 1;
                    prop_assert!((m - n + 1) as u64 <= most);
                }
            }
        }
    }
}

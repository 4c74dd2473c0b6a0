//! How many sessions of a listener may begin in a time: of all clients, and of each source.
//!
//! A bucket of tokens is one number, the time at which it will be full again: a session moves it by
//! the time that one token takes. The bucket is empty when that time is as far ahead as all tokens
//! take.

use super::rate_table::RateTable;
use crate::{
    plan::{
        Limits, OverRate, Rate, Source,
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
pub struct Beginning<'a> {
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

    /// The state after one more token than `full_at` stands for, and for how long there is none.
    fn take(self, full_at: u64, now: u64) -> (u64, u64) {
        let next = full_at.max(now).saturating_add(self.one);
        (next, next.saturating_sub(now).saturating_sub(self.all))
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
        beginning: Beginning<'_>,
        metrics: &ListenerMetrics,
    ) -> Result<(), RejectReason> {
        let limits = beginning.limits;
        let Err(kind) = self.take(beginning, Duration::ZERO) else {
            return Ok(());
        };
        if limits.dry_run {
            metrics.over_limit(kind, OverLimit::Passed);
            return Ok(());
        }
        Err(reject_reason(kind))
    }

    /// The same where sessions are delayed: returns how long this one has to wait, if it has to.
    pub fn admit_later(
        self: &Arc<Self>,
        beginning: Beginning<'_>,
        metrics: &ListenerMetrics,
    ) -> Result<Option<Delay>, RejectReason> {
        let taken = self.take(beginning, LONGEST_DELAY).map_err(reject_reason)?;
        let Some((kind, wait)) = taken else {
            return Ok(None);
        };
        if self.delayed.fetch_add(1, Relaxed) >= MOST_DELAYED {
            self.delayed.fetch_sub(1, Relaxed);
            self.give_back(beginning);
            return Err(reject_reason(kind));
        }
        metrics.over_limit(kind, OverLimit::Delayed);
        Ok(Some(Delay {
            rates: Arc::clone(self),
            until: beginning.now + wait,
        }))
    }

    /// Gives back the tokens of a session that was refused for another reason.
    pub fn give_back(&self, beginning: Beginning<'_>) {
        let Beginning { limits, source, .. } = beginning;
        let now = self.nanos(beginning.now);
        if let (Some(tokens), Some(source)) = (Tokens::of(limits.connection_rate_per_source), source)
        {
            self.sources.update(&source, now, |full_at| {
                (Some(full_at.saturating_sub(tokens.one)), ())
            });
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
        beginning: Beginning<'_>,
        most: Duration,
    ) -> Result<Option<(LimitKind, Duration)>, LimitKind> {
        let Beginning { limits, source, .. } = beginning;
        let now = self.nanos(beginning.now);
        let most = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
        let mut wait = (LimitKind::ConnectionRate, 0);
        // A source that is over its own limit takes nothing from others.
        let of_source = Tokens::of(limits.connection_rate_per_source).zip(source);
        if let Some((tokens, source)) = of_source {
            let needed = self.sources.update(&source, now, |full_at| {
                let (next, needed) = tokens.take(full_at, now);
                (Some(next).filter(|_| needed <= most), needed)
            });
            if needed > most {
                return Err(LimitKind::ConnectionRatePerSource);
            }
            wait = (LimitKind::ConnectionRatePerSource, needed);
        }
        if let Some(tokens) = Tokens::of(limits.connection_rate) {
            let mut needed = 0;
            let taken = self.full_at.fetch_update(Relaxed, Relaxed, |full_at| {
                let (next, needs) = tokens.take(full_at, now);
                needed = needs;
                Some(next).filter(|_| needs <= most)
            });
            if taken.is_err() {
                if let Some((tokens, source)) = of_source {
                    self.sources.update(&source, now, |full_at| {
                        (Some(full_at.saturating_sub(tokens.one)), ())
                    });
                }
                return Err(LimitKind::ConnectionRate);
            }
            if needed > wait.1 {
                wait = (LimitKind::ConnectionRate, needed);
            }
        }
        let (kind, nanos) = wait;
        Ok((nanos > 0).then(|| (kind, Duration::from_nanos(nanos))))
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

impl Limits {
    /// Whether sessions are to be refused, or only counted, when their rate is over a limit.
    pub fn refuses_over_rate(&self) -> bool {
        self.has_rates() && (self.over_rate == OverRate::Refuse || self.dry_run)
    }

    pub fn delays_over_rate(&self) -> bool {
        self.has_rates() && !self.refuses_over_rate()
    }
}

fn reject_reason(kind: LimitKind) -> RejectReason {
    match kind {
        LimitKind::ConnectionRatePerSource => RejectReason::ConnectionRatePerSource,
        LimitKind::ConnectionRate => RejectReason::ConnectionRate,
        LimitKind::MaxConnectionsPerSource => RejectReason::MaxConnectionsPerSource,
    }
}

//! How many bytes the sessions of a listener may carry in a time: each, those of one source
//! together, and all of them, in either direction.
//!
//! What has been carried takes its time at the rate of the limit: each limit is one number, the
//! time until which it is taken. A session reads on until that is a slice ahead, and then pauses
//! until it has come. So sessions that share a limit alternate, in the order in which they came to
//! it, however many they are, and each wakes once for a slice.

use super::rate_table::RateTable;
use crate::{
    plan::{
        Limits, Source,
        reason::{LimitKind, OverLimit},
    },
    sys::mutex::Mutex,
    telemetry::metrics::ListenerMetrics,
};
use ahash::AHashMap;
use std::{
    cell::Cell,
    sync::{
        Arc, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1000 * MILLISECOND;
/// What is carried at once takes this long, in nanoseconds. A wake-up costs as much as carrying
/// some 100 KiB.
const SLICE: u64 = 25 * MILLISECOND;
/// The same of a limit that sessions share: each may have a slice at once.
const SHARED_SLICE: u64 = 10 * MILLISECOND;
/// At low rates such a slice is this many bytes, but takes no longer than that of a session.
const SHARED_SLICE_BYTES: u64 = 32 * 1024;
/// At high rates a slice is this many bytes, the most that is moved in one go: buffers of the
/// kernel must hold what comes meanwhile.
const SLICE_BYTES: u64 = 1 << 20;
/// A slice is at least so many bytes, unless a second has fewer.
const LEAST_BYTES: u64 = 512;
/// How late a session may be after a pause, and make up for it.
const CREDIT: u64 = 50 * MILLISECOND;
/// Where sessions that share a limit have taken more of it ahead, slices get smaller: however many
/// sessions there are, each has a turn about once in a second.
const TURN: u64 = 500 * MILLISECOND;
/// The longest time until a session that pauses looks whether its limits have changed.
const LONGEST_WAIT: u64 = SECOND;
/// Of datagrams, which do not wait: what may come at once takes so long, or is so many bytes.
const BURST: u64 = 100 * MILLISECOND;
const BURST_BYTES: u64 = 64 * 1024;
/// Sessions of different sources hardly ever meet.
const SHARDS: usize = 16;

/// A direction of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the client.
    Up,
    Down,
}

/// The limits of one listener, and what is shared under them. It stays when the plan changes: new
/// figures take effect at once for the sessions that have limits.
#[derive(Debug)]
pub struct BandwidthLimits {
    epoch: Instant,
    metrics: Arc<ListenerMetrics>,
    /// In bytes a second, 0: no limit; by [`LimitScope`] and [`Way`].
    rates: [[AtomicU64; 2]; 3],
    is_dry_run: AtomicBool,
    /// Counts the changes of `rates`.
    changes: AtomicU64,
    all: Buckets,
    sources: [Mutex<AHashMap<Source, SharedBuckets>>; SHARDS],
    hash: ahash::RandomState,
    /// Until when the limit of a source is taken whose last session has ended, by [`Way`].
    left: [RateTable; 2],
}

/// What a limit is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LimitScope {
    Session,
    Source,
    Listener,
}

/// By [`Way`], until when the limit is taken, in nanoseconds since the epoch.
#[derive(Debug, Default)]
struct Buckets([AtomicU64; 2]);

/// Those of a source, and how many sessions use them.
#[derive(Debug, Default)]
struct SharedBuckets {
    buckets: Arc<Buckets>,
    sessions: u64,
}

/// The limits of one session.
#[derive(Debug)]
pub struct SessionBandwidth {
    shared: Arc<BandwidthLimits>,
    /// The changes of rates that it knows of.
    changes: Cell<u64>,
    source: Option<(Source, Arc<Buckets>)>,
    ways: [WayState; 2],
}

#[derive(Debug, Default)]
struct WayState {
    /// Until when the limit of the session itself is taken.
    taken_until: Cell<u64>,
    /// Nothing is carried before this time; 0: no pause.
    paused_until: Cell<u64>,
}

impl LimitScope {
    const ALL: [Self; 3] = [Self::Session, Self::Source, Self::Listener];

    fn limit(self) -> LimitKind {
        match self {
            Self::Session => LimitKind::Bandwidth,
            Self::Source => LimitKind::BandwidthPerSource,
            Self::Listener => LimitKind::BandwidthTotal,
        }
    }

    /// How long a slice takes at this rate, in nanoseconds.
    fn slice(self, rate: u64) -> u64 {
        let of_bytes = |bytes: u64| time_of(bytes, rate);
        let shortest = of_bytes(LEAST_BYTES).clamp(MILLISECOND, SECOND);
        let longest = of_bytes(SLICE_BYTES).max(shortest);
        let usual = match self {
            Self::Session => SLICE,
            Self::Source | Self::Listener => {
                of_bytes(SHARED_SLICE_BYTES).clamp(SHARED_SLICE, SLICE)
            }
        };
        usual.clamp(shortest, longest)
    }

    /// For how long a limit may be taken at once that is taken until `until`.
    fn next_slice(self, slice: u64, until: u64, now: u64) -> u64 {
        let Some(ahead) = until.checked_sub(now) else {
            return slice + (now - until).min(CREDIT);
        };
        match self {
            Self::Session => slice.saturating_sub(ahead),
            // What others have taken is waited for after the next read, not before it.
            Self::Source | Self::Listener if ahead <= TURN => slice,
            Self::Source | Self::Listener => {
                let part = TURN as f64 / ahead as f64;
                (slice as f64 * part.powi(3)) as u64
            }
        }
    }
}

impl BandwidthLimits {
    pub fn new(metrics: Arc<ListenerMetrics>) -> Self {
        Self {
            epoch: Instant::now(),
            metrics,
            rates: Default::default(),
            is_dry_run: AtomicBool::new(false),
            changes: AtomicU64::new(0),
            all: Buckets::default(),
            sources: Default::default(),
            hash: ahash::RandomState::new(),
            left: Default::default(),
        }
    }

    pub fn set(&self, limits: &Limits) {
        let [session, source, listener] = [
            limits.bandwidth,
            limits.bandwidth_per_source,
            limits.bandwidth_total,
        ];
        let now = self.nanos(Instant::now());
        for (scope, limit) in LimitScope::ALL.into_iter().zip([session, source, listener]) {
            for (way, rate) in [limit.up, limit.down].into_iter().enumerate() {
                let before = self.rates[scope as usize][way].swap(rate, Relaxed);
                if before != rate {
                    self.forgive(scope, way, now);
                    self.changes.fetch_add(1, Relaxed);
                }
            }
        }
        self.is_dry_run.store(limits.dry_run, Relaxed);
    }

    /// What was taken at another rate does not count: it may be a long time at that one.
    fn forgive(&self, scope: LimitScope, way: usize, now: u64) {
        let forgive = |buckets: &Buckets| buckets.0[way].fetch_min(now, Relaxed);
        match scope {
            LimitScope::Session => {}
            LimitScope::Source => {
                self.left[way].clear();
                for shard in &self.sources {
                    let shard = shard.lock();
                    for shared in shard.values() {
                        forgive(&shared.buckets);
                    }
                }
            }
            LimitScope::Listener => {
                forgive(&self.all);
            }
        }
    }

    fn rate(&self, scope: LimitScope, way: Way) -> Option<u64> {
        Some(self.rates[scope as usize][way as usize].load(Relaxed)).filter(|rate| *rate > 0)
    }

    fn nanos(&self, at: Instant) -> u64 {
        let passed = at.saturating_duration_since(self.epoch);
        // Far enough from zero for credit to be subtracted.
        u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX / 2) + SECOND
    }

    fn instant(&self, nanos: u64) -> Instant {
        self.epoch + Duration::from_nanos(nanos.saturating_sub(SECOND))
    }

    fn enter(&self, source: Source) -> Arc<Buckets> {
        let mut sources = self.shard(&source);
        let shared = sources.entry(source).or_insert_with(|| {
            let left = |way: usize| self.left[way].get(&source);
            SharedBuckets {
                buckets: Arc::new(Buckets([left(0).into(), left(1).into()])),
                sessions: 0,
            }
        });
        shared.sessions += 1;
        Arc::clone(&shared.buckets)
    }

    /// A source that ends its sessions and begins others has no more than one that keeps them.
    fn leave(&self, source: Source) {
        let mut sources = self.shard(&source);
        let Some(shared) = sources.get_mut(&source) else {
            return;
        };
        shared.sessions -= 1;
        if shared.sessions > 0 {
            return;
        }
        let now = self.nanos(Instant::now());
        for (left, until) in self.left.iter().zip(&shared.buckets.0) {
            let until = until.load(Relaxed);
            if until > now {
                left.update(&source, now, |_| (Some(until), ()));
            }
        }
        sources.remove(&source);
        if sources.capacity() > 64 && sources.len() < sources.capacity() / 8 {
            sources.shrink_to_fit();
        }
    }

    fn shard(&self, source: &Source) -> MutexGuard<'_, AHashMap<Source, SharedBuckets>> {
        let shard = &self.sources[self.hash.hash_one(source) as usize % SHARDS];
        shard.lock()
    }
}

/// How long so many bytes take at this rate, in nanoseconds.
fn time_of(bytes: u64, rate: u64) -> u64 {
    match bytes.checked_mul(SECOND) {
        Some(product) => product / rate,
        None => (bytes / rate).saturating_mul(SECOND),
    }
}

fn bytes_in(nanos: u64, rate: u64) -> u64 {
    let bytes = u128::from(nanos) * u128::from(rate) / u128::from(SECOND);
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

impl SessionBandwidth {
    /// `None` where the listener has no such limit. `source`: of the client, if it has one.
    pub fn begin(
        shared: &Arc<BandwidthLimits>,
        limits: &Limits,
        source: Option<Source>,
        now: Instant,
    ) -> Option<Self> {
        if !limits.has_bandwidth() {
            return None;
        }
        let now = shared.nanos(now);
        let source = source.filter(|_| limits.bandwidth_per_source.is_limit());
        let session = Self {
            shared: Arc::clone(shared),
            changes: Cell::new(shared.changes.load(Relaxed)),
            source: source.map(|source| (source, shared.enter(source))),
            ways: Default::default(),
        };
        for way in [Way::Up, Way::Down] {
            // Otherwise a client could go on by new sessions.
            let until = |scope| session.taken_until(scope, way, now);
            let until = until(LimitScope::Source).max(until(LimitScope::Listener));
            if until > now && !shared.is_dry_run.load(Relaxed) {
                session.ways[way as usize].paused_until.set(until);
            }
        }
        Some(session)
    }

    /// How many bytes may be read now; `None`: none before [`Self::resumes_at`].
    pub fn allowance(&self, way: Way, now: Instant) -> Option<usize> {
        let shared = &self.shared;
        let (now, state) = (shared.nanos(now), &self.ways[way as usize]);
        let changes = shared.changes.load(Relaxed);
        if self.changes.replace(changes) != changes {
            for state in &self.ways {
                state.paused_until.set(0);
                state.taken_until.set(state.taken_until.get().min(now));
            }
        }
        if state.paused_until.get() > now {
            return None;
        }
        state.paused_until.set(0);
        let limits = LimitScope::ALL.into_iter().filter_map(|scope| {
            let rate = self.rate(scope, way)?;
            let time = scope.next_slice(scope.slice(rate), self.taken_until(scope, way, now), now);
            Some(bytes_in(time, rate).max(LEAST_BYTES.min(rate)))
        });
        let least = limits.min().unwrap_or(u64::MAX);
        Some(usize::try_from(least).unwrap_or(usize::MAX))
    }

    /// Counts what was read.
    pub fn charge(&self, way: Way, bytes: u64, now: Instant) {
        let now = self.shared.nanos(now);
        let mut pause: Option<(u64, LimitScope)> = None;
        for scope in LimitScope::ALL {
            let Some(rate) = self.rate(scope, way) else {
                continue;
            };
            let until = self.take(scope, way, time_of(bytes, rate), now);
            // What is left is not worth another read.
            let is_over = until.saturating_sub(now) >= scope.slice(rate) / 2;
            if is_over && pause.is_none_or(|(longest, _)| until > longest) {
                pause = Some((until, scope));
            }
        }
        let Some((until, scope)) = pause else {
            return;
        };
        let result = match self.shared.is_dry_run.load(Relaxed) {
            true => {
                self.forgive(way, now);
                OverLimit::Passed
            }
            false => {
                self.ways[way as usize].paused_until.set(until);
                OverLimit::Delayed
            }
        };
        self.shared.metrics.over_limit(scope.limit(), result);
    }

    /// When the first of the directions that pause goes on, or looks whether it may.
    pub fn resumes_at(&self, now: Instant) -> Option<Instant> {
        let now = self.shared.nanos(now);
        let paused = self.ways.iter().map(|state| state.paused_until.get());
        let first = paused.filter(|until| *until > now).min();
        first.map(|until| self.shared.instant(until.min(now + LONGEST_WAIT)))
    }

    /// Whether a datagram of so many bytes may pass, which does not wait. If it may, it is counted.
    pub fn admits(&self, way: Way, bytes: u64, now: Instant) -> bool {
        let now = self.shared.nanos(now);
        let is_over = |scope: &LimitScope| {
            self.rate(*scope, way).is_some_and(|rate| {
                let until = self.taken_until(*scope, way, now).max(now);
                let burst = BURST.max(time_of(BURST_BYTES, rate));
                until + time_of(bytes, rate) > now + burst
            })
        };
        let over = LimitScope::ALL.into_iter().find(is_over);
        if let Some(scope) = over {
            if !self.shared.is_dry_run.load(Relaxed) {
                return false;
            }
            self.forgive(way, now);
            let limit = scope.limit();
            self.shared.metrics.over_limit(limit, OverLimit::Passed);
        }
        for scope in LimitScope::ALL {
            if let Some(rate) = self.rate(scope, way) {
                self.take(scope, way, time_of(bytes, rate), now);
            }
        }
        true
    }

    fn rate(&self, scope: LimitScope, way: Way) -> Option<u64> {
        // It may have begun before there was that limit, or on a unix socket.
        let has_none = scope == LimitScope::Source && self.source.is_none();
        self.shared.rate(scope, way).filter(|_| !has_none)
    }

    fn taken_until(&self, scope: LimitScope, way: Way, now: u64) -> u64 {
        let shared = |buckets: &Buckets| buckets.0[way as usize].load(Relaxed);
        match (scope, &self.source) {
            (LimitScope::Session, _) => self.ways[way as usize].taken_until.get(),
            (LimitScope::Source, Some((_, buckets))) => shared(buckets),
            (LimitScope::Source, None) => now,
            (LimitScope::Listener, _) => shared(&self.shared.all),
        }
    }

    /// Takes this time of a limit. Returns until when it is taken then.
    fn take(&self, scope: LimitScope, way: Way, time: u64, now: u64) -> u64 {
        let earliest = now - CREDIT;
        let next = |until: u64| until.max(earliest).saturating_add(time);
        let take_shared = |buckets: &Buckets| {
            let until = &buckets.0[way as usize];
            let before = until.fetch_update(Relaxed, Relaxed, |until| Some(next(until)));
            before.map_or(now, next)
        };
        match (scope, &self.source) {
            (LimitScope::Session, _) => {
                let until = &self.ways[way as usize].taken_until;
                until.set(next(until.get()));
                until.get()
            }
            (LimitScope::Source, Some((_, buckets))) => take_shared(buckets),
            (LimitScope::Source, None) => now,
            (LimitScope::Listener, _) => take_shared(&self.shared.all),
        }
    }

    /// Takes back what is ahead: nothing waits for it.
    fn forgive(&self, way: Way, now: u64) {
        self.ways[way as usize].taken_until.set(now);
        let source = self.source.as_ref().map(|(_, buckets)| buckets.as_ref());
        for buckets in source.into_iter().chain([&self.shared.all]) {
            buckets.0[way as usize].fetch_min(now, Relaxed);
        }
    }
}

impl Drop for SessionBandwidth {
    fn drop(&mut self) {
        if let Some((source, _)) = &self.source {
            self.shared.leave(*source);
        }
    }
}

#[cfg(test)]
mod tests;

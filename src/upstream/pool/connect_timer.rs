//! Measures how long a session waits for a backend, for `least_time`.

use super::{BoxedEndpoint, Inner, Pool};
use crate::{
    plan::{Balance, TimeOf},
    upstream::backend::Backend,
};
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

/// Runs from the pick until what the policy measures has happened. Dropped before that, it reports
/// a futile wait: a backend that never answers must not count as quick.
///
/// The time to the first byte is that of the connect and of the wait from the client's first byte
/// to the backend's. The time before a client sends its request is not the backend's: connection
/// pools connect long before.
#[derive(Debug)]
pub struct ConnectTimer {
    pool: Arc<Pool>,
    backend: Arc<Backend>,
    of: TimeOf,
    /// The time of earlier waits.
    before: Duration,
    /// When the present wait began.
    since: Option<Instant>,
    connected: Option<Instant>,
}

impl ConnectTimer {
    /// `None`: the policy does not compare times.
    pub fn start(pool: &Arc<Pool>, backend: &Arc<Backend>, now: Instant) -> Option<Box<Self>> {
        let of = pool.compares()?;
        let mut clock = Box::new(Self {
            pool: Arc::clone(pool),
            backend: Arc::clone(backend),
            of,
            before: Duration::ZERO,
            since: None,
            connected: None,
        });
        clock.wait(now);
        Some(clock)
    }

    /// The connect succeeded. Returns the clock if it runs on.
    pub fn connected(mut self: Box<Self>, now: Instant) -> Option<Box<Self>> {
        let time = self.stop(now);
        match self.of {
            TimeOf::Connect => {
                self.pool.add_time(&self.backend, time, now);
                None
            }
            TimeOf::FirstByte => {
                self.before = time;
                self.connected = Some(now);
                if self.pool.speaks_first.load(Relaxed) {
                    self.wait(now);
                }
                Some(self)
            }
        }
    }

    /// The first reply to a flow has come; flows have no connect.
    pub fn replied(&mut self, now: Instant) {
        let time = self.stop(now);
        self.pool.add_time(&self.backend, time, now);
    }

    /// The connect failed in a way that proves nothing about speed.
    pub fn failed(&mut self) {
        self.stop(Instant::now());
    }

    /// To be called whenever the relay has moved bytes, until an answer has begun.
    pub fn observe(&mut self, has_asked: bool, has_answered: bool, now: Instant) {
        if has_answered {
            if !has_asked {
                self.pool.speaks_first.store(true, Relaxed);
            }
            if self.since.is_none() {
                self.wait(self.connected.unwrap_or(now));
            }
            let time = self.before + self.stop(now);
            self.pool.add_time(&self.backend, time, now);
        } else if has_asked && self.since.is_none() {
            self.wait(now);
        }
    }

    fn wait(&mut self, now: Instant) {
        self.backend.waiting_sessions.fetch_add(1, Relaxed);
        self.since = Some(now);
    }

    fn stop(&mut self, now: Instant) -> Duration {
        let Some(since) = self.since.take() else {
            return Duration::ZERO;
        };
        self.backend.waiting_sessions.fetch_sub(1, Relaxed);
        now.saturating_duration_since(since)
    }
}

impl Drop for ConnectTimer {
    fn drop(&mut self) {
        if self.since.is_some() {
            let now = Instant::now();
            let time = self.before + self.stop(now);
            self.pool.add_futile_wait(&self.backend, time, now);
        }
    }
}

impl Pool {
    /// Which time the policy compares, if it does.
    fn compares(&self) -> Option<TimeOf> {
        match self.balance {
            Balance::LeastTime(of) => Some(of),
            _ => None,
        }
    }

    /// A session got what it waited for, after so long.
    fn add_time(&self, backend: &Backend, time: Duration, now: Instant) {
        let mut inner = self.lock();
        if let Some(i) = inner.index.endpoint(backend.id) {
            inner.add_time(i, time, now);
        }
    }

    /// A session waited so long and got nothing. That counts where it is longer than the average;
    /// and an endpoint that has never answered is no faster than those that have.
    fn add_futile_wait(&self, backend: &Backend, time: Duration, now: Instant) {
        let mut inner = self.lock();
        let Some(i) = inner.index.endpoint(backend.id) else {
            return;
        };
        let average = inner.endpoints[i].latency.seconds;
        if average == 0.0 {
            let averages = inner.endpoints.iter().map(|e| e.latency.seconds);
            let slowest = Duration::from_secs_f64(averages.fold(0.0, f64::max));
            inner.add_time(i, time.max(slowest), now);
        } else if average < time.as_secs_f64() {
            inner.add_time(i, time, now);
        }
    }
}

impl Inner {
    fn add_time(&mut self, i: usize, time: Duration, now: Instant) {
        let endpoint = &mut self.endpoints[i];
        let period = endpoint.config.rule.fail_timeout;
        endpoint.latency.add(time, now, period);
        // No later than it may have been: coming too early does no harm.
        let halvings = self.next_halving.into_iter().chain(endpoint.latency.halves);
        self.next_halving = halvings.min();
    }

    /// Halves the averages of endpoints that have not been used for long, if one is due.
    pub(super) fn halve_if_due(&mut self, now: Instant) {
        if self.next_halving.is_none_or(|at| now < at) {
            return;
        }
        let is_due = |e: &&mut BoxedEndpoint| e.latency.halves.is_some_and(|at| now >= at);
        for endpoint in self.endpoints.iter_mut().filter(is_due) {
            let period = endpoint.config.rule.fail_timeout;
            // One that is waited for is in use.
            match endpoint.backend.waiting_sessions.load(Relaxed) {
                0 => endpoint.latency.halve(now, period),
                _ => endpoint.latency.put_off(now, period),
            }
        }
        let halvings = self.endpoints.iter().filter_map(|e| e.latency.halves);
        self.next_halving = halvings.min();
    }
}

//! Log lines about a backend that sessions or checks cannot reach: the first event of a kind at
//! once, those that follow in one line each period, with their count.

use super::Backend;
use crate::{
    plan::reason::ConnectError,
    telemetry::throttle::{Events, Throttle},
};
use std::{fmt::Display, time::Instant};

/// Limits the lines of one backend.
#[derive(Debug)]
pub(super) struct Notices {
    failed: Throttle<{ ConnectError::COUNT }>,
    full: Throttle<1>,
    unchecked: Throttle<1>,
}

impl Notices {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            failed: Throttle::new(now),
            full: Throttle::new(now),
            unchecked: Throttle::new(now),
        }
    }
}

impl Backend {
    /// A connect to it failed, or the network reports that it cannot be reached.
    pub fn log_failure(&self, reason: ConnectError, error: &dyn Display, now: Instant) {
        match self.notices.failed.add(reason as usize, 1, now) {
            Some(count) => self.write_failure(reason, Some(error), Events::now(count)),
            None => {
                tracing::debug!(upstream = %self.metrics.upstream, backend = %self.text(),
                    address = %self.addr, reason = reason.word(), %error, "connect failed");
            }
        }
    }

    fn write_failure(&self, reason: ConnectError, error: Option<&dyn Display>, events: Events) {
        let (upstream, backend, address) = (&self.metrics.upstream, self.text(), &self.addr);
        let (reason_word, error) = (reason.word(), error.map(tracing::field::display));
        if reason.is_of_backend() {
            tracing::warn!(%upstream, %backend, %address, reason = reason_word, error,
                count = events.count, last_seconds_ago = events.seconds_ago(),
                "backend cannot be reached");
        } else {
            tracing::warn!(%upstream, %backend, %address, reason = reason_word, error,
                count = events.count, last_seconds_ago = events.seconds_ago(),
                "no connect to the backend, a local limit is reached");
        }
    }

    /// A session did not get it because of its `max_connections`.
    pub fn log_full(&self, now: Instant) {
        if let Some(count) = self.notices.full.add(0, 1, now) {
            self.write_full(Events::now(count));
        }
    }

    fn write_full(&self, events: Events) {
        tracing::warn!(upstream = %self.metrics.upstream, backend = %self.text(),
            address = %self.addr, connections = self.active(), count = events.count,
            last_seconds_ago = events.seconds_ago(),
            "backend has reached its max_connections");
    }

    /// A check could not be made for a local reason: it proves nothing about the backend.
    pub fn log_no_check(&self, why: &dyn Display, now: Instant) {
        if let Some(count) = self.notices.unchecked.add(0, 1, now) {
            self.write_no_check(Some(why), Events::now(count));
        }
    }

    fn write_no_check(&self, why: Option<&dyn Display>, events: Events) {
        tracing::warn!(upstream = %self.metrics.upstream, backend = %self.text(),
            address = %self.addr, error = why.map(tracing::field::display), count = events.count,
            last_seconds_ago = events.seconds_ago(),
            "backend cannot be checked, a local limit is reached");
    }

    /// Logs events that came after the last line about their kind, where the period has passed.
    pub fn log_due(&self, now: Instant) {
        let notices = &self.notices;
        let (full, unchecked) = (notices.full.due(now), notices.unchecked.due(now));
        self.write_all(notices.failed.due(now), full, unchecked);
    }

    /// Logs all events that came after the last line about their kind.
    pub fn log_rest(&self) {
        let now = Instant::now();
        let notices = &self.notices;
        let (full, unchecked) = (notices.full.rest(now), notices.unchecked.rest(now));
        self.write_all(notices.failed.rest(now), full, unchecked);
    }

    fn write_all(
        &self,
        failed: impl Iterator<Item = (usize, Events)>,
        full: impl Iterator<Item = (usize, Events)>,
        unchecked: impl Iterator<Item = (usize, Events)>,
    ) {
        for (reason, events) in failed {
            self.write_failure(ConnectError::ALL[reason], None, events);
        }
        for (_, events) in full {
            self.write_full(events);
        }
        for (_, events) in unchecked {
            self.write_no_check(None, events);
        }
    }
}

/// The last events of an address are logged when it is gone, too.
impl Drop for Backend {
    fn drop(&mut self) {
        self.log_rest();
    }
}

//! What the log says of a backend that sessions or checks do not reach: the first event of a kind
//! at once, those that follow in one line each period, with their count.

use super::Backend;
use crate::{plan::reason::ConnectError, telemetry::throttle::Throttle};
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
    /// A connect to it failed, or the network says that it cannot be reached.
    pub fn log_failure(&self, reason: ConnectError, error: &dyn Display, now: Instant) {
        match self.notices.failed.add(reason as usize, 1, now) {
            Some(count) => self.tell_failure(reason, Some(error), count),
            None => {
                tracing::debug!(upstream = %self.metrics.upstream, backend = %self.text(),
                    address = %self.place, reason = reason.word(), %error, "connect failed");
            }
        }
    }

    fn tell_failure(&self, reason: ConnectError, error: Option<&dyn Display>, count: u64) {
        let (upstream, backend, address) = (&self.metrics.upstream, self.text(), &self.place);
        let (reason_word, error) = (reason.word(), error.map(tracing::field::display));
        if reason.blames_backend() {
            tracing::warn!(%upstream, %backend, %address, reason = reason_word, error, count,
                "backend cannot be reached");
        } else {
            tracing::warn!(%upstream, %backend, %address, reason = reason_word, error, count,
                "no connect to the backend, a local limit is reached");
        }
    }

    /// A session was not given to it because it has as many as it may have.
    pub fn log_full(&self, now: Instant) {
        if let Some(count) = self.notices.full.add(0, 1, now) {
            self.tell_full(count);
        }
    }

    fn tell_full(&self, count: u64) {
        tracing::warn!(upstream = %self.metrics.upstream, backend = %self.text(),
            address = %self.place, connections = self.active(), count,
            "backend has reached its max_connections");
    }

    /// A check could not be made for a local reason, and says nothing of the backend.
    pub fn log_no_check(&self, why: &dyn Display, now: Instant) {
        if let Some(count) = self.notices.unchecked.add(0, 1, now) {
            self.tell_no_check(Some(why), count);
        }
    }

    fn tell_no_check(&self, why: Option<&dyn Display>, count: u64) {
        tracing::warn!(upstream = %self.metrics.upstream, backend = %self.text(),
            address = %self.place, error = why.map(tracing::field::display), count,
            "backend cannot be checked, a local limit is reached");
    }

    /// Tells the log of events that came after the last line about their kind.
    pub fn log_due(&self, now: Instant) {
        let notices = &self.notices;
        let (full, unchecked) = (notices.full.due(now), notices.unchecked.due(now));
        self.tell_all(notices.failed.due(now), full, unchecked);
    }

    /// As [`Self::log_due`], at the end: it does not wait for the period to pass.
    pub fn log_rest(&self) {
        let notices = &self.notices;
        let (full, unchecked) = (notices.full.rest(), notices.unchecked.rest());
        self.tell_all(notices.failed.rest(), full, unchecked);
    }

    fn tell_all(
        &self,
        failed: impl Iterator<Item = (usize, u64)>,
        full: impl Iterator<Item = (usize, u64)>,
        unchecked: impl Iterator<Item = (usize, u64)>,
    ) {
        for (reason, count) in failed {
            self.tell_failure(ConnectError::ALL[reason], None, count);
        }
        for (_, count) in full {
            self.tell_full(count);
        }
        for (_, count) in unchecked {
            self.tell_no_check(None, count);
        }
    }
}

/// An address that a name no longer stands for is forgotten, its last events are not.
impl Drop for Backend {
    fn drop(&mut self) {
        self.log_rest();
    }
}

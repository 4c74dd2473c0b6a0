//! What sessions report about backends.

use super::Service;
use crate::{
    plan::reason::ConnectError,
    upstream::{backend::Backend, health::FailureOf},
};
use std::{io, sync::Arc, time::Instant};

impl Service {
    /// A backend could not be reached by an attempt that began then. Counts and logs that, and
    /// reports it to the pool if it counts against the backend.
    pub fn report_failure(
        &self,
        backend: &Arc<Backend>,
        error: &io::Error,
        [began, now]: [Instant; 2],
    ) -> ConnectError {
        let reason = ConnectError::of(error);
        count_error(backend, reason);
        // A connection waits for a shortage to pass, and has logged that when it began to.
        if self.is_udp() || !reason.is_shortage() {
            backend.log_failure(reason, error, now);
        }
        if reason.is_of_backend() {
            let of = match self.is_udp() {
                true => FailureOf::Flow,
                false => FailureOf::Connection,
            };
            self.pool.failed(backend, of, reason, error, [began, now]);
        }
        reason
    }

    /// A flow ended without replies that its backend owed, which is counted always. `is_silent`: it
    /// has replied to no other flow since.
    pub fn report_silence(&self, backend: &Arc<Backend>, is_silent: bool, now: Instant) {
        if is_silent && self.pool.may_be_blamed_for_silence(backend, now) {
            let error = io::Error::new(io::ErrorKind::TimedOut, "no reply to a flow");
            self.report_failure(backend, &error, [now; 2]);
        } else {
            count_error(backend, ConnectError::Timeout);
        }
    }

    /// A session ended by this error of its backend before the first byte of an answer.
    pub fn report_unanswered(&self, backend: &Arc<Backend>, error: ConnectError, now: Instant) {
        let what = match error {
            ConnectError::Timeout => "the session timed out before the first byte of an answer",
            ConnectError::Refused
            | ConnectError::Unreachable
            | ConnectError::Prohibited
            | ConnectError::Reset
            | ConnectError::NoPorts
            | ConnectError::NoDescriptors
            | ConnectError::NoMemory
            | ConnectError::Other => "the session was reset before the first byte of an answer",
        };
        if self.pool.fail_on_reset {
            let of = FailureOf::Answer;
            self.pool.failed(backend, of, error, &what, [now; 2]);
        }
    }
}

fn count_error(backend: &Backend, reason: ConnectError) {
    let counts = backend.metrics.counts.mine();
    counts.connect_errors[reason as usize].add(1);
}

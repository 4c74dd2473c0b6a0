//! What the kernel has not delivered yet to the peers of a session, and whether a peer is lost.

use crate::{
    runtime::{net::Stream, time},
    sys::socket::{Sending, Window, bound_probe_interval, sending},
};
use std::time::{Duration, Instant};

/// Unanswered window probes after which a peer that took nothing counts as lost, as three
/// unanswered keepalive probes do.
const LOST_PROBES: u8 = 3;
/// The kernel lets up to two minutes pass between two transmissions: there is at least one in this
/// time.
const SLOWEST: Duration = Duration::from_secs(240);

/// What the last check of both sockets has found. In a box, since most sessions have nothing under
/// way when they are checked.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    client: Option<Pending>,
    backend: Option<Pending>,
    /// When data was last seen waiting for a peer, in milliseconds of the executor: the limit for
    /// half-closed sessions counts from there.
    pub(super) pending_at: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    progress: u64,
    /// When this progress was first seen.
    since: Instant,
}

/// The last check of both sockets, for another process.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct DeliveryState {
    pub client: Option<Undelivered>,
    pub backend: Option<Undelivered>,
    /// See [`Delivery`].
    pub pending_at: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Undelivered {
    /// A number of the socket that changes when its peer acknowledges bytes.
    pub progress: u64,
    /// When this progress was first seen, see [`time::micros_at`].
    pub since: u64,
}

/// The result of a check.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct DeliveryCheck {
    /// Written bytes are not acknowledged.
    pub(super) is_waiting: bool,
    /// Bytes were acknowledged since the check before.
    pub(super) has_progressed: bool,
    /// Since when a peer that data waits for has acknowledged no more; of two peers the later time.
    pub(super) stalled_since: Option<Instant>,
    pub(super) client_is_lost: bool,
    pub(super) backend_is_lost: bool,
}

impl Delivery {
    /// That of another process.
    pub(super) fn of(state: DeliveryState, now: Instant) -> Self {
        let pending = |state: Undelivered| Pending {
            progress: state.progress,
            since: time::past_at(state.since, now),
        };
        Self {
            client: state.client.map(pending),
            backend: state.backend.map(pending),
            pending_at: state.pending_at,
        }
    }

    pub(super) fn state(&self) -> DeliveryState {
        let undelivered = |pending: &Pending| Undelivered {
            progress: pending.progress,
            since: time::micros_at(pending.since),
        };
        DeliveryState {
            client: self.client.as_ref().map(undelivered),
            backend: self.backend.as_ref().map(undelivered),
            pending_at: self.pending_at,
        }
    }

    /// Compares with the check before. `limit`: how long a peer may acknowledge nothing.
    pub(super) fn check(
        &mut self,
        client: &Stream,
        backend: &Stream,
        limit: Option<Duration>,
        now: Instant,
    ) -> DeliveryCheck {
        let mut check = DeliveryCheck::default();
        check.client_is_lost = check.add(&mut self.client, observe(client, limit), limit, now);
        check.backend_is_lost = check.add(&mut self.backend, observe(backend, limit), limit, now);
        check
    }
}

/// The same for a single peer, when only its acknowledgements are waited for.
#[derive(Debug, Default)]
pub(super) struct PeerCheck(Option<Pending>);

impl PeerCheck {
    pub(super) fn is_lost(
        &mut self,
        stream: &Stream,
        limit: Option<Duration>,
        now: Instant,
    ) -> bool {
        DeliveryCheck::default().add(&mut self.0, observe(stream, limit), limit, now)
    }
}

/// What is under way to a peer. While its window is closed, the kernel probes it at intervals that
/// double up to two minutes, whether or not it answers: a peer that vanishes after a long pause
/// would be found lost long after `limit`.
fn observe(stream: &Stream, limit: Option<Duration>) -> Option<Sending> {
    let sending = sending(stream)?;
    if let Some(limit) = limit
        && sending.window != Window::Open
    {
        bound_probe_interval(stream, limit / (u32::from(LOST_PROBES) + 1));
    }
    Some(sending)
}

impl DeliveryCheck {
    fn add(
        &mut self,
        seen: &mut Option<Pending>,
        sending: Option<Sending>,
        limit: Option<Duration>,
        now: Instant,
    ) -> bool {
        let Some(sending) = sending else {
            // What was under way has arrived.
            self.has_progressed |= seen.take().is_some();
            return false;
        };
        self.is_waiting = true;
        let progress = sending.progress;
        match seen {
            Some(before) if before.progress == progress => {
                self.stalled_since = self.stalled_since.max(Some(before.since));
                let waited = now.saturating_duration_since(before.since);
                limit.is_some_and(|limit| waited >= limit && !is_paused(&sending, limit))
            }
            _ => {
                self.stalled_since = Some(now);
                self.has_progressed |= seen.is_some();
                *seen = Some(Pending {
                    progress,
                    since: now,
                });
                false
            }
        }
    }
}

/// Whether the peer answers and takes nothing, because its application does not read.
/// TCP_USER_TIMEOUT would end such a connection as well.
fn is_paused(sending: &Sending, limit: Duration) -> bool {
    match sending.window {
        Window::Open => false,
        Window::Probed { unanswered } => unanswered < LOST_PROBES || sending.last_ack_age < limit,
        Window::Shrunk => sending.last_ack_age < limit.max(SLOWEST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sending(progress: u64, window: Window, last_ack_age: u64) -> Option<Sending> {
        Some(Sending {
            progress,
            window,
            last_ack_age: Duration::from_secs(last_ack_age),
        })
    }

    /// Checks once a second, and returns after how many the peer counts as lost.
    fn lost_after(checks: impl Fn(u64) -> Option<Sending>) -> Option<u64> {
        let began = Instant::now();
        let mut seen = None;
        (0..1_000).find(|&second| {
            let now = began + Duration::from_secs(second);
            let limit = Some(Duration::from_secs(90));
            DeliveryCheck::default().add(&mut seen, checks(second), limit, now)
        })
    }

    #[test]
    fn a_peer_that_acknowledges_nothing_is_lost_after_the_limit() {
        assert_eq!(lost_after(|n| sending(7, Window::Open, n)), Some(90));
        // Whatever else comes from it: what is sent to it does not arrive.
        assert_eq!(lost_after(|_| sending(7, Window::Open, 0)), Some(90));
        let from_50 = |n: u64| sending(n.min(50), Window::Open, n.saturating_sub(50));
        assert_eq!(lost_after(from_50), Some(140));
        assert_eq!(lost_after(|_| None), None);
    }

    #[test]
    fn a_peer_that_answers_and_does_not_read_is_not() {
        let probed = |unanswered| Window::Probed { unanswered };
        // The kernel asks every two minutes in the end.
        assert_eq!(lost_after(|n| sending(7, probed(1), n % 120)), None);
        assert_eq!(lost_after(|n| sending(7, Window::Shrunk, n % 120)), None);
        let is_gone = |n: u64| sending(7, probed(n.min(200) as u8), n);
        assert_eq!(lost_after(is_gone), Some(90));
        assert_eq!(lost_after(|n| sending(7, Window::Shrunk, n)), Some(240));
    }

    #[test]
    fn what_arrives_counts_as_progress() {
        let now = Instant::now();
        let mut seen = None;
        let mut check = |sending| {
            let mut check = DeliveryCheck::default();
            check.add(&mut seen, sending, None, now);
            (check.is_waiting, check.stalled_since, check.has_progressed)
        };
        let since = Some(now);
        assert_eq!(check(sending(1, Window::Open, 0)), (true, since, false));
        assert_eq!(check(sending(1, Window::Open, 0)), (true, since, false));
        assert_eq!(check(sending(2, Window::Open, 0)), (true, since, true));
        assert_eq!(check(None), (false, None, true));
        assert_eq!(check(None), (false, None, false));
    }
}

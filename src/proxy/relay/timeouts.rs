//! Limits on silence, and checks of delivery: what a relay does when its timer expires.

use super::{NEVER, Relay, Side, delivery::DeliveryCheck, direction::BreakCause};
use crate::{
    plan::reason::CloseReason,
    runtime::{executor, net::keep_alive},
    sys,
};
use std::{
    task::Poll,
    time::{Duration, Instant},
};

/// At a stop of the process, how long a session may be silent that has one side finished.
const STOP_SILENCE: Duration = Duration::from_secs(1);
/// Checks of delivery within one more limit, where data waits for a peer at the end of a limit.
const CHECKS_PER_LIMIT: u32 = 8;
/// The interval between two checks of delivery.
const CHECK_INTERVAL_MIN: Duration = Duration::from_millis(20);
const CHECK_INTERVAL_MAX: Duration = Duration::from_secs(30);
/// How long a session lasts before keepalive is worth its system calls: most send one request and
/// end.
const KEEPALIVE_DELAY: Duration = Duration::from_secs(1);

/// How long a session may be silent.
#[derive(Clone, Copy)]
struct SilenceLimit {
    /// When it has passed, in milliseconds of the executor.
    deadline: u64,
    limit: Duration,
    /// What the session ends as then.
    reason: CloseReason,
}

/// The first millisecond at which `limit` has passed since the millisecond `since`.
pub(super) fn after(since: u64, limit: Duration) -> u64 {
    let part = u64::from(!limit.subsec_nanos().is_multiple_of(1_000_000));
    let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    since.saturating_add(limit).saturating_add(part + 1)
}

impl Relay<'_> {
    /// The limit on silence that passes first.
    fn silence_limit(&self) -> Option<SilenceLimit> {
        let half_closed = self.up.finished || self.down.finished;
        // While bytes wait for a side, the session is not silent. But a peer that takes nothing
        // is, for `idle_timeout`, and if the other side is broken, for the time of a half-closed
        // session.
        let pending_at = self.delivery.as_ref().and_then(|d| d.pending_at);
        let pending_at = pending_at.filter(|_| self.broken.is_none());
        let last_activity = self.counters.session.active_millis();
        let silent_since = pending_at.map_or(last_activity, |at| at.max(last_activity));
        let is_stopping = half_closed && self.counters.session.is_stopping();
        let limit = |since, limit, reason| SilenceLimit {
            deadline: after(since, limit),
            limit,
            reason,
        };
        let stop = is_stopping.then(|| limit(silent_since, STOP_SILENCE, CloseReason::Drained));
        let half_close = self.plan.half_close_timeout.filter(|_| half_closed);
        let half_close = half_close.map(|l| limit(silent_since, l, CloseReason::HalfCloseTimeout));
        let idle = self.plan.idle_timeout;
        let idle = idle.map(|l| limit(last_activity, l, CloseReason::IdleTimeout));
        let all = stop.into_iter().chain(half_close).chain(idle);
        all.min_by_key(|limit| limit.deadline)
    }

    pub(super) fn watch_silence(&mut self, now: Instant) -> Poll<CloseReason> {
        let now_millis = executor::now_millis();
        let resume = self.resume_millis(now, now_millis);
        let mut silence = self.silence_limit();
        let over = silence.filter(|limit| now_millis >= limit.deadline);
        if over.is_some() || now_millis >= self.next_check {
            let check = self.check_delivery(over.map(|over| over.limit), now);
            silence = self.silence_limit();
            // A peer that acknowledges bytes now and then is not idle.
            let patience = match self.broken {
                Some(_) => self.plan.half_close_timeout,
                None => self.plan.idle_timeout,
            };
            let is_delivering = check
                .stalled_since
                .is_some_and(|since| patience.is_some_and(|limit| now < since + limit));
            if let Some(limit) = silence
                && now_millis >= limit.deadline
                && !is_delivering
            {
                return Poll::Ready(limit.reason);
            }
        }
        // Activity only moves the deadline away: the timer expires early and is set again then, so
        // that a busy session does not set it at every poll. What brings the deadline nearer sets
        // it.
        let deadline = silence.map(|limit| limit.deadline);
        let later = deadline.filter(|at| *at > now_millis);
        let needs_keepalive = !self.has_keepalive && self.timer == NEVER;
        let keepalive = needs_keepalive.then(|| after(now_millis, KEEPALIVE_DELAY));
        let has_expired = now_millis >= self.timer;
        if has_expired {
            self.enable_keepalive();
        }
        let next = later.into_iter().chain(keepalive).chain(resume).min();
        let next = next.map_or(self.next_check, |next| next.min(self.next_check));
        if has_expired || next < self.timer {
            self.timer = next;
            if next < NEVER {
                executor::wake_at_millis(next);
            }
        }
        Poll::Pending
    }

    /// When a direction that pauses for want of bandwidth goes on. A session that may carry nothing
    /// is not silent.
    fn resume_millis(&self, now: Instant, now_millis: u64) -> Option<u64> {
        let at = self.bandwidth()?.resumes_at(now)?;
        let at = executor::millis_at(at).max(now_millis + 1);
        self.counters.session.set_active(at);
        Some(at)
    }

    /// From a move of bytes to the check of their delivery, and between two checks.
    pub(super) fn check_interval(&self) -> Option<Duration> {
        let limits = [self.plan.socket.user_timeout, self.plan.idle_timeout];
        let limit = limits.into_iter().flatten().min()?;
        Some((limit / 4).clamp(CHECK_INTERVAL_MIN, CHECK_INTERVAL_MAX))
    }

    /// Checks what was written and has not arrived. `over`: the limit that has passed, which does
    /// not hold while data moves towards a peer, however slowly.
    fn check_delivery(&mut self, over: Option<Duration>, now: Instant) -> DeliveryCheck {
        let now_millis = executor::now_millis();
        let mut delivery = self.delivery.take().unwrap_or_default();
        let limit = self.plan.socket.user_timeout;
        let check = delivery.check(self.client, self.backend(), limit, now);
        let half_closed = self.up.finished || self.down.finished;
        let is_pending = check.is_waiting || half_closed && self.is_undelivered();
        if check.has_progressed {
            self.counters.session.set_active(now_millis);
        }
        if is_pending && half_closed {
            delivery.pending_at = Some(now_millis);
        }
        let soon = match over {
            Some(limit) => Some(limit),
            // Checks go on at the interval at which they began.
            None => self.plan.half_close_timeout.filter(|_| half_closed),
        };
        let soon = soon
            .map(|limit| (limit / CHECKS_PER_LIMIT).clamp(CHECK_INTERVAL_MIN, CHECK_INTERVAL_MAX));
        self.next_check = is_pending
            .then(|| soon.into_iter().chain(self.check_interval()).min())
            .flatten()
            .map_or(NEVER, |interval| after(now_millis, interval));
        if is_pending || delivery.pending_at.is_some() {
            self.delivery = Some(delivery);
        }
        for (side, is_lost) in [
            (Side::Client, check.client_is_lost),
            (Side::Backend, check.backend_is_lost),
        ] {
            if is_lost && !self.is_broken(side) {
                self.give_up(side);
            }
        }
        check
    }

    /// Whether bytes that have arrived wait for a side that has not ended.
    fn is_undelivered(&self) -> bool {
        !self.up.finished && self.up.has_more(self.client)
            || !self.down.finished && self.down.has_more(self.backend())
    }

    /// What the host sent before it was lost is still delivered, up to the end that is made here.
    fn give_up(&mut self, side: Side) {
        let stream = match side {
            Side::Client => self.client,
            Side::Backend => self.backend(),
        };
        sys::socket::reset_on_close(stream);
        sys::socket::end_both(stream);
        self.broken_at(side, BreakCause::TimedOut);
        executor::wake_next_turn();
    }

    fn enable_keepalive(&mut self) {
        if std::mem::replace(&mut self.has_keepalive, true) {
            return;
        }
        if let Some(keepalive) = &self.plan.socket.keepalive
            && self.backend().is_tcp()
        {
            // It fails only on a socket that is dead, which reading will show.
            let _ = keep_alive(self.backend(), keepalive);
        }
    }
}

//! Carries bytes both ways between two streams until both have ended.
//!
//! One task polls both directions. A direction starts by copying through a buffer that all sessions
//! of a worker share, and changes over to splicing while a flow is sustained. Whatever one side has
//! said arrives at the other in order: its bytes, then its end, be that a clean one or a reset.

mod delivery;
mod direction;
mod ending;
mod first;

pub use ending::{Last, end};
pub use first::First;

use crate::{
    plan::{self, access, reason::CloseReason},
    proxy_protocol::Watch,
    runtime::{
        executor,
        net::{Stream, keep_alive},
    },
    session::registry::Session,
    sys,
    telemetry::metrics::{BackendCounts, ListenerCounts, RelayCounts},
    upstream::pool::Clock,
};
use delivery::{Delivery, Look};
use direction::{Broken, Cause, Direction, Flow};
use std::{
    cell::Cell,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

/// Where the bytes of a session are counted: the shards of the worker that it is on.
pub struct Tally<'a> {
    pub session: &'a Session,
    pub listener: &'a ListenerCounts,
    pub backend: &'a BackendCounts,
    pub relayed: &'a RelayCounts,
}

/// A backend that was reached.
pub struct Reached {
    pub stream: Stream,
    /// Taken when the relay begins. In a box: most sessions have none.
    pub opening: Option<Box<Opening>>,
}

/// What is special about the beginning of a session.
#[derive(Default)]
pub struct Opening {
    pub first: Option<Box<First>>,
    /// Whom to tell of the backend's first byte.
    pub awaiting: Awaiting,
}

/// Those who want to know that an answer has begun.
#[derive(Default)]
pub struct Awaiting {
    /// Where the policy asks how long an answer takes.
    pub clock: Option<Box<Clock>>,
    /// Where only an answer proves that a backend is well.
    pub proof: Option<Box<dyn FnOnce(Instant) + Send>>,
}

/// The backend's first byte.
enum Answer {
    Awaited(Option<Box<Awaiting>>),
    Begun(Instant),
}

/// How it went.
#[derive(Debug)]
pub struct Outcome {
    pub reason: CloseReason,
    /// When the backend's first byte was read.
    pub first_byte: Option<Instant>,
    /// The side that has not ended, where the end of the other one ended the session.
    still_open: Option<Side>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Backend,
}

/// As a time of the event loop.
const NEVER: u64 = u64::MAX;
/// At a stop, a session with one side finished may be silent for so long.
const STOP_SILENCE: Duration = Duration::from_secs(1);
/// While data waits for a peer at the end of a limit, it is looked at so many times within
/// another such limit.
const LOOKS: u32 = 8;
/// Between two looks at what was not delivered.
const LOOK_LEAST: Duration = Duration::from_millis(20);
const LOOK_MOST: Duration = Duration::from_secs(30);
/// A session that has lasted for so long is not one of those that come, ask once and go.
const SETTLED: Duration = Duration::from_secs(1);

/// Relays until the session is over. The streams are left to be closed by the caller, after
/// [`end`].
pub fn relay<'a>(
    client: &'a Stream,
    reached: &'a mut Reached,
    plan: &'a plan::Listener,
    tally: &'a Tally<'a>,
) -> Relay<'a> {
    let (first, awaiting) = match reached.opening.take().map(|opening| *opening) {
        Some(Opening { first, awaiting }) => (first, awaiting.if_any()),
        None => (None, None),
    };
    Relay {
        client,
        backend: &reached.stream,
        plan,
        tally,
        up: Direction::from_client(first, watch(plan, tally)),
        down: Direction::default(),
        broken: None,
        begun: false,
        last_activity: executor::now(),
        look_at: NEVER,
        delivery: None,
        armed: NEVER,
        has_settled: plan.socket.keepalive.is_none(),
        answer: Answer::Awaited(awaiting),
    }
}

impl Awaiting {
    /// In a box, since most sessions have nobody to tell.
    fn if_any(self) -> Option<Box<Self>> {
        (self.clock.is_some() || self.proof.is_some()).then(|| Box::new(self))
    }

    fn look(&mut self, has_asked: bool, has_answered: bool, now: Instant) {
        if let Some(clock) = &mut self.clock {
            clock.look(has_asked, has_answered, now);
        }
        if has_answered && let Some(proof) = self.proof.take() {
            proof(now);
        }
    }
}

/// A backend may be one that accepts headers, and must not be told by just anybody who the client
/// is.
fn watch(plan: &plan::Listener, tally: &Tally<'_>) -> Watch {
    match &plan.accept_proxy {
        Some(accept) if !access::trusts(accept, tally.session.peer.ip()) => Watch::Begun,
        _ => Watch::Over,
    }
}

/// A future of its own, not an async block: that would hold what it is given twice.
pub struct Relay<'a> {
    client: &'a Stream,
    backend: &'a Stream,
    plan: &'a plan::Listener,
    tally: &'a Tally<'a>,
    /// From the client to the backend.
    up: Direction,
    down: Direction,
    /// The side that reset, or that cannot be written to any more.
    broken: Option<(Side, Cause)>,
    begun: bool,
    last_activity: Instant,
    /// When both sockets are to be looked at for what was not delivered, in milliseconds of the
    /// event loop; `NEVER` while nothing has moved since the last look.
    look_at: u64,
    delivery: Option<Box<Delivery>>,
    /// When this is to be polled anyway, in milliseconds of the event loop.
    armed: u64,
    has_settled: bool,
    answer: Answer,
}

impl Future for Relay<'_> {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let this = self.get_mut();
        if !this.begun {
            this.begun = true;
            this.tally.session.wake_by(cx.waker());
        }
        let reason = ready!(this.advance());
        this.reckon();
        // Of these the caller passes a reset on.
        let is_by_a_peer = matches!(
            reason,
            CloseReason::ClientReset
                | CloseReason::BackendReset
                | CloseReason::ClientTimedOut
                | CloseReason::BackendTimedOut
        );
        if reason != CloseReason::Ok && !is_by_a_peer {
            this.tell_who_was_cut_short(reason);
        }
        Poll::Ready(Outcome {
            reason,
            first_byte: match this.answer {
                Answer::Begun(at) => Some(at),
                Answer::Awaited(_) => None,
            },
            still_open: match (reason, this.up.was_stopped(), this.down.was_stopped()) {
                (CloseReason::Ok, true, false) => Some(Side::Client),
                (CloseReason::Ok, false, true) => Some(Side::Backend),
                _ => None,
            },
        })
    }
}

impl<'a> Relay<'a> {
    /// Moves what can be moved, in both directions. Ready when the session is over.
    fn advance(&mut self) -> Poll<CloseReason> {
        if let Some(reason) = self.tally.session.must_end() {
            return Poll::Ready(reason);
        }
        let now = executor::now();
        let moved = Cell::new(false);
        let ended_before = (self.up.finished, self.down.finished);
        self.advance_both(now, &moved);
        let has_ended = self.up.finished != self.down.finished && self.broken.is_none();
        if has_ended && !self.plan.half_close {
            self.up.stop_reading();
            self.down.stop_reading();
            self.advance_both(now, &moved);
        }
        if let Answer::Awaited(awaiting) = &mut self.answer {
            if let Some(awaiting) = awaiting {
                awaiting.look(self.up.has_begun, self.down.has_begun, now);
            }
            if self.down.has_begun {
                self.answer = Answer::Begun(now);
            }
        }
        if self.up.was_refused() {
            return Poll::Ready(CloseReason::UntrustedHeader);
        }
        if self.up.finished && self.down.finished {
            return Poll::Ready(match self.broken {
                None => CloseReason::Ok,
                Some((Side::Client, Cause::Reset)) => CloseReason::ClientReset,
                Some((Side::Backend, Cause::Reset)) => CloseReason::BackendReset,
                Some((Side::Client, Cause::TimedOut)) => CloseReason::ClientTimedOut,
                Some((Side::Backend, Cause::TimedOut)) => CloseReason::BackendTimedOut,
            });
        }
        // An end is activity too: what follows it has its full time.
        if moved.get() || ended_before != (self.up.finished, self.down.finished) {
            self.last_activity = now;
            if let Some(interval) = self.look_interval()
                && self.look_at == NEVER
            {
                self.look_at = executor::millis(now + interval);
            }
        }
        self.watch_silence(now)
    }

    fn advance_both(&mut self, now: Instant, moved: &Cell<bool>) {
        loop {
            let broken_before = self.broken;
            self.advance_up(now, moved);
            self.advance_down(now, moved);
            // What a side had said before it broke is still to come, and nothing may tell of it
            // again: once more round.
            if self.broken == broken_before {
                break;
            }
        }
    }

    fn advance_up(&mut self, now: Instant, moved: &Cell<bool>) {
        if self.up.finished {
            return;
        }
        let flow = self.flow_up(now, moved);
        match self.up.poll(self.client, self.backend, &flow) {
            Poll::Ready(Ok(())) => self.up.finish(),
            Poll::Ready(Err(Broken::Source(cause))) => self.broken_at(Side::Client, cause),
            Poll::Ready(Err(Broken::Sink(cause))) => self.broken_at(Side::Backend, cause),
            Poll::Pending => {}
        }
    }

    fn advance_down(&mut self, now: Instant, moved: &Cell<bool>) {
        if self.down.finished {
            return;
        }
        let flow = self.flow_down(now, moved);
        match self.down.poll(self.backend, self.client, &flow) {
            Poll::Ready(Ok(())) => self.down.finish(),
            Poll::Ready(Err(Broken::Source(cause))) => self.broken_at(Side::Backend, cause),
            Poll::Ready(Err(Broken::Sink(cause))) => self.broken_at(Side::Client, cause),
            Poll::Pending => {}
        }
    }

    fn flow_up<'f>(&self, now: Instant, moved: &'f Cell<bool>) -> Flow<'f>
    where
        'a: 'f,
    {
        let tally = self.tally;
        Flow {
            read: &tally.listener.received,
            written: &tally.backend.sent,
            client_bytes_read: Some(&tally.session.received),
            client_bytes_written: None,
            relayed: tally.relayed,
            moved,
            now,
            source_is_broken: self.is_broken(Side::Client),
            last_to_end: self.down.finished || !self.plan.half_close,
        }
    }

    fn flow_down<'f>(&self, now: Instant, moved: &'f Cell<bool>) -> Flow<'f>
    where
        'a: 'f,
    {
        let tally = self.tally;
        Flow {
            read: &tally.backend.received,
            written: &tally.listener.sent,
            client_bytes_read: None,
            client_bytes_written: Some(&tally.session.sent),
            relayed: tally.relayed,
            moved,
            now,
            source_is_broken: self.is_broken(Side::Backend),
            last_to_end: self.up.finished || !self.plan.half_close,
        }
    }

    /// However it ends: what was not written is not counted, and is known to be missing.
    fn reckon(&mut self) {
        let (now, moved) = (executor::now(), Cell::new(false));
        let (up, down) = (self.flow_up(now, &moved), self.flow_down(now, &moved));
        // Whom it could not be written to is gone, and the session is over anyway.
        let _ = self.up.reconcile_deferred(self.backend, &up);
        let _ = self.down.reconcile_deferred(self.client, &down);
    }

    /// Nothing more goes to that side. What it had said before is still delivered.
    fn broken_at(&mut self, side: Side, cause: Cause) {
        self.broken.get_or_insert((side, cause));
        let (from, to) = match side {
            Side::Client => (&mut self.up, &mut self.down),
            Side::Backend => (&mut self.down, &mut self.up),
        };
        to.finish();
        if from.has_nothing_left() {
            from.finish();
        }
    }

    fn is_broken(&self, side: Side) -> bool {
        self.broken.is_some_and(|(broken, _)| broken == side)
    }

    /// When the session has been silent for too long, and what it ends as then.
    fn deadline(&self) -> Option<(Instant, CloseReason)> {
        let half_closed = self.up.finished || self.down.finished;
        // A side that has not got everything yet is not silent. But a peer that takes nothing is,
        // for `idle_timeout`.
        let pending_at = self.delivery.as_ref().and_then(|d| d.pending_at);
        let silent_since = pending_at.map_or(self.last_activity, |at| at.max(self.last_activity));
        let is_stopping = half_closed && self.tally.session.is_stopping();
        let stop = is_stopping.then(|| (silent_since + STOP_SILENCE, CloseReason::Drained));
        let half_close = self.plan.half_close_timeout.filter(|_| half_closed);
        let half_close = half_close.map(|l| (silent_since + l, CloseReason::HalfCloseTimeout));
        let idle = self.plan.idle_timeout;
        let idle = idle.map(|l| (self.last_activity + l, CloseReason::IdleTimeout));
        let all = stop.into_iter().chain(half_close).chain(idle);
        all.min_by_key(|(at, _)| *at)
    }

    fn watch_silence(&mut self, now: Instant) -> Poll<CloseReason> {
        let mut deadline = self.deadline();
        let is_over = |deadline: Option<(Instant, _)>| deadline.is_some_and(|(at, _)| now >= at);
        let now_millis = executor::millis(now);
        if is_over(deadline) || now_millis >= self.look_at {
            let look = self.look(deadline.filter(|_| is_over(deadline)), now);
            deadline = self.deadline();
            // A peer that acknowledges bytes now and then is not idle.
            let is_delivering = look.stalled_since.is_some_and(|since| {
                (self.plan.idle_timeout).is_some_and(|limit| now < since + limit)
            });
            if let Some((at, reason)) = deadline
                && now >= at
                && !is_delivering
            {
                return Poll::Ready(reason);
            }
        }
        // Activity only moves the deadline away; the timer is left to ring early and set again
        // then, so that a busy session does not touch it at every turn. What brings the deadline
        // nearer sets it.
        let later = deadline.map(|(at, _)| at).filter(|at| *at > now);
        let settling = (!self.has_settled && self.armed == NEVER).then(|| now + SETTLED);
        let has_rung = now_millis >= self.armed;
        if has_rung {
            self.settle();
        }
        let ring = later.into_iter().chain(settling).min();
        let ring = ring.map_or(NEVER, executor::millis).min(self.look_at);
        if has_rung || ring < self.armed {
            self.armed = ring;
            if ring < NEVER {
                executor::wake_at_millis(ring);
            }
        }
        Poll::Pending
    }

    /// From a move of bytes to the look at their delivery, and between two looks.
    fn look_interval(&self) -> Option<Duration> {
        let limits = [self.plan.socket.user_timeout, self.plan.idle_timeout];
        let limit = limits.into_iter().flatten().min()?;
        Some((limit / 4).clamp(LOOK_LEAST, LOOK_MOST))
    }

    /// Looks at what was written and has not arrived. `over`: the limit that has passed, which
    /// does not hold while data moves towards a peer, however slowly.
    fn look(&mut self, over: Option<(Instant, CloseReason)>, now: Instant) -> Look {
        let mut delivery = self.delivery.take().unwrap_or_default();
        let limit = self.plan.socket.user_timeout;
        let look = delivery.look(self.client, self.backend, limit, now);
        let half_closed = self.up.finished || self.down.finished;
        let is_pending = look.is_waiting || half_closed && self.is_undelivered();
        if look.has_progressed {
            self.last_activity = now;
        }
        if is_pending && half_closed {
            delivery.pending_at = Some(now);
        }
        let soon = match over {
            Some((_, CloseReason::Drained)) => Some(STOP_SILENCE),
            Some((_, CloseReason::HalfCloseTimeout)) => self.plan.half_close_timeout,
            Some(_) => self.plan.idle_timeout,
            // It goes on as it began.
            None if half_closed => self.plan.half_close_timeout,
            None => None,
        };
        let soon = soon.map(|limit| (limit / LOOKS).clamp(LOOK_LEAST, LOOK_MOST));
        self.look_at = is_pending
            .then(|| soon.into_iter().chain(self.look_interval()).min())
            .flatten()
            .map_or(NEVER, |interval| executor::millis(now + interval));
        if is_pending || delivery.pending_at.is_some() {
            self.delivery = Some(delivery);
        }
        for (side, is_lost) in [
            (Side::Client, look.client_is_lost),
            (Side::Backend, look.backend_is_lost),
        ] {
            if is_lost && !self.is_broken(side) {
                self.give_up(side);
            }
        }
        look
    }

    /// Whether bytes that have come wait for a side that has not ended.
    fn is_undelivered(&self) -> bool {
        !self.up.finished && self.up.has_more(self.client)
            || !self.down.finished && self.down.has_more(self.backend)
    }

    /// What the host had said before it was lost is still delivered, up to the end that is made
    /// here.
    fn give_up(&mut self, side: Side) {
        let stream = match side {
            Side::Client => self.client,
            Side::Backend => self.backend,
        };
        sys::socket::reset_on_close(stream);
        sys::socket::end_both(stream);
        self.broken_at(side, Cause::TimedOut);
        executor::wake_next_turn();
    }

    /// It is one that lasts: now it is worth the calls.
    fn settle(&mut self) {
        if std::mem::replace(&mut self.has_settled, true) {
            return;
        }
        if let Some(keepalive) = &self.plan.socket.keepalive
            && self.backend.is_tcp()
        {
            // It fails only on a socket that is dead, and that is found out otherwise.
            let _ = keep_alive(self.backend, keepalive);
        }
    }

    /// Whoever has not got everything must not take what it has for the whole. After a silence only
    /// what is known to be under way counts; a session that is cut in full flow may always have
    /// more to say.
    fn tell_who_was_cut_short(&self, reason: CloseReason) {
        let in_full_flow = matches!(
            reason,
            CloseReason::Drained
                | CloseReason::BackendDown
                | CloseReason::RoleLost
                | CloseReason::Recovered
                | CloseReason::Lagging
                | CloseReason::BackendDrained
        );
        if reason == CloseReason::UntrustedHeader {
            sys::socket::reset_on_close(self.backend);
            sys::socket::reset_on_close(self.client);
            return;
        }
        if !self.up.finished && (in_full_flow || self.up.has_more(self.client)) {
            sys::socket::reset_on_close(self.backend);
        }
        if !self.down.finished && (in_full_flow || self.down.has_more(self.backend)) {
            sys::socket::reset_on_close(self.client);
        }
    }
}

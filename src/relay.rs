//! Carries bytes both ways between two streams until both have ended.
//!
//! One task polls both directions. A direction starts by copying through a buffer that all sessions
//! of a worker share, and changes over to splicing while a flow is sustained. Whatever one side has
//! said arrives at the other in order: its bytes, then its end, be that a clean one or a reset.

mod direction;
mod first;

pub use first::First;

use crate::{
    access, event_loop,
    metrics::{BackendCounts, ListenerCounts, RelayCounts},
    net::{Stream, keep_alive},
    plan,
    pool::Clock,
    proxy_protocol::Watch,
    reason::CloseReason,
    sessions::Session,
    sys,
};
use direction::{Broken, Direction, Flow};
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Backend,
}

/// How long a reset is held back for what was written before it, where no limit is configured.
const RESET_PATIENCE: Duration = Duration::from_secs(60);
/// A session that has lasted for so long is not one of those that come, ask once and go.
const SETTLED: Duration = Duration::from_secs(1);

/// Relays until the session is over. The streams are left to be closed by the caller, after [`reset_to_pass_on`].
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
        last_activity: event_loop::now(),
        armed: None,
        has_settled: plan.socket.keepalive.is_none(),
        answer: Answer::Awaited(awaiting),
    }
}

/// What is left to do where one side was reset. In a box: it is rare, and a session must not carry room for it all its life.
pub fn reset_to_pass_on<'a>(
    outcome: &Outcome,
    client: &'a Stream,
    backend: &'a Stream,
    plan: &'a plan::Listener,
    tally: &'a Tally<'a>,
) -> Option<Pin<Box<dyn Future<Output = ()> + 'a>>> {
    let stream = match outcome.reason {
        CloseReason::ClientReset => backend,
        CloseReason::BackendReset => client,
        _ => return None,
    };
    Some(Box::pin(reset_after_delivery(stream, plan, tally)))
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

/// A backend may be one that accepts headers, and must not be told by just anybody who the client is.
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
    broken: Option<Side>,
    begun: bool,
    last_activity: Instant,
    /// When this is to be polled anyway.
    armed: Option<Instant>,
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
        let by_a_reset = matches!(reason, CloseReason::ClientReset | CloseReason::BackendReset);
        if reason != CloseReason::Ok && !by_a_reset {
            this.tell_who_was_cut_short(reason);
        }
        Poll::Ready(Outcome {
            reason,
            first_byte: match this.answer {
                Answer::Begun(at) => Some(at),
                Answer::Awaited(_) => None,
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
        let now = event_loop::now();
        let moved = Cell::new(false);
        let ended_before = (self.up.finished, self.down.finished);
        loop {
            let broken_before = self.broken;
            self.advance_up(now, &moved);
            self.advance_down(now, &moved);
            // What a side had said before it broke is still to come, and nothing may tell of it
            // again: once more round.
            if self.broken == broken_before {
                break;
            }
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
                Some(Side::Client) => CloseReason::ClientReset,
                Some(Side::Backend) => CloseReason::BackendReset,
            });
        }
        // An end is activity too: what follows it has its full time.
        if moved.get() || ended_before != (self.up.finished, self.down.finished) {
            self.last_activity = now;
        }
        self.watch_silence(now)
    }

    fn advance_up(&mut self, now: Instant, moved: &Cell<bool>) {
        if self.up.finished {
            return;
        }
        let flow = self.flow_up(now, moved);
        match self.up.poll(self.client, self.backend, &flow) {
            Poll::Ready(Ok(())) => self.up.finish(),
            Poll::Ready(Err(Broken::Source)) => self.broken_at(Side::Client),
            Poll::Ready(Err(Broken::Sink)) => self.broken_at(Side::Backend),
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
            Poll::Ready(Err(Broken::Source)) => self.broken_at(Side::Backend),
            Poll::Ready(Err(Broken::Sink)) => self.broken_at(Side::Client),
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
            source_is_broken: self.broken == Some(Side::Client),
            last_to_end: self.down.finished,
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
            source_is_broken: self.broken == Some(Side::Backend),
            last_to_end: self.up.finished,
        }
    }

    /// However it ends: what was not written is not counted, and is known to be missing.
    fn reckon(&mut self) {
        let (now, moved) = (event_loop::now(), Cell::new(false));
        let (up, down) = (self.flow_up(now, &moved), self.flow_down(now, &moved));
        // Whom it could not be written to is gone, and the session is over anyway.
        let _ = self.up.settle(self.backend, &up);
        let _ = self.down.settle(self.client, &down);
    }

    /// Nothing more goes to that side. What it had said before is still delivered.
    fn broken_at(&mut self, side: Side) {
        self.broken.get_or_insert(side);
        let (from, to) = match side {
            Side::Client => (&mut self.up, &mut self.down),
            Side::Backend => (&mut self.down, &mut self.up),
        };
        to.finish();
        if from.has_nothing_left() {
            from.finish();
        }
    }

    fn watch_silence(&mut self, now: Instant) -> Poll<CloseReason> {
        let half_closed = self.up.finished || self.down.finished;
        let half_close = self.plan.half_close_timeout.filter(|_| half_closed);
        let limit = match (self.plan.idle_timeout, half_close) {
            (None, None) => None,
            (Some(idle), Some(half)) if idle < half => Some((idle, CloseReason::IdleTimeout)),
            (_, Some(half)) => Some((half, CloseReason::HalfCloseTimeout)),
            (Some(idle), None) => Some((idle, CloseReason::IdleTimeout)),
        };
        let deadline = limit.map(|(limit, _)| self.last_activity + limit);
        if let (Some((_, reason)), Some(deadline)) = (limit, deadline)
            && now >= deadline
        {
            return Poll::Ready(reason);
        }
        // Activity only moves the deadline away; the timer is left to ring early and set again then,
        // so that a busy session does not touch it at every turn. Nor does one that half-closes: the
        // timer never sleeps longer than the limit that holds from then on.
        if self.armed.is_none_or(|at| now >= at) {
            if self.armed.is_some() {
                self.settle();
            }
            let settling = (!self.has_settled).then(|| now + SETTLED);
            let ring = deadline.into_iter().chain(settling).min();
            self.armed = ring.map(|ring| match self.plan.half_close_timeout {
                Some(half) => ring.min(now + half),
                None => ring,
            });
            if let Some(at) = self.armed {
                event_loop::wake_at(at);
            }
        }
        Poll::Pending
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

    /// Whoever has not got everything must not take what it has for the whole. After a silence only what is
    /// known to be under way counts; a session that is cut in full flow may always have more to say.
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

/// The other side was reset, and this one must be too, but only once its kernel has everything that
/// was written: a reset discards what is still on the way.
async fn reset_after_delivery(stream: &Stream, plan: &plan::Listener, tally: &Tally<'_>) {
    if !stream.is_tcp() {
        return;
    }
    let patience = plan.half_close_timeout.unwrap_or(RESET_PATIENCE);
    let mut since = Instant::now();
    let mut before = u32::MAX;
    let mut pause = Duration::from_millis(1);
    while let Ok(left) = sys::socket::unacknowledged(stream) {
        if left == 0 || tally.session.must_end().is_some() || sys::socket::is_dead(stream) {
            break;
        }
        if left != before {
            (before, since) = (left, Instant::now());
        } else if since.elapsed() >= patience {
            break;
        }
        event_loop::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    sys::socket::reset_on_close(stream);
}

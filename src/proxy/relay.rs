//! Carries bytes both ways between two streams until both have ended.
//!
//! One task polls both directions. A direction starts by copying through a buffer that all sessions
//! of a worker share, and changes to splicing while a transfer is sustained. What one side has sent
//! arrives at the other in order: its bytes, then its end, be that a clean one or a reset.

mod context;
mod delivery;
mod direction;
mod first_bytes;
mod half_close;
mod mode;
mod state;
mod timeouts;

pub use crate::proxy::relay::half_close::{FinalStep, finish};
pub use delivery::{DeliveryState, Undelivered};
pub use direction::{BreakCause, DirectionState, HeldState, SourceEnd};
pub use first_bytes::FirstBytes;
pub use mode::Mode;
pub use state::{RelayState, Side};

use crate::{
    plan::{self, access, reason::CloseReason},
    proxy::relay::timeouts::after,
    proxy_protocol::Watch,
    runtime::{executor, net::Stream},
    session::{
        bandwidth::{SessionBandwidth, Way},
        registry::{Interruption, Session},
    },
    sys::socket,
    telemetry::metrics::{BackendCounts, ListenerCounts, RelayCounts},
    upstream::{
        backend::Backend,
        pool::{ConnectTimer, Pool},
    },
};
use context::DirectionContext;
use delivery::Delivery;
use direction::{Broken, Direction};
use std::{
    cell::Cell,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

/// Where the bytes of a session are counted: the shards of its worker.
pub struct SessionCounters<'a> {
    pub session: &'a Session,
    pub listener: &'a ListenerCounts,
    pub backend: &'a BackendCounts,
    pub relayed: &'a RelayCounts,
}

/// A connection to a backend.
pub struct BackendConnection {
    pub stream: Stream,
    /// In a box, since most sessions have none.
    pub opening: Option<Box<Opening>>,
}

impl BackendConnection {
    /// What its relay begins with.
    pub fn take_beginning(&mut self) -> RelayStart {
        let beginning = match &mut self.opening {
            Some(opening) => RelayStart {
                first: opening.first.take(),
                observers: opening.observers.take_any(),
                state: opening.state.take(),
            },
            None => RelayStart::default(),
        };
        // From here on it is only there for that.
        self.opening.take_if(|rest| rest.bandwidth.is_none());
        beginning
    }

    fn bandwidth(&self) -> Option<&SessionBandwidth> {
        self.opening.as_ref()?.bandwidth.as_ref()
    }
}

/// What few sessions have, most of it at their beginning.
#[derive(Default)]
pub struct Opening {
    pub first: Option<Box<FirstBytes>>,
    pub observers: FirstByteObservers,
    /// The limit of bandwidth, which holds for as long as the session is relayed.
    pub bandwidth: Option<SessionBandwidth>,
    /// Where another process has stopped to relay the session.
    pub state: Option<Box<RelayState>>,
}

/// What a relay begins with.
#[derive(Default)]
pub struct RelayStart {
    first: Option<Box<FirstBytes>>,
    observers: Option<Box<FirstByteObservers>>,
    state: Option<Box<RelayState>>,
}

/// What learns of the backend's first byte.
#[derive(Default)]
pub struct FirstByteObservers {
    /// Measures how long the answer takes, for a policy that compares that time.
    pub clock: Option<Box<ConnectTimer>>,
    /// The pool of this backend, where only an answer proves that it works.
    pub pool: Option<(Arc<Pool>, Arc<Backend>)>,
}

/// The backend's first byte.
enum FirstByte {
    Awaited(Option<Box<FirstByteObservers>>),
    ReadAt(Instant),
}

/// Why a relay has stopped.
pub enum Stop {
    Over(Outcome),
    /// The session was asked to leave. The relay goes on where it is polled again.
    Leaves(Box<RelayState>),
}

/// The result of a session.
#[derive(Debug)]
pub struct Outcome {
    pub reason: CloseReason,
    /// When the backend's first byte was read.
    pub first_byte: Option<Instant>,
    /// What is to be done with each connection.
    pub client: FinalStep,
    pub backend: FinalStep,
}

/// How a relay ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RelayEnd {
    /// Both directions are delivered, or one is and the session ends with it.
    Complete,
    Broken(Side, BreakCause),
    /// The same, and the other side does not take what this one had sent.
    GivenUp(Side, BreakCause),
    Terminated(CloseReason),
}

/// A time of the executor that never comes.
const NEVER: u64 = u64::MAX;

/// Relays until the session is over, or leaves. The caller closes the streams, after [`finish`].
pub fn relay<'a>(
    client: &'a Stream,
    connection: &'a BackendConnection,
    beginning: RelayStart,
    plan: &'a plan::Listener,
    counters: SessionCounters<'a>,
) -> Relay<'a> {
    let RelayStart {
        first,
        observers,
        state,
    } = beginning;
    if let (Some(bandwidth), Some(first)) = (connection.bandwidth(), &first) {
        bandwidth.charge(Way::Up, first.payload() as u64, executor::now());
    }
    if state.is_none() {
        counters.session.set_active(executor::now_millis());
    }
    let mut relay = Relay {
        client,
        connection,
        plan,
        up: Direction::from_client(first, header_watch(plan, counters.session)),
        counters,
        down: Direction::default(),
        broken: None,
        is_registered: false,
        next_check: NEVER,
        delivery: None,
        timer: NEVER,
        has_keepalive: plan.socket.keepalive.is_none(),
        first_byte: FirstByte::Awaited(observers),
    };
    if let Some(state) = state {
        relay.resume_from(*state);
    }
    relay
}

impl FirstByteObservers {
    /// In a box, since most sessions have none.
    fn take_any(&mut self) -> Option<Box<Self>> {
        (self.clock.is_some() || self.pool.is_some()).then(|| Box::new(std::mem::take(self)))
    }

    fn observe(&mut self, has_asked: bool, has_answered: bool, now: Instant) {
        if let Some(clock) = &mut self.clock {
            clock.observe(has_asked, has_answered, now);
        }
        if has_answered && let Some((pool, backend)) = self.pool.take() {
            pool.answered(&backend, now);
        }
    }
}

/// A backend may accept PROXY protocol headers: one from a peer that is not trusted must not reach
/// it.
fn header_watch(plan: &plan::Listener, session: &Session) -> Watch {
    match &plan.accept_proxy {
        Some(accept) if !access::trusts(accept, session.peer.ip()) => Watch::Begun,
        _ => Watch::Over,
    }
}

/// Written as a future, since an async block would hold its arguments twice.
pub struct Relay<'a> {
    client: &'a Stream,
    connection: &'a BackendConnection,
    plan: &'a plan::Listener,
    counters: SessionCounters<'a>,
    /// From the client to the backend.
    up: Direction,
    down: Direction,
    /// The side that reset, or that cannot be written to any more.
    broken: Option<(Side, BreakCause)>,
    /// The session knows the waker of this task.
    is_registered: bool,
    /// When delivery is checked next, in milliseconds of the executor; `NEVER` while nothing has
    /// moved since the last check.
    next_check: u64,
    delivery: Option<Box<Delivery>>,
    /// When the timer of this task expires, in the same milliseconds.
    timer: u64,
    /// Whether keepalive is on, or not configured.
    has_keepalive: bool,
    first_byte: FirstByte,
}

impl Future for Relay<'_> {
    type Output = Stop;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Stop> {
        let this = self.get_mut();
        if !this.is_registered {
            this.is_registered = true;
            this.counters.session.wake_by(cx.waker());
        }
        let end = match this.counters.session.interruption() {
            None => ready!(this.advance()),
            Some(Interruption::End(reason)) => RelayEnd::Terminated(reason),
            Some(Interruption::Leave) => match this.leave() {
                Some(state) => return Poll::Ready(Stop::Leaves(state)),
                None => ready!(this.advance()),
            },
        };
        Poll::Ready(Stop::Over(this.end(end)))
    }
}

impl RelayEnd {
    fn reason(self) -> CloseReason {
        match self {
            Self::Complete => CloseReason::Ok,
            Self::Broken(side, cause) | Self::GivenUp(side, cause) => match (side, cause) {
                (Side::Client, BreakCause::Reset) => CloseReason::ClientReset,
                (Side::Backend, BreakCause::Reset) => CloseReason::BackendReset,
                (Side::Client, BreakCause::TimedOut) => CloseReason::ClientTimedOut,
                (Side::Backend, BreakCause::TimedOut) => CloseReason::BackendTimedOut,
            },
            Self::Terminated(reason) => reason,
        }
    }
}

impl<'a> Relay<'a> {
    fn end(&mut self, end: RelayEnd) -> Outcome {
        self.reconcile_deferred();
        match end {
            RelayEnd::Terminated(reason) => self.reset_incomplete(reason),
            RelayEnd::GivenUp(Side::Client, _) => socket::reset_on_close(self.backend()),
            RelayEnd::GivenUp(Side::Backend, _) => socket::reset_on_close(self.client),
            RelayEnd::Complete | RelayEnd::Broken(..) => {}
        }
        let (client, backend) = self.final_steps(end);
        Outcome {
            reason: end.reason(),
            first_byte: match self.first_byte {
                FirstByte::ReadAt(at) => Some(at),
                FirstByte::Awaited(_) => None,
            },
            client,
            backend,
        }
    }

    /// Moves what can be moved, in both directions. Ready when the session is over.
    fn advance(&mut self) -> Poll<RelayEnd> {
        let now = executor::now();
        let moved = Cell::new(false);
        let ended_before = (self.up.finished, self.down.finished);
        self.advance_both(now, &moved);
        if self.ends_with_one_side() {
            self.end_other_side(now, &moved);
        }
        if let FirstByte::Awaited(observers) = &mut self.first_byte {
            if let Some(observers) = observers {
                observers.observe(self.up.has_begun, self.down.has_begun, now);
            }
            if self.down.has_begun {
                self.first_byte = FirstByte::ReadAt(now);
            }
        }
        if self.up.was_refused() {
            return Poll::Ready(RelayEnd::Terminated(CloseReason::UntrustedHeader));
        }
        if self.up.finished && self.down.finished {
            return Poll::Ready(match self.broken {
                None => RelayEnd::Complete,
                Some((side, cause)) => RelayEnd::Broken(side, cause),
            });
        }
        // An end is activity, too: what follows it has its full time.
        if moved.get() || ended_before != (self.up.finished, self.down.finished) {
            let now = executor::now_millis();
            self.counters.session.set_active(now);
            if let Some(interval) = self.check_interval()
                && self.next_check == NEVER
            {
                self.next_check = after(now, interval);
            }
        }
        let over = ready!(self.watch_silence(now));
        Poll::Ready(match self.broken {
            Some((side, cause)) if over == CloseReason::HalfCloseTimeout => {
                RelayEnd::GivenUp(side, cause)
            }
            _ => RelayEnd::Terminated(over),
        })
    }

    pub fn client(&self) -> &'a Stream {
        self.client
    }

    fn backend(&self) -> &'a Stream {
        &self.connection.stream
    }

    fn bandwidth(&self) -> Option<&'a SessionBandwidth> {
        self.connection.bandwidth()
    }

    fn advance_both(&mut self, now: Instant, moved: &Cell<bool>) {
        loop {
            let broken_before = self.broken;
            self.advance_up(now, moved);
            self.advance_down(now, moved);
            self.note_unread_failures();
            // What a side sent before it broke is still to be read, and no event may report it
            // again.
            if self.broken == broken_before {
                break;
            }
        }
    }

    /// A connection that has failed while what it carried waits for the other side: no read shows
    /// that before the other side takes bytes again. It gets none from now on, and the session has
    /// no longer than one with one side finished.
    fn note_unread_failures(&mut self) {
        let (source, side) = match (self.up.leaves_unread(), self.down.leaves_unread()) {
            (true, _) if self.client.has_failed() => (self.client, Side::Client),
            (_, true) if self.backend().has_failed() => (self.backend(), Side::Backend),
            _ => return,
        };
        if self.broken.is_none() {
            let error = source.take_error();
            let cause = error.map_or(BreakCause::Reset, |error| BreakCause::of(&error));
            self.broken_at(side, cause);
        }
    }

    fn advance_up(&mut self, now: Instant, moved: &Cell<bool>) {
        if self.up.finished {
            return;
        }
        let context = self.context_up(now, moved);
        match self.up.poll(self.client, self.backend(), &context) {
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
        let context = self.context_down(now, moved);
        match self.down.poll(self.backend(), self.client, &context) {
            Poll::Ready(Ok(())) => self.down.finish(),
            Poll::Ready(Err(Broken::Source(cause))) => self.broken_at(Side::Backend, cause),
            Poll::Ready(Err(Broken::Sink(cause))) => self.broken_at(Side::Client, cause),
            Poll::Pending => {}
        }
    }

    fn context_up<'f>(&self, now: Instant, moved: &'f Cell<bool>) -> DirectionContext<'f>
    where
        'a: 'f,
    {
        let counters = &self.counters;
        DirectionContext {
            read: &counters.listener.received,
            written: &counters.backend.sent,
            client_bytes_read: Some(&counters.session.received),
            client_bytes_written: None,
            relayed: counters.relayed,
            moved,
            now,
            source_is_broken: self.is_broken(Side::Client),
            last_to_end: self.down.finished || !self.plan.half_close,
            bandwidth: self.bandwidth().map(|bandwidth| (bandwidth, Way::Up)),
        }
    }

    fn context_down<'f>(&self, now: Instant, moved: &'f Cell<bool>) -> DirectionContext<'f>
    where
        'a: 'f,
    {
        let counters = &self.counters;
        DirectionContext {
            read: &counters.backend.received,
            written: &counters.listener.sent,
            client_bytes_read: None,
            client_bytes_written: Some(&counters.session.sent),
            relayed: counters.relayed,
            moved,
            now,
            source_is_broken: self.is_broken(Side::Backend),
            last_to_end: self.up.finished || !self.plan.half_close,
            bandwidth: self.bandwidth().map(|bandwidth| (bandwidth, Way::Down)),
        }
    }

    /// However the session ends: what was not written is not counted, and makes its direction
    /// incomplete.
    fn reconcile_deferred(&mut self) {
        let (now, moved) = (executor::now(), Cell::new(false));
        let (up, down) = (self.context_up(now, &moved), self.context_down(now, &moved));
        // An error of a write does not matter any more.
        let _ = self.up.reconcile_deferred(self.backend(), &up);
        let _ = self.down.reconcile_deferred(self.client, &down);
    }

    /// Nothing more goes to that side. What it has sent before is still delivered.
    fn broken_at(&mut self, side: Side, cause: BreakCause) {
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
}

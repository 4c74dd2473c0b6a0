//! Carries bytes both ways between two streams until both have ended.
//!
//! One task polls both directions. A direction starts by copying through a buffer that all sessions
//! of a worker share, and changes over to splicing while a flow is sustained. Whatever one side has
//! said arrives at the other in order: its bytes, then its end, be that a clean one or a reset.

mod direction;

use crate::{
    metrics::{BackendMetrics, ListenerMetrics, ProcessMetrics},
    net::Stream,
    plan,
    reason::CloseReason,
    sessions::Session,
    sys,
};
use direction::{Broken, Direction, Flow};
use std::{
    cell::Cell,
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::time::{Sleep, sleep, sleep_until};

/// Where the bytes of a session are counted.
pub struct Tally<'a> {
    pub session: &'a Session,
    pub listener: &'a ListenerMetrics,
    pub backend: &'a BackendMetrics,
    pub process: &'a ProcessMetrics,
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

pub async fn relay(
    client: &mut Stream,
    backend: &mut Stream,
    plan: &plan::Listener,
    tally: &Tally<'_>,
) -> Outcome {
    let mut relay = Relay {
        up: Direction::default(),
        down: Direction::default(),
        broken: None,
        last_activity: Instant::now(),
        armed: None,
        first_byte: None,
    };
    let reason = {
        let mut timer = pin!(sleep_until(Instant::now().into()));
        let mut begun = false;
        poll_fn(|cx| {
            if !begun {
                tally.session.wake_by(cx.waker());
                begun = true;
            }
            relay.poll(cx, client, backend, plan, tally, timer.as_mut())
        })
        .await
    };
    match reason {
        // Boxed: it is rare, and a session must not carry room for it all its life.
        CloseReason::ClientReset => {
            Box::pin(reset_after_delivery(backend, plan, tally.session)).await;
        }
        CloseReason::BackendReset => {
            Box::pin(reset_after_delivery(client, plan, tally.session)).await;
        }
        CloseReason::Ok => {}
        // Cut short: whoever has not got everything must not take it for the whole.
        _ => {
            if relay.up.is_cut_short(client) {
                sys::socket::reset_on_close(&*backend);
            }
            if relay.down.is_cut_short(backend) {
                sys::socket::reset_on_close(&*client);
            }
        }
    }
    Outcome {
        reason,
        first_byte: relay.first_byte,
    }
}

struct Relay {
    /// From the client to the backend.
    up: Direction,
    down: Direction,
    /// The side that reset, or that cannot be written to any more.
    broken: Option<Side>,
    last_activity: Instant,
    /// When the timer will ring.
    armed: Option<Instant>,
    first_byte: Option<Instant>,
}

impl Relay {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Stream,
        backend: &mut Stream,
        plan: &plan::Listener,
        tally: &Tally<'_>,
        timer: Pin<&mut Sleep>,
    ) -> Poll<CloseReason> {
        if let Some(reason) = tally.session.must_end() {
            return Poll::Ready(reason);
        }
        let now = Instant::now();
        let relayed = tally.process.relayed.mine();
        let listener = tally.listener.counts.mine();
        let server = tally.backend.counts.mine();
        let moved = Cell::new(false);
        if !self.up.finished {
            let flow = Flow {
                read: &listener.received,
                written: &server.sent,
                client_bytes_read: Some(&tally.session.received),
                client_bytes_written: None,
                relayed,
                moved: &moved,
                now,
                source_is_broken: self.broken == Some(Side::Client),
                last_to_end: self.down.finished,
            };
            match self.up.poll(cx, client, backend, &flow) {
                Poll::Ready(Ok(())) => self.up.finish(),
                Poll::Ready(Err(Broken::Source)) => self.broken_at(Side::Client),
                Poll::Ready(Err(Broken::Sink)) => self.broken_at(Side::Backend),
                Poll::Pending => {}
            }
        }
        // Twice when the first pass showed that a side is broken: what it had said is still to come.
        for _ in 0..2 {
            if self.down.finished {
                break;
            }
            let broken_before = self.broken;
            let flow = Flow {
                read: &server.received,
                written: &listener.sent,
                client_bytes_read: None,
                client_bytes_written: Some(&tally.session.sent),
                relayed,
                moved: &moved,
                now,
                source_is_broken: self.broken == Some(Side::Backend),
                last_to_end: self.up.finished,
            };
            match self.down.poll(cx, backend, client, &flow) {
                Poll::Ready(Ok(())) => self.down.finish(),
                Poll::Ready(Err(Broken::Source)) => self.broken_at(Side::Backend),
                Poll::Ready(Err(Broken::Sink)) => self.broken_at(Side::Client),
                Poll::Pending => {}
            }
            if self.broken == broken_before {
                break;
            }
        }
        if self.first_byte.is_none() && self.down.has_begun {
            self.first_byte = Some(now);
        }
        if self.up.finished && self.down.finished {
            return Poll::Ready(match self.broken {
                None => CloseReason::Ok,
                Some(Side::Client) => CloseReason::ClientReset,
                Some(Side::Backend) => CloseReason::BackendReset,
            });
        }
        if self.broken == Some(Side::Client) && !self.up.finished {
            // The client broke while being written to, after its own direction was polled: poll that
            // again for what the client had said before.
            cx.waker().wake_by_ref();
        }
        if moved.get() {
            self.last_activity = now;
        }
        self.poll_limits(cx, now, plan, timer)
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

    fn poll_limits(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        plan: &plan::Listener,
        mut timer: Pin<&mut Sleep>,
    ) -> Poll<CloseReason> {
        let half_closed = self.up.finished || self.down.finished;
        let half_close = plan.half_close_timeout.filter(|_| half_closed);
        let (limit, reason) = match (plan.idle_timeout, half_close) {
            (None, None) => return Poll::Pending,
            (Some(idle), Some(half)) if idle < half => (idle, CloseReason::IdleTimeout),
            (_, Some(half)) => (half, CloseReason::HalfCloseTimeout),
            (Some(idle), None) => (idle, CloseReason::IdleTimeout),
        };
        let deadline = self.last_activity + limit;
        if now >= deadline {
            return Poll::Ready(reason);
        }
        // Activity only moves the deadline away; the timer is left to ring early and set again then,
        // so that a busy session does not touch it at every turn.
        if self.armed.is_none_or(|at| now >= at || at > deadline) {
            self.armed = Some(deadline);
            timer.as_mut().reset(deadline.into());
            if timer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(reason);
            }
        }
        Poll::Pending
    }
}

/// The other side was reset, and this one must be too, but only once its kernel has everything that
/// was written: a reset discards what is still on the way.
async fn reset_after_delivery(stream: &Stream, plan: &plan::Listener, session: &Session) {
    if !stream.is_tcp() {
        return;
    }
    let patience = plan.half_close_timeout.unwrap_or(RESET_PATIENCE);
    let mut since = Instant::now();
    let mut before = u32::MAX;
    let mut pause = Duration::from_millis(1);
    while let Ok(left) = sys::socket::unacknowledged(stream) {
        if left == 0 || session.must_end().is_some() || sys::socket::is_dead(stream) {
            break;
        }
        if left != before {
            (before, since) = (left, Instant::now());
        } else if since.elapsed() >= patience {
            break;
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    sys::socket::reset_on_close(stream);
}

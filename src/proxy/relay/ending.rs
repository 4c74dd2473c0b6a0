//! What is left to do with one connection when a session is over.

use super::{Outcome, Side, delivery::LastLook};
use crate::{
    plan::{self, reason::CloseReason},
    runtime::{executor, net::Stream},
    session::registry::Session,
    sys,
};
use std::{
    pin::Pin,
    task::Poll,
    time::{Duration, Instant},
};

/// How long a connection is kept for what was written to it, where no limit is configured.
const PATIENCE: Duration = Duration::from_secs(60);
/// Input that nobody gets is thrown away in pieces of this size.
const DISCARDED: usize = 4096;
/// And so many pieces at a time.
const MOST_DISCARDED: usize = 64;

/// What is left to do with a connection before it is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    Nothing,
    /// The other side was reset, or lost, and this one is reset after delivery.
    Reset,
    /// The other side's end has ended the session; this one has not ended.
    Delivery,
}

impl Outcome {
    pub fn last_for_client(&self) -> Last {
        match self.reason {
            CloseReason::BackendReset | CloseReason::BackendTimedOut => Last::Reset,
            _ if self.still_open == Some(Side::Client) => Last::Delivery,
            _ => Last::Nothing,
        }
    }

    pub fn last_for_backend(&self) -> Last {
        match self.reason {
            CloseReason::ClientReset | CloseReason::ClientTimedOut => Last::Reset,
            _ if self.still_open == Some(Side::Backend) => Last::Delivery,
            _ => Last::Nothing,
        }
    }
}

/// In a box: it is rare, and a session must not carry room for it all its life.
pub(super) type Ending<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

pub fn end<'a>(
    last: Last,
    stream: &'a Stream,
    plan: &'a plan::Listener,
    session: &'a Session,
) -> Option<Ending<'a>> {
    match last {
        Last::Nothing => None,
        Last::Reset => Some(Box::pin(reset_after_delivery(stream, plan, session))),
        Last::Delivery => Some(Box::pin(close_after_delivery(stream, plan, session))),
    }
}

/// The other side was reset, and this one must be too, but only once its kernel has everything that
/// was written: a reset discards what is still on the way.
async fn reset_after_delivery(stream: &Stream, plan: &plan::Listener, session: &Session) {
    if !stream.is_tcp() {
        return;
    }
    delivered(stream, plan, session, || {}).await;
    sys::socket::reset_on_close(stream);
}

/// Ends our side, and waits until everything that was written has arrived. What comes meanwhile
/// is thrown away: input that is left when a socket is closed, or that comes afterwards, makes
/// the kernel send a reset, which discards what is still on the way.
async fn close_after_delivery(stream: &Stream, plan: &plan::Listener, session: &Session) {
    // It fails only on a stream that is dead.
    let _ = stream.end_writing();
    let discard = || {
        let mut input = [0; DISCARDED];
        for _ in 0..MOST_DISCARDED {
            if !matches!(stream.poll_read(&mut input), Poll::Ready(Ok(1..))) {
                break;
            }
        }
    };
    delivered(stream, plan, session, discard).await;
}

/// Until everything was acknowledged, or nothing of it for as long as a session may be idle, or
/// by a host that is lost.
async fn delivered(
    stream: &Stream,
    plan: &plan::Listener,
    session: &Session,
    mut meanwhile: impl FnMut(),
) {
    let patience = plan.idle_timeout.unwrap_or(PATIENCE);
    let mut since = Instant::now();
    let mut before = u32::MAX;
    let mut pause = Duration::from_millis(1);
    let mut look = LastLook::default();
    while let Ok(left) = sys::socket::unacknowledged(stream) {
        meanwhile();
        if left == 0 || session.must_end().is_some() || sys::socket::is_dead(stream) {
            break;
        }
        if look.is_lost(stream, plan.socket.user_timeout, Instant::now()) {
            break;
        }
        if left != before {
            (before, since) = (left, Instant::now());
        } else if since.elapsed() >= patience {
            break;
        }
        executor::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

//! What one side of a session gets when the other has ended, was reset or is lost, and what is done
//! with each connection before it is closed.

use super::{Relay, RelayEnd, Side, delivery::PeerCheck};
use crate::{
    plan::{
        self,
        reason::{CloseReason, Cut},
    },
    runtime::{executor, net::Stream},
    session::registry::Session,
    sys,
};
use std::{
    cell::Cell,
    pin::Pin,
    task::Poll,
    time::{Duration, Instant},
};

/// How long a connection may acknowledge nothing, where no limit is configured.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of input that are discarded by one read.
const DISCARD: usize = 4096;
/// Most such reads at a time.
const DISCARDING_READS: usize = 64;

/// What is done with a connection of a session that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinalStep {
    Close,
    /// The other side was reset, or lost, and this one is reset when everything has arrived.
    ResetAfterDelivery,
    /// The end of the other side has ended the session; this one has not ended.
    CloseAfterDelivery,
}

/// In a box, since it is rare, and would make every session larger.
pub(super) type Ending<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

impl Relay<'_> {
    /// Whether one direction has ended, and the session is to end with it (`half_close = false`).
    pub(super) fn ends_with_one_side(&self) -> bool {
        let has_ended = self.up.finished != self.down.finished && self.broken.is_none();
        has_ended && !self.plan.half_close
    }

    pub(super) fn end_other_side(&mut self, now: Instant, moved: &Cell<bool>) {
        self.up.stop_reading();
        self.down.stop_reading();
        self.advance_both(now, moved);
        // A backend that has ended may read nothing more, and the client is not to wait for its
        // end until then. What it sent last is cut anyway, since it is not read any more.
        if self.down.finished && !self.up.finished && self.broken.is_none() {
            self.up.finish();
        }
    }

    /// What is to be done with the connections of the client and the backend.
    pub(super) fn final_steps(&self, end: RelayEnd) -> (FinalStep, FinalStep) {
        use FinalStep::{Close, CloseAfterDelivery, ResetAfterDelivery};
        match (end, self.up.was_stopped(), self.down.was_stopped()) {
            // The side that has not ended, where the end of the other ended the session.
            (RelayEnd::Complete, true, false) => (CloseAfterDelivery, Close),
            (RelayEnd::Complete, false, true) => (Close, CloseAfterDelivery),
            (RelayEnd::Complete, true, true) | (RelayEnd::Complete, false, false) => (Close, Close),
            (RelayEnd::Broken(Side::Client, _), ..) => (Close, ResetAfterDelivery),
            (RelayEnd::Broken(Side::Backend, _), ..) => (ResetAfterDelivery, Close),
            (RelayEnd::Terminated(_) | RelayEnd::GivenUp(..), ..) => (Close, Close),
        }
    }

    /// A side that has not received everything must not take what it has for the whole. A reset by
    /// a peer is passed on by the caller.
    pub(super) fn reset_incomplete(&self, reason: CloseReason) {
        let is_mid_stream = match reason.cut() {
            Cut::Nothing | Cut::PassedOn(..) => return,
            Cut::Both => {
                sys::socket::reset_on_close(self.backend());
                sys::socket::reset_on_close(self.client);
                return;
            }
            Cut::MidStream => true,
            Cut::Undelivered => false,
        };
        if !self.up.finished && (is_mid_stream || self.up.has_more(self.client)) {
            sys::socket::reset_on_close(self.backend());
        }
        if !self.down.finished && (is_mid_stream || self.down.has_more(self.backend())) {
            sys::socket::reset_on_close(self.client);
        }
    }
}

/// `None` for [`FinalStep::Close`], which the caller does by dropping the stream.
pub fn finish<'a>(
    step: FinalStep,
    stream: &'a Stream,
    plan: &'a plan::Listener,
    session: &'a Session,
) -> Option<Ending<'a>> {
    match step {
        FinalStep::Close => None,
        FinalStep::ResetAfterDelivery => {
            Some(Box::pin(reset_after_delivery(stream, plan, session)))
        }
        FinalStep::CloseAfterDelivery => {
            Some(Box::pin(close_after_delivery(stream, plan, session)))
        }
    }
}

/// The other side was reset, and this one is to be, but only when everything that was written has
/// arrived: a reset discards what is still on the way.
async fn reset_after_delivery(stream: &Stream, plan: &plan::Listener, session: &Session) {
    if !stream.is_tcp() {
        return;
    }
    wait_for_delivery(stream, plan, session, || {}).await;
    sys::socket::reset_on_close(stream);
}

/// Ends our side, and waits until everything that was written has arrived. Input that comes
/// meanwhile is discarded: input that is unread when a socket is closed, or that comes afterwards,
/// makes the kernel send a reset, which discards what is still on the way.
async fn close_after_delivery(stream: &Stream, plan: &plan::Listener, session: &Session) {
    // It fails only on a stream that is dead.
    let _ = stream.end_writing();
    let discard = || {
        let mut input = [0; DISCARD];
        for _ in 0..DISCARDING_READS {
            if !matches!(stream.poll_read(&mut input), Poll::Ready(Ok(1..))) {
                break;
            }
        }
    };
    wait_for_delivery(stream, plan, session, discard).await;
}

/// Waits until everything is acknowledged, or nothing has been for as long as a session may be
/// idle, or the peer is lost.
async fn wait_for_delivery(
    stream: &Stream,
    plan: &plan::Listener,
    session: &Session,
    mut meanwhile: impl FnMut(),
) {
    let timeout = plan.idle_timeout.unwrap_or(DELIVERY_TIMEOUT);
    let mut since = Instant::now();
    let mut before = u32::MAX;
    let mut pause = Duration::from_millis(1);
    let mut check = PeerCheck::default();
    while let Ok(bytes) = sys::socket::unacknowledged(stream) {
        meanwhile();
        if bytes == 0 || session.must_end().is_some() || sys::socket::is_dead(stream) {
            break;
        }
        if check.is_lost(stream, plan.socket.user_timeout, Instant::now()) {
            break;
        }
        if bytes != before {
            (before, since) = (bytes, Instant::now());
        } else if since.elapsed() >= timeout {
            break;
        }
        executor::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

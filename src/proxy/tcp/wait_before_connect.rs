//! A session waits: until a limited rate allows it to begin, and for a backend.

use super::{
    client_watch::ClientWatch,
    handover::{self, HandoverAnswer},
    preamble::Preamble,
};
use crate::{
    plan::reason::{CloseReason, Shortage},
    runtime::{executor, net::Stream},
    session::{
        admission::Permits,
        rate::Delay,
        registry::Session,
        retry::{BackendSearch, Waited},
        summary::Unserved,
    },
    upstream::{
        backend::Lease,
        pool::{Carried, WaitProgress, WaitingSession},
    },
};
use std::{
    future::poll_fn,
    task::Poll,
    time::{Duration, Instant},
};

/// A session that looks for a backend.
pub(super) struct Seeker<'a> {
    pub(super) permits: &'a Permits,
    pub(super) client: &'a Stream,
    pub(super) preamble: &'a Preamble,
}

/// Why a session has got no backend here.
pub(super) enum NotPlaced {
    Unserved(Unserved),
    /// Another process has the session.
    Taken,
}

/// Waits for what the session lacks, where it may, for as long as the client is there. What the
/// client sends meanwhile stays in its socket.
pub(super) async fn wait_for_backend(
    search: &mut BackendSearch<'_>,
    lacks: Shortage,
    seeker: &Seeker<'_>,
) -> Result<Lease, NotPlaced> {
    if let Some(waiting) = search.wait(lacks, Instant::now()) {
        return wait_in_line(search, waiting, seeker).await;
    }
    if search.may_have_place_in_other_process(lacks)
        && seeker.leave(search, None).await == HandoverAnswer::Taken
    {
        return Err(NotPlaced::Taken);
    }
    Err(NotPlaced::Unserved(search.unserved(lacks)))
}

/// The same for a session that has its place in the line.
pub(super) async fn wait_in_line(
    search: &mut BackendSearch<'_>,
    mut waiting: WaitingSession,
    seeker: &Seeker<'_>,
) -> Result<Lease, NotPlaced> {
    loop {
        let carried = match seeker.poll_line(&mut waiting).await {
            Stop::Over(waited) => {
                seeker.permits.session().set_waiting(None);
                return search.resume(waited).map_err(NotPlaced::Unserved);
            }
            Stop::Leaves(carried) => carried,
        };
        // Its place in the line stays until the other process has it.
        if seeker.leave(search, Some(carried)).await == HandoverAnswer::Taken {
            waiting.forget();
            return Err(NotPlaced::Taken);
        }
    }
}

/// Why a session has stopped to wait.
enum Stop {
    Over(Waited),
    /// Another process is to go on with the wait.
    Leaves(Carried),
}

impl Seeker<'_> {
    async fn leave(&self, search: &BackendSearch<'_>, wait: Option<Carried>) -> HandoverAnswer {
        // In a box: no other session is to be larger for it.
        let leaving =
            handover::hand_over_waiting(self.permits, self.client, self.preamble, search, wait);
        Box::pin(leaving).await
    }

    async fn poll_line(&self, waiting: &mut WaitingSession) -> Stop {
        let (session, client) = (self.permits.session(), self.client);
        // Whether a client that has ended its side may still wait for an answer.
        let half_close = self.permits.service().plan.half_close;
        let mut watch = ClientWatch::default();
        poll_fn(|cx| {
            session.wake_by(cx.waker());
            let now = Instant::now();
            let ended = |reason, waiting: &WaitingSession| {
                let waited = waiting.waited(now);
                Poll::Ready(Stop::Over(Waited::Ended { reason, waited }))
            };
            if let Some(reason) = session.must_end() {
                return ended(reason, waiting);
            }
            // No wake-up for what it sends: only its end is of interest.
            if client.poll_peer_end().is_ready()
                && (!half_close || watch.has_left(client, session, now))
            {
                return ended(CloseReason::ClientLeft, waiting);
            }
            match waiting.poll(cx.waker(), now) {
                WaitProgress::Pending(lacks, until) => {
                    session.set_waiting(Some(lacks));
                    if session.is_to_leave()
                        && let Some(carried) = waiting.carried(now)
                    {
                        return Poll::Ready(Stop::Leaves(carried));
                    }
                    executor::wake_at(watch.gone_at().map_or(until, |at| at.min(until)));
                    Poll::Pending
                }
                WaitProgress::Served(served) => Poll::Ready(Stop::Over(Waited::Served(served))),
                WaitProgress::Ended {
                    lacks,
                    has_limit,
                    waited,
                } => Poll::Ready(Stop::Over(Waited::too_long(lacks, has_limit, waited))),
            }
        })
        .await
    }
}

/// Waits for the time of a session that came too early, for as long as the client is there.
pub(super) async fn wait_for_rate(
    delay: Delay,
    client: &Stream,
    session: &Session,
    half_close: bool,
) -> Result<(), Unserved> {
    let mut watch = ClientWatch::default();
    poll_fn(|cx| {
        session.wake_by(cx.waker());
        let now = Instant::now();
        let ended = |reason| {
            Poll::Ready(Err(Unserved {
                reason,
                error: None,
                waited: Duration::ZERO,
            }))
        };
        if let Some(reason) = session.must_end() {
            return ended(reason);
        }
        if client.poll_peer_end().is_ready()
            && (!half_close || watch.has_left(client, session, now))
        {
            return ended(CloseReason::ClientLeft);
        }
        if now >= delay.until {
            return Poll::Ready(Ok(()));
        }
        let until = watch
            .gone_at()
            .map_or(delay.until, |at| at.min(delay.until));
        executor::wake_at(until);
        Poll::Pending
    })
    .await
}

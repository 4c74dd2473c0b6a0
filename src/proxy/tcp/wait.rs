//! A session waits: until a limited rate allows it to begin, and for a backend.

use super::client_watch::ClientWatch;
use crate::{
    plan::reason::{CloseReason, Shortage},
    runtime::{executor, net::Stream},
    session::{
        rate::Delay,
        registry::Session,
        retry::{BackendSearch, Waited},
        summary::Unserved,
    },
    upstream::{backend::Lease, pool::WaitProgress},
};
use std::{
    future::poll_fn,
    task::Poll,
    time::{Duration, Instant},
};

/// Waits for what the session lacks, where it may, for as long as the client is there. What the
/// client sends meanwhile stays in its socket. `half_close`: whether a client that has ended its
/// side may still wait for an answer.
pub(super) async fn wait_for_backend(
    search: &mut BackendSearch<'_>,
    lacks: Shortage,
    client: &Stream,
    session: &Session,
    half_close: bool,
) -> Result<Lease, Unserved> {
    let began = Instant::now();
    let Some(mut waiting) = search.wait(lacks, began) else {
        return Err(search.unserved(lacks));
    };
    let mut watch = ClientWatch::default();
    let waited = poll_fn(|cx| {
        session.wake_by(cx.waker());
        let now = Instant::now();
        let ended = |reason| {
            Poll::Ready(Waited::Ended {
                reason,
                waited: now.saturating_duration_since(began),
            })
        };
        if let Some(reason) = session.must_end() {
            return ended(reason);
        }
        // No wake-up for what it sends: only its end is of interest.
        if client.poll_peer_end().is_ready()
            && (!half_close || watch.has_left(client, session, now))
        {
            return ended(CloseReason::ClientLeft);
        }
        match waiting.poll(cx.waker(), now) {
            WaitProgress::Pending(until) => {
                executor::wake_at(watch.gone_at().map_or(until, |at| at.min(until)));
                Poll::Pending
            }
            WaitProgress::Served(served) => Poll::Ready(Waited::Served(served)),
            WaitProgress::Ended {
                lacks,
                has_limit,
                waited,
            } => Poll::Ready(Waited::too_long(lacks, has_limit, waited)),
        }
    })
    .await;
    search.resume(waited)
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

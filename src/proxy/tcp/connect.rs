//! Connecting to a backend.

use crate::{
    plan::{
        SendProxy,
        reason::{CloseReason, ConnectError},
    },
    proxy::relay::{Awaiting, Opening, Reached},
    runtime::{
        executor,
        net::{Stream, open},
    },
    session::{
        registry::Session,
        search::{BackendSearch, Unserved},
        service::Service,
        summary::Attempt,
    },
    sys::socket::{PeerNow, peer_now},
    upstream::{
        backend::{Backend, Lease},
        pool::Clock,
    },
};
use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering::Relaxed},
    task::Poll,
    time::{Duration, Instant},
};

/// While a connect is under way the client is looked at this often.
const LOOK: Duration = Duration::from_millis(50);
/// A client that has sent nothing and has ended its side may have left, or may want to listen only:
/// nothing tells the two apart. A connect that is about to succeed gets this long to do so.
const GRACE: Duration = Duration::from_millis(500);
/// A process without a free descriptor gets no event when that has changed.
const RETRY: Duration = Duration::from_millis(10);

pub(super) struct Connected {
    pub(super) reached: Reached,
    pub(super) lease: Lease,
    /// When the attempt that succeeded began.
    pub(super) began: Instant,
}

enum Failure {
    Backend(io::Error),
    /// Nothing to do with the backend: the session itself is over.
    Session(CloseReason),
}

/// Tries backends until one can be reached.
pub(super) async fn connect(
    service: &Arc<Service>,
    client: &Stream,
    session: &Session,
    attempts: &mut Vec<Attempt>,
) -> Result<Connected, Unserved> {
    let mut search = BackendSearch::new(service, session, attempts);
    loop {
        let began = Instant::now();
        let lease = search.next(began)?;
        let backend = lease.backend();
        let mut clock = Clock::start(&service.pool, backend, began);
        let opened = attempt(backend, service, client, session, began).await;
        let now = Instant::now();
        let time = now.saturating_duration_since(began);
        match opened {
            Ok(stream) => {
                backend.metrics.counts.mine().connections.add(1);
                backend.metrics.connect_duration.record(time);
                if search.reached(backend, time, now) {
                    let clock = clock.and_then(|clock| clock.connected(now));
                    let opening = opening(service, backend, clock);
                    return Ok(Connected {
                        reached: Reached { stream, opening },
                        lease,
                        began,
                    });
                }
                if let Some(clock) = &mut clock {
                    clock.failed();
                }
            }
            Err(Failure::Session(reason)) => return Err(search.abandoned(backend, reason, time)),
            Err(Failure::Backend(error)) => {
                if let Some(clock) = &mut clock
                    && ConnectError::of(&error) != ConnectError::Timeout
                {
                    clock.failed();
                }
                search.failed(backend, &error, time, now);
            }
        }
    }
}

/// What is to be done when the backend's first byte comes, if anything.
fn opening(
    service: &Arc<Service>,
    backend: &Arc<Backend>,
    clock: Option<Box<Clock>>,
) -> Option<Box<Opening>> {
    let awaiting = Awaiting {
        clock,
        proof: service.pool.fail_on_reset.then(|| proof(service, backend)),
    };
    (awaiting.clock.is_some() || awaiting.proof.is_some()).then(|| {
        Box::new(Opening {
            awaiting,
            ..Opening::default()
        })
    })
}

/// What is to be done when an answer of this backend begins.
fn proof(service: &Arc<Service>, backend: &Arc<Backend>) -> Box<dyn FnOnce(Instant) + Send> {
    let (service, backend) = (Arc::clone(service), Arc::clone(backend));
    Box::new(move |now| service.pool.answered(&backend, now))
}

/// One connect, within its time, for as long as the client is there.
async fn attempt(
    backend: &Backend,
    service: &Service,
    client: &Stream,
    session: &Session,
    began: Instant,
) -> Result<Stream, Failure> {
    let deadline = began + service.plan.connect_timeout;
    let mut silent_since: Option<Instant> = None;
    // The log knows of the shortage that delays this connect.
    let mut is_told = false;
    // A header of ours, or what the client has said by now.
    let speaks_at_once = service.send_proxy != SendProxy::Off || session.received.load(Relaxed) > 0;
    let begin = || open(&backend.place, &service.plan.socket, speaks_at_once);
    let mut opening = pin!(begin());
    // To a near backend the connect is through by the next turn of the event loop: looking at the
    // client would cost more than it.
    let mut at_once = poll_fn(|cx| match opening.as_mut().poll(cx) {
        Poll::Ready(opened) => Poll::Ready(Some(opened)),
        Poll::Pending => Poll::Ready(None),
    })
    .await;
    if at_once.is_none() {
        executor::yield_to_events().await;
    }
    loop {
        let opened = match at_once.take() {
            Some(opened) => Some(opened),
            None => until(deadline.min(Instant::now() + LOOK), opening.as_mut()).await,
        };
        match opened {
            Some(Ok(stream)) => return Ok(stream),
            // A shortage of our own, which passes when sessions end: no reason to fail before time.
            Some(Err(e)) => {
                let now = Instant::now();
                let error = ConnectError::of(&e);
                let is_shortage = error.is_shortage();
                if is_shortage && !std::mem::replace(&mut is_told, true) {
                    backend.log_failure(error, &e, now);
                }
                if !is_shortage || now + RETRY >= deadline {
                    return Err(Failure::Backend(e));
                }
                executor::sleep(RETRY).await;
                opening.set(begin());
            }
            None => {}
        }
        let now = Instant::now();
        if now >= deadline {
            return Err(Failure::Backend(io::ErrorKind::TimedOut.into()));
        }
        if let Some(reason) = session.must_end() {
            return Err(Failure::Session(reason));
        }
        match peer_now(client) {
            // A client that cannot be looked at is one that is there, as far as is known.
            Ok(PeerNow::Here) | Err(_) => silent_since = None,
            // What it said waits for the backend: no silence.
            Ok(PeerNow::EndedSilently) if session.received.load(Relaxed) > 0 => {}
            Ok(PeerNow::EndedSilently) if now - *silent_since.get_or_insert(now) < GRACE => {}
            Ok(PeerNow::EndedSilently | PeerNow::Gone) => {
                return Err(Failure::Session(CloseReason::ClientLeft));
            }
        }
    }
}

/// What comes of it, if anything does by then.
async fn until<F: Future>(at: Instant, mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        if Instant::now() >= at {
            return Poll::Ready(None);
        }
        executor::wake_at(at);
        Poll::Pending
    })
    .await
}

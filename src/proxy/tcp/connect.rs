//! Connecting to a backend.

use super::{
    client_watch::ClientWatch,
    handover::Resumed,
    wait_before_connect::{NotPlaced, Seeker, wait_for_backend, wait_in_line},
};
use crate::{
    plan::{
        SendProxy,
        reason::{CloseReason, ConnectError},
    },
    proxy::relay::{BackendConnection, FirstByteObservers, Opening},
    runtime::{
        executor,
        net::{Stream, open},
    },
    session::{registry::Session, retry::BackendSearch, service::Service, summary::Attempt},
    upstream::{
        backend::{Backend, Lease},
        pool::ConnectTimer,
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

/// How often the client is checked while a connect is under way.
const CLIENT_CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// A connect that failed for a local shortage is tried again after this time: no event reports the
/// end of the shortage.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

pub(super) struct Connected {
    pub(super) connection: BackendConnection,
    pub(super) lease: Lease,
    /// When the attempt that succeeded began, in microseconds after the session began: shorter than
    /// a time, and kept for as long as the session.
    pub(super) began_micros: u64,
}

/// A session that has a backend.
pub(super) struct Opened {
    pub(super) connected: Connected,
    pub(super) attempts: Box<[Attempt]>,
}

enum ConnectFailure {
    Backend(io::Error),
    /// The session is over, for a reason that does not concern the backend.
    Session(CloseReason),
}

/// Tries backends until one can be reached.
pub(super) async fn connect(
    seeker: &Seeker<'_>,
    resumed: Resumed,
    attempts: &mut Vec<Attempt>,
) -> Result<Connected, NotPlaced> {
    let (service, client) = (seeker.permits.service(), seeker.client);
    let session = seeker.permits.session();
    let mut search = BackendSearch::new(service, session, attempts).after_wait(resumed.waited);
    let mut waiting = resumed.waiting;
    loop {
        let mut began = Instant::now();
        let picked = match waiting.take() {
            Some(waiting) => Err(wait_in_line(&mut search, waiting, seeker).await?),
            None => match search.next(began) {
                Ok(lease) => Ok(lease),
                Err(lacks) => Err(wait_for_backend(&mut search, lacks, seeker).await?),
            },
        };
        let lease = picked.unwrap_or_else(|lease| {
            // It has waited.
            began = Instant::now();
            lease
        });
        let backend = lease.backend();
        let mut clock = ConnectTimer::start(&service.pool, backend, began);
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
                        connection: BackendConnection { stream, opening },
                        lease,
                        began_micros: micros_of_session(service, session, began),
                    });
                }
                if let Some(clock) = &mut clock {
                    clock.failed();
                }
            }
            Err(ConnectFailure::Session(reason)) => {
                let unserved = search.abandoned(backend, reason, time);
                return Err(NotPlaced::Unserved(unserved));
            }
            Err(ConnectFailure::Backend(error)) => {
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

fn micros_of_session(service: &Service, session: &Session, at: Instant) -> u64 {
    let session_began = service.process.sessions.began_at(session);
    let passed = at.saturating_duration_since(session_began);
    passed.as_micros() as u64
}

/// What learns of the backend's first byte, if anything.
fn opening(
    service: &Arc<Service>,
    backend: &Arc<Backend>,
    clock: Option<Box<ConnectTimer>>,
) -> Option<Box<Opening>> {
    let pool = &service.pool;
    let observers = FirstByteObservers {
        clock,
        pool: pool
            .fail_on_reset
            .then(|| (Arc::clone(pool), Arc::clone(backend))),
    };
    (observers.clock.is_some() || observers.pool.is_some()).then(|| {
        Box::new(Opening {
            observers,
            ..Opening::default()
        })
    })
}

/// One connect, within `connect_timeout`, for as long as the client is there.
async fn attempt(
    backend: &Backend,
    service: &Service,
    client: &Stream,
    session: &Session,
    began: Instant,
) -> Result<Stream, ConnectFailure> {
    let deadline = began + service.plan.connect_timeout;
    let mut watch = ClientWatch::default();
    let mut shortage_is_logged = false;
    // A header for the backend, or what the client has sent by now.
    let sends_at_once = service.send_proxy != SendProxy::Off || session.received.load(Relaxed) > 0;
    let begin = || open(&backend.addr, &service.plan.socket, sends_at_once);
    let mut opening = pin!(begin());
    let mut at_once = poll_once(opening.as_mut()).await;
    if at_once.is_none() {
        // A connect to a near backend succeeds by the next turn of the event loop; checking the
        // client before that would cost more than the connect.
        executor::yield_to_events().await;
    }
    loop {
        let check_at = deadline.min(Instant::now() + CLIENT_CHECK_INTERVAL);
        let opened = match at_once.take() {
            Some(opened) => Some(opened),
            None => until(check_at, opening.as_mut()).await,
        };
        match opened {
            Some(Ok(stream)) => return Ok(stream),
            Some(Err(e)) => {
                let now = Instant::now();
                let error = ConnectError::of(&e);
                let is_shortage = error.is_shortage();
                if is_shortage && !std::mem::replace(&mut shortage_is_logged, true) {
                    backend.log_failure(error, &e, now);
                }
                // A local shortage passes when sessions end: the connect waits for that.
                if !is_shortage || now + RETRY_INTERVAL >= deadline {
                    return Err(ConnectFailure::Backend(e));
                }
                executor::sleep(RETRY_INTERVAL).await;
                opening.set(begin());
            }
            None => {}
        }
        let now = Instant::now();
        if now >= deadline {
            return Err(ConnectFailure::Backend(io::ErrorKind::TimedOut.into()));
        }
        if let Some(reason) = session.must_end() {
            return Err(ConnectFailure::Session(reason));
        }
        if watch.has_left(client, session, now) {
            return Err(ConnectFailure::Session(CloseReason::ClientLeft));
        }
    }
}

/// The output of this future, if it is ready now.
async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// The output of this future, if it is ready by then.
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

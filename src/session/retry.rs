//! The search of a session for a backend: pick one, try it, and on failure pick the next.

use crate::{
    plan::reason::{CloseReason, ConnectError, Shortage},
    runtime::net::Client,
    session::{
        registry::{Session, SessionKind},
        service::Service,
        summary::{Attempt, AttemptResult, Unserved},
    },
    upstream::{
        backend::{Backend, Lease},
        balance::HashInput,
        pool::{Position, Search, Served, WaitingSession},
    },
};
use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

/// Each backend is picked at most once, so the search ends.
pub struct BackendSearch<'a> {
    service: &'a Service,
    session: &'a Session,
    search: Search,
    /// The backend that was picked before the search began.
    picked: Option<Lease>,
    failures: u32,
    /// When the first attempt that failed began.
    first_failed: Option<Instant>,
    last_error: Option<ConnectError>,
    /// Its place among the sessions that wait, if it has waited.
    position: Option<Position>,
    /// For how long it has waited since the last attempt.
    waited: Duration,
    /// Filled only if there is an access log.
    attempts: &'a mut Vec<Attempt>,
}

/// How the wait of a session ended.
#[derive(Debug)]
pub enum Waited {
    Served(Box<Served>),
    Ended {
        reason: CloseReason,
        waited: Duration,
    },
}

impl Waited {
    pub fn too_long(lacks: Shortage, has_limit: bool, waited: Duration) -> Self {
        Self::Ended {
            reason: Self::reason_after(lacks, has_limit),
            waited,
        }
    }

    /// Why a session ends that has waited for as long as it may. `has_limit`: whether it may wait
    /// for what it lacks.
    pub fn reason_after(lacks: Shortage, has_limit: bool) -> CloseReason {
        match (lacks, has_limit) {
            (Shortage::Full, true) => CloseReason::QueueTimeout,
            (Shortage::NoneFit, true) => CloseReason::HoldTimeout,
            (Shortage::Full, false) => CloseReason::BackendsFull,
            (Shortage::NoneFit, false) => CloseReason::NoBackend,
        }
    }
}

/// What the policy may look at.
pub fn hash_input(client: Client, server_port: Option<u16>, proxied: Option<Client>) -> HashInput {
    HashInput {
        remote_addr: client.ip(),
        remote_port: client.port(),
        server_port,
        proxy_protocol_addr: proxied.and_then(Client::ip),
    }
}

fn search(service: &Service, session: &Session) -> Search {
    let input = hash_input(session.client(), session.server_port, session.proxied());
    match session.origin.kind {
        SessionKind::Connection => service.pool.search_of_connection(&input),
        SessionKind::Flow => service.pool.search_or_wait(&input),
    }
}

impl<'a> BackendSearch<'a> {
    pub fn new(service: &'a Service, session: &'a Session, attempts: &'a mut Vec<Attempt>) -> Self {
        let search = search(service, session);
        Self {
            service,
            session,
            search,
            picked: None,
            failures: 0,
            first_failed: None,
            last_error: None,
            position: None,
            waited: Duration::ZERO,
            attempts,
        }
    }

    /// Begins with a backend that was picked already.
    pub fn begin_with(mut self, lease: Lease, search: Search) -> Self {
        self.picked = Some(lease);
        self.search = search;
        self
    }

    /// Goes on with the search of a session that has waited for so long in another process.
    pub fn after_wait(mut self, waited: Duration) -> Self {
        self.waited = waited;
        self
    }

    /// Whether the place that the session lacks is to be had in another process.
    pub fn may_have_place_in_other_process(&self, lacks: Shortage) -> bool {
        lacks == Shortage::Full && self.service.pool.has_handed_places()
    }

    /// The attempts so far, and for how long it has waited since the last one.
    pub fn so_far(&self) -> (&[Attempt], Duration) {
        (self.attempts, self.waited)
    }

    /// Begins with what the session has waited for.
    pub fn begin_served(mut self, served: Served) -> Self {
        self.picked = Some(self.take_served(served));
        self
    }

    fn take_served(&mut self, served: Served) -> Lease {
        self.waited += served.waited;
        self.search = served.search;
        self.position = Some(served.position);
        self.failures = 0;
        served.lease
    }

    /// The next backend to try, or what the session lacks for one.
    pub fn next(&mut self, now: Instant) -> Result<Lease, Shortage> {
        if let Some(lease) = self.picked.take() {
            return Ok(lease);
        }
        if self.failures > self.service.plan.retries {
            return Err(Shortage::NoneFit);
        }
        let lease = self.service.pool.pick(&mut self.search, now)?;
        if self.failures > 0 {
            lease.backend().metrics.counts.mine().retries.add(1);
        }
        Ok(lease)
    }

    /// Enters the session among those that wait for what it lacks; `None`: it may not wait.
    pub fn wait(&mut self, lacks: Shortage, now: Instant) -> Option<WaitingSession> {
        let has_failed = self.last_error.is_some();
        let before = std::mem::take(&mut self.search);
        let waits_since = before.waits_since().or(self.first_failed);
        let mut search = match lacks {
            // By the time that there is one it may be one that the session has tried.
            Shortage::NoneFit if has_failed => search(self.service, self.session),
            Shortage::NoneFit | Shortage::Full => before,
        };
        search.note_wait(waits_since.unwrap_or(now));
        let pool = &self.service.pool;
        pool.enter_line(search, lacks, self.position, has_failed, now)
    }

    /// The wait is over. Returns the backend to try, or why there is none.
    pub fn resume(&mut self, waited: Waited) -> Result<Lease, Unserved> {
        match waited {
            Waited::Served(served) => Ok(self.take_served(*served)),
            Waited::Ended { reason, waited } => {
                self.waited += waited;
                Err(self.unserved_for(reason))
            }
        }
    }

    /// The session has found no backend, and does not wait for one.
    pub fn unserved(&self, lacks: Shortage) -> Unserved {
        self.unserved_for(match (self.last_error, lacks) {
            (Some(_), _) => CloseReason::ConnectFailed,
            (None, Shortage::Full) => CloseReason::BackendsFull,
            (None, Shortage::NoneFit) => CloseReason::NoBackend,
        })
    }

    fn unserved_for(&self, reason: CloseReason) -> Unserved {
        // The other reasons tell by themselves that there was no backend.
        if reason == CloseReason::ClientLeft {
            self.service.pool.metrics.unserved.add(1);
        }
        Unserved {
            reason,
            error: self.last_error,
            waited: self.waited,
        }
    }

    /// The backend was reached. Returns whether the session stays there: if sessions of that
    /// backend were terminated since it was picked, the next one is to be tried, and this is no
    /// failure. The session enters the backend first and asks the pool then, so that a termination
    /// finds it or is seen here.
    pub fn reached(&mut self, backend: &Arc<Backend>, time: Duration, now: Instant) -> bool {
        self.session.set_backend(backend.id);
        let pool = &self.service.pool;
        let stays = match self.session.origin.kind {
            SessionKind::Connection => pool.succeeded(&self.search, backend, now),
            SessionKind::Flow => pool.taken(&self.search, backend, now),
        };
        let result = match stays {
            true => AttemptResult::Connected,
            false => AttemptResult::Left,
        };
        if !stays {
            self.session.set_backend(0);
        }
        self.record_attempt(backend, result, time);
        stays
    }

    /// The backend was not reached.
    pub fn failed(
        &mut self,
        backend: &Arc<Backend>,
        error: &io::Error,
        time: Duration,
        now: Instant,
    ) {
        let began = now.checked_sub(time).unwrap_or(now);
        let kind = self.service.report_failure(backend, error, [began, now]);
        self.record_attempt(backend, AttemptResult::Failed(kind), time);
        let first_failed = *self.first_failed.get_or_insert(began);
        if kind == ConnectError::Timeout {
            self.search.note_wait(first_failed);
        }
        self.last_error = Some(kind);
        self.failures += 1;
    }

    /// The session ended before the backend was reached or refused.
    pub fn abandoned(
        &mut self,
        backend: &Arc<Backend>,
        reason: CloseReason,
        time: Duration,
    ) -> Unserved {
        self.record_attempt(backend, AttemptResult::Abandoned(reason), time);
        self.unserved_for(reason)
    }

    fn record_attempt(&mut self, backend: &Arc<Backend>, result: AttemptResult, time: Duration) {
        if self.service.access_log().is_some() {
            self.attempts.push(Attempt {
                backend: Arc::clone(backend),
                result,
                time,
                waited: self.waited,
            });
        }
        self.waited = Duration::ZERO;
    }
}

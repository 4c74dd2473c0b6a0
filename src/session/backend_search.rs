//! The search of a session for a backend: pick one, try it, and on failure pick the next.

use crate::{
    plan::reason::{CloseReason, ConnectError},
    runtime::net::Client,
    session::{
        registry::{Kind, Session},
        service::Service,
        summary::{Attempt, AttemptResult},
    },
    upstream::{
        backend::{Backend, Lease},
        balance::HashInput,
        pool::{Search, Shortage},
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
    last_error: Option<ConnectError>,
    /// Filled only if there is an access log.
    attempts: &'a mut Vec<Attempt>,
}

/// Why a session got no backend.
#[derive(Debug, Clone, Copy)]
pub struct Unserved {
    pub reason: CloseReason,
    /// Of the backend that was tried last.
    pub error: Option<ConnectError>,
}

/// What the policy may look at.
pub fn facts(client: Client, server_port: Option<u16>, proxied: Option<Client>) -> HashInput {
    HashInput {
        remote_addr: client.ip(),
        remote_port: client.port(),
        server_port,
        proxy_protocol_addr: proxied.and_then(Client::ip),
    }
}

impl<'a> BackendSearch<'a> {
    pub fn new(service: &'a Service, session: &'a Session, attempts: &'a mut Vec<Attempt>) -> Self {
        let facts = facts(session.client(), session.server_port, session.proxied());
        Self {
            service,
            session,
            search: service.pool.search(&facts),
            picked: None,
            failures: 0,
            last_error: None,
            attempts,
        }
    }

    /// Begins with a backend that was picked already.
    pub fn begin_with(mut self, picked: Option<(Lease, Search)>) -> Self {
        if let Some((lease, search)) = picked {
            self.picked = Some(lease);
            self.search = search;
        }
        self
    }

    /// The next backend to try.
    pub fn next(&mut self, now: Instant) -> Result<Lease, Unserved> {
        if let Some(lease) = self.picked.take() {
            return Ok(lease);
        }
        let picked = match self.failures <= self.service.plan.retries {
            true => self.service.pool.pick(&mut self.search, now),
            // The failure of the last attempt is the reason.
            false => Err(Shortage::NoneFit),
        };
        let lease = picked.map_err(|shortage| self.unserved(shortage))?;
        if self.failures > 0 {
            lease.backend().metrics.counts.mine().retries.add(1);
        }
        Ok(lease)
    }

    fn unserved(&self, shortage: Shortage) -> Unserved {
        Unserved {
            reason: match (self.last_error, shortage) {
                (Some(_), _) => CloseReason::ConnectFailed,
                (None, Shortage::Full) => CloseReason::BackendsFull,
                (None, Shortage::NoneFit) => CloseReason::NoBackend,
            },
            error: self.last_error,
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
            Kind::Connection => pool.succeeded(&self.search, backend, now),
            Kind::Flow => pool.taken(&self.search, backend, now),
        };
        let result = match stays {
            true => AttemptResult::Connected,
            false => AttemptResult::Left,
        };
        if !stays {
            self.session.set_backend(0);
        }
        self.note(backend, result, time);
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
        let kind = self.service.report_failure(backend, error, now);
        self.note(backend, AttemptResult::Failed(kind), time);
        self.last_error = Some(kind);
        self.failures += 1;
    }

    /// The session ended before it was known whether the backend can be reached.
    pub fn abandoned(
        &mut self,
        backend: &Arc<Backend>,
        reason: CloseReason,
        time: Duration,
    ) -> Unserved {
        self.note(backend, AttemptResult::Abandoned(reason), time);
        Unserved {
            reason,
            error: self.last_error,
        }
    }

    fn note(&mut self, backend: &Arc<Backend>, result: AttemptResult, time: Duration) {
        if self.service.access_log().is_some() {
            self.attempts.push(Attempt {
                backend: Arc::clone(backend),
                result,
                time,
            });
        }
    }
}

//! The places of backends while two processes have sessions on them: one process gives places at
//! any time.
//!
//! The old process hands them over before the new one accepts, and takes none from then on: a
//! backend with `max_connections` is full there. So the number of its sessions only falls, and each
//! number that it reports is at least what it has by then. The new process adds that number to its
//! own sessions, and gives what is left. It gives nothing to sessions that wait before those of the
//! old process are in the line.

use super::{Inner, Pool};
use crate::{
    handover::places::{PlaceRecord, PlacesRecord},
    upstream::backend::{ALL_PLACES, Backend},
};
use std::{sync::Arc, time::Instant};

#[derive(Debug, Default)]
pub(super) struct Places {
    /// The last ticket of the line when the places were handed to another process.
    handed: Option<u64>,
    /// Sessions that wait come from another process, with tickets up to `reserved`.
    expects_line: bool,
    reserved: u64,
}

impl Places {
    pub(super) fn are_handed(&self) -> bool {
        self.handed.is_some()
    }

    /// When they were handed over.
    pub(super) fn last_ticket(&self) -> Option<u64> {
        self.handed
    }

    pub(super) fn expects_line(&self) -> bool {
        self.expects_line
    }
}

impl Pool {
    /// Another process, or none, gives the places from now on, until [`Self::take_back_places`].
    pub fn hand_places(&self) {
        let mut inner = self.lock();
        inner.places.handed = Some(inner.line.last_ticket());
        inner.hand_new_places();
    }

    /// The other process has ended.
    pub fn take_back_places(&self, now: Instant) {
        let mut inner = self.lock();
        inner.places.expects_line = false;
        inner.count_other_sessions(&[], now);
    }

    pub fn has_handed_places(&self) -> bool {
        self.lock().places.are_handed()
    }

    /// What the process needs that gives the places. `has_line`: whether sessions that wait are yet
    /// to follow.
    pub fn places_record(&self, has_line: bool) -> PlacesRecord {
        let last_ticket = self.lock().places.last_ticket().unwrap_or_default();
        let backends = self.backends().into_iter().filter_map(|backend| {
            let sessions = backend.active();
            (sessions > 0).then(|| PlaceRecord {
                text: backend.text().to_string(),
                address: backend.addr.to_string(),
                sessions,
            })
        });
        PlacesRecord {
            upstream: self.name.to_string(),
            last_ticket,
            has_line,
            backends: backends.collect(),
        }
    }

    /// How many connections are in the line.
    pub fn waiting_connections(&self) -> usize {
        let inner = self.lock();
        inner.line.searches().filter(|s| s.may_move).count()
    }

    /// Counts the sessions that another process has.
    pub fn note_places(&self, record: &PlacesRecord, now: Instant) {
        let of = |place: &PlaceRecord| {
            let backend = self.backend_at(&place.text, &place.address)?;
            Some((backend, place.sessions))
        };
        let other_sessions: Vec<_> = record.backends.iter().filter_map(of).collect();
        let mut inner = self.lock();
        inner.line.reserve_tickets(record.last_ticket);
        inner.places.reserved = record.last_ticket;
        inner.places.expects_line = record.has_line;
        inner.count_other_sessions(&other_sessions, now);
    }

    /// The other process has no more sessions that wait: it has ended, or keeps them.
    pub fn expect_no_line(&self, now: Instant) {
        let mut inner = self.lock();
        inner.places.expects_line = false;
        inner.serve(now);
    }
}

impl Inner {
    fn count_other_sessions(&mut self, other_sessions: &[(Arc<Backend>, u64)], now: Instant) {
        self.places.handed = None;
        for endpoint in self.endpoints.iter().chain(&self.departed) {
            endpoint.backend.set_other_sessions(0);
        }
        for (backend, sessions) in other_sessions {
            backend.set_other_sessions(*sessions);
        }
        self.serve(now);
    }

    /// The endpoints are others than before.
    pub(super) fn hand_new_places(&self) {
        if self.places.are_handed() {
            for endpoint in &self.endpoints {
                endpoint.backend.set_other_sessions(ALL_PLACES);
            }
        }
    }

    /// Whether this ticket is that of a session from another process which is not here yet.
    pub(super) fn is_reserved(&self, ticket: u64) -> bool {
        ticket <= self.places.reserved && !self.line.has(ticket)
    }
}

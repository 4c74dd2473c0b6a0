//! The places of backends at an upgrade: the new process gives them once it accepts.

use crate::{control::View, handover::places::PlacesRecord, upstream::pool::Pool};
use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

/// The pools of this process whose places another one gives, until [`Self::take_back`].
pub struct HandedPlaces(Vec<Arc<Pool>>);

impl HandedPlaces {
    /// Those of connections: of flows each process has its own until all have gone.
    pub fn hand(view: &View) -> Self {
        let services = view.services().filter(|service| !service.is_udp());
        let names: BTreeSet<_> = services.map(|s| Arc::clone(&s.pool.name)).collect();
        let pools = view.pools().filter(|pool| names.contains(&pool.name));
        let pools: Vec<_> = pools.cloned().collect();
        pools.iter().for_each(|pool| pool.hand_places());
        Self(pools)
    }

    /// The other process has ended.
    pub fn take_back(&self) {
        let now = Instant::now();
        self.0.iter().for_each(|pool| pool.take_back_places(now));
    }

    /// With those that have a line, which follows.
    pub fn records(&self) -> Vec<PlacesRecord> {
        let record = |pool: &Arc<Pool>| pool.places_record(pool.waiting_connections() > 0);
        self.0.iter().map(record).collect()
    }

    /// How many connections wait.
    pub fn waiting(&self) -> usize {
        self.0.iter().map(|pool| pool.waiting_connections()).sum()
    }
}

/// Tells the other process how many sessions this one still has on each backend.
pub(super) struct PlacesReport {
    places: Arc<HandedPlaces>,
    sent: Vec<PlacesRecord>,
    looked: Instant,
}

impl PlacesReport {
    /// `sent`: what the other process knows.
    pub(super) fn new(places: Arc<HandedPlaces>, sent: Vec<PlacesRecord>) -> Self {
        Self {
            places,
            sent,
            looked: Instant::now(),
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.places.waiting()
    }

    pub(super) fn is_due(&self, interval: Duration) -> bool {
        self.looked.elapsed() >= interval
    }

    /// What has changed since the last report. No line follows any more.
    pub(super) fn changes(&mut self) -> Vec<PlacesRecord> {
        self.looked = Instant::now();
        let now: Vec<_> = (self.places.0.iter().map(|pool| pool.places_record(false))).collect();
        let before = std::mem::replace(&mut self.sent, now);
        let changed = self.sent.iter().zip(&before);
        let changed = changed.filter(|(now, before)| now != before);
        changed.map(|(now, _)| now.clone()).collect()
    }
}

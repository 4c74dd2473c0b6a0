//! The sums of metrics: those of the old process are added to those of the new one, so that none
//! falls.

use crate::{
    control::State,
    handover::{
        counters::{Account, Figures},
        places::PlacesRecord,
        pools::PoolRecord,
    },
    telemetry::metrics::Transfer,
};
use std::time::Instant;

impl State {
    /// All that was counted so far.
    pub(super) fn accounts(&self) -> Vec<Account> {
        let mut accounts = Vec::new();
        self.visit_metrics(|of, names, metrics| {
            accounts.push(Account {
                of: of.to_owned(),
                names: names.iter().map(|name| (*name).to_owned()).collect(),
                figures: metrics.figures(),
            });
        });
        accounts
    }

    /// Adds what another process has counted. What this plan does not have is left out: its series
    /// have ended.
    pub(super) fn add_counters(&self, accounts: &[Account]) {
        let none = Figures::default();
        self.visit_metrics(|of, names, metrics| {
            let mut accounts = accounts.iter();
            let account = accounts.find(|account| account.of == of && account.names == names);
            metrics.add(account.map_or(&none, |account| &account.figures));
        });
    }

    /// Takes what operators have set, and where the turns of backends stand.
    pub(super) fn take_over_settings(&self, records: &[PoolRecord]) {
        let view = self.view();
        for pool in view.pools() {
            let mut records = records.iter();
            if let Some(record) = records.find(|record| *record.upstream == *pool.name) {
                pool.take_over_settings(record, Instant::now());
            }
        }
    }

    /// Counts the sessions that another process has on backends.
    pub(super) fn note_places(&self, records: &[PlacesRecord]) {
        let (view, now) = (self.view(), Instant::now());
        for record in records {
            if let Some(pool) = view.pools().find(|pool| *pool.name == *record.upstream) {
                pool.note_places(record, now);
            }
        }
    }

    /// The other process sends no more sessions that wait.
    pub(super) fn expect_no_line(&self) {
        let now = Instant::now();
        self.view()
            .pools()
            .for_each(|pool| pool.expect_no_line(now));
    }

    /// The other process has ended.
    pub(super) fn take_back_places(&self) {
        let now = Instant::now();
        self.view()
            .pools()
            .for_each(|pool| pool.take_back_places(now));
    }

    fn visit_metrics(&self, mut visit: impl FnMut(&str, &[&str], &dyn Transfer)) {
        let view = self.view();
        for service in view.services() {
            visit("listener", &[&service.plan.name], &*service.metrics);
        }
        for pool in view.pools() {
            visit("upstream", &[&pool.name], &*pool.metrics);
            for backend in pool.configured_metrics() {
                visit("backend", &[&pool.name, &backend.text], &*backend);
            }
        }
        visit("process", &[], &*self.process.metrics);
        visit("access_logs", &[], &*self.process.access_logs);
    }
}

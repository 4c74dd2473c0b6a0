//! Reports what follows when a backend goes out of service: the end of its last session, and the
//! first session that is served since, by another backend or, with `role_fallback`, by itself.

use crate::{
    control::journal::{Journal, Number, seconds},
    upstream::{backend::Backend, pool::Pool},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// The outages of an upstream that have not been reported completely.
#[derive(Debug, Default)]
pub(super) struct OutageTracker(Vec<Outage>);

#[derive(Debug)]
struct Outage {
    backend: Arc<Backend>,
    /// The event that began it.
    number: Number,
    began: Instant,
    /// How many clients of the upstream had got no backend by then.
    unserved: u64,
    has_emptied: bool,
    has_failed_over: bool,
}

/// The first session that a backend has taken since.
pub(super) struct NextSession {
    pub(super) to: Arc<str>,
    /// It, or one before it in the line whose connect took longer.
    pub(super) waited: Duration,
    pub(super) at: Instant,
}

impl OutageTracker {
    /// `sessions`: that were on it.
    pub(super) fn start(
        &mut self,
        pool: &Pool,
        backend: &Arc<Backend>,
        sessions: u64,
        journal: &Journal,
        (number, began): (Number, Instant),
    ) {
        self.0.retain(|o| journal.holds(o.number));
        self.0.push(Outage {
            backend: Arc::clone(backend),
            number,
            began,
            unserved: pool.metrics.unserved.get(),
            // Where none was on it, none has to end.
            has_emptied: sessions == 0,
            has_failed_over: false,
        });
    }

    /// Something else has happened to the same address: what follows is not due to its last outage.
    pub(super) fn end(&mut self, backend: &Backend) {
        self.0.retain(|o| o.backend.addr != backend.addr);
    }

    /// Reports the outages of backends whose last session has ended.
    pub(super) fn report_emptied(&mut self, pool: &Pool, journal: &Journal, now: Instant) {
        let emptied = |o: &&mut Outage| !o.has_emptied && o.backend.is_empty();
        for outage in self.0.iter_mut().filter(emptied) {
            outage.has_emptied = true;
            let took = now.saturating_duration_since(outage.began);
            pool.metrics.leave_duration.record(took);
            journal.add(outage.number, |event| {
                event.last_session_closed_seconds = Some(seconds(took));
            });
            let backend = &outage.backend;
            tracing::info!(upstream = %pool.name, backend = %backend.text(),
                address = %backend.addr, seconds = seconds(took),
                "last session of the backend ended");
        }
        self.remove_reported();
    }

    /// Reports that the first session has been taken by a backend.
    pub(super) fn report_failover(
        &mut self,
        pool: &Pool,
        journal: &Journal,
        backend: &Backend,
        next: &NextSession,
    ) {
        let mut open = self.0.iter_mut();
        let Some(outage) = open.find(|o| o.backend.id == backend.id && !o.has_failed_over) else {
            return;
        };
        outage.has_failed_over = true;
        let took = next.at.saturating_duration_since(outage.began);
        let unserved = pool.metrics.unserved.get();
        let unserved = unserved.saturating_sub(outage.unserved);
        pool.metrics.resume_duration.record(took);
        journal.add(outage.number, |event| {
            event.next_session_seconds = Some(seconds(took));
            event.next_session_on = Some(next.to.to_string());
            event.next_session_waited_seconds = Some(seconds(next.waited));
            event.unserved_clients = Some(unserved);
        });
        tracing::info!(
            upstream = %pool.name,
            backend = %backend.text(),
            address = %backend.addr,
            next = %next.to,
            seconds = seconds(took),
            waited_seconds = seconds(next.waited),
            unserved_clients = unserved,
            "next session served"
        );
        self.remove_reported();
    }

    fn remove_reported(&mut self) {
        self.0.retain(|o| !(o.has_emptied && o.has_failed_over));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        control::journal::JournalEntry,
        upstream::{
            health::Verdict,
            pool::tests::{DOWN, check, guarded, planned, verdict},
        },
    };

    #[test]
    fn the_next_event_of_an_address_ends_its_outage() {
        let now = Instant::now();
        let check = check(crate::plan::CheckKind::Tcp);
        let pool = guarded(vec![planned(1), planned(2)], check, now);
        let journal = Journal::default();
        let mut outages = OutageTracker::default();
        let mut numbers = Vec::new();
        for n in [0, 1, 0] {
            verdict(&pool, n, Verdict::Up, false, now);
            pool.take_events(now);
            verdict(&pool, n, DOWN, false, now);
            for event in pool.take_events(now).0 {
                if let crate::upstream::pool::Event::Transition(transition) = event {
                    let number = journal.record(JournalEntry::new("u", &transition));
                    outages.end(&transition.backend);
                    outages.start(&pool, &transition.backend, 1, &journal, (number, now));
                    numbers.push(number);
                }
            }
        }
        let open = |number| outages.0.iter().any(|o| o.number == number);
        let open: Vec<bool> = numbers.into_iter().map(open).collect();
        assert_eq!(open, [false, true, true]);
    }
}

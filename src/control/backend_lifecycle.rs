//! The one consumer of what happens to the backends of an upstream: it turns events of the pool
//! into log lines, entries of the journal, metrics, outages and terminations of sessions.

mod transition_log;

use super::supervise::supervised;
use crate::{
    control::{
        draining::Draining,
        journal::{BackendCount, Journal, JournalEntry, Number},
        outage::{NextSession, OutageTracker},
    },
    plan::{Upstream, reason::BackendState},
    sys::mutex::Mutex,
    upstream::pool::{AdminStateSet, Cause, Event, Pool, Transition, WeightSet},
};
use std::{
    future::{pending, poll_fn},
    sync::Arc,
    time::Instant,
};
use tokio::sync::Notify;

/// So many backends that come or go at once are events of the journal each.
const MOST_SINGLE: usize = 32;

pub(super) struct Lifecycle {
    pool: Arc<Pool>,
    draining: Draining,
    journal: Arc<Journal>,
    /// Notified when there are other addresses to check.
    addresses_changed: Arc<Notify>,
    outages: Mutex<OutageTracker>,
}

impl Lifecycle {
    pub(super) fn new(
        pool: &Arc<Pool>,
        draining: Draining,
        journal: &Arc<Journal>,
        addresses_changed: &Arc<Notify>,
    ) -> Self {
        Self {
            pool: Arc::clone(pool),
            draining,
            journal: Arc::clone(journal),
            addresses_changed: Arc::clone(addresses_changed),
            outages: Mutex::default(),
        }
    }

    /// Takes over what becomes of sessions from another plan.
    pub(super) fn set_plan(&self, upstream: &Upstream) {
        self.draining.set_plan(upstream);
        self.addresses_changed.notify_one();
    }

    /// Handles events as they happen, for ever.
    pub(super) async fn run(self: Arc<Self>) {
        let lost = |why: &str| {
            tracing::error!(upstream = %self.pool.name, why, "lifecycle task panicked, restarted");
        };
        supervised(|| self.handle_all(), lost).await;
    }

    async fn handle_all(&self) {
        loop {
            let next = self.handle_pending(Instant::now());
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = poll_fn(|cx| self.pool.poll_events(cx)) => {}
                () = due => {}
            }
        }
    }

    /// Handles what has happened by now. Returns when to do so again even without a notification.
    pub(super) fn handle_pending(&self, now: Instant) -> Option<Instant> {
        let (events, next) = self.pool.take_events(now);
        let mut outages = self.outages.lock();
        let together = self.record_together(&events, now);
        for event in events {
            self.handle(event, together, &mut outages);
        }
        outages.report_emptied(&self.pool, &self.journal, now);
        next
    }

    /// Many backends that come or go at once are one event of the journal, or they would take the
    /// place of all others. Returns its number.
    fn record_together(&self, events: &[Event], now: Instant) -> Option<Number> {
        let transitions = events.iter().filter_map(|event| match event {
            Event::Transition(transition) if is_of_plan(&transition.cause) => Some(transition),
            _ => None,
        });
        let last = transitions.clone().next_back()?;
        let (mut added, mut removed, mut sessions) = (0, 0, 0);
        for transition in transitions {
            added += usize::from(transition.from.is_none());
            removed += usize::from(transition.to.is_none());
            if transition.to.is_none() {
                sessions += transition.backend.active();
            }
        }
        (added + removed > MOST_SINGLE).then(|| {
            let count = BackendCount {
                added,
                removed,
                now: self.pool.address_count(),
                sessions,
                reason: last.cause.word(),
            };
            self.journal
                .record(JournalEntry::of_backends(&self.pool.name, &count, now))
        })
    }

    fn handle(&self, event: Event, together: Option<Number>, outages: &mut OutageTracker) {
        let (pool, journal) = (&self.pool, &self.journal);
        let upstream = &pool.name;
        match event {
            Event::Transition(transition) => {
                let is_move = transition.from.is_none() || transition.to.is_none();
                let together = together.filter(|_| is_move && is_of_plan(&transition.cause));
                self.handle_transition(&transition, together, outages);
            }
            Event::FailedOver {
                backend,
                to,
                waited,
                at,
            } => {
                let next = NextSession { to, waited, at };
                outages.report_failover(pool, journal, &backend, &next);
            }
            Event::AdminStateSet(set) => self.handle_admin_state(&set),
            Event::WeightSet(set) => self.handle_weight(&set),
            Event::Stale(backend) => {
                tracing::warn!(%upstream, backend = %backend.text(), address = %backend.addr,
                    "check results are stale, backend takes no new sessions");
            }
            Event::Fresh(backend) => {
                tracing::info!(%upstream, backend = %backend.text(), address = %backend.addr,
                    "check answers again");
            }
            Event::PanicStarted { up, total } => {
                tracing::warn!(%upstream, up, of = total,
                    "panic threshold reached, all backends are used");
                self.draining.start_panic(pool);
            }
            Event::FallbackStarted { backend, at } => {
                tracing::warn!(%upstream, backend = %backend.text(), address = %backend.addr,
                    "no replica is up, the primary is used");
                journal.record(JournalEntry::of_fallback(
                    upstream,
                    Some(&backend),
                    "no_replica",
                    at,
                ));
            }
            Event::FallbackEnded { is_any_up, at } => {
                let reason = match is_any_up {
                    true => "replica_up",
                    false => "no_primary",
                };
                tracing::info!(%upstream, reason, "the primary is not used for replicas any more");
                journal.record(JournalEntry::of_fallback(upstream, None, reason, at));
            }
            Event::PanicEnded => {
                tracing::info!(%upstream, "panic threshold left, checks decide again");
                self.draining.end_panic(pool);
            }
        }
    }

    fn handle_admin_state(&self, set: &AdminStateSet) {
        let AdminStateSet { order, change, .. } = set;
        let (upstream, backend) = (&self.pool.name, &set.metrics.text);
        let admin_state = order.admin_state;
        let reason = Cause::Operator(admin_state).word();
        self.draining.follow_admin_state(&self.pool, set);
        if let Some(close_after) = order.close_after {
            tracing::info!(%upstream, %backend, reason, ?close_after, sessions = change.sessions,
                admin_state = admin_state.word(), "sessions of the backend are to end");
        }
        if admin_state == set.was {
            return;
        }
        // Put back into service it is down until a check has passed, which is no fault.
        if change.to != BackendState::Down {
            set.metrics.entered(change.to);
        }
        let (from, to) = (change.from.word(), change.to.word());
        tracing::info!(%upstream, %backend, from, to, reason, sessions = change.sessions,
            admin_state = admin_state.word(), "admin state changed");
        self.addresses_changed.notify_one();
    }

    fn handle_weight(&self, set: &WeightSet) {
        let upstream = &self.pool.name;
        let (from, to, in_file) = (set.from, set.to, set.in_file);
        tracing::info!(%upstream, backend = %set.metrics.text, from, to, in_file,
            by_operator = set.is_by_operator, "weight changed");
        // An order may only confirm the weight.
        if from != to {
            self.journal.record(JournalEntry::of_weight(upstream, set));
        }
    }

    /// `together`: the event of the journal that it is part of.
    fn handle_transition(
        &self,
        transition: &Transition,
        together: Option<Number>,
        outages: &mut OutageTracker,
    ) {
        let pool = &self.pool;
        let Transition { backend, cause, .. } = transition;
        let doubt = || pool.metrics.doubt_duration.record(transition.doubted_for);
        match cause {
            Cause::Check { .. }
            | Cause::Superseded(_)
            | Cause::TwoPrimaries(_)
            | Cause::OnePrimary => {
                self.count(transition);
                self.draining.follow_verdict(pool, transition);
                if transition.is_outage() {
                    doubt();
                }
            }
            Cause::Failure { .. } => {
                self.count(transition);
                doubt();
            }
            Cause::Connected | Cause::Answered | Cause::CheckPassed => self.count(transition),
            // What follows from it is done for all addresses at once.
            Cause::Operator(_) => {}
            Cause::Resolver | Cause::Plan | Cause::Discovery => {
                self.draining.follow_names(pool, transition);
                self.addresses_changed.notify_one();
            }
        }
        if transition.ends_outage() || transition.is_outage() {
            outages.end(backend);
        }
        let (number, sessions) = match together {
            // One without sessions concerns no client.
            Some(_) if backend.is_empty() => return,
            Some(number) => (number, 1),
            None => {
                let entry = JournalEntry::new(&pool.name, transition);
                transition_log::log(&entry, transition, pool.role());
                let sessions = entry.sessions;
                (self.journal.record(entry), sessions)
            }
        };
        if transition.is_outage() {
            outages.start(
                pool,
                backend,
                sessions,
                &self.journal,
                (number, transition.at),
            );
        }
    }

    fn count(&self, transition: &Transition) {
        if let Some(to) = transition.to {
            transition.backend.metrics.entered(to);
        }
    }
}

/// Whether it is a matter of which backends there are.
fn is_of_plan(cause: &Cause) -> bool {
    match cause {
        Cause::Resolver | Cause::Plan | Cause::Discovery => true,
        Cause::Check { .. }
        | Cause::Superseded(_)
        | Cause::TwoPrimaries(_)
        | Cause::OnePrimary
        | Cause::Failure { .. }
        | Cause::Connected
        | Cause::Answered
        | Cause::CheckPassed
        | Cause::Operator(_) => false,
    }
}

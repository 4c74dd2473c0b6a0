//! The tasks that follow a source: one asks, the other decides, and lets the main loop put what it
//! has decided into effect.

use super::{
    Discovery, PreparedDiscovery,
    asking::{Answer, Asking},
    log,
    queue::DiscoveryQueue,
    saved,
};
use crate::{
    control::{
        journal::{Journal, JournalEntry},
        resolve::Resolver,
    },
    discover::{
        Gap, SourceError,
        merge::{Known, Outcome},
    },
    plan::{Discover, Target},
    sys::task::boxed,
};
use std::{
    future::pending,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

/// Names among new backends are waited for so long before these are put into effect.
const NAMES_WAIT: Duration = Duration::from_millis(500);
/// Between two savings.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);
/// The first of several failures is logged, and one after each of so long a time.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// A source without an answer for so long is an event of the journal.
const SILENCE: Duration = Duration::from_secs(10);

/// The source of an upstream, while its plan has it. Dropping it ends its tasks.
pub(in crate::control) struct Follower {
    pub(in crate::control) discovery: Arc<Discovery>,
    _deciding: AbortOnDropHandle<()>,
}

impl Follower {
    pub(in crate::control) fn start(
        prepared: PreparedDiscovery,
        discover: &Discover,
        queue: &Arc<DiscoveryQueue>,
        journal: &Arc<Journal>,
        resolver: &Resolver,
    ) -> Self {
        let PreparedDiscovery { discovery, asking } = prepared;
        discovery.set_discover(discover);
        let asking = asking.unwrap_or_else(|| Asking::begin(&discovery.upstream, discover));
        let decider = Decider {
            discovery: Arc::clone(&discovery),
            discover: discover.clone(),
            queue: Arc::clone(queue),
            journal: Arc::clone(journal),
            resolver: resolver.clone(),
            failures: None,
            gap_logged: None,
            save_at: None,
        };
        Self {
            discovery,
            _deciding: AbortOnDropHandle::new(tokio::spawn(boxed(decider.run(asking)))),
        }
    }
}

struct Decider {
    discovery: Arc<Discovery>,
    discover: Discover,
    queue: Arc<DiscoveryQueue>,
    journal: Arc<Journal>,
    resolver: Resolver,
    failures: Option<Failures>,
    /// When it was last logged that answers are not whole, while they are not.
    gap_logged: Option<Instant>,
    /// When what is in effect is to be saved.
    save_at: Option<Instant>,
}

/// Questions in a row that have failed.
struct Failures {
    count: u64,
    began: Instant,
    logged: Instant,
    /// Whether the journal has an event about them.
    is_recorded: bool,
}

impl Decider {
    async fn run(mut self, mut asking: Asking) {
        // What has been taken before is in effect, and may have a deadline.
        let outcome = self.discovery.tick(Instant::now());
        let mut deadline = outcome.deadline;
        self.put_into_effect(outcome).await;
        self.save_at = Some(Instant::now());
        loop {
            let next = deadline.into_iter().chain(self.save_at).min();
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => pending().await,
                }
            };
            let answer = tokio::select! {
                answer = asking.answer() => Some(answer),
                () = due => None,
            };
            let now = Instant::now();
            if let Some(answer) = answer {
                self.report(&answer, now);
                let outcome = self.discovery.take(answer, now);
                deadline = outcome.deadline;
                self.put_into_effect(outcome).await;
            } else if deadline.is_some_and(|at| at <= now) {
                let outcome = self.discovery.tick(now);
                deadline = outcome.deadline;
                self.put_into_effect(outcome).await;
            }
            if self.save_at.is_some_and(|at| at <= now) {
                self.save().await;
            }
        }
    }

    async fn put_into_effect(&mut self, outcome: Outcome) {
        let Some(changes) = outcome.changes else {
            return;
        };
        log(
            &self.discovery.upstream,
            &changes,
            &self.discovery.version(),
        );
        self.resolve(&changes.added).await;
        self.queue.add(&self.discovery.upstream);
        self.save_at.get_or_insert(Instant::now() + SAVE_INTERVAL);
    }

    /// Looks up the names among these addresses; those that do not resolve in time are looked up
    /// again as those of the file are.
    async fn resolve(&self, added: &[String]) {
        let names = added
            .iter()
            .filter_map(|address| match crate::config::parse_target(address) {
                Ok(Target::Name { host, port }) => Some((address.clone(), host, port)),
                Ok(Target::Addr(_)) | Err(_) => None,
            });
        let mut lookups = tokio::task::JoinSet::new();
        for (address, host, port) in names {
            let resolver = self.resolver.clone();
            lookups.spawn(boxed(async move {
                (address, resolver.addresses(&host, port).await)
            }));
        }
        let all = async {
            while let Some(found) = lookups.join_next().await {
                if let Ok((address, Ok(addresses))) = found {
                    self.discovery.set_addresses(address, addresses);
                }
            }
        };
        // The others follow as answers come.
        let _ = timeout(NAMES_WAIT, all).await;
    }

    fn report(&mut self, answer: &Answer, now: Instant) {
        let kind = self.discover.source.kind().word();
        match answer {
            Ok(snapshot) => {
                self.report_gap(snapshot.gap.as_ref(), now);
                let upstream = &self.discovery.upstream;
                if let Some(failures) = self.failures.take() {
                    let Failures { count, .. } = failures;
                    tracing::info!(%upstream, kind, failures = count,
                        "source of backends answers again");
                    if failures.is_recorded {
                        self.journal
                            .record(JournalEntry::of_source(upstream, None, now));
                    }
                }
            }
            Err(error) => self.report_failure(error, now),
        }
    }

    /// A part of an answer that is missing.
    fn report_gap(&mut self, gap: Option<&Gap>, now: Instant) {
        let upstream = &self.discovery.upstream;
        let kind = self.discover.source.kind().word();
        let Some(gap) = gap else {
            if self.gap_logged.take().is_some() {
                tracing::info!(%upstream, kind, "answer of the source of backends is whole again");
            }
            return;
        };
        if self.gap_logged.is_none_or(|at| now >= at + LOG_INTERVAL) {
            self.gap_logged = Some(now);
            tracing::warn!(%upstream, kind, error = gap.error.message,
                "answer of the source of backends is not whole, keeping what may be missing");
        }
    }

    fn report_failure(&mut self, error: &SourceError, now: Instant) {
        let upstream = &self.discovery.upstream;
        let kind = self.discover.source.kind().word();
        let has_answered = self.discovery.known() == Known::Answered;
        let failures = self.failures.get_or_insert(Failures {
            count: 0,
            began: now,
            logged: now,
            is_recorded: false,
        });
        failures.count += 1;
        if failures.count == 1 || now >= failures.logged + LOG_INTERVAL {
            failures.logged = now;
            tracing::warn!(%upstream, kind, error = error.message, failures = failures.count,
                has_answered, "no usable answer from the source of backends, its last set stays");
        }
        if !failures.is_recorded && now >= failures.began + SILENCE {
            failures.is_recorded = true;
            let event = JournalEntry::of_source(upstream, Some(&error.message), now);
            self.journal.record(event);
        }
    }

    async fn save(&mut self) {
        self.save_at = None;
        if let Some(error) = saved::write(&self.discovery).await {
            let upstream = &self.discovery.upstream;
            tracing::warn!(%upstream, %error, "discovered backends cannot be saved");
        }
    }
}

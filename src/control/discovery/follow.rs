//! The tasks that follow a source: one asks, the other decides, and lets the main loop put what it
//! has decided into effect.

use super::{Discovery, PreparedDiscovery, log, queue::DiscoveryQueue, saved};
use crate::{
    control::{resolve::Resolver, supervise::supervised},
    discover::{
        AnySource, Snapshot, Source as _, SourceError,
        merge::{Known, Outcome},
    },
    plan::{Discover, Target},
};
use std::{
    future::pending,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::task::AbortOnDropHandle;

/// After a failure, doubled with each one...
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// ... up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Between two answers, however often a source has some: a mistake in one must not fill a CPU.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
/// Names among new backends are waited for so long before these are put into effect.
const NAMES_WAIT: Duration = Duration::from_millis(500);
/// Between two savings.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);
/// The first of several failures is logged, and one after each of so long a time.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

type Answer = Result<Snapshot, SourceError>;

/// The source of an upstream, while its plan has it. Dropping it ends its tasks.
pub(in crate::control) struct Follower {
    pub(in crate::control) discovery: Arc<Discovery>,
    _asking: AbortOnDropHandle<()>,
    _deciding: AbortOnDropHandle<()>,
}

impl Follower {
    pub(in crate::control) fn start(
        prepared: PreparedDiscovery,
        discover: &Discover,
        queue: &Arc<DiscoveryQueue>,
        resolver: &Resolver,
    ) -> Self {
        let PreparedDiscovery { discovery, source } = prepared;
        discovery.set_discover(discover);
        let (sender, answers) = mpsc::channel(1);
        let upstream = Arc::clone(&discovery.upstream);
        let asking = ask(upstream, discover.clone(), source, sender);
        let decider = Decider {
            discovery: Arc::clone(&discovery),
            discover: discover.clone(),
            queue: Arc::clone(queue),
            resolver: resolver.clone(),
            failures: None,
            save_at: None,
        };
        Self {
            discovery,
            _asking: AbortOnDropHandle::new(tokio::spawn(asking)),
            _deciding: AbortOnDropHandle::new(tokio::spawn(decider.run(answers))),
        }
    }
}

/// Asks the source for ever. `first`: one that has answered already.
async fn ask(
    upstream: Arc<str>,
    discover: Discover,
    first: Option<AnySource>,
    answers: mpsc::Sender<Answer>,
) {
    let first = std::sync::Mutex::new(first);
    let lost = |why: &str| {
        tracing::error!(%upstream, why, "source of backends panicked, restarted");
    };
    let start = || {
        let first = first.lock().ok().and_then(|mut first| first.take());
        ask_source(
            first.unwrap_or_else(|| AnySource::open(&discover)),
            &answers,
        )
    };
    supervised(start, lost).await;
}

async fn ask_source(mut source: AnySource, answers: &mpsc::Sender<Answer>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let answer = source.next().await;
        let is_good = answer.is_ok();
        if answers.send(answer).await.is_err() {
            return;
        }
        if is_good {
            pause = FIRST_PAUSE;
            tokio::time::sleep(SHORTEST_PAUSE).await;
        } else {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

struct Decider {
    discovery: Arc<Discovery>,
    discover: Discover,
    queue: Arc<DiscoveryQueue>,
    resolver: Resolver,
    /// How many questions in a row have failed, and when that was logged last.
    failures: Option<(u64, Instant)>,
    /// When what is in effect is to be saved.
    save_at: Option<Instant>,
}

impl Decider {
    async fn run(mut self, mut answers: mpsc::Receiver<Answer>) {
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
                answer = answers.recv() => match answer {
                    Some(answer) => Some(answer),
                    None => return,
                },
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
            lookups.spawn(async move { (address, resolver.addresses(&host, port).await) });
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
        let upstream = &self.discovery.upstream;
        let kind = self.discover.source.kind().word();
        match answer {
            Ok(_) => {
                if let Some((failures, _)) = self.failures.take() {
                    tracing::info!(%upstream, kind, failures, "source of backends answers again");
                }
            }
            Err(error) => {
                let is_old = self.discovery.known() != Known::Answered;
                let (failures, logged) = self.failures.unwrap_or((0, now));
                let failures = failures + 1;
                let is_due = failures == 1 || now >= logged + LOG_INTERVAL;
                self.failures = Some((failures, if is_due { now } else { logged }));
                if is_due {
                    tracing::warn!(%upstream, kind, error = error.message, failures, is_old,
                        "no answer from the source of backends, keeping those it had");
                }
            }
        }
    }

    async fn save(&mut self) {
        self.save_at = None;
        if let Some(error) = saved::write(&self.discovery, &self.discover).await {
            let upstream = &self.discovery.upstream;
            tracing::warn!(%upstream, %error, "discovered backends cannot be saved");
        }
    }
}

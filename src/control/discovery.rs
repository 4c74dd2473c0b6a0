//! Discovered backends: what the source of an upstream has said, and which of that is in
//! effect. `discover` asks and decides; here answers become backends of the plan.

mod backends;
mod follow;
mod handed;
mod queue;
mod saved;

pub use queue::DiscoveryQueue;

use crate::{
    discover::{
        AnySource, Snapshot, Source as _, SourceError,
        merge::{Changes, Held, Known, Merged, Outcome, Rules},
    },
    handover::discovery::DiscoveryRecord,
    plan::{Addr, Backend, Discover, Plan, Target, Upstream},
};
use saved::Saved;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Instant, SystemTime},
};
use tokio::{task::JoinSet, time::timeout};

pub(super) use follow::Follower;

/// What is known from the source of one upstream. It outlives changes of the plan.
#[derive(Debug)]
pub struct Discovery {
    pub upstream: Arc<str>,
    state: Mutex<Answers>,
    /// Answers, by what they led to.
    updates: [AtomicU64; UpdateResult::ALL.len()],
}

#[derive(Debug)]
struct Answers {
    discover: Discover,
    merged: Merged,
    version: String,
    last_success: Option<SystemTime>,
    /// Of the last question, if it has failed, with the time of the first such failure in a row.
    error: Option<(String, SystemTime)>,
    /// Of names among the backends, as far as they are resolved.
    addresses: HashMap<String, Vec<Addr>>,
}

/// What an answer led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateResult {
    /// Other backends.
    Changed,
    /// The backends stay as they are.
    Unchanged,
    /// There was none.
    Error,
}

impl UpdateResult {
    pub const ALL: &'static [Self] = &[Self::Changed, Self::Unchanged, Self::Error];

    pub fn word(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
            Self::Error => "error",
        }
    }
}

/// A discovery for a plan, and its source if that has been asked already.
pub(super) struct PreparedDiscovery {
    pub(super) discovery: Arc<Discovery>,
    pub(super) source: Option<AnySource>,
}

/// What status and metrics show.
#[derive(Debug)]
pub struct DiscoveryStatus {
    pub kind: &'static str,
    /// How many backends are in effect that were discovered.
    pub backends: usize,
    pub version: String,
    /// When they are from an earlier process, of that process.
    pub last_success: Option<SystemTime>,
    /// Whether the source has not answered this process yet.
    pub is_old: bool,
    /// Why the last question has had no answer, and since when there is none.
    pub error: Option<(String, SystemTime)>,
    pub held: Vec<HeldBackend>,
}

/// A backend that stays although the source does not have it.
#[derive(Debug)]
pub struct HeldBackend {
    pub address: String,
    pub reason: &'static str,
    /// `None`: not by time alone.
    pub until: Option<SystemTime>,
}

/// The discoveries of a plan: those that run already, and others begun. Their backends become
/// backends of the plan. `handed`: what another process knows.
pub(super) async fn begin_all(
    plan: &mut Plan,
    running: &BTreeMap<String, Arc<Discovery>>,
    handed: &[DiscoveryRecord],
) -> BTreeMap<String, PreparedDiscovery> {
    // All at once: sources that do not answer are waited for together.
    let mut begun = JoinSet::new();
    let mut prepared = BTreeMap::new();
    for upstream in &plan.upstreams {
        let Some(discover) = upstream.discover.clone() else {
            continue;
        };
        let name = upstream.name.clone();
        match running.get(&name) {
            Some(discovery) => {
                let prepared_discovery = PreparedDiscovery {
                    discovery: Arc::clone(discovery),
                    source: None,
                };
                prepared.insert(name, prepared_discovery);
            }
            None => {
                let handed = handed
                    .iter()
                    .find(|handed| handed.upstream == name)
                    .cloned();
                begun.spawn(async move {
                    let begun = Discovery::begin(&name, &discover, handed.as_ref()).await;
                    (begun, name)
                });
            }
        }
    }
    while let Some(result) = begun.join_next().await {
        match result {
            Ok((discovery, name)) => {
                prepared.insert(name, discovery);
            }
            Err(error) => tracing::error!(%error, "source of backends panicked"),
        }
    }
    for upstream in &mut plan.upstreams {
        if let Some(prepared) = prepared.get(&upstream.name) {
            prepared.discovery.apply_to(upstream);
        }
    }
    prepared
}

impl Discovery {
    /// Takes what another process has handed over, or reads what an earlier one has saved, and asks
    /// the source once.
    pub(super) async fn begin(
        upstream: &str,
        discover: &Discover,
        handed: Option<&DiscoveryRecord>,
    ) -> PreparedDiscovery {
        let discovery = Self {
            upstream: upstream.into(),
            state: Mutex::new(Answers {
                discover: discover.clone(),
                merged: Merged::default(),
                version: String::new(),
                last_success: None,
                error: None,
                addresses: HashMap::new(),
            }),
            updates: Default::default(),
        };
        let mut source = AnySource::open(discover);
        let (saved, answer) = tokio::join!(
            saved::read(upstream, discover),
            timeout(discover.timeout, source.next())
        );
        if let Some(handed) = handed {
            discovery.take_over(handed, Instant::now());
        }
        if let Some(saved) = saved {
            discovery.restore(saved);
        }
        let (answer, source) = match answer {
            Ok(answer) => (answer, Some(source)),
            Err(_) => (Err(SourceError::timed_out(discover.timeout)), None),
        };
        if let Err(error) = &answer {
            let (error, known) = (&error.message, discovery.known());
            let backends = discovery.lock().merged.in_effect().len();
            match known {
                Known::Saved | Known::Answered => tracing::warn!(
                    upstream,
                    error,
                    backends,
                    "source of backends does not answer, using those of an earlier process"
                ),
                Known::Nothing => tracing::warn!(
                    upstream,
                    error,
                    "source of backends does not answer, there are none of it yet"
                ),
            }
        }
        discovery.take(answer, Instant::now());
        let discovery = Arc::new(discovery);
        PreparedDiscovery { discovery, source }
    }

    fn restore(&self, saved: Saved) {
        let mut state = self.lock();
        if state.merged.restore(saved.backends) {
            state.version = saved.version;
            state.last_success = Some(saved.time);
        }
    }

    /// Takes an answer of the source.
    fn take(&self, answer: Result<Snapshot, SourceError>, now: Instant) -> Outcome {
        let answer = answer.and_then(|snapshot| {
            let set = backends::read(snapshot.backends)?;
            Ok((set, snapshot.version))
        });
        let mut state = self.lock();
        let rules = Rules::from(&state.discover);
        let wall = SystemTime::now();
        let (set, result) = match answer {
            Ok((set, version)) => {
                state.version = version;
                state.last_success = Some(wall);
                state.error = None;
                (Some(set), None)
            }
            Err(error) => {
                let since = state.error.take().map_or(wall, |(_, since)| since);
                state.error = Some((error.message, since));
                (None, Some(UpdateResult::Error))
            }
        };
        let outcome = state.merged.merge(set, rules, now);
        let result = result.unwrap_or(match outcome.changes.is_some() {
            true => UpdateResult::Changed,
            false => UpdateResult::Unchanged,
        });
        self.updates[result as usize].fetch_add(1, Relaxed);
        outcome
    }

    /// What time alone leads to.
    fn tick(&self, now: Instant) -> Outcome {
        let mut state = self.lock();
        let rules = Rules::from(&state.discover);
        let outcome = state.merged.tick(rules, now);
        if outcome.changes.is_some() {
            self.updates[UpdateResult::Changed as usize].fetch_add(1, Relaxed);
        }
        outcome
    }

    /// Takes over another section of the configuration. What is in effect stays until its source
    /// answers.
    fn set_discover(&self, discover: &Discover) {
        let mut state = self.lock();
        if state.discover.source != discover.source {
            state.merged.forget_answer();
            state.error = None;
        }
        state.discover = discover.clone();
    }

    fn set_addresses(&self, name: String, addresses: Vec<Addr>) {
        self.lock().addresses.insert(name, addresses);
    }

    fn version(&self) -> String {
        self.lock().version.clone()
    }

    pub(crate) fn known(&self) -> Known {
        self.lock().merged.known()
    }

    /// Whether there is a set of backends, of the source or of an earlier process.
    pub fn is_known(&self) -> bool {
        self.known() != Known::Nothing
    }

    /// The backends of this upstream with those that were discovered, instead of those that were
    /// discovered before.
    pub(super) fn apply_to(&self, upstream: &mut Upstream) {
        let state = self.lock();
        backends::replace(upstream, state.merged.in_effect());
    }

    /// What a name among the discovered backends stands for, as far as that is known.
    pub(super) fn addresses_of(&self, backend: &Backend) -> Vec<Addr> {
        match &backend.target {
            Target::Addr(addr) => vec![addr.clone()],
            Target::Name { .. } => {
                let state = self.lock();
                state
                    .addresses
                    .get(&backend.text)
                    .cloned()
                    .unwrap_or_default()
            }
        }
    }

    /// Answers so far that led to this.
    pub fn updates(&self, result: UpdateResult) -> u64 {
        self.updates[result as usize].load(Relaxed)
    }

    pub fn status(&self, now: Instant) -> DiscoveryStatus {
        let state = self.lock();
        let rules = Rules::from(&state.discover);
        let wall = SystemTime::now();
        let held = state.merged.held(rules, now).into_iter();
        let held = held.map(|held: Held| HeldBackend {
            address: held.address,
            reason: held.reason.word(),
            until: held
                .until
                .map(|at| wall + at.saturating_duration_since(now)),
        });
        DiscoveryStatus {
            kind: state.discover.source.kind().word(),
            backends: state.merged.in_effect().len(),
            version: state.version.clone(),
            last_success: state.last_success,
            is_old: state.merged.known() == Known::Saved,
            error: state.error.clone(),
            held: held.collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Answers> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For a line of the log; only so many addresses are named.
fn list(addresses: &[String]) -> String {
    const MOST: usize = 10;
    let mut text = addresses
        .iter()
        .take(MOST)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    if addresses.len() > MOST {
        text.push_str(", ...");
    }
    text
}

fn log(upstream: &str, changes: &Changes, version: &str) {
    let Changes {
        added,
        removed,
        changed,
    } = changes;
    tracing::info!(
        upstream,
        version,
        added = added.len(),
        removed = removed.len(),
        changed = changed.len(),
        added_addresses = list(added),
        removed_addresses = list(removed),
        changed_addresses = list(changed),
        "discovered backends changed"
    );
}

//! Discovered backends: what the source of an upstream has said, and which of that is in
//! effect. `discover` asks and decides; here answers become backends of the plan.

mod asking;
mod backends;
mod once;
mod queue;
mod saved;
mod source_state;
mod source_tasks;

pub use once::{SourceAnswer, ask_sources_once};
pub use queue::DiscoveryQueue;

use crate::{
    discover::{
        Snapshot, SourceError,
        merge::{Changes, Held, Known, Merged, Outcome, Rules},
    },
    handover::discovery::DiscoveryRecord,
    plan::{Addr, Backend, Discover, Plan, Target, Upstream, reason::words},
    sys::{mutex::Mutex, task::boxed},
};
use asking::Asking;
use saved::{Saved, identify};
use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};
use tokio::{task::JoinSet, time::timeout};

pub(super) use source_tasks::Follower;

/// A source ends its own questions after `timeout`, and then has so long to say why.
const MARGIN: Duration = Duration::from_millis(100);

/// What is known from the source of one upstream. It outlives changes of the plan.
#[derive(Debug)]
pub struct Discovery {
    pub upstream: Arc<str>,
    state: Mutex<Answers>,
    /// Answers, by what they led to.
    updates: [AtomicU64; UpdateResult::COUNT],
}

#[derive(Debug)]
struct Answers {
    discover: Discover,
    merged: Merged,
    /// The source of what is in effect: another one than that of `discover` while that has not
    /// answered.
    source: String,
    version: String,
    last_success: Option<SystemTime>,
    /// Of the last question, if it has failed or has left something open, with the time of the
    /// first such failure in a row.
    error: Option<(String, SystemTime)>,
    /// Of names among the backends, as far as they are resolved.
    addresses: HashMap<String, Vec<Addr>>,
}

words! {
    /// What an answer led to.
    UpdateResult {
        /// Other backends.
        Changed = "changed",
        /// The backends stay as they are.
        Unchanged = "unchanged",
        /// There was none.
        Error = "error",
    }
}

/// A discovery for a plan, and what asks its source if that has begun already.
pub(super) struct PreparedDiscovery {
    discovery: Arc<Discovery>,
    asking: Option<Asking>,
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
    /// Whether they are from an earlier process, or from the source of an earlier plan: the source
    /// has not answered yet.
    pub is_old: bool,
    /// Why the last question has had no answer, or none that is whole, and since when that is so.
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
                    asking: None,
                };
                prepared.insert(name, prepared_discovery);
            }
            None => {
                let known = known_of(&name, &discover, running, handed);
                begun.spawn(boxed(async move {
                    (Discovery::begin(&name, &discover, known).await, name)
                }));
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

/// Gives the upstream the backends that a process has saved of its source, where there are some.
/// Returns their number, and when the source had them.
pub fn apply_saved(upstream: &mut Upstream) -> io::Result<Option<(usize, SystemTime)>> {
    let discover = upstream.discover.as_ref();
    let Some((discover, path)) = discover.zip(saved::path(&upstream.name)) else {
        return Ok(None);
    };
    let known = saved::load(&path, &identify(discover))?;
    Ok(known.map(|known| {
        backends::replace(upstream, &known.backends);
        (known.backends.len(), known.time)
    }))
}

/// What there is of this source before it answers: what another process has handed over, or an
/// upstream that has the same source, as before it got this name.
fn known_of(
    upstream: &str,
    discover: &Discover,
    running: &BTreeMap<String, Arc<Discovery>>,
    handed: &[DiscoveryRecord],
) -> Option<DiscoveryRecord> {
    if let Some(own) = handed.iter().find(|record| record.upstream == upstream) {
        return Some(own.clone());
    }
    let source = identify(discover);
    let is_same = |record: &DiscoveryRecord| record.source == source;
    let handed = handed.iter().find(|record| is_same(record)).cloned();
    let record = handed.or_else(|| running.values().map(|d| d.record()).find(is_same));
    // Its answers were counted for the other.
    record.map(|record| DiscoveryRecord {
        updates: Vec::new(),
        ..record
    })
}

impl Discovery {
    /// Begins to ask the source, and waits for its first answer, though not for longer than
    /// `timeout`. Before that there is what is `known` of it, or what an earlier process has saved.
    async fn begin(
        upstream: &str,
        discover: &Discover,
        known: Option<DiscoveryRecord>,
    ) -> PreparedDiscovery {
        let discovery = Self {
            upstream: upstream.into(),
            state: Mutex::new(Answers {
                discover: discover.clone(),
                merged: Merged::default(),
                source: identify(discover),
                version: String::new(),
                last_success: None,
                error: None,
                addresses: HashMap::new(),
            }),
            updates: Default::default(),
        };
        let mut asking = Asking::begin(&discovery.upstream, discover);
        if let Some(known) = known {
            discovery.take_over(&known, Instant::now());
        }
        // An error of the source itself says more than that there is no answer.
        let limit = discover.timeout + MARGIN;
        let (saved, answer) = tokio::join!(
            saved::read(upstream, discover),
            timeout(limit, asking.answer())
        );
        if let Some(saved) = saved {
            discovery.restore(saved);
        }
        // What asks goes on: a source with several servers may need longer.
        let late = |_| Err(SourceError::timed_out(discover.timeout));
        let answer = answer.unwrap_or_else(late);
        if let Err(error) = &answer {
            let (error, known) = (&error.message, discovery.known());
            let backends = discovery.state.lock().merged.in_effect.len();
            match known {
                Known::Saved | Known::Answered => tracing::warn!(
                    upstream,
                    error,
                    backends,
                    "source of backends does not answer, using those that it had before"
                ),
                Known::Nothing => tracing::warn!(
                    upstream,
                    error,
                    "source of backends does not answer, there are none of it yet"
                ),
            }
        }
        discovery.take(answer, Instant::now());
        PreparedDiscovery {
            discovery: Arc::new(discovery),
            asking: Some(asking),
        }
    }

    fn restore(&self, saved: Saved) {
        let mut state = self.state.lock();
        if state.merged.restore(saved.backends) {
            state.source = saved.source;
            state.version = saved.version;
            state.last_success = Some(saved.time);
        }
    }

    /// Takes an answer of the source.
    fn take(&self, answer: Result<Snapshot, SourceError>, now: Instant) -> Outcome {
        let answer = answer.and_then(|snapshot| {
            let set = backends::read(snapshot.backends)?;
            Ok((set, snapshot.version, snapshot.gap))
        });
        let mut state = self.state.lock();
        let rules = Rules::from(&state.discover);
        let wall = SystemTime::now();
        let (set, result) = match answer {
            Ok((mut set, version, gap)) => {
                let unknown = gap.as_ref().map_or(&[][..], |gap| &gap.unknown);
                state.merged.fill(&mut set, unknown);
                state.source = identify(&state.discover);
                state.version = version;
                state.last_success = Some(wall);
                let since = state.error.take().map_or(wall, |(_, since)| since);
                state.error = gap.map(|gap| (gap.error.message, since));
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
        let mut state = self.state.lock();
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
        let mut state = self.state.lock();
        if state.discover.source != discover.source {
            state.merged.forget_answer();
            state.error = None;
        }
        state.discover = discover.clone();
    }

    fn set_addresses(&self, name: String, addresses: Vec<Addr>) {
        self.state.lock().addresses.insert(name, addresses);
    }

    fn version(&self) -> String {
        self.state.lock().version.clone()
    }

    pub(crate) fn known(&self) -> Known {
        self.state.lock().merged.known
    }

    /// Whether there is a set of backends, of the source or of an earlier process.
    pub fn is_known(&self) -> bool {
        self.known() != Known::Nothing
    }

    /// The backends of this upstream with those that were discovered, instead of those that were
    /// discovered before.
    pub(super) fn apply_to(&self, upstream: &mut Upstream) {
        let state = self.state.lock();
        backends::replace(upstream, &state.merged.in_effect);
    }

    /// What a name among the discovered backends stands for, as far as that is known.
    pub(super) fn addresses_of(&self, backend: &Backend) -> Vec<Addr> {
        match &backend.target {
            Target::Addr(addr) => vec![addr.clone()],
            Target::Name { .. } => {
                let state = self.state.lock();
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
        let state = self.state.lock();
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
            backends: state.merged.in_effect.len(),
            version: state.version.clone(),
            last_success: state.last_success,
            is_old: state.merged.known == Known::Saved || state.source != identify(&state.discover),
            error: state.error.clone(),
            held: held.collect(),
        }
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

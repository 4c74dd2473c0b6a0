//! Terminates sessions of an upstream that are on the wrong backend: above its fair share, or,
//! where a key decides, not where their key leads to.

use super::{
    LOOK, PATIENCE, Pacing, Pending, REPORT,
    targets::{self, Limits},
};
use crate::{
    control::State,
    plan::{Balance, reason::CloseReason},
    session::{
        registry::{Phase, Session, Sessions, TablePosition},
        retry::hash_input,
    },
    upstream::{
        backend::Backend,
        balance::{Balancer, Candidates, Entry, LookupState},
        pool::{Pool, Taker},
    },
};
use ahash::AHashMap;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How long clients have to come back once the last session was terminated: until then they are led
/// to backends that have too few.
const RETURN: Duration = Duration::from_secs(3);

/// Dropped before its end, it leaves the others where they are.
pub struct Rebalance {
    sessions: Arc<Sessions>,
    pool: Arc<Pool>,
    shares: Vec<Share>,
    rule: Rule,
    pacing: Pacing,
    /// How many are to be terminated.
    wanted: u64,
    terminated: u64,
    has_ceilings: bool,
    /// When the last session was terminated, once all are.
    finished: Option<Instant>,
    outcome: Option<RebalanceOutcome>,
}

/// A backend, and what it is to have.
pub struct Share {
    pub backend: Arc<Backend>,
    pub before: u64,
    pub target: u64,
    /// Sessions that may be terminated, the one that has been idle for longest last.
    candidates: Vec<Arc<Session>>,
    pending: Pending,
}

/// What decides where a session belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// The number of sessions on each backend.
    Count,
    Key,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RebalanceOutcome {
    Balanced,
    /// Other backends take sessions than at the beginning, so that the targets mean nothing now.
    BackendsChanged,
}

/// How far it is.
pub struct RebalanceProgress {
    pub terminated: u64,
    pub pending: usize,
    pub outcome: Option<RebalanceOutcome>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotRebalanced {
    /// Nothing takes sessions.
    NoBackend,
    /// Another one is under way.
    UnderWay,
}

impl Rebalance {
    /// Decides what is to be done. `per_second`: at most so many terminations.
    pub async fn prepare(
        state: &State,
        pool: &Arc<Pool>,
        per_second: Option<f64>,
    ) -> Result<Self, NotRebalanced> {
        let now = Instant::now();
        let takers = takers(pool, now);
        if takers.is_empty() {
            return Err(NotRebalanced::NoBackend);
        }
        let mut rebalance = Self {
            sessions: Arc::clone(&state.process.sessions),
            pool: Arc::clone(pool),
            shares: takers.iter().map(Share::of).collect(),
            rule: match pool.balance().is_by_key() {
                true => Rule::Key,
                false => Rule::Count,
            },
            pacing: Pacing::new(&state.pace, per_second, now),
            wanted: 0,
            terminated: 0,
            has_ceilings: false,
            finished: None,
            outcome: None,
        };
        rebalance.collect_candidates().await;
        match rebalance.rule {
            Rule::Count => rebalance.set_targets(&takers),
            Rule::Key => rebalance.follow_keys(now),
        }
        Ok(rebalance)
    }

    pub fn shares(&self) -> &[Share] {
        &self.shares
    }

    pub fn is_by_key(&self) -> bool {
        self.rule == Rule::Key
    }

    /// How many sessions it terminates, if nothing else changes.
    pub fn wanted(&self) -> u64 {
        self.wanted
    }

    /// The sessions of all backends that take some.
    async fn collect_candidates(&mut self) {
        let index: AHashMap<u64, usize> = (self.shares.iter().enumerate())
            .map(|(i, share)| (share.backend.id, i))
            .collect();
        let (mut position, mut has_more) = (TablePosition::default(), true);
        while has_more {
            let mut found = Vec::new();
            let selects = |session: &Session| {
                index.contains_key(&session.backend()) && session.phase() == Phase::Relaying
            };
            has_more = self
                .sessions
                .look_at_some(&mut position, selects, &mut found);
            for session in found {
                if let Some(i) = index.get(&session.backend()) {
                    self.shares[*i].candidates.push(session);
                }
            }
            tokio::task::yield_now().await;
        }
        for share in &mut self.shares {
            let idle_last = |session: &Arc<Session>| std::cmp::Reverse(session.active_millis());
            share.candidates.sort_by_cached_key(idle_last);
        }
    }

    fn set_targets(&mut self, takers: &[Taker]) {
        let limits: Vec<_> = takers.iter().map(Limits::from).collect();
        let total = self.shares.iter().map(|share| share.before).sum();
        let targets = match self.pool.balance() {
            Balance::First => targets::in_order(total, &limits),
            _ => targets::by_weight(total, &limits),
        };
        for (share, target) in self.shares.iter_mut().zip(targets) {
            share.target = target;
        }
        let excess = |share: &Share| share.before.saturating_sub(share.target);
        self.wanted = self.shares.iter().map(excess).sum();
    }

    /// Keeps the sessions whose key leads to another backend now. A key that leads to none, as an
    /// empty one, leads nowhere else.
    fn follow_keys(&mut self, now: Instant) {
        let endpoints = self.pool.takers(now);
        let mut picks = Picks::new(&self.pool, &endpoints);
        // By id: how many more sessions than now.
        let mut moves: AHashMap<u64, i64> = AHashMap::new();
        for share in &mut self.shares {
            let own = &share.backend;
            share.candidates.retain(|session| {
                let to = picks.pick(session, own);
                let to = to.filter(|to| to.text() != own.text());
                if let Some(to) = to {
                    *moves.entry(own.id).or_default() -= 1;
                    *moves.entry(to.id).or_default() += 1;
                }
                to.is_some()
            });
            self.wanted += share.candidates.len() as u64;
        }
        for share in &mut self.shares {
            let moved = moves.get(&share.backend.id).copied().unwrap_or_default();
            share.target = share.before.saturating_add_signed(moved);
        }
    }

    /// Leads new sessions to the backends that have too few, until this is dropped.
    pub fn begin(&mut self) -> Result<(), NotRebalanced> {
        let leads = match self.pool.balance() {
            Balance::RoundRobin
            | Balance::LeastConn
            | Balance::RandomTwo
            | Balance::LeastTime(_) => self.wanted > 0,
            // They lead them by themselves.
            Balance::First
            | Balance::Hash(_)
            | Balance::IpHash
            | Balance::ConsistentHash(..)
            | Balance::Maglev(..) => false,
        };
        if leads {
            let ceilings = self
                .shares
                .iter()
                .map(|share| (share.backend.id, share.target));
            let ceilings: Vec<_> = ceilings.collect();
            self.has_ceilings = self.pool.set_ceilings(&ceilings);
            if !self.has_ceilings {
                return Err(NotRebalanced::UnderWay);
            }
        }
        tracing::info!(upstream = %self.pool.name, sessions = self.wanted,
            "rebalancing, an operator asked for it");
        Ok(())
    }

    /// Terminates some more, for a fraction of a second at most, or waits for clients to come back.
    pub async fn proceed(&mut self) -> RebalanceProgress {
        let until = Instant::now() + REPORT;
        while self.outcome.is_none() && Instant::now() < until {
            let now = Instant::now();
            if self.has_changed(now) {
                self.outcome = Some(RebalanceOutcome::BackendsChanged);
            } else if let Some(finished) = self.finished {
                if self.is_settled(finished, now) {
                    self.outcome = Some(RebalanceOutcome::Balanced);
                } else {
                    tokio::time::sleep(LOOK).await;
                }
            } else if self.terminate_some(now) {
                self.finished = Some(now);
            } else {
                self.pacing.pause().await;
            }
        }
        RebalanceProgress {
            terminated: self.terminated,
            pending: self.pending(),
            outcome: self.outcome,
        }
    }

    fn has_changed(&self, now: Instant) -> bool {
        let takers = takers(&self.pool, now);
        let ids = takers.iter().map(|taker| taker.backend.id);
        !ids.eq(self.shares.iter().map(|share| share.backend.id))
    }

    fn pending(&mut self) -> usize {
        self.shares
            .iter_mut()
            .map(|share| share.pending.count())
            .sum()
    }

    /// Returns whether no more are to be terminated.
    fn terminate_some(&mut self, now: Instant) -> bool {
        let rule = self.rule;
        let excess: Vec<u64> = self
            .shares
            .iter_mut()
            .map(|share| share.excess(rule))
            .collect();
        let wanted: u64 = excess.iter().sum();
        if wanted == 0 {
            return true;
        }
        let granted = self
            .pacing
            .take(usize::try_from(wanted).unwrap_or(usize::MAX), now);
        let mut left = excess;
        for _ in 0..granted {
            // Always the one that has most too many.
            let Some(most) = (0..left.len())
                .max_by_key(|i| left[*i])
                .filter(|i| left[*i] > 0)
            else {
                break;
            };
            match self.shares[most].terminate_one() {
                true => {
                    self.terminated += 1;
                    left[most] -= 1;
                }
                false => left[most] = 0,
            }
        }
        false
    }

    /// Whether what was terminated has ended, and its clients have come back or had their time.
    fn is_settled(&mut self, finished: Instant, now: Instant) -> bool {
        let has_ended = self.pending() == 0 || now >= finished + PATIENCE;
        let is_filled = |share: &Share| share.backend.active() >= share.target;
        let have_returned = self.shares.iter().all(is_filled);
        has_ended && (self.terminated == 0 || have_returned || now >= finished + RETURN)
    }
}

impl Share {
    fn of(taker: &Taker) -> Self {
        Self {
            before: taker.backend.active(),
            backend: Arc::clone(&taker.backend),
            target: 0,
            candidates: Vec::new(),
            pending: Pending::default(),
        }
    }

    /// How many more are to be terminated here. Sessions that end by themselves count, so that
    /// never more are terminated than needed.
    fn excess(&mut self, rule: Rule) -> u64 {
        let candidates = self.candidates.len() as u64;
        match rule {
            Rule::Key => candidates,
            Rule::Count => {
                let ending = self.pending.count() as u64;
                let staying = self.backend.active().saturating_sub(ending);
                staying.saturating_sub(self.target).min(candidates)
            }
        }
    }

    /// Returns false if there is none that could be.
    fn terminate_one(&mut self) -> bool {
        while let Some(session) = self.candidates.pop() {
            // It may have ended, or be about to.
            let is_here = session.phase() == Phase::Relaying;
            if is_here && session.end_if_on(self.backend.id, CloseReason::Rebalanced) {
                self.pending.push(session);
                return true;
            }
        }
        false
    }
}

impl Drop for Rebalance {
    fn drop(&mut self) {
        if self.has_ceilings {
            self.pool.clear_ceilings();
        }
        let (upstream, sessions) = (&self.pool.name, self.terminated);
        match self.outcome {
            Some(RebalanceOutcome::Balanced) => tracing::info!(%upstream, sessions, "rebalanced"),
            Some(RebalanceOutcome::BackendsChanged) => tracing::warn!(%upstream, sessions,
                "rebalancing stopped, other backends take sessions now"),
            None if sessions > 0 => tracing::warn!(%upstream, sessions,
                "rebalancing stopped before its end, the operator's command has ended"),
            None => {}
        }
    }
}

/// Those that take sessions: backups only while nothing else does, as for picks.
fn takers(pool: &Pool, now: Instant) -> Vec<Taker> {
    let mut takers = pool.takers(now);
    takers.retain(|taker| taker.share > 0);
    if takers.iter().any(|taker| !taker.is_backup) {
        takers.retain(|taker| !taker.is_backup);
    }
    takers
}

impl From<&Taker> for Limits {
    fn from(taker: &Taker) -> Self {
        Self {
            weight: u64::from(taker.weight) * u64::from(taker.share),
            max: taker.max_connections,
        }
    }
}

/// The picks of a hash policy, as they would be now.
struct Picks<'a> {
    balance: &'a Balance,
    balancer: Balancer,
    endpoints: &'a [Taker],
}

/// The endpoints as a session on one of them would find them if it began now.
struct Without<'a> {
    endpoints: &'a [Taker],
    /// The id of its backend.
    own: u64,
}

impl Candidates for Without<'_> {
    fn share(&self, i: usize) -> u32 {
        let taker = &self.endpoints[i];
        let is_limited = taker.max_connections > 0;
        match is_limited && self.connections(i) >= taker.max_connections {
            true => 0,
            false => taker.share,
        }
    }

    fn connections(&self, i: usize) -> u64 {
        let backend = &self.endpoints[i].backend;
        backend
            .active()
            .saturating_sub(u64::from(backend.id == self.own))
    }

    fn time(&self, _: usize) -> f64 {
        0.0
    }
}

impl<'a> Picks<'a> {
    /// `endpoints`: all of them, since also those that take nothing decide where a key leads.
    fn new(pool: &'a Pool, endpoints: &'a [Taker]) -> Self {
        let entry = |taker: &'a Taker| Entry {
            text: taker.backend.text(),
            weight: taker.weight,
        };
        let regular = endpoints.iter().filter(|taker| !taker.is_backup);
        let regular: Vec<Entry<'_>> = regular.map(entry).collect();
        Self {
            balance: pool.balance(),
            balancer: Balancer::new(pool.balance(), &regular, &[]),
            endpoints,
        }
    }

    /// Where the key of a session leads that is on this backend; `None`: nowhere.
    fn pick(&mut self, session: &Session, own: &Backend) -> Option<&'a Backend> {
        let input = hash_input(session.client(), session.server_port, session.proxied());
        let mut lookup = LookupState::new(self.balance, &input);
        let candidates = Without {
            endpoints: self.endpoints,
            own: own.id,
        };
        let picked = self.balancer.pick_by_key(&mut lookup, &candidates)?;
        Some(&self.endpoints[picked.candidate].backend)
    }
}

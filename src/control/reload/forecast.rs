//! What a change of the plan means for sessions and clients, as the process is now.

use crate::{
    control::{Prepared, View},
    plan::{
        Addr, Backend, Check, Listener, Plan, SessionAction, Upstream,
        diff::{Change, Edit},
        no_backend_left,
    },
    upstream::{
        explain::{Candidate, Process, moved_share},
        pool::{Pool, candidates_of_new},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

pub(super) struct Forecast<'a> {
    running: &'a View,
    /// The plan that will be in effect.
    plan: &'a Plan,
    prepared: &'a Prepared,
    now: Instant,
    /// On each backend, by upstream and its address as configured. Counted once: there may be
    /// thousands of changes.
    sessions: HashMap<(Arc<str>, Arc<str>), u64>,
    /// Of upstreams, by name: several changes can concern one.
    moved_shares: BTreeMap<String, Option<f64>>,
    /// How many comparisons were left out because there was no time left.
    left_out: usize,
}

/// Moved clients are counted for so long: a reload waits for it.
const COUNTING: Duration = Duration::from_secs(2);

impl<'a> Forecast<'a> {
    pub(super) fn new(running: &'a View, plan: &'a Plan, prepared: &'a Prepared) -> Self {
        Self {
            running,
            plan,
            prepared,
            now: Instant::now(),
            sessions: count_sessions(running),
            moved_shares: BTreeMap::new(),
            left_out: 0,
        }
    }

    /// That figures are missing.
    pub(super) fn warning(&self) -> Option<String> {
        let left_out = self.left_out;
        (left_out > 0).then(|| {
            format!(
                "clients that move were counted for {} s, and not for the rest: {left_out} \
                 upstreams or listeners",
                COUNTING.as_secs()
            )
        })
    }

    /// Of each upstream that the changes concern and that has no backend then to take sessions at
    /// once. What its checks found is known, and not what a fallback or a panic makes of that.
    pub(super) fn without_backend(&self, changes: &[Change]) -> Vec<String> {
        let mut concerned = BTreeSet::new();
        let mut awaiting = HashSet::new();
        for change in changes {
            match change {
                Change::Upstream(
                    Edit::Added(upstream)
                    | Edit::Changed {
                        after: upstream, ..
                    },
                ) => {
                    concerned.insert(upstream.name.as_str());
                }
                Change::Backend { upstream, edit } => {
                    concerned.insert(upstream.as_str());
                    if self.awaits_check(change) {
                        awaiting.insert((upstream.as_str(), edit.item().text.as_str()));
                    }
                }
                Change::Upstream(Edit::Removed(_))
                | Change::Process(_)
                | Change::Admin(_)
                | Change::Log(_)
                | Change::Listener(_)
                | Change::NeedsUpgrade(_) => {}
            }
        }
        let upstreams = concerned
            .into_iter()
            .filter_map(|name| find(self.plan, name));
        let without = upstreams.filter(|upstream| {
            let is_certain = |c: &Check| !c.role_fallback && c.panic_threshold == 0;
            let is_out = |candidate: &Candidate| {
                let backend = upstream.backends[candidate.backend].text.as_str();
                candidate.share == 0 || awaiting.contains(&(upstream.name.as_str(), backend))
            };
            upstream.check.as_ref().is_none_or(is_certain)
                && self.unlimited_candidates(upstream).iter().all(is_out)
        });
        without
            .map(|upstream| no_backend_left(&upstream.name, upstream.waits.hold_timeout))
            .collect()
    }

    /// Those that are full get sessions as others end.
    fn unlimited_candidates(&self, upstream: &Upstream) -> Vec<Candidate> {
        let mut upstream = upstream.clone();
        for backend in &mut upstream.backends {
            backend.max_connections = 0;
        }
        self.new_candidates(&upstream)
    }

    /// The sessions that the object of the change has now; `None`: it is an object without sessions
    /// of its own.
    pub(super) fn sessions(&self, change: &Change) -> Option<u64> {
        match change {
            Change::Process(_) | Change::Admin(_) | Change::Log(_) => None,
            Change::Listener(edit) => {
                let name = &edit.item().name;
                let mut services = self.running.services();
                let service = services.find(|service| service.plan.name == *name);
                Some(service.map_or(0, |service| service.metrics.active()))
            }
            Change::Upstream(edit) => Some(self.sessions_on(&edit.item().name)),
            Change::Backend { upstream, edit } => {
                let key = (upstream.as_str().into(), edit.item().text.as_str().into());
                Some(self.sessions.get(&key).copied().unwrap_or_default())
            }
            Change::NeedsUpgrade(change) => self.sessions(change),
        }
    }

    /// What becomes of these sessions, where the change removes what they belong to.
    pub(super) fn on_removed(&self, change: &Change) -> Option<SessionAction> {
        match change {
            Change::Upstream(Edit::Removed(upstream)) => Some(upstream.on_removed),
            Change::Backend {
                upstream,
                edit: Edit::Removed(_),
            } => Some(find(self.plan, upstream).map_or(SessionAction::Keep, |u| u.on_removed)),
            Change::Listener(Edit::Removed(listener)) => Some(self.on_removal_of(listener)),
            Change::Process(_)
            | Change::Admin(_)
            | Change::Log(_)
            | Change::Listener(_)
            | Change::Backend { .. }
            | Change::Upstream(_)
            | Change::NeedsUpgrade(_) => None,
        }
    }

    /// Those of these sessions that the change ends, at once or later. Flows that move do not end.
    pub(super) fn ended_sessions(&self, change: &Change) -> Option<u64> {
        let sessions = self.sessions(change)?;
        Some(match self.on_removed(change) {
            Some(SessionAction::Close | SessionAction::CloseAfter(_)) => sessions,
            Some(SessionAction::Keep | SessionAction::Move) | None => 0,
        })
    }

    /// Whether it is a backend that was not used before, and has to pass a check before it is. It
    /// counts as good where clients that move are counted.
    pub(super) fn awaits_check(&self, change: &Change) -> bool {
        let Change::Backend { upstream, edit } = change else {
            return false;
        };
        let is_new = match edit {
            Edit::Added(backend) => !backend.down,
            Edit::Changed { before, after } => before.down && !after.down,
            Edit::Removed(_) => false,
        };
        let check = find(self.plan, upstream).and_then(|upstream| upstream.check.as_ref());
        is_new && check.is_some_and(|check| !check.start_up)
    }

    /// That of the upstream that it used last; where that is removed as well, what it had.
    fn on_removal_of(&self, listener: &Listener) -> SessionAction {
        let upstream = &listener.upstream;
        let upstream = find(self.plan, upstream).or_else(|| find(&self.running.plan, upstream));
        upstream.map_or(SessionAction::Keep, |upstream| upstream.on_removed)
    }

    /// On all backends of an upstream.
    fn sessions_on(&self, upstream: &str) -> u64 {
        let of_it = self
            .sessions
            .iter()
            .filter(|((of, _), _)| **of == *upstream);
        of_it.map(|(_, sessions)| sessions).sum()
    }

    /// See [`super::report::ReportedChange::moved_share`].
    pub(super) fn moved_share(&mut self, change: &Change) -> Option<f64> {
        match change {
            Change::Upstream(Edit::Changed { after, .. }) => self.moved_share_of(&after.name),
            Change::Backend { upstream, .. } => self.moved_share_of(upstream),
            Change::Listener(Edit::Changed { before, after })
                if before.upstream != after.upstream =>
            {
                self.moved_share_between(before, after)
            }
            Change::Process(_)
            | Change::Admin(_)
            | Change::Log(_)
            | Change::Listener(_)
            | Change::Upstream(_)
            | Change::NeedsUpgrade(_) => None,
        }
    }

    fn moved_share_of(&mut self, upstream: &str) -> Option<f64> {
        if let Some(known) = self.moved_shares.get(upstream) {
            return *known;
        }
        // Of several listeners one stands for all.
        let of = |plan: &'a Plan| plan.listeners.iter().find(|l| l.upstream == upstream);
        let (before, after) = (of(&self.running.plan), of(self.plan));
        let share = before
            .zip(after)
            .and_then(|(before, after)| self.moved_share_between(before, after));
        self.moved_shares.insert(upstream.to_owned(), share);
        share
    }

    /// Of the clients of a listener.
    fn moved_share_between(&mut self, before: &Listener, after: &Listener) -> Option<f64> {
        let of = |plan: &Plan, name| {
            let upstream = find(plan, name)?;
            Some(upstream.on_one_of(plan.process.nodes))
        };
        let old = of(&self.running.plan, &before.upstream)?;
        let new = of(self.plan, &after.upstream)?;
        if !old.balance.is_by_key() || !new.balance.is_by_key() {
            return None;
        }
        if self.now.elapsed() >= COUNTING {
            self.left_out += 1;
            return None;
        }
        let candidates = self.pool(&old.name)?.candidates(&old, self.now);
        let mut before = process(before, &old, candidates);
        let mut after = process(after, &new, self.new_candidates(&new));
        Some(moved_share(&mut before, &mut after))
    }

    /// With the plan that will be in effect.
    fn new_candidates(&self, upstream: &Upstream) -> Vec<Candidate> {
        let inputs = self.prepared.upstreams.get(&upstream.name);
        let addresses = inputs.map_or(&[][..], |inputs| &inputs.addresses);
        let backends = upstream.backends.iter().map(|b| b.text.as_str());
        let addresses: HashMap<&str, &Vec<Addr>> = backends.zip(addresses).collect();
        let add = |backend: &Backend| {
            let found = addresses.get(backend.text.as_str());
            found.map_or_else(Vec::new, |found| found.to_vec())
        };
        match self.pool(&upstream.name) {
            Some(pool) => pool.candidates_with(upstream, add, self.now),
            None => candidates_of_new(upstream, add, self.now),
        }
    }

    fn pool(&self, upstream: &str) -> Option<&Arc<Pool>> {
        self.running.pools().find(|pool| *pool.name == *upstream)
    }
}

fn count_sessions(running: &View) -> HashMap<(Arc<str>, Arc<str>), u64> {
    let mut sessions = HashMap::new();
    for pool in running.pools() {
        for backend in pool.backends() {
            let key = (Arc::clone(&pool.name), Arc::clone(backend.text()));
            *sessions.entry(key).or_default() += backend.active();
        }
    }
    sessions
}

fn find<'a>(plan: &'a Plan, upstream: &str) -> Option<&'a Upstream> {
    plan.upstreams.iter().find(|u| u.name == upstream)
}

fn process<'a>(
    listener: &'a Listener,
    upstream: &'a Upstream,
    candidates: Vec<Candidate>,
) -> Process<'a> {
    let mut addresses = listener.bind.iter().flat_map(|bind| &bind.addrs);
    let server_port = addresses.find_map(|address| match address {
        Addr::Tcp(address) => Some(address.port()),
        Addr::Unix(_) => None,
    });
    Process::with_candidates(listener, upstream, server_port, candidates, 0)
}

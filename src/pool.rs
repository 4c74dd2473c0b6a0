//! The backends of one upstream and the policy that picks among them, behind one lock.
//!
//! All workers share one truth about turns and failures, so that seven sessions over weights 5/1/1
//! get 1 1 2 1 3 1 1 whichever workers they land on. A pick holds the lock for well under a
//! microsecond and happens once a connection.

use crate::{
    backend::{Backend, Lease},
    balance::{Balancer, Candidates, HashWalk, IpHashWalk, Policy, Ring, RingWalk, Walk},
    health::{FailRule, Passive},
    metrics::BackendMetrics,
    plan::{self, Balance, HashKey, Place},
};
use ahash::RandomState;
use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

pub struct Pool {
    pub name: Arc<str>,
    balance: Balance,
    /// One for each configured backend, in that order.
    configured: Vec<(plan::Backend, Arc<BackendMetrics>)>,
    inner: Mutex<Inner>,
}

struct Inner {
    /// Primaries in the order of the config, then backups: the numbering of the balancer.
    members: Vec<Member>,
    balancer: Balancer,
    chance: Chance,
}

/// What the balancer asks about the members, as they are for one session at one moment.
struct Present<'a> {
    members: &'a [Member],
    tried: &'a [Arc<Backend>],
    single: bool,
    now: Instant,
}

impl Candidates for Present<'_> {
    fn eligible(&self, i: usize) -> bool {
        let member = &self.members[i];
        let tried = || self.tried.iter().any(|b| Arc::ptr_eq(b, &member.backend));
        member.can_take(self.single, self.now) && !tried()
    }

    fn connections(&self, i: usize) -> u64 {
        self.members[i].backend.active()
    }
}

/// SplitMix64: enough for load balancing, and nothing that an outsider could gain by guessing.
struct Chance(u64);

impl Chance {
    fn new() -> Self {
        Self(RandomState::new().hash_one(()))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

struct Member {
    backend: Arc<Backend>,
    /// Which of the configured backends this is an address of.
    of: usize,
    weight: u32,
    rule: FailRule,
    max_connections: u64,
    down: bool,
    passive: Passive,
}

/// Where one session stands in its search for a backend.
#[derive(Debug, Default)]
pub struct Search {
    walk: Walk,
    tried: Vec<Arc<Backend>>,
}

/// What became of a failed attempt's backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterFailure {
    StillIn,
    /// This failure was the one that took it out.
    Out,
}

/// A backend as status and metrics show it.
#[derive(Debug)]
pub struct Snapshot {
    pub metrics: Arc<BackendMetrics>,
    pub weight: u32,
    pub backup: bool,
    pub state: &'static str,
    /// Why it is in that state, in words.
    pub why: String,
    /// How long ago the last failure was.
    pub last_failure: Option<Instant>,
    pub available: bool,
    /// What its name stands for now.
    pub addresses: Vec<Place>,
}

impl Pool {
    /// `addresses`: for each configured backend, what its address text stands for.
    pub fn new(
        name: &Arc<str>,
        plan: &plan::Upstream,
        metrics: impl Fn(&plan::Backend) -> BackendMetrics,
        addresses: &[Vec<Place>],
    ) -> Self {
        let configured: Vec<_> = plan
            .backends
            .iter()
            .map(|b| (b.clone(), Arc::new(metrics(b))))
            .collect();
        let inner = assemble(plan.balance, &configured, addresses, Vec::new());
        Self {
            name: Arc::clone(name),
            balance: plan.balance,
            configured,
            inner: Mutex::new(inner),
        }
    }

    pub fn balance(&self) -> Balance {
        self.balance
    }

    /// The search for a client's backend begins.
    pub fn search(&self, client: Option<IpAddr>) -> Search {
        let walk = match self.balance {
            Balance::RoundRobin | Balance::LeastConn | Balance::RandomTwo | Balance::First => {
                Walk::Free
            }
            Balance::Hash(key) => Walk::Hash(hash_key(key, client, HashWalk::from_key)),
            Balance::IpHash => Walk::IpHash(IpHashWalk::from_client(client)),
            Balance::ConsistentHash(key) => Walk::Ring(hash_key(key, client, RingWalk::from_key)),
        };
        Search {
            walk,
            tried: Vec::new(),
        }
    }

    /// The next backend for this session, none that it has tried.
    pub fn pick(&self, search: &mut Search, now: Instant) -> Option<Lease> {
        let mut inner = self.lock();
        let Inner {
            members,
            balancer,
            chance,
        } = &mut *inner;
        let present = Present {
            single: balancer.is_single(),
            members,
            tried: &search.tried,
            now,
        };
        let picked = balancer.pick(&mut search.walk, &present, || chance.next())?;
        let member = &mut members[picked];
        member.passive.picked(member.rule, now);
        search.tried.push(Arc::clone(&member.backend));
        Some(Lease::new(Arc::clone(&member.backend)))
    }

    /// A connect to this backend failed, and the backend is to blame.
    pub fn failed(&self, backend: &Arc<Backend>, now: Instant) -> AfterFailure {
        let mut inner = self.lock();
        let Inner {
            members, balancer, ..
        } = &mut *inner;
        // Whoever stands alone is never taken out: trying it is all that can be done.
        if balancer.is_single() {
            return AfterFailure::StillIn;
        }
        let Some(i) = position(members, backend) else {
            return AfterFailure::StillIn;
        };
        let member = &mut members[i];
        let was_out = member.is_failed();
        member.passive.failed(now);
        if let Some(share) = member.weight.checked_div(member.rule.max_fails) {
            balancer.penalize(i, share);
        }
        if !was_out && member.is_failed() {
            backend.metrics.transitions_failed.add(1);
            return AfterFailure::Out;
        }
        AfterFailure::StillIn
    }

    /// A connect succeeded. True when that brought the backend back.
    pub fn succeeded(&self, backend: &Arc<Backend>) -> bool {
        let mut inner = self.lock();
        let Some(i) = position(&inner.members, backend) else {
            return false;
        };
        let member = &mut inner.members[i];
        let was_out = member.is_failed();
        member.passive.succeeded();
        let back = was_out && !member.is_failed();
        if back {
            backend.metrics.transitions_up.add(1);
        }
        back
    }

    /// New answers from the resolver. Addresses that stay keep their failures and sessions.
    pub fn set_addresses(&self, addresses: &[Vec<Place>]) {
        let mut inner = self.lock();
        let old = std::mem::take(&mut inner.members);
        *inner = assemble(self.balance, &self.configured, addresses, old);
    }

    /// All configured backends as they are now.
    pub fn snapshot(&self, now: Instant) -> Vec<Snapshot> {
        let inner = self.lock();
        let single = inner.balancer.is_single();
        let one = |(index, (plan, metrics)): (usize, &(plan::Backend, Arc<BackendMetrics>))| {
            let members: Vec<&Member> = inner.members.iter().filter(|m| m.of == index).collect();
            let available = members
                .iter()
                .any(|m| m.can_take(single, now) && m.weight > 0);
            // Until a connect succeeds; that it may be tried again is what `available` says.
            let failed = !members.is_empty() && !single && members.iter().all(|m| m.is_failed());
            let fails: u32 = members.iter().map(|m| m.passive.fails()).sum();
            let (state, why) = if plan.down {
                ("down", "the configuration says so".to_owned())
            } else if members.is_empty() {
                ("down", "its name does not resolve".to_owned())
            } else if failed {
                ("failed", {
                    let next = if available { "; to be tried again" } else { "" };
                    format!("{fails} failed connects{next}")
                })
            } else if plan.weight == 0 {
                ("up", "weight 0: takes nothing new".to_owned())
            } else if !available {
                ("up", "full: max_connections is reached".to_owned())
            } else {
                ("up", String::new())
            };
            Snapshot {
                metrics: Arc::clone(metrics),
                weight: plan.weight,
                backup: plan.backup,
                state,
                why,
                last_failure: members
                    .iter()
                    .filter_map(|m| m.passive.last_failure())
                    .max(),
                available,
                addresses: members.iter().map(|m| m.backend.place.clone()).collect(),
            }
        };
        self.configured.iter().enumerate().map(one).collect()
    }

    /// Whether anything here could take a session now.
    pub fn is_available(&self, now: Instant) -> bool {
        let inner = self.lock();
        let single = inner.balancer.is_single();
        inner
            .members
            .iter()
            .any(|m| m.can_take(single, now) && m.weight > 0)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Member {
    fn can_take(&self, single: bool, now: Instant) -> bool {
        !self.down
            && (single || self.passive.is_available(self.rule, now))
            && (self.max_connections == 0 || self.backend.active() < self.max_connections)
    }

    /// Whether it has failed often enough, whether or not its time has passed.
    fn is_failed(&self) -> bool {
        self.rule.max_fails > 0 && self.passive.fails() >= self.rule.max_fails
    }
}

fn position(members: &[Member], backend: &Arc<Backend>) -> Option<usize> {
    members
        .iter()
        .position(|m| Arc::ptr_eq(&m.backend, backend))
}

fn assemble(
    balance: Balance,
    configured: &[(plan::Backend, Arc<BackendMetrics>)],
    addresses: &[Vec<Place>],
    mut old: Vec<Member>,
) -> Inner {
    let mut members = Vec::new();
    let mut primaries = 0;
    for backups in [false, true] {
        for (of, ((plan, metrics), places)) in configured.iter().zip(addresses).enumerate() {
            if plan.backup != backups {
                continue;
            }
            for place in places {
                let known = old
                    .iter()
                    .position(|m| m.of == of && m.backend.place == *place);
                let (backend, passive) = match known.map(|i| old.swap_remove(i)) {
                    Some(member) => (member.backend, member.passive),
                    None => (
                        Arc::new(Backend::new(place.clone(), Arc::clone(metrics))),
                        Passive::default(),
                    ),
                };
                members.push(Member {
                    backend,
                    of,
                    weight: plan.weight,
                    rule: FailRule {
                        max_fails: plan.max_fails,
                        fail_timeout: plan.fail_timeout,
                    },
                    max_connections: plan.max_connections,
                    down: plan.down,
                    passive,
                });
            }
        }
        if !backups {
            primaries = members.len();
        }
    }
    let policy = match balance {
        Balance::RoundRobin => Policy::RoundRobin,
        Balance::LeastConn => Policy::LeastConn,
        Balance::RandomTwo => Policy::RandomTwo,
        Balance::First => Policy::First,
        Balance::Hash(_) => Policy::Hash,
        Balance::IpHash => Policy::IpHash,
        Balance::ConsistentHash(_) => Policy::ConsistentHash(Ring::new(
            members[..primaries]
                .iter()
                .enumerate()
                .map(|(i, m)| (i, &**m.backend.text(), m.weight)),
        )),
    };
    let weights = |range: &[Member]| range.iter().map(|m| m.weight).collect::<Vec<_>>();
    let balancer = Balancer::new(
        policy,
        &weights(&members[..primaries]),
        &weights(&members[primaries..]),
    );
    Inner {
        members,
        balancer,
        chance: Chance::new(),
    }
}

/// Clients on a unix socket have no address; nginx calls them all `unix:`, and so do we.
fn hash_key<W>(key: HashKey, client: Option<IpAddr>, walk: impl Fn(&[u8]) -> W) -> W {
    match (key, client) {
        (_, None) => walk(b"unix:"),
        (HashKey::RemoteAddr, Some(ip)) => walk(ip.to_string().as_bytes()),
        (HashKey::BinaryRemoteAddr, Some(IpAddr::V4(ip))) => walk(&ip.octets()),
        (HashKey::BinaryRemoteAddr, Some(IpAddr::V6(ip))) => walk(&ip.octets()),
    }
}

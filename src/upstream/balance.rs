//! Choosing a backend. Pure: no sockets, no clock, no random source; what changes from pick to pick
//! is passed in or kept in a [`Balancer`], and the same calls give the same picks on every machine.

mod bound;
mod by_address;
mod hash;
mod ip_hash;
mod key;
mod key_lookup;
mod least;
mod least_conn;
mod least_time;
mod maglev;
mod pick_hash;
mod random;
mod random_two;
mod ring;
mod round_robin;
mod weights;

pub use crate::upstream::balance::random::Chance;
pub use key::HashInput;
pub use least_time::Average;
pub use pick_hash::{PickTarget, Readiness, Targets};
pub use round_robin::RotationWeight;

use crate::plan::{self, Balance, Bound};
use bound::Capacity;
use hash::HashLookup;
use ip_hash::IpHashLookup;
use key_lookup::KeyLookup;
use maglev::Maglev;
use ring::Ring;
use round_robin::RoundRobin;
use std::ops::Range;
use weights::Weights;

/// After so many candidates that cannot be used, the pick is made in rotation instead of by hash.
const MOST_TRIES: u32 = 20;

/// The share of a candidate that counts with the whole of its weight.
pub const FULL: u32 = 1024;

/// What a policy asks about candidates at the moment of a pick.
pub trait Candidates {
    /// How much of its weight counts now: [`FULL`], less while it starts slowly, and 0 for one that
    /// cannot be picked.
    fn share(&self, candidate: usize) -> u32;
    /// Sessions on it now.
    fn connections(&self, candidate: usize) -> u64;
    /// The average time that [`Balance::LeastTime`] compares, in any unit; 0 where none was
    /// measured.
    fn time(&self, candidate: usize) -> f64;
}

/// A backend as the policies see it.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// The address as configured; several candidates may carry the same.
    pub text: &'a str,
    /// 0: takes nothing.
    pub weight: u32,
}

/// The candidate that was picked, and why.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pick {
    pub candidate: usize,
    pub why: Why,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Why {
    /// There is no other.
    Only,
    /// The next in rotation.
    Rotation,
    /// The first in order that can take a session.
    FirstInOrder,
    /// The fewest sessions for its weight.
    FewestConnections { connections: u64 },
    /// Drawn at random; of two the one with fewer sessions for its weight.
    Drawn { other: Option<usize> },
    /// The least product of time and sessions for each unit of weight.
    LeastScore { score: f64 },
    /// The hash of the key fell into its share of the weights, at the last of so many tries.
    Hash {
        hash: u64,
        at: u64,
        total: u64,
        tries: u32,
    },
    /// Its point is the next on the ring, so many steps from the key's own.
    Point { key: u32, point: u32, steps: u32 },
    /// Its slot in the table, so many steps from the key's own.
    Slot { slot: u32, steps: u32 },
    /// So many positions from the key's own on could not be used: its hash, by weight, among all
    /// candidates that can be picked.
    KeyAmongTheRest { tries: u32 },
    /// The key led to no candidate that can be picked: the next in rotation.
    RotationInsteadOfKey,
}

/// The backends of an upstream in the order in which a [`Balancer`] numbers its candidates, each
/// with its position in the configuration: backups last.
pub fn numbered<'a>(
    backends: impl Iterator<Item = &'a plan::Backend> + Clone,
) -> impl Iterator<Item = (usize, &'a plan::Backend)> {
    let group = move |backup| {
        let all = backends.clone().enumerate();
        all.filter(move |(_, backend)| backend.backup == backup)
    };
    [false, true].into_iter().flat_map(group)
}

/// The position of one session's search. It outlives a failed connect, so that the next pick goes
/// on from there.
#[derive(Debug, Clone, Default)]
pub enum LookupState {
    /// Of policies without a key.
    #[default]
    Free,
    Hash(HashLookup),
    IpHash(IpHashLookup),
    Ring(KeyLookup<u32>),
    Maglev(KeyLookup<u64>),
}

impl LookupState {
    pub fn new(balance: &Balance, input: &HashInput) -> Self {
        match balance {
            Balance::RoundRobin
            | Balance::LeastConn
            | Balance::RandomTwo
            | Balance::LeastTime(_)
            | Balance::First => Self::Free,
            Balance::Hash(key) => Self::Hash(HashLookup::from_key(&input.key(key))),
            Balance::IpHash => Self::IpHash(IpHashLookup::from_client(input.remote_addr)),
            Balance::ConsistentHash(key, _) => Self::Ring(KeyLookup::ring(&input.key(key))),
            Balance::Maglev(key, _) => Self::Maglev(KeyLookup::maglev(&input.key(key))),
        }
    }
}

/// The policy of one upstream, with its state.
///
/// Candidates are numbered: those that are no backups in the order of the configuration, then the
/// backups.
#[derive(Debug)]
pub struct Balancer {
    policy: Policy,
    rotation: RoundRobin,
    regular: Weights,
    backups: Weights,
    /// Capacity for bounded load to work in, so that no pick allocates.
    sums: Vec<u64>,
}

#[derive(Debug)]
enum Policy {
    RoundRobin,
    LeastConn,
    RandomTwo,
    LeastTime,
    First,
    Hash,
    IpHash,
    ConsistentHash(Ring, Bound),
    Maglev(Maglev, Bound),
}

impl Balancer {
    pub fn new(balance: &Balance, regular: &[Entry<'_>], backups: &[Entry<'_>]) -> Self {
        let policy = match balance {
            Balance::RoundRobin => Policy::RoundRobin,
            Balance::LeastConn => Policy::LeastConn,
            Balance::RandomTwo => Policy::RandomTwo,
            Balance::LeastTime(_) => Policy::LeastTime,
            Balance::First => Policy::First,
            Balance::Hash(_) => Policy::Hash,
            Balance::IpHash => Policy::IpHash,
            Balance::ConsistentHash(_, bound) => Policy::ConsistentHash(Ring::new(regular), *bound),
            Balance::Maglev(_, bound) => Policy::Maglev(Maglev::new(regular), *bound),
        };
        Self {
            policy,
            rotation: RoundRobin::new(regular.iter().chain(backups).map(|e| e.weight)),
            regular: Weights::new(0, regular),
            backups: Weights::new(regular.len(), backups),
            sums: Vec::new(),
        }
    }

    /// Picks a candidate that can be used, backups last. `random` is drawn from by the
    /// policies that need chance.
    pub fn pick(
        &mut self,
        lookup: &mut LookupState,
        candidates: &impl Candidates,
        mut random: impl FnMut() -> u64,
    ) -> Option<Pick> {
        if self.is_single() {
            let found = self.rotation.pick(0..1, |i| candidates.share(i))?;
            return Some(Pick {
                candidate: found,
                why: Why::Only,
            });
        }
        self.pick_by_key(lookup, candidates)
            .or_else(|| self.pick_by_policy(Group::Regular, candidates, &mut random))
            .or_else(|| self.pick_by_policy(Group::Backups, candidates, &mut random))
    }

    /// By the key alone; `None`: it leads to no candidate that can be picked.
    pub fn pick_by_key(
        &mut self,
        lookup: &mut LookupState,
        candidates: &impl Candidates,
    ) -> Option<Pick> {
        let (rotation, sums) = (&mut self.rotation, &mut self.sums);
        match (&self.policy, lookup) {
            (Policy::Hash, LookupState::Hash(lookup)) => lookup.pick(&self.regular, candidates),
            (Policy::IpHash, LookupState::IpHash(lookup)) => lookup.pick(&self.regular, candidates),
            (Policy::ConsistentHash(ring, bound), LookupState::Ring(lookup)) => {
                let capacity = bound.map(|f| Capacity::new(f, &self.regular, candidates, sums));
                ring.pick(
                    lookup,
                    &self.regular,
                    rotation,
                    candidates,
                    capacity.as_ref(),
                )
            }
            (Policy::Maglev(table, bound), LookupState::Maglev(lookup)) => {
                let capacity = bound.map(|f| Capacity::new(f, &self.regular, candidates, sums));
                table.pick(
                    lookup,
                    &self.regular,
                    rotation,
                    candidates,
                    capacity.as_ref(),
                )
            }
            _ => None,
        }
    }

    fn pick_by_policy(
        &mut self,
        group: Group,
        candidates: &impl Candidates,
        random: &mut impl FnMut() -> u64,
    ) -> Option<Pick> {
        let weights = match group {
            Group::Regular => &self.regular,
            Group::Backups => &self.backups,
        };
        let rotation = &mut self.rotation;
        match self.policy {
            Policy::LeastConn => least_conn::pick(weights, rotation, candidates),
            Policy::LeastTime => least_time::pick(weights, rotation, candidates),
            Policy::RandomTwo => random_two::pick(weights, candidates, random),
            Policy::First => first(weights, candidates, random),
            Policy::RoundRobin
            | Policy::Hash
            | Policy::IpHash
            | Policy::ConsistentHash(..)
            | Policy::Maglev(..) => Some(Pick {
                candidate: rotation.pick(weights.range(), |i| candidates.share(i))?,
                why: match self.policy {
                    Policy::RoundRobin => Why::Rotation,
                    _ => Why::RotationInsteadOfKey,
                },
            }),
        }
    }

    /// Whether there is one candidate and no other: it is used however often it failed.
    pub fn is_single(&self) -> bool {
        self.regular.len() == 1 && self.rotation.len() == 1
    }

    /// The numbers of those that are no backups; those of the backups follow.
    pub fn regular(&self) -> Range<usize> {
        self.regular.range()
    }

    /// Where its candidates stand in the rotation.
    pub fn rotation(&self) -> &[RotationWeight] {
        self.rotation.weights()
    }

    /// Goes on with the rotation of another process, if that had the same candidates.
    pub fn resume(&mut self, rotation: &[RotationWeight]) {
        self.rotation.resume(rotation);
    }

    /// What the order of the configuration has decided between candidates; 0: nothing.
    pub fn ties(&self) -> u64 {
        match &self.policy {
            Policy::ConsistentHash(ring, _) => ring.ties(),
            Policy::RoundRobin
            | Policy::LeastConn
            | Policy::RandomTwo
            | Policy::LeastTime
            | Policy::First
            | Policy::Hash
            | Policy::IpHash
            | Policy::Maglev(..) => 0,
        }
    }

    /// Lowers the share of a candidate that failed; it recovers by one with each pick.
    pub fn penalize(&mut self, candidate: usize, by: u32) {
        self.rotation.penalize(candidate, by);
    }
}

#[derive(Debug, Clone, Copy)]
enum Group {
    Regular,
    Backups,
}

/// The first in the order of the configuration that can take a session. One that starts slowly
/// takes its share of what would come to it; the rest goes on to the next.
fn first(
    weights: &Weights,
    candidates: &impl Candidates,
    random: &mut impl FnMut() -> u64,
) -> Option<Pick> {
    let mut passed_over = None;
    let mut usable = weights.each().filter(|(_, weight)| *weight > 0);
    let found = usable.find(|&(i, _)| {
        let share = candidates.share(i);
        let takes = share > 0 && by_chance(share, random);
        if share > 0 && !takes {
            passed_over.get_or_insert(i);
        }
        takes
    });
    Some(Pick {
        candidate: found.map(|(i, _)| i).or(passed_over)?,
        why: Why::FirstInOrder,
    })
}

/// Whether one with this share takes it, for policies that have chance.
fn by_chance(share: u32, random: &mut impl FnMut() -> u64) -> bool {
    share >= FULL || random() % u64::from(FULL) < u64::from(share)
}

/// Whether one with this share takes a key, for policies that hash: a growing share takes more and
/// more of the keys and never gives one back, so that each client moves once.
fn by_key(share: u32, hash: u64) -> bool {
    // Multiplied by the golden ratio: the bits that assigned the key must not decide when it moves.
    share >= FULL || (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54) < u64::from(share)
}

/// The share with which a candidate takes a key; 0 if it does not.
fn share_for_key(
    candidates: &impl Candidates,
    candidate: usize,
    hash: u64,
    capacity: Option<&Capacity<'_>>,
) -> u32 {
    let share = candidates.share(candidate);
    let has_capacity =
        || capacity.is_none_or(|r| r.allows(candidate, candidates.connections(candidate)));
    if by_key(share, hash) && has_capacity() {
        share
    } else {
        0
    }
}

#[cfg(test)]
mod tests;

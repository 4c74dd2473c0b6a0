//! Which backend a client would get, and why: from the configuration alone, by the code that picks
//! in a running process.

mod client;
mod client_set;
mod distribution;
mod moved_share;
mod pick_reasons;

pub use crate::upstream::explain::client_set::{ClientSet, MOST_CLIENTS, draw_ports};
pub use crate::upstream::explain::distribution::{Counts, Move, Survey, survey};
pub use crate::upstream::explain::moved_share::moved_share;
pub use client::Client;

use crate::{
    plan::{self, Balance, Listener, Upstream, access},
    upstream::balance::{
        Balancer, Candidates, Chance, Entry, FULL, HashInput, LookupState, Why, numbered,
    },
};
use std::net::IpAddr;

/// The assumptions.
pub const MODEL: &str = "a fresh process in which nothing has failed; the clients come one after \
                         the other, and none stays";

/// The assumptions with the weights and states of a running process.
pub const MODEL_OF_RUNNING: &str = "a process with the weights and the states of the running one; \
                                    the clients come one after the other, and none stays";

/// What becomes of a client.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    /// By the access rule at this position.
    Denied { rule: usize },
    /// No backend can be picked.
    NoBackend,
    /// `backend`, and numbers in `why`: positions in the configuration.
    Backend { backend: usize, why: Why },
}

impl Outcome {
    pub fn backend(&self) -> Option<usize> {
        match self {
            Self::Backend { backend, .. } => Some(*backend),
            Self::Denied { .. } | Self::NoBackend => None,
        }
    }
}

/// An address that sessions can go to. A backend whose host name has several is several candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Its position in the configuration.
    pub backend: usize,
    pub weight: u32,
    /// How much of [`FULL`] of its weight counts; 0 for one that cannot be picked.
    pub share: u32,
}

/// A process that has no network: one that has just started, or one with these candidates.
#[derive(Debug)]
pub struct Process<'a> {
    listener: &'a Listener,
    upstream: &'a Upstream,
    /// The port that clients connect to, if it is part of the key.
    server_port: Option<u16>,
    balancer: Balancer,
    /// In the order of the balancer.
    candidates: Idle,
    chance: Chance,
}

/// Candidates without sessions.
#[derive(Debug)]
struct Idle(Vec<Candidate>);

impl Candidates for Idle {
    fn share(&self, candidate: usize) -> u32 {
        self.0[candidate].share
    }
    fn connections(&self, _: usize) -> u64 {
        0
    }
    fn time(&self, _: usize) -> f64 {
        0.0
    }
}

impl<'a> Process<'a> {
    /// `without`: backends that cannot be used besides those that are `down`, by their positions in
    /// the configuration.
    pub fn new(
        listener: &'a Listener,
        upstream: &'a Upstream,
        server_port: Option<u16>,
        without: &[usize],
        seed: u64,
    ) -> Self {
        let candidate = |(of, backend): (usize, &plan::Backend)| {
            let is_usable = backend.weight > 0 && !backend.down && !without.contains(&of);
            Candidate {
                backend: of,
                weight: backend.weight,
                share: if is_usable { FULL } else { 0 },
            }
        };
        let candidates = numbered(upstream.backends.iter()).map(candidate).collect();
        Self::with_candidates(listener, upstream, server_port, candidates, seed)
    }

    /// `candidates`: in the order of [`numbered`].
    pub fn with_candidates(
        listener: &'a Listener,
        upstream: &'a Upstream,
        server_port: Option<u16>,
        candidates: Vec<Candidate>,
        seed: u64,
    ) -> Self {
        let entry = |candidate: &Candidate| Entry {
            text: &upstream.backends[candidate.backend].text,
            weight: candidate.weight,
        };
        let entries: Vec<Entry<'_>> = candidates.iter().map(entry).collect();
        let is_regular = |c: &&Candidate| !upstream.backends[c.backend].backup;
        let (regular, backups) = entries.split_at(candidates.iter().filter(is_regular).count());
        Self {
            listener,
            upstream,
            server_port,
            balancer: Balancer::new(&upstream.balance, regular, backups),
            candidates: Idle(candidates),
            chance: Chance::from_seed(seed),
        }
    }

    pub fn upstream(&self) -> &'a Upstream {
        self.upstream
    }

    /// The next client comes.
    pub fn accept(&mut self, client: Client) -> Outcome {
        if let Some(rule) = access::denied_by(&self.listener.access, client.ip()) {
            return Outcome::Denied { rule };
        }
        self.pick(client)
    }

    /// The next client that the access rules allow comes.
    fn pick(&mut self, client: Client) -> Outcome {
        let mut lookup = LookupState::new(&self.upstream.balance, &self.hash_input(client));
        let chance = &mut self.chance;
        let picked = self
            .balancer
            .pick(&mut lookup, &self.candidates, || chance.draw());
        let Some(picked) = picked else {
            return Outcome::NoBackend;
        };
        let why = match picked.why {
            Why::Drawn { other } => Why::Drawn {
                other: other.map(|other| self.candidates.0[other].backend),
            },
            why => why,
        };
        Outcome::Backend {
            backend: self.candidates.0[picked.candidate].backend,
            why,
        }
    }

    /// The share of the clients that each backend is to get, in the order of the configuration.
    pub fn expected(&self) -> Vec<f64> {
        let (regular, backups) = self.candidates.0.split_at(self.balancer.regular().end);
        let can_be_picked = |candidate: &&Candidate| candidate.share > 0;
        let mut takers: Vec<&Candidate> = regular.iter().filter(can_be_picked).collect();
        if takers.is_empty() {
            takers = backups.iter().filter(can_be_picked).collect();
        }
        if self.upstream.balance == Balance::First {
            takers.truncate(1);
        }
        let total: f64 = takers.iter().map(|c| f64::from(c.weight)).sum();
        let mut shares = vec![0.0; self.upstream.backends.len()];
        for candidate in takers {
            shares[candidate.backend] += f64::from(candidate.weight) / total;
        }
        shares
    }

    fn hash_input(&self, client: Client) -> HashInput {
        HashInput {
            remote_addr: client.ip(),
            remote_port: client.port(),
            server_port: client.ip().and(self.server_port),
            proxy_protocol_addr: proxy_protocol_addr(self.listener, client),
        }
    }
}

/// Where PROXY headers are accepted, the client is taken to be the one that a header names.
fn proxy_protocol_addr(listener: &Listener, client: Client) -> Option<IpAddr> {
    listener.accept_proxy.as_ref().and(client.ip())
}

#[cfg(test)]
mod tests;

//! Which backend a client would get, and why: from the configuration alone, by the code that picks
//! in a running process.

mod client;
mod client_set;
mod distribution;
mod pick_reasons;

pub use crate::upstream::explain::client_set::{ClientSet, MOST_CLIENTS, draw_ports};
pub use crate::upstream::explain::distribution::{Counts, Move, Survey, survey};
pub use client::Client;

use crate::{
    plan::{Balance, Listener, Upstream, access},
    upstream::balance::{
        Balancer, Candidates, Chance, Entry, FULL, HashInput, LookupState, Why, numbered,
    },
};
use std::net::IpAddr;

/// The assumptions.
pub const MODEL: &str = "a fresh process in which nothing has failed; the clients come one after \
                         the other, and none stays";

/// What becomes of a client.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    /// By the access rules.
    Denied,
    /// No backend can be picked.
    NoBackend,
    /// `backend`, and numbers in `why`: positions in the configuration.
    Backend { backend: usize, why: Why },
}

impl Outcome {
    pub fn backend(&self) -> Option<usize> {
        match self {
            Self::Backend { backend, .. } => Some(*backend),
            Self::Denied | Self::NoBackend => None,
        }
    }
}

/// A process that has just started with this configuration, and has no network.
#[derive(Debug)]
pub struct Process<'a> {
    listener: &'a Listener,
    upstream: &'a Upstream,
    /// The port that clients connect to, if it is part of the key.
    server_port: Option<u16>,
    balancer: Balancer,
    /// For each candidate of the balancer its position in the configuration.
    order: Vec<usize>,
    /// For each candidate whether it can be picked.
    usable: Usable,
    chance: Chance,
}

#[derive(Debug)]
struct Usable(Vec<bool>);

impl Candidates for Usable {
    fn share(&self, candidate: usize) -> u32 {
        if self.0[candidate] { FULL } else { 0 }
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
        let (mut order, mut usable) = (Vec::new(), Vec::new());
        let (mut regular, mut backups) = (Vec::new(), Vec::new());
        for (of, backend) in numbered(upstream.backends.iter()) {
            let group = if backend.backup {
                &mut backups
            } else {
                &mut regular
            };
            group.push(Entry {
                text: &backend.text,
                weight: backend.weight,
            });
            order.push(of);
            usable.push(backend.weight > 0 && !backend.down && !without.contains(&of));
        }
        Self {
            listener,
            upstream,
            server_port,
            balancer: Balancer::new(&upstream.balance, &regular, &backups),
            order,
            usable: Usable(usable),
            chance: Chance::from_seed(seed),
        }
    }

    pub fn upstream(&self) -> &'a Upstream {
        self.upstream
    }

    /// The next client comes.
    pub fn accept(&mut self, client: Client) -> Outcome {
        if !access::allows(&self.listener.access, client.ip()) {
            return Outcome::Denied;
        }
        let mut lookup = LookupState::new(&self.upstream.balance, &self.facts(client));
        let chance = &mut self.chance;
        let picked = self
            .balancer
            .pick(&mut lookup, &self.usable, || chance.draw());
        let Some(picked) = picked else {
            return Outcome::NoBackend;
        };
        let why = match picked.why {
            Why::Drawn { other } => Why::Drawn {
                other: other.map(|candidate| self.order[candidate]),
            },
            why => why,
        };
        Outcome::Backend {
            backend: self.order[picked.candidate],
            why,
        }
    }

    /// The share of the clients that each backend is to get, in the order of the configuration.
    pub fn expected(&self) -> Vec<f64> {
        let regular = self.balancer.regular();
        let can_be_picked = |candidate: &usize| self.usable.0[*candidate];
        let mut takers: Vec<usize> = regular.clone().filter(can_be_picked).collect();
        if takers.is_empty() {
            takers = (regular.end..self.order.len())
                .filter(can_be_picked)
                .collect();
        }
        if self.upstream.balance == Balance::First {
            takers.truncate(1);
        }
        let weight = |of: usize| f64::from(self.upstream.backends[of].weight);
        let total: f64 = takers.iter().map(|c| weight(self.order[*c])).sum();
        let mut shares = vec![0.0; self.order.len()];
        for candidate in takers {
            let of = self.order[candidate];
            shares[of] = weight(of) / total;
        }
        shares
    }

    fn facts(&self, client: Client) -> HashInput {
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

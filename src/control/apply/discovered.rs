//! Puts discovered backends into effect: of one upstream, between two plans.

use super::Runtime;
use crate::{
    control::interfaces,
    plan::{Addr, Plan, Target},
};
use std::collections::{BTreeMap, HashSet};

impl Runtime {
    /// Puts what is discovered for this upstream now into effect. Returns whether that is a change.
    pub(in crate::control) fn apply_discovered(&mut self, name: &str) -> bool {
        let position = self.plan.upstreams.iter().position(|u| u.name == name);
        let Some((position, mut upstream)) = position.zip(self.upstreams.remove(name)) else {
            return false;
        };
        let is_change = match upstream.discovery().cloned() {
            None => false,
            Some(discovery) => {
                let mut plan = self.plan.upstreams[position].clone();
                discovery.apply_to(&mut plan);
                let before = std::mem::replace(&mut self.plan.upstreams[position], plan);
                self.remove_loops(name, &upstream.pool.resolved());
                let plan = &self.plan.upstreams[position];
                let is_change = *plan != before;
                if is_change {
                    let plan = plan.on_one_of(self.plan.process.nodes);
                    upstream.change_backends(&plan, self);
                }
                is_change
            }
        };
        self.upstreams.insert(name.to_owned(), upstream);
        if is_change {
            self.refresh_limits();
        }
        is_change
    }

    /// Takes the discovered backends out of the plan through which a listener is its own backend.
    /// `resolved`: the known addresses of the upstream's backends.
    fn remove_loops(&mut self, name: &str, resolved: &[(String, Vec<Addr>)]) {
        if !may_have_loop(&self.plan, name) {
            return;
        }
        let others = self
            .upstreams
            .values()
            .map(|u| (u.plan.name.clone(), u.pool.resolved()));
        let all: BTreeMap<String, Vec<(String, Vec<Addr>)>> = others
            .chain([(name.to_owned(), resolved.to_vec())])
            .collect();
        let addresses = |upstream: &crate::plan::Upstream| {
            let of = |backend: &crate::plan::Backend| match &backend.target {
                Target::Addr(addr) => vec![addr.clone()],
                Target::Name { .. } => {
                    let known = all.get(&upstream.name).into_iter().flatten();
                    let mut known = known.filter(|(text, _)| *text == backend.text);
                    known
                        .next()
                        .map_or_else(Vec::new, |(_, addresses)| addresses.clone())
                }
            };
            upstream.backends.iter().map(of).collect()
        };
        interfaces::remove_discovered_loops(&mut self.plan, addresses);
    }
}

/// Whether a discovered backend of this upstream has the port or the path of a listener.
fn may_have_loop(plan: &Plan, upstream: &str) -> bool {
    let binds = plan.listeners.iter().flat_map(|l| &l.bind);
    let bound: HashSet<_> = binds.flat_map(|bind| bind.addrs.iter().map(key)).collect();
    let upstreams = plan.upstreams.iter().filter(|u| u.name == upstream);
    let mut backends = upstreams.flat_map(|u| &u.backends);
    backends.any(|backend| match &backend.target {
        Target::Addr(addr) => backend.origin.is_discovered() && bound.contains(&key(addr)),
        Target::Name { port, .. } => bound.contains(&(*port, None)),
    })
}

fn key(addr: &Addr) -> (u16, Option<&std::path::Path>) {
    match addr {
        Addr::Tcp(address) => (address.port(), None),
        Addr::Unix(path) => (0, Some(path)),
    }
}

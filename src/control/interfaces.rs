//! Checks the addresses of a plan against the network interfaces of this machine.

use super::StartError;
use crate::{
    config::{ForwardingLoop, find_forwarding_loops},
    plan::{Addr, Backend, CheckAt, Plan, Target, Upstream},
    runtime::net::has_interface,
};
use nix::ifaddrs::getifaddrs;
use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
};

/// Every address with an interface that this machine does not have.
pub(super) fn missing(plan: &Plan) -> Vec<StartError> {
    let mut problems = Vec::new();
    let mut check = |user: &dyn Fn() -> String, addr: &Addr| {
        if !has_its_interface(addr) {
            problems.push(StartError::NoInterface { user: user() });
        }
    };
    for listener in &plan.listeners {
        for bind in &listener.bind {
            // All addresses of an entry have the same interface.
            if let Some(addr) = bind.addrs.first() {
                let user = || format!("listener {}: cannot listen on {}", listener.name, bind.text);
                check(&user, addr);
            }
        }
    }
    for upstream in &plan.upstreams {
        for backend in &upstream.backends {
            if let Target::Addr(addr) = &backend.target {
                check(
                    &|| format!("upstream {}: backend {}", upstream.name, backend.text),
                    addr,
                );
            }
        }
        if let Some(CheckAt::Addr(addr)) = upstream.check.as_ref().map(|check| &check.at) {
            check(
                &|| format!("upstream {}: `address` of its check", upstream.name),
                addr,
            );
        }
    }
    problems
}

fn has_its_interface(addr: &Addr) -> bool {
    match addr {
        Addr::Tcp(address) => has_interface(*address),
        Addr::Unix(_) => true,
    }
}

/// Takes discovered backends out of the plan that would make a listener its own backend, with a
/// line of the log. `addresses`: of each backend of an upstream.
pub(super) fn remove_discovered_loops(
    plan: &mut Plan,
    addresses: impl Fn(&Upstream) -> Vec<Vec<Addr>>,
) {
    loop {
        let resolved = plan
            .upstreams
            .iter()
            .map(|u| (u.name.clone(), addresses(u)));
        let found = find(plan, &resolved.collect());
        // All that lead from one listener to the same other one: there may be thousands.
        let mut steps = found.into_iter().flat_map(|found| found.steps);
        let discovered = steps.find_map(|(name, texts)| {
            let texts: HashSet<String> = texts.into_iter().collect();
            let upstream = plan.upstreams.iter_mut().find(|u| u.name == name)?;
            let is_loop = |b: &mut Backend| b.origin.is_discovered() && texts.contains(&b.text);
            let removed: Vec<Backend> = upstream.backends.extract_if(.., is_loop).collect();
            (!removed.is_empty()).then_some((name, removed))
        });
        let Some((upstream, removed)) = discovered else {
            return;
        };
        let backend = removed.first().map(|backend| &*backend.text);
        tracing::error!(
            upstream,
            backend,
            count = removed.len(),
            "discovered backend is a listener of this process, it is left out"
        );
    }
}

/// Every listener that is its own backend. `resolved`: the addresses of each backend, by upstream.
pub(super) fn forwarding_loops(
    plan: &Plan,
    resolved: &BTreeMap<String, Vec<Vec<Addr>>>,
) -> Vec<StartError> {
    let describe = |found: ForwardingLoop| StartError::Loop {
        listener: plan.listeners[found.listener].name.clone(),
        way: found.way,
    };
    find(plan, resolved).into_iter().map(describe).collect()
}

fn find(plan: &Plan, resolved: &BTreeMap<String, Vec<Vec<Addr>>>) -> Vec<ForwardingLoop> {
    let own: Vec<IpAddr> = getifaddrs().map_or_else(
        |_| Vec::new(),
        |all| {
            all.filter_map(|one| {
                let address = one.address?;
                let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
                v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))
            })
            .collect()
        },
    );
    let addresses = |name: &str, backend: usize| {
        let addresses = resolved.get(name).and_then(|all| all.get(backend));
        addresses.cloned().unwrap_or_default()
    };
    find_forwarding_loops(
        &plan.listeners,
        &plan.upstreams,
        |upstream, backend| addresses(&upstream.name, backend),
        |ip| own.contains(&ip),
    )
}

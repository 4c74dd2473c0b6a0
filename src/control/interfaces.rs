//! What the addresses of a plan have to do with the interfaces of this machine.

use super::StartError;
use crate::{
    config::find_loops,
    plan::{Addr, CheckAt, Plan, Target},
    runtime::net::has_interface,
};
use nix::ifaddrs::getifaddrs;
use std::{collections::BTreeMap, net::IpAddr};

/// Every address whose interface is not here.
pub(super) fn missing(plan: &Plan) -> Vec<StartError> {
    let mut problems = Vec::new();
    let mut look = |whose: &dyn Fn() -> String, place: &Addr| {
        if !is_here(place) {
            problems.push(StartError::NoInterface { user: whose() });
        }
    };
    for listener in &plan.listeners {
        for bind in &listener.bind {
            // All places of an entry have the same.
            if let Some(place) = bind.addrs.first() {
                let whose =
                    || format!("listener {}: cannot listen on {}", listener.name, bind.text);
                look(&whose, place);
            }
        }
    }
    for upstream in &plan.upstreams {
        for backend in &upstream.backends {
            if let Target::Addr(place) = &backend.target {
                look(
                    &|| format!("upstream {}: backend {}", upstream.name, backend.text),
                    place,
                );
            }
        }
        if let Some(CheckAt::Addr(place)) = upstream.check.as_ref().map(|check| &check.at) {
            look(
                &|| format!("upstream {}: `address` of its check", upstream.name),
                place,
            );
        }
    }
    problems
}

fn is_here(place: &Addr) -> bool {
    match place {
        Addr::Tcp(address) => has_interface(*address),
        Addr::Unix(_) => true,
    }
}

/// Every listener that is its own backend. `resolved`: the addresses of each backend, by upstream.
pub(super) fn loops(plan: &Plan, resolved: &BTreeMap<String, Vec<Vec<Addr>>>) -> Vec<StartError> {
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
    let places = |name: &str, backend: usize| {
        let places = resolved.get(name).and_then(|all| all.get(backend));
        places.cloned().unwrap_or_default()
    };
    let found = find_loops(
        &plan.listeners,
        &plan.upstreams,
        |upstream, backend| places(&upstream.name, backend),
        |ip| own.contains(&ip),
    );
    let describe = |found: crate::config::Loop| StartError::Loop {
        listener: plan.listeners[found.listener].name.clone(),
        way: found.way,
    };
    found.into_iter().map(describe).collect()
}

//! Host names to addresses, at the start and again later. Each name by itself: one that is answered
//! late or never delays no other.

mod failures;
mod look_up;

use super::StartError;
use crate::{
    plan::{Addr, Backend, Target, Upstream},
    sys::task::boxed,
    upstream::pool::Pool,
};
use failures::Failures;
pub(super) use look_up::Resolver;
use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// By the name of the upstream and the backend as configured.
pub(super) type KnownAddresses = HashMap<(String, String), Vec<Addr>>;

/// How long a start waits for answers that it does not require.
const OPTIONAL_WAIT: Duration = Duration::from_secs(1);

/// The addresses of each backend of each upstream, in their order. Names whose addresses are known
/// are not looked up.
pub(super) async fn all(
    upstreams: &[Upstream],
    known: &KnownAddresses,
    resolver: &Resolver,
) -> Result<Vec<Vec<Vec<Addr>>>, Vec<StartError>> {
    // All at once: a resolver that does not answer delays the start once, not for each name.
    let asked: Vec<Vec<_>> = upstreams
        .iter()
        .map(|u| {
            u.backends
                .iter()
                .map(|b| {
                    let known = known.get(&(u.name.clone(), b.text.clone())).cloned();
                    let (resolver, backend) = (resolver.clone(), b.clone());
                    tokio::spawn(boxed(async move {
                        match known {
                            Some(known) => Ok(known),
                            None => look_up(resolver, backend).await,
                        }
                    }))
                })
                .collect()
        })
        .collect();
    let deadline = tokio::time::Instant::now() + OPTIONAL_WAIT;
    let mut problems = Vec::new();
    let mut found = Vec::new();
    for (upstream, asked) in upstreams.iter().zip(asked) {
        let mut places = Vec::new();
        for (backend, answer) in upstream.backends.iter().zip(asked) {
            // A source that names what does not resolve must not keep a process from starting.
            let is_required = upstream.resolve_required && !backend.origin.is_discovered();
            let is_optional = !is_required && upstream.resolve_interval.is_some();
            let answer = match is_optional {
                true => tokio::time::timeout_at(deadline, answer).await,
                false => Ok(answer.await),
            };
            let answer = match answer {
                Ok(answer) => answer.unwrap_or_else(|e| Err(io::Error::other(e))),
                Err(_) => Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the resolver has not answered yet",
                )),
            };
            places.push(answer.unwrap_or_else(|e| {
                let (upstream_name, text) = (&upstream.name, &backend.text);
                if is_required {
                    problems.push(StartError::Name {
                        upstream: upstream_name.clone(),
                        backend: text.clone(),
                        source: e,
                    });
                } else if upstream.resolve_interval.is_some() {
                    tracing::warn!(upstream = upstream_name, backend = text, error = %e,
                        "name not resolved, trying again later");
                } else {
                    tracing::warn!(upstream = upstream_name, backend = text, error = %e,
                        "name not resolved, backend stays out: resolve_interval is \"0s\"");
                }
                Vec::new()
            }));
        }
        found.push(places);
    }
    if problems.is_empty() {
        Ok(found)
    } else {
        Err(problems)
    }
}

/// Looks names up again and again, and gives changed answers to the pool: one task for each name,
/// for as long as what is returned lives. A name that no longer resolves keeps its last addresses,
/// since a failure of the resolver is no reason to drop a backend.
pub(super) fn keep_fresh(pool: Arc<Pool>, upstream: &Upstream, resolver: &Resolver) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let Some(interval) = upstream.resolve_interval else {
        return tasks;
    };
    let is_name = |b: &&Backend| matches!(b.target, Target::Name { .. });
    let named: Vec<_> = upstream.backends.iter().filter(is_name).collect();
    for (n, backend) in named.iter().enumerate() {
        // Spread over the interval, so that a name server does not get all questions at once.
        let first = interval.mul_f64((n + 1) as f64 / named.len() as f64);
        let (pool, resolver) = (Arc::clone(&pool), resolver.clone());
        tasks.spawn(boxed(keep_one_fresh(
            pool,
            resolver,
            (*backend).clone(),
            interval,
            first,
        )));
    }
    tasks
}

async fn keep_one_fresh(
    pool: Arc<Pool>,
    resolver: Resolver,
    backend: Backend,
    interval: Duration,
    first: Duration,
) {
    let mut failures = Failures::default();
    if pool.addresses_of(&backend.text).is_empty() {
        // The start has logged it.
        failures.add(Instant::now());
    }
    let mut pause = first;
    loop {
        tokio::time::sleep(pause).await;
        pause = interval;
        let found = look_up(resolver.clone(), backend.clone()).await;
        let now = Instant::now();
        let (upstream, target, backend) = (&pool.name, &backend.target, &backend.text);
        match found {
            Ok(mut new) => {
                let known = pool.addresses_of(backend);
                let kept = addresses_to_keep(&resolver, target, known, &new).await;
                if !kept.is_empty() {
                    if let Some(failures) = failures.add(now) {
                        tracing::warn!(%upstream, %backend, kept = %list(&kept), failures,
                            "name resolved for one family of addresses, keeping the other");
                    }
                } else if let Some((failures, lasted)) = failures.end(now) {
                    let seconds = lasted.as_secs();
                    tracing::info!(%upstream, %backend, failures, seconds,
                        "name resolved again");
                }
                // In their order, in which IPv4 comes first.
                let at = if kept.first().is_some_and(is_ipv6) {
                    new.len()
                } else {
                    0
                };
                new.splice(at..at, kept);
                if pool.set_addresses(backend, &new, now) {
                    tracing::info!(%upstream, %backend, addresses = %list(&new),
                        "resolved addresses changed");
                }
            }
            Err(error) => {
                if let Some(failures) = failures.add(now) {
                    tracing::warn!(%upstream, %backend, %error, failures,
                        "name not resolved, keeping its addresses");
                }
            }
        }
    }
}

/// What an answer lacks of the addresses known before, where it has none of their family and it is
/// not certain that there are none.
async fn addresses_to_keep(
    resolver: &Resolver,
    target: &Target,
    known: Vec<Addr>,
    answer: &[Addr],
) -> Vec<Addr> {
    let is_lost = |of: &bool| answer.iter().all(|addr| is_ipv6(addr) != *of);
    let lost = known.iter().map(is_ipv6).find(is_lost);
    match (target, lost) {
        (Target::Name { host, .. }, Some(lost)) if !resolver.is_without(host, lost).await => {
            known.into_iter().filter(|a| is_ipv6(a) == lost).collect()
        }
        _ => Vec::new(),
    }
}

fn is_ipv6(addr: &Addr) -> bool {
    matches!(addr, Addr::Tcp(SocketAddr::V6(_)))
}

async fn look_up(resolver: Resolver, backend: Backend) -> io::Result<Vec<Addr>> {
    let (host, port) = match &backend.target {
        Target::Addr(place) => return Ok(vec![place.clone()]),
        Target::Name { host, port } => (host.as_str(), *port),
    };
    resolver.addresses(host, port).await
}

fn list(places: &[Addr]) -> String {
    places
        .iter()
        .map(Addr::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

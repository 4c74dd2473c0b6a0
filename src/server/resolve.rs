//! Host names to addresses, at the start and again later.

use crate::{
    following::follow,
    journal::{Event, Journal},
    plan::{Backend, Place, Target, Upstream},
    pool::{Moved, Pool},
};
use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// A resolver that does not answer must not keep the process from starting for ever.
const PATIENCE: Duration = Duration::from_secs(10);

/// For each upstream and each of its backends: what its address stands for.
pub(super) async fn all(upstreams: &[Upstream]) -> Result<Vec<Vec<Vec<Place>>>, Vec<String>> {
    // All at once: with a resolver that does not answer they would otherwise wait one after the other.
    let asked: Vec<Vec<_>> = upstreams
        .iter()
        .map(|u| {
            u.backends
                .iter()
                .map(|b| tokio::spawn(look_up(b.clone())))
                .collect()
        })
        .collect();
    let mut problems = Vec::new();
    let mut found = Vec::new();
    for (upstream, asked) in upstreams.iter().zip(asked) {
        let mut places = Vec::new();
        for (backend, answer) in upstream.backends.iter().zip(asked) {
            let answer = answer.await.unwrap_or_else(|e| Err(io::Error::other(e)));
            places.push(answer.unwrap_or_else(|e| {
                let what = format!("upstream {}: backend {}: {e}", upstream.name, backend.text);
                if upstream.resolve_required {
                    problems.push(format!(
                        "{what}; to start without it and try again later, set resolve_required = false"
                    ));
                } else if upstream.resolve_interval.is_some() {
                    tracing::warn!("{what}; trying again later");
                } else {
                    tracing::warn!("{what}; it stays out: resolve_interval is \"0s\"");
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

/// Looks names up again and again, and tells the pool when an answer has changed. A name that no
/// longer resolves keeps its last addresses: a resolver's trouble is no reason to drop a backend.
pub(super) fn keep_fresh(
    pool: Arc<Pool>,
    upstream: Upstream,
    journal: Arc<Journal>,
    told: Arc<Notify>,
    stop: CancellationToken,
) {
    let has_names = upstream
        .backends
        .iter()
        .any(|b| matches!(b.target, Target::Name { .. }));
    let Some(interval) = upstream.resolve_interval.filter(|_| has_names) else {
        return;
    };
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        let mut known: Vec<Vec<Place>> = pool
            .snapshot(Instant::now())
            .into_iter()
            .map(|s| s.addresses)
            .collect();
        loop {
            tokio::time::sleep(interval).await;
            let mut changed = false;
            for (backend, places) in upstream.backends.iter().zip(&mut known) {
                match look_up(backend.clone()).await {
                    Ok(new) if new != *places => {
                        tracing::info!(upstream = %upstream.name, backend = %backend.text,
                            addresses = %list(&new), "its name has other addresses now");
                        *places = new;
                        changed = true;
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(upstream = %upstream.name, backend = %backend.text,
                        %error, "cannot look its name up, keeping what is known")
                    }
                }
            }
            if changed {
                let now = Instant::now();
                write_down(&pool, &journal, pool.set_addresses(&known, now), now);
                told.notify_one();
            }
        }
    }));
}

fn write_down(pool: &Arc<Pool>, journal: &Arc<Journal>, moved: Moved, now: Instant) {
    let reason = "resolver";
    for (backend, state) in moved.gone {
        let event = Event::new(&pool.name, &backend, state.word(), "removed");
        let recorded = journal.record(Event { reason, ..event });
        follow(pool, &backend, journal, recorded, now);
    }
    for (backend, state) in moved.came {
        let event = Event::new(&pool.name, &backend, "removed", state.word());
        journal.record(Event { reason, ..event });
    }
}

async fn look_up(backend: Backend) -> io::Result<Vec<Place>> {
    let (host, port) = match &backend.target {
        Target::Place(place) => return Ok(vec![place.clone()]),
        Target::Name { host, port } => (host.as_str(), *port),
    };
    let answer = tokio::time::timeout(PATIENCE, tokio::net::lookup_host((host, port)))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the resolver did not answer"))?;
    let mut places: Vec<Place> = answer
        .map_err(|e| io::Error::new(e.kind(), format!("{host} does not resolve: {e}")))?
        .map(Place::Tcp)
        .collect();
    // Resolvers rotate their answers; an order of our own keeps picks the same everywhere.
    places.sort_by_key(|p| match p {
        Place::Tcp(address) => Some(*address),
        Place::Unix(_) => None,
    });
    places.dedup();
    if places.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("{host} has no address"),
        ));
    }
    Ok(places)
}

fn list(places: &[Place]) -> String {
    places
        .iter()
        .map(Place::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

//! `GET /api/v1/sessions/ages`: how many sessions of each backend are how old, and the oldest of
//! them. It names no client, so that it is served over TCP as well.

use crate::{
    control::State,
    session::{
        filter::{Filter, FoundSession, MatchScope, Selection},
        registry::Sessions,
    },
};
use serde::Serialize;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    sync::Arc,
    time::{Duration, Instant},
};

/// The upper ends of all classes but the last, in seconds.
const LIMITS: [u64; 6] = [1, 10, 60, 600, 3_600, 86_400];
const CLASSES: usize = LIMITS.len() + 1;
/// How many of the oldest sessions are listed.
const MOST_OLDEST: usize = 20;

#[derive(Debug, Serialize)]
pub(super) struct Ages {
    limits_seconds: [u64; LIMITS.len()],
    backends: Vec<AgesOfBackend>,
    /// The oldest first.
    oldest: Vec<OldSession>,
}

/// Of the sessions of a listener on a backend.
#[derive(Debug, Serialize)]
struct AgesOfBackend {
    listener: String,
    upstream: String,
    /// As configured; null while they have none.
    backend: Option<String>,
    /// Younger than each limit and not younger than the one before, and the rest.
    counts: [u64; CLASSES],
}

#[derive(Debug, Serialize)]
struct OldSession {
    id: u64,
    listener: String,
    upstream: String,
    backend: Option<String>,
    age_seconds: u64,
    idle_seconds: u64,
    received_bytes: u64,
    sent_bytes: u64,
}

pub(super) fn of(state: &State) -> Ages {
    let sessions = &state.process.sessions;
    collect(sessions, Instant::now())
}

fn collect(sessions: &Arc<Sessions>, now: Instant) -> Ages {
    let mut counts: BTreeMap<_, [u64; CLASSES]> = BTreeMap::new();
    // The youngest of them is on top.
    let mut oldest: BinaryHeap<(Reverse<Duration>, u64)> = BinaryHeap::new();
    let mut listed: BTreeMap<u64, OldSession> = BTreeMap::new();
    let mut selection = Selection::new(sessions, Filter::default(), MatchScope::All);
    while let Some(found) = selection.next_some(now) {
        for FoundSession { session, backend } in found {
            let age = now.saturating_duration_since(sessions.began_at(&session));
            let backend = backend.map(|backend| Arc::clone(backend.text()));
            let origin = Arc::clone(&session.origin);
            let key = (
                origin.listener.clone(),
                Arc::clone(&origin.pool.name),
                backend.clone(),
            );
            counts.entry(key).or_default()[class(age)] += 1;
            let youngest = oldest.peek().map(|(Reverse(age), _)| *age);
            if oldest.len() == MOST_OLDEST && youngest.is_some_and(|youngest| youngest >= age) {
                continue;
            }
            if oldest.len() == MOST_OLDEST
                && let Some((_, id)) = oldest.pop()
            {
                listed.remove(&id);
            }
            oldest.push((Reverse(age), session.id));
            let idle = sessions.idle(&session, now).min(age);
            let old = OldSession {
                id: session.id,
                listener: origin.listener.clone(),
                upstream: origin.pool.name.to_string(),
                backend: backend.map(|text| text.to_string()),
                age_seconds: age.as_secs(),
                idle_seconds: idle.as_secs(),
                received_bytes: session.received(),
                sent_bytes: session.sent(),
            };
            listed.insert(session.id, old);
        }
    }
    let mut oldest: Vec<OldSession> = listed.into_values().collect();
    oldest.sort_by_key(|session| Reverse(session.age_seconds));
    let backends = counts.into_iter();
    Ages {
        limits_seconds: LIMITS,
        backends: backends
            .map(|((listener, upstream, backend), counts)| AgesOfBackend {
                listener,
                upstream: upstream.to_string(),
                backend: backend.map(|text| text.to_string()),
                counts,
            })
            .collect(),
        oldest,
    }
}

fn class(age: Duration) -> usize {
    let older = LIMITS.iter().filter(|limit| age.as_secs() >= **limit);
    older.count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::registry::{
        Arrival, Descriptors, SessionKind,
        tests::{arrival, origin},
    };

    #[test]
    fn sessions_are_counted_by_age_and_the_oldest_listed() {
        let now = Instant::now();
        let descriptors = Arc::new(Descriptors::new(200, 0, 0));
        let sessions = Arc::new(Sessions::new(1, 100, 0, &descriptors, now));
        let origin = origin(SessionKind::Connection);
        // One of each age from 0 to 99 s.
        let live: Vec<_> = (0..100)
            .map(|n| {
                let at = now + Duration::from_secs(n);
                sessions.add(Arrival { at, ..arrival() }, &origin)
            })
            .collect();
        assert!(live.iter().all(Result::is_ok));
        let ages = collect(&sessions, now + Duration::from_secs(99));
        assert_eq!(ages.backends.len(), 1);
        assert_eq!(ages.backends[0].counts, [1, 9, 50, 40, 0, 0, 0]);
        let oldest: Vec<u64> = ages.oldest.iter().map(|s| s.age_seconds).collect();
        assert_eq!(oldest, (80..100).rev().collect::<Vec<u64>>());
    }
}

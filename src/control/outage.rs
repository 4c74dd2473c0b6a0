//! What comes of a backend that has left: when its last session was over, and when its clients were
//! served elsewhere.

use crate::{
    control::journal::{Journal, Recorded, seconds},
    upstream::{
        backend::Backend,
        pool::{AfterFailure, Pool},
    },
};
use std::{
    fmt::Display,
    sync::Arc,
    time::{Duration, Instant},
};

/// Writes it down as it happens, until something else happens to the same backend.
pub fn follow(
    pool: &Arc<Pool>,
    backend: &Arc<Backend>,
    journal: &Arc<Journal>,
    recorded: Recorded,
    left_at: Instant,
) {
    let (pool, backend, journal) = (Arc::clone(pool), Arc::clone(backend), Arc::clone(journal));
    let elsewhere = pool.next_elsewhere(&backend);
    let superseded = recorded.superseded.clone();
    tokio::spawn(superseded.run_until_cancelled_owned(async move {
        let upstream = &pool.name;
        let closed = async {
            backend.empty().await;
            let took = left_at.elapsed();
            pool.metrics.leave_duration.record(took);
            journal.add(&recorded, |event| {
                event.last_session_closed_seconds = Some(seconds(took));
            });
            tracing::info!(%upstream, backend = %backend.text(), address = %backend.place, seconds = seconds(took),
                "last session of the backend ended");
        };
        let taken = async {
            // Its other end lives as long as the pool.
            let Ok(taken) = elsewhere.await else {
                return;
            };
            let took = taken.at.saturating_duration_since(left_at);
            pool.metrics.resume_duration.record(took);
            journal.add(&recorded, |event| {
                event.next_session_seconds = Some(seconds(took));
                event.next_session_on = Some(taken.by.to_string());
            });
            tracing::info!(%upstream, backend = %backend.text(), address = %backend.place, next = %taken.by, seconds = seconds(took),
                "first session on another backend");
        };
        tokio::join!(closed, taken);
    }));
}

/// Something that only this backend can be blamed for has gone wrong. Takes it out if it was once
/// too often.
pub fn blame(
    pool: &Arc<Pool>,
    journal: &Arc<Journal>,
    backend: &Arc<Backend>,
    reason: &'static str,
    error: impl Display,
) {
    let upstream = &pool.name;
    let now = Instant::now();
    let AfterFailure::Out(doubted_for) = pool.failed(backend, now) else {
        return;
    };
    let doubt_seconds = seconds(doubted_for);
    let address = &backend.place;
    tracing::warn!(%upstream, backend = %backend.text(), %address, from = "up", to = "failed", reason, %error, doubt_seconds,
        "backend marked down");
    pool.metrics.doubt_duration.record(doubted_for);
    let recorded = journal.passive(upstream, backend, "up", "failed", reason, doubted_for);
    follow(pool, backend, journal, recorded, now);
}

/// A backend that had failed has been found good.
pub fn tell_that_it_is_back(
    pool: &Pool,
    journal: &Journal,
    backend: &Backend,
    reason: &'static str,
) {
    let upstream = &pool.name;
    tracing::info!(%upstream, backend = %backend.text(), address = %backend.place, from = "failed", to = "up", reason,
        "backend marked up");
    journal.passive(upstream, backend, "failed", "up", reason, Duration::ZERO);
}

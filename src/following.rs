//! What comes of a backend that has left: when its last session was over, and when its clients were served elsewhere.

use crate::{
    backend::Backend,
    journal::{Journal, Recorded, seconds},
    pool::Pool,
};
use std::{sync::Arc, time::Instant};

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
            backend.metrics.leave_duration.record(took);
            journal.add(&recorded, |event| {
                event.last_session_closed_seconds = Some(seconds(took));
            });
            tracing::info!(%upstream, backend = %backend.text(), address = %backend.place, seconds = seconds(took),
                "no session is left on the backend");
        };
        let taken = async {
            // Its other end lives as long as the pool.
            let Ok(taken) = elsewhere.await else {
                return;
            };
            let took = taken.at.saturating_duration_since(left_at);
            backend.metrics.resume_duration.record(took);
            journal.add(&recorded, |event| {
                event.next_session_seconds = Some(seconds(took));
                event.next_session_on = Some(taken.by.to_string());
            });
            tracing::info!(%upstream, backend = %backend.text(), next = %taken.by, seconds = seconds(took),
                "the first session has gone elsewhere");
        };
        tokio::join!(closed, taken);
    }));
}

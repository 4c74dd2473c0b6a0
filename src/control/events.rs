//! What follows from another verdict: sessions are told, and so are the log and the journal.

use crate::{
    control::{
        draining::Leaving,
        journal::{Event, Journal},
        outage::follow,
    },
    probe::Report,
    upstream::{
        backend::Backend,
        health::{Change, Verdict},
        pool::{News, Pool, Turn},
    },
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// The check that has just ended and changed what is thought of its backend.
pub(super) struct Cause<'a> {
    pub(super) backend: &'a Arc<Backend>,
    pub(super) change: Change,
    pub(super) report: &'a Report,
}

/// Does what is to be done about all that has happened. When to come again even if no check has
/// ended.
pub(super) fn act(
    pool: &Arc<Pool>,
    leaving: &Leaving,
    journal: &Arc<Journal>,
    cause: Option<&Cause<'_>>,
    now: Instant,
) -> Option<Instant> {
    let upstream = &pool.name;
    let (news, next) = pool.news(now);
    for news in news {
        match news {
            News::Turned(turn) => {
                leaving.after(pool, &turn.backend, turn.backup, turn.to);
                let cause = cause.filter(|c| Arc::ptr_eq(c.backend, &turn.backend));
                let recorded = journal.record(event(upstream, &turn, cause));
                if turn.from.is_up() {
                    let doubt = cause.map_or(Duration::ZERO, |c| c.change.doubted_for);
                    pool.metrics.doubt_duration.record(doubt);
                    follow(pool, &turn.backend, journal, recorded, now);
                }
            }
            News::Stale(backend) => {
                tracing::warn!(%upstream, backend = %backend.text(), address = %backend.place,
                    "check results are stale, backend takes no new sessions");
            }
            News::Heard(backend) => {
                tracing::info!(%upstream, backend = %backend.text(), address = %backend.place,
                    "check answers again");
            }
            News::Back(backend) => {
                tracing::info!(%upstream, backend = %backend.text(), address = %backend.place, from = "failed", to = "up",
                    reason = "checked", "backend marked up");
                let none = Duration::ZERO;
                journal.passive(upstream, &backend, "failed", "up", "checked", none);
            }
            News::PanicStarted { up, of } => {
                tracing::warn!(%upstream, up, of, "panic threshold reached, all backends are used");
                leaving.stay(pool);
            }
            News::PanicEnded => {
                tracing::info!(%upstream, "panic threshold left, checks decide again");
                leaving.resume(pool);
            }
        }
    }
    next
}

/// Writes it into the log, and makes of it what the journal keeps.
fn event(upstream: &str, turn: &Turn, cause: Option<&Cause<'_>>) -> Event {
    let backend = &turn.backend;
    let (from, to) = (turn.from.state().word(), turn.to.state().word());
    let event = Event::new(upstream, backend, from, to);
    let event = match (&turn.why, cause) {
        // What others have to do with it.
        (Some(why), _) => Event {
            reason: match turn.to {
                Verdict::WrongRole => "superseded",
                _ => "two_primaries",
            },
            transcript: Some(why.clone()),
            ..event
        },
        (None, Some(cause)) => Event {
            reason: cause.report.result.word(),
            transcript: Some(cause.report.transcript.clone()),
            ..event.doubted_for(cause.change.doubted_for)
        },
        (None, None) => Event {
            reason: "one_primary",
            ..event
        },
    };
    let transcript = event.transcript.as_deref().unwrap_or_default();
    let (address, reason, doubt_seconds) = (&backend.place, event.reason, event.doubt_seconds);
    if turn.why.is_some() {
        tracing::warn!(%upstream, backend = %backend.text(), %address, from, to, reason, transcript,
            "two primaries reported, backend marked doubtful");
    } else if turn.from.is_up() {
        tracing::warn!(%upstream, backend = %backend.text(), %address, from, to, reason, transcript, doubt_seconds,
            "backend marked down");
    } else {
        // One that has not been used yet, and is not to be, is nothing to be warned of.
        let message = if turn.to.is_up() {
            "backend is up"
        } else {
            "backend stays out"
        };
        tracing::info!(%upstream, backend = %backend.text(), %address, from, to, reason, transcript, doubt_seconds,
            "{message}");
    }
    event
}

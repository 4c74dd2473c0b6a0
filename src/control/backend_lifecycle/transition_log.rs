//! The log lines of transitions.

use crate::{
    control::journal::{JournalEntry, seconds},
    plan::{Role, reason::BackendState},
    upstream::pool::{Cause, Transition},
};

/// `role`: the one that is required.
pub(super) fn log(entry: &JournalEntry, transition: &Transition, role: Option<Role>) {
    let (upstream, backend, address) = (&entry.upstream, &entry.backend, &entry.address);
    let (from, to, reason) = (&*entry.from, &*entry.to, &*entry.reason);
    let transcript = entry.transcript.as_deref().unwrap_or_default();
    let doubt_seconds = seconds(transition.doubted_for);
    match &transition.cause {
        // By the operator, who may have ordered the promotion, too.
        Cause::Superseded(_) if transition.is_kept_out => {
            tracing::info!(%upstream, %backend, %address, from, to, reason, transcript,
                "another primary was promoted later");
        }
        Cause::Superseded(_) => {
            tracing::warn!(%upstream, %backend, %address, from, to, reason, transcript,
                "another primary was promoted later, backend is out of service");
        }
        Cause::TwoPrimaries(_) => {
            tracing::warn!(%upstream, %backend, %address, from, to, reason, transcript,
                "two primaries reported, backend marked doubtful");
        }
        Cause::Check { .. } | Cause::OnePrimary
            if transition.is_outage() && transition.to == Some(BackendState::Down) =>
        {
            tracing::warn!(%upstream, %backend, %address, from, to, reason, transcript,
                doubt_seconds, "backend marked down");
        }
        // It is well, and what made it necessary has a line of its own.
        Cause::Check { .. }
            if transition.is_outage()
                && transition.to == Some(BackendState::Standby)
                && role == Some(Role::Replica) =>
        {
            tracing::info!(%upstream, %backend, %address, from, to, reason, transcript,
                doubt_seconds, "replica was promoted, backend is out of service");
        }
        Cause::Check { .. } | Cause::OnePrimary if transition.is_outage() => {
            tracing::warn!(%upstream, %backend, %address, from, to, reason, transcript,
                doubt_seconds, "backend is out of service");
        }
        Cause::Check { .. } | Cause::OnePrimary if transition.to == Some(BackendState::Up) => {
            tracing::info!(%upstream, %backend, %address, from, to, reason, transcript,
                doubt_seconds, "backend is up");
        }
        // One that has not been used yet is no reason for a warning.
        Cause::Check { .. } | Cause::OnePrimary => {
            tracing::info!(%upstream, %backend, %address, from, to, reason, transcript,
                doubt_seconds, "backend stays out");
        }
        Cause::Failure { error, .. } => {
            tracing::warn!(%upstream, %backend, %address, from, to, reason, %error, doubt_seconds,
                "backend marked down");
        }
        Cause::Connected | Cause::Answered | Cause::CheckPassed => {
            tracing::info!(%upstream, %backend, %address, from, to, reason, "backend marked up");
        }
        // Logged for all addresses at once, by what changed them.
        Cause::Operator(_) | Cause::Resolver | Cause::Plan | Cause::Discovery => {}
    }
}

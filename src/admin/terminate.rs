//! `POST /api/v1/sessions/kill` and `POST /api/v1/rebalance`: terminations that go on for as long
//! as the client reads, with a line about each step.

use super::{
    fields::Fields,
    lifetime::Lifetime,
    request::{Refusal, bad, hint, shown},
    sessions::{FILTERS, take_filter},
    stream::{Disconnected, Stream, Writer},
};
use crate::{
    config::parse_rate,
    control::{
        State,
        terminate::{Kill, NotRebalanced, Rebalance, RebalanceOutcome},
    },
};
use hyper::{Request, StatusCode, body::Incoming};
use serde::Serialize;
use std::sync::Arc;

pub(super) const KILL: &str = "/api/v1/sessions/kill";
pub(super) const REBALANCE: &str = "/api/v1/rebalance";

const EXAMPLE: &str = "as in {\"upstream\": \"redis\"}";

/// A line of the answer to [`KILL`].
#[derive(Serialize)]
struct KillLine {
    /// Sessions that matched at the beginning.
    matched: u64,
    terminated: u64,
    /// Terminated, and not ended yet.
    pending: usize,
    /// Nothing follows.
    done: bool,
}

/// A line of the answer to [`REBALANCE`].
#[derive(Serialize)]
struct RebalanceLine<'a> {
    upstream: &'a str,
    /// What decides: "count", the number of sessions on each backend, or "key".
    by: &'static str,
    backends: Vec<Share>,
    /// How many sessions are to be terminated.
    wanted: u64,
    terminated: u64,
    pending: usize,
    done: bool,
    /// Other backends take sessions than at the beginning, so that it was stopped.
    backends_changed: bool,
}

#[derive(Serialize)]
struct Share {
    backend: String,
    backend_addr: String,
    before: u64,
    target: u64,
    now: u64,
}

pub(super) async fn kill(
    request: Request<Incoming>,
    state: &Arc<State>,
    lifetime: &Arc<Lifetime>,
) -> Result<Stream, Refusal> {
    let mut fields = fields(request).await?;
    let filter = take_filter(&mut fields, state)?;
    let all = fields.flag("all")?;
    let dry_run = fields.flag("dry_run")?;
    let rate = fields.parsed("rate", parse_rate)?;
    fields.finish(&[&FILTERS[..], &["all", "dry_run", "rate"]].concat())?;
    if filter.is_empty() != all {
        let error = match all {
            true => "`all` and filters exclude each other",
            false => "without a filter every session would be terminated",
        };
        return Err(bad(error.to_owned(), "name filters, or \"all\": true"));
    }
    let kill = Kill::new(state, filter, rate);
    Ok(Stream::start(lifetime, |writer| {
        run_kill(kill, dry_run, writer)
    }))
}

async fn run_kill(mut kill: Kill, dry_run: bool, mut writer: Writer) -> Result<(), Disconnected> {
    let mut line = KillLine {
        matched: kill.count().await,
        terminated: 0,
        pending: 0,
        done: dry_run,
    };
    writer.write_line(&line).await?;
    while !line.done {
        let killed = kill.proceed().await;
        line.terminated = killed.terminated;
        line.pending = killed.pending;
        line.done = killed.is_over;
        writer.write_line(&line).await?;
    }
    Ok(())
}

pub(super) async fn rebalance(
    request: Request<Incoming>,
    state: &Arc<State>,
    lifetime: &Arc<Lifetime>,
) -> Result<Stream, Refusal> {
    let mut fields = fields(request).await?;
    let name = fields.text("upstream")?;
    let dry_run = fields.flag("dry_run")?;
    let rate = fields.parsed("rate", parse_rate)?;
    fields.finish(&["upstream", "dry_run", "rate"])?;
    let name = name.ok_or_else(|| bad("`upstream` is missing".to_owned(), EXAMPLE))?;
    let view = state.view();
    let Some(pool) = view.pools().find(|pool| *pool.name == *name) else {
        let known: Vec<&str> = view.pools().map(|pool| &*pool.name).collect();
        let error = format!("there is no upstream {:?}", shown(&name));
        return Err(Refusal(StatusCode::NOT_FOUND, error, hint(&name, &known)));
    };
    let prepared = Rebalance::prepare(state, pool, rate).await;
    let mut rebalance = prepared.map_err(|why| refuse(&name, why))?;
    if !dry_run {
        rebalance.begin().map_err(|why| refuse(&name, why))?;
    }
    Ok(Stream::start(lifetime, move |writer| {
        run_rebalance(rebalance, name, dry_run, writer)
    }))
}

async fn run_rebalance(
    mut rebalance: Rebalance,
    upstream: String,
    dry_run: bool,
    mut writer: Writer,
) -> Result<(), Disconnected> {
    let mut line = RebalanceLine {
        upstream: &upstream,
        by: if rebalance.is_by_key() {
            "key"
        } else {
            "count"
        },
        backends: shares(&rebalance),
        wanted: rebalance.wanted(),
        terminated: 0,
        pending: 0,
        done: dry_run,
        backends_changed: false,
    };
    writer.write_line(&line).await?;
    while !line.done {
        let progress = rebalance.proceed().await;
        line.backends = shares(&rebalance);
        line.terminated = progress.terminated;
        line.pending = progress.pending;
        line.done = progress.outcome.is_some();
        line.backends_changed = progress.outcome == Some(RebalanceOutcome::BackendsChanged);
        writer.write_line(&line).await?;
    }
    Ok(())
}

fn shares(rebalance: &Rebalance) -> Vec<Share> {
    let share = |share: &crate::control::terminate::Share| Share {
        backend: share.backend.text().to_string(),
        backend_addr: share.backend.addr.to_string(),
        before: share.before,
        target: share.target,
        now: share.backend.active(),
    };
    rebalance.shares().iter().map(share).collect()
}

fn refuse(upstream: &str, why: NotRebalanced) -> Refusal {
    let (error, hint) = match why {
        NotRebalanced::NoBackend => (
            format!("no backend of {upstream:?} takes sessions"),
            "`tembuku status` says why",
        ),
        NotRebalanced::UnderWay => (
            format!("{upstream:?} is being rebalanced already"),
            "wait for the other command to end, or end it",
        ),
    };
    Refusal(StatusCode::CONFLICT, error, hint.to_owned())
}

async fn fields(request: Request<Incoming>) -> Result<Fields, Refusal> {
    Fields::of_post(request, "sessions are shown at /api/v1/sessions", EXAMPLE).await
}

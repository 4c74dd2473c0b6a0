//! `GET /api/v1/sessions` with filters in its query: the live sessions, one a line.

use super::{
    fields::Fields,
    lifetime::Lifetime,
    request::{Refusal, hint, require, shown},
    stream::{Disconnected, Stream, Writer},
};
use crate::{
    config::parse_peers,
    control::State,
    session::{
        filter::{Filter, FoundSession, MatchScope, Selection},
        registry::{SessionKind, Sessions},
    },
};
use hyper::{Method, StatusCode, Uri};
use serde::Serialize;
use std::{collections::BTreeSet, sync::Arc, time::Instant};

pub(super) const PATH: &str = "/api/v1/sessions";

/// The fields of a filter, as a request names them.
pub(super) const FILTERS: [&str; 8] = [
    "id",
    "listener",
    "upstream",
    "backend",
    "client",
    "older_than",
    "idle",
    "backend_port",
];

/// A session as it is shown. Fields are added to it, and none is taken away.
#[derive(Debug, Serialize)]
struct Row<'a> {
    /// Unique in the process, and in the access log as well; later sessions have larger ones.
    id: u64,
    listener: &'a str,
    /// "tcp" or "udp".
    protocol: &'static str,
    /// The client that the session is for: the one that a PROXY protocol header named, if one did.
    client: String,
    /// The other end of the connection: the client, or the proxy that sent the header.
    peer: String,
    upstream: &'a str,
    /// As configured; null where it has none.
    backend: Option<&'a str>,
    /// The address behind a host name.
    backend_addr: Option<String>,
    /// Our own port towards the backend; null on a unix socket, and while there is no connection.
    backend_port: Option<u16>,
    /// "connecting", "queued", "held", "relaying" or "closing".
    state: &'static str,
    /// Why it is being terminated; null if it is not.
    close_reason: Option<&'static str>,
    age_seconds: f64,
    /// Since bytes were last carried in either direction.
    idle_seconds: f64,
    /// From the client.
    received_bytes: u64,
    /// To the client.
    sent_bytes: u64,
}

impl<'a> Row<'a> {
    fn of(found: &'a FoundSession, sessions: &Sessions, now: Instant) -> Self {
        let FoundSession { session, backend } = found;
        let age = now.saturating_duration_since(sessions.began_at(session));
        Self {
            id: session.id,
            listener: &session.origin.listener,
            protocol: match session.origin.kind {
                SessionKind::Connection => "tcp",
                SessionKind::Flow => "udp",
            },
            client: session.client().to_string(),
            peer: session.peer.to_string(),
            upstream: &session.origin.pool.name,
            backend: backend.as_ref().map(|backend| &**backend.text()),
            backend_addr: backend.as_ref().map(|backend| backend.addr.to_string()),
            backend_port: session.backend_port(),
            state: session.phase().word(),
            close_reason: session.must_end().map(|reason| reason.word()),
            age_seconds: to_millis(age.as_secs_f64()),
            // Its worker may have stored a later time than the one that this began with.
            idle_seconds: to_millis(sessions.idle(session, now).min(age).as_secs_f64()),
            received_bytes: session.received(),
            sent_bytes: session.sent(),
        }
    }
}

fn to_millis(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}

/// The sessions that match, as they are found.
pub(super) fn answer(
    method: &Method,
    uri: &Uri,
    state: &Arc<State>,
    lifetime: &Arc<Lifetime>,
) -> Result<Stream, Refusal> {
    let instead = "sessions are terminated by POST /api/v1/sessions/kill";
    require(Method::GET, method, instead)?;
    let mut fields = Fields::of_query(uri.query().unwrap_or_default())?;
    let filter = take_filter(&mut fields, state)?;
    let limit = fields.number("limit", u64::MAX)?.filter(|limit| *limit > 0);
    fields.finish(&[&FILTERS[..], &["limit"]].concat())?;
    let sessions = Arc::clone(&state.process.sessions);
    let selection = Selection::new(&sessions, filter, MatchScope::All);
    Ok(Stream::start(lifetime, |writer| {
        list(selection, sessions, limit, writer)
    }))
}

/// Takes the filters out of the fields. Names that neither the plan nor a session knows are
/// refused.
pub(super) fn take_filter(fields: &mut Fields, state: &State) -> Result<Filter, Refusal> {
    let port = fields.number("backend_port", u16::MAX.into())?;
    let mut filter = Filter {
        id: fields.number("id", u64::MAX)?,
        listener: fields.text("listener")?,
        upstream: fields.text("upstream")?,
        backend: fields.text("backend")?,
        client: fields.parsed("client", parse_peers)?,
        older_than: fields.duration("older_than")?,
        idle: fields.duration("idle")?,
        backend_port: port.map(|port| port as u16),
    };
    divide_backend(&mut filter, state);
    check_names(&filter, state)?;
    Ok(filter)
}

/// A backend may be named with its upstream: redis/10.0.0.1:6379.
fn divide_backend(filter: &mut Filter, state: &State) {
    let parts = filter
        .backend
        .as_ref()
        .and_then(|name| name.split_once('/'));
    if let Some((upstream, backend)) = parts
        && filter.upstream.as_ref().is_none_or(|name| name == upstream)
        && state.view().pools().any(|pool| *pool.name == *upstream)
    {
        filter.upstream = Some(upstream.to_owned());
        filter.backend = Some(backend.to_owned());
    }
}

/// A name that is misspelt would match nothing, or be found out too late. That of a listener or an
/// upstream that a reload has removed is valid as long as it has sessions.
fn check_names(filter: &Filter, state: &State) -> Result<(), Refusal> {
    let view = state.view();
    let unknown = |kind: &str, name: &Option<String>, known: BTreeSet<&str>| {
        let name = name.as_deref().filter(|name| !known.contains(name))?;
        let known: Vec<&str> = known.into_iter().collect();
        let error = format!("there is no {kind} {:?}", shown(name));
        Some(Refusal(StatusCode::NOT_FOUND, error, hint(name, &known)))
    };
    let listeners = view.services().map(|s| s.plan.name.as_str()).collect();
    let upstreams = view.pools().map(|pool| &*pool.name).collect();
    let is_in_upstream = |name: &str| filter.upstream.as_ref().is_none_or(|it| it == name);
    let pools = view.pools().filter(|pool| is_in_upstream(&pool.name));
    let backends: Vec<_> = pools.flat_map(|pool| pool.backends()).collect();
    let addresses: Vec<_> = backends.iter().map(|b| b.addr.to_string()).collect();
    let texts = backends.iter().map(|backend| &**backend.text());
    let backends = texts.chain(addresses.iter().map(String::as_str)).collect();
    let refusal = unknown("listener", &filter.listener, listeners)
        .or_else(|| unknown("upstream", &filter.upstream, upstreams))
        .or_else(|| unknown("backend", &filter.backend, backends));
    match refusal {
        Some(refusal) if !is_any(filter, state) => Err(refusal),
        Some(_) | None => Ok(()),
    }
}

/// Whether any session matches.
fn is_any(filter: &Filter, state: &State) -> bool {
    let mut selection = Selection::new(&state.process.sessions, filter.clone(), MatchScope::All);
    let now = Instant::now();
    std::iter::from_fn(|| selection.next_some(now)).any(|found| !found.is_empty())
}

/// One object, in which each session has a line.
async fn list(
    mut selection: Selection,
    sessions: Arc<Sessions>,
    limit: Option<u64>,
    mut writer: Writer,
) -> Result<(), Disconnected> {
    writer.write("{\"sessions\": [").await?;
    let (mut count, mut is_more) = (0, false);
    'all: while let Some(found) = selection.next_some(Instant::now()) {
        let now = Instant::now();
        for found in &found {
            if limit.is_some_and(|limit| count >= limit) {
                is_more = true;
                break 'all;
            }
            let row = Row::of(found, &sessions, now);
            let row = serde_json::to_string(&row).unwrap_or_default();
            let comma = if count > 0 { "," } else { "" };
            writer.write(&format!("{comma}\n  {row}")).await?;
            count += 1;
        }
        // Between two pieces checks and commands can run.
        tokio::task::yield_now().await;
    }
    let end = format!("\n], \"count\": {count}, \"more\": {is_more}}}\n");
    writer.write(&end).await?;
    writer.flush().await
}

//! `tembuku sessions`: the live sessions of a running process.

use super::{
    client::{AdminClient, At, Lines, encode},
    code, complain, print,
    table::{Row, Widths, terminal_width},
};
use crate::{
    admin::{size, span},
    cli::response::{self, Session, SessionsEnd, clean},
    config::{Fault, parse_duration, parse_peers},
    plan::counted,
};
use clap::{Args, ValueEnum};
use std::{cmp::Ordering, collections::BTreeMap, process::ExitCode};

const PATH: &str = "/api/v1/sessions";
/// How many rows are laid out together.
const BLOCK: usize = 1_000;

/// Sessions match if all of these do.
#[derive(Debug, Args)]
pub(super) struct Filters {
    /// On this backend: the same as --backend
    #[arg(value_name = "UPSTREAM/BACKEND|ADDRESS", conflicts_with = "backend")]
    on: Option<String>,
    /// The one with this id, as `tembuku sessions` and the access log show it
    #[arg(long, value_name = "ID")]
    id: Option<u64>,
    /// Of this listener
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    /// Of this upstream
    #[arg(long, value_name = "NAME")]
    upstream: Option<String>,
    /// On this backend, as configured or by the address behind its name; with its upstream as in
    /// redis/10.0.0.1:6379
    #[arg(long, value_name = "ADDRESS")]
    backend: Option<String>,
    /// Of a client with this address, or of this network; `unix` for clients of unix sockets
    #[arg(long, value_name = "CIDR", value_parser = peers)]
    client: Option<String>,
    /// That began this long ago or earlier ("10s", "1h30m")
    #[arg(long, value_name = "TIME", value_parser = duration)]
    older_than: Option<String>,
    /// That have carried nothing for this long
    #[arg(long, value_name = "TIME", value_parser = duration)]
    idle: Option<String>,
    /// That have this port of our own towards the backend: what the backend sees as its client
    #[arg(long, value_name = "PORT")]
    backend_port: Option<u16>,
}

#[derive(Debug, Args)]
pub(super) struct Sessions {
    #[command(flatten)]
    filters: Filters,
    /// Show at most so many; 0: all
    #[arg(long, value_name = "N", default_value_t = 0)]
    limit: u64,
    /// Only those that have the most of this, the first with the most; needs --limit
    #[arg(
        long,
        value_enum,
        value_name = "WHAT",
        requires = "limit",
        conflicts_with = "json"
    )]
    sort: Option<Sort>,
    /// Print them as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(super) at: At,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Sort {
    Age,
    Idle,
    /// In both directions
    Bytes,
}

impl Sort {
    /// What comes first has the most.
    fn compare(self, a: &Session, b: &Session) -> Ordering {
        let bytes = |s: &Session| s.received_bytes.saturating_add(s.sent_bytes);
        let order = match self {
            Self::Age => b.age_seconds.total_cmp(&a.age_seconds),
            Self::Idle => b.idle_seconds.total_cmp(&a.idle_seconds),
            Self::Bytes => bytes(b).cmp(&bytes(a)),
        };
        order.then(a.id.cmp(&b.id))
    }
}

fn peers(text: &str) -> Result<String, String> {
    parse_peers(text).map(|_| text.to_owned()).map_err(reason)
}

fn duration(text: &str) -> Result<String, String> {
    parse_duration(text)
        .map(|_| text.to_owned())
        .map_err(reason)
}

pub(super) fn reason(fault: Fault) -> String {
    match fault.hint {
        Some(hint) => format!("{} ({hint})", fault.message),
        None => fault.message,
    }
}

impl Filters {
    pub(super) fn is_empty(&self) -> bool {
        self.fields().is_empty()
    }

    /// Refuses the id of a session in the place of a backend.
    pub(super) fn check(&self) -> Result<(), String> {
        match &self.on {
            Some(id) if id.bytes().all(|byte| byte.is_ascii_digit()) => Err(format!(
                "error: {id} is no backend\n  hint: --id {id} selects the session with this id\n"
            )),
            Some(_) | None => Ok(()),
        }
    }

    /// By the names of the fields of a request.
    pub(super) fn fields(&self) -> Vec<(&'static str, String)> {
        let port = self.backend_port.map(|port| port.to_string());
        let backend = if self.on.is_some() {
            &self.on
        } else {
            &self.backend
        };
        let id = self.id.map(|id| id.to_string());
        let fields = [
            ("id", &id),
            ("listener", &self.listener),
            ("upstream", &self.upstream),
            ("backend", backend),
            ("client", &self.client),
            ("older_than", &self.older_than),
            ("idle", &self.idle),
            ("backend_port", &port),
        ];
        let set = fields.into_iter();
        set.filter_map(|(name, value)| Some((name, value.clone()?)))
            .collect()
    }
}

pub(super) fn run(args: &Sessions) -> ExitCode {
    let client = args
        .filters
        .check()
        .and_then(|()| AdminClient::find(&args.at));
    code(client.and_then(|client| show(args, &client)))
}

fn show(args: &Sessions, client: &AdminClient) -> Result<(), String> {
    let fields = args.filters.fields();
    // The process knows no order: of all of them the first are chosen here.
    let has_limit = args.limit > 0 && args.sort.is_none();
    let limit = Some(("limit", args.limit.to_string())).filter(|_| has_limit);
    let query = fields.into_iter().chain(limit);
    let query = query.map(|(name, value)| format!("{name}={}", encode(&value)));
    let path = format!("{PATH}?{}", query.collect::<Vec<_>>().join("&"));
    let lines = client.lines("GET", &path, "")?;
    match args.sort {
        _ if args.json => show_json(lines),
        Some(sort) => show_first(lines, sort, args.limit),
        None => show_text(lines),
    }
}

/// As it comes.
fn show_json(mut lines: Lines<'_>) -> Result<(), String> {
    let mut last = String::new();
    let mut block = String::new();
    while let Some(line) = lines.next()? {
        block += &line;
        block.push('\n');
        last = line;
        if block.len() > 64 * 1024 {
            print(&std::mem::take(&mut block))?;
        }
    }
    print(&block)?;
    end(&lines, &last).map(drop)
}

/// The last line, which closes the object that the first one opens.
fn end(lines: &Lines<'_>, line: &str) -> Result<SessionsEnd, String> {
    let line = line.replacen("], ", "{", 1);
    response::read(&line).map_err(|why| lines.strange(&format!("the answer is cut off: {why}")))
}

/// Of the sessions of a backend: how many of each listener, and since when the oldest has been
/// there, in seconds.
pub(super) struct Summary {
    pub(super) listeners: BTreeMap<String, u64>,
    pub(super) oldest: f64,
}

/// Asks for every session of a backend.
pub(super) fn summarize(
    client: &AdminClient,
    upstream: &str,
    backend: &str,
) -> Result<Summary, String> {
    let (upstream, backend) = (encode(upstream), encode(backend));
    let path = format!("{PATH}?upstream={upstream}&backend={backend}");
    let mut lines = client.lines("GET", &path, "")?;
    let mut summary = Summary {
        listeners: BTreeMap::new(),
        oldest: 0.0,
    };
    while let Some(line) = lines.next()? {
        if let Some(session) = read_line(&lines, &line)? {
            *summary.listeners.entry(session.listener).or_default() += 1;
            summary.oldest = summary.oldest.max(session.age_seconds);
        }
    }
    Ok(summary)
}

/// The sessions that match a query, and whether there are more.
pub(super) fn list(client: &AdminClient, query: &str) -> Result<(Vec<Session>, bool), String> {
    let path = format!("{PATH}?{query}");
    let mut lines = client.lines("GET", &path, "")?;
    let (mut sessions, mut last) = (Vec::new(), String::new());
    while let Some(line) = lines.next()? {
        sessions.extend(read_line(&lines, &line)?);
        last = line;
    }
    let SessionsEnd { more, .. } = end(&lines, &last)?;
    Ok((sessions, more))
}

/// The session of a line, if it has one.
fn read_line(lines: &Lines<'_>, line: &str) -> Result<Option<Session>, String> {
    if !line.starts_with("  {") {
        return Ok(None);
    }
    let session = response::read(line.trim_end_matches(','));
    session.map(Some).map_err(|why| lines.strange(&why))
}

/// So many of them, in order; 0: all. No more than twice as many are held.
fn show_first(mut lines: Lines<'_>, sort: Sort, limit: u64) -> Result<(), String> {
    let limit = Some(limit).filter(|limit| *limit > 0);
    let most = limit.and_then(|limit| usize::try_from(limit).ok());
    let most = most.unwrap_or(usize::MAX);
    let mut first = Vec::new();
    let mut last = String::new();
    while let Some(line) = lines.next()? {
        first.extend(read_line(&lines, &line)?);
        last = line;
        if first.len() >= most.saturating_mul(2) {
            first.sort_by(|a, b| sort.compare(a, b));
            first.truncate(most);
        }
    }
    first.sort_by(|a, b| sort.compare(a, b));
    first.truncate(most);
    let SessionsEnd { count, .. } = end(&lines, &last)?;
    let rows: Vec<Row> = [titles()]
        .into_iter()
        .chain(first.iter().map(row))
        .collect();
    print(&widths().lay_out(&rows))?;
    note_more(first.len() as u64, count > first.len() as u64);
    Ok(())
}

fn titles() -> Row {
    Row::of(
        ["id", "listener", "client", "upstream", "backend"],
        ["port", "age", "idle", "in", "out"],
        ["state"],
    )
}

/// On a narrow terminal the upstream, the port and the listener are left out, in this order.
fn widths() -> Widths {
    Widths::new(terminal_width(), &[3, 5, 1])
}

fn note_more(count: u64, has_more: bool) {
    if has_more {
        let shown = counted(count, "session");
        complain(&format!("{shown} shown, and there are more\n"));
    }
}

fn show_text(mut lines: Lines<'_>) -> Result<(), String> {
    let mut rows = vec![titles()];
    let mut widths = widths();
    let mut last = lines.next()?.unwrap_or_default();
    while let Some(line) = lines.next()? {
        if let Some(session) = read_line(&lines, &line)? {
            rows.push(row(&session));
        }
        last = line;
        if rows.len() >= BLOCK {
            print(&widths.lay_out(&rows))?;
            rows.clear();
        }
    }
    let SessionsEnd { count, more } = end(&lines, &last)?;
    print(&widths.lay_out(&rows))?;
    note_more(count, more);
    Ok(())
}

fn row(session: &Session) -> Row {
    let client = clean(&session.client);
    let dash = || "-".to_owned();
    let text = |text: &Option<String>| text.as_deref().map_or_else(dash, clean);
    Row::of(
        [
            session.id.to_string(),
            clean(&session.listener),
            match session.client == session.peer {
                true => client,
                false => format!("{client} by {}", clean(&session.peer)),
            },
            clean(&session.upstream),
            text(&session.backend),
        ],
        [
            session
                .backend_port
                .map_or_else(dash, |port| port.to_string()),
            span(session.age_seconds),
            span(session.idle_seconds),
            size(session.received_bytes),
            size(session.sent_bytes),
        ],
        [clean(&session.state)],
    )
}

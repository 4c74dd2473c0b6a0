//! The lists of `tembuku top`: what there is to show, a row for each listener, backend, session,
//! event or upstream.

use super::{
    Sort, View,
    feed::{Data, Rates, backend_key, listener_key, name_of, shown},
    screen::{Style, short},
};
use crate::{
    admin::{
        OperatorSettings, earlier_settings, explain, is_good, is_well, listener_name, span,
        state_rank,
    },
    cli::{
        admin_state::Name,
        response::{Backend, Discovery, Event, Listener, Session, Upstream},
    },
    plan::reason::BackendState,
};

/// A column; the first of a list is as wide as the others allow.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    pub(super) title: &'static str,
    pub(super) width: usize,
    pub(super) is_right: bool,
}

/// One row.
#[derive(Debug)]
pub(super) struct Entry {
    /// Identifies it from one refresh to the next.
    pub(super) key: String,
    pub(super) cells: Vec<String>,
    pub(super) style: Style,
    /// What is said of it while it is selected.
    pub(super) detail: String,
    /// The backend that orders would be for.
    pub(super) backend: Option<Name>,
    /// Sessions that are on it.
    pub(super) sessions: u64,
    pub(super) is_well: bool,
    rates: Rates,
    /// The worst state is 0.
    state_rank: usize,
}

const fn left(title: &'static str, width: usize) -> Column {
    Column {
        title,
        width,
        is_right: false,
    }
}

const fn right(title: &'static str, width: usize) -> Column {
    Column {
        title,
        width,
        is_right: true,
    }
}

const BACKENDS: &[Column] = &[
    left("backend", 0),
    left("state", 15),
    right("wt", 4),
    right("sess", 6),
    right("conn/s", 6),
    right("in B/s", 6),
    right("out B/s", 7),
    right("err/s", 5),
];
const LISTENERS: &[Column] = &[
    left("listener", 0),
    left("prot", 4),
    left("upstream", 16),
    right("sess", 7),
    right("conn/s", 6),
    right("in B/s", 6),
    right("out B/s", 7),
    right("err/s", 5),
];
const SESSIONS: &[Column] = &[
    left("client", 0),
    left("backend", 24),
    right("age", 9),
    right("idle", 8),
    right("B/s", 5),
    right("in B", 5),
    right("out B", 5),
];
const EVENTS: &[Column] = &[
    left("what", 0),
    left("time", 8),
    left("reason", 12),
    right("sess", 6),
    right("after", 7),
];

const UPSTREAMS: &[Column] = &[
    left("upstream", 0),
    left("balance", 15),
    right("avail", 9),
    right("full", 5),
    right("queued", 6),
    right("held", 6),
    right("sess", 7),
    left("source", 10),
];

pub(super) fn columns(view: View) -> &'static [Column] {
    match view {
        View::Backends => BACKENDS,
        View::Listeners => LISTENERS,
        View::Sessions => SESSIONS,
        View::Events => EVENTS,
        View::Upstreams => UPSTREAMS,
    }
}

/// All rows of a view, in the order of the process.
pub(super) fn entries(data: &Data, view: View) -> Vec<Entry> {
    match view {
        View::Backends => {
            let upstreams = data.status.upstreams.iter();
            let backends = upstreams.flat_map(|u| u.backends.iter().map(move |b| (&*u.name, b)));
            backends.map(|(u, b)| backend(u, b, data)).collect()
        }
        View::Listeners => {
            let listeners = data.status.listeners.iter();
            listeners.map(|l| listener(l, data)).collect()
        }
        View::Sessions => {
            let mut sessions: Vec<_> = data.sessions.iter().collect();
            sessions.sort_by(|(a, _), (b, _)| b.age_seconds.total_cmp(&a.age_seconds));
            sessions
                .into_iter()
                .map(|(s, rate)| session(s, *rate))
                .collect()
        }
        View::Events => data.events.iter().map(event).collect(),
        View::Upstreams => data.status.upstreams.iter().map(upstream).collect(),
    }
}

/// Those that have all words of the filter, in the order that is asked for.
pub(super) fn arrange(
    mut entries: Vec<Entry>,
    filter: &str,
    sort: Sort,
    is_only_unwell: bool,
) -> Vec<Entry> {
    let words: Vec<String> = filter.split_whitespace().map(str::to_lowercase).collect();
    entries.retain(|entry| {
        let text = format!("{} {}", entry.cells.join(" "), entry.detail).to_lowercase();
        !(is_only_unwell && entry.is_well) && words.iter().all(|word| text.contains(word))
    });
    entries.sort_by(|a, b| sort_key(a, sort).total_cmp(&sort_key(b, sort)));
    entries
}

/// What comes first has the least.
#[expect(clippy::cast_precision_loss, reason = "counts below 2^53")]
fn sort_key(entry: &Entry, sort: Sort) -> f64 {
    match sort {
        Sort::File => 0.0,
        Sort::State => entry.state_rank as f64,
        Sort::Sessions => -(entry.sessions as f64),
        Sort::Connects => -entry.rates.connects,
        Sort::Bytes => -(entry.rates.from_clients + entry.rates.to_clients),
        Sort::Errors => -entry.rates.errors,
    }
}

fn style(state: BackendState) -> Style {
    match state {
        BackendState::Up => Style::Good,
        BackendState::Standby => Style::Plain,
        BackendState::Failed
        | BackendState::WrongRole
        | BackendState::Doubtful
        | BackendState::Down => Style::Bad,
        BackendState::Lagging
        | BackendState::Unproven
        | BackendState::Disabled
        | BackendState::Drained
        | BackendState::Maintenance
        | BackendState::Removed => Style::Warning,
    }
}

fn backend(upstream: &str, b: &Backend, data: &Data) -> Entry {
    let rates = data.rates.get(&backend_key(upstream, b));
    let rates_shown = rate_cells(rates);
    let name = shown(&format!("{upstream}/{}", b.address));
    let backup = if b.backup { " (backup)" } else { "" };
    let role = match b.role.as_slice() {
        // A state in which the role is a matter of course.
        [role] if b.state != "standby" => format!(" {role}"),
        _ => String::new(),
    };
    let settings = OperatorSettings {
        admin_state_since: b.admin_state_since.as_deref(),
        weight: b.weight,
        weight_in_file: b.weight_in_file,
        weight_since: b.weight_since.as_deref(),
    };
    let since = b
        .state_seconds
        .map(|s| format!("{} for {}", shown(&b.state), span(s)));
    let mut detail = vec![
        since.unwrap_or_default(),
        shown(&explain(&b.why, &settings)),
    ];
    if let Some(check) = &b.last_check {
        let (result, transcript) = (shown(&check.result), shown(&check.transcript));
        // Where it is why the backend is out, it is there already.
        let is_shown = !transcript.is_empty() && b.why.contains(&*check.transcript);
        if !is_shown {
            detail.push(format!("check: {result}, {transcript}"));
        }
    }
    detail.retain(|part| !part.is_empty());
    let is_set = b.admin_state_since.is_some() || b.weight_since.is_some();
    let [connects, from_clients, to_clients, errors] = rates_shown;
    Entry {
        key: backend_key(upstream, b),
        cells: vec![
            name + backup,
            shown(&b.state) + &shown(&role),
            b.weight.to_string(),
            b.connections.to_string(),
            connects,
            from_clients,
            to_clients,
            errors,
        ],
        style: BackendState::of_word(&b.state).map_or(Style::Warning, style),
        detail: detail.join("; "),
        backend: name_of(upstream, &b.address),
        sessions: b.connections,
        is_well: is_well(&b.state, b.full, is_set) && rates.is_none_or(|rates| rates.errors == 0.0),
        rates: rates.copied().unwrap_or_default(),
        state_rank: state_rank(&b.state),
    }
}

fn listener(l: &Listener, data: &Data) -> Entry {
    let rates = data.rates.get(&listener_key(l));
    let [connects, from_clients, to_clients, errors] = rate_cells(rates);
    let mut upstreams = data.status.upstreams.iter();
    let is_served = upstreams.any(|u| u.name == l.upstream && u.available > 0);
    let mut detail = vec![shown(&l.addresses.join(", "))];
    detail.extend(earlier_settings(l.older_plan));
    if !is_served {
        detail.push("no backend is available".to_owned());
    }
    Entry {
        key: listener_key(l),
        cells: vec![
            shown(&listener_name(&l.name, l.removed)),
            shown(&l.protocol),
            shown(&l.upstream),
            l.connections.to_string(),
            connects,
            from_clients,
            to_clients,
            errors,
        ],
        style: match (is_served, l.removed) {
            (_, true) => Style::Warning,
            (true, false) => Style::Good,
            (false, false) => Style::Bad,
        },
        detail: detail.join("; "),
        backend: None,
        sessions: l.connections,
        is_well: is_served && !l.removed && rates.is_none_or(|rates| rates.errors == 0.0),
        rates: rates.copied().unwrap_or_default(),
        state_rank: state_rank(if is_served { "up" } else { "down" }),
    }
}

#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
fn session(s: &Session, rate: Option<f64>) -> Entry {
    // Without one it is of interest why.
    let waits = ["queued", "held"].contains(&&*s.state).then_some(&*s.state);
    let backend = s.backend.as_deref();
    let place = backend.or(waits).map_or_else(|| "-".to_owned(), shown);
    let backend = backend.map_or_else(|| "-".to_owned(), shown);
    let port = s
        .backend_port
        .map_or_else(|| "-".to_owned(), |port| port.to_string());
    Entry {
        key: s.id.to_string(),
        cells: vec![
            shown(&s.client),
            place,
            span(s.age_seconds),
            span(s.idle_seconds),
            rate.map_or_else(|| "-".to_owned(), short),
            short(s.received_bytes as f64),
            short(s.sent_bytes as f64),
        ],
        style: Style::Plain,
        detail: format!(
            "session {}, listener {}, {}/{backend} from port {port}, {}",
            s.id,
            shown(&s.listener),
            shown(&s.upstream),
            shown(&s.state)
        ),
        backend: None,
        sessions: 1,
        is_well: true,
        rates: Rates {
            from_clients: rate.unwrap_or_default(),
            ..Rates::default()
        },
        state_rank: 0,
    }
}

fn event(e: &Event) -> Entry {
    let is_good = e.kind == "state" && is_good(&e.to);
    let later = e.later();
    let parts: Vec<String> = e
        .parts()
        .into_iter()
        .chain(later.into_iter().flatten())
        .collect();
    let after = e
        .next_session_seconds
        .filter(|_| e.lacked_backend())
        .map_or_else(|| "-".to_owned(), |s| format!("{s} s"));
    // 2026-11-30T02:20:51.123Z
    let clock = e.time.get(11..19).unwrap_or("-");
    Entry {
        key: format!("{} {}", e.number, e.time),
        cells: vec![
            e.change(),
            shown(clock),
            shown(&e.reason),
            e.sessions.to_string(),
            after,
        ],
        style: match (&*e.kind, is_good) {
            ("state", true) => Style::Good,
            ("state", false) => Style::Bad,
            _ => Style::Plain,
        },
        detail: format!("{}: {}", shown(&e.time), parts.join("; ")),
        backend: name_of(&e.upstream, &e.backend),
        sessions: e.sessions,
        is_well: is_good,
        rates: Rates::default(),
        state_rank: state_rank(&e.to),
    }
}

fn upstream(u: &Upstream) -> Entry {
    let (named, source) = (u.named() as u64, u.discovery.as_ref());
    let sessions: u64 = u.backends.iter().map(|b| b.connections).sum();
    let is_available = u.available == named;
    let is_known = source.is_none_or(|source| source.error.is_none() && source.held.is_empty());
    Entry {
        key: format!("u {}", u.name),
        cells: vec![
            shown(&u.name),
            shown(&u.balance),
            format!("{}/{named}", u.available),
            u.full.to_string(),
            u.queued.to_string(),
            u.held.to_string(),
            sessions.to_string(),
            source.map_or_else(|| "-".to_owned(), |source| shown(&source.kind)),
        ],
        style: match (u.available, is_available && is_known) {
            (0, _) => Style::Bad,
            (_, false) => Style::Warning,
            (_, true) => Style::Good,
        },
        detail: source.map_or_else(String::new, Discovery::text),
        backend: None,
        sessions,
        is_well: is_available && is_known && u.held == 0,
        rates: Rates::default(),
        state_rank: state_rank(if u.available > 0 { "up" } else { "down" }),
    }
}

/// Connects, bytes from clients and to them, errors; none of what has been seen once.
fn rate_cells(rates: Option<&Rates>) -> [String; 4] {
    match rates {
        None => std::array::from_fn(|_| "-".to_owned()),
        Some(r) => [r.connects, r.from_clients, r.to_clients, r.errors].map(short),
    }
}

//! `GET /api/v1/overview`: what the status page shows. Of listeners and backends it has the rows
//! that are shown, with their samples, whatever number there is.

use super::{
    fields::Fields,
    format::{is_well, state_rank},
    history::{self, Figures, History, Key, Samples, Series},
    request::{Refusal, bad},
    status::{self, Backend, Discovery, Listener, Process, Status, Upstream},
};
use crate::control::State;
use serde::Serialize;
use std::{collections::HashSet, sync::Arc};

pub(super) const PATH: &str = "/api/v1/overview";

/// Rows of a list without a `limit`, and the most that can be asked for.
const ROWS: usize = 100;
const MOST_ROWS: u64 = 2_000;

/// Which rows, and in which order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rows {
    /// All of them must be in the text of a row; in lower case.
    words: Vec<String>,
    sort: Sort,
    is_only_unwell: bool,
    limit: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    File,
    State,
    Sessions,
    Connects,
    Bytes,
    Errors,
}

impl Sort {
    /// What comes first has the least.
    #[expect(clippy::cast_precision_loss, reason = "counts below 2^53")]
    fn key(self, state_rank: usize, sessions: u64, figures: &Figures) -> f64 {
        match self {
            Self::File => 0.0,
            Self::State => state_rank as f64,
            Self::Sessions => -(sessions as f64),
            Self::Connects => -f64::from(figures.connects),
            Self::Bytes => -f64::from(figures.bytes),
            Self::Errors => -f64::from(figures.errors),
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Overview {
    process: Process,
    /// Those whose name has the words of the filter, or that have a backend among the rows.
    upstreams: List<UpstreamRow>,
    listeners: List<ListenerRow>,
    backends: List<BackendRow>,
    history: Numbers,
}

#[derive(Debug, Serialize)]
struct List<R> {
    rows: Vec<R>,
    /// Those that match, shown or not.
    matching: usize,
    count: usize,
    unwell: usize,
}

#[derive(Debug, Serialize)]
struct UpstreamRow {
    name: String,
    balance: &'static str,
    available: usize,
    /// How many backends it has, without those that were removed.
    backends: usize,
    full: usize,
    unproven: usize,
    queued: u64,
    held: u64,
    /// About its source of backends, in words.
    source: Option<String>,
}

#[derive(Debug, Serialize)]
struct ListenerRow {
    #[serde(flatten)]
    status: Listener,
    /// "up", "down" or "removed".
    state: &'static str,
    samples: Option<Samples>,
}

#[derive(Debug, Serialize)]
struct BackendRow {
    upstream: String,
    #[serde(flatten)]
    status: Backend,
    samples: Option<Samples>,
}

/// Of the samples of all rows.
#[derive(Debug, Serialize)]
struct Numbers {
    number: u64,
    interval_seconds: u64,
    omitted: usize,
}

/// A listener or backend before it is known whether it is shown.
struct Candidate<R> {
    row: R,
    /// What the words of a filter are looked for in; in lower case.
    text: String,
    is_well: bool,
    /// Even if it is well and the others are asked for.
    is_listed: bool,
    state_rank: usize,
    sessions: u64,
    figures: Figures,
}

impl Default for Rows {
    fn default() -> Self {
        Self {
            words: Vec::new(),
            sort: Sort::File,
            is_only_unwell: false,
            limit: ROWS,
        }
    }
}

impl Rows {
    pub(super) fn read(fields: &mut Fields) -> Result<Self, Refusal> {
        let filter = fields.text("filter")?.unwrap_or_default().to_lowercase();
        let sort = match fields.text("sort")?.as_deref() {
            None | Some("file") => Sort::File,
            Some("state") => Sort::State,
            Some("sessions") => Sort::Sessions,
            Some("connects") => Sort::Connects,
            Some("bytes") => Sort::Bytes,
            Some("errors") => Sort::Errors,
            Some(_) => {
                return Err(bad(
                    "there is no such order".to_owned(),
                    "`sort` is file, state, sessions, connects, bytes or errors",
                ));
            }
        };
        let limit = fields.number("limit", MOST_ROWS)?;
        Ok(Self {
            words: filter.split_whitespace().map(str::to_owned).collect(),
            sort,
            is_only_unwell: fields.flag("unwell")?,
            limit: limit.map_or(ROWS, |limit| usize::try_from(limit).unwrap_or(ROWS)),
        })
    }

    fn has_words(&self, text: &str) -> bool {
        self.words.iter().all(|word| text.contains(word.as_str()))
    }

    /// The rows that are shown.
    fn choose<R>(&self, all: Vec<Candidate<R>>) -> List<R> {
        let count = all.len();
        let unwell = all.iter().filter(|one| !one.is_well).count();
        let mut chosen = all;
        chosen.retain(|one| {
            let is_meant = one.is_listed || !(self.is_only_unwell && one.is_well);
            is_meant && self.has_words(&one.text)
        });
        let key = |one: &Candidate<R>| self.sort.key(one.state_rank, one.sessions, &one.figures);
        chosen.sort_by(|a, b| key(a).total_cmp(&key(b)));
        let matching = chosen.len();
        chosen.truncate(self.limit);
        List {
            rows: chosen.into_iter().map(|one| one.row).collect(),
            matching,
            count,
            unwell,
        }
    }
}

impl<R> List<R> {
    fn map<T>(self, to: impl FnMut(R) -> T) -> List<T> {
        List {
            rows: self.rows.into_iter().map(to).collect(),
            matching: self.matching,
            count: self.count,
            unwell: self.unwell,
        }
    }
}

/// `after`: the number of the last sample that the client has.
pub(super) fn of(state: &State, history: &History, rows: &Rows, after: u64) -> Overview {
    let Status {
        process,
        listeners,
        upstreams,
    } = status::of(state);
    let is_served = |l: &Listener| {
        let mut upstreams = upstreams.iter();
        upstreams.any(|u| u.name == l.upstream && u.available > 0)
    };
    let listeners = listeners.into_iter().map(|l| {
        let state = match (l.removed, is_served(&l)) {
            (true, _) => "removed",
            (false, true) => "up",
            (false, false) => "down",
        };
        listener(l, state, history)
    });
    let listeners = rows.choose(listeners.collect());
    let (mut headings, mut backends) = (Vec::new(), Vec::new());
    for mut u in upstreams {
        let of = std::mem::take(&mut u.backends);
        let named = of.iter().filter(|b| b.state != "removed").count();
        let name: Arc<str> = u.name.as_str().into();
        headings.push(heading(u, named));
        backends.extend(of.into_iter().map(|b| backend(&name, b, history)));
    }
    let backends = rows.choose(backends);
    let with_rows: HashSet<&str> = backends.rows.iter().map(|(name, ..)| &**name).collect();
    for one in &mut headings {
        if with_rows.contains(one.row.name.as_str()) {
            // It stands above its backends, whatever these were chosen by.
            one.text = rows.words.join(" ");
            one.is_listed = true;
        }
    }
    let samples = |series: Option<&Series>| {
        let count = history.count_after(after);
        series.map(|series| series.samples(count))
    };
    Overview {
        process,
        upstreams: rows.choose(headings),
        listeners: listeners.map(|(status, state, series)| ListenerRow {
            status,
            state,
            samples: samples(series),
        }),
        backends: backends.map(|(upstream, status, series)| BackendRow {
            upstream: upstream.to_string(),
            status,
            samples: samples(series),
        }),
        history: Numbers {
            number: history.number(),
            interval_seconds: history::INTERVAL.as_secs(),
            omitted: history.omitted(),
        },
    }
}

fn listener<'a>(
    l: Listener,
    state: &'static str,
    history: &'a History,
) -> Candidate<(Listener, &'static str, Option<&'a Series>)> {
    let name = l.name.clone();
    let series = history.series(&Key::Listener { name });
    let figures = series.map(Series::figures).unwrap_or_default();
    let parts = [&l.name, l.protocol, &l.upstream, state];
    let text = format!("{} {}", parts.join(" "), l.addresses.join(" "));
    Candidate {
        text: text.to_lowercase(),
        is_well: state == "up" && !figures.has_recent_errors,
        is_listed: false,
        state_rank: state_rank(state),
        sessions: l.connections,
        figures,
        row: (l, state, series),
    }
}

fn backend<'a>(
    upstream: &Arc<str>,
    b: Backend,
    history: &'a History,
) -> Candidate<(Arc<str>, Backend, Option<&'a Series>)> {
    let series = history.series(&Key::Backend {
        upstream: Arc::clone(upstream),
        backend: b.address.as_str().into(),
    });
    let figures = series.map(Series::figures).unwrap_or_default();
    let is_set = b.admin_state_since.is_some() || b.weight_since.is_some();
    let (resolved, roles) = (b.resolved.join(" "), b.role.join(" "));
    let name = b.name.as_deref().unwrap_or_default();
    let check = b.last_check.as_ref().map_or("", |check| check.result);
    let parts = [&**upstream, "/", &b.address, " ", name, " ", &resolved, " "];
    let more = [b.state, " ", &roles, " ", &b.why, " ", check];
    let text = parts.concat() + &more.concat();
    Candidate {
        text: text.to_lowercase(),
        is_well: is_well(b.state, b.full, is_set) && !figures.has_recent_errors,
        is_listed: false,
        state_rank: state_rank(b.state),
        sessions: b.connections,
        figures,
        row: (Arc::clone(upstream), b, series),
    }
}

/// `named`: how many backends it has, without those that were removed.
fn heading(u: Upstream, named: usize) -> Candidate<UpstreamRow> {
    let source = u.discovery.as_ref().map(Discovery::text);
    let text = format!(
        "{} {} {}",
        u.name,
        u.balance,
        source.as_deref().unwrap_or_default()
    );
    let has_fault = u
        .discovery
        .is_some_and(|of| of.error.is_some() || !of.held.is_empty());
    Candidate {
        text: text.to_lowercase(),
        is_well: u.available == named && u.held == 0 && !has_fault,
        is_listed: false,
        state_rank: 0,
        sessions: 0,
        figures: Figures::default(),
        row: UpstreamRow {
            name: u.name,
            balance: u.balance,
            available: u.available,
            backends: named,
            full: u.full,
            unproven: u.unproven,
            queued: u.queued,
            held: u.held,
            source,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(query: &str) -> Result<Rows, String> {
        let read = Fields::of_query(query).and_then(|mut fields| {
            let rows = Rows::read(&mut fields)?;
            fields.finish(&[]).map(|()| rows)
        });
        read.map_err(|Refusal(_, error, _)| error)
    }

    fn candidate(name: &'static str, is_well: bool, sessions: u64) -> Candidate<&'static str> {
        Candidate {
            text: name.to_owned(),
            is_well,
            is_listed: false,
            state_rank: usize::from(is_well),
            sessions,
            figures: Figures::default(),
            row: name,
        }
    }

    #[test]
    fn rows_are_filtered_sorted_and_limited() {
        let all = || {
            vec![
                candidate("cache/a up", true, 1),
                candidate("cache/b down", false, 0),
                candidate("web/c up", true, 9),
            ]
        };
        for (query, expected, matching) in [
            ("", &["cache/a up", "cache/b down", "web/c up"][..], 3),
            ("filter=UP%20cache", &["cache/a up"], 1),
            ("unwell=true", &["cache/b down"], 1),
            ("sort=state&limit=1", &["cache/b down"], 3),
            (
                "sort=sessions",
                &["web/c up", "cache/a up", "cache/b down"],
                3,
            ),
            ("limit=0", &[], 3),
        ] {
            let list = rows(query).expect(query).choose(all());
            assert_eq!(list.rows, expected, "{query}");
            assert_eq!((list.matching, list.count, list.unwell), (matching, 3, 1));
        }
    }

    #[test]
    fn a_wrong_query_is_refused() {
        for (query, error) in [
            ("sort=name", "there is no such order"),
            ("limit=2001", "`limit` is \"2001\""),
            ("unwell=1", "`unwell` is \"1\""),
            ("filter=", "`filter` is \"\""),
        ] {
            assert_eq!(rows(query), Err(error.to_owned()));
        }
    }
}

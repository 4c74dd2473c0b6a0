//! Figures as a person reads them, on the page and in `tembuku status`.

use crate::plan::{
    counted,
    reason::{BackendState, Condition},
};
use std::time::Duration;

/// How much of what there may be is there: of connections, of flows, or of both, by what is
/// listened for.
pub fn load<'a>(
    connections: u64,
    max_connections: u64,
    flows: u64,
    max_flows: u64,
    protocols: impl Iterator<Item = &'a str>,
) -> String {
    let (udp, tcp): (Vec<_>, Vec<_>) = protocols.partition(|protocol| *protocol == "udp");
    let connections = format!("{connections} of {max_connections} connections");
    let flows = format!("{flows} of {max_flows} flows");
    match (tcp.is_empty(), udp.is_empty()) {
        (_, true) => connections,
        (true, false) => flows,
        (false, false) => format!("{connections}, {flows}"),
    }
}

/// How an upstream is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Availability {
    pub available: u64,
    /// Of so many backends.
    pub total: usize,
    /// Of those that are available.
    pub full: u64,
    /// Of the others: their connects have failed, and sessions try them again.
    pub unproven: u64,
    /// Of the others: no check has had a result since the start, or since they were put back.
    pub unchecked: usize,
    /// Sessions that wait for a place.
    pub queued: u64,
    /// Sessions that wait for a backend.
    pub held: u64,
}

/// The same in words.
pub fn availability(of: &Availability) -> String {
    let mut text = format!("{} of {} available", of.available, of.total);
    for (count, what) in [
        (of.full, "full"),
        (of.unproven, "unproven (tried)"),
        (of.unchecked as u64, "not checked yet"),
        (of.queued, "queued"),
        (of.held, "held"),
    ] {
        if count > 0 {
            text += &format!(", {count} {what}");
        }
    }
    text
}

/// What is shown of a source of backends.
pub struct SourceFigures<'a, H> {
    pub kind: &'a str,
    pub backends: u64,
    pub version: &'a str,
    /// Of the last answer; `None`: there has been none.
    pub age_seconds: Option<u64>,
    pub is_old: bool,
    pub error: Option<&'a str>,
    /// Backends that stay for now although they are not in the answer, each with its end.
    pub held: H,
}

/// A source of backends in a line.
pub fn source_text<'a>(
    figures: &SourceFigures<'_, impl Iterator<Item = (&'a str, Option<&'a str>)> + Clone>,
) -> String {
    /// So many of those that are held are named.
    const MOST: usize = 5;
    let SourceFigures {
        kind,
        backends,
        version,
        age_seconds,
        is_old,
        error,
        held,
    } = figures;
    let mut text = format!("source {kind}: {}", counted(*backends, "backend"));
    if !version.is_empty() {
        text += &format!(", version {version}");
    }
    text += &match age_seconds {
        Some(age) => format!(", answered {age} s ago"),
        None => ", has not answered".to_owned(),
    };
    if *is_old {
        text += " (an earlier process)";
    }
    if let Some(error) = error {
        text += &format!(", error: {error}");
    }
    let count = held.clone().count();
    if count > 0 {
        let named = held.clone().take(MOST).map(|(address, until)| match until {
            Some(until) => format!("{address} until {until}"),
            None => address.to_owned(),
        });
        let named: Vec<String> = named.collect();
        let more = if count > MOST { ", ..." } else { "" };
        text += &format!("; held {count}: {}{more}", named.join(", "));
    }
    text
}

/// A listener that may be in the configuration no more.
pub fn listener_name(name: &str, is_removed: bool) -> String {
    match is_removed {
        true => format!("{name} (removed)"),
        false => name.to_owned(),
    }
}

/// The sessions of a listener that began under an older plan, if there are any.
pub fn earlier_settings(sessions: u64) -> Option<String> {
    let count = || counted(sessions, "session");
    (sessions > 0).then(|| format!("{} with earlier settings", count()))
}

/// Of counts by reason, those that are not 0, the largest first.
pub fn reasons<'a>(counts: impl Iterator<Item = (&'a str, u64)>) -> String {
    let mut counts: Vec<_> = counts.filter(|(_, n)| *n > 0).collect();
    counts.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    let words: Vec<String> = counts
        .iter()
        .map(|(word, n)| format!("{word} {n}"))
        .collect();
    words.join(", ")
}

#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" {
                format!("{bytes} B")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// The states of backends, the worst first.
const STATES: [BackendState; BackendState::COUNT] = [
    BackendState::WrongRole,
    BackendState::Doubtful,
    BackendState::Failed,
    BackendState::Down,
    BackendState::Lagging,
    BackendState::Unproven,
    BackendState::Removed,
    BackendState::Maintenance,
    BackendState::Drained,
    BackendState::Disabled,
    BackendState::Standby,
    BackendState::Up,
];

/// How good a state is: 0 for the worst, and for one of another version.
pub fn state_rank(state: &str) -> usize {
    let known = STATES.iter().position(|known| known.word() == state);
    known.unwrap_or_default()
}

/// Of a backend; a state of another version is none.
pub fn is_good(state: &str) -> bool {
    let known = BackendState::of_word(state);
    known.is_some_and(|state| state.condition() == Condition::Good)
}

/// Whether there is nothing to be done about a backend: it is in service or in the other role, has
/// a place, and an operator has set nothing.
pub fn is_well(state: &str, is_full: bool, is_set_by_operator: bool) -> bool {
    is_good(state) && !is_full && !is_set_by_operator
}

/// A span of time, as precise as is of use.
pub fn span(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.1}s"),
        s => {
            let whole = Duration::try_from_secs_f64(s.trunc()).unwrap_or(Duration::MAX);
            let text = humantime::format_duration(whole).to_string();
            // Two units: "3days 4h", "5m 2s".
            text.split(' ').take(2).collect::<Vec<_>>().join(" ")
        }
    }
}

/// What an operator has set for a backend, as it is shown beside its state.
pub struct OperatorSettings<'a> {
    pub admin_state_since: Option<&'a str>,
    pub weight: u64,
    pub weight_in_file: u64,
    pub weight_since: Option<&'a str>,
}

/// Why a backend is in its state, with what the operator has set.
pub fn explain(why: &str, settings: &OperatorSettings<'_>) -> String {
    let since = settings
        .admin_state_since
        .map(|since| format!("since {since}"));
    let weight = settings.weight_since.map(|since| {
        let (weight, in_file) = (settings.weight, settings.weight_in_file);
        format!("weight {weight} by operator, {in_file} in the file, since {since}")
    });
    let why = Some(why.to_owned()).filter(|why| !why.is_empty());
    let parts: Vec<String> = [why, since, weight].into_iter().flatten().collect();
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protocol_without_a_listener_is_not_shown() {
        for (protocols, expected) in [
            (&["tcp"][..], "1 of 2 connections"),
            (&["udp", "udp"], "3 of 4 flows"),
            (&["udp", "tcp"], "1 of 2 connections, 3 of 4 flows"),
            // A process of a version without UDP.
            (&[""], "1 of 2 connections"),
            (&[], "1 of 2 connections"),
        ] {
            let text = load(1, 2, 3, 4, protocols.iter().copied());
            assert_eq!(text, expected, "{protocols:?}");
        }
    }

    #[test]
    fn what_sessions_try_is_shown_beside_what_is_available() {
        let none = Availability {
            total: 3,
            ..Availability::default()
        };
        assert_eq!(availability(&none), "0 of 3 available");
        let some = Availability {
            available: 1,
            full: 1,
            unproven: 2,
            unchecked: 1,
            queued: 4,
            held: 5,
            ..none
        };
        let text = "1 of 3 available, 1 full, 2 unproven (tried), 1 not checked yet, 4 queued, \
                    5 held";
        assert_eq!(availability(&some), text);
    }

    #[test]
    fn every_state_has_a_rank() {
        let mut ranks: Vec<_> = BackendState::ALL
            .iter()
            .map(|state| state_rank(state.word()))
            .collect();
        ranks.sort_unstable();
        assert!(ranks.into_iter().eq(0..BackendState::COUNT));
    }

    #[test]
    fn the_most_frequent_reason_comes_first() {
        let counts = [("late", 1), ("truncated", 0), ("no_backend", 7)];
        assert_eq!(reasons(counts.into_iter()), "no_backend 7, late 1");
        assert_eq!(reasons([("late", 0)].into_iter()), "");
    }

    #[test]
    fn times_are_short() {
        for (seconds, text) in [
            (0.04, "0.0s"),
            (9.94, "9.9s"),
            (10.9, "10s"),
            (3_725.0, "1h 2m"),
            (1e6, "11days 13h"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn sizes_are_in_units_of_1024() {
        for (bytes, expected) in [
            (1_023, "1023 B"),
            (1_536, "1.5 KiB"),
            (1 << 50, "1024.0 TiB"),
        ] {
            assert_eq!(size(bytes), expected);
        }
    }
}

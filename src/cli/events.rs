//! `tembuku events`: the journal of a running process.

use super::{
    client::{AdminClient, At},
    code, complain,
    table::{terminal_width, wrap_after_first},
};
use crate::{
    cli::response::{Event, Events, clean},
    plan::counted,
};
use clap::Args;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    process::ExitCode,
    time::{Duration, Instant},
};

/// How long a request waits for the next event.
const WAIT: Duration = Duration::from_secs(20);
/// Between two attempts to reach a process that does not answer any more.
const PAUSE: Duration = Duration::from_secs(1);
/// For how long: a restart takes less.
const PATIENCE: Duration = Duration::from_secs(30);
/// No journal is longer.
const MOST_KNOWN: usize = 1_000;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Go on with what happens from now on, also after a restart of the process
    #[arg(short, long)]
    follow: bool,
    /// One JSON object on each line, as in /api/v1/events
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(super) at: At,
}

pub(super) fn run(args: &Arguments) -> ExitCode {
    code(AdminClient::find(&args.at).and_then(|client| show(&client, args)))
}

fn show(client: &AdminClient, args: &Arguments) -> Result<(), String> {
    let mut printer = Printer {
        is_json: args.json,
        width: terminal_width(),
        shown: BTreeMap::new(),
    };
    let mut page = client.events(None, Duration::ZERO)?;
    loop {
        if page.lost > 0 {
            let lost = page.lost;
            complain(&format!(
                "warning: {} missing, the journal was faster\n",
                counted(lost, "event")
            ));
        }
        for event in &page.events {
            if !printer.print(event)? {
                return Ok(());
            }
        }
        if !args.follow {
            return Ok(());
        }
        page = next(client, &page.cursor)?;
    }
}

/// The next page; a process that is restarted is waited for.
fn next(client: &AdminClient, cursor: &str) -> Result<Events, String> {
    let began = Instant::now();
    let mut has_complained = false;
    loop {
        let error = match client.events(Some(cursor), WAIT) {
            Ok(page) => return Ok(page),
            Err(error) => error,
        };
        // A wait that was cut short is no failure of the process: others wanted its connection.
        if began.elapsed() > PATIENCE + WAIT {
            return Err(error);
        }
        if !std::mem::replace(&mut has_complained, true) {
            complain(&format!(
                "warning: the process does not answer any more, trying again for {PATIENCE:?}\n"
            ));
        }
        std::thread::sleep(PAUSE);
    }
}

struct Printer {
    is_json: bool,
    /// That of the terminal, if it is one.
    width: Option<usize>,
    /// What has been shown of the later parts of an event, by its number and time.
    shown: BTreeMap<(u64, String), [bool; 2]>,
}

impl Printer {
    /// Returns whether anything reads it.
    fn print(&mut self, value: &Value) -> Result<bool, String> {
        let event = Event::read(value)?;
        let line = match self.is_json {
            true => format!("{value}\n"),
            false => match (self.lines(&event), self.width) {
                // A line in a file or a pipe is an event.
                (line, None) => line,
                (line, Some(_)) if line.is_empty() => line,
                (line, Some(width)) => wrap_after_first(line.trim_end(), width),
            },
        };
        let mut out = io::stdout().lock();
        match out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(e) => Err(format!("error: cannot write to standard output: {e}\n")),
        }
    }

    /// An event that is shown for the first time is one line; what is added later, another.
    fn lines(&mut self, event: &Event) -> String {
        let key = (event.number, event.time.clone());
        let later = event.later();
        let known = [later[0].is_some(), later[1].is_some()];
        let before = self.shown.insert(key, known);
        if self.shown.len() > MOST_KNOWN {
            self.shown.pop_first();
        }
        let mut parts: Vec<String> = match before {
            None => event.parts(),
            Some(_) => Vec::new(),
        };
        let was_shown = before.unwrap_or_default();
        let added = later.into_iter().zip(was_shown).filter(|(_, shown)| !shown);
        parts.extend(added.filter_map(|(part, _)| part));
        match parts.is_empty() {
            true => String::new(),
            false => format!("{}: {}\n", event.title(), parts.join("; ")),
        }
    }
}

impl Event {
    fn title(&self) -> String {
        format!("{} {}", clean(&self.time), self.change())
    }

    /// What has changed, and how.
    pub(super) fn change(&self) -> String {
        let (upstream, backend) = (clean(&self.upstream), clean(&self.backend));
        // A host name stands for several addresses.
        let address = match self.address == self.backend {
            true => String::new(),
            false => format!(" ({})", clean(&self.address)),
        };
        let (from, to) = (clean(&self.from), clean(&self.to));
        let kind = match &*self.kind {
            "state" => String::new(),
            kind => clean(kind) + " ",
        };
        // It may concern the upstream as a whole, or the process.
        let place = match (
            upstream.is_empty(),
            backend.is_empty() && address.is_empty(),
        ) {
            (true, _) => String::new(),
            (false, true) => upstream + " ",
            (false, false) => format!("{upstream}/{backend}{address} "),
        };
        format!("{place}{kind}{from} -> {to}")
    }

    /// The fields that an event has from its beginning.
    pub(super) fn parts(&self) -> Vec<String> {
        let reason = clean(&self.reason);
        let reason = match &self.transcript {
            // The state says the same, or what was seen begins with it.
            Some(saw) if self.reason == self.to || saw.starts_with(&self.reason) => clean(saw),
            Some(saw) => format!("{reason}, {}", clean(saw)),
            None => reason,
        };
        let reason = match (&*self.reason, &*self.to) {
            ("operator", "down") => format!("{reason}, until a check has passed"),
            ("no_replica", _) => "no replica is up, so the primary serves readers".to_owned(),
            ("replica_up", _) => "a replica is up again".to_owned(),
            ("no_primary", _) => "the primary cannot serve readers any more".to_owned(),
            _ => reason,
        };
        let mut parts = vec![reason];
        if self.doubt_seconds > 0.0 {
            parts.push(format!("in doubt for {} s", self.doubt_seconds));
        }
        match self.sessions {
            0 => {}
            n => parts.push(counted(n, "session")),
        }
        parts
    }

    /// The fields that are added later.
    pub(super) fn later(&self) -> [Option<String>; 2] {
        let closed = self
            .last_session_closed_seconds
            .filter(|_| self.sessions > 0);
        let closed = closed.map(|s| format!("last session ended after {s} s"));
        let next = self.next_session_seconds.map(|s| {
            let on = clean(self.next_session_on.as_deref().unwrap_or("-"));
            if !self.lacked_backend() {
                return format!("next session after {s} s on {on}, no client came before");
            }
            let waited = match self.next_session_waited_seconds {
                None | Some(0.0) => String::new(),
                Some(waited) => format!(", which had waited for {waited} s"),
            };
            let unserved = match self.unserved_clients {
                None | Some(0) => String::new(),
                Some(n) => format!("; {} got none before", counted(n, "client")),
            };
            format!("next session after {s} s on {on}{waited}{unserved}")
        });
        [closed, next]
    }

    /// Whether, as far as is known, a client was without a backend until the next session. Clients
    /// come when they come: otherwise that time is not one that a client has lost.
    pub(super) fn lacked_backend(&self) -> bool {
        let has_waited = self.next_session_waited_seconds.is_none_or(|s| s > 0.0);
        has_waited || self.unserved_clients.is_some_and(|n| n > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A change of the process as a whole.
    fn of_reload(event: &Value) -> Value {
        let mut reload = event.clone();
        for (field, value) in [
            ("kind", "reload"),
            ("upstream", ""),
            ("backend", ""),
            ("address", ""),
            ("from", "1a"),
            ("to", "2b"),
            ("reason", "reloaded"),
            ("transcript", "no changes"),
        ] {
            reload[field] = json!(value);
        }
        for (field, value) in [
            ("number", json!(5)),
            ("sessions", json!(0)),
            ("doubt_seconds", json!(0.0)),
        ] {
            reload[field] = value;
        }
        reload["next_session_seconds"] = Value::Null;
        reload
    }

    #[test]
    fn what_is_added_later_is_a_line_of_its_own() {
        let mut printer = Printer {
            is_json: false,
            width: None,
            shown: BTreeMap::new(),
        };
        let mut show = |value: &Value| printer.lines(&Event::read(value).expect("every field"));
        let mut event = json!({
            "number": 3, "revision": 9, "kind": "state", "time": "T", "upstream": "u",
            "backend": "b.test:1",
            "address": "10.0.0.1:1", "from": "up", "to": "down", "reason": "refused",
            "transcript": "connecting: \u{1b}[31m", "doubt_seconds": 0.25, "sessions": 2,
            "last_session_closed_seconds": null, "next_session_seconds": 0.5,
            "next_session_on": "c:1",
        });
        let title = "T u/b.test:1 (10.0.0.1:1) up -> down";
        let first = "refused, connecting: \u{fffd}[31m; in doubt for 0.25 s; 2 sessions; next \
                     session after 0.5 s on c:1";
        assert_eq!(show(&event), format!("{title}: {first}\n"));
        assert_eq!(show(&event), "");
        event["last_session_closed_seconds"] = json!(1.5);
        let added = "last session ended after 1.5 s";
        assert_eq!(show(&event), format!("{title}: {added}\n"));
        let mut many = event.clone();
        for (field, value) in [("kind", "backends"), ("backend", ""), ("address", "")] {
            many[field] = json!(value);
        }
        let many = Event::read(&many).expect("every field").change();
        assert_eq!(many, "u backends up -> down");
        let mut reload = of_reload(&event);
        assert_eq!(show(&reload), "T reload 1a -> 2b: reloaded, no changes\n");
        reload["number"] = json!(6);
        reload["reason"] = json!("2b");
        assert_eq!(show(&reload), "T reload 1a -> 2b: no changes\n");
        for (waited, unserved, text) in [
            (
                0.0,
                0,
                "; next session after 0.5 s on c:1, no client came before\n",
            ),
            (
                0.0,
                2,
                "; next session after 0.5 s on c:1; 2 clients got none before\n",
            ),
            (
                0.25,
                0,
                "; next session after 0.5 s on c:1, which had waited for 0.25 s\n",
            ),
            (
                0.25,
                1,
                "on c:1, which had waited for 0.25 s; 1 client got none before\n",
            ),
        ] {
            event["number"] = json!(event["number"].as_u64().unwrap_or_default() + 10);
            event["next_session_waited_seconds"] = json!(waited);
            event["unserved_clients"] = json!(unserved);
            let line = show(&event);
            assert!(line.ends_with(text), "{line}");
        }
        for (reason, saw, text) in [
            (
                "superseded",
                "superseded by c:1 (master_repl_offset)",
                "down: superseded by c:1 (",
            ),
            (
                "no_replica",
                "",
                "no replica is up, so the primary serves readers",
            ),
        ] {
            let mut other = event.clone();
            other["reason"] = json!(reason);
            other["transcript"] = json!((!saw.is_empty()).then_some(saw));
            let parts = Event::read(&other).expect("every field").parts();
            assert!(format!("down: {}", parts[0]).contains(text), "{parts:?}");
        }
        event["number"] = json!(4);
        assert!(show(&event).contains("2 sessions; last session ended after 1.5 s; next"));
    }
}

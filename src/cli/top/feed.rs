//! What `tembuku top` shows, as the process tells it: a thread asks every second, and carries out
//! orders.

use super::View;
use crate::{
    cli::{
        admin_state::{self, Name},
        client::{AdminClient, encode},
        response::{Backend, Event, Listener, Session, Status, clean},
        sessions, weight,
    },
    upstream::pool::AdminState,
};
use std::{
    collections::HashMap,
    io,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    time::{Duration, Instant},
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

/// Between two questions.
const PERIOD: Duration = Duration::from_secs(1);
/// Sessions that are asked for: to list them takes time of the process.
pub(super) const MOST_SESSIONS: u64 = 2_000;

/// What is asked for besides the status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wants {
    pub(super) view: View,
    /// Whose sessions; `None`: all.
    pub(super) backend: Option<Name>,
}

/// What an operator has confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Order {
    Admin(Name, AdminState),
    /// `None`: as in the file.
    Weight(Name, Option<u32>),
}

#[derive(Debug)]
pub(super) enum Update {
    Data(Box<Data>),
    /// What an order came to, or why there are no data, in one line.
    Message(String),
    Failure(String),
}

#[derive(Debug)]
pub(super) struct Data {
    pub(super) status: Status,
    /// By the names of [`listener_key`] and [`backend_key`]; empty at first.
    pub(super) rates: HashMap<String, Rates>,
    /// Where they were asked for, with bytes per second.
    pub(super) sessions: Vec<(Session, Option<f64>)>,
    /// Whether there are more sessions.
    pub(super) is_more: bool,
    /// The newest first.
    pub(super) events: Vec<Event>,
}

/// Per second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) connects: f64,
    /// Bytes.
    pub(super) from_clients: f64,
    pub(super) to_clients: f64,
    pub(super) errors: f64,
}

/// Counters that only grow, and bytes of sessions, at one moment.
struct Before {
    at: Instant,
    totals: HashMap<String, [u64; 4]>,
    bytes: HashMap<u64, u64>,
}

enum Task {
    Want(Wants),
    Order(Order),
}

/// The side of the screen. The thread ends with it.
pub(super) struct Feed {
    tasks: Sender<Task>,
    wants: Wants,
}

impl Feed {
    pub(super) fn start(
        client: AdminClient,
        wants: Wants,
    ) -> io::Result<(Self, UnboundedReceiver<Update>)> {
        let (tasks, receive) = channel();
        let (send, updates) = super::channel();
        let first = wants.clone();
        std::thread::Builder::new()
            .name("feed".to_owned())
            .spawn(move || run(&client, first, &receive, &send))?;
        Ok((Self { tasks, wants }, updates))
    }

    /// From now on.
    pub(super) fn want(&mut self, wants: Wants) {
        if wants != self.wants {
            self.wants = wants.clone();
            // A thread that has ended is noticed by its updates.
            let _ = self.tasks.send(Task::Want(wants));
        }
    }

    pub(super) fn order(&self, order: Order) {
        let _ = self.tasks.send(Task::Order(order));
    }
}

fn run(
    client: &AdminClient,
    mut wants: Wants,
    tasks: &Receiver<Task>,
    updates: &UnboundedSender<Update>,
) {
    let mut before = None;
    loop {
        let update = match look(client, &wants, &mut before) {
            Ok(data) => Update::Data(Box::new(data)),
            Err(why) => Update::Failure(one_line(&why)),
        };
        if updates.send(update).is_err() {
            return;
        }
        match tasks.recv_timeout(PERIOD) {
            Ok(Task::Want(next)) => wants = next,
            Ok(Task::Order(order)) => {
                let what = carry_out(client, &order);
                let message = what.unwrap_or_else(|why| one_line(&why));
                if updates.send(Update::Message(message)).is_err() {
                    return;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// An error is a message of several lines.
fn one_line(why: &str) -> String {
    let lines = why
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with("hint: "));
    lines.collect::<Vec<_>>().join(" ")
}

fn carry_out(client: &AdminClient, order: &Order) -> Result<String, String> {
    match order {
        Order::Admin(name, state) => admin_state::set(client, name, *state),
        Order::Weight(name, to) => weight::set(client, name, *to),
    }
}

/// One look at the process, without rates: the first.
pub(super) fn look_once(client: &AdminClient, wants: &Wants) -> Result<Data, String> {
    look(client, wants, &mut None)
}

fn look(client: &AdminClient, wants: &Wants, before: &mut Option<Before>) -> Result<Data, String> {
    let (status, _) = client.status()?;
    let at = Instant::now();
    let (sessions, is_more) = match wants.view {
        View::Sessions => {
            let backend = wants.backend.as_ref();
            let filter = backend.map_or_else(String::new, |name| {
                let (upstream, backend) = name.parts();
                format!("upstream={}&backend={}&", encode(upstream), encode(backend))
            });
            let query = format!("{filter}limit={MOST_SESSIONS}");
            sessions::list(client, &query)?
        }
        View::Backends | View::Listeners | View::Events | View::Upstreams => (Vec::new(), false),
    };
    let events = match wants.view {
        View::Events => {
            let page = client.events(None, Duration::ZERO)?;
            let events = page.events.iter().rev().map(Event::read);
            events.collect::<Result<_, _>>()?
        }
        View::Backends | View::Listeners | View::Sessions | View::Upstreams => Vec::new(),
    };
    let now = Before {
        at,
        totals: totals(&status),
        bytes: sessions.iter().map(|s| (s.id, bytes(s))).collect(),
    };
    let rates = before
        .as_ref()
        .map(|before| rates(before, &now))
        .unwrap_or_default();
    let sessions = sessions.into_iter().map(|session| {
        let rate = before.as_ref().and_then(|before| {
            let known = before.bytes.get(&session.id)?;
            let passed = at.saturating_duration_since(before.at);
            Some(rate(*known, bytes(&session), passed))
        });
        (session, rate)
    });
    let data = Data {
        rates,
        sessions: sessions.collect(),
        is_more,
        events,
        status,
    };
    *before = Some(now);
    Ok(data)
}

pub(super) fn listener_key(l: &Listener) -> String {
    format!("l {}", l.name)
}

pub(super) fn backend_key(upstream: &str, b: &Backend) -> String {
    format!("b {upstream}/{}", b.address)
}

fn totals(status: &Status) -> HashMap<String, [u64; 4]> {
    let listeners = status.listeners.iter().map(|l| {
        let totals = [l.accepted, l.received_bytes, l.sent_bytes, l.errors_total];
        (listener_key(l), totals)
    });
    let backends = status.upstreams.iter().flat_map(|u| {
        u.backends.iter().map(|b| {
            // What is sent to a backend came from clients.
            let totals = [
                b.connections_total,
                b.sent_bytes,
                b.received_bytes,
                b.connect_errors_total,
            ];
            (backend_key(&u.name, b), totals)
        })
    });
    listeners.chain(backends).collect()
}

/// Of what was there before.
fn rates(before: &Before, now: &Before) -> HashMap<String, Rates> {
    let passed = now.at.saturating_duration_since(before.at);
    let rates = now.totals.iter().filter_map(|(key, totals)| {
        let known = before.totals.get(key)?;
        let of = |n: usize| rate(known[n], totals[n], passed);
        let rates = Rates {
            connects: of(0),
            from_clients: of(1),
            to_clients: of(2),
            errors: of(3),
        };
        Some((key.clone(), rates))
    });
    rates.collect()
}

/// A counter that starts again, as after a restart, has none once.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
fn rate(before: u64, after: u64, passed: Duration) -> f64 {
    match passed.as_secs_f64() {
        0.0 => 0.0,
        seconds => after.saturating_sub(before) as f64 / seconds,
    }
}

fn bytes(session: &Session) -> u64 {
    session.received_bytes + session.sent_bytes
}

/// A backend as the commands name it.
pub(super) fn name_of(upstream: &str, backend: &str) -> Option<Name> {
    format!("{upstream}/{backend}").parse().ok()
}

/// As it may be shown in a terminal.
pub(super) fn shown(text: &str) -> String {
    clean(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_between_two_looks() {
        let at = Instant::now();
        let of = |at, totals| Before {
            at,
            totals: HashMap::from([("l a".to_owned(), totals)]),
            bytes: HashMap::new(),
        };
        let before = of(at, [10, 1_000, 0, 5]);
        let after = of(at + Duration::from_secs(2), [14, 3_000, 0, 0]);
        let expected = Rates {
            connects: 2.0,
            from_clients: 1_000.0,
            to_clients: 0.0,
            errors: 0.0,
        };
        assert_eq!(rates(&before, &after)["l a"], expected);
    }

    /// What came from clients has gone to backends.
    #[test]
    fn bytes_have_the_same_direction_in_every_row() {
        let status = serde_json::json!({
            "process": { "version": "1", "state": "running", "pid": 7, "connections": 0,
                "flows": 0 },
            "listeners": [{ "name": "l", "protocol": "tcp", "connections": 0,
                "received_bytes": 10, "sent_bytes": 20 }],
            "upstreams": [{ "name": "u", "backends": [{ "address": "b", "state": "up",
                "admin_state": "ready", "awaits_check": false, "connections": 0,
                "received_bytes": 20, "sent_bytes": 10 }] }],
        });
        let status = crate::cli::response::read(&status.to_string()).expect("a status");
        let totals = totals(&status);
        assert_eq!(totals["l l"], [0, 10, 20, 0]);
        assert_eq!(totals["b u/b"], totals["l l"]);
    }

    #[test]
    fn an_error_is_one_line() {
        let error = "error: cannot reach it:\n  gone\n  hint: start it\n";
        assert_eq!(one_line(error), "error: cannot reach it: gone");
    }
}

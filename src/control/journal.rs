//! The last changes of backends' states, for whoever asks what happened.

use crate::upstream::backend::Backend;
use serde::Serialize;
use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Older ones are in the log.
const MOST: usize = 256;

#[derive(Debug, Clone, Serialize)]
pub struct Event {
    pub time: String,
    pub upstream: String,
    pub backend: String,
    /// Which of its addresses.
    pub address: String,
    pub from: &'static str,
    pub to: &'static str,
    pub reason: &'static str,
    /// What the check saw; `None` for what connects of sessions told.
    pub transcript: Option<String>,
    /// From the first doubt to the verdict.
    pub doubt_seconds: f64,
    /// How many sessions were on it then.
    pub sessions: u64,
    /// From the verdict until the last of them was over; `None` while that has not happened.
    pub last_session_closed_seconds: Option<f64>,
    /// From the verdict until another backend had taken a session, and which; `None` while that has
    /// not happened.
    pub next_session_seconds: Option<f64>,
    pub next_session_on: Option<String>,
}

#[derive(Debug, Default)]
pub struct Journal(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    events: VecDeque<Entry>,
    /// The number of the first of them.
    first: u64,
}

#[derive(Debug)]
struct Entry {
    event: Event,
    /// `None` once something else has happened to that address.
    holds: Option<DropGuard>,
}

/// An event that has been written down, and may get more to say.
#[derive(Debug)]
pub struct Recorded {
    number: u64,
    /// Something else has happened to that address since, or so much elsewhere that this is
    /// forgotten.
    pub superseded: CancellationToken,
}

impl Event {
    /// That happens now.
    pub fn new(upstream: &str, backend: &Backend, from: &'static str, to: &'static str) -> Self {
        Self {
            time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            upstream: upstream.to_owned(),
            backend: backend.text().to_string(),
            address: backend.place.to_string(),
            from,
            to,
            reason: "",
            transcript: None,
            doubt_seconds: 0.0,
            sessions: backend.active(),
            last_session_closed_seconds: None,
            next_session_seconds: None,
            next_session_on: None,
        }
    }

    pub fn doubted_for(mut self, doubt: Duration) -> Self {
        self.doubt_seconds = seconds(doubt);
        self
    }
}

/// To the millisecond: more digits would be noise.
pub fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e3).round() / 1e3
}

impl Journal {
    pub fn record(&self, event: Event) -> Recorded {
        let mut book = self.book();
        if book.events.len() == MOST {
            book.events.pop_front();
            book.first += 1;
        }
        let number = book.first + book.events.len() as u64;
        let superseded = CancellationToken::new();
        let same = |e: &Event| e.address == event.address && e.upstream == event.upstream;
        if let Some(last) = book.events.iter_mut().rfind(|entry| same(&entry.event)) {
            last.holds = None;
        }
        book.events.push_back(Entry {
            event,
            holds: Some(superseded.clone().drop_guard()),
        });
        Recorded { number, superseded }
    }

    /// A change that sessions noticed by connecting.
    pub fn passive(
        &self,
        upstream: &str,
        backend: &Backend,
        from: &'static str,
        to: &'static str,
        reason: &'static str,
        doubted_for: Duration,
    ) -> Recorded {
        let event = Event::new(upstream, backend, from, to).doubted_for(doubted_for);
        self.record(Event { reason, ..event })
    }

    /// There is more to say about an event, if it is still remembered.
    pub fn add(&self, recorded: &Recorded, change: impl FnOnce(&mut Event)) {
        let mut book = self.book();
        let Some(index) = recorded.number.checked_sub(book.first) else {
            return;
        };
        if let Some(event) = usize::try_from(index)
            .ok()
            .and_then(|i| book.events.get_mut(i))
        {
            change(&mut event.event);
        }
    }

    /// The newest last.
    pub fn events(&self) -> Vec<Event> {
        let book = self.book();
        book.events
            .iter()
            .map(|entry| entry.event.clone())
            .collect()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(n: usize, address: &str) -> Event {
        Event {
            time: n.to_string(),
            upstream: String::new(),
            backend: String::new(),
            address: address.to_owned(),
            from: "up",
            to: "down",
            reason: "timeout",
            transcript: None,
            doubt_seconds: 0.0,
            sessions: 0,
            last_session_closed_seconds: None,
            next_session_seconds: None,
            next_session_on: None,
        }
    }

    #[test]
    fn the_oldest_make_room() {
        let journal = Journal::default();
        let recorded: Vec<_> = (0..MOST + 3)
            .map(|n| journal.record(event(n, "a")))
            .collect();
        for (n, one) in recorded.iter().enumerate() {
            journal.add(one, |event| event.sessions = n as u64);
        }
        let events = journal.events();
        assert_eq!(events.len(), MOST);
        for (event, n) in events.iter().zip(3..) {
            assert_eq!((event.time.parse(), event.sessions), (Ok(n), n));
        }
    }

    #[test]
    fn the_next_event_of_an_address_supersedes_the_last() {
        let journal = Journal::default();
        let [one, other, next] = ["a", "b", "a"].map(|address| journal.record(event(0, address)));
        let superseded = [one, other, next].map(|r| r.superseded.is_cancelled());
        assert_eq!(superseded, [true, false, false]);
    }
}

//! The last changes of backends' states, for operators.

use crate::{plan::reason::BackendState, upstream::pool::Transition};
use serde::Serialize;
use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

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
    /// What the check saw; `None` for other causes.
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
    events: VecDeque<Event>,
    /// The number of the first of them.
    first: u64,
}

/// Identifies an event, also after it has been dropped from the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Number(u64);

impl Event {
    pub(super) fn new(upstream: &str, transition: &Transition) -> Self {
        let state = |state: Option<BackendState>| state.map_or("removed", BackendState::word);
        let backend = &transition.backend;
        let time = SystemTime::now() - transition.at.elapsed();
        Self {
            time: humantime::format_rfc3339_millis(time).to_string(),
            upstream: upstream.to_owned(),
            backend: backend.text().to_string(),
            address: backend.addr.to_string(),
            from: state(transition.from),
            to: state(transition.to),
            reason: transition.cause.word(),
            transcript: transition.cause.transcript().map(str::to_owned),
            doubt_seconds: seconds(transition.doubted_for),
            sessions: backend.active(),
            last_session_closed_seconds: None,
            next_session_seconds: None,
            next_session_on: None,
        }
    }
}

/// To the millisecond: more digits would be noise.
pub fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e3).round() / 1e3
}

impl Journal {
    pub(super) fn record(&self, event: Event) -> Number {
        let mut book = self.book();
        if book.events.len() == MOST {
            book.events.pop_front();
            book.first += 1;
        }
        book.events.push_back(event);
        Number(book.first + book.events.len() as u64 - 1)
    }

    /// Adds what has become known of an event, if it has not been dropped.
    pub(super) fn add(&self, number: Number, change: impl FnOnce(&mut Event)) {
        let mut book = self.book();
        let index = number.0.checked_sub(book.first);
        let index = index.and_then(|index| usize::try_from(index).ok());
        if let Some(event) = index.and_then(|i| book.events.get_mut(i)) {
            change(event);
        }
    }

    /// Whether the event has not been dropped yet.
    pub(super) fn holds(&self, number: Number) -> bool {
        number.0 >= self.book().first
    }

    /// The newest last.
    pub fn events(&self) -> Vec<Event> {
        self.book().events.iter().cloned().collect()
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
            journal.add(*one, |event| event.sessions = n as u64);
        }
        let events = journal.events();
        assert_eq!(events.len(), MOST);
        for (event, n) in events.iter().zip(3..) {
            assert_eq!((event.time.parse(), event.sessions), (Ok(n), n));
        }
    }
}

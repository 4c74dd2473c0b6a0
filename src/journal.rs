//! The last changes of backends' states, for whoever asks what happened.

use crate::backend::Backend;
use serde::Serialize;
use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
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
    /// What the check saw; `None` for what connects of sessions told.
    pub transcript: Option<String>,
    /// From the first doubt to the verdict.
    pub doubt_seconds: f64,
}

#[derive(Debug, Default)]
pub struct Journal(Mutex<VecDeque<Event>>);

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
        }
    }

    pub fn doubted_for(mut self, doubt: Duration) -> Self {
        // To the millisecond: more digits would be noise.
        self.doubt_seconds = (doubt.as_secs_f64() * 1e3).round() / 1e3;
        self
    }
}

impl Journal {
    pub fn record(&self, event: Event) {
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() == MOST {
            events.pop_front();
        }
        events.push_back(event);
    }

    /// A change that sessions noticed by connecting.
    pub fn passive(
        &self,
        upstream: &str,
        backend: &Backend,
        from: &'static str,
        to: &'static str,
        reason: &'static str,
    ) {
        let event = Event::new(upstream, backend, from, to);
        self.record(Event { reason, ..event });
    }

    /// The newest last.
    pub fn events(&self) -> Vec<Event> {
        let events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        events.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_make_room() {
        let journal = Journal::default();
        for n in 0..MOST + 3 {
            journal.record(Event {
                time: n.to_string(),
                upstream: String::new(),
                backend: String::new(),
                address: String::new(),
                from: "up",
                to: "down",
                reason: "timeout",
                transcript: None,
                doubt_seconds: 0.0,
            });
        }
        let events = journal.events();
        assert_eq!(events.len(), MOST);
        assert_eq!(events[0].time, "3");
        assert_eq!(events[MOST - 1].time, (MOST + 2).to_string());
    }
}

//! The process that this one has replaced, while it still carries sessions.

use crate::{control::State, handover::remainder::Remainder};
use std::time::SystemTime;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PreviousProcess {
    pub pid: u32,
    /// When it stopped accepting.
    pub since: SystemTime,
    /// What it carries.
    pub sessions: u64,
    pub flows: u64,
}

impl PreviousProcess {
    pub(super) fn new(pid: u32) -> Self {
        Self {
            pid,
            since: SystemTime::now(),
            sessions: 0,
            flows: 0,
        }
    }
}

impl State {
    /// `None` once it has ended.
    pub fn previous(&self) -> Option<PreviousProcess> {
        *self.previous.lock()
    }

    pub(super) fn set_previous(&self, previous: Option<PreviousProcess>) {
        *self.previous.lock() = previous;
    }

    pub(super) fn note_rest(&self, rest: Remainder) {
        if let Some(previous) = &mut *self.previous.lock() {
            previous.sessions = rest.sessions;
            previous.flows = rest.flows;
        }
    }
}

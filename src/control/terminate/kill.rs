//! Terminates the sessions that match a filter.

use super::{LOOK, PATIENCE, Pacing, Pending, REPORT};
use crate::{
    control::State,
    plan::reason::CloseReason,
    session::{
        filter::{Filter, MatchScope, Selection},
        registry::{Phase, Session, Sessions},
    },
};
use std::{sync::Arc, time::Instant};

/// Dropped before its end, it leaves the others where they are.
pub struct Kill {
    sessions: Arc<Sessions>,
    filter: Filter,
    scope: MatchScope,
    /// `None` once all are selected.
    selection: Option<Selection>,
    /// When it began: the age of a session counts until then.
    began: Instant,
    /// Selected, and not terminated yet, with the backend that it had then.
    selected: Vec<(Arc<Session>, u64)>,
    pacing: Pacing,
    pending: Pending,
    terminated: u64,
    /// When the last session was terminated, once all are.
    finished: Option<Instant>,
    is_over: bool,
}

/// How far a termination is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Killed {
    pub terminated: u64,
    /// Terminated, and not ended yet.
    pub pending: usize,
    pub is_over: bool,
}

impl Kill {
    /// Of sessions that match by now. `per_second`: at most so many, and never faster than all
    /// terminations of the process together may be.
    pub fn new(state: &State, filter: Filter, per_second: Option<f64>) -> Self {
        let sessions = Arc::clone(&state.process.sessions);
        let scope = MatchScope::LiveBefore(sessions.next_id());
        Self {
            selection: Some(Selection::new(&sessions, filter.clone(), scope)),
            began: Instant::now(),
            sessions,
            filter,
            scope,
            selected: Vec::new(),
            pacing: Pacing::new(&state.pace, per_second, Instant::now()),
            pending: Pending::default(),
            terminated: 0,
            finished: None,
            is_over: false,
        }
    }

    /// How many sessions it concerns.
    pub async fn count(&self) -> u64 {
        let mut selection = Selection::new(&self.sessions, self.filter.clone(), self.scope);
        let mut count = 0;
        while let Some(found) = selection.next_some(Instant::now()) {
            count += found.len() as u64;
            tokio::task::yield_now().await;
        }
        count
    }

    /// Terminates some more, for a fraction of a second at most, or waits for those that were
    /// terminated to end.
    pub async fn proceed(&mut self) -> Killed {
        let until = Instant::now() + REPORT;
        while !self.is_over && Instant::now() < until {
            if let Some(finished) = self.finished {
                self.is_over = self.pending.count() == 0 || finished.elapsed() >= PATIENCE;
                if !self.is_over {
                    tokio::time::sleep(LOOK).await;
                }
            } else if !self.terminate_some().await {
                self.finished = Some(Instant::now());
            }
        }
        Killed {
            terminated: self.terminated,
            pending: self.pending.count(),
            is_over: self.is_over,
        }
    }

    /// Returns whether there may be more. None is terminated before all are selected: its place on
    /// a backend goes to a session that waits, which would be on that backend then.
    async fn terminate_some(&mut self) -> bool {
        if let Some(selection) = &mut self.selection {
            match selection.next_some(self.began) {
                Some(found) => {
                    let sessions = found.into_iter().map(|found| found.session);
                    self.selected.extend(sessions.map(|session| {
                        let backend = session.backend();
                        (session, backend)
                    }));
                    tokio::task::yield_now().await;
                }
                None => self.selection = None,
            }
            return true;
        }
        if self.selected.is_empty() {
            return false;
        }
        let granted = self.pacing.take(self.selected.len(), Instant::now());
        let rest = self.selected.len() - granted;
        for (session, backend) in self.selected.drain(rest..) {
            // It may have ended, or have moved, while it waited for its time.
            let is_there = self.filter.backend.is_none() || session.backend() == backend;
            if is_there && session.phase() != Phase::Closing && session.end(CloseReason::Killed) {
                self.terminated += 1;
                self.pending.push(session);
            }
        }
        self.pending.count();
        if !self.selected.is_empty() {
            self.pacing.pause().await;
        }
        true
    }
}

impl Drop for Kill {
    fn drop(&mut self) {
        let pending = self.pending.count();
        if self.is_over {
            tracing::info!(sessions = self.terminated, pending, filter = %self.filter,
                "sessions killed by an operator");
        } else if self.terminated > 0 {
            tracing::warn!(sessions = self.terminated, filter = %self.filter,
                "termination stopped before its end, the operator's command has ended");
        }
    }
}

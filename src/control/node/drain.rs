//! The drain of the node. At a stop those that send clients learn of it first, while clients are
//! accepted still; an operator can do the same without a stop.

use crate::{
    control::{ListenerView, State},
    plan::Process,
    upstream::pool::AdminState,
};
use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

/// Between two looks whether clients still come.
const LOOK: Duration = Duration::from_millis(50);

/// Why clients are accepted no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DelayEnd {
    /// `drain_delay` has passed.
    Elapsed,
    /// None has come for `drain_quiet`.
    Quiet,
    /// Another process is to accept them.
    Successor,
}

/// What the operator has done to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeChange {
    pub was_drained: bool,
    /// Connections and flows.
    pub sessions: u64,
}

pub(super) struct Delay {
    began: Instant,
    /// Clients so far.
    clients: u64,
    quiet_since: Instant,
    is_over: bool,
}

impl Delay {
    fn new(clients: u64, now: Instant) -> Self {
        Self {
            began: now,
            clients,
            quiet_since: now,
            is_over: false,
        }
    }

    /// `process`: as in the plan in effect, which a reload may change.
    fn end(&mut self, clients: u64, process: &Process, now: Instant) -> Option<DelayEnd> {
        if clients != self.clients {
            self.clients = clients;
            self.quiet_since = now;
        }
        let quiet = now.saturating_duration_since(self.quiet_since);
        if now.saturating_duration_since(self.began) >= process.drain_delay {
            Some(DelayEnd::Elapsed)
        } else if !process.drain_quiet.is_zero() && quiet >= process.drain_quiet {
            Some(DelayEnd::Quiet)
        } else {
            None
        }
    }
}

impl State {
    /// From here on the node is not ready, and it stays so: it is about to stop.
    pub async fn leave(&self) {
        self.node.is_leaving.store(true, Relaxed);
        self.write_ready_file(false).await;
    }

    /// Returns when clients need to be accepted no longer after [`Self::leave`].
    pub async fn wait_drain_delay(&self) -> DelayEnd {
        let mut delay = Delay::new(self.clients(), Instant::now());
        loop {
            let view = self.view();
            if let Some(end) = delay.end(self.clients(), &view.plan.process, Instant::now()) {
                return end;
            }
            if self.node.successor.is_expected() {
                return DelayEnd::Successor;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What the operator has set for the node: ready or drain.
    pub fn node_admin_state(&self) -> AdminState {
        match self.node.is_drained.load(Relaxed) {
            true => AdminState::Drain,
            false => AdminState::Ready,
        }
    }

    /// Drains the node on behalf of the operator, or ends that: it goes on as it is, but is not
    /// ready.
    pub async fn set_node_drained(&self, is_drained: bool) -> NodeChange {
        let was_drained = self.node.is_drained.swap(is_drained, Relaxed);
        if was_drained != is_drained {
            tracing::info!(drained = is_drained, "operator has changed the node");
        }
        let delay = is_drained.then(|| Delay::new(self.clients(), Instant::now()));
        if was_drained != is_drained {
            *self.node.delay.lock() = delay;
            self.node.drain_changed.notify_one();
        }
        // Readiness itself is looked at again by the task that keeps the file.
        match is_drained {
            true => self.write_ready_file(false).await,
            false => self.node.note_change(),
        }
        NodeChange {
            was_drained,
            sessions: self.process.sessions.count(),
        }
    }

    /// Returns when clients are to be let in no longer, since the operator drains the node and
    /// `drain_delay` is over, or again. `refuses`: what applies now. It can be dropped without
    /// loss.
    pub async fn wait_for_drain_step(&self, refuses: bool) -> bool {
        loop {
            if self.is_to_refuse() != refuses {
                return !refuses;
            }
            let changed = self.node.drain_changed.notified();
            match self.node.is_drained.load(Relaxed) {
                true => drop(tokio::time::timeout(LOOK, changed).await),
                false => changed.await,
            }
        }
    }

    fn is_to_refuse(&self) -> bool {
        let (clients, now) = (self.clients(), Instant::now());
        let view = self.view();
        let process = &view.plan.process;
        let mut delay = self.node.delay.lock();
        // Without a delay those that send clients may not know of the drain yet.
        let Some(delay) = delay.as_mut().filter(|_| !process.drain_delay.is_zero()) else {
            return false;
        };
        delay.is_over = delay.is_over || delay.end(clients, process, now).is_some();
        delay.is_over
    }

    /// That have come so far, of all listeners.
    fn clients(&self) -> u64 {
        let count =
            |listener: &ListenerView| listener.service.metrics.counts.sum(|c| &c.connections);
        self.view().listeners.iter().map(count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_ends_in_time_or_when_no_client_comes() {
        let began = Instant::now();
        let at = |millis| began + Duration::from_millis(millis);
        let process = |delay, quiet| Process {
            drain_delay: Duration::from_millis(delay),
            drain_quiet: Duration::from_millis(quiet),
            ..Process::default()
        };
        let mut delay = Delay::new(5, began);
        assert_eq!(delay.end(5, &process(0, 0), at(0)), Some(DelayEnd::Elapsed));
        assert_eq!(delay.end(5, &process(100, 0), at(99)), None);
        assert_eq!(delay.end(5, &process(1_000, 200), at(199)), None);
        assert_eq!(delay.end(6, &process(1_000, 200), at(200)), None);
        assert_eq!(delay.end(6, &process(1_000, 200), at(399)), None);
        let quiet = delay.end(6, &process(1_000, 200), at(400));
        assert_eq!(quiet, Some(DelayEnd::Quiet));
        let elapsed = delay.end(9, &process(1_000, 200), at(1_000));
        assert_eq!(elapsed, Some(DelayEnd::Elapsed));
    }
}

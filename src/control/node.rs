//! Whether this node should get clients: what is wrong with the process itself, whatever the state
//! of its backends. All nodes see the same backends, and an address that moves from node to node
//! because of them only cuts sessions.

mod drain;
mod ready_file;
mod successor;

use drain::Delay;
pub use drain::DelayEnd;
pub(super) use ready_file::{begin, keep};

use super::{State, View};
use crate::{
    runtime::heartbeat::{Pulse, STALLED},
    sys::{self, mutex::Mutex},
};
use ready_file::ReadyFile;
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use successor::Successor;
use tokio::sync::Notify;

/// Why this node should get no clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeFault {
    Draining,
    /// A listener waits for the first checks of its upstream.
    Starting,
    /// The sockets of this listener do not accept or receive.
    Listener(String),
    /// The loop of this worker has not run for so long.
    Worker(String, Duration),
    /// There is no descriptor for another session.
    Descriptors,
}

/// The state of this node beside its plan and its sessions.
pub(super) struct Node {
    /// It is about to stop.
    is_leaving: AtomicBool,
    /// The operator has drained it.
    is_drained: AtomicBool,
    /// Since when, and for how long clients are let in.
    delay: Mutex<Option<Delay>>,
    /// Notified when the operator has drained it, or has ended that.
    drain_changed: Notify,
    ready_file: ReadyFile,
    pub(super) successor: Successor,
}

impl Node {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            is_leaving: AtomicBool::default(),
            is_drained: AtomicBool::default(),
            delay: Mutex::default(),
            drain_changed: Notify::new(),
            ready_file: ReadyFile::new(now),
            successor: Successor::default(),
        }
    }

    pub(super) fn is_draining(&self) -> bool {
        self.is_leaving.load(Relaxed) || self.is_drained.load(Relaxed)
    }

    /// The node is to be looked at again at once.
    pub(super) fn note_change(&self) {
        self.ready_file.changed.notify_one();
    }
}

/// Between two looks whether workers have run: idle ones do at once.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

impl fmt::Display for NodeFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Draining => f.write_str("draining"),
            Self::Starting => f.write_str("starting: waiting for the first checks"),
            Self::Listener(name) => {
                write!(f, "listener {name}: its sockets fail, the log says how")
            }
            Self::Worker(name, silence) => {
                write!(f, "{name}: has not run for {:.1} s", silence.as_secs_f64())
            }
            Self::Descriptors => {
                f.write_str("no file descriptor is left for another session (LimitNOFILE=)")
            }
        }
    }
}

impl State {
    /// Everything that is wrong with this node; empty: it should get clients. Takes as long as
    /// [`Self::stalled_workers`].
    pub async fn node_faults(&self) -> Vec<NodeFault> {
        let view = self.view();
        let mut faults: Vec<NodeFault> = self.lifecycle_fault().into_iter().collect();
        let failing = view.services().filter(|s| !s.intake.is_working());
        faults.extend(failing.map(|s| NodeFault::Listener(s.plan.name.clone())));
        if !self.has_descriptors(&view) {
            faults.push(NodeFault::Descriptors);
        }
        faults.extend(self.stalled_workers().await);
        faults
    }

    /// The workers whose loops do not run. Takes as long as idle workers need for one turn, and up
    /// to 2 s when one does not run.
    pub async fn stalled_workers(&self) -> Vec<NodeFault> {
        stalled_workers(&self.view()).await
    }

    /// Whether this node should get clients; takes as long.
    pub async fn is_node_ready(&self) -> bool {
        self.lifecycle_fault().is_none() && self.node_faults().await.is_empty()
    }

    /// Draining or starting.
    pub fn lifecycle_fault(&self) -> Option<NodeFault> {
        match () {
            () if self.is_draining() => Some(NodeFault::Draining),
            () if self.is_starting() => Some(NodeFault::Starting),
            () => None,
        }
    }

    fn has_descriptors(&self, view: &View) -> bool {
        let sessions = &self.process.sessions;
        let mut services = view.services();
        let within_budget = services.all(|service| match service.is_udp() {
            true => sessions.has_descriptor_for_flow(),
            false => sessions.has_descriptors_for_connection(),
        });
        within_budget && sys::limits::can_open()
    }
}

async fn stalled_workers(view: &View) -> Vec<NodeFault> {
    let mut pause = FIRST_PAUSE;
    loop {
        let now = Instant::now();
        let mut silent = Vec::new();
        for pulse in &view.pulses {
            let silence = pulse.check(now);
            if pulse.is_awaited() {
                silent.push((pulse, silence));
            }
        }
        if silent.iter().all(|(_, silence)| *silence >= STALLED) {
            let faults = silent.into_iter();
            let fault = |(pulse, silence): (&Arc<Pulse>, _)| {
                NodeFault::Worker(pulse.worker.clone(), silence)
            };
            return faults.map(fault).collect();
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

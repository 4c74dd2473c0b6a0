//! Replaces this process by another one, of another binary or of the same, while it serves.
//!
//! The old process ([`hand_over`]) starts the new one ([`take_over`]) with one end of a pair of
//! sockets, and both exchange messages (`handover/`). Up to [`hand_over::prepare`] nothing of what
//! the old process does has changed, and the new process has everything to go on with. Then
//! `hand_over`: the old process stops accepting and says so. If the new one dies, the old
//! one accepts again.

mod binary;
mod error;
pub mod hand_over;
pub mod inheritance;
mod link;
mod previous;
mod session_transfer;
mod sums;
pub mod take_over;

pub use binary::FILE_ONLY;
pub use error::UpgradeError;
pub use previous::PreviousProcess;

use crate::{
    control::{
        State,
        journal::{JournalEntry, UpgradeStage},
    },
    handover::hello::{Formats, Hello},
    sys::{limits, process},
};
use serde::Serialize;
use std::{
    path::PathBuf,
    process::id,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};
use tokio::sync::mpsc;

/// Requests that wait.
const QUEUE: usize = 4;

/// Where upgrades are requested. There is one at a time.
pub struct Upgrades {
    requests: mpsc::Sender<UpgradeRequest>,
    is_under_way: AtomicBool,
}

/// What is to be done, and where to tell of it.
pub struct UpgradeRequest {
    pub order: UpgradeOrder,
    steps: mpsc::UnboundedSender<Step>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UpgradeOrder {
    /// `None`: by the path that this process was started with.
    pub binary: Option<PathBuf>,
    /// Only looks whether the binary would take over.
    pub check_only: bool,
}

/// What has been done. The last is [`Step::Done`], [`Step::Checked`] of a check, or
/// [`Step::Failed`].
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
pub enum Step {
    /// The binary accepts the file and speaks the formats.
    Checked {
        binary: String,
        version: String,
        done: bool,
    },
    Started {
        pid: u32,
    },
    /// The new process has the sockets and the state.
    Ready {
        sockets: usize,
        listeners: u64,
    },
    /// The new process accepts, the old one does not.
    Accepting,
    /// What has become of the sessions that were relayed.
    Sessions {
        taken: u64,
        /// They stay in the old process.
        refused: u64,
    },
    /// The new process is the one that serves.
    Done {
        pid: u32,
        /// What the old process carries on.
        sessions_left: u64,
        flows_left: u64,
        done: bool,
    },
    /// The old process serves as before.
    Failed {
        error: String,
        hint: String,
        done: bool,
    },
}

impl Step {
    pub fn failed(error: &UpgradeError) -> Self {
        Self::Failed {
            error: error.to_string(),
            hint: error.hint().to_owned(),
            done: true,
        }
    }

    /// Whether nothing follows.
    pub fn is_last(&self) -> bool {
        match self {
            Self::Checked { done, .. } | Self::Done { done, .. } | Self::Failed { done, .. } => {
                *done
            }
            _ => false,
        }
    }
}

/// Another upgrade is under way, or the process stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotRequested {
    UnderWay,
    Stopping,
}

impl Upgrades {
    pub(super) fn new() -> (Self, mpsc::Receiver<UpgradeRequest>) {
        let (requests, receiver) = mpsc::channel(QUEUE);
        let is_under_way = AtomicBool::default();
        (
            Self {
                requests,
                is_under_way,
            },
            receiver,
        )
    }

    /// Begins an upgrade; its steps come from what is returned, until it is over.
    pub async fn request(
        &self,
        order: UpgradeOrder,
    ) -> Result<mpsc::UnboundedReceiver<Step>, NotRequested> {
        if self.is_under_way() {
            return Err(NotRequested::UnderWay);
        }
        let (request, receiver) = UpgradeRequest::new(order);
        let sent = self.requests.send(request).await;
        sent.map_err(|_| NotRequested::Stopping)?;
        Ok(receiver)
    }

    pub fn is_under_way(&self) -> bool {
        self.is_under_way.load(Relaxed)
    }

    /// Until the result is dropped.
    pub fn begin(&self) -> UnderWay<'_> {
        self.is_under_way.store(true, Relaxed);
        UnderWay(self)
    }
}

/// An upgrade is under way.
pub struct UnderWay<'a>(&'a Upgrades);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.is_under_way.store(false, Relaxed);
    }
}

impl UpgradeRequest {
    pub fn new(order: UpgradeOrder) -> (Self, mpsc::UnboundedReceiver<Step>) {
        let (steps, receiver) = mpsc::unbounded_channel();
        (Self { order, steps }, receiver)
    }

    /// Says, and logs, that this process serves as before.
    pub fn fail(&self, error: &UpgradeError, state: &State) {
        let (text, hint) = (error.to_string(), error.hint());
        if self.order.check_only {
            tracing::warn!(error = text, hint, "upgrade check failed");
        } else {
            tracing::error!(error = text, hint, "upgrade failed, this process goes on");
            let failed = JournalEntry::of_upgrade(UpgradeStage::Failed, error.summarize());
            state.journal.record(failed);
        }
        self.send_step(Step::failed(error));
    }

    fn send_step(&self, step: Step) {
        // The client may have disconnected.
        let _ = self.steps.send(step);
    }
}

/// Of this process, with a plan of this hash.
fn own_hello(hash: &str, workers: usize) -> Hello {
    let usage = process::usage();
    Hello {
        program: env!("CARGO_PKG_VERSION").to_owned(),
        pid: id(),
        hash: hash.to_owned(),
        workers: workers as u64,
        open_descriptors: usage.descriptors.unwrap_or_default(),
        most_descriptors: limits::raise_descriptors(),
        formats: Formats::own(),
    }
}

//! Notifications of this process to the service manager (systemd), if that started it.

use super::State;
use crate::{
    plan::counted,
    sys::notify::{self, UnknownAddress},
};
use std::{
    io,
    os::fd::BorrowedFd,
    sync::Arc,
    time::{Duration, Instant},
};

/// How often a watchdog is fed in its time.
const WATCHDOG_SHARE: u32 = 3;
/// Between two attempts to send to a manager whose queue is full.
const PAUSE: Duration = Duration::from_millis(20);
/// How long it is tried.
const PATIENCE: Duration = Duration::from_secs(2);
/// What a stop may take beyond the times that are configured.
const STOP_MARGIN: Duration = Duration::from_secs(10);

/// Does nothing where there is no service manager.
#[derive(Clone)]
pub struct ServiceManager(Option<notify::ServiceManager>);

impl ServiceManager {
    pub fn from_environment() -> Self {
        let manager = notify::ServiceManager::from_environment();
        Self(manager.unwrap_or_else(|UnknownAddress(address)| {
            tracing::warn!(address, "NOTIFY_SOCKET is not understood and not used");
            None
        }))
    }

    pub(super) fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// The sockets are bound; clients wait in their queues at least.
    pub async fn note_ready(&self, state: &State) {
        let listeners = state.view().listeners.len();
        let message = format!("READY=1\nSTATUS={}", counted(listeners, "listener"));
        self.send(&message).await;
    }

    /// Another process has taken over, and is the main one from now on: it has to know that before
    /// this one ends.
    pub(super) async fn note_successor(&self, pid: u32, state: &State) {
        let listeners = state.view().listeners.len();
        let message = format!(
            "MAINPID={pid}\nREADY=1\nSTATUS={}",
            counted(listeners, "listener")
        );
        self.send(&message).await;
    }

    pub async fn note_reloading(&self) {
        let now = notify::monotonic_micros();
        let message = format!("RELOADING=1\nMONOTONIC_USEC={now}");
        self.send(&message).await;
    }

    /// The end of a reload, in effect or not.
    pub async fn note_reloaded(&self, state: &State, is_successful: bool) {
        match is_successful {
            true => self.note_ready(state).await,
            false => {
                let text = "READY=1\nSTATUS=the last reload failed, nothing was changed";
                self.send(text).await;
            }
        }
    }

    /// A stop was requested; it may take as long as the plan allows.
    pub async fn note_stopping(&self, state: &State) {
        let view = state.view();
        let process = &view.plan.process;
        let time = process.drain_delay + process.drain_timeout + STOP_MARGIN;
        let sessions = counted(state.process.sessions.count(), "session");
        let micros = time.as_micros();
        let text = format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={micros}\nSTATUS=draining, {sessions}");
        self.send(&text).await;
    }

    /// Feeds the watchdog for as long as every worker runs. A worker that hangs is so long not
    /// excused that the manager ends the process.
    pub async fn feed_watchdog(self, state: Arc<State>) {
        let Some(interval) = self.0.as_ref().and_then(|manager| manager.watchdog) else {
            return;
        };
        state.is_main.cancelled().await;
        let mut ticks = tokio::time::interval(interval / WATCHDOG_SHARE);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let stalled = state.stalled_workers().await;
            if stalled.is_empty() {
                self.send("WATCHDOG=1").await;
            }
            for worker in stalled {
                tracing::error!(%worker, "watchdog is not fed");
            }
        }
    }

    /// Whether it keeps sockets for the next process.
    pub(super) fn has_store(&self) -> bool {
        self.0.as_ref().is_some_and(|manager| manager.has_store)
    }

    /// Gives it sockets to keep, all of one address.
    pub(super) async fn store(&self, name: &str, sockets: &[BorrowedFd<'_>]) {
        for sockets in sockets.chunks(notify::ServiceManager::MOST_FDS) {
            self.send_with(&format!("FDSTORE=1\nFDNAME={name}"), sockets)
                .await;
        }
    }

    /// Lets it close all sockets with this name.
    pub(super) async fn remove_from_store(&self, name: &str) {
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}")).await;
    }

    async fn send(&self, message: &str) {
        self.send_with(message, &[]).await;
    }

    async fn send_with(&self, message: &str, fds: &[BorrowedFd<'_>]) {
        let Some(manager) = &self.0 else { return };
        let began = Instant::now();
        loop {
            match manager.send(message, fds) {
                Ok(()) => return,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && began.elapsed() < PATIENCE => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => {
                    let message = message.lines().next();
                    tracing::warn!(%error, message, "the service manager cannot be reached");
                    return;
                }
            }
        }
    }
}

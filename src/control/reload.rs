//! A reload: the configuration file is read again, and what differs is put into effect, or nothing
//! is. Requests wait in a queue, from which the main loop takes one at a time.

mod forecast;
mod report;

pub use report::ReloadReport;

use super::{
    Prepared, Server, StartErrors, State, View,
    journal::{JournalEntry, ReloadResult},
};
use crate::{
    config::{self, Problems},
    plan::{self, Addr},
    sys::{blocking, limits, mutex::Mutex},
    telemetry,
};
use std::{
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::SystemTime,
};
use tokio::sync::{mpsc, oneshot};

/// Requests that wait; the next client waits until the queue takes its request.
const QUEUE: usize = 16;

/// Where reloads are requested, and the result of the last one.
pub struct Reloads {
    requests: mpsc::Sender<ReloadRequest>,
    last: Mutex<Option<LastReload>>,
}

pub struct ReloadRequest {
    pub mode: Mode,
    reply: oneshot::Sender<Result<ReloadReport, ReloadError>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Apply,
    /// Reports what a reload would change, and changes nothing.
    DryRun,
}

#[derive(Debug, Clone, Copy)]
pub struct LastReload {
    pub is_successful: bool,
    /// Of the last one that was successful.
    pub last_success: Option<SystemTime>,
}

/// Why a reload changed nothing.
#[derive(Debug)]
pub enum ReloadError {
    /// The process was started without a configuration file.
    NoFile,
    /// The process stops.
    Stopping,
    /// The file was not read in time.
    Unread { file: PathBuf, source: io::Error },
    /// What the file changes was not found out in time.
    Uncompared { file: PathBuf, source: io::Error },
    /// The file is not valid.
    Invalid(Problems),
    /// What the plan needs from outside is missing, or an address is in use.
    Failed(StartErrors),
}

/// A plan that can be put into effect, and the report about it.
pub struct Candidate {
    prepared: Prepared,
    report: ReloadReport,
}

impl Reloads {
    pub(super) fn new() -> (Self, mpsc::Receiver<ReloadRequest>) {
        let (requests, receiver) = mpsc::channel(QUEUE);
        let last = Mutex::new(None);
        (Self { requests, last }, receiver)
    }

    /// Waits for the reloads that were requested before, then for this one.
    pub async fn request(&self, mode: Mode) -> Result<ReloadReport, ReloadError> {
        let (reply, result) = oneshot::channel();
        let request = ReloadRequest { mode, reply };
        let sent = self.requests.send(request).await;
        sent.map_err(|_| ReloadError::Stopping)?;
        result.await.unwrap_or(Err(ReloadError::Stopping))
    }

    /// `None` before the first reload.
    pub fn last(&self) -> Option<LastReload> {
        *self.last.lock()
    }

    pub(super) fn set_last(&self, is_successful: bool, now: SystemTime) {
        let mut last = self.last.lock();
        let before = last.and_then(|last| last.last_success);
        *last = Some(LastReload {
            is_successful,
            last_success: if is_successful { Some(now) } else { before },
        });
    }
}

impl ReloadRequest {
    /// Whether the client still waits for the reply.
    pub fn is_wanted(&self) -> bool {
        !self.reply.is_closed()
    }

    pub fn reply(self, result: Result<ReloadReport, ReloadError>) {
        // The client may have disconnected.
        let _ = self.reply.send(result);
    }
}

/// Reads the file, checks it, compares it with the plan in effect, and gets what it needs from
/// outside. Changes nothing, and can be dropped.
pub async fn prepare(
    file: Option<&Path>,
    running: &State,
    mode: Mode,
) -> Result<Candidate, ReloadError> {
    let file = file.ok_or(ReloadError::NoFile)?.to_owned();
    let path = file.clone();
    let read = move || config::load(&path).map_err(ReloadError::Invalid);
    // The file itself has the shorter limit, with an error that is more specific.
    let read = blocking::call(blocking::LIMIT * 2, read).await;
    let unread = |source| ReloadError::Unread {
        file: file.clone(),
        source,
    };
    let plan = read.map_err(unread)??;
    let prepared = Prepared::for_change(plan, &running.view()).await;
    let mut prepared = prepared.map_err(ReloadError::Failed)?;
    if mode == Mode::Apply {
        let with_log = prepared.with_access_logs(&running.process.access_logs);
        prepared = with_log.await.map_err(ReloadError::Failed)?;
    }
    // Many clients are counted for the report.
    let (path, view) = (file.clone(), running.view());
    let report = move || {
        let report = ReloadReport::new(&path, &view, &prepared);
        Candidate { prepared, report }
    };
    let candidate = blocking::call(blocking::LIMIT * 2, report).await;
    candidate.map_err(|source| ReloadError::Uncompared { file, source })
}

impl Candidate {
    /// What the plan says of the admin side.
    pub fn admin(&self) -> Option<&plan::Admin> {
        self.prepared.plan.admin.as_ref()
    }

    /// Addresses that sockets of this process have which are closed when the plan is in effect.
    pub fn share(&mut self, addresses: Vec<SocketAddr>) {
        self.prepared.shared = addresses;
    }

    /// The TCP addresses that listeners have, and do not have by this plan.
    pub fn leaving_addresses(&self, running: &View) -> Vec<SocketAddr> {
        let stays = |addr: &Addr| {
            let listeners = self.prepared.plan.listeners.iter();
            let mut binds = listeners.flat_map(|listener| &listener.bind);
            binds.any(|bind| bind.addrs.contains(addr))
        };
        let addresses = running.listeners.iter().flat_map(|l| &l.addresses);
        let leaving = addresses.filter_map(|addr| match addr {
            Addr::Tcp(address) if !stays(addr) => Some(*address),
            Addr::Tcp(_) | Addr::Unix(_) => None,
        });
        leaving.collect()
    }
}

impl Server {
    /// Ends what [`prepare`] began: puts the plan into effect, or changes nothing.
    pub async fn reload(
        &mut self,
        candidate: Result<Candidate, ReloadError>,
        mode: Mode,
    ) -> Result<ReloadReport, ReloadError> {
        match mode {
            Mode::DryRun => Ok(candidate?.report),
            Mode::Apply => {
                let result = self.apply_candidate(candidate).await;
                self.state
                    .reloads
                    .set_last(result.is_ok(), SystemTime::now());
                self.record_reload(&result);
                match &result {
                    Ok(report) => report.log(),
                    Err(error) => log_error(error),
                }
                result
            }
        }
    }

    fn record_reload(&self, result: &Result<ReloadReport, ReloadError>) {
        let event = match result {
            Ok(report) => {
                let hash = &report.hash;
                let what = report.summarize();
                JournalEntry::of_reload(&hash.before, &hash.after, ReloadResult::Reloaded, what)
            }
            Err(error) => {
                let hash = self.state.view().hash.clone();
                let text = error.to_string();
                // The others are in the log.
                let first = text.lines().next().unwrap_or_default();
                let count = match error {
                    ReloadError::Invalid(problems) if problems.len() > 1 => {
                        format!(" ({} problems)", problems.len())
                    }
                    _ => String::new(),
                };
                let what = format!("nothing was changed: {first}{count}");
                JournalEntry::of_reload(&hash, &hash, ReloadResult::Failed, what)
            }
        };
        self.state.journal.record(event);
    }

    async fn apply_candidate(
        &mut self,
        candidate: Result<Candidate, ReloadError>,
    ) -> Result<ReloadReport, ReloadError> {
        let Candidate {
            prepared,
            mut report,
        } = candidate?;
        let applied = self.apply(prepared).await;
        let applied = applied.map_err(ReloadError::Failed)?;
        let view = self.state.view();
        telemetry::log::set(view.plan.log.level, view.plan.log.format);
        report.applied = true;
        report.longest_pause_seconds = Some(applied.longest_pause.as_secs_f64());
        Ok(report)
    }
}

fn log_error(error: &ReloadError) {
    match error {
        ReloadError::Invalid(problems) => {
            for problem in problems.iter() {
                let (line, column) = problem
                    .position
                    .as_ref()
                    .map(|p| (p.line, p.column))
                    .unzip();
                let (problem, hint) = (&problem.message, &problem.hint);
                tracing::error!(line, column, hint, problem, "configuration is not valid");
            }
        }
        ReloadError::Failed(errors) => {
            for problem in &errors.0 {
                tracing::error!(%problem, "configuration cannot be put into effect");
            }
        }
        ReloadError::Uncompared { source, .. } => {
            tracing::error!(error = %source, "configuration cannot be compared");
        }
        ReloadError::NoFile | ReloadError::Stopping | ReloadError::Unread { .. } => {
            let error = error.to_string();
            tracing::error!(error = error.trim_end(), "configuration cannot be read");
        }
    }
    tracing::error!("reload failed, nothing was changed");
}

/// In the form of `tembuku check`.
impl fmt::Display for ReloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoFile => writeln!(f, "error: the process was started without a file"),
            Self::Stopping => writeln!(f, "error: the process stops"),
            Self::Unread { file, source } => {
                let way_out = limits::describe_shortage(source);
                writeln!(f, "error: cannot read the configuration: {source}{way_out}")?;
                writeln!(f, " --> {}", file.display())
            }
            Self::Uncompared { file, source } => {
                writeln!(f, "error: cannot find out what would change: {source}")?;
                writeln!(f, " --> {}", file.display())
            }
            Self::Invalid(problems) => problems.fmt(f),
            Self::Failed(errors) => errors.fmt(f),
        }
    }
}

impl std::error::Error for ReloadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NoFile | Self::Stopping => None,
            Self::Failed(errors) => Some(errors),
            Self::Unread { source, .. } | Self::Uncompared { source, .. } => Some(source),
            Self::Invalid(problems) => Some(problems),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_success_is_remembered_after_a_failure() {
        let (reloads, _requests) = Reloads::new();
        assert!(reloads.last().is_none());
        reloads.set_last(false, SystemTime::now());
        assert!(
            reloads
                .last()
                .is_some_and(|last| last.last_success.is_none())
        );
        let now = SystemTime::now();
        reloads.set_last(true, now);
        reloads.set_last(false, now + std::time::Duration::from_secs(1));
        let last = reloads.last().expect("there was one");
        assert!(!last.is_successful);
        assert_eq!(last.last_success, Some(now));
    }
}

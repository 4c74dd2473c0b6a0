//! A reload: the configuration file is read again, and what differs is put into effect, or nothing
//! is. Requests wait in a queue, from which the main loop takes one at a time.

use super::{Prepared, Server, StartErrors};
use crate::{
    config::{self, ChangedKey, Dump, Problems},
    plan::{
        Plan,
        diff::{Change, Edit, diff, reachable},
    },
    sys::blocking,
};
use serde::Serialize;
use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::SystemTime,
};
use tokio::sync::{mpsc, oneshot};

/// Requests that wait; the next client waits until its request has a place.
const QUEUE: usize = 16;

/// Where reloads are requested, and the result of the last one.
pub struct Reloads {
    requests: mpsc::Sender<Request>,
    last: Mutex<Option<LastReload>>,
}

pub struct Request {
    pub mode: Mode,
    reply: oneshot::Sender<Result<Report, ReloadError>>,
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

/// What a reload changed, or would change.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub applied: bool,
    pub file: String,
    pub changes: Vec<ReportedChange>,
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct ReportedChange {
    pub object: &'static str,
    pub name: String,
    pub change: &'static str,
    pub keys: Vec<ChangedKey>,
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
    /// The file is not valid.
    Invalid(Problems),
    /// What the plan needs from outside is missing, or an address is in use.
    Failed(StartErrors),
}

/// A plan that can be put into effect, and the report about it.
pub struct Candidate {
    prepared: Prepared,
    report: Report,
}

impl Reloads {
    pub(super) fn new() -> (Self, mpsc::Receiver<Request>) {
        let (requests, receiver) = mpsc::channel(QUEUE);
        let last = Mutex::new(None);
        (Self { requests, last }, receiver)
    }

    /// Waits for the reloads that were requested before, then for this one.
    pub async fn request(&self, mode: Mode) -> Result<Report, ReloadError> {
        let (reply, result) = oneshot::channel();
        let request = Request { mode, reply };
        let sent = self.requests.send(request).await;
        sent.map_err(|_| ReloadError::Stopping)?;
        result.await.unwrap_or(Err(ReloadError::Stopping))
    }

    /// `None` before the first reload.
    pub fn last(&self) -> Option<LastReload> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_last(&self, is_successful: bool, now: SystemTime) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let before = last.and_then(|last| last.last_success);
        *last = Some(LastReload {
            is_successful,
            last_success: if is_successful { Some(now) } else { before },
        });
    }
}

impl Request {
    /// Whether the client still waits for the reply.
    pub fn is_wanted(&self) -> bool {
        !self.reply.is_closed()
    }

    pub fn reply(self, result: Result<Report, ReloadError>) {
        // The client may have disconnected.
        let _ = self.reply.send(result);
    }
}

/// Reads the file, checks it, compares it with the plan in effect, and gets what it needs from
/// outside. Changes nothing, and can be dropped.
pub async fn prepare(file: Option<&Path>, running: Plan) -> Result<Candidate, ReloadError> {
    let file = file.ok_or(ReloadError::NoFile)?.to_owned();
    let path = file.clone();
    let read = move || {
        let plan = config::load(&path).map_err(ReloadError::Invalid)?;
        let report = Report::new(&path, &running, &plan);
        Ok((plan, report))
    };
    // The file itself has the shorter limit, with an error that is more specific.
    let read = blocking::call(blocking::LIMIT * 2, read).await;
    let (plan, report) = read.map_err(|source| ReloadError::Unread { file, source })??;
    let prepared = Prepared::for_change(plan).await;
    let prepared = prepared.map_err(ReloadError::Failed)?;
    Ok(Candidate { prepared, report })
}

impl Server {
    /// Ends what [`prepare`] began: puts the plan into effect, or changes nothing.
    pub async fn reload(
        &mut self,
        candidate: Result<Candidate, ReloadError>,
        mode: Mode,
    ) -> Result<Report, ReloadError> {
        match mode {
            Mode::DryRun => Ok(candidate?.report),
            Mode::Apply => {
                let result = self.apply_candidate(candidate).await;
                self.state
                    .reloads
                    .set_last(result.is_ok(), SystemTime::now());
                match &result {
                    Ok(report) => log_report(report),
                    Err(error) => log_error(error),
                }
                result
            }
        }
    }

    async fn apply_candidate(
        &mut self,
        candidate: Result<Candidate, ReloadError>,
    ) -> Result<Report, ReloadError> {
        let Candidate {
            prepared,
            mut report,
        } = candidate?;
        self.apply(prepared).await.map_err(ReloadError::Failed)?;
        report.applied = true;
        Ok(report)
    }
}

impl Report {
    fn new(file: &Path, running: &Plan, wanted: &Plan) -> Self {
        let reachable = reachable(running, wanted);
        let [before, between, after] = [running, &reachable, wanted].map(Dump::new);
        let mut changes = Vec::new();
        let mut warnings = Vec::new();
        for change in diff(running, wanted) {
            let reported = match &change {
                Change::NeedsUpgrade(_) => ReportedChange::new(&between, &after, &change),
                Change::Process(_)
                | Change::Admin(_)
                | Change::Log(_)
                | Change::Listener(_)
                | Change::Backend { .. }
                | Change::Upstream(_) => ReportedChange::new(&before, &between, &change),
            };
            if let Change::NeedsUpgrade(_) = &change {
                warnings.push(reported.warning());
            }
            changes.push(reported);
        }
        Self {
            applied: false,
            file: file.display().to_string(),
            changes,
            warnings,
        }
    }
}

impl ReportedChange {
    fn new(before: &Dump, after: &Dump, change: &Change) -> Self {
        let (object, name, word) = describe(change);
        Self {
            object,
            name,
            change: word,
            keys: config::changed_keys(before, after, change),
        }
    }

    fn warning(&self) -> String {
        let Self { object, name, .. } = self;
        let keys: Vec<&str> = self.keys.iter().map(|key| key.key.as_str()).collect();
        let keys = keys.join(", ");
        format!("{object} {name}: not applied, it needs a restart of the process: {keys}")
    }
}

/// The object that changes, its name and what happens to it.
fn describe(change: &Change) -> (&'static str, String, &'static str) {
    match change {
        Change::Process(edit) => ("process", "process".to_owned(), word(edit)),
        Change::Admin(edit) => ("process", "admin".to_owned(), word(edit)),
        Change::Log(edit) => ("process", "log".to_owned(), word(edit)),
        Change::Listener(edit) => ("listener", edit.item().name.clone(), word(edit)),
        Change::Upstream(edit) => ("upstream", edit.item().name.clone(), word(edit)),
        Change::Backend { upstream, edit } => {
            let name = format!("{upstream}/{}", edit.item().text);
            ("backend", name, word(edit))
        }
        Change::NeedsUpgrade(change) => {
            let (object, name, _) = describe(change);
            (object, name, "needs_upgrade")
        }
    }
}

fn word<T>(edit: &Edit<T>) -> &'static str {
    match edit {
        Edit::Added(_) => "added",
        Edit::Removed(_) => "removed",
        Edit::Changed { .. } => "changed",
    }
}

fn log_report(report: &Report) {
    for ReportedChange {
        object,
        name,
        change,
        keys,
    } in &report.changes
    {
        let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
        // Of what is added or removed, every key.
        let keys = (*change == "changed" || *change == "needs_upgrade").then(|| keys.join(", "));
        tracing::info!(object, name, change, keys, "configuration differs");
    }
    for warning in &report.warnings {
        tracing::warn!(warning, "change of the configuration is not in effect");
    }
    let Report { file, changes, .. } = report;
    tracing::info!(file, changes = changes.len(), "configuration reloaded");
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
                writeln!(f, "error: cannot read the configuration: {source}")?;
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
            Self::Unread { source, .. } => Some(source),
            Self::Invalid(problems) => Some(problems),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "[process]\nworkers = 2\n\
        [listeners.l]\nbind = \"127.0.0.1:1\"\nupstream = \"u\"\n\
        [upstreams.u]\nbackends = [{ address = \"a:1\", weight = 1 }]\n";

    fn report(from: &str, to: &str) -> Report {
        let plan = |text: &str| config::parse(text, "test").expect("valid");
        let wanted = CONFIG.replace(from, to);
        assert_ne!(CONFIG, wanted);
        Report::new(Path::new("test"), &plan(CONFIG), &plan(&wanted))
    }

    #[test]
    fn a_report_separates_what_needs_an_upgrade() {
        let report = report("workers = 2", "workers = 3\ndrain_timeout = \"7s\"");
        let changes: Vec<String> = report
            .changes
            .iter()
            .map(|c| {
                let keys: Vec<String> = c.keys.iter().map(ToString::to_string).collect();
                format!("{} {} {}: {}", c.object, c.name, c.change, keys.join(", "))
            })
            .collect();
        assert_eq!(
            changes,
            [
                "process process changed: drain_timeout: \"30s\" -> \"7s\"",
                "process process needs_upgrade: workers: 2 -> 3",
            ]
        );
        let [warning] = &report.warnings[..] else {
            panic!("{:?}", report.warnings);
        };
        assert!(warning.ends_with(": workers"), "{warning}");
        assert!(!report.applied);
    }

    #[test]
    fn a_backend_is_named_with_its_upstream() {
        let report = report("weight = 1", "weight = 5");
        let [change] = &report.changes[..] else {
            panic!("{:?}", report.changes);
        };
        assert_eq!((change.object, change.change), ("backend", "changed"));
        assert_eq!(change.name, "u/a:1");
        assert_eq!(change.keys[0].to_string(), "weight: 1 -> 5");
    }

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

//! The access logs that a plan names: that of the process, and those of listeners.

use super::{StartError, StartErrors};
use crate::{
    plan::{self, LogFormat, Plan},
    sys::blocking,
    telemetry::{
        access_log::{AccessLog, AccessLogs, Format},
        line_writer::Destination,
    },
};
use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
    sync::Arc,
};
use tokio::task::JoinHandle;

/// Those of one plan. Listeners that name the same destination share its log.
#[derive(Default)]
pub(super) struct OpenLogs(Vec<(plan::AccessLog, Arc<AccessLog>)>);

impl OpenLogs {
    /// Opens every log that some listener uses, and that of the process, or returns each that
    /// cannot be opened. `access_logs`: those that are open.
    pub(super) async fn open(
        plan: &Plan,
        access_logs: &Arc<AccessLogs>,
    ) -> Result<Self, StartErrors> {
        let (mut open, mut errors) = (Vec::new(), Vec::new());
        let mut wanted = vec![&plan.log.access];
        for log in plan.listeners.iter().filter_map(|l| l.access_log.as_ref()) {
            if !wanted.contains(&log) {
                wanted.push(log);
            }
        }
        // All at once: files that hang are waited for together.
        let opening: Vec<JoinHandle<_>> = wanted
            .iter()
            .map(|&log| {
                let opening = open_one(log.clone(), plan.log.format, Arc::clone(access_logs));
                tokio::spawn(opening)
            })
            .collect();
        for (log, opening) in wanted.into_iter().zip(opening) {
            let path = path(log);
            let failed = |source| StartError::AccessLog { path, source };
            match opening.await.map_err(io::Error::other).flatten() {
                Ok(None) => {}
                Ok(Some(opened)) => open.push((log.clone(), opened)),
                Err(error) => errors.push(failed(error)),
            }
        }
        match errors.is_empty() {
            true => Ok(Self(open)),
            false => Err(StartErrors(errors)),
        }
    }

    /// Where sessions of this listener are recorded.
    pub(super) fn of(&self, listener: &plan::Listener, log: &plan::Log) -> Option<Arc<AccessLog>> {
        let wanted = listener.access_log.as_ref().unwrap_or(&log.access);
        let found = self.0.iter().find(|(log, _)| log == wanted);
        found.map(|(_, open)| Arc::clone(open))
    }
}

async fn open_one(
    log: plan::AccessLog,
    format: LogFormat,
    access_logs: Arc<AccessLogs>,
) -> io::Result<Option<Arc<AccessLog>>> {
    let (destination, is_terminal) = match log {
        plan::AccessLog::Off => return Ok(None),
        plan::AccessLog::Stdout => (Destination::Stdout, std::io::stdout().is_terminal()),
        plan::AccessLog::File(path) => (Destination::File(path), false),
    };
    let format = match format {
        LogFormat::Text => Format::Text,
        LogFormat::Auto if is_terminal => Format::Text,
        LogFormat::Auto | LogFormat::Json => Format::Json,
    };
    let open = move || access_logs.open(destination, format);
    let opened = blocking::call(blocking::LIMIT, open).await.flatten();
    opened.map(Some)
}

fn path(log: &plan::AccessLog) -> Option<PathBuf> {
    match log {
        plan::AccessLog::File(path) => Some(path.clone()),
        plan::AccessLog::Off | plan::AccessLog::Stdout => None,
    }
}

//! The access logs that a plan names: that of the process, and those of listeners.

use super::{StartError, StartErrors};
use crate::{
    plan::{self, LogFormat, Plan},
    sys::blocking,
    telemetry::{
        access_log::{AccessLogWriter, AccessLogs, Format},
        line_writer::Destination,
    },
};
use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
    sync::Arc,
};

/// Those of one plan. Listeners that name the same destination share its log.
#[derive(Default)]
pub(super) struct OpenLogs(Vec<(plan::AccessLog, Arc<AccessLogWriter>)>);

impl OpenLogs {
    /// Opens every log that some listener uses, and that of the process, or returns each that
    /// cannot be opened. `access_logs`: those that are open.
    pub(super) async fn open(
        plan: &Plan,
        access_logs: &Arc<AccessLogs>,
    ) -> Result<Self, StartErrors> {
        let (mut open, mut errors) = (Vec::new(), Vec::new());
        // With the listener that names it.
        let mut wanted = vec![(&plan.log.access, None)];
        for listener in &plan.listeners {
            if let Some(log) = &listener.access_log
                && wanted.iter().all(|(other, _)| *other != log)
            {
                wanted.push((log, Some(&listener.name)));
            }
        }
        // Files that hang are waited for together.
        let (mut opening, calls) = (Vec::new(), blocking::Calls::default());
        for (log, listener) in wanted {
            if let Some((destination, format)) = destination(log, plan.log.format) {
                let access_logs = Arc::clone(access_logs);
                let open = move || access_logs.open(destination, format);
                opening.push((log, listener, calls.begin(blocking::LIMIT, open).await));
            }
        }
        for (log, listener, opening) in opening {
            let path = path(log);
            let failed = |source| StartError::AccessLog {
                listener: listener.cloned(),
                path,
                source,
            };
            match opening.await.map_err(io::Error::other).flatten().flatten() {
                Ok(opened) => open.push((log.clone(), opened)),
                Err(error) => errors.push(failed(error)),
            }
        }
        match errors.is_empty() {
            true => Ok(Self(open)),
            false => Err(StartErrors(errors)),
        }
    }

    /// Where sessions of this listener are recorded.
    pub(super) fn of(
        &self,
        listener: &plan::Listener,
        log: &plan::Log,
    ) -> Option<Arc<AccessLogWriter>> {
        let wanted = listener.access_log.as_ref().unwrap_or(&log.access);
        let found = self.0.iter().find(|(log, _)| log == wanted);
        found.map(|(_, open)| Arc::clone(open))
    }
}

/// `None`: nothing is written.
fn destination(log: &plan::AccessLog, format: LogFormat) -> Option<(Destination, Format)> {
    let (destination, is_terminal) = match log {
        plan::AccessLog::Off => return None,
        plan::AccessLog::Stdout => (Destination::Stdout, std::io::stdout().is_terminal()),
        plan::AccessLog::File(path) => (Destination::File(path.clone()), false),
    };
    let format = match format {
        LogFormat::Text => Format::Text,
        LogFormat::Auto if is_terminal => Format::Text,
        LogFormat::Auto | LogFormat::Json => Format::Json,
    };
    Some((destination, format))
}

fn path(log: &plan::AccessLog) -> Option<PathBuf> {
    match log {
        plan::AccessLog::File(path) => Some(path.clone()),
        plan::AccessLog::Off | plan::AccessLog::Stdout => None,
    }
}

//! `tembuku upgrade`: another process takes over from a running one.

use super::{
    client::{AdminClient, At},
    code, print,
};
use crate::cli::response::{self, UpgradeStep, clean, clean_lines};
use clap::Args;
use serde_json::json;
use std::{path::PathBuf, process::ExitCode, time::Duration};

/// From one step to the next: the new process may wait for its first checks.
const PATIENCE: Duration = Duration::from_secs(100);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The binary that is to take over; without this the one that is now at the path with which the
    /// process was started
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Only let the binary check the file, and change nothing
    #[arg(long)]
    check: bool,
    /// Print the steps as JSON, one a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(super) at: At,
}

pub(super) fn run(args: &Arguments) -> ExitCode {
    code(AdminClient::find_to_read(&args.at, |client| {
        upgrade(args, client)
    }))
}

fn upgrade(args: &Arguments, client: &AdminClient) -> Result<(), String> {
    // The process may have another folder as its own.
    let binary = args.binary.as_ref().map(std::path::absolute).transpose();
    let binary = binary.map_err(|e| format!("error: --binary: {e}\n"))?;
    let body = json!({ "binary": binary, "check": args.check }).to_string();
    let mut lines = client.lines_within("POST", "/api/v1/upgrade", &body, PATIENCE)?;
    loop {
        let line = lines.next()?;
        let line = line.ok_or_else(|| lines.strange("the answer is cut off"))?;
        let step: UpgradeStep = response::read(&line).map_err(|why| lines.strange(&why))?;
        if args.json {
            print(&format!("{line}\n"))?;
        } else {
            print(&text(&step))?;
        }
        match step {
            UpgradeStep::Checked { done: true, .. } | UpgradeStep::Done { .. } => return Ok(()),
            UpgradeStep::Failed { error, hint } => {
                let (error, hint) = (clean_lines(&error), clean(&hint));
                return Err(format!("error: {error}\n  hint: {hint}\n"));
            }
            UpgradeStep::Checked { .. }
            | UpgradeStep::Started { .. }
            | UpgradeStep::Ready { .. }
            | UpgradeStep::Accepting
            | UpgradeStep::Sessions { .. }
            | UpgradeStep::Other => {}
        }
    }
}

/// A line; nothing for a failure, which is an error.
fn text(step: &UpgradeStep) -> String {
    match step {
        UpgradeStep::Checked {
            binary, version, ..
        } => format!(
            "checked: {} {} accepts the configuration\n",
            clean(binary),
            clean(version)
        ),
        UpgradeStep::Started { pid } => format!("started: process {pid}\n"),
        UpgradeStep::Ready { sockets, listeners } => format!(
            "ready: {} for {}\n",
            count(*sockets, "socket"),
            count(*listeners, "listener")
        ),
        UpgradeStep::Accepting => "accepting: the new process\n".to_owned(),
        UpgradeStep::Sessions { taken, refused: 0 } => {
            format!("sessions: {taken} moved\n")
        }
        UpgradeStep::Sessions { taken, refused } => {
            format!("sessions: {taken} moved, {refused} refused by the new process\n")
        }
        UpgradeStep::Done {
            pid,
            sessions_left: 0,
            flows_left: 0,
        } => format!("done: process {pid} serves, nothing is left behind\n"),
        UpgradeStep::Done {
            pid,
            sessions_left,
            flows_left,
        } => format!(
            "done: process {pid} serves; {} and {} stay with the old process, which drains them\n",
            count(*sessions_left, "session"),
            count(*flows_left, "flow")
        ),
        UpgradeStep::Failed { .. } | UpgradeStep::Other => String::new(),
    }
}

fn count(count: u64, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        n => format!("{n} {noun}s"),
    }
}

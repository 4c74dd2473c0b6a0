//! Why an upgrade has not happened.

use crate::{
    handover::{channel::ChannelError, message::Kind, record::Malformed},
    proxy::udp::HandOverError,
    sys::limits,
};
use std::{fmt, io, path::PathBuf};

#[derive(Debug)]
pub enum UpgradeError {
    /// The process stops.
    Stopping,
    /// A listener waits for the first checks.
    Starting,
    /// The process before this one still has sessions.
    PreviousDrains {
        pid: u32,
    },
    /// Its end would be that of the container.
    FirstProcess,
    /// The binary cannot be run.
    NotRun {
        binary: PathBuf,
        source: io::Error,
    },
    /// The binary does not accept the file; `text`: its problems.
    Invalid {
        binary: PathBuf,
        text: String,
    },
    /// What the binary is cannot be found out.
    NotTembuku {
        binary: PathBuf,
        text: String,
    },
    /// The binary does not speak a format of this process.
    NotCommon {
        binary: PathBuf,
        kind: Kind,
    },
    /// The sockets cannot be copied.
    Copies(io::Error),
    /// The new process may have fewer descriptors than are in use.
    Descriptors {
        open: u64,
        most: u64,
    },
    /// The new process has said so.
    Refused(String),
    /// The messages have ended too early; `waiting_for`: what was to come or to go.
    Channel {
        waiting_for: Kind,
        source: ChannelError,
        /// How the new process has ended, if it has.
        ended: Option<String>,
    },
    /// Another message than the expected one.
    Unexpected {
        kind: Kind,
        waiting_for: Kind,
    },
    Malformed {
        kind: Kind,
        source: Malformed,
    },
    /// The flows of datagrams were not taken.
    Flows(HandOverError),
}

impl UpgradeError {
    /// In one line: of the problems of a file the first, and how many there are.
    pub(super) fn summarize(&self) -> String {
        let text = self.to_string();
        let mut lines = text.lines();
        let what = lines.next().unwrap_or_default();
        let problems: Vec<&str> = lines.filter(|line| line.starts_with("error: ")).collect();
        match &problems[..] {
            [] => what.trim_end_matches(':').to_owned(),
            [one] => format!("{what} {one}"),
            [first, ..] => format!("{what} {first} ({} problems)", problems.len()),
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Stopping => "the next start takes its place",
            Self::Starting => "wait until `tembuku status` shows no listener that waits",
            Self::PreviousDrains { .. } => {
                "wait until `tembuku status` shows no previous process, or end it by TERM, twice"
            }
            Self::FirstProcess => {
                "replace the container: start the next one beside it, and stop this one"
            }
            Self::NotRun { .. } => "name another with --binary PATH",
            Self::Invalid { .. } => "`PATH check -c FILE` shows the same problems",
            Self::NotTembuku { .. } => "name another with --binary PATH",
            Self::NotCommon { .. } => "restart the process; its sessions are drained then",
            Self::Copies(_) | Self::Descriptors { .. } => {
                "raise the limit of open files (LimitNOFILE=)"
            }
            Self::Refused(_)
            | Self::Channel { .. }
            | Self::Unexpected { .. }
            | Self::Malformed { .. }
            | Self::Flows(_) => "the log has what the new process said; nothing was changed",
        }
    }
}

impl fmt::Display for UpgradeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopping => f.write_str("the process stops"),
            Self::Starting => f.write_str("a listener still waits for the first checks"),
            Self::PreviousDrains { pid } => write!(
                f,
                "the process before this one, {pid}, still has sessions of the last upgrade"
            ),
            Self::FirstProcess => f.write_str(
                "this is the first process of its container, which ends together with it",
            ),
            Self::NotRun { binary, source } => {
                let way_out = limits::describe_shortage(source);
                write!(f, "cannot run {}: {source}{way_out}", binary.display())
            }
            Self::Invalid { binary, text } => write!(
                f,
                "{} does not accept the configuration:\n{text}",
                binary.display()
            ),
            Self::NotTembuku { binary, text } => write!(
                f,
                "{} does not name the formats that it speaks: {text}",
                binary.display()
            ),
            Self::NotCommon { binary, kind } => write!(
                f,
                "{} speaks no format of {kind} that this process speaks",
                binary.display()
            ),
            Self::Copies(error) => write!(f, "cannot copy the listening sockets: {error}"),
            Self::Descriptors { open, most } => write!(
                f,
                "the new process may open {most} files, and this one has {open}"
            ),
            Self::Refused(why) => write!(f, "the new process has refused: {why}"),
            Self::Channel {
                waiting_for,
                source,
                ended,
            } => {
                write!(f, "{source}, at {waiting_for}")?;
                match ended {
                    Some(how) => write!(f, " ({how})"),
                    None => Ok(()),
                }
            }
            Self::Unexpected { kind, waiting_for } => {
                write!(
                    f,
                    "the new process has sent {kind} instead of {waiting_for}"
                )
            }
            Self::Malformed { kind, source } => {
                write!(f, "the new process has sent {kind} that {source}")
            }
            Self::Flows(error) => write!(f, "UDP flows: {error}"),
        }
    }
}

impl std::error::Error for UpgradeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NotRun { source, .. } | Self::Copies(source) => Some(source),
            Self::Channel { source, .. } => Some(source),
            Self::Malformed { source, .. } => Some(source),
            Self::Flows(source) => Some(source),
            _ => None,
        }
    }
}

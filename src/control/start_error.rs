//! Why a plan cannot be put into effect.

use crate::{
    config::text::shorten::shorten, control::bind::BindError, control::rights::NameError,
    plan::Addr, probe::CredentialsError, sys::datagram::MissingCall, sys::limits,
};
use std::{error::Error, fmt, io, path::PathBuf};

/// Everything that is in the way.
#[derive(Debug)]
pub struct StartErrors(pub Vec<StartError>);

#[derive(Debug)]
pub enum StartError {
    TooManyUdpListeners {
        count: usize,
        max: usize,
    },
    MissingCall(MissingCall),
    /// Of an address with a zone; `user`: what has the address.
    NoInterface {
        user: String,
    },
    /// A listener is its own backend.
    Loop {
        listener: String,
        way: String,
    },
    /// `listener`: whose key names it; `None`: that of the process. `path`: of a file; `None`:
    /// standard output.
    AccessLog {
        listener: Option<String>,
        path: Option<PathBuf>,
        source: io::Error,
    },
    ReadyFile {
        path: PathBuf,
        source: io::Error,
    },
    Credentials {
        upstream: String,
        source: CredentialsError,
    },
    /// They could not be read in time. `files`: what was to be read.
    CredentialsUnread {
        upstream: String,
        files: String,
        source: io::Error,
    },
    /// The name of a backend that must resolve does not.
    Name {
        upstream: String,
        backend: String,
        source: io::Error,
    },
    /// Users and groups could not be looked up in time.
    OwnersUnread(io::Error),
    /// `key`: of the configuration.
    Owner {
        listener: String,
        key: &'static str,
        source: NameError,
    },
    /// Of the file of a unix socket.
    Rights(io::Error),
    /// A UDP listener is to have an address whose sockets another one has.
    HeldByFlows {
        listener: String,
        addr: Addr,
        owner: String,
    },
    Bind(BindError),
    /// Of the admin side.
    Admin(String),
    Thread(io::Error),
}

impl fmt::Display for StartErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for error in &self.0 {
            // A path in it may be long.
            writeln!(f, "error: {}", shorten(&error.to_string(), 1_000))?;
        }
        Ok(())
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyUdpListeners { count, max } => write!(
                f,
                "{count} UDP listeners: there may be {max}; one may have many addresses and ports"
            ),
            Self::MissingCall(MissingCall { name, error }) => write!(
                f,
                "UDP listeners need the system call {name}, which fails: {error}; allow it in the \
                 seccomp filter (SystemCallFilter= of systemd, the profile of the container)"
            ),
            Self::NoInterface { user } => write!(
                f,
                "{user}: this machine has no such network interface; `ip link` lists those that \
                 there are"
            ),
            Self::HeldByFlows {
                listener,
                addr,
                owner,
            } => write!(
                f,
                "listener {listener}: cannot listen on {addr}: the UDP listener {owner} has it, \
                 and its flows stay with it; remove the address there first, and add it here when \
                 they have ended"
            ),
            Self::Loop { listener, way } => {
                write!(f, "listener {listener} is its own backend: {way}")
            }
            Self::AccessLog {
                listener,
                path,
                source,
            } => {
                match listener {
                    Some(listener) => write!(f, "listener {listener}: `access_log`: ")?,
                    None => f.write_str("`access` in [log]: ")?,
                }
                match path {
                    Some(path) => write!(
                        f,
                        "cannot open the access log {}: {source}{}",
                        path.display(),
                        file_hint(source)
                    ),
                    None => write!(f, "cannot write the access log: {source}"),
                }
            }
            Self::ReadyFile { path, source } => {
                let path = path.display();
                write!(
                    f,
                    "`ready_file` in [process]: cannot write {path}: {source}{}",
                    file_hint(source)
                )
            }
            Self::Credentials { upstream, source } => {
                write!(f, "upstream {upstream}: check: {source}")
            }
            Self::CredentialsUnread {
                upstream,
                files,
                source,
            } => write!(
                f,
                "upstream {upstream}: check: cannot read {files}: {source}"
            ),
            Self::Name {
                upstream,
                backend,
                source,
            } => write!(
                f,
                "upstream {upstream}: backend {backend}: {source}; to start without it and try \
                 again later, set resolve_required = false"
            ),
            Self::OwnersUnread(source) => {
                let way_out = limits::describe_shortage(source);
                write!(
                    f,
                    "cannot look up the users and groups of unix sockets: {source}{way_out}"
                )
            }
            Self::Owner {
                listener,
                key,
                source,
            } => write!(f, "listener {listener}: {key}: {source}"),
            Self::Rights(source) => {
                write!(f, "cannot change the rights of a unix socket: {source}")
            }
            Self::Bind(source) => source.fmt(f),
            Self::Admin(why) => write!(f, "admin: {why}"),
            Self::Thread(source) => {
                let way_out = limits::describe_shortage(source);
                write!(f, "cannot start a worker thread: {source}{way_out}")
            }
        }
    }
}

/// What a file that is to be written needs.
fn file_hint(error: &io::Error) -> String {
    match limits::describe_shortage(error) {
        shortage if !shortage.is_empty() => shortage,
        _ => "; its folder must be there and writable for the user that runs tembuku".to_owned(),
    }
}

impl Error for StartErrors {}

impl Error for StartError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::TooManyUdpListeners { .. }
            | Self::NoInterface { .. }
            | Self::Loop { .. }
            | Self::HeldByFlows { .. }
            | Self::Admin(_) => None,
            Self::MissingCall(call) => Some(&call.error),
            Self::AccessLog { source, .. }
            | Self::ReadyFile { source, .. }
            | Self::CredentialsUnread { source, .. }
            | Self::Name { source, .. }
            | Self::OwnersUnread(source)
            | Self::Rights(source)
            | Self::Thread(source) => Some(source),
            Self::Credentials { source, .. } => Some(source),
            Self::Owner { source, .. } => Some(source),
            Self::Bind(source) => Some(source),
        }
    }
}

impl From<StartError> for StartErrors {
    fn from(error: StartError) -> Self {
        Self(vec![error])
    }
}

//! The binary that is to take over: what it says of itself, and its process.

use super::UpgradeError;
use crate::{
    control::ServiceManager,
    handover::{hello::Formats, message::Kind},
    sys::{blocking, detached::Detached, upgrade_channel},
};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    io::{self, Read},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How long the binary may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks whether it has.
const LOOK: Duration = Duration::from_millis(5);
/// How long a process that was killed is waited for, and from one look to the next.
const DEATH: Duration = Duration::from_secs(1);
const DEATH_LOOK: Duration = Duration::from_millis(1);
/// Of what it says.
const MOST_BYTES: u64 = 64 << 10;

/// Without these no upgrade is possible.
const NEEDED: &[Kind] = &[
    Kind::Hello,
    Kind::Listeners,
    Kind::Prepare,
    Kind::Ready,
    Kind::Accept,
    Kind::Accepting,
    Kind::UdpGroup,
    Kind::UdpTaken,
    Kind::End,
];

/// Variables that are meant for this process alone.
const OWN_VARIABLES: [&str; 4] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"];

/// What `handover-formats` prints.
#[derive(Deserialize)]
struct Description {
    program: String,
    formats: BTreeMap<String, Vec<u16>>,
}

/// What a binary is.
pub(super) struct Checked {
    pub(super) binary: PathBuf,
    pub(super) program: String,
    pub(super) formats: Formats,
}

/// The new process. It is killed when this is dropped, unless it has taken over.
pub(super) struct NewProcess {
    process: Option<Process>,
    pub(super) pid: u32,
}

/// Where a service manager gets its number, it has to be a child of that: systemd kills a main
/// process at a stop that is none, and does not wait for it to drain.
enum Process {
    Child(Child),
    Detached(Detached),
}

struct Answer {
    status: ExitStatus,
    out: String,
    err: String,
}

impl Answer {
    /// What it says of its failure: one that is killed says nothing.
    fn reason(&self) -> String {
        match self.err.trim() {
            "" => self.status.to_string(),
            output => output.to_owned(),
        }
    }
}

/// Makes `check` look at the file alone.
pub const FILE_ONLY: &str = "TEMBUKU_FILE_ONLY";

/// By the name that this process was started with: at that path there may be another binary now.
fn own_path() -> PathBuf {
    env::args_os().next().unwrap_or_default().into()
}

/// Lets the binary check the file and name its formats. It changes nothing.
pub(super) async fn check(
    binary: Option<&Path>,
    file: Option<&Path>,
) -> Result<Checked, UpgradeError> {
    let binary = binary.map_or_else(own_path, Path::to_owned);
    if let Some(file) = file {
        let arguments = ["check".into(), "-c".into(), file.into()];
        let answer = ask(&binary, arguments.into()).await?;
        if !answer.status.success() {
            let text = answer.reason();
            return Err(UpgradeError::Invalid { binary, text });
        }
    }
    let answer = ask(&binary, vec!["handover-formats".into()]).await?;
    let described = serde_json::from_str::<Description>(&answer.out);
    match described {
        Ok(Description { program, formats }) if answer.status.success() => {
            let formats = Formats::from_map(formats);
            match formats.missing(NEEDED) {
                Some(kind) => Err(UpgradeError::NotCommon { binary, kind }),
                None => Ok(Checked {
                    binary,
                    program,
                    formats,
                }),
            }
        }
        _ => {
            let text = match (answer.status.success(), answer.err.lines().next()) {
                (_, Some(first)) => first.to_owned(),
                (true, None) => "it prints none".to_owned(),
                (false, None) => answer.status.to_string(),
            };
            Err(UpgradeError::NotTembuku { binary, text })
        }
    }
}

async fn ask(binary: &Path, arguments: Vec<OsString>) -> Result<Answer, UpgradeError> {
    let path = binary.to_owned();
    let asked = blocking::call(PATIENCE * 2, move || run(&path, &arguments)).await;
    asked.flatten().map_err(|source| UpgradeError::NotRun {
        binary: binary.to_owned(),
        source,
    })
}

fn run(binary: &Path, arguments: &[OsString]) -> io::Result<Answer> {
    let mut command = Command::new(binary);
    OWN_VARIABLES.iter().for_each(|name| {
        command.env_remove(name);
    });
    let mut child = command
        .args(arguments)
        .env_remove(upgrade_channel::VARIABLE)
        // What it cannot open or bind is handed over, or found when it starts.
        .env(FILE_ONLY, "true")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let out = read_aside(child.stdout.take());
    let err = read_aside(child.stderr.take());
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() < deadline => thread::sleep(LOOK),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "it has not ended in time",
                ));
            }
        }
    };
    let text = |read: Option<thread::JoinHandle<String>>| {
        read.and_then(|read| read.join().ok()).unwrap_or_default()
    };
    Ok(Answer {
        status,
        out: text(out),
        err: text(err),
    })
}

/// All of it is read, so that the other side never waits.
fn read_aside(from: Option<impl Read + Send + 'static>) -> Option<thread::JoinHandle<String>> {
    let mut from = from?;
    let read = move || {
        let mut bytes = Vec::new();
        let _ = from.by_ref().take(MOST_BYTES).read_to_end(&mut bytes);
        let _ = io::copy(&mut from, &mut io::sink());
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let thread = thread::Builder::new().name("blocking".to_owned());
    thread.spawn(read).ok()
}

impl NewProcess {
    /// Starts the binary with the arguments of this process. `channel`: its end.
    pub(super) fn start(
        binary: &Path,
        channel: OwnedFd,
        manager: &ServiceManager,
    ) -> Result<Self, UpgradeError> {
        let mut command = Command::new(binary);
        OWN_VARIABLES.iter().for_each(|name| {
            command.env_remove(name);
        });
        command
            .args(env::args_os().skip(1))
            .env(upgrade_channel::VARIABLE, upgrade_channel::VALUE)
            .stdin(channel);
        let started = match manager.is_there() {
            true => Detached::spawn(&mut command).map(|one| (one.pid, Process::Detached(one))),
            false => command.spawn().map(|one| (one.id(), Process::Child(one))),
        };
        let (pid, process) = started.map_err(|source| UpgradeError::NotRun {
            binary: binary.to_owned(),
            source,
        })?;
        Ok(Self {
            pid,
            process: Some(process),
        })
    }

    /// How it has ended, if it has and that is known.
    pub(super) fn ended(&mut self) -> Option<String> {
        match self.process.as_mut()? {
            Process::Child(child) => Some(child.try_wait().ok()??.to_string()),
            // Its parent learns that.
            Process::Detached(_) => None,
        }
    }

    /// It goes on whatever becomes of this process.
    pub(super) fn release(mut self) {
        self.process = None;
    }
}

impl Drop for NewProcess {
    fn drop(&mut self) {
        let mut child = match self.process.take() {
            None => return,
            Some(Process::Child(child)) => child,
            Some(Process::Detached(process)) => {
                process.kill();
                process.wait(DEATH);
                return;
            }
        };
        let _ = child.kill();
        // What is done next relies on its end, which takes a moment.
        let deadline = Instant::now() + DEATH;
        while Instant::now() < deadline {
            match child.try_wait() {
                Ok(None) => thread::sleep(DEATH_LOOK),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        // Beside the control thread: a process in the kernel may end late.
        let wait = move || drop(child.wait());
        let _ = thread::Builder::new()
            .name("blocking".to_owned())
            .spawn(wait);
    }
}

//! A child process that ends with the test that started it: this one and no other.

use super::{poll, secs, temp::TempDir};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::{self, File},
    io::{self, PipeReader, PipeWriter},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{PoisonError, RwLock},
    time::{Duration, Instant},
};

/// Until it executes its program, a child has copies of all descriptors of this process: a socket
/// that is closed meanwhile goes on to take its port and its datagrams.
static STARTING: RwLock<()> = RwLock::new(());

/// Returns when the child has no descriptor any more but those that it is to have.
pub(crate) fn spawn(command: &mut Command) -> io::Result<Child> {
    let _alone = STARTING.write().unwrap_or_else(PoisonError::into_inner);
    command.spawn()
}

/// What is closed meanwhile is closed in all processes.
pub(crate) fn while_no_child_starts<T>(close: impl FnOnce() -> T) -> T {
    let _none = STARTING.read().unwrap_or_else(PoisonError::into_inner);
    close()
}

pub(crate) struct Proc {
    name: String,
    child: Child,
    stop: Signal,
    status: Option<ExitStatus>,
    out: PathBuf,
    err: PathBuf,
}

/// Where a program's output goes: what is `None` goes into a file.
#[derive(Default)]
pub(crate) struct Streams {
    pub(crate) out: Option<Stdio>,
    pub(crate) err: Option<Stdio>,
}

impl Streams {
    /// Standard error goes there.
    pub(crate) fn err(to: impl Into<Stdio>) -> Self {
        Self {
            out: None,
            err: Some(to.into()),
        }
    }
}

/// A pipe that holds one page.
pub(crate) fn narrow_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
    (reader, writer)
}

impl Proc {
    /// Starts `command`; its output goes into files in `dir`.
    #[track_caller]
    pub(crate) fn start(name: &str, dir: &Path, command: Command) -> Proc {
        Proc::start_with(name, dir, command, Streams::default())
    }

    /// As [`Proc::start`], with standard streams of the test's own.
    #[track_caller]
    pub(crate) fn start_with(
        name: &str,
        dir: &Path,
        mut command: Command,
        streams: Streams,
    ) -> Proc {
        let out = dir.join(format!("{name}.out"));
        let err = dir.join(format!("{name}.err"));
        let file = |path: &Path| Stdio::from(File::create(path).unwrap());
        command
            .stdin(Stdio::null())
            .stdout(streams.out.unwrap_or_else(|| file(&out)))
            .stderr(streams.err.unwrap_or_else(|| file(&err)));
        let child = spawn(&mut command)
            .unwrap_or_else(|error| panic!("{name} cannot be started ({command:?}): {error}"));
        Proc {
            name: name.to_owned(),
            child,
            stop: Signal::TERM,
            status: None,
            out,
            err,
        }
    }

    /// For programs that take something else than TERM as "stop now".
    pub(crate) fn stop_with(mut self, signal: Signal) -> Proc {
        self.stop = signal;
        self
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        assert!(self.status.is_none(), "{} has ended already", self.name);
        // The child has not been waited for, so the number is still its own.
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.out).unwrap_or_default()).into_owned()
    }

    /// What it has done by now is in it, also if it writes its log on a thread of its own.
    pub(crate) fn stderr(&self) -> String {
        self.wait_logged();
        String::from_utf8_lossy(&fs::read(&self.err).unwrap_or_default()).into_owned()
    }

    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().unwrap();
        }
        self.status
    }

    /// The exit status, if there is one within `limit`.
    pub(crate) fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        poll(limit, || self.ended())
    }

    pub(crate) fn kill(&mut self) {
        if self.ended().is_none() {
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
        }
    }

    /// Waits until `ready`, which a program that has ended never is.
    #[track_caller]
    pub(crate) fn wait_ready(&mut self, limit: Duration, mut ready: impl FnMut() -> bool) {
        let end = Instant::now() + limit;
        while !ready() {
            let ended = self.ended();
            if ended.is_some() || Instant::now() > end {
                panic!(
                    "{} did not get ready within {limit:?}, ended: {ended:?}\n{}",
                    self.name,
                    self.tail()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// User and system time so far, of all its threads.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap();
        // The name, in parentheses, may hold anything; the fields after it are plain.
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .unwrap()
            .1
            .split_whitespace()
            .collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10) // USER_HZ is 100 on every Linux that Rust runs on
    }

    /// Resident memory, in bytes.
    pub(crate) fn rss(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
            * 1024
    }

    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.id()))
            .unwrap()
            .count()
    }

    /// The number of descriptors, once it has been the same for a while.
    pub(crate) fn settled_descriptors(&self) -> usize {
        let mut last = (self.descriptors(), Instant::now());
        let settled = poll(secs(10), || {
            let now = self.descriptors();
            if now != last.0 {
                last = (now, Instant::now());
            }
            (last.1.elapsed() > Duration::from_millis(300)).then_some(now)
        });
        settled.unwrap_or_else(|| panic!("the descriptors of {} change all the time", self.name))
    }

    /// A thread that has lines to write runs, is to run, or waits for a disk: it does not sleep.
    fn wait_logged(&self) {
        let tasks = format!("/proc/{}/task", self.child.id());
        let has_written = || {
            let mut tasks = fs::read_dir(&tasks).into_iter().flatten().flatten();
            tasks.all(|task| {
                let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                let state = stat.split_once("(log-writer) ");
                // One that is stopped goes on when the test lets it.
                state.is_none_or(|(_, state)| state.starts_with(['S', 'T', 'X', 'Z']))
            })
        };
        if self.status.is_none() {
            let _ = poll(secs(10), || has_written().then_some(()));
        }
    }

    fn tail(&self) -> String {
        let last = |text: String| {
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(30)..].join("\n")
        };
        format!(
            "--- {} stdout (end)\n{}\n--- {} stderr (end)\n{}",
            self.name,
            last(self.stdout()),
            self.name,
            last(self.stderr())
        )
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.signal(self.stop);
            if self.wait(secs(3)).is_none() {
                self.kill();
            }
        }
        if std::thread::panicking() {
            eprintln!(
                "{} ended with {:?}\n{}",
                self.name,
                self.status,
                self.tail()
            );
        }
    }
}

/// Runs a program that ends by itself within `limit`.
#[track_caller]
pub(crate) fn run(limit: Duration, mut command: Command) -> Output {
    let dir = TempDir::new();
    let name = Path::new(command.get_program())
        .file_name()
        .unwrap()
        .to_string_lossy()
        .into_owned();
    let out = dir.file("out");
    let err = dir.file("err");
    let shown = format!("{command:?}");
    command
        .stdin(Stdio::null())
        .stdout(File::create(&out).unwrap())
        .stderr(File::create(&err).unwrap());
    let mut child =
        spawn(&mut command).unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
    let status = poll(limit, || child.try_wait().unwrap());
    let output = |status| Output {
        status,
        stdout: fs::read(&out).unwrap(),
        stderr: fs::read(&err).unwrap(),
    };
    match status {
        Some(status) => output(status),
        None => {
            let _ = child.kill();
            let output = output(child.wait().unwrap());
            panic!("not finished after {limit:?}: {shown}\n{}", text(&output));
        }
    }
}

/// Runs a program of which it is known that it ends, with the standard input that it has.
#[track_caller]
pub(crate) fn output(command: &mut Command) -> Output {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = spawn(command).unwrap_or_else(|error| panic!("{command:?}: {error}"));
    child.wait_with_output().unwrap()
}

/// [`run`] for a program that must succeed; its output.
#[track_caller]
pub(crate) fn run_ok(limit: Duration, command: Command) -> String {
    let shown = format!("{command:?}");
    let output = run(limit, command);
    assert!(
        output.status.success(),
        "{shown}: {}\n{}",
        output.status,
        text(&output)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn text(output: &Output) -> String {
    format!(
        "--- stdout\n{}\n--- stderr\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// A command line in one piece.
pub(crate) fn command(line: &str) -> Command {
    let mut parts = line.split_whitespace();
    let mut command = Command::new(parts.next().unwrap());
    command.args(parts);
    command
}

//! The program under test.

use super::{
    http::{self, Response},
    metrics::Metrics,
    poll, ports,
    proc::{self, Proc, Streams},
    secs,
    temp::TempDir,
};
use rustix::process::Signal;
use serde_json::Value;
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output},
    time::Duration,
};

/// How long starting and answering may take on a machine that is busy with other tests.
const SOON: Duration = secs(10);

pub(crate) fn binary() -> PathBuf {
    std::env::var_os("TEMBUKU_TEST_BINARY")
        .map_or_else(|| env!("CARGO_BIN_EXE_tembuku").into(), PathBuf::from)
}

/// A copy of the program. Another process writes it: a file that this one has open for writing is
/// open in the children of other tests as well until they execute their programs, and cannot be
/// executed meanwhile.
#[track_caller]
pub(crate) fn copy_binary(to: &Path) {
    let mut copy = proc::command("cp");
    copy.arg(binary()).arg(to);
    proc::run_ok(secs(20), copy);
}

/// A command line of the program, run to its end.
#[track_caller]
pub(crate) fn cli(args: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command
        .args(args)
        .env("NO_COLOR", "1")
        .env_remove("TEMBUKU_CONFIG");
    proc::run(SOON, command)
}

/// A running program, ended with the test.
pub(crate) struct Tembuku {
    pub(crate) proc: Proc,
    pub(crate) admin: SocketAddr,
    pub(crate) dir: TempDir,
}

/// Adds the admin address, and names the folder.
fn write_config(dir: &TempDir, admin: SocketAddr, config: &str) -> PathBuf {
    let config = config.replace("{dir}", dir.path().to_str().unwrap());
    let listen = format!("[admin]\nlisten = \"{admin}\"\n");
    let config = match config.contains("[admin]\n") {
        true => config.replacen("[admin]\n", &listen, 1),
        false => format!("{config}\n{listen}"),
    };
    dir.write("tembuku.toml", &config)
}

impl Tembuku {
    /// `run -c` with this configuration, to which the admin address is added (to its `[admin]`, if
    /// it has one), and in which `{dir}` stands for a folder of its own. Returns when it works.
    #[track_caller]
    pub(crate) fn start(config: &str) -> Tembuku {
        Tembuku::start_under("", config)
    }

    /// As [`Tembuku::start`], through a program that prepares the ground and then becomes it, such
    /// as `prlimit`.
    #[track_caller]
    pub(crate) fn start_under(wrapper: &str, config: &str) -> Tembuku {
        Tembuku::start_in(wrapper, config, Streams::default())
    }

    /// As [`Tembuku::start`], with standard streams of the test's own.
    #[track_caller]
    pub(crate) fn start_speaking(streams: Streams, config: &str) -> Tembuku {
        Tembuku::start_in("", config, streams)
    }

    #[track_caller]
    fn start_in(wrapper: &str, config: &str, streams: Streams) -> Tembuku {
        let dir = TempDir::new();
        let admin = ports::free_addr();
        let config = write_config(&dir, admin, config);
        Tembuku::launch(
            wrapper,
            &["run", "-c", config.to_str().unwrap()],
            admin,
            dir,
            streams,
        )
    }

    /// `run -c` with the configuration that `make` gives for a folder of its own, as it is. It has
    /// an `[admin] listen`.
    #[track_caller]
    pub(crate) fn start_in_folder(make: impl FnOnce(&TempDir) -> String) -> Tembuku {
        let dir = TempDir::new();
        let config = make(&dir);
        let mut lines = config.lines();
        let admin = lines.find_map(|line| line.strip_prefix("listen = \"")?.split('"').next());
        let admin = admin.unwrap().parse().unwrap();
        let file = dir.write("tembuku.toml", &config);
        let args = ["run", "-c", file.to_str().unwrap()];
        Tembuku::launch("", &args, admin, dir, Streams::default())
    }

    /// With what `tembuku import` prints, in which only the admin address and the socket differ.
    #[track_caller]
    pub(crate) fn start_imported(config: &str) -> Tembuku {
        Tembuku::start_in_folder(|dir| {
            let socket = dir.file("admin.sock").display().to_string();
            config
                .replace("127.0.0.1:9900", &ports::free_addr().to_string())
                .replace("/run/tembuku/admin.sock", &socket)
        })
    }

    /// With a command line of the test's own, which names `admin` somehow.
    #[track_caller]
    pub(crate) fn start_with(args: &[&str], admin: SocketAddr) -> Tembuku {
        Tembuku::launch("", args, admin, TempDir::new(), Streams::default())
    }

    #[track_caller]
    fn launch(
        wrapper: &str,
        args: &[&str],
        admin: SocketAddr,
        dir: TempDir,
        streams: Streams,
    ) -> Tembuku {
        let mut command = if wrapper.is_empty() {
            Command::new(binary())
        } else {
            // Where another user can run it, too.
            let copy = dir.file("tembuku");
            copy_binary(&copy);
            let mut command = proc::command(wrapper);
            command.arg(copy);
            command
        };
        command
            .args(args)
            .env("NO_COLOR", "1")
            .env_remove("TEMBUKU_CONFIG")
            .current_dir(dir.path());
        let mut proc = Proc::start_with("tembuku", dir.path(), command, streams);
        proc.wait_ready(SOON, || {
            http::get(admin, "/livez").is_ok_and(|response| response.status == 200)
        });
        Tembuku { proc, admin, dir }
    }

    /// Puts this configuration into effect, in which the same is added and replaced as at the
    /// start. It must have an admin socket `{dir}/admin.sock`.
    #[track_caller]
    pub(crate) fn reload(&self, config: &str) {
        let output = self.try_reload(config);
        assert_eq!(output.status.code(), Some(0), "{}", proc::text(&output));
    }

    /// The same, of a configuration that may be refused.
    pub(crate) fn try_reload(&self, config: &str) -> Output {
        self.write(config);
        self.command(&["reload"])
    }

    /// Writes the file that the next reload reads.
    pub(crate) fn write(&self, config: &str) {
        write_config(&self.dir, self.admin, config);
    }

    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Response {
        http::get(self.admin, path).unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// A command of the program to this process, on its admin socket `{dir}/admin.sock`.
    #[track_caller]
    pub(crate) fn command(&self, arguments: &[&str]) -> Output {
        let socket = self.dir.file("admin.sock");
        cli(&[arguments, &["--socket", socket.to_str().unwrap()]].concat())
    }

    /// What a command prints that succeeds.
    #[track_caller]
    pub(crate) fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments);
        assert_eq!(output.status.code(), Some(0), "{}", proc::text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// A request on the admin socket `{dir}/admin.sock`.
    #[track_caller]
    pub(crate) fn post(&self, path: &str, body: &str) -> Response {
        let socket = self.dir.file("admin.sock");
        http::request_unix(&socket, "POST", path, body)
            .unwrap_or_else(|error| panic!("POST {path}: {error}"))
    }

    /// What an operator sets for a backend; the answer.
    #[track_caller]
    pub(crate) fn set_admin_state(&self, upstream: &str, backend: &str, state: &str) -> Value {
        let path = format!("/api/v1/upstreams/{upstream}/backends/{backend}");
        let answer = self.post(&path, &format!("{{\"admin_state\": \"{state}\"}}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_str(&answer.body).unwrap()
    }

    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        serde_json::from_str(&self.get("/api/v1/status").body).unwrap()
    }

    /// None of these passwords is in any output: in the log, which must be
    /// that of every check, in what `check --dump` prints, on any page.
    #[track_caller]
    pub(crate) fn assert_not_shown(&self, passwords: &[&str]) {
        let config = self.dir.file("tembuku.toml");
        let dump = cli(&["check", "--dump", "-c", config.to_str().unwrap()]);
        let mut outputs = vec![self.proc.stderr(), self.proc.stdout(), proc::text(&dump)];
        for path in ["/", "/metrics", "/api/v1/status", "/api/v1/events"] {
            outputs.push(self.get(path).body);
        }
        assert!(
            outputs[0].contains("\"checked\""),
            "the log of every check was looked at"
        );
        assert!(outputs[2].contains("password_file"), "{}", outputs[2]);
        for text in outputs {
            let shown = passwords.iter().find(|password| text.contains(**password));
            assert_eq!(shown, None, "a password in: {text}");
        }
    }

    /// The events of /api/v1/events, the newest last.
    #[track_caller]
    pub(crate) fn events(&self) -> Vec<Value> {
        let mut events = self.all_events();
        events.retain(|event| event["upstream"] != "");
        events
    }

    /// Also those of the process, such as a reload.
    #[track_caller]
    fn all_events(&self) -> Vec<Value> {
        let body = self.get("/api/v1/events").body;
        let mut answer: Value = serde_json::from_str(&body).unwrap();
        match answer["events"].take() {
            Value::Array(events) => events,
            other => panic!("no list of events: {other}"),
        }
    }

    #[track_caller]
    pub(crate) fn metrics(&self) -> Metrics {
        let response = self.get("/metrics");
        assert_eq!(response.status, 200, "{response:?}");
        Metrics::parse(&response.body).unwrap_or_else(|error| panic!("{error}\n{}", response.body))
    }

    /// The sum over every series with these labels; the prefix of the name is left out.
    #[track_caller]
    pub(crate) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.metrics().sum(name, labels)
    }

    /// Waits until a sum satisfies; returns it.
    #[track_caller]
    pub(crate) fn wait_metric(
        &self,
        name: &str,
        labels: &[(&str, &str)],
        satisfies: impl Fn(f64) -> bool,
    ) -> f64 {
        let mut last = f64::NAN;
        let found = poll(SOON, || {
            last = self.metric(name, labels);
            satisfies(last).then_some(last)
        });
        found.unwrap_or_else(|| {
            let metrics = self.metrics();
            let lines: Vec<&str> = metrics
                .text
                .lines()
                .filter(|line| line.contains(name))
                .collect();
            panic!(
                "tembuku_{name} {labels:?} stays at {last}\n{}",
                lines.join("\n")
            )
        })
    }

    /// Waits until so many sessions have ended for this reason.
    #[track_caller]
    pub(crate) fn wait_closed(&self, reason: &str, count: f64) {
        let labels = [("reason", reason)];
        self.wait_metric("sessions_closed_total", &labels, |n| n == count);
    }

    /// One session has ended, for this reason, and so does its record say.
    #[track_caller]
    pub(crate) fn assert_closed_as(&self, reason: &str) {
        self.wait_closed(reason, 1.0);
        assert_eq!(self.metric("sessions_closed_total", &[]), 1.0);
        let record = &self.access_log(1)[0];
        assert_eq!(record["close_reason"], reason, "{record}");
    }

    #[track_caller]
    pub(crate) fn wait_idle(&self) {
        self.wait_metric("listener_active_connections", &[], |n| n == 0.0);
    }

    /// Asks it to stop; its exit status.
    #[track_caller]
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.proc.signal(Signal::TERM);
        self.proc.wait(SOON).expect("an end after TERM")
    }

    /// The lines of its log so far.
    #[track_caller]
    pub(crate) fn log(&self) -> Vec<Value> {
        let parse = |line| serde_json::from_str(line).ok();
        self.proc.stderr().lines().filter_map(parse).collect()
    }

    /// The records of the access log `{dir}/access.log`, once there are `count`.
    #[track_caller]
    pub(crate) fn access_log(&self, count: usize) -> Vec<Value> {
        let path = self.dir.file("access.log");
        let lines = || fs::read_to_string(&path).unwrap_or_default();
        let complete = |text: &String| text.ends_with('\n') && text.lines().count() >= count;
        let text = poll(SOON, || Some(lines()).filter(complete))
            .unwrap_or_else(|| panic!("not {count} records in the access log:\n{}", lines()));
        let parse =
            |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        text.lines().map(parse).collect()
    }
}

//! Signals to one of both processes in the middle of an upgrade, and the end of the new one after
//! it. Sessions with numbered bytes show what that does to clients.

use super::{Succession, between, front_of, streams::Streams};
use crate::harness::{
    http, net, poll,
    proc::{self, command, run_ok, text},
    secs,
    server::Server,
    tembuku::binary,
    wait_until,
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    thread::{self, JoinHandle},
    time::Instant,
};

const SESSIONS: usize = 100;

struct Trial {
    tembuku: Succession,
    front: std::net::SocketAddr,
    streams: Streams,
    _server: Server,
}

impl Trial {
    #[track_caller]
    fn new(process: &str) -> Self {
        let server = Server::named("a");
        let (front, config) = front_of(&server);
        let config = format!("[process]\nworkers = 2\n{process}\n") + &config;
        let tembuku = Succession::start(&config);
        let streams = Streams::start(front, SESSIONS);
        Self {
            tembuku,
            front,
            streams,
            _server: server,
        }
    }

    fn begin(&self, program: &Path) -> JoinHandle<Output> {
        let mut command = Command::new(binary());
        command.arg("upgrade").arg("--socket");
        command.arg(self.tembuku.socket()).arg("--binary");
        command.arg(program).env("NO_COLOR", "1");
        thread::spawn(move || proc::run(secs(100), command))
    }

    /// The command, up to a message that is late by three seconds.
    #[track_caller]
    fn begin_delayed(&self, message: &str) -> JoinHandle<Output> {
        self.begin_until(&format!("delay at {message}"))
    }

    /// The command, up to a message that does not arrive before one of both processes ends: however
    /// late a signal to one of them is, it comes at this message.
    #[track_caller]
    fn begin_held(&self, message: &str) -> JoinHandle<Output> {
        self.begin_until(&format!("hold at {message}"))
    }

    #[track_caller]
    fn begin_until(&self, behaviour: &str) -> JoinHandle<Output> {
        let program = between::program(&self.tembuku, behaviour);
        let command = self.begin(&program);
        wait_until("the message is late", secs(20), || {
            between::done(&self.tembuku).is_some()
        });
        command
    }

    /// The number of the new process.
    fn new_process(&self) -> u32 {
        between::done(&self.tembuku).expect("a new process")
    }

    /// TERM to the old process: the command fails, the process drains, and the new one is gone.
    #[track_caller]
    fn stops(mut self, command: JoinHandle<Output>, what: &str) {
        self.tembuku.first.proc.signal(Signal::TERM);
        let output = command.join().unwrap();
        let printed = text(&output);
        assert_eq!(output.status.code(), Some(1), "{what}: {printed}");
        assert!(printed.contains("the process stops"), "{what}: {printed}");
        // Sessions go on for as long as the drain lasts.
        assert_eq!(self.streams.cut(), 0, "{what}");
        drop(self.streams);
        let status = self.tembuku.first.proc.wait(secs(20)).expect("an end");
        assert_eq!(status.code(), Some(0), "{what}");
        if let Some(new) = between::done(&self.tembuku) {
            wait_until("the new process has ended", secs(10), || !is_there(new));
        }
        // What stands between had copies of the listening sockets, and may end last.
        wait_until(&format!("{what}: no process listens"), secs(20), || {
            net::connect(self.front).is_err()
        });
    }
}

fn is_there(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.rsplit_once(") ").unwrap().1.starts_with('Z'))
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

/// The process that answers on the admin socket, if one does at the moment.
fn cli_status(tembuku: &Succession) -> Option<u64> {
    let answer = http::request_unix(&tembuku.socket(), "GET", "/api/v1/status", "").ok()?;
    let status: serde_json::Value = serde_json::from_str(&answer.body).ok()?;
    status["process"]["pid"].as_u64()
}

fn script(tembuku: &Succession, text: &str) -> PathBuf {
    let script = tembuku.first.dir.write("slow", text);
    let mut chmod = command("chmod 755");
    chmod.arg(&script);
    run_ok(secs(5), chmod);
    script
}

/// A binary that takes long to check the file, and is no tembuku.
fn slow_to_check(tembuku: &Succession) -> PathBuf {
    let mark = tembuku.first.dir.file("checks");
    let text = format!(
        "#!/bin/sh\n[ $1 != check ] || {{ echo > {}; exec sleep 4; }}\n",
        mark.display()
    );
    script(tembuku, &text)
}

/// One that takes long to start, and says when it begins to.
fn slow_to_start(tembuku: &Succession) -> PathBuf {
    let mark = tembuku.first.dir.file("starts");
    let text = format!(
        "#!/bin/sh\ncase $1 in check|handover-formats) exec {binary} \"$@\";; esac\n\
         echo > {}\nsleep 2\nexec {binary} \"$@\"\n",
        mark.display(),
        binary = binary().display(),
    );
    script(tembuku, &text)
}

#[test]
fn a_stop_ends_an_upgrade_that_has_not_begun_to_accept() {
    let trial = Trial::new("");
    let slow = slow_to_check(&trial.tembuku);
    let command = trial.begin(&slow);
    wait_until("the binary checks", secs(20), || {
        trial.tembuku.first.dir.file("checks").exists()
    });
    trial.stops(command, "stage 1");
    for message in ["hello 1", "prepare 1", "ready 1"] {
        let trial = Trial::new("");
        let command = trial.begin_held(message);
        trial.stops(command, message);
    }
}

/// It has no more than the sessions then, and drains them: the new process serves.
#[test]
fn a_stop_of_the_old_process_once_the_new_one_accepts_stops_nothing() {
    let mut trial = Trial::new("");
    let command = trial.begin_delayed("sessions 1");
    trial.tembuku.first.proc.signal(Signal::TERM);
    let output = command.join().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    trial.tembuku.current = trial.new_process();
    assert_eq!(trial.streams.advance("in the new process"), 0);
    trial.tembuku.wait_alone();
    assert_eq!(net::ask(trial.front).unwrap(), "a");
    assert_eq!(trial.streams.finish(), 0);
}

/// There is one upgrade; the reload is made by the process that serves then.
#[test]
fn signals_for_an_upgrade_and_a_reload_wait_during_an_upgrade() {
    let mut trial = Trial::new("");
    let late = slow_to_start(&trial.tembuku);
    let command = trial.begin(&late);
    wait_until("the new process starts", secs(20), || {
        trial.tembuku.first.dir.file("starts").exists()
    });
    let old = trial.tembuku.current;
    signal(old, Signal::USR2);
    signal(old, Signal::HUP);
    let output = command.join().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    trial.tembuku.current = trial.tembuku.pid();
    assert_ne!(trial.tembuku.current, old);
    // The old one has not done so before.
    wait_until("a reload in the new process", secs(10), || {
        let log = trial.tembuku.first.proc.stderr();
        let done = log.find("upgrade: done").expect("the upgrade");
        let reloaded: Vec<_> = log.match_indices("configuration reloaded").collect();
        reloaded.iter().any(|(at, _)| *at > done)
    });
    trial.tembuku.wait_alone();
    assert_eq!(trial.tembuku.pid(), trial.tembuku.current, "one upgrade");
    assert_eq!(trial.streams.finish(), 0);
}

/// It fails, and the second signal begins another one.
#[test]
fn a_second_signal_counts_if_the_upgrade_fails() {
    let mut trial = Trial::new("");
    let old = trial.tembuku.current;
    let command = trial.begin(&slow_to_check(&trial.tembuku));
    wait_until("the binary checks", secs(20), || {
        trial.tembuku.first.dir.file("checks").exists()
    });
    signal(old, Signal::USR2);
    let output = command.join().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    wait_until("another process serves", secs(20), || {
        let answer = cli_status(&trial.tembuku);
        answer.is_some_and(|pid| pid != u64::from(old))
    });
    trial.tembuku.current = trial.tembuku.pid();
    trial.tembuku.wait_alone();
    assert_eq!(trial.streams.finish(), 0);
}

/// As with one that dies: the old process goes on.
#[test]
fn a_new_process_that_is_stopped_leaves_the_old_one_in_place() {
    let trial = Trial::new("drain_timeout = \"1s\"");
    let mut cut = 0;
    // It has taken no session, and 40 of them.
    for (message, lost) in [
        ("hello 1", 0..=0),
        ("ready 1", 0..=0),
        ("sessions 2", 1..=40),
    ] {
        let command = trial.begin_held(message);
        signal(trial.new_process(), Signal::TERM);
        let output = command.join().unwrap();
        let printed = text(&output);
        assert_eq!(output.status.code(), Some(1), "{message}: {printed}");
        assert!(printed.contains("has ended"), "{message}: {printed}");
        let now = trial.streams.advance(message);
        assert!(lost.contains(&(now - cut)), "{message}: {} lost", now - cut);
        cut = now;
        assert_eq!(net::ask(trial.front).unwrap(), "a", "{message}");
        assert_eq!(trial.tembuku.pid(), trial.tembuku.current, "{message}");
    }
    assert!(trial.streams.finish() <= cut);
}

/// It is the one that serves, and no other takes its place. The old one does not call that a
/// success, so that a service manager starts the next.
#[test]
fn an_old_process_reports_a_new_one_that_dies_while_it_drains() {
    let mut trial = Trial::new("handover = \"listeners\"\ndrain_timeout = \"5s\"");
    trial.tembuku.upgrade();
    signal(trial.tembuku.current, Signal::KILL);
    // Those that it drains go on.
    let began = Instant::now();
    let words = "the process that has taken over has failed";
    wait_until("it is logged", secs(4), || {
        trial.tembuku.first.proc.stderr().contains(words)
    });
    assert_eq!(trial.streams.cut(), 0, "after {:?}", began.elapsed());
    let status = trial.tembuku.first.proc.wait(secs(20)).expect("an end");
    assert_eq!(status.code(), Some(1));
    let log = trial.tembuku.first.proc.stderr();
    assert!(log.contains(&format!("error: {words}")), "{log}");
    assert!(poll(secs(1), || net::connect(trial.front).ok()).is_none());
}

/// As a service manager does it. The new process waits for the old one, which would be killed
/// after it.
#[test]
fn a_stop_of_both_processes_lets_both_drain() {
    let mut trial = Trial::new("handover = \"listeners\"\ndrain_timeout = \"20s\"");
    trial.tembuku.upgrade();
    let new = trial.tembuku.current;
    trial.tembuku.first.proc.signal(Signal::TERM);
    signal(new, Signal::TERM);
    wait_until("no client is accepted", secs(10), || {
        net::connect(trial.front).is_err()
    });
    // A first TERM asks for no more than the drain that is under way.
    assert_eq!(trial.streams.advance("while both drain"), 0);
    assert!(is_there(new));
    trial.tembuku.first.proc.signal(Signal::TERM);
    let status = trial.tembuku.first.proc.wait(secs(10)).expect("an end");
    assert_eq!(status.code(), Some(0));
    let log = trial.tembuku.first.proc.stderr();
    assert!(!log.contains("has failed"), "{log}");
    wait_until("the new process has ended", secs(10), || !is_there(new));
}

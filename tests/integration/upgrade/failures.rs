//! The table of docs/upgrade.md, row by row: one of both processes fails at a message, and sessions
//! with numbered bytes show what that does to clients.

use super::{Succession, between, front_of, listener, streams::Streams, upstream};
use crate::harness::{
    net, poll, ports,
    proc::{self, text},
    secs,
    server::Server,
    tembuku::binary,
    wait_until,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    io::Write as _,
    process::{Command, Output},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// At least three messages with sessions, of 40 at most.
const SESSIONS: usize = 100;

/// Both processes, and sessions through them.
struct Row {
    tembuku: Succession,
    front: std::net::SocketAddr,
    streams: Streams,
    _server: Server,
}

impl Row {
    #[track_caller]
    fn new() -> Self {
        let server = Server::named("a");
        let (front, config) = front_of(&server);
        let tembuku = Succession::start(&("[process]\nworkers = 2\n".to_owned() + &config));
        let streams = Streams::start(front, SESSIONS);
        Self {
            tembuku,
            front,
            streams,
            _server: server,
        }
    }

    /// The command, through a program that stands between.
    fn begin(&self, behaviour: &str) -> JoinHandle<Output> {
        let program = between::program(&self.tembuku, behaviour);
        let mut command = Command::new(binary());
        command
            .arg("upgrade")
            .arg("--socket")
            .arg(self.tembuku.socket())
            .arg("--binary")
            .arg(program)
            .env("NO_COLOR", "1");
        thread::spawn(move || proc::run(secs(100), command))
    }

    /// It fails, and the old process serves all sessions but `lost`, and new clients.
    #[track_caller]
    fn fails(&self, behaviour: &str, words: &str, lost: std::ops::RangeInclusive<usize>) {
        let before = self.streams.cut();
        let output = self.begin(behaviour).join().unwrap();
        let printed = text(&output);
        assert!(
            between::done(&self.tembuku).is_some(),
            "{behaviour}: {printed}"
        );
        assert_eq!(output.status.code(), Some(1), "{behaviour}: {printed}");
        assert!(printed.contains(words), "{behaviour}: {printed}");
        assert_eq!(self.tembuku.pid(), self.tembuku.current, "{behaviour}");
        let cut = self.streams.advance(behaviour) - before;
        println!("{behaviour}: {cut} sessions lost");
        assert!(lost.contains(&cut), "{behaviour}: {cut} sessions lost");
        assert_eq!(net::ask(self.front).unwrap(), "a", "{behaviour}");
        // What it calls lost is lost, and nothing else.
        let log = self.tembuku.first.proc.stderr();
        let mut lines = log
            .lines()
            .filter(|line| line.contains("go on in this process"));
        let printed = lines.next_back().map_or(0, |line| {
            let line: Value = serde_json::from_str(line).unwrap();
            line["lost"].as_u64().unwrap()
        });
        assert!(
            cut == 0 || printed == cut as u64,
            "{behaviour}: {printed} called lost, {cut} are"
        );
    }

    /// The new process serves afterwards, all sessions but `lost`, and new clients.
    #[track_caller]
    fn end_in_the_new_process(
        mut self,
        behaviour: &str,
        lost: std::ops::RangeInclusive<usize>,
    ) -> Self {
        let _ = self.begin(behaviour).join().unwrap();
        let new = between::done(&self.tembuku).expect("a new process");
        self.tembuku.current = new;
        let reached = poll(secs(20), || net::ask(self.front).ok());
        assert_eq!(reached.as_deref(), Some("a"), "{behaviour}");
        assert_eq!(self.tembuku.pid(), new, "{behaviour}");
        let cut = self.streams.advance(behaviour);
        println!("{behaviour}: {cut} sessions lost");
        assert!(lost.contains(&cut), "{behaviour}: {cut} sessions lost");
        wait_until("it has all others", secs(10), || {
            self.tembuku.status()["listeners"][0]["connections"] == SESSIONS - cut
        });
        self
    }

    /// Nothing is missing, and the next upgrade works.
    #[track_caller]
    fn finish(mut self, lost: std::ops::RangeInclusive<usize>) {
        self.tembuku.wait_alone();
        let out = self.tembuku.upgrade();
        assert!(out.contains("nothing is left behind"), "{out}");
        self.tembuku.wait_alone();
        let cut = self.streams.finish();
        assert!(lost.contains(&cut), "{cut} sessions lost");
    }
}

/// Before it has taken a session.
#[test]
fn a_new_process_that_fails_before_it_takes_sessions_costs_none() {
    let row = Row::new();
    for message in ["hello", "listeners", "pools", "prepare", "ready"] {
        row.fails(&format!("kill-new at {message} 1"), "has ended", 0..=0);
    }
    for message in ["accept", "accepting"] {
        row.fails(&format!("kill-new at {message} 1"), "has ended", 0..=0);
        row.fails(&format!("garbage at {message} 1"), "", 0..=0);
    }
    row.fails("swallow at accepting 1", "has not answered in time", 0..=0);
    row.fails("stop-new at accept 1", "has not answered in time", 0..=0);
    // Sessions were sent, and stand still.
    row.fails("kill-new at sessions 1", "has ended", 0..=0);
    row.finish(0..=0);
}

/// What it has taken ends with it, and nothing else.
#[test]
fn a_new_process_that_is_killed_takes_with_it_what_it_has_taken() {
    for (behaviour, lost) in [
        // It is not known to the old process that the first were taken.
        ("kill-new at sessions_taken 1", 1..=80),
        ("kill-new at sessions 2", 0..=40),
        ("then-kill-new at sessions_taken 1", 1..=80),
    ] {
        let row = Row::new();
        row.fails(behaviour, "has ended", lost.clone());
        row.finish(lost);
    }
}

/// The old process ends it after ten seconds; its sessions go on after one.
#[test]
fn sessions_go_on_while_a_new_process_stands_still() {
    let row = Row::new();
    let command = row.begin("stop-new at sessions 1");
    wait_until("the new process stands still", secs(20), || {
        between::done(&row.tembuku).is_some()
    });
    let began = Instant::now();
    assert_eq!(row.streams.advance("while it stands still"), 0);
    assert!(!command.is_finished(), "after {:?}", began.elapsed());
    let output = command.join().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output).contains("has not answered in time"),
        "{}",
        text(&output)
    );
    assert_eq!(row.streams.advance("after it"), 0);
    row.finish(0..=0);
}

#[test]
fn sessions_follow_when_a_new_process_that_stood_still_goes_on() {
    let mut row = Row::new();
    let command = row.begin("stop-new at sessions 2");
    wait_until("the new process stands still", secs(20), || {
        between::done(&row.tembuku).is_some()
    });
    let new = between::done(&row.tembuku).unwrap();
    thread::sleep(Duration::from_secs(3));
    kill_process(Pid::from_raw(new as i32).unwrap(), Signal::CONT).unwrap();
    let output = command.join().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let printed = text(&output);
    assert!(
        printed.contains("100 moved") && printed.contains("nothing is left"),
        "{printed}"
    );
    row.tembuku.current = new;
    assert_eq!(row.streams.advance("in the new process"), 0);
    row.finish(0..=0);
}

/// It serves by then: it is not the old process that ends it.
#[test]
fn a_session_that_follows_late_goes_on_where_it_is_if_it_is_not_taken() {
    let server = Server::named("a");
    let front = ports::free_addr();
    let config = listener("l", &front.to_string(), "u")
        + "accept_proxy = true\n"
        + &upstream("u", &format!("\"{}\"", server.addr));
    let mut tembuku = Succession::start(&config);
    let mut late = net::connect(front).unwrap();
    late.write_all(b"PROXY ").unwrap();
    wait_until("it has come", secs(10), || {
        tembuku.status()["listeners"][0]["connections"] == 1
    });
    let output = {
        let program = between::program(&tembuku, "then-stop-new at end 1");
        tembuku.try_upgrade(&["--binary", program.to_str().unwrap()])
    };
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    wait_until("the new process stands still", secs(10), || {
        between::done(&tembuku).is_some()
    });
    tembuku.current = between::done(&tembuku).unwrap();
    late.write_all(b"UNKNOWN\r\n").unwrap();
    assert_eq!(net::read_line(&mut late).unwrap(), "a");
    for n in 0..3 {
        net::echo(&mut late, &format!("line {n}")).unwrap();
    }
    kill_process(Pid::from_raw(tembuku.current as i32).unwrap(), Signal::CONT).unwrap();
    net::echo(&mut late, "still").unwrap();
    drop(late);
    tembuku.wait_alone();
}

/// Its messages are refused, and sessions stay.
#[test]
fn a_new_process_that_may_open_no_more_takes_no_sessions() {
    let mut row = Row::new();
    let output = row.begin("no-descriptors at sessions 1").join().unwrap();
    let printed = text(&output);
    assert_eq!(output.status.code(), Some(0), "{printed}");
    assert!(printed.contains("refused by the new process"), "{printed}");
    row.tembuku.current = between::done(&row.tembuku).unwrap();
    assert_eq!(row.streams.advance("in both processes"), 0);
    let status = row.tembuku.status();
    assert!(!status["process"]["previous"].is_null(), "{status}");
    assert_eq!(row.streams.finish(), 0);
    row.tembuku.wait_alone();
}

#[test]
fn an_old_process_that_is_killed_early_ends_the_new_one_too() {
    let row = Row::new();
    // What it sends after that is on its way all at once.
    let _ = row.begin("kill-old at hello 1").join().unwrap();
    let new = between::done(&row.tembuku).unwrap();
    wait_until("the new process ends", secs(20), || {
        !std::path::Path::new(&format!("/proc/{new}")).exists()
    });
    // What stands between had copies of the listening sockets, and ends after it.
    wait_until("no process listens", secs(20), || {
        net::connect(row.front).is_err()
    });
}

/// The sessions that it still had end, and no others.
#[test]
fn an_old_process_that_is_killed_takes_with_it_what_it_has() {
    for (behaviour, lost) in [
        ("kill-old at prepare 1", 100..=100),
        ("kill-old at ready 1", 100..=100),
        ("kill-old at accept 1", 100..=100),
        ("kill-old at accepting 1", 100..=100),
        // The first message has left it.
        ("kill-old at sessions 1", 20..=99),
        ("kill-old at sessions_taken 1", 20..=99),
        ("kill-old at sessions 3", 0..=97),
        ("kill-old at end 1", 0..=0),
    ] {
        let row = Row::new().end_in_the_new_process(behaviour, lost.clone());
        row.finish(lost);
    }
}

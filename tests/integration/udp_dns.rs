//! Name servers behind it, asked by the programs that ask name servers.

use crate::harness::{
    dnsmasq::Dnsmasq,
    ports,
    proc::{Proc, command, run_ok},
    programs::Nginx,
    secs,
    tembuku::Tembuku,
    temp::TempDir,
    udp::{Between, V4, config, list},
    wait_until,
};
use rustix::process::Signal;
use std::{net::SocketAddr, process::Command};

const NAMES: usize = 100;

/// Knows a hundred names, and one with more text than fits into a small answer.
pub(crate) fn dnsmasq() -> Dnsmasq {
    let mut names: String = (0..NAMES)
        .map(|n| format!("host-record=n{n}.example,10.0.0.{n}\n"))
        .collect();
    // Of some 3,000 bytes.
    let part = "x".repeat(250);
    names.push_str(&format!("txt-record=big.example,\"{part}\"\n").repeat(12));
    Dnsmasq::start(&names)
}

/// Both protocols on one port, as name servers have it.
#[track_caller]
fn both(servers: &[&Dnsmasq], upstream: &str) -> (SocketAddr, Tembuku) {
    let front = ports::free_addr();
    let backends: Vec<SocketAddr> = servers.iter().map(|server| server.addr).collect();
    let tcp = format!(
        "[listeners.t]\nbind = \"{front}\"\nupstream = \"t\"\n[upstreams.t]\nbackends = {}\n",
        list(&backends)
    );
    let config = config(
        front,
        "responses = 1\nidle_timeout = \"5s\"",
        upstream,
        &backends,
    );
    (front, Tembuku::start(&format!("{config}{tcp}")))
}

#[track_caller]
fn dig(at: SocketAddr, arguments: &str) -> String {
    let mut dig = command("dig +tries=1 +time=5 +nocookie");
    dig.args([format!("@{}", at.ip()), format!("-p{}", at.port())]);
    dig.args(arguments.split_whitespace());
    run_ok(secs(20), dig)
}

#[test]
fn dig_is_answered() {
    let servers = [dnsmasq(), dnsmasq()];
    let (front, tembuku) = both(&[&servers[0], &servers[1]], "");
    for at in [servers[0].addr, front] {
        for n in 0..4 {
            assert_eq!(
                dig(at, &format!("+short n{n}.example")),
                format!("10.0.0.{n}\n")
            );
        }
        assert!(dig(at, "no.example").contains("status: NXDOMAIN"));
        // In one datagram, where the client accepts so much.
        let large = dig(at, "+notcp +ignore +bufsize=4096 big.example TXT");
        assert!(!large.contains(" tc "), "{large}");
        assert_eq!(large.matches(&"x".repeat(250)).count(), 12, "{large}");
        assert!(large.contains("(UDP)"), "{large}");
        // Otherwise the answer is truncated, and the client asks again by TCP.
        let short = dig(at, "+noedns +notcp +ignore big.example TXT");
        assert!(short.contains(" tc "), "{short}");
        let again = dig(at, "+noedns big.example TXT");
        assert!(again.contains("Truncated, retrying in TCP mode"), "{again}");
        assert_eq!(again.matches(&"x".repeat(250)).count(), 12, "{again}");
    }
    // Each question was a flow, and is over.
    tembuku.wait_metric(
        "sessions_closed_total",
        &[("listener", "l"), ("reason", "ok")],
        |n| n == 8.0,
    );
    tembuku.wait_metric("sessions_closed_total", &[("listener", "t")], |n| n == 1.0);
    for server in &servers {
        let labels = [("upstream", "u"), ("backend", &server.addr.to_string()[..])];
        assert_eq!(tembuku.metric("backend_connections_total", &labels), 4.0);
    }
}

/// What dnsperf reports about a run.
#[derive(Debug, PartialEq)]
pub(crate) struct Report {
    pub(crate) sent: u64,
    pub(crate) completed: u64,
    pub(crate) lost: u64,
    pub(crate) noerror: u64,
}

/// So many rounds over all names, at this rate.
pub(crate) fn dnsperf(dir: &TempDir, at: SocketAddr, rounds: usize, rate: usize) -> Command {
    let questions: String = (0..NAMES).map(|n| format!("n{n}.example A\n")).collect();
    let file = dir.write("questions", &questions);
    let mut dnsperf = command("dnsperf -c 4 -q 100 -t 10 -l 30");
    dnsperf.args(["-s", &at.ip().to_string(), "-p", &at.port().to_string()]);
    dnsperf.args(["-n", &rounds.to_string(), "-Q", &rate.to_string()]);
    dnsperf.arg("-d").arg(file);
    dnsperf
}

pub(crate) fn report(output: &str) -> Report {
    let number = |what: &str| -> u64 {
        let line = output.lines().find(|line| line.trim().starts_with(what));
        let line = line.unwrap_or_else(|| panic!("no {what} in {output}"));
        let after = &line.trim()[what.len()..];
        after.split_whitespace().next().unwrap().parse().unwrap()
    };
    Report {
        sent: number("Queries sent:"),
        completed: number("Queries completed:"),
        lost: number("Queries lost:"),
        noerror: number("Response codes:       NOERROR"),
    }
}

#[test]
fn dnsperf_loses_nothing() {
    let server = dnsmasq();
    let dir = TempDir::new();
    let wanted = Report {
        sent: 5_000,
        completed: 5_000,
        lost: 0,
        noerror: 5_000,
    };
    for between in [Between::Nothing, Between::Nginx, Between::Tembuku] {
        let front = between.start(V4, &[server.addr]);
        let output = run_ok(secs(60), dnsperf(&dir, front.addr, 50, 2_500));
        assert_eq!(report(&output), wanted, "{between:?}: {output}");
        println!("{between:?}: {output}");
    }
    // With a flow for each question.
    let (front, tembuku) = both(&[&server], "");
    let output = run_ok(secs(60), dnsperf(&dir, front, 50, 2_500));
    assert_eq!(report(&output), wanted, "{output}");
    tembuku.wait_flows(0.0);
    assert_eq!(
        tembuku.metric("listener_sent_datagrams_total", &[]),
        5_000.0
    );
    assert_eq!(tembuku.metric("listener_dropped_datagrams_total", &[]), 0.0);
}

/// Runs it, and kills one of the servers behind when so many questions have been asked.
#[track_caller]
fn kill_one(listener: &str) {
    let mut servers = [dnsmasq(), dnsmasq()];
    let dir = TempDir::new();
    let front = ports::free_addr();
    let backends = [servers[0].addr, servers[1].addr];
    let tembuku = Tembuku::start(&config(front, listener, "", &backends));
    let mut proc = Proc::start("dnsperf", dir.path(), dnsperf(&dir, front, 50, 1_000));
    tembuku.wait_metric("listener_received_datagrams_total", &[], |n| n >= 1_000.0);
    servers[0].proc.kill();
    let asked = tembuku.metric("listener_received_datagrams_total", &[]);
    assert!(asked < 4_000.0, "killed too late");
    let status = proc.wait(secs(60)).expect("it ends");
    let output = proc.stdout();
    assert!(status.success(), "{output}");
    let report = report(&output);
    println!("{listener}: {report:?}");
    assert_eq!(report.sent, 5_000, "{output}");
    assert_eq!(report.completed + report.lost, report.sent, "{output}");
    assert_eq!(report.noerror, report.completed, "{output}");
    // What was under way, at most; later ones are answered.
    assert!(report.lost <= 100, "{output}");
    let labels = [("reason", "refused")];
    assert!(tembuku.metric("backend_connect_errors_total", &labels) >= 1.0);
    let dead = servers[0].addr.to_string();
    let is = |state| tembuku.metric("backend_state", &[("backend", &dead[..]), ("state", state)]);
    // By the time that this took, `fail_timeout` may have passed.
    assert_eq!(is("failed") + is("unproven"), 1.0);
}

#[test]
fn a_server_is_killed_and_flows_go_on() {
    kill_one("");
}

#[test]
fn a_server_is_killed_among_single_questions() {
    kill_one("responses = 1");
}

/// A server that hangs sends nothing, and its kernel reports nothing: the check finds out, and its
/// flows leave.
#[test]
fn a_check_marks_a_silent_server_down() {
    let servers = [dnsmasq(), dnsmasq()];
    let front = ports::free_addr();
    let check = "balance = \"first\"\n[upstreams.u.check]\nkind = \"dns\"\nquery = \"n1.example\"\n\
                 interval = \"100ms\"\ntimeout = \"300ms\"\nrise = 1\nfall = 2";
    let tembuku = Tembuku::start(&config(
        front,
        "",
        check,
        &[servers[0].addr, servers[1].addr],
    ));
    let dir = TempDir::new();
    assert_eq!(dig(front, "+short n1.example"), "10.0.0.1\n");
    let mut proc = Proc::start("dnsperf", dir.path(), dnsperf(&dir, front, 40, 1_000));
    tembuku.wait_metric("listener_received_datagrams_total", &[], |n| n >= 500.0);
    servers[0].proc.signal(Signal::STOP);
    let first = servers[0].addr.to_string();
    tembuku.wait_metric(
        "backend_state",
        &[("backend", &first), ("state", "down")],
        |n| n == 1.0,
    );
    assert_eq!(dig(front, "+short n2.example"), "10.0.0.2\n");
    wait_until("it ends", secs(60), || proc.ended().is_some());
    let report = report(&proc.stdout());
    println!("{report:?}");
    assert_eq!((report.sent, report.noerror), (4_000, report.completed));
    // Those of the time before the check found out: half a second and two checks, on a machine
    // that is not always quick.
    assert!(report.lost <= 2_000, "{report:?}");
    let second = servers[1].addr.to_string();
    let taken = tembuku.metric("backend_sent_bytes_total", &[("backend", &second)]);
    assert!(taken > 1_000.0, "{taken}");
    servers[0].proc.signal(Signal::CONT);
}

/// The same beside it: what a flow of nginx does when its server is killed. A comparison, not a
/// rule.
#[test]
fn nginx_beside_it() {
    let mut servers = [dnsmasq(), dnsmasq()];
    let dir = TempDir::new();
    let front = ports::free_addr();
    let nginx = Nginx::start(
        front,
        &format!(
            "stream {{ upstream u {{ server {a}; server {b}; }} server {{ listen {front} udp; \
             proxy_pass u; proxy_responses 1; }}\n\
             server {{ listen {front}; proxy_pass u; }} log_format c '$status'; \
             access_log {{dir}}/log c; }}",
            a = servers[0].addr,
            b = servers[1].addr
        ),
    );
    let output = run_ok(secs(60), dnsperf(&dir, front, 10, 1_000));
    assert_eq!(report(&output).lost, 0, "{output}");
    servers[0].proc.kill();
    let output = run_ok(secs(60), dnsperf(&dir, front, 10, 1_000));
    println!("nginx: {:?}", report(&output));
    assert_eq!(report(&output).sent, 1_000);
    assert!(nginx.file("log").exists());
}

//! iperf3 and wrk through it.

use crate::harness::{
    ports,
    proc::{Proc, run_ok},
    programs::{Iperf3, Nginx},
    secs,
    tembuku::Tembuku,
};
use std::{net::SocketAddr, process::Command};

fn front_of(backend: SocketAddr) -> (Tembuku, SocketAddr) {
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [\"{backend}\"]\n"
    ));
    (tembuku, front)
}

#[test]
fn iperf3_both_ways() {
    let server = Iperf3::start();
    let (tembuku, front) = front_of(server.addr);
    let bytes = 1u64 << 29;
    for options in ["", "--reverse", "--parallel 4", "--reverse --parallel 4"] {
        let mut command = Command::new("iperf3");
        command.args([
            "--client",
            "127.0.0.1",
            "--port",
            &front.port().to_string(),
            "--json",
        ]);
        command.args(["--connect-timeout", "5000", "--bytes", &bytes.to_string()]);
        command.args(options.split_whitespace());
        let json = run_ok(secs(90), command);
        let report: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert!(report.get("error").is_none(), "iperf3 {options}: {json}");
        let moved = |side: &str| report["end"][side]["bytes"].as_u64().unwrap();
        assert!(moved("sum_sent") >= bytes, "iperf3 {options}: {json}");
        // The receiver stops counting when the sender has stopped, whatever is on its way then: up
        // to the largest receive buffer of the kernel in each stream.
        assert!(
            moved("sum_received") >= bytes / 2,
            "iperf3 {options}: {json}"
        );
    }
    tembuku.wait_idle();
    let metrics = tembuku.metrics();
    for name in ["listener_received_bytes_total", "listener_sent_bytes_total"] {
        assert!(metrics.sum(name, &[]) >= bytes as f64, "{name}");
    }
    // Bulk is what splicing is for.
    let spliced = metrics.sum("relayed_bytes_total", &[("mode", "splice")]);
    let copied = metrics.sum("relayed_bytes_total", &[("mode", "copy")]);
    assert!(
        spliced > 9.0 * copied,
        "{spliced} bytes spliced, {copied} copied"
    );
}

fn wrk(front: SocketAddr, file: &str, options: &[&str]) -> u64 {
    let mut command = Command::new("wrk");
    command.args([
        "--threads",
        "2",
        "--connections",
        "50",
        "--duration",
        "3s",
        "--timeout",
        "10s",
    ]);
    command.args(options).arg(format!("http://{front}/{file}"));
    let output = run_ok(secs(60), command);
    // Both lines are there only if there is something to report.
    assert!(!output.contains("Socket errors"), "{output}");
    assert!(!output.contains("Non-2xx"), "{output}");
    let requests = output
        .lines()
        .find_map(|line| line.trim().split_once(" requests in "))
        .expect("a count")
        .0;
    requests.parse().unwrap()
}

#[test]
fn wrk_without_an_error() {
    for (size, options) in [
        (64, &[][..]),
        (100_000, &[]),
        (64, &["--header", "Connection: close"]),
    ] {
        let (_nginx, web) = Nginx::web("file", size);
        let (tembuku, front) = front_of(web);
        let requests = wrk(front, "file", options);
        assert!(
            requests > 100,
            "{requests} requests of {size} bytes {options:?}"
        );
        tembuku.wait_idle();
        let metrics = tembuku.metrics();
        assert!(metrics.sum("listener_sent_bytes_total", &[]) >= (requests * size as u64) as f64);
        assert_eq!(metrics.sum("backend_connect_errors_total", &[]), 0.0);
    }
}

#[test]
fn a_server_that_speaks_only_when_asked_costs_nothing_while_idle() {
    let (_nginx, web) = Nginx::web("file", 64);
    let (tembuku, front) = front_of(web);
    let clients: Vec<_> = (0..100)
        .map(|_| crate::harness::net::connect(front).unwrap())
        .collect();
    tembuku.wait_metric("listener_active_connections", &[], |n| n == 100.0);
    let used = cpu_over_a_second(&tembuku.proc);
    assert!(
        used.as_millis() < 100,
        "{used:?} of processor time for 100 idle sessions"
    );
    // Two descriptors each: no pipe, no timer of its own.
    let before = tembuku.proc.descriptors();
    drop(clients);
    tembuku.wait_idle();
    let per_session = before - tembuku.proc.descriptors();
    assert!(
        per_session <= 200,
        "{per_session} descriptors for 100 idle sessions"
    );
}

/// Processor time over one second of doing nothing.
pub(crate) fn cpu_over_a_second(proc: &Proc) -> std::time::Duration {
    let before = proc.cpu();
    std::thread::sleep(secs(1)); // the length of the observation, not a wait for anything
    proc.cpu() - before
}

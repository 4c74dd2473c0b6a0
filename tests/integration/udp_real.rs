//! Programs that speak UDP among themselves, with it in between.

use crate::harness::{
    ports,
    proc::{Proc, command, run_ok},
    programs::Iperf3,
    secs,
    tembuku::Tembuku,
    temp::TempDir,
    udp::{Between, V4, config, list},
    wait_until,
};
use serde_json::Value;
use std::{fs, net::SocketAddr, process::Command};

/// Whether a UDP socket has this port.
fn bound(port: u16) -> bool {
    let local = format!(":{port:04X}");
    ["/proc/net/udp", "/proc/net/udp6"].iter().any(|table| {
        let table = fs::read_to_string(table).unwrap_or_default();
        table.lines().any(|line| {
            let mut fields = line.split_whitespace().skip(1);
            fields.next().is_some_and(|addr| addr.ends_with(&local))
        })
    })
}

const THROUGH: [Between; 3] = [Between::Nothing, Between::Nginx, Between::Tembuku];

/// Lines of syslog go one way, and nothing ever comes back.
#[test]
fn syslog_goes_one_way() {
    const LINES: usize = 150;
    for between in THROUGH {
        let dir = TempDir::new();
        let addr = ports::free_addr();
        let mut socat = command("socat -u");
        let written = dir.file("messages");
        socat.arg(format!("UDP-RECV:{},bind=127.0.0.1", addr.port()));
        socat.arg(format!("OPEN:{},creat,append", written.display()));
        let mut receiver = Proc::start("socat", dir.path(), socat);
        receiver.wait_ready(secs(10), || bound(addr.port()));
        let front = between.start(V4, &[addr]);

        let lines: String = (0..LINES).map(|n| format!("message {n}.\n")).collect();
        let file = dir.write("lines", &lines);
        let mut logger = command("logger --udp --rfc3164 --tag test --server 127.0.0.1");
        logger.args(["--port", &front.addr.port().to_string()]);
        logger.arg("--file").arg(file);
        run_ok(secs(20), logger);
        let got = || fs::read_to_string(&written).unwrap_or_default();
        wait_until("all lines have come", secs(10), || {
            got().contains(&format!("message {}.", LINES - 1))
        });
        let got = got();
        let mut rest = &got[..];
        for n in 0..LINES {
            let line = format!("test: message {n}.");
            let at = rest
                .find(&line)
                .unwrap_or_else(|| panic!("{between:?}: no {line}"));
            rest = &rest[at + line.len()..];
        }
        if let Some(tembuku) = &front.tembuku {
            assert_eq!(tembuku.metric("listener_connections_total", &[]), 1.0);
            tembuku.wait_metric("listener_received_datagrams_total", &[], |n| {
                n == LINES as f64
            });
            assert_eq!(tembuku.metric("listener_sent_datagrams_total", &[]), 0.0);
        }
    }
}

/// Both at once, on one port: its control connection is TCP.
#[track_caller]
fn both(backend: SocketAddr) -> (SocketAddr, Tembuku) {
    let front = ports::free_addr();
    let tcp = format!(
        "[listeners.t]\nbind = \"{front}\"\nupstream = \"t\"\n[upstreams.t]\nbackends = {}\n",
        list(&[backend])
    );
    let config = config(front, "", "", &[backend]);
    (front, Tembuku::start(&format!("{config}{tcp}")))
}

#[test]
fn iperf3_both_ways() {
    let server = Iperf3::start();
    let (front, tembuku) = both(server.addr);
    for (arguments, way) in [
        ("-b 5M -l 1200", "to the server"),
        ("-b 5M -l 1200 -R", "from the server"),
        ("-b 4M -l 4000 -P 4", "to the server"),
    ] {
        for at in [server.addr, front] {
            let mut client = command("iperf3 --udp --time 2 --json");
            client.args(["--client", "127.0.0.1", "--port", &at.port().to_string()]);
            client.args(arguments.split_whitespace());
            let output = run_ok(secs(40), client);
            let report: Value = serde_json::from_str(&output).unwrap();
            let sum = &report["end"]["sum"];
            // At such a pace a program may rest for a tenth of a second before its queue is full.
            let dropped = tembuku.metric("listener_dropped_datagrams_total", &[]);
            let what = format!("{arguments}, {way}, dropped {dropped}: {sum}");
            assert_eq!(
                sum["lost_packets"],
                0,
                "{}: {what}",
                match at == front {
                    true => "through it",
                    false => "directly",
                }
            );
            assert!(sum["packets"].as_u64().unwrap() > 500, "{sum}");
        }
    }
    assert_eq!(tembuku.metric("listener_dropped_datagrams_total", &[]), 0.0);
}

#[test]
fn sockperf_plays_ping_pong() {
    let dir = TempDir::new();
    let addr = ports::free_addr();
    let mut server = command("sockperf server -i 127.0.0.1");
    server.args(["-p", &addr.port().to_string()]);
    let mut server = Proc::start("sockperf", dir.path(), server);
    server.wait_ready(secs(10), || bound(addr.port()));
    for between in THROUGH {
        let front = between.start(V4, &[addr]);
        let mut client = command("sockperf ping-pong -i 127.0.0.1 -t 1 -m 64 --mps 2000");
        client.args(["-p", &front.addr.port().to_string()]);
        let output = run_ok(secs(30), client);
        assert!(
            output.contains(
                "# dropped messages = 0; # duplicated messages = 0; # out-of-order messages = 0"
            ),
            "{between:?}: {output}"
        );
        let latency = output
            .lines()
            .find(|line| line.contains("Summary: Latency"));
        println!("{between:?}: {}", latency.expect("a summary"));
    }
}

/// A server that starts a program for each client, and clients that each hear from theirs.
#[test]
fn socat_asks_and_is_answered() {
    let dir = TempDir::new();
    let addr = ports::free_addr();
    // Those that it starts for its clients end by themselves, soon.
    let mut server = command("socat -T 2");
    server.arg(format!("UDP-LISTEN:{},bind=127.0.0.1,fork", addr.port()));
    server.arg("EXEC:sed -u s/^/served-/");
    let mut server = Proc::start("socat", dir.path(), server);
    server.wait_ready(secs(10), || bound(addr.port()));
    // No nginx here: it detects the end of such a conversation by time alone.
    for between in [Between::Nothing, Between::Tembuku] {
        let front = between.start(V4, &[addr]);
        for n in 0..5 {
            let mut client = Command::new("sh");
            client.args(["-c", "echo $0 | socat -t 0.5 - UDP:127.0.0.1:$1"]);
            client.args([&n.to_string(), &front.addr.port().to_string()]);
            let output = run_ok(secs(20), client);
            assert_eq!(output, format!("served-{n}\n"), "{between:?}");
        }
    }
}

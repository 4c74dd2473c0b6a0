//! The demo does what it prints: addresses and commands to try are taken from its output.

use crate::harness::{
    http, net,
    proc::{Proc, run},
    secs,
    tembuku::binary,
    temp::TempDir,
    wait_until,
};
use rustix::process::Signal;
use std::{collections::BTreeMap, net::SocketAddr, process::Command};

/// The address after `label` in the output of a demo.
fn addr_after(output: &str, label: &str) -> SocketAddr {
    let rest = output
        .split_once(label)
        .unwrap_or_else(|| panic!("no {label:?} in\n{output}"))
        .1;
    let word = rest
        .split_whitespace()
        .next()
        .unwrap()
        .trim_start_matches("http://")
        .trim_end_matches('/');
    word.parse()
        .unwrap_or_else(|error| panic!("{error}: {word} after {label:?}"))
}

/// What follows the title of one of the things to try, as far as it is a command.
fn to_try(output: &str, title: &str) -> String {
    let line = output
        .lines()
        .find(|line| line.contains(title))
        .unwrap_or_else(|| panic!("no {title:?} in\n{output}"));
    line.split_once(title).unwrap().1.trim().to_owned()
}

fn bash(line: &str) -> String {
    let mut command = Command::new("bash");
    command.args(["-c", line]);
    let output = run(secs(20), command);
    assert!(
        output.stderr.is_empty(),
        "{line}: {}",
        crate::harness::proc::text(&output)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn count_names(names: &str) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for name in names.lines() {
        *counts.entry(name).or_default() += 1;
    }
    counts
}

/// Steps 6 and 7: the primary changes, the session on the one before ends, and the next finds the
/// new one.
fn assert_fail_over(printed: &str, admin: SocketAddr) {
    let hold = to_try(printed, "6. Hold a session:");
    let promote = to_try(printed, "7. Fail over to the replica:");
    let all = format!("{hold}; {promote}; cat <&3 2> /dev/null; echo ended");
    assert_eq!(bash(&all), "north, primary\nended\n", "{all}");
    wait_until("the next session is on the new primary", secs(10), || {
        bash(&hold) == "south, primary\n"
    });
    let events = http::get(admin, "/api/v1/events").unwrap().body;
    for part in ["\"standby\"", "\"next_session_on\": \"", "\"sessions\": 1"] {
        assert!(events.contains(part), "{part} in {events}");
    }
}

#[test]
fn the_demo_does_what_it_prints() {
    let dir = TempDir::new();
    let mut command = Command::new(binary());
    command
        .arg("demo")
        .env("NO_COLOR", "1")
        .current_dir(dir.path());
    let mut demo = Proc::start("demo", dir.path(), command);
    let out = dir.file("demo.out");
    let output = || std::fs::read_to_string(&out).unwrap_or_default();
    demo.wait_ready(secs(10), || output().contains("Ctrl-C"));
    let first = output();
    let front = addr_after(&first, "listener demo ");
    let udp = addr_after(&first, "listener demo-udp");
    let admin = addr_after(&first, "status page");
    wait_until("it is ready", secs(10), || {
        http::get(admin, "/readyz").is_ok_and(|response| response.status == 200)
    });

    // 1. The backends are picked in rotation; the command is the one that the demo prints.
    let rotation = to_try(&first, "1. The backends alternate:");
    let six = bash(&rotation);
    assert_eq!(
        count_names(&six),
        BTreeMap::from([("blue", 2), ("green", 2), ("red", 2)]),
        "{rotation}\n{six}"
    );

    // 2. What Prometheus would see.
    let url = to_try(&first, "2. What Prometheus would see:");
    assert!(url.contains(&format!("http://{admin}/metrics")), "{url}");
    let metrics = http::get(admin, "/metrics").unwrap().body;
    assert!(
        metrics.contains("tembuku_listener_connections_total{listener=\"demo\"} 6"),
        "{metrics}"
    );
    assert_eq!(http::get(admin, "/").unwrap().status, 200);

    // 4. Flows do so, too.
    let flows = to_try(&first, "4. Flows alternate over UDP:");
    assert!(flows.contains(&udp.port().to_string()), "{flows} to {udp}");
    let four = bash(&flows);
    let both = BTreeMap::from([("gold", 2), ("silver", 2)]);
    assert_eq!(count_names(&four), both, "{flows}\n{four}");
    wait_until("their records are there", secs(5), || {
        output()
            .matches("datagrams_received=1 datagrams_sent=1")
            .count()
            == 4
    });
    let status = http::get(admin, "/api/v1/status").unwrap().body;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["listeners"][1]["received_datagrams"], 4, "{status}");

    // 3. A backend stops: no connect fails, and that one is left out.
    bash(&to_try(&first, "3. Stop a backend:"));
    wait_until("the demo reports that red has stopped", secs(5), || {
        output().contains("red: stopped")
    });
    let left: String = (0..5).map(|_| bash(&rotation)).collect();
    assert_eq!(left.lines().count(), 30, "{left}");
    assert!(!left.contains("red"), "{left}");
    let counts = count_names(&left);
    assert!(counts["green"] >= 10 && counts["blue"] >= 10, "{counts:?}");

    // 5. One of the others stops: the client that finds out gets no answer, all others do.
    bash(&to_try(&first, "5. Stop one of those:"));
    wait_until("the demo reports that gold has stopped", secs(5), || {
        output().contains("gold: stopped")
    });
    let left: String = (0..5).map(|_| bash(&flows)).collect();
    assert!(!left.contains("gold"), "{left}");
    assert!(count_names(&left)["silver"] >= 19, "{left}");

    assert_fail_over(&first, admin);

    // As printed, they come back by themselves.
    wait_until("red listens again", secs(30), || {
        output().contains("red: listening again")
    });
    wait_until("red is picked again", secs(10), || {
        bash(&rotation).contains("red")
    });
    wait_until("gold listens again", secs(30), || {
        output().contains("gold: listening again")
    });
    wait_until("gold is picked again", secs(20), || {
        bash(&flows).contains("gold")
    });

    demo.signal(Signal::INT);
    let status = demo.wait(secs(10)).expect("an end after Ctrl-C");
    assert_eq!(status.code(), Some(0));
    assert!(net::connect(front).is_err());
}

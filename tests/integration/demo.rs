//! The demo does what it prints: the addresses are taken from its words, and so are the things to
//! try.

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

/// The words of a demo, without what it says as things happen.
fn addr_after(said: &str, words: &str) -> SocketAddr {
    let rest = said
        .split_once(words)
        .unwrap_or_else(|| panic!("no {words:?} in\n{said}"))
        .1;
    let word = rest
        .split_whitespace()
        .next()
        .unwrap()
        .trim_start_matches("http://")
        .trim_end_matches('/');
    word.parse()
        .unwrap_or_else(|error| panic!("{error}: {word} after {words:?}"))
}

/// What follows the title of one of the things to try, as far as it is a command.
fn to_try(said: &str, title: &str) -> String {
    let line = said
        .lines()
        .find(|line| line.contains(title))
        .unwrap_or_else(|| panic!("no {title:?} in\n{said}"));
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

fn tally(names: &str) -> BTreeMap<&str, usize> {
    let mut tally = BTreeMap::new();
    for name in names.lines() {
        *tally.entry(name).or_default() += 1;
    }
    tally
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
    let said = || std::fs::read_to_string(&out).unwrap_or_default();
    demo.wait_ready(secs(10), || said().contains("Ctrl-C"));
    let words = said();
    let front = addr_after(&words, "listener demo ");
    let udp = addr_after(&words, "listener demo-udp");
    let admin = addr_after(&words, "status page");
    wait_until("it is ready", secs(10), || {
        http::get(admin, "/readyz").is_ok_and(|response| response.status == 200)
    });

    // 1. The backends take turns, in the very words of the demo.
    let turns = to_try(&words, "1. The backends take turns:");
    let six = bash(&turns);
    assert_eq!(
        tally(&six),
        BTreeMap::from([("blue", 2), ("green", 2), ("red", 2)]),
        "{turns}\n{six}"
    );

    // 2. What Prometheus would see.
    let url = to_try(&words, "2. What Prometheus would see:");
    assert!(url.contains(&format!("http://{admin}/metrics")), "{url}");
    let metrics = http::get(admin, "/metrics").unwrap().body;
    assert!(
        metrics.contains("tembuku_listener_connections_total{listener=\"demo\"} 6"),
        "{metrics}"
    );
    assert_eq!(http::get(admin, "/").unwrap().status, 200);

    // 4. Flows do so, too.
    let flows = to_try(&words, "4. Flows take turns over UDP:");
    assert!(flows.contains(&udp.port().to_string()), "{flows} to {udp}");
    let four = bash(&flows);
    let both = BTreeMap::from([("gold", 2), ("silver", 2)]);
    assert_eq!(tally(&four), both, "{flows}\n{four}");
    wait_until("their records are there", secs(5), || {
        said()
            .matches("datagrams_received=1 datagrams_sent=1")
            .count()
            == 4
    });
    let status = http::get(admin, "/api/v1/status").unwrap().body;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["listeners"][1]["received_datagrams"], 4, "{status}");

    // 3. A backend stops: no connect fails, and that one is left out.
    bash(&to_try(&words, "3. Stop a backend:"));
    wait_until("it says that red has stopped", secs(5), || {
        said().contains("red: stopped")
    });
    let left: String = (0..5).map(|_| bash(&turns)).collect();
    assert_eq!(left.lines().count(), 30, "{left}");
    assert!(!left.contains("red"), "{left}");
    let counts = tally(&left);
    assert!(counts["green"] >= 10 && counts["blue"] >= 10, "{counts:?}");

    // 5. One of the others stops: who finds out gets no answer, everybody else does.
    bash(&to_try(&words, "5. Stop one of those:"));
    wait_until("it says that gold has stopped", secs(5), || {
        said().contains("gold: stopped")
    });
    let left: String = (0..5).map(|_| bash(&flows)).collect();
    assert!(!left.contains("gold"), "{left}");
    assert!(tally(&left)["silver"] >= 19, "{left}");

    // As printed, they come back by themselves.
    wait_until("red listens again", secs(30), || {
        said().contains("red: listening again")
    });
    wait_until("red takes its turn again", secs(10), || {
        bash(&turns).contains("red")
    });
    wait_until("gold listens again", secs(30), || {
        said().contains("gold: listening again")
    });
    wait_until("gold takes its turn again", secs(20), || {
        bash(&flows).contains("gold")
    });

    demo.signal(Signal::INT);
    let status = demo.wait(secs(10)).expect("an end after Ctrl-C");
    assert_eq!(status.code(), Some(0));
    assert!(net::connect(front).is_err());
}

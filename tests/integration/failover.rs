//! Backends that refuse, are silent, full, or not to be used.

use crate::harness::{
    bounded, millis,
    net::{self, BlackHole, ask, assert_ends_now, connect, echo, reset},
    ports, secs,
    server::{Server, ask_many, named},
    tembuku::Tembuku,
    wait_until,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

struct Setup {
    tembuku: Tembuku,
    front: SocketAddr,
}

/// `listener` are keys, `backends` the elements of the list. Two workers: they share one order of
/// turns.
fn setup(listener: &str, backends: &[String]) -> Setup {
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[process]\nworkers = 2\n[log]\naccess = \"{{dir}}/access.log\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n{listener}\n\
         [upstreams.u]\nbackends = [{}]\n",
        backends.join(", ")
    ));
    Setup { tembuku, front }
}

fn plain(addr: SocketAddr) -> String {
    format!("\"{addr}\"")
}

fn with(addr: SocketAddr, keys: &str) -> String {
    format!("{{ address = \"{addr}\", {keys} }}")
}

/// An address where no process listens.
fn refusing() -> SocketAddr {
    ports::free_addr()
}

fn count_names(names: &[String]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name.as_str()).or_default() += 1;
    }
    counts
}

/// The record of the only session so far.
#[track_caller]
fn record(setup: &Setup) -> serde_json::Value {
    let mut records = setup.tembuku.access_log(1);
    assert_eq!(records.len(), 1, "{records:?}");
    records.remove(0)
}

/// The backends that a session tried.
fn tried(record: &serde_json::Value) -> Vec<String> {
    let attempts = record["attempts"]
        .as_array()
        .unwrap_or_else(|| panic!("no attempts in {record}"));
    attempts
        .iter()
        .map(|attempt| attempt["backend"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_refusing_backend_is_passed_over() {
    let dead = refusing();
    let servers = named(2);
    let setup = setup(
        "",
        &[plain(dead), plain(servers[0].addr), plain(servers[1].addr)],
    );
    assert_eq!(ask(setup.front).unwrap(), "b1");
    let record = record(&setup);
    assert_eq!(
        tried(&record),
        [dead.to_string(), servers[0].addr.to_string()],
        "{record}"
    );
    assert_eq!(record["backend"], servers[0].addr.to_string(), "{record}");
    assert_eq!(record["close_reason"], "ok", "{record}");
    // It has failed, and is left alone for the ten seconds of the default.
    let names = ask_many(setup.front, 40);
    assert_eq!(
        count_names(&names),
        BTreeMap::from([("b1", 20), ("b2", 20)])
    );
    setup.tembuku.wait_idle();
    let metrics = setup.tembuku.metrics();
    assert_eq!(
        metrics.sum(
            "backend_connect_errors_total",
            &[("backend", &dead.to_string())]
        ),
        1.0
    );
    assert_eq!(metrics.sum("backend_connect_errors_total", &[]), 1.0);
    assert_eq!(metrics.sum("backend_retries_total", &[]), 1.0);
    assert_eq!(
        metrics.sum("upstream_available_backends", &[("upstream", "u")]),
        2.0
    );
    assert_eq!(
        metrics.sum("sessions_closed_total", &[("reason", "ok")]),
        41.0
    );
}

#[test]
fn a_silent_backend_is_passed_over_after_the_connect_timeout() {
    let hole = BlackHole::new();
    let servers = named(1);
    let setup = setup(
        "connect_timeout = \"300ms\"",
        &[plain(hole.addr), plain(servers[0].addr)],
    );
    let start = Instant::now();
    assert_eq!(ask(setup.front).unwrap(), "b1");
    let took = start.elapsed();
    assert!(bounded(took, millis(280), secs(3)), "{took:?}");
    assert_eq!(ask(setup.front).unwrap(), "b1");
    // It was not asked again, or there would be a second error by now.
    let errors = setup.tembuku.metrics();
    assert_eq!(
        errors.sum(
            "backend_connect_errors_total",
            &[("backend", &hole.addr.to_string())]
        ),
        1.0
    );
    assert!(
        errors.has("backend_connect_errors_total", &[("reason", "timeout")]),
        "{}",
        errors.text
    );
}

#[test]
fn without_retries_the_first_failure_is_the_last() {
    let dead = refusing();
    let servers = named(1);
    let setup = setup("retries = 0", &[plain(dead), plain(servers[0].addr)]);
    assert_ends_now(&mut connect(setup.front).unwrap());
    let record = record(&setup);
    assert_eq!(tried(&record), [dead.to_string()]);
    assert_eq!(record["close_reason"], "connect_failed", "{record}");
    setup.tembuku.wait_closed("connect_failed", 1.0);
    assert_eq!(servers[0].accepted(), 0);
    assert_eq!(ask(setup.front).unwrap(), "b1");
}

#[test]
fn no_backend_is_tried_twice_in_a_session() {
    let dead: Vec<SocketAddr> = (0..4).map(|_| refusing()).collect();
    // They never count as failed, so that nothing but the rule keeps a session from trying one
    // again.
    let backends: Vec<String> = dead
        .iter()
        .map(|&addr| with(addr, "max_fails = 0"))
        .collect();
    let setup = setup("retries = 10", &backends);
    for sessions in 1..=3 {
        let start = Instant::now();
        assert_ends_now(&mut connect(setup.front).unwrap());
        assert!(
            start.elapsed() < secs(2),
            "closed after {:?}",
            start.elapsed()
        );
        let record = setup.tembuku.access_log(sessions).pop().unwrap();
        let tried = tried(&record);
        assert_eq!(tried.len(), 4, "{record}");
        assert_eq!(tried.iter().collect::<BTreeSet<_>>().len(), 4, "{record}");
        assert_eq!(record["close_reason"], "connect_failed", "{record}");
    }
    assert_eq!(
        setup
            .tembuku
            .metric("sessions_closed_total", &[("reason", "connect_failed")]),
        3.0
    );
    assert_eq!(
        setup.tembuku.metric("backend_connect_errors_total", &[]),
        12.0
    );
    assert_eq!(setup.tembuku.metric("backend_retries_total", &[]), 9.0);
}

#[test]
fn retries_are_counted() {
    let dead: Vec<SocketAddr> = (0..4).map(|_| refusing()).collect();
    let backends: Vec<String> = dead
        .iter()
        .map(|&addr| with(addr, "max_fails = 0"))
        .collect();
    let setup = setup("retries = 2", &backends);
    assert_ends_now(&mut connect(setup.front).unwrap());
    assert_eq!(tried(&record(&setup)).len(), 3);
}

#[test]
fn with_no_backend_available_the_client_is_closed_at_once() {
    let (first, second) = (refusing(), refusing());
    let setup = setup("", &[plain(first), plain(second)]);
    assert_ends_now(&mut connect(setup.front).unwrap());
    setup.tembuku.wait_closed("connect_failed", 1.0);
    // Its record is written after it was counted, and must not come second.
    setup.tembuku.access_log(1);
    // Both have failed now.
    let start = Instant::now();
    assert_ends_now(&mut connect(setup.front).unwrap());
    assert!(
        start.elapsed() < secs(2),
        "closed after {:?}",
        start.elapsed()
    );
    setup.tembuku.wait_closed("no_backend", 1.0);
    let records = setup.tembuku.access_log(2);
    assert_eq!(records[0]["close_reason"], "connect_failed", "{records:?}");
    assert_eq!(records[1]["close_reason"], "no_backend", "{records:?}");
    assert_eq!(tried(&records[1]), [""; 0]);
    assert_eq!(
        setup.tembuku.metric("upstream_available_backends", &[]),
        0.0
    );
    assert_eq!(setup.tembuku.get("/readyz").status, 503);
    assert_eq!(setup.tembuku.get("/livez").status, 200);
}

#[test]
fn a_backend_that_is_down_is_never_picked() {
    let servers = named(3);
    let backends = [
        plain(servers[0].addr),
        with(servers[1].addr, "down = true"),
        plain(servers[2].addr),
    ];
    let up = setup("", &backends);
    assert_eq!(
        count_names(&ask_many(up.front, 20)),
        BTreeMap::from([("b1", 10), ("b3", 10)])
    );
    assert_eq!(up.tembuku.metric("upstream_available_backends", &[]), 2.0);
    // Not even when there is no other.
    let dead = refusing();
    let none = setup("", &[plain(dead), with(servers[1].addr, "down = true")]);
    assert_ends_now(&mut connect(none.front).unwrap());
    assert_eq!(servers[1].accepted(), 0);
}

/// As in HAProxy: a way of taking one out without taking it away.
#[test]
fn a_backend_of_weight_zero_gets_no_client() {
    let servers = named(2);
    for balance in ["round_robin", "consistent_hash"] {
        let backends = [with(servers[0].addr, "weight = 0"), plain(servers[1].addr)];
        let keys = format!("[defaults]\nbalance = \"{balance}\"");
        let hash = if balance == "consistent_hash" {
            "hash_key = \"$remote_addr\""
        } else {
            ""
        };
        let setup = setup(&format!("{keys}\n{hash}"), &backends);
        assert_eq!(
            count_names(&ask_many(setup.front, 10)),
            BTreeMap::from([("b2", 10)])
        );
    }
    assert_eq!(servers[0].accepted(), 0);
}

#[test]
fn backups_serve_only_when_every_primary_has_failed() {
    let servers = named(2);
    let (first, second) = (ports::free_addr(), ports::free_addr());
    let primaries = [
        Server::named_on("p1", &[first]),
        Server::named_on("p2", &[second]),
    ];
    let backends = [
        with(first, "fail_timeout = \"1s\""),
        with(servers[0].addr, "backup = true"),
        with(second, "fail_timeout = \"1s\""),
        with(servers[1].addr, "backup = true"),
    ];
    let setup = setup("", &backends);
    assert_eq!(
        count_names(&ask_many(setup.front, 20)),
        BTreeMap::from([("p1", 10), ("p2", 10)])
    );
    let [one, two] = primaries;
    drop(one);
    let names = ask_many(setup.front, 20);
    assert_eq!(count_names(&names), BTreeMap::from([("p2", 20)]));
    drop(two);
    let names = ask_many(setup.front, 20);
    assert_eq!(
        count_names(&names),
        BTreeMap::from([("b1", 10), ("b2", 10)])
    );
    // A primary that is back takes over again.
    let _one = Server::named_on("p1", &[first]);
    wait_until("the primary is used again", secs(10), || {
        ask(setup.front).unwrap() == "p1"
    });
    let names = ask_many(setup.front, 10);
    assert_eq!(count_names(&names), BTreeMap::from([("p1", 10)]));
}

#[test]
fn a_full_backend_is_passed_over_until_it_has_a_place() {
    let servers = named(2);
    let backends = [
        with(servers[0].addr, "max_connections = 2"),
        with(servers[1].addr, "max_connections = 1"),
    ];
    let setup = setup("", &backends);
    let mut held: Vec<_> = (0..3).map(|_| net::session(setup.front).unwrap()).collect();
    let names: Vec<String> = held.iter().map(|(_, name)| name.clone()).collect();
    assert_eq!(count_names(&names), BTreeMap::from([("b1", 2), ("b2", 1)]));
    // Both are full, and fit for all that.
    assert_ends_now(&mut connect(setup.front).unwrap());
    setup.tembuku.wait_closed("backends_full", 1.0);
    assert_eq!(setup.tembuku.get("/readyz").status, 200);
    let gauge = |name: &str| setup.tembuku.metric(name, &[("upstream", "u")]);
    assert_eq!(gauge("upstream_available_backends"), 2.0);
    assert_eq!(gauge("upstream_full_backends"), 2.0);
    let status = setup.tembuku.status();
    let upstream = &status["upstreams"][0];
    assert_eq!(
        (&upstream["available"], &upstream["full"]),
        (&2.into(), &2.into())
    );
    assert!(
        setup
            .tembuku
            .get("/")
            .body
            .contains("2 of 2 available, 2 full")
    );
    // Being full is not a failure: with a session gone, the next client gets its permit.
    let at = names.iter().position(|name| name == "b2").unwrap();
    held.remove(at);
    let label = servers[1].addr.to_string();
    setup
        .tembuku
        .wait_metric("backend_active_connections", &[("backend", &label)], |n| {
            n == 0.0
        });
    assert_eq!(ask(setup.front).unwrap(), "b2");
    assert_eq!(
        setup.tembuku.metric("backend_connect_errors_total", &[]),
        0.0
    );
}

#[test]
fn a_backend_has_failed_after_max_fails_and_not_before() {
    let (addr, server) = (refusing(), named(1));
    let backends = [with(addr, "max_fails = 2"), plain(server[0].addr)];
    let setup = setup("", &backends);
    let dead = addr.to_string();
    assert_eq!(
        count_names(&ask_many(setup.front, 40)),
        BTreeMap::from([("b1", 40)])
    );
    assert_eq!(
        setup
            .tembuku
            .metric("backend_connect_errors_total", &[("backend", &dead)]),
        2.0
    );
}

#[test]
fn zero_max_fails_means_never() {
    let (addr, server) = (refusing(), named(1));
    let setup = setup("", &[with(addr, "max_fails = 0"), plain(server[0].addr)]);
    assert_eq!(
        count_names(&ask_many(setup.front, 20)),
        BTreeMap::from([("b1", 20)])
    );
    let errors = setup.tembuku.metric(
        "backend_connect_errors_total",
        &[("backend", &addr.to_string())],
    );
    assert_eq!(errors, 10.0, "every other client starts with it");
    assert_eq!(
        setup.tembuku.metric("upstream_available_backends", &[]),
        2.0
    );
}

#[test]
fn a_failed_backend_gets_another_chance_after_fail_timeout() {
    let (addr, server) = (refusing(), named(1));
    let setup = setup(
        "",
        &[with(addr, "fail_timeout = \"2s\""), plain(server[0].addr)],
    );
    let began = Instant::now();
    assert_eq!(ask(setup.front).unwrap(), "b1");
    let errors = || setup.tembuku.metric("backend_connect_errors_total", &[]);
    while began.elapsed() < secs(2) {
        assert_eq!(ask(setup.front).unwrap(), "b1");
        let count = errors();
        // It has failed after `began`.
        let passed = began.elapsed();
        if passed < millis(1_990) {
            assert_eq!(count, 1.0, "asked again after {passed:?} already");
        }
        std::thread::sleep(millis(20)); // the pace of the clients
    }
    // One client in each fail_timeout probes, and is served by the other.
    let mut tried = began;
    wait_until("the dead backend is tried again", secs(10), || {
        tried = Instant::now();
        assert_eq!(ask(setup.front).unwrap(), "b1");
        errors() == 2.0
    });
    assert_eq!(ask_many(setup.front, 10), vec!["b1"; 10]);
    let count = errors();
    let passed = tried.elapsed();
    if passed < millis(1_990) {
        assert_eq!(count, 2.0, "asked again after {passed:?} already");
    }
    let _back = Server::named_on("back", &[addr]);
    wait_until("the backend is used again", secs(10), || {
        ask(setup.front).unwrap() == "back"
    });
    assert_eq!(
        count_names(&ask_many(setup.front, 20)),
        BTreeMap::from([("b1", 10), ("back", 10)])
    );
}

#[test]
fn a_single_backend_is_never_counted_out() {
    let addr = refusing();
    let setup = setup("", &[plain(addr)]);
    for n in 1..=5 {
        assert_ends_now(&mut connect(setup.front).unwrap());
        setup
            .tembuku
            .wait_metric("backend_connect_errors_total", &[], |errors| {
                errors == f64::from(n)
            });
    }
    // Each was one attempt; the moment it listens it is used.
    let _server = Server::named_on("b1", &[addr]);
    assert_eq!(ask(setup.front).unwrap(), "b1");
    assert_eq!(
        setup
            .tembuku
            .metric("sessions_closed_total", &[("reason", "connect_failed")]),
        5.0
    );
    assert_eq!(setup.tembuku.metric("backend_retries_total", &[]), 0.0);
}

/// However it leaves, nothing goes on trying for a client that is gone.
#[test]
fn a_client_that_leaves_ends_the_connecting() {
    for by_reset in [true, false] {
        let hole = BlackHole::new();
        let server = named(1);
        let setup = setup(
            "connect_timeout = \"30s\"",
            &[plain(hole.addr), plain(server[0].addr)],
        );
        let client = connect(setup.front).unwrap();
        setup
            .tembuku
            .wait_metric("listener_active_connections", &[], |n| n == 1.0);
        let start = Instant::now();
        if by_reset {
            reset(client)
        } else {
            drop(client)
        }
        setup.tembuku.wait_closed("client_left", 1.0);
        let took = start.elapsed();
        let most = if by_reset { secs(1) } else { secs(3) };
        assert!(took < most, "by reset: {by_reset}, after {took:?}");
        assert_eq!(record(&setup)["close_reason"], "client_left");
        assert_eq!(
            setup.tembuku.metric("listener_active_connections", &[]),
            0.0
        );
        // It was the client's doing: nothing is held against the backend.
        assert_eq!(
            setup.tembuku.metric("backend_connect_errors_total", &[]),
            0.0
        );
        assert_eq!(
            setup.tembuku.metric("upstream_available_backends", &[]),
            2.0
        );
        assert_eq!(server[0].accepted(), 0);
    }
}

/// A client may send, and even half-close, before its backend is found.
#[test]
fn what_a_client_sends_early_is_kept() {
    use std::{io::Write, net::Shutdown};
    let hole = BlackHole::new();
    let server = named(1);
    let setup = setup(
        "connect_timeout = \"500ms\"",
        &[plain(hole.addr), plain(server[0].addr)],
    );
    let mut client = connect(setup.front).unwrap();
    let early = vec![b'e'; 200_000];
    client.write_all(&early).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let (got, end) = net::read_all(&mut client);
    assert_eq!(end, net::End::Fin);
    assert!(
        got == [b"b1\n", &early[..]].concat(),
        "{} bytes came back",
        got.len()
    );
}

/// A backend that accepts and resets at once had its chance: that is an end, not a failed connect.
#[test]
fn a_backend_that_resets_at_once_ends_the_session() {
    let server = Server::start(reset);
    let setup = setup("", &[plain(server.addr)]);
    for n in 1..=50 {
        // The reset may be there before the client has looked whether it is connected.
        let end = match connect(setup.front) {
            Ok(mut client) => {
                let (bytes, end) = net::read_all(&mut client);
                assert!(bytes.is_empty());
                end
            }
            Err(error) => net::end_of(&error),
        };
        assert!(
            matches!(end, net::End::Reset | net::End::Fin),
            "client {n}: {end:?}"
        );
    }
    setup.tembuku.wait_idle();
    assert_eq!(server.accepted(), 50);
}

#[test]
fn sessions_outlive_the_failing_of_their_backend() {
    let first = ports::free_addr();
    let server = Server::named_on("b1", &[first]);
    let other = Server::named("b2");
    let setup = setup("", &[plain(first), plain(other.addr)]);
    let (mut client, name) = net::session(setup.front).unwrap();
    assert_eq!(name, "b1");
    drop(server); // refuses from now on; the connection stands
    assert_eq!(ask_many(setup.front, 10), vec!["b2"; 10]);
    echo(&mut client, "still here").unwrap();
}

#[test]
fn a_black_hole_that_refuses_at_last_ends_the_wait() {
    let hole = BlackHole::new();
    let server = named(1);
    let setup = setup(
        "connect_timeout = \"10s\"",
        &[plain(hole.addr), plain(server[0].addr)],
    );
    let start = Instant::now();
    let front = setup.front;
    let client = std::thread::spawn(move || ask(front));
    setup
        .tembuku
        .wait_metric("listener_active_connections", &[], |n| n == 1.0);
    hole.close();
    // The kernel repeats its question after a second, and is refused.
    assert_eq!(client.join().unwrap().unwrap(), "b1");
    assert!(
        start.elapsed() < Duration::from_secs(8),
        "{:?}",
        start.elapsed()
    );
}

/// The gauges agree with the transitions that are counted: time alone brings no backend back, it
/// only lets the next session try it.
#[test]
fn a_failed_backend_is_not_up_until_a_connect_succeeds() {
    let (addr, server) = (refusing(), named(1));
    let setup = setup(
        "",
        &[
            with(addr, "fail_timeout = \"500ms\""),
            plain(server[0].addr),
        ],
    );
    let label = addr.to_string();
    let is = |state: &str| {
        let labels = [("backend", label.as_str()), ("state", state)];
        setup.tembuku.metric("backend_state", &labels) == 1.0
    };
    let transitions = |to: &str| {
        let labels = [("backend", label.as_str()), ("to", to)];
        setup.tembuku.metric("backend_transitions_total", &labels)
    };
    assert!(is("up"));
    let began = Instant::now();
    assert_eq!(ask(setup.front).unwrap(), "b1");
    assert!(is("failed") || began.elapsed() >= millis(500));
    let available = || setup.tembuku.metric("upstream_available_backends", &[]);
    // Longer than fail_timeout without a client, then three probes that fail.
    let failed = Instant::now();
    while failed.elapsed() < millis(1_200) {
        assert!(is("failed") || is("unproven"), "{:?}", failed.elapsed());
        assert_eq!(available(), 1.0);
        std::thread::sleep(millis(20)); // the pace of the looking
    }
    assert!(is("unproven"));
    let errors = || setup.tembuku.metric("backend_connect_errors_total", &[]);
    wait_until("three probes", secs(20), || {
        assert_eq!(ask(setup.front).unwrap(), "b1");
        assert!(is("failed") || is("unproven"), "{} errors", errors());
        assert_eq!(available(), 1.0);
        errors() >= 4.0
    });
    assert_eq!((transitions("failed"), transitions("up")), (1.0, 0.0));
    let _back = Server::named_on("back", &[addr]);
    wait_until("the backend is used again", secs(10), || {
        ask(setup.front).unwrap() == "back"
    });
    assert!(is("up"));
    assert_eq!((transitions("failed"), transitions("up")), (1.0, 1.0));
}

/// A backup that failed once is not called failed for ever, and while every backend waits to be
/// tried the listener is ready: otherwise no session would ever come to try one.
#[test]
fn a_backend_that_waits_to_be_tried_is_unproven() {
    let (one, backup) = (refusing(), refusing());
    let setup = setup(
        "",
        &[
            with(one, "fail_timeout = \"300ms\""),
            with(backup, "fail_timeout = \"300ms\", backup = true"),
        ],
    );
    let tembuku = &setup.tembuku;
    let state = |addr: SocketAddr| {
        let status = tembuku.status();
        let backends = status["upstreams"][0]["backends"].as_array().unwrap();
        let is_it = |b: &&serde_json::Value| b["address"] == addr.to_string();
        let backend = backends.iter().find(is_it).unwrap();
        (backend["state"].clone(), backend["available"].clone())
    };
    assert!(ask(setup.front).is_err());
    wait_until("both may be tried again", secs(10), || {
        [one, backup].map(state)
            == [
                ("unproven".into(), false.into()),
                ("unproven".into(), false.into()),
            ]
    });
    assert_eq!(tembuku.metric("upstream_available_backends", &[]), 0.0);
    let unproven = [("state", "unproven")];
    assert_eq!(tembuku.metric("backend_state", &unproven), 2.0);
    assert_eq!(tembuku.get("/readyz").status, 200);
    // It comes by time, so it is not among the changes.
    assert!(!tembuku.metrics().text.contains("to=\"unproven\""));
    let _back = Server::named_on("back", &[one]);
    assert_eq!(ask(setup.front).unwrap(), "back");
    assert_eq!(state(one), ("up".into(), true.into()));
    assert_eq!(state(backup), ("unproven".into(), false.into()));
    assert_eq!(tembuku.metric("upstream_available_backends", &[]), 1.0);
}

/// No client comes: the check is the connect that the backend needs, and the alert ends.
#[test]
fn a_check_that_connects_proves_an_unproven_backend() {
    let (one, two) = (refusing(), refusing());
    let backends = [one, two].map(|addr| with(addr, "fail_timeout = \"300ms\""));
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [{}]\n\
         [upstreams.u.check]\nkind = \"tcp\"\ninterval = \"100ms\"\nfall = 1000\n\
         start = \"up\"\n[process]\nstart_wait = \"0s\"\n",
        backends.join(", ")
    ));
    // The first answer decides alone, so each has had one before the servers go.
    let is_checked = |addr: SocketAddr| {
        let addr = addr.to_string();
        let labels = [("backend", addr.as_str()), ("result", "ok")];
        tembuku.metric("check_results_total", &labels) >= 1.0
    };
    let up = [one, two].map(|addr| Server::named_on("up", &[addr]));
    wait_until("both are up", secs(10), || {
        is_checked(one) && is_checked(two)
    });
    let available = || tembuku.metric("upstream_available_backends", &[]);
    wait_until("both are available", secs(10), || available() == 2.0);
    drop(up);
    assert!(ask(front).is_err());
    wait_until("both may be tried again", secs(10), || {
        tembuku.metric("backend_state", &[("state", "unproven")]) == 2.0
    });
    assert_eq!(available(), 0.0);
    let clients = tembuku.metric("listener_connections_total", &[]);
    let _back = Server::named_on("back", &[one]);
    wait_until("the check has connected", secs(10), || available() == 1.0);
    let came = [("backend", one.to_string()), ("to", "up".to_owned())];
    let came = came.each_ref().map(|(name, value)| (*name, value.as_str()));
    assert!(tembuku.metric("backend_transitions_total", &came) >= 1.0);
    assert!(tembuku.get("/api/v1/events").body.contains("\"checked\""));
    assert_eq!(tembuku.metric("listener_connections_total", &[]), clients);
    assert_eq!(ask(front).unwrap(), "back");
}

#[test]
fn a_backend_that_the_file_turns_off_is_disabled() {
    let server = named(2);
    let setup = setup(
        "",
        &[plain(server[0].addr), with(server[1].addr, "down = true")],
    );
    let states = |state: &str| setup.tembuku.metric("backend_state", &[("state", state)]);
    assert_eq!(
        [states("up"), states("disabled"), states("down")],
        [1.0, 1.0, 0.0]
    );
    assert_eq!(
        setup.tembuku.metric("upstream_available_backends", &[]),
        1.0
    );
}

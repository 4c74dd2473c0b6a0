//! Two Redis that both report to be the primary, and one that does not answer any more.

use crate::{
    checks_redis::{Setup, replicate, setup, three},
    harness::{
        net, ports,
        programs::{Redis, call},
        secs, wait_until,
    },
};
use rustix::process::Signal;
use std::{io::Write, net::TcpStream, time::Instant};

/// Stores the name of a server in it: its replicas get it, too.
fn name(server: &Redis, name: &str) {
    assert_eq!(
        call(server.addr, &format!("SET name {name}")).unwrap(),
        "+OK"
    );
}

/// The servers that answer new sessions; each has to be answered.
#[track_caller]
fn answers(setup: &Setup, sessions: usize) -> Vec<String> {
    let ask = |_| call(setup.front, "GET name").unwrap();
    let mut names: Vec<String> = (0..sessions).map(ask).collect();
    names.dedup();
    names
}

/// Sessions that have been sent to this server so far.
fn sessions_of(setup: &Setup, server: &Redis) -> f64 {
    let backend = server.addr.to_string();
    let labels = [("backend", backend.as_str())];
    setup.tembuku.metric("backend_connections_total", &labels)
}

/// So many more checks of this server have ended.
#[track_caller]
fn wait_checks(setup: &Setup, server: &Redis, more: f64) {
    let backend = server.addr.to_string();
    let labels = [("backend", backend.as_str())];
    let before = setup.tembuku.metric("check_results_total", &labels);
    setup
        .tembuku
        .wait_metric("check_results_total", &labels, |n| n >= before + more);
}

fn events(setup: &Setup, server: &Redis) -> Vec<serde_json::Value> {
    let body = setup.tembuku.get("/api/v1/events").body;
    let events: serde_json::Value = serde_json::from_str(&body).unwrap();
    let events = events["events"].as_array().unwrap().clone();
    let backend = server.addr.to_string();
    events
        .into_iter()
        .filter(|e| e["backend"] == backend)
        .collect()
}

fn ping(stream: &mut TcpStream) -> std::io::Result<String> {
    stream.write_all(b"PING\r\n")?;
    Ok(net::read_line(stream)?.trim_end().to_owned())
}

fn primaries(setup: &Setup, count: f64) {
    setup
        .tembuku
        .wait_metric("upstream_primaries", &[], |n| n == count);
}

/// The primary dies and another one is promoted. Started again alone it calls itself a primary, as
/// every Redis does.
#[test]
fn an_old_primary_that_comes_back_alone_gets_no_session() {
    let [mut old, new, third] = three();
    let setup = setup(
        &[&old, &new, &third],
        "",
        "role = \"primary\"\ntimeout = \"400ms\"",
    );
    setup.wait_state(&old, "up");
    setup.wait_state(&new, "standby");
    old.proc.kill();
    setup.wait_state(&old, "down");
    assert_eq!(call(new.addr, "REPLICAOF NO ONE").unwrap(), "+OK");
    replicate(&third, &new);
    name(&new, "new");
    setup.wait_state(&new, "up");
    assert_eq!(answers(&setup, 5), ["new"]);
    let mut held = net::connect(setup.front).unwrap();
    assert_eq!(ping(&mut held).unwrap(), "+PONG");

    let back = Redis::start(old.addr);
    assert_eq!(call(back.addr, "ROLE").unwrap(), "*3", "it is a master");
    name(&back, "old");
    setup.wait_state(&back, "doubtful");
    let before = sessions_of(&setup, &back);
    assert_eq!(answers(&setup, 100), ["new"]);
    wait_checks(&setup, &back, 5.0);
    assert_eq!(answers(&setup, 100), ["new"]);
    assert_eq!(sessions_of(&setup, &back), before);
    assert_eq!(ping(&mut held).unwrap(), "+PONG");
    let status = setup.status(&back);
    let why = format!("{} is primary, too, and has been for longer", new.addr);
    assert_eq!(
        (&status["state"], &status["why"], &status["available"]),
        (&"doubtful".into(), &why.as_str().into(), &false.into())
    );
    assert_eq!(status["role"], serde_json::json!(["primary"]));
    primaries(&setup, 2.0);
    let events = events(&setup, &back);
    let doubtful: Vec<_> = events.iter().filter(|e| e["to"] == "doubtful").collect();
    assert_eq!(doubtful.len(), 1, "once: {events:?}");
    assert_eq!(
        (&doubtful[0]["reason"], &doubtful[0]["transcript"]),
        (&"two_primaries".into(), &why.as_str().into())
    );
    let log = setup.tembuku.proc.stderr();
    let loud = |line: &&str| line.contains("WARN") && line.contains("two_primaries");
    assert_eq!(log.lines().filter(loud).count(), 1, "{log}");

    replicate(&back, &new);
    setup.wait_state(&back, "standby");
    primaries(&setup, 1.0);
    assert_eq!(setup.status(&back)["why"], "its role is replica");
    assert_eq!(answers(&setup, 20), ["new"]);
    assert_eq!(ping(&mut held).unwrap(), "+PONG");
}

/// Two that know nothing of each other: the first takes all, and the other as soon as the first is
/// gone.
#[test]
fn a_doubt_ends_with_the_other_one() {
    let [mut first, second] = [0; 2].map(|_| Redis::start(ports::free_addr()));
    name(&first, "first");
    name(&second, "second");
    let setup = setup(
        &[&first, &second],
        "",
        "role = \"primary\"\ntimeout = \"400ms\"\nfall = 2",
    );
    setup.wait_state(&first, "up");
    setup.wait_state(&second, "doubtful");
    primaries(&setup, 2.0);
    assert_eq!(answers(&setup, 40), ["first"]);
    assert_eq!(sessions_of(&setup, &second), 0.0);
    first.proc.kill();
    let dead = Instant::now();
    wait_until("the second one serves", secs(10), || {
        call(setup.front, "GET name").is_ok_and(|name| name == "second")
    });
    println!("the other one serves after {:?}", dead.elapsed());
    setup.wait_state(&second, "up");
    assert_eq!(
        events(&setup, &second).last().unwrap()["reason"],
        "one_primary"
    );
    // It has been away: the second one has been there for longer now.
    let first = Redis::start(first.addr);
    name(&first, "first");
    setup.wait_state(&first, "doubtful");
    assert_eq!(answers(&setup, 40), ["second"]);
}

/// A primary that hangs is no verdict yet where checks are patient; still it does not get sessions
/// for long.
#[test]
fn a_primary_with_stale_results_takes_nothing_new() {
    let [old, third, new] = [0; 3].map(|_| Redis::start(ports::free_addr()));
    // What it takes over has nothing to do with the old one: no proof.
    replicate(&new, &third);
    name(&old, "old");
    let setup = setup(
        &[&old, &new],
        "",
        "role = \"primary\"\ntimeout = \"500ms\"\nfall = 1000\nstale_after = \"3s\"",
    );
    setup.wait_state(&old, "up");
    setup.wait_state(&new, "standby");
    let mut held = net::connect(setup.front).unwrap();
    assert_eq!(ping(&mut held).unwrap(), "+PONG");
    wait_checks(&setup, &old, 6.0);
    assert_eq!(
        setup.status(&old)["available"],
        true,
        "as long as it answers"
    );
    old.proc.signal(Signal::STOP);
    let stopped = Instant::now();
    wait_until("it takes nothing new", secs(10), || {
        setup.status(&old)["available"] == false
    });
    let took = stopped.elapsed();
    println!("nothing new after {took:?}");
    // The last answer may be as old as an interval.
    assert!(took > secs(1), "{took:?}");
    net::assert_ends_now(&mut net::connect(setup.front).unwrap());
    let status = setup.status(&old);
    assert_eq!(status["state"], "up");
    let why = status["why"].as_str().unwrap();
    assert!(why.starts_with("no certain answer for "), "{why}");
    assert_eq!(setup.tembuku.get("/readyz").status, 503);
    wait_until("the log reports it", secs(5), || {
        setup
            .tembuku
            .proc
            .stderr()
            .contains("check results are stale")
    });
    // Another one is promoted, and the old one wakes up.
    assert_eq!(call(new.addr, "REPLICAOF NO ONE").unwrap(), "+OK");
    name(&new, "new");
    setup.wait_state(&new, "up");
    assert_eq!(answers(&setup, 10), ["new"]);
    old.proc.signal(Signal::CONT);
    setup.wait_state(&old, "doubtful");
    wait_checks(&setup, &old, 4.0);
    assert_eq!(answers(&setup, 50), ["new"]);
    // It may be right after all: its sessions stay.
    assert_eq!(ping(&mut held).unwrap(), "+PONG");
    replicate(&old, &new);
    assert_eq!(
        net::read_all(&mut held).1,
        net::End::Reset,
        "its role is lost"
    );
}

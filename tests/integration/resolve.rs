//! Host names whose meaning changes, or is long in coming.

use crate::harness::{
    net::{ask, echo, session},
    ports,
    proc::{self, Proc},
    programs, secs,
    server::{Server, ask_many},
    tembuku::{Tembuku, binary},
    temp::TempDir,
    wait_until,
};
use rustix::process::Signal;
use std::{
    collections::BTreeSet,
    net::{SocketAddr, UdpSocket},
    process::Command,
    time::Instant,
};

fn servers(port: u16) -> [Server; 2] {
    [("one", 1), ("two", 2)]
        .map(|(name, host)| Server::named_on(name, &[SocketAddr::from(([127, 0, 7, host], port))]))
}

fn start(front: SocketAddr, port: u16, more: &str) -> Tembuku {
    Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nresolve_interval = \"200ms\"\n{more}\n\
         backends = [\"backend.test:{port}\"]\n"
    ))
}

fn seen(front: SocketAddr) -> BTreeSet<String> {
    ask_many(front, 6).into_iter().collect()
}

#[test]
fn a_name_may_change_its_meaning() {
    let Some(place) = programs::place() else {
        return programs::again_in_own_place("resolve::a_name_may_change_its_meaning");
    };
    let (front, port) = (ports::free_addr(), ports::free_port());
    let _servers = servers(port);
    place.set_hosts("127.0.7.1 backend.test");
    let tembuku = start(front, port, "");
    assert_eq!(seen(front), BTreeSet::from(["one".to_owned()]));
    let (mut client, _) = session(front).unwrap();

    place.set_hosts("127.0.7.2 backend.test");
    wait_until("new clients go to the new address", secs(10), || {
        ask(front).unwrap() == "two"
    });
    assert_eq!(seen(front), BTreeSet::from(["two".to_owned()]));
    echo(&mut client, "the old session stays where it is").unwrap();

    place.set_hosts("127.0.7.1 backend.test\n127.0.7.2 backend.test");
    wait_until("both addresses are used", secs(10), || {
        seen(front).len() == 2
    });
    let names = ask_many(front, 10);
    assert_eq!(
        names.iter().filter(|name| *name == "one").count(),
        5,
        "they are picked in rotation: {names:?}"
    );

    // When a name does not resolve any more, its last addresses stay in use.
    place.set_hosts("");
    let warned = || tembuku.proc.stderr().matches("backend.test").count();
    let before = warned();
    wait_until("it has noticed", secs(10), || warned() > before);
    assert_eq!(seen(front).len(), 2);
    assert_eq!(tembuku.get("/readyz").status, 200);

    // The label stays the name, so there is one series for it whatever it means.
    let label = format!("backend.test:{port}");
    let metrics = tembuku.metrics();
    let series = metrics
        .series
        .iter()
        .filter(|series| series.name == "tembuku_backend_connections_total");
    assert!(
        series.clone().count() == 1
            && series
                .clone()
                .all(|series| series.labels["backend"] == label)
    );
}

#[test]
fn a_name_may_come_later() {
    let Some(place) = programs::place() else {
        return programs::again_in_own_place("resolve::a_name_may_come_later");
    };
    let (front, port) = (ports::free_addr(), ports::free_port());
    let _servers = servers(port);
    let tembuku = start(front, port, "resolve_required = false");
    assert_eq!(
        tembuku.get("/readyz").status,
        503,
        "its only backend has no address"
    );
    crate::harness::net::assert_closed_at_once(front);
    tembuku.wait_closed("no_backend", 1.0);
    place.set_hosts("127.0.7.2 backend.test");
    wait_until("it is served", secs(10), || {
        ask(front).is_ok_and(|name| name == "two")
    });
    wait_until("it is ready", secs(10), || {
        tembuku.get("/readyz").status == 200
    });
}

/// A start that waits for a resolver can be stopped like anything else.
#[test]
fn a_start_that_waits_for_a_name_may_be_stopped() {
    let Some(_place) = programs::place() else {
        return programs::again_in_own_place(
            "resolve::a_start_that_waits_for_a_name_may_be_stopped",
        );
    };
    // A name server that hears everything and answers nothing.
    let resolver = UdpSocket::bind("127.0.0.1:53").unwrap();
    resolver.set_read_timeout(Some(secs(10))).unwrap();
    let dir = TempDir::new();
    let config = dir.write(
        "tembuku.toml",
        "[listeners.l]\nbind = \"127.0.0.1:7001\"\nupstream = \"u\"\n[upstreams.u]\n\
         backends = [\"one.example.test:1\", \"two.example.test:1\", \"three.example.test:1\"]\n",
    );
    let mut command = Command::new(binary());
    command
        .args(["run", "-c"])
        .arg(&config)
        .env("RES_OPTIONS", "timeout:5 attempts:3");
    let mut proc = Proc::start("tembuku", dir.path(), command);
    resolver
        .recv_from(&mut [0; 512])
        .expect("a question to the name server");
    assert!(proc.ended().is_none());
    let start = Instant::now();
    proc.signal(Signal::TERM);
    let status = proc.wait(secs(8)).expect("an end after TERM");
    assert_eq!(status.code(), Some(0), "{}", proc.stderr());
    assert!(start.elapsed() < secs(3), "{:?}", start.elapsed());
}

/// An address that is away for a moment, as with resolvers that name a part of all at a time, is
/// still full when it comes back.
#[test]
fn an_address_that_comes_back_is_known() {
    let Some(place) = programs::place() else {
        return programs::again_in_own_place("resolve::an_address_that_comes_back_is_known");
    };
    let (front, port) = (ports::free_addr(), ports::free_port());
    let servers = servers(port);
    place.set_hosts("127.0.7.1 backend.test\n127.0.7.2 backend.test");
    let tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nresolve_interval = \"100ms\"\n\
         backends = [{{ address = \"backend.test:{port}\", max_connections = 2 }}]\n"
    ));
    let held: Vec<_> = (0..4).map(|_| session(front).unwrap()).collect();
    assert!(session(front).is_err(), "both are full");
    let has_addresses = |count: usize| {
        let status = tembuku.status();
        let resolved = &status["upstreams"][0]["backends"][0]["resolved"];
        resolved.as_array().unwrap().len() == count
    };
    place.set_hosts("127.0.7.1 backend.test");
    wait_until("one is gone", secs(10), || has_addresses(1));
    let events = tembuku.events();
    let [gone] = &events[..] else {
        panic!("{events:?}");
    };
    let address = format!("127.0.7.2:{port}");
    for (key, value) in [("address", &address[..]), ("from", "up"), ("to", "removed")] {
        assert_eq!(gone[key], value, "{gone}");
    }
    assert_eq!(
        (&gone["reason"], &gone["sessions"]),
        (&"resolver".into(), &2.into())
    );
    place.set_hosts("127.0.7.1 backend.test\n127.0.7.2 backend.test");
    wait_until("it is back", secs(10), || has_addresses(2));
    assert_eq!(tembuku.events()[1]["address"], address);
    assert_eq!(tembuku.events()[1]["from"], "added");
    assert!(session(front).is_err(), "both are still full");
    drop(held);
    wait_until("both have capacity", secs(10), || {
        tembuku.wait_idle();
        seen(front).len() == 2
    });
    drop(servers);
}

/// A resolver that fails is no reason to refuse a change that has nothing to do with it.
#[test]
fn a_reload_looks_up_new_names_alone() {
    let Some(place) = programs::place() else {
        return programs::again_in_own_place("resolve::a_reload_looks_up_new_names_alone");
    };
    let (front, port) = (ports::free_addr(), ports::free_port());
    let _servers = servers(port);
    place.set_hosts("127.0.7.1 backend.test");
    let config = |backends: &str| {
        format!(
            "[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
             [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
             [upstreams.u]\nresolve_interval = \"0s\"\nbackends = [{backends}]\n"
        )
    };
    let known = format!("\"backend.test:{port}\"");
    let tembuku = Tembuku::start(&config(&known));
    place.set_hosts("");
    let both = format!("{known}, \"127.0.7.2:{port}\"");
    tembuku.reload(&config(&both));
    assert_eq!(seen(front).len(), 2);
    // One that is new must resolve.
    let unknown = config(&format!("{both}, \"other.test:{port}\""));
    let output = tembuku.try_reload(&unknown);
    let text = proc::text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("other.test does not resolve"), "{text}");
    place.set_hosts("127.0.7.1 other.test");
    tembuku.reload(&unknown);
    assert_eq!(seen(front).len(), 2);
}

//! What the source of backends has said goes over, although it does not answer at the time.

use super::{Succession, listener, streams::Streams};
use crate::harness::{
    net, ports,
    proc::text,
    programs::{Redis, call},
    secs,
    server::{Server, ask_many, named},
    tembuku::cli,
    wait_until,
};
use rustix::process::Signal;
use serde_json::Value;
use std::{collections::BTreeSet, fs, net::SocketAddr};

fn config(front: SocketAddr, discover: &str) -> String {
    listener("l", &front.to_string(), "u") + &format!("[upstreams.u.discover]\n{discover}\n")
}

fn discovery(tembuku: &Succession) -> Value {
    tembuku.status()["upstreams"][0]["discovery"].take()
}

fn backends(tembuku: &Succession) -> BTreeSet<String> {
    let status = tembuku.status();
    let backends = status["upstreams"][0]["backends"].as_array().unwrap();
    let there = backends.iter().filter(|b| b["state"] != "removed");
    let address = |b: &Value| b["address"].as_str().unwrap().to_owned();
    there.map(address).collect()
}

fn addresses(servers: &[Server]) -> BTreeSet<String> {
    servers
        .iter()
        .map(|server| server.addr.to_string())
        .collect()
}

/// The source hangs, then refuses, and comes back with other backends.
#[test]
fn a_source_that_does_not_answer_takes_nothing_away() {
    let servers = named(3);
    let redis = Redis::start(ports::free_addr());
    let list: Vec<String> = addresses(&servers).into_iter().collect();
    let push = format!("RPUSH servers {}", list.join(" "));
    assert!(call(redis.addr, &push).unwrap().starts_with(':'));
    let front = ports::free_addr();
    let discover = format!(
        "kind = \"redis\"\nserver = \"{}\"\nkey = \"servers\"\ninterval = \"200ms\"\n\
         timeout = \"500ms\"",
        redis.addr
    );
    let mut tembuku = Succession::start(&config(front, &discover));
    wait_until("the set is known", secs(20), || {
        backends(&tembuku) == addresses(&servers)
    });
    let streams = Streams::start(front, 30);
    // An operator has set something for one that has left for a while.
    let drained = format!("u/{}", servers[2].addr);
    let socket = tembuku.socket();
    let order = ["drain", &drained, "--socket", socket.to_str().unwrap()];
    let set = cli(&order);
    assert_eq!(set.status.code(), Some(0), "{}", text(&set));
    let remove = format!("LREM servers 0 {}", servers[2].addr);
    call(redis.addr, &remove).unwrap();
    wait_until("it is removed", secs(20), || {
        backends(&tembuku) == addresses(&servers[..2])
    });
    let before = discovery(&tembuku);
    redis.proc.signal(Signal::STOP);
    for _ in 0..2 {
        let out = tembuku.upgrade();
        assert!(
            out.contains("0 flows stay") || out.contains("nothing is left"),
            "{out}"
        );
        assert_eq!(backends(&tembuku), addresses(&servers[..2]));
        let now = discovery(&tembuku);
        assert_eq!(now["version"], before["version"]);
        assert!(now["error"].as_str().is_some(), "{now}");
        assert_eq!(streams.advance("the source hangs"), 0);
        let names: BTreeSet<String> = ask_many(front, 8).into_iter().collect();
        assert_eq!(names, ["b1", "b2"].map(str::to_owned).into());
        // Sessions of the backend that has left stay with the process that has them.
        if !out.contains("nothing is left") {
            break;
        }
    }
    redis.proc.signal(Signal::CONT);
    wait_until("the source answers", secs(20), || {
        discovery(&tembuku)["error"].is_null()
    });
    let push = format!("RPUSH servers {}", servers[2].addr);
    call(redis.addr, &push).unwrap();
    wait_until("all are back", secs(20), || {
        backends(&tembuku) == addresses(&servers)
    });
    let names: BTreeSet<String> = ask_many(front, 9).into_iter().collect();
    assert_eq!(
        names,
        ["b1", "b2"].map(str::to_owned).into(),
        "the third is drained"
    );
    assert_eq!(streams.finish(), 0);
}

/// What is held is held as long as it would have been.
#[test]
fn what_is_held_is_held_by_the_next_process() {
    let servers = named(4);
    let front = ports::free_addr();
    let folder = crate::harness::temp::TempDir::new();
    let path = folder.file("servers");
    let write = |servers: &[Server]| {
        let list: Vec<String> = addresses(servers).into_iter().collect();
        fs::write(folder.file("new"), list.join("\n") + "\n").unwrap();
        fs::rename(folder.file("new"), &path).unwrap();
    };
    write(&servers);
    let discover = format!(
        "kind = \"file\"\npath = \"{}\"\ninterval = \"100ms\"\nconfirm = \"8s\"",
        path.display()
    );
    let mut tembuku = Succession::start(&config(front, &discover));
    assert_eq!(backends(&tembuku), addresses(&servers));
    // More than half are gone.
    write(&servers[..1]);
    let held = |tembuku: &Succession| discovery(tembuku)["held"].as_array().unwrap().clone();
    wait_until("they are held", secs(10), || held(&tembuku).len() == 3);
    let until = |tembuku: &Succession| held(tembuku)[0]["until"].as_str().unwrap().to_owned();
    let before = until(&tembuku);
    tembuku.upgrade();
    assert_eq!(backends(&tembuku), addresses(&servers));
    // To the second, since each process has looked at the clock.
    let near = |a: &str, b: &str| a[..17] == b[..17];
    let after = until(&tembuku);
    assert!(near(&before, &after), "{before}, {after}");
    wait_until("they are removed in time", secs(9), || {
        backends(&tembuku) == addresses(&servers[..1])
    });
    tembuku.upgrade();
    assert_eq!(backends(&tembuku), addresses(&servers[..1]));
    assert_eq!(net::ask(front).unwrap(), "b1");
}

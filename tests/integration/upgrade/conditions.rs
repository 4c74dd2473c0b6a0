//! The rows of the table of docs/upgrade.md that are about what surrounds an upgrade: limits, other
//! users, and other changes at the same time. Sessions with numbered bytes go through all of them.

use super::{Succession, front_of, listener, streams::Streams, upstream};
use crate::{
    checks_redis::three,
    harness::{
        net, ports,
        proc::{command, run_ok, text},
        programs::{Redis, call},
        secs,
        server::{Server, named},
        tembuku::{cli, copy_binary},
        wait_until,
    },
};
use std::{net::SocketAddr, path::PathBuf, thread};

/// A program that is the binary, started through another one where it is to take over.
fn through(tembuku: &Succession, wrapper: &str) -> PathBuf {
    let script = format!(
        "#!/bin/sh\ncase $1 in check|handover-formats) exec {binary} \"$@\";; esac\n\
         exec {wrapper} {binary} \"$@\"\n",
        binary = tembuku.first.dir.file("copy").display(),
    );
    copy_binary(&tembuku.first.dir.file("copy"));
    let script = tembuku.first.dir.write("through", &script);
    let mut chmod = command("chmod 755");
    chmod.arg(&script);
    run_ok(secs(5), chmod);
    script
}

/// An upgrade that is refused or fails, and changes nothing.
#[track_caller]
fn fails(tembuku: &Succession, streams: &Streams, wrapper: &str, words: &str) {
    let script = through(tembuku, wrapper);
    let output = tembuku.try_upgrade(&["--binary", script.to_str().unwrap()]);
    let printed = text(&output);
    assert_eq!(output.status.code(), Some(1), "{wrapper}: {printed}");
    assert!(printed.contains(words), "{wrapper}: {printed}");
    assert_eq!(tembuku.pid(), tembuku.current);
    assert_eq!(streams.advance(wrapper), 0);
}

#[test]
fn a_new_process_without_descriptors_or_memory_changes_nothing() {
    let server = Server::named("a");
    let (front, config) = front_of(&server);
    let mut tembuku = Succession::start(&config);
    let streams = Streams::start(front, 50);
    fails(
        &tembuku,
        &streams,
        "prlimit --nofile=100",
        "may open 100 files",
    );
    fails(&tembuku, &streams, "prlimit --nofile=5", "");
    for memory in [2_000_000, 8_000_000, 16_000_000] {
        fails(&tembuku, &streams, &format!("prlimit --as={memory}"), "");
    }
    fails(&tembuku, &streams, "false", "");
    tembuku.upgrade();
    assert_eq!(streams.finish(), 0);
}

/// It gets all that it needs as open descriptors.
#[test]
fn a_new_process_of_another_user_takes_over() {
    let server = Server::named("a");
    let (front, config) = front_of(&server);
    let mut tembuku = Succession::start(&config);
    let streams = Streams::start(front, 50);
    let script = through(
        &tembuku,
        "setpriv --reuid=65534 --regid=65534 --clear-groups",
    );
    let output = tembuku.try_upgrade(&["--binary", script.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    tembuku.current = tembuku.pid();
    tembuku.wait_alone();
    let status = std::fs::read_to_string(format!("/proc/{}/status", tembuku.current)).unwrap();
    assert!(status.contains("Uid:\t65534\t"), "{status}");
    assert_eq!(streams.advance("of another user"), 0);
    // And back, which no process of that user can do itself.
    assert_eq!(net::ask(front).unwrap(), "a");
    assert_eq!(streams.finish(), 0);
}

#[test]
fn two_upgrades_and_reloads_at_once_cost_no_session() {
    let server = Server::named("a");
    let (front, config) = front_of(&server);
    let mut tembuku = Succession::start(&config);
    let streams = Streams::start(front, 50);
    let socket = tembuku.socket();
    let socket = socket.to_str().unwrap();
    for round in 0..3 {
        let outputs = thread::scope(|scope| {
            let upgrades = [(); 2].map(|()| scope.spawn(|| tembuku.try_upgrade(&[])));
            let reload = scope.spawn(|| cli(&["reload", "--socket", socket]));
            let upgrades = upgrades.map(|one| one.join().unwrap());
            // It is made before or after, or is told that this process stops.
            let reloaded = reload.join().unwrap();
            let printed = text(&reloaded);
            let is_known = ["the process stops", "cannot reach", "cut off"];
            assert!(
                reloaded.status.success() || is_known.iter().any(|words| printed.contains(words)),
                "{printed}"
            );
            upgrades
        });
        tembuku.current = tembuku.pid();
        assert!(
            outputs.iter().any(|output| output.status.success()),
            "round {round}"
        );
        tembuku.wait_alone();
        assert_eq!(streams.advance("both"), 0);
    }
    assert_eq!(streams.finish(), 0);
}

/// With another number of workers, other keys, another backend, and a listener more and one less.
#[test]
fn the_file_changes_together_with_the_program() {
    let servers = named(2);
    let [first, second, third] = [(); 3].map(|()| ports::free_addr());
    let config = |workers: usize, fronts: &[SocketAddr], backends: &[&Server], more: &str| {
        let list: Vec<String> = backends.iter().map(|b| format!("\"{}\"", b.addr)).collect();
        let listeners = fronts.iter().map(|front| {
            let name = format!("l{}", front.port());
            listener(&name, &front.to_string(), "u") + more
        });
        format!("[process]\nworkers = {workers}\n")
            + &listeners.collect::<String>()
            + &upstream("u", &list.join(", "))
    };
    let before = config(2, &[first, second], &[&servers[0]], "");
    let mut tembuku = Succession::start(&before);
    let streams = Streams::start(first, 40);
    let steps = [
        (
            1,
            vec![first, third],
            vec![&servers[0], &servers[1]],
            "idle_timeout = \"1m\"\n",
        ),
        (
            4,
            vec![first],
            vec![&servers[1], &servers[0]],
            "nodelay = false\n",
        ),
        (3, vec![first, second, third], vec![&servers[0]], ""),
    ];
    for (workers, fronts, backends, more) in steps {
        tembuku.write(&config(workers, &fronts, &backends, more));
        let out = tembuku.upgrade();
        assert!(out.contains("nothing is left behind"), "{out}");
        tembuku.wait_alone();
        assert_eq!(tembuku.status()["process"]["workers"], workers);
        assert_eq!(streams.advance("another file"), 0);
        for front in [first, second, third] {
            assert_eq!(
                net::ask(front).is_ok(),
                fronts.contains(&front),
                "{fronts:?}"
            );
        }
    }
    assert_eq!(streams.finish(), 0);
}

/// Whichever process finds it out: sessions of the old primary end, and new ones reach the new one.
#[test]
fn a_primary_fails_over_during_upgrades() {
    let [mut primary, first, second] = three();
    let servers = [&primary, &first, &second].map(|redis| redis.addr);
    let list: Vec<String> = servers.iter().map(|addr| format!("\"{addr}\"")).collect();
    let (front, echo_front) = (ports::free_addr(), ports::free_addr());
    let echo = Server::named("a");
    let config = listener("l", &front.to_string(), "u")
        + &listener("e", &echo_front.to_string(), "e")
        + &upstream("u", &list.join(", "))
        + "[upstreams.u.check]\nkind = \"redis\"\nrole = \"primary\"\ninterval = \"100ms\"\n\
           timeout = \"300ms\"\nfall = 2\nrise = 1\n"
        + &upstream("e", &format!("\"{}\"", echo.addr));
    let mut tembuku = Succession::start(&config);
    let streams = Streams::start(echo_front, 50);
    wait_until("the primary is used", secs(20), || {
        call(front, "SET k 1").is_ok_and(|answer| answer.starts_with("+OK"))
    });
    primary.proc.kill();
    for upgrade in 0..4 {
        if upgrade == 1 {
            promote(&first, &second);
        }
        tembuku.upgrade();
        tembuku.wait_alone();
        assert_eq!(streams.advance("an upgrade"), 0);
    }
    wait_until("the new primary is used", secs(20), || {
        call(front, "SET k 2").is_ok_and(|answer| answer.starts_with("+OK"))
    });
    assert!(call(first.addr, "GET k").unwrap().contains('2'));
    // A further process knows it from the start.
    tembuku.upgrade();
    assert!(call(front, "SET k 3").unwrap().starts_with("+OK"));
    assert_eq!(streams.finish(), 0);
}

fn promote(first: &Redis, second: &Redis) {
    assert!(
        call(first.addr, "REPLICAOF NO ONE")
            .unwrap()
            .starts_with('+')
    );
    let follow = format!("REPLICAOF {} {}", first.addr.ip(), first.addr.port());
    assert!(call(second.addr, &follow).unwrap().starts_with('+'));
}

/// Turns and settings of operators go on exactly, also those that change while the new process
/// starts.
#[test]
fn turns_go_on_where_they_were() {
    let servers = named(3);
    let front = ports::free_addr();
    let backends = format!(
        "{{ address = \"{}\", weight = 5 }}, \"{}\", \"{}\"",
        servers[0].addr, servers[1].addr, servers[2].addr
    );
    let config = listener("l", &front.to_string(), "u") + &upstream("u", &backends);
    let mut tembuku = Succession::start(&config);
    let mut served = Vec::new();
    for _ in 0..7 {
        served.extend((0..3).map(|_| net::ask(front).unwrap()));
        tembuku.upgrade();
        tembuku.wait_alone();
    }
    let turns = ["b1", "b1", "b2", "b1", "b3", "b1", "b1"];
    let expected: Vec<&str> = turns.iter().copied().cycle().take(21).collect();
    assert_eq!(served, expected);
}

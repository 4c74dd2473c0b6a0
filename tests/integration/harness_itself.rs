//! The tests' own tools: a check that cannot fail is none.

use crate::harness::{
    metrics::Metrics,
    millis,
    net::{self, BlackHole, End, connect, echo, read_all, reset, wait_delivered},
    ports,
    proc::{Proc, command, spawn},
    rng::Rng,
    secs,
    server::{Server, ask_many},
    tembuku::Tembuku,
    temp::TempDir,
    threads::thread_id,
    udp::{UdpServer, ask, client, receive, receive_if_any},
    wait_until,
};
use socket2::{Domain, Socket, Type};
use std::{
    collections::BTreeSet,
    io::{ErrorKind, Write},
    net::TcpStream,
    thread,
};

#[test]
fn metrics_are_read_strictly() {
    let text = "# HELP tembuku_a what\n# TYPE tembuku_a counter\n\
                tembuku_a{x=\"1\",y=\"q\\\"}\"} 2\n\
                tembuku_a{x=\"2\"} 3.5\n# TYPE tembuku_h histogram\n\
                tembuku_h_bucket{le=\"+Inf\"} 1\n\
                tembuku_h_sum 0.1\ntembuku_h_count 1\n";
    let metrics = Metrics::parse(text).unwrap();
    assert_eq!(metrics.sum("a", &[]), 5.5);
    assert_eq!(metrics.sum("a", &[("x", "1")]), 2.0);
    assert_eq!(metrics.sum("a", &[("y", "q\"}")]), 2.0);
    assert!(metrics.has("h_count", &[]) && !metrics.has("b", &[]));
    for bad in [
        "tembuku_a 1\n",
        "# TYPE tembuku_a counter\ntembuku_a 1\ntembuku_a 2\n",
        "# TYPE tembuku_a counter\n# TYPE tembuku_a gauge\ntembuku_a 1\n",
        "# TYPE tembuku_a speed\ntembuku_a 1\n",
        "# TYPE tembuku_a counter\ntembuku_a{x=\"1\" 1\n",
        "# TYPE tembuku_a counter\ntembuku_a one\n",
        "# TYPE tembuku_a counter\ntembuku_a{x=\"1\",x=\"2\"} 1\n",
    ] {
        assert!(Metrics::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_named_backend_says_its_name_and_refuses_when_gone() {
    let server = Server::named("me");
    let addr = server.addr;
    let (mut client, name) = net::session(addr).unwrap();
    assert_eq!(name, "me");
    echo(&mut client, "back").unwrap();
    assert_eq!(ask_many(addr, 3), vec!["me"; 3]);
    assert_eq!(server.accepted(), 4);
    drop(server);
    assert!(TcpStream::connect(addr).is_err());
    echo(&mut client, "what stands goes on").unwrap();
    let _again = Server::named_on("again", &[addr]);
    assert_eq!(net::ask(addr).unwrap(), "again");
}

#[test]
fn a_black_hole_neither_accepts_nor_refuses() {
    let hole = BlackHole::new();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let error = socket
        .connect_timeout(&hole.addr.into(), millis(400))
        .unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    hole.close();
}

#[test]
fn a_reset_is_distinguished_from_an_end() {
    let server = Server::start(|mut stream| {
        stream.write_all(&[1; 300_000]).unwrap();
        wait_delivered(&stream).unwrap();
        reset(stream);
    });
    let (bytes, end) = read_all(&mut connect(server.addr).unwrap());
    assert_eq!((bytes.len(), end), (300_000, End::Reset));
    let server = Server::start(|mut stream| stream.write_all(b"end").unwrap());
    assert_eq!(
        read_all(&mut connect(server.addr).unwrap()),
        (b"end".to_vec(), End::Fin)
    );
}

#[test]
fn ports_are_free_and_different() {
    let ports: BTreeSet<u16> = (0..200).map(|_| ports::free_port()).collect();
    assert_eq!(ports.len(), 200);
    let first = ports::free_range(4);
    assert!((first..first + 4).all(|port| !ports.contains(&port)));
}

#[test]
fn a_child_ends_with_its_guard() {
    let dir = TempDir::new();
    let path = dir.path().to_owned();
    // One that does not listen to TERM is killed.
    let mut stubborn = command("bash -c");
    stubborn.arg("trap '' TERM; echo up; while :; do sleep 0.1; done");
    let mut proc = Proc::start("stubborn", dir.path(), stubborn);
    proc.wait_ready(secs(5), || {
        std::fs::read_to_string(path.join("stubborn.out")).is_ok_and(|text| text == "up\n")
    });
    let id = proc.id();
    drop(proc);
    assert!(!std::path::Path::new(&format!("/proc/{id}")).exists());
    drop(dir);
    assert!(!path.exists());
}

#[test]
fn a_seed_repeats_its_numbers() {
    let numbers = |seed| -> Vec<u64> {
        let mut rng = Rng::new(seed);
        (0..100).map(|_| rng.below(1_000)).collect()
    };
    assert_eq!(numbers(7), numbers(7));
    assert_ne!(numbers(7), numbers(8));
    let mut rng = Rng::new(9);
    let sizes: Vec<u64> = (0..2_000).map(|_| rng.magnitude(20.0)).collect();
    assert!(sizes.iter().any(|&size| size < 4) && sizes.iter().any(|&size| size > 500_000));
}

#[test]
fn a_server_of_datagrams_keeps_back_and_refuses_when_gone() {
    let server = UdpServer::named("me");
    let client = client(server.addr);
    assert_eq!(ask(&client, "a"), "me a");
    server.hold();
    client.send(b"b").unwrap();
    client.send(b"c").unwrap();
    server.wait_held(2);
    assert_eq!(receive_if_any(&client), None);
    server.release();
    assert_eq!(
        (receive(&client), receive(&client)),
        (b"me b".to_vec(), b"me c".to_vec())
    );
    assert_eq!((server.taken(), server.peers().len()), (3, 1));
    drop(server);
    client.send(b"d").unwrap();
    let error = client.recv(&mut [0; 10]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

/// A child looks for its program for a while here, with copies of all sockets of this process.
#[test]
fn a_server_that_is_gone_refuses_while_children_start() {
    thread::scope(|scope| {
        let starting = scope.spawn(|| {
            for _ in 0..30 {
                let mut child = command("true");
                child.env("PATH", "/-:".repeat(1_000) + "/bin:/usr/bin");
                spawn(&mut child).unwrap().wait().unwrap();
            }
        });
        while !starting.is_finished() {
            let server = UdpServer::named("me");
            let client = client(server.addr);
            assert_eq!(ask(&client, "a"), "me a");
            let addr = server.addr;
            drop(server);
            client.send(b"b").unwrap();
            let error = client.recv(&mut [0; 10]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            drop(UdpServer::named_on("again", addr));
        }
    });
}

/// The thread that writes its log is late.
#[test]
fn a_log_is_read_with_what_has_been_done() {
    let front = ports::free_addr();
    let config = |drain: usize| {
        format!(
            "[process]\ndrain_timeout = \"{drain}s\"\n[log]\nformat = \"json\"\n\
             [admin]\nsocket = \"{{dir}}/admin.sock\"\n\
             [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
             [upstreams.u]\nbackends = [\"127.0.0.1:1\"]\n"
        )
    };
    let tembuku = Tembuku::start(&config(30));
    let writer = thread_id(&tembuku.proc, "log-writer");
    let mut late = command("strace -qq -o /dev/null -e trace=write -e");
    late.arg("inject=write:delay_enter=300000").arg("-p");
    late.arg(&writer);
    let strace = Proc::start("strace", tembuku.dir.path(), late);
    wait_until("it is late", secs(10), || {
        let status = format!("/proc/{}/task/{writer}/status", tembuku.proc.id());
        !std::fs::read_to_string(status)
            .unwrap()
            .contains("TracerPid:\t0\n")
    });
    for n in 1..=3 {
        tembuku.reload(&config(n));
        let log = tembuku.log().into_iter();
        let reloaded = log.filter(|line| line["message"] == "configuration reloaded");
        assert_eq!(reloaded.count(), n);
    }
    drop(strace);
}

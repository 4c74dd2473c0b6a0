//! Stopping: what is going on may finish, up to a limit.

use crate::harness::{
    bounded, http, millis,
    net::{self, BlackHole, End, assert_ends_now, echo, read_all},
    ports,
    proc::{Streams, narrow_pipe},
    secs,
    server::{Server, ask_many, list, named},
    tembuku::Tembuku,
    wait_until,
};
use rustix::process::Signal;
use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    thread,
    time::Instant,
};

struct Setup {
    tembuku: Tembuku,
    front: SocketAddr,
    _servers: Vec<Server>,
}

fn setup(drain_timeout: &str) -> Setup {
    let servers = named(1);
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[process]\ndrain_timeout = \"{drain_timeout}\"\n[log]\naccess = \"{{dir}}/access.log\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n[upstreams.u]\nbackends = {}\n",
        list(&servers)
    ));
    Setup {
        tembuku,
        front,
        _servers: servers,
    }
}

fn refuses(addr: SocketAddr) -> bool {
    TcpStream::connect(addr).is_err()
}

#[test]
fn with_nothing_to_do_it_ends_at_once() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut setup = setup("30s");
        let (client, _) = net::session(setup.front).unwrap();
        drop(client);
        setup.tembuku.wait_idle();
        let start = Instant::now();
        setup.tembuku.proc.signal(signal);
        let status = setup.tembuku.proc.wait(secs(10)).unwrap();
        assert_eq!(status.code(), Some(0));
        assert!(start.elapsed() < secs(3), "{:?}", start.elapsed());
        assert!(refuses(setup.front));
    }
}

/// An answer is sent as a whole, also to a client that reads it only when nothing else is left to
/// do.
#[test]
fn what_was_asked_is_answered_before_the_end() {
    let front = ports::free_addr();
    let backends: Vec<String> = (0..3_000)
        .map(|n| format!("\"127.9.{}.{}:1\"", n / 250, n % 250 + 1))
        .collect();
    let mut tembuku = Tembuku::start(&format!(
        "[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [{}]\n",
        backends.join(", ")
    ));
    let mut client = UnixStream::connect(tembuku.dir.file("admin.sock")).unwrap();
    client.set_read_timeout(Some(secs(10))).unwrap();
    client
        .write_all(b"GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .unwrap();
    // It has begun, and is larger than what the socket takes.
    let mut answer = vec![0; 12];
    client.read_exact(&mut answer).unwrap();
    tembuku.proc.signal(Signal::TERM);
    wait_until("it has stopped", secs(10), || {
        tembuku.proc.stderr().contains("all sessions ended")
    });
    client.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(body.len() > 1_000_000, "{}", body.len());
    assert!(
        body.ends_with("}\n"),
        "cut off: {}",
        &body[body.len() - 100..]
    );
    let status = tembuku.proc.wait(secs(10)).expect("an end");
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_session_may_finish() {
    let mut setup = setup("1m");
    let (mut client, _) = net::session(setup.front).unwrap();
    setup.tembuku.proc.signal(Signal::TERM);
    wait_until("new clients are refused", secs(5), || refuses(setup.front));
    wait_until("not ready any more", secs(5), || {
        setup.tembuku.get("/readyz").status == 503
    });
    assert_eq!(setup.tembuku.get("/livez").status, 200);
    // Looking whether it refuses may have made a session or two, before it did.
    setup
        .tembuku
        .wait_metric("listener_active_connections", &[], |n| n == 1.0);
    for n in 0..20 {
        echo(&mut client, &format!("line {n}")).unwrap();
    }
    assert!(setup.tembuku.proc.ended().is_none());
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut client), (vec![], End::Fin));
    let status = setup
        .tembuku
        .proc
        .wait(secs(5))
        .expect("an end with the last session");
    assert_eq!(status.code(), Some(0));
    assert!(http::get(setup.tembuku.admin, "/livez").is_err());
    // The session's record is not lost in the hurry.
    let records = setup.tembuku.access_log(1);
    let last = records.last().unwrap();
    assert_eq!(last["close_reason"], "ok", "{records:?}");
    assert_eq!(last["bytes_received"], 150, "{records:?}");
}

#[test]
fn the_drain_timeout_terminates_and_reports_the_count() {
    let mut setup = setup("1s");
    let mut clients: Vec<TcpStream> = (0..3)
        .map(|_| net::session(setup.front).unwrap().0)
        .collect();
    let start = Instant::now();
    setup.tembuku.proc.signal(Signal::TERM);
    for client in &mut clients {
        assert_ends_now(client);
    }
    let status = setup
        .tembuku
        .proc
        .wait(secs(5))
        .expect("an end after the drain timeout");
    assert_eq!(status.code(), Some(0));
    assert!(
        bounded(start.elapsed(), millis(900), secs(6)),
        "{:?}",
        start.elapsed()
    );
    let log = setup.tembuku.proc.stderr();
    let last = log.lines().rev().take(3).collect::<Vec<_>>().join("\n");
    assert!(last.contains('3'), "how many were cut:\n{log}");
    let records = setup.tembuku.access_log(3);
    for record in &records {
        assert_eq!(record["close_reason"], "drained", "{record}");
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut setup = setup("1m");
    let (mut client, _) = net::session(setup.front).unwrap();
    setup.tembuku.proc.signal(Signal::TERM);
    wait_until("draining", secs(5), || refuses(setup.front));
    assert!(setup.tembuku.proc.ended().is_none());
    let start = Instant::now();
    setup.tembuku.proc.signal(Signal::TERM);
    assert_ends_now(&mut client);
    let status = setup
        .tembuku
        .proc
        .wait(secs(5))
        .expect("an end after the second signal");
    assert_eq!(status.code(), Some(0));
    assert!(start.elapsed() < secs(3), "{:?}", start.elapsed());
}

/// Clients that the kernel had accepted before the signal came are served or closed, not left
/// hanging.
#[test]
fn no_client_is_left_hanging_at_a_stop() {
    let mut setup = setup("1s");
    let clients: Vec<TcpStream> = (0..50)
        .map(|_| net::connect(setup.front).unwrap())
        .collect();
    setup.tembuku.proc.signal(Signal::TERM);
    for mut client in clients {
        let (received, end) = read_all(&mut client);
        assert!(received == b"b1\n" || received.is_empty(), "{received:?}");
        assert!(matches!(end, End::Fin | End::Reset), "{end:?}");
    }
    assert_eq!(setup.tembuku.proc.wait(secs(5)).unwrap().code(), Some(0));
}

#[test]
fn a_session_that_still_connects_is_cut_too() {
    let hole = BlackHole::new();
    let front = ports::free_addr();
    let mut tembuku = Tembuku::start(&format!(
        "[process]\ndrain_timeout = \"1s\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\nconnect_timeout = \"1m\"\n\
         [upstreams.u]\nbackends = [\"{}\"]\n",
        hole.addr
    ));
    let mut client = net::connect(front).unwrap();
    tembuku.wait_metric("listener_active_connections", &[], |n| n == 1.0);
    tembuku.proc.signal(Signal::TERM);
    assert_ends_now(&mut client);
    assert_eq!(tembuku.proc.wait(secs(5)).unwrap().code(), Some(0));
}

/// A client that never reads must not keep the process.
#[test]
fn a_stalled_client_is_cut_too() {
    let server = Server::start(|mut stream| while stream.write_all(&[7; 65_536]).is_ok() {});
    let front = ports::free_addr();
    let mut tembuku = Tembuku::start(&format!(
        "[process]\ndrain_timeout = \"1s\"\n[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [\"{}\"]\n",
        server.addr
    ));
    let client = net::connect(front).unwrap();
    tembuku.wait_metric("listener_sent_bytes_total", &[], |n| n > 100_000.0);
    tembuku.proc.signal(Signal::TERM);
    assert_eq!(tembuku.proc.wait(secs(6)).unwrap().code(), Some(0));
    drop(client);
}

/// A client that reads to the end must not take what it got before the cut for the whole.
#[test]
fn an_answer_that_is_cut_ends_with_a_reset() {
    let server = Server::start(|mut stream| {
        while stream.write_all(&[b'x'; 1_000]).is_ok() {
            thread::sleep(millis(10)); // the pace of the answer
        }
    });
    let front = ports::free_addr();
    let mut tembuku = Tembuku::start(&format!(
        "[process]\ndrain_timeout = \"1s\"\n[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [\"{}\"]\n",
        server.addr
    ));
    let mut client = net::connect(front).unwrap();
    tembuku.wait_metric("listener_sent_bytes_total", &[], |n| n >= 1_000.0);
    tembuku.proc.signal(Signal::TERM);
    let (got, end) = read_all(&mut client);
    assert_eq!(end, End::Reset, "after {} bytes", got.len());
    assert_eq!(tembuku.proc.wait(secs(5)).unwrap().code(), Some(0));
}

/// Clients whose connects have succeeded are served, though no worker has accepted them yet.
#[test]
fn clients_in_the_accept_queue_are_served() {
    const CLIENTS: usize = 60;
    for round in 1..=3 {
        let mut setup = setup("20s");
        ask_many(setup.front, 2);
        setup.tembuku.proc.signal(Signal::STOP);
        let clients: Vec<TcpStream> = (0..CLIENTS)
            .map(|_| net::connect(setup.front).unwrap())
            .collect();
        setup.tembuku.proc.signal(Signal::TERM);
        setup.tembuku.proc.signal(Signal::CONT);
        for (n, mut client) in clients.into_iter().enumerate() {
            let name = net::read_line(&mut client)
                .unwrap_or_else(|error| panic!("round {round}, client {n}: {error}"));
            assert_eq!(name, "b1");
        }
        assert_eq!(setup.tembuku.proc.wait(secs(10)).unwrap().code(), Some(0));
    }
}

/// An access log without a reader is no reason to stay.
#[test]
fn a_stalled_reader_of_the_access_log_does_not_delay_the_end() {
    let servers = named(1);
    let front = ports::free_addr();
    let (_reader, writer) = narrow_pipe();
    let streams = Streams {
        out: Some(writer.into()),
        err: None,
    };
    let mut tembuku = Tembuku::start_speaking(
        streams,
        &format!(
            "[process]\ndrain_timeout = \"1s\"\n[log]\naccess = \"stdout\"\n\
             [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n[upstreams.u]\nbackends = {}\n",
            list(&servers)
        ),
    );
    // Many times what the pipe holds.
    ask_many(front, 300);
    tembuku.wait_idle();
    let (mut held, _) = net::session(front).unwrap();
    let start = Instant::now();
    tembuku.proc.signal(Signal::TERM);
    assert_ends_now(&mut held);
    let status = tembuku.proc.wait(secs(8)).expect("an end after TERM");
    assert_eq!(status.code(), Some(0));
    assert!(
        bounded(start.elapsed(), millis(900), secs(4)),
        "{:?}",
        start.elapsed()
    );
}

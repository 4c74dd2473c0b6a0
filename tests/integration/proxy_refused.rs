//! Peers that should name the client, and do not.

use crate::{
    harness::{
        bounded, millis,
        net::{self, End, assert_ends_now, connect, echo, read_line, reset},
        ports,
        proxy::{ask_saying, connect_saying},
        secs,
        server::{list, named},
        tembuku::Tembuku,
        wait_until,
    },
    proxy_accept::{V1, rejected, start},
};
use rustix::process::Signal;
use std::{
    io::{ErrorKind, Read, Write},
    net::Shutdown,
    time::Instant,
};

#[test]
fn a_client_without_the_required_header_is_refused() {
    let (front, servers) = (ports::free_addr(), named(1));
    let tembuku = start(
        front,
        "accept_proxy = true\nmax_connections = 1",
        "",
        &servers,
    );
    let nothing: [(&[u8], &str); 6] = [
        (
            b"GET / HTTP/1.1\r\n\r\n",
            "its first bytes are no PROXY protocol header",
        ),
        (
            b"PROXY TCP4 192.0.2.01 192.0.2.11 56324 443\r\n",
            "wrong IPv4 address",
        ),
        (
            b"PROXY TCP4 192.0.2.1 192.0.2.11 56324 65536\r\n",
            "wrong port",
        ),
        (b"\r\n\r\n\0\r\nQUIT\n\x22", "neither LOCAL nor PROXY"),
        (b"\x16\x03\x01", "no PROXY protocol header"),
        (&[b'\r'; 70_000], "no PROXY protocol header"),
    ];
    for (n, (bytes, why)) in (1i32..).zip(nothing) {
        let mut client = connect(front).unwrap();
        // The end may come in the middle of it.
        let _ = client.write_all(bytes);
        assert_ends_now(&mut client);
        rejected(&tembuku, "proxy_header", f64::from(n));
        // One warning a second; the others are at level debug.
        if n == 1 {
            wait_until("the warning is there", secs(5), || {
                tembuku.proc.stderr().contains(why)
            });
            assert!(tembuku.proc.stderr().contains("127.0.0.1:"));
        }
    }
    for begin in [&b""[..], b"P", &V1[..30]] {
        let mut client = connect_saying(front, begin);
        client.shutdown(Shutdown::Write).unwrap();
        assert_ends_now(&mut client);
    }
    rejected(&tembuku, "proxy_ended", 3.0);
    let client = connect_saying(front, &V1[..30]);
    tembuku.wait_metric("listener_active_connections", &[], |n| n == 1.0);
    reset(client);
    rejected(&tembuku, "proxy_ended", 4.0);
    // None of them keeps its permit, and none of them was a session.
    tembuku.wait_idle();
    assert_eq!(ask_saying(front, V1), "b1");
    assert_eq!(servers[0].accepted(), 1);
    // Each has a record with the reason, as the session has.
    let records = tembuku.access_log(11);
    let of = |reason: &str| {
        records
            .iter()
            .filter(|r| r["close_reason"] == reason)
            .count()
    };
    assert_eq!(records.len(), 11);
    assert_eq!((of("proxy_header"), of("proxy_ended"), of("ok")), (6, 4, 1));
}

#[test]
fn the_time_for_a_header_is_counted_from_the_accept() {
    let (front, servers) = (ports::free_addr(), named(1));
    let tembuku = start(
        front,
        "accept_proxy = { timeout = \"300ms\" }",
        "",
        &servers,
    );
    let start = Instant::now();
    let mut client = connect(front).unwrap();
    client.set_nodelay(true).unwrap();
    client.set_read_timeout(Some(millis(40))).unwrap();
    // A byte whenever nothing has come for a while: all of them would take over a second.
    let mut bytes = V1.iter();
    let end = loop {
        match client.read(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let _ = client.write_all(&[*bytes.next().unwrap()]);
            }
            Ok(n) => break (n == 0).then_some(End::Fin),
            Err(error) => break Some(net::end_of(&error)),
        }
    };
    assert!(matches!(end, Some(End::Fin | End::Reset)), "{end:?}");
    assert!(
        bounded(start.elapsed(), millis(290), millis(1_600)),
        "{:?}",
        start.elapsed()
    );
    rejected(&tembuku, "proxy_timeout", 1.0);
    let mut silent = connect(front).unwrap();
    assert_ends_now(&mut silent);
    rejected(&tembuku, "proxy_timeout", 2.0);
    assert_eq!(servers[0].accepted(), 0);
    // It is the header's time alone.
    let mut client = connect_saying(front, V1);
    assert_eq!(read_line(&mut client).unwrap(), "b1");
    client.set_read_timeout(Some(millis(500))).unwrap();
    assert_eq!(
        client.read(&mut [0]).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    client.set_read_timeout(Some(net::PATIENCE)).unwrap();
    echo(&mut client, "still here").unwrap();
}

#[test]
fn a_stop_does_not_wait_for_headers() {
    let (front, servers) = (ports::free_addr(), named(1));
    let mut tembuku = Tembuku::start(&format!(
        "[process]\ndrain_timeout = \"300ms\"\n[log]\nlevel = \"debug\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         accept_proxy = {{ timeout = \"10m\" }}\n\
         [upstreams.u]\nbackends = {}\n",
        list(&servers)
    ));
    let mut clients = [&b""[..], b"PROXY TCP4 "].map(|begin| connect_saying(front, begin));
    tembuku.wait_metric("listener_active_connections", &[], |n| n == 2.0);
    let start = Instant::now();
    tembuku.proc.signal(Signal::TERM);
    clients.iter_mut().for_each(assert_ends_now);
    let status = tembuku.proc.wait(secs(10)).expect("an end");
    assert_eq!(status.code(), Some(0));
    assert!(
        bounded(start.elapsed(), millis(290), secs(5)),
        "{:?}",
        start.elapsed()
    );
    // They ended by the drain, not with the process.
    let log = tembuku.proc.stderr();
    assert_eq!(log.matches("\"reason\":\"drained\"").count(), 2, "{log}");
    assert_eq!(servers[0].accepted(), 0);
}

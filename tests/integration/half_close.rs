//! Sessions with one side finished: what a limit on silence may cut, and `half_close = false`
//! beside nginx's default.

use crate::harness::{
    bounded, millis,
    net::{self, End, connect, connect_with, echo, read_all, read_slowly, reset, wait_delivered},
    ports,
    programs::Nginx,
    secs,
    server::Server,
    tembuku::Tembuku,
    wait_until,
};
use rustix::process::Signal;
use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{OnceLock, mpsc},
    thread,
    time::Instant,
};

fn front_of(backend: SocketAddr, keys: &str) -> (Tembuku, SocketAddr) {
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[process]\ndrain_timeout = \"1m\"\n[log]\naccess = \"{{dir}}/access.log\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n{keys}\n\
         [upstreams.u]\nbackends = [\"{backend}\"]\n"
    ));
    (tembuku, front)
}

fn next(streams: &mpsc::Receiver<TcpStream>) -> TcpStream {
    streams.recv_timeout(secs(10)).unwrap()
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count)
        .map(|n| (n ^ (n >> 8).wrapping_mul(31) ^ (n >> 16).wrapping_mul(7)) as u8)
        .collect()
}

/// More than all buffers on the way hold. Made before a test begins, since it takes a while.
fn bulk() -> &'static [u8] {
    static BULK: OnceLock<Vec<u8>> = OnceLock::new();
    BULK.get_or_init(|| bytes(48 << 20))
}

/// More than all buffers on the way hold waits for a client that has half-closed.
#[test]
fn a_client_that_half_closed_may_pause_reading() {
    let bulk = bulk();
    let (server, streams) = Server::held();
    let (tembuku, front) = front_of(server.addr, "half_close_timeout = \"2s\"");
    let mut client = connect(front).unwrap();
    client.write_all(b"?").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut backend = next(&streams);
    let answer = thread::spawn(move || {
        assert_eq!(read_all(&mut backend), (b"?".to_vec(), End::Fin));
        backend.write_all(bulk).unwrap();
    });
    let mut first = [0];
    client.read_exact(&mut first).unwrap();
    // Three times the limit.
    thread::sleep(secs(6));
    let (got, end) = read_all(&mut client);
    assert_eq!((got.len() + 1, end), (bulk.len(), End::Fin));
    assert!(got == bulk[1..]);
    answer.join().unwrap();
    tembuku.assert_closed_as("ok");
}

/// The other way round, and with the limit counting once everything has arrived.
#[test]
fn a_backend_that_half_closed_may_pause_reading() {
    let bulk = bulk();
    let (server, streams) = Server::held();
    let (tembuku, front) = front_of(server.addr, "half_close_timeout = \"2s\"");
    let mut client = connect(front).unwrap();
    let mut backend = next(&streams);
    backend.shutdown(Shutdown::Write).unwrap();
    let mut writer = client.try_clone().unwrap();
    let upload = thread::spawn(move || writer.write_all(bulk).unwrap());
    assert_eq!(read_all(&mut client), (vec![], End::Fin));
    thread::sleep(secs(6));
    // What has not arrived yet does so after this.
    let began = Instant::now();
    let mut got = vec![0; bulk.len()];
    backend.read_exact(&mut got).unwrap();
    let (rest, end) = read_all(&mut backend);
    assert!(
        rest.is_empty() && matches!(end, End::Fin | End::Reset),
        "{end:?}"
    );
    let lasted = began.elapsed();
    assert!(bounded(lasted, millis(500), secs(10)), "{lasted:?}");
    assert!(got == bulk);
    upload.join().unwrap();
    tembuku.assert_closed_as("half_close_timeout");
}

/// What is only in the kernel's buffers counts as well: here all of it is.
#[test]
fn a_session_is_not_idle_while_the_kernel_delivers() {
    const ANSWER: usize = 300_000;
    let (server, streams) = Server::held();
    let (_tembuku, front) = front_of(server.addr, "idle_timeout = \"2s\"");
    let mut client = connect_with(front, None, 16 * 1024, 0).unwrap();
    let mut backend = next(&streams);
    backend.write_all(&bytes(ANSWER)).unwrap();
    wait_delivered(&backend).unwrap();
    let (mut got, mut piece) = (Vec::new(), [0; 1_000]);
    while got.len() < ANSWER {
        let n = client.read(&mut piece).unwrap();
        assert_ne!(n, 0, "an end after {} bytes", got.len());
        got.extend_from_slice(&piece[..n]);
        thread::sleep(millis(20));
    }
    assert!(got == bytes(ANSWER));
    let echoing = thread::spawn(move || net::read_line(&mut backend));
    client.write_all(b"still there\n").unwrap();
    assert_eq!(echoing.join().unwrap().unwrap(), "still there");
}

/// That is the limit for a peer that takes nothing, as in nginx and HAProxy.
#[test]
fn a_reader_that_takes_nothing_is_idle() {
    let bulk = bulk();
    let (server, streams) = Server::held();
    let keys = "idle_timeout = \"2s\"\nhalf_close_timeout = \"1s\"";
    let (tembuku, front) = front_of(server.addr, keys);
    let mut client = connect(front).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut backend = next(&streams);
    let answer = thread::spawn(move || backend.write_all(bulk));
    tembuku.assert_closed_as("idle_timeout");
    let _ = answer.join().unwrap();
    // And cannot take what it has for the whole.
    assert_eq!(read_all(&mut client).1, End::Reset);
}

#[test]
fn a_reset_waits_for_a_reader_that_pauses() {
    const ANSWER: usize = 3 << 20;
    let (server, streams) = Server::held();
    let (tembuku, front) = front_of(server.addr, "half_close_timeout = \"500ms\"");
    let mut client = connect_with(front, None, 16 * 1024, 0).unwrap();
    let mut backend = next(&streams);
    backend.write_all(&bytes(ANSWER)).unwrap();
    wait_delivered(&backend).unwrap();
    reset(backend);
    // The permit of the backend is free meanwhile.
    tembuku.wait_metric("backend_active_connections", &[], |n| n == 0.0);
    thread::sleep(secs(2));
    let (got, end) = read_all(&mut client);
    assert_eq!((got.len(), end), (ANSWER, End::Reset));
    tembuku.assert_closed_as("backend_reset");
}

/// A balancer with a listener, and whatever keeps it running.
struct Front {
    addr: SocketAddr,
    _running: Box<dyn std::any::Any>,
}

fn nginx(backend: SocketAddr, half_close: bool) -> Front {
    let addr = ports::free_addr();
    let switch = if half_close { "on" } else { "off" };
    let running = Nginx::start(
        addr,
        &format!(
            "stream {{ server {{ listen {addr}; proxy_pass {backend}; proxy_half_close \
             {switch}; }} }}"
        ),
    );
    let _running = Box::new(running);
    Front { addr, _running }
}

fn tembuku(backend: SocketAddr, half_close: bool) -> Front {
    let (running, addr) = front_of(backend, &format!("half_close = {half_close}"));
    let _running = Box::new(running);
    Front { addr, _running }
}

const BOTH: [fn(SocketAddr, bool) -> Front; 2] = [nginx, tembuku];

type Received = (Vec<u8>, End);

/// A client asks and ends its side. Returns what both receive.
fn client_ends_first(
    front: SocketAddr,
    streams: &mpsc::Receiver<TcpStream>,
) -> (Received, Received) {
    let mut client = connect(front).unwrap();
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut backend = next(streams);
    let question = read_all(&mut backend);
    // Where the session is over this goes nowhere.
    let _ = backend.write_all(b"answer");
    drop(backend);
    (read_all(&mut client), question)
}

/// The same of a backend that sends something and ends its side, and of a client that ends only
/// after that.
fn backend_ends_first(
    front: SocketAddr,
    streams: &mpsc::Receiver<TcpStream>,
) -> (Received, Received) {
    let mut client = connect(front).unwrap();
    let mut backend = next(streams);
    backend.write_all(b"bye").unwrap();
    backend.shutdown(Shutdown::Write).unwrap();
    let answer = read_all(&mut client);
    let _ = client.write_all(b"and");
    // Where the session is over, the end has come before the client's.
    backend.set_read_timeout(Some(secs(2))).unwrap();
    let received = read_all(&mut backend);
    (answer, received)
}

#[test]
fn the_end_of_one_side_means_what_it_means_in_nginx() {
    let (server, streams) = Server::held();
    for half_close in [false, true] {
        let seen = BOTH.map(|start| {
            let front = start(server.addr, half_close);
            let client_first = client_ends_first(front.addr, &streams);
            let backend_first = backend_ends_first(front.addr, &streams);
            (client_first, backend_first)
        });
        println!("half_close = {half_close}: {seen:?}");
        assert_eq!(seen[0], seen[1], "half_close = {half_close}");
        let answer = if half_close { &b"answer"[..] } else { b"" };
        assert_eq!(seen[1].0.0, (answer.to_vec(), End::Fin));
        let received = if half_close {
            (b"and".to_vec(), End::Silence)
        } else {
            (vec![], End::Fin)
        };
        assert_eq!(seen[1].1.1, received);
    }
}

#[test]
fn an_end_is_passed_on_after_all_bytes_before_it() {
    const ANSWER: usize = 3 << 20;
    let (server, streams) = Server::held();
    for start in BOTH {
        let front = start(server.addr, false);
        let mut client = connect_with(front.addr, None, 16 * 1024, 0).unwrap();
        let mut backend = next(&streams);
        let answer = thread::spawn(move || {
            backend.write_all(&bytes(ANSWER)).unwrap();
            drop(backend);
        });
        let (got, end) = read_slowly(&mut client, 64 * 1024, millis(5));
        assert_eq!((got.len(), end), (ANSWER, End::Fin));
        assert!(got == bytes(ANSWER));
        answer.join().unwrap();
    }
}

/// A socket that is closed with input left resets its peer, which then may lose what was on the
/// way to it.
#[test]
fn unread_input_does_not_truncate_the_answer() {
    const ANSWER: usize = 300_000;
    let (server, streams) = Server::held();
    let (tembuku, front) = front_of(server.addr, "half_close = false");
    let mut client = connect_with(front, None, 16 * 1024, 0).unwrap();
    let mut backend = next(&streams);
    let mut writer = client.try_clone().unwrap();
    // Until it is refused.
    let upload = thread::spawn(move || while writer.write_all(&[7; 10_000]).is_ok() {});
    backend.write_all(&bytes(ANSWER)).unwrap();
    backend.shutdown(Shutdown::Write).unwrap();
    let (got, end) = read_slowly(&mut client, 4_000, millis(5));
    assert_eq!((got.len(), end), (ANSWER, End::Fin));
    assert!(got == bytes(ANSWER));
    upload.join().unwrap();
    tembuku.assert_closed_as("ok");
}

/// What the backend does not read does not hold its end back.
#[test]
fn the_end_of_a_backend_that_reads_nothing_reaches_the_client() {
    let (server, streams) = Server::held();
    let (tembuku, front) = front_of(server.addr, "half_close = false");
    let mut client = connect(front).unwrap();
    let mut backend = next(&streams);
    client.set_write_timeout(Some(millis(500))).unwrap();
    // Until no buffer on the way has room.
    while client.write_all(&[7; 100_000]).is_ok() {}
    backend.write_all(b"enough").unwrap();
    backend.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut client), (b"enough".to_vec(), End::Fin));
    tembuku.assert_closed_as("ok");
}

/// A client that stays does not keep the permit of a backend that has closed.
#[test]
fn a_backend_that_closed_gets_its_permit_back() {
    let server = Server::start(|mut stream| stream.write_all(b"b1\n").unwrap());
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\nhalf_close = false\n\
         [upstreams.u]\nbackends = [{{ address = \"{}\", max_connections = 1 }}]\n",
        server.addr
    ));
    let mut stay = Vec::new();
    for n in 1..=20 {
        let mut client = connect(front).unwrap();
        let received = read_all(&mut client);
        assert_eq!(received, (b"b1\n".to_vec(), End::Fin), "client {n}");
        stay.push(client);
    }
    tembuku.wait_metric("backend_active_connections", &[], |n| n == 0.0);
    tembuku.wait_closed("ok", 20.0);
}

/// Neither side has anything to send: the stop need not wait.
#[test]
fn a_stop_does_not_wait_for_half_a_session() {
    for client_first in [true, false] {
        let (server, streams) = Server::held();
        let keys = "idle_timeout = \"0s\"\nhalf_close_timeout = \"0s\"";
        let (mut tembuku, front) = front_of(server.addr, keys);
        let mut client = connect(front).unwrap();
        let mut backend = next(&streams);
        let ending = if client_first { &client } else { &backend };
        ending.shutdown(Shutdown::Write).unwrap();
        let other = if client_first {
            &mut backend
        } else {
            &mut client
        };
        assert_eq!(read_all(other), (vec![], End::Fin));
        tembuku.proc.signal(Signal::TERM);
        let status = tembuku
            .proc
            .wait(secs(15))
            .expect("an end long before drain_timeout");
        assert_eq!(status.code(), Some(0));
        assert_eq!(tembuku.access_log(1)[0]["close_reason"], "drained");
    }
}

/// A session that half-closes during the stop is one of them, and one that still delivers is not.
#[test]
fn a_stop_waits_for_what_is_delivered() {
    let bulk = bulk();
    let (server, streams) = Server::held();
    let (mut tembuku, front) = front_of(server.addr, "");
    let mut reader = connect(front).unwrap();
    let mut writer = next(&streams);
    let answer = thread::spawn(move || {
        assert_eq!(read_all(&mut writer), (vec![], End::Fin));
        writer.write_all(bulk).unwrap();
    });
    let mut late = connect(front).unwrap();
    let mut late_backend = next(&streams);
    late.write_all(b"once\n").unwrap();
    assert_eq!(net::read_line(&mut late_backend).unwrap(), "once");
    reader.shutdown(Shutdown::Write).unwrap();
    let mut first = [0];
    reader.read_exact(&mut first).unwrap();
    tembuku.proc.signal(Signal::TERM);
    wait_until("new clients are refused", secs(10), || {
        TcpStream::connect(front).is_err()
    });
    late.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut late_backend).0, b"");
    // Ended by the stop, while nothing came from its backend.
    assert_eq!(read_all(&mut late).0, b"");
    thread::sleep(secs(2));
    assert!(tembuku.proc.ended().is_none());
    let (got, end) = read_all(&mut reader);
    assert_eq!((got.len() + 1, end), (bulk.len(), End::Fin));
    answer.join().unwrap();
    drop(reader);
    assert_eq!(tembuku.proc.wait(secs(10)).unwrap().code(), Some(0));
    // A session in which both sides are open goes on, as before.
    let mut unused = [0];
    assert!(matches!(late.read(&mut unused), Ok(0) | Err(_)));
}

#[test]
fn a_session_goes_on_where_neither_has_ended() {
    let server = Server::named("b");
    let (mut tembuku, front) = front_of(server.addr, "half_close = false");
    let (mut client, _) = net::session(front).unwrap();
    tembuku.proc.signal(Signal::TERM);
    wait_until("new clients are refused", secs(10), || {
        TcpStream::connect(front).is_err()
    });
    thread::sleep(secs(2));
    echo(&mut client, "still").unwrap();
    drop(client);
    assert_eq!(tembuku.proc.wait(secs(10)).unwrap().code(), Some(0));
}

//! What a relay must not get wrong: half-closes, resets, limits on silence, back pressure.

use crate::{
    bulk::cpu_over_a_second,
    harness::{
        bounded, millis,
        net::{
            self, End, connect, connect_with, echo, read_all, read_slowly, reset, wait_delivered,
        },
        poll, ports, secs,
        server::Server,
        tembuku::Tembuku,
        wait_until,
    },
};
use rustix::{
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
    process::Signal,
};
use socket2::SockRef;
use std::{
    fs::{self, File},
    io::{IoSlice, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::{fd::AsFd, unix::net::UnixStream},
    path::PathBuf,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

fn front_of(backend: SocketAddr, keys: &str) -> (Tembuku, SocketAddr) {
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[log]\naccess = \"{{dir}}/access.log\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n{keys}\n\
         [upstreams.u]\nbackends = [\"{backend}\"]\n"
    ));
    (tembuku, front)
}

/// [`front_of`] on a unix socket.
fn unix_front_of(backend: SocketAddr) -> (Tembuku, PathBuf) {
    let tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"unix:{{dir}}/front.sock\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [\"{backend}\"]\n"
    ));
    let path = tembuku.dir.file("front.sock");
    (tembuku, path)
}

/// Bytes of which every stretch is different.
fn bytes(count: usize) -> Vec<u8> {
    (0..count)
        .map(|n| (n ^ (n >> 8).wrapping_mul(31) ^ (n >> 16).wrapping_mul(7)) as u8)
        .collect()
}

#[track_caller]
fn assert_bytes(got: &[u8], expected: &[u8]) {
    let differs = got.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!(differs, None, "the first byte that differs");
    assert_eq!(got.len(), expected.len(), "number of bytes");
}

#[test]
fn a_client_that_half_closes_gets_its_whole_answer() {
    for request in [&b"give me all"[..], b""] {
        let answer = bytes(100_000);
        let (asked, question) = mpsc::channel();
        let server = Server::start(move |mut stream| {
            let (question, end) = read_all(&mut stream);
            asked.send((question, end)).unwrap();
            // In pieces, so that the answer certainly outlives the arrival of the half-close.
            for piece in bytes(100_000).chunks(9_000) {
                stream.write_all(piece).unwrap();
                thread::sleep(millis(3));
            }
        });
        let (tembuku, front) = front_of(server.addr, "");
        let mut client = connect(front).unwrap();
        client.write_all(request).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let (got, end) = read_all(&mut client);
        assert_bytes(&got, &answer);
        assert_eq!(end, End::Fin);
        assert_eq!(
            question.recv_timeout(secs(5)).unwrap(),
            (request.to_vec(), End::Fin)
        );
        tembuku.assert_closed_as("ok");
    }
}

#[test]
fn a_server_that_half_closes_still_receives() {
    let (sender, ends) = mpsc::channel();
    let server = Server::start(move |mut stream| {
        stream.write_all(b"bye").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        sender.send(read_all(&mut stream)).unwrap();
    });
    let (tembuku, front) = front_of(server.addr, "");
    let mut client = connect(front).unwrap();
    assert_eq!(read_all(&mut client), (b"bye".to_vec(), End::Fin));
    let upload = bytes(1_000_000);
    client.write_all(&upload).unwrap();
    drop(client);
    let (got, end) = ends.recv_timeout(secs(10)).unwrap();
    assert_bytes(&got, &upload);
    assert_eq!(end, End::Fin);
    tembuku.assert_closed_as("ok");
}

#[test]
fn the_server_may_speak_first() {
    let server = Server::named("hello");
    let (_tembuku, front) = front_of(server.addr, "");
    let (mut client, name) = net::session(front).unwrap();
    assert_eq!(name, "hello");
    echo(&mut client, "and back").unwrap();
}

/// A backend that sends `count` bytes, makes sure that they have left, and resets.
fn resetting(count: usize) -> Server {
    Server::start(move |mut stream| {
        let mut go = [0];
        stream.read_exact(&mut go).unwrap();
        stream.write_all(&bytes(count)).unwrap();
        wait_delivered(&stream).unwrap();
        reset(stream);
    })
}

#[test]
fn a_reset_of_the_backend_arrives_as_all_bytes_and_then_a_reset() {
    let server = resetting(300_000);
    let (tembuku, front) = front_of(server.addr, "");
    let mut client = connect(front).unwrap();
    client.write_all(b"!").unwrap();
    let (got, end) = read_all(&mut client);
    assert_bytes(&got, &bytes(300_000));
    assert_eq!(end, End::Reset);
    tembuku.assert_closed_as("backend_reset");
}

#[test]
fn a_reset_of_the_backend_waits_for_a_slow_client() {
    let server = resetting(300_000);
    let (tembuku, front) = front_of(server.addr, "");
    let mut client = connect_with(front, None, 16 * 1024, 0).unwrap();
    client.write_all(b"!").unwrap();
    // The backend is gone long before this client has read what it sent.
    let (got, end) = read_slowly(&mut client, 2_000, millis(5));
    assert_bytes(&got, &bytes(300_000));
    assert_eq!(end, End::Reset);
    tembuku.assert_closed_as("backend_reset");
}

#[test]
fn a_reset_of_the_client_arrives_as_all_bytes_and_then_a_reset() {
    let (sender, ends) = mpsc::channel();
    let server = Server::start(move |mut stream| {
        stream.write_all(b"ready\n").unwrap();
        sender
            .send(read_slowly(&mut stream, 10_000, millis(2)))
            .unwrap();
    });
    let (tembuku, front) = front_of(server.addr, "");
    let mut client = connect(front).unwrap();
    assert_eq!(net::read_line(&mut client).unwrap(), "ready");
    client.write_all(&bytes(300_000)).unwrap();
    wait_delivered(&client).unwrap();
    reset(client);
    let (got, end) = ends.recv_timeout(secs(20)).unwrap();
    assert_bytes(&got, &bytes(300_000));
    assert_eq!(end, End::Reset);
    tembuku.assert_closed_as("client_reset");
}

#[test]
fn a_reset_after_a_half_close_is_still_a_reset() {
    let server = Server::start(|mut stream| {
        let (_, end) = read_all(&mut stream);
        assert_eq!(end, End::Fin);
        stream.write_all(b"half an ans").unwrap();
        wait_delivered(&stream).unwrap();
        reset(stream);
    });
    let (tembuku, front) = front_of(server.addr, "");
    let mut client = connect(front).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut client), (b"half an ans".to_vec(), End::Reset));
    tembuku.assert_closed_as("backend_reset");
}

#[test]
fn a_silent_session_ends_at_the_idle_timeout() {
    let server = Server::named("b");
    let (tembuku, front) = front_of(server.addr, "idle_timeout = \"1s\"");
    let start = Instant::now();
    let (mut client, _) = net::session(front).unwrap();
    let (rest, end) = read_all(&mut client);
    let lasted = start.elapsed();
    assert!(
        rest.is_empty() && matches!(end, End::Fin | End::Reset),
        "{end:?} after {rest:?}"
    );
    assert!(bounded(lasted, millis(900), secs(5)), "{lasted:?}");
    tembuku.assert_closed_as("idle_timeout");
    wait_until("the backend's side is closed too", secs(5), || {
        server.live() == 0
    });
}

#[test]
fn an_active_session_outlives_the_idle_timeout() {
    let server = Server::named("b");
    let (tembuku, front) = front_of(server.addr, "idle_timeout = \"1s\"");
    let (mut client, _) = net::session(front).unwrap();
    // To and fro for a while, then in one direction only: either keeps the session alive.
    for n in 0..10 {
        thread::sleep(millis(300));
        echo(&mut client, &n.to_string()).unwrap();
    }
    drop(client);
    tembuku.assert_closed_as("ok");

    let talker = Server::start(|mut stream| {
        for _ in 0..10 {
            thread::sleep(millis(300));
            stream.write_all(b".").unwrap();
        }
    });
    let (tembuku, front) = front_of(talker.addr, "idle_timeout = \"1s\"");
    let mut client = connect(front).unwrap();
    assert_eq!(read_all(&mut client), (b"..........".to_vec(), End::Fin));
    drop(client);
    tembuku.assert_closed_as("ok");
}

#[test]
fn a_half_closed_session_may_not_be_silent_for_long() {
    let local = SocketAddr::from(([127, 0, 0, 1], 0));
    let (server, _streams) = Server::held_on(local, |stream| {
        let _ = read_all(stream);
        // Has received the end, and sends nothing.
    });
    let (tembuku, front) = front_of(
        server.addr,
        "half_close_timeout = \"1s\"\nidle_timeout = \"1m\"",
    );
    let mut client = connect(front).unwrap();
    client.write_all(b"question").unwrap();
    let start = Instant::now();
    client.shutdown(Shutdown::Write).unwrap();
    let (answer, end) = read_all(&mut client);
    let lasted = start.elapsed();
    assert!(
        answer.is_empty() && matches!(end, End::Fin | End::Reset),
        "{end:?}"
    );
    assert!(bounded(lasted, millis(900), secs(5)), "{lasted:?}");
    tembuku.assert_closed_as("half_close_timeout");
}

#[test]
fn a_half_closed_session_that_speaks_goes_on() {
    let server = Server::start(|mut stream| {
        let _ = read_all(&mut stream);
        for _ in 0..8 {
            thread::sleep(millis(300));
            stream.write_all(b".").unwrap();
        }
    });
    let (tembuku, front) = front_of(server.addr, "half_close_timeout = \"1s\"");
    let mut client = connect(front).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut client), (b"........".to_vec(), End::Fin));
    tembuku.assert_closed_as("ok");
}

/// Writes until nothing has gone out for a while; how much did.
fn fill(stream: &mut TcpStream) -> usize {
    stream.set_write_timeout(Some(millis(400))).unwrap();
    let block = vec![7; 256 * 1024];
    let mut sent = 0;
    while sent < (1 << 30) {
        match stream.write(&block) {
            Ok(n) => sent += n,
            Err(_) => break,
        }
    }
    sent
}

/// The place at the backend is not kept for what it does not take.
#[test]
fn a_side_that_resets_while_the_other_takes_nothing_ends_the_session() {
    let keys = "half_close_timeout = \"1s\"\nidle_timeout = \"10m\"";
    for (is_client, reason) in [(true, "client_reset"), (false, "backend_reset")] {
        let (server, streams) = Server::held();
        let (tembuku, front) = front_of(server.addr, keys);
        let client = connect(front).unwrap();
        let backend = streams.recv_timeout(secs(5)).unwrap();
        let (mut sender, mut other) = match is_client {
            true => (client, backend),
            false => (backend, client),
        };
        fill(&mut sender);
        let began = Instant::now();
        reset(sender);
        tembuku.assert_closed_as(reason);
        let lasted = began.elapsed();
        assert!(
            bounded(lasted, millis(900), secs(10)),
            "{reason}: {lasted:?}"
        );
        tembuku.wait_idle();
        let (got, end) = read_all(&mut other);
        assert_eq!(end, End::Reset, "{reason}: after {} bytes", got.len());
    }
}

#[test]
fn a_stalled_reader_holds_the_sender_back() {
    const SESSIONS: usize = 16;
    let (server, streams) = Server::held();
    let (tembuku, front) = front_of(server.addr, "");
    // Once round, so that what the process needs once is there.
    drop(connect(front).unwrap());
    drop(streams.recv_timeout(secs(5)).unwrap());
    tembuku.wait_idle();
    let before = tembuku.proc.rss();

    let mut clients: Vec<TcpStream> = (0..SESSIONS).map(|_| connect(front).unwrap()).collect();
    let backends: Vec<TcpStream> = (0..SESSIONS)
        .map(|_| streams.recv_timeout(secs(5)).unwrap())
        .collect();
    let sent: usize = thread::scope(|scope| {
        let threads: Vec<_> = clients
            .iter_mut()
            .map(|client| scope.spawn(|| fill(client)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    let grown = tembuku.proc.rss().saturating_sub(before);
    println!("{sent} bytes sent in {SESSIONS} sessions, resident memory grew by {grown} bytes");
    assert!(
        sent < SESSIONS * (64 << 20),
        "{sent} bytes went out towards readers that do not read"
    );
    assert!(
        grown < (SESSIONS as u64) * (512 << 10) + (8 << 20),
        "resident memory grew by {grown} bytes"
    );

    // Nothing of it is lost when the readers go on.
    for client in &clients {
        client.shutdown(Shutdown::Write).unwrap();
    }
    let received: usize = thread::scope(|scope| {
        let threads: Vec<_> = backends
            .into_iter()
            .map(|mut stream| scope.spawn(move || count(&mut stream)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    assert_eq!(received, sent);
    tembuku.wait_idle();
    assert_eq!(
        tembuku.metric("listener_received_bytes_total", &[]),
        sent as f64
    );
    assert_eq!(tembuku.metric("backend_sent_bytes_total", &[]), sent as f64);
}

fn count(stream: &mut TcpStream) -> usize {
    let mut buffer = vec![0; 256 * 1024];
    let mut all = 0;
    loop {
        match stream.read(&mut buffer).unwrap() {
            0 => return all,
            n => all += n,
        }
    }
}

#[test]
fn bytes_are_counted_while_the_session_lives() {
    let server = Server::named("b");
    let (tembuku, front) = front_of(server.addr, "");
    let (mut client, _) = net::session(front).unwrap();
    for round in 1..=3 {
        echo(&mut client, &"x".repeat(999)).unwrap();
        let received = f64::from(round) * 1000.0;
        tembuku.wait_metric("listener_received_bytes_total", &[("listener", "l")], |n| {
            n == received
        });
        tembuku.wait_metric("listener_sent_bytes_total", &[("listener", "l")], |n| {
            n == received + 2.0
        });
        tembuku.wait_metric("backend_sent_bytes_total", &[("upstream", "u")], |n| {
            n == received
        });
        tembuku.wait_metric("backend_received_bytes_total", &[("upstream", "u")], |n| {
            n == received + 2.0
        });
    }
    assert_eq!(tembuku.metric("listener_active_connections", &[]), 1.0);
    assert_eq!(tembuku.metric("sessions_closed_total", &[]), 0.0);
    let relayed = tembuku.metric("relayed_bytes_total", &[]);
    assert_eq!(relayed, 6002.0);
}

/// Small questions, then a flood, then small questions again, in one session: whichever way the
/// bytes take, they arrive, and no end of a burst is held back.
#[test]
fn a_session_may_change_its_manners() {
    let server = Server::named("b");
    let (tembuku, front) = front_of(server.addr, "");
    let (mut client, _) = net::session(front).unwrap();
    for _ in 0..3 {
        for n in 0..50 {
            echo(&mut client, &n.to_string()).unwrap();
        }
        let flood = bytes(8 << 20);
        let mut reader = client.try_clone().unwrap();
        let expected = flood.clone();
        let reading = thread::spawn(move || {
            let mut back = vec![0; expected.len()];
            reader.read_exact(&mut back).unwrap();
            assert_bytes(&back, &expected);
        });
        client.write_all(&flood).unwrap();
        reading.join().unwrap();
        // A corked end of a burst costs 200 ms each time.
        let start = Instant::now();
        for _ in 0..20 {
            let burst = bytes(300_000);
            let mut writer = client.try_clone().unwrap();
            let writing = thread::spawn(move || writer.write_all(&burst).unwrap());
            let mut back = vec![0; 300_000];
            client.read_exact(&mut back).unwrap();
            writing.join().unwrap();
        }
        let took = start.elapsed();
        assert!(
            took < Duration::from_millis(3_000),
            "20 bursts took {took:?}"
        );
    }
    drop(client);
    tembuku.wait_idle();
    let metrics = tembuku.metrics();
    for mode in ["splice", "copy"] {
        assert!(
            metrics.sum("relayed_bytes_total", &[("mode", mode)]) > 0.0,
            "{mode}"
        );
    }
}

/// How long it was silent before does not count: the answer has the whole `half_close_timeout`.
#[test]
fn a_half_close_after_a_long_silence_still_gets_its_answer() {
    let server = Server::start(|mut stream| {
        let (_, end) = read_all(&mut stream);
        assert_eq!(end, End::Fin);
        thread::sleep(millis(100));
        stream.write_all(&bytes(1_000)).unwrap();
    });
    let (tembuku, front) = front_of(server.addr, "half_close_timeout = \"2s\"");
    let mut client = connect(front).unwrap();
    thread::sleep(millis(2_500)); // the silence that is the subject
    client.shutdown(Shutdown::Write).unwrap();
    let (answer, end) = read_all(&mut client);
    assert_bytes(&answer, &bytes(1_000));
    assert_eq!(end, End::Fin);
    tembuku.assert_closed_as("ok");
}

#[test]
fn an_ordinary_end_after_a_long_silence_is_ok() {
    let server = Server::named("b");
    let (tembuku, front) = front_of(server.addr, "half_close_timeout = \"1s\"");
    let (client, _) = net::session(front).unwrap();
    thread::sleep(millis(1_500)); // the silence that is the subject
    drop(client);
    tembuku.assert_closed_as("ok");
}

#[track_caller]
fn assert_does_not_spin(tembuku: &Tembuku) {
    let used = cpu_over_a_second(&tembuku.proc);
    assert!(
        used < millis(300),
        "{used:?} of processor time in a second with nothing to do"
    );
}

#[test]
fn a_client_that_does_not_listen_but_stays_costs_nothing() {
    let (server, streams) = Server::held();
    let (tembuku, path) = unix_front_of(server.addr);
    let client = UnixStream::connect(path).unwrap();
    client.shutdown(Shutdown::Read).unwrap();
    let mut backend = streams.recv_timeout(secs(10)).unwrap();
    backend.write_all(b"hello").unwrap();
    tembuku.wait_metric("backend_received_bytes_total", &[], |n| n == 5.0);
    assert_does_not_spin(&tembuku);
    drop(client);
    drop(backend);
    tembuku.wait_idle();
}

#[test]
fn a_client_that_resets_while_its_upload_waits_costs_nothing() {
    let (server, streams) = Server::held();
    let (tembuku, front) = front_of(server.addr, "");
    let mut client = connect(front).unwrap();
    let mut backend = streams.recv_timeout(secs(10)).unwrap();
    let sent = fill(&mut client);
    reset(client);
    // A write may find that the client is gone, if its reset has not been noted yet.
    backend.write_all(b"hello").unwrap();
    println!("{sent} bytes wait");
    assert_does_not_spin(&tembuku);
    drop(backend);
    tembuku.wait_idle();
}

/// The state of the proxy's side of a connection, from the kernel's table.
fn state_of(front: SocketAddr, client: &TcpStream) -> Option<String> {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let suffix = |port: u16| format!(":{port:04X}");
    let client = suffix(client.local_addr().unwrap().port());
    table.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, peer) = (fields.next()?, fields.next()?);
        let found = local.ends_with(&suffix(front.port())) && peer.ends_with(&client);
        found.then(|| fields.next().map(str::to_owned))?
    })
}

/// An HTTP server that answers early and closes while the request still comes.
#[test]
fn an_early_answer_reaches_a_client_that_has_half_closed() {
    const ANSWER: usize = 1_000_000;
    let local = SocketAddr::from(([127, 0, 0, 1], 0));
    let (server, streams) = Server::held_on(local, |stream| {
        stream.write_all(&bytes(ANSWER)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    });
    let (tembuku, front) = front_of(server.addr, "");
    let mut client = connect_with(front, None, 8 * 1024, 0).unwrap();
    let backend = streams.recv_timeout(secs(10)).unwrap();
    // All of it is written towards the client, which has not read any of it.
    tembuku.wait_metric("listener_sent_bytes_total", &[], |n| n == ANSWER as f64);
    // Just enough upload that the last of it waits for the backend, and that the end is behind it.
    let piece = vec![b'u'; 128 * 1024];
    let mut sent = 0;
    loop {
        client.write_all(&piece).unwrap();
        sent += piece.len();
        let passed_on = || tembuku.metric("backend_sent_bytes_total", &[]) == sent as f64;
        if poll(millis(200), || passed_on().then_some(())).is_none() {
            break;
        }
        assert!(sent < 64 << 20, "a backend that does not read never fills");
    }
    client.shutdown(Shutdown::Write).unwrap();
    // CLOSING: an end of ours is under way to the client, and its own has come in.
    wait_until("both ends of the client's side are shut", secs(10), || {
        state_of(front, &client).as_deref() == Some("0B")
    });
    // With all that upload unread this is a reset.
    drop(backend);
    let (answer, end) = read_slowly(&mut client, 20_000, millis(2));
    assert_bytes(&answer, &bytes(ANSWER));
    assert_eq!(end, End::Fin);
    tembuku.wait_idle();
}

/// Splicing stops at TCP's urgent mark as if there were nothing more. The urgent byte itself is not
/// relayed.
#[test]
fn a_spliced_flow_steps_over_an_urgent_byte() {
    for after in [100, 100_000, 20_000_000] {
        let (sender, ends) = mpsc::channel();
        let server = Server::start(move |mut stream| {
            sender.send(read_all(&mut stream)).unwrap();
        });
        let (tembuku, front) = front_of(server.addr, "");
        let mut client = connect(front).unwrap();
        let (first, second) = (bytes(20_000_000), bytes(after));
        client.write_all(&first).unwrap();
        SockRef::from(&client).send_out_of_band(b"!").unwrap();
        client.write_all(&second).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let (got, end) = ends.recv_timeout(secs(30)).unwrap();
        assert_bytes(&got, &[first, second].concat());
        assert_eq!(end, End::Fin);
        let spliced = tembuku.metric("relayed_bytes_total", &[("mode", "splice")]);
        assert!(spliced > 0.0, "nothing was spliced");
    }
}

/// A read ends before the mark, however much comes behind.
#[test]
fn what_follows_an_urgent_byte_is_not_held_back() {
    let (server, streams) = Server::held();
    let (tembuku, front) = front_of(server.addr, "");
    for round in 1..=10 {
        let mut client = connect(front).unwrap();
        client.write_all(b"0").unwrap();
        let mut backend = streams.recv_timeout(secs(10)).unwrap();
        backend.set_read_timeout(Some(secs(5))).unwrap();
        backend.read_exact(&mut [0]).unwrap();
        // Stopped, so that it finds all.
        tembuku.proc.signal(Signal::STOP);
        client.write_all(b"AAAA").unwrap();
        SockRef::from(&client).send_out_of_band(b"!").unwrap();
        client.write_all(b"BBBB").unwrap();
        tembuku.proc.signal(Signal::CONT);
        let mut got = [0; 8];
        backend
            .read_exact(&mut got)
            .unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(&got, b"AAAABBBB", "round {round}");
        // What comes later does, too, and it does not spin.
        client.write_all(b"CC").unwrap();
        backend.read_exact(&mut got[..2]).unwrap();
        assert_eq!(&got[..2], b"CC", "round {round}");
        if round == 1 {
            assert_does_not_spin(&tembuku);
        }
    }
}

/// A read ends where a descriptor was passed along, however much comes behind.
#[test]
fn what_follows_a_passed_descriptor_is_not_held_back() {
    let (server, streams) = Server::held();
    let (tembuku, path) = unix_front_of(server.addr);
    let null = File::open("/dev/null").unwrap();
    for round in 1..=10 {
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"0").unwrap();
        let mut backend = streams.recv_timeout(secs(10)).unwrap();
        backend.set_read_timeout(Some(secs(5))).unwrap();
        backend.read_exact(&mut [0]).unwrap();
        // Stopped, so that it finds both.
        tembuku.proc.signal(Signal::STOP);
        let descriptors = [null.as_fd()];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let sent = sendmsg(
            &client,
            &[IoSlice::new(b"AAAA")],
            &mut control,
            SendFlags::empty(),
        );
        assert_eq!(sent, Ok(4));
        client.write_all(b"BBBB").unwrap();
        tembuku.proc.signal(Signal::CONT);
        let mut got = [0; 8];
        backend
            .read_exact(&mut got)
            .unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(&got, b"AAAABBBB", "round {round}");
    }
}

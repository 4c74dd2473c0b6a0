//! System calls that a seccomp filter refuses, as systemd's SystemCallFilter does. `strace`
//! stands in for the filter.

use crate::{
    bulk::cpu_over_a_second,
    harness::{
        net::{self, End, connect, echo, read_all},
        ports,
        proc::{Proc, command},
        secs,
        server::{self, Server},
        tembuku::Tembuku,
        wait_until,
    },
};
use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr},
};

const SIZE: usize = 8 << 20;

fn bytes() -> Vec<u8> {
    (0..SIZE)
        .map(|n| (n ^ (n >> 8).wrapping_mul(31) ^ (n >> 16).wrapping_mul(7)) as u8)
        .collect()
}

/// Sends and receives so many bytes at once, and reports after them whether it got what was
/// expected.
fn bulk_server() -> Server {
    Server::start(|stream| {
        let mut reader = stream.try_clone().unwrap();
        let received = std::thread::spawn(move || read_all(&mut reader));
        let mut writer = stream;
        if writer.write_all(&bytes()).is_ok() {
            let whole = received.join().unwrap() == (bytes(), End::Fin);
            let _ = writer.write_all(if whole { b"whole" } else { b"wrong" });
        }
    })
}

fn config(front: SocketAddr, backend: SocketAddr, keys: &str) -> String {
    format!(
        "[process]\nworkers = 1\n[log]\nformat = \"json\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n{keys}\n\
         [upstreams.u]\nsend_proxy = \"off\"\nbackends = [\"{backend}\"]\n"
    )
}

/// The program with calls that are refused from the start. The traced program is the child itself.
fn start_refusing(injections: &[&str], config: &str) -> Tembuku {
    let inject: Vec<String> = injections
        .iter()
        .map(|i| format!("-e inject={i}"))
        .collect();
    let wrapper = format!("strace -D -f -q -o /dev/null {}", inject.join(" "));
    Tembuku::start_under(&wrapper, config)
}

/// Refuses calls of a running program, until it is dropped.
fn refuse(tembuku: &Tembuku, injection: &str) -> Proc {
    let mut strace = command("strace -f -o /dev/null");
    strace.args(["-e", &format!("inject={injection}"), "-p"]);
    strace.arg(tembuku.proc.id().to_string());
    let mut strace = Proc::start("strace", tembuku.dir.path(), strace);
    let name = "strace.err";
    strace.wait_ready(secs(10), || {
        let output = std::fs::read_to_string(tembuku.dir.file(name)).unwrap_or_default();
        output.contains("attached")
    });
    strace
}

/// Bytes in both directions at once, each of them there.
#[track_caller]
fn assert_bulk_passes(front: SocketAddr, case: &str) {
    let mut client = connect(front).unwrap();
    let mut writer = client.try_clone().unwrap();
    let sent = std::thread::spawn(move || {
        writer.write_all(&bytes()).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let (got, end) = read_all(&mut client);
    sent.join().unwrap();
    assert_eq!(end, End::Fin, "{case}: after {} bytes", got.len());
    let (payload, verdict) = got.split_at(SIZE.min(got.len()));
    assert!(payload == bytes(), "{case}: other bytes came");
    assert_eq!(String::from_utf8_lossy(verdict), "whole", "{case}");
}

fn warnings(tembuku: &Tembuku, message: &str) -> usize {
    let log = tembuku.proc.stderr();
    log.lines().filter(|line| line.contains(message)).count()
}

const COPIED: &str = "splicing is not permitted, bulk data is copied from now on";

#[test]
fn splice_may_be_forbidden() {
    let server = bulk_server();
    for error in ["EPERM", "EACCES", "ENOSYS", "EINVAL", "ENOMEM", "EUCLEAN"] {
        let front = ports::free_addr();
        let config = config(front, server.addr, "");
        let tembuku = start_refusing(&[&format!("splice:error={error}")], &config);
        for _ in 0..2 {
            assert_bulk_passes(front, error);
        }
        tembuku.wait_closed("ok", 2.0);
        let refused = [("reason", "refused")];
        assert!(tembuku.metric("splice_fallbacks_total", &refused) >= 2.0);
        let spliced = [("mode", "splice")];
        assert_eq!(tembuku.metric("relayed_bytes_total", &spliced), 0.0);
        let is_certain = ["EPERM", "EACCES", "ENOSYS"].contains(&error);
        assert_eq!(
            warnings(&tembuku, COPIED),
            usize::from(is_certain),
            "{error}"
        );
    }
}

/// In the middle of a stream, when the pipe is empty and when it is full.
#[test]
fn splice_may_become_forbidden() {
    let server = bulk_server();
    for error in ["EPERM", "EINVAL"] {
        for after in [6, 7, 8, 9] {
            let front = ports::free_addr();
            let config = config(front, server.addr, "");
            let injection = format!("splice:error={error}:when={after}+");
            let tembuku = start_refusing(&[&injection], &config);
            assert_bulk_passes(front, &injection);
            tembuku.wait_closed("ok", 1.0);
            let spliced = [("mode", "splice")];
            assert!(tembuku.metric("relayed_bytes_total", &spliced) > 0.0);
        }
    }
}

/// A call that was interrupted is tried again.
#[test]
fn splice_may_be_interrupted() {
    let server = bulk_server();
    let front = ports::free_addr();
    let config = config(front, server.addr, "");
    let tembuku = start_refusing(&["splice:error=EINTR:when=2+3"], &config);
    assert_bulk_passes(front, "EINTR");
    tembuku.wait_closed("ok", 1.0);
    assert_eq!(tembuku.metric("splice_fallbacks_total", &[]), 0.0);
}

#[test]
fn pipes_may_be_forbidden() {
    let server = bulk_server();
    for (injection, warns) in [
        ("pipe2:error=EPERM", true),
        ("pipe2:error=EMFILE", false),
        ("fcntl:error=EPERM", false),
    ] {
        let front = ports::free_addr();
        let tembuku = Tembuku::start(&config(front, server.addr, ""));
        let strace = refuse(&tembuku, injection);
        assert_bulk_passes(front, injection);
        tembuku.wait_closed("ok", 1.0);
        assert!(
            tembuku.metric("splice_fallbacks_total", &[]) >= 1.0,
            "{injection}"
        );
        assert_eq!(
            warnings(&tembuku, COPIED),
            usize::from(warns),
            "{injection}"
        );
        drop(strace);
    }
}

/// No option of a session's sockets is worth the session.
#[test]
fn socket_options_may_be_forbidden() {
    let server = Server::named("b1");
    let front = ports::free_addr();
    let keys = "user_timeout = \"30s\"";
    let tembuku = Tembuku::start(&config(front, server.addr, keys));
    for call in ["setsockopt", "getsockopt", "getsockname"] {
        let strace = refuse(&tembuku, &format!("{call}:error=EPERM"));
        // A client that speaks first takes another way than one that waits.
        let mut first = connect(front).unwrap();
        first.write_all(b"at once\n").unwrap();
        assert_eq!(net::read_line(&mut first).unwrap(), "b1");
        assert_eq!(net::read_line(&mut first).unwrap(), "at once");
        let (mut second, _) = net::session(front).unwrap();
        echo(&mut second, "later").unwrap();
        drop(strace);
    }
    assert_eq!(tembuku.metric("backend_connect_errors_total", &[]), 0.0);
}

/// The options that clients inherit are set before the program serves.
#[test]
fn socket_options_may_be_forbidden_at_the_start() {
    let server = Server::named("b1");
    let front = ports::free_addr();
    // The first four are those without which nothing can be bound.
    let injection = "setsockopt:error=EPERM:when=5+";
    let tembuku = start_refusing(&[injection], &config(front, server.addr, ""));
    assert_eq!(net::ask(front).unwrap(), "b1");
    assert!(
        warnings(
            &tembuku,
            "cannot set a socket option, continuing without it"
        ) > 0
    );
}

#[test]
fn timers_may_be_forbidden() {
    let server = Server::named("b1");
    for call in ["timerfd_create", "timerfd_settime"] {
        let front = ports::free_addr();
        let config = config(front, server.addr, "idle_timeout = \"1s\"");
        let tembuku = start_refusing(&[&format!("{call}:error=EPERM")], &config);
        let (mut client, _) = net::session(front).unwrap();
        assert_eq!(read_all(&mut client), (vec![], End::Fin), "{call}");
        let idle = [("reason", "idle_timeout")];
        tembuku.wait_metric("sessions_closed_total", &idle, |n| n == 1.0);
        let message = "timerfd is not permitted, waits are limited by epoll instead";
        assert_eq!(warnings(&tembuku, message), 1, "{call}");
    }
}

/// What could be the error of one connection, and comes again and again, does not keep a
/// processor busy.
#[test]
fn accepting_may_be_forbidden_for_a_while() {
    let server = Server::named("b1");
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&config(front, server.addr, ""));
    let strace = refuse(&tembuku, "accept4:error=EPERM");
    let mut waiting = connect(front).unwrap();
    let message = "\"cannot accept, waiting\",\"listener\"";
    wait_until("it backs off", secs(10), || warnings(&tembuku, message) > 0);
    let used = cpu_over_a_second(&tembuku.proc);
    assert!(
        used.as_millis() < 300,
        "{used:?} of processor time in a second"
    );
    drop(strace);
    assert_eq!(net::read_line(&mut waiting).unwrap(), "b1");
    assert_eq!(server::ask_many(front, 3).len(), 3);
    let mut rest = [0; 1];
    waiting.shutdown(Shutdown::Write).unwrap();
    wait_until("the session ends", secs(10), || {
        matches!(waiting.read(&mut rest), Ok(0))
    });
}

//! Every kind of check against a server that is well, and against those that are not: each has its
//! reason.

use crate::harness::{
    bounded, millis,
    mysql::{self, greeting},
    net, ports,
    programs::{Nginx, Redis, http_block},
    secs,
    server::Server,
    tembuku::Tembuku,
    wait_until,
};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

const TIMEOUT: Duration = millis(400);

const REDIS: &str = "kind = \"redis\"\nrole = \"primary\"\nstart = \"up\"";
const HTTP: &str = "kind = \"http\"";
const SEND: &str =
    "kind = \"send_expect\"\nsend = \"PING\\r\\n\"\nexpect_regex = \"^\\\\+PONG\\r\\n$\"";
const POSTGRES: &str = "kind = \"postgres\"\nrole = \"primary\"\nuser = \"u\"\nstart = \"up\"";
const MYSQL: &str = "kind = \"mysql\"\nuser = \"check\"\nstart = \"up\"";
const TCP: &str = "kind = \"tcp\"";

struct Setup {
    tembuku: Tembuku,
    addr: SocketAddr,
}

fn setup(addr: SocketAddr, upstream: &str, check: &str) -> Setup {
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[process]\nworkers = 1\n[log]\nlevel = \"debug\"\nformat = \"json\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [\"{addr}\"]\n{upstream}\n\
         [upstreams.u.check]\ninterval = \"400ms\"\ntimeout = \"400ms\"\n{check}\n"
    ));
    Setup { tembuku, addr }
}

impl Setup {
    fn backend(&self) -> serde_json::Value {
        let status = self.tembuku.status();
        status["upstreams"][0]["backends"][0].clone()
    }

    /// Waits for this state and this result of a check; what the check saw.
    #[track_caller]
    fn wait(&self, state: &str, result: &str) -> String {
        let holds = || {
            let backend = self.backend();
            backend["state"] == state && backend["last_check"]["result"] == result
        };
        wait_until(
            &format!("{state}, {result}: {}", self.backend()),
            secs(10),
            holds,
        );
        self.backend()["last_check"]["transcript"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    fn results(&self, result: &str) -> f64 {
        let backend = self.addr.to_string();
        self.tembuku.metric(
            "check_results_total",
            &[("backend", &backend), ("result", result)],
        )
    }
}

/// Reads until there is nothing more to come; its owner does nothing else with a client.
fn listen_only(mut stream: &TcpStream) {
    let _ = stream.read_to_end(&mut Vec::new());
}

/// What a server does that a check must not believe: its reason for each kind, in the order redis,
/// http, send_expect, postgres, mysql (which listens first).
#[test]
fn servers_that_misbehave_have_their_reason() {
    type Handler = fn(TcpStream);
    let hangs: Handler = |stream| listen_only(&stream);
    let dribbles: Handler = |mut stream| {
        for byte in b"+PONG and so on for a long time\r\n" {
            if stream.write_all(&[*byte]).is_err() {
                break;
            }
            std::thread::sleep(secs(1)); // the pace of the server
        }
    };
    let garbage: Handler = |mut stream| {
        let _ = stream
            .write_all(b"\x16\x03\x01\x00 what is this?\r\n")
            .and_then(|()| stream.shutdown(std::net::Shutdown::Write));
        listen_only(&stream);
    };
    let floods: Handler = |mut stream| while stream.write_all(&[b'+'; 4096]).is_ok() {};
    let closes: Handler = |mut stream| {
        let _ = stream.read(&mut [0; 4096]);
    };
    let resets: Handler = |mut stream| {
        let _ = stream.read(&mut [0; 1]);
        net::reset(stream);
    };
    for (name, handler, reasons) in [
        (
            "hangs",
            hangs,
            ["timeout", "timeout", "timeout", "timeout", "timeout"],
        ),
        (
            "dribbles",
            dribbles,
            ["timeout", "protocol", "timeout", "protocol", "timeout"],
        ),
        (
            "garbage",
            garbage,
            ["protocol", "protocol", "unexpected", "protocol", "protocol"],
        ),
        (
            "floods",
            floods,
            ["protocol", "protocol", "unexpected", "protocol", "protocol"],
        ),
        (
            "closes",
            closes,
            ["closed", "closed", "closed", "closed", "timeout"],
        ),
        (
            "resets",
            resets,
            ["reset", "reset", "reset", "reset", "timeout"],
        ),
    ] {
        for (kind, reason) in [REDIS, HTTP, SEND, POSTGRES, MYSQL].iter().zip(reasons) {
            let server = Server::start(handler);
            let started = Instant::now();
            let setup = setup(server.addr, "", kind);
            let saw = setup.wait("down", reason);
            let took = setup.backend()["last_check"]["duration_seconds"]
                .as_f64()
                .unwrap();
            println!("{name}, {kind:?}: {reason} after {took:.3} s: {saw}");
            let first = if reason == "timeout" {
                TIMEOUT
            } else {
                Duration::ZERO
            };
            assert!(
                bounded(Duration::from_secs_f64(took), first, TIMEOUT + secs(2)),
                "{took}"
            );
            assert!(started.elapsed() < secs(8));
            assert_eq!(
                setup.backend()["available"],
                false,
                "alone, and not used all the same"
            );
            assert!(
                setup.backend()["why"].as_str().unwrap().contains(reason),
                "{}",
                setup.backend()
            );
        }
    }
}

/// As above, of servers that know the protocol so far.
#[test]
fn servers_that_stop_midway_have_their_reason() {
    const TLS: &str = "tls = \"require\"";
    type Handler = fn(TcpStream);
    let dribbles: Handler = |mut stream| {
        for byte in b"S\0\0\0\x19server_version\x0015.1\0" {
            if stream.write_all(&[*byte]).is_err() {
                break;
            }
            std::thread::sleep(secs(1)); // the pace of the server
        }
    };
    let stops_in_tls: Handler = |mut stream| {
        let _ = stream
            .read(&mut [0; 8])
            .and_then(|_| stream.write_all(b"S"));
        listen_only(&stream);
    };
    let has_no_tls: Handler = |mut stream| {
        let _ = stream
            .read(&mut [0; 8])
            .and_then(|_| stream.write_all(b"N"));
        listen_only(&stream);
    };
    // What comes before TLS is not from the server that the certificate names.
    let says_too_much: Handler = |mut stream| {
        let _ = stream
            .read(&mut [0; 8])
            .and_then(|_| stream.write_all(b"SR\0\0\0\x08\0\0\0\0"));
        listen_only(&stream);
    };
    let hangs: Handler = |stream| listen_only(&stream);
    let no_answer = "within 400ms";
    for (check, handler, reason, parts) in [
        (
            POSTGRES.to_owned(),
            dribbles,
            "timeout",
            ["waiting for the answer", no_answer],
        ),
        (
            format!("{POSTGRES}\n{TLS}"),
            stops_in_tls,
            "timeout",
            ["beginning TLS", no_answer],
        ),
        (
            format!("{POSTGRES}\n{TLS}"),
            has_no_tls,
            "tls",
            ["it does not speak TLS", ""],
        ),
        (
            format!("{POSTGRES}\n{TLS}"),
            says_too_much,
            "protocol",
            ["before TLS had begun", ""],
        ),
        (
            format!("{POSTGRES}\n{TLS}"),
            stops_in_tls,
            "timeout",
            ["beginning TLS", no_answer],
        ),
        (
            format!("{REDIS}\n{TLS}"),
            hangs,
            "timeout",
            ["beginning TLS", no_answer],
        ),
        (
            format!("{HTTP}\n{TLS}"),
            hangs,
            "timeout",
            ["beginning TLS", no_answer],
        ),
    ] {
        let server = Server::start(handler);
        let setup = setup(server.addr, "", &check);
        let saw = setup.wait("down", reason);
        assert!(
            parts.iter().all(|part| saw.contains(part)),
            "{check}: {saw}"
        );
    }
}

/// The same once a greeting has been believed.
#[test]
fn servers_that_begin_as_mysql_have_their_reason() {
    type Then = fn(&mut TcpStream) -> std::io::Result<()>;
    let hangs: Then = |stream| stream.read_to_end(&mut Vec::new()).map(|_| ());
    let dribbles: Then = |stream| {
        for byte in b"\x07\0\0\x02\0\0\0\x02" {
            stream.write_all(&[*byte])?;
            std::thread::sleep(secs(1)); // the pace of the server
        }
        Ok(())
    };
    let out_of_order: Then = |stream| {
        stream
            .write_all(b"\x01\0\0\x09\0")
            .and_then(|()| stream.read_to_end(&mut Vec::new()).map(|_| ()))
    };
    let garbage: Then = |stream| {
        stream
            .write_all(b"\x04\0\0\x02what")
            .and_then(|()| stream.read_to_end(&mut Vec::new()).map(|_| ()))
    };
    // A login that is fine, and a result without an end.
    let floods: Then = |stream| {
        mysql::write(stream, 2, mysql::OK)?;
        let column = b"\x03def\0\x01t\x01t\x01n\x01n\x0c\x2d\0\0\x01\0\0\xfd\0\0\0\0\0";
        for (payload, number) in [&b"\x01"[..], column, b"\xfe\0\0\x02\0"].iter().zip(1..) {
            mysql::write(stream, number, payload)?;
        }
        let row = [&[200; 1][..], &[b'+'; 200]].concat();
        for number in (0..=255).cycle().skip(4) {
            mysql::write(stream, number, &row)?;
        }
        Ok(())
    };
    let closes: Then = |_| Ok(());
    let resets: Then = |stream| {
        net::reset(stream.try_clone()?);
        Ok(())
    };
    for (name, then, reason) in [
        ("hangs", hangs, "timeout"),
        ("dribbles", dribbles, "timeout"),
        ("numbers out of order", out_of_order, "protocol"),
        ("garbage", garbage, "protocol"),
        ("floods", floods, "protocol"),
        ("closes", closes, "closed"),
        ("resets", resets, "reset"),
    ] {
        let server = Server::start(move |mut stream| {
            let begun = mysql::write(&mut stream, 0, &greeting("mysql_native_password", false))
                .and_then(|()| mysql::read(&mut stream));
            if begun.is_ok() {
                let _ = then(&mut stream);
            }
        });
        let setup = setup(server.addr, "", MYSQL);
        let saw = setup.wait("down", reason);
        println!("{name}: {reason}: {saw}");
    }
}

#[test]
fn unreachable_addresses_have_their_reason() {
    let refusing = ports::free_addr();
    for kind in [TCP, REDIS, HTTP, SEND, MYSQL] {
        let saw = setup(refusing, "", kind).wait("down", "refused");
        assert_eq!(saw, "connecting: Connection refused");
    }
    let hole = net::BlackHole::new();
    let saw = setup(hole.addr, "", TCP).wait("down", "timeout");
    assert_eq!(saw, "connecting: no answer within 400ms");
}

/// A server that speaks first, and one that does not: both see a clean end and no reset.
#[test]
fn tcp_takes_leave_politely() {
    let (sender, ends) = std::sync::mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    let server = Server::start(move |mut stream| {
        let _ = stream.write_all(&[b'g'; 3000]);
        let end = net::read_all(&mut stream);
        let _ = sender.lock().unwrap().send(end);
    });
    let setup = setup(server.addr, "", TCP);
    for _ in 0..3 {
        let (received, end) = ends.recv_timeout(secs(10)).unwrap();
        assert_eq!((received, end), (Vec::new(), net::End::Fin));
    }
    setup.wait("up", "ok");
    // The next check begins when the last is over.
    assert!(server.live() <= 1);
}

/// The server sees the end of the conversation, and then the end of the connection.
#[test]
fn redis_checks_end_with_quit() {
    let (sender, ends) = std::sync::mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    let server = Server::start(move |mut stream| {
        let questions = b"*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nROLE\r\n\
            *2\r\n$4\r\nINFO\r\n$11\r\nreplication\r\n\
            *2\r\n$4\r\nINFO\r\n$6\r\nserver\r\n*1\r\n$4\r\nQUIT\r\n";
        let mut received = vec![0; questions.len()];
        let read = stream.read_exact(&mut received);
        let answers = b"+PONG\r\n*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n\
            $2\r\n\r\n\r\n$2\r\n\r\n\r\n";
        let _ = stream.write_all(answers);
        let asked = read.is_ok() && received == questions;
        let _ = sender
            .lock()
            .unwrap()
            .send((asked, net::read_all(&mut stream)));
    });
    let setup = setup(server.addr, "", REDIS);
    let (asked, end) = ends.recv_timeout(secs(10)).unwrap();
    assert!(asked);
    assert_eq!(end, (Vec::new(), net::End::Fin));
    setup.wait("up", "ok");
}

/// However short the interval is, the next check begins when the last one is over.
#[test]
fn there_is_never_more_than_one_check_of_a_backend() {
    let (sender, begun) = std::sync::mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    let server = Server::start(move |stream| {
        let _ = sender.lock().unwrap().send(Instant::now());
        listen_only(&stream);
    });
    let front = ports::free_addr();
    let _tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n[upstreams.u]\nbackends = [\"{}\"]\n\
         [upstreams.u.check]\n{HTTP}\ninterval = \"10ms\"\ntimeout = \"400ms\"\n",
        server.addr
    ));
    let mut last = begun.recv_timeout(secs(10)).unwrap();
    for _ in 0..4 {
        let next = begun.recv_timeout(secs(10)).unwrap();
        // A thread of the test that wakes up late makes one pause shorter than it was.
        assert!(next - last > TIMEOUT / 2, "{:?}", next - last);
        last = next;
    }
}

/// Down and up again: after `fall` failures, and after `rise` answers.
#[test]
fn http_follows_the_status() {
    let addr = ports::free_addr();
    let nginx = Nginx::start(
        addr,
        &http_block(&format!(
            "server {{ listen {addr}; location = /primary {{ \
             if (-f {{dir}}/sick) {{ return 503; }} return 200 \"$host $http_connection\"; }} }}"
        )),
    );
    let setup = setup(
        addr,
        "",
        "kind = \"http\"\npath = \"/primary\"\nhost = \"db.example\"\nstatus = [\"200\", \"204\"]\n\
         rise = 3\nfall = 2",
    );
    assert_eq!(setup.wait("up", "ok"), "got \"HTTP/1.1 200 OK\"");
    std::fs::write(nginx.file("sick"), "").unwrap();
    let saw = setup.wait("down", "unexpected");
    assert_eq!(saw, "got \"HTTP/1.1 503 Service Temporarily Unavailable\"");
    let failed = setup.results("unexpected");
    assert!(failed >= 2.0, "{failed}");
    let ok = setup.results("ok");
    std::fs::remove_file(nginx.file("sick")).unwrap();
    setup.wait("up", "ok");
    assert!(setup.results("ok") >= ok + 3.0);
    assert_eq!(
        setup
            .tembuku
            .metric("backend_transitions_total", &[("to", "up")]),
        1.0
    );
    assert_eq!(
        setup
            .tembuku
            .metric("backend_transitions_total", &[("to", "down")]),
        1.0
    );
    // What was never refused was understood.
    assert_eq!(
        setup.results("protocol") + setup.results("closed") + setup.results("reset"),
        0.0
    );
}

#[test]
fn send_expect_talks_to_redis() {
    let redis = Redis::start(ports::free_addr());
    assert_eq!(
        setup(redis.addr, "", SEND).wait("up", "ok"),
        "got \"+PONG\\r\\n\""
    );
    let hex = "kind = \"send_expect\"\nsend_hex = \"50 49 4E 47 0d0a\"\nexpect_hex = \"2b504f\"";
    setup(redis.addr, "", hex).wait("up", "ok");
    let text = "kind = \"send_expect\"\nsend = \"ECHO hi\\r\\n\"\nexpect = \"ho\"";
    let waits = setup(redis.addr, "", text);
    assert_eq!(
        waits.wait("down", "timeout"),
        "waiting for the answer: not all of the expected answer within 400ms; \
         got \"$2\\r\\nhi\\r\\n\""
    );
}

/// In pieces, and the banner alone.
#[test]
fn send_expect_puts_pieces_together() {
    let server = Server::start(|mut stream| {
        for piece in ["220 ma", "il.exam", "ple ES", "MTP\r\n"] {
            let _ = stream.write_all(piece.as_bytes());
            std::thread::sleep(millis(20)); // what makes them pieces
        }
        listen_only(&stream);
    });
    let check = "kind = \"send_expect\"\nexpect = \"example ESMTP\"";
    setup(server.addr, "", check).wait("up", "ok");
}

#[test]
fn the_header_for_the_backend_is_sent_by_checks_too() {
    // Behind the fixed part of version 2 a checksum follows, whose length is in the fixed part.
    for (version, header, more) in [
        ("v1", &b"PROXY UNKNOWN\r\n"[..], 0),
        ("v2", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\x07", 7),
    ] {
        let server = Server::start(move |mut stream| {
            let mut received = vec![0; header.len() + more + 6];
            let read = stream.read_exact(&mut received);
            if read.is_ok() && received.starts_with(header) && received.ends_with(b"PING\r\n") {
                let _ = stream.write_all(b"+PONG\r\n");
            }
            listen_only(&stream);
        });
        let setup = setup(server.addr, &format!("send_proxy = \"{version}\""), SEND);
        setup.wait("up", "ok");
    }
}

/// Another port of the backend, or another address.
#[test]
fn a_check_may_go_to_another_address() {
    let (server, refusing) = (Server::named("b"), ports::free_addr());
    let port = server.addr.port();
    setup(refusing, "", &format!("{TCP}\nport = {port}")).wait("up", "ok");
    setup(
        refusing,
        "",
        &format!("{TCP}\naddress = \"{}\"", server.addr),
    )
    .wait("up", "ok");
    let dir = crate::harness::temp::TempDir::new();
    let path = dir.file("check.sock");
    let unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let address = format!("{TCP}\naddress = \"unix:{}\"", path.display());
    let setup = setup(refusing, "", &address);
    setup.wait("up", "ok");
    drop(unix);
    setup.wait("down", "refused");
}

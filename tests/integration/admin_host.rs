//! The Host header on the admin address: a name that was made to resolve to this machine (DNS
//! rebinding) gives no web page the status.

use crate::harness::{http, ports, secs, tembuku::Tembuku};
use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

const PATHS: [&str; 8] = [
    "/",
    "/metrics",
    "/livez",
    "/readyz",
    "/api/v1/status",
    "/api/v1/events",
    "/no/such/page",
    "/api/v1/upstreams/u/backends/b",
];

fn start(admin: &str) -> Tembuku {
    Tembuku::start(&format!(
        "[admin]\n{admin}\n[listeners.l]\nbind = \"{}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [\"{}\"]\n",
        ports::free_addr(),
        ports::free_addr()
    ))
}

/// The answer to what `head` asks for, which is everything but the empty line at its end.
fn ask(tembuku: &Tembuku, head: &str) -> String {
    let mut stream = TcpStream::connect_timeout(&tembuku.admin, secs(5)).unwrap();
    stream.set_read_timeout(Some(secs(10))).unwrap();
    let head = format!("{head}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn status(answer: &str) -> &str {
    answer.split_whitespace().nth(1).unwrap_or_default()
}

#[test]
fn another_name_gets_nothing_on_any_path_by_any_method() {
    let tembuku = start("");
    for path in PATHS {
        for method in ["GET", "HEAD", "POST", "OPTIONS"] {
            let head = format!("{method} {path} HTTP/1.1\r\nHost: evil.example:9900");
            let answer = ask(&tembuku, &head);
            assert_eq!(status(&answer), "421", "{method} {path}: {answer}");
            assert!(!answer.contains("backend"), "{method} {path}: {answer}");
            if method == "GET" {
                assert!(answer.contains("`hosts` in [admin]"), "{answer}");
                assert!(answer.contains("\"evil.example\""), "{answer}");
            }
        }
    }
    let log = tembuku.proc.stderr();
    assert!(log.contains("\"host\":\"evil.example\""), "{log}");
}

#[test]
fn addresses_localhost_and_configured_names_are_answered() {
    let tembuku = start("hosts = [\"Status.Example.com.\", \"lb_1\"]");
    for host in [
        "127.0.0.1",
        "192.0.2.1:80",
        "[::1]",
        "[2001:db8::1]:9900",
        "localhost",
        "LOCALHOST.:1",
        "status.example.com",
        "STATUS.EXAMPLE.COM.:9900",
        "lb_1:9900",
    ] {
        let answer = ask(&tembuku, &format!("GET /metrics HTTP/1.1\r\nHost: {host}"));
        assert_eq!(status(&answer), "200", "{host}: {answer}");
    }
    for host in ["example.com", "x.status.example.com", "lb_1.", "lb-1"] {
        let answer = ask(&tembuku, &format!("GET /metrics HTTP/1.1\r\nHost: {host}"));
        let expected = if host == "lb_1." { "200" } else { "421" };
        assert_eq!(status(&answer), expected, "{host}: {answer}");
    }
}

#[test]
fn a_missing_a_second_or_an_invalid_host_is_a_bad_request() {
    let tembuku = start("");
    for lines in [
        "GET /livez HTTP/1.1",
        "GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: localhost",
        "GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: evil.example",
        "GET /livez HTTP/1.1\r\nHost:",
        "GET /livez HTTP/1.1\r\nHost: localhost, evil.example",
        "GET /livez HTTP/1.1\r\nHost: user@localhost",
        "GET /livez HTTP/1.1\r\nHost: ::1",
        "GET http://evil.example@localhost/livez HTTP/1.1\r\nHost: localhost",
    ] {
        let answer = ask(&tembuku, lines);
        assert_eq!(status(&answer), "400", "{lines}: {answer}");
    }
    for (lines, expected) in [
        (
            "GET http://evil.example/livez HTTP/1.1\r\nHost: localhost",
            "421",
        ),
        (
            "GET http://localhost/livez HTTP/1.1\r\nHost: evil.example",
            "421",
        ),
        (
            "GET http://localhost:1/livez HTTP/1.1\r\nHost: localhost:1",
            "200",
        ),
        ("GET /livez HTTP/1.0", "200"),
        ("GET /livez HTTP/1.0\r\nHost: evil.example", "421"),
    ] {
        let answer = ask(&tembuku, lines);
        assert_eq!(status(&answer), expected, "{lines}: {answer}");
    }
}

#[test]
fn the_socket_answers_any_name() {
    let tembuku = start("socket = \"{dir}/admin.sock\"");
    let socket = tembuku.dir.file("admin.sock");
    let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    stream.set_read_timeout(Some(secs(10))).unwrap();
    let head = "GET /livez HTTP/1.1\r\nHost: any.example\r\nConnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(status(&answer), "200", "{answer}");
}

/// A page of another origin may send a request, but neither reads nor includes what comes back.
#[test]
fn answers_are_of_no_use_to_other_origins() {
    let tembuku = start("");
    for path in PATHS {
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nOrigin: http://evil.example",
            tembuku.admin
        );
        let answer = ask(&tembuku, &head).to_lowercase();
        assert!(!answer.contains("access-control-"), "{path}: {answer}");
        for header in [
            "x-content-type-options: nosniff",
            "cross-origin-resource-policy: same-origin",
            "frame-ancestors 'none'",
        ] {
            assert!(answer.contains(header), "{path}: {answer}");
        }
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        let response = http::request(tembuku.admin, method, "/api/v1/status").unwrap();
        assert_eq!(response.status, 405, "{method}");
        assert_eq!(response.header("access-control-allow-origin"), None);
    }
}

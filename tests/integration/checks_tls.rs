//! Checks inside TLS, of servers that begin with it: what they trust, and what is reported about
//! those that they do not.

use crate::harness::{
    certs::{Authority, Certificate},
    poll, ports,
    programs::{Nginx, Redis, http_block},
    secs,
    tembuku::Tembuku,
    temp::TempDir,
    wait_until,
};
use std::net::SocketAddr;

/// A listener before this server, checked every half second.
fn start(addr: SocketAddr, check: &str) -> Tembuku {
    let timeout = match check.contains("timeout") {
        true => "",
        false => "timeout = \"10s\"\n",
    };
    let front = ports::free_addr();
    Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [\"{addr}\"]\n\
         [upstreams.u.check]\ninterval = \"500ms\"\n{timeout}{check}\n"
    ))
}

/// The state, the result and what the check saw, when the first check has ended.
#[track_caller]
fn verdict(addr: SocketAddr, check: &str) -> [String; 3] {
    let tembuku = start(addr, check);
    let found = poll(secs(20), || {
        let status = tembuku.status();
        let backend = &status["upstreams"][0]["backends"][0];
        let last = &backend["last_check"];
        let values = [&backend["state"], &last["result"], &last["transcript"]];
        last.is_object()
            .then(|| values.map(|value| value.as_str().unwrap().to_owned()))
    });
    found.unwrap_or_else(|| panic!("no check has ended: {check}"))
}

struct Names {
    authority: Authority,
    other: Authority,
}

impl Names {
    fn new() -> Names {
        let (authority, other) = (Authority::new("one"), Authority::new("other"));
        Names { authority, other }
    }

    /// The results of checks of a server whose certificate is for db.example and 127.0.0.1.
    #[track_caller]
    fn assert_judged(&self, addr: SocketAddr, check: &str) {
        let verify =
            |by: &Authority| format!("tls = \"verify\"\ntls_ca = \"{}\"", by.file().display());
        let own = verify(&self.authority);
        for (keys, expected) in [
            ("tls = \"require\"".to_owned(), None),
            // By its address, which stands in the certificate.
            (own.clone(), None),
            (format!("{own}\ntls_name = \"db.example\""), None),
            (
                format!("{own}\ntls_name = \"db2.example\""),
                Some("not valid for name \"db2.example\""),
            ),
            (verify(&self.other), Some("UnknownIssuer")),
        ] {
            let [state, result, saw] = verdict(addr, &format!("{check}\n{keys}"));
            match expected {
                None => assert_eq!([&*state, &*result], ["up", "ok"], "{keys}: {saw}"),
                Some(part) => {
                    assert_eq!([&*state, &*result], ["down", "tls"], "{keys}: {saw}");
                    assert!(
                        saw.starts_with("beginning TLS: ") && saw.contains(part),
                        "{saw}"
                    );
                }
            }
        }
    }
}

/// Its plain port is only asked by the test, whether it is ready.
fn redis(
    Certificate { certificate, key }: &Certificate,
    arguments: &[&str],
) -> (Redis, SocketAddr) {
    let encrypted = ports::free_addr();
    let (port, certificate, key) = (
        encrypted.port().to_string(),
        certificate.to_str().unwrap(),
        key.to_str().unwrap(),
    );
    let mut all = vec![
        "--tls-port",
        &port,
        "--tls-cert-file",
        certificate,
        "--tls-key-file",
        key,
    ];
    all.extend([
        "--tls-ca-cert-file",
        certificate,
        "--tls-auth-clients",
        "no",
    ]);
    all.extend(arguments);
    (Redis::start_with(ports::free_addr(), &all), encrypted)
}

const REDIS: &str = "kind = \"redis\"\nrole = \"primary\"";

#[test]
fn redis_inside_tls() {
    let names = Names::new();
    let both = "DNS:db.example,IP:127.0.0.1";
    let certificate = names.authority.issue("db.example", both, 2);
    let (server, encrypted) = redis(&certificate, &[]);
    names.assert_judged(encrypted, REDIS);
    // Without TLS it waits for the end of a line that does not come.
    let check = format!("{REDIS}\ntls = \"require\"\ntimeout = \"1s\"");
    let [state, result, saw] = verdict(server.addr, &check);
    assert_eq!([&*state, &*result], ["down", "timeout"], "{saw}");
    assert_eq!(saw, "beginning TLS: no answer within 1s");
    let [state, result, saw] = verdict(encrypted, REDIS);
    assert_eq!(state, "down", "{saw}");
    assert!(
        ["closed", "reset", "protocol"].contains(&&*result),
        "{result}: {saw}"
    );

    let (_old, old) = redis(&certificate, &["--tls-protocols", "TLSv1.2"]);
    let [state, _, saw] = verdict(old, &format!("{REDIS}\ntls = \"require\""));
    assert_eq!((&*state, &*saw), ("up", "PING: PONG, ROLE: master"));

    let expired = names.authority.issue_expired("db.example", both);
    let (_late, late) = redis(&expired, &[]);
    let keys = format!(
        "{REDIS}\ntls = \"verify\"\ntls_ca = \"{}\"",
        names.authority.file().display()
    );
    let [state, result, saw] = verdict(late, &keys);
    assert_eq!([&*state, &*result], ["down", "tls"], "{saw}");
    assert!(saw.contains("expired"), "{saw}");
    // Whatever the identity of the server.
    let [state, ..] = verdict(late, &format!("{REDIS}\ntls = \"require\""));
    assert_eq!(state, "up");
}

#[test]
fn http_inside_tls() {
    let names = Names::new();
    let Certificate { certificate, key } =
        names
            .authority
            .issue("db.example", "DNS:db.example,IP:127.0.0.1", 2);
    for protocols in ["TLSv1.2", "TLSv1.3"] {
        let addr = ports::free_addr();
        let _nginx = Nginx::start(
            addr,
            &http_block(&format!(
                "server {{ listen {addr} ssl; ssl_protocols {protocols}; ssl_certificate {}; \
                 ssl_certificate_key {}; location / {{ return 200; }} }}",
                certificate.display(),
                key.display()
            )),
        );
        names.assert_judged(addr, "kind = \"http\"");
    }
}

/// Each of many checks sees the certificate: none resumes the session of an earlier one.
#[test]
fn each_check_shakes_hands_anew() {
    let names = Names::new();
    let Certificate { certificate, key } = names.authority.issue("db.example", "IP:127.0.0.1", 2);
    let dir = TempDir::new();
    for protocols in ["TLSv1.2", "TLSv1.3"] {
        let addr = ports::free_addr();
        let log = dir.file(protocols);
        let _nginx = Nginx::start(
            addr,
            &http_block(&format!(
                "log_format reused '[$ssl_session_reused]'; \
                 server {{ listen {addr} ssl; ssl_protocols {protocols}; ssl_session_cache \
                 shared:s:1m; ssl_certificate {}; ssl_certificate_key {}; location / {{ access_log \
                 {} reused; return 200; }} }}",
                certificate.display(),
                key.display(),
                log.display()
            )),
        );
        let _tembuku = start(
            addr,
            &format!(
                "kind = \"http\"\ntls = \"verify\"\ntls_ca = \"{}\"",
                names.authority.file().display()
            ),
        );
        let mut seen = String::new();
        wait_until("four checks", secs(20), || {
            seen = std::fs::read_to_string(&log).unwrap_or_default();
            seen.lines().count() >= 4
        });
        assert!(
            seen.lines().all(|line| line == "[.]"),
            "{protocols}: {seen}"
        );
    }
}

/// The end of the handshake and the question after it go out one after the other. A server that
/// waits in between for the server to acknowledge the first waits for 40 ms, every time.
#[test]
fn no_question_waits_for_an_acknowledgement() {
    let authority = Authority::new("one");
    let Certificate { certificate, key } = authority.issue("db.example", "IP:127.0.0.1", 2);
    let addr = ports::free_addr();
    let _nginx = Nginx::start(
        addr,
        &http_block(&format!(
            "server {{ listen {addr} ssl; ssl_protocols TLSv1.3; ssl_certificate {}; \
             ssl_certificate_key {}; location / {{ return 200; }} }}",
            certificate.display(),
            key.display()
        )),
    );
    let tembuku = start(addr, "kind = \"http\"\ntls = \"require\"");
    wait_until("a check within 35 ms", secs(20), || {
        let status = tembuku.status();
        let last = &status["upstreams"][0]["backends"][0]["last_check"];
        let took = last["duration_seconds"].as_f64();
        last["result"] == "ok" && took.is_some_and(|took| took < 0.035)
    });
}

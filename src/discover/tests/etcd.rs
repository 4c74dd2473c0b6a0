//! What etcd does seldom.

use super::{
    super::etcd::{Etcd, EtcdSettings},
    addresses,
    fake::{Fake, answer, begin_stream, chunk, end_stream, hang},
    next, run,
};
use crate::plan::PasswordFrom;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use std::{fs, time::Duration};

fn kv(key: &str, value: &str, revision: u32) -> String {
    let (key, value) = (STANDARD.encode(key), STANDARD.encode(value));
    format!(r#"{{"key":"{key}","value":"{value}","mod_revision":"{revision}"}}"#)
}

fn range(revision: u32, kvs: &[String]) -> String {
    let count = kvs.len();
    format!(
        r#"{{"header":{{"cluster_id":"1","revision":"{revision}"}},"kvs":[{}],"count":"{count}"}}"#,
        kvs.join(",")
    )
}

fn result(inside: &str) -> String {
    format!("{{\"result\":{{\"header\":{{\"cluster_id\":\"1\",\"revision\":\"20\"}}{inside}}}}}\n")
}

fn settings(endpoints: &[String]) -> EtcdSettings {
    EtcdSettings {
        endpoints: endpoints.to_vec(),
        prefix: "/a/".to_owned(),
        login: None,
        tls_ca: None,
        identity: None,
        interval: Duration::from_secs(5),
        timeout: Duration::from_secs(5),
    }
}

#[test]
fn a_watch_is_resumed_and_begun_again_after_a_compaction() {
    let server = Fake::start(|number, request, stream| {
        let from = |revision: u32| {
            request
                .body
                .contains(&format!(r#""start_revision":"{revision}""#))
        };
        let is_newest = request.body.contains("keys_only");
        let one = kv("/a/1", "10.0.0.1:1", 8);
        let two = kv("/a/2", "10.0.0.2:1", 12);
        match number {
            0 if !is_newest => answer(stream, "200 OK", "", &range(10, &[one])),
            1 if from(11) => {
                begin_stream(stream);
                chunk(stream, &result(r#","created":true"#));
                chunk(stream, &result(&format!(r#","events":[{{"kv":{two}}}]"#)));
                end_stream(stream);
            }
            // It asks what there is, and goes on.
            2 if is_newest => {
                let newest = range(14, &[two]).replace(r#""count":"1""#, r#""count":"2""#);
                answer(stream, "200 OK", "", &newest);
            }
            3 if from(15) => {
                begin_stream(stream);
                chunk(
                    stream,
                    &result(r#","created":true,"canceled":true,"compact_revision":"18""#),
                );
                hang(stream);
            }
            4 if !is_newest => answer(stream, "200 OK", "", &range(20, &[two])),
            5 if from(21) => {
                begin_stream(stream);
                hang(stream);
            }
            _ => answer(stream, "500 No", "", &request.body),
        }
    });
    run(async {
        let mut source = Etcd::new(settings(&[server.url()]));
        assert_eq!(addresses(&mut source).await, "10.0.0.1:1");
        assert_eq!(addresses(&mut source).await, "10.0.0.1:1 10.0.0.2:1");
        assert_eq!(addresses(&mut source).await, "10.0.0.1:1 10.0.0.2:1");
        let last = next(&mut source).await.expect("a list");
        assert_eq!((last.backends.len(), &last.version[..]), (1, "revision 20"));
    });
}

#[test]
fn a_watch_that_is_silent_is_checked_and_left() {
    let answers = |number: usize, stream: &mut std::net::TcpStream| match number {
        0 => answer(
            stream,
            "200 OK",
            "",
            &range(10, &[kv("/a/1", "10.0.0.1:1", 8)]),
        ),
        1 => {
            begin_stream(stream);
            hang(stream);
        }
        // Another has the key in the meantime.
        2 => answer(stream, "200 OK", "", &range(30, &[kv("/a/1", "", 29)])),
        _ => hang(stream),
    };
    let first = Fake::start(move |number, _, stream| answers(number, stream));
    let second = Fake::start(|_, request, stream| match &request.line[..] {
        "POST /v3/kv/range" => {
            answer(
                stream,
                "200 OK",
                "",
                &range(30, &[kv("/a/1", "10.0.0.2:1", 29)]),
            );
        }
        _ => {
            begin_stream(stream);
            hang(stream);
        }
    });
    run(async {
        let mut source = Etcd::new(EtcdSettings {
            interval: Duration::from_millis(100),
            timeout: Duration::from_millis(1500),
            ..settings(&[first.url(), second.url()])
        });
        assert_eq!(addresses(&mut source).await, "10.0.0.1:1");
        assert_eq!(addresses(&mut source).await, "10.0.0.2:1");
        assert_eq!(addresses(&mut source).await, "10.0.0.2:1");
    });
    assert!(first.requests().len() >= 4, "{:?}", first.requests());
}

#[test]
fn a_token_that_is_refused_is_replaced() {
    const REFUSED: &str = r#"{"error":"etcdserver: invalid auth token",
        "message":"etcdserver: invalid auth token","code":16}"#;
    let path = std::env::temp_dir().join(format!("tembuku-etcd-{}", std::process::id()));
    fs::write(&path, "pass\n").expect("writable");
    let server = Fake::start(|number, request, stream| {
        let has = |token: &str| {
            request
                .head
                .contains(&format!("\r\nauthorization: {token}\r\n"))
        };
        match (&request.line[..], number) {
            ("POST /v3/auth/authenticate", _) => {
                assert_eq!(request.body, r#"{"name":"u","password":"pass"}"#);
                let token = format!(r#"{{"token":"t{number}"}}"#);
                answer(stream, "200 OK", "", &token);
            }
            ("POST /v3/kv/range", 1) if has("t0") => {
                answer(stream, "401 Unauthorized", "", REFUSED)
            }
            ("POST /v3/kv/range", 3) if has("t2") => answer(stream, "200 OK", "", &range(10, &[])),
            // The token of the watch is another matter: the next attempt has a new one.
            ("POST /v3/watch", 4) if has("t2") => answer(stream, "401 Unauthorized", "", REFUSED),
            ("POST /v3/kv/range", 6) if has("t5") => answer(stream, "200 OK", "", &range(10, &[])),
            ("POST /v3/watch", 7) if has("t5") => {
                begin_stream(stream);
                hang(stream);
            }
            _ => answer(stream, "500 No", "", &request.head),
        }
    });
    run(async {
        let password = PasswordFrom::File(path.clone());
        let mut source = Etcd::new(EtcdSettings {
            login: Some(("u".to_owned(), password)),
            ..settings(&[server.url()])
        });
        let error = next(&mut source).await.expect_err("refused");
        assert!(error.contains("invalid auth token"), "{error}");
        assert_eq!(addresses(&mut source).await, "");
    });
    fs::remove_file(path).expect("there");
}

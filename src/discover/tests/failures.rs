//! Each kind that speaks HTTP, and everything that can be wrong with a server: always an error that
//! says so, in time, and never an empty set.

use super::{
    super::{
        consul::{Consul, ConsulSettings},
        etcd::{Etcd, EtcdSettings},
        http::HttpList,
        kubernetes::{Kubernetes, KubernetesSettings},
    },
    fake::{Fake, answer, hang},
    next, run, settings,
};
use std::{
    io::Write as _,
    net::TcpListener,
    thread::sleep,
    time::{Duration, Instant},
};

const INTERVAL: Duration = Duration::from_millis(100);
const TIMEOUT: Duration = Duration::from_millis(400);

/// What is wrong by each kind.
fn errors(url: &str) -> [(&'static str, String); 4] {
    run(async {
        let mut http = HttpList::new(url, &[], None, &settings(INTERVAL, TIMEOUT));
        let mut consul = Consul::new(ConsulSettings {
            url: url.to_owned(),
            service: "a".to_owned(),
            tag: None,
            datacenter: None,
            token_file: None,
            use_health: true,
            tls_ca: None,
            interval: INTERVAL,
            timeout: TIMEOUT,
        });
        let mut etcd = Etcd::new(EtcdSettings {
            endpoints: vec![url.to_owned()],
            prefix: "/a/".to_owned(),
            login: None,
            tls_ca: None,
            identity: None,
            interval: INTERVAL,
            timeout: TIMEOUT,
        });
        let mut kubernetes = Kubernetes::new(KubernetesSettings {
            namespace: "n".to_owned(),
            service: "s".to_owned(),
            port: None,
            url: Some(url.to_owned()),
            token_file: None,
            tls_ca: None,
            interval: INTERVAL,
            timeout: TIMEOUT,
        });
        [
            ("http", next(&mut http).await),
            ("consul", next(&mut consul).await),
            ("etcd", next(&mut etcd).await),
            ("kubernetes", next(&mut kubernetes).await),
        ]
        .map(|(kind, answer)| (kind, answer.expect_err(kind)))
    })
}

#[track_caller]
fn expect(url: &str, place: &str, why: &str) {
    let began = Instant::now();
    for (kind, error) in errors(url) {
        assert!(
            error.contains(place) && error.contains(why),
            "{kind}: {error}"
        );
        assert!(error.len() < 600, "{kind}: {error}");
    }
    assert!(began.elapsed() < 5 * 4 * TIMEOUT, "{:?}", began.elapsed());
}

/// A server that writes this and closes.
#[track_caller]
fn expect_of(response: &'static [u8], why: &str) {
    let server = Fake::start(move |_, _, stream| {
        let _ = stream.write_all(response);
    });
    expect(&server.url(), &server.address.to_string(), why);
}

#[test]
fn servers_that_are_not_there() {
    let address = {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("an address")
    };
    expect(
        &format!("http://{address}"),
        &address.to_string(),
        "Connection refused",
    );
    expect("http://nowhere.invalid", "nowhere.invalid", "resolve");
    expect("gopher://h", "gopher://h", "begins with http");
}

#[test]
fn servers_that_hang() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let url = format!("http://{address}");
    // Connected by the kernel, and never accepted.
    expect(&url, &address, "there is no response within 400ms");
    let url = format!("https://{address}");
    for (kind, error) in errors(&url) {
        let is_named = error.contains("TLS is not established within 400ms")
            || error.contains("no certificates to verify by");
        assert!(is_named, "{kind}: {error}");
    }
    let server = Fake::start(|_, _, stream| {
        let _ =
            stream.write_all(b"HTTP/1.1 200 OK\r\nX-Consul-Index: 1\r\nContent-Length: 2\r\n\r\n[");
        hang(stream);
    });
    expect(
        &server.url(),
        "",
        "the response is not complete within 400ms",
    );
}

#[test]
fn bytes_that_come_slowly() {
    let server = Fake::start(|_, _, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nX-Consul-Index: 1\r\n\r\n");
        while stream.write_all(b" ").is_ok() {
            sleep(Duration::from_millis(20));
        }
    });
    expect(
        &server.url(),
        "",
        "the response is not complete within 400ms",
    );
    let server = Fake::start(|_, _, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nX-Field: ");
        while stream.write_all(b"x").is_ok() {
            sleep(Duration::from_millis(20));
        }
    });
    expect(&server.url(), "", "there is no response within 400ms");
}

#[test]
fn garbage() {
    expect_of(b"", "HTTP: ");
    expect_of(b"\0\x01\xff\r\n\r\n", "HTTP: ");
    expect_of(b"-ERR unknown command\r\n", "HTTP: ");
    expect_of(
        b"HTTP/1.1 200 OK\r\nX-Consul-Index: 1\r\nContent-Length: 9\r\n\r\n[]",
        "HTTP: ",
    );
    expect_of(
        b"HTTP/1.1 200 OK\r\nX-Consul-Index: 1\r\nContent-Length: 16\r\n\r\n<html>\n<p>hello ",
        "<html>",
    );
    expect_of(
        b"HTTP/1.1 200 OK\r\nX-Consul-Index: 1\r\nContent-Length: 0\r\n\r\n",
        "EOF",
    );
    expect_of(
        b"HTTP/1.1 200 OK\r\nX-Consul-Index: 1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        "HTTP: ",
    );
}

#[test]
fn statuses() {
    for (status, why) in [
        ("500 Oh No", "status 500: \"it broke\""),
        ("404 Not Found", "status 404: \"it broke\""),
        ("302 Found", "status 302: redirects are not followed"),
    ] {
        let server = Fake::start(move |_, _, stream| {
            answer(
                stream,
                status,
                "Location: http://elsewhere/\r\n",
                "it broke",
            );
        });
        expect(&server.url(), &server.address.to_string(), why);
    }
}

#[test]
fn answers_without_end() {
    let server = Fake::start(|_, _, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nX-Consul-Index: 1\r\n\r\n");
        let blanks = vec![b' '; 1 << 20];
        while stream.write_all(&blanks).is_ok() {}
    });
    for (kind, error) in errors(&server.url()) {
        // On a machine that is busy it may be the time.
        let is_named =
            error.contains("longer than 16 MiB") || error.contains("not complete within");
        assert!(is_named, "{kind}: {error}");
    }
    let server = Fake::start(|_, _, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        while stream
            .write_all(b"X-Field: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n")
            .is_ok()
        {}
    });
    for (kind, error) in errors(&server.url()) {
        assert!(error.contains("HTTP: "), "{kind}: {error}");
    }
}

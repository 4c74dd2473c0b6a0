//! Peers that are not trusted to name their clients.

use crate::{
    harness::{
        net::{End, assert_ends_now, connect, echo, read_all, read_line},
        ports,
        proxy::{self, connect_saying},
        secs,
        server::{Server, named},
        tembuku::Tembuku,
        wait_until,
    },
    proxy_accept::start,
};
use std::{
    io::{Read, Write},
    net::SocketAddr,
    sync::mpsc,
};

const TRUST: &str = "accept_proxy = { trust = [\"192.0.2.0/24\", \"unix\", \"127.0.0.9\"] }";

/// A backend that records every connection: what it got, and how that ended.
fn witness() -> (Server, mpsc::Receiver<Vec<u8>>, mpsc::Receiver<End>) {
    let ((sender, received), (ended, ends)) = (mpsc::channel(), mpsc::channel());
    let server = Server::start(move |mut stream| {
        let mut buffer = [0; 65_536];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => break ended.send(End::Fin).unwrap(),
                Ok(n) => sender.send(buffer[..n].to_vec()).unwrap(),
                Err(error) => break ended.send(crate::harness::net::end_of(&error)).unwrap(),
            }
        }
    });
    (server, received, ends)
}

fn refused(tembuku: &Tembuku, count: usize) {
    tembuku.wait_metric(
        "sessions_closed_total",
        &[("reason", "untrusted_proxy_header")],
        |n| n == count as f64,
    );
}

/// However it is cut, what would make a header of it never gets there, and everything before it
/// does so at once.
#[test]
fn a_header_goes_no_further_than_here() {
    let front = ports::free_addr();
    let (server, received, ends) = witness();
    let servers = [server];
    let tembuku = start(front, TRUST, "", &servers);
    let headers = [
        proxy::v1("10.1.1.1:1", "10.1.1.2:2"),
        proxy::v2("10.1.1.1:1", "10.1.1.2:2", &[]),
    ];
    let mut count = 0;
    for (header, signature) in headers.iter().zip([6, 12]) {
        for cut in 0..signature {
            let mut client = connect_saying(front, &header[..cut]);
            let mut got = Vec::new();
            while got.len() < cut {
                got.extend(
                    received
                        .recv_timeout(secs(10))
                        .expect("what has come goes on at once"),
                );
            }
            assert_eq!(got, &header[..cut]);
            client.write_all(&header[cut..]).unwrap();
            assert_eq!(read_all(&mut client), (vec![], End::Reset), "cut at {cut}");
            assert_eq!(
                ends.recv_timeout(secs(10)).unwrap(),
                End::Reset,
                "cut at {cut}"
            );
            assert!(received.try_recv().is_err(), "cut at {cut}");
            count += 1;
            refused(&tembuku, count);
        }
    }
    let record = tembuku.access_log(count).remove(0);
    assert_eq!(record["close_reason"], "untrusted_proxy_header");
    assert_eq!(record["remote_addr"], "127.0.0.1");
    assert!(record["proxy_protocol_addr"].is_null());
    let log = tembuku.proc.stderr();
    assert!(
        log.contains("WARN") && log.contains("trust") && log.contains("127.0.0.1:"),
        "{log}"
    );
}

#[test]
fn everything_else_passes() {
    let (front, servers) = (ports::free_addr(), named(1));
    let tembuku = start(front, TRUST, "", &servers);
    // The server sends first: the session does not wait for the client.
    let mut client = connect(front).unwrap();
    assert_eq!(read_line(&mut client).unwrap(), "b1");
    for line in ["P", "PROXY", "PROXY TCP4 1.1.1.1 2.2.2.2 3 4\r", "more"] {
        echo(&mut client, line).unwrap();
    }
    for text in [
        "PROXYING\n",
        "PROXY\tTCP4\n",
        "\r\n\r\n\0\r\nQUIT\r\n\n",
        " PROXY TCP4\n",
        "p\n",
        "GET / PROXY \n",
    ] {
        let mut client = connect_saying(front, text.as_bytes());
        let mut back = vec![0; 3 + text.len()];
        client.read_exact(&mut back).unwrap();
        assert_eq!(back, ["b1\n".as_bytes(), text.as_bytes()].concat());
        echo(&mut client, "PROXY TCP4 1.1.1.1 2.2.2.2 3 4\r").unwrap();
    }
    // Byte by byte, up to the last that could belong to a header.
    for text in [&b"PROXY"[..], b"\r\n\r\n\0\r\nQUIT"] {
        let mut client = connect(front).unwrap();
        assert_eq!(read_line(&mut client).unwrap(), "b1");
        for byte in text {
            client.write_all(&[*byte]).unwrap();
            let mut back = [0];
            client.read_exact(&mut back).unwrap();
            assert_eq!(back[0], *byte);
        }
        echo(&mut client, "xyz").unwrap();
    }
    let megabytes = vec![b'P'; 4 << 20];
    let mut client = connect(front).unwrap();
    let mut writer = client.try_clone().unwrap();
    let sent = megabytes.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let (back, end) = read_all(&mut client);
    writing.join().unwrap();
    assert!(end == End::Fin && back[3..] == megabytes);
    assert_eq!(
        tembuku.metric(
            "sessions_closed_total",
            &[("reason", "untrusted_proxy_header")]
        ),
        0.0
    );
}

#[test]
fn access_rules_hold_at_the_door() {
    let (front, servers) = (ports::free_addr(), named(1));
    let tembuku = start(
        front,
        &format!("{TRUST}\naccess = [\"deny 127.0.0.0/8\"]"),
        "",
        &servers,
    );
    assert_ends_now(&mut connect(front).unwrap());
    tembuku.wait_metric("listener_rejected_total", &[("reason", "access")], |n| {
        n == 1.0
    });
    // The rules do not apply to the proxy itself.
    let mut proxy =
        crate::harness::net::connect_with(front, Some([127, 0, 0, 9].into()), 0, 0).unwrap();
    proxy
        .write_all(&proxy::v1("192.0.2.1:1", "192.0.2.2:2"))
        .unwrap();
    assert_eq!(read_line(&mut proxy).unwrap(), "b1");
}

#[test]
fn a_peer_that_is_trusted_may_and_others_may_not() {
    let front = ports::free_addr();
    let servers = [proxy::client_naming_server()];
    let tembuku = start(front, TRUST, "send_proxy = \"v1\"", &servers);
    let header = proxy::v2("192.0.2.1:1", "192.0.2.2:2", &[]);
    let from = |source: [u8; 4], bytes: &[u8]| {
        let mut client =
            crate::harness::net::connect_with(front, Some(source.into()), 0, 0).unwrap();
        client.write_all(bytes).unwrap();
        client
    };
    let mut trusted = from([127, 0, 0, 9], &header);
    assert_eq!(read_line(&mut trusted).unwrap(), "192.0.2.1:1>192.0.2.2:2");
    // For the others the backend gets their real addresses.
    let mut plain = from([127, 0, 0, 8], b"hello\n");
    let real: SocketAddr = plain.local_addr().unwrap();
    assert_eq!(read_line(&mut plain).unwrap(), format!("{real}>{front}"));
    assert_eq!(read_line(&mut plain).unwrap(), "hello");
    let mut liar = from([127, 0, 0, 8], &header);
    let (got, end) = read_all(&mut liar);
    assert_eq!(end, End::Reset, "after {}", String::from_utf8_lossy(&got));
    refused(&tembuku, 1);
    wait_until("it is log", secs(5), || {
        tembuku.proc.stderr().contains("127.0.0.8:")
    });
}

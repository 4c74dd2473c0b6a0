//! Clients that come through proxies which name them.

use crate::harness::{
    net::{self, End, assert_ends_now, connect, echo, read_all, read_line, reset},
    ports,
    proxy::{self, ask_saying, connect_saying, tlv},
    secs,
    server::{Server, list, named},
    tembuku::Tembuku,
    wait_until,
};
use std::{
    io::Write,
    net::{Shutdown, SocketAddr},
    os::unix::net::UnixStream,
    thread,
};
use tembuku::internals::proxy_protocol::{Addresses, encode_v2};

pub(crate) const V1: &[u8] = b"PROXY TCP4 192.0.2.1 192.0.2.11 56324 443\r\n";

pub(crate) fn start(
    front: SocketAddr,
    listener: &str,
    upstream: &str,
    servers: &[Server],
) -> Tembuku {
    Tembuku::start(&format!(
        "[process]\ndrain_timeout = \"300ms\"\n[log]\naccess = \"{{dir}}/access.log\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n{listener}\n\
         [upstreams.u]\nbackends = {}\n{upstream}\n",
        list(servers)
    ))
}

pub(crate) fn rejected(tembuku: &Tembuku, reason: &str, count: f64) {
    tembuku.wait_metric("listener_rejected_total", &[("reason", reason)], |n| {
        n == count
    });
}

/// A client on a unix socket of another machine.
fn unix() -> Vec<u8> {
    encode_v2(&Addresses::Unix(Box::new([0; 216])), &[])
}

#[test]
fn the_header_names_the_client() {
    let (front, servers) = (ports::free_addr(), named(1));
    let tembuku = start(front, "accept_proxy = true", "", &servers);
    let peer = "127.0.0.1";
    // The header, the client it names and its port, and whether it names one.
    let cases: [(Vec<u8>, &str, Option<u16>, bool); 8] = [
        (V1.to_vec(), "192.0.2.1", Some(56324), true),
        (
            proxy::v1("[2001:db8::1]:1", "[2001:db8::2]:2"),
            "2001:db8::1",
            Some(1),
            true,
        ),
        (
            proxy::v2("192.0.2.2:65535", "192.0.2.11:1", &[]),
            "192.0.2.2",
            Some(65535),
            true,
        ),
        (
            proxy::v2(
                "[2001:db8::3]:0",
                "[2001:db8::2]:2",
                &tlv(2, b"example.com"),
            ),
            "2001:db8::3",
            Some(0),
            true,
        ),
        (
            proxy::v1("192.0.2.1:1", "[2001:db8::2]:2"),
            "::ffff:192.0.2.1",
            Some(1),
            true,
        ),
        (unix(), "unix:", None, true),
        (
            b"PROXY UNKNOWN 192.0.2.1 what ever\r\n".to_vec(),
            peer,
            None,
            false,
        ),
        (
            b"\r\n\r\n\0\r\nQUIT\n\x20\x11\0\x0c\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c"
                .to_vec(),
            peer,
            None,
            false,
        ),
    ];
    for (round, (header, addr, port, proxied)) in cases.iter().enumerate() {
        // At once, in two pieces, and byte by byte.
        let pieces = match round % 3 {
            0 => vec![&header[..]],
            1 => vec![&header[..9], &header[9..]],
            _ => header.chunks(1).collect(),
        };
        let mut client = connect(front).unwrap();
        client.set_nodelay(true).unwrap();
        let source = client.local_addr().unwrap();
        for piece in pieces {
            client.write_all(piece).unwrap();
            thread::yield_now();
        }
        assert_eq!(read_line(&mut client).unwrap(), "b1");
        echo(&mut client, "PROXY TCP4 and anything else is payload now").unwrap();
        drop(client);
        let record = tembuku.access_log(round + 1).remove(round);
        assert_eq!(record["remote_addr"], *addr, "{record}");
        let named = proxied.then_some(*addr);
        assert_eq!(record["proxy_protocol_addr"].as_str(), named, "{record}");
        assert_eq!(record["bytes_received"], 44, "{record}");
        if *proxied {
            assert_eq!(
                record["remote_port"].as_u64(),
                port.map(u64::from),
                "{record}"
            );
            assert_eq!(
                record["realip_remote_addr"],
                source.ip().to_string(),
                "{record}"
            );
            assert_eq!(record["realip_remote_port"], source.port(), "{record}");
        } else {
            assert_eq!(record["remote_port"], source.port(), "{record}");
            assert!(record.get("realip_remote_addr").is_none(), "{record}");
        }
    }
}

#[test]
fn what_follows_in_the_same_breath_arrives() {
    let (front, servers) = (ports::free_addr(), named(1));
    let tembuku = start(front, "accept_proxy = true", "", &servers);
    let payload: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8).collect();
    let long = tlv(0xe0, &[9; 60_000]);
    for header in [V1.to_vec(), proxy::v2("192.0.2.1:1", "192.0.2.2:2", &long)] {
        let mut client = connect(front).unwrap();
        let mut writer = client.try_clone().unwrap();
        let all = [&header[..], &payload].concat();
        let writing = thread::spawn(move || {
            writer.write_all(&all).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let (back, end) = read_all(&mut client);
        writing.join().unwrap();
        assert!(
            end == End::Fin && back.starts_with(b"b1\n") && back[3..] == payload,
            "{} bytes, {end:?}",
            back.len()
        );
    }
    tembuku.wait_idle();
    let total = 2.0 * payload.len() as f64;
    assert_eq!(tembuku.metric("listener_received_bytes_total", &[]), total);
    assert_eq!(tembuku.metric("backend_sent_bytes_total", &[]), total);
}

/// The whole of it has come before a backend is even asked: the end must not be taken for the
/// client's leaving.
#[test]
fn a_question_with_its_end_is_answered() {
    let front = ports::free_addr();
    let answering = Server::start(|mut stream| {
        let (question, end) = read_all(&mut stream);
        assert_eq!(end, End::Fin);
        stream.write_all(&[&question[..], b"?"].concat()).unwrap();
    });
    // The first never answers: the search for a backend takes longer than a client that has left is
    // waited for.
    let hole = net::BlackHole::new();
    let _tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\naccept_proxy = true\n\
         connect_timeout = \"1s\"\n\
         [upstreams.u]\nbalance = \"first\"\nbackends = [\"{}\", \"{}\"]\n",
        hole.addr, answering.addr
    ));
    let mut client = connect_saying(front, &[V1, b"question"].concat());
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut client), (b"question?".to_vec(), End::Fin));
}

#[test]
fn a_header_and_nothing_more() {
    let (front, servers) = (ports::free_addr(), named(1));
    let tembuku = start(front, "accept_proxy = true", "", &servers);
    let mut client = connect_saying(front, V1);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut client), (b"b1\n".to_vec(), End::Fin));
    // Its record is written after its end was seen, and must not come second.
    tembuku.access_log(1);
    let mut client = connect_saying(front, V1);
    assert_eq!(read_line(&mut client).unwrap(), "b1");
    reset(client);
    let records = tembuku.access_log(2);
    assert_eq!(records[0]["close_reason"], "ok");
    assert_eq!(records[1]["close_reason"], "client_reset");
    tembuku.wait_idle();
    wait_until("the backend is rid of them", secs(5), || {
        servers[0].live() == 0
    });
}

#[test]
fn access_rules_speak_of_the_client_in_the_header() {
    let (front, servers) = (ports::free_addr(), named(1));
    let rules = "access = [\"deny 192.0.2.1\", \"deny unix\", \"deny 127.0.0.2\"]";
    let tembuku = start(
        front,
        &format!("accept_proxy = true\n{rules}"),
        "",
        &servers,
    );
    for denied in [V1.to_vec(), unix()] {
        assert_ends_now(&mut connect_saying(
            front,
            &[&denied[..], b"and payload"].concat(),
        ));
    }
    rejected(&tembuku, "access", 2.0);
    assert_eq!(
        ask_saying(front, &proxy::v1("192.0.2.2:1", "192.0.2.11:1")),
        "b1"
    );
    // Where the header names no client the address of the connection counts.
    let unknown = |source: [u8; 4]| {
        let mut client = net::connect_with(front, Some(source.into()), 0, 0).unwrap();
        client.write_all(b"PROXY UNKNOWN\r\n").unwrap();
        client
    };
    assert_eq!(read_line(&mut unknown([127, 0, 0, 3])).unwrap(), "b1");
    assert_ends_now(&mut unknown([127, 0, 0, 2]));
    rejected(&tembuku, "access", 3.0);
}

#[test]
fn a_hash_follows_the_client_in_the_header() {
    let (front, plain, servers) = (ports::free_addr(), ports::free_addr(), named(4));
    let tembuku = start(
        front,
        &format!("accept_proxy = true\n[listeners.plain]\nbind = \"{plain}\"\nupstream = \"u\""),
        "balance = \"consistent_hash\"",
        &servers,
    );
    let mut seen = std::collections::BTreeSet::new();
    for n in 1..=40 {
        let source = SocketAddr::from(([127, 0, 0, n], 4000));
        let own = net::ask_from(source.ip(), plain).unwrap();
        for header in [
            proxy::v1(&source.to_string(), "192.0.2.1:1"),
            proxy::v2(&source.to_string(), "192.0.2.1:1", &[]),
        ] {
            assert_eq!(ask_saying(front, &header), own, "{source}");
        }
        seen.insert(own);
    }
    assert_eq!(seen.len(), 4);
    drop(servers);
    wait_until("no backend is there", secs(5), || {
        ask_fails(front, &proxy::v1("192.0.2.77:7777", "192.0.2.1:1"))
            && tembuku.proc.stderr().contains("192.0.2.77:7777")
    });
}

fn ask_fails(addr: SocketAddr, bytes: &[u8]) -> bool {
    read_line(&mut connect_saying(addr, bytes)).is_err()
}

#[test]
fn a_unix_socket_to_listen_on() {
    let (front, servers) = (ports::free_addr(), named(1));
    for trust in ["", "trust = [\"unix\"]"] {
        let tembuku = start(
            front,
            &format!(
                "accept_proxy = {{ {trust} }}\n\
                 [listeners.x]\nbind = \"unix:{{dir}}/x\"\nupstream = \"u\"\n\
                 accept_proxy = {{ {trust} }}"
            ),
            "",
            &servers,
        );
        let mut client = UnixStream::connect(tembuku.dir.file("x")).unwrap();
        client.set_read_timeout(Some(net::PATIENCE)).unwrap();
        client.write_all(&[V1, b"payload\n"].concat()).unwrap();
        assert_eq!(read_line(&mut client).unwrap(), "b1");
        assert_eq!(read_line(&mut client).unwrap(), "payload");
        drop(client);
        let record = tembuku.access_log(1).remove(0);
        assert_eq!(record["remote_addr"], "192.0.2.1");
        assert_eq!(record["realip_remote_addr"], "unix:");
        assert!(record.get("realip_remote_port").is_none(), "{record}");
    }
}

//! PROXY protocol headers in front of datagrams of clients: which peers are trusted, and what
//! becomes of invalid headers.

use crate::{
    harness::{
        ports,
        proxy::tlv,
        secs,
        tembuku::Tembuku,
        udp::{
            UdpServer, V4, addrs, client, client_from, list, named, receive, receive_if_any,
            receive_text, serve,
        },
        wait_until,
    },
    udp_proxy_send::{SIGNATURE, client_naming_server, read},
};
use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex},
};

/// Version 2, PROXY, datagrams; written by hand from the specification.
fn header(source: SocketAddr, destination: SocketAddr, tlvs: &[u8]) -> Vec<u8> {
    let mut block = Vec::new();
    let family = match (source.ip(), destination.ip()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            block.extend(a.octets());
            block.extend(b.octets());
            0x12
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            block.extend(a.octets());
            block.extend(b.octets());
            0x22
        }
        _ => panic!("two families"),
    };
    block.extend(source.port().to_be_bytes());
    block.extend(destination.port().to_be_bytes());
    block.extend(tlvs);
    let length = u16::try_from(block.len()).unwrap().to_be_bytes();
    [SIGNATURE, &[0x21, family], &length, &block].concat()
}

fn from(text: &str) -> Vec<u8> {
    header(text.parse().unwrap(), "192.0.2.9:53".parse().unwrap(), &[])
}

#[test]
fn headers_of_trusted_peers_name_the_client() {
    for (upstream, sends_header) in [("", false), ("send_proxy = \"v2\"", true)] {
        let server = client_naming_server();
        let servers = [server];
        let (front, tembuku) = serve("accept_proxy = true\nresponses = 1", upstream, &servers);
        let client = client(front);
        let send = |header: &[u8], what: &str| {
            client.send(&[header, what.as_bytes()].concat()).unwrap();
            receive_text(&client)
        };
        let seen = |named: &str, what: &str| match sends_header {
            true => format!("{named} {what}"),
            false => format!("nobody {what}"),
        };
        assert_eq!(
            send(&from("192.0.2.1:1"), "a"),
            seen("192.0.2.1:1>192.0.2.9:53", "a")
        );
        tembuku.wait_closed("ok", 1.0);
        let v6 = header(
            "[2001:db8::1]:5".parse().unwrap(),
            "[2001:db8::2]:6".parse().unwrap(),
            &tlv(4, b"more"),
        );
        assert_eq!(send(&v6, "b"), seen("[2001:db8::1]:5>[2001:db8::2]:6", "b"));
        tembuku.wait_closed("ok", 2.0);
        let records = tembuku.access_log(2);
        assert_eq!(
            records[0]["proxy_protocol_addr"], "192.0.2.1",
            "{records:?}"
        );
        assert_eq!(
            records[1]["proxy_protocol_addr"], "2001:db8::1",
            "{records:?}"
        );
    }
}

/// Two clients behind one peer are two flows; a datagram without a header belongs to whom the peer
/// named last.
#[test]
fn clients_behind_one_peer_are_distinguished() {
    let servers = named(2);
    let (front, tembuku) = serve("accept_proxy = true", "", &servers);
    let peer = client(front);
    let send = |header: &[u8], what: &str| {
        peer.send(&[header, what.as_bytes()].concat()).unwrap();
        receive_text(&peer)
    };
    let (one, two) = (from("192.0.2.1:1"), from("192.0.2.2:1"));
    assert_eq!(send(&one, "a"), "b1 a");
    assert_eq!(send(&two, "b"), "b2 b");
    assert_eq!(send(&one, "c"), "b1 c");
    assert_eq!(send(&[], "d"), "b1 d");
    assert_eq!(send(&two, "e"), "b2 e");
    assert_eq!(tembuku.metric("listener_connections_total", &[]), 2.0);
}

/// Proxies in front may send it with the first datagram only, and think longer than a flow lives
/// here.
#[test]
fn a_name_outlives_the_flow_that_it_came_with() {
    let servers = named(1);
    let (front, tembuku) = serve("accept_proxy = true\nresponses = 1", "", &servers);
    let peer = client(front);
    peer.send(&[&from("192.0.2.1:1")[..], b"a"].concat())
        .unwrap();
    assert_eq!(receive_text(&peer), "b1 a");
    for n in 1..4 {
        tembuku.wait_closed("ok", f64::from(n));
        peer.send(b"more").unwrap();
        assert_eq!(receive_text(&peer), "b1 more");
    }
    for record in tembuku.access_log(4) {
        assert_eq!(record["proxy_protocol_addr"], "192.0.2.1", "{record}");
    }
}

/// The access rules speak of the client.
#[test]
fn access_rules_apply_to_the_client_of_the_header() {
    let servers = named(1);
    let (front, tembuku) = serve(
        "accept_proxy = true\naccess = [\"allow 192.0.2.0/24\", \"deny all\"]",
        "",
        &servers,
    );
    let (good, bad) = (client(front), client(front));
    bad.send(&[from("198.51.100.1:1"), b"x".to_vec()].concat())
        .unwrap();
    tembuku.wait_dropped("rejected", 1.0);
    good.send(&[from("192.0.2.1:1"), b"x".to_vec()].concat())
        .unwrap();
    assert_eq!(receive(&good), b"b1 x");
    assert_eq!(receive_if_any(&bad), None);
}

/// From whom one believes nothing comes that is no header, or half of one.
#[test]
fn what_is_missing_or_broken_is_dropped_and_counted() {
    let servers = named(1);
    let (front, tembuku) = serve("accept_proxy = true", "", &servers);
    let whole = from("192.0.2.1:1");
    let mut wrong_version = whole.clone();
    wrong_version[12] = 0x31;
    let mut too_long = whole.clone();
    too_long[14] = 0xff;
    let bad = [
        b"no header".to_vec(),
        Vec::new(),
        whole[..whole.len() - 1].to_vec(),
        whole[..14].to_vec(),
        SIGNATURE.to_vec(),
        wrong_version,
        too_long,
        b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\nx".to_vec(),
    ];
    for (n, datagram) in (1..).zip(&bad) {
        let client = client(front);
        client.send(datagram).unwrap();
        tembuku.wait_dropped("rejected", f64::from(n));
        let labels = [("reason", "proxy_header")];
        tembuku.wait_metric("listener_rejected_total", &labels, |have| {
            have == f64::from(n)
        });
        assert_eq!(receive_if_any(&client), None);
    }
    let client = client(front);
    client.send(&whole).unwrap();
    assert_eq!(
        receive(&client),
        b"b1 ",
        "a header and nothing else is an empty datagram"
    );
    assert_eq!(servers[0].taken(), 1);
}

/// A peer that is not trusted cannot name another client: its header is not passed on.
#[test]
fn headers_of_others_go_no_further() {
    let got = Arc::new(Mutex::new(Vec::new()));
    let its = Arc::clone(&got);
    let server = UdpServer::on(SocketAddr::new(V4, 0), move |socket, peer, bytes| {
        its.lock().unwrap().push(bytes.to_vec());
        let _ = socket.send_to(bytes, peer);
    });
    let servers = [server];
    let (front, tembuku) = serve(
        "accept_proxy = { trust = [\"127.0.0.9\"] }",
        "send_proxy = \"v2\"\nsend_proxy_on = \"each\"",
        &servers,
    );
    let stranger = client(front);
    stranger.send(b"plain").unwrap();
    receive(&stranger);
    stranger
        .send(&[from("192.0.2.1:1"), b"false".to_vec()].concat())
        .unwrap();
    tembuku.wait_dropped("rejected", 1.0);
    stranger.send(b"again").unwrap();
    receive(&stranger);
    let friend = client_from(IpAddr::from([127, 0, 0, 9]), front);
    friend
        .send(&[from("192.0.2.1:1"), b"true".to_vec()].concat())
        .unwrap();
    receive(&friend);
    let got = got.lock().unwrap();
    let seen: Vec<(String, &[u8])> = got.iter().map(|bytes| read(bytes)).collect();
    let own = format!("{}>{front}", stranger.local_addr().unwrap());
    let named = "192.0.2.1:1>192.0.2.9:53".to_owned();
    let wanted: [(String, &[u8]); 3] = [(own.clone(), b"plain"), (own, b"again"), (named, b"true")];
    assert_eq!(seen, wanted);
}

/// The records of peers are dropped with their flows: a peer that always comes from another port
/// costs memory for the idle time alone.
#[test]
fn nothing_is_kept_of_peers_that_are_gone() {
    let servers = named(1);
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[process]\nworkers = 1\n\
         [listeners.l]\nbind = \"{front}\"\nprotocol = \"udp\"\nupstream = \"u\"\n\
         accept_proxy = true\nidle_timeout = \"200ms\"\nmax_connections = 10\n\
         [upstreams.u]\nbackends = {}\n",
        list(&addrs(&servers))
    ));
    let datagram = [from("192.0.2.1:1"), b"x".to_vec()].concat();
    let send_many = |count: usize| {
        let before = tembuku.metric("listener_received_datagrams_total", &[]);
        for n in 0..count {
            let socket = UdpSocket::bind((V4, 0)).unwrap();
            socket.send_to(&datagram, front).unwrap();
            // No more than its queue holds.
            if n % 100 == 99 {
                let sent = before + n as f64 + 1.0;
                wait_until("it has read them", secs(20), || {
                    tembuku.metric("listener_received_datagrams_total", &[]) >= sent
                });
            }
        }
    };
    send_many(20_000);
    // As many as there are in the idle time have been seen.
    let settled = tembuku.proc.rss();
    send_many(40_000);
    let after = tembuku.proc.rss();
    println!("{settled} bytes, then {after}");
    assert!(after < settled + (1 << 20), "{settled} bytes, then {after}");
}

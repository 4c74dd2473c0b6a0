//! PROXY protocol headers in front of datagrams, for backends: what they name, and when
//! they are sent.

use crate::harness::{
    ports,
    tembuku::Tembuku,
    udp::{LARGEST, UdpServer, V4, V6, ask, client, config, receive_text, serve},
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

pub(crate) const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The client that it names, as "source>destination", and the rest. Bytes without a header name
/// "nobody".
pub(crate) fn read(bytes: &[u8]) -> (String, &[u8]) {
    let Some(rest) = bytes.strip_prefix(SIGNATURE) else {
        return ("nobody".to_owned(), bytes);
    };
    let length = usize::from(u16::from_be_bytes([rest[2], rest[3]]));
    let (block, payload) = rest[4..].split_at(length);
    let port = |at: usize| u16::from_be_bytes([block[at], block[at + 1]]);
    let (source, destination) = match (rest[0], rest[1]) {
        (0x21, 0x12) => {
            let ip = |at: usize| -> IpAddr {
                Ipv4Addr::from(<[u8; 4]>::try_from(&block[at..at + 4]).unwrap()).into()
            };
            (
                SocketAddr::new(ip(0), port(8)),
                SocketAddr::new(ip(4), port(10)),
            )
        }
        (0x21, 0x22) => {
            let ip = |at: usize| -> IpAddr {
                Ipv6Addr::from(<[u8; 16]>::try_from(&block[at..at + 16]).unwrap()).into()
            };
            (
                SocketAddr::new(ip(0), port(32)),
                SocketAddr::new(ip(16), port(34)),
            )
        }
        other => panic!("{other:x?} is no version 2 header of a datagram over IP"),
    };
    (format!("{source}>{destination}"), payload)
}

/// Answers whom the header named, a space, and what followed.
pub(crate) fn client_naming_server() -> UdpServer {
    UdpServer::on(SocketAddr::new(V4, 0), |socket, peer, bytes| {
        let (client, payload) = read(bytes);
        let answer = [client.as_bytes(), b" ", payload].concat();
        let _ = socket.send_to(&answer, peer);
    })
}

#[test]
fn the_first_or_each_datagram_carries_the_client_address() {
    for (on, later_named) in [("first", false), ("each", true)] {
        for ip in [V4, V6] {
            let server = client_naming_server();
            let front = SocketAddr::new(ip, ports::free_port());
            let upstream = format!("send_proxy = \"v2\"\nsend_proxy_on = \"{on}\"");
            let tembuku = Tembuku::start(&config(front, "", &upstream, &[server.addr]));
            let client = client(front);
            let named = format!("{}>{front}", client.local_addr().unwrap());
            assert_eq!(ask(&client, "a"), format!("{named} a"));
            let later = if later_named { &named[..] } else { "nobody" };
            for n in 0..5 {
                assert_eq!(ask(&client, &n.to_string()), format!("{later} {n}"));
            }
            // An empty one, too.
            client.send(b"").unwrap();
            assert_eq!(receive_text(&client), format!("{later} "));
            assert_eq!(server.peers().len(), 1);
            // What it adds is not the client's.
            assert_eq!(tembuku.metric("listener_received_bytes_total", &[]), 6.0);
        }
    }
}

/// A backend that has received nothing yet needs the header, too.
#[test]
fn a_backend_that_takes_over_a_flow_gets_a_header() {
    let mut servers = vec![client_naming_server(), client_naming_server()];
    let upstream = "send_proxy = \"v2\"\nbalance = \"first\"";
    let (front, tembuku) = serve("", upstream, &servers);
    let client = client(front);
    let named = format!("{}>{front}", client.local_addr().unwrap());
    assert_eq!(ask(&client, "a"), format!("{named} a"));
    assert_eq!(ask(&client, "b"), "nobody b");
    drop(servers.remove(0));
    client.send(b"lost").unwrap();
    let labels = [("reason", "refused")];
    tembuku.wait_metric("backend_connect_errors_total", &labels, |n| n >= 1.0);
    assert_eq!(ask(&client, "c"), format!("{named} c"));
    assert_eq!(ask(&client, "d"), "nobody d");
}

/// With the header it is too long for IPv4: it is dropped, and not cut.
#[test]
fn what_is_too_long_with_a_header_is_dropped() {
    let server = client_naming_server();
    let servers = [server];
    let (front, tembuku) = serve(
        "",
        "send_proxy = \"v2\"\nsend_proxy_on = \"each\"",
        &servers,
    );
    let client = client(front);
    client.send(&vec![7; LARGEST]).unwrap();
    tembuku.wait_dropped("too_large", 1.0);
    let named = format!("{}>{front}", client.local_addr().unwrap());
    assert_eq!(ask(&client, "short"), format!("{named} short"));
}

/// Two of them in a row: the backend gets the client of the first, whatever each of them
/// sends.
#[test]
fn from_one_to_the_next() {
    for first in ["first", "each"] {
        for second in ["first", "each"] {
            let server = client_naming_server();
            let inner = ports::free_addr();
            let _inner = Tembuku::start(&config(
                inner,
                "accept_proxy = { trust = [\"127.0.0.0/8\"] }",
                &format!("send_proxy = \"v2\"\nsend_proxy_on = \"{second}\""),
                &[server.addr],
            ));
            let outer = ports::free_addr();
            let _outer = Tembuku::start(&config(
                outer,
                "",
                &format!("send_proxy = \"v2\"\nsend_proxy_on = \"{first}\""),
                &[inner],
            ));
            let clients: Vec<UdpSocket> = (0..10).map(|_| client(outer)).collect();
            for n in 0..5 {
                for client in &clients {
                    let named = match (n, second) {
                        (1.., "first") => "nobody".to_owned(),
                        _ => format!("{}>{outer}", client.local_addr().unwrap()),
                    };
                    assert_eq!(
                        ask(client, &n.to_string()),
                        format!("{named} {n}"),
                        "{first}, {second}"
                    );
                }
            }
            assert_eq!(server.peers().len(), 10);
        }
    }
}

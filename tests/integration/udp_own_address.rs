//! Datagrams whose forged source is an address of a listener: the reply would be the next datagram.

use crate::harness::{
    netns::sh,
    ports,
    programs::{again_in_own_place, place},
    tembuku::Tembuku,
    udp::{UdpServer, V4, ask, client, client_from},
};
use socket2::{Domain, Protocol, Socket, Type};
use std::net::{IpAddr, SocketAddr};

/// Sends a datagram from an address and port that need not be free.
fn forge(from: SocketAddr, to: SocketAddr, payload: &[u8]) {
    let domain = Domain::for_address(to);
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::UDP)).unwrap();
    socket.bind(&SocketAddr::new(from.ip(), 0).into()).unwrap();
    let length = 8 + payload.len() as u16;
    let mut bytes = Vec::new();
    for number in [from.port(), to.port(), length, 0] {
        bytes.extend(number.to_be_bytes());
    }
    bytes.extend(payload);
    let sum = checksum(from.ip(), to.ip(), &bytes);
    bytes[6..8].copy_from_slice(&sum.to_be_bytes());
    socket
        .send_to(&bytes, &SocketAddr::new(to.ip(), 0).into())
        .unwrap();
}

fn checksum(from: IpAddr, to: IpAddr, datagram: &[u8]) -> u16 {
    let octets = |ip| match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let mut all = [octets(from), octets(to), datagram.to_vec()].concat();
    all.resize(all.len().next_multiple_of(2), 0);
    // The protocol's number and the length belong to it as well.
    let mut sum = 17 + datagram.len() as u32;
    for pair in all.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

/// Two listeners, bound like this.
#[track_caller]
fn start(one: &str, two: &str, backend: SocketAddr) -> Tembuku {
    Tembuku::start(&format!(
        "[process]\nworkers = 2\n\
         [listeners.one]\nbind = [{one}]\nprotocol = \"udp\"\nupstream = \"u\"\n\
         [listeners.two]\nbind = [{two}]\nprotocol = \"udp\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [\"{backend}\"]\n"
    ))
}

#[test]
fn nothing_goes_in_a_circle() {
    if place().is_none() {
        return again_in_own_place("udp_own_address::nothing_goes_in_a_circle");
    }
    sh("ip addr add 10.77.0.1/32 dev lo; ip route add local 10.78.0.0/24 dev lo");
    let server = UdpServer::echo(V4);
    let (p, q) = (ports::free_port(), ports::free_port());
    let exact = (
        format!("\"127.0.0.1:{p}\", \"[::1]:{p}\""),
        format!("\"10.77.0.1:{q}\", \"[fd00:7e57::1]:{q}\""),
    );
    let wild = (
        format!("\"0.0.0.0:{p}\", \"[::]:{p}\""),
        format!("\"0.0.0.0:{q}\", \"[::]:{q}\""),
    );
    for ((one, two), circles) in [
        (
            exact,
            vec![
                (at("127.0.0.1", p), at("127.0.0.1", p)),
                (at("::1", p), at("::1", p)),
                // To itself by way of the other listener.
                (at("10.77.0.1", q), at("127.0.0.1", p)),
                (at("127.0.0.1", p), at("10.77.0.1", q)),
                (at("fd00:7e57::1", q), at("::1", p)),
            ],
        ),
        (
            wild,
            vec![
                (at("127.0.0.1", p), at("127.0.0.1", p)),
                (at("127.5.5.5", p), at("127.0.0.1", p)),
                (at("10.77.0.1", q), at("127.0.0.1", p)),
                // No interface has these; the host takes what is sent to them all the same.
                (at("10.78.0.5", p), at("10.77.0.1", q)),
                (at("fd00:7e57::abc", p), at("::1", p)),
            ],
        ),
    ] {
        let tembuku = start(&one, &two, server.addr);
        let before = server.taken();
        let count = circles.len() as f64;
        for (from, to) in circles {
            forge(from, to, b"round and round");
        }
        tembuku.wait_dropped("own_address", count);
        let received = tembuku.metric("listener_received_datagrams_total", &[]);
        assert_eq!((received, server.taken() - before), (count, 0), "{one}");
        assert_eq!(tembuku.metric("listener_connections_total", &[]), 0.0);
        assert_eq!(ask(&client(at("127.0.0.1", p)), "hello"), "hello");
    }
}

/// The port alone proves nothing: there are programs that send from the port that they ask.
#[test]
fn the_same_port_of_another_address_is_a_client() {
    let server = UdpServer::echo(V4);
    let port = ports::free_port();
    let other = ports::free_port();
    let (one, two) = (
        format!("\"127.0.0.1:{port}\""),
        format!("\"127.0.0.1:{other}\""),
    );
    let tembuku = start(&one, &two, server.addr);
    let client = std::net::UdpSocket::bind(at("127.0.0.2", port)).unwrap();
    client.connect(at("127.0.0.1", port)).unwrap();
    client
        .set_read_timeout(Some(crate::harness::net::PATIENCE))
        .unwrap();
    assert_eq!(ask(&client, "hello"), "hello");
    let usual = client_from("127.0.0.3".parse().unwrap(), at("127.0.0.1", other));
    assert_eq!(ask(&usual, "hello"), "hello");
    assert_eq!(tembuku.metric("listener_dropped_datagrams_total", &[]), 0.0);
}

//! Replies come from the address to which the client sent, on a machine that has several. Each test
//! has a network of its own.

use crate::harness::{
    ports,
    proc::{Proc, command, run_ok},
    programs::{Nginx, again_in_own_place, place},
    secs,
    tembuku::Tembuku,
    temp::TempDir,
    udp::{UdpServer, addrs, ask, client_from, list, named},
    wait_until,
};
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, UdpSocket},
    process::Command,
    thread,
};

fn shell(line: &str) -> String {
    run_ok(secs(10), command(line))
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// On every address, of both families.
#[track_caller]
fn everywhere(servers: &[UdpServer]) -> (u16, Tembuku) {
    let port = ports::free_port();
    let tembuku = Tembuku::start(&format!(
        "[process]\nworkers = 2\n\
         [listeners.l]\nbind = [\"0.0.0.0:{port}\", \"[::]:{port}\"]\nprotocol = \"udp\"\n\
         upstream = \"u\"\n\
         [upstreams.u]\nbackends = {}\n",
        list(&addrs(servers))
    ));
    (port, tembuku)
}

const ADDRESSES: [&str; 6] = [
    "10.77.0.1",
    "10.77.0.2",
    "127.0.0.1",
    "127.4.5.6",
    "fd00:7e57::1",
    "fd00:7e57::2:0",
];

fn give_addresses() {
    for n in 1..=3 {
        shell(&format!("ip addr add 10.77.0.{n}/32 dev lo"));
    }
}

/// The client's kernel takes an answer from the address that was written to and from no other. The
/// client has an address of its own, so that a kernel left to itself would answer from that one.
fn each_answers(port: u16) {
    for address in ADDRESSES.map(ip) {
        let own = ip(if address.is_ipv4() {
            "10.77.0.3"
        } else {
            "fd00:7e57::3"
        });
        let client = client_from(own, SocketAddr::new(address, port));
        for n in 0..3 {
            let payload = format!("{n} to {address}");
            assert_eq!(ask(&client, &payload), format!("b1 {payload}"));
        }
    }
}

#[test]
fn the_answer_comes_from_where_it_was_asked() {
    if place().is_none() {
        return again_in_own_place("udp_reply_source::the_answer_comes_from_where_it_was_asked");
    }
    give_addresses();
    let servers = named(1);
    let port = ports::free_port();
    let _nginx = Nginx::start(
        SocketAddr::from(([127, 0, 0, 1], port)),
        &format!(
            "stream {{ server {{ listen {port} udp; listen [::]:{port} udp; proxy_pass {b}; }}\n\
             server {{ listen 127.0.0.1:{port}; proxy_pass {b}; }} }}",
            b = servers[0].addr
        ),
    );
    each_answers(port);

    let (port, _tembuku) = everywhere(&servers);
    each_answers(port);
}

/// A server that does not set the source of its answers: the test above must not pass with it.
#[test]
fn replies_from_another_address_are_ignored() {
    if place().is_none() {
        return again_in_own_place("udp_reply_source::replies_from_another_address_are_ignored");
    }
    give_addresses();
    let server = UdpServer::named_on("naive", SocketAddr::new(ip("0.0.0.0"), 0));
    let front = SocketAddr::new(ip("10.77.0.1"), server.addr.port());
    let client = client_from(ip("10.77.0.3"), front);
    client.send(b"x").unwrap();
    wait_until("it has answered", secs(10), || server.taken() == 1);
    // In order: once this answer has arrived, the one before has, too.
    let open = UdpSocket::bind((ip("10.77.0.3"), 0)).unwrap();
    open.set_read_timeout(Some(secs(10))).unwrap();
    open.send_to(b"y", front).unwrap();
    let (_, from) = open.recv_from(&mut [0; 10]).unwrap();
    assert_eq!(from.ip(), ip("10.77.0.3"));
    assert_eq!(crate::harness::udp::receive_if_any(&client), None);
}

/// From one port of a client to two addresses: two flows, each with a backend of its own.
#[test]
fn two_addresses_are_two_flows() {
    if place().is_none() {
        return again_in_own_place("udp_reply_source::two_addresses_are_two_flows");
    }
    give_addresses();
    let servers = named(2);
    let (port, tembuku) = everywhere(&servers);
    for (own, two) in [
        ("10.77.0.3", ["10.77.0.1", "10.77.0.2"]),
        ("fd00:7e57::3", ["fd00:7e57::1", "fd00:7e57::2:0"]),
    ] {
        let client = UdpSocket::bind((ip(own), 0)).unwrap();
        client.set_read_timeout(Some(secs(20))).unwrap();
        let mut answers = BTreeSet::new();
        for round in 0..4 {
            for to in two.map(|to| SocketAddr::new(ip(to), port)) {
                client.send_to(b"x", to).unwrap();
                let mut bytes = [0; 100];
                let (length, from) = client.recv_from(&mut bytes).unwrap();
                assert_eq!(from, to, "in round {round}");
                answers.insert((to, bytes[..length].to_vec()));
            }
        }
        let backends: BTreeSet<&Vec<u8>> = answers.iter().map(|(_, answer)| answer).collect();
        assert_eq!((answers.len(), backends.len()), (2, 2), "{answers:?}");
    }
    assert_eq!(tembuku.metric("listener_connections_total", &[]), 4.0);
}

/// From another machine on the same wire, by an address that means something only there.
#[test]
fn link_local_addresses_too() {
    if place().is_none() {
        return again_in_own_place("udp_reply_source::link_local_addresses_too");
    }
    let dir = TempDir::new();
    let mut other = Proc::start("other", dir.path(), command("unshare --net sleep 100"));
    let id = other.id();
    let network = |id| std::fs::read_link(format!("/proc/{id}/ns/net")).ok();
    let own = network(std::process::id());
    other.wait_ready(secs(10), || network(id).is_some_and(|net| Some(net) != own));
    let there = |line: &str| shell(&format!("nsenter --net=/proc/{id}/ns/net {line}"));
    shell(&format!(
        "ip link add wire0 type veth peer name wire1 netns {id}"
    ));
    shell("ip link set wire0 up");
    there("ip link set wire1 up");
    for address in [
        "fe80::77/64",
        "fe80::78/64",
        "fd00:77::1/64",
        "fd00:77::2/64",
    ] {
        shell(&format!("ip -6 addr add {address} dev wire0 nodad"));
    }
    there("ip -6 addr add fe80::99/64 dev wire1 nodad");
    there("ip -6 addr add fd00:77::9/64 dev wire1 nodad");

    let servers = named(1);
    let (port, tembuku) = everywhere(&servers);
    for address in [
        "fe80::77%wire1",
        "fe80::78%wire1",
        "fd00:77::1",
        "fd00:77::2",
    ] {
        // Its socket is connected: an answer from another address, or by another way, would be
        // none.
        let mut socat = Command::new("sh");
        socat.args([
            "-c",
            "echo hello | nsenter --net=/proc/$0/ns/net socat -t 3 -T 5 - \"UDP6:[$1]:$2\"",
        ]);
        socat.args([&id.to_string(), address, &port.to_string()]);
        let output = thread::spawn(move || run_ok(secs(20), socat));
        assert_eq!(output.join().unwrap(), "b1 hello\n", "{address}");
    }
    assert_eq!(tembuku.metric("listener_connections_total", &[]), 4.0);
}

/// The kernel gives a broadcast to every socket that is bound to the port, and each worker has one.
#[test]
fn a_broadcast_is_taken_once() {
    if place().is_none() {
        return again_in_own_place("udp_reply_source::a_broadcast_is_taken_once");
    }
    let servers = named(1);
    let (port, tembuku) = everywhere(&servers);
    let caller = UdpSocket::bind((ip("127.0.0.1"), 0)).unwrap();
    caller.set_broadcast(true).unwrap();
    caller.set_read_timeout(Some(secs(10))).unwrap();
    for n in 0..5 {
        let payload = format!("call {n}");
        caller
            .send_to(payload.as_bytes(), ("127.255.255.255", port))
            .unwrap();
    }
    for n in 0..5 {
        let mut answer = [0; 100];
        let (len, _) = caller.recv_from(&mut answer).unwrap();
        assert_eq!(answer[..len], *format!("b1 call {n}").as_bytes());
    }
    // These come to both workers, each behind what its socket had got before.
    let front = SocketAddr::new(ip("127.0.0.1"), port);
    for _ in 0..40 {
        ask(&client_from(ip("127.0.0.1"), front), "one");
    }
    assert_eq!(servers[0].taken(), 45);
    let received = tembuku.metric("listener_received_datagrams_total", &[]);
    assert_eq!(received, 45.0);
}

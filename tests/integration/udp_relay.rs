//! Datagrams go through as they are: all of them, each to the right address, in order.

use crate::harness::{
    ports,
    proc::{command, run_ok},
    rng::{self, Rng},
    secs,
    tembuku::Tembuku,
    temp::TempDir,
    udp::{ALL, Between, LARGEST, UdpServer, V4, V6, addrs, ask, client, config, list, receive},
    wait_until,
};
use std::{
    collections::VecDeque,
    net::{SocketAddr, UdpSocket},
    sync::{Arc, Mutex},
};

fn content(length: usize) -> Vec<u8> {
    let mut rng = Rng::new(length as u64);
    (0..length).map(|_| rng.next() as u8).collect()
}

#[test]
fn every_size_comes_back() {
    for between in ALL {
        for (front, back) in [(V4, V4), (V6, V6), (V4, V6), (V6, V4)] {
            if between == Between::Nothing && front != back {
                continue;
            }
            let server = UdpServer::echo(back);
            let front = between.start(front, &[server.addr]);
            let client = client(front.addr);
            for size in [0, 1, 1_472, 1_473, 9_000, LARGEST, 0, 3] {
                let sent = content(size);
                client.send(&sent).unwrap();
                let got = receive(&client);
                assert!(
                    got == sent,
                    "{between:?}, {}: {} of {size} bytes",
                    front.addr,
                    got.len()
                );
            }
            assert_eq!(server.taken(), 8, "{between:?}");
            assert_eq!(server.peers().len(), 1, "{between:?}");
        }
    }
}

/// IPv6 carries twenty bytes more than IPv4. What cannot go on is counted, and harms nothing
/// else.
#[test]
fn what_does_not_fit_is_dropped_and_counted() {
    let server = UdpServer::echo(V4);
    let front = Between::Tembuku.start(V6, &[server.addr]);
    let tembuku = front.tembuku.as_ref().unwrap();
    let client = client(front.addr);
    assert_eq!(ask(&client, "before"), "before");
    client.send(&content(LARGEST + 1)).unwrap();
    client.send(&content(LARGEST + 20)).unwrap();
    tembuku.wait_dropped("too_large", 2.0);
    assert_eq!(ask(&client, "after"), "after");
    assert_eq!(server.taken(), 2);
    assert_eq!(server.peers().len(), 1);
}

/// What the kernel charges for a datagram of this size, at most, until it is read.
fn weight(size: usize) -> usize {
    2 * size + 1_500
}

/// What may be under way at once: every socket on the way holds it, with any defaults of the
/// kernel.
const CAPACITY: usize = 150_000;

struct Flow {
    socket: UdpSocket,
    sent: u32,
    awaited: VecDeque<Vec<u8>>,
}

/// Which flow, which number, and bytes that follow from both and the seed. The smallest ones are
/// all alike but for the length.
fn datagram(rng: &mut Rng, flow: usize, number: u32) -> Vec<u8> {
    let size = match rng.below(100) {
        0 => LARGEST as u64,
        1..=80 => rng.magnitude(11.0),
        _ => rng.magnitude(16.0),
    };
    let size = usize::try_from(size).unwrap() - usize::from(rng.chance(3));
    let mut bytes = format!("{flow}/{number} ").into_bytes();
    let mut noise = Rng::new(rng.next());
    while bytes.len() < size {
        bytes.extend(noise.next().to_le_bytes());
    }
    bytes.truncate(size.min(LARGEST));
    bytes
}

/// Many flows at once, over all backends: each gets what it sent, in the order in which it did.
#[test]
fn many_flows_get_only_their_own_replies() {
    const FLOWS: usize = 50;
    const EACH: u32 = 200;
    let seed = rng::seed("many_flows_get_only_their_own_replies");
    for between in ALL {
        let servers = [
            UdpServer::echo(V4),
            UdpServer::echo(V4),
            UdpServer::echo(V4),
        ];
        let front = between.start(V4, &addrs(&servers));
        let mut rng = Rng::new(seed);
        let mut flows: Vec<Flow> = (0..FLOWS)
            .map(|_| Flow {
                socket: client(front.addr),
                sent: 0,
                awaited: VecDeque::new(),
            })
            .collect();
        // Which flows are awaited, in the order in which they were sent to, and what it all weighs.
        let (mut under_way, mut load) = (VecDeque::new(), 0);
        let (mut count, mut bytes) = (0, 0);
        let hear_one = |flows: &mut Vec<Flow>, at: usize| {
            let flow = &mut flows[at];
            let got = receive(&flow.socket);
            let wanted = flow.awaited.pop_front().unwrap();
            assert!(
                got == wanted,
                "{between:?}, flow {at} wants {} bytes, {:?}, and gets {}, {:?}",
                wanted.len(),
                String::from_utf8_lossy(&wanted[..wanted.len().min(20)]),
                got.len(),
                String::from_utf8_lossy(&got[..got.len().min(20)])
            );
            weight(wanted.len())
        };
        let mut open: Vec<usize> = (0..FLOWS).collect();
        while !open.is_empty() {
            let slot = usize::try_from(rng.below(open.len() as u64)).unwrap();
            let at = open[slot];
            let next = datagram(&mut rng, at, flows[at].sent);
            while load > 0 && load + weight(next.len()) > CAPACITY {
                let first = under_way.pop_front().unwrap();
                load -= hear_one(&mut flows, first);
            }
            load += weight(next.len());
            count += 1;
            bytes += next.len();
            let flow = &mut flows[at];
            flow.socket.send(&next).unwrap();
            flow.awaited.push_back(next);
            flow.sent += 1;
            under_way.push_back(at);
            if flow.sent == EACH {
                open.swap_remove(slot);
            }
        }
        for at in under_way {
            hear_one(&mut flows, at);
        }
        assert_eq!(count, FLOWS * EACH as usize);
        if let Some(tembuku) = &front.tembuku {
            // A connection each, no two of them the same.
            let peers: usize = servers.iter().map(|server| server.peers().len()).sum();
            assert_eq!(peers, FLOWS);
            for (name, wanted) in [
                ("listener_connections_total", FLOWS),
                ("listener_active_connections", FLOWS),
                ("listener_received_datagrams_total", count),
                ("listener_sent_datagrams_total", count),
                ("listener_received_bytes_total", bytes),
                ("listener_sent_bytes_total", bytes),
                ("backend_received_bytes_total", bytes),
                ("backend_sent_bytes_total", bytes),
                ("listener_dropped_datagrams_total", 0),
            ] {
                assert_eq!(tembuku.metric(name, &[]), wanted as f64, "{name}");
            }
        }
    }
}

/// One socket that talks to each port of a listener, and hears from each.
#[test]
fn every_port_of_a_range() {
    let server = UdpServer::named("b");
    let first = ports::free_range(4);
    let _tembuku = Tembuku::start(
        &config(SocketAddr::new(V4, first), "", "", &[server.addr])
            .replace(&format!("{first}\""), &format!("{first}-{}\"", first + 3)),
    );
    let client = UdpSocket::bind((V4, 0)).unwrap();
    client.set_read_timeout(Some(secs(20))).unwrap();
    for round in 0..3 {
        for port in first..first + 4 {
            let front = SocketAddr::new(V4, port);
            let payload = format!("{round} to {port}");
            client.send_to(payload.as_bytes(), front).unwrap();
            let mut bytes = [0; 100];
            let (length, from) = client.recv_from(&mut bytes).unwrap();
            assert_eq!(from, front);
            assert_eq!(bytes[..length], *format!("b {payload}").as_bytes());
        }
    }
    assert_eq!(server.peers().len(), 4, "a flow for each port");
}

/// A sender that hands its kernel many datagrams in one piece, as QUIC does: the backend gets them
/// one by one.
#[test]
fn a_sender_that_leaves_the_cutting_to_its_kernel() {
    const PIECE: usize = 1_200;
    let all = content(50 * PIECE + 7);
    let dir = TempDir::new();
    std::fs::write(dir.file("all"), &all).unwrap();
    for between in ALL {
        let got = Arc::new(Mutex::new(Vec::new()));
        let its = Arc::clone(&got);
        let server = UdpServer::on(SocketAddr::new(V4, 0), move |socket, peer, bytes| {
            its.lock().unwrap().push(bytes.to_vec());
            let _ = socket.send_to(bytes, peer);
        });
        let front = between.start(V4, &[server.addr]);
        // SOL_UDP, UDP_SEGMENT. It waits for a while for what comes back, which its last option
        // bounds.
        let mut socat = command("socat -b 65536 -t 1 -T 1");
        socat.arg(format!(
            "OPEN:{}!!CREATE:{}",
            dir.file("all").display(),
            dir.file("back").display()
        ));
        socat.arg(format!("UDP:{},setsockopt-int=17:103:{PIECE}", front.addr));
        run_ok(secs(20), socat);
        wait_until("all of it", secs(10), || got.lock().unwrap().len() >= 51);
        let got = got.lock().unwrap();
        let wanted: Vec<&[u8]> = all.chunks(PIECE).collect();
        assert!(
            *got == wanted,
            "{between:?}: {:?}",
            got.iter().map(Vec::len).collect::<Vec<_>>()
        );
        // It writes what it hears one after the other.
        let back = std::fs::read(dir.file("back")).unwrap();
        assert!(back == all, "{between:?}: {} bytes came back", back.len());
    }
}

/// Two listeners before one upstream; and one that is for TCP, on the same port.
#[test]
fn a_port_of_its_own_beside_tcp() {
    let (udp, tcp) = (
        UdpServer::named("udp"),
        crate::harness::server::Server::named("tcp"),
    );
    let front = ports::free_addr();
    let _tembuku = Tembuku::start(&format!(
        "[listeners.d]\nbind = \"{front}\"\nprotocol = \"udp\"\nupstream = \"d\"\n\
         [listeners.s]\nbind = \"{front}\"\nupstream = \"s\"\n\
         [upstreams.d]\nbackends = {}\n[upstreams.s]\nbackends = {}\n",
        list(&[udp.addr]),
        list(&[tcp.addr])
    ));
    assert_eq!(ask(&client(front), "x"), "udp x");
    assert_eq!(crate::harness::net::ask(front).unwrap(), "tcp");
}

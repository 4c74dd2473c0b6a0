//! Which datagrams of a client share a session, by nginx and by us.

use crate::harness::{
    ports,
    programs::Nginx,
    tembuku::Tembuku,
    udp::{UdpServer, V4, client, config, receive_text},
};
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

/// So many datagrams, at once or each after the replies to the one before; which session each was
/// of, by the port that it came from, in the order in which they were first seen.
fn sessions(
    front: SocketAddr,
    seen: &Mutex<Vec<SocketAddr>>,
    replies: u32,
    at_once: bool,
) -> Vec<usize> {
    const COUNT: usize = 7;
    seen.lock().unwrap().clear();
    let client = client(front);
    let hear_all = |count: u32| {
        for _ in 0..count {
            receive_text(&client);
        }
    };
    for n in 0..COUNT {
        client.send(n.to_string().as_bytes()).unwrap();
        if !at_once {
            hear_all(replies);
        }
    }
    if at_once {
        hear_all(COUNT as u32 * replies);
    }
    let mut peers: Vec<SocketAddr> = Vec::new();
    let number = |peer: &SocketAddr| {
        peers.iter().position(|k| k == peer).unwrap_or_else(|| {
            peers.push(*peer);
            peers.len() - 1
        })
    };
    seen.lock().unwrap().iter().map(number).collect()
}

#[test]
fn requests_and_responses_together() {
    for (requests, responses) in [
        (1, 1),
        (2, 1),
        (3, 1),
        (3, 2),
        (2, 2),
        (3, 0),
        (0, 1),
        (0, 2),
    ] {
        let replies = responses.max(1);
        let seen: Arc<Mutex<Vec<SocketAddr>>> = Arc::default();
        let record = Arc::clone(&seen);
        let server = UdpServer::on(SocketAddr::new(V4, 0), move |socket, peer, bytes| {
            record.lock().unwrap().push(peer);
            for _ in 0..replies {
                socket.send_to(bytes, peer).unwrap();
            }
        });
        let by_nginx = ports::free_addr();
        let directive = |name: &str, count: u32| match count {
            0 => String::new(),
            count => format!("{name} {count};"),
        };
        let nginx = Nginx::start(
            // That it listens is seen by the TCP port.
            by_nginx,
            &format!(
                "stream {{ server {{ listen {by_nginx} udp; proxy_pass {0}; {1} {2} }}\n\
                 server {{ listen {by_nginx}; proxy_pass {0}; }} }}",
                server.addr,
                directive("proxy_requests", requests),
                directive("proxy_responses", responses),
            ),
        );
        let by_us = ports::free_addr();
        let keys = format!("requests = {requests}\nresponses = {responses}");
        let tembuku = Tembuku::start(&config(by_us, &keys, "", &[server.addr]));
        for at_once in [false, true] {
            // At once, nginx ends a session at its last reply or one datagram later: that
            // depends on timing.
            if at_once && requests == 0 {
                continue;
            }
            let expected = sessions(by_nginx, &seen, replies, at_once);
            let found = sessions(by_us, &seen, replies, at_once);
            assert_eq!(found, expected, "{requests} {responses} {at_once}");
        }
        drop((nginx, tembuku));
    }
}

//! Connections and flows share the descriptors of the process, and neither takes all of them.

use crate::harness::{
    net, ports, secs,
    server::{Server, list},
    tembuku::Tembuku,
    udp::{self, UdpServer, V4, client},
    wait_until,
};
use std::net::{SocketAddr, TcpStream, UdpSocket};

const LIMIT: usize = 1_000;

struct Setup {
    tembuku: Tembuku,
    tcp: SocketAddr,
    udp: SocketAddr,
    _server: Server,
    _echo: UdpServer,
}

fn setup() -> Setup {
    let (server, echo) = (Server::named("b1"), UdpServer::echo(V4));
    let (tcp, front) = (ports::free_addr(), ports::free_addr());
    let tembuku = Tembuku::start_under(
        &format!("prlimit --nofile={LIMIT}:{LIMIT}"),
        &format!(
            "[process]\nworkers = 1\n[listeners.tcp]\nbind = \"{tcp}\"\nupstream = \"s\"\n\
             [listeners.udp]\nbind = \"{front}\"\nprotocol = \"udp\"\nupstream = \"d\"\n\
             idle_timeout = \"1h\"\n\
             [upstreams.s]\nbackends = {}\n[upstreams.d]\nbackends = {}\n",
            list(std::slice::from_ref(&server)),
            udp::list(&[echo.addr])
        ),
    );
    Setup {
        tembuku,
        tcp,
        udp: front,
        _server: server,
        _echo: echo,
    }
}

impl Setup {
    /// Connects until one is refused. Each of them is served.
    fn fill_tcp(&self) -> Vec<TcpStream> {
        let sessions = (0..LIMIT).map_while(|_| net::session(self.tcp).ok());
        sessions.map(|(stream, _)| stream).collect()
    }

    /// Begins so many flows, and returns how many there are then.
    fn fill_udp(&self, clients: &mut Vec<UdpSocket>, count: usize) -> usize {
        let labels = [("listener", "udp")];
        let before = self.tembuku.metric("listener_connections_total", &labels);
        for n in 1..=count {
            let client = client(self.udp);
            client.send(b"hello").unwrap();
            clients.push(client);
            // What the kernel drops at a full buffer would not be counted.
            if n % 50 == 0 || n == count {
                let all = before + n as f64;
                self.tembuku
                    .wait_metric("listener_connections_total", &labels, |n| n == all);
            }
        }
        self.tembuku.metric("listener_active_connections", &labels) as usize
    }
}

#[test]
fn what_flows_do_not_use_is_there_for_connections_and_they_keep_their_part() {
    let setup = setup();
    let sessions = setup.fill_tcp();
    println!("{} sessions", sessions.len());
    // Two descriptors each; a quarter is kept for flows.
    assert!(2 * sessions.len() > LIMIT * 6 / 10, "{}", sessions.len());
    let rejected = [("listener", "tcp"), ("reason", "process_max_connections")];
    assert!(setup.tembuku.metric("listener_rejected_total", &rejected) > 0.0);
    let mut clients = Vec::new();
    let flows = setup.fill_udp(&mut clients, LIMIT);
    println!("{flows} flows beside them");
    assert!((LIMIT / 5..LIMIT / 3).contains(&flows), "{flows}");
    let client = &clients[0];
    assert_eq!(udp::receive(client), b"hello");
    assert_eq!(udp::ask(client, "goes on"), "goes on");
    // What becomes free is there for either.
    drop(sessions);
    wait_until("no connection is left", secs(20), || {
        let labels = [("listener", "tcp")];
        setup.tembuku.metric("listener_active_connections", &labels) == 0.0
    });
    let flows = setup.fill_udp(&mut clients, LIMIT);
    println!("{flows} flows alone");
    assert!(flows > LIMIT * 6 / 10, "{flows}");
    assert_eq!(setup.tembuku.metric("accept_errors_total", &[]), 0.0);
}

#[test]
fn a_flood_of_flows_leaves_connections_their_part() {
    let setup = setup();
    let mut clients = Vec::new();
    let flows = setup.fill_udp(&mut clients, LIMIT + 200);
    println!("{flows} flows");
    assert!((LIMIT * 6 / 10..LIMIT * 8 / 10).contains(&flows), "{flows}");
    let sessions = setup.fill_tcp();
    println!("{} sessions beside them", sessions.len());
    assert!(2 * sessions.len() > LIMIT / 5, "{}", sessions.len());
    assert_eq!(setup.tembuku.metric("accept_errors_total", &[]), 0.0);
}

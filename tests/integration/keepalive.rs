//! Whether the kernel asks after peers that are silent.

use crate::harness::{
    millis, net, poll, ports, secs,
    server::{Server, greet_and_echo},
    tembuku::Tembuku,
};
use std::{
    fs,
    net::{SocketAddr, TcpStream},
    sync::{Mutex, mpsc},
};

/// The kernel's timer for a connection, in seconds, if it is that of keepalive. `local` and `peer`
/// are ports.
fn keepalive(local: u16, peer: u16) -> Option<f64> {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let (local, peer) = (format!(":{local:04X}"), format!(":{peer:04X}"));
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if !(fields.get(1)?.ends_with(&local) && fields.get(2)?.ends_with(&peer)) {
            return None;
        }
        let ticks = fields.get(5)?.strip_prefix("02:")?;
        Some(f64::from(u32::from_str_radix(ticks, 16).unwrap()) / 100.0)
    })
}

struct Held {
    client: TcpStream,
    front: SocketAddr,
    backend: SocketAddr,
    /// The balancer's port at the backend.
    port: u16,
    _server: Server,
}

impl Held {
    fn open(front: SocketAddr, backend: SocketAddr) -> Self {
        let (sender, peers) = mpsc::channel();
        let sender = Mutex::new(sender);
        let server = Server::on(&[backend], move |stream| {
            let peer = stream.peer_addr().unwrap();
            sender.lock().unwrap().send(peer.port()).unwrap();
            greet_and_echo(&stream, "here\n");
        });
        let (client, _) = net::session(front).unwrap();
        Self {
            client,
            front,
            backend,
            port: peers.recv_timeout(secs(10)).unwrap(),
            _server: server,
        }
    }

    /// Towards the client, and towards the backend.
    fn timers(&self) -> (Option<f64>, Option<f64>) {
        let client = self.client.local_addr().unwrap().port();
        (
            keepalive(self.front.port(), client),
            keepalive(self.port, self.backend.port()),
        )
    }
}

#[test]
fn both_sides_are_asked_if_that_is_wanted() {
    let [backends, fronts] = [0, 1].map(|_| [ports::free_addr(), ports::free_addr()]);
    let _tembuku = Tembuku::start(&format!(
        "[listeners.with]\nbind = \"{}\"\nupstream = \"with\"\nidle_timeout = \"0s\"\n\
         keepalive = {{ idle = \"30s\", interval = \"5s\", count = 2 }}\n\
         [listeners.without]\nbind = \"{}\"\nupstream = \"without\"\nkeepalive = false\n\
         [upstreams.with]\nbackends = [\"{}\"]\n[upstreams.without]\nbackends = [\"{}\"]\n",
        fronts[0], fronts[1], backends[0], backends[1]
    ));
    let without = Held::open(fronts[1], backends[1]);
    // That one is older, so that it, too, has had its time when this one is asked after.
    let with = Held::open(fronts[0], backends[0]);
    let asked = poll(secs(10), || match with.timers() {
        (Some(client), Some(backend)) => Some((client, backend)),
        _ => None,
    });
    let (client, backend) = asked.expect("no keepalive probe was sent");
    println!("in {client} s and {backend} s");
    assert!((20.0..=30.0).contains(&client) && (20.0..=30.0).contains(&backend));
    assert_eq!(without.timers(), (None, None));
    // A session that has moved nothing since is asked after, too: both have been idle all this
    // time.
    assert!(poll(millis(100), || (with.timers().1.is_none()).then_some(())).is_none());
}

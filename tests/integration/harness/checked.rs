//! Backends that are checked at another port, so that a test can make one ill without touching its
//! sessions, behind one listener.

use super::{net, ports, secs, server::Server, tembuku::Tembuku, wait_until};
use serde_json::Value;
use std::{
    net::{SocketAddr, TcpStream},
    thread,
    time::Instant,
};

/// A backend on an address of its own, which is asked at another port.
pub(crate) struct Node {
    pub(crate) data: Server,
    asked_at: SocketAddr,
    health: Option<Server>,
}

impl Node {
    pub(crate) fn sicken(&mut self) {
        self.health = None;
    }

    pub(crate) fn heal(&mut self) {
        self.health = Some(Server::on(&[self.asked_at], |mut stream| {
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        }));
    }

    /// Where its checks go, while it is well.
    pub(crate) fn health(&self) -> &Server {
        self.health.as_ref().unwrap()
    }

    /// How often it has been asked since it was last healed.
    pub(crate) fn asked(&self) -> usize {
        self.health().accepted()
    }
}

pub(crate) struct Nodes {
    pub(crate) front: SocketAddr,
    pub(crate) tembuku: Tembuku,
    pub(crate) nodes: Vec<Node>,
}

impl Nodes {
    /// Nodes `b1`, `b2`... of the network 127.0.`net`.0, each with keys of its own; `keys` are the
    /// upstream's, `check` those of the check; without them there is none. Returns when each node
    /// has been checked once.
    #[track_caller]
    pub(crate) fn start(net: u8, node_keys: &[&str], keys: &str, check: &str) -> Self {
        let (port, health) = (ports::free_port(), ports::free_port());
        let nodes: Vec<Node> = (1..=node_keys.len())
            .map(|n| {
                let ip = [127, 0, net, u8::try_from(n).unwrap()];
                let mut node = Node {
                    data: Server::named_on(&format!("b{n}"), &[SocketAddr::from((ip, port))]),
                    asked_at: SocketAddr::from((ip, health)),
                    health: None,
                };
                node.heal();
                node
            })
            .collect();
        let backends: Vec<String> = nodes
            .iter()
            .zip(node_keys)
            .map(|(node, keys)| format!("{{ address = \"{}\", {keys} }}", node.data.addr))
            .collect();
        let check = match check {
            "" => String::new(),
            check => format!("[upstreams.u.check]\nkind = \"tcp\"\nport = {health}\n{check}\n"),
        };
        let front = ports::free_addr();
        let tembuku = Tembuku::start(&format!(
            "[process]\nworkers = 2\n[log]\nformat = \"json\"\naccess = \"{{dir}}/access.log\"\n\
             [admin]\nsocket = \"{{dir}}/admin.sock\"\n\
             [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
             [upstreams.u]\nbackends = [{}]\n{keys}\n{check}",
            backends.join(", ")
        ));
        let setup = Self {
            front,
            tembuku,
            nodes,
        };
        if !check.is_empty() {
            let all = setup.nodes.len() as f64;
            let ok = [("result", "ok")];
            setup
                .tembuku
                .wait_metric("check_results_total", &ok, |n| n >= all);
        }
        setup
    }

    /// What an operator sets for this node; the answer.
    #[track_caller]
    pub(crate) fn admin_state(&self, node: usize, state: &str) -> Value {
        self.tembuku.set_admin_state("u", &self.text(node), state)
    }

    /// This node in the status.
    #[track_caller]
    pub(crate) fn backend(&self, node: usize) -> Value {
        self.tembuku.status()["upstreams"][0]["backends"][node].take()
    }

    pub(crate) fn text(&self, node: usize) -> String {
        self.nodes[node].data.addr.to_string()
    }

    #[track_caller]
    pub(crate) fn wait_state(&self, node: usize, state: &str) {
        let backend = self.text(node);
        let labels = [("backend", backend.as_str()), ("state", state)];
        self.tembuku
            .wait_metric("backend_state", &labels, |is| is == 1.0);
    }

    /// The check finds it down, and the program has noticed.
    #[track_caller]
    pub(crate) fn take_down(&mut self, node: usize) {
        self.nodes[node].sicken();
        self.wait_state(node, "down");
    }

    #[track_caller]
    pub(crate) fn bring_up(&mut self, node: usize) {
        self.nodes[node].heal();
        self.wait_state(node, "up");
    }

    /// A session on this node.
    #[track_caller]
    pub(crate) fn session_on(&self, node: usize) -> TcpStream {
        let name = format!("b{}", node + 1);
        let mut found = None;
        wait_until(&format!("a session on {name}"), secs(10), || {
            let (stream, backend) = net::session(self.front).unwrap();
            found = Some(stream).filter(|_| backend == name);
            found.is_some()
        });
        found.unwrap()
    }

    pub(crate) fn active(&self, node: usize) -> f64 {
        let backend = self.text(node);
        let labels = [("backend", backend.as_str())];
        self.tembuku.metric("backend_active_connections", &labels)
    }

    /// Checks of this node that had this result.
    pub(crate) fn results(&self, node: usize, result: &str) -> f64 {
        let backend = self.text(node);
        let labels = [("backend", backend.as_str()), ("result", result)];
        self.tembuku.metric("check_results_total", &labels)
    }

    /// Waits until so many more checks of this node have had this result.
    #[track_caller]
    pub(crate) fn wait_results(&self, node: usize, result: &str, more: f64) {
        let until = self.results(node, result) + more;
        let backend = self.text(node);
        let labels = [("backend", backend.as_str()), ("result", result)];
        self.tembuku
            .wait_metric("check_results_total", &labels, |n| n >= until);
    }

    /// Waits until this node has been asked so many times more, and has answered as many.
    #[track_caller]
    pub(crate) fn wait_checks(&self, node: usize, more: f64) {
        let backend = self.text(node);
        let labels = [("backend", backend.as_str())];
        let before = self.tembuku.metric("check_results_total", &labels);
        self.tembuku
            .wait_metric("check_results_total", &labels, |n| n >= before + more);
    }

    #[track_caller]
    pub(crate) fn wait_closed(&self, reason: &str, count: f64) {
        self.tembuku.wait_closed(reason, count);
    }

    /// Opens so many sessions, lets `cause` end them, and returns when each has ended.
    #[track_caller]
    pub(crate) fn ends_of(
        &mut self,
        sessions: usize,
        cause: impl FnOnce(&mut Self),
    ) -> Vec<Instant> {
        let open = |_| net::session(self.front).unwrap().0;
        let held: Vec<TcpStream> = (0..sessions).map(open).collect();
        cause(self);
        thread::scope(|scope| {
            let wait = |mut stream: TcpStream| {
                scope.spawn(move || {
                    net::read_all(&mut stream);
                    Instant::now()
                })
            };
            let waiting: Vec<_> = held.into_iter().map(wait).collect();
            let ends = waiting.into_iter().map(|thread| thread.join().unwrap());
            ends.collect()
        })
    }
}

//! A configuration that is edited at random, in ways that are no reason to end a session.

use crate::harness::{ports, rng::Rng};
use std::{collections::BTreeMap, fmt::Write as _, net::SocketAddr};

#[derive(Clone)]
pub(super) struct Model {
    process: &'static str,
    upstreams: Vec<Upstream>,
    listeners: Vec<Listener>,
    /// Those that come and go, by their ports.
    passing: BTreeMap<u16, Listener>,
}

#[derive(Clone)]
struct Upstream {
    name: &'static str,
    kind: Kind,
    balance: &'static str,
    keys: &'static str,
    backends: Vec<Backend>,
    check: String,
}

#[derive(Clone)]
struct Backend {
    addr: SocketAddr,
    is_named: bool,
    keys: String,
}

#[derive(Clone)]
struct Listener {
    name: String,
    upstream: &'static str,
    is_udp: bool,
    binds: Vec<String>,
    keys: String,
}

/// What the servers of an upstream speak.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Http,
    Redis,
    Postgres,
    Dns,
    Lines,
    Datagrams,
}

const POLICIES: [&str; 9] = [
    "round_robin",
    "least_conn",
    "random_two",
    "least_time",
    "hash",
    "ip_hash",
    "consistent_hash",
    "maglev",
    "first",
];

impl Kind {
    fn is_udp(self) -> bool {
        matches!(self, Self::Dns | Self::Datagrams)
    }

    /// What a listener for them has in any case.
    fn listener_keys(self) -> &'static str {
        match self {
            Self::Dns => "responses = 1\n",
            _ => "",
        }
    }

    /// A check that these servers pass; lenient, since the machine is busy.
    fn check(self, rng: &mut Rng) -> String {
        let kind = match self {
            Self::Http => "kind = \"http\"\npath = \"/file\"",
            Self::Redis => "kind = \"redis\"",
            Self::Postgres => "kind = \"postgres\"",
            Self::Dns => "kind = \"dns\"\nquery = \"n1.example\"",
            Self::Lines => "kind = \"tcp\"",
            Self::Datagrams => return String::new(),
        };
        let interval = rng.range(300, 900);
        format!("{kind}\ninterval = \"{interval}ms\"\ntimeout = \"20s\"\nfall = 5\n")
    }
}

impl Model {
    pub(super) fn new(upstreams: Vec<(&'static str, Kind, Vec<SocketAddr>)>) -> Self {
        let listener = |(name, kind, _): &(&'static str, Kind, _)| Listener {
            name: (*name).to_owned(),
            upstream: name,
            is_udp: kind.is_udp(),
            binds: vec![ports::free_addr().to_string()],
            keys: kind.listener_keys().to_owned(),
        };
        let listeners = upstreams.iter().map(listener).collect();
        let upstream = |(name, kind, addrs): (_, Kind, Vec<SocketAddr>)| Upstream {
            name,
            kind,
            balance: "round_robin",
            keys: "on_removed = \"keep\"\n",
            backends: addrs
                .into_iter()
                .map(|addr| Backend {
                    addr,
                    is_named: true,
                    keys: String::new(),
                })
                .collect(),
            check: String::new(),
        };
        Self {
            process: "",
            upstreams: upstreams.into_iter().map(upstream).collect(),
            listeners,
            passing: BTreeMap::new(),
        }
    }

    /// Where this listener is reached.
    pub(super) fn front(&self, name: &str) -> SocketAddr {
        let listener = self.listeners.iter().find(|l| l.name == name).unwrap();
        let front: SocketAddr = listener.binds[0].parse().unwrap();
        SocketAddr::from(([127, 0, 0, 1], front.port()))
    }

    /// The same, where every flow of datagrams is ended.
    pub(super) fn without_flows(&self) -> String {
        let mut model = self.clone();
        for upstream in &mut model.upstreams {
            if upstream.kind == Kind::Datagrams {
                upstream.keys = "on_removed = \"close\"\n";
                upstream.backends.truncate(1);
                upstream.backends[0].addr = ports::free_addr();
            }
        }
        model.text()
    }

    pub(super) fn edit(&mut self, rng: &mut Rng, passing: &[u16]) {
        match rng.below(9) {
            0 => {
                self.process = pick(
                    rng,
                    &["", "max_connections = 9000\n", "drain_timeout = \"9s\"\n"],
                )
            }
            1 | 2 => self.edit_listener(rng),
            3 => self.edit_passing(rng, passing),
            4 => {
                let upstream = self.upstream(rng);
                upstream.check = match rng.chance(40) {
                    true => String::new(),
                    false => upstream.kind.check(rng),
                };
            }
            5 => {
                let upstream = self.upstream(rng);
                upstream.balance = pick(rng, &POLICIES);
            }
            6 => {
                let upstream = self.upstream(rng);
                // Those of datagrams are to stay where they are.
                upstream.keys = match upstream.kind == Kind::Datagrams || rng.chance(50) {
                    true => "on_removed = \"keep\"\nresolve_interval = \"5s\"\n",
                    false => "on_removed = { close_after = \"1h\" }\n",
                };
            }
            7 => {
                let upstream = self.upstream(rng);
                let n = rng.below(upstream.backends.len() as u64) as usize;
                let named = upstream.backends.iter().filter(|b| b.is_named).count();
                let backend = &mut upstream.backends[n];
                backend.is_named = !backend.is_named || named == 1;
            }
            _ => {
                let upstream = self.upstream(rng);
                let n = rng.below(upstream.backends.len() as u64) as usize;
                upstream.backends[n].keys = backend_keys(rng);
            }
        }
    }

    fn upstream(&mut self, rng: &mut Rng) -> &mut Upstream {
        let n = rng.below(self.upstreams.len() as u64) as usize;
        &mut self.upstreams[n]
    }

    fn edit_listener(&mut self, rng: &mut Rng) {
        let n = rng.below(self.listeners.len() as u64) as usize;
        let listener = &mut self.listeners[n];
        listener.keys = listener_keys(rng, self.upstreams[n].kind);
        // Flows stay with the socket of their address.
        if !listener.is_udp && rng.chance(40) {
            let port = listener.binds[0].rsplit(':').next().unwrap().to_owned();
            let ip = pick(rng, &["127.0.0.1", "0.0.0.0"]);
            listener.binds = vec![format!("{ip}:{port}")];
            if rng.chance(30) {
                listener
                    .binds
                    .push(format!("unix:{{dir}}/{}", listener.name));
            }
        }
    }

    /// A listener comes, goes, or changes its upstream.
    fn edit_passing(&mut self, rng: &mut Rng, ports: &[u16]) {
        let port = ports[rng.below(ports.len() as u64) as usize];
        if self.passing.remove(&port).is_some() && rng.chance(60) {
            return;
        }
        let upstream = &self.upstreams[rng.below(self.upstreams.len() as u64) as usize];
        let is_udp = upstream.kind.is_udp();
        let listener = Listener {
            name: format!("passing-{port}"),
            upstream: upstream.name,
            is_udp,
            binds: vec![format!("127.0.0.1:{port}")],
            keys: listener_keys(rng, upstream.kind),
        };
        self.passing.insert(port, listener);
    }

    pub(super) fn text(&self) -> String {
        let mut text = format!(
            "[process]\nworkers = 2\n{}[log]\nformat = \"json\"\n\
             [admin]\nsocket = \"{{dir}}/admin.sock\"\n",
            self.process
        );
        for listener in self.listeners.iter().chain(self.passing.values()) {
            let protocol = if listener.is_udp { "udp" } else { "tcp" };
            let _ = write!(
                text,
                "[listeners.{}]\nbind = {:?}\nprotocol = \"{protocol}\"\nupstream = {:?}\n{}",
                listener.name, listener.binds, listener.upstream, listener.keys
            );
        }
        for upstream in &self.upstreams {
            let backends = upstream.backends.iter().filter(|b| b.is_named);
            let backends = backends.map(|b| format!("{{ address = \"{}\"{} }}", b.addr, b.keys));
            let _ = write!(
                text,
                "[upstreams.{}]\nbalance = \"{}\"\n{}backends = [{}]\n",
                upstream.name,
                upstream.balance,
                upstream.keys,
                backends.collect::<Vec<_>>().join(", ")
            );
            if !upstream.check.is_empty() {
                let _ = write!(
                    text,
                    "[upstreams.{}.check]\n{}",
                    upstream.name, upstream.check
                );
            }
        }
        text
    }
}

fn pick<'a>(rng: &mut Rng, of: &[&'a str]) -> &'a str {
    of[rng.below(of.len() as u64) as usize]
}

fn backend_keys(rng: &mut Rng) -> String {
    let mut keys = format!(", weight = {}", rng.range(1, 9));
    if rng.chance(30) {
        keys += &format!(", max_connections = {}", rng.range(1_000, 2_000));
    }
    if rng.chance(30) {
        keys += &format!(", max_fails = {}, fail_timeout = \"3s\"", rng.range(2, 9));
    }
    if rng.chance(20) {
        keys += ", slow_start = \"1s\"";
    }
    keys
}

fn listener_keys(rng: &mut Rng, kind: Kind) -> String {
    let mut keys = kind.listener_keys().to_owned();
    let mut add = |percent, line: String| {
        if rng.chance(percent) {
            keys += &line;
        }
    };
    add(40, "retries = 2\n".to_owned());
    add(40, "idle_timeout = \"9m\"\n".to_owned());
    add(30, "max_connections = 5000\n".to_owned());
    add(30, "access = [\"deny 203.0.113.0/24\"]\n".to_owned());
    add(30, "max_connections_per_source = 4000\n".to_owned());
    if kind.is_udp() {
        return keys;
    }
    add(30, "connect_timeout = \"20s\"\n".to_owned());
    add(30, "backlog = 2000\n".to_owned());
    add(30, "half_close_timeout = \"2m\"\n".to_owned());
    add(30, "nodelay = false\n".to_owned());
    add(30, "keepalive = { idle = \"50s\" }\n".to_owned());
    add(30, "user_timeout = \"80s\"\n".to_owned());
    keys
}

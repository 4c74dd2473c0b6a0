//! The program and an nginx side by side, with the same backends.

use super::{
    net::ask_from,
    ports,
    programs::{Nginx, http_block},
    rng::Rng,
    server::Server,
    tembuku::Tembuku,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// A backend as both configurations name it.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) address: String,
    pub(crate) weight: u64,
    pub(crate) max_connections: u64,
    pub(crate) down: bool,
    pub(crate) backup: bool,
    /// An hour, unless it is set: which backends count as failed must not depend on how fast the
    /// two are asked.
    pub(crate) fail_timeout: &'static str,
    pub(crate) max_fails: u64,
}

impl Entry {
    pub(crate) fn new(address: impl ToString, weight: u64) -> Entry {
        Entry {
            address: address.to_string(),
            weight,
            max_connections: 0,
            down: false,
            backup: false,
            fail_timeout: "1h",
            max_fails: 1,
        }
    }

    pub(crate) fn down(mut self) -> Entry {
        self.down = true;
        self
    }

    pub(crate) fn backup(mut self) -> Entry {
        self.backup = true;
        self
    }

    pub(crate) fn failing_for(mut self, fail_timeout: &'static str) -> Entry {
        self.fail_timeout = fail_timeout;
        self
    }
}

/// Which of nginx's modules relays.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Module {
    Stream,
    Http,
}

/// The two, side by side.
pub(crate) struct Pair {
    pub(crate) nginx: SocketAddr,
    pub(crate) tembuku: SocketAddr,
    pub(crate) program: Tembuku,
    _peer: Nginx,
}

impl Pair {
    /// `key` is that of the consistent hash; without one it is round robin.
    #[track_caller]
    pub(crate) fn start(entries: &[Entry], key: Option<&str>, host: &str) -> Pair {
        let (nginx, tembuku) = key.map_or_else(
            || (String::new(), "balance = \"round_robin\"".to_owned()),
            |key| {
                (
                    format!("hash {key} consistent;"),
                    format!("balance = \"consistent_hash\"\nhash_key = \"{key}\""),
                )
            },
        );
        Pair::start_with(entries, &nginx, &tembuku, host)
    }

    /// `directive` is nginx's, `balance` are our lines for the same.
    #[track_caller]
    pub(crate) fn start_with(
        entries: &[Entry],
        directive: &str,
        balance: &str,
        host: &str,
    ) -> Pair {
        Pair::start_in(Module::Stream, entries, directive, balance, host)
    }

    #[track_caller]
    pub(crate) fn start_in(
        module: Module,
        entries: &[Entry],
        directive: &str,
        balance: &str,
        host: &str,
    ) -> Pair {
        let addr = |port: u16| -> SocketAddr { format!("{host}:{port}").parse().unwrap() };
        let (nginx, tembuku) = (addr(ports::free_port()), addr(ports::free_port()));
        let flag = |set: bool, word: &'static str| if set { word } else { "" };
        let servers: String = entries
            .iter()
            .map(|entry| {
                format!(
                    "server {} weight={} max_conns={} max_fails={} fail_timeout={}{}{}; ",
                    entry.address,
                    entry.weight,
                    entry.max_connections,
                    entry.max_fails,
                    entry.fail_timeout,
                    flag(entry.down, " down"),
                    flag(entry.backup, " backup"),
                )
            })
            .collect();
        let upstream = format!("upstream u {{ {directive} {servers} }}");
        let block = match module {
            Module::Stream => {
                format!("stream {{ {upstream}\nserver {{ listen {nginx}; proxy_pass u; }} }}")
            }
            Module::Http => http_block(&format!(
                "proxy_buffering off; {upstream}\n\
                 server {{ listen {nginx}; location / {{ proxy_pass http://u; }} }}"
            )),
        };
        let peer = Nginx::start(nginx, &block);
        let backends: String = entries
            .iter()
            .map(|entry| {
                format!(
                    "{{ address = \"{}\", weight = {}, max_connections = {}, max_fails = {}, \
                     fail_timeout = \"{}\", down = {}, backup = {} }}, ",
                    entry.address,
                    entry.weight,
                    entry.max_connections,
                    entry.max_fails,
                    entry.fail_timeout,
                    entry.down,
                    entry.backup
                )
            })
            .collect();
        // nginx tries every backend before it gives up.
        let program = Tembuku::start(&format!(
            "[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
             [listeners.l]\nbind = \"{tembuku}\"\nupstream = \"u\"\nretries = 100\n\
             [upstreams.u]\n{balance}\nbackends = [{backends}]\n"
        ));
        Pair {
            nginx,
            tembuku,
            program,
            _peer: peer,
        }
    }

    /// Asks both from every source, `rounds` times; the backend of each. The names of the backends
    /// are their entries'.
    #[track_caller]
    pub(crate) fn compare(&self, sources: &[IpAddr], rounds: usize) -> BTreeMap<IpAddr, String> {
        self.compare_by(ask_from, sources, rounds)
    }

    /// [`Pair::compare`] with another way to ask than by listening to a greeting.
    #[track_caller]
    pub(crate) fn compare_by(
        &self,
        ask_from: impl Fn(IpAddr, SocketAddr) -> io::Result<String>,
        sources: &[IpAddr],
        rounds: usize,
    ) -> BTreeMap<IpAddr, String> {
        let mut picked: BTreeMap<IpAddr, String> = BTreeMap::new();
        for round in 1..=rounds {
            for &source in sources {
                let ask = |name: &str, addr| {
                    ask_from(source, addr)
                        .unwrap_or_else(|error| panic!("{name}, from {source}: {error}"))
                };
                let nginx = ask("nginx", self.nginx);
                let tembuku = ask("tembuku", self.tembuku);
                assert_eq!(
                    tembuku, nginx,
                    "from {source}, round {round}: tembuku is left, nginx right"
                );
                let before = picked.entry(source).or_insert_with(|| nginx.clone());
                assert_eq!(
                    *before, nginx,
                    "from {source}: another backend in round {round}"
                );
            }
        }
        picked
    }
}

pub(crate) fn sources_v4(rng: &mut Rng, count: usize) -> Vec<IpAddr> {
    let mut sources = BTreeSet::new();
    while sources.len() < count {
        let [a, b, c] = [rng.below(256), rng.below(256), rng.range(1, 254)].map(|n| n as u8);
        sources.insert(IpAddr::from(Ipv4Addr::new(127, a, b, c)));
    }
    sources.into_iter().collect()
}

/// Addresses whose groups are often zero, or short, so that every rule of writing one down is
/// needed.
pub(crate) fn sources_v6(rng: &mut Rng, count: usize) -> Vec<IpAddr> {
    let mut sources = BTreeSet::new();
    while sources.len() < count {
        let mut groups = [0xfd00, 0x7e57, 0, 0, 0, 0, 0, 0];
        for group in &mut groups[4..] {
            *group = if rng.chance(40) {
                0
            } else {
                rng.magnitude(16.0) as u16
            };
        }
        sources.insert(IpAddr::from(Ipv6Addr::from(groups)));
    }
    sources.into_iter().collect()
}

pub(crate) fn used(picked: &BTreeMap<IpAddr, String>) -> BTreeSet<&str> {
    picked.values().map(String::as_str).collect()
}

/// A plain one, a heavier one, a host name, an IPv6 literal, a `down` one: each is named after its
/// entry.
pub(crate) fn mixed() -> (Vec<Server>, Vec<Entry>) {
    mixed_of(Server::named_on)
}

/// [`mixed`] with servers of another kind, made from a name and where to listen.
pub(crate) fn mixed_of(
    server: impl Fn(&str, &[SocketAddr]) -> Server,
) -> (Vec<Server>, Vec<Entry>) {
    let v4 = |name: &str, host: [u8; 4]| {
        let server = server(name, &[SocketAddr::from((host, 0))]);
        let addr = server.addr;
        (server, addr)
    };
    let (plain, plain_addr) = v4("plain", [127, 0, 0, 1]);
    let (heavy, heavy_addr) = v4("heavy", [127, 0, 0, 2]);
    let (down, down_addr) = v4("down", [127, 0, 0, 3]);
    // The name means 127.0.0.1 everywhere, and ::1 besides on many machines.
    let port = ports::free_port();
    let both = [
        SocketAddr::from(([127, 0, 0, 1], port)),
        SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
    ];
    let name = server("name", &both);
    let literal = server("literal", &[SocketAddr::from((Ipv6Addr::LOCALHOST, 0))]);
    let literal_addr = literal.addr;
    let entries = vec![
        Entry::new(plain_addr, 1),
        Entry::new(heavy_addr, 3),
        Entry::new(format!("localhost:{port}"), 2),
        Entry::new(literal_addr, 1),
        Entry::new(down_addr, 2).down(),
    ];
    (vec![plain, heavy, down, name, literal], entries)
}

//! Picking against nginx itself: both get the same upstream and the same clients.

use crate::harness::{
    net::{ask_from, assert_ends_now, connect, connect_with, read_line},
    ports,
    programs::{self, Nginx},
    rng::{self, Rng},
    server::{Server, ask_many},
    tembuku::Tembuku,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// A backend as both configurations name it.
struct Entry {
    address: String,
    weight: u64,
    max_connections: u64,
    down: bool,
}

impl Entry {
    fn new(address: impl ToString, weight: u64) -> Entry {
        Entry {
            address: address.to_string(),
            weight,
            max_connections: 0,
            down: false,
        }
    }

    fn down(mut self) -> Entry {
        self.down = true;
        self
    }
}

/// The two, side by side.
struct Pair {
    nginx: SocketAddr,
    tembuku: SocketAddr,
    program: Tembuku,
    _peer: Nginx,
}

impl Pair {
    /// `key` is that of the consistent hash; without one it is round robin.
    fn start(entries: &[Entry], key: Option<&str>, host: &str) -> Pair {
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
    fn start_with(entries: &[Entry], directive: &str, balance: &str, host: &str) -> Pair {
        let addr = |port: u16| -> SocketAddr { format!("{host}:{port}").parse().unwrap() };
        let (nginx, tembuku) = (addr(ports::free_port()), addr(ports::free_port()));
        // An hour: which backends count as failed must not depend on how fast the two are asked.
        let servers: String = entries
            .iter()
            .map(|entry| {
                let down = if entry.down { " down" } else { "" };
                format!(
                    "server {} weight={} max_conns={} fail_timeout=1h{down}; ",
                    entry.address, entry.weight, entry.max_connections
                )
            })
            .collect();
        let peer = Nginx::start(
            nginx,
            &format!(
                "stream {{ upstream u {{ {directive} {servers} }}\n\
                 server {{ listen {nginx}; proxy_pass u; }} }}"
            ),
        );
        let backends: String = entries
            .iter()
            .map(|entry| {
                format!(
                    "{{ address = \"{}\", weight = {}, max_connections = {}, fail_timeout = \"1h\", down = {} }}, ",
                    entry.address, entry.weight, entry.max_connections, entry.down
                )
            })
            .collect();
        let program = Tembuku::start(&format!(
            "[listeners.l]\nbind = \"{tembuku}\"\nupstream = \"u\"\n\
             [upstreams.u]\n{balance}\nbackends = [{backends}]\n"
        ));
        Pair {
            nginx,
            tembuku,
            program,
            _peer: peer,
        }
    }

    /// Asks both from every source, `rounds` times; the backend of each. The names of the backends are their entries'.
    #[track_caller]
    fn compare(&self, sources: &[IpAddr], rounds: usize) -> BTreeMap<IpAddr, String> {
        let mut picked: BTreeMap<IpAddr, String> = BTreeMap::new();
        for round in 1..=rounds {
            for &source in sources {
                let ask = |who: &str, addr| {
                    ask_from(source, addr)
                        .unwrap_or_else(|error| panic!("{who}, from {source}: {error}"))
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

fn sources_v4(rng: &mut Rng, count: usize) -> Vec<IpAddr> {
    let mut sources = BTreeSet::new();
    while sources.len() < count {
        let [a, b, c] = [rng.below(256), rng.below(256), rng.range(1, 254)].map(|n| n as u8);
        sources.insert(IpAddr::from(Ipv4Addr::new(127, a, b, c)));
    }
    sources.into_iter().collect()
}

/// Addresses whose groups are often zero, or short, so that every rule of writing one down is needed.
fn sources_v6(rng: &mut Rng, count: usize) -> Vec<IpAddr> {
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

fn used(picked: &BTreeMap<IpAddr, String>) -> BTreeSet<&str> {
    picked.values().map(String::as_str).collect()
}

/// A plain one, a heavier one, a host name, an IPv6 literal, a `down` one: what the name says is the entry.
fn mixed() -> (Vec<Server>, Vec<Entry>) {
    let v4 = |name: &str, host: [u8; 4]| {
        let server = Server::named_on(name, &[SocketAddr::from((host, 0))]);
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
    let name = Server::named_on("name", &both);
    let literal = Server::named_on("literal", &[SocketAddr::from((Ipv6Addr::LOCALHOST, 0))]);
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

#[test]
fn two_hundred_sources_get_the_same_backend() {
    let mut rng = Rng::new(rng::seed("hash_nginx::two_hundred_sources"));
    let (_servers, entries) = mixed();
    let pair = Pair::start(&entries, Some("$remote_addr"), "127.0.0.1");
    let picked = pair.compare(&sources_v4(&mut rng, 200), 2);
    assert_eq!(
        used(&picked),
        BTreeSet::from(["plain", "heavy", "name", "literal"])
    );
}

#[test]
fn the_binary_address_as_the_key() {
    let mut rng = Rng::new(rng::seed("hash_nginx::the_binary_address"));
    let (_servers, entries) = mixed();
    let pair = Pair::start(&entries, Some("$binary_remote_addr"), "127.0.0.1");
    let picked = pair.compare(&sources_v4(&mut rng, 100), 1);
    assert_eq!(
        used(&picked),
        BTreeSet::from(["plain", "heavy", "name", "literal"])
    );
}

#[test]
fn ipv6_clients() {
    if programs::place().is_none() {
        return programs::again_in_own_place("hash_nginx::ipv6_clients");
    }
    let mut rng = Rng::new(rng::seed("hash_nginx::ipv6_clients"));
    let (_servers, entries) = mixed();
    for key in ["$remote_addr", "$binary_remote_addr"] {
        let pair = Pair::start(&entries, Some(key), "[::1]");
        let picked = pair.compare(&[Ipv6Addr::LOCALHOST.into()], 2);
        assert_eq!(picked.len(), 1);
        let pair = Pair::start(&entries, Some(key), "[fd00:7e57::1]");
        let picked = pair.compare(&sources_v6(&mut rng, 100), 2);
        assert_eq!(
            used(&picked),
            BTreeSet::from(["plain", "heavy", "name", "literal"])
        );
    }
}

#[test]
fn a_dead_backend_has_the_same_heir() {
    let mut rng = Rng::new(rng::seed("hash_nginx::a_dead_backend"));
    let (mut servers, mut entries) = mixed();
    let sources = sources_v4(&mut rng, 200);
    let before = Pair::start(&entries, Some("$remote_addr"), "127.0.0.1").compare(&sources, 1);
    // `plain` refuses from here on. Both find out by the first client that they send there.
    drop(servers.remove(0));
    let pair = Pair::start(&entries, Some("$remote_addr"), "127.0.0.1");
    let after = pair.compare(&sources, 2);
    assert!(pair.program.metric("backend_connect_errors_total", &[]) > 0.0);
    assert_eq!(used(&after), BTreeSet::from(["heavy", "name", "literal"]));
    let moved = sources
        .iter()
        .filter(|&source| before[source] != after[source])
        .count();
    let orphans = sources
        .iter()
        .filter(|&source| before[source] == "plain")
        .count();
    assert_eq!(moved, orphans, "only the clients of the dead backend move");

    // One marked `down` is passed over as one that is dead.
    entries[0] = Entry::new(&entries[0].address, entries[0].weight).down();
    let marked = Pair::start(&entries, Some("$remote_addr"), "127.0.0.1").compare(&sources, 1);
    assert_eq!(marked, after);
}

#[test]
fn any_number_of_backends_of_any_weight() {
    let mut rng = Rng::new(rng::seed("hash_nginx::any_number"));
    for _ in 0..5 {
        let count = rng.range(2, 9);
        let mut servers = Vec::new();
        let mut entries = Vec::new();
        for n in 0..count {
            let host = [127, 0, rng.below(4) as u8, rng.range(1, 9) as u8];
            let server = Server::named_on(&format!("b{n}"), &[SocketAddr::from((host, 0))]);
            let mut entry = Entry::new(server.addr, rng.range(1, 6));
            // The first always lives, so that there is somebody to pick.
            entry.down = n > 0 && rng.chance(15);
            let dead = n > 0 && rng.chance(10);
            if !dead {
                servers.push(server);
            }
            entries.push(entry);
        }
        for entry in &entries {
            println!(
                "  {} weight {}{}",
                entry.address,
                entry.weight,
                if entry.down { " down" } else { "" }
            );
        }
        let pair = Pair::start(&entries, Some("$remote_addr"), "127.0.0.1");
        pair.compare(&sources_v4(&mut rng, 60), 1);
    }
}

/// Sessions that last fill the backends up; whoever comes then is passed on, in the same way.
#[test]
fn full_backends_have_the_same_heirs() {
    let mut rng = Rng::new(rng::seed("hash_nginx::full_backends"));
    let (_servers, mut entries) = mixed();
    for entry in &mut entries {
        entry.max_connections = 6;
    }
    // The name may have two addresses, each with room of its own.
    entries.remove(2);
    let pair = Pair::start(&entries, Some("$remote_addr"), "127.0.0.1");
    let mut held = Vec::new();
    for (n, source) in sources_v4(&mut rng, 18).into_iter().enumerate() {
        let [nginx, tembuku] = [pair.nginx, pair.tembuku].map(|addr| {
            let mut stream = connect_with(addr, Some(source), 0, 0).unwrap();
            let name = read_line(&mut stream).unwrap_or_else(|error| panic!("client {n}: {error}"));
            held.push(stream);
            name
        });
        assert_eq!(tembuku, nginx, "client {n}, from {source}");
    }
    for addr in [pair.nginx, pair.tembuku] {
        assert_ends_now(&mut connect(addr).unwrap());
    }
}

#[test]
fn the_turns_of_round_robin_are_the_same() {
    let mut rng = Rng::new(rng::seed("hash_nginx::the_turns"));
    for _ in 0..4 {
        let count = rng.range(2, 6);
        let mut servers = Vec::new();
        let mut entries = Vec::new();
        for n in 0..count {
            let server = Server::named(&format!("b{n}"));
            let mut entry = Entry::new(server.addr, rng.range(1, 9));
            entry.down = n > 1 && rng.chance(10);
            // Two at least live; of a dead one both find out alike.
            if n < 2 || !rng.chance(25) {
                servers.push(server);
            }
            entries.push(entry);
        }
        let weights: Vec<u64> = entries.iter().map(|entry| entry.weight).collect();
        println!("  weights {weights:?}, {} alive", servers.len());
        let pair = Pair::start(&entries, None, "127.0.0.1");
        let [nginx, tembuku] = [pair.nginx, pair.tembuku].map(|addr| ask_many(addr, 60));
        assert_eq!(tembuku, nginx, "weights {weights:?}");
    }
}

#[test]
fn the_plain_hash_is_the_same() {
    let mut rng = Rng::new(rng::seed("hash_nginx::the_plain_hash"));
    for key in ["$remote_addr", "$binary_remote_addr"] {
        let balance = format!("balance = \"hash\"\nhash_key = \"{key}\"");
        let (mut servers, entries) = mixed();
        let directive = format!("hash {key};");
        let sources = sources_v4(&mut rng, 100);
        let pair = Pair::start_with(&entries, &directive, &balance, "127.0.0.1");
        let picked = pair.compare(&sources, 2);
        assert_eq!(
            used(&picked),
            BTreeSet::from(["plain", "heavy", "name", "literal"])
        );
        drop(servers.remove(1));
        let pair = Pair::start_with(&entries, &directive, &balance, "127.0.0.1");
        let picked = pair.compare(&sources, 1);
        assert_eq!(used(&picked), BTreeSet::from(["plain", "name", "literal"]));
    }
}

/// Sessions that stay are opened on both in step: the n-th goes to the same backend, whatever was closed before.
#[test]
fn the_fewest_connections_are_the_same() {
    let mut rng = Rng::new(rng::seed("hash_nginx::the_fewest_connections"));
    for _ in 0..3 {
        let servers: Vec<Server> = (0..rng.range(2, 5))
            .map(|n| Server::named(&format!("b{n}")))
            .collect();
        let entries: Vec<Entry> = servers
            .iter()
            .map(|server| Entry::new(server.addr, rng.range(1, 5)))
            .collect();
        let weights: Vec<u64> = entries.iter().map(|entry| entry.weight).collect();
        println!("  weights {weights:?}");
        // One process of nginx counts for itself.
        let balance = "balance = \"least_conn\"";
        let pair = Pair::start_with(&entries, "least_conn;", balance, "127.0.0.1");
        let mut held = Vec::new();
        for n in 0..60 {
            let [nginx, tembuku] = [pair.nginx, pair.tembuku].map(|addr| {
                let mut stream = connect(addr).unwrap();
                let name =
                    read_line(&mut stream).unwrap_or_else(|error| panic!("client {n}: {error}"));
                held.push(stream);
                name
            });
            assert_eq!(tembuku, nginx, "client {n}, weights {weights:?}");
        }
        let total: u64 = weights.iter().sum();
        for (server, weight) in entries.iter().zip(&weights) {
            let labels = [("backend", server.address.as_str())];
            let active = pair.program.metric("backend_active_connections", &labels);
            let wanted = 60.0 * *weight as f64 / total as f64;
            assert!(
                (active - wanted).abs() <= 1.5,
                "{active} of 60 on weight {weight} of {total}"
            );
        }
    }
}

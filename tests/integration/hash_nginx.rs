//! Picking against nginx itself: both get the same upstream and the same clients.

use crate::harness::{
    net::{assert_ends_now, connect, connect_with, read_line},
    pair::{Entry, Pair, mixed, sources_v4, sources_v6, used},
    ports, programs,
    rng::{self, Rng},
    server::{Server, ask_many},
};
use std::{
    collections::BTreeSet,
    net::{Ipv6Addr, SocketAddr},
};

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

    // One that is configured `down` is passed over as one that is dead.
    entries[0] = Entry::new(&entries[0].address, entries[0].weight).down();
    let configured_down =
        Pair::start(&entries, Some("$remote_addr"), "127.0.0.1").compare(&sources, 1);
    assert_eq!(configured_down, after);
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
            // The first always lives, so that there is one to pick.
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

/// Sessions that last fill the backends up; later clients go on to others, in the same way.
#[test]
fn full_backends_have_the_same_heirs() {
    let mut rng = Rng::new(rng::seed("hash_nginx::full_backends"));
    let (_servers, mut entries) = mixed();
    for entry in &mut entries {
        entry.max_connections = 6;
    }
    // The name may have two addresses, each with a limit of its own.
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

/// A failure that does not put a backend out yet lowers its share, which then grows back by one a
/// pick: with `max_fails` above one the order of the picks shows it. 0: it may fail as often as it
/// likes, and keeps its share.
#[test]
fn the_rotation_after_failures_is_the_same() {
    let mut rng = Rng::new(rng::seed("hash_nginx::the_rotation_after_failures"));
    for _ in 0..4 {
        let servers: Vec<Server> = (1..=2).map(|n| Server::named(&format!("b{n}"))).collect();
        let mut entries: Vec<Entry> = servers
            .iter()
            .map(|server| Entry::new(server.addr, rng.range(1, 9)))
            .collect();
        for _ in 0..rng.range(1, 2) {
            let mut dead = Entry::new(ports::free_addr(), rng.range(3, 20));
            dead.max_fails = rng.below(7);
            entries.insert(rng.below(entries.len() as u64 + 1) as usize, dead);
        }
        let shown: Vec<String> = entries
            .iter()
            .map(|entry| format!("{} max_fails {}", entry.weight, entry.max_fails))
            .collect();
        println!("  {shown:?}");
        let pair = Pair::start(&entries, None, "127.0.0.1");
        let [nginx, tembuku] = [pair.nginx, pair.tembuku].map(|addr| ask_many(addr, 60));
        assert_eq!(tembuku, nginx, "{shown:?}");
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

/// Sessions that stay are opened on both in step: the n-th goes to the same backend, whatever was
/// closed before.
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

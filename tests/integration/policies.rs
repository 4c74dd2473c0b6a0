//! Policies for which nginx's stream module has no counterpart, or none that gives the same picks:
//! by what they do.

use crate::harness::{
    net::{ask_from, connect, connect_with, read_line},
    ports,
    rng::{self, Rng},
    secs,
    server::{Server, list},
    tembuku::Tembuku,
    wait_until,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
};

fn start(balance: &str, backends: &str) -> (SocketAddr, Tembuku) {
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbalance = \"{balance}\"\nbackends = {backends}\n"
    ));
    (front, tembuku)
}

/// A session that stays, and the name of its backend.
fn hold(front: SocketAddr) -> (TcpStream, String) {
    let mut stream = connect(front).unwrap();
    let name = read_line(&mut stream).unwrap();
    (stream, name)
}

#[test]
fn first_fills_one_after_the_other() {
    let servers: Vec<Server> = (1..=3).map(|n| Server::named(&format!("b{n}"))).collect();
    let backends: String = servers
        .iter()
        .map(|s| format!("{{ address = \"{}\", max_connections = 2 }}, ", s.addr))
        .collect();
    let (front, tembuku) = start("first", &format!("[{backends}]"));
    let mut held: Vec<_> = (0..5).map(|_| hold(front)).collect();
    let names: Vec<&str> = held.iter().map(|(_, name)| name.as_str()).collect();
    assert_eq!(names, ["b1", "b1", "b2", "b2", "b3"]);
    // The first gets the next session again as soon as it is below its limit.
    held.remove(0);
    let address = servers[0].addr.to_string();
    wait_until("the session has left the first", secs(5), || {
        let labels = [("backend", address.as_str())];
        tembuku.metric("backend_active_connections", &labels) == 1.0
    });
    assert_eq!(hold(front).1, "b1");
}

/// By chance alone the fullest of four would be some 20 sessions ahead of the emptiest; with the
/// better of two it is a few.
#[test]
fn random_two_keeps_the_load_even() {
    let servers: Vec<Server> = (1..=4).map(|n| Server::named(&format!("b{n}"))).collect();
    let (front, _tembuku) = start("random_two", &list(&servers));
    let mut held = Vec::new();
    let mut order = Vec::new();
    let mut count: BTreeMap<String, i32> = BTreeMap::new();
    for _ in 0..400 {
        let (stream, name) = hold(front);
        *count.entry(name.clone()).or_default() += 1;
        order.push(name);
        held.push(stream);
    }
    let (least, most) = (count.values().min().unwrap(), count.values().max().unwrap());
    assert!(count.len() == 4 && most - least <= 8, "{count:?}");
    // And it is not round robin: neighbours repeat.
    assert!(
        order.windows(2).any(|pair| pair[0] == pair[1]),
        "this is round robin"
    );
}

/// Of two that are as busy the one drawn first is taken, so that the weights count when none is
/// busy: five sevenths are 200 of 280, give or take 38 (five standard deviations). nginx takes the
/// one drawn second, which reverses the weights: the heaviest gets a fifth there.
#[test]
fn random_two_follows_the_weights_without_load() {
    let servers: Vec<Server> = (1..=3).map(|n| Server::named(&format!("b{n}"))).collect();
    let backends: String = servers
        .iter()
        .zip([5, 1, 1])
        .map(|(server, weight)| format!("{{ address = \"{}\", weight = {weight} }}, ", server.addr))
        .collect();
    let (front, tembuku) = start("random_two", &format!("[{backends}]"));
    let mut heaviest = 0;
    for _ in 0..280 {
        heaviest += i32::from(hold(front).1 == "b1");
        tembuku.wait_metric("backend_active_connections", &[], |n| n == 0.0);
    }
    assert!((heaviest - 200).abs() <= 38, "{heaviest} of 280");
}

#[test]
fn a_network_of_256_shares_a_backend_with_ip_hash() {
    let mut rng = Rng::new(rng::seed("policies::ip_hash"));
    let servers: Vec<Server> = (1..=4).map(|n| Server::named(&format!("b{n}"))).collect();
    let (front, _tembuku) = start("ip_hash", &list(&servers));
    let mut used = BTreeSet::new();
    for _ in 0..40 {
        let (a, b) = (rng.below(256) as u8, rng.below(256) as u8);
        let name = |host: u8| {
            let source = IpAddr::from(Ipv4Addr::new(127, a, b, host));
            ask_from(source, front).unwrap()
        };
        let one = name(1);
        for host in [2, 77, 254] {
            assert_eq!(name(host), one, "127.{a}.{b}.{host}");
        }
        // The formula, written down once more: (h * 113 + byte) mod 6271 from 89, over three bytes.
        let hash = [127, u64::from(a), u64::from(b)]
            .iter()
            .fold(89, |h, byte| (h * 113 + byte) % 6271);
        assert_eq!(one, format!("b{}", hash % 4 + 1), "127.{a}.{b}.0/24");
        used.insert(one);
    }
    assert_eq!(used.len(), 4);
}

#[test]
fn every_policy_passes_a_dead_one_over_and_keeps_to_the_backups_at_last() {
    for balance in [
        "least_conn",
        "random_two",
        "first",
        "hash",
        "ip_hash",
        "consistent_hash",
    ] {
        let alive = Server::named("alive");
        let spare = Server::named("spare");
        let dead = ports::free_addr();
        let backends = format!(
            "[{{ address = \"{dead}\", weight = 5 }}, \"{}\", {{ address = \"{}\", \
             backup = true }}]",
            alive.addr, spare.addr
        );
        let (front, _tembuku) = start(balance, &backends);
        let ask = |n: u8| {
            let source = IpAddr::from(Ipv4Addr::new(127, 9, n, 1));
            ask_from(source, front).unwrap_or_else(|error| panic!("{balance}, client {n}: {error}"))
        };
        for n in 0..20 {
            assert_eq!(ask(n), "alive", "{balance}, client {n}");
        }
        drop(alive);
        for n in 0..20 {
            assert_eq!(ask(n), "spare", "{balance}, client {n}");
        }
    }
}

/// Weight 0 takes nothing new, whatever the policy.
#[test]
fn weight_zero_takes_nothing() {
    for balance in [
        "least_conn",
        "random_two",
        "first",
        "hash",
        "ip_hash",
        "consistent_hash",
    ] {
        let (empty, full) = (Server::named("empty"), Server::named("full"));
        let backends = format!(
            "[{{ address = \"{}\", weight = 0 }}, \"{}\"]",
            empty.addr, full.addr
        );
        let (front, _tembuku) = start(balance, &backends);
        for n in 0..20 {
            let source = Some(IpAddr::from(Ipv4Addr::new(127, 9, n, 1)));
            let mut stream = connect_with(front, source, 0, 0).unwrap();
            assert_eq!(read_line(&mut stream).unwrap(), "full", "{balance}");
        }
    }
}

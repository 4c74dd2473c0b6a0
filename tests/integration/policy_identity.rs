//! Each policy has the behaviour of its name.
//!
//! A test of a policy is worth something only if no other policy would pass it. So each case here
//! is run twice over: with its own policy, which must pass, and with every other instead, none
//! of which may. What it looks at comes through a listener, like everything.
//!
//! A new policy needs a function that looks at what distinguishes it, and a line in `cases!`.

use crate::harness::{
    net::{ask_from, connect_with, read_line},
    ports, secs,
    server::{Crowded, Server, named},
    tembuku::Tembuku,
    wait_until,
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    thread,
};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// A function that looks, by the name of the policy that must pass it. `Err` describes what was not
/// as it should be; anything else that goes wrong is a panic.
macro_rules! cases {
    ($($balance:ident),* $(,)?) => {
        const POLICIES: &[&str] = &[$(stringify!($balance)),*];
        $(#[test]
        fn $balance() {
            only(stringify!($balance), looks::$balance);
        })*
    };
}

cases![
    round_robin,
    least_conn,
    random_two,
    first,
    hash,
    ip_hash,
    consistent_hash,
    least_time,
    maglev,
];

type Verdict = Result<(), String>;

#[track_caller]
fn only(own: &str, look: fn(&str) -> Verdict) {
    if let Err(what) = look(own) {
        panic!("not {own}: {what}");
    }
    // Two at a time: most of the time is spent waiting.
    let others: Vec<&str> = POLICIES.iter().copied().filter(|p| *p != own).collect();
    for pair in others.chunks(2) {
        let looks: Vec<_> = pair
            .iter()
            .map(|&other| (other, thread::spawn(move || look(other))))
            .collect();
        for (other, look) in looks {
            match look.join().unwrap() {
                Err(what) => println!("{other} instead of {own}: {what}"),
                Ok(()) => panic!("{other} instead of {own} is not noticed"),
            }
        }
    }
}

fn check(holds: bool, what: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(what()) }
}

struct Setup {
    front: SocketAddr,
    tembuku: Tembuku,
}

/// `backends`: the address and keys of each.
fn start(balance: &str, backends: &[(SocketAddr, String)]) -> Setup {
    let front = ports::free_addr();
    let backends: String = backends
        .iter()
        .map(|(address, keys)| format!("{{ address = \"{address}\", {keys} }}, "))
        .collect();
    let tembuku = Tembuku::start(&format!(
        "[process]\nworkers = 2\n[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         connect_timeout = \"30s\"\n\
         [upstreams.u]\nbalance = \"{balance}\"\nbackends = [{backends}]\n"
    ));
    Setup { front, tembuku }
}

/// Servers `b1` …, one for each of the weights, and the backends for them.
fn weighted(weights: &[u32]) -> (Vec<Server>, Vec<(SocketAddr, String)>) {
    let servers: Vec<Server> = (1..=weights.len())
        .map(|n| Server::named(&format!("b{n}")))
        .collect();
    let backends = servers
        .iter()
        .zip(weights)
        .map(|(server, weight)| (server.addr, format!("weight = {weight}")))
        .collect();
    (servers, backends)
}

/// The n-th of some clients from far apart: no two share a network of 256.
fn client(n: usize) -> IpAddr {
    Ipv4Addr::new(127, (n * 37 % 256) as u8, (n * 101 % 256) as u8, 7).into()
}

/// A session that stays, and the name of its backend.
fn hold(front: SocketAddr, source: IpAddr) -> (TcpStream, String) {
    let mut stream = connect_with(front, Some(source), 0, 0).unwrap();
    let name = read_line(&mut stream).unwrap();
    (stream, name)
}

/// The name of the backend of each client.
fn served(front: SocketAddr, clients: impl IntoIterator<Item = IpAddr>) -> Vec<String> {
    let ask = |source| ask_from(source, front).unwrap();
    clients.into_iter().map(ask).collect()
}

fn count_names(names: &[String]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name.as_str()).or_default() += 1;
    }
    counts
}

/// How many sessions the fullest has more than the emptiest of `count` backends.
fn spread(names: &[String], count: usize) -> usize {
    let counts = count_names(names);
    let least = if counts.len() < count {
        0
    } else {
        counts.values().copied().min().unwrap_or(0)
    };
    counts.values().copied().max().unwrap_or(0) - least
}

mod looks {
    use super::*;

    /// Rotation by weight, whatever the sessions and clients: these stay, and are from many
    /// addresses.
    pub(super) fn round_robin(balance: &str) -> Verdict {
        let (_servers, backends) = weighted(&[5, 1, 1]);
        let setup = start(balance, &backends);
        let held: Vec<_> = (0..28).map(|n| hold(setup.front, client(n))).collect();
        let expected = ["b1", "b1", "b2", "b1", "b3", "b1", "b1"];
        for (n, (_, name)) in held.iter().enumerate() {
            check(name == expected[n % 7], || {
                format!("session {n} is on {name}")
            })?;
        }
        Ok(())
    }

    /// A backend whose sessions have ended gets every new one, until it has as many as the others
    /// again.
    pub(super) fn least_conn(balance: &str) -> Verdict {
        const EACH: usize = 20;
        let (servers, backends) = weighted(&[1, 1, 1]);
        let setup = start(balance, &backends);
        let mut held = Vec::new();
        for n in 0..3 * EACH {
            held.push(hold(setup.front, client(n)));
            let names: Vec<String> = held.iter().map(|(_, name)| name.clone()).collect();
            check(spread(&names, 3) <= 1, || {
                format!("{:?}", count_names(&names))
            })?;
        }
        held.retain(|(_, name)| name != "b2");
        let address = servers[1].addr.to_string();
        let labels = [("backend", address.as_str())];
        setup
            .tembuku
            .wait_metric("backend_active_connections", &labels, |n| n == 0.0);
        for n in 0..EACH {
            let (stream, name) = hold(setup.front, client(n));
            check(name == "b2", || format!("new session {n} is on {name}"))?;
            held.push((stream, name));
        }
        // That one of them was slow once does not matter.
        let quick = named(2);
        let (setup, _open) = slow_once(balance, &quick, 1)?;
        let held: Vec<_> = (0..9).map(|n| hold(setup.front, client(n))).collect();
        let names: Vec<String> = held.iter().map(|(_, name)| name.clone()).collect();
        check(spread(&names, 3) <= 1, || {
            format!("{:?}", count_names(&names))
        })
    }

    /// Chance, so that at times one is ahead of another by more than rotation or counting would let
    /// it; but the better of two: sessions of a single client that stay are spread within a few of
    /// each other, where by chance alone it would be some 20 of 100. That one of them was slow once
    /// does not matter.
    pub(super) fn random_two(balance: &str) -> Verdict {
        let quick = named(3);
        let (setup, _open) = slow_once(balance, &quick, 1)?;
        let held: Vec<_> = (0..400).map(|_| hold(setup.front, client(1))).collect();
        let names: Vec<String> = held.iter().map(|(_, name)| name.clone()).collect();
        check(spread(&names, 4) <= 8, || {
            format!("{:?}", count_names(&names))
        })?;
        let widest = (1..=names.len()).map(|n| spread(&names[..n], 4)).max();
        check(widest > Some(1), || "none is ever two ahead".to_owned())
    }

    /// One after the other is filled, whatever the clients.
    pub(super) fn first(balance: &str) -> Verdict {
        const CAPACITY: usize = 8;
        let (_servers, mut backends) = weighted(&[1, 5, 1]);
        for (_, keys) in &mut backends {
            *keys += &format!(", max_connections = {CAPACITY}");
        }
        let setup = start(balance, &backends);
        let held: Vec<_> = (0..3 * CAPACITY)
            .map(|n| hold(setup.front, client(n)))
            .collect();
        for (n, (_, name)) in held.iter().enumerate() {
            let wanted = format!("b{}", n / CAPACITY + 1);
            check(*name == wanted, || format!("session {n} is on {name}"))?;
        }
        Ok(())
    }

    /// CRC-32 of the address as text, by the weights in the order of the config.
    pub(super) fn hash(balance: &str) -> Verdict {
        let at = |source: IpAddr| {
            (u64::from(crc32fast::hash(source.to_string().as_bytes())) >> 16) & 0x7fff
        };
        by_formula(balance, at)
    }

    /// The first three bytes of the address, by the weights in the order of the config.
    pub(super) fn ip_hash(balance: &str) -> Verdict {
        let at = |source: IpAddr| {
            let IpAddr::V4(source) = source else {
                unreachable!("the clients have IPv4");
            };
            source.octets()[..3]
                .iter()
                .fold(89, |hash, &byte| (hash * 113 + u64::from(byte)) % 6271)
        };
        by_formula(balance, at)
    }

    /// Each client is served by the backend that the formula yields, at every visit.
    fn by_formula(balance: &str, at: impl Fn(IpAddr) -> u64) -> Verdict {
        const WEIGHTS: [u32; 4] = [1, 3, 2, 1];
        let (_servers, backends) = weighted(&WEIGHTS);
        let setup = start(balance, &backends);
        for n in (0..50).chain(0..50) {
            let source = client(n);
            let mut at = at(source) % 7;
            let here = WEIGHTS.iter().position(|&weight| {
                let here = at < u64::from(weight);
                at = at.saturating_sub(u64::from(weight));
                here
            });
            let wanted = format!("b{}", here.unwrap() + 1);
            let name = ask_from(source, setup.front).unwrap();
            check(name == wanted, || format!("{source} is on {name}"))?;
        }
        Ok(())
    }

    /// Each client is served by the backend that the ring yields, by the names of the backends
    /// alone: their order does not matter, and when one is removed no clients move but its own.
    pub(super) fn consistent_hash(balance: &str) -> Verdict {
        let (servers, mut backends) = weighted(&[1, 1, 2, 1]);
        let mut ring = Vec::new();
        for (n, (server, weight)) in servers.iter().zip([1, 1, 2, 1]).enumerate() {
            let mut last = [0; 4];
            for _ in 0..160 * weight {
                let port = server.addr.port().to_string();
                let text = [b"127.0.0.1\0", port.as_bytes(), &last].concat();
                let point = crc32fast::hash(&text);
                last = point.to_le_bytes();
                ring.push((point, format!("b{}", n + 1)));
            }
        }
        ring.sort();
        let clients = || (0..60).map(client);
        let on_ring = |source: IpAddr| {
            let hash = crc32fast::hash(source.to_string().as_bytes());
            let point = ring.iter().find(|(point, _)| *point >= hash);
            point.unwrap_or(&ring[0]).1.clone()
        };
        let setup = start(balance, &backends);
        let before = served(setup.front, clients());
        for (source, name) in clients().zip(&before) {
            check(*name == on_ring(source), || {
                format!("{source} is on {name}")
            })?;
        }
        backends.reverse();
        let reversed = served(start(balance, &backends).front, clients());
        check(reversed == before, || "the order matters".to_owned())?;
        backends.remove(2);
        let after = served(start(balance, &backends).front, clients());
        only_those_of_b2_move(&before, &after)?;
        Ok(())
    }

    /// A backend that took a second to connect once gets nothing more, however few sessions it has
    /// and whatever the clients.
    pub(super) fn least_time(balance: &str) -> Verdict {
        // Heavier, so that it is picked first, and would get half of the sessions after that.
        let quick = named(2);
        let (setup, _open) = slow_once(balance, &quick, 2)?;
        // One each, so that all of them have a time; and then many.
        served(setup.front, (0..2).map(client));
        let names = served(setup.front, (0..40).map(client));
        check(!names.contains(&"slow".to_owned()), || {
            format!("{:?}", count_names(&names))
        })
    }

    /// The quick ones with a weight of 1 each, and behind them `slow`, which has taken a second to
    /// let the first in.
    fn slow_once(
        balance: &str,
        quick: &[Server],
        weight: u32,
    ) -> Result<(Setup, TcpListener), String> {
        let crowded = Crowded::start();
        let quick = quick.iter().map(|server| (server.addr, 1));
        let backends: Vec<_> = quick
            .chain([(crowded.address(), weight)])
            .map(|(addr, weight)| (addr, format!("weight = {weight}, fail_timeout = \"1h\"")))
            .collect();
        let setup = start(balance, &backends);
        let front = setup.front;
        let mut asked = Vec::new();
        for n in 0..30 {
            asked.push(thread::spawn(move || ask_from(client(n), front).unwrap()));
            let came = || crowded.is_asked() || asked.iter().all(|a| a.is_finished());
            wait_until("the client is somewhere", secs(10), came);
            if crowded.is_asked() {
                break;
            }
        }
        check(crowded.is_asked(), || {
            "the one at the end gets nothing".to_owned()
        })?;
        let open = crowded.open("slow");
        asked.into_iter().for_each(|a| drop(a.join().unwrap()));
        setup.tembuku.wait_idle();
        Ok((setup, open))
    }

    fn only_those_of_b2_move(before: &[String], after: &[String]) -> Verdict {
        for (n, (before, after)) in before.iter().zip(after).enumerate() {
            let stays = if before == "b2" {
                after != "b2"
            } else {
                after == before
            };
            check(stays, || {
                format!("{} has moved from {before} to {after}", client(n))
            })?;
        }
        Ok(())
    }

    /// Each client is in the slot that the hash of its address names, in a table filled as the
    /// paper says; neither the order of the backends nor the loss of one of them moves
    /// clients of the others.
    pub(super) fn maglev(balance: &str) -> Verdict {
        const SLOTS: u64 = 65_537;
        let (servers, mut backends) = weighted(&[1, 1, 1, 1]);
        let mut order: Vec<(String, String)> = servers
            .iter()
            .zip(1..)
            .map(|(server, n)| (server.addr.to_string(), format!("b{n}")))
            .collect();
        order.sort();
        // Each backend's own order of all slots; in rotation each takes the first that is free.
        let mut table: BTreeMap<u64, &str> = BTreeMap::new();
        let mut wishes: Vec<_> = order
            .iter()
            .map(|(text, name)| {
                let offset = xxh3_64_with_seed(text.as_bytes(), 0) % SLOTS;
                let skip = xxh3_64_with_seed(text.as_bytes(), 1) % (SLOTS - 1) + 1;
                let slots = (0..SLOTS).map(move |n| (offset + n * skip) % SLOTS);
                (name, slots)
            })
            .collect();
        'filling: loop {
            for (name, slots) in &mut wishes {
                let Some(slot) = slots.find(|slot| !table.contains_key(slot)) else {
                    break 'filling;
                };
                table.insert(slot, name);
            }
        }
        let clients = || (0..60).map(client);
        let setup = start(balance, &backends);
        let before = served(setup.front, clients());
        for (source, name) in clients().zip(&before) {
            let slot = xxh3_64(source.to_string().as_bytes()) % SLOTS;
            check(name == table[&slot], || format!("{source} is on {name}"))?;
        }
        backends.reverse();
        let reversed = served(start(balance, &backends).front, clients());
        check(reversed == before, || "the order matters".to_owned())?;
        // A backend that is down keeps its slots, and its clients alone are spread over the others.
        backends[2].1 += ", down = true";
        let after = served(start(balance, &backends).front, clients());
        only_those_of_b2_move(&before, &after)?;
        let heirs: Vec<_> = before
            .iter()
            .zip(&after)
            .filter(|(before, _)| *before == "b2")
            .map(|(_, after)| after.clone())
            .collect();
        check(count_names(&heirs).len() > 1, || {
            format!("all of b2's went to {heirs:?}")
        })
    }
}

//! Round robin gives each backend exactly its share, whichever worker accepts: the workers share
//! one rotation.

use crate::harness::{
    net::{ask, ask_from},
    ports,
    rng::{self, Rng},
    server::Server,
    tembuku::Tembuku,
};
use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    thread,
};

struct Setup {
    front: SocketAddr,
    tembuku: Tembuku,
    _servers: Vec<Server>,
}

/// Weights 5, 1, 1 for `b1`, `b2`, `b3`.
fn start(workers: usize) -> Setup {
    let servers: Vec<Server> = (1..=3).map(|n| Server::named(&format!("b{n}"))).collect();
    let backends: String = servers
        .iter()
        .zip([5, 1, 1])
        .map(|(server, weight)| format!("{{ address = \"{}\", weight = {weight} }}, ", server.addr))
        .collect();
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[process]\nworkers = {workers}\n[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbalance = \"round_robin\"\nbackends = [{backends}]\n"
    ));
    assert_eq!(
        listening(front),
        workers,
        "each worker has a socket of its own"
    );
    Setup {
        front,
        tembuku,
        _servers: servers,
    }
}

/// How many sockets listen there.
fn listening(addr: SocketAddr) -> usize {
    let local = format!(":{:04X}", addr.port());
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    table
        .lines()
        .filter(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields.get(1).is_some_and(|at| at.ends_with(&local)) && fields.get(3) == Some(&"0A")
        })
        .count()
}

#[test]
fn seven_sessions_in_order() {
    for workers in [1, 4] {
        let setup = start(workers);
        for round in 1..=3 {
            let names: Vec<String> = (0..7).map(|_| ask(setup.front).unwrap()).collect();
            assert_eq!(
                names,
                ["b1", "b1", "b2", "b1", "b3", "b1", "b1"],
                "{workers} workers, round {round}"
            );
        }
    }
}

/// 7,000 short sessions of eight clients at once. No pick is lost or made twice, so that the shares
/// are exact, not only about right.
fn assert_exact_shares(ask: impl Fn(SocketAddr, &mut Rng) -> io::Result<String> + Sync) {
    const CLIENTS: usize = 8;
    const SESSIONS: usize = 7_000;
    let setup = start(4);
    let mut rng = Rng::new(rng::seed("turns::exact_shares"));
    let mut total: BTreeMap<String, usize> = BTreeMap::new();
    let tallies: Vec<BTreeMap<String, usize>> = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let (ask, mut rng, front) = (&ask, Rng::new(rng.next()), setup.front);
                scope.spawn(move || {
                    let mut counts = BTreeMap::new();
                    for n in 0..SESSIONS / CLIENTS {
                        let name = ask(front, &mut rng).unwrap_or_else(|e| panic!("{n}: {e}"));
                        *counts.entry(name).or_default() += 1;
                    }
                    counts
                })
            })
            .collect();
        clients.into_iter().map(|c| c.join().unwrap()).collect()
    });
    for (name, count) in tallies.into_iter().flatten() {
        *total.entry(name).or_default() += count;
    }
    let wanted = [("b1", 5_000), ("b2", 1_000), ("b3", 1_000)];
    assert_eq!(
        total,
        wanted.map(|(name, count)| (name.to_owned(), count)).into()
    );
    let errors = setup.tembuku.metric("backend_connect_errors_total", &[]);
    assert_eq!(errors, 0.0);
    setup.tembuku.wait_idle();
    let closed = setup
        .tembuku
        .metric("sessions_closed_total", &[("reason", "ok")]);
    assert_eq!(closed, SESSIONS as f64);
}

#[test]
fn seven_thousand_sessions_of_one_address() {
    assert_exact_shares(|front, _| ask(front));
}

/// The kernel spreads connections over the workers' sockets by addresses and ports.
#[test]
fn seven_thousand_sessions_of_many_addresses() {
    assert_exact_shares(|front, rng| {
        let [a, b, c] = [rng.below(256), rng.below(256), rng.range(1, 254)].map(|n| n as u8);
        ask_from(IpAddr::from(Ipv4Addr::new(127, a, b, c)), front)
    });
}

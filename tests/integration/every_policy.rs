//! What holds whatever the policy: limits of the backends are kept, and no session tries a backend
//! twice.

use crate::harness::{
    net::{ask_from, assert_ends_now, connect_with, read_all, read_line},
    ports,
    rng::{self, Rng},
    server::Server,
    tembuku::Tembuku,
};
use std::{
    collections::BTreeSet,
    io::Write,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

const POLICIES: [&str; 7] = [
    "round_robin",
    "least_conn",
    "random_two",
    "first",
    "hash",
    "ip_hash",
    "consistent_hash",
];

fn start(balance: &str, listener: &str, backends: &str) -> (SocketAddr, Tembuku) {
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[process]\nworkers = 4\n[log]\naccess = \"{{dir}}/access.log\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n{listener}\n\
         [upstreams.u]\nbalance = \"{balance}\"\nbackends = [{backends}]\n"
    ));
    (front, tembuku)
}

fn with(addrs: &[SocketAddr], keys: &str) -> String {
    addrs
        .iter()
        .map(|addr| format!("{{ address = \"{addr}\", {keys} }}, "))
        .collect()
}

/// The n-th of some clients from far apart.
fn client(n: usize) -> IpAddr {
    Ipv4Addr::new(127, (n * 37 % 256) as u8, (n * 101 % 256) as u8, 1).into()
}

/// A named backend that keeps count of the sessions on it. It has seen the end of one before its
/// peer has.
struct Counting {
    server: Server,
    most: Arc<AtomicUsize>,
}

impl Counting {
    fn start(name: String) -> Counting {
        let now = AtomicUsize::new(0);
        let most = Arc::new(AtomicUsize::new(0));
        let highest = most.clone();
        let server = Server::start(move |mut stream: TcpStream| {
            let here = now.fetch_add(1, Ordering::SeqCst) + 1;
            highest.fetch_max(here, Ordering::SeqCst);
            let _ = stream.write_all(format!("{name}\n").as_bytes());
            let _ = read_all(&mut stream);
            now.fetch_sub(1, Ordering::SeqCst);
        });
        Counting { server, most }
    }
}

/// Clients that come all at once and stay: as many as the limits allow are served, and each of the
/// others is rejected. When they have gone all of the capacity is free again.
#[test]
fn a_burst_fills_every_limit_and_no_more() {
    const CAPACITY: usize = 4;
    const CLIENTS: usize = 24;
    for balance in POLICIES {
        let servers: Vec<Counting> = (1..=3).map(|n| Counting::start(format!("b{n}"))).collect();
        let addrs: Vec<SocketAddr> = servers.iter().map(|s| s.server.addr).collect();
        let backends = with(&addrs, &format!("max_connections = {CAPACITY}"));
        let (front, tembuku) = start(balance, "", &backends);
        // From everywhere; then from one address, which a hash would send to one backend.
        for (burst, sources) in [(1.0, client as fn(usize) -> IpAddr), (2.0, |_| client(7))] {
            let together = Barrier::new(CLIENTS);
            let held: Vec<TcpStream> = thread::scope(|scope| {
                let clients: Vec<_> = (0..CLIENTS)
                    .map(|n| {
                        let together = &together;
                        scope.spawn(move || {
                            together.wait();
                            let mut stream = connect_with(front, Some(sources(n)), 0, 0).unwrap();
                            match read_line(&mut stream) {
                                Ok(_) => Some(stream),
                                Err(_) => {
                                    assert_ends_now(&mut stream);
                                    None
                                }
                            }
                        })
                    })
                    .collect();
                clients
                    .into_iter()
                    .filter_map(|client| client.join().unwrap())
                    .collect()
            });
            assert_eq!(held.len(), 3 * CAPACITY, "{balance}, burst {burst}");
            for (server, addr) in servers.iter().zip(&addrs) {
                assert_eq!(server.most.load(Ordering::SeqCst), CAPACITY, "{balance}");
                let labels = [("backend", &*addr.to_string())];
                let active = tembuku.metric("backend_active_connections", &labels);
                assert_eq!(active, CAPACITY as f64, "{balance}");
            }
            let rejected = burst * (CLIENTS - 3 * CAPACITY) as f64;
            let closed = [("reason", "backends_full")];
            tembuku.wait_metric("sessions_closed_total", &closed, |n| n == rejected);
            drop(held);
            tembuku.wait_idle();
        }
        let metrics = tembuku.metrics();
        assert_eq!(metrics.sum("backend_connect_errors_total", &[]), 0.0);
        let closed = |reason| metrics.sum("sessions_closed_total", &[("reason", reason)]);
        assert_eq!(
            closed("backends_full"),
            2.0 * (CLIENTS - 3 * CAPACITY) as f64
        );
        assert_eq!(closed("ok"), 2.0 * 3.0 * CAPACITY as f64, "{balance}");
    }
}

/// Permits are given back and taken at once by the next session, on all workers, and still no
/// backend ever has one session more than it may.
#[test]
fn a_limit_holds_while_sessions_come_and_go() {
    const CAPACITY: usize = 2;
    const CLIENTS: usize = 10;
    const SESSIONS: usize = 30;
    for balance in POLICIES {
        let servers: Vec<Counting> = (1..=3).map(|n| Counting::start(format!("b{n}"))).collect();
        let addrs: Vec<SocketAddr> = servers.iter().map(|s| s.server.addr).collect();
        let backends = with(&addrs, &format!("max_connections = {CAPACITY}"));
        let (front, tembuku) = start(balance, "", &backends);
        let refused: usize = thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|n| {
                    scope.spawn(move || {
                        let serve = |m| ask_from(client(n * SESSIONS + m), front).is_err();
                        (0..SESSIONS).filter(|&m| serve(m)).count()
                    })
                })
                .collect();
            clients.into_iter().map(|c| c.join().unwrap()).sum()
        });
        tembuku.wait_idle();
        for server in &servers {
            let most = server.most.load(Ordering::SeqCst);
            assert!(most <= CAPACITY, "{balance}: {most} sessions at once");
        }
        let metrics = tembuku.metrics();
        let closed = |reason| metrics.sum("sessions_closed_total", &[("reason", reason)]);
        let served = CLIENTS * SESSIONS - refused;
        assert_eq!(closed("backends_full"), refused as f64, "{balance}");
        assert_eq!(closed("ok"), served as f64, "{balance}");
        assert!(served >= SESSIONS, "{balance}: {served} served");
    }
}

/// The backends that each session tried, from the access log, once it has `count` records.
fn attempts(tembuku: &Tembuku, count: usize) -> Vec<(Vec<String>, serde_json::Value)> {
    let tried = |record: serde_json::Value| {
        let list = record["attempts"].as_array().unwrap();
        let names = list
            .iter()
            .map(|a| a["backend"].as_str().unwrap().to_owned());
        (names.collect(), record)
    };
    tembuku.access_log(count).into_iter().map(tried).collect()
}

/// Each session finds the only one that lives, whatever it meets before: with three others and
/// three retries there is no try to spare. `max_fails = 0`: none is ever left out, so that every
/// session meets them anew.
#[test]
fn no_session_tries_a_backend_twice() {
    const SESSIONS: usize = 40;
    let mut rng = Rng::new(rng::seed("every_policy::no_session_tries_a_backend_twice"));
    for balance in POLICIES {
        let alive = Server::named("alive");
        let mut addrs: Vec<SocketAddr> = (0..3).map(|_| ports::free_addr()).collect();
        // The last of all: `first` meets every other before.
        addrs.push(alive.addr);
        let keys = format!("weight = {}, max_fails = 0", rng.range(1, 4));
        let (front, tembuku) = start(balance, "retries = 3", &with(&addrs, &keys));
        for n in 0..SESSIONS {
            let name = ask_from(client(n), front);
            assert_eq!(name.unwrap_or_else(|e| panic!("{balance}: {e}")), "alive");
        }
        let mut longest = 0;
        for (tried, record) in attempts(&tembuku, SESSIONS) {
            let distinct: BTreeSet<&String> = tried.iter().collect();
            assert_eq!(distinct.len(), tried.len(), "{balance}: {record}");
            assert_eq!(*tried.last().unwrap(), alive.addr.to_string(), "{record}");
            assert_eq!(record["close_reason"], "ok", "{balance}: {record}");
            longest = longest.max(tried.len());
        }
        assert_eq!(longest, 4, "{balance}: no session met all three");
    }
}

/// With no backend alive a session ends when it has tried each once, or has no retry left.
#[test]
fn a_session_ends_when_all_were_tried() {
    const SESSIONS: usize = 15;
    for balance in POLICIES {
        for (backends, retries, wanted) in [(3, 3, 3), (3, 9, 3), (6, 3, 4), (2, 0, 1)] {
            let addrs: Vec<SocketAddr> = (0..backends).map(|_| ports::free_addr()).collect();
            // The last is a backup, which is one to try, too.
            let (primaries, backup) = addrs.split_at(backends - 1);
            let backends =
                with(primaries, "max_fails = 0") + &with(backup, "max_fails = 0, backup = true");
            let (front, tembuku) = start(balance, &format!("retries = {retries}"), &backends);
            for n in 0..SESSIONS {
                assert_ends_now(&mut connect_with(front, Some(client(n)), 0, 0).unwrap());
            }
            for (tried, record) in attempts(&tembuku, SESSIONS) {
                let distinct: BTreeSet<&String> = tried.iter().collect();
                assert_eq!(distinct.len(), tried.len(), "{balance}: {record}");
                assert_eq!(tried.len(), wanted, "{balance}: {record}");
                assert_eq!(record["close_reason"], "connect_failed", "{record}");
            }
        }
    }
}

/// Backends that fail stay out for later sessions: each is tried once in all, by whichever session
/// comes first.
#[test]
fn together_the_sessions_try_a_dead_backend_once() {
    const SESSIONS: usize = 15;
    for balance in POLICIES {
        let addrs: Vec<SocketAddr> = (0..5).map(|_| ports::free_addr()).collect();
        let keys = "fail_timeout = \"1h\"";
        let (front, tembuku) = start(balance, "retries = 1", &with(&addrs, keys));
        for n in 0..SESSIONS {
            assert_ends_now(&mut connect_with(front, Some(client(n)), 0, 0).unwrap());
        }
        let records = attempts(&tembuku, SESSIONS);
        // The workers write their records in any order.
        let mut lengths: Vec<usize> = records.iter().map(|(tried, _)| tried.len()).collect();
        lengths.sort_by(|a, b| b.cmp(a));
        assert_eq!(lengths[..4], [2, 2, 1, 0], "{balance}");
        let all: BTreeSet<&String> = records.iter().flat_map(|(tried, _)| tried).collect();
        assert_eq!(all.len(), 5, "{balance}");
        let reasons = |reason: &str| {
            let is = |(_, record): &&(_, serde_json::Value)| record["close_reason"] == reason;
            records.iter().filter(is).count()
        };
        assert_eq!(reasons("connect_failed"), 3, "{balance}");
        assert_eq!(reasons("no_backend"), SESSIONS - 3, "{balance}");
    }
}

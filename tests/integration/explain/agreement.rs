//! The same clients are asked for and sent: to a running tembuku, and to nginx.

use super::json;
use crate::harness::{
    net::{PATIENCE, connect_with, read_line, reset},
    ports,
    programs::Nginx,
    rng,
    server::Server,
    tembuku::Tembuku,
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    thread,
};

const CLIENTS: &str = "10000";
const THREADS: usize = 4;

/// The backend of each client, by address.
type Picks = BTreeMap<IpAddr, String>;

fn picks(answer: &Value) -> Picks {
    let clients = answer["clients"].as_array().unwrap().iter();
    let one = |client: &Value| {
        let ip: IpAddr = text(&client["client"]).parse().unwrap();
        (ip, text(&client["backend"]))
    };
    clients.map(one).collect()
}

/// The same after those have moved that move.
fn moved(answer: &Value) -> Picks {
    let mut picks = picks(answer);
    for one in answer["without"]["moves"].as_array().unwrap() {
        let ip: IpAddr = text(&one["client"]).parse().unwrap();
        let before = picks.insert(ip, text(&one["to"]));
        assert_eq!(before, Some(text(&one["from"])), "{one}");
    }
    picks
}

/// Clients whose key led to no backend, and whose pick depends on the clients before.
fn in_rotation(answer: &Value) -> BTreeSet<IpAddr> {
    let clients = answer["clients"].as_array().unwrap().iter();
    let is_in_rotation = |client: &&Value| client["reason"]["kind"] == "rotation_instead_of_key";
    clients
        .filter(is_in_rotation)
        .map(|client| text(&client["client"]).parse().unwrap())
        .collect()
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value}"))
        .to_owned()
}

/// The backend that answers each of these clients.
fn ask_all(front: SocketAddr, picks: &Picks) -> Picks {
    // No client can have these two as its own address.
    let odd = [[127, 0, 0, 0], [127, 255, 255, 255]].map(IpAddr::from);
    let clients: Vec<IpAddr> = picks
        .keys()
        .copied()
        .filter(|ip| !odd.contains(ip))
        .collect();
    thread::scope(|scope| {
        let chunks = clients.chunks(clients.len().div_ceil(THREADS));
        let threads: Vec<_> = chunks
            .map(|chunk| scope.spawn(|| chunk.iter().map(|&ip| (ip, ask(front, ip))).collect()))
            .collect();
        let each = threads
            .into_iter()
            .map(|thread| -> Vec<_> { thread.join().unwrap() });
        each.flatten().collect()
    })
}

fn ask(front: SocketAddr, source: IpAddr) -> String {
    let name = connect_with(front, Some(source), 0, 0).and_then(|mut stream| {
        let name = read_line(&mut stream);
        // So that tens of thousands of connections leave nothing behind.
        reset(stream);
        name
    });
    name.unwrap_or_else(|error| panic!("from {source}: {error}"))
}

/// Sends its own address to every client. On a port that no other test gets when it has gone.
fn speaking() -> Server {
    Server::on(&[ports::free_addr()], |mut stream| {
        use std::io::{Read as _, Write as _};
        let address = stream.local_addr().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(format!("{address}\n").as_bytes());
        let _ = stream.read(&mut [0]);
    })
}

#[track_caller]
fn assert_same(what: &str, wanted: &Picks, got: &Picks, but: &BTreeSet<IpAddr>) {
    let differ: Vec<_> = got
        .iter()
        .filter(|(ip, _)| !but.contains(ip))
        .filter(|(ip, name)| wanted[ip] != **name)
        .collect();
    let some = &differ[..differ.len().min(5)];
    assert!(
        differ.is_empty(),
        "{what}: {} differ, as {some:?}",
        differ.len()
    );
    assert!(got.len() >= wanted.len() - 2, "{what}: {}", got.len());
    assert!(but.len() < 100, "{what}: in rotation: {}", but.len());
}

fn agrees(balance: &str) {
    let seed = rng::seed(&format!("explain::agreement, {balance}")).to_string();
    let mut servers: Vec<Server> = (0..5).map(|_| speaking()).collect();
    let front = ports::free_addr();
    let names: Vec<String> = servers
        .iter()
        .map(|server| server.addr.to_string())
        .collect();
    let config = |lost: &str| {
        let backends: String = names
            .iter()
            .zip(["", "weight = 2", "backup = true", "weight = 3", ""])
            .map(|(name, more)| {
                let down = *name == lost;
                format!(
                    "{{ address = \"{name}\", down = {down}, fail_timeout = \"1h\", {more} }}, "
                )
            })
            .collect();
        format!(
            "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
             [upstreams.u]\nbalance = {balance}\nbackends = [{}]\n",
            backends.replace(", }", " }")
        )
    };
    let lost = names[1].as_str();
    let asked = |config: &str| {
        let clients = ["--clients", "127.0.0.0/8", "--sample", CLIENTS];
        json(
            config,
            &[&clients[..], &["--seed", &seed, "--without", lost]].concat(),
        )
    };

    let whole = asked(&config(""));
    let wanted = picks(&whole);
    let running = Tembuku::start(&config(""));
    let got = ask_all(front, &wanted);
    assert_same("all up", &wanted, &got, &in_rotation(&whole));
    let used: BTreeSet<&String> = got.values().collect();
    assert_eq!(used.len(), 4, "{used:?}");
    drop(running);

    let down = asked(&config(lost));
    let wanted = picks(&down);
    let running = Tembuku::start(&config(lost));
    let got = ask_all(front, &wanted);
    assert_same("one is down", &wanted, &got, &in_rotation(&down));
    drop(running);

    // It refuses from here on: the first client that is sent there finds out.
    assert_eq!(moved(&whole), wanted, "without it is as if it were down");
    drop(servers.remove(1));
    let running = Tembuku::start(&config(""));
    let got = ask_all(front, &wanted);
    assert_same("one is dead", &wanted, &got, &in_rotation(&down));
    let errors = running.metric("backend_connect_errors_total", &[("backend", lost)]);
    assert!(errors >= 1.0, "no session tried the dead one");
}

#[test]
fn with_the_plain_hash() {
    agrees("\"hash\"");
}

#[test]
fn with_ip_hash() {
    agrees("\"ip_hash\"");
}

#[test]
fn with_the_consistent_hash() {
    agrees("\"consistent_hash\"");
}

/// So loosely bounded that sessions which overlap, as those of several clients at once do, never
/// fill a backend.
#[test]
fn with_the_bounded_consistent_hash() {
    agrees("\"consistent_hash\"\nhash_balance_factor = 1000");
}

#[test]
fn with_maglev() {
    agrees("\"maglev\"");
}

#[test]
fn nginx_picks_the_same() {
    let seed = rng::seed("explain::nginx_picks_the_same").to_string();
    let servers: Vec<Server> = (0..4).map(|_| speaking()).collect();
    let weights = [1, 4, 2, 1];
    let front = ports::free_addr();
    let each = || servers.iter().map(|server| server.addr).zip(weights);
    let (nginx, ours): (String, String) = each()
        .map(|(address, weight)| {
            (
                format!("server {address} weight={weight}; "),
                format!("{{ address = \"{address}\", weight = {weight} }}, "),
            )
        })
        .unzip();
    let wanted = picks(&json(
        &format!(
            "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
             [upstreams.u]\nbalance = \"consistent_hash\"\nbackends = [{ours}]\n"
        ),
        &[
            "--clients",
            "127.0.0.0/8",
            "--sample",
            "300",
            "--seed",
            &seed,
        ],
    ));
    let _peer = Nginx::start(
        front,
        &format!(
            "stream {{ upstream u {{ hash $remote_addr consistent; {nginx} }}\n\
             server {{ listen {front}; proxy_pass u; }} }}"
        ),
    );
    assert_same("nginx", &wanted, &ask_all(front, &wanted), &BTreeSet::new());
}

//! `ip_hash` against the only nginx module that has it, http: both relay HTTP to the same backends.

use crate::harness::{
    net::{connect_with, read_all, read_line},
    pair::{Entry, Module, Pair, mixed_of, sources_v4, sources_v6, used},
    ports,
    programs::{self, Nginx, http_block},
    rng::{self, Rng},
    secs,
    server::Server,
    tembuku::Tembuku,
    wait_until,
};
use std::{
    collections::BTreeSet,
    io::{self, Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream},
    os::unix::net::UnixStream,
};

/// Answers a request with its name, and ends.
fn web_on(name: &str, addrs: &[SocketAddr]) -> Server {
    let answer = format!(
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{name}",
        name.len()
    );
    Server::on(addrs, move |mut stream: TcpStream| {
        while let Ok(line) = read_line(&mut stream) {
            if line.trim_end().is_empty() {
                let _ = stream.write_all(answer.as_bytes());
                return;
            }
        }
    })
}

pub(crate) fn web(name: &str) -> Server {
    web_on(name, &[SocketAddr::from(([127, 0, 0, 1], 0))])
}

/// One request; the body of the answer.
fn call(mut stream: impl Read + Write) -> io::Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
    let (bytes, end) = read_all(&mut stream);
    let text = String::from_utf8_lossy(&bytes);
    match text.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => Ok(body.to_owned()),
        _ => Err(io::Error::other(format!("{end:?} after {text:?}"))),
    }
}

pub(crate) fn ask_from(source: IpAddr, addr: SocketAddr) -> io::Result<String> {
    call(connect_with(addr, Some(source), 0, 0)?)
}

/// The formula maps some networks onto themselves, one in 6,271: their clients get the same number
/// at every try.
fn is_stuck(source: &IpAddr) -> bool {
    let bytes = match source {
        IpAddr::V4(ip) => ip.octets()[..3].to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let hash = |hash: u64, byte: &u8| (hash * 113 + u64::from(*byte)) % 6271;
    bytes.iter().fold(89, hash) == 89
}

/// Others than those, which are not kept on one backend when theirs cannot be used.
fn sources(rng: &mut Rng, count: usize) -> Vec<IpAddr> {
    let mut sources = sources_v4(rng, count);
    sources.retain(|source| !is_stuck(source));
    sources
}

fn start(entries: &[Entry], host: &str) -> Pair {
    let balance = "balance = \"ip_hash\"";
    Pair::start_in(Module::Http, entries, "ip_hash;", balance, host)
}

#[test]
fn two_hundred_sources_get_the_same_backend() {
    let mut rng = Rng::new(rng::seed("ip_hash_nginx::two_hundred_sources"));
    let (_servers, entries) = mixed_of(web_on);
    let pair = start(&entries, "127.0.0.1");
    let picked = pair.compare_by(ask_from, &sources(&mut rng, 200), 2);
    assert_eq!(
        used(&picked),
        BTreeSet::from(["plain", "heavy", "name", "literal"])
    );
}

#[test]
fn ipv6_clients() {
    if programs::place().is_none() {
        return programs::again_in_own_place("ip_hash_nginx::ipv6_clients");
    }
    let mut rng = Rng::new(rng::seed("ip_hash_nginx::ipv6_clients"));
    let (_servers, entries) = mixed_of(web_on);
    let pair = start(&entries, "[::1]");
    let picked = pair.compare_by(ask_from, &[Ipv6Addr::LOCALHOST.into()], 2);
    assert_eq!(picked.len(), 1);
    let pair = start(&entries, "[fd00:7e57::1]");
    let mut sources = sources_v6(&mut rng, 100);
    sources.retain(|source| !is_stuck(source));
    let picked = pair.compare_by(ask_from, &sources, 2);
    assert_eq!(
        used(&picked),
        BTreeSet::from(["plain", "heavy", "name", "literal"])
    );
}

/// After twenty tries at one that is `down` the pick is made in rotation, and the clients of such a
/// network are spread.
#[test]
fn a_client_whose_hash_stands_still_gets_round_robin() {
    let servers = [web("b1"), web("b2"), web("b3")];
    // 89 modulo 6 falls on the last.
    let entries = [
        Entry::new(servers[0].addr, 3),
        Entry::new(servers[1].addr, 1),
        Entry::new(servers[2].addr, 2).down(),
    ];
    let source = IpAddr::from([127, 75, 116, 9]);
    assert!(is_stuck(&source));
    let pair = start(&entries, "127.0.0.1");
    for addr in [pair.nginx, pair.tembuku] {
        let names: Vec<String> = (0..8).map(|_| ask_from(source, addr).unwrap()).collect();
        assert_eq!(names, ["b1", "b1", "b2", "b1", "b1", "b1", "b2", "b1"]);
    }
}

/// Clients on a unix socket have no address: nginx hashes three zeros for them.
#[test]
fn clients_on_a_unix_socket_share_one() {
    for weights in [[1, 1, 1, 1, 1], [1, 2, 3, 4, 5], [7, 1, 1, 7, 3]] {
        let servers: Vec<Server> = (1..=5).map(|n| web(&format!("b{n}"))).collect();
        let list = |format: &dyn Fn(SocketAddr, u64) -> String| -> String {
            let each = servers.iter().zip(weights);
            each.map(|(server, weight)| format(server.addr, weight))
                .collect()
        };
        let servers_of_nginx = list(&|addr, weight| format!("server {addr} weight={weight}; "));
        // Besides the socket, which is what is asked, an address that shows when nginx is ready.
        let ready = ports::free_addr();
        let nginx = Nginx::start(
            ready,
            &http_block(&format!(
                "upstream u {{ ip_hash; {servers_of_nginx} }}\n\
                 server {{ listen {ready}; listen unix:{{dir}}/l.sock; location / {{ proxy_pass \
                 http://u; }} }}"
            )),
        );
        let backends =
            list(&|addr, weight| format!("{{ address = \"{addr}\", weight = {weight} }}, "));
        let tembuku = Tembuku::start(&format!(
            "[listeners.l]\nbind = \"unix:{{dir}}/l.sock\"\nupstream = \"u\"\n\
             [upstreams.u]\nbalance = \"ip_hash\"\nbackends = [{backends}]\n"
        ));
        let ask = |socket| call(UnixStream::connect(socket).unwrap()).unwrap();
        for _ in 0..5 {
            assert_eq!(
                ask(tembuku.dir.file("l.sock")),
                ask(nginx.file("l.sock")),
                "weights {weights:?}"
            );
        }
    }
}

#[test]
fn a_dead_backend_has_the_same_heirs() {
    let mut rng = Rng::new(rng::seed("ip_hash_nginx::a_dead_backend"));
    let (mut servers, mut entries) = mixed_of(web_on);
    let sources = sources(&mut rng, 200);
    let before = start(&entries, "127.0.0.1").compare_by(ask_from, &sources, 1);
    // `plain` refuses from here on. Both find out by the first client that they send there.
    drop(servers.remove(0));
    let pair = start(&entries, "127.0.0.1");
    let after = pair.compare_by(ask_from, &sources, 2);
    assert_eq!(
        pair.program.metric("backend_connect_errors_total", &[]),
        1.0
    );
    assert_eq!(used(&after), BTreeSet::from(["heavy", "name", "literal"]));
    for source in &sources {
        assert!(
            before[source] == "plain" || before[source] == after[source],
            "{source} has moved though its backend lives"
        );
    }
    // One that is configured `down` is passed over as one that is dead: it keeps its share of the
    // weights.
    entries[0] = entries[0].clone().down();
    let configured_down = start(&entries, "127.0.0.1").compare_by(ask_from, &sources, 1);
    assert_eq!(configured_down, after);
}

/// Several dead and several `down` besides: the search of one client goes through many tries, and
/// at times past the twenty after which the pick is made in rotation. The first client that meets
/// a dead one finds it out for all later ones.
#[test]
fn any_number_of_backends_of_any_weight() {
    let mut rng = Rng::new(rng::seed("ip_hash_nginx::any_number"));
    for _ in 0..4 {
        let count = rng.range(2, 12);
        let (down, dead) = (rng.below(50), rng.below(60));
        let mut servers = Vec::new();
        let mut entries = Vec::new();
        for n in 0..count {
            let server = web(&format!("b{n}"));
            // The first always lives, and weighs little.
            let heaviest = if n == 0 { 1 } else { 9 };
            let mut entry = Entry::new(server.addr, rng.range(1, heaviest));
            entry.down = n > 0 && rng.chance(down);
            if n == 0 || !rng.chance(dead) {
                servers.push(server);
            }
            entries.push(entry);
        }
        let shown: Vec<String> = entries
            .iter()
            .map(|e| format!("{}{}", e.weight, if e.down { " down" } else { "" }))
            .collect();
        println!("  {shown:?}, {} alive", servers.len());
        let pair = start(&entries, "127.0.0.1");
        for source in sources_v4(&mut rng, 60) {
            let [nginx, tembuku] =
                [pair.nginx, pair.tembuku].map(|addr| ask_from(source, addr).unwrap());
            assert_eq!(tembuku, nginx, "from {source}");
        }
    }
}

/// A backend that dies under way and comes back: the picks are the same before, while it is dead,
/// and after.
#[test]
fn a_backend_that_comes_back_gets_its_clients_back() {
    let mut rng = Rng::new(rng::seed("ip_hash_nginx::a_backend_that_comes_back"));
    let fickle = ports::free_addr();
    let mut server = web_on("fickle", &[fickle]);
    let others = [web("b2"), web("b3")];
    let entries = [
        Entry::new(fickle, 2).failing_for("1s"),
        Entry::new(others[0].addr, 1),
        Entry::new(others[1].addr, 3),
    ];
    let sources = sources(&mut rng, 40);
    let pair = start(&entries, "127.0.0.1");
    let before = pair.compare_by(ask_from, &sources, 1);
    let of_fickle = *sources.iter().find(|s| before[*s] == "fickle").unwrap();
    drop(server);
    // However often it is tried anew meanwhile: a try that fails goes on to the same heir.
    let meanwhile = pair.compare_by(ask_from, &sources, 2);
    assert_eq!(used(&meanwhile), BTreeSet::from(["b2", "b3"]));
    server = web_on("fickle", &[fickle]);
    for addr in [pair.nginx, pair.tembuku] {
        wait_until("the backend is used again", secs(10), || {
            ask_from(of_fickle, addr).unwrap() == "fickle"
        });
    }
    assert_eq!(pair.compare_by(ask_from, &sources, 2), before);
    drop(server);
}

/// Full backends are passed over, too. The backends answer late, so that the sessions stay.
#[test]
fn full_backends_have_the_same_heirs() {
    let mut rng = Rng::new(rng::seed("ip_hash_nginx::full_backends"));
    let (_servers, mut entries) = mixed_of(patient_web_on);
    for entry in &mut entries {
        entry.max_connections = 4;
    }
    // The name may have two addresses, each with a limit of its own.
    entries.remove(2);
    let pair = start(&entries, "127.0.0.1");
    let mut held = Vec::new();
    for (n, source) in sources_v4(&mut rng, 12).into_iter().enumerate() {
        let [nginx, tembuku] = [pair.nginx, pair.tembuku].map(|addr| {
            let mut stream = connect_with(addr, Some(source), 0, 0).unwrap();
            stream
                .write_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
                .unwrap();
            let name = loop {
                let line = read_line(&mut stream).unwrap_or_else(|e| panic!("client {n}: {e}"));
                if let Some(name) = line.strip_prefix("X-Name: ") {
                    break name.trim_end().to_owned();
                }
            };
            held.push(stream);
            name
        });
        assert_eq!(tembuku, nginx, "client {n}, from {source}");
    }
}

/// Sends its name in the head of an answer whose body does not come until the client leaves.
fn patient_web_on(name: &str, addrs: &[SocketAddr]) -> Server {
    let head = format!(
        "HTTP/1.1 200 OK\r\nConnection: close\r\nX-Name: {name}\r\nContent-Length: 1\r\n\r\n"
    );
    Server::on(addrs, move |mut stream: TcpStream| {
        if stream.write_all(head.as_bytes()).is_ok() {
            let _ = read_all(&mut stream);
        }
    })
}

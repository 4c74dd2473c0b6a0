//! Three nodes as one: behind a router that shares clients out (ECMP, BIRD), and behind a tier that
//! passes packets on (direct routing). Each set-up is that of `packaging/`, with other addresses.
//! A program of its own, so that it does not run beside the other tests.
//!
//! - `TEMBUKU_TEST_CLIENTS` sets the number of clients on whose backends the nodes must agree.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test may end by a panic, and speaks through the test runner"
)]

#[allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "it is that of all tests of the program"
)]
#[path = "integration/harness/mod.rs"]
mod harness;

#[path = "fleet/direct_routing.rs"]
mod direct_routing;
#[path = "fleet/ecmp.rs"]
mod ecmp;

use crate::harness::{
    http, millis,
    net::{self, ask_from, connect_with},
    netns::{Netns, within},
    proc::{Proc, command},
    secs,
    server::Server,
    tembuku::{binary, cli},
    temp::TempDir,
    wait_until,
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

const PACKAGING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging");
const VIP: &str = "192.0.2.100";
/// How late other nodes may get the clients of one that is lost.
const MOVES: Duration = secs(1);
/// How late a node that is back may get clients; none of them waits for it.
const RETURNS: Duration = secs(3);
static RUNNING: Mutex<()> = Mutex::new(());

/// Until it is dropped no other of these tests runs: each has a dozen processes, and limits on the
/// time in which they must notice each other.
fn run_alone() -> MutexGuard<'static, ()> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where the backends are, in the namespace of the clients.
const BACKENDS: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 1);

/// Clients, each with an address of its own.
fn clients(count: u32) -> Vec<IpAddr> {
    let first = u32::from(Ipv4Addr::new(10, 80, 0, 1));
    let addresses = (0..count).map(|n| IpAddr::V4(Ipv4Addr::from(first + n)));
    addresses.collect()
}

/// A namespace with the addresses of clients and backends.
fn client_side() -> Netns {
    let netns = Netns::new();
    netns.sh(
        "ip route add local 10.80.0.0/16 dev lo; ip addr add 10.79.0.1/32 dev lo; \
              sysctl -qw net.ipv4.ip_local_port_range='10000 60000'",
    );
    netns
}

/// The packaged file with these replacements, each of which must be there.
#[track_caller]
fn packaged(file: &str, replacements: &[(&str, &str)]) -> String {
    let mut text = fs::read_to_string(format!("{PACKAGING}/{file}")).unwrap();
    for (from, to) in replacements {
        assert!(text.contains(from), "{from} in {file}");
        text = text.replace(from, to);
    }
    text
}

struct Node {
    netns: Netns,
    /// Its own address.
    address: String,
    tembuku: Proc,
    /// BIRD and the like.
    others: Vec<Proc>,
    dir: TempDir,
}

impl Node {
    /// The address of all is on its loopback interface.
    fn start(netns: Netns, address: &str, port: u16, servers: &[Server], more: &str) -> Node {
        netns.sh(&format!("ip addr add {VIP}/32 dev lo"));
        let dir = TempDir::new();
        let root = dir.path().to_str().unwrap().to_owned();
        let backends: Vec<String> = servers.iter().map(|s| format!("\"{}\"", s.addr)).collect();
        dir.write("backends", "");
        let config = format!(
            "[process]\nworkers = 2\ndrain_delay = \"2s\"\nnodes = 3\n\
             [admin]\nlisten = \"{address}:9900\"\nsocket = \"{root}/admin.sock\"\n\
             [log]\nformat = \"json\"\n\
             [listeners.l]\nbind = [\"{VIP}:{port}\", \"{address}:{port}\"]\nupstream = \"u\"\n\
             {more}\n\
             [upstreams.u]\nbalance = \"consistent_hash\"\nbackends = [{}]\n\
             [upstreams.u.discover]\nkind = \"file\"\npath = \"{root}/backends\"\n\
             interval = \"100ms\"\n\
             [upstreams.u.check]\nkind = \"tcp\"\ninterval = \"200ms\"\nfall = 1\nrise = 1\n",
            backends.join(", ")
        );
        dir.write("tembuku.toml", &config);
        let tembuku = start_tembuku(&netns, &dir);
        let address = address.to_owned();
        Node {
            netns,
            address,
            tembuku,
            others: Vec::new(),
            dir,
        }
    }

    fn restart(&mut self) {
        self.tembuku = start_tembuku(&self.netns, &self.dir);
    }

    /// A program beside it, in the folder of the node.
    fn run(&mut self, name: &str, line: &str, environment: &[(&str, PathBuf)]) {
        let mut command = command(&format!("nsenter --net={} {line}", self.netns.path()));
        command.envs(environment.iter().map(|(name, path)| (name, path)));
        self.others
            .push(Proc::start(name, self.dir.path(), command));
    }

    fn get(&self, path: &str) -> Value {
        let socket = self.dir.file("admin.sock");
        let response = http::request_unix(&socket, "GET", path, "").unwrap();
        serde_json::from_str(&response.body).unwrap()
    }

    fn hashes(&self) -> [Value; 2] {
        let upstream = &self.get("/api/v1/status")["upstreams"][0];
        ["ring_hash", "effective_hash"].map(|key| upstream[key].clone())
    }

    /// The clients that have sessions here.
    fn clients(&self) -> BTreeSet<SocketAddr> {
        let sessions = self.get("/api/v1/sessions");
        let sessions = sessions["sessions"].as_array().unwrap();
        let clients = sessions.iter().map(|s| s["client"].as_str().unwrap());
        clients.map(|client| client.parse().unwrap()).collect()
    }

    #[track_caller]
    fn order(&self, word: &str) {
        let socket = self.dir.file("admin.sock");
        let output = cli(&[word, "--node", "--socket", socket.to_str().unwrap()]);
        assert!(output.status.success(), "{output:?}");
    }
}

fn start_tembuku(netns: &Netns, dir: &TempDir) -> Proc {
    let mut command = command(&format!("nsenter --net={}", netns.path()));
    let config = dir.file("tembuku.toml");
    command.arg(binary()).args(["run", "-c"]).arg(config);
    let mut tembuku = Proc::start("tembuku", dir.path(), command);
    let socket = dir.file("admin.sock");
    tembuku.wait_ready(secs(20), || {
        http::request_unix(&socket, "GET", "/readyz", "").is_ok_and(|r| r.status == 200)
    });
    tembuku
}

/// Servers `b1`, `b2` … in the namespace of the clients.
fn start_server(netns: &Netns, n: u16, port: u16) -> Server {
    let addr = SocketAddr::new(BACKENDS.into(), port + n);
    let serve = move || Server::named_on(&format!("b{n}"), &[addr]);
    within(netns, serve).join().unwrap()
}

/// Which backend each of these clients gets there.
#[track_caller]
fn picks(netns: &Netns, clients: &[IpAddr], addr: SocketAddr) -> Vec<String> {
    // Many at once: each waits for others most of the time.
    let parts = clients.chunks(clients.len().div_ceil(64)).map(|part| {
        let part = part.to_vec();
        within(netns, move || {
            let ask = |client: &IpAddr| {
                ask_from(*client, addr).unwrap_or_else(|e| panic!("{client} {addr}: {e}"))
            };
            part.iter().map(ask).collect::<Vec<_>>()
        })
    });
    let parts: Vec<_> = parts.collect();
    parts
        .into_iter()
        .flat_map(|part| part.join().unwrap())
        .collect()
}

/// All nodes must see the same, and each client must get one backend from all of them. Which.
#[track_caller]
fn agreed(what: &str, netns: &Netns, nodes: &[Node], clients: &[IpAddr], port: u16) -> Vec<String> {
    wait_until("all nodes see the same", secs(20), || {
        nodes.iter().all(|node| node.hashes() == nodes[0].hashes())
    });
    let began = Instant::now();
    let each: Vec<Vec<String>> = nodes
        .iter()
        .map(|node| {
            picks(
                netns,
                clients,
                format!("{}:{port}", node.address).parse().unwrap(),
            )
        })
        .collect();
    let differ = clients
        .iter()
        .enumerate()
        .filter(|(i, _)| each.iter().any(|picks| picks[*i] != each[0][*i]));
    let differ = differ.count();
    println!(
        "{what}: {} clients, {differ} picks differ, {:?}",
        clients.len(),
        began.elapsed()
    );
    assert_eq!(differ, 0, "{what}");
    each.into_iter().next().unwrap()
}

/// The picks by `explain`.
fn explained(node: &Node, clients: &[IpAddr], names: &BTreeMap<String, String>) -> Vec<String> {
    let file = node.dir.file("tembuku.toml");
    let arguments = [
        "explain",
        "-c",
        file.to_str().unwrap(),
        "--json",
        "--clients",
        "10.80.0.0/17",
    ];
    let output = cli(&arguments);
    assert!(output.status.success(), "{output:?}");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let all = answer["clients"].as_array().unwrap().iter().map(|client| {
        let backend = client["backend"].as_str().unwrap();
        (
            client["client"]
                .as_str()
                .unwrap()
                .parse::<IpAddr>()
                .unwrap(),
            names[backend].clone(),
        )
    });
    let all: BTreeMap<IpAddr, String> = all.collect();
    clients.iter().map(|client| all[client].clone()).collect()
}

/// Sessions that are kept.
struct Held(Vec<(SocketAddr, TcpStream)>);

impl Held {
    fn open(netns: &Netns, clients: Vec<IpAddr>, addr: SocketAddr) -> Held {
        let open = move || {
            let opened = clients.into_iter().map(|client| {
                let mut stream = connect_with(addr, Some(client), 0, 0).unwrap();
                net::read_line(&mut stream).unwrap();
                (stream.local_addr().unwrap(), stream)
            });
            opened.collect()
        };
        Held(within(netns, open).join().unwrap())
    }

    /// The clients whose sessions do not answer any more; these are given up.
    fn lost(&mut self) -> BTreeSet<SocketAddr> {
        let mut lost = BTreeSet::new();
        self.0.retain_mut(|(client, stream)| {
            stream.set_read_timeout(Some(secs(2))).unwrap();
            let lives = net::echo(stream, "still there").is_ok();
            if !lives {
                lost.insert(*client);
            }
            lives
        });
        lost
    }

    fn clients(&self) -> BTreeSet<SocketAddr> {
        self.0.iter().map(|(client, _)| *client).collect()
    }
}

/// How long until this holds.
#[track_caller]
fn time_until(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < secs(20), "{what}");
        std::thread::sleep(millis(5));
    }
    let took = began.elapsed();
    println!("{what}: after {took:?}");
    took
}

/// Starts three servers, of whose names it makes a table.
fn start_servers(netns: &Netns, port: u16) -> (Vec<Server>, BTreeMap<String, String>) {
    let servers: Vec<Server> = (1..=3).map(|n| start_server(netns, n, port)).collect();
    let names = servers
        .iter()
        .zip(1..)
        .map(|(s, n)| (s.addr.to_string(), format!("b{n}")));
    let names = names.collect();
    (servers, names)
}

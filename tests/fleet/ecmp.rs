//! Behind a router that learns the address from each node that is ready, by BGP.

use super::{
    Held, MOVES, Node, VIP, agreed, client_side, clients, explained, packaged, picks, run_alone,
    start_server, start_servers, time_until,
};
use crate::harness::{
    load::Load,
    netns::{Netns, within},
    poll, ports,
    proc::{Proc, command},
    secs,
    server::Server,
    tembuku::binary,
    temp::TempDir,
    wait_until,
};
use rustix::process::Signal;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

struct Router {
    netns: Netns,
    _bird: Proc,
    _dir: TempDir,
}

impl Router {
    /// `is_pinning`: connections stay with the node that they began on.
    fn start(clients: &Netns, is_pinning: bool) -> Router {
        let netns = Netns::new();
        clients.connect_to(&netns, "out", "clients", "");
        clients.sh("ip addr add 10.77.0.2/24 dev out; ip route add default via 10.77.0.1");
        netns.sh("ip addr add 10.77.0.1/24 dev clients; \
             sysctl -qw net.ipv4.ip_forward=1 net.ipv4.fib_multipath_hash_policy=1; \
             ip route add 10.80.0.0/16 via 10.77.0.2; ip route add 10.79.0.1 via 10.77.0.2");
        let dir = TempDir::new();
        let conf = packaged(
            "bird/router.conf",
            &[("log syslog all", "log stderr all"), ("10.0.", "10.77.")],
        );
        let conf = dir.write("bird.conf", &conf);
        let line = format!(
            "nsenter --net={} bird -f -c {} -s {root}/bird.ctl -P {root}/bird.pid",
            netns.path(),
            conf.display(),
            root = dir.path().display()
        );
        let bird = Proc::start("bird", dir.path(), command(&line));
        if is_pinning {
            let rules = packaged("bird/router.nft", &[("10.0.", "10.77.")]);
            let rules = dir.write("router.nft", &rules);
            netns.sh(&format!("nft -f {}", rules.display()));
        }
        Router {
            netns,
            _bird: bird,
            _dir: dir,
        }
    }

    /// The numbers of the nodes that get clients.
    fn routed(&self) -> BTreeSet<usize> {
        let route = self.netns.sh(&format!("ip route show {VIP}"));
        let is_there = |n: &usize| route.contains(&format!("10.77.{n}.2 "));
        (1..=3).filter(is_there).collect()
    }

    fn add_node(&self, number: usize) -> Netns {
        let netns = Netns::new();
        let link = format!("node{number}");
        self.netns.connect_to(&netns, &link, "eth0", "");
        self.netns.sh(&format!(
            "ip addr add 10.77.{number}.1/24 dev {link}; \
             ip rule add fwmark {number} lookup 10{number}; \
             ip route add {VIP}/32 via 10.77.{number}.2 table 10{number}"
        ));
        netns.sh(&format!(
            "ip addr add 10.77.{number}.2/24 dev eth0; ip route add default via 10.77.{number}.1"
        ));
        netns
    }
}

/// BIRD and what tells it whether the node is ready.
fn announce(node: &mut Node, number: usize) {
    let own = format!("10.77.{number}.");
    let replacements = [
        ("log syslog all", "log stderr all"),
        ("10.0.1.", own.as_str()),
    ];
    let conf = packaged("bird/bird.conf", &replacements);
    node.dir.write("bird.conf", &conf);
    start_bird(node);
    start_script(node);
}

fn start_bird(node: &mut Node) {
    let root = node.dir.path().display();
    let line = format!("bird -f -c {root}/bird.conf -s {root}/bird.ctl -P {root}/bird.pid");
    node.run("bird", &line, &[]);
}

fn start_script(node: &mut Node) {
    let (socket, control) = (node.dir.file("admin.sock"), node.dir.file("bird.ctl"));
    let environment = [
        ("TEMBUKU_SOCKET", socket),
        ("BIRD_SOCKET", control),
        ("TEMBUKU", binary()),
    ];
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/bird/tembuku-bird");
    node.run("tembuku-bird", script, &environment);
}

struct Fleet {
    clients: Netns,
    router: Router,
    nodes: Vec<Node>,
    port: u16,
}

impl Fleet {
    fn vip(&self) -> SocketAddr {
        format!("{VIP}:{}", self.port).parse().unwrap()
    }

    #[track_caller]
    fn wait_routes(&self, wanted: &[usize]) -> Duration {
        let wanted = wanted.iter().copied().collect();
        let what = format!("routes to {wanted:?}");
        time_until(&what, || self.router.routed() == wanted)
    }

    fn load(&self) -> Load {
        Load::start(self.vip(), |run| within(&self.clients, run))
    }

    /// Sessions on all nodes, and their clients on each. A busy machine may lose a route for a
    /// moment.
    #[track_caller]
    fn hold_sessions(&self) -> (Held, Vec<BTreeSet<SocketAddr>>) {
        let open = || {
            let held = Held::open(&self.clients, clients(90), self.vip());
            let nodes = self.nodes.iter();
            let of_each = nodes.map(|node| &node.clients() & &held.clients());
            let by_node: Vec<BTreeSet<SocketAddr>> = of_each.collect();
            let is_shared = by_node.iter().all(|of| of.len() > 10);
            is_shared.then_some((held, by_node))
        };
        poll(secs(20), open).expect("sessions on all nodes")
    }
}

#[track_caller]
fn start(is_pinning: bool) -> (Fleet, Vec<Server>, BTreeMap<String, String>) {
    let port = ports::free_range(8);
    let clients = client_side();
    let router = Router::start(&clients, is_pinning);
    let (servers, names) = start_servers(&clients, port);
    let start = |n: usize| {
        let netns = router.add_node(n);
        let mut node = Node::start(netns, &format!("10.77.{n}.2"), port, &servers, "");
        announce(&mut node, n);
        node
    };
    let nodes = [1, 2, 3].map(start).into();
    let fleet = Fleet {
        clients,
        router,
        nodes,
        port,
    };
    fleet.wait_routes(&[1, 2, 3]);
    (fleet, servers, names)
}

/// `TEMBUKU_TEST_CLIENTS`: how many clients, each of which asks every node four times.
#[test]
fn nodes_agree_on_the_backend_of_every_client() {
    let _alone = run_alone();
    let (fleet, mut servers, mut names) = start(true);
    let (nodes, port) = (&fleet.nodes, fleet.port);
    let count = std::env::var("TEMBUKU_TEST_CLIENTS").map_or(2_000, |n| n.parse().unwrap());
    let clients = clients(count);
    let agree = |what: &str| agreed(what, &fleet.clients, nodes, &clients, port);
    let whole = agree("all backends are up");
    assert_eq!(whole, explained(&nodes[0], &clients, &names));
    assert_eq!(
        picks(&fleet.clients, &clients, fleet.vip()),
        whole,
        "through the router"
    );
    // The router has shared them out.
    for node in nodes {
        let accepted = &node.get("/api/v1/status")["listeners"][0]["accepted"];
        let through_router = accepted.as_u64().unwrap() - u64::from(count);
        let part = u64::from(count / 5)..u64::from(count / 2);
        assert!(part.contains(&through_router), "{through_router}");
    }

    drop(servers.remove(1));
    let is_up = |up: &str| {
        let metric = |n: &Node| {
            let backends = n.get("/api/v1/status")["upstreams"][0]["backends"].clone();
            backends[1]["state"] == up
        };
        wait_until(up, secs(20), || nodes.iter().all(metric));
    };
    is_up("down");
    let rest = agree("a backend is dead");
    for (before, after) in whole.iter().zip(&rest) {
        assert!(before == after || before == "b2", "{before} {after}");
    }
    servers.insert(1, start_server(&fleet.clients, 2, port));
    is_up("up");
    assert_eq!(agree("it is back"), whole);

    let found = start_server(&fleet.clients, 4, port);
    names.insert(found.addr.to_string(), "b4".to_owned());
    for node in nodes {
        node.dir.write("backends", &format!("{}\n", found.addr));
    }
    let has_found = |node: &Node| {
        let upstream = &node.get("/api/v1/status")["upstreams"][0];
        upstream["available"] == 4
    };
    wait_until("it is discovered", secs(20), || nodes.iter().all(has_found));
    let more = agree("one more is discovered");
    let moved = whole.iter().zip(&more).filter(|(a, b)| a != b).count();
    let part = clients.len() * 15 / 100..clients.len() * 35 / 100;
    assert!(part.contains(&moved), "{moved}");
}

/// What the loss of a node costs, with connections that stay with their nodes in the router, and
/// without.
fn lose_nodes(is_pinning: bool) {
    let (mut fleet, _servers, _) = start(is_pinning);
    println!("connections stay with their nodes: {is_pinning}");
    let load = fleet.load();
    load.take("nothing happens");
    let (mut held, by_node) = fleet.hold_sessions();

    // A process is killed: its sessions are lost, and no other.
    fleet.nodes[0].tembuku.kill();
    let took = fleet.wait_routes(&[2, 3]);
    assert!(took < MOVES, "{took:?}");
    load.take("a process is killed");
    let lost = held.lost();
    let others = lost.difference(&by_node[0]).count();
    println!(
        "killed: lost {} of {} on it, {others} on others",
        lost.len() - others,
        by_node[0].len()
    );
    assert!(by_node[0].is_subset(&lost));
    assert!(!is_pinning || others == 0, "{others}");

    fleet.nodes[0].restart();
    fleet.wait_routes(&[1, 2, 3]);
    load.take("it is back");
    let lost = held.lost();
    println!("back: lost {}", lost.len());
    assert!(!is_pinning || lost.is_empty(), "{lost:?}");

    // A node is drained: nothing is lost.
    let (mut held, by_node) = fleet.hold_sessions();
    load.take("more sessions");
    fleet.nodes[1].order("drain");
    fleet.wait_routes(&[1, 3]);
    let counts = load.take("drain --node");
    let lost = held.lost();
    println!(
        "drained: lost {} of {} on it, {} in all",
        lost.intersection(&by_node[1]).count(),
        by_node[1].len(),
        lost.len()
    );
    if is_pinning {
        assert!(lost.is_empty(), "{lost:?}");
        assert_eq!((counts.refused, counts.cut), (0, 0));
        // New ones come to the others.
        let accepted = || fleet.nodes[1].get("/api/v1/status")["listeners"][0]["accepted"].clone();
        let before = accepted();
        load.take("while it is drained");
        assert_eq!(accepted(), before);
    }
    fleet.nodes[1].order("ready");
    fleet.wait_routes(&[1, 2, 3]);
    load.take("ready --node");

    // A node that hears and says nothing any more.
    let (mut held, by_node) = fleet.hold_sessions();
    fleet.nodes[2].netns.sh("nft add table inet silent; \
         nft 'add chain inet silent in { type filter hook input priority 0; policy drop; }'; \
         nft 'add chain inet silent out { type filter hook output priority 0; policy drop; }'");
    let took = fleet.wait_routes(&[1, 2]);
    assert!(took < MOVES, "{took:?}");
    load.take("a node is isolated");
    held.0.retain(|(client, _)| !by_node[2].contains(client));
    let lost = held.lost();
    println!("isolated: lost {} on others", lost.len());
    assert!(!is_pinning || lost.is_empty(), "{lost:?}");
}

#[test]
fn a_lost_node_costs_its_own_sessions_and_a_drained_one_none() {
    let _alone = run_alone();
    lose_nodes(true);
}

/// The figures of docs/fleet.md for a router without memory.
#[test]
fn a_router_without_memory_still_moves_the_route_within_a_second() {
    let _alone = run_alone();
    lose_nodes(false);
}

/// A script that is killed and a BIRD that starts again leave no route to a node that is not ready.
#[test]
fn the_route_is_gone_until_the_node_is_found_ready() {
    let _alone = run_alone();
    let (mut fleet, _servers, _) = start(true);
    let node = &mut fleet.nodes[0];
    // As `systemctl stop`: the script withdraws the address itself.
    let mut script = node.others.pop().unwrap();
    script.signal(Signal::TERM);
    assert!(script.wait(secs(10)).is_some());
    fleet.wait_routes(&[2, 3]);
    start_script(&mut fleet.nodes[0]);
    fleet.wait_routes(&[1, 2, 3]);
    // BIRD begins with the address withdrawn, and is told again.
    fleet.nodes[0].others.remove(0).kill();
    fleet.wait_routes(&[2, 3]);
    start_bird(&mut fleet.nodes[0]);
    fleet.wait_routes(&[1, 2, 3]);
}

//! Behind a tier that passes packets on and is passed by answers: LVS-DR, here by nftables.

use super::{
    Held, MOVES, Node, RETURNS, VIP, agreed, client_side, clients, packaged, picks, run_alone,
    start_servers, start_tembuku, time_until,
};
use crate::harness::{
    load::Load,
    netns::{Netns, within},
    ports,
    proc::{Proc, command, run_ok},
    proxy::client_naming_server,
    secs,
    server::Server,
    temp::TempDir,
};
use rustix::process::Signal;
use std::{collections::BTreeSet, net::SocketAddr, process::Command};

struct Director {
    netns: Netns,
    _script: Proc,
    _dir: TempDir,
}

/// A segment with the director and the nodes; the clients come from its router, which is theirs.
fn segment() -> Netns {
    let netns = client_side();
    // With an address of its own: by default it is that of a port, and changes when another joins.
    netns.sh(
        "ip link add hub address 02:00:00:00:00:fe type bridge forward_delay 0; \
         ip link set hub up; ip addr add 10.78.0.254/24 dev hub",
    );
    netns
}

fn join(segment: &Netns, name: &str, setup: &str) -> Netns {
    let netns = Netns::new();
    segment.connect_to(&netns, name, "eth0", "");
    segment.sh(&format!("ip link set {name} master hub"));
    netns.sh(setup);
    netns
}

impl Director {
    fn start(segment: &Netns, port: u16) -> Director {
        let netns = join(segment, "tier", "ip addr add 10.78.0.10/24 dev eth0");
        segment.sh(&format!("ip route add {VIP}/32 via 10.78.0.10"));
        let dir = TempDir::new();
        // Also the port of the sessions that are passed on.
        let ports = format!("dport {{ {port}, {} }}", port + 7);
        let rules = packaged("lvs/director.nft", &[("dport 443", &ports)]);
        let rules = dir.write("director.nft", &rules);
        netns.sh(&format!("nft -f {}", rules.display()));
        let script = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/packaging/lvs/tembuku-director"
        );
        let mut command = command(&format!("nsenter --net={} {script}", netns.path()));
        let nodes = [1, 2, 3].map(|n| format!("10.78.0.1{n}:9900"));
        command.env("NODES", nodes.join(" "));
        let script = Proc::start("director", dir.path(), command);
        Director {
            netns,
            _script: script,
            _dir: dir,
        }
    }

    /// The numbers of the nodes that get new connections.
    fn used(&self) -> BTreeSet<usize> {
        let chain = self.netns.sh("nft list chain netdev nodes new");
        let is_there = |n: &usize| chain.contains(&format!("goto node{n}"));
        (1..=3).filter(is_there).collect()
    }

    #[track_caller]
    fn wait_used(&self, wanted: &[usize]) {
        let wanted: BTreeSet<usize> = wanted.iter().copied().collect();
        let limit = match self.used().is_subset(&wanted) {
            true => RETURNS,
            false => MOVES,
        };
        let took = time_until(&format!("new ones go to {wanted:?}"), || {
            self.used() == wanted
        });
        assert!(took < limit, "{took:?}");
    }
}

fn start_node(segment: &Netns, n: usize, port: u16, servers: &[Server]) -> Node {
    let setup = format!(
        "ip link set eth0 address 02:00:00:00:00:0{n}; ip addr add 10.78.0.1{n}/24 dev eth0; \
         ip route add default via 10.78.0.254; sh {}/lvs/node.sh; ip addr del {VIP}/32 dev lo",
        super::PACKAGING
    );
    let netns = join(segment, &format!("to{n}"), &setup);
    // To servers that get the address of the client, through another tembuku.
    let more = format!(
        "[listeners.told]\nbind = \"{VIP}:{}\"\nupstream = \"told\"\n\
         [upstreams.told]\nbackends = [\"10.79.0.1:{}\"]\nsend_proxy = \"v2\"\n",
        port + 7,
        port + 6
    );
    Node::start(netns, &format!("10.78.0.1{n}"), port, servers, &more)
}

/// The second tier, with a server behind it that tells which client it was told.
fn second_tier(segment: &Netns, port: u16) -> (Server, Proc, TempDir) {
    let named = within(segment, client_naming_server).join().unwrap();
    let dir = TempDir::new();
    let root = dir.path().to_str().unwrap().to_owned();
    dir.write(
        "tembuku.toml",
        &format!(
            "[admin]\nsocket = \"{root}/admin.sock\"\n\
             [listeners.second]\nbind = \"10.79.0.1:{}\"\nupstream = \"told\"\n\
             accept_proxy = {{ trust = [\"10.78.0.0/24\"] }}\n\
             [upstreams.told]\nbackends = [\"{}\"]\nsend_proxy = \"v2\"\n",
            port + 6,
            named.addr
        ),
    );
    let tembuku = start_tembuku(segment, &dir);
    (named, tembuku, dir)
}

#[test]
fn three_nodes_serve_clients_whose_packets_are_passed_on() {
    let _alone = run_alone();
    let port = ports::free_range(8);
    let segment = segment();
    let (servers, _) = start_servers(&segment, port);
    let _second = second_tier(&segment, port);
    let mut nodes = [1, 2, 3].map(|n| start_node(&segment, n, port, &servers));
    let director = Director::start(&segment, port);
    let vip: SocketAddr = format!("{VIP}:{port}").parse().unwrap();
    let through = SocketAddr::new(vip.ip(), port + 7);
    let all = clients(1_000);
    director.wait_used(&[1, 2, 3]);

    let picked = agreed("direct routing", &segment, &nodes, &all, port);
    assert_eq!(picks(&segment, &all, vip), picked);
    // The client's own address comes through the tier, and through two of PROXY headers.
    let named = picks(&segment, &all[..100], through);
    for (client, named) in all.iter().zip(&named) {
        assert!(named.contains(&client.to_string()), "{client}: {named}");
    }

    let load = Load::start(vip, |run| within(&segment, run));
    let sessions = || Held::open(&segment, clients(60), vip);
    let on =
        |node: &Node, held: &Held| -> BTreeSet<SocketAddr> { &node.clients() & &held.clients() };
    let mut held = sessions();
    load.take("nothing happens");

    // Drained: nothing new, and its sessions go on.
    let of_one = on(&nodes[0], &held);
    assert!(of_one.len() > 5, "{of_one:?}");
    nodes[0].order("drain");
    director.wait_used(&[2, 3]);
    let counts = load.take("drain --node");
    assert_eq!((counts.refused, counts.cut), (0, 0));
    assert!(held.lost().is_empty());
    assert_eq!(on(&nodes[0], &held), of_one);
    nodes[0].order("ready");
    director.wait_used(&[1, 2, 3]);

    // Killed: its own sessions are lost.
    let of_two = on(&nodes[1], &held);
    nodes[1].tembuku.kill();
    director.wait_used(&[1, 3]);
    load.take("kill");
    assert_eq!(held.lost(), of_two);
    println!("killed: lost {}", of_two.len());
    nodes[1].restart();
    director.wait_used(&[1, 2, 3]);
    let counts = load.take("it is back");
    assert_eq!(counts.cut, 0);
    assert!(held.lost().is_empty());

    // Stopped while clients come: none is refused.
    nodes[2].tembuku.signal(Signal::TERM);
    director.wait_used(&[1, 2]);
    assert_eq!(load.take("stop").refused, 0);
}

/// This kernel may have no IPVS: the configuration for it is read, at least.
#[test]
fn keepalived_takes_the_configuration_for_ipvs() {
    let _alone = run_alone();
    let mut check = Command::new("keepalived");
    check.args(["--config-test", "--use-file"]);
    check.arg(format!("{}/lvs/keepalived.conf", super::PACKAGING));
    run_ok(secs(20), check);
}

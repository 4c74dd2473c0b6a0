//! Errors of sending, and what routers and the local kernel report: which of them are the
//! backend's, and what becomes of its flows. Each test has a network of its own.

use crate::harness::{
    millis,
    net::PATIENCE,
    netns::{Netns, sh},
    poll, ports,
    programs::{again_in_own_place, place},
    secs,
    tembuku::Tembuku,
    udp::{UdpServer, ask, ask_until_answered, client, config, receive_if_any, receive_text},
    wait_until,
};
use std::net::{IpAddr, SocketAddr, UdpSocket};

fn at(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse::<IpAddr>().unwrap(), ports::free_port())
}

/// `first`: every flow goes to the first backend as long as it can be used.
#[track_caller]
fn serve(listener: &str, upstream: &str, backends: &[SocketAddr]) -> (SocketAddr, Tembuku) {
    let front = ports::free_addr();
    let upstream = format!("balance = \"first\"\n{upstream}");
    let config = config(front, listener, &upstream, backends);
    (front, Tembuku::start(&config))
}

fn errors(tembuku: &Tembuku, reason: &str) -> f64 {
    tembuku.metric("backend_connect_errors_total", &[("reason", reason)])
}

/// One way in which this host refuses to send to an address.
struct Block {
    reason: &'static str,
    /// `{ip}` stands for the address, `{family}` for its option of `ip`.
    begin: &'static str,
    end: &'static str,
}

const BLOCKS: [Block; 4] = [
    Block {
        reason: "prohibited",
        begin: "nft add table inet t; \
                nft 'add chain inet t o { type filter hook output priority 0; }'; \
                nft add rule inet t o {nft} daddr {ip} drop",
        end: "nft delete table inet t",
    },
    Block {
        reason: "prohibited",
        begin: "ip {family} route add prohibit {ip} table local",
        end: "ip {family} route del prohibit {ip} table local",
    },
    Block {
        reason: "unreachable",
        begin: "ip {family} route add blackhole {ip} table local",
        end: "ip {family} route del blackhole {ip} table local",
    },
    Block {
        reason: "unreachable",
        begin: "ip {family} route add unreachable {ip} table local",
        end: "ip {family} route del unreachable {ip} table local",
    },
];

/// All of 10.9.0.0/24 is this host, and so is fd00:7e57::/64. The source of what is sent is an
/// address that stays. Without a rule of its own the kernel looks into one table after the other,
/// and forgets why the first has refused.
fn add_addresses() {
    sh(
        "ip addr add 10.9.0.200/32 dev lo; ip route add local 10.9.0.0/24 dev lo src 10.9.0.200; \
        ip rule add to 10.99.0.0/16 lookup main",
    );
}

impl Block {
    fn run(&self, script: &str, ip: IpAddr) {
        let (family, nft) = match ip {
            IpAddr::V4(_) => ("-4", "ip"),
            IpAddr::V6(_) => ("-6", "ip6"),
        };
        let script = script.replace("{ip}", &ip.to_string());
        sh(&script.replace("{family}", family).replace("{nft}", nft));
    }
}

/// Flows move to another backend with the datagram that is refused, new ones avoid this one, and
/// nothing is lost.
#[test]
fn a_backend_that_this_host_refuses_to_send_to_is_avoided() {
    if place().is_none() {
        return again_in_own_place(
            "udp_errors::a_backend_that_this_host_refuses_to_send_to_is_avoided",
        );
    }
    add_addresses();
    for (one, two) in [
        ("10.9.0.1", "10.9.0.2"),
        ("fd00:7e57::1", "fd00:7e57::2"),
        ("::ffff:10.9.0.1", "::ffff:10.9.0.2"),
    ] {
        for (n, block) in BLOCKS.iter().enumerate() {
            let blocked = at(one);
            // A mapped address is reached by IPv4.
            let ip = blocked.ip().to_canonical();
            let servers = [
                UdpServer::named_on("b1", SocketAddr::new(ip, blocked.port())),
                UdpServer::named_on("b2", at(two)),
            ];
            let backends = format!(
                "[{{ address = \"{blocked}\", fail_timeout = \"1s\" }}, \"{}\"]",
                servers[1].addr
            );
            let front = ports::free_addr();
            let config = config(front, "", "balance = \"first\"", &[]);
            let config = config.replace("backends = []", &format!("backends = {backends}"));
            let tembuku = Tembuku::start(&config);
            let old = client(front);
            assert_eq!(ask(&old, "before"), "b1 before");
            block.run(block.begin, ip);
            assert_eq!(ask(&old, "after"), "b2 after", "{one}, block {n}");
            for _ in 0..5 {
                assert_eq!(ask(&client(front), "new"), "b2 new", "{one}, block {n}");
            }
            assert!(errors(&tembuku, block.reason) >= 1.0, "{one}, block {n}");
            let dropped = tembuku.metric("listener_dropped_datagrams_total", &[]);
            assert_eq!(dropped, 0.0, "{one}, block {n}");
            let log = tembuku.proc.stderr();
            assert!(
                log.lines().any(|line| line.contains("\"WARN\"")
                    && line.contains("backend cannot be reached")
                    && line.contains(block.reason)),
                "{log}"
            );
            block.run(block.end, ip);
            wait_until("it is used again", PATIENCE, || {
                ask(&client(front), "new") == "b1 new"
            });
        }
    }
}

/// The same where each datagram is balanced on its own.
#[test]
fn single_datagrams_go_to_another_one_too() {
    if place().is_none() {
        return again_in_own_place("udp_errors::single_datagrams_go_to_another_one_too");
    }
    add_addresses();
    let servers = [
        UdpServer::named_on("b1", at("10.9.0.1")),
        UdpServer::named_on("b2", at("10.9.0.2")),
    ];
    let backends = [servers[0].addr, servers[1].addr];
    let (front, tembuku) = serve("per_packet = true", "", &backends);
    let client = client(front);
    assert_eq!(ask(&client, "before"), "b1 before");
    BLOCKS[0].run(BLOCKS[0].begin, servers[0].addr.ip());
    for n in 0..5 {
        assert_eq!(ask(&client, &n.to_string()), format!("b2 {n}"));
    }
    assert_eq!(errors(&tembuku, "prohibited"), 1.0);
    assert_eq!(tembuku.metric("listener_dropped_datagrams_total", &[]), 0.0);
}

/// Where there is no other backend each datagram is tried once, and the first that may pass does.
#[test]
fn the_only_backend_is_tried_with_each_datagram() {
    if place().is_none() {
        return again_in_own_place("udp_errors::the_only_backend_is_tried_with_each_datagram");
    }
    add_addresses();
    for on_down in ["move", "keep"] {
        for block in &BLOCKS {
            let server = UdpServer::named_on("b1", at("10.9.0.1"));
            let upstream = format!("on_down = \"{on_down}\"");
            let (front, tembuku) = serve("", &upstream, &[server.addr]);
            let client = client(front);
            assert_eq!(ask(&client, "before"), "b1 before");
            block.run(block.begin, server.addr.ip());
            for n in 1..=3 {
                client.send(b"lost").unwrap();
                tembuku.wait_dropped("no_backend", f64::from(n));
            }
            assert_eq!(errors(&tembuku, block.reason), 3.0, "{on_down}");
            block.run(block.end, server.addr.ip());
            assert_eq!(ask(&client, "after"), "b1 after", "{on_down}");
            assert_eq!(server.peers().len(), 1, "the same flow");
        }
    }
}

/// A client to which nothing may be sent is no trouble for the others.
#[test]
fn a_client_that_cannot_be_reached_disturbs_no_other() {
    if place().is_none() {
        return again_in_own_place("udp_errors::a_client_that_cannot_be_reached_disturbs_no_other");
    }
    let server = UdpServer::named_on("b1", at("127.0.0.1"));
    let (front, tembuku) = serve("", "", &[server.addr]);
    let clients: Vec<UdpSocket> = (0..4).map(|_| client(front)).collect();
    for client in &clients {
        assert_eq!(ask(client, "before"), "b1 before");
    }
    let port = clients[1].local_addr().unwrap().port();
    sh("nft add table inet t; nft 'add chain inet t o { type filter hook output priority 0; }'");
    sh(&format!("nft add rule inet t o udp dport {port} drop"));
    // All answers come in one batch.
    server.hold();
    for client in &clients {
        client.send(b"held").unwrap();
    }
    server.wait_held(4);
    server.release();
    for n in [0, 2, 3] {
        assert_eq!(receive_text(&clients[n]), "b1 held");
    }
    tembuku.wait_dropped("send_failed", 1.0);
    assert_eq!(receive_if_any(&clients[1]), None);
    assert_eq!(errors(&tembuku, "prohibited"), 0.0);
    sh("nft delete table inet t");
    assert_eq!(ask(&clients[1], "after"), "b1 after");
}

/// A router one cable away, with addresses of its own behind it.
fn router() -> Netns {
    let router = Netns::new();
    router.connect("wire0", "wire1", "");
    sh(
        "ip addr add 10.1.0.1/24 dev wire0; ip -6 addr add fd01::1/64 dev wire0 nodad; \
        ip route add 10.5.0.0/16 via 10.1.0.2; ip -6 route add fd05::/64 via fd01::2",
    );
    router.sh(
        "ip addr add 10.1.0.2/24 dev wire1; ip -6 addr add fd01::2/64 dev wire1 nodad; \
         ip addr add 10.5.0.1/32 dev lo; ip -6 addr add fd05::1/128 dev lo nodad; \
         cd /proc/sys/net; echo 1 > ipv4/ip_forward; echo 1 > ipv6/conf/all/forwarding; \
         echo 0 > ipv4/icmp_ratelimit; echo 0 > ipv6/icmp/ratelimit",
    );
    router
}

/// Reports of a router, and of this host when its neighbour does not answer: errors that are not
/// final by the rules of ICMP, and so are no errors of a socket that does not ask for them.
#[test]
fn icmp_from_routers_and_neighbours_is_processed() {
    if place().is_none() {
        return again_in_own_place("udp_errors::icmp_from_routers_and_neighbours_is_processed");
    }
    let router = router();
    let reject = |ip, kind| {
        format!(
            "nft add table inet t; nft 'add chain inet t i {{ type filter hook input priority 0; \
             }}'; nft add rule inet t i {ip} reject with {kind}"
        )
    };
    let host = "ip addr del 10.5.0.1/32 dev lo; ip route add unreachable 10.5.0.1/32";
    let host_back = "ip route del unreachable 10.5.0.1/32; ip addr add 10.5.0.1/32 dev lo";
    let net = "ip -6 addr del fd05::1/128 dev lo; ip -6 route add unreachable fd05::1/128";
    let net_back =
        "ip -6 route del unreachable fd05::1/128; ip -6 addr add fd05::1/128 dev lo nodad";
    let admin = reject("ip daddr 10.5.0.1", "icmp type admin-prohibited");
    let admin6 = reject("ip6 daddr fd05::1", "icmpv6 type admin-prohibited");
    let rules = "nft delete table inet t";
    for (ip, reason, breaks, heals) in [
        ("10.5.0.1", "unreachable", host, host_back),
        ("fd05::1", "unreachable", net, net_back),
        ("10.5.0.1", "unreachable", &admin, rules),
        ("fd05::1", "prohibited", &admin6, rules),
        // No host has these addresses.
        ("10.1.0.77", "unreachable", "", ""),
        ("fd01::77", "unreachable", "", ""),
    ] {
        let far = at(ip);
        let _far = (!breaks.is_empty()).then(|| UdpServer::named_with("b1", router.bind(far)));
        let near = UdpServer::named_on("b2", at("127.0.0.1"));
        let (front, tembuku) = serve("", "", &[far, near.addr]);
        let old = client(front);
        if !breaks.is_empty() {
            assert_eq!(ask(&old, "before"), "b1 before", "{ip}");
            router.sh(breaks);
        }
        assert_eq!(
            ask_until_answered(&old, "after"),
            "b2 after",
            "{ip}, {reason}"
        );
        assert_eq!(ask(&client(front), "new"), "b2 new", "{ip}, {reason}");
        assert!(errors(&tembuku, reason) >= 1.0, "{ip}, {reason}");
        if !heals.is_empty() {
            router.sh(heals);
        }
    }
}

/// Reports stay in a queue of the socket, and the event loop gets events until it is empty.
#[test]
fn reports_are_taken_from_the_queue() {
    if place().is_none() {
        return again_in_own_place("udp_errors::reports_are_taken_from_the_queue");
    }
    let router = router();
    let far = at("10.5.0.1");
    let server = UdpServer::named_with("b1", router.bind(far));
    let (front, tembuku) = serve("", "on_down = \"keep\"", &[far]);
    let client = client(front);
    assert_eq!(ask(&client, "before"), "b1 before");
    router.sh("ip addr del 10.5.0.1/32 dev lo; ip route add unreachable 10.5.0.1/32");
    for n in 1..=200 {
        client.send(b"lost").unwrap();
        let received = |have| have == f64::from(n) + 1.0;
        tembuku.wait_metric("listener_received_datagrams_total", &[], received);
    }
    let labels = [("reason", "unreachable")];
    tembuku.wait_metric("backend_connect_errors_total", &labels, |n| n >= 1.0);
    // A reactor that loops without waiting is never quiet.
    let mut last = tembuku.proc.cpu();
    let quiet = poll(secs(10), || {
        std::thread::sleep(millis(500));
        let before = std::mem::replace(&mut last, tembuku.proc.cpu());
        (last - before < millis(100)).then_some(())
    });
    assert!(quiet.is_some(), "it loops without waiting");
    router.sh("ip route del unreachable 10.5.0.1/32; ip addr add 10.5.0.1/32 dev lo");
    assert_eq!(ask(&client, "after"), "b1 after");
    assert_eq!(server.peers().len(), 1, "the same flow");
}

/// A datagram that is too long for the way is nothing that its backend has done.
#[test]
fn a_report_of_a_short_mtu_is_no_failure() {
    if place().is_none() {
        return again_in_own_place("udp_errors::a_report_of_a_short_mtu_is_no_failure");
    }
    let router = router();
    let far = Netns::new();
    router.connect_to(&far, "wire2", "wire3", "mtu 1280");
    sh("ip route add 10.6.0.0/24 via 10.1.0.2; ip -6 route add fd06::/64 via fd01::2");
    router.sh("ip addr add 10.6.0.1/24 dev wire2; ip -6 addr add fd06::1/64 dev wire2 nodad");
    far.sh(
        "ip addr add 10.6.0.2/24 dev wire3; ip -6 addr add fd06::2/64 dev wire3 nodad; \
            ip route add default via 10.6.0.1; ip -6 route add default via fd06::1",
    );
    for ip in ["10.6.0.2", "fd06::2"] {
        let addr = at(ip);
        let _far = UdpServer::named_with("b1", far.bind(addr));
        let near = UdpServer::named_on("b2", at("127.0.0.1"));
        let (front, tembuku) = serve("", "", &[addr, near.addr]);
        let client = client(front);
        assert_eq!(ask(&client, "before"), "b1 before");
        let long = "x".repeat(1_400);
        for _ in 0..3 {
            assert_eq!(ask_until_answered(&client, &long), format!("b1 {long}"));
        }
        let all = tembuku.metric("backend_connect_errors_total", &[]);
        assert_eq!((all, near.taken()), (0.0, 0), "{ip}");
    }
}

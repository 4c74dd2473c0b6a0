//! One process replaces another while it carries UDP flows.

use crate::{
    harness::{
        net::PATIENCE,
        ports,
        proc::{Proc, text},
        secs,
        tembuku::cli,
        temp::TempDir,
        udp::{UdpServer, V4, addrs, ask, client, list, named, receive, receive_text},
        wait_until,
    },
    udp_dns::{Report, dnsmasq, dnsperf, report},
    upgrade::Succession,
};
use std::{
    collections::BTreeSet,
    fs,
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    thread,
};

/// With an access log, in the section that is open.
fn config(workers: usize, front: SocketAddr, keys: &str, servers: &[UdpServer]) -> String {
    let backends = list(&addrs(servers));
    format!(
        "access = \"{{dir}}/access.log\"\n[process]\nworkers = {workers}\n\
         [listeners.l]\nbind = \"{front}\"\nprotocol = \"udp\"\nupstream = \"u\"\n{keys}\n\
         [upstreams.u]\nbackends = {backends}\n"
    )
}

impl Succession {
    /// Changes the file, and upgrades.
    #[track_caller]
    fn upgrade_with(&mut self, before: &str, after: &str) -> String {
        let file = fs::read_to_string(self.config()).unwrap();
        assert!(file.contains(before), "{file}");
        fs::write(self.config(), file.replace(before, after)).unwrap();
        self.upgrade()
    }

    #[track_caller]
    fn flows(&self) -> u64 {
        let status = self.status();
        status["listeners"][0]["connections"].as_u64().unwrap()
    }
}

/// The file may change the number of workers, while that of the sockets stays.
#[test]
fn flows_go_on_with_any_number_of_workers() {
    let servers = named(2);
    let front = ports::free_addr();
    let mut tembuku = Succession::start(&config(2, front, "", &servers));
    let clients: Vec<UdpSocket> = (0..30).map(|_| client(front)).collect();
    let first: Vec<String> = clients.iter().map(|client| ask(client, "who")).collect();
    for (before, after) in [(2, 1), (1, 3), (3, 2)] {
        let workers = |n| format!("workers = {n}");
        let out = tembuku.upgrade_with(&workers(before), &workers(after));
        assert!(out.contains("nothing is left behind"), "{out}");
        let now: Vec<String> = clients.iter().map(|client| ask(client, "who")).collect();
        assert_eq!(now, first);
        tembuku.wait_alone();
    }
    for server in &servers {
        assert_eq!(server.peers().len(), 15, "each flow has had one socket");
    }
    assert_eq!(tembuku.flows(), 30);
    // New clients are served by all sockets.
    let others: Vec<UdpSocket> = (0..30).map(|_| client(front)).collect();
    others.iter().for_each(|client| drop(ask(client, "who")));
    let killed = cli(&[
        "kill",
        "--socket",
        tembuku.socket().to_str().unwrap(),
        "--listener",
        "l",
    ]);
    assert_eq!(killed.status.code(), Some(0), "{}", text(&killed));
    let records = tembuku.first.access_log(60);
    let sessions: BTreeSet<u64> = records
        .iter()
        .map(|record| record["session"].as_u64().unwrap())
        .collect();
    assert_eq!(
        (records.len(), sessions.len()),
        (60, 60),
        "one for each flow"
    );
    for record in &records[..] {
        assert_eq!(record["close_reason"], "killed", "{record}");
        let asked = record["datagrams_received"].as_u64().unwrap();
        assert!(asked == 4 || asked == 1, "{record}");
        assert_eq!(
            record["bytes_received"].as_u64().unwrap(),
            3 * asked,
            "{record}"
        );
    }
}

#[test]
fn numbers_arrive_in_order_in_both_directions() {
    let servers = [UdpServer::echo(V4)];
    let front = ports::free_addr();
    let mut tembuku = Succession::start(&config(2, front, "", &servers));
    let stops = AtomicBool::new(false);
    thread::scope(|scope| {
        let streams: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let client = client(front);
                    let (mut sent, mut received) = (0u32, 0);
                    while !stops.load(SeqCst) || received < sent {
                        if !stops.load(SeqCst) && sent - received < 16 {
                            client.send(&sent.to_le_bytes()).unwrap();
                            sent += 1;
                            continue;
                        }
                        assert_eq!(receive(&client), received.to_le_bytes());
                        received += 1;
                    }
                })
            })
            .collect();
        wait_until("all streams run", PATIENCE, || {
            servers[0].peers().len() == 8
        });
        for _ in 0..5 {
            let before = servers[0].taken();
            wait_until("the streams go on", PATIENCE, || {
                servers[0].taken() > before + 200
            });
            tembuku.upgrade();
            tembuku.wait_alone();
        }
        stops.store(true, SeqCst);
        streams
            .into_iter()
            .for_each(|stream| stream.join().unwrap());
    });
    assert_eq!(servers[0].peers().len(), 8, "each flow has had one socket");
}

#[test]
fn dnsperf_loses_nothing_in_upgrades() {
    for keys in ["", "responses = 1"] {
        let server = dnsmasq();
        let (dir, front) = (TempDir::new(), ports::free_addr());
        let backends = list(&[server.addr]);
        let mut tembuku = Succession::start(&format!(
            "[listeners.l]\nbind = \"{front}\"\nprotocol = \"udp\"\nupstream = \"u\"\n{keys}\n\
             [upstreams.u]\nbackends = {backends}\n"
        ));
        let mut proc = Proc::start("dnsperf", dir.path(), dnsperf(&dir, front, 60, 1_000));
        let done = || tembuku.status()["listeners"][0]["sent_datagrams"].as_u64();
        wait_until("questions come", secs(20), || done() > Some(500));
        for _ in 0..3 {
            tembuku.upgrade();
            tembuku.wait_alone();
        }
        proc.wait(secs(60)).unwrap();
        let wanted = Report {
            sent: 6_000,
            completed: 6_000,
            lost: 0,
            noerror: 6_000,
        };
        assert_eq!(report(&proc.stdout()), wanted, "{}", proc.stdout());
    }
}

/// An address that was handed over keeps its one socket; one that is added later has a socket for
/// each worker, also after the next upgrade.
#[test]
fn an_address_that_is_added_after_an_upgrade_is_received_by_all_workers() {
    let servers = named(1);
    let (first, second) = (ports::free_addr(), ports::free_addr());
    let mut tembuku = Succession::start(&config(1, first, "", &servers));
    tembuku.upgrade_with("workers = 1", "workers = 3");
    tembuku.wait_alone();
    let file = fs::read_to_string(tembuku.config()).unwrap();
    let bind = format!("bind = \"{first}\"");
    let file = file.replace(&bind, &format!("bind = [\"{first}\", \"{second}\"]"));
    fs::write(tembuku.config(), file).unwrap();
    let socket = tembuku.socket();
    let reloaded = cli(&["reload", "--socket", socket.to_str().unwrap()]);
    assert_eq!(reloaded.status.code(), Some(0), "{}", text(&reloaded));
    for _ in 0..3 {
        assert_eq!((sockets(first), sockets(second)), (1, 3));
        // So many that each socket gets some.
        for front in [first, second] {
            let clients: Vec<UdpSocket> = (0..30).map(|_| client(front)).collect();
            for client in &clients {
                assert_eq!(ask(client, "who"), "b1 who");
            }
        }
        tembuku.upgrade();
        tembuku.wait_alone();
    }
}

/// How many UDP sockets there are at this address.
fn sockets(at: SocketAddr) -> usize {
    let SocketAddr::V4(at) = at else {
        panic!("{at} is not of IPv4");
    };
    let local = format!(
        "{:08X}:{:04X}",
        u32::from_ne_bytes(at.ip().octets()),
        at.port()
    );
    let table = fs::read_to_string("/proc/net/udp").unwrap();
    let mut found = table
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1));
    found.by_ref().filter(|address| *address == local).count()
}

/// An upgrade is a reload.
#[test]
fn a_flow_of_a_removed_backend_ends_in_the_old_process() {
    let servers = named(2);
    let front = ports::free_addr();
    let mut tembuku = Succession::start(&config(2, front, "", &servers));
    let clients = [client(front), client(front)];
    let mut answers = clients.each_ref().map(|client| ask(client, "who"));
    answers.sort();
    assert_eq!(answers, ["b1 who", "b2 who"]);
    servers[0].hold();
    clients.iter().for_each(|client| drop(client.send(b"late")));
    servers[0].wait_held(1);
    let both = list(&addrs(&servers));
    let out = tembuku.upgrade_with(&both, &list(&addrs(&servers[1..])));
    assert!(out.contains("0 sessions and 1 flow stay"), "{out}");
    servers[0].release();
    let mut late = clients.each_ref().map(receive_text);
    late.sort();
    assert_eq!(late, ["b1 late", "b2 late"]);
    for client in &clients {
        assert_eq!(ask(client, "who"), "b2 who");
    }
    tembuku.wait_alone();
}

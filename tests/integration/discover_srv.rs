//! Backends from SRV records: nsd and dnsmasq.

use crate::{
    discover::Discovering,
    harness::{
        dnsmasq::Dnsmasq,
        net::ask,
        nsd::Nsd,
        poll, ports, secs,
        server::{Server, ask_many, named},
    },
};
use std::{
    collections::BTreeSet,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

fn keys(servers: &[SocketAddr], more: &str) -> String {
    let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
    format!(
        "[upstreams.back.discover]\nkind = \"srv\"\nname = \"_app._tcp.example\"\n\
         nameservers = {servers:?}\ninterval = \"200ms\"\ntimeout = \"500ms\"\nmax_removed = 100\n\
         empty_after = \"1s\"\n{more}"
    )
}

/// A record with the target `local`, which is 127.0.0.1.
fn record(priority: u16, weight: u16, server: &Server) -> String {
    format!(
        "_app._tcp SRV {priority} {weight} {} local\n",
        server.addr.port()
    )
}

const LOCAL: &str = "local A 127.0.0.1\n";

#[test]
fn records_change_and_failures_change_nothing() {
    let servers = named(3);
    let addrs: Vec<_> = servers.iter().map(|server| server.addr).collect();
    let one = |n: usize| record(0, 0, &servers[n]);
    let mut nsd = Nsd::start(Some(&format!("{LOCAL}{}{}", one(0), one(1))));
    let running = Discovering::start(&keys(&[nsd.addr], ""));
    running.wait_backends(&addrs[..2]);
    let seen: BTreeSet<String> = ask_many(running.front, 4).into_iter().collect();
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["b1", "b2"]);

    nsd.set(&format!("{LOCAL}{}{}", one(1), one(2)));
    running.wait_backends(&addrs[1..]);
    // An alias, also of the target, and a second name for the same address.
    nsd.set(&format!(
        "{LOCAL}_app._tcp CNAME elsewhere\nelsewhere SRV 0 1 {} local\nelsewhere SRV 0 1 {} other\n\
         other CNAME local\n",
        addrs[0].port(),
        addrs[0].port()
    ));
    running.wait_backends(&addrs[..1]);

    let addr = nsd.addr;
    nsd.stop();
    running.wait_error("Connection refused");
    running.wait_backends(&addrs[..1]);
    let mut broken = Nsd::start_on(addr, None);
    running.wait_error("SERVFAIL");
    running.wait_backends(&addrs[..1]);
    broken.stop();
    // Silence.
    let silent = poll(secs(10), || UdpSocket::bind(addr).ok()).unwrap();
    running.wait_error("no reply within 500ms");
    drop(silent);
    let mut nsd = Nsd::start_on(addr, Some(&format!("{LOCAL}{}", one(2))));
    running.wait_backends(&addrs[2..]);
    running.wait_answer();
    // Neither the name itself, nor records of another kind only, nor a target that does not exist.
    for records in [
        "local A 127.0.0.1\n".to_owned(),
        "_app._tcp TXT x\n".to_owned(),
        one(0),
        "_app._tcp SRV 0 0 0 .\n".to_owned(),
    ] {
        nsd.set(&records);
        running.wait_backends(&[]);
        nsd.set(&format!("{LOCAL}{}", one(2)));
        running.wait_backends(&addrs[2..]);
    }
}

#[test]
fn priorities_are_backups_and_weights_are_weights() {
    let servers = named(3);
    let nsd = Nsd::start(Some(&format!(
        "{LOCAL}{}{}{}",
        record(10, 3, &servers[0]),
        record(10, 1, &servers[1]),
        record(20, 5, &servers[2])
    )));
    let running = Discovering::start(&keys(&[nsd.addr], ""));
    let addrs: Vec<_> = servers.iter().map(|server| server.addr).collect();
    running.wait_backends(&addrs);
    let names = ask_many(running.front, 40);
    let count = |name: &str| names.iter().filter(|n| *n == name).count();
    assert_eq!((count("b1"), count("b2"), count("b3")), (30, 10, 0));
}

#[test]
fn a_truncated_answer_is_asked_for_by_tcp() {
    let server = named(1).remove(0);
    let hosts: Vec<String> = (1..=120).map(|n| format!("127.0.8.{n}")).collect();
    let records: String = (1..=120)
        .map(|n| {
            let port = server.addr.port();
            format!(
                "_app._tcp SRV 0 1 {port} a-target-with-a-long-name-{n}\n\
                 a-target-with-a-long-name-{n} A 127.0.8.{n}\n"
            )
        })
        .collect();
    let nsd = Nsd::start(Some(&records));
    let running = Discovering::start(&keys(&[nsd.addr], ""));
    let addrs: Vec<SocketAddr> = hosts
        .iter()
        .map(|ip| SocketAddr::new(ip.parse().unwrap(), server.addr.port()))
        .collect();
    running.wait_backends(&addrs);
}

/// The first does not answer: the second is asked, without losing time on the first for each
/// question.
#[test]
fn another_name_server_is_asked() {
    let servers = named(2);
    let dead = UdpSocket::bind(ports::free_addr()).unwrap();
    let mut nsd = Nsd::start(Some(&format!("{LOCAL}{}", record(0, 0, &servers[0]))));
    let refusing = ports::free_addr();
    let list = [dead.local_addr().unwrap(), refusing, nsd.addr];
    let running = Discovering::start(&keys(&list, ""));
    running.wait_backends(&[servers[0].addr]);
    nsd.set(&format!("{LOCAL}{}", record(0, 0, &servers[1])));
    running.wait_backends(&[servers[1].addr]);
    assert_eq!(ask(running.front).unwrap(), "b2");
}

/// A name server in front of another one, which refuses questions for AAAA while `refuses` is set.
struct Refusing {
    addr: SocketAddr,
    refuses: Arc<AtomicBool>,
}

impl Refusing {
    fn start(behind: SocketAddr) -> Self {
        let front = UdpSocket::bind(ports::free_addr()).unwrap();
        let addr = front.local_addr().unwrap();
        let refuses = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&refuses);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, peer)) = front.recv_from(&mut buffer) {
                let asked = &mut buffer[..length];
                let is_aaaa = asked.windows(4).any(|four| four == [0, 28, 0, 1]);
                if is_aaaa && flag.load(SeqCst) {
                    (asked[2], asked[3]) = (0x80, 5);
                    let _ = front.send_to(asked, peer);
                    continue;
                }
                // A reply that is late is none to another question.
                let back = UdpSocket::bind("127.0.0.1:0").unwrap();
                back.connect(behind).unwrap();
                back.set_read_timeout(Some(secs(1))).unwrap();
                let _ = back.send(asked);
                if let Ok(length) = back.recv(&mut buffer) {
                    let _ = front.send_to(&buffer[..length], peer);
                }
            }
        });
        Refusing { addr, refuses }
    }
}

/// While AAAA is refused, A is followed, and the IPv6 addresses that there were stay as long as
/// their records do. What was never known is not waited for.
#[test]
fn one_family_of_addresses_may_be_refused() {
    let servers = named(2);
    let [one, two] = [0, 1].map(|n| servers[n].addr);
    let v6 = |of: SocketAddr| SocketAddr::new("::1".parse().unwrap(), of.port());
    // Behind an alias, so that addresses do not come with the records.
    let both = format!("{LOCAL}local AAAA ::1\nalias CNAME local\n");
    let [first, second] = [one, two].map(|of| format!("_app._tcp SRV 0 0 {} alias\n", of.port()));
    let mut nsd = Nsd::start(Some(&format!("{both}{first}")));
    let front = Refusing::start(nsd.addr);
    let running = Discovering::start(&keys(&[front.addr], ""));
    running.wait_backends(&[one, v6(one)]);
    front.refuses.store(true, SeqCst);
    // What was known is valid for a second.
    running.wait_error("alias.example AAAA");
    nsd.set(&format!("{both}{first}{second}"));
    running.wait_backends(&[one, two, v6(one)]);
    // Its record goes, and with it what was at its port.
    nsd.set(&format!("{both}{second}"));
    running.wait_backends(&[two]);
    front.refuses.store(false, SeqCst);
    running.wait_backends(&[two, v6(two)]);
    running.wait_answer();
    front.refuses.store(true, SeqCst);
    running.wait_error("REFUSED");
    running.wait_backends(&[two, v6(two)]);
}

#[test]
fn dnsmasq_has_services() {
    let servers = named(2);
    let [one, two] = [0, 1].map(|n| servers[n].addr);
    let dnsmasq = Dnsmasq::start(&format!(
        "srv-host=_app._tcp.example,one.example,{},0,7\n\
         srv-host=_app._tcp.example,two.example,{},0,7\n\
         address=/one.example/127.0.0.1\naddress=/two.example/127.0.0.1\n",
        one.port(),
        two.port()
    ));
    let running = Discovering::start(&keys(&[dnsmasq.addr], ""));
    running.wait_backends(&[one, two]);
    assert_eq!(ask_many(running.front, 4).len(), 4);
}

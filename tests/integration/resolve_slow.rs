//! Names that are answered late or never, beside others.

use crate::harness::{
    millis,
    net::{ask, echo, session},
    poll, ports, proc, programs, secs,
    server::Server,
    tembuku::Tembuku,
    wait_until,
};
use std::{
    collections::{HashMap, HashSet},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex},
    thread,
    time::Instant,
};

/// A name server in a network of its own, at the port that resolvers ask.
#[derive(Clone, Default)]
struct Names(Arc<Mutex<Zone>>);

#[derive(Default)]
struct Zone {
    addresses: HashMap<String, Ipv4Addr>,
    /// Of all names; `None`: questions for them are refused.
    ipv6: Option<Vec<Ipv6Addr>>,
    /// Questions for these are not answered.
    silent: HashSet<String>,
    asked: HashMap<String, usize>,
}

impl Names {
    fn start() -> Names {
        let names = Names::default();
        names.set_ipv6(Some(&[]));
        let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
        let zone = names.clone();
        thread::spawn(move || {
            let mut question = [0; 512];
            while let Ok((length, client)) = socket.recv_from(&mut question) {
                if let Some(answer) = zone.answer(&question[..length]) {
                    let _ = socket.send_to(&answer, client);
                }
            }
        });
        names
    }

    fn set(&self, name: &str, address: [u8; 4]) {
        let mut zone = self.0.lock().unwrap();
        zone.addresses.insert(name.to_owned(), address.into());
    }

    /// `None`: refused.
    fn set_ipv6(&self, addresses: Option<&[&str]>) {
        let parsed = addresses.map(|all| all.iter().map(|text| text.parse().unwrap()).collect());
        self.0.lock().unwrap().ipv6 = parsed;
    }

    fn silence(&self, name: &str) {
        self.0.lock().unwrap().silent.insert(name.to_owned());
    }

    fn answer_again(&self, name: &str) {
        self.0.lock().unwrap().silent.remove(name);
    }

    fn asked(&self, name: &str) -> usize {
        let zone = self.0.lock().unwrap();
        zone.asked.get(name).copied().unwrap_or_default()
    }

    fn answer(&self, question: &[u8]) -> Option<Vec<u8>> {
        let (mut at, mut labels) = (12, Vec::new());
        while question[at] != 0 {
            let end = at + 1 + usize::from(question[at]);
            labels.push(String::from_utf8_lossy(&question[at + 1..end]).to_lowercase());
            at = end;
        }
        let (name, is_v4) = (labels.join("."), question[at + 1..at + 3] == [0, 1]);
        let mut zone = self.0.lock().unwrap();
        *zone.asked.entry(name.clone()).or_default() += 1;
        if zone.silent.contains(&name) {
            return None;
        }
        let address = zone.addresses.get(&name);
        let none = Vec::new();
        let (ipv6, code) = match (address, &zone.ipv6, is_v4) {
            (None, ..) => (&none, 0x83),
            (Some(_), None, false) => (&none, 0x85),
            (Some(_), Some(ipv6), false) => (ipv6, 0x80),
            (Some(_), _, true) => (&none, 0x80),
        };
        let records = address.filter(|_| is_v4);
        let mut answer = question[..2].to_vec();
        let count = u8::from(records.is_some()) + ipv6.len() as u8;
        answer.extend([0x81, code, 0, 1, 0, count, 0, 0, 0, 0]);
        answer.extend(&question[12..at + 5]);
        if let Some(address) = records {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
            answer.extend(address.octets());
        }
        for address in ipv6 {
            answer.extend([0xc0, 12, 0, 28, 0, 1, 0, 0, 0, 5, 0, 16]);
            answer.extend(address.octets());
        }
        Some(answer)
    }
}

fn server(name: &str, host: u8, port: u16) -> Server {
    Server::named_on(name, &[SocketAddr::from(([127, 0, 7, host], port))])
}

#[test]
fn a_name_that_is_not_answered_delays_no_other() {
    let Some(_place) = programs::place() else {
        return programs::again_in_own_place(
            "resolve_slow::a_name_that_is_not_answered_delays_no_other",
        );
    };
    let (front, port) = (ports::free_addr(), ports::free_port());
    let _servers = [server("old", 1, port), server("new", 2, port)];
    let names = Names::start();
    names.set("live.test", [127, 0, 7, 1]);
    for dead in ["dead.test", "dead2.test"] {
        names.set(dead, [127, 0, 7, 9]);
    }
    // The system's resolver waits 5 s for each of the two, which makes 10 s one after the other.
    let mut tembuku = Tembuku::start_under(
        "env RES_OPTIONS=timeout:5",
        &format!(
            "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
             [upstreams.u]\nbalance = \"first\"\nresolve_interval = \"200ms\"\n\
             backends = [\"live.test:{port}\", \"dead.test:{port}\", \"dead2.test:{port}\"]\n"
        ),
    );
    assert_eq!(ask(front).unwrap(), "old");
    let before = ["dead.test", "dead2.test"].map(|dead| {
        names.silence(dead);
        (dead, names.asked(dead))
    });
    for (dead, before) in before {
        wait_until("its question has come", secs(30), || {
            names.asked(dead) > before
        });
    }
    names.set("live.test", [127, 0, 7, 2]);
    let logged = || {
        let log = tembuku.proc.stderr();
        log.contains("resolved addresses changed")
    };
    wait_until("the new address is logged", secs(8), logged);
    // What is logged has happened.
    assert_eq!(ask(front).unwrap(), "new");
    // The look-ups of the others hang still, in nothing's way.
    assert_eq!(tembuku.metrics().sum("build_info", &[]), 1.0);
    tembuku.proc.signal(rustix::process::Signal::TERM);
    let status = tembuku.proc.wait(secs(4)).expect("an end after TERM");
    assert_eq!(status.code(), Some(0));
}

/// A name server that fails for one family says nothing about it: its addresses stay, and the other
/// one is followed.
#[test]
fn a_name_keeps_the_addresses_of_a_family_that_is_refused() {
    let Some(_place) = programs::place() else {
        return programs::again_in_own_place(
            "resolve_slow::a_name_keeps_the_addresses_of_a_family_that_is_refused",
        );
    };
    let (front, port) = (ports::free_addr(), ports::free_port());
    let names = Names::start();
    names.set("both.test", [127, 0, 7, 1]);
    names.set_ipv6(Some(&["::1"]));
    let tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nresolve_interval = \"100ms\"\nbackends = [\"both.test:{port}\"]\n"
    ));
    let has = |addresses: [&str; 2]| {
        let log = tembuku.proc.stderr();
        let mut lines = log.lines().rev();
        let line = lines.find(|line| line.contains("resolved addresses changed"));
        let line: Option<serde_json::Value> = line.map(|line| serde_json::from_str(line).unwrap());
        let addresses = addresses.iter().filter(|address| !address.is_empty());
        let expected: Vec<String> = addresses.map(|a| format!("{a}:{port}")).collect();
        line.is_some_and(|line| line["addresses"] == expected.join(", "))
    };
    names.set_ipv6(None);
    names.set("both.test", [127, 0, 7, 2]);
    wait_until("IPv4 is followed, IPv6 stays", secs(20), || {
        has(["127.0.7.2", "[::1]"])
    });
    let log = tembuku.proc.stderr();
    assert!(
        log.contains("name resolved for one family of addresses"),
        "{log}"
    );
    // Now it is certain.
    names.set_ipv6(Some(&[]));
    wait_until("IPv6 is gone", secs(20), || has(["127.0.7.2", ""]));
    names.set_ipv6(Some(&["::2"]));
    wait_until("IPv6 is back", secs(20), || has(["127.0.7.2", "[::2]"]));
}

#[test]
fn failures_of_a_name_are_logged_once_and_then_rarely() {
    let Some(_place) = programs::place() else {
        return programs::again_in_own_place(
            "resolve_slow::failures_of_a_name_are_logged_once_and_then_rarely",
        );
    };
    let (front, port) = (ports::free_addr(), ports::free_port());
    let _servers = [server("old", 1, port), server("new", 2, port)];
    let names = Names::start();
    names.set("other.test", [127, 0, 7, 1]);
    let tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n[upstreams.u]\n\
         resolve_required = false\nresolve_interval = \"50ms\"\nbalance = \"first\"\n\
         backends = [\"missing.test:{port}\", \"other.test:{port}\"]\n"
    ));
    let before = names.asked("missing.test");
    wait_until("many more questions", secs(30), || {
        names.asked("missing.test") > before + 40
    });
    let log = tembuku.proc.stderr();
    let lines = log.lines().filter(|line| line.contains("missing.test"));
    assert_eq!(lines.count(), 1, "{log}");
    assert_eq!(ask(front).unwrap(), "old");

    names.set("missing.test", [127, 0, 7, 2]);
    wait_until("it is used", secs(10), || ask(front).unwrap() == "new");
    let again = poll(secs(10), || {
        let log = tembuku.proc.stderr();
        let line = log
            .lines()
            .find(|line| line.contains("name resolved again"));
        line.map(str::to_owned)
    });
    let again: serde_json::Value = serde_json::from_str(&again.unwrap()).unwrap();
    assert!(again["failures"].as_u64().unwrap() > 10, "{again}");
}

/// The system's resolver gives up after 5 s and more.
#[test]
fn a_start_does_not_wait_for_a_name_that_it_can_do_without() {
    let Some(_place) = programs::place() else {
        return programs::again_in_own_place(
            "resolve_slow::a_start_does_not_wait_for_a_name_that_it_can_do_without",
        );
    };
    let (front, port) = (ports::free_addr(), ports::free_port());
    let server = server("here", 1, port);
    let names = Names::start();
    names.silence("dead.test");
    let began = Instant::now();
    let tembuku = Tembuku::start_under(
        "env RES_OPTIONS=timeout:5",
        &format!(
            "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n[upstreams.u]\n\
             resolve_required = false\nbackends = [\"{}\", \"dead.test:{port}\"]\n",
            server.addr
        ),
    );
    assert_eq!(ask(front).unwrap(), "here");
    assert!(began.elapsed() < millis(4_500), "{:?}", began.elapsed());
    assert!(tembuku.proc.stderr().contains("has not answered yet"));
}

/// An upstream keeps the addresses of its names over a reload, as one of nginx with `zone` and
/// `resolve` does. nginx's test for it is stream_upstream_resolve_reload.t.
#[test]
fn addresses_of_names_outlive_a_reload_while_the_name_server_is_silent() {
    let Some(_place) = programs::place() else {
        return programs::again_in_own_place(
            "resolve_slow::addresses_of_names_outlive_a_reload_while_the_name_server_is_silent",
        );
    };
    let (front, other, port) = (ports::free_addr(), ports::free_addr(), ports::free_port());
    let _servers = [server("one", 1, port), server("two", 2, port)];
    let names = Names::start();
    names.set("app.test", [127, 0, 7, 1]);
    let config = |keys: &str, backends: &str| {
        format!(
            "[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
             [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n{keys}\n\
             [upstreams.u]\nresolve_interval = \"200ms\"\nbackends = [{backends}]\n"
        )
    };
    let known = format!("{{ address = \"app.test:{port}\", max_fails = 3 }}");
    let tembuku = Tembuku::start_under(
        "env RES_OPTIONS=timeout:2",
        &config("", &format!("\"app.test:{port}\"")),
    );
    let (mut held, greeting) = session(front).unwrap();
    assert_eq!(greeting, "one");

    names.silence("app.test");
    // Settings of the backend, of its listener, and another listener on the same upstream.
    let second = format!("retries = 1\n[listeners.m]\nbind = \"{other}\"\nupstream = \"u\"");
    tembuku.reload(&config(&second, &known));
    for address in [front, other] {
        assert_eq!(ask(address).unwrap(), "one");
    }
    echo(&mut held, "the session stays").unwrap();

    // A name that nothing is known of has to resolve, or nothing changes.
    let unknown = config("", &format!("{known}, \"missing.test:{port}\""));
    let output = tembuku.try_reload(&unknown);
    assert_eq!(output.status.code(), Some(1));
    assert!(proc::text(&output).contains("missing.test does not resolve"));
    assert_eq!(ask(other).unwrap(), "one");

    // The addresses are looked up again as soon as there are answers.
    names.set("app.test", [127, 0, 7, 2]);
    names.answer_again("app.test");
    wait_until("the new address is used", secs(30), || {
        ask(front).unwrap() == "two" && ask(other).unwrap() == "two"
    });
    echo(&mut held, "the session stays where it is").unwrap();
}

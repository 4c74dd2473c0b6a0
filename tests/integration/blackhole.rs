//! A backend whose packets are dropped, in a network of the test's own: no refusal, no reset,
//! nothing.

use crate::harness::{
    net, ports,
    proc::run_ok,
    programs::{self, Redis, call},
    secs,
    tembuku::Tembuku,
    wait_until,
};
use serde_json::Value;
use std::{
    io::Write,
    net::SocketAddr,
    process::Command,
    time::{Duration, Instant},
};

/// Rules of this network alone, which is gone with the test.
fn nft(rules: &str) {
    let mut command = Command::new("nft");
    command.arg(rules);
    run_ok(secs(10), command);
}

/// Whatever goes to this address is lost on the way.
fn drop_packets(to: SocketAddr) {
    nft("add table inet hole");
    nft("add chain inet hole out { type filter hook output priority 0; }");
    nft(&format!(
        "add rule inet hole out ip daddr {} tcp dport {} drop",
        to.ip(),
        to.port()
    ));
}

fn let_packets_through() {
    nft("delete table inet hole");
}

struct Setup {
    tembuku: Tembuku,
    front: SocketAddr,
    lost: Redis,
    _other: Redis,
}

/// The first of two servers is used as long as it is well.
fn setup(upstream: &str, fall: u32) -> Setup {
    let on = |ip: [u8; 4]| Redis::start(SocketAddr::from((ip, ports::free_port())));
    let (lost, other) = (on([127, 0, 9, 1]), on([127, 0, 9, 2]));
    for (server, name) in [(&lost, "lost"), (&other, "other")] {
        call(server.addr, &format!("SET name {name}")).unwrap();
    }
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\nconnect_timeout = \"2s\"\n\
         [upstreams.u]\nbalance = \"first\"\n{upstream}\n\
         backends = [{{ address = \"{}\", max_fails = 0 }}, {{ address = \"{}\", \
         max_fails = 0 }}]\n\
         [upstreams.u.check]\nkind = \"redis\"\ninterval = \"500ms\"\nfast_interval = \"200ms\"\n\
         timeout = \"300ms\"\nfall = {fall}\n",
        lost.addr, other.addr
    ));
    wait_until("both have been checked", secs(10), || {
        tembuku.metric("check_results_total", &[("result", "ok")]) >= 2.0
    });
    Setup {
        tembuku,
        front,
        lost,
        _other: other,
    }
}

impl Setup {
    fn backend(&self) -> Value {
        let status = self.tembuku.status();
        status["upstreams"][0]["backends"][0].clone()
    }

    /// The server that a new session gets.
    fn backend_name(&self) -> String {
        call(self.front, "GET name").unwrap()
    }
}

/// Checks notice before clients have to: no session waits for its connect to time out once the
/// verdict stands, and those that are stuck on the lost server are terminated.
#[test]
fn dropped_packets_are_a_timeout_and_the_next_one_serves() {
    if programs::place().is_none() {
        return programs::again_in_own_place(
            "blackhole::dropped_packets_are_a_timeout_and_the_next_one_serves",
        );
    }
    let setup = setup("on_down = \"close\"", 2);
    assert_eq!(setup.backend_name(), "lost");
    let mut held = net::connect(setup.front).unwrap();
    held.write_all(b"PING\r\n").unwrap();
    assert_eq!(net::read_line(&mut held).unwrap().trim_end(), "+PONG");

    let began = Instant::now();
    drop_packets(setup.lost.addr);
    wait_until("the verdict", secs(10), || {
        setup.backend()["state"] == "down"
    });
    let noticed = began.elapsed();
    let backend = setup.backend();
    assert_eq!(backend["last_check"]["result"], "timeout", "{backend}");
    let event = setup.tembuku.events().remove(0);
    assert_eq!(
        (&event["to"], &event["reason"]),
        (&"down".into(), &"timeout".into())
    );
    let saw = event["transcript"].as_str().unwrap();
    assert!(saw.contains("connecting: no answer within 300ms"), "{saw}");
    // An interval, two checks that time out, and the pause between their beginnings is within the
    // first of them.
    assert!(noticed < secs(5), "{noticed:?}");

    // No session waits for a connect that is lost.
    for _ in 0..20 {
        let asked = Instant::now();
        assert_eq!(setup.backend_name(), "other");
        assert!(
            asked.elapsed() < Duration::from_secs(2),
            "{:?}",
            asked.elapsed()
        );
    }
    // The client that is stuck gets an end, and not only when TCP gives up.
    net::read_all(&mut held);
    assert!(began.elapsed() < secs(8));
    wait_until("the event has it", secs(10), || {
        setup.tembuku.events()[0]["last_session_closed_seconds"].is_number()
    });
    println!("noticed after {noticed:?}: {}", setup.tembuku.events()[0]);

    let_packets_through();
    wait_until("it is well", secs(10), || setup.backend()["state"] == "up");
    assert_eq!(setup.backend_name(), "lost");
}

/// A check that is lost in a moment of trouble is no verdict, and with `keep` what was under way
/// goes on when it is over.
#[test]
fn a_short_hole_does_no_harm() {
    if programs::place().is_none() {
        return programs::again_in_own_place("blackhole::a_short_hole_does_no_harm");
    }
    let setup = setup("", 20);
    let mut held = net::connect(setup.front).unwrap();
    drop_packets(setup.lost.addr);
    held.write_all(b"PING\r\n").unwrap();
    setup.tembuku.wait_metric(
        "check_results_total",
        &[
            ("result", "timeout"),
            ("backend", &setup.lost.addr.to_string()),
        ],
        |n| n == 1.0,
    );
    let_packets_through();
    assert_eq!(net::read_line(&mut held).unwrap().trim_end(), "+PONG");
    let ok = |n: f64| {
        let labels = [
            ("result", "ok"),
            ("backend", &setup.lost.addr.to_string()[..]),
        ];
        setup
            .tembuku
            .wait_metric("check_results_total", &labels, |now| now >= n)
    };
    ok(ok(0.0) + 3.0);
    assert_eq!(setup.tembuku.events(), Vec::<Value>::new());
}

//! Redis Sentinel names the servers, and the check decides which of them is the primary.

use crate::{
    checks_redis::three,
    discover::Discovering,
    harness::{
        millis, ports,
        proc::{Proc, command},
        programs::{Redis, call},
        secs,
        temp::TempDir,
        wait_until,
    },
};
use std::{net::SocketAddr, time::Instant};

struct Sentinel {
    addr: SocketAddr,
    proc: Proc,
    _dir: TempDir,
}

/// Some that know each other, and the replicas of `primary`.
fn sentinels(count: usize, primary: &Redis) -> Vec<Sentinel> {
    let start = |_| {
        let (addr, dir) = (ports::free_addr(), TempDir::new());
        // It keeps its state in this file.
        let config = dir.write(
            "sentinel.conf",
            &format!(
                "port {}\nbind 127.0.0.1\ndir {}\nsentinel monitor m {} {} {}\n\
                 sentinel down-after-milliseconds m 1000\nsentinel failover-timeout m 5000\n",
                addr.port(),
                dir.path().display(),
                primary.addr.ip(),
                primary.addr.port(),
                count.min(2)
            ),
        );
        let mut command = command("redis-server");
        command.arg(&config).arg("--sentinel");
        let proc = Proc::start("sentinel", dir.path(), command);
        Sentinel {
            addr,
            proc,
            _dir: dir,
        }
    };
    let mut all: Vec<Sentinel> = (0..count).map(start).collect();
    for sentinel in &mut all {
        let config = sentinel._dir.file("sentinel.conf");
        sentinel.proc.wait_ready(secs(30), || {
            let text = std::fs::read_to_string(&config).unwrap_or_default();
            let knows_all = text.matches("known-sentinel").count() == count - 1
                && text.matches("known-replica").count() == 2;
            knows_all
                && call(sentinel.addr, "SENTINEL CKQUORUM m")
                    .is_ok_and(|answer| answer.starts_with("+OK"))
        });
    }
    all
}

fn keys(sentinels: &[Sentinel], want: &str, role: &str) -> String {
    let addrs: Vec<String> = sentinels
        .iter()
        .map(|s| format!("\"{}\"", s.addr))
        .collect();
    format!(
        "on_down = \"close\"\n[upstreams.back.check]\nkind = \"redis\"\nrole = \"{role}\"\n\
         interval = \"200ms\"\ntimeout = \"500ms\"\nrise = 1\nfall = 2\n\
         [upstreams.back.discover]\nkind = \"sentinel\"\nsentinels = [{}]\nmaster = \"m\"\n\
         want = \"{want}\"\ninterval = \"5s\"\ntimeout = \"1s\"\nconfirm = \"1s\"\n",
        addrs.join(", ")
    )
}

#[test]
fn proposal_and_check_agree_after_a_fail_over() {
    let [mut primary, one, two] = three();
    let mut sentinels = sentinels(3, &primary);
    let running = Discovering::start(&keys(&sentinels, "primary", "primary"));
    running.wait_backends(&[primary.addr]);
    wait_until("the primary is up", secs(20), || {
        call(running.front, "SET before x").is_ok_and(|answer| answer == "+OK")
    });
    let replicas = Discovering::start(&keys(&sentinels, "replicas", "replica"));
    replicas.wait_backends(&[one.addr, two.addr]);
    primary.proc.kill();
    let killed = Instant::now();
    loop {
        match call(running.front, "SET after x") {
            Ok(answer) if answer == "+OK" => break,
            answer => assert!(
                !answer.is_ok_and(|a| a.starts_with("-READONLY")),
                "a replica got a write"
            ),
        }
        assert!(killed.elapsed() < secs(60), "no write is accepted");
        std::thread::sleep(millis(5)); // the pace of the writer
    }
    println!("first write accepted {:?} after the kill", killed.elapsed());
    let is_primary =
        |server: &&&Redis| call(server.addr, "ROLE").is_ok_and(|answer| answer == "*3");
    let promoted = [&one, &two]
        .iter()
        .find(is_primary)
        .expect("a new primary")
        .addr;
    running.wait_backends(&[promoted]);
    let other = if promoted == one.addr { &two } else { &one };
    // The old one is a replica now for Sentinel, whatever it is in fact.
    replicas.wait_backends(&[primary.addr, other.addr]);
    wait_until("readers use the other replica alone", secs(20), || {
        let states = replicas.backends();
        states.iter().filter(|(_, state)| state == "up").count() == 1
    });
    // One of three may be gone, not two; and what is known stays.
    sentinels[0].proc.kill();
    std::thread::sleep(millis(10)); // before the next question
    running.wait_answer();
    sentinels[1].proc.kill();
    running.wait_error("1 of 3 Sentinels answer");
    running.wait_backends(&[promoted]);
    assert_eq!(call(running.front, "GET after").unwrap(), "x");
}

#[test]
fn a_group_that_sentinel_does_not_know_is_an_error() {
    let [primary, _one, _two] = three();
    let sentinels = sentinels(1, &primary);
    let keys = keys(&sentinels, "all", "primary").replace("\"m\"", "\"other\"");
    let running = Discovering::start(&keys);
    running.wait_error("it watches no group");
    running.wait_backends(&[]);
}

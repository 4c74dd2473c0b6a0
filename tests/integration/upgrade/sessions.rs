//! Sessions go over to the new process.

use super::{Succession, listener, upstream};
use crate::harness::{
    net::{self, connect},
    ports,
    proc::{command, run_ok},
    programs::{Iperf3, Nginx, Redis},
    secs,
    server::Server,
};
use serde_json::Value;
use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
};

fn number(variable: &str, default: usize) -> usize {
    let number = std::env::var(variable).ok();
    number.map_or(default, |number| number.parse().unwrap())
}

/// Of the process that serves now, when it carries nothing.
fn descriptors(tembuku: &Succession) -> usize {
    let folder = format!("/proc/{}/fd", tembuku.current);
    std::fs::read_dir(folder).unwrap().count()
}

/// `wrk`, `redis-benchmark` and `iperf3`, both ways at once, keep their connections: each of them
/// goes through all processes.
#[test]
fn connections_of_real_programs_outlive_many_upgrades() {
    let upgrades = number("TEMBUKU_TEST_UPGRADES", 5);
    let time = (upgrades * 3 / 2).max(6);
    let (_web, web) = Nginx::web("file", 800);
    let redis = Redis::start(ports::free_addr());
    let iperf3 = Iperf3::start();
    let fronts = [(); 3].map(|()| ports::free_addr());
    let backends = [web, redis.addr, iperf3.addr];
    let config: String = (0..3)
        .map(|n| {
            listener(&format!("l{n}"), &fronts[n].to_string(), &format!("u{n}"))
                + &upstream(&format!("u{n}"), &format!("\"{}\"", backends[n]))
        })
        .collect();
    let mut tembuku = Succession::start(&config);
    tembuku.upgrade();
    tembuku.wait_alone();
    let before = descriptors(&tembuku);
    let port = |n: usize| fronts[n].port().to_string();
    let limit = secs(time as u64 + 60);
    thread::scope(|scope| {
        let wrk = scope.spawn(|| {
            let mut wrk = command(&format!("wrk -t 1 -c 16 -d {time}s"));
            wrk.arg(format!("http://{}/file", fronts[0]));
            run_ok(limit, wrk)
        });
        let benchmark = scope.spawn(|| {
            let mut benchmark =
                command("redis-benchmark -q -c 10 -n 30000 -t set,get -h 127.0.0.1");
            benchmark.args(["-p", &port(1)]);
            run_ok(limit, benchmark)
        });
        let bulk = scope.spawn(|| {
            let mut iperf3 = command("iperf3 --client 127.0.0.1 --bidir --json");
            iperf3.args(["--port", &port(2), "--time", &time.to_string()]);
            run_ok(limit, iperf3)
        });
        let mut done = 0;
        while done < upgrades || !(wrk.is_finished() && bulk.is_finished()) {
            let out = tembuku.upgrade();
            assert!(out.contains("sessions"), "{out}");
            tembuku.wait_alone();
            done += 1;
        }
        println!("{done} upgrades");
        let [wrk, benchmark, bulk] = [wrk, benchmark, bulk].map(|run| run.join().unwrap());
        for word in ["Socket errors", "Non-2xx"] {
            assert!(!wrk.contains(word), "{wrk}");
        }
        assert!(
            benchmark.contains("GET") && !benchmark.contains("rror"),
            "{benchmark}"
        );
        let report: Value = serde_json::from_str(&bulk).unwrap();
        assert!(report.get("error").is_none(), "{bulk}");
        for side in ["sum_sent", "sum_sent_bidir_reverse"] {
            assert!(
                report["end"][side]["bytes"].as_u64().unwrap() > 1 << 20,
                "{bulk}"
            );
        }
    });
    tembuku.upgrade();
    tembuku.wait_alone();
    let after = descriptors(&tembuku);
    assert!(
        after <= before,
        "{before} descriptors before, {after} after"
    );
}

fn ping(session: &mut TcpStream) {
    session.write_all(b"PING\r\n").unwrap();
    let mut answer = [0; 7];
    session.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"+PONG\r\n");
}

/// Prints for how long they are silent. `TEMBUKU_TEST_SESSIONS`: how many there are.
#[test]
fn idle_sessions_go_over_within_milliseconds() {
    let count = number("TEMBUKU_TEST_SESSIONS", 1_000);
    let redis = Redis::start(ports::free_addr());
    let front: SocketAddr = ports::free_addr();
    let config =
        listener("l", &front.to_string(), "u") + &upstream("u", &format!("\"{}\"", redis.addr));
    let mut tembuku = Succession::start(&config);
    let mut sessions: Vec<TcpStream> = (0..count).map(|_| connect(front).unwrap()).collect();
    sessions.iter_mut().for_each(ping);
    for _ in 0..2 {
        let began = std::time::Instant::now();
        let out = tembuku.upgrade();
        assert!(out.contains("nothing is left behind"), "{out}");
        tembuku.wait_alone();
        println!("{:?} until the old process has ended", began.elapsed());
        sessions.iter_mut().for_each(ping);
    }
    let log = tembuku.first.proc.stderr();
    let taken: Vec<Value> = log
        .lines()
        .filter(|line| line.contains("sessions taken over"))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(taken.len(), 2, "{log}");
    for line in taken {
        println!("{line}");
        let text = line.to_string();
        assert!(text.contains(&format!("\"sessions\":{count}")), "{text}");
    }
}

/// A setting of the operator holds in the new process.
#[test]
fn a_session_that_went_over_can_be_terminated_there() {
    let server = Server::named("a");
    let front = ports::free_addr();
    let config =
        listener("l", &front.to_string(), "u") + &upstream("u", &format!("\"{}\"", server.addr));
    let mut tembuku = Succession::start(&config);
    let (mut session, _) = net::session(front).unwrap();
    for _ in 0..3 {
        tembuku.upgrade();
        tembuku.wait_alone();
        net::echo(&mut session, "still").unwrap();
    }
    let socket = tembuku.socket();
    let killed =
        crate::harness::tembuku::cli(&["kill", "--socket", socket.to_str().unwrap(), "--all"]);
    let text = crate::harness::proc::text(&killed);
    net::assert_ends_now(&mut session);
    assert!(text.contains('1'), "{text}");
}

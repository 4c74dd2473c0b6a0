//! Redis behind it: its own client and its own load generator.

use crate::harness::{
    ports,
    proc::{self, command, run_ok},
    programs::{Redis, call},
    secs,
    tembuku::Tembuku,
    wait_until,
};
use std::net::SocketAddr;

struct Setup {
    front: SocketAddr,
    tembuku: Tembuku,
    servers: Vec<Redis>,
}

/// Three servers, each with its own name under the key `name`, behind a listener.
fn setup(weights: [u32; 3]) -> Setup {
    let servers: Vec<Redis> = (0..3).map(|_| Redis::start(ports::free_addr())).collect();
    for (n, server) in servers.iter().enumerate() {
        assert_eq!(
            call(server.addr, &format!("SET name r{}", n + 1)).unwrap(),
            "+OK"
        );
    }
    let front = ports::free_addr();
    let backends: String = servers
        .iter()
        .zip(weights)
        .map(|(server, weight)| {
            format!(
                "{{ address = \"{}\", weight = {weight}, fail_timeout = \"1s\" }}, ",
                server.addr
            )
        })
        .collect();
    let tembuku = Tembuku::start(&format!(
        "[process]\nworkers = 2\n\
         [listeners.cache]\nbind = \"{front}\"\nupstream = \"redis\"\n\
         [upstreams.redis]\nbackends = [{backends}]\n"
    ));
    Setup {
        front,
        tembuku,
        servers,
    }
}

fn cli(addr: SocketAddr, arguments: &str) -> String {
    let mut command = command("redis-cli --no-auth-warning -h 127.0.0.1 -p");
    command
        .arg(addr.port().to_string())
        .args(arguments.split(' '));
    run_ok(secs(10), command).trim_end().to_owned()
}

fn benchmark(addr: SocketAddr, options: &str) {
    let mut command = command("redis-benchmark -q -h 127.0.0.1 -p");
    command
        .arg(addr.port().to_string())
        .args(options.split(' '));
    let output = proc::run(secs(120), command);
    let report = proc::text(&output);
    assert!(
        output.status.success(),
        "{options}: {}\n{report}",
        output.status
    );
    assert!(
        report.contains("requests per second"),
        "{options}\n{report}"
    );
    assert!(
        !report.to_lowercase().contains("error"),
        "{options}\n{report}"
    );
}

#[test]
fn its_own_client_works_over_it() {
    let setup = setup([1, 1, 1]);
    assert_eq!(cli(setup.front, "PING"), "PONG");
    for n in 0..3 {
        assert_eq!(cli(setup.front, &format!("SET key value{n}")), "OK");
    }
    // Each of the three took one of the three.
    let mut values: Vec<String> = setup
        .servers
        .iter()
        .map(|server| cli(server.addr, "GET key"))
        .collect();
    values.sort();
    assert_eq!(values, ["value0", "value1", "value2"]);
    let seen: Vec<String> = (0..3).map(|_| cli(setup.front, "GET key")).collect();
    assert!(values.iter().all(|value| seen.contains(value)), "{seen:?}");
    setup.tembuku.wait_idle();
    assert_eq!(
        setup
            .tembuku
            .metric("sessions_closed_total", &[("reason", "ok")]),
        7.0
    );
}

#[test]
fn its_load_generator_finishes_without_an_error() {
    let setup = setup([1, 1, 1]);
    benchmark(setup.front, "-n 20000 -c 50 -t set,get");
    benchmark(setup.front, "-n 20000 -c 50 -P 16 -d 2000 -t set,get");
    benchmark(setup.front, "-n 2000 -c 20 -k 0 -t ping_mbulk");
    setup.tembuku.wait_idle();
    let metrics = setup.tembuku.metrics();
    assert!(metrics.sum("listener_connections_total", &[("listener", "cache")]) >= 2000.0);
    assert!(metrics.sum("listener_received_bytes_total", &[]) > 20_000.0 * 2000.0);
    for server in &setup.servers {
        assert!(
            metrics.sum(
                "backend_connections_total",
                &[("backend", &server.addr.to_string())]
            ) > 600.0
        );
    }
    assert_eq!(metrics.sum("backend_connect_errors_total", &[]), 0.0);
}

#[test]
fn a_killed_server_is_never_seen_by_new_clients() {
    let mut setup = setup([1, 1, 1]);
    let dead = setup.servers.remove(1);
    let (addr, label) = (dead.addr, dead.addr.to_string());
    {
        let mut dead = dead;
        dead.proc.kill();
    }
    for n in 1..=200 {
        let answer =
            call(setup.front, "PING").unwrap_or_else(|error| panic!("client {n} of 200: {error}"));
        assert_eq!(answer, "+PONG", "client {n} of 200");
    }
    for _ in 0..10 {
        assert_eq!(cli(setup.front, "PING"), "PONG");
    }
    let metrics = setup.tembuku.metrics();
    assert!(metrics.sum("backend_connect_errors_total", &[("backend", &label)]) >= 1.0);
    assert!(metrics.sum("backend_retries_total", &[]) >= 1.0);
    assert_eq!(
        metrics.sum("sessions_closed_total", &[("reason", "connect_failed")]),
        0.0
    );

    // Back on the same address, it gets its share once the fail_timeout has passed.
    let back = Redis::start(addr);
    assert_eq!(call(back.addr, "SET name back").unwrap(), "+OK");
    wait_until("the server that is back gets clients", secs(10), || {
        call(setup.front, "GET name").unwrap() == "back"
    });
    let answers: Vec<String> = (0..30)
        .map(|_| call(setup.front, "GET name").unwrap())
        .collect();
    let share = answers.iter().filter(|answer| *answer == "back").count();
    assert!(
        (5..=15).contains(&share),
        "a third of 30 expected, got {share}"
    );
}

#[test]
fn weights_are_served_smoothly() {
    let setup = setup([5, 1, 1]);
    let order: Vec<String> = (0..21)
        .map(|_| call(setup.front, "GET name").unwrap())
        .collect();
    let once = ["r1", "r1", "r2", "r1", "r3", "r1", "r1"];
    assert_eq!(order, [once, once, once].concat());
}

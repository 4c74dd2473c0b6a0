//! A Redis that only refuses writes is down for writers, and serves readers.

use crate::{
    checks_redis::{info, replicate, setup},
    harness::{
        net, ports,
        programs::{Redis, call},
        secs, wait_until,
    },
};
use std::{io::Write, net::TcpStream};

/// One that has tried to save where it cannot.
fn unable_to_save() -> Redis {
    let arguments = [
        "--dir",
        "/proc",
        "--save",
        "3600 1",
        "--shutdown-on-sigterm",
        "nosave",
    ];
    let server = Redis::start_with(ports::free_addr(), &arguments);
    assert_eq!(call(server.addr, "SET key value").unwrap(), "+OK");
    assert!(call(server.addr, "BGSAVE").unwrap().starts_with('+'));
    wait_until("it cannot save", secs(30), || {
        call(server.addr, "PING").unwrap().starts_with("-MISCONF ")
    });
    server
}

#[test]
fn one_that_cannot_save_serves_readers() {
    let server = unable_to_save();
    let writers = setup(&[&server], "on_down = \"close\"", "role = \"primary\"");
    let anyone = setup(&[&server], "on_down = \"close\"", "role = \"any\"");
    let readers = setup(&[&server], "", "role = \"primary\"\nrequire_writes = false");
    let strict = setup(&[&server], "", "require_writes = true");
    for setup in [&writers, &strict] {
        wait_until("its check reports that it refuses writes", secs(30), || {
            setup.status(&server)["last_check"]["result"] == "refuses_writes"
        });
        setup.wait_state(&server, "down");
        let status = setup.status(&server);
        let why = status["why"].as_str().unwrap();
        assert!(
            why.starts_with("its check reports: refuses_writes: PING: \"MISCONF "),
            "{why}"
        );
    }
    for setup in [&anyone, &readers] {
        wait_until("it has been checked", secs(30), || {
            setup.status(&server)["last_check"]["result"] == "ok"
        });
        setup.wait_state(&server, "up");
        assert_eq!(setup.status(&server)["why"], "it refuses writes: MISCONF");
        assert_eq!(call(setup.front, "GET key").unwrap(), "value");
    }
}

/// Keeps a server busy until the script is killed.
fn keep_busy(server: &Redis) -> TcpStream {
    let mut stream = net::connect(server.addr).unwrap();
    let script = "EVAL_RO \"while true do end\" 0\r\n";
    stream.write_all(script.as_bytes()).unwrap();
    wait_until("it is busy", secs(30), || {
        call(server.addr, "PING").is_ok_and(|answer| answer.starts_with("-BUSY "))
    });
    stream
}

#[test]
fn a_busy_server_can_be_reached_to_kill_its_script() {
    let arguments = ["--busy-reply-threshold", "1"];
    let primary = Redis::start_with(ports::free_addr(), &arguments);
    let replica = Redis::start_with(ports::free_addr(), &arguments);
    replicate(&replica, &primary);
    wait_until("the replica is in step", secs(30), || {
        info(replica.addr, "replication").contains("master_link_status:up")
    });
    let readers = setup(&[&replica], "", "role = \"replica\"\nfall = 1");
    let anyone = setup(&[&replica, &primary], "", "role = \"any\"\nfall = 1");
    let writers = setup(&[&primary], "", "role = \"primary\"\nfall = 1");
    for (setup, server) in [
        (&readers, &replica),
        (&anyone, &replica),
        (&anyone, &primary),
        (&writers, &primary),
    ] {
        setup.wait_state(server, "up");
    }
    let held = [keep_busy(&primary), keep_busy(&replica)];
    writers.wait_state(&primary, "down");
    assert_eq!(
        writers.status(&primary)["last_check"]["result"],
        "refuses_writes"
    );
    let labels = [("result", "busy")];
    readers
        .tembuku
        .wait_metric("check_results_total", &labels, |n| n >= 3.0);
    readers.wait_state(&replica, "up");
    assert_eq!(readers.status(&replica)["why"], "it is busy with a script");
    wait_until("its check reports that it is busy", secs(30), || {
        anyone.status(&primary)["why"] == "it is busy with a script"
    });
    anyone.wait_state(&primary, "up");
    // By clients that got there through here.
    assert_eq!(call(readers.front, "SCRIPT KILL").unwrap(), "+OK");
    assert_eq!(call(primary.addr, "SCRIPT KILL").unwrap(), "+OK");
    writers.wait_state(&primary, "up");
    wait_until("no check is against it", secs(30), || {
        readers.status(&replica)["why"] == ""
    });
    drop(held);
}

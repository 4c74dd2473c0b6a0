//! A primary dies, and Redis Sentinel chooses the next: the balancer gets no message of it.

use crate::{
    checks_redis::{setup, three},
    harness::{
        millis, ports,
        proc::{Proc, command},
        programs::call,
        secs,
        temp::TempDir,
    },
};
use std::time::Instant;

#[test]
fn writers_follow_a_fail_over() {
    let [primary, one, two] = three();
    let sentinel = ports::free_addr();
    let dir = TempDir::new();
    // It keeps its state in this file.
    let config = dir.write(
        "sentinel.conf",
        &format!(
            "port {}\nbind 127.0.0.1\ndir {}\nsentinel monitor m {} {} 1\n\
             sentinel down-after-milliseconds m 1000\nsentinel failover-timeout m 5000\n",
            sentinel.port(),
            dir.path().display(),
            primary.addr.ip(),
            primary.addr.port()
        ),
    );
    let mut command = command("redis-server");
    command.arg(&config).arg("--sentinel");
    let mut proc = Proc::start("sentinel", dir.path(), command);
    // Until it knows both replicas it could not promote one.
    proc.wait_ready(secs(30), || {
        call(sentinel, "SENTINEL CKQUORUM m").is_ok_and(|answer| answer.starts_with("+OK"))
            && std::fs::read_to_string(&config)
                .is_ok_and(|text| text.matches("known-replica").count() == 2)
    });

    let setup = setup(
        &[&primary, &one, &two],
        "on_down = \"close\"",
        "role = \"primary\"",
    );
    setup.wait_state(&primary, "up");
    assert_eq!(call(setup.front, "SET before x").unwrap(), "+OK");
    let mut primary = primary;
    primary.proc.kill();
    let killed = Instant::now();
    let mut refused = 0;
    let accepted = loop {
        match call(setup.front, "SET after x") {
            Ok(answer) if answer == "+OK" => break Instant::now(),
            answer => {
                // No replica may be asked to write.
                assert!(
                    !answer.is_ok_and(|a| a.starts_with("-READONLY")),
                    "a replica got a write"
                );
                refused += 1;
            }
        }
        assert!(killed.elapsed() < secs(60), "no write is accepted");
        std::thread::sleep(millis(5)); // the pace of the writer
    };
    let promoted = [&one, &two]
        .into_iter()
        .find(|server| call(server.addr, "ROLE").is_ok_and(|answer| answer == "*3"))
        .expect("a new primary");
    println!(
        "first write accepted {:?} after the kill, {refused} refused until then",
        accepted - killed
    );
    assert_eq!(call(promoted.addr, "GET after").unwrap(), "x");
    setup.wait_state(&primary, "down");
    setup.wait_state(promoted, "up");
}

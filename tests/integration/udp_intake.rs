//! Calls that receive and keep failing, and calls that are not there at all.

use crate::harness::{
    net::PATIENCE,
    ports,
    proc::{self, command, run},
    secs,
    tembuku::{Tembuku, binary},
    temp::TempDir,
    udp::{UdpServer, V4, ask_until_answered, client, config},
    wait_until,
};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// Eight calls fail, each thread for itself, after one that works: the first is that of the start.
#[test]
fn a_socket_that_does_not_receive_is_left_alone_for_a_while() {
    let server = UdpServer::sink();
    let front = ports::free_addr();
    let config = config(front, "", "", &[server.addr]).replace("workers = 2", "workers = 1");
    let tembuku = Tembuku::start_under(
        "strace -D -f -o /dev/null -e trace=recvmmsg -e inject=recvmmsg:error=EIO:when=2..9",
        &config,
    );
    let client = client(front);
    client.send(b"before").unwrap();
    wait_until("the first has come", PATIENCE, || server.taken() == 1);
    assert_eq!(tembuku.get("/readyz").status, 200);
    let began = Instant::now();
    client.send(b"after").unwrap();
    wait_until("it is not ready", PATIENCE, || {
        let response = tembuku.get("/readyz");
        response.status == 503 && response.body.contains("listener l")
    });
    // Nothing is lost, and it is ready again.
    wait_until("the second has come", PATIENCE, || server.taken() == 2);
    let took = began.elapsed();
    // 10, 20, 40... milliseconds between them.
    assert!(took >= Duration::from_millis(1_270), "{took:?}");
    wait_until("it is ready", PATIENCE, || {
        tembuku.get("/readyz").status == 200
    });
    assert_eq!(tembuku.metric("accept_errors_total", &[]), 8.0);
    let log = tembuku.proc.stderr();
    assert_eq!(log.matches("cannot receive").count(), 1, "{log}");
}

/// Replies of one flow cannot be received: the flow ends, and does not keep its thread busy.
#[test]
fn a_flow_that_does_not_receive_ends() {
    let server = UdpServer::echo(V4);
    let front = ports::free_addr();
    let config = config(front, "", "", &[server.addr]).replace("workers = 2", "workers = 1");
    let tembuku = Tembuku::start_under(
        "strace -D -f -o /dev/null -e trace=recvmmsg -e inject=recvmmsg:error=EIO:when=2..17",
        &config,
    );
    let client = client(front);
    client.send(b"lost").unwrap();
    tembuku.wait_closed("backend_refused", 1.0);
    assert_eq!(ask_until_answered(&client, "after"), "after");
}

#[test]
fn calls_that_are_missing_are_named_at_the_start() {
    let dir = TempDir::new();
    let front: SocketAddr = ports::free_addr();
    let text = config(front, "", "", &[ports::free_addr()]);
    let text = text.replace("{dir}", dir.path().to_str().unwrap());
    let path = dir.write("tembuku.toml", &text);
    for call in ["recvmmsg", "sendmmsg"] {
        for error in ["ENOSYS", "EPERM"] {
            let mut strace = command(&format!(
                "strace -f -o /dev/null -e trace={call} -e inject={call}:error={error}"
            ));
            strace.arg(binary()).args(["run", "-c"]).arg(&path);
            let output = run(secs(20), strace);
            let message = proc::text(&output);
            assert_eq!(output.status.code(), Some(1), "{message}");
            assert!(
                message.contains(&format!("system call {call}")),
                "{message}"
            );
            assert!(message.contains("SystemCallFilter"), "{message}");
            assert!(!message.contains("\"listening\""), "{message}");
        }
    }
}

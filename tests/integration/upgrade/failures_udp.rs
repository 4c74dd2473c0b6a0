//! The same as `failures`, for flows: one of both processes fails at a message.

use super::{Succession, between, listener, upstream};
use crate::harness::{
    ports, proc,
    proc::text,
    secs,
    tembuku::binary,
    udp::{UdpServer, ask, ask_until_answered, client, named},
};
use std::{
    net::{SocketAddr, UdpSocket},
    path::PathBuf,
    process::Command,
};

struct Row {
    tembuku: Succession,
    front: SocketAddr,
    clients: Vec<UdpSocket>,
    _servers: Vec<UdpServer>,
}

impl Row {
    #[track_caller]
    fn new() -> Self {
        let servers = named(1);
        let front = ports::free_addr();
        let config = "[process]\nworkers = 2\n".to_owned()
            + &listener("l", &front.to_string(), "u")
            + "protocol = \"udp\"\n"
            + &upstream("u", &format!("\"{}\"", servers[0].addr));
        let tembuku = Succession::start(&config);
        let clients: Vec<UdpSocket> = (0..60).map(|_| client(front)).collect();
        let row = Self {
            tembuku,
            front,
            clients,
            _servers: servers,
        };
        row.all_are_answered("at first");
        row
    }

    #[track_caller]
    fn all_are_answered(&self, what: &str) {
        for (n, client) in self.clients.iter().enumerate() {
            let question = format!("{what} {n}");
            assert_eq!(ask(client, &question), format!("b1 {question}"));
        }
    }

    fn run(&self, program: PathBuf) -> std::process::Output {
        let mut command = Command::new(binary());
        command
            .arg("upgrade")
            .arg("--socket")
            .arg(self.tembuku.socket());
        command.arg("--binary").arg(program).env("NO_COLOR", "1");
        proc::run(secs(100), command)
    }
}

/// The flows that it has taken end with it; clients go on with new ones.
#[test]
fn a_new_process_that_fails_while_it_takes_flows_costs_no_client() {
    let mut row = Row::new();
    for (behaviour, words) in [
        ("kill-new at udp_flows 1", "has ended"),
        ("kill-new at udp_flows 2", "has ended"),
        ("kill-new at udp_taken 1", "has ended"),
        ("kill-new at udp_taken 2", "has ended"),
        ("garbage at udp_taken 1", ""),
        ("swallow at udp_taken 2", "has not answered in time"),
        ("stop-new at udp_flows 1", "has not answered in time"),
    ] {
        let program = between::program(&row.tembuku, behaviour);
        let output = row.run(program);
        let printed = text(&output);
        assert_eq!(output.status.code(), Some(1), "{behaviour}: {printed}");
        assert!(printed.contains(words), "{behaviour}: {printed}");
        assert!(
            between::done(&row.tembuku).is_some(),
            "{behaviour}: {printed}"
        );
        assert_eq!(row.tembuku.pid(), row.tembuku.current, "{behaviour}");
        row.all_are_answered(behaviour);
    }
    row.tembuku.upgrade();
    row.all_are_answered("in another process");
}

/// The new one receives from all sockets then.
#[test]
fn an_old_process_that_is_killed_while_it_gives_flows_costs_no_client() {
    for behaviour in [
        "kill-old at accepting 1",
        "kill-old at udp_flows 1",
        "kill-old at udp_flows 2",
        "kill-old at udp_taken 1",
        "kill-old at udp_taken 2",
    ] {
        let mut row = Row::new();
        let program = between::program(&row.tembuku, behaviour);
        let _ = row.run(program);
        row.tembuku.current = between::done(&row.tembuku).expect("a new process");
        // What came in between may have reached the process that was killed.
        let first = ask_until_answered(&client(row.front), "first");
        assert_eq!(first, "b1 first", "{behaviour}");
        assert_eq!(row.tembuku.pid(), row.tembuku.current, "{behaviour}");
        row.all_are_answered(behaviour);
        row.tembuku.wait_alone();
        row.tembuku.upgrade();
        row.all_are_answered("in another process");
    }
}

/// It keeps the flows that the new one has no descriptors for, until they are silent.
#[test]
fn a_new_process_that_may_open_no_more_takes_no_flows() {
    let mut row = Row::new();
    let program = between::program(&row.tembuku, "no-descriptors at udp_flows 1");
    let output = row.run(program);
    let printed = text(&output);
    assert_eq!(output.status.code(), Some(0), "{printed}");
    assert!(
        !printed.contains("and 0 flows stay") && printed.contains("flows stay"),
        "{printed}"
    );
    row.tembuku.current = between::done(&row.tembuku).unwrap();
    let pid = row.tembuku.current;
    let mut limit = proc::command("prlimit --nofile=20000:");
    limit.arg(format!("--pid={pid}"));
    proc::run_ok(secs(5), limit);
    row.all_are_answered("with new flows");
}

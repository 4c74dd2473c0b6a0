//! Link-local addresses with their interface, and listeners that are their own backend.

use crate::harness::{
    net::read_line,
    ports,
    proc::{command, run_ok, text},
    programs::{again_in_own_place, place},
    secs,
    server::Server,
    tembuku::{Tembuku, cli},
    temp::TempDir,
};
use std::net::{SocketAddr, SocketAddrV6, TcpStream};

fn shell(line: &str) {
    run_ok(secs(10), command(line));
}

/// An interface of this network alone.
fn add_interface(address: &str) -> u32 {
    shell("ip link add side0 type veth peer name side1");
    for side in ["side0", "side1"] {
        shell(&format!("ip link set {side} up"));
    }
    shell(&format!("ip addr add {address} dev side0"));
    // As in "7: side0@side1: <BROADCAST,…".
    let shown = run_ok(secs(10), command("ip -o link show side0"));
    shown.split(':').next().unwrap().trim().parse().unwrap()
}

/// The exit codes of `check` and `run`, and the output of `run`.
fn outcome(config: &str) -> (Option<i32>, Option<i32>, String) {
    let dir = TempDir::new();
    let file = dir.write("t.toml", config);
    let file = file.to_str().unwrap();
    let run = cli(&["run", "-c", file]);
    let check = cli(&["check", "-c", file]);
    (check.status.code(), run.status.code(), text(&run))
}

#[test]
fn addresses_with_an_interface() {
    if place().is_none() {
        return again_in_own_place("interfaces::addresses_with_an_interface");
    }
    let number = add_interface("fe80::77/64 nodad");
    let at = |port| -> SocketAddr {
        SocketAddrV6::new("fe80::77".parse().unwrap(), port, 0, number).into()
    };
    let _server = Server::named_on("b1", &[at(29_101)]);
    let tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = [\"[fe80::77%side0]:29102\", \"[fe80::77%{number}]:29103\"]\n\
         upstream = \"u\"\n\
         [upstreams.u]\nbackends = [\"[fe80::77%side0]:29101\"]\n\
         [upstreams.u.check]\nkind = \"tcp\"\naddress = \"[fe80::77%side0]:29101\"\n"
    ));
    for port in [29_102, 29_103] {
        let mut client = TcpStream::connect(at(port)).unwrap();
        assert_eq!(read_line(&mut client).unwrap(), "b1");
    }
    tembuku.wait_metric("check_results_total", &[("result", "ok")], |n| n >= 1.0);
    let file = tembuku.dir.file("tembuku.toml");
    let file = file.to_str().unwrap();
    let explained = cli(&["explain", "-c", file, "--client", "192.0.2.1"]);
    assert!(
        text(&explained).contains("[fe80::77%side0]:29101"),
        "{}",
        text(&explained)
    );
    let dumped = cli(&["check", "--dump", "-c", file]);
    assert!(
        text(&dumped).contains("\"[fe80::77%side0]:29102\""),
        "{}",
        text(&dumped)
    );
}

/// Another machine may have it, so only a start refuses it.
#[test]
fn an_interface_that_is_not_there() {
    let port = ports::free_port();
    let config = |bind: &str, backend: &str| {
        format!(
            "[listeners.l]\nbind = \"{bind}\"\nupstream = \"u\"\n\
             [upstreams.u]\nbackends = [\"{backend}\"]\n"
        )
    };
    for (config, named) in [
        (
            config(&format!("[fe80::1%no-such0]:{port}"), "10.0.0.1:80"),
            "listener l: cannot listen on [fe80::1%no-such0]",
        ),
        (
            config(&format!("127.0.0.1:{port}"), "[fe80::1%no-such0]:80"),
            "upstream u: backend [fe80::1%no-such0]:80",
        ),
        (
            config(&format!("127.0.0.1:{port}"), "[fe80::1%999999]:80"),
            "upstream u: backend [fe80::1%999999]:80",
        ),
    ] {
        let (check, run, message) = outcome(&config);
        assert_eq!((check, run), (Some(0), Some(1)), "{message}");
        assert!(
            message.contains(named) && message.contains("no such network interface"),
            "{message}"
        );
    }
}

#[test]
fn a_listener_on_all_addresses_is_not_its_own_backend_by_one_of_them() {
    if place().is_none() {
        return again_in_own_place(
            "interfaces::a_listener_on_all_addresses_is_not_its_own_backend_by_one_of_them",
        );
    }
    add_interface("192.0.2.1/24");
    place().unwrap().set_hosts("192.0.2.1 own.example");
    for backend in ["192.0.2.1:29110", "own.example:29110"] {
        for protocol in ["tcp", "udp"] {
            let (check, run, message) = outcome(&format!(
                "[listeners.l]\nbind = \"0.0.0.0:29110\"\nupstream = \"u\"\n\
                 protocol = \"{protocol}\"\n\
                 [upstreams.u]\nbackends = [\"{backend}\"]\n"
            ));
            assert_eq!((check, run), (Some(0), Some(1)), "{message}");
            let way = format!("listener l is its own backend: l -> \"{backend}\" -> l");
            assert!(message.contains(&way), "{message}");
        }
    }
}

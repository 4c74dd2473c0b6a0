//! `import haproxy`: what is made of a configuration does the same as HAProxy with it.

use crate::harness::{
    net::{ask, connect, read_all},
    ports,
    proc::{self, text},
    programs::Haproxy,
    secs,
    server::Server,
    tembuku::{Tembuku, cli},
    temp::TempDir,
    wait_until,
};
use std::{collections::BTreeMap, net::SocketAddr, time::Instant};

/// HAProxy and tembuku from the same text, in which LISTEN is where they listen.
fn start(sections: &str) -> (Haproxy, SocketAddr, Tembuku, SocketAddr) {
    let [first, second] = [ports::free_addr(), ports::free_addr()];
    let with = |addr: SocketAddr| sections.replace("LISTEN", &addr.to_string());
    let haproxy = Haproxy::start(&[first], &with(first));
    let dir = TempDir::new();
    let file = dir.write("haproxy.cfg", &with(second));
    let output = cli(&["import", "haproxy", "--strict", file.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output));
    let config = String::from_utf8(output.stdout).unwrap();
    println!("{config}");
    (haproxy, first, Tembuku::start_imported(&config), second)
}

fn shares(addr: SocketAddr, clients: usize) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for _ in 0..clients {
        *shares.entry(ask(addr).unwrap()).or_insert(0) += 1;
    }
    shares
}

#[test]
fn the_same_shares_and_the_same_backup() {
    let mut servers = vec![
        Server::named("b1"),
        Server::named("b2"),
        Server::named("b3"),
    ];
    let [b1, b2, b3] = [0, 1, 2].map(|n: usize| servers[n].addr);
    let (_haproxy, first, _tembuku, second) = start(&format!(
        "listen web\n  mode tcp\n  bind LISTEN\n  balance roundrobin\n  option tcplog\n\
         \x20 default-server check inter 100 rise 1 fall 1\n\
         \x20 server b1 {b1} weight 2\n  server b2 {b2}\n  server b3 {b3} backup\n"
    ));
    let wanted = BTreeMap::from([("b1".to_owned(), 200), ("b2".to_owned(), 100)]);
    assert_eq!(shares(first, 300), wanted);
    assert_eq!(shares(second, 300), wanted);
    servers.drain(..2);
    for addr in [first, second] {
        wait_until("the backup", secs(20), || {
            ask(addr).is_ok_and(|name| name == "b3")
        });
    }
}

#[test]
fn a_frontend_with_rules_by_address() {
    let server = Server::named("b1");
    let (_haproxy, first, _tembuku, second) = start(&format!(
        "frontend in\n  mode tcp\n  bind LISTEN\n  acl inside src 10.0.0.0/8\n\
         \x20 tcp-request connection reject unless inside\n  default_backend out\n\
         backend out\n  mode tcp\n  server b1 {}\n",
        server.addr
    ));
    for addr in [first, second] {
        assert!(ask(addr).map_or(true, |name| name.is_empty()), "{addr}");
    }
}

/// Without a byte from either side. The limit of one side ends it, and then its peer closes.
#[test]
fn the_shorter_limit_of_the_two_sides_ends_a_session() {
    let server = Server::named("b1");
    for limits in [
        "timeout client 2s\n  timeout server 1m\n",
        "timeout client 1m\n  timeout server 2s\n",
        "timeout client 1m\n  timeout server 1m\n  timeout tunnel 2s\n",
    ] {
        let (_haproxy, first, _tembuku, second) = start(&format!(
            "listen a\n  mode tcp\n  bind LISTEN\n  timeout connect 5s\n  {limits}\
             \x20 server b1 {}\n",
            server.addr
        ));
        for addr in [first, second] {
            let mut stream = connect(addr).unwrap();
            let begin = Instant::now();
            read_all(&mut stream);
            let took = begin.elapsed();
            assert!(
                took > secs(1) && took < secs(15),
                "{addr}: {took:?} with {limits}"
            );
        }
    }
}

#[test]
fn the_configuration_of_haproxy_on_its_page_is_valid() {
    let path = format!("{}/docs/coming-from-haproxy.md", env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(path).unwrap();
    let block = page.split("```haproxy\n").nth(1).unwrap();
    let block = block.split("```").next().unwrap();
    let dir = TempDir::new();
    let file = dir.write("haproxy.cfg", block);
    let mut command = proc::command("haproxy -c -f");
    command.arg(file);
    let output = proc::run(secs(20), command);
    assert!(output.status.success(), "{}", text(&output));
}

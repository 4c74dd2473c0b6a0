//! `import haproxy`: what is made of a configuration does the same as HAProxy with it.

use crate::harness::{
    net::{ask, connect, read_all, read_line, session},
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

/// A server at its `maxconn` is not down: clients wait for it.
#[test]
fn a_full_server_keeps_its_clients_from_the_backup() {
    let servers = [Server::named("b1"), Server::named("b2")];
    let [b1, b2] = [&servers[0], &servers[1]].map(|server| server.addr);
    let (_haproxy, first, tembuku, second) = start(&format!(
        "listen db\n  mode tcp\n  bind LISTEN\n  timeout queue 30s\n\
         \x20 server b1 {b1} maxconn 1\n  server b2 {b2} backup\n"
    ));
    for addr in [first, second] {
        let (held, name) = session(addr).unwrap();
        assert_eq!(name, "b1");
        let mut next = connect(addr).unwrap();
        let waiting = || tembuku.metrics().sum("upstream_waiting_sessions", &[]);
        if addr == second {
            wait_until("it waits", secs(20), || waiting() == 1.0);
        }
        drop(held);
        assert_eq!(read_line(&mut next).unwrap(), "b1", "{addr}");
    }
}

/// The other server has places, and never gets the client.
#[test]
fn a_client_waits_for_the_server_of_its_address_alone() {
    let servers = [Server::named("b1"), Server::named("b2")];
    let [b1, b2] = [&servers[0], &servers[1]].map(|server| server.addr);
    let (_haproxy, first, _tembuku, second) = start(&format!(
        "listen db\n  mode tcp\n  bind LISTEN\n  timeout queue 3s\n  balance source\n\
         \x20 hash-type consistent\n  server b1 {b1} maxconn 1\n  server b2 {b2} maxconn 1\n"
    ));
    for addr in [first, second] {
        let (held, name) = session(addr).unwrap();
        let mut ends = connect(addr).unwrap();
        assert_eq!(read_all(&mut ends).0, b"", "{addr}");
        let mut next = connect(addr).unwrap();
        drop(held);
        assert_eq!(read_line(&mut next).unwrap(), name, "{addr}");
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

/// One process for what two other programs did, as docs/coming-from-haproxy.md has it.
#[test]
fn sections_are_appended_to_what_another_import_has_made() {
    let server = Server::named("b1");
    let [first, second, third] = [0, 1, 2].map(|_| ports::free_addr());
    let dir = TempDir::new();
    let nginx = dir.write(
        "nginx.conf",
        &format!(
            "worker_processes 2; stream {{ server {{ listen {first}; proxy_pass {0}; }}
             server {{ listen {second} udp; proxy_pass {0}; }} }}",
            server.addr
        ),
    );
    let haproxy = dir.write(
        "haproxy.cfg",
        &format!(
            "global\n nbthread 2\nlisten web\n log stdout local0\n bind {third}\n \
             server a {}\n",
            server.addr
        ),
    );
    let import = |program: &str, file: &std::path::Path, flags: &[&str]| {
        let file = file.to_str().unwrap();
        let output = cli(&[&["import", program, file], flags].concat());
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let with_sections = &["--sections"][..];
    let files = [("nginx", &nginx), ("haproxy", &haproxy)];
    for [a, b] in [files, [files[1], files[0]]] {
        let (whole, appended) = (import(a.0, a.1, &[]), import(b.0, b.1, with_sections));
        let config = format!("{whole}{appended}");
        let program = Tembuku::start_imported(&config);
        for addr in [first, third] {
            assert_eq!(ask(addr).unwrap(), "b1");
        }
        let file = program.dir.file("tembuku.toml");
        let dump = cli(&["check", "--dump", "-c", file.to_str().unwrap()]);
        let dump: toml::Table = String::from_utf8(dump.stdout).unwrap().parse().unwrap();
        let of = |listener: &str, key: &str| dump["listeners"][listener][key].to_string();
        let tcp = format!("tcp-{}", first.port());
        let udp = format!("udp-{}", second.port());
        for (listener, key, value) in [
            (tcp.as_str(), "half_close", "false"),
            (tcp.as_str(), "connect_timeout", "\"1m\""),
            (tcp.as_str(), "idle_timeout", "\"10m\""),
            (udp.as_str(), "idle_timeout", "\"10m\""),
            ("web", "half_close", "true"),
            ("web", "half_close_timeout", "\"0s\""),
            ("web", "connect_timeout", "\"127s\""),
            ("web", "idle_timeout", "\"0s\""),
        ] {
            assert_eq!(of(listener, key), value, "{listener} {key} in\n{config}");
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

/// As many sessions of an address as HAProxy lets in, and another one once one of them has ended.
#[test]
fn the_same_number_of_connections_of_a_source() {
    let server = Server::named("b1");
    for (rule, most) in [("src_conn_cur gt 20", 20), ("sc_conn_cur(0) ge 20", 19)] {
        let (_haproxy, first, _tembuku, second) = start(&format!(
            "listen db\n  mode tcp\n  bind LISTEN\n\
             \x20 stick-table type ip size 1k expire 30s store conn_cur\n\
             \x20 tcp-request connection track-sc0 src\n\
             \x20 tcp-request connection reject if {{ {rule} }}\n  server b1 {}\n",
            server.addr
        ));
        for addr in [first, second] {
            let mut held = Vec::new();
            wait_until("no session of the start is left", secs(20), || {
                held.clear();
                while let Ok((stream, name)) = session(addr)
                    && name == "b1"
                {
                    held.push(stream);
                }
                held.len() == most
            });
            assert!(ask(addr).map_or(true, |name| name.is_empty()), "{addr}");
            held.pop();
            wait_until("another one", secs(20), || {
                ask(addr).is_ok_and(|name| name == "b1")
            });
        }
    }
}

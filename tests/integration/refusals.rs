//! Clients that are refused leave a record in the access log, and records name the address behind a
//! host name.

use crate::harness::{
    net::{self, assert_closed_at_once, assert_ends_now, connect},
    poll, ports,
    programs::Nginx,
    secs,
    server::{Server, list, named},
    tembuku::Tembuku,
    udp::{self, UdpServer, V4, client, client_from},
};
use serde_json::Value;
use std::{
    fs,
    io::Write,
    net::{SocketAddr, TcpStream},
    time::Instant,
};

/// The records of one listener, once there are so many.
#[track_caller]
fn records(tembuku: &Tembuku, listener: &str, count: usize) -> Vec<Value> {
    let path = tembuku.dir.file("access.log");
    let read = || -> Vec<Value> {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let records = text[..whole]
            .lines()
            .map(|l| serde_json::from_str(l).unwrap());
        records
            .filter(|r: &Value| r["listener"] == listener)
            .collect()
    };
    let enough = |records: &Vec<Value>| records.len() >= count;
    let found = poll(secs(10), || Some(read()).filter(enough));
    found.unwrap_or_else(|| panic!("not {count} records of {listener}: {:?}", read()))
}

/// Every field that a record of a session has, and nothing that was not so.
#[track_caller]
fn check_refusal(record: &Value, protocol: &str, from: SocketAddr, reason: &str) {
    let of = |key: &str| {
        let value = record.get(key);
        value
            .unwrap_or_else(|| panic!("no {key} in {record}"))
            .clone()
    };
    assert_eq!(of("close_reason"), reason, "{record}");
    assert_eq!(of("protocol"), protocol, "{record}");
    assert_eq!(of("remote_addr"), from.ip().to_string(), "{record}");
    assert_eq!(of("remote_port"), from.port(), "{record}");
    for key in ["backend", "backend_addr", "connect_time", "first_byte_time"] {
        assert!(of(key).is_null(), "{key} in {record}");
    }
    for key in ["bytes_received", "bytes_sent"] {
        assert_eq!(of(key), 0, "{record}");
    }
    assert_eq!(of("attempts"), Value::Array(Vec::new()), "{record}");
    assert!(of("session_time").is_f64() && of("time").is_string());
    assert_eq!(of("upstream"), "u");
    let datagrams = match protocol {
        "udp" => Value::from(0),
        _ => Value::Null,
    };
    assert_eq!(record["datagrams_received"], datagrams, "{record}");
    assert_eq!(record["datagrams_sent"], datagrams, "{record}");
}

fn local(stream: &TcpStream) -> SocketAddr {
    stream.local_addr().unwrap()
}

#[test]
fn connections_that_are_refused_have_a_record() {
    let servers = named(1);
    let names = ["denied", "full", "header", "named", "process"];
    let fronts = names.map(|_| ports::free_addr());
    let keys = [
        "access = [\"deny all\"]",
        "max_connections = 1",
        "accept_proxy = true",
        "accept_proxy = true\naccess = [\"deny 10.0.0.0/8\"]",
        "",
    ];
    let listeners: String = (0..names.len())
        .map(|n| {
            let (name, front, keys) = (names[n], fronts[n], keys[n]);
            format!("[listeners.{name}]\nbind = \"{front}\"\nupstream = \"u\"\n{keys}\n")
        })
        .collect();
    let tembuku = Tembuku::start(&format!(
        "[process]\nmax_connections = 3\n[log]\naccess = \"{{dir}}/access.log\"\n{listeners}\
         [upstreams.u]\nbackends = {}\n",
        list(&servers)
    ));
    let refused = |n: usize, payload: &str, reason: &str, count: usize| {
        let mut client = connect(fronts[n]).unwrap();
        let from = local(&client);
        client.write_all(payload.as_bytes()).unwrap();
        assert_ends_now(&mut client);
        let all = records(&tembuku, names[n], count);
        assert_eq!(all.len(), count, "{all:?}");
        (all[count - 1].clone(), from, reason.to_owned())
    };
    let check = |(record, from, reason): (Value, SocketAddr, String)| {
        check_refusal(&record, "tcp", from, &reason);
    };
    check(refused(0, "", "access", 1));
    let (kept, _) = net::session(fronts[1]).unwrap();
    check(refused(1, "", "max_connections", 1));
    check(refused(
        2,
        "no header at all, and long enough\r\n",
        "proxy_header",
        1,
    ));
    // The header's client is the one that is refused; the peer stands beside it.
    let header = "PROXY TCP4 10.1.2.3 127.0.0.1 4321 80\r\n";
    let (record, peer, reason) = refused(3, header, "access", 1);
    check_refusal(&record, "tcp", "10.1.2.3:4321".parse().unwrap(), &reason);
    assert_eq!(record["proxy_protocol_addr"], "10.1.2.3");
    assert_eq!(record["realip_remote_addr"], "127.0.0.1");
    assert_eq!(record["realip_remote_port"], peer.port());
    let others: Vec<_> = (0..2).map(|_| net::session(fronts[4]).unwrap()).collect();
    check(refused(4, "", "process_max_connections", 1));
    // As many records as the metric counts, and those of sessions besides.
    drop((kept, others));
    records(&tembuku, "process", 3);
    records(&tembuku, "full", 2);
    let metrics = tembuku.metrics();
    assert_eq!(metrics.sum("listener_rejected_total", &[]), 5.0);
    assert_eq!(metrics.sum("sessions_closed_total", &[]), 3.0);
    assert_eq!(tembuku.access_log(8).len(), 8);
}

#[test]
fn a_header_that_does_not_come_in_time_has_a_record() {
    let servers = named(1);
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[log]\naccess = \"{{dir}}/access.log\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         accept_proxy = {{ timeout = \"200ms\" }}\n[upstreams.u]\nbackends = {}\n",
        list(&servers)
    ));
    let mut client = connect(front).unwrap();
    assert_ends_now(&mut client);
    let record = &records(&tembuku, "l", 1)[0];
    check_refusal(record, "tcp", local(&client), "proxy_timeout");
    assert!(record["session_time"].as_f64().unwrap() > 0.19, "{record}");
}

#[test]
fn datagrams_that_begin_no_flow_have_a_record() {
    let server = UdpServer::echo(V4);
    let names = ["denied", "full", "source", "header", "down"];
    let fronts = names.map(|_| ports::free_addr());
    let keys = [
        "access = [\"deny all\"]",
        "max_connections = 1",
        "max_connections_per_source = 1",
        "accept_proxy = true",
        "",
    ];
    let listeners: String = (0..names.len())
        .map(|n| {
            let (name, front, keys) = (names[n], fronts[n], keys[n]);
            let upstream = if name == "down" { "d" } else { "u" };
            format!(
                "[listeners.{name}]\nbind = \"{front}\"\nprotocol = \"udp\"\n\
                 upstream = \"{upstream}\"\n{keys}\n"
            )
        })
        .collect();
    let tembuku = Tembuku::start(&format!(
        "[log]\naccess = \"{{dir}}/access.log\"\n{listeners}[upstreams.u]\nbackends = {}\n\
         [upstreams.d]\nbackends = [{{ address = \"127.0.0.1:9\", down = true }}]\n",
        udp::list(&[server.addr])
    ));
    let refused = |n: usize, reason: &str| {
        let client = client(fronts[n]);
        client.send(b"hello").unwrap();
        let all = records(&tembuku, names[n], 1);
        assert_eq!(all.len(), 1, "{all:?}");
        check_refusal(&all[0], "udp", client.local_addr().unwrap(), reason);
    };
    refused(0, "access");
    let first = client(fronts[1]);
    assert_eq!(udp::ask(&first, "in"), "in");
    refused(1, "max_connections");
    let first = client(fronts[2]);
    assert_eq!(udp::ask(&first, "in"), "in");
    refused(2, "max_connections_per_source");
    refused(3, "proxy_header");
    // For want of a backend, too: the metric counts it as a session.
    let client = client(fronts[4]);
    client.send(b"hello").unwrap();
    let record = &records(&tembuku, "down", 1)[0];
    assert_eq!(record["close_reason"], "no_backend");
    assert_eq!(record["upstream"], "d");
}

/// Forged senders cost nothing, so that their records must not crowd out others.
#[test]
fn a_flood_of_refused_datagrams_leaves_few_records() {
    const FLOOD: usize = 4_000;
    let server = UdpServer::echo(V4);
    let (denied, good) = (ports::free_addr(), ports::free_addr());
    let tembuku = Tembuku::start(&format!(
        "[process]\nworkers = 1\n[log]\naccess = \"{{dir}}/access.log\"\n\
         [listeners.denied]\nbind = \"{denied}\"\nprotocol = \"udp\"\nupstream = \"u\"\n\
         access = [\"deny all\"]\n\
         [listeners.good]\nbind = \"{good}\"\nprotocol = \"udp\"\nupstream = \"u\"\nresponses = 1\n\
         idle_timeout = \"200ms\"\n[upstreams.u]\nbackends = {}\n",
        udp::list(&[server.addr])
    ));
    let began = Instant::now();
    let flooder = client_from(V4, denied);
    for n in 1..=FLOOD {
        flooder.send(b"flood").unwrap();
        // Not more at once than the receive buffer holds: all of them are to be counted.
        if n % 100 == 0 {
            let labels = [("listener", "denied")];
            tembuku.wait_metric("listener_rejected_total", &labels, |all| all == n as f64);
        }
    }
    let seconds = began.elapsed().as_secs() as usize + 2;
    assert_eq!(udp::ask(&client(good), "in"), "in");
    let good = records(&tembuku, "good", 1);
    assert_eq!(good[0]["bytes_sent"], 2, "{good:?}");
    let denied = records(&tembuku, "denied", 1).len();
    println!("{denied} records of {FLOOD} datagrams in {seconds} s");
    assert!((100..=100 * seconds).contains(&denied), "{denied}");
    assert_eq!(tembuku.metric("access_log_dropped_total", &[]), 0.0);
}

/// nginx has a line for each client that it refuses, with 403 for a rule and 502 for want of a
/// backend, and names the address in `$upstream_addr`.
#[test]
fn nginx_has_a_record_of_the_same_clients() {
    let server = Server::named("b1");
    let datagrams = UdpServer::echo(V4);
    let fronts: Vec<SocketAddr> = (0..8).map(|_| ports::free_addr()).collect();
    let [port, udp_port] = [server.addr.port(), datagrams.addr.port()];
    let nginx = Nginx::start(
        fronts[2],
        &format!(
            "stream {{ log_format l '$protocol $status $upstream_addr'; \
             access_log {{dir}}/a.log l;\n\
             upstream u {{ server localhost:{port}; }}\n\
             upstream d {{ server localhost:{udp_port}; }}\n\
             server {{ listen {}; deny all; proxy_pass u; }}\n\
             server {{ listen {} udp; deny all; proxy_pass d; }}\n\
             server {{ listen {}; proxy_pass u; }}\n\
             server {{ listen {} udp; proxy_pass d; proxy_responses 1; }} }}",
            fronts[0], fronts[1], fronts[2], fronts[3]
        ),
    );
    let tembuku = Tembuku::start(&format!(
        "[log]\naccess = \"{{dir}}/access.log\"\n\
         [listeners.a]\nbind = \"{}\"\nupstream = \"u\"\naccess = [\"deny all\"]\n\
         [listeners.b]\nbind = \"{}\"\nprotocol = \"udp\"\nupstream = \"d\"\n\
         access = [\"deny all\"]\n\
         [listeners.c]\nbind = \"{}\"\nupstream = \"u\"\n\
         [listeners.d]\nbind = \"{}\"\nprotocol = \"udp\"\nupstream = \"d\"\nresponses = 1\n\
         [upstreams.u]\nbackends = [\"localhost:{port}\"]\n\
         [upstreams.d]\nbackends = [\"localhost:{udp_port}\"]\n",
        fronts[4], fronts[5], fronts[6], fronts[7]
    ));
    for fronts in fronts.chunks(4) {
        assert_closed_at_once(fronts[0]);
        client(fronts[1]).send(b"hello").unwrap();
        assert_eq!(net::ask(fronts[2]).unwrap(), "b1");
        // The first one may go to an address of the name where no server is.
        assert_eq!(udp::ask_until_answered(&client(fronts[3]), "in"), "in");
    }
    let lines = || fs::read_to_string(nginx.file("a.log")).unwrap_or_default();
    let has = |line: &str| lines().lines().any(|l| l == line);
    let last = |text: String| text.split(", ").last().unwrap_or_default().to_owned();
    let served = |protocol: &str| {
        let text = lines();
        let found = text
            .lines()
            .find(|l| l.starts_with(&format!("{protocol} 200 ")));
        found.map(|l| last(l[8..].to_owned()))
    };
    let found = poll(secs(10), || {
        (has("TCP 403 -") && has("UDP 403 -")).then(|| Some((served("TCP")?, served("UDP")?)))?
    });
    let theirs = found.unwrap_or_else(|| panic!("{}", lines()));
    for (listener, reason) in [("a", "access"), ("b", "access")] {
        let ours = &records(&tembuku, listener, 1);
        assert_eq!(ours.len(), 1);
        assert_eq!(ours[0]["close_reason"], reason);
        assert!(ours[0]["backend_addr"].is_null());
    }
    for (listener, address, name) in [("c", theirs.0, port), ("d", theirs.1, udp_port)] {
        let served = |r: &&Value| r["bytes_sent"].as_u64() > Some(0);
        let ours = poll(secs(10), || {
            records(&tembuku, listener, 1).iter().find(served).cloned()
        });
        let ours = ours.expect("the record of a session");
        assert_eq!(ours["backend"], format!("localhost:{name}"), "{ours}");
        assert_eq!(ours["backend_addr"], address, "{ours}");
        let attempts = ours["attempts"].as_array().unwrap();
        assert_eq!(attempts.last().unwrap()["backend_addr"], address, "{ours}");
        for attempt in attempts {
            let of = attempt["backend_addr"].as_str().unwrap();
            assert_eq!(attempt["result"] == "ok", of == address, "{ours}");
        }
    }
}

#[test]
fn the_text_names_the_address_too() {
    let server = Server::named("b1");
    let front = ports::free_addr();
    let port = server.addr.port();
    let tembuku = Tembuku::start(&format!(
        "[log]\nformat = \"text\"\naccess = \"{{dir}}/access.log\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [\"localhost:{port}\"]\n"
    ));
    assert_eq!(net::ask(front).unwrap(), "b1");
    let path = tembuku.dir.file("access.log");
    let text = || fs::read_to_string(&path).unwrap_or_default();
    let found = poll(secs(10), || {
        Some(text()).filter(|text| text.ends_with('\n'))
    });
    let text = found.expect("a line");
    let named = format!(" backend_addr={} ", server.addr);
    assert!(text.contains(&named), "{named} in {text}");
}

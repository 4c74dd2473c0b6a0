//! `tembuku sessions`: what it shows of live sessions, and which ones.

use crate::harness::{
    http,
    net::{connect, connect_with, echo, read_line},
    ports,
    proc::text,
    programs::Redis,
    secs,
    server::{self, Server},
    tembuku::Tembuku,
    udp::{self, UdpServer},
    wait_until,
};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Instant,
};

/// The sessions that the command prints with these filters.
#[track_caller]
fn sessions(tembuku: &Tembuku, filters: &[&str]) -> Vec<Value> {
    let output = tembuku.command(&[&["sessions", "--json"], filters].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let sessions = document["sessions"].as_array().unwrap().clone();
    assert_eq!(document["count"], sessions.len());
    sessions
}

/// A listener each for TCP and UDP, and one behind a proxy.
fn start(servers: &[Server], named: &UdpServer) -> (Tembuku, [SocketAddr; 3]) {
    let fronts = [(); 3].map(|()| ports::free_addr());
    let tembuku = Tembuku::start(&format!(
        "[process]\nworkers = 2\n[log]\naccess = \"{{dir}}/access.log\"\n\
         [admin]\nsocket = \"{{dir}}/admin.sock\"\n\
         [listeners.plain]\nbind = \"{}\"\nupstream = \"u\"\n\
         [listeners.proxied]\nbind = \"{}\"\nupstream = \"u\"\naccept_proxy = true\n\
         [listeners.dns]\nbind = \"{}\"\nprotocol = \"udp\"\nupstream = \"names\"\n\
         [upstreams.u]\nbackends = {}\n[upstreams.names]\nbackends = [\"{}\"]\n",
        fronts[0],
        fronts[1],
        fronts[2],
        server::list(servers),
        named.addr,
    ));
    (tembuku, fronts)
}

#[test]
fn each_session_is_shown_with_what_it_has_carried() {
    let servers = server::named(2);
    let named = UdpServer::named("names");
    let (tembuku, [plain, proxied, dns]) = start(&servers, &named);
    let began = Instant::now();
    let mut direct = connect(plain).unwrap();
    assert_eq!(read_line(&mut direct).unwrap(), "b1");
    echo(&mut direct, "hello").unwrap();
    let mut behind = connect(proxied).unwrap();
    behind
        .write_all(b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 80\r\n")
        .unwrap();
    assert_eq!(read_line(&mut behind).unwrap(), "b2");
    let client = udp::client(dns);
    assert_eq!(udp::ask(&client, "x"), "names x");
    let found = sessions(&tembuku, &[]);
    assert_eq!(found.len(), 3, "{found:#?}");
    let of = |listener: &str| {
        let mut found = found.iter().filter(|s| s["listener"] == listener);
        found.next().unwrap().clone()
    };
    let (plain, proxied, dns) = (of("plain"), of("proxied"), of("dns"));
    let here = direct.local_addr().unwrap().to_string();
    for (session, protocol, client, peer, upstream, backend) in [
        (&plain, "tcp", &here, &here, "u", servers[0].addr),
        (
            &proxied,
            "tcp",
            &"192.0.2.7:4711".to_owned(),
            &behind.local_addr().unwrap().to_string(),
            "u",
            servers[1].addr,
        ),
        (
            &dns,
            "udp",
            &client.local_addr().unwrap().to_string(),
            &client.local_addr().unwrap().to_string(),
            "names",
            named.addr,
        ),
    ] {
        assert_eq!(session["protocol"], protocol);
        assert_eq!(session["client"], *client);
        assert_eq!(session["peer"], *peer);
        assert_eq!(session["upstream"], upstream);
        assert_eq!(session["backend"], backend.to_string());
        assert_eq!(session["backend_addr"], backend.to_string());
        assert_eq!(session["state"], "relaying");
        assert_eq!(session["close_reason"], Value::Null);
        let age = session["age_seconds"].as_f64().unwrap();
        let idle = session["idle_seconds"].as_f64().unwrap();
        let passed = began.elapsed().as_secs_f64();
        assert!((0.0..=passed).contains(&idle) && idle <= age && age <= passed);
    }
    // "b1", its greeting, and the line and its echo.
    assert_eq!(
        (&plain["received_bytes"], &plain["sent_bytes"]),
        (&6.into(), &9.into())
    );
    assert_eq!(
        (&dns["received_bytes"], &dns["sent_bytes"]),
        (&1.into(), &7.into())
    );
    let ids: BTreeSet<u64> = found.iter().map(|s| s["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), 3);
    let shown = tembuku.command(&["sessions", "--listener", "proxied"]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    let by = format!("192.0.2.7:4711 by {}", behind.local_addr().unwrap());
    assert!(
        shown.starts_with("id  listener") && shown.contains(&by),
        "{shown}"
    );
    assert_eq!(shown.lines().count(), 2);
    // The record of a session carries its number.
    let port = plain["backend_port"].as_u64().unwrap();
    drop(direct);
    let record = &tembuku.access_log(1)[0];
    assert_eq!(record["session"], plain["id"]);
    assert!(port > 0);
}

/// The port is what a database shows of its client.
#[test]
fn a_port_leads_from_a_connection_of_redis_to_its_client() {
    let redis = ports::free_addr();
    let _redis = Redis::start(redis);
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[admin]\nsocket = \"{{dir}}/admin.sock\"\n[listeners.l]\nbind = \"{front}\"\n\
         upstream = \"u\"\n[upstreams.u]\nbackends = [\"{redis}\"]\n"
    ));
    let mut clients = Vec::new();
    for n in 0..20 {
        let mut client = BufReader::new(connect(front).unwrap());
        let name = format!("CLIENT SETNAME client-{n}\r\n");
        client.get_mut().write_all(name.as_bytes()).unwrap();
        let mut answer = String::new();
        client.read_line(&mut answer).unwrap();
        assert_eq!(answer, "+OK\r\n");
        clients.push(client);
    }
    let mut client = BufReader::new(connect(redis).unwrap());
    client.get_mut().write_all(b"CLIENT LIST\r\n").unwrap();
    let mut length = String::new();
    client.read_line(&mut length).unwrap();
    let mut list = vec![0; length[1..].trim().parse().unwrap()];
    client.read_exact(&mut list).unwrap();
    let list = String::from_utf8(list).unwrap();
    for n in [3, 17] {
        let line = list
            .lines()
            .find(|line| line.contains(&format!("name=client-{n} ")));
        let fields = line.unwrap().split(' ');
        let address = fields
            .filter_map(|field| field.strip_prefix("addr="))
            .next()
            .unwrap();
        let (_, port) = address.rsplit_once(':').unwrap();
        let found = sessions(&tembuku, &["--backend-port", port]);
        assert_eq!(found.len(), 1, "{port}");
        assert_eq!(found[0]["backend_port"].to_string(), port);
        let client = clients[n].get_ref().local_addr().unwrap();
        assert_eq!(found[0]["client"], client.to_string());
    }
}

#[test]
fn filters_and_limits_are_applied_together() {
    let servers = server::named(2);
    let named = UdpServer::named("names");
    let (tembuku, [plain, proxied, _]) = start(&servers, &named);
    let from = |n: u8| IpAddr::from([127, 0, 9, n]);
    let connect_from = |n: u8| {
        let mut stream = connect_with(plain, Some(from(n)), 0, 0).unwrap();
        read_line(&mut stream).unwrap();
        stream
    };
    let mut old: Vec<TcpStream> = (1..=4).map(connect_from).collect();
    let wait = |filters: &[&str], count: usize| {
        wait_until("sessions of that age", secs(10), || {
            sessions(&tembuku, filters).len() == count
        });
    };
    wait(&["--older-than", "300ms"], 4);
    let mut new: Vec<TcpStream> = (5..=6).map(connect_from).collect();
    assert_eq!(sessions(&tembuku, &["--older-than", "5m"]).len(), 0);
    assert!(sessions(&tembuku, &["--older-than", "300ms"]).len() >= 4);
    wait(&["--idle", "200ms"], 6);
    echo(&mut old[0], "again").unwrap();
    let busy = sessions(&tembuku, &["--client", "127.0.9.1"]);
    assert_eq!(busy[0]["received_bytes"], 6);
    let count = |filters: &[&str]| sessions(&tembuku, filters).len();
    assert_eq!(count(&["--client", "127.0.9.0/30"]), 3);
    assert_eq!(count(&["--client", "127.0.9.0/30", "--limit", "2"]), 2);
    let b1 = servers[0].addr.to_string();
    assert_eq!(count(&["--backend", &b1]), 3);
    assert_eq!(count(&["--backend", &format!("u/{b1}")]), 3);
    // As in `tembuku drain`.
    assert_eq!(count(&[&format!("u/{b1}")]), 3);
    assert_eq!(count(&[&b1, "--client", "127.0.9.1"]), 1);
    assert_eq!(count(&["--backend", &b1, "--client", "127.0.9.1"]), 1);
    assert_eq!(count(&["--upstream", "names"]), 0);
    let one = sessions(&tembuku, &[&b1, "--client", "127.0.9.1"])[0]["id"].to_string();
    assert_eq!(count(&["--id", &one]), 1);
    assert_eq!(count(&["--id", &one, "--client", "127.0.9.2"]), 0);
    assert_eq!(count(&["--listener", "proxied"]), 0);
    // One that has not named its client yet.
    let waiting = connect(proxied).unwrap();
    let mut found = Vec::new();
    wait_until("the session", secs(10), || {
        found = sessions(&tembuku, &["--listener", "proxied"]);
        found.len() == 1
    });
    assert_eq!(found[0]["state"], "connecting");
    assert_eq!(found[0]["backend"], Value::Null);
    assert_eq!(found[0]["backend_port"], Value::Null);
    drop((waiting, old.drain(..), new.drain(..)));
    wait(&[], 0);
}

#[test]
fn the_first_in_an_order_are_shown() {
    let servers = server::named(1);
    let named = UdpServer::named("names");
    let (tembuku, [plain, ..]) = start(&servers, &named);
    let mut clients: Vec<TcpStream> = (0..7)
        .map(|_| {
            let mut client = connect(plain).unwrap();
            assert_eq!(read_line(&mut client).unwrap(), "b1");
            client
        })
        .collect();
    let ids: Vec<String> = {
        let mut found = sessions(&tembuku, &[]);
        let port = |s: &Value| -> u16 {
            let client: SocketAddr = s["client"].as_str().unwrap().parse().unwrap();
            client.port()
        };
        let place = |s: &Value| {
            let of = |c: &TcpStream| c.local_addr().unwrap().port() == port(s);
            clients.iter().position(of).unwrap()
        };
        found.sort_by_key(place);
        found.iter().map(|s| s["id"].to_string()).collect()
    };
    for (n, bytes) in [(2, "some"), (5, "so many more"), (3, "more")] {
        echo(&mut clients[n], bytes).unwrap();
    }
    let first = |filters: &[&str]| -> Vec<String> {
        let output = tembuku.succeed(&[&["sessions"], filters].concat());
        let words = output.lines().skip(1).map(str::split_whitespace);
        words
            .map(|mut words| words.next().unwrap().to_owned())
            .collect()
    };
    let of = |places: &[usize]| -> Vec<String> { places.iter().map(|n| ids[*n].clone()).collect() };
    assert_eq!(first(&["--sort", "age", "--limit", "2"]), of(&[0, 1]));
    assert_eq!(first(&["--sort", "bytes", "--limit", "1"]), of(&[5]));
    assert_eq!(
        first(&["--sort", "age", "--limit", "9"]),
        of(&[0, 1, 2, 3, 4, 5, 6])
    );
    assert_eq!(first(&["--sort", "bytes", "--limit", "0"]).len(), 7);
    let output = tembuku.command(&["sessions", "--sort", "age"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
}

#[test]
fn mistakes_are_named_with_a_way_out() {
    let servers = server::named(1);
    let named = UdpServer::named("names");
    let (tembuku, _) = start(&servers, &named);
    for (arguments, code, expected) in [
        (&["--listener", "plian"][..], 1, "did you mean \"plain\"?"),
        (&["--upstream", "x"], 1, "there is no upstream \"x\""),
        (&["--backend", "10.0.0.1:1"], 1, "there is no backend"),
        (&["--client", "10.0.0.1/33"], 2, "33"),
        (&["--idle", "5"], 2, "without a unit"),
        (&["--backend-port", "70000"], 2, "70000"),
    ] {
        let output = tembuku.command(&[&["sessions"], arguments].concat());
        let shown = text(&output);
        assert_eq!(output.status.code(), Some(code), "{shown}");
        assert!(
            shown.contains(expected) && output.stdout.is_empty(),
            "{shown}"
        );
    }
    let socket = tembuku.dir.file("admin.sock");
    for (method, path, code, expected) in [
        ("GET", "/api/v1/sessions?lisener=x", 400, "did you mean"),
        ("GET", "/api/v1/sessions?limit=-1", 400, "`limit`"),
        ("GET", "/api/v1/sessions?client=x", 400, "`client`"),
        ("POST", "/api/v1/sessions", 405, "GET"),
    ] {
        let answer = http::request_unix(&socket, method, path, "").unwrap();
        assert_eq!(answer.status, code, "{path}");
        assert!(answer.body.contains(expected), "{}", answer.body);
    }
    // The right to read metrics does not include addresses of clients.
    assert_eq!(tembuku.get("/api/v1/sessions").status, 404);
}

//! Several nodes with one configuration: by what they are compared, and their parts of the limits.

use crate::harness::{
    http,
    net::{self, assert_closed_at_once},
    ports,
    proc::{self, run_ok},
    secs,
    server::{Server, named},
    tembuku::{Tembuku, cli},
    wait_until,
};
use serde_json::Value;
use std::{
    net::{SocketAddr, TcpStream},
    process::Command,
};

fn status(tembuku: &Tembuku) -> Value {
    tembuku.status()
}

/// The two hashes of the first upstream.
fn hashes(tembuku: &Tembuku) -> [String; 2] {
    let upstream = &status(tembuku)["upstreams"][0];
    ["ring_hash", "effective_hash"].map(|key| upstream[key].as_str().unwrap().to_owned())
}

fn node(balance: &str, backends: &str) -> String {
    format!(
        "[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
         [listeners.l]\nbind = \"{}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbalance = \"{balance}\"\nbackends = [{backends}]\n",
        ports::free_addr()
    )
}

#[track_caller]
fn run(tembuku: &Tembuku, arguments: &[&str]) {
    let socket = tembuku.dir.file("admin.sock");
    let output = cli(&[arguments, &["--socket", socket.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", proc::text(&output));
}

#[test]
fn hashes_are_equal_on_nodes_that_pick_the_same_backends() {
    let servers = named(3);
    let [a, b, c] = [0, 1, 2].map(|n: usize| format!("\"{}\"", servers[n].addr));
    let one = Tembuku::start(&node("consistent_hash", &format!("{a}, {b}, {c}")));
    let two = Tembuku::start(&node("consistent_hash", &format!("{c}, {a}, {b}")));
    assert_eq!(hashes(&one), hashes(&two), "the order decides nothing");

    // An operator takes a backend out on one of them, and brings it back.
    let backend = format!("u/{}", servers[1].addr);
    run(&two, &["drain", &backend]);
    let (of_one, of_two) = (hashes(&one), hashes(&two));
    assert_eq!(of_one[0], of_two[0]);
    assert_ne!(of_one[1], of_two[1]);
    run(&one, &["drain", &backend]);
    assert_eq!(hashes(&one), hashes(&two));
    run(&one, &["ready", &backend]);
    run(&two, &["ready", &backend]);
    assert_eq!(hashes(&one), of_one);
    assert_eq!(hashes(&two), of_one);

    // A node that was forgotten at a change.
    run(&two, &["weight", &backend, "2"]);
    let of_two = hashes(&two);
    assert!(of_one[0] != of_two[0] && of_one[1] != of_two[1]);
    two.write(&node("consistent_hash", &format!("{a}, {c}")));
    run(&two, &["reload"]);
    assert_ne!(hashes(&two)[0], of_two[0]);

    // Of the metrics as well.
    for (node, name) in [
        (&one, "ring_hash"),
        (&one, "effective_hash"),
        (&two, "ring_hash"),
    ] {
        let hash = status(node)["upstreams"][0][name]
            .as_str()
            .unwrap()
            .to_owned();
        let labels = [("upstream", "u"), ("hash", hash.as_str())];
        assert_eq!(node.metric(&format!("upstream_{name}_info"), &labels), 1.0);
    }
}

#[test]
fn a_policy_without_a_key_has_no_hash() {
    let servers = named(2);
    let addrs = format!("\"{}\", \"{}\"", servers[0].addr, servers[1].addr);
    let tembuku = Tembuku::start(&node("least_conn", &addrs));
    assert_eq!(status(&tembuku)["upstreams"][0]["ring_hash"], Value::Null);
    assert!(!tembuku.get("/metrics").body.contains("ring_hash_info{"));
}

/// The commands of docs/fleet.md that compare two nodes.
#[test]
fn the_command_of_the_documents_shows_where_two_nodes_differ() {
    let servers = named(2);
    let [a, b] = [0, 1].map(|n: usize| format!("\"{}\"", servers[n].addr));
    let one = Tembuku::start(&node("maglev", &format!("{a}, {b}")));
    let two = Tembuku::start(&node("maglev", &a));
    let page = std::fs::read_to_string("docs/fleet.md").unwrap();
    let filters = page.split("jq -c '").skip(1);
    let filters: Vec<&str> = filters
        .map(|rest| rest.split_once('\'').unwrap().0)
        .collect();
    let shown = |node: &Tembuku| {
        let file = node
            .dir
            .write("status.json", &node.get("/api/v1/status").body);
        let run = |filter: &&str| {
            let mut jq = Command::new("jq");
            jq.args(["-c", filter]).arg(&file);
            run_ok(secs(10), jq)
        };
        filters.iter().map(run).collect::<Vec<String>>()
    };
    let (of_one, of_two) = (shown(&one), shown(&two));
    assert_eq!(of_one.len(), 2);
    assert!(of_one[0] != of_two[0] && of_one[1] != of_two[1]);
    assert!(of_one[0].contains(&hashes(&one)[0]), "{of_one:?}");
    assert!(of_one[1].contains("\"up\""), "{of_one:?}");
    two.write(&node("maglev", &format!("{b}, {a}")));
    run(&two, &["reload"]);
    wait_until("they are alike", secs(10), || shown(&one) == shown(&two));
}

fn limited(nodes: u32, front: SocketAddr, server: &Server) -> String {
    format!(
        "[process]\nnodes = {nodes}\n[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\nmax_connections = 10\n\
         connection_rate = \"1000/s\"\nbandwidth_total = {{ up = \"1m\", down = \"2m\" }}\n\
         [upstreams.u]\nbackends = [{{ address = \"{}\", max_connections = 8 }}]\n",
        server.addr
    )
}

#[test]
fn each_node_has_its_part_of_the_limits_and_follows_a_reload() {
    let servers = named(1);
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&limited(3, front, &servers[0]));
    let shown = || {
        let status = status(&tembuku);
        [
            &status["process"]["nodes"],
            &status["listeners"][0]["max_connections"],
            &status["upstreams"][0]["backends"][0]["max_connections"],
        ]
        .map(|value| value.as_u64().unwrap())
    };
    assert_eq!(shown(), [3, 4, 3]);
    let text = {
        let socket = tembuku.dir.file("admin.sock");
        let output = cli(&["status", "--socket", socket.to_str().unwrap()]);
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(text.contains("the limits of one of 3 nodes"), "{text}");

    let mut held: Vec<TcpStream> = (0..3).map(|_| net::session(front).unwrap().0).collect();
    // The backend is full; the listener would take one more.
    assert_closed_at_once(front);
    let full = [("reason", "backends_full")];
    tembuku.wait_metric("sessions_closed_total", &full, |n| n == 1.0);

    let file = tembuku.dir.file("tembuku.toml");
    let config = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, config.replace("nodes = 3", "nodes = 2")).unwrap();
    let socket = tembuku.dir.file("admin.sock");
    let reload = http::request_unix(&socket, "POST", "/api/v1/reload", "{}").unwrap();
    let report: Value = serde_json::from_str(&reload.body).unwrap();
    let keys = &report["changes"][0]["keys"];
    assert_eq!(report["changes"].as_array().unwrap().len(), 1, "{report}");
    assert_eq!(
        (&keys[0]["key"], &keys[0]["after"]),
        (&"nodes".into(), &"2".into())
    );
    assert_eq!(shown(), [2, 5, 4]);
    held.push(net::session(front).unwrap().0);
    assert_closed_at_once(front);
    // A node alone has all of it.
    std::fs::write(&file, config.replace("nodes = 3\n", "")).unwrap();
    run(&tembuku, &["reload"]);
    assert_eq!(shown(), [1, 10, 8]);
    held.extend((0..4).map(|_| net::session(front).unwrap().0));
    assert_closed_at_once(front);
}

#[test]
fn explain_tells_the_part_of_a_node() {
    let servers = named(1);
    let dir = crate::harness::temp::TempDir::new();
    let config = limited(3, ports::free_addr(), &servers[0]).replace("{dir}", "/run");
    let file = dir.write("tembuku.toml", &config);
    let file = file.to_str().unwrap();
    let explain = |more: &[&str]| {
        let arguments = ["explain", "-c", file, "--client", "10.0.0.1"];
        let output = cli(&[&arguments, more].concat());
        assert!(output.status.success(), "{}", proc::text(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let note = format!(
        "on each of 3 nodes {} takes 3 of 8 sessions, the listener takes 4 of 10 sessions",
        servers[0].addr
    );
    assert!(explain(&[]).contains(&note), "{}", explain(&[]));
    let json: Value = serde_json::from_str(&explain(&["--json"])).unwrap();
    let notes = json["notes"].as_array().unwrap();
    assert!(notes.iter().any(|found| *found == note.as_str()), "{json}");
    let dump = cli(&["check", "-c", file, "--dump"]);
    let dump = String::from_utf8(dump.stdout).unwrap();
    assert!(
        dump.contains("nodes = 3") && dump.contains("max_connections = 8"),
        "{dump}"
    );
}

/// Discovered backends do not undo the division.
#[test]
fn discovered_backends_leave_the_parts_as_they_are() {
    let servers = named(2);
    let front = ports::free_addr();
    let tembuku = Tembuku::start(
        &(limited(2, front, &servers[0])
            + "[upstreams.u.discover]\nkind = \"file\"\npath = \"{dir}/backends\"\n\
               interval = \"100ms\"\n"),
    );
    let shown = || {
        let backends = &status(&tembuku)["upstreams"][0]["backends"];
        let backends = backends.as_array().unwrap();
        let limits = backends
            .iter()
            .map(|b| b["max_connections"].as_u64().unwrap());
        limits.collect::<Vec<_>>()
    };
    assert_eq!(shown(), [4]);
    let backends = format!("{}\n", servers[1].addr);
    tembuku.dir.write("backends", &backends);
    wait_until("it is there", secs(20), || shown() == [4, 0]);
    run(&tembuku, &["reload"]);
    assert_eq!(shown(), [4, 0]);
}

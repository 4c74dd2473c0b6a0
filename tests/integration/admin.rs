//! The admin address and the access log.

use crate::harness::{
    http,
    metrics::{Metrics, family},
    millis,
    net::{self, ask, assert_ends_now, connect, connect_with, echo},
    ports,
    proc::{Proc, Streams, narrow_pipe},
    secs,
    server::{Server, ask_many, list, named},
    tembuku::{Tembuku, binary, cli},
    temp::TempDir,
    wait_until,
};
use rustix::process::Signal;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Write,
    net::{SocketAddr, TcpStream, UdpSocket},
    process::{Command, Stdio},
    thread,
};

struct Setup {
    tembuku: Tembuku,
    front: SocketAddr,
    servers: Vec<Server>,
}

fn setup(log: &str) -> Setup {
    let servers = named(2);
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[log]\n{log}\n[listeners.front]\nbind = \"{front}\"\nupstream = \"back\"\n\
         [upstreams.back]\nbackends = {}\n",
        list(&servers)
    ));
    Setup {
        tembuku,
        front,
        servers,
    }
}

#[test]
fn every_metric_of_the_contract_is_there() {
    let setup = setup("");
    for _ in 0..4 {
        let (mut client, _) = net::session(setup.front).unwrap();
        echo(&mut client, "hello").unwrap();
    }
    setup.tembuku.wait_idle();
    let metrics = setup.tembuku.metrics();
    let is = |name: &str, labels: &[(&str, &str)], kind: &str| {
        let full = format!("tembuku_{name}");
        let of_kind = metrics.types.get(&full).map(String::as_str);
        assert_eq!(of_kind, Some(kind), "{name}");
        let series = if kind == "histogram" {
            format!("{name}_count")
        } else {
            name.to_owned()
        };
        assert!(
            metrics.has(&series, labels),
            "{name} {labels:?}\n{}",
            metrics.text
        );
    };
    let listener = [("listener", "front")];
    let backend = setup.servers[0].addr.to_string();
    let backend = [("upstream", "back"), ("backend", backend.as_str())];
    is("build_info", &[], "gauge");
    is("listener_connections_total", &listener, "counter");
    is("listener_active_connections", &listener, "gauge");
    is("listener_received_bytes_total", &listener, "counter");
    is("listener_sent_bytes_total", &listener, "counter");
    for reason in [
        "access",
        "max_connections",
        "process_max_connections",
        "no_descriptors",
    ] {
        is(
            "listener_rejected_total",
            &[("listener", "front"), ("reason", reason)],
            "counter",
        );
    }
    is(
        "sessions_closed_total",
        &[("listener", "front"), ("reason", "ok")],
        "counter",
    );
    is("session_duration_seconds", &[], "histogram");
    is("first_byte_duration_seconds", &[], "histogram");
    is("backend_connections_total", &backend, "counter");
    is("backend_active_connections", &backend, "gauge");
    is("backend_connect_errors_total", &backend, "counter");
    is("backend_connect_duration_seconds", &[], "histogram");
    is("backend_received_bytes_total", &backend, "counter");
    is("backend_sent_bytes_total", &backend, "counter");
    is("backend_retries_total", &[], "counter");
    is("backend_state", &backend, "gauge");
    is("backend_weight", &backend, "gauge");
    is("upstream_full_backends", &[("upstream", "back")], "gauge");
    is(
        "upstream_available_backends",
        &[("upstream", "back")],
        "gauge",
    );
    is("relayed_bytes_total", &[("mode", "splice")], "counter");
    is("relayed_bytes_total", &[("mode", "copy")], "counter");
    for name in [
        "process_cpu_seconds_total",
        "process_open_fds",
        "process_resident_memory_bytes",
    ] {
        assert!(
            metrics
                .series
                .iter()
                .any(|series| series.name.ends_with(name)),
            "{name}"
        );
    }

    assert_four_sessions(&metrics, &backend);
}

/// It reports what happened.
fn assert_four_sessions(metrics: &Metrics, backend: &[(&str, &str)]) {
    assert_eq!(metrics.sum("listener_connections_total", &[]), 4.0);
    assert_eq!(metrics.sum("backend_connections_total", &[]), 4.0);
    assert_eq!(metrics.sum("session_duration_seconds_count", &[]), 4.0);
    assert_eq!(metrics.sum("first_byte_duration_seconds_count", &[]), 4.0);
    assert_eq!(
        metrics.sum("backend_connect_duration_seconds_count", &[]),
        4.0
    );
    assert_eq!(metrics.sum("listener_received_bytes_total", &[]), 4.0 * 6.0);
    assert_eq!(metrics.sum("listener_sent_bytes_total", &[]), 4.0 * 9.0);
    assert_eq!(metrics.sum("backend_weight", backend), 1.0);
    assert_eq!(
        metrics.sum("backend_state", backend),
        1.0,
        "one state at a time"
    );
    assert_eq!(metrics.sum("backend_state", &[("state", "up")]), 2.0);
    assert_eq!(metrics.sum("upstream_available_backends", &[]), 2.0);
}

/// A listener of TCP, and two of UDP of which one admits no client.
struct Datagrams {
    tembuku: Tembuku,
    udp: SocketAddr,
    closed: SocketAddr,
    backend: UdpSocket,
    _server: Server,
}

fn datagrams(log: &str) -> Datagrams {
    let server = Server::named("b1");
    let backend = UdpSocket::bind(ports::free_addr()).unwrap();
    backend.set_read_timeout(Some(net::PATIENCE)).unwrap();
    let (tcp, udp, closed) = (ports::free_addr(), ports::free_addr(), ports::free_addr());
    let tembuku = Tembuku::start(&format!(
        "[log]\n{log}\n[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
         [listeners.tcp]\nbind = \"{tcp}\"\nupstream = \"streams\"\n\
         [listeners.udp]\nbind = \"{udp}\"\nprotocol = \"udp\"\nupstream = \"back\"\n\
         max_connections = 10\n\
         [listeners.closed]\nbind = \"{closed}\"\nprotocol = \"udp\"\nupstream = \"back\"\n\
         access = [\"deny all\"]\n\
         [upstreams.streams]\nbackends = [\"{}\"]\n[upstreams.back]\nbackends = [\"{}\"]\n",
        server.addr,
        backend.local_addr().unwrap(),
    ));
    Datagrams {
        tembuku,
        udp,
        closed,
        backend,
        _server: server,
    }
}

impl Datagrams {
    /// Three bytes up, two datagrams of four down; and two that are not let in.
    fn exchange(&self) -> UdpSocket {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(net::PATIENCE)).unwrap();
        client.send_to(b"ask", self.udp).unwrap();
        let mut bytes = [0; 64];
        let (length, flow) = self.backend.recv_from(&mut bytes).unwrap();
        assert_eq!(&bytes[..length], b"ask");
        for _ in 0..2 {
            self.backend.send_to(b"back", flow).unwrap();
            assert_eq!(client.recv(&mut bytes).unwrap(), 4);
        }
        for _ in 0..2 {
            client.send_to(b"let me in", self.closed).unwrap();
        }
        // They are counted when they have been dealt with.
        for (name, listener) in [
            ("listener_sent_datagrams_total", "udp"),
            ("listener_received_datagrams_total", "closed"),
            ("listener_dropped_datagrams_total", "closed"),
        ] {
            let labels = [("listener", listener)];
            self.tembuku.wait_metric(name, &labels, |n| n == 2.0);
        }
        client
    }
}

const DROPS: [&str; 12] = [
    "backends_full",
    "bandwidth",
    "late",
    "no_backend",
    "own_address",
    "receive_buffer",
    "rejected",
    "send_buffer",
    "send_failed",
    "too_large",
    "truncated",
    "waiting",
];

/// Close reasons.
const OF_BOTH: [&str; 17] = [
    "backend_down",
    "backend_drained",
    "backend_removed",
    "backends_full",
    "connect_failed",
    "drained",
    "hold_timeout",
    "idle_timeout",
    "killed",
    "lagging",
    "listener_removed",
    "no_backend",
    "ok",
    "queue_timeout",
    "rebalanced",
    "recovered",
    "role_lost",
];
const OF_FLOWS: [&str; 3] = ["backend_refused", "evicted", "response_timeout"];
const OF_CONNECTIONS: [&str; 7] = [
    "backend_reset",
    "backend_timed_out",
    "client_left",
    "client_reset",
    "client_timed_out",
    "half_close_timeout",
    "untrusted_proxy_header",
];

#[test]
fn datagrams_are_counted_where_there_are_any() {
    let setup = datagrams("");
    let reasons = |name: &str, listener: &str| -> Vec<String> {
        let metrics = setup.tembuku.metrics();
        let name = format!("tembuku_{name}");
        let of = metrics.series.iter().filter(|series| {
            series.name == name && series.labels.get("listener").is_some_and(|l| l == listener)
        });
        let reasons: BTreeSet<_> = of.map(|series| series.labels["reason"].clone()).collect();
        reasons.into_iter().collect()
    };
    // From the start, and of each kind of listener what can happen there.
    let dropped = "listener_dropped_datagrams_total";
    assert_eq!(reasons(dropped, "udp"), DROPS);
    assert_eq!(reasons(dropped, "tcp"), [""; 0]);
    assert_eq!(
        reasons("listener_rejected_total", "udp"),
        [
            "access",
            "connection_rate",
            "connection_rate_per_source",
            "drained",
            "max_connections",
            "max_connections_per_source",
            "no_ports",
            "process_max_flows",
            "proxy_header"
        ]
    );
    assert_eq!(
        reasons("listener_rejected_total", "tcp"),
        [
            "access",
            "connection_rate",
            "connection_rate_per_source",
            "drained",
            "max_connections",
            "max_connections_per_source",
            "no_descriptors",
            "process_max_connections",
            "proxy_ended",
            "proxy_header",
            "proxy_timeout"
        ]
    );
    for (listener, others) in [("udp", &OF_FLOWS[..]), ("tcp", &OF_CONNECTIONS)] {
        let expected: BTreeSet<&str> = OF_BOTH.iter().chain(others).copied().collect();
        let found = reasons("sessions_closed_total", listener);
        assert_eq!(found, Vec::from_iter(expected), "{listener}");
    }

    let _client = setup.exchange();
    let metrics = setup.tembuku.metrics();
    for (name, listener, value) in [
        ("listener_received_datagrams_total", "udp", 1.0),
        ("listener_sent_datagrams_total", "udp", 2.0),
        ("listener_dropped_datagrams_total", "udp", 0.0),
        ("listener_received_bytes_total", "udp", 3.0),
        ("listener_sent_bytes_total", "udp", 8.0),
        ("listener_connections_total", "udp", 1.0),
        ("listener_active_connections", "udp", 1.0),
        ("listener_received_datagrams_total", "closed", 2.0),
        ("listener_sent_datagrams_total", "closed", 0.0),
        ("listener_dropped_datagrams_total", "closed", 2.0),
        ("listener_active_connections", "closed", 0.0),
    ] {
        let labels = [("listener", listener)];
        assert!(metrics.has(name, &labels), "{name} {listener}");
        assert_eq!(metrics.sum(name, &labels), value, "{name} {listener}");
    }
    let denied = [("listener", "closed"), ("reason", "access")];
    assert_eq!(metrics.sum("listener_rejected_total", &denied), 2.0);
    for name in [
        "listener_received_datagrams_total",
        "listener_sent_datagrams_total",
    ] {
        assert!(!metrics.has(name, &[("listener", "tcp")]), "{name}");
    }
}

#[test]
fn the_status_counts_flows_and_datagrams() {
    let setup = datagrams("");
    let _client = setup.exchange();
    let status = setup.tembuku.get("/api/v1/status").body;
    let status: Value = serde_json::from_str(&status).unwrap();
    let process = &status["process"];
    assert_eq!(
        (&process["connections"], &process["flows"]),
        (&0.into(), &1.into())
    );
    let most = process["max_flows"].as_u64().unwrap();
    assert!(most > 10, "{process}");
    let [tcp, udp, closed] = status["listeners"].as_array().unwrap().as_slice() else {
        panic!("not three listeners: {status}");
    };
    assert_eq!(
        (&tcp["protocol"], &udp["protocol"]),
        (&"tcp".into(), &"udp".into())
    );
    let fields = tcp.as_object().unwrap();
    assert!(
        fields
            .keys()
            .all(|key| !key.contains("datagrams") && !key.contains("dropped")),
        "{tcp}"
    );
    assert_eq!(udp["connections"], 1);
    assert_eq!(udp["max_connections"], 10);
    for (listener, received, sent, dropped) in [(udp, 1, 2, 0), (closed, 2, 0, 2)] {
        assert_eq!(listener["received_datagrams"], received, "{listener}");
        assert_eq!(listener["sent_datagrams"], sent, "{listener}");
        assert_eq!(listener["dropped_datagrams"], dropped, "{listener}");
        let by_reason = listener["dropped_by_reason"].as_object().unwrap();
        assert!(by_reason.keys().eq(DROPS), "{listener}");
        assert_eq!(by_reason["rejected"], dropped, "{listener}");
    }

    // As a page.
    let page = setup.tembuku.get("/").body;
    for part in [
        &format!("1 of {most} flows"),
        "<tr><td>udp<td>udp<td>",
        "<tr><td>tcp<td>tcp<td>",
        "<tr><td>udp<td class=n>1<td class=n>2<td class=n>0<td></tr>",
        "<tr><td>closed<td class=n>2<td class=n>0<td class=n>2<td>rejected 2</tr>",
    ] {
        assert!(page.contains(part), "{part} in {page}");
    }
    assert!(!page.contains("<tr><td>tcp<td class=n>"), "{page}");

    // In a terminal.
    let socket = setup.tembuku.dir.file("admin.sock");
    let output = cli(&["status", "--socket", socket.to_str().unwrap()]).stdout;
    let output = String::from_utf8(output).unwrap();
    let lines: Vec<String> = output
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    assert!(
        lines[1].contains(&format!(" connections, 1 of {most} flows, configuration ")),
        "{output}"
    );
    assert!(lines[..2].iter().all(|line| line.len() <= 80), "{output}");
    assert_eq!(
        lines[5],
        format!("udp udp back 1 1 3 B 8 B {}", setup.udp),
        "{output}"
    );
    assert_eq!(
        lines[8..11],
        [
            "datagrams received sent dropped unanswered for what reason",
            "udp 1 2 0 0 -",
            "closed 2 0 2 0 rejected 2"
        ],
        "{output}"
    );
}

#[test]
fn the_text_of_the_access_log_counts_datagrams() {
    let setup = datagrams("format = \"text\"\naccess = \"{dir}/access.log\"");
    let _client = setup.exchange();
    let path = setup.tembuku.dir.file("access.log");
    // Without the datagrams that the other listener refused.
    let text = || {
        let all = fs::read_to_string(&path).unwrap_or_default();
        let lines = all.split_inclusive('\n');
        lines
            .filter(|line| line.contains(" udp udp "))
            .collect::<String>()
    };
    assert_eq!(text(), "", "the flow is not over");
    setup.tembuku.proc.signal(Signal::TERM);
    wait_until("a line", secs(10), || text().ends_with('\n'));
    let figures = "bytes_received=3 bytes_sent=8 datagrams_received=1 datagrams_sent=2";
    assert!(text().contains(figures), "{}", text());
}

#[test]
fn the_metrics_are_in_the_text_format() {
    let setup = setup("");
    ask_many(setup.front, 3);
    let response = setup.tembuku.get("/metrics");
    let kind = response.header("content-type").unwrap();
    assert!(
        kind.starts_with("text/plain") && kind.contains("version=0.0.4"),
        "{kind}"
    );
    // Names, types, labels and duplicates are checked in reading.
    let metrics = setup.tembuku.metrics();
    for series in &metrics.series {
        let family = family(&series.name, &metrics.types);
        assert!(metrics.helps.contains(&family), "no help text for {family}");
        assert!(
            series.name.starts_with("tembuku_") || series.name.starts_with("process_"),
            "{}",
            series.name
        );
        let counts = metrics.types[&family] == "counter";
        assert_eq!(
            counts,
            series.name.ends_with("_total"),
            "{} is a {}",
            series.name,
            metrics.types[&family]
        );
        assert!(series.value.is_finite(), "{series:?}");
    }
    for (name, kind) in &metrics.types {
        if kind == "histogram" {
            check_histogram(&metrics.series, name);
        }
    }
    // Never a client's address: those would be without number.
    assert!(
        !metrics
            .series
            .iter()
            .any(|series| series.labels.keys().any(|key| key.contains("addr")))
    );
    // Nothing changes while nothing happens, except what counts time and the asking itself.
    let again = setup.tembuku.metrics();
    let names = |metrics: &crate::harness::metrics::Metrics| -> BTreeSet<String> {
        metrics
            .series
            .iter()
            .map(|series| format!("{}{:?}", series.name, series.labels))
            .collect()
    };
    assert_eq!(names(&metrics), names(&again));
}

type Labels = Vec<(String, String)>;

/// Buckets grow, the last is infinite and agrees with the count.
#[track_caller]
fn check_histogram(all: &[crate::harness::metrics::Series], name: &str) {
    let mut groups: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
    for series in all
        .iter()
        .filter(|series| series.name == format!("{name}_bucket"))
    {
        let mut labels = series.labels.clone();
        let le = labels
            .remove("le")
            .unwrap_or_else(|| panic!("a bucket without a bound: {series:?}"));
        let le = if le == "+Inf" {
            f64::INFINITY
        } else {
            le.parse().unwrap()
        };
        groups
            .entry(labels.into_iter().collect())
            .or_default()
            .push((le, series.value));
    }
    for (labels, mut buckets) in groups {
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(
            buckets.len() > 3 && buckets.windows(2).all(|two| two[0].1 <= two[1].1),
            "{name}: {buckets:?}"
        );
        let count = all.iter().find(|series| {
            series.name == format!("{name}_count")
                && series.labels.clone().into_iter().collect::<Vec<_>>() == labels
        });
        let last = *buckets.last().unwrap();
        assert_eq!(
            Some(last),
            count.map(|count| (f64::INFINITY, count.value)),
            "{name} {labels:?}"
        );
    }
}

#[test]
fn alive_and_ready() {
    let setup = setup("");
    for path in ["/livez", "/readyz"] {
        assert_eq!(setup.tembuku.get(path).status, 200, "{path}");
    }
    assert_eq!(setup.tembuku.get("/").status, 200);
    assert_eq!(setup.tembuku.get("/no/such/thing").status, 404);
    assert_eq!(setup.tembuku.get("/metricsx").status, 404);
    for path in ["/metrics", "/livez", "/api/v1/status"] {
        let response = http::request(setup.tembuku.admin, "POST", path).unwrap();
        assert_eq!(response.status, 405, "{path}");
        assert!(
            response
                .header("allow")
                .is_some_and(|allow| allow.contains("GET")),
            "{response:?}"
        );
    }
    let head = http::request(setup.tembuku.admin, "HEAD", "/metrics").unwrap();
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

#[test]
fn not_ready_without_an_available_backend() {
    let dead = [ports::free_addr(), ports::free_addr()];
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[process]\nworkers = 1\n[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [\
         {{ address = \"{}\", fail_timeout = \"1s\" }}, {{ address = \"{}\", fail_timeout = \
         \"1s\" }}]\n",
        dead[0], dead[1]
    ));
    assert_eq!(
        tembuku.get("/readyz").status,
        200,
        "none of them has failed yet"
    );
    net::assert_closed_at_once(front);
    wait_until("not ready", secs(5), || {
        tembuku.get("/readyz").status == 503
    });
    assert_eq!(tembuku.get("/livez").status, 200);
    let _back = Server::named_on("b1", &[dead[0]]);
    wait_until("served again", secs(10), || ask(front).is_ok());
    wait_until("ready again", secs(5), || {
        tembuku.get("/readyz").status == 200
    });
}

#[test]
fn the_status_as_json() {
    let setup = setup("");
    let (_client, name) = net::session(setup.front).unwrap();
    let response = setup.tembuku.get("/api/v1/status");
    assert_eq!(response.status, 200);
    assert!(
        response
            .header("content-type")
            .unwrap()
            .starts_with("application/json"),
        "{response:?}"
    );
    let status: Value = serde_json::from_str(&response.body).unwrap();
    for part in ["process", "listeners", "upstreams"] {
        assert!(!status[part].is_null(), "no {part} in {status}");
    }
    let text = status.to_string();
    assert!(
        text.contains("\"front\"") && text.contains("\"back\""),
        "{text}"
    );
    let upstreams = &status["upstreams"];
    let upstream = upstreams
        .as_array()
        .map_or_else(|| &upstreams["back"], |all| &all[0]);
    let backends = upstream["backends"]
        .as_array()
        .unwrap_or_else(|| panic!("no backends in {status}"));
    assert_eq!(backends.len(), 2);
    for (backend, server) in backends.iter().zip(&setup.servers) {
        assert!(
            backend.to_string().contains(&server.addr.to_string()),
            "{backend}"
        );
        for key in ["state", "weight", "connections"] {
            assert!(!backend[key].is_null(), "no {key} in {backend}");
        }
        assert_eq!(backend["state"], "up", "{backend}");
        let expected = u64::from(
            name == format!(
                "b{}",
                setup
                    .servers
                    .iter()
                    .position(|s| s.addr == server.addr)
                    .unwrap()
                    + 1
            ),
        );
        assert_eq!(backend["connections"], expected, "{backend}");
    }
}

/// The record of a session of six bytes up and nine down.
#[track_caller]
fn check_record(record: &Value, setup: &Setup) {
    let text = |key: &str| {
        record[key]
            .as_str()
            .unwrap_or_else(|| panic!("no text {key} in {record}"))
            .to_owned()
    };
    let number = |key: &str| {
        record[key]
            .as_f64()
            .unwrap_or_else(|| panic!("no number {key} in {record}"))
    };
    assert_eq!(text("listener"), "front");
    assert_eq!(text("protocol").to_lowercase(), "tcp");
    assert_eq!(text("remote_addr"), "127.0.0.1");
    assert!((1.0..65_536.0).contains(&number("remote_port")), "{record}");
    assert_eq!(text("upstream"), "back");
    assert!(
        setup
            .servers
            .iter()
            .any(|server| server.addr.to_string() == text("backend")),
        "{record}"
    );
    assert_eq!(number("bytes_received"), 6.0);
    assert_eq!(number("bytes_sent"), 9.0);
    assert_eq!(text("close_reason"), "ok");
    let (connect, first, whole) = (
        number("connect_time"),
        number("first_byte_time"),
        number("session_time"),
    );
    assert!(
        connect >= 0.0 && first >= 0.0 && whole >= first && whole < 30.0,
        "{record}"
    );
    assert!(!text("time").is_empty());
    let attempts = record["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 1, "{record}");
    assert_eq!(attempts[0]["backend"], text("backend"), "{record}");
}

fn one_session(setup: &Setup) {
    let (mut client, _) = net::session(setup.front).unwrap();
    echo(&mut client, "hello").unwrap();
}

#[test]
fn the_access_log_in_a_file() {
    let setup = setup("access = \"{dir}/access.log\"");
    for n in 1..=3 {
        one_session(&setup);
        let records = setup.tembuku.access_log(n);
        assert_eq!(records.len(), n, "{records:?}");
        check_record(&records[n - 1], &setup);
    }
}

#[test]
fn the_access_log_on_stdout() {
    let setup = setup("access = \"stdout\"");
    one_session(&setup);
    wait_until("a line on stdout", secs(5), || {
        setup.tembuku.proc.stdout().ends_with('\n')
    });
    let output = setup.tembuku.proc.stdout();
    assert_eq!(output.lines().count(), 1, "{output}");
    check_record(&serde_json::from_str(&output).unwrap(), &setup);
}

#[test]
fn the_access_log_as_text() {
    let setup = setup("format = \"text\"\naccess = \"{dir}/access.log\"");
    one_session(&setup);
    let path = setup.tembuku.dir.file("access.log");
    let text = || fs::read_to_string(&path).unwrap_or_default();
    wait_until("a line", secs(5), || text().ends_with('\n'));
    assert!(
        serde_json::from_str::<Value>(&text()).is_err(),
        "{}",
        text()
    );
    for part in ["front", "127.0.0.1", "ok"] {
        assert!(text().contains(part), "{part} in {}", text());
    }
    assert!(!text().contains("datagrams"), "{}", text());
}

#[test]
fn without_being_asked_there_is_no_access_log() {
    let mut setup = setup("");
    one_session(&setup);
    setup.tembuku.wait_idle();
    setup.tembuku.terminate();
    assert_eq!(setup.tembuku.proc.stdout(), "");
    let output = setup.tembuku.proc.stderr();
    assert!(!output.contains("bytes_received"), "{output}");
}

#[test]
fn usr1_opens_the_access_log_anew() {
    let setup = setup("access = \"{dir}/access.log\"");
    one_session(&setup);
    setup.tembuku.access_log(1);
    let path = setup.tembuku.dir.file("access.log");
    let old = setup.tembuku.dir.file("access.log.1");
    fs::rename(&path, &old).unwrap();
    // Until the signal it goes on in the file that was renamed.
    one_session(&setup);
    let lines = |path| fs::read_to_string(path).unwrap_or_default().lines().count();
    wait_until("the second record, in the renamed file", secs(5), || {
        lines(&old) == 2
    });
    assert!(!path.exists());
    setup.tembuku.proc.signal(Signal::USR1);
    wait_until("a new file", secs(5), || path.exists());
    wait_until("a line of the log", secs(5), || {
        setup.tembuku.proc.stderr().contains("log file reopened")
    });
    one_session(&setup);
    setup.tembuku.access_log(1);
    assert_eq!(lines(&old), 2);
    // It is still the same process, at work.
    assert_eq!(setup.tembuku.metric("listener_connections_total", &[]), 3.0);
}

#[test]
fn records_that_cannot_be_written_are_counted() {
    let setup = setup("access = \"/dev/full\"");
    ask_many(setup.front, 300);
    setup.tembuku.wait_idle();
    setup
        .tembuku
        .wait_metric("access_log_dropped_total", &[], |n| n >= 300.0);
    assert_eq!(
        setup.tembuku.metric("access_log_dropped_total", &[]),
        setup.tembuku.metric("sessions_closed_total", &[])
    );
}

/// A signal to open its log anew does not block it, with a queue full of records that are not read.
#[test]
fn usr1_with_a_full_queue_stops_nothing() {
    let front = ports::free_addr();
    let (_reader, writer) = narrow_pipe();
    let streams = Streams {
        out: Some(writer.into()),
        err: None,
    };
    // A backend that is down: the shortest session that has a record.
    let mut tembuku = Tembuku::start_speaking(
        streams,
        &format!(
            "[log]\naccess = \"stdout\"\n[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
             [upstreams.u]\nbackends = [{{ address = \"{}\", down = true }}]\n",
            ports::free_addr()
        ),
    );
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..2_500).for_each(|_| assert_ends_now(&mut connect(front).unwrap())));
        }
    });
    tembuku.wait_metric("access_log_dropped_total", &[], |n| n > 0.0);
    for _ in 0..3 {
        tembuku.proc.signal(Signal::USR1);
        assert_eq!(tembuku.get("/livez").status, 200);
    }
    assert_ends_now(&mut connect(front).unwrap());
    assert_eq!(tembuku.terminate().code(), Some(0));
}

/// A standard error that takes nothing is no reason to fail.
#[test]
fn standard_error_may_be_full_or_closed() {
    let full = || Stdio::from(File::create("/dev/full").unwrap());
    let closed = || {
        let (reader, writer) = narrow_pipe();
        drop(reader);
        Stdio::from(writer)
    };
    for (what, err) in [("full", full()), ("closed", closed())] {
        println!("standard error is {what}");
        let servers = named(1);
        let front = ports::free_addr();
        let streams = Streams::err(err);
        let mut tembuku = Tembuku::start_speaking(
            streams,
            &format!(
                "[log]\nlevel = \"debug\"\n\
                 [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
                 [upstreams.u]\nbackends = [\"{}\", \"{}\"]\n",
                ports::free_addr(),
                servers[0].addr
            ),
        );
        assert_eq!(ask_many(front, 20), vec!["b1"; 20]);
        tembuku.wait_idle();
        assert_eq!(tembuku.terminate().code(), Some(0), "{what}");
    }
}

/// One whose reader leaves while sessions go on costs none of them, nor the orderly end.
#[test]
fn the_reader_of_standard_error_may_leave() {
    let servers = named(1);
    let front = ports::free_addr();
    let (reader, writer) = narrow_pipe();
    let streams = Streams::err(writer);
    let mut tembuku = Tembuku::start_speaking(
        streams,
        &format!(
            "[log]\nlevel = \"debug\"\naccess = \"{{dir}}/access.log\"\n\
             [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
             [upstreams.u]\nbackends = [\"{}\", \"{}\"]\n",
            ports::free_addr(),
            servers[0].addr
        ),
    );
    let (mut client, _) = net::session(front).unwrap();
    drop(reader);
    assert_eq!(ask_many(front, 20), vec!["b1"; 20]);
    echo(&mut client, "goes on").unwrap();
    tembuku.proc.signal(Signal::TERM);
    wait_until("draining", secs(5), || tembuku.get("/readyz").status == 503);
    echo(&mut client, "to the end").unwrap();
    drop(client);
    assert_eq!(tembuku.proc.wait(secs(10)).unwrap().code(), Some(0));
    assert_eq!(tembuku.access_log(21).len(), 21);
}

/// A log without a reader, and a flood of clients that cause log lines.
#[test]
fn a_stalled_reader_of_the_log_blocks_no_session() {
    let servers = named(1);
    let (dead, good) = (ports::free_addr(), ports::free_addr());
    let (_reader, writer) = narrow_pipe();
    let streams = Streams::err(writer);
    let mut tembuku = Tembuku::start_speaking(
        streams,
        &format!(
            "[log]\nlevel = \"debug\"\n\
             [listeners.dead]\nbind = \"{dead}\"\nupstream = \"d\"\n\
             [listeners.good]\nbind = \"{good}\"\nupstream = \"u\"\n\
             [upstreams.d]\nbackends = [{{ address = \"{}\", max_fails = 0 }}]\n\
             [upstreams.u]\nbackends = {}\n",
            ports::free_addr(),
            list(&servers)
        ),
    );
    for _ in 0..600 {
        assert_ends_now(&mut connect(dead).unwrap());
    }
    assert_eq!(ask_many(good, 20), vec!["b1"; 20]);
    assert_eq!(tembuku.get("/livez").status, 200);
    assert_eq!(tembuku.terminate().code(), Some(0));
}

/// As many connections as are allowed, and more, that ask a lot and read nothing.
#[test]
fn a_scraper_that_does_not_read_blocks_no_other() {
    let setup = setup("");
    let question = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(400);
    let _silent: Vec<TcpStream> = (0..100)
        .map(|_| {
            let mut client = connect_with(setup.tembuku.admin, None, 4096, 0).unwrap();
            // A queue that is full takes no more of it, which is as good.
            client.set_write_timeout(Some(millis(100))).unwrap();
            let _ = client.write(question.as_bytes());
            client
        })
        .collect();
    for _ in 0..5 {
        assert_eq!(setup.tembuku.get("/livez").status, 200);
    }
    one_session(&setup);
    assert_eq!(setup.tembuku.metric("listener_connections_total", &[]), 1.0);
}

/// Measurements are folded together whether or not a scrape could ever read them.
#[test]
fn without_an_admin_address_memory_does_not_grow() {
    const SESSIONS: usize = 12_000;
    let server = Server::named("b1");
    let front = ports::free_addr();
    let dir = TempDir::new();
    let mut command = Command::new(binary());
    command.args(["run", "--listen", &front.to_string()]);
    command.args(["--to", &server.addr.to_string()]);
    let mut proc = Proc::start("tembuku", dir.path(), command);
    proc.wait_ready(secs(10), || ask(front).is_ok());
    let round = || {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| ask_many(front, SESSIONS / 4));
            }
        });
        wait_until("every session has ended", secs(10), || server.live() == 0);
        proc.rss()
    };
    let before = round();
    thread::sleep(millis(5_500)); // the folding, every five seconds, cannot be observed
    let after = round();
    let grown = after.saturating_sub(before);
    println!("{before} bytes, then {after}");
    // Three samples a session, of sixteen bytes each.
    assert!(
        grown < 24 * SESSIONS as u64,
        "{SESSIONS} sessions more took {grown} bytes more"
    );
}

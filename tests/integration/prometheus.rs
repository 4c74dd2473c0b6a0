//! A real Prometheus scrapes a running program: the metrics are well formed, the alerts of
//! `packaging/prometheus` fire in a staged failure, and every query of the dashboard returns data.

use crate::harness::{
    http::request,
    net::ask,
    ports,
    proc::{self, Proc, run_ok},
    secs,
    server::Server,
    tembuku::Tembuku,
    temp::TempDir,
    udp::{self, UdpServer},
    wait_until,
};
use serde_json::Value;
use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    process::{Command, Stdio},
};

const PACKAGING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging");

/// Blocks of README.md and docs/metrics.md, by the word after the fence.
fn blocks(language: &str) -> Vec<String> {
    let mut found = Vec::new();
    for page in ["README.md", "docs/metrics.md"] {
        let text = fs::read_to_string(format!("{PACKAGING}/../{page}")).unwrap();
        let begin = format!("\n```{language}\n");
        let parts = text.split(&begin).skip(1);
        found.extend(parts.map(|part| part.split("\n```").next().unwrap().to_owned()));
    }
    found
}

/// Each below a comment.
fn expressions() -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for block in blocks("promql") {
        for line in block.lines() {
            match (line.starts_with('#'), found.last_mut()) {
                (true, _) => found.push(String::new()),
                (false, Some(expression)) => expression.push_str(line),
                (false, None) => panic!("no comment before {line}"),
            }
        }
    }
    found
}

/// A Prometheus that looks several times a second, with the alerts as they are packaged, which
/// however do not wait before they fire.
struct Prometheus {
    addr: SocketAddr,
    _proc: Proc,
    _dir: TempDir,
}

impl Prometheus {
    fn start(target: SocketAddr) -> Self {
        let (addr, dir) = (ports::free_addr(), TempDir::new());
        let rules = fs::read_to_string(format!("{PACKAGING}/prometheus/tembuku.rules.yml"));
        let at_once = |line: &str| match line.trim_start().strip_prefix("for: ") {
            Some(_) => String::new(),
            None => format!("{line}\n"),
        };
        dir.write(
            "rules.yml",
            &rules.unwrap().lines().map(at_once).collect::<String>(),
        );
        let config = dir.write(
            "prometheus.yml",
            &format!(
                "global: {{ scrape_interval: 300ms, scrape_timeout: 300ms, evaluation_interval: \
                 300ms }}\n\
                 rule_files: [rules.yml]\n\
                 scrape_configs: [{{ job_name: tembuku, static_configs: [{{ targets: \
                 [\"{target}\"] }}] }}]\n"
            ),
        );
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                dir.file("data").display()
            ))
            .arg(format!("--web.listen-address={addr}"));
        let mut proc = Proc::start("prometheus", dir.path(), command);
        // It listens before it answers queries.
        proc.wait_ready(secs(30), || {
            request(addr, "GET", "/-/ready").is_ok_and(|answer| answer.status == 200)
        });
        Self {
            addr,
            _proc: proc,
            _dir: dir,
        }
    }

    fn get(&self, path: &str) -> Value {
        let body = request(self.addr, "GET", path).unwrap().body;
        // Without the frame of a chunked answer.
        let (begin, end) = (
            body.find('{').unwrap_or(0),
            body.rfind('}').map_or(0, |n| n + 1),
        );
        serde_json::from_str(&body[begin..end]).unwrap_or_else(|e| panic!("{e}: {body}"))
    }

    /// How many series the query returns.
    fn series(&self, query: &str) -> usize {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let answer = self.get(&format!("/api/v1/query?query={encoded}"));
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        answer["data"]["result"].as_array().unwrap().len()
    }

    fn wait_alert(&self, name: &str) {
        wait_until(name, secs(60), || {
            let alerts = self.get("/api/v1/alerts");
            let alerts = alerts["data"]["alerts"].as_array().unwrap();
            alerts
                .iter()
                .any(|alert| alert["labels"]["alertname"] == name && alert["state"] == "firing")
        });
    }
}

fn setup(backends: [SocketAddr; 2], datagrams: SocketAddr) -> (Tembuku, SocketAddr, SocketAddr) {
    let [listen, udp] = [ports::free_addr(), ports::free_addr()];
    let [a, b] = backends;
    let tembuku = Tembuku::start(&format!(
        "[listeners.web]\nbind = \"{listen}\"\nupstream = \"web\"\n\
         max_connections = 100\n\
         [listeners.dns]\nbind = \"{udp}\"\nprotocol = \"udp\"\nupstream = \"dns\"\n\
         [upstreams.web]\nqueue_timeout = \"1s\"\n\
         backends = [{{ address = \"{a}\", max_connections = 50 }}, \"{b}\"]\n\
         [upstreams.web.check]\nkind = \"tcp\"\ninterval = \"100ms\"\nfall = 1\n\
         [upstreams.dns]\nbackends = [\"{datagrams}\"]\n"
    ));
    (tembuku, listen, udp)
}

#[test]
fn alerts_fire_in_a_failure_and_the_dashboard_has_data() {
    let mut servers = vec![Server::named("b1"), Server::named("b2")];
    let echo = UdpServer::echo(udp::V4);
    let (tembuku, listen, udp) = setup([servers[0].addr, servers[1].addr], echo.addr);
    let prometheus = Prometheus::start(tembuku.admin);
    wait_until("a scrape", secs(30), || {
        prometheus.series("tembuku_build_info") == 1
    });

    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.send_to(b"query", udp).unwrap();
    ask(listen).unwrap();
    drop(servers.remove(1));
    prometheus.wait_alert("TembukuBackendOutOfService");
    drop(servers);
    prometheus.wait_alert("TembukuNoBackend");
    // A client that finds nothing, again and again.
    wait_until("a session without a backend", secs(60), || {
        let _ = ask(listen);
        let query = "changes(tembuku_sessions_closed_total{reason=~\"no_backend|backends_full|\
                     connect_failed|queue_timeout|hold_timeout\"}[3m]) > 1";
        prometheus.series(query) > 0
    });
    prometheus.wait_alert("TembukuSessionsWithoutBackend");

    let dashboard = fs::read_to_string(format!("{PACKAGING}/grafana/tembuku.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap());
    let queries: Vec<String> = targets
        .map(|target| target["expr"].as_str().unwrap())
        .map(|query| query.replace("$__rate_interval", "1m"))
        .map(|query| {
            ["$instance", "$listener", "$upstream"]
                .iter()
                .fold(query, |query, name| query.replace(name, ".*"))
        })
        .collect();
    assert!(queries.len() > 20);
    for query in &queries {
        wait_until(query, secs(20), || prometheus.series(query) > 0);
    }
    let expressions = expressions();
    assert!(expressions.len() > 8, "{expressions:?}");
    for expression in &expressions {
        // It can be read; with those that begin both pages there is something to see.
        prometheus.series(expression);
    }
    let rates = expressions
        .iter()
        .filter(|e| e.starts_with("sum by (upstream, backend)"));
    let rates: Vec<&String> = rates.collect();
    assert_eq!(rates.len(), 2, "one in each page");
    for expression in rates {
        wait_until(expression, secs(20), || prometheus.series(expression) > 0);
    }
    drop(tembuku);
    prometheus.wait_alert("TembukuAbsent");
}

/// Which alerts fire by which series, as promtool sees it.
const NODES: &str = include_str!("prometheus/nodes.yml");
const CLIENTS: &str = include_str!("prometheus/clients.yml");

#[test]
fn nodes_that_differ_are_reported_and_others_are_not() {
    test_rules(NODES);
}

#[test]
fn a_single_client_that_is_refused_fires_no_alert() {
    test_rules(CLIENTS);
}

#[track_caller]
fn test_rules(tests: &str) {
    let dir = TempDir::new();
    let rules = format!("{PACKAGING}/prometheus/tembuku.rules.yml");
    fs::copy(rules, dir.file("tembuku.rules.yml")).unwrap();
    let test = dir.write("tests.yml", tests);
    let mut promtool = Command::new("promtool");
    promtool.args(["test", "rules"]).arg(test);
    assert!(run_ok(secs(30), promtool).contains("SUCCESS"));
}

#[test]
fn the_configurations_of_the_pages_are_valid() {
    let dir = TempDir::new();
    let rules = format!("{PACKAGING}/prometheus/tembuku.rules.yml");
    fs::copy(rules, dir.file("tembuku.rules.yml")).unwrap();
    let mut count = 0;
    for block in blocks("yaml") {
        let file = dir.write("prometheus.yml", &block);
        let mut promtool = Command::new("promtool");
        promtool.args(["check", "config"]).arg(file);
        assert!(run_ok(secs(30), promtool).contains("SUCCESS"), "{block}");
        count += 1;
    }
    assert!(count > 2, "{count}");
}

#[test]
fn promtool_finds_no_fault() {
    let rules = format!("{PACKAGING}/prometheus/tembuku.rules.yml");
    let mut check = Command::new("promtool");
    check.args(["check", "rules", &rules]);
    assert!(run_ok(secs(30), check).contains("SUCCESS"));

    let servers = [Server::named("b1"), Server::named("b2")];
    let echo = UdpServer::echo(udp::V4);
    let (tembuku, listen, _) = setup([servers[0].addr, servers[1].addr], echo.addr);
    ask(listen).unwrap();
    let dir = TempDir::new();
    let scrape = dir.write("scrape", &tembuku.get("/metrics").body);
    let output = proc::output(
        Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::from(fs::File::open(scrape).unwrap())),
    );
    let found = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && found.is_empty(), "{found}");
}

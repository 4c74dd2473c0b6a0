//! The content of a scrape, and the cost of many, abandoned or slow ones.

use crate::harness::{
    http,
    metrics::{Metrics, family},
    net::{self, connect, connect_with, echo},
    ports, secs,
    server::Server,
    tembuku::Tembuku,
    wait_until,
};
use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::SystemTime,
};

/// One that takes clients, and so many beside it that nothing is ever sent to.
fn with_backends(count: usize) -> (Tembuku, SocketAddr, Server) {
    let server = Server::named("b1");
    let front = ports::free_addr();
    let others = (1..count).map(|n| format!(", \"127.2.{}.{}:9\"", n / 250, n % 250));
    let tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n[upstreams.u]\nbalance = \"first\"\n\
         backends = [\"{}\"{}]\n",
        server.addr,
        others.collect::<String>()
    ));
    (tembuku, front, server)
}

fn question(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
}

fn threads(tembuku: &Tembuku) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", tembuku.proc.id()));
    tasks.unwrap().count()
}

/// The names of TYPE lines in their order.
fn families(text: &str) -> Vec<&str> {
    let types = text.lines().filter_map(|l| l.strip_prefix("# TYPE "));
    types.map(|rest| rest.split(' ').next().unwrap()).collect()
}

/// Stricter than reading it needs: as Prometheus' own tools and other parsers want it.
fn check_format(metrics: &Metrics) {
    let names = families(&metrics.text);
    assert!(names.is_sorted(), "{names:?}");
    let mut current = "";
    for line in metrics.text.lines() {
        assert!(!line.is_empty() && line == line.trim(), "{line:?}");
        match line.strip_prefix("# ") {
            Some(comment) => {
                let name = comment.split(' ').nth(1).unwrap();
                assert_eq!(comment.starts_with("TYPE "), current == name, "{line}");
                current = name;
            }
            None => {
                let name = line.split(['{', ' ']).next().unwrap();
                assert_eq!(family(name, &metrics.types), current, "{line}");
            }
        }
    }
    for series in &metrics.series {
        let family = family(&series.name, &metrics.types);
        assert!(metrics.helps.contains(&family), "{family}");
        if metrics.types[&family] == "counter" {
            assert!(family.ends_with("_total"), "{family}");
            assert!(
                series.value >= 0.0 && series.value.is_finite(),
                "{series:?}"
            );
        }
    }
}

#[test]
fn the_text_follows_the_conventions() {
    let (tembuku, front, _server) = with_backends(3);
    let (mut client, _) = net::session(front).unwrap();
    echo(&mut client, "hello").unwrap();
    let before = tembuku.proc.cpu();
    let metrics = tembuku.metrics();
    let after = tembuku.proc.cpu();
    check_format(&metrics);
    let process = |name: &str, kind: &str| {
        let name = format!("process_{name}");
        assert_eq!(
            metrics.types.get(&name).map(String::as_str),
            Some(kind),
            "{name}"
        );
        let of_name: Vec<_> = metrics.series.iter().filter(|s| s.name == name).collect();
        assert_eq!(of_name.len(), 1, "{of_name:?}");
        assert!(of_name[0].labels.is_empty());
        of_name[0].value
    };
    let cpu = process("cpu_seconds_total", "counter");
    assert!(
        (before.as_secs_f64() - 0.001..=after.as_secs_f64() + 0.001).contains(&cpu),
        "{cpu} is not between {before:?} and {after:?}"
    );
    assert_eq!(process("threads", "gauge"), threads(&tembuku) as f64);
    let (open, most) = (process("open_fds", "gauge"), process("max_fds", "gauge"));
    assert!(
        open > 5.0 && (most == 0.0 || open < most),
        "{open} of {most}"
    );
    let (resident, virtual_) = (
        process("resident_memory_bytes", "gauge"),
        process("virtual_memory_bytes", "gauge"),
    );
    assert!(
        1e6 < resident && resident < virtual_,
        "{resident}, {virtual_}"
    );
    process("virtual_memory_max_bytes", "gauge");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let age = now.unwrap().as_secs_f64() - process("start_time_seconds", "gauge");
    assert!((-2.0..300.0).contains(&age), "{age}");
    // Nothing has been reloaded yet, so there are no metrics of it; and nothing else stands
    // beside the standard names.
    for wrong in ["tembuku_process_", "tembuku_config_last_reload"] {
        assert!(!metrics.text.contains(wrong), "{wrong}");
    }
}

#[test]
fn abandoned_scrapes_leave_no_threads_and_no_memory() {
    let (tembuku, front, _server) = with_backends(1_000);
    for path in ["/metrics", "/api/v1/status", "/", "/api/v1/events"] {
        tembuku.get(path);
    }
    let before = (threads(&tembuku), tembuku.proc.rss());
    for path in ["/metrics", "/api/v1/status", "/", "/api/v1/events"] {
        for n in 0..400 {
            let mut client = connect(tembuku.admin).unwrap();
            client.write_all(question(path).as_bytes()).unwrap();
            match n % 2 {
                0 => net::reset(client),
                _ => drop(client),
            }
        }
        assert_eq!(threads(&tembuku), before.0, "after {path}");
    }
    assert_eq!(net::ask(front).unwrap(), "b1");
    check_format(&tembuku.metrics());
    assert_eq!(threads(&tembuku), before.0);
    let grown = tembuku.proc.rss().saturating_sub(before.1);
    println!("{} threads, {} bytes grown by {grown}", before.0, before.1);
    assert!(grown < 48 << 20, "{grown} bytes");
}

#[test]
fn scrapes_at_once_are_all_whole() {
    let (tembuku, front, _server) = with_backends(1_000);
    assert_eq!(net::ask(front).unwrap(), "b1");
    tembuku.wait_idle();
    thread::scope(|scope| {
        for n in 0..40 {
            let tembuku = &tembuku;
            scope.spawn(move || match n % 4 {
                3 => {
                    let status = tembuku.get("/api/v1/status").body;
                    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
                    let backends = status["upstreams"][0]["backends"].as_array();
                    assert_eq!(backends.unwrap().len(), 1_000);
                }
                _ => {
                    let metrics = tembuku.metrics();
                    assert_eq!(metrics.sum("backend_weight", &[]), 1_000.0);
                    assert_eq!(metrics.sum("backend_connections_total", &[]), 1.0);
                }
            });
        }
    });
}

/// Reads the first bytes of an answer and no more.
fn begin(admin: SocketAddr, path: &str) -> TcpStream {
    let mut client = connect_with(admin, None, 4096, 0).unwrap();
    client.write_all(question(path).as_bytes()).unwrap();
    let mut head = [0; 15];
    client.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    client
}

/// Each of them has asked for itself, so that there could be as many texts as clients.
fn slow_readers_cost_bounded_memory(path: &str, backends: usize, readers: usize) {
    let (tembuku, _front, _server) = with_backends(backends);
    let size = tembuku.get(path).body.len();
    let before = tembuku.proc.rss();
    let mut slow: Vec<TcpStream> = (0..readers).map(|_| begin(tembuku.admin, path)).collect();
    let grown = tembuku.proc.rss().saturating_sub(before);
    println!("{path}: {readers} readers of {size} bytes, grown by {grown}");
    let bound = 110 << 20;
    assert!(size * readers > 2 * bound, "{size}: the test shows nothing");
    assert!(grown < bound as u64, "{grown} bytes");
    // The last one is still served whole; the first one was cut, and can detect it.
    let mut rest = |n: usize| {
        let (bytes, _) = net::read_all(&mut slow[n]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let length = head.to_ascii_lowercase();
        let length = length.split("content-length: ").nth(1).unwrap();
        let length: usize = length.lines().next().unwrap().parse().unwrap();
        (body.len(), length)
    };
    let (first, length) = rest(0);
    assert!(first < length, "{first} of {length}");
    let (last, length) = rest(readers - 1);
    assert_eq!(last, length);
    assert_eq!(http::get(tembuku.admin, "/livez").unwrap().status, 200);
}

#[test]
fn slow_scrapers_cost_bounded_memory() {
    slow_readers_cost_bounded_memory("/metrics", 2_000, 50);
}

#[test]
fn slow_readers_of_the_status_cost_bounded_memory() {
    slow_readers_cost_bounded_memory("/api/v1/status", 8_000, 60);
}

/// What happened before the question is in the answer, whatever else is being rendered.
#[test]
fn no_answer_is_older_than_its_question() {
    let (tembuku, front, _server) = with_backends(1_000);
    let stop = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                    tembuku.get("/metrics");
                }
            });
        }
        for n in 1..=10 {
            let (mut client, _) = net::session(front).unwrap();
            echo(&mut client, "counted").unwrap();
            let counted = tembuku.metric("listener_connections_total", &[]);
            assert_eq!(counted, f64::from(n));
        }
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
    });
    wait_until("no session is left", secs(5), || {
        tembuku.metric("listener_active_connections", &[]) == 0.0
    });
}

/// As `nc -N` and socat do.
#[test]
fn a_client_that_ends_its_side_gets_its_answer() {
    let (tembuku, _front, _server) = with_backends(3);
    for path in [
        "/metrics",
        "/",
        "/api/v1/status",
        "/api/v1/events",
        "/readyz",
    ] {
        let mut client = connect(tembuku.admin).unwrap();
        client.write_all(question(path).as_bytes()).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let (answer, _) = net::read_all(&mut client);
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer:?}");
        let length = answer
            .lines()
            .find_map(|l| l.strip_prefix("content-length: "));
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        assert_eq!(length.unwrap(), body.len().to_string(), "{path}");
    }
}

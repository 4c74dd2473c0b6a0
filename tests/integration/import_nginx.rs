//! `import nginx`: what is made of a configuration does the same as nginx with that configuration.

use crate::{
    harness::{
        net::{self, BlackHole, connect_with, read_all},
        pair::sources_v4,
        ports,
        proc::text,
        programs::{Nginx, http_block},
        rng::{self, Rng},
        secs,
        server::Server,
        tembuku::{Tembuku, cli},
        temp::TempDir,
    },
    ip_hash_nginx::{self, web},
};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    process::Output,
    time::{Duration, Instant},
};

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Imports `text`; it must succeed.
#[track_caller]
fn import(text: &str) -> (String, String) {
    let dir = TempDir::new();
    let file = dir.write("nginx.conf", text);
    let output = cli(&["import", "nginx", file.to_str().unwrap()]);
    assert!(output.status.success(), "{}", self::text(&output));
    let lists = String::from_utf8(output.stderr.clone()).unwrap();
    (stdout(&output), lists)
}

/// nginx and tembuku, both made from the same text, in which LISTEN is where they listen.
struct Sides {
    nginx: SocketAddr,
    tembuku: SocketAddr,
    program: Tembuku,
    _peer: Nginx,
}

impl Sides {
    /// `around` puts the text into the block for nginx that is to run in a folder.
    #[track_caller]
    fn start(text: &str, around: impl Fn(&str) -> String, block: &str) -> Self {
        let [nginx, tembuku] = [ports::free_addr(), ports::free_addr()];
        let with = |addr: SocketAddr| text.replace("LISTEN", &addr.to_string());
        let peer = Nginx::start(nginx, &around(&with(nginx)));
        let (config, lists) = import(&format!("{block} {{\n{}\n}}\n", with(tembuku)));
        println!("{config}\n{lists}");
        Self {
            nginx,
            tembuku,
            program: Tembuku::start(&config),
            _peer: peer,
        }
    }

    #[track_caller]
    fn stream(text: &str) -> Self {
        Self::start(text, |text| format!("stream {{ {text} }}"), "stream")
    }

    #[track_caller]
    fn http(text: &str) -> Self {
        Self::start(text, http_block, "http")
    }

    /// How many clients each backend got; each client must get the same one from both.
    #[track_caller]
    fn compare(
        &self,
        test: &str,
        ask: impl Fn(IpAddr, SocketAddr) -> io::Result<String>,
    ) -> Vec<(String, usize)> {
        let mut rng = Rng::new(rng::seed(test));
        let mut counts = std::collections::BTreeMap::new();
        for source in sources_v4(&mut rng, 1_000) {
            let [nginx, tembuku] = [self.nginx, self.tembuku]
                .map(|addr| ask(source, addr).unwrap_or_else(|e| panic!("{source} {addr}: {e}")));
            assert_eq!(tembuku, nginx, "from {source}");
            *counts.entry(nginx).or_insert(0) += 1;
        }
        counts.into_iter().collect()
    }
}

#[test]
fn weights_and_a_short_connect_timeout() {
    let servers = [web("b1"), web("b2"), web("b3")];
    let [b1, b2, b3] = [0, 1, 2].map(|n: usize| servers[n].addr);
    let sides = Sides::http(&format!(
        "upstream backend {{
            server {b1} weight=5;
            server {b2} max_fails=3 fail_timeout=30s;
            server {b3} backup;
        }}
        server {{
            listen LISTEN;
            location / {{
                proxy_pass http://backend;
                proxy_connect_timeout 1;
            }}
        }}"
    ));
    let counts = sides.compare("import_nginx::weights", ip_hash_nginx::ask_from);
    assert_eq!(counts, [("b1".to_owned(), 833), ("b2".to_owned(), 167)]);
}

#[test]
fn ip_hash_with_one_down() {
    let servers = [web("b1"), web("b2"), web("b3"), web("b4")];
    let [b1, b2, b3, b4] = [0, 1, 2, 3].map(|n: usize| servers[n].addr);
    let sides = Sides::http(&format!(
        "upstream backend {{
            ip_hash;
            server {b1};
            server {b2};
            server {b3} down;
            server {b4};
        }}
        server {{
            listen LISTEN;
            location / {{ proxy_pass http://backend/; }}
        }}"
    ));
    // Clients of a network share a backend, and networks are many.
    let counts = sides.compare("import_nginx::ip_hash", ip_hash_nginx::ask_from);
    let used: Vec<&str> = counts.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(used, ["b1", "b2", "b4"]);
}

#[test]
fn the_stream_block_with_a_consistent_hash() {
    let dir = TempDir::new();
    let socket = dir.file("backend3");
    let servers = [
        Server::named("b1"),
        Server::named("b2"),
        Server::named("b3"),
    ];
    let [b1, b2, b3] = [0, 1, 2].map(|n: usize| servers[n].addr);
    let sides = Sides::stream(&format!(
        "upstream backend {{
            hash $remote_addr consistent;
            server {b1} weight=5;
            server {b2} max_fails=3 fail_timeout=30s;
            server {b3} max_conns=1000;
            server unix:{} down;
        }}
        server {{
            listen LISTEN;
            proxy_connect_timeout 10s;
            proxy_timeout 30s;
            proxy_pass backend;
        }}",
        socket.display()
    ));
    let counts = sides.compare("import_nginx::stream", net::ask_from);
    assert_eq!(counts.len(), 3, "{counts:?}");
}

/// From the first byte of an idle session to its end.
fn idle_for(addr: SocketAddr) -> Duration {
    let mut stream = connect_with(addr, None, 0, 0).unwrap();
    let begin = Instant::now();
    read_all(&mut stream);
    begin.elapsed()
}

#[test]
fn time_outs_and_the_next_backend() {
    let hole = BlackHole::new();
    let (dead, server) = (ports::free_addr(), Server::named("b3"));
    let sides = Sides::stream(&format!(
        "proxy_connect_timeout 1s;
        upstream backend {{
            server {} fail_timeout=1h;
            server {dead} fail_timeout=1h;
            server {} fail_timeout=1h;
        }}
        server {{ listen LISTEN; proxy_timeout 2s; proxy_pass backend; }}",
        hole.addr, server.addr
    ));
    for addr in [sides.nginx, sides.tembuku] {
        let begin = Instant::now();
        assert_eq!(net::ask(addr).unwrap(), "b3");
        let took = begin.elapsed();
        assert!(took >= secs(1) && took < secs(5), "{addr}: {took:?}");
        let idle = idle_for(addr);
        assert!(
            idle >= Duration::from_millis(1_900) && idle < secs(8),
            "{addr}: {idle:?}"
        );
    }
    let errors = sides.program.metric("backend_connect_errors_total", &[]);
    assert_eq!(errors, 2.0, "one for the limit, one refused");
    hole.close();
}

#[test]
fn what_is_lost_is_listed_and_strict_fails() {
    let dir = TempDir::new();
    dir.write(
        "servers.conf",
        "server { listen 7001; proxy_pass 10.0.0.1:80; }\n",
    );
    let file = dir.write(
        "nginx.conf",
        "stream {\n  include servers.*;\n\
         \x20 server {\n    listen 7002 ssl;\n    proxy_pass 10.0.0.1:81;\n  }\n\
         proxy_bind 10.0.0.9;\n}\n",
    );
    let path = file.to_str().unwrap();
    let output = cli(&["import", "nginx", path]);
    let lists = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{lists}");
    for part in [
        "not carried over: 2",
        "nginx.conf:4: `server` is left out: TLS of sessions is not supported yet",
        "nginx.conf:7: `proxy_bind 10.0.0.9`: the source address",
        "servers.conf:1: listen 7001",
    ] {
        assert!(lists.contains(part), "{part} in\n{lists}");
    }
    let config = stdout(&output);
    assert!(config.contains("bind = \"0.0.0.0:7001\"") && config.contains("servers.conf:1"));
    assert_eq!(
        cli(&["import", "nginx", "--strict", path]).status.code(),
        Some(1)
    );

    for (text, part) in [
        ("events {}\n", "there is no `stream` block"),
        ("stream {\n server {\n", "the block `server` is not closed"),
        (
            "stream { server { listen 1 ssl; proxy_pass a:1; } }",
            "nothing can be imported",
        ),
        (
            "http { access_log /var/log/x; server { listen 80; root /x; } }",
            "nothing of it can be a listener",
        ),
    ] {
        let file = dir.write("wrong.conf", text);
        let output = cli(&["import", "nginx", file.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1));
        let shown = self::text(&output);
        assert!(
            shown.contains(part) && !shown.contains("panicked"),
            "{shown}"
        );
    }
    let output = cli(&["import", "nginx", "/nonexistent/nginx.conf"]);
    assert!(!output.status.success() && text(&output).contains("cannot read"));
}

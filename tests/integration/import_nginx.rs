//! `import nginx`: what is made of a configuration does the same as nginx with that configuration.

use crate::{
    harness::{
        net::{self, BlackHole, End, connect, connect_with, read_all},
        pair::sources_v4,
        ports,
        proc::{self, text},
        programs::{Nginx, http_block},
        rng::{self, Rng},
        secs,
        server::Server,
        tembuku::{Tembuku, cli},
        temp::TempDir,
        wait_until,
    },
    ip_hash_nginx::{self, web},
};
use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr},
    process::{Command, Output},
    sync::{Mutex, mpsc},
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
            program: Tembuku::start_imported(&config),
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

/// The directive stands in the second text; the first says nothing, and nginx has a default.
#[test]
fn what_is_half_closed_ends_or_goes_on_as_in_nginx() {
    for (directive, goes_on) in [("", false), ("proxy_half_close on;", true)] {
        let (arrived, streams) = mpsc::channel();
        let arrived = Mutex::new(arrived);
        let server = Server::start(move |stream| arrived.lock().unwrap().send(stream).unwrap());
        let sides = Sides::stream(&format!(
            "server {{ listen LISTEN; {directive} proxy_pass {}; }}",
            server.addr
        ));
        for addr in [sides.nginx, sides.tembuku] {
            let mut client = connect(addr).unwrap();
            client.write_all(b"?").unwrap();
            let mut backend = streams.recv_timeout(secs(10)).unwrap();
            let mut question = [0];
            backend.read_exact(&mut question).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_all(&mut backend), (Vec::new(), End::Fin), "{addr}");
            // The backend has said nothing, and does not close.
            if goes_on {
                backend.write_all(b"late").unwrap();
                drop(backend);
                assert_eq!(
                    read_all(&mut client),
                    (b"late".to_vec(), End::Fin),
                    "{addr}"
                );
            } else {
                assert_eq!(read_all(&mut client), (Vec::new(), End::Fin), "{addr}");
            }
        }
    }
}

/// Whether the kernel probes the connection to a server at this port.
fn probes(port: u16) -> bool {
    let mut command = Command::new("ss");
    command.args(["-Htno", "state", "established", &format!("dport = :{port}")]);
    let sockets = text(&proc::run(secs(10), command));
    // That of the client of the test is none of the programs'.
    assert!(!sockets.trim().is_empty(), "no connection to {port}");
    sockets.contains("timer:(keepalive")
}

#[test]
fn idle_peers_are_probed_where_nginx_does_it() {
    for (directive, wanted) in [("", false), ("proxy_socket_keepalive on;", true)] {
        let server = Server::named("b1");
        let port = server.addr.port();
        let sides = Sides::stream(&format!(
            "server {{ listen LISTEN; {directive} proxy_pass {}; }}",
            server.addr
        ));
        for addr in [sides.nginx, sides.tembuku] {
            let (stream, _) = net::session(addr).unwrap();
            // Set a second after the begin.
            if wanted {
                wait_until("the probes", secs(10), || probes(port));
            } else {
                std::thread::sleep(Duration::from_millis(1_500));
                assert!(!probes(port), "{addr}");
            }
            drop(stream);
            wait_until("the end of the session", secs(10), || server.live() == 0);
        }
    }
}

#[test]
fn commands_reach_the_process_with_what_an_import_writes() {
    let server = Server::named("b1");
    let sides = Sides::stream(&format!(
        "server {{ listen LISTEN; proxy_pass {}; }}",
        server.addr
    ));
    let file = sides.program.dir.file("tembuku.toml");
    let file = file.to_str().unwrap();
    let output = cli(&["status", "-c", file]);
    let status = text(&output);
    let port = sides.tembuku.port();
    assert!(status.contains(&format!("tcp-{port}")), "{status}");
    assert!(
        status.contains(&format!("upstream to-{}", server.addr.ip())),
        "{status}"
    );
    let output = cli(&["reload", "-c", file]);
    assert!(output.status.success(), "{}", text(&output));
}

/// `jq` lines of pages about other programs name fields of a record.
#[test]
fn the_access_log_has_the_fields_that_pages_name() {
    let server = Server::named("b1");
    let listen = ports::free_addr();
    let (config, _) = import(&format!(
        "stream {{ log_format basic '$status'; access_log /var/log/nginx/access.log basic;
         server {{ listen {listen}; proxy_pass {}; }} }}",
        server.addr
    ));
    assert!(
        config.contains("access = \"/var/log/tembuku/access.log\""),
        "{config}"
    );
    let dir = TempDir::new();
    let program =
        Tembuku::start_imported(&config.replace("/var/log/tembuku", dir.path().to_str().unwrap()));
    assert_eq!(net::ask(listen).unwrap(), "b1");
    let record = || std::fs::read_to_string(dir.file("access.log")).ok();
    wait_until("a record", secs(10), || {
        record().is_some_and(|text| text.ends_with('\n'))
    });
    let record: serde_json::Value = serde_json::from_str(&record().unwrap()).unwrap();
    for page in ["nginx", "haproxy"] {
        let path = format!("{}/docs/coming-from-{page}.md", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let fields = text
            .split("$ jq -r '[")
            .nth(1)
            .unwrap()
            .split(']')
            .next()
            .unwrap();
        assert!(fields.len() > 40, "{fields}");
        for field in fields.split(", ") {
            let value = record.get(field.strip_prefix('.').unwrap());
            assert!(value.is_some(), "{field} in {record}");
        }
    }
    drop(program);
}

/// The list says that nginx refuses it: nginx is asked.
#[test]
fn nginx_refuses_what_the_list_calls_refused() {
    let dir = TempDir::new();
    let with = |method: &str| {
        format!("upstream a {{ {method} server 10.0.0.1:1; server 10.0.0.2:1 backup; }}")
    };
    for (text, is_refused) in [
        (with("hash $remote_addr;"), true),
        (with("hash $remote_addr consistent;"), true),
        (with("random;"), true),
        (with("least_conn;"), false),
        (with(""), false),
        (
            "upstream a { ip_hash; server 10.0.0.1:1; }".to_owned(),
            true,
        ),
        (
            "upstream a { server 10.0.0.1:1 weight=0; }".to_owned(),
            true,
        ),
        (
            "upstream a { server 10.0.0.1:1; server 10.0.0.1:1; }".to_owned(),
            false,
        ),
        (
            "upstream a { server 10.0.0.1:1; } server { listen 4 udp backlog=4; proxy_pass a; }"
                .to_owned(),
            true,
        ),
    ] {
        let block = format!("stream {{ {text} server {{ listen 7001; proxy_pass a; }} }}\n");
        let (_, lists) = import(&block);
        let says = lists.contains("nginx itself refuses it");
        assert_eq!(says, is_refused, "{text}\n{lists}");
        let output = nginx_test(&dir, &block);
        assert_eq!(
            !output.status.success(),
            is_refused,
            "{text}\n{}",
            self::text(&output)
        );
    }
}

/// `nginx -t`.
fn nginx_test(dir: &TempDir, block: &str) -> Output {
    let root = dir.path().to_str().unwrap();
    let file = dir.write(
        "nginx.conf",
        &format!(
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so; pid {root}/pid;\n\
             events {{}}\n{block}"
        ),
    );
    let file = file.to_str().unwrap();
    let mut command = Command::new("nginx");
    command.args(["-t", "-p", root, "-e", "stderr", "-c", file]);
    proc::run(secs(20), command)
}

#[test]
fn the_configurations_of_nginx_on_its_page_are_valid() {
    let path = format!("{}/docs/coming-from-nginx.md", env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(path).unwrap();
    let dir = TempDir::new();
    let mut count = 0;
    for part in page.split("```nginx\n").skip(1) {
        let block = part.split("\n```").next().unwrap();
        let block = block.replace("/var/log/nginx", dir.path().to_str().unwrap());
        let block = match block.contains("stream {") {
            true => block,
            false => format!("stream {{ {block} }}"),
        };
        let output = nginx_test(&dir, &block);
        assert!(output.status.success(), "{}", text(&output));
        count += 1;
    }
    assert_eq!(count, 2);
}

/// What users try first.
#[test]
fn a_file_is_written_once() {
    let dir = TempDir::new();
    let block = "stream { server { listen 7001; proxy_pass 10.0.0.1:80; } }\n";
    let (input, output) = (dir.write("nginx.conf", block), dir.file("tembuku.toml"));
    let (input, output) = (input.to_str().unwrap(), output.to_str().unwrap());
    let made = cli(&["import", "nginx", input, "-o", output]);
    assert!(made.status.success() && made.stdout.is_empty());
    let next = format!("next: tembuku check --probe -c {output}\n");
    assert!(text(&made).ends_with(&next), "{}", text(&made));
    let config = std::fs::read_to_string(output).unwrap();
    let (printed, _) = import(block);
    // They name different files.
    assert_eq!(config.lines().count(), printed.lines().count());
    let checked = cli(&["check", "--file-only", "-c", output]);
    assert!(checked.status.success(), "{}", text(&checked));

    std::fs::write(output, "mine").unwrap();
    let refused = cli(&["import", "nginx", input, "--output", output]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused).contains("tembuku.toml is there already\n  hint: --force"));
    assert_eq!(std::fs::read_to_string(output).unwrap(), "mine");
    let replaced = cli(&["import", "nginx", input, "--force", "-o", output]);
    assert!(replaced.status.success(), "{}", text(&replaced));
    assert_eq!(std::fs::read_to_string(output).unwrap(), config);
    let lost = dir.file("none/tembuku.toml");
    let output = cli(&["import", "nginx", input, "-o", lost.to_str().unwrap()]);
    assert!(text(&output).contains("cannot write") && !lost.exists());
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
        "nginx.conf:3-5: `server`: left out because of",
        "nginx.conf:4: TLS of sessions is not supported yet",
        "nginx.conf:7: `proxy_bind 10.0.0.9`: backends see",
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
            "nothing can be imported as a listener",
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
    // The result is there, and refused.
    let lost = "stream { server { listen 7001; proxy_pass 10.0.0.1:1; js_access a.b; } }";
    let file = dir.write("access.conf", lost);
    let output = cli(&["import", "nginx", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("stands for an access rule"));
    let file = dir.write("access.toml", &stdout(&output));
    let output = cli(&["check", "-c", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let output = cli(&["import", "nginx", "/nonexistent/nginx.conf"]);
    assert!(!output.status.success() && text(&output).contains("cannot read"));
}

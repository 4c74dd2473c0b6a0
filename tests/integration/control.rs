//! The admin socket: its rights, its answers, and the commands that use it.

use crate::harness::{
    http::{self, Response},
    net::{self, echo},
    ports,
    proc::{self, Proc, command},
    secs,
    server::{Server, list, named},
    tembuku::{Tembuku, binary, cli},
    temp::TempDir,
    wait_until,
};
use rustix::process::Signal;
use serde_json::Value;
use std::{
    fs,
    io::{Read, Write},
    net::SocketAddr,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Instant,
};

struct Setup {
    tembuku: Tembuku,
    front: SocketAddr,
    servers: Vec<Server>,
}

fn config(front: SocketAddr, socket: &str, servers: &[Server]) -> String {
    format!(
        "[process]\nworkers = 2\n[admin]\nsocket = \"{socket}\"\n\
         [listeners.front]\nbind = \"{front}\"\nupstream = \"back\"\n\
         [upstreams.back]\nbackends = {}\n",
        list(servers)
    )
}

fn setup() -> Setup {
    let servers = named(2);
    let front = ports::free_addr();
    Setup {
        tembuku: Tembuku::start(&config(front, "{dir}/admin.sock", &servers)),
        front,
        servers,
    }
}

impl Setup {
    fn socket(&self) -> PathBuf {
        self.tembuku.dir.file("admin.sock")
    }

    /// A request over the socket.
    #[track_caller]
    fn call(&self, method: &str, path: &str, body: &str) -> Response {
        http::request_unix(&self.socket(), method, path, body).unwrap()
    }

    /// A command of the program with `--socket`.
    #[track_caller]
    fn cli(&self, arguments: &[&str]) -> Output {
        self.tembuku.command(arguments)
    }

    fn target(&self, server: usize) -> String {
        format!("back/{}", self.servers[server].addr)
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What a command complains of, and with which code.
#[track_caller]
fn complaint(output: &Output, code: i32) -> String {
    let message = proc::text(output);
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(output.stdout.is_empty(), "{message}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Whatever the umask, and from the first moment: no other user may connect, and the error has the
/// reason.
#[test]
fn the_socket_is_for_its_owner_alone() {
    for umask in ["000", "022", "777"] {
        let dir = TempDir::new();
        let wrapper = dir.write(
            "wrapper",
            &format!("#!/bin/sh\numask {umask}\nexec \"$@\"\n"),
        );
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
        let config = config(ports::free_addr(), "{dir}/admin.sock", &named(1));
        let tembuku = Tembuku::start_under(wrapper.to_str().unwrap(), &config);
        let socket = tembuku.dir.file("admin.sock");
        assert_eq!(mode(&socket), 0o600, "with umask {umask}");
        let mut other = command("setpriv --reuid=nobody --regid=nogroup --clear-groups");
        // The copy that another user can reach.
        let program = tembuku.dir.file("tembuku");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        other
            .arg(program)
            .arg("status")
            .arg("--socket")
            .arg(&socket);
        let message = complaint(&proc::run(secs(10), other), 1);
        assert!(
            message.contains("permission denied") && message.contains("hint: "),
            "{message}"
        );
    }
}

#[test]
fn a_socket_file_of_a_dead_process_is_replaced_and_nothing_else() {
    let servers = named(1);
    let dir = TempDir::new();
    let path = dir.file("admin.sock");
    let text = |front| config(front, path.to_str().unwrap(), &servers);
    let mut first = Tembuku::start(&text(ports::free_addr()));
    first.proc.kill();
    assert!(
        fs::metadata(&path).unwrap().file_type().is_socket(),
        "left behind"
    );
    let message = complaint(&cli(&["status", "--socket", path.to_str().unwrap()]), 1);
    assert!(message.contains("no process listens there"), "{message}");

    let second = Tembuku::start(&text(ports::free_addr()));
    let status = || http::request_unix(&path, "GET", "/livez", "").map(|r| r.status);
    assert_eq!(status().unwrap(), 200);
    // That one lives, and keeps it.
    let refused = |what: &str| {
        let config = dir.write("other.toml", &text(ports::free_addr()));
        let message = complaint(&cli(&["run", "-c", config.to_str().unwrap()]), 1);
        assert!(
            message.contains("error: admin: cannot listen on"),
            "{message}"
        );
        assert!(
            message.contains("admin.sock") && message.contains(what),
            "{message}"
        );
        message
    };
    let message = refused("another process is listening there");
    let hint = format!(
        "hint: another tembuku (pid {}) runs with this file",
        second.proc.id()
    );
    assert!(message.contains(&hint), "{message}");
    assert_eq!(status().unwrap(), 200);
    drop(second);
    assert!(!path.exists(), "it is taken away at the end");
    fs::write(&path, "dear").unwrap();
    refused("is not a socket");
    assert_eq!(fs::read_to_string(&path).unwrap(), "dear");
    fs::remove_file(&path).unwrap();
    // A start that fails later leaves nothing behind.
    let config = dir.write(
        "other.toml",
        &format!(
            "[log]\naccess = \"/no/such/folder/log\"\n{}",
            text(ports::free_addr())
        ),
    );
    complaint(&cli(&["run", "-c", config.to_str().unwrap()]), 1);
    assert!(!path.exists());
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let dir = TempDir::new();
    let text = config(ports::free_addr(), "/no/such/folder/admin.sock", &named(1));
    let config = dir.write("tembuku.toml", &text);
    let message = complaint(&cli(&["run", "-c", config.to_str().unwrap()]), 1);
    assert!(message.contains("its folder must be there"), "{message}");
}

/// A socket that another program has bound at the same path stays.
#[test]
fn the_socket_of_a_successor_is_not_taken_away() {
    let mut setup = setup();
    let path = setup.socket();
    fs::remove_file(&path).unwrap();
    let _successor = UnixListener::bind(&path).unwrap();
    assert!(setup.tembuku.terminate().success());
    assert!(path.exists());
}

/// The last sessions can be watched.
#[test]
fn the_socket_answers_until_the_end() {
    let mut setup = setup();
    let (mut held, _) = net::session(setup.front).unwrap();
    setup.tembuku.proc.signal(Signal::TERM);
    wait_until("it drains", secs(10), || {
        let message = stdout(&setup.cli(&["status"]));
        message.contains(": draining, pid") && message.contains("1 of")
    });
    echo(&mut held, "still here").unwrap();
    drop(held);
    let ended = setup.tembuku.proc.wait(secs(10)).expect("an end");
    assert!(ended.success());
    assert!(!setup.socket().exists());
}

/// Without a port of its own for HTTP.
#[test]
fn the_socket_may_be_all_there_is() {
    let servers = named(1);
    let (dir, front) = (TempDir::new(), ports::free_addr());
    let socket = dir.file("admin.sock");
    let text = config(front, socket.to_str().unwrap(), &servers);
    let config = dir.write("tembuku.toml", &text);
    let mut command = Command::new(binary());
    command.args(["run", "-c", config.to_str().unwrap()]);
    let mut proc = Proc::start("tembuku", dir.path(), command);
    proc.wait_ready(secs(10), || {
        http::request_unix(&socket, "GET", "/readyz", "").is_ok_and(|r| r.status == 200)
    });
    // The file alone is enough to find it.
    let target = format!("back/{}", servers[0].addr);
    let output = cli(&["drain", &target, "-c", config.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", proc::text(&output));
    assert_eq!(
        stdout(&output),
        format!("{target}: up -> drained, 0 sessions\n")
    );
    net::assert_closed_at_once(front);
}

#[test]
fn the_socket_answers_like_the_port_and_takes_commands() {
    let setup = setup();
    for path in [
        "/",
        "/metrics",
        "/livez",
        "/readyz",
        "/api/v1/status",
        "/api/v1/events",
        "/x",
    ] {
        let (port, socket) = (setup.tembuku.get(path), setup.call("GET", path, ""));
        assert_eq!(port.status, socket.status, "{path}");
        assert_eq!(port.header("content-type"), socket.header("content-type"));
        assert_eq!(
            setup.call("POST", path, "").status,
            if path == "/x" { 404 } else { 405 }
        );
    }
    let path = format!("/api/v1/upstreams/back/backends/{}", setup.servers[0].addr);
    let on_port = http::request(setup.tembuku.admin, "POST", &path).unwrap();
    assert_eq!(on_port.status, 404);
    assert!(
        on_port.body.contains("on the unix socket alone"),
        "{}",
        on_port.body
    );
    assert_eq!(
        setup
            .tembuku
            .metric("backend_state", &[("state", "drained")]),
        0.0
    );

    let done = setup.call("POST", &path, "{\"admin_state\": \"drain\"}");
    assert_eq!(done.status, 200, "{done:?}");
    let done: Value = serde_json::from_str(&done.body).unwrap();
    let backend = setup.servers[0].addr.to_string();
    let expected = serde_json::json!({ "upstream": "back", "backend": backend,
        "admin_state": "drain", "from": "up", "state": "drained", "connections": 0,
        "close_after_seconds": null, "without_backend": null });
    assert_eq!(done, expected);
    let encoded = path.replace(':', "%3a");
    let done = setup.call("POST", &encoded, " {\"admin_state\":\"ready\"}\n");
    assert!(done.body.contains("\"from\": \"drained\""), "{done:?}");
}

/// What the body of a request must look like.
const DRAIN: &str = "{\"admin_state\": \"drain\"}";

/// Sends a request that must be refused with this status, this error and this way out.
#[track_caller]
fn assert_refused(setup: &Setup, request: [&str; 3], status: u16, error: &str, hint: &str) {
    let [method, path, body] = request;
    let answer = setup.call(method, path, body);
    assert_eq!(
        answer.status, status,
        "{method} {path} {body:.40}: {answer:?}"
    );
    let allow = (status == 405).then_some("POST");
    assert_eq!(answer.header("allow"), allow, "{answer:?}");
    let json: Value = serde_json::from_str(&answer.body).unwrap();
    let value = |key: &str| json[key].as_str().unwrap().to_owned();
    assert!(
        value("error").contains(error),
        "{method} {path}: {answer:?}"
    );
    assert!(value("hint").contains(hint), "{method} {path}: {answer:?}");
}

#[track_caller]
fn assert_none_drained(setup: &Setup) {
    let drained = setup
        .tembuku
        .metric("backend_state", &[("state", "drained")]);
    assert_eq!(drained, 0.0, "and nothing was done");
}

#[test]
fn every_invalid_admin_state_body_is_refused() {
    let setup = setup();
    let path = format!("/api/v1/upstreams/back/backends/{}", setup.servers[0].addr);
    let long = format!("{{\"admin_state\": \"{}\"}}", "x".repeat(10_000));
    for (body, error, hint) in [
        ("", "EOF", DRAIN),
        ("drain", "the body", DRAIN),
        (r#"{"admin_state": 1}"#, "a string", DRAIN),
        (r#"{"admin_state": "drain", "for": 3}"#, "for", DRAIN),
        (
            r#"{"admin_state": "drian"}"#,
            "\"drian\"",
            "did you mean \"drain\"?",
        ),
        (
            r#"{"admin_state": "stop"}"#,
            "\"stop\"",
            "ready, drain, maint",
        ),
        (&long, "length limit", DRAIN),
        (
            r#"{"admin_state": "drain", "close_after": "30"}"#,
            "`close_after`: ",
            "write \"30s\" for seconds",
        ),
        (
            r#"{"admin_state": "ready", "close_after": "30s"}"#,
            "`close_after` does not go with",
            "drained",
        ),
    ] {
        assert_refused(&setup, ["POST", &path, body], 400, error, hint);
    }
    assert_none_drained(&setup);
}

#[test]
fn every_invalid_admin_state_path_or_method_is_refused() {
    let setup = setup();
    let address = setup.servers[0].addr;
    let at =
        |upstream: &str, backend: &str| format!("/api/v1/upstreams/{upstream}/backends/{backend}");
    let good = at("back", &address.to_string());
    for (method, path) in [
        ("GET", &*good),
        ("DELETE", &good),
        ("GET", "/api/v1/backends/x"),
    ] {
        let request = [method, path, ""];
        assert_refused(&setup, request, 405, "POST alone", "/api/v1/status");
    }
    let there = format!("there is {address}");
    let meant = format!("did you mean \"{address}\"?");
    for (path, error, hint) in [
        (
            &*at("bakc", "x"),
            "no upstream \"bakc\"",
            "did you mean \"back\"?",
        ),
        (&at("other", "x"), "no upstream \"other\"", "there is back"),
        (
            &at("back", "db.example:1"),
            "has no backend \"db.example:1\"",
            &there,
        ),
        (
            &at("back", &format!("{address}x")),
            "has no backend",
            &meant,
        ),
        (&at("back", ""), "not found", "NAME/backends/ADDRESS"),
        (&at("back", "%zz"), "not found", "percent-encoded"),
        ("/api/v1/backends/", "not found", "/api/v1/backends/ADDRESS"),
        (
            "/api/v1/upstreams/back",
            "not found",
            "NAME/backends/ADDRESS",
        ),
    ] {
        assert_refused(&setup, ["POST", path, DRAIN], 404, error, hint);
    }
    assert_none_drained(&setup);
}

#[test]
fn status_shows_drained_backends_and_their_sessions() {
    let setup = setup();
    let (first, second) = (setup.servers[0].addr, setup.servers[1].addr);
    let _held: Vec<_> = (0..3).map(|_| net::session(setup.front).unwrap()).collect();
    assert!(setup.cli(&["drain", &setup.target(0)]).status.success());
    let output = setup.cli(&["status"]);
    assert_eq!(output.status.code(), Some(0), "{}", proc::text(&output));
    let message = stdout(&output);
    let lines: Vec<Vec<&str>> = message
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    let front = setup.front.to_string();
    let (first, second) = (first.to_string(), second.to_string());
    let accepted = ["front", "tcp", "back", "3", "3", "0", "B", "9", "B", &front];
    assert_eq!(
        lines[0][..3],
        [
            "tembuku",
            concat!(env!("CARGO_PKG_VERSION"), ":"),
            "running,"
        ]
    );
    // No listener receives datagrams.
    assert!(lines[1].contains(&"connections,"), "{message}");
    assert!(
        !message.contains("flows") && !message.contains("datagrams"),
        "{message}"
    );
    assert_eq!(lines[4], accepted, "{message}");
    assert_eq!(
        lines[6].join(" "),
        "upstream back: round_robin, 1 of 2 available"
    );
    // For how long differs from one run to the next.
    assert!(lines[8][2].ends_with('s'), "{message}");
    let mut row = lines[8].clone();
    row.remove(2);
    let shown = row.join(" ");
    let why = format!("{first} drained 2 2 1 - - set by the operator; since 20");
    assert!(shown.starts_with(&why), "{shown}");
    assert_eq!(lines[9].join(" "), format!("{second} up - 1 1 1 - -"));
    assert_eq!(lines.len(), 10);
    // And the same for programs.
    let json = stdout(&setup.cli(&["status", "--json"]));
    let json: Value = serde_json::from_str(&json).unwrap();
    let backend = &json["upstreams"][0]["backends"][0];
    assert_eq!(
        (&backend["admin_state"], &backend["state"]),
        (&"drain".into(), &"drained".into())
    );
    assert_eq!(backend["connections"], 2);
    assert!(backend["since"].is_string());
}

#[test]
fn a_drain_can_be_waited_for() {
    let setup = setup();
    let target = setup.target(0);
    let began = Instant::now();
    let (held, name) = net::session(setup.front).unwrap();
    assert_eq!(name, "b1");
    let arguments = ["drain", &target, "--wait", "--timeout", "300ms"];
    let output = setup.cli(&arguments);
    assert_eq!(output.status.code(), Some(1), "{}", proc::text(&output));
    let message = String::from_utf8_lossy(&output.stderr);
    let seen = format!("{target}: still 1 session (listener front 1; the oldest for ");
    let hint = format!(
        ") after 300ms\n  hint: it stays drained; `tembuku drain {target} --close-after TIME` ends \
         the sessions that are left, `tembuku ready {target}` takes it back\n"
    );
    let oldest = message.split_once(&seen);
    let oldest = oldest.and_then(|(_, rest)| rest.strip_suffix(&hint)?.strip_suffix("s"));
    let oldest: f64 = oldest.and_then(|text| text.parse().ok()).expect(&message);
    // Either figure is rounded.
    let age = began.elapsed().as_secs_f64();
    assert!((0.2..age + 0.1).contains(&oldest), "{age}: {message}");

    let mut drain = Command::new(binary());
    drain.args(["drain", &target, "--wait", "--socket"]);
    drain.arg(setup.socket());
    let mut waiting = Proc::start("drain", setup.tembuku.dir.path(), drain);
    // It has looked at least once.
    wait_until("it waits", secs(30), || waiting.stderr().contains(&seen));
    assert!(waiting.ended().is_none());
    drop(held);
    let status = waiting.wait(secs(30)).expect("an end without sessions");
    let message = waiting.stdout();
    assert!(status.success(), "{message}{}", waiting.stderr());
    assert!(message.ends_with(": no sessions left\n"), "{message}");
}

/// Each complaint names the way out.
#[track_caller]
fn assert_complaint(arguments: &[&str], code: i32, expected: &str) {
    let message = complaint(&cli(arguments), code);
    assert!(message.contains(expected), "{arguments:?}: {message}");
    if code == 1 {
        assert!(message.starts_with("error: "), "{arguments:?}: {message}");
        assert!(
            message.contains("hint: ") || arguments[2].ends_with("/silent.sock"),
            "{arguments:?}: {message}"
        );
    }
}

#[test]
fn failures_to_find_the_process_are_reported() {
    let setup = setup();
    let dir = TempDir::new();
    let plain = dir.write("plain", "no socket");
    let silent = dir.file("silent.sock");
    let other = UnixListener::bind(&silent).unwrap();
    std::thread::spawn(move || {
        for stream in other.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"SSH-2.0-OpenSSH\r\n\r\n");
        }
    });
    let without = dir.write(
        "without.toml",
        "[listeners.l]\nbind = \"127.0.0.1:1\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [\"10.0.0.1:1\"]\n",
    );
    let broken = dir.write("broken.toml", "[listener.l]\n");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (plain, silent) = (text(&plain), text(&silent));
    let (without, broken) = (text(&without), text(&broken));
    let nowhere = text(&dir.file("nowhere.sock"));
    let long = format!("/tmp/{}", "x".repeat(200));
    let good = text(&setup.socket());
    let target = setup.target(0);
    for (arguments, code, expected) in [
        (
            &["status", "--socket", &nowhere][..],
            1,
            "there is no such socket",
        ),
        (&["status", "--socket", &plain], 1, "that is no socket"),
        (&["status", "--socket", &long], 1, "cannot reach tembuku"),
        (&["status", "--socket", &silent], 1, "does not speak HTTP"),
        (&["status", "-c", &without], 1, "names no admin socket"),
        (&["drain", &target, "-c", &without], 1, "write socket = "),
        (
            &["ready", &target, "-c", &broken],
            1,
            "name the socket itself: --socket PATH",
        ),
        (
            &["maint", &target, "-c", &nowhere],
            1,
            "cannot read the configuration",
        ),
        (
            &["status", "-c", &without, "--socket", &good],
            2,
            "exclude each other",
        ),
        (
            &["maint", &target, "-c", &without, "--socket", &good],
            2,
            "exclude each other",
        ),
    ] {
        assert_complaint(arguments, code, expected);
    }
}

#[test]
fn invalid_arguments_are_reported() {
    let setup = setup();
    let socket = setup.socket();
    let good = socket.to_str().unwrap();
    let target = setup.target(0);
    for (arguments, code, expected) in [
        (&["drain"][..], 2, "UPSTREAM/BACKEND"),
        (
            &["drain", "10.0.0.1:1"],
            1,
            "no upstream has a backend \"10.0.0.1:1\"",
        ),
        (&["drain", "back/"], 2, "redis/10.0.0.1:6379"),
        (&["drain", &target, "--timeout", "1s"], 2, "--wait"),
        (
            &["drain", &target, "--wait", "--timeout", "soon"],
            2,
            "--timeout",
        ),
        (&["ready", &target, "--timeout", "1s"], 2, "--wait"),
        (&["drain", "bakc/x"], 1, "did you mean \"back\"?"),
        (
            &["drain", "back/unix:/x/y z"],
            1,
            "has no backend \"unix:/x/y z\"",
        ),
        (&["top"], 2, "this needs a terminal"),
    ] {
        assert_complaint(&[arguments, &["--socket", good]].concat(), code, expected);
    }
    assert_complaint(&["reload", "--wait"], 2, "--wait");
    for (arguments, expected) in [
        (
            &["set", "server", "b/s", "state", "maint"][..],
            "`tembuku maint",
        ),
        (&["shutdown", "sessions"], "`tembuku kill`"),
        (&["status", "replicas"], "`tembuku top --filter replicas`"),
        (&["status", "-w"], "`tembuku top` is the live view"),
    ] {
        assert_complaint(arguments, 2, expected);
    }
    for command in ["kill", "sessions"] {
        assert_complaint(&[command, "99999"], 1, "--id 99999 selects the session");
    }
    let mut command = Command::new(binary());
    command.args(["ready", "--all"]);
    let printed = proc::text(&proc::run(secs(10), command));
    assert!(
        printed.contains("'--all'") && !printed.contains("-- --all"),
        "{printed}"
    );
    let mut command = Command::new(binary());
    command.arg("drain").env("TEMBUKU_CONFIG", "/no/file");
    let printed = proc::text(&proc::run(secs(10), command));
    let usage = "Usage: tembuku drain [OPTIONS] [UPSTREAM/BACKEND|ADDRESS]...\n";
    assert!(printed.contains(usage), "{printed}");
}

#[test]
fn a_backend_that_does_not_exist_keeps_a_command_from_acting_on_others() {
    let setup = setup();
    let target = setup.target(0);
    let output = setup.cli(&["maint", "back/none:1", &target]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stdout(&output), "", "one name is wrong");
    let message = stdout(&setup.cli(&["maint", &target]));
    assert_eq!(
        message,
        format!("{target}: up -> maintenance, 0 sessions\n")
    );
    // A variable that names a file is no contradiction to a socket.
    let mut command = Command::new(binary());
    command
        .args(["ready", &target, "--socket"])
        .arg(setup.socket())
        .env("TEMBUKU_CONFIG", "/no/file");
    let message = proc::run_ok(secs(10), command);
    assert_eq!(
        message,
        format!("{target}: maintenance -> up, 0 sessions\n")
    );
    let message = stdout(&setup.cli(&["ready", &target]));
    assert_eq!(message, format!("{target}: up already, 0 sessions\n"));
}

/// A server that accepts and never answers does not hold a command for ever.
#[test]
fn a_process_that_hangs_is_not_waited_for() {
    let setup = setup();
    setup.tembuku.proc.signal(Signal::STOP);
    let mut command = Command::new(binary());
    command.args(["status", "--socket"]).arg(setup.socket());
    let output = proc::run(secs(30), command);
    setup.tembuku.proc.signal(Signal::CONT);
    let message = complaint(&output, 1);
    assert!(message.contains("no answer within 5 s"), "{message}");
}

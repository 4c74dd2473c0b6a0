//! The journal, read to its end and followed.

use crate::harness::{
    net::{self, echo},
    ports,
    proc::{self, Proc},
    secs,
    server::{Server, list, named},
    tembuku::{Tembuku, binary, cli},
    temp::TempDir,
    wait_until,
};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
};

/// What a journal holds.
const MOST: u64 = 256;

struct Setup {
    tembuku: Tembuku,
    front: SocketAddr,
    servers: Vec<Server>,
    /// Where the socket is, also for the next process.
    dir: TempDir,
}

impl Setup {
    fn new() -> Self {
        let (dir, servers, front) = (TempDir::new(), named(2), ports::free_addr());
        let config = Self::config(&dir, front, &servers);
        Self {
            tembuku: Tembuku::start(&config),
            front,
            servers,
            dir,
        }
    }

    fn config(dir: &TempDir, front: SocketAddr, servers: &[Server]) -> String {
        let socket = dir.file("admin.sock");
        format!(
            "[admin]\nsocket = \"{}\"\n[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
             [upstreams.u]\nbalance = \"first\"\nbackends = {}\n",
            socket.display(),
            list(servers)
        )
    }

    fn socket(&self) -> String {
        self.dir.file("admin.sock").to_str().unwrap().to_owned()
    }

    #[track_caller]
    fn set(&self, admin_state: &str, server: usize) {
        let target = format!("u/{}", self.servers[server].addr);
        let output = cli(&[admin_state, &target, "--socket", &self.socket()]);
        assert!(output.status.success(), "{}", proc::text(&output));
    }

    /// So many events, beginning and ending with a backend that is ready.
    #[track_caller]
    fn make_events(&self, count: u64) {
        let path = format!("/api/v1/upstreams/u/backends/{}", self.servers[1].addr);
        for n in 0..count {
            let admin_state = ["maint", "ready"][n as usize % 2];
            let body = format!("{{\"admin_state\": \"{admin_state}\"}}");
            let socket = self.dir.file("admin.sock");
            let answer = crate::harness::http::request_unix(&socket, "POST", &path, &body);
            assert_eq!(answer.unwrap().status, 200);
        }
    }

    #[track_caller]
    fn read(&self, query: &str) -> Value {
        let answer = self.tembuku.get(&format!("/api/v1/events{query}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_str(&answer.body).unwrap()
    }
}

/// `events --follow` with these arguments.
fn follow(dir: &Path, socket: &str, arguments: &[&str]) -> Proc {
    let mut command = Command::new(binary());
    command
        .args(["events", "--follow", "--socket", socket])
        .args(arguments);
    Proc::start("events", dir, command)
}

fn numbers(events: &[Value]) -> Vec<u64> {
    events
        .iter()
        .map(|e| e["number"].as_u64().unwrap())
        .collect()
}

fn parse(lines: &str) -> Vec<Value> {
    let lines = lines.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_follower_misses_nothing_also_over_reloads() {
    let setup = Setup::new();
    setup.make_events(10);
    let follower = follow(setup.dir.path(), &setup.socket(), &["--json"]);
    wait_until("it shows what there is", secs(10), || {
        follower.stdout().lines().count() == 10
    });
    let file = setup.tembuku.dir.file("tembuku.toml");
    let text = fs::read_to_string(&file).unwrap();
    for n in 0..20 {
        setup.make_events(30);
        let changed = format!("[listeners.l]\nretries = {n}\n");
        fs::write(&file, text.replace("[listeners.l]\n", &changed)).unwrap();
        let output = cli(&["reload", "--socket", &setup.socket()]);
        assert!(output.status.success(), "{}", proc::text(&output));
    }
    wait_until("it has shown all", secs(10), || {
        follower.stdout().lines().count() >= 630
    });
    // A reload is one as well.
    let shown = parse(&follower.stdout());
    assert_eq!(numbers(&shown), (0..630).collect::<Vec<u64>>());
    assert_eq!(follower.stderr(), "");
}

#[test]
fn a_slow_reader_learns_how_much_it_has_missed() {
    let setup = Setup::new();
    setup.make_events(2);
    let first = setup.read("");
    assert_eq!(
        (&first["lost"], first["events"].as_array().unwrap().len()),
        (&0.into(), 2)
    );
    let cursor = first["cursor"].as_str().unwrap();
    setup.make_events(MOST + 12);
    let next = setup.read(&format!("?after={cursor}"));
    let events = next["events"].as_array().unwrap();
    assert_eq!(next["lost"], 12);
    assert_eq!(numbers(events), (14..MOST + 14).collect::<Vec<u64>>());
    // And now nothing, after the time that it waits.
    let cursor = next["cursor"].as_str().unwrap();
    let none = setup.read(&format!("?after={cursor}&wait=50ms"));
    assert_eq!(
        (&none["lost"], &none["events"]),
        (&0.into(), &Value::Array(Vec::new()))
    );
    assert_eq!(none["cursor"], next["cursor"]);
    let refused = setup.tembuku.get("/api/v1/events?after=1");
    assert_eq!(refused.status, 400);
    assert!(refused.body.contains("not a cursor"), "{}", refused.body);
}

#[test]
fn a_waiting_reader_is_answered_at_once() {
    let setup = Setup::new();
    let cursor = setup.read("")["cursor"].as_str().unwrap().to_owned();
    let began = std::time::Instant::now();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| setup.read(&format!("?wait=9s&after={cursor}")));
        setup.make_events(1);
        let page = waiting.join().unwrap();
        assert_eq!(numbers(page["events"].as_array().unwrap()), [0]);
    });
    assert!(began.elapsed() < secs(5), "{:?}", began.elapsed());
}

#[test]
fn text_shows_what_follows_from_an_event() {
    let setup = Setup::new();
    let (mut held, name) = net::session(setup.front).unwrap();
    assert_eq!(name, "b1");
    let follower = follow(setup.dir.path(), &setup.socket(), &[]);
    setup.set("drain", 0);
    let title = format!("u/{} up -> drained: ", setup.servers[0].addr);
    let line = |part: &str| {
        let lines = follower.stdout();
        let mut lines = lines.lines();
        lines.any(|line| line.contains(&title) && line.ends_with(part))
    };
    wait_until("it shows the drain", secs(10), || {
        line("operator; 1 session")
    });
    echo(&mut held, "still here").unwrap();
    let (_next, name) = net::session(setup.front).unwrap();
    assert_eq!(name, "b2");
    let on = format!(" s on {}, no client came before", setup.servers[1].addr);
    wait_until("it shows the next session", secs(10), || line(&on));
    drop(held);
    wait_until("it shows the end of the last session", secs(10), || {
        let lines = follower.stdout();
        lines
            .lines()
            .any(|line| line.contains(": last session ended after "))
    });
    assert_eq!(
        follower.stdout().lines().count(),
        3,
        "{}",
        follower.stdout()
    );

    // All of it is one line for a reader that comes later.
    let output = cli(&["events", "--socket", &setup.socket()]);
    let printed = proc::text(&output);
    assert!(output.status.success(), "{printed}");
    assert_eq!(printed.matches(&title).count(), 1, "{printed}");
    assert!(
        printed.contains("1 session; last session ended after "),
        "{printed}"
    );
}

#[test]
fn a_follower_goes_on_after_a_restart() {
    let mut setup = Setup::new();
    setup.make_events(3);
    let mut follower = follow(setup.dir.path(), &setup.socket(), &["--json"]);
    let shown = |follower: &Proc, count| {
        wait_until(&format!("{count} events"), secs(20), || {
            follower.stdout().lines().count() == count
        });
    };
    shown(&follower, 3);
    assert!(setup.tembuku.terminate().success());
    wait_until("it notices", secs(20), || {
        follower.stderr().contains("trying again")
    });
    let config = Setup::config(&setup.dir, ports::free_addr(), &setup.servers);
    setup.tembuku = Tembuku::start(&config);
    setup.make_events(1);
    shown(&follower, 4);
    assert_eq!(numbers(&parse(&follower.stdout())), [0, 1, 2, 0]);
    assert_eq!(follower.ended(), None);
}

#[test]
fn a_reader_that_has_seen_enough_ends_the_command() {
    let setup = Setup::new();
    setup.make_events(1);
    let mut command = Command::new(binary());
    command
        .args(["events", "--follow", "--socket", &setup.socket()])
        .stdout(Stdio::piped());
    let mut child = proc::spawn(&mut command).unwrap();
    let mut line = String::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    lines.read_line(&mut line).unwrap();
    drop(lines);
    let mut status = None;
    // A child of another test may hold the pipe for a moment, until it is another program.
    wait_until("it ends", secs(10), || {
        setup.make_events(2);
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert!(status.unwrap().success());
}

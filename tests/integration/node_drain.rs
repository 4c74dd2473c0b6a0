//! A node that is about to stop: those that send clients learn of it first. The same by the
//! operator, without a stop; and the file by which other programs learn of it.

use crate::harness::{
    millis, net, ports,
    proc::text,
    secs,
    server::{Server, named},
    tembuku::{Tembuku, cli},
    temp::TempDir,
    udp, wait_until,
};
use rustix::process::Signal;
use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Output,
    time::Instant,
};

const NODE: &str = "/readyz/node";

struct Setup {
    tembuku: Tembuku,
    front: SocketAddr,
    _servers: Vec<Server>,
}

fn setup(process: &str) -> Setup {
    let servers = named(1);
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[process]\nworkers = 2\nready_file = \"{{dir}}/ready\"\n{process}\n\
         [admin]\nsocket = \"{{dir}}/admin.sock\"\n[log]\nformat = \"json\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [\"{}\"]\n",
        servers[0].addr
    ));
    let setup = Setup {
        tembuku,
        front,
        _servers: servers,
    };
    setup.wait_file("0\n");
    setup
}

impl Setup {
    fn command(&self, args: &[&str]) -> Output {
        self.tembuku.command(args)
    }

    /// Its standard output, once it has succeeded.
    #[track_caller]
    fn succeed(&self, args: &[&str]) -> String {
        let output = self.command(args);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn edit(&self, from: &str, to: &str) {
        let path = self.tembuku.dir.file("tembuku.toml");
        let config = fs::read_to_string(&path).unwrap();
        assert!(config.contains(from), "{config}");
        fs::write(&path, config.replace(from, to)).unwrap();
    }

    #[track_caller]
    fn reload_with(&self, from: &str, to: &str) {
        self.edit(from, to);
        self.succeed(&["reload"]);
    }

    #[track_caller]
    fn wait_file(&self, content: &str) {
        let path = self.tembuku.dir.file("ready");
        wait_until(&format!("the file is {content:?}"), secs(10), || {
            read(&path) == content
        });
    }

    fn refuses(&self) -> bool {
        TcpStream::connect(self.front).is_err()
    }

    #[track_caller]
    fn assert_served(&self) {
        let (client, _) = net::session(self.front).expect("a session");
        drop(client);
    }

    #[track_caller]
    fn wait_unready(&self) {
        wait_until("not ready", secs(10), || {
            self.tembuku.get(NODE).status == 503
        });
    }

    #[track_caller]
    fn assert_ends(mut self) {
        let status = self.tembuku.proc.wait(secs(10)).expect("an end");
        assert_eq!(status.code(), Some(0));
        assert_eq!(read(&self.tembuku.dir.file("ready")), "1\n");
    }

    /// Whether the delay has ended for this reason.
    fn has_ended(&self, reason: &str) -> bool {
        let mut log = self.tembuku.log().into_iter();
        log.any(|line| line["message"] == "end of drain_delay" && line["reason"] == reason)
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn clients_are_accepted_for_the_delay_while_the_node_is_not_ready() {
    let setup = setup("drain_delay = \"2s\"");
    assert_eq!(setup.tembuku.get(NODE).status, 200);
    let began = Instant::now();
    setup.tembuku.proc.signal(Signal::TERM);
    setup.wait_unready();
    assert_eq!(setup.tembuku.get("/readyz").status, 503);
    setup.wait_file("1\n");
    // Again and again, until it refuses: that must not be before the delay is over.
    while !setup.refuses() {
        assert!(began.elapsed() < secs(10), "it never refuses");
    }
    assert!(began.elapsed() >= millis(1_950), "{:?}", began.elapsed());
    setup.assert_ends();
}

#[test]
fn the_delay_ends_when_no_client_has_come_for_a_while() {
    // Longer than a session takes on a busy machine.
    let setup = setup("drain_delay = \"1m\"\ndrain_quiet = \"2s\"");
    let began = Instant::now();
    setup.tembuku.proc.signal(Signal::TERM);
    setup.wait_unready();
    let mut last = Instant::now();
    while began.elapsed() < millis(2_500) {
        last = Instant::now();
        setup.assert_served();
    }
    wait_until("no client is accepted", secs(10), || {
        setup.has_ended("quiet")
    });
    assert!(last.elapsed() >= secs(2), "{:?}", last.elapsed());
    setup.assert_ends();
}

#[test]
fn a_second_signal_ends_the_delay_and_the_drain() {
    let setup = setup("drain_delay = \"1m\"\ndrain_timeout = \"1m\"");
    let (_client, _) = net::session(setup.front).unwrap();
    setup.tembuku.proc.signal(Signal::TERM);
    setup.wait_unready();
    setup.tembuku.proc.signal(Signal::TERM);
    setup.assert_ends();
}

#[test]
fn a_reload_during_the_delay_changes_it() {
    let setup = setup("drain_delay = \"1m\"");
    setup.tembuku.proc.signal(Signal::TERM);
    setup.wait_unready();
    setup.assert_served();
    // By HUP: the process may end before it could answer a command.
    setup.edit("drain_delay = \"1m\"", "drain_delay = \"10ms\"");
    setup.tembuku.proc.signal(Signal::HUP);
    setup.assert_ends();
}

#[test]
fn the_operator_drains_the_node_and_clients_are_served() {
    let setup = setup("");
    let (client, _) = net::session(setup.front).unwrap();
    let drained = setup.succeed(&["drain", "--node"]);
    assert_eq!(drained, "node: ready -> drain, 1 session\n");
    // Written before the command has ended.
    assert_eq!(read(&setup.tembuku.dir.file("ready")), "1\n");
    assert_eq!(setup.command(&["status", "--node"]).stdout, b"draining\n");
    assert_eq!(setup.tembuku.get("/readyz").status, 503);
    setup.assert_served();
    // It outlives a reload.
    setup.reload_with("workers = 2", "workers = 2\ndrain_timeout = \"9s\"");
    assert_eq!(setup.tembuku.get(NODE).status, 503);
    let status = setup.tembuku.get("/api/v1/status").body;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["process"]["admin_state"], "drain");
    let waited = setup.command(&["drain", "--node", "--wait", "--timeout", "300ms"]);
    assert_eq!(waited.status.code(), Some(1));
    let message = String::from_utf8(waited.stderr).unwrap();
    let line = "error: node: still 1 session after 300ms\n  hint: the node stays drained; ";
    assert!(message.starts_with(line), "{message}");
    drop(client);
    let waited = setup.succeed(&["drain", "--node", "--wait"]);
    assert!(waited.ends_with("node: no sessions left\n"), "{waited}");
    assert_eq!(
        setup.succeed(&["ready", "--node"]),
        "node: drain -> ready, 0 sessions\n"
    );
    assert_eq!(setup.tembuku.get(NODE).status, 200);
    setup.wait_file("0\n");
    let maint = setup.command(&["maint", "--node"]);
    assert_eq!(maint.status.code(), Some(2), "{}", text(&maint));
    let both = setup.command(&["drain", "--node", "u/a:1"]);
    assert_eq!(both.status.code(), Some(2), "{}", text(&both));
}

#[test]
fn the_ready_file_follows_a_reload_and_is_no_trap() {
    let setup = setup("");
    let path = setup.tembuku.dir.file("ready");
    let other = setup.tembuku.dir.file("other");
    // Another file replaces it, and the first attracts no clients any more.
    setup.reload_with("/ready\"", "/other\"");
    wait_until("the other file", secs(10), || read(&other) == "0\n");
    assert_eq!(read(&path), "1\n");
    setup.reload_with("/other\"", "/none/ready\"");
    wait_until("a line in the log", secs(10), || {
        let log = setup.tembuku.proc.stderr();
        log.contains("cannot write the ready file")
    });
    assert_eq!(read(&other), "1\n");
    fs::create_dir(setup.tembuku.dir.file("none")).unwrap();
    let late = setup.tembuku.dir.file("none/ready");
    wait_until("it is tried again", secs(10), || read(&late) == "0\n");
}

#[test]
fn a_ready_file_that_cannot_be_written_is_an_error_at_the_start() {
    let dir = TempDir::new();
    let missing = dir.file("missing/ready");
    let config = dir.write(
        "tembuku.toml",
        &format!(
            "[process]\nready_file = \"{}\"\n[listeners.l]\nbind = \"{}\"\nupstream = \"u\"\n\
             [upstreams.u]\nbackends = [\"127.0.0.1:9\"]\n",
            missing.display(),
            ports::free_addr()
        ),
    );
    let output = cli(&["run", "-c", config.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    let expected = format!(
        "`ready_file` in [process]: cannot write {}",
        missing.display()
    );
    assert!(message.contains(&expected), "{message}");
}

/// Whether a client gets no answer to its attempt to connect: it repeats that after a second.
fn holds_off(addr: SocketAddr) -> bool {
    let connected = TcpStream::connect_timeout(&addr, millis(300));
    connected.is_err_and(|error| error.kind() == std::io::ErrorKind::TimedOut)
}

#[test]
fn a_drained_node_lets_no_client_in_after_the_delay_until_it_is_ready() {
    let mut setup = setup("drain_delay = \"1s\"");
    let (mut client, _) = net::session(setup.front).unwrap();
    setup.succeed(&["drain", "--node"]);
    setup.assert_served();
    wait_until("no client is let in", secs(10), || holds_off(setup.front));
    net::echo(&mut client, "still there").unwrap();
    // A listener that is added meanwhile does not let clients in either.
    let added = ports::free_addr();
    let path = setup.tembuku.dir.file("tembuku.toml");
    let config = fs::read_to_string(&path).unwrap();
    let more = format!("[listeners.added]\nbind = \"{added}\"\nupstream = \"u\"\n");
    fs::write(&path, format!("{config}{more}")).unwrap();
    setup.succeed(&["reload"]);
    assert!(holds_off(added) && holds_off(setup.front));
    // One that tries all the time gets in when the node is ready again.
    let front = setup.front;
    let waiting = std::thread::spawn(move || net::session(front).map(|(_, name)| name));
    setup.succeed(&["ready", "--node"]);
    assert_eq!(waiting.join().unwrap().unwrap(), "b1");
    setup.assert_served();
    assert!(net::ask(added).is_ok());
    // The same once more, and a stop of a drained node.
    setup.succeed(&["drain", "--node"]);
    wait_until("no client is let in", secs(10), || holds_off(setup.front));
    setup.reload_with("drain_delay = \"1s\"", "drain_delay = \"0s\"");
    wait_until("without a delay clients are served", secs(10), || {
        net::ask(front).is_ok()
    });
    drop(client);
    setup.tembuku.proc.signal(Signal::TERM);
    let status = setup.tembuku.proc.wait(secs(10)).expect("an end");
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_drained_node_begins_no_flow() {
    let servers = udp::named(1);
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[process]\nworkers = 2\ndrain_delay = \"100ms\"\n\
         [admin]\nsocket = \"{{dir}}/admin.sock\"\n\
         [listeners.l]\nbind = \"{front}\"\nprotocol = \"udp\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [\"{}\"]\n",
        servers[0].addr
    ));
    let command = |word: &str| {
        let socket = tembuku.dir.file("admin.sock");
        let output = cli(&[word, "--node", "--socket", socket.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    };
    let client = udp::client(front);
    assert_eq!(udp::ask(&client, "one"), "b1 one");
    command("drain");
    let rejected = || {
        udp::client(front).send(b"x").unwrap();
        let labels = [("reason", "drained")];
        tembuku.metric("listener_rejected_total", &labels)
    };
    wait_until("no flow begins", secs(10), || rejected() > 0.0);
    assert_eq!(udp::ask(&client, "two"), "b1 two");
    command("ready");
    let other = udp::client(front);
    assert_eq!(udp::ask_until_answered(&other, "three"), "b1 three");
}

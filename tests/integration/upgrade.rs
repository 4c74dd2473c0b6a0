//! One process replaces another while clients come.

mod between;
mod binaries;
mod conditions;
mod discovery;
mod failures;
mod failures_udp;
mod fake;
mod places;
mod sessions;
mod signals;
mod streams;
mod surroundings;
mod waiting;

use crate::harness::{
    http,
    load::Load,
    net, ports,
    proc::{command, run_ok, text},
    programs::{Nginx, Redis, account},
    secs,
    server::Server,
    tembuku::{Tembuku, cli},
    temp::TempDir,
    udp::{self, UdpServer, V4},
    wait_until,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    net::SocketAddr,
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Command, Output},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
};

/// A process whose place others take one after the other. The last of them ends with the test.
pub(crate) struct Succession {
    pub(crate) first: Tembuku,
    pub(crate) current: u32,
    /// Where another user may make the admin socket.
    place: TempDir,
}

impl Succession {
    /// With an admin socket, which is added.
    #[track_caller]
    pub(crate) fn start(config: &str) -> Succession {
        Self::start_under("", config)
    }

    /// Through a program that prepares the ground.
    #[track_caller]
    pub(crate) fn start_under(wrapper: &str, config: &str) -> Succession {
        let place = TempDir::new();
        let (user, group) = account("nobody");
        std::os::unix::fs::chown(place.path(), Some(user), Some(group)).unwrap();
        let first = Tembuku::start_under(wrapper, &(admin(&place) + config));
        let current = first.proc.id();
        Succession {
            first,
            current,
            place,
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.place.file("admin.sock")
    }

    /// Another file, with the same admin socket.
    pub(crate) fn write(&self, config: &str) {
        self.first.write(&(admin(&self.place) + config));
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.first.dir.file("tembuku.toml")
    }

    /// Runs `tembuku upgrade` with these arguments.
    pub(crate) fn try_upgrade(&self, arguments: &[&str]) -> Output {
        let socket = self.socket();
        let socket = ["--socket", socket.to_str().unwrap()];
        cli(&[&["upgrade"], &socket[..], arguments].concat())
    }

    /// Returns what the command prints.
    #[track_caller]
    pub(crate) fn upgrade(&mut self) -> String {
        let output = self.try_upgrade(&[]);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{}\n{}",
            text(&output),
            self.first.proc.stderr()
        );
        self.current = self.pid();
        text(&output)
    }

    /// Of the process that answers on the admin socket.
    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        let answer = http::request_unix(&self.socket(), "GET", "/api/v1/status", "").unwrap();
        serde_json::from_str(&answer.body).unwrap()
    }

    #[track_caller]
    pub(crate) fn pid(&self) -> u32 {
        let pid = self.status()["process"]["pid"].as_u64();
        u32::try_from(pid.unwrap()).unwrap()
    }

    /// Waits until the process that was replaced has ended.
    #[track_caller]
    pub(crate) fn wait_alone(&self) {
        wait_until("the old process has ended", secs(10), || {
            self.status()["process"]["previous"].is_null()
        });
    }
}

impl Drop for Succession {
    fn drop(&mut self) {
        let own = self.first.proc.id();
        if self.current != own
            && let Some(pid) = Pid::from_raw(self.current as i32)
        {
            // Only where it is a process of this test still.
            let exe = std::fs::read_to_string(format!("/proc/{}/cmdline", self.current));
            let folder = self.first.dir.path().to_str().unwrap().to_owned();
            if exe.is_ok_and(|line| line.contains(&folder)) {
                let _ = kill_process(pid, Signal::KILL);
                // Its addresses are free then. One that has ended has no command line.
                let path = format!("/proc/{}/cmdline", self.current);
                let _ = crate::harness::poll(secs(5), || {
                    let line = std::fs::read(&path);
                    line.map_or(true, |line| line.is_empty()).then_some(())
                });
            }
        }
    }
}

fn admin(place: &TempDir) -> String {
    let socket = place.file("admin.sock");
    format!(
        "[admin]\nsocket = \"{}\"\n[log]\nformat = \"json\"\n",
        socket.display()
    )
}

fn listener(name: &str, bind: &str, upstream: &str) -> String {
    format!("[listeners.{name}]\nbind = \"{bind}\"\nupstream = \"{upstream}\"\n")
}

fn upstream(name: &str, backends: &str) -> String {
    format!("[upstreams.{name}]\nbackends = [{backends}]\n")
}

#[test]
fn clients_are_served_all_the_time() {
    let server = Server::named("a");
    let echo = UdpServer::echo(V4);
    let (tcp, udp) = (ports::free_addr(), ports::free_addr());
    let config = |workers: u32| {
        format!("[process]\nworkers = {workers}\n")
            + &listener("t", &tcp.to_string(), "s")
            + &listener("x", "unix:{dir}/x.sock", "s")
            + &listener("d", &udp.to_string(), "e")
            + "protocol = \"udp\"\n"
            + &upstream("s", &format!("\"{}\"", server.addr))
            + &upstream("e", &format!("\"{}\"", echo.addr))
    };
    let mut tembuku = Succession::start(&config(2));
    let loads: Vec<Load> = (0..3).map(|_| Load::start(tcp, thread::spawn)).collect();
    // Fewer workers, and more.
    for workers in [2, 1, 3, 2] {
        tembuku.write(&config(workers));
        let before = tembuku.current;
        let out = tembuku.upgrade();
        assert_ne!(tembuku.current, before, "{out}");
        assert_eq!(tembuku.status()["process"]["workers"], workers);
        for load in &loads {
            let counts = load.take(&format!("{workers} workers"));
            assert_eq!((counts.refused, counts.cut), (0, 0), "{counts:?}");
        }
        let mut unix = UnixStream::connect(tembuku.first.dir.file("x.sock")).unwrap();
        assert_eq!(net::read_line(&mut unix).unwrap(), "a");
        let client = udp::client(udp);
        assert_eq!(udp::ask(&client, "question"), "question");
        drop((unix, client));
        tembuku.wait_alone();
    }
    drop(loads);
    let status = tembuku.first.proc.wait(secs(10));
    assert_eq!(status.unwrap().code(), Some(0));
    // The last process has taken over the files as well.
    kill_process(Pid::from_raw(tembuku.current as i32).unwrap(), Signal::TERM).unwrap();
    wait_until("the files are removed", secs(10), || {
        !tembuku.first.dir.file("x.sock").exists() && !tembuku.socket().exists()
    });
}

/// `wrk` and `redis-benchmark` connect for each request.
#[test]
fn real_clients_see_no_error() {
    let (_web, backend) = Nginx::web("file", 800);
    let redis = Redis::start(ports::free_addr());
    let (front, cache) = (ports::free_addr(), ports::free_addr());
    let config = listener("web", &front.to_string(), "web")
        + &listener("cache", &cache.to_string(), "cache")
        + &upstream("web", &format!("\"{backend}\""))
        + &upstream("cache", &format!("\"{}\"", redis.addr));
    let mut tembuku = Succession::start(&config);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let wrk = scope.spawn(|| {
            let mut wrk = command("wrk -t 1 -c 16 -d 4s -H");
            wrk.arg("Connection: close")
                .arg(format!("http://{front}/file"));
            run_ok(secs(20), wrk)
        });
        let benchmark = scope.spawn(|| {
            let mut benchmark = command("redis-benchmark -q -c 10 -n 6000 -k 0 -t ping_mbulk -h");
            benchmark.args(["127.0.0.1", "-p", &cache.port().to_string()]);
            run_ok(secs(40), benchmark)
        });
        while !(wrk.is_finished() && benchmark.is_finished()) {
            tembuku.upgrade();
            tembuku.wait_alone();
        }
        let (wrk, benchmark) = (wrk.join().unwrap(), benchmark.join().unwrap());
        let all = format!("{wrk}\n{benchmark}");
        assert!(
            wrk.contains("requests in") && benchmark.contains("requests per second"),
            "{all}"
        );
        for word in ["Socket errors", "Non-2xx", "rror"] {
            assert!(!all.contains(word), "{all}");
        }
        done.store(true, Relaxed);
    });
    assert!(done.load(Relaxed));
}

#[test]
fn what_stays_behind_is_shown_until_it_has_ended() {
    let server = Server::named("a");
    let (front, goes) = (ports::free_addr(), ports::free_addr());
    let rest =
        listener("l", &front.to_string(), "u") + &upstream("u", &format!("\"{}\"", server.addr));
    let mut tembuku =
        Succession::start(&(rest.clone() + &listener("goes", &goes.to_string(), "u")));
    let old = tembuku.current;
    // The new process does not have its listener.
    let (mut session, _) = net::session(goes).unwrap();
    tembuku.write(&rest);
    let out = tembuku.upgrade();
    assert!(out.contains("1 session and 0 flows stay"), "{out}");
    let previous = tembuku.status()["process"]["previous"].take();
    assert_eq!(previous["pid"], old);
    wait_until("its sessions are shown", secs(5), || {
        tembuku.status()["process"]["previous"]["connections"] == 1
    });
    let shown = cli(&["status", "--socket", tembuku.socket().to_str().unwrap()]);
    let line = format!("previous: pid {old}, 1 connection, 0 flows, since ");
    assert!(text(&shown).contains(&line), "{}", text(&shown));
    // One at a time.
    let refused = tembuku.try_upgrade(&[]);
    assert_eq!(refused.status.code(), Some(1));
    let words = format!("the process before this one, {old}, still has sessions");
    assert!(text(&refused).contains(&words), "{}", text(&refused));
    net::echo(&mut session, "still served").unwrap();
    drop(session);
    tembuku.wait_alone();
    assert_eq!(tembuku.first.proc.wait(secs(10)).unwrap().code(), Some(0));
    tembuku.upgrade();
}

#[test]
fn a_signal_and_the_command_with_json_do_the_same() {
    let server = Server::named("a");
    let front = ports::free_addr();
    let config =
        listener("l", &front.to_string(), "u") + &upstream("u", &format!("\"{}\"", server.addr));
    let mut tembuku = Succession::start(&config);
    tembuku.first.proc.signal(Signal::USR2);
    let old = tembuku.current;
    wait_until("another process answers", secs(10), || {
        http::request_unix(&tembuku.socket(), "GET", "/api/v1/status", "")
            .is_ok_and(|answer| !answer.body.contains(&format!("\"pid\": {old},")))
    });
    tembuku.current = tembuku.pid();
    assert_ne!(tembuku.current, old);
    tembuku.wait_alone();
    let output = tembuku.try_upgrade(&["--json"]);
    tembuku.current = tembuku.pid();
    let steps: Vec<Value> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let stages: Vec<&str> = steps.iter().map(|s| s["stage"].as_str().unwrap()).collect();
    assert_eq!(
        stages,
        [
            "checked",
            "started",
            "ready",
            "accepting",
            "sessions",
            "done"
        ]
    );
    assert_eq!(steps[5]["pid"], tembuku.current);
    drop(net::session(front).unwrap());
}

#[test]
fn a_check_replaces_nothing() {
    let server = Server::named("a");
    let front = ports::free_addr();
    let config =
        listener("l", &front.to_string(), "u") + &upstream("u", &format!("\"{}\"", server.addr));
    let tembuku = Succession::start(&config);
    let output = tembuku.try_upgrade(&["--check"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(text(&output).contains("accepts the configuration"));
    assert_eq!(tembuku.pid(), tembuku.current);
    drop(net::session(front).unwrap());
}

/// State that operators and dashboards rely on.
#[test]
fn the_new_process_knows_what_the_old_one_knew() {
    let servers = [Server::named("a"), Server::named("b"), Server::named("c")];
    let dead = ports::free_addr();
    let front = ports::free_addr();
    let [a, b, c] = [0, 1, 2].map(|n: usize| servers[n].addr.to_string());
    let config = listener("l", &front.to_string(), "u")
        + &upstream("u", &format!("\"{a}\", \"{b}\", \"{c}\", \"{dead}\""))
        + "[upstreams.u.check]\nkind = \"tcp\"\ninterval = \"200ms\"\n";
    let mut tembuku = Succession::start(&config);
    let socket = tembuku.socket();
    let socket = socket.to_str().unwrap();
    for order in [
        vec!["drain", &format!("u/{a}"), "--socket", socket],
        vec!["weight", &format!("u/{b}"), "7", "--socket", socket],
    ] {
        let output = cli(&order);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    }
    let served: Vec<String> = (0..16).map(|_| net::ask(front).unwrap()).collect();
    assert!(!served.contains(&"a".to_owned()), "{served:?}");
    tembuku.first.wait_idle();
    let reloads = "config_last_reload_successful";
    assert!(!tembuku.first.get("/metrics").body.contains(reloads));
    let before = tembuku.first.metrics();
    let events = tembuku.first.events();
    let cursor = |body: &str| {
        let page: Value = serde_json::from_str(body).unwrap();
        page["cursor"].as_str().unwrap().to_owned()
    };
    let at = cursor(&tembuku.first.get("/api/v1/events").body);
    let state = |tembuku: &Succession| {
        let status = tembuku.status();
        let backends = status["upstreams"][0]["backends"].as_array().unwrap();
        let keys = [
            "address",
            "state",
            "admin_state",
            "admin_state_since",
            "weight",
            "since",
        ];
        let of = |b: &Value| keys.map(|key| b[key].to_string());
        backends.iter().map(of).collect::<Vec<_>>()
    };
    let known = state(&tembuku);
    tembuku.upgrade();
    // Times are a millisecond apart where rounding differs.
    let same = |a: &[String; 6], b: &[String; 6]| {
        let cut = |text: &String| text.chars().take(20).collect::<String>();
        a.iter().map(cut).eq(b.iter().map(cut))
    };
    let after = state(&tembuku);
    assert!(
        known.iter().zip(&after).all(|(a, b)| same(a, b)),
        "{known:?}\n{after:?}"
    );
    // Nothing that the reader has seen comes again.
    let page = tembuku
        .first
        .get(&format!("/api/v1/events?after={at}&wait=0s"))
        .body;
    let page: Value = serde_json::from_str(&page).unwrap();
    let seen = page["events"].as_array().unwrap();
    assert!(
        seen.iter().all(|event| event["kind"] == "upgrade"),
        "{page}"
    );
    assert_eq!(tembuku.first.events().len(), events.len());
    for name in [
        "listener_connections_total",
        "listener_sent_bytes_total",
        "sessions_closed_total",
        "backend_connections_total",
        "backend_transitions_total",
        "check_results_total",
        "session_duration_seconds_count",
        "backend_connect_duration_seconds_sum",
        "relayed_bytes_total",
    ] {
        let (old, new) = (before.sum(name, &[]), tembuku.first.metric(name, &[]));
        assert!(new >= old && old > 0.0, "{name}: {old} -> {new}");
    }
    assert_eq!(tembuku.first.metric(reloads, &[]), 1.0);
    let served: Vec<String> = (0..16).map(|_| net::ask(front).unwrap()).collect();
    assert!(!served.contains(&"a".to_owned()), "{served:?}");
    let count = |name: &str| served.iter().filter(|s| *s == name).count();
    assert_eq!((count("b"), count("c")), (14, 2), "{served:?}");
}

/// The file may have changed, so that an upgrade is also a reload.
#[test]
fn a_listener_that_is_not_in_the_file_any_more_serves_connected_clients() {
    let server = Server::named("a");
    let (stays, goes) = (ports::free_addr(), ports::free_addr());
    let rest = listener("stays", &stays.to_string(), "u")
        + &upstream("u", &format!("\"{}\"", server.addr));
    let mut tembuku =
        Succession::start(&(rest.clone() + &listener("goes", &goes.to_string(), "u")));
    let (mut session, _) = net::session(goes).unwrap();
    tembuku.write(&rest);
    tembuku.upgrade();
    drop(net::session(stays).unwrap());
    assert!(net::connect(goes).is_err());
    net::echo(&mut session, "still served").unwrap();
    drop(session);
    tembuku.wait_alone();
}

/// What changes the process as a whole is in the journal, whether it succeeds or not.
#[test]
fn reloads_and_upgrades_are_events() {
    let server = Server::named("a");
    let front = ports::free_addr();
    let config =
        listener("l", &front.to_string(), "u") + &upstream("u", &format!("\"{}\"", server.addr));
    let mut tembuku = Succession::start(&config);
    let (mut held, _) = net::session(front).unwrap();
    let socket = tembuku.socket().to_str().unwrap().to_owned();
    let command = |name: &str| cli(&[name, "--socket", &socket]);
    tembuku.write("nonsense");
    assert_eq!(command("reload").status.code(), Some(1));
    tembuku.write(&(config + "[process]\ndrain_timeout = \"7s\"\n"));
    assert_eq!(command("reload").status.code(), Some(0));
    let valid = std::fs::read_to_string(tembuku.config()).unwrap();
    std::fs::write(
        tembuku.config(),
        format!("{valid}nonsense = 1\nnames = 1\n"),
    )
    .unwrap();
    for flags in [&["--check"][..], &[]] {
        let refused = tembuku.try_upgrade(flags);
        assert_eq!(refused.status.code(), Some(1));
    }
    let log = tembuku.first.proc.stderr();
    assert!(log.contains("upgrade check failed"), "{log}");
    std::fs::write(tembuku.config(), valid).unwrap();
    tembuku.upgrade();
    let mut shown = String::new();
    wait_until("the new process has all", secs(10), || {
        shown = text(&command("events"));
        shown.contains(": done, ")
    });
    // A check is no upgrade.
    assert_eq!(shown.matches(" does not accept ").count(), 1, "{shown}");
    let mut rest = shown.as_str();
    for part in [
        " reload ",
        ": failed, nothing was changed: error: ",
        " reload ",
        ": reloaded, process changed\n",
        " upgrade process ",
        " does not accept the configuration: error: ",
        " (2 problems)\n",
        " upgrade process ",
        ": started, ",
        " upgrade process ",
        ": done, 1 session and 0 flows taken over in ",
    ] {
        let at = rest.find(part);
        let at = at.unwrap_or_else(|| panic!("no {part} in\n{rest}of\n{shown}"));
        rest = &rest[at + part.len()..];
    }
    net::echo(&mut held, "still here").unwrap();
}

#[test]
fn an_upgrade_that_cannot_be_leaves_everything_as_it_is() {
    let server = Server::named("a");
    let front = ports::free_addr();
    let config =
        listener("l", &front.to_string(), "u") + &upstream("u", &format!("\"{}\"", server.addr));
    let tembuku = Succession::start(&config);
    let fails = |arguments: &[&str], words: &str| {
        let output = tembuku.try_upgrade(arguments);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output).contains(words), "{words}: {}", text(&output));
        assert_eq!(tembuku.pid(), tembuku.current);
        drop(net::session(front).unwrap());
    };
    fails(&["--binary", "/nonexistent"], "cannot run /nonexistent");
    fails(
        &["--binary", "/bin/true"],
        "/bin/true does not name the formats",
    );
    fails(
        &["--binary", "/bin/false"],
        "/bin/false does not accept the configuration",
    );
    // One that speaks other formats.
    let script = tembuku.first.dir.write(
        "other",
        "#!/bin/sh\n[ $1 = check ] || echo \
         '{\"program\": \"9\", \"formats\": {\"hello\": [900]}}'\n",
    );
    run_ok(secs(5), {
        let mut chmod = Command::new("chmod");
        chmod.arg("755").arg(&script);
        chmod
    });
    fails(
        &["--binary", script.to_str().unwrap()],
        "speaks no format of hello",
    );
    std::fs::write(tembuku.config(), "nonsense").unwrap();
    fails(&[], "does not accept the configuration");
}

/// Process after process has as many descriptors and threads as the first.
#[test]
fn fifty_upgrades_leave_nothing_behind() {
    let server = Server::named("a");
    let echo = UdpServer::echo(V4);
    let (front, udp) = (ports::free_addr(), ports::free_addr());
    let config = listener("l", &front.to_string(), "u")
        + &listener("d", &udp.to_string(), "e")
        + "protocol = \"udp\"\n"
        + &upstream("u", &format!("\"{}\"", server.addr))
        + &upstream("e", &format!("\"{}\"", echo.addr));
    let mut tembuku = Succession::start(&config);
    let load = Load::start(front, thread::spawn);
    let count = |tembuku: &Succession, what: &str| {
        let folder = format!("/proc/{}/{what}", tembuku.current);
        std::fs::read_dir(folder).unwrap().count()
    };
    tembuku.upgrade();
    tembuku.wait_alone();
    load.take("the first");
    let before = ["fd", "task"].map(|what| count(&tembuku, what));
    for _ in 0..50 {
        tembuku.upgrade();
        tembuku.wait_alone();
    }
    let counts = load.take("the others");
    assert_eq!((counts.refused, counts.cut), (0, 0), "{counts:?}");
    drop(load);
    // Sessions of the load have ended by then, and threads that helped.
    wait_until("as many as before", secs(10), || {
        let after = ["fd", "task"].map(|what| count(&tembuku, what));
        after[0] <= before[0] && after[1] <= before[1]
    });
    let client = udp::client(udp);
    assert_eq!(udp::ask(&client, "question"), "question");
}

fn front_of(server: &Server) -> (SocketAddr, String) {
    let front = ports::free_addr();
    let config =
        listener("l", &front.to_string(), "u") + &upstream("u", &format!("\"{}\"", server.addr));
    (front, config)
}

//! Checks of Redis: which server is the primary, and what becomes of sessions when that changes.

use crate::harness::{
    millis, net, ports,
    programs::{Redis, call},
    secs,
    tembuku::Tembuku,
    wait_until,
};
use rustix::process::Signal;
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

const INTERVAL: Duration = millis(500);

pub(crate) struct Setup {
    pub(crate) front: SocketAddr,
    pub(crate) tembuku: Tembuku,
}

/// A listener before these servers. `keys` belong to the upstream, `check` to its check.
pub(crate) fn setup(servers: &[&Redis], keys: &str, check: &str) -> Setup {
    let front = ports::free_addr();
    let backends: Vec<String> = servers.iter().map(|s| format!("\"{}\"", s.addr)).collect();
    let tembuku = Tembuku::start(&format!(
        "[process]\nworkers = 2\n\
         [log]\nlevel = \"debug\"\nformat = \"json\"\naccess = \"{{dir}}/access.log\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [{}]\n{keys}\n\
         [upstreams.u.check]\nkind = \"redis\"\ninterval = \"500ms\"\n{check}\n",
        backends.join(", ")
    ));
    Setup { front, tembuku }
}

impl Setup {
    #[track_caller]
    pub(crate) fn wait_state(&self, server: &Redis, state: &str) {
        let backend = server.addr.to_string();
        let labels = [("backend", backend.as_str()), ("state", state)];
        self.tembuku
            .wait_metric("backend_state", &labels, |is| is == 1.0);
    }

    /// The backend in the status.
    pub(crate) fn status(&self, server: &Redis) -> serde_json::Value {
        let status = self.tembuku.status();
        let backends = status["upstreams"][0]["backends"]
            .as_array()
            .unwrap()
            .clone();
        let address = server.addr.to_string();
        backends
            .into_iter()
            .find(|b| b["address"] == address)
            .unwrap()
    }
}

/// One primary and two replicas that follow it.
pub(crate) fn three() -> [Redis; 3] {
    let servers = [0; 3].map(|_| Redis::start(ports::free_addr()));
    for replica in &servers[1..] {
        replicate(replica, &servers[0]);
    }
    for replica in &servers[1..] {
        wait_until("the replica is in step", secs(30), || {
            info(replica.addr, "replication").contains("master_link_status:up")
        });
    }
    servers
}

pub(crate) fn replicate(replica: &Redis, primary: &Redis) {
    let command = format!("REPLICAOF {} {}", primary.addr.ip(), primary.addr.port());
    assert_eq!(call(replica.addr, &command).unwrap(), "+OK");
}

pub(crate) fn info(addr: SocketAddr, section: &str) -> String {
    let mut stream = net::connect(addr).unwrap();
    stream
        .write_all(format!("INFO {section}\r\nQUIT\r\n").as_bytes())
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// How many writes of clients this replica has rejected: those that it got by replication are not
/// among them.
fn rejected_writes(server: &Redis) -> u64 {
    let text = info(server.addr, "commandstats");
    let line = text.lines().find(|line| line.starts_with("cmdstat_set:"));
    let rejected = line.and_then(|line| line.split("rejected_calls=").nth(1));
    rejected.map_or(0, |n| n.split(',').next().unwrap().parse().unwrap())
}

/// What one writer saw.
#[derive(Default)]
struct Seen {
    /// When it was sent, when the answer was there, and the key.
    accepted: Vec<(Instant, Instant, String)>,
    rejected: Vec<Instant>,
    closed: Vec<Instant>,
}

/// Writes without a pause, each time another key; comes back when its connection ends.
fn write_on(front: SocketAddr, name: usize, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut stream: Option<TcpStream> = None;
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        if stream.is_none() {
            stream = net::connect(front).ok();
        }
        let Some(connection) = &mut stream else {
            continue;
        };
        let key = format!("w{name}:{n}");
        let sent = Instant::now();
        let line = connection
            .write_all(format!("SET {key} x\r\n").as_bytes())
            .and_then(|()| net::read_line(connection));
        match line.as_deref().map(str::trim_end) {
            Ok("+OK") => seen.accepted.push((sent, Instant::now(), key)),
            Ok(line) if line.starts_with('-') => seen.rejected.push(Instant::now()),
            _ => {
                seen.closed.push(Instant::now());
                stream = None;
            }
        }
        std::thread::sleep(millis(1)); // the pace of the writer
    }
    seen
}

#[test]
fn when_the_role_moves_no_session_stays_behind() {
    let servers = three();
    let [old, new, third] = &servers;
    let setup = setup(
        &[old, new, third],
        "",
        "role = \"primary\"\ntimeout = \"400ms\"",
    );
    setup.wait_state(old, "up");
    setup.wait_state(new, "standby");
    setup.wait_state(third, "standby");

    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<JoinHandle<Seen>> = (0..4)
        .map(|name| {
            let (front, stop) = (setup.front, Arc::clone(&stop));
            std::thread::spawn(move || write_on(front, name, &stop))
        })
        .collect();
    let idle = [0; 20].map(|_| hold_idle_session(setup.front));
    wait_until("there is load", secs(10), || {
        let size = call(old.addr, "DBSIZE").unwrap();
        size.trim_start_matches(':').parse::<u32>().unwrap() > 200
    });

    assert_eq!(call(new.addr, "REPLICAOF NO ONE").unwrap(), "+OK");
    replicate(old, new);
    let switched = Instant::now();
    replicate(third, new);
    let last_idle = idle.map(|thread| thread.join().unwrap()).into_iter().max();
    let last_idle = last_idle.unwrap().saturating_duration_since(switched);
    let at_close = rejected_writes(old);
    setup.wait_state(old, "standby");
    // The new one may have shown that first.
    wait_until("the old one reports it, too", secs(10), || {
        setup.status(old)["last_check"]["result"] == "standby"
    });
    setup.wait_state(new, "up");
    // Load goes on, on the right node alone.
    let before = info(new.addr, "commandstats");
    wait_until("writes go on", secs(10), || {
        info(new.addr, "commandstats") != before
    });
    std::thread::sleep(millis(300)); // the load that would show it
    stop.store(true, Ordering::Relaxed);
    let seen: Vec<Seen> = writers.into_iter().map(|w| w.join().unwrap()).collect();
    let late = rejected_writes(old);

    let closed = seen
        .iter()
        .flat_map(|s| &s.closed)
        .filter(|at| **at > switched);
    let last_writer = closed.max().unwrap().saturating_duration_since(switched);
    let accepted = || {
        seen.iter()
            .flat_map(|s| &s.accepted)
            .filter(|(sent, ..)| *sent > switched)
    };
    let first = accepted()
        .map(|(_, at, _)| *at)
        .min()
        .unwrap()
        .saturating_duration_since(switched);
    let rejected: usize = seen.iter().map(|s| s.rejected.len()).sum();
    println!(
        "interval {INTERVAL:?}: last idle session closed after {last_idle:?}, \
         last writer after {last_writer:?}, \
         first write accepted after {first:?}, {rejected} writes rejected until then"
    );
    let most = INTERVAL + secs(2);
    assert!(
        last_idle < most && last_writer < most,
        "within {INTERVAL:?} + 100 ms where nothing else runs"
    );
    assert_eq!(
        late, at_close,
        "writes reached the old primary after its sessions were closed"
    );
    for (.., key) in accepted() {
        assert_eq!(
            call(new.addr, &format!("GET {key}")).unwrap(),
            "x",
            "{key} was accepted by another server"
        );
    }
    setup.tembuku.wait_closed("role_lost", 24.0);
    assert_change_of_role_is_shown(&setup, old, new);
}

/// A session that says nothing more. The thread ends with the time at which it was closed.
fn hold_idle_session(front: SocketAddr) -> JoinHandle<Instant> {
    let mut stream = net::connect(front).unwrap();
    stream.write_all(b"PING\r\n").unwrap();
    assert_eq!(net::read_line(&mut stream).unwrap().trim_end(), "+PONG");
    std::thread::spawn(move || {
        let _ = net::read_all(&mut stream);
        Instant::now()
    })
}

/// That status, metrics and journal show that `old` was the primary, and that `new` is.
fn assert_change_of_role_is_shown(setup: &Setup, old: &Redis, new: &Redis) {
    let old_now = setup.status(old);
    assert_eq!(
        (&old_now["state"], &old_now["role"]),
        (&"standby".into(), &serde_json::json!(["replica"]))
    );
    assert_eq!(old_now["last_check"]["result"], "standby");
    assert_eq!(old_now["last_check"]["transcript"], "ROLE: slave");
    assert_eq!(setup.status(new)["role"], serde_json::json!(["primary"]));
    let backend = old.addr.to_string();
    let metrics = setup.tembuku.metrics();
    assert_eq!(
        metrics.sum(
            "backend_role",
            &[("backend", &backend), ("role", "replica")]
        ),
        1.0
    );
    assert_eq!(
        metrics.sum(
            "backend_transitions_total",
            &[("backend", &backend), ("to", "standby")]
        ),
        1.0
    );
    assert!(
        metrics.sum(
            "check_results_total",
            &[("backend", &backend), ("result", "ok")]
        ) >= 1.0
    );
    assert!(metrics.sum("check_duration_seconds_count", &[("backend", &backend)]) >= 2.0);
    let events: serde_json::Value =
        serde_json::from_str(&setup.tembuku.get("/api/v1/events").body).unwrap();
    let events = events["events"].as_array().unwrap();
    let lost = events
        .iter()
        .find(|e| e["backend"] == backend && e["from"] == "up")
        .unwrap();
    // Its sync with the new one may still be under way.
    let to = lost["to"].as_str().unwrap();
    assert!(["standby", "wrong_role"].contains(&to), "{lost}");
    assert!(
        ["standby", "wrong_role", "superseded"].contains(&lost["reason"].as_str().unwrap()),
        "{lost}"
    );
    assert!(
        setup
            .tembuku
            .proc
            .stderr()
            .contains(&format!("\"to\":\"{to}\""))
    );
}

/// Replicas for readers, and a primary that is none of them.
#[test]
fn readers_go_to_replicas() {
    let servers = three();
    let [primary, one, two] = &servers;
    let setup = setup(&[primary, one, two], "", "role = \"replica\"");
    setup.wait_state(primary, "standby");
    setup.wait_state(one, "up");
    setup.wait_state(two, "up");
    for _ in 0..10 {
        let role = call(setup.front, "ROLE").unwrap();
        assert_eq!(role, "*5", "a replica's answer has five parts");
    }
}

/// A server that still reads its data knows its role already, and is not to be used yet.
#[test]
fn a_loading_server_is_down_for_that_reason() {
    let server = Redis::start_with(
        ports::free_addr(),
        &[
            "--enable-debug-command",
            "yes",
            "--rdbcompression",
            "no",
            "--key-load-delay",
            "200000",
            "--loading-process-events-interval-bytes",
            "1024",
        ],
    );
    let setup = setup(&[&server], "", "role = \"primary\"\ntimeout = \"3s\"");
    setup.wait_state(&server, "up");
    for n in 0..40 {
        assert_eq!(
            call(server.addr, &format!("SET key{n} {}", "x".repeat(400))).unwrap(),
            "+OK"
        );
    }
    // Writes the data and reads it again, with a pause for each key.
    let mut reload = net::connect(server.addr).unwrap();
    reload.write_all(b"DEBUG RELOAD\r\n").unwrap();
    wait_until("it is loading", secs(20), || {
        setup.status(&server)["last_check"]["result"] == "loading"
    });
    setup.wait_state(&server, "down");
    let why = setup.status(&server)["why"].to_string();
    assert!(
        why.starts_with("\"its check reports: loading: PING: "),
        "{why}"
    );
    assert_eq!(
        setup.status(&server)["role"],
        serde_json::json!(["primary"])
    );
}

/// A server dies under load: its sessions see it, and no others do.
#[test]
fn a_killed_server_fails_its_own_sessions_alone() {
    let mut servers: Vec<Redis> = (0..3).map(|_| Redis::start(ports::free_addr())).collect();
    for (n, server) in servers.iter().enumerate() {
        assert_eq!(call(server.addr, &format!("SET name r{n}")).unwrap(), "+OK");
    }
    let setup = setup(
        &servers.iter().collect::<Vec<_>>(),
        "on_down = \"close\"",
        "fall = 2",
    );
    servers
        .iter()
        .for_each(|server| setup.wait_state(server, "up"));
    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    // Sessions that stay and ask where they are.
    let staying: Vec<JoinHandle<(String, bool)>> = (0..12)
        .map(|_| {
            let (mut stream, stop) = (net::connect(setup.front).unwrap(), Arc::clone(&stop));
            let answered = Arc::clone(&answered);
            std::thread::spawn(move || {
                let mut name = String::new();
                while !stop.load(Ordering::Relaxed) {
                    let ask = |stream: &mut TcpStream| {
                        stream.write_all(b"GET name\r\n")?;
                        net::read_line(stream)?;
                        net::read_line(stream)
                    };
                    match ask(&mut stream) {
                        Ok(line) => {
                            answered.fetch_add(usize::from(name.is_empty()), Ordering::Relaxed);
                            name = line.trim_end().to_owned();
                        }
                        Err(_) => return (name, false),
                    }
                    std::thread::sleep(millis(2)); // the pace of the load
                }
                (name, true)
            })
        })
        .collect();
    // The listener accepts once every backend was checked, which may take its time.
    wait_until("every session has a server", secs(10), || {
        answered.load(Ordering::Relaxed) == 12
    });
    std::thread::sleep(millis(100)); // load
    let dead = servers.remove(1);
    let addr = dead.addr;
    {
        let mut dead = dead;
        dead.proc.kill();
        // Every later connect succeeds, before the check knows and after.
        let backend = addr.to_string();
        let labels = [("backend", backend.as_str()), ("state", "down")];
        let mut after = 0;
        for n in 0.. {
            assert_eq!(
                call(setup.front, "PING").unwrap_or_else(|e| panic!("client {n}: {e}")),
                "+PONG"
            );
            let is_down = n % 20 == 0 && setup.tembuku.metric("backend_state", &labels) == 1.0;
            after += usize::from(is_down || after > 0);
            if after > 200 {
                break;
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    let ends: Vec<(String, bool)> = staying.into_iter().map(|s| s.join().unwrap()).collect();
    assert_eq!(ends.iter().filter(|(_, well)| !well).count(), 4, "{ends:?}");
    assert!(
        ends.iter().all(|(name, well)| *well == (name != "r1")),
        "{ends:?}"
    );
    // Back again, it gets its share.
    let back = Redis::start(addr);
    assert_eq!(call(back.addr, "SET name back").unwrap(), "+OK");
    wait_until("it is used", secs(20), || {
        call(setup.front, "GET name").unwrap() == "back"
    });
}

/// Once sessions are to leave because the role is lost, it does not help the old primary that it
/// then hangs.
#[test]
fn a_close_that_has_begun_is_not_put_off() {
    let (old, new) = (
        Redis::start(ports::free_addr()),
        Redis::start(ports::free_addr()),
    );
    replicate(&new, &old);
    let setup = setup(
        &[&old, &new],
        "on_role_lost = { close_after = \"1s\" }\non_down = { close_after = \"1h\" }",
        "role = \"primary\"\ntimeout = \"200ms\"\nfall = 1",
    );
    setup.wait_state(&old, "up");
    setup.wait_state(&new, "standby");
    let mut held = net::connect(setup.front).unwrap();
    held.write_all(b"PING\r\n").unwrap();
    assert_eq!(net::read_line(&mut held).unwrap().trim_end(), "+PONG");
    replicate(&old, &new);
    setup.wait_state(&old, "standby");
    old.proc.signal(Signal::STOP);
    setup.wait_state(&old, "down");
    assert_eq!(net::read_all(&mut held).1, net::End::Reset);
    setup.tembuku.wait_closed("role_lost", 1.0);
}

/// A replica that hears nothing from its primary is left out, and so is one that knows that it is
/// cut off.
#[test]
fn a_replica_without_its_primary_is_lagging() {
    let mut primary = Redis::start_with(ports::free_addr(), &["--repl-ping-replica-period", "1"]);
    let replica = Redis::start(ports::free_addr());
    replicate(&replica, &primary);
    wait_until("the replica is in step", secs(30), || {
        info(replica.addr, "replication").contains("master_link_status:up")
    });
    let setup = setup(
        &[&replica],
        "",
        "role = \"replica\"\nmax_lag = \"5s\"\nfall = 2",
    );
    setup.wait_state(&replica, "up");
    let last = |key: &str| setup.status(&replica)["last_check"][key].clone();
    assert!(last("lag_seconds").as_f64().is_some_and(|lag| lag <= 5.0));
    primary.proc.signal(Signal::STOP);
    let stopped = Instant::now();
    wait_until("it lags", secs(30), || {
        last("result") == "lagging" && setup.status(&replica)["available"] == false
    });
    println!(
        "lagging {:?} after the primary was stopped",
        stopped.elapsed()
    );
    let saw = last("transcript");
    assert!(
        saw.as_str()
            .unwrap()
            .ends_with(" s since the last data from its primary"),
        "{saw}"
    );
    let backend = replica.addr.to_string();
    let labels = [("backend", backend.as_str())];
    assert!(
        setup
            .tembuku
            .metric("backend_replication_lag_seconds", &labels)
            > 5.0
    );
    primary.proc.signal(Signal::CONT);
    setup.wait_state(&replica, "up");
    primary.proc.kill();
    wait_until("it is cut off", secs(30), || {
        last("transcript") == "PING: PONG, ROLE: slave, cut off from its primary"
    });
    wait_until("it is left out", secs(30), || {
        setup.status(&replica)["available"] == false
    });
    assert_eq!(last("lag_seconds"), serde_json::Value::Null);
    assert!(
        setup
            .tembuku
            .metric("backend_replication_lag_seconds", &labels)
            .is_nan()
    );
}

#[test]
fn an_old_version_is_refused() {
    let server = Redis::start(ports::free_addr());
    setup(&[&server], "", "min_version = \"6.2\"").wait_state(&server, "up");
    let setup = setup(&[&server], "", "min_version = \"99.1\"");
    setup.wait_state(&server, "down");
    let last = &setup.status(&server)["last_check"];
    assert_eq!(last["result"], "unexpected");
    let saw = last["transcript"].as_str().unwrap();
    assert!(
        saw.starts_with("PING: PONG, ROLE: master, version ")
            && saw.ends_with(" is older than 99.1.0"),
        "{saw}"
    );
}

//! Checks of MariaDB: which server is writable, what becomes of sessions when that changes, and
//! what a server records about checks.

use crate::harness::{
    mariadb::MariaDb,
    millis,
    mysql::Client,
    ports,
    proc::{self, command},
    programs::{self, place},
    secs,
    tembuku::Tembuku,
    wait_until,
};
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

const INTERVAL: Duration = millis(500);

const QUICK: &str = "interval = \"50ms\"\nfast_interval = \"50ms\"";

/// For checks: no privileges at all.
pub(crate) const CHECK: &str = "CREATE USER 'check'@'%' IDENTIFIED BY ''";

pub(crate) struct Setup {
    pub(crate) front: SocketAddr,
    pub(crate) tembuku: Tembuku,
}

/// A listener before these backends. `keys` belong to the upstream, `check` to its check.
pub(crate) fn setup(backends: &[&str], keys: &str, check: &str) -> Setup {
    let front = ports::free_addr();
    let backends: Vec<String> = backends.iter().map(|b| format!("\"{b}\"")).collect();
    let interval = match check.contains("interval") {
        true => "",
        false => "interval = \"500ms\"",
    };
    let tembuku = Tembuku::start(&format!(
        "[process]\nworkers = 2\n[log]\nlevel = \"debug\"\nformat = \"json\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [{}]\n{keys}\n\
         [upstreams.u.check]\n{interval}\n{check}\n",
        backends.join(", ")
    ));
    Setup { front, tembuku }
}

impl Setup {
    pub(crate) fn status(&self, backend: &str) -> serde_json::Value {
        let status = self.tembuku.status();
        let backends = status["upstreams"][0]["backends"]
            .as_array()
            .unwrap()
            .clone();
        backends
            .into_iter()
            .find(|b| b["address"] == backend)
            .unwrap()
    }

    /// Waits for this result of a check; what the check saw.
    #[track_caller]
    pub(crate) fn wait_result(&self, backend: &str, result: &str) -> String {
        wait_until(
            &format!("{result}: {}", self.status(backend)),
            secs(15),
            || self.status(backend)["last_check"]["result"] == result,
        );
        let status = self.status(backend);
        status["last_check"]["transcript"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    #[track_caller]
    pub(crate) fn wait_state(&self, backend: &str, state: &str) {
        self.tembuku.wait_metric(
            "backend_state",
            &[("backend", backend), ("state", state)],
            |is| is == 1.0,
        );
    }

    /// So many more checks with this result, and none with another.
    #[track_caller]
    fn wait_checks(&self, result: &str, more: f64) {
        let counts = || {
            let metrics = self.tembuku.metrics();
            let good = metrics.sum("check_results_total", &[("result", result)]);
            (good, metrics.sum("check_results_total", &[]) - good)
        };
        let (before, others) = counts();
        wait_until(&format!("{more} more checks: {result}"), secs(20), || {
            counts().0 >= before + more
        });
        assert_eq!(counts().1, others);
    }
}

/// A primary and one that is not to be written to; both know a writer and have a table.
fn two() -> [MariaDb; 2] {
    let (one, other) = std::thread::scope(|scope| {
        let one = scope.spawn(MariaDb::start);
        let other = MariaDb::start();
        (one.join().unwrap(), other)
    });
    for server in [&one, &other] {
        server.sql(&format!(
            "{CHECK}; CREATE DATABASE d; CREATE TABLE d.t (k VARCHAR(40)) ENGINE=InnoDB; \
             CREATE USER 'writer'@'%' IDENTIFIED BY ''; GRANT SELECT, INSERT ON d.* TO 'writer'@'%'"
        ));
    }
    other.sql("SET GLOBAL read_only = ON");
    [one, other]
}

fn rows(server: &MariaDb) -> u64 {
    server.sql("SELECT COUNT(*) FROM d.t").parse().unwrap()
}

/// What one writer saw.
#[derive(Default)]
struct Seen {
    /// When it was sent, and when the answer was there.
    accepted: Vec<(Instant, Instant)>,
    rejected: usize,
    closed: Vec<Instant>,
}

/// Writes without a pause; comes back when its connection ends.
fn write_on(front: SocketAddr, name: usize, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut client = None;
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        if client.is_none() {
            client = Client::connect(front, "writer").ok();
        }
        if let Some(connection) = &mut client {
            let sent = Instant::now();
            match connection.run(&format!("INSERT INTO d.t VALUES ('w{name}:{n}')")) {
                Ok(()) => seen.accepted.push((sent, Instant::now())),
                Err(error) if error.to_string().contains("read-only") => seen.rejected += 1,
                Err(_) => {
                    seen.closed.push(Instant::now());
                    client = None;
                }
            }
        }
        std::thread::sleep(millis(1)); // the pace of the writer
    }
    seen
}

#[test]
fn when_read_only_moves_no_session_stays_behind() {
    let [old, new] = two();
    let (old_at, new_at) = (old.addr.to_string(), new.addr.to_string());
    let check = "kind = \"mysql\"\nuser = \"check\"\nrole = \"primary\"\ntimeout = \"400ms\"";
    let setup = setup(&[&old_at, &new_at], "", check);
    setup.wait_state(&old_at, "up");
    setup.wait_state(&new_at, "standby");
    assert_eq!(setup.wait_result(&old_at, "ok"), "read_only is off");
    assert_eq!(setup.wait_result(&new_at, "standby"), "read_only is on");

    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<JoinHandle<Seen>> = (0..4)
        .map(|name| {
            let (front, stop) = (setup.front, Arc::clone(&stop));
            std::thread::spawn(move || write_on(front, name, &stop))
        })
        .collect();
    let closed_at = Arc::new(Mutex::new(Vec::new()));
    let idle: Vec<JoinHandle<()>> = (0..10)
        .map(|_| {
            let client = Client::connect(setup.front, "writer").unwrap();
            let closed_at = Arc::clone(&closed_at);
            std::thread::spawn(move || {
                client.wait();
                closed_at.lock().unwrap().push(Instant::now());
            })
        })
        .collect();
    wait_until("there is load", secs(20), || rows(&old) > 200);
    assert_eq!(rows(&new), 0);

    old.sql("SET GLOBAL read_only = ON");
    let switched = Instant::now();
    new.sql("SET GLOBAL read_only = OFF");
    idle.into_iter().for_each(|thread| thread.join().unwrap());
    let last_idle = *closed_at.lock().unwrap().iter().max().unwrap() - switched;
    let tried = old.status("Com_insert");
    let kept = rows(&old);
    setup.wait_state(&new_at, "up");
    wait_until("writes go on", secs(20), || rows(&new) > 100);
    stop.store(true, Ordering::Relaxed);
    let seen: Vec<Seen> = writers.into_iter().map(|w| w.join().unwrap()).collect();

    let closed = seen
        .iter()
        .flat_map(|s| &s.closed)
        .filter(|at| **at > switched);
    let last_writer = *closed.max().unwrap() - switched;
    let accepted = || seen.iter().flat_map(|s| &s.accepted);
    let first = accepted()
        .filter(|(sent, _)| *sent > switched)
        .map(|(_, at)| *at - switched)
        .min();
    let rejected: usize = seen.iter().map(|s| s.rejected).sum();
    println!(
        "interval {INTERVAL:?}: last idle session closed after {last_idle:?}, last writer after \
         {last_writer:?}, first write accepted after {:?}, {rejected} writes rejected until then",
        first.unwrap()
    );
    let most = INTERVAL + secs(2);
    assert!(
        last_idle < most && last_writer < most,
        "within {INTERVAL:?} + 100 ms where nothing else runs"
    );
    assert_eq!(
        old.status("Com_insert"),
        tried,
        "writes reached the old primary after its sessions were closed"
    );
    assert_eq!(rows(&old), kept);
    assert_eq!(
        usize::try_from(rows(&old) + rows(&new)).unwrap(),
        accepted().count(),
        "no write is lost"
    );
    assert_eq!(
        setup.status(&old_at)["role"],
        serde_json::json!(["replica"])
    );
    setup.tembuku.wait_closed("role_lost", 14.0);
}

/// A server counts clients that leave without QUIT, warns of them in its log, and in the end
/// refuses their address.
#[test]
fn checks_leave_no_trace_in_the_counters_and_the_log() {
    let server = MariaDb::start();
    server.sql(CHECK);
    let backend = server.addr.to_string();
    let counters = || {
        [
            "Aborted_connects",
            "Aborted_clients",
            "Access_denied_errors",
        ]
        .map(|name| server.status(name))
    };
    let (before, log) = (counters(), server.log());
    let setup = setup(
        &[&backend],
        "",
        &format!("kind = \"mysql\"\nuser = \"check\"\n{QUICK}"),
    );
    setup.wait_checks("ok", 20.0);
    assert_eq!(
        setup.status(&backend)["role"],
        serde_json::json!(["primary"])
    );
    // Whatever the server writes.
    for characters in ["utf16", "utf32", "latin1"] {
        server.sql(&format!(
            "SET GLOBAL init_connect = 'SET character_set_results = {characters}'"
        ));
        setup.wait_checks("ok", 5.0);
    }
    assert_eq!(counters(), before);
    assert_eq!(server.log(), log);
    // A check that is cut off by the end of the process may be counted.
    drop(setup);
    let (before, log) = (counters(), server.log());

    // These are what would be seen.
    let setup = self::setup(&[&backend], "", "kind = \"tcp\"");
    setup.wait_checks("ok", 1.0);
    wait_until("it is counted", secs(10), || {
        counters() != before && server.log() != log
    });
}

/// The address of the checks is that of all clients that come through here.
#[test]
fn checks_do_not_get_their_address_blocked() {
    let Some(place) = place() else {
        return programs::again_in_own_place(
            "checks_mysql::checks_do_not_get_their_address_blocked",
        );
    };
    // A server does not count clients from the loopback device's own addresses; this one has a
    // name.
    let addr: SocketAddr = format!("[fd00:7e57::5]:{}", ports::free_port())
        .parse()
        .unwrap();
    proc::run_ok(
        secs(10),
        command("ip -6 address add fd00:7e57::5/128 dev lo"),
    );
    place.set_hosts("fd00:7e57::5 db.test");
    let arguments = [
        "--max-connect-errors=3",
        "--performance-schema=ON",
        "--secure-auth=OFF",
    ];
    let server = MariaDb::start_with(addr, &arguments);
    server.sql(&format!(
        "{CHECK}; CREATE USER 'known'@'%' IDENTIFIED BY 'xyzzy'; CREATE USER 'writer'@'%' \
         IDENTIFIED BY ''; CREATE USER 'old'@'%' IDENTIFIED VIA mysql_old_password USING \
         '0123456789abcdef'"
    ));
    let backend = addr.to_string();
    let errors = || {
        let sum = server
            .sql("SELECT IFNULL(SUM(SUM_CONNECT_ERRORS), 0) FROM performance_schema.host_cache");
        sum.parse::<u32>().unwrap()
    };
    for (kind, result) in [
        ("user = \"check\"", "ok"),
        // Neither refused logins nor failed TLS handshakes count.
        ("user = \"nobody\"", "auth"),
        ("user = \"check\"\ntls = \"require\"", "tls"),
        // A login of a kind that is not supported is ended by the server.
        ("user = \"old\"", "auth"),
    ] {
        let setup = setup(
            &[&backend],
            "",
            &format!("kind = \"mysql\"\n{kind}\n{QUICK}"),
        );
        setup.wait_checks(result, 10.0);
        // A check that is cut off by the end of the process may be counted, until a client is let
        // in.
        assert_eq!(errors(), 0, "{kind}");
        drop(setup);
        let mut client = command("mariadb --no-defaults -u known --password=xyzzy");
        client.args([
            "-h",
            &addr.ip().to_string(),
            "-P",
            &addr.port().to_string(),
            "-e",
            "SELECT 1",
        ]);
        proc::run_ok(secs(20), client);
    }
    // This is what does it.
    let leaves = setup(&[&backend], "", &format!("kind = \"tcp\"\n{QUICK}"));
    leaves.wait_checks("ok", 5.0);
    drop(leaves);
    assert_eq!(errors(), 3);
    let refused = Client::connect(addr, "writer").err().unwrap().to_string();
    assert!(refused.contains("blocked"), "{refused}");
    let error =
        setup(&[&backend], "", "kind = \"mysql\"\nuser = \"check\"").wait_result(&backend, "auth");
    assert!(error.starts_with("error 1129: "), "{error}");
}

/// A replica that is behind, one that does not replicate, and an account that may not ask.
#[test]
fn lag() {
    let primary = MariaDb::start_with(ports::free_addr(), &["--log-bin", "--server-id=1"]);
    let replica = MariaDb::start_with(ports::free_addr(), &["--server-id=2", "--read-only"]);
    primary.sql(
        "CREATE USER 'replica'@'%' IDENTIFIED BY ''; GRANT REPLICATION SLAVE ON *.* TO \
         'replica'@'%'; CREATE DATABASE d; CREATE TABLE d.t (k INT)",
    );
    replica.sql(CHECK);
    let backend = replica.addr.to_string();
    let check = "kind = \"mysql\"\nuser = \"check\"\nrole = \"replica\"\nmax_lag = \"2s\"";
    let setup = setup(&[&backend], "", check);
    let denied = setup.wait_result(&backend, "auth");
    assert!(denied.starts_with("replication: error 1227: "), "{denied}");
    replica.sql("GRANT REPLICA MONITOR ON *.* TO 'check'@'%'");
    assert_eq!(
        setup.wait_result(&backend, "lagging"),
        "a replica that does not replicate"
    );
    let follow = format!(
        "CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT={}, MASTER_USER='replica', \
         MASTER_CONNECT_RETRY=1, MASTER_USE_GTID=slave_pos; START SLAVE",
        primary.addr.port()
    );
    replica.sql(&follow);
    setup.wait_state(&backend, "up");
    assert_eq!(setup.wait_result(&backend, "ok"), "a replica, 0 s behind");
    // What one session holds, replication waits for; and the clock goes on.
    let mut holder = Client::connect(replica.addr, "check").unwrap();
    replica.sql("GRANT SELECT, LOCK TABLES ON d.* TO 'check'@'%'");
    holder.run("LOCK TABLES d.t READ").unwrap();
    primary.sql("INSERT INTO d.t VALUES (1)");
    let late = setup.wait_result(&backend, "lagging");
    assert!(
        late.starts_with("a replica, ") && late.ends_with(" s behind"),
        "{late}"
    );
    holder.run("UNLOCK TABLES").unwrap();
    setup.wait_result(&backend, "ok");
    replica.sql("STOP SLAVE");
    assert_eq!(
        setup.wait_result(&backend, "lagging"),
        "a replica that does not replicate"
    );
}

//! A primary that dies under load, or is replaced: new connections wait for the next one instead of
//! failing.

use crate::{
    checks_redis::{info, replicate},
    harness::{
        ports,
        postgres::{Postgres, postgres_client},
        proc::{self, Proc, command},
        programs::{Haproxy, Redis, call},
        secs,
        tembuku::{Tembuku, binary},
        temp::TempDir,
        wait_until,
    },
};
use rustix::process::Signal;
use std::{
    net::SocketAddr,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

const CLIENTS: usize = 6;

/// One connection with one command.
struct Call {
    began: Instant,
    ended: Instant,
    /// What went wrong, if something did.
    error: Option<String>,
}

/// Clients that connect, write a value and leave, again and again.
struct Load {
    stop: Arc<AtomicBool>,
    calls: Arc<Mutex<Vec<Call>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(front: SocketAddr) -> Self {
        let (stop, calls) = (
            Arc::<AtomicBool>::default(),
            Arc::<Mutex<Vec<Call>>>::default(),
        );
        let threads = (0..CLIENTS).map(|client| {
            let (stop, calls) = (stop.clone(), calls.clone());
            thread::spawn(move || {
                let mut n = 0;
                while !stop.load(Relaxed) {
                    n += 1;
                    let began = Instant::now();
                    let error = match call(front, &format!("SET key:{client} {n}")) {
                        Ok(answer) if answer == "+OK" => None,
                        Ok(answer) => Some(answer),
                        Err(error) => Some(error.to_string()),
                    };
                    calls.lock().unwrap().push(Call {
                        began,
                        ended: Instant::now(),
                        error,
                    });
                    thread::sleep(Duration::from_millis(5));
                }
            })
        });
        Self {
            threads: threads.collect(),
            stop,
            calls,
        }
    }

    fn wait_for_calls(&self, count: usize) {
        let begun = self.calls.lock().unwrap().len();
        wait_until("calls are answered", secs(20), || {
            self.calls.lock().unwrap().len() >= begun + count
        });
    }

    fn stop(self) -> Vec<Call> {
        self.stop.store(true, Relaxed);
        self.threads.into_iter().for_each(|t| t.join().unwrap());
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

#[test]
fn new_connections_survive_the_death_of_a_primary() {
    let mut primary = Redis::start(ports::free_addr());
    let replica = Redis::start(ports::free_addr());
    replicate(&replica, &primary);
    wait_until("it replicates", secs(30), || {
        info(replica.addr, "replication").contains("master_link_status:up")
    });
    let fronts = [ports::free_addr(), ports::free_addr()];
    let tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{}\"\nupstream = \"u\"\n\
         [upstreams.u]\nhold_timeout = \"10s\"\nbackends = [\"{}\", \"{}\"]\n\
         [upstreams.u.check]\nkind = \"redis\"\nrole = \"primary\"\ninterval = \"100ms\"\n\
         timeout = \"1s\"\nrise = 1\nfall = 2\n",
        fronts[0], primary.addr, replica.addr
    ));
    let haproxy = |n: usize, server: &Redis| {
        format!(
            "server s{n} {} check inter 100ms rise 1 fall 2\n ",
            server.addr
        )
    };
    let _haproxy = Haproxy::start(
        &fronts[1..],
        &format!(
            "listen f\n mode tcp\n bind {}\n option tcp-check\n tcp-check connect\n \
             tcp-check send info\\ replication\\r\\n\n tcp-check expect string role:master\n \
             retries 3\n option redispatch\n {}{}",
            fronts[1],
            haproxy(1, &primary),
            haproxy(2, &replica)
        ),
    );
    wait_until("both see the primary", secs(20), || {
        fronts
            .iter()
            .all(|front| call(*front, "SET a 1").is_ok_and(|answer| answer == "+OK"))
    });
    let loads = fronts.map(Load::start);
    loads
        .iter()
        .for_each(|load| load.wait_for_calls(CLIENTS * 10));
    // Connections from before its death may be lost with it.
    primary.proc.kill();
    let died = Instant::now();
    // HAProxy tries a connect again after a second.
    thread::sleep(Duration::from_millis(2000));
    assert_eq!(call(replica.addr, "REPLICAOF NO ONE").unwrap(), "+OK");
    let promoted = Instant::now();
    loads[0].wait_for_calls(CLIENTS * 10);
    thread::sleep(Duration::from_millis(500));
    let [held, refused] = loads.map(Load::stop).map(|calls| {
        let after = calls.into_iter().filter(|call| call.began > died);
        after.collect::<Vec<_>>()
    });
    let errors = |calls: &[Call]| -> Vec<String> {
        calls.iter().filter_map(|call| call.error.clone()).collect()
    };
    let longest = held
        .iter()
        .map(|call| call.ended - call.began)
        .max()
        .unwrap();
    println!(
        "tembuku: {} new connections, {} errors, the longest took {longest:?}; HAProxy: {} errors \
         of {}",
        held.len(),
        errors(&held).len(),
        errors(&refused).len(),
        refused.len()
    );
    assert_eq!(errors(&held), [""; 0]);
    // They have waited for the promotion, and not for much longer.
    assert!(longest >= Duration::from_millis(500), "{longest:?}");
    assert!(held.iter().any(|call| call.ended > promoted));
    assert!(longest < secs(8), "{longest:?}");
    // Without a hold they fail.
    assert!(!errors(&refused).is_empty());
    assert_eq!(
        tembuku.metric("sessions_closed_total", &[("reason", "hold_timeout")]),
        0.0
    );
}

/// Before two servers, of which the check finds the primary.
fn before(front: SocketAddr, servers: [SocketAddr; 2], check: &str) -> Tembuku {
    Tembuku::start(&format!(
        "[process]\nworkers = 2\n[log]\nformat = \"json\"\naccess = \"{{dir}}/access.log\"\n\
         [admin]\nsocket = \"{{dir}}/admin.sock\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nhold_timeout = \"10s\"\nbackends = [\"{}\", \"{}\"]\n\
         [upstreams.u.check]\n{check}\nrole = \"primary\"\ninterval = \"200ms\"\nrise = 1\n",
        servers[0], servers[1]
    ))
}

/// What the command prints.
#[track_caller]
fn set(tembuku: &Tembuku, command: &str, backend: SocketAddr, more: &[&str]) -> String {
    let mut set = Command::new(binary());
    set.args([command, &format!("u/{backend}"), "--socket"]);
    set.arg(tembuku.dir.file("admin.sock")).args(more);
    let output = proc::output(&mut set);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Takes the primary out, and waits until it has served what it had.
fn drain(tembuku: &Tembuku, primary: SocketAddr) {
    set(tembuku, "drain", primary, &[]);
    let backend = primary.to_string();
    tembuku.wait_metric(
        "backend_active_connections",
        &[("backend", &backend)],
        |n| n == 0.0,
    );
}

fn accepted(tembuku: &Tembuku) -> f64 {
    tembuku.metric("listener_connections_total", &[])
}

/// Some have waited, all were served, and the longest wait is told.
fn assert_held_and_served(tembuku: &Tembuku) {
    let waits = |result| {
        let labels = [("wait", "hold"), ("result", result)];
        tembuku.metric("upstream_waits_total", &labels)
    };
    assert!(waits("served") > 0.0);
    assert_eq!((waits("timed_out"), waits("left")), (0.0, 0.0));
    tembuku.wait_idle();
    let records = tembuku.access_log(accepted(tembuku) as usize);
    let waited = records.iter().filter_map(|r| r["queue_time"].as_f64());
    let longest = waited.fold(0.0, f64::max);
    println!(
        "of {} sessions the longest waited {longest} s",
        records.len()
    );
    assert!(longest < 8.0, "{longest}");
}

#[test]
fn pgbench_does_not_notice_a_switch_over() {
    let mut old = Postgres::start();
    old.sql("create role monitor login; create table marks (id bigserial primary key)");
    let new = Postgres::replica_of(&old, &[]);
    let front = ports::free_addr();
    let check = "kind = \"postgres\"\nuser = \"monitor\"";
    let tembuku = before(front, [old.addr, new.addr], check);
    tembuku.wait_metric("upstream_available_backends", &[], |n| n == 1.0);
    let dir = TempDir::new();
    let script = dir.write("insert.sql", "insert into marks default values;\n");
    let mut pgbench = postgres_client("pgbench", front);
    // A connection for each transaction; each client in a thread, within which it connects.
    pgbench
        .args("-n -C -c 8 -j 8 -t 60 -f".split(' '))
        .arg(script);
    let mut pgbench = Proc::start("pgbench", dir.path(), pgbench);
    wait_until("there is load", secs(30), || accepted(&tembuku) > 60.0);
    drain(&tembuku, old.addr);
    let rows =
        |server: &Postgres| -> u64 { server.sql("select count(*) from marks").parse().unwrap() };
    let written = rows(&old);
    assert!(written < 480, "it was over before the switch");
    wait_until("the replica has all of them", secs(30), || {
        rows(&new) == written
    });
    old.end(Signal::INT);
    new.promote();
    let status = pgbench.wait(secs(180)).expect("it ends");
    let report = pgbench.stdout() + &pgbench.stderr();
    assert!(status.success(), "{report}");
    for line in [
        "number of transactions actually processed: 480/480",
        "number of failed transactions: 0 ",
    ] {
        assert!(report.contains(line), "{report}");
    }
    assert_eq!(rows(&new), 480, "none is lost or doubled");
    assert_held_and_served(&tembuku);
}

/// What the check found before the switch speaks for the old primary. The next check by the
/// interval would be too late: `ready` asks for one, and nothing comes to the server before it is
/// answered.
#[test]
fn a_switch_over_refuses_no_write_however_soon_the_old_primary_is_ready() {
    const ROUNDS: usize = 20;
    let servers = [(); 2].map(|()| Redis::start(ports::free_addr()));
    let follow = |replica: &Redis, primary: &Redis| {
        replicate(replica, primary);
        wait_until("it replicates", secs(30), || {
            info(replica.addr, "replication").contains("master_link_status:up")
        });
    };
    follow(&servers[1], &servers[0]);
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nhold_timeout = \"20s\"\nbackends = [\"{}\", \"{}\"]\n\
         [upstreams.u.check]\nkind = \"redis\"\nrole = \"primary\"\ninterval = \"10m\"\n\
         timeout = \"2s\"\n",
        servers[0].addr, servers[1].addr
    ));
    tembuku.wait_metric("upstream_available_backends", &[], |n| n == 1.0);
    let load = Load::start(front);
    for round in 0..ROUNDS {
        let (old, new) = (&servers[round % 2], &servers[(round + 1) % 2]);
        load.wait_for_calls(CLIENTS);
        drain(&tembuku, old.addr);
        assert_eq!(call(new.addr, "REPLICAOF NO ONE").unwrap(), "+OK");
        follow(old, new);
        let done = set(&tembuku, "ready", old.addr, &["--wait"]);
        assert!(done.contains("standby"), "{done}");
    }
    load.wait_for_calls(CLIENTS);
    let calls = load.stop();
    let errors: Vec<String> = calls.iter().filter_map(|call| call.error.clone()).collect();
    let waits = calls.iter().map(|call| call.ended - call.began);
    println!("{} writes, the longest took {:?}", calls.len(), waits.max());
    assert_eq!(errors, [""; 0]);
}

#[test]
fn redis_benchmark_does_not_notice_a_switch_over() {
    let old = Redis::start(ports::free_addr());
    let new = Redis::start(ports::free_addr());
    replicate(&new, &old);
    wait_until("it replicates", secs(30), || {
        info(new.addr, "replication").contains("master_link_status:up")
    });
    let front = ports::free_addr();
    let tembuku = before(front, [old.addr, new.addr], "kind = \"redis\"");
    tembuku.wait_metric("upstream_available_backends", &[], |n| n == 1.0);
    let mut load = command("redis-benchmark -q -c 16 -n 10000 -k 0 -t incr -h 127.0.0.1 -p");
    load.arg(front.port().to_string());
    let mut load = Proc::start("redis-benchmark", tembuku.dir.path(), load);
    wait_until("there is load", secs(30), || accepted(&tembuku) > 300.0);
    drain(&tembuku, old.addr);
    let count = |server: &Redis| call(server.addr, "GET counter:__rand_int__").unwrap_or_default();
    let written = count(&old);
    wait_until("the replica has all of them", secs(30), || {
        count(&new) == written
    });
    assert_eq!(call(new.addr, "REPLICAOF NO ONE").unwrap(), "+OK");
    replicate(&old, &new);
    let status = load.wait(secs(180)).expect("it ends");
    let report = load.stdout() + &load.stderr();
    assert!(status.success(), "{report}");
    assert!(!report.contains("rror"), "{report}");
    let total = call(new.addr, "GET counter:__rand_int__").unwrap();
    println!("{written} before the switch, {total} at the end\n{report}");
    assert_held_and_served(&tembuku);
}

/// As README has it: what an operator orders is no fault, and a log without warnings shows that it
/// went well.
#[test]
fn a_planned_fail_over_warns_of_nothing() {
    let servers = [(); 3].map(|()| Redis::start(ports::free_addr()));
    for replica in &servers[1..] {
        replicate(replica, &servers[0]);
    }
    wait_until("the replicas are online", secs(30), || {
        let text = info(servers[0].addr, "replication");
        text.matches("state=online").count() == 2
    });
    let [old, new, other] = [0, 1, 2].map(|n: usize| servers[n].addr);
    let front = ports::free_addr();
    let of_role = |role: &str| {
        format!(
            "[listeners.{role}]\nbind = \"{}\"\nupstream = \"{role}\"\n\
             [upstreams.{role}]\nhold_timeout = \"20s\"\n\
             backends = [\"{old}\", \"{new}\", \"{other}\"]\n\
             [upstreams.{role}.check]\nkind = \"redis\"\nrole = \"{role}\"\n\
             interval = \"1s\"\ntimeout = \"900ms\"\n",
            if role == "primary" {
                front
            } else {
                ports::free_addr()
            }
        )
    };
    let tembuku = Tembuku::start(&format!(
        "[log]\nformat = \"json\"\n[admin]\nsocket = \"{{dir}}/admin.sock\"\n{}{}",
        of_role("primary"),
        of_role("replica")
    ));
    let wait_available = |role: &str, count: f64| {
        let labels = [("upstream", role)];
        tembuku.wait_metric("upstream_available_backends", &labels, |n| n == count);
    };
    wait_available("primary", 1.0);
    wait_available("replica", 2.0);
    let load = Load::start(front);
    load.wait_for_calls(CLIENTS);
    let target = format!("primary/{old}");
    tembuku.succeed(&["drain", &target, "--close-after", "5s", "--wait"]);
    let order = format!("FAILOVER TO {} {}", new.ip(), new.port());
    assert_eq!(call(old, &order).unwrap(), "+OK");
    wait_until("the roles have changed", secs(20), || {
        info(old, "replication").contains("role:slave")
    });
    tembuku.succeed(&["ready", &target, "--wait"]);
    let state = |upstream: &str, backend: SocketAddr, state: &str| {
        let backend = backend.to_string();
        let labels = [
            ("upstream", upstream),
            ("backend", backend.as_str()),
            ("state", state),
        ];
        tembuku.wait_metric("backend_state", &labels, |n| n == 1.0);
    };
    state("primary", new, "up");
    state("replica", new, "standby");
    state("replica", old, "up");
    load.wait_for_calls(CLIENTS);
    let calls = load.stop();
    let errors: Vec<String> = calls.into_iter().filter_map(|call| call.error).collect();
    assert_eq!(errors, [""; 0]);
    let mut log = tembuku.log();
    let promoted = "replica was promoted, backend is out of service";
    assert!(
        log.iter().any(|line| line["message"] == promoted),
        "{log:#?}"
    );
    log.retain(|line| line["level"] == "WARN" || line["level"] == "ERROR");
    assert_eq!(log, Vec::<serde_json::Value>::new());
}

//! Readers that use the primary while no replica is up.

use crate::{
    checks_postgres,
    checks_redis::{self, info, replicate},
    harness::{
        net, ports,
        postgres::{Postgres, psql},
        proc,
        programs::{Redis, call},
        secs, wait_until,
    },
};
use rustix::process::Signal;
use std::{io::Write as _, net::SocketAddr, net::TcpStream};

const CHECK: &str = "role = \"replica\"\nrole_fallback = true\nfall = 2\nrise = 1";

/// What the server behind the listener says that it is.
fn role(front: SocketAddr) -> Option<String> {
    // The first line is the length of the array, the second that of the word.
    let mut stream = net::connect(front).ok()?;
    stream.write_all(b"ROLE\r\n").ok()?;
    let mut line = || net::read_line(&mut stream).ok();
    line()?;
    line()?;
    Some(line()?.trim().to_owned())
}

/// A session that has been answered.
fn hold(front: SocketAddr) -> TcpStream {
    let mut stream = net::connect(front).unwrap();
    ping(&mut stream);
    stream
}

#[track_caller]
fn ping(stream: &mut TcpStream) {
    stream.write_all(b"PING\r\n").unwrap();
    assert_eq!(net::read_line(stream).unwrap().trim(), "+PONG");
}

#[test]
fn readers_of_redis_use_the_primary_and_come_back() {
    let primary = Redis::start(ports::free_addr());
    let replica_at = ports::free_addr();
    let replica = Redis::start(replica_at);
    replicate(&replica, &primary);
    wait_until("it replicates", secs(30), || {
        info(replica.addr, "replication").contains("master_link_status:up")
    });
    let servers = [&primary, &replica];
    let setup = checks_redis::setup(&servers, "on_recover = \"close\"", CHECK);
    let strict = checks_redis::setup(&servers, "", "role = \"replica\"\nfall = 2\nrise = 1");
    let gauge = |is| {
        setup
            .tembuku
            .wait_metric("upstream_role_fallback", &[], |n| n == is)
    };
    setup.wait_state(&replica, "up");
    setup.wait_state(&primary, "standby");
    gauge(0.0);
    assert_eq!(role(setup.front).as_deref(), Some("slave"));

    drop(replica);
    gauge(1.0);
    assert_eq!(role(setup.front).as_deref(), Some("master"));
    let shown = setup.status(&primary);
    assert_eq!(
        (&shown["state"], &shown["available"]),
        (&"standby".into(), &true.into())
    );
    assert_eq!(
        shown["why"],
        "its role is primary; used while no replica is up"
    );
    assert_eq!(setup.tembuku.get("/readyz").status, 200);
    let mut reader = hold(setup.front);
    // Without the key there is no reader.
    strict
        .tembuku
        .wait_metric("upstream_available_backends", &[], |n| n == 0.0);
    assert_eq!(role(strict.front), None);
    let of_kind = || {
        let events = setup.tembuku.events().into_iter();
        events
            .filter(|e| e["kind"] == "role_fallback")
            .collect::<Vec<_>>()
    };
    let events = of_kind();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(
        (&events[0]["from"], &events[0]["to"]),
        (&"off".into(), &"on".into())
    );
    assert_eq!(events[0]["backend"], primary.addr.to_string());
    assert_eq!(events[0]["reason"], "no_replica");
    ping(&mut reader);

    let replica = Redis::start(replica_at);
    replicate(&replica, &primary);
    gauge(0.0);
    setup.wait_state(&replica, "up");
    // The sessions that are on the primary are terminated.
    net::read_all(&mut reader);
    let recovered = [("reason", "recovered")];
    setup
        .tembuku
        .wait_metric("sessions_closed_total", &recovered, |n| n == 1.0);
    assert_eq!(role(setup.front).as_deref(), Some("slave"));
    assert_eq!(of_kind()[1]["reason"], "replica_up");
}

/// The only replica becomes the primary under its readers.
#[test]
fn readers_of_redis_stay_on_a_promoted_replica() {
    let primary = Redis::start(ports::free_addr());
    let replica = Redis::start(ports::free_addr());
    replicate(&replica, &primary);
    wait_until("it replicates", secs(30), || {
        info(replica.addr, "replication").contains("master_link_status:up")
    });
    let setup = checks_redis::setup(&[&primary, &replica], "", CHECK);
    setup.wait_state(&replica, "up");
    let mut reader = hold(setup.front);
    drop(primary);
    assert_eq!(call(replica.addr, "REPLICAOF NO ONE").unwrap(), "+OK");
    setup.wait_state(&replica, "standby");
    setup
        .tembuku
        .wait_metric("upstream_role_fallback", &[], |n| n == 1.0);
    assert_eq!(role(setup.front).as_deref(), Some("master"));
    ping(&mut reader);
    let lost = setup
        .tembuku
        .metric("sessions_closed_total", &[("reason", "role_lost")]);
    assert_eq!(lost, 0.0);
}

/// The former primary is started again, alone and empty, while readers use the new one.
#[test]
fn readers_of_redis_do_not_use_a_former_primary() {
    let mut former = Redis::start(ports::free_addr());
    let replica = Redis::start(ports::free_addr());
    replicate(&replica, &former);
    wait_until("it replicates", secs(30), || {
        info(replica.addr, "replication").contains("master_link_status:up")
    });
    let setup = checks_redis::setup(&[&former, &replica], "", CHECK);
    setup.wait_state(&replica, "up");
    former.proc.kill();
    setup.wait_state(&former, "down");
    assert_eq!(call(replica.addr, "REPLICAOF NO ONE").unwrap(), "+OK");
    assert_eq!(call(replica.addr, "SET name new").unwrap(), "+OK");
    setup.wait_state(&replica, "standby");
    let mut reader = hold(setup.front);

    let back = Redis::start(former.addr);
    setup.wait_state(&back, "doubtful");
    let names: Vec<_> = (0..20).map(|_| call(setup.front, "GET name")).collect();
    let is_new = |name: &_| matches!(name, Ok(name) if name == "new");
    assert!(names.iter().all(is_new), "{names:?}");
    let why = format!("{} is primary, too, and has been for longer", replica.addr);
    assert_eq!(setup.status(&back)["why"], why);
    ping(&mut reader);

    // As a replica of the new one it is what readers are for.
    replicate(&back, &replica);
    setup.wait_state(&back, "up");
    assert_eq!(role(setup.front).as_deref(), Some("slave"));
    ping(&mut reader);
}

#[test]
fn readers_of_postgres_use_the_primary() {
    let primary = Postgres::start();
    primary.sql("create role monitor login");
    let mut replica = Postgres::replica_of(&primary, &[]);
    let check = format!("user = \"monitor\"\n{CHECK}");
    let setup = checks_postgres::setup(&[primary.addr, replica.addr], "", &check);
    setup.wait(replica.addr, "up", "ok");
    setup.wait(primary.addr, "standby", "standby");
    let is_replica = || {
        let mut psql = psql(setup.front);
        psql.args(["-c", "select pg_is_in_recovery()"]);
        let output = proc::run(secs(20), psql);
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(is_replica(), "t");
    replica.end(Signal::INT);
    setup
        .tembuku
        .wait_metric("upstream_role_fallback", &[], |n| n == 1.0);
    assert_eq!(is_replica(), "f");
    let why = setup.status(primary.addr)["why"].clone();
    assert_eq!(why, "its role is primary; used while no replica is up");
    replica.follow(&primary);
    setup.wait(replica.addr, "up", "ok");
    setup
        .tembuku
        .wait_metric("upstream_role_fallback", &[], |n| n == 0.0);
    assert_eq!(is_replica(), "t");
}

/// Of two servers that change their roles, the one that is asked first may be the new primary.
#[test]
fn a_planned_change_of_roles_does_not_begin_a_fallback() {
    const ROUNDS: usize = 8;
    let servers = [(); 2].map(|()| Redis::start(ports::free_addr()));
    replicate(&servers[1], &servers[0]);
    let check = "role = \"replica\"\nrole_fallback = true\nreplicating = false";
    let setup = checks_redis::setup(&[&servers[0], &servers[1]], "", check);
    for round in 0..ROUNDS {
        let (old, new) = (&servers[round % 2], &servers[(round + 1) % 2]);
        setup.wait_state(old, "standby");
        setup.wait_state(new, "up");
        let to = format!("FAILOVER TO {} {}", new.addr.ip(), new.addr.port());
        wait_until("it begins", secs(30), || {
            call(old.addr, &to).unwrap() == "+OK"
        });
    }
    let [first, second] = &servers;
    setup.wait_state(first, "standby");
    setup.wait_state(second, "up");
    let events = setup.tembuku.events();
    let changes = events.iter().filter(|e| e["kind"] == "state").count();
    assert!(changes >= 2 * ROUNDS, "{events:#?}");
    assert!(
        events.iter().all(|e| e["kind"] != "role_fallback"),
        "{events:#?}"
    );
}

/// While the primary may stand in, readers are not held. Without any server they are, and go in
/// with the first that comes back.
#[test]
fn readers_are_held_only_while_the_primary_cannot_stand_in() {
    let primary_at = ports::free_addr();
    let mut primary = Redis::start(primary_at);
    let replica = Redis::start(ports::free_addr());
    replicate(&replica, &primary);
    wait_until("it replicates", secs(30), || {
        info(replica.addr, "replication").contains("master_link_status:up")
    });
    let keys = "hold_timeout = \"1m\"\non_down = \"close\"";
    let setup = checks_redis::setup(&[&primary, &replica], keys, CHECK);
    let held = |count: f64| {
        let labels = [("wait", "hold")];
        setup
            .tembuku
            .wait_metric("upstream_waiting_sessions", &labels, |n| n == count);
    };
    setup.wait_state(&replica, "up");
    setup.wait_state(&primary, "standby");
    drop(replica);
    setup
        .tembuku
        .wait_metric("upstream_role_fallback", &[], |is| is == 1.0);
    assert_eq!(role(setup.front).as_deref(), Some("master"));
    primary.proc.kill();
    setup
        .tembuku
        .wait_metric("upstream_available_backends", &[], |n| n == 0.0);
    let mut clients: Vec<_> = (0..5).map(|_| net::connect(setup.front).unwrap()).collect();
    held(5.0);
    let _primary = Redis::start(primary_at);
    clients.iter_mut().for_each(ping);
    held(0.0);
    assert_eq!(role(setup.front).as_deref(), Some("master"));
}

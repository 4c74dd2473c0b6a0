//! Replicas that do not replicate get no readers, and a server that is well in the other role is a
//! standby.

use crate::{
    checks_mysql::{self, CHECK},
    checks_postgres,
    checks_redis::{self, info, replicate},
    harness::{
        mariadb::MariaDb,
        net, ports,
        postgres::Postgres,
        programs::{Redis, call},
        secs, wait_until,
    },
};
use rustix::process::Signal;

const DOWN: &str = "its link to its primary is down";

/// Why a replica with this fault takes no readers, and what decides about that.
fn no_readers(fault: &str) -> String {
    format!("{fault}; it takes readers once it replicates (replicating = true)")
}

/// A primary of Redis whose replicas do not finish their first sync: it sends a key in ten seconds.
fn primary_that_does_not_sync() -> Redis {
    let arguments =
        "--repl-diskless-sync yes --repl-diskless-sync-delay 0 --rdb-key-save-delay 10000000";
    let arguments: Vec<&str> = arguments.split_whitespace().collect();
    let primary = Redis::start_with(ports::free_addr(), &arguments);
    for n in 0..20 {
        assert_eq!(
            call(primary.addr, &format!("SET key{n} value")).unwrap(),
            "+OK"
        );
    }
    primary
}

#[track_caller]
fn wait_link(replica: &Redis, line: &str) {
    wait_until(line, secs(30), || {
        info(replica.addr, "replication").contains(line)
    });
}

#[test]
fn a_redis_replica_without_its_primary_gets_no_readers() {
    let primary = Redis::start(ports::free_addr());
    let replica = Redis::start(ports::free_addr());
    replicate(&replica, &primary);
    wait_link(&replica, "master_link_status:up");
    let readers = checks_redis::setup(&[&replica], "", "role = \"replica\"\nfall = 2");
    let careless = checks_redis::setup(&[&replica], "", "role = \"replica\"\nreplicating = false");
    let writers = checks_redis::setup(&[&replica, &primary], "", "role = \"primary\"");
    readers.wait_state(&replica, "up");
    writers.wait_state(&replica, "standby");
    assert_eq!(writers.status(&replica)["why"], "its role is replica");
    writers.wait_state(&primary, "up");
    drop(primary);
    readers.wait_state(&replica, "lagging");
    let status = readers.status(&replica);
    assert_eq!(status["why"], no_readers(DOWN));
    assert_eq!(status["last_check"]["result"], "not_replicating");
    assert_eq!(status["available"], false);
    assert!(call(readers.front, "ROLE").is_err());
    // No standby that could take over with all data.
    writers.wait_state(&replica, "wrong_role");
    let why = format!("its role is replica, and {DOWN}");
    assert_eq!(writers.status(&replica)["why"], why);
    let before = careless
        .tembuku
        .metric("check_results_total", &[("result", "ok")]);
    careless
        .tembuku
        .wait_metric("check_results_total", &[("result", "ok")], |n| {
            n >= before + 4.0
        });
    careless.wait_state(&replica, "up");
    assert_eq!(call(careless.front, "ROLE").unwrap(), "*5");
}

#[test]
fn a_redis_replica_that_has_not_synced_gets_no_readers() {
    let primary = primary_that_does_not_sync();
    let replica = Redis::start(ports::free_addr());
    replicate(&replica, &primary);
    wait_link(&replica, "master_sync_in_progress:1");
    assert_eq!(call(replica.addr, "GET key1").unwrap(), "$-1");
    let setup = checks_redis::setup(&[&replica, &primary], "", "role = \"replica\"");
    setup.wait_state(&replica, "lagging");
    let why = setup.status(&replica)["why"].clone();
    assert_eq!(
        why,
        no_readers("its sync with its primary has not finished")
    );
    setup.wait_state(&primary, "standby");
    assert!(call(setup.front, "GET key1").is_err());
}

#[test]
fn a_postgres_replica_that_does_not_replicate_gets_no_readers() {
    let mut primary = Postgres::start();
    primary.sql("create role monitor login");
    let replica = Postgres::replica_of(&primary, &[]);
    let check = "role = \"replica\"\nuser = \"monitor\"\nfall = 2";
    let setup = checks_postgres::setup(&[primary.addr, replica.addr], "", check);
    setup.wait(replica.addr, "up", "ok");
    setup.wait(primary.addr, "standby", "standby");
    assert_eq!(setup.status(primary.addr)["why"], "its role is primary");

    replica.sql("select pg_wal_replay_pause()");
    let saw = setup.wait(replica.addr, "lagging", "not_replicating");
    assert!(saw.ends_with(", its replay is paused"), "{saw}");
    let why = setup.status(replica.addr)["why"].clone();
    assert_eq!(why, no_readers("its replay is paused"));
    replica.sql("select pg_wal_replay_resume()");
    setup.wait(replica.addr, "up", "ok");

    primary.end(Signal::INT);
    setup.wait(replica.addr, "lagging", "not_replicating");
    assert_eq!(setup.status(replica.addr)["why"], no_readers(DOWN));
    assert!(net::connect(setup.front).is_err() || !reads(setup.front));
}

/// Whether a server answers there.
fn reads(front: std::net::SocketAddr) -> bool {
    let mut psql = crate::harness::postgres::psql(front);
    psql.args(["-c", "select 1"]);
    crate::harness::proc::run(secs(20), psql).status.success()
}

#[test]
fn a_mariadb_replica_that_does_not_replicate_gets_no_readers() {
    let mut primary = MariaDb::start_with(ports::free_addr(), &["--log-bin", "--server-id=1"]);
    let replica = MariaDb::start_with(ports::free_addr(), &["--server-id=2", "--read-only"]);
    primary.sql(
        "CREATE USER 'replica'@'%' IDENTIFIED BY ''; GRANT REPLICATION SLAVE ON *.* TO \
         'replica'@'%'",
    );
    replica.sql(CHECK);
    let backend = replica.addr.to_string();
    let check = "kind = \"mysql\"\nuser = \"check\"\nrole = \"replica\"\nfall = 2";
    let setup = checks_mysql::setup(&[&backend], "", check);
    let why = || setup.status(&backend)["why"].as_str().unwrap().to_owned();
    let denied = setup.wait_result(&backend, "auth");
    assert!(denied.starts_with("replication: error 1227: "), "{denied}");
    let hint = "; grant REPLICATION CLIENT (MariaDB: REPLICA MONITOR) or set replicating = false";
    assert!(denied.ends_with(hint), "{denied}");
    setup.wait_state(&backend, "down");
    assert!(
        why().starts_with("its check reports: auth: replication: error 1227: "),
        "{}",
        why()
    );

    replica.sql("GRANT REPLICA MONITOR ON *.* TO 'check'@'%'");
    setup.wait_state(&backend, "lagging");
    assert_eq!(why(), no_readers("it follows no primary"));
    replica.sql(&format!(
        "CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT={}, MASTER_USER='replica', \
         MASTER_CONNECT_RETRY=1, MASTER_USE_GTID=slave_pos; START SLAVE",
        primary.addr.port()
    ));
    setup.wait_state(&backend, "up");
    assert_eq!(setup.wait_result(&backend, "ok"), "a replica, 0 s behind");
    replica.sql("STOP SLAVE SQL_THREAD");
    setup.wait_state(&backend, "lagging");
    wait_until("the reason is reported", secs(20), || {
        why() == no_readers("its SQL thread has stopped")
    });
    replica.sql("START SLAVE; STOP SLAVE IO_THREAD");
    wait_until("the reason is reported", secs(20), || {
        why() == no_readers("its I/O thread has stopped")
    });
    replica.sql("START SLAVE");
    setup.wait_state(&backend, "up");
    primary.proc.kill();
    setup.wait_state(&backend, "lagging");
    wait_until("the reason is reported", secs(20), || {
        why().starts_with(DOWN) || why().starts_with("its I/O thread has stopped (error ")
    });
}

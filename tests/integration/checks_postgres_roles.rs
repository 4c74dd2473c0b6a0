//! The primary of PostgreSQL servers, the lag of replicas, and what becomes of sessions when these
//! change.

use crate::{
    checks_postgres::{Setup, setup},
    harness::{
        postgres::{Postgres, postgres_client, psql},
        proc::{self, Proc},
        secs,
        temp::TempDir,
        wait_until,
    },
};
use rustix::process::Signal;
use std::{net::SocketAddr, time::Instant};

const MONITOR: &str = "user = \"monitor\"";

/// A primary with a table, and an account for checks that may do nothing but log in.
fn primary() -> Postgres {
    let server = Postgres::start();
    server
        .sql("create role monitor login; create table marks (id bigserial primary key, who text)");
    server
}

fn rows(server: &Postgres) -> u64 {
    server.sql("select count(*) from marks").parse().unwrap()
}

/// Clients of pgbench that write a row in each transaction, until their sessions end.
fn load(front: SocketAddr, dir: &TempDir) -> Proc {
    let script = dir.write("insert.sql", "insert into marks (who) values ('load');\n");
    let mut pgbench = postgres_client("pgbench", front);
    pgbench
        .args("-n -c 8 -j 2 -T 120 -f".split(' '))
        .arg(script);
    Proc::start("pgbench", dir.path(), pgbench)
}

/// One write through the listener.
fn write(front: SocketAddr, author: &str) -> bool {
    let mut psql = psql(front);
    psql.args([
        "-c",
        &format!("insert into marks (who) values ('{author}')"),
    ]);
    proc::run(secs(20), psql).status.success()
}

/// The old primary is stopped, or killed, under load, and its replica is promoted; then it comes
/// back as a replica.
#[test]
fn the_primary_is_another_after_a_promotion() {
    for signal in [Signal::INT, Signal::KILL] {
        let mut old = primary();
        let new = Postgres::replica_of(&old, &[]);
        let check = format!("role = \"primary\"\n{MONITOR}\ntimeout = \"400ms\"");
        let setup = setup(&[old.addr, new.addr], "", &check);
        assert_eq!(setup.wait(old.addr, "up", "ok"), "primary, timeline 1");
        let saw = setup.wait(new.addr, "standby", "standby");
        assert!(saw.starts_with("replica, "), "{saw}");

        let dir = TempDir::new();
        let mut pgbench = load(setup.front, &dir);
        wait_until("there is load", secs(20), || rows(&old) > 200);
        let status = setup.status(new.addr);
        assert_eq!(status["connections_total"], 0, "{status}");

        old.end(signal);
        assert!(
            pgbench.wait(secs(20)).is_some(),
            "sessions outlive their server"
        );
        new.promote();
        let promoted = Instant::now();
        let transcript = setup.wait(new.addr, "up", "ok");
        let up = promoted.elapsed();
        assert_eq!(transcript, "primary, timeline 2");
        wait_until("a write is accepted", secs(20), || {
            write(setup.front, "first")
        });
        println!(
            "{signal:?}: up {up:?} after the promotion, first write accepted after {:?}",
            promoted.elapsed()
        );
        assert!(
            up < secs(3),
            "within an interval of 500 ms where nothing else runs: {up:?}"
        );

        // The old one is one that follows, and gets none of what is written now.
        old.follow(&new);
        setup.wait(old.addr, "standby", "standby");
        let taken = setup.status(old.addr)["connections_total"].clone();
        let before = rows(&new);
        let mut pgbench = postgres_client("pgbench", setup.front);
        pgbench
            .args("-n -c 4 -t 50 -f".split(' '))
            .arg(dir.file("insert.sql"));
        let output = proc::run_ok(secs(60), pgbench);
        assert!(
            output.contains("number of transactions actually processed: 200/200"),
            "{output}"
        );
        assert_eq!(rows(&new), before + 200);
        assert_eq!(setup.status(old.addr)["connections_total"], taken);
        wait_until("it has followed", secs(20), || rows(&old) == before + 200);
        // And it can be followed.
        assert_eq!(
            setup.status(old.addr)["role"],
            serde_json::json!(["replica"])
        );
        assert_eq!(
            setup.status(new.addr)["role"],
            serde_json::json!(["primary"])
        );
    }
}

/// The worst that can happen: a replica is promoted, and the old primary is not demoted, so it goes
/// on taking writes. What it takes is lost, so its sessions have to end at once, and none may come.
#[test]
fn an_old_primary_that_lives_on_loses_its_sessions() {
    let old = primary();
    let new = Postgres::replica_of(&old, &[]);
    let check = format!("role = \"primary\"\n{MONITOR}\ntimeout = \"400ms\"");
    let setup = setup(&[old.addr, new.addr], "", &check);
    setup.wait(old.addr, "up", "ok");
    setup.wait(new.addr, "standby", "standby");
    let dir = TempDir::new();
    let mut pgbench = load(setup.front, &dir);
    wait_until("there is load", secs(20), || rows(&old) > 200);

    new.promote();
    let promoted = Instant::now();
    assert!(
        pgbench.wait(secs(20)).is_some(),
        "sessions stay on the old primary"
    );
    let closed = promoted.elapsed();
    println!("the last session on the old primary ended {closed:?} after the promotion");
    assert!(
        closed < secs(3),
        "within 500 ms + 100 ms where nothing else runs: {closed:?}"
    );
    // The server ends what it has begun before it notices.
    wait_until("the old primary has noticed", secs(20), || {
        old.sql("select count(*) from pg_stat_activity where application_name = 'pgbench'") == "0"
    });
    let left = rows(&old);
    assert_eq!(setup.wait(new.addr, "up", "ok"), "primary, timeline 2");
    let saw = setup.wait(old.addr, "wrong_role", "ok");
    assert_eq!(saw, "primary, timeline 1");
    let status = setup.status(old.addr);
    let why = status["why"].as_str().unwrap();
    assert!(why.ends_with("(timeline 2 > 1)"), "{why}");
    let labels = [("reason", "role_lost")];
    let ended = setup.tembuku.metric("sessions_closed_total", &labels);
    assert_eq!(ended, 8.0);

    // Nothing is written there any more, for as long as both claim to be the primary.
    let before = rows(&new);
    for _ in 0..3 {
        let mut pgbench = postgres_client("pgbench", setup.front);
        pgbench
            .args("-n -C -c 4 -t 10 -f".split(' '))
            .arg(dir.file("insert.sql"));
        let output = proc::run_ok(secs(60), pgbench);
        assert!(output.contains("actually processed: 40/40"), "{output}");
    }
    setup.wait_for_more(old.addr, "ok", 3.0);
    assert_eq!(rows(&new), before + 120);
    assert_eq!(rows(&old), left);
}

/// Readers leave a replica that does not replay what it gets, and come back.
#[test]
fn a_replica_that_does_not_replay_is_lagging() {
    let primary = primary();
    let replica = Postgres::replica_of(&primary, &[]);
    for (limit, unit) in [
        ("max_lag_bytes = \"64k\"", "bytes"),
        ("max_lag = \"1s\"", "seconds"),
    ] {
        let check = format!("role = \"replica\"\n{MONITOR}\nfall = 2\n{limit}");
        let setup = setup(&[primary.addr, replica.addr], "", &check);
        setup.wait(primary.addr, "standby", "standby");
        setup.wait(replica.addr, "up", "ok");

        replica.sql("select pg_wal_replay_pause()");
        let paused = Instant::now();
        primary.sql(
            "insert into marks (who) select repeat(md5(i::text), 4) \
             from generate_series(1, 2000) i",
        );
        let saw = setup.wait(replica.addr, "lagging", "lagging");
        println!(
            "{limit}: lagging {:?} after the pause: {saw}",
            paused.elapsed()
        );
        let last = &setup.status(replica.addr)["last_check"];
        assert!(last["lag_bytes"].as_u64().unwrap() > 64 << 10, "{last}");
        let gauge = format!("backend_replication_lag_{unit}");
        let backend = replica.addr.to_string();
        let lag = setup.tembuku.metric(&gauge, &[("backend", &backend)]);
        assert!(lag > 1.0, "{lag}");
        assert!(
            !write(setup.front, "nobody"),
            "there was no backend to read from"
        );

        replica.sql("select pg_wal_replay_resume()");
        setup.wait(replica.addr, "up", "ok");
        wait_until("there is no lag", secs(20), || {
            setup.status(replica.addr)["last_check"]["lag_bytes"] == 0
        });
        assert_eq!(setup.status(replica.addr)["last_check"]["lag_seconds"], 0.0);
    }
}

/// One that has lost its primary has replayed all that it got, and does not know what it missed.
#[test]
fn a_replica_that_receives_nothing_is_not_in_step() {
    let mut primary = primary();
    let replica = Postgres::replica_of(&primary, &[]);
    primary.sql("insert into marks (who) values ('last')");
    let start = |keys: &str| {
        setup(
            &[replica.addr],
            "",
            &format!("role = \"replica\"\n{MONITOR}\n{keys}"),
        )
    };
    let [bytes, time, none]: [Setup; 3] = [
        "max_lag_bytes = \"1g\"",
        "max_lag = \"1s\"",
        "replicating = false",
    ]
    .map(start);
    for setup in [&bytes, &time, &none] {
        setup.wait(replica.addr, "up", "ok");
    }
    primary.end(Signal::INT);
    let saw = time.wait(replica.addr, "lagging", "lagging");
    assert!(
        saw.starts_with("replica, receives nothing, its last transaction is "),
        "{saw}"
    );
    bytes.wait(replica.addr, "lagging", "lagging");
    // Without a limit any lag is accepted.
    none.wait_for_more(replica.addr, "ok", 2.0);
    none.wait(replica.addr, "up", "ok");
    assert_eq!(
        none.status(replica.addr)["last_check"]["lag_bytes"],
        serde_json::Value::Null
    );
}

/// A server that takes no sessions yet is alive, and gets none.
#[test]
fn a_server_that_is_not_ready_is_loading() {
    let primary = primary();
    let replica = Postgres::replica_of(&primary, &["hot_standby=off"]);
    let asks = setup(
        &[replica.addr],
        "",
        &format!("role = \"replica\"\n{MONITOR}"),
    );
    let saw = asks.wait(replica.addr, "down", "loading");
    assert!(saw.starts_with("FATAL 57P03: "), "{saw}");
    for check in ["", "user = \"monitor\"\nlogin = false"] {
        let looks = setup(&[replica.addr, primary.addr], "", check);
        let saw = looks.wait(replica.addr, "down", "loading");
        assert!(saw.starts_with("FATAL 57P03: "), "{saw}");
        assert_eq!(looks.wait(primary.addr, "up", "ok"), "it lets in");
    }
}

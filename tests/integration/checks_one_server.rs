//! One server that is reached in several ways is one primary.

use crate::{
    checks_mysql::CHECK,
    checks_redis::replicate,
    harness::{
        mariadb::MariaDb, ports, postgres::Postgres, programs::Redis, secs, tembuku::Tembuku,
        wait_until,
    },
};
use std::net::SocketAddr;

/// Two names for one address, and another address of the same server.
fn ways(server: SocketAddr) -> [String; 3] {
    ["127.0.0.1", "localhost", "127.0.8.1"].map(|host| format!("{host}:{}", server.port()))
}

fn start(server: SocketAddr, check: &str) -> Tembuku {
    let backends = ways(server).map(|way| format!("\"{way}\"")).join(", ");
    Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{}\"\nupstream = \"u\"\n[upstreams.u]\nbackends = [{backends}]\n\
         [upstreams.u.check]\nrole = \"primary\"\ninterval = \"200ms\"\n{check}\n",
        ports::free_addr()
    ))
}

/// That all ways to the server are up for some checks, and nothing was warned of.
#[track_caller]
fn assert_one(tembuku: &Tembuku, server: SocketAddr) {
    for way in ways(server) {
        let labels = [("backend", &*way), ("result", "ok")];
        let before = tembuku.metrics().sum("check_results_total", &labels);
        tembuku.wait_metric("check_results_total", &labels, |n| n >= before + 4.0);
        let labels = [("backend", &*way), ("state", "up")];
        assert_eq!(tembuku.metric("backend_state", &labels), 1.0, "{way}");
    }
    assert_eq!(tembuku.metric("upstream_primaries", &[]), 1.0);
    let log = tembuku.proc.stderr();
    assert!(!log.contains("two primaries reported"), "{log}");
}

#[test]
fn a_redis_under_two_names_and_two_addresses() {
    let addr = ports::free_addr();
    let server = Redis::start_with(addr, &["--bind", "127.0.0.1", "127.0.8.1"]);
    let tembuku = start(addr, "kind = \"redis\"");
    assert_one(&tembuku, addr);
    // With the first replica its replication gets another name.
    let replica = Redis::start(ports::free_addr());
    replicate(&replica, &server);
    wait_until("there is a replica", secs(30), || {
        crate::checks_redis::info(addr, "replication").contains("state=online")
    });
    assert_one(&tembuku, addr);
}

#[test]
fn a_postgres_under_two_names_and_two_addresses() {
    let server = Postgres::start_with(&["listen_addresses=127.0.0.1,127.0.8.1"], "");
    server.sql("create role monitor login");
    let tembuku = start(server.addr, "kind = \"postgres\"\nuser = \"postgres\"");
    assert_one(&tembuku, server.addr);
}

#[test]
fn a_mariadb_under_two_names_and_two_addresses() {
    let server = MariaDb::start_with(ports::free_addr(), &["--bind-address=0.0.0.0"]);
    server.sql(CHECK);
    let tembuku = start(server.addr, "kind = \"mysql\"\nuser = \"check\"");
    assert_one(&tembuku, server.addr);
}

/// A standby that was promoted beside its primary has the same data and the same system identifier:
/// two primaries.
#[test]
fn two_servers_with_the_same_data_are_two() {
    let one = Postgres::start();
    let other = Postgres::replica_of(&one, &[]);
    other.promote();
    let tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [\"{}\", \"{}\"]\n\
         [upstreams.u.check]\nkind = \"postgres\"\nuser = \"postgres\"\nrole = \"primary\"\n\
         interval = \"200ms\"\n",
        ports::free_addr(),
        one.addr,
        other.addr
    ));
    tembuku.wait_metric("upstream_primaries", &[], |n| n == 2.0);
    let labels = [("backend", &*one.addr.to_string()), ("state", "wrong_role")];
    tembuku.wait_metric("backend_state", &labels, |is| is == 1.0);
}

//! PostgreSQL behind it: pgbench with lasting connections and with one per transaction, and a large
//! result.

use crate::harness::{
    ports,
    postgres::{Postgres, postgres_client, psql},
    proc::{run, run_ok, text},
    secs,
    tembuku::Tembuku,
};
use std::net::SocketAddr;

#[track_caller]
fn pgbench(addr: SocketAddr, options: &str) -> String {
    let mut command = postgres_client("pgbench", addr);
    command.args(options.split(' '));
    let output = run(secs(120), command);
    let report = text(&output);
    assert!(
        output.status.success(),
        "pgbench {options}: {}\n{report}",
        output.status
    );
    report
}

#[track_caller]
fn assert_complete(report: &str, transactions: usize) {
    let complete =
        format!("number of transactions actually processed: {transactions}/{transactions}");
    assert!(report.contains(&complete), "{report}");
    assert!(
        report.contains("number of failed transactions: 0 "),
        "{report}"
    );
}

#[test]
fn pgbench_and_a_large_result() {
    let postgres = Postgres::start();
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[listeners.db]\nbind = \"{front}\"\nupstream = \"pg\"\n\
         [upstreams.pg]\nbackends = [\"{}\"]\n",
        postgres.addr
    ));

    pgbench(front, "-i -q -s 2");
    assert_complete(&pgbench(front, "-n -c 8 -j 2 -t 250"), 2_000);
    assert_complete(&pgbench(front, "-n -c 8 -j 2 -t 200 -S -M prepared"), 1_600);
    // A connection for every transaction.
    assert_complete(&pgbench(front, "-n -C -c 8 -j 2 -t 30 -S"), 240);
    tembuku.wait_idle();
    let metrics = tembuku.metrics();
    assert!(metrics.sum("listener_connections_total", &[("listener", "db")]) >= 240.0);
    assert_eq!(metrics.sum("backend_connect_errors_total", &[]), 0.0);

    let rows = |addr| {
        let mut command = psql(addr);
        command.args([
            "-c",
            "select i, repeat(md5(i::text), 4) from generate_series(1, 60000) i",
        ]);
        run_ok(secs(60), command)
    };
    let (direct, relayed) = (rows(postgres.addr), rows(front));
    assert!(relayed.len() > 8_000_000, "{} bytes", relayed.len());
    assert!(
        relayed == direct,
        "{} bytes relayed, {} direct",
        relayed.len(),
        direct.len()
    );

    // The other way round: megabytes towards the server.
    let mut command = psql(front);
    command.args(["-c", "create table big (t text)"]);
    run_ok(secs(10), command);
    let mut command = psql(front);
    command.args([
        "-c",
        "\\copy big from program 'yes 0123456789abcdef0123456789abcdef | head -n 150000'",
    ]);
    command.args([
        "-c",
        "select count(*), count(distinct t), sum(length(t)) from big",
    ]);
    assert_eq!(run_ok(secs(60), command).trim(), "150000|1|4800000");
}

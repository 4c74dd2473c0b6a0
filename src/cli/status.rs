//! `tembuku status`: listeners, upstreams and backends of a running process.

use super::{
    client::{AdminClient, At, Readiness},
    code, complain, print,
    table::{Row, table, terminal_width},
};
use crate::{
    admin::{
        Availability, OperatorSettings, availability, earlier_settings, explain, listener_name,
        load, reasons, size, span,
    },
    cli::response::{self, Backend, Listener, clean, clean_lines},
    plan::counted,
};
use clap::Args;
use std::{process::ExitCode, time::Duration};

#[derive(Debug, Args)]
pub(super) struct Status {
    /// All there is to know, as /api/v1/status has it
    #[arg(long)]
    json: bool,
    /// Only whether this node should get clients, whatever the state of its backends; exit code 1
    /// with the reasons if not
    #[arg(long, conflicts_with = "json")]
    node: bool,
    #[command(flatten)]
    pub(super) at: At,
}

pub(super) fn run(args: &Status) -> ExitCode {
    if args.node {
        return node(&args.at);
    }
    let status = AdminClient::find(&args.at).and_then(|client| client.status());
    let shown = status.map(|(status, sent)| match args.json {
        true => sent,
        false => text(&status, terminal_width()),
    });
    code(shown.and_then(|shown| print(&shown)))
}

/// The answer goes to standard output, also when the node is not ready.
fn node(at: &At) -> ExitCode {
    match AdminClient::find(at).and_then(|client| client.node_readiness()) {
        Ok(Readiness { is_ready, text }) => match print(&clean_lines(&text)) {
            Ok(()) if is_ready => ExitCode::SUCCESS,
            written => {
                written.unwrap_or_else(|why| complain(&why));
                ExitCode::FAILURE
            }
        },
        Err(why) => code(Err(why)),
    }
}

fn text(status: &response::Status, width: Option<usize>) -> String {
    let p = &status.process;
    let protocols = status.listeners.iter().map(|l| l.protocol.as_str());
    let nodes = match p.nodes {
        0 | 1 => String::new(),
        nodes => format!("with the limits of one of {nodes} nodes\n"),
    };
    let mut out = format!(
        "tembuku {}: {}, pid {}, up {}\n{}, configuration {}\n{nodes}",
        clean(&p.version),
        clean(&p.state),
        p.pid,
        humantime::format_duration(Duration::from_secs(p.uptime_seconds)),
        load(
            p.connections,
            p.max_connections,
            p.flows,
            p.max_flows,
            protocols
        ),
        clean(&p.config_hash),
    );
    if let Some(previous) = &p.previous {
        out += &format!(
            "previous: pid {}, {}, {}, since {}\n",
            previous.pid,
            counted(previous.connections, "connection"),
            counted(previous.flows, "flow"),
            clean(&previous.since)
        );
    }
    out.push('\n');
    let mut rows = vec![Row::of(
        ["listener", "protocol", "upstream"],
        ["sessions", "total", "in", "out"],
        ["address"],
    )];
    rows.extend(status.listeners.iter().map(|l| {
        Row::of(
            [&listener_name(&l.name, l.removed), &l.protocol, &l.upstream].map(|word| clean(word)),
            [
                l.connections.to_string(),
                l.accepted.to_string(),
                size(l.received_bytes),
                size(l.sent_bytes),
            ],
            [clean(&l.addresses.join(", "))],
        )
    }));
    out += &table(&rows, width);
    for l in &status.listeners {
        if let Some(text) = earlier_settings(l.older_plan) {
            out += &format!("listener {}: {text}\n", clean(&l.name));
        }
    }
    out += &datagrams(&status.listeners, width);
    for u in &status.upstreams {
        out += &format!(
            "\nupstream {}: {}, {}\n",
            clean(&u.name),
            clean(&u.balance),
            availability(&Availability {
                available: u.available,
                total: u.named(),
                full: u.full,
                unproven: u.unproven,
                unchecked: u.unchecked(),
                queued: u.queued,
                held: u.held,
            })
        );
        if let Some(discovery) = &u.discovery {
            out += &format!("{}\n", discovery.text());
        }
        let mut rows = vec![Row::of(
            ["backend", "state", "for"],
            ["sessions", "total", "weight"],
            ["role", "check", "why"],
        )];
        rows.extend(u.backends.iter().map(backend));
        out += &table(&rows, width);
    }
    out
}

/// The datagrams of UDP listeners, if there are any.
fn datagrams(listeners: &[Listener], width: Option<usize>) -> String {
    let mut rows = vec![Row::of(
        ["datagrams"],
        ["received", "sent", "dropped", "unanswered"],
        ["for what reason"],
    )];
    rows.extend(listeners.iter().filter_map(|l| {
        let d = l.datagrams.as_ref()?;
        let dropped = d.dropped_by_reason.iter();
        let dropped = dropped.map(|(word, n)| (word.as_str(), *n));
        Some(Row::of(
            [clean(&l.name)],
            [d.received, d.sent, d.dropped, d.unanswered_flows].map(|n| n.to_string()),
            [clean(&dashed(reasons(dropped)))],
        ))
    }));
    match rows.len() {
        1 => String::new(),
        _ => format!("\n{}", table(&rows, width)),
    }
}

fn backend(b: &Backend) -> Row {
    let backup = if b.backup { " (backup)" } else { "" };
    let settings = OperatorSettings {
        admin_state_since: b.admin_state_since.as_deref(),
        weight: b.weight,
        weight_in_file: b.weight_in_file,
        weight_since: b.weight_since.as_deref(),
    };
    let check = b.last_check.as_ref().map(|check| clean(&check.result));
    Row::of(
        [
            clean(&b.address) + backup,
            clean(&b.state),
            b.state_seconds.map_or_else(|| "-".to_owned(), span),
        ],
        [b.connections, b.connections_total, b.weight].map(|n| n.to_string()),
        [
            dashed(clean(&b.role.join(", "))),
            dashed(check.unwrap_or_default()),
            clean(&explain(&b.why, &settings)),
        ],
    )
}

/// So that a column which means nothing here is seen to be empty.
fn dashed(text: String) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_stand_below_each_other() {
        let status = json!({
            "process": { "version": "1.2.3", "state": "running", "pid": 7, "uptime_seconds": 3725,
                "connections": 5, "max_connections": 100, "flows": 20, "max_flows": 30,
                "config_hash": "0123456789abcdef", "nodes": 3,
                "previous": { "pid": 6, "since": "T0", "connections": 3, "flows": 2 } },
            "listeners": [{ "name": "cache", "protocol": "tcp",
                "addresses": ["0.0.0.0:6379", "unix:/x"],
                "upstream": "redis", "connections": 5, "removed": false, "older_plan": 2,
                "accepted": 12_345, "received_bytes": 1_500, "sent_bytes": 7, "errors_total": 0 },
                { "name": "dns", "protocol": "udp", "addresses": ["0.0.0.0:53"],
                "upstream": "names",
                "connections": 20, "removed": false, "older_plan": 0, "accepted": 100,
                "received_bytes": 3_000, "sent_bytes": 4_000, "errors_total": 0,
                "received_datagrams": 1_000, "sent_datagrams": 980, "dropped_datagrams": 20,
                "unanswered_flows": 3,
                "dropped_by_reason": { "late": 1, "no_backend": 19, "rejected": 0 } },
                { "name": "log", "protocol": "udp", "addresses": ["0.0.0.0:514"],
                "upstream": "names",
                "connections": 0, "removed": false, "older_plan": 0, "accepted": 0,
                "received_bytes": 0, "sent_bytes": 0, "errors_total": 0,
                "received_datagrams": 0, "sent_datagrams": 0, "dropped_datagrams": 0,
                "dropped_by_reason": {} }],
            "upstreams": [{ "name": "redis", "balance": "round_robin", "available": 2, "full": 1,
                "queued": 3, "held": 0, "backends": [
                { "address": "10.0.0.1:6379", "state": "drained", "why": "set by the operator",
                  "awaits_check": false, "available": true, "role": ["primary"],
                  "admin_state": "drain", "last_check": { "result": "ok", "transcript": "" },
                  "state_seconds": 125.4,
                  "weight": 5, "weight_in_file": 1,
                  "weight_since": "T2", "admin_state_since": "T1", "backup": false,
                  "connections": 1_000,
                  "connections_total": 1_234_567, "connect_errors_total": 0, "received_bytes": 0,
                  "sent_bytes": 0 },
                { "address": "unix:/run/\u{1b}[31m", "state": "up", "why": "",
                  "awaits_check": false, "available": true, "role": [], "last_check": null,
                  "admin_state": "ready", "weight": 65_535, "weight_in_file": 65_535,
                  "weight_since": null, "admin_state_since": null, "backup": true, "connections": 0,
                  "connections_total": 0, "connect_errors_total": 0, "received_bytes": 0,
                  "sent_bytes": 0 },
            ] }],
        });
        let expected = "\
tembuku 1.2.3: running, pid 7, up 1h 2m 5s
5 of 100 connections, 20 of 30 flows, configuration 0123456789abcdef
with the limits of one of 3 nodes
previous: pid 6, 3 connections, 2 flows, since T0

listener  protocol  upstream  sessions  total       in      out  address
cache     tcp       redis            5  12345  1.5 KiB      7 B  0.0.0.0:6379, unix:/x
dns       udp       names           20    100  2.9 KiB  3.9 KiB  0.0.0.0:53
log       udp       names            0      0      0 B      0 B  0.0.0.0:514
listener cache: 2 sessions with earlier settings

datagrams  received  sent  dropped  unanswered  for what reason
dns            1000   980       20           3  no_backend 19, late 1
log               0     0        0           0  -

upstream redis: round_robin, 2 of 2 available, 1 full, 3 queued
backend                   state    for    sessions    total  weight  role     check  why
10.0.0.1:6379             drained  2m 5s      1000  1234567       5  primary  ok     set by the operator; \
since T1; weight 5 by operator, 1 in the file, since T2
unix:/run/\u{fffd}[31m (backup)  up       -             0        0   65535  -        -
";
        let status = response::read(&status.to_string()).expect("every field");
        assert_eq!(text(&status, None), expected);
    }
}

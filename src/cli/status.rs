//! `tembuku status`: listeners, upstreams and backends of a running process.

use super::{
    client::{At, Client},
    complain, say,
};
use crate::admin::{load, reasons, size};
use clap::Args;
use serde_json::Value;
use std::{process::ExitCode, time::Duration};

#[derive(Debug, Args)]
pub(super) struct Status {
    /// All there is to know, as /api/v1/status has it
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(super) at: At,
}

pub(super) fn run(args: &Status) -> ExitCode {
    let told = Client::find(&args.at).and_then(|client| match args.json {
        true => client.get_text("/api/v1/status"),
        false => client.get("/api/v1/status").map(|status| text(&status)),
    });
    match told {
        Ok(text) => {
            say(&text);
            ExitCode::SUCCESS
        }
        Err(why) => {
            complain(&why);
            ExitCode::FAILURE
        }
    }
}

fn text(status: &Value) -> String {
    let p = &status["process"];
    let up = Duration::from_secs(number(p, "uptime_seconds"));
    let listeners = list(status, "listeners");
    let mut out = format!(
        "tembuku {}: {}, pid {}, up {}, {}\n\n",
        word(p, "version"),
        word(p, "state"),
        number(p, "pid"),
        humantime::format_duration(up),
        load(
            number(p, "connections"),
            number(p, "max_connections"),
            number(p, "flows"),
            number(p, "max_flows"),
            listeners
                .iter()
                .map(|l| l["protocol"].as_str().unwrap_or_default()),
        ),
    );
    let mut rows = vec![Row::of(
        ["listener", "protocol", "upstream"],
        ["sessions", "accepted", "received", "sent"],
        ["address"],
    )];
    rows.extend(listeners.iter().map(|l| {
        Row::of(
            ["name", "protocol", "upstream"].map(|key| word(l, key)),
            [
                number(l, "connections").to_string(),
                number(l, "accepted").to_string(),
                size(number(l, "received_bytes")),
                size(number(l, "sent_bytes")),
            ],
            [words(l, "addresses")],
        )
    }));
    out += &table(&rows);
    out += &datagrams(listeners);
    for u in list(status, "upstreams") {
        let backends = list(u, "backends");
        out += &format!(
            "\nupstream {}: {}, {} of {} available\n",
            word(u, "name"),
            word(u, "balance"),
            number(u, "available"),
            backends.len()
        );
        let mut rows = vec![Row::of(
            ["backend", "state"],
            ["sessions", "weight"],
            ["role", "check", "why"],
        )];
        rows.extend(backends.iter().map(backend));
        out += &table(&rows);
    }
    out
}

/// Of listeners of UDP, if there are any.
fn datagrams(listeners: &[Value]) -> String {
    let mut rows = vec![Row::of(
        ["datagrams"],
        ["received", "sent", "dropped"],
        ["for what reason"],
    )];
    let udp = listeners.iter().filter(|l| l["protocol"] == "udp");
    rows.extend(udp.map(|l| {
        let dropped = l["dropped_by_reason"].as_object().into_iter().flatten();
        let dropped = dropped.map(|(word, n)| (word.as_str(), n.as_u64().unwrap_or_default()));
        Row::of(
            [word(l, "name")],
            ["received_datagrams", "sent_datagrams", "dropped_datagrams"]
                .map(|key| number(l, key).to_string()),
            [clean(&dashed(reasons(dropped)))],
        )
    }));
    match rows.len() {
        1 => String::new(),
        _ => format!("\n{}", table(&rows)),
    }
}

fn backend(b: &Value) -> Row {
    let backup = match b["backup"] == true {
        true => " (backup)",
        false => "",
    };
    Row::of(
        [word(b, "address") + backup, word(b, "state")],
        ["connections", "weight"].map(|key| number(b, key).to_string()),
        [
            dashed(words(b, "role")),
            dashed(word(&b["last_check"], "result")),
            word(b, "why"),
        ],
    )
}

/// Names, then figures, which stand on the right, then words again.
struct Row(Vec<(String, bool)>);

impl Row {
    fn of<const A: usize, const B: usize, const C: usize>(
        names: [impl Into<String>; A],
        figures: [impl Into<String>; B],
        words: [impl Into<String>; C],
    ) -> Self {
        let left = |text: String| (text, false);
        let names = names.into_iter().map(Into::into).map(left);
        let figures = figures.into_iter().map(|text| (text.into(), true));
        let words = words.into_iter().map(Into::into).map(left);
        Self(names.chain(figures).chain(words).collect())
    }
}

fn table(rows: &[Row]) -> String {
    let columns = rows.first().map_or(0, |row| row.0.len());
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row.0[column].0.chars().count());
        cells.max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cells = row.0.iter().zip(&widths).map(|((text, right), width)| {
            if *right {
                format!("{text:>width$}")
            } else {
                format!("{text:<width$}")
            }
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        out += line.trim_end();
        out.push('\n');
    }
    out
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], |list| &list[..])
}

fn word(value: &Value, key: &str) -> String {
    clean(value[key].as_str().unwrap_or_default())
}

fn words(value: &Value, key: &str) -> String {
    let words: Vec<&str> = list(value, key).iter().filter_map(Value::as_str).collect();
    clean(&words.join(", "))
}

/// What is named in a configuration may be meant to steer the terminal.
fn clean(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_default()
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
                "connections": 5, "max_connections": 100, "flows": 20, "max_flows": 30 },
            "listeners": [{ "name": "cache", "protocol": "tcp", "addresses": ["0.0.0.0:6379", "unix:/x"],
                "upstream": "redis", "connections": 5, "accepted": 12_345, "received_bytes": 1_500, "sent_bytes": 7 },
                { "name": "dns", "protocol": "udp", "addresses": ["0.0.0.0:53"], "upstream": "names",
                "connections": 20, "accepted": 100, "received_bytes": 3_000, "sent_bytes": 4_000,
                "received_datagrams": 1_000, "sent_datagrams": 980, "dropped_datagrams": 20,
                "dropped_by_reason": { "late": 1, "no_backend": 19, "rejected": 0 } },
                { "name": "log", "protocol": "udp", "addresses": ["0.0.0.0:514"], "upstream": "names" }],
            "upstreams": [{ "name": "redis", "balance": "round_robin", "available": 1, "backends": [
                { "address": "10.0.0.1:6379", "state": "drained", "why": "the operator says so", "role": ["primary"],
                  "last_check": { "result": "ok" }, "weight": 1, "backup": false, "connections": 1_000 },
                { "address": "unix:/run/\u{1b}[31m", "state": "up", "why": "", "role": [], "last_check": null,
                  "weight": 65_535, "backup": true, "connections": 0 },
            ] }],
        });
        let expected = "\
tembuku 1.2.3: running, pid 7, up 1h 2m 5s, 5 of 100 connections, 20 of 30 flows

listener  protocol  upstream  sessions  accepted  received     sent  address
cache     tcp       redis            5     12345   1.5 KiB      7 B  0.0.0.0:6379, unix:/x
dns       udp       names           20       100   2.9 KiB  3.9 KiB  0.0.0.0:53
log       udp       names            0         0       0 B      0 B  0.0.0.0:514

datagrams  received  sent  dropped  for what reason
dns            1000   980       20  no_backend 19, late 1
log               0     0        0  -

upstream redis: round_robin, 1 of 2 available
backend                   state    sessions  weight  role     check  why
10.0.0.1:6379             drained      1000       1  primary  ok     the operator says so
unix:/run/\u{fffd}[31m (backup)  up              0   65535  -        -
";
        assert_eq!(text(&status), expected);
    }

    /// Another version may say other things: that is no reason to fail.
    #[test]
    fn nothing_is_taken_for_granted() {
        for odd in [
            json!(null),
            json!([]),
            json!({ "upstreams": [1], "listeners": "x" }),
        ] {
            assert!(text(&odd).starts_with("tembuku "), "{odd}");
        }
    }
}

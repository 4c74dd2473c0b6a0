//! Answers of a running process. One that lacks a field by which a command decides, or which says
//! what it is about, is an error, not a success with nothing in it. The other fields may be
//! missing, and there may be more: the program on disk is often newer than the process, before an
//! upgrade above all. A field that is added later is always one of those.

use crate::{
    admin::{SourceFigures, source_text},
    config::text::shorten::shorten,
    plan::no_backend_left,
};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;
use std::{collections::BTreeMap, time::Duration};

/// `GET /api/v1/status`.
#[derive(Debug, Deserialize)]
pub(super) struct Status {
    pub(super) process: Process,
    pub(super) listeners: Vec<Listener>,
    pub(super) upstreams: Vec<Upstream>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Process {
    pub(super) version: String,
    pub(super) state: String,
    pub(super) pid: u32,
    #[serde(default)]
    pub(super) uptime_seconds: u64,
    pub(super) connections: u64,
    #[serde(default)]
    pub(super) max_connections: u64,
    pub(super) flows: u64,
    #[serde(default)]
    pub(super) max_flows: u64,
    #[serde(default)]
    pub(super) config_hash: String,
    #[serde(default)]
    pub(super) nodes: u64,
    pub(super) previous: Option<Previous>,
}

/// The process that this one has replaced.
#[derive(Debug, Deserialize)]
pub(super) struct Previous {
    pub(super) pid: u32,
    #[serde(default)]
    pub(super) since: String,
    #[serde(default)]
    pub(super) connections: u64,
    #[serde(default)]
    pub(super) flows: u64,
}

#[derive(Debug, Deserialize)]
#[serde(from = "AnyListener")]
pub(super) struct Listener {
    pub(super) name: String,
    pub(super) protocol: String,
    pub(super) addresses: Vec<String>,
    pub(super) upstream: String,
    pub(super) connections: u64,
    pub(super) removed: bool,
    pub(super) older_plan: u64,
    pub(super) accepted: u64,
    pub(super) received_bytes: u64,
    pub(super) sent_bytes: u64,
    pub(super) errors_total: u64,
    /// What a UDP listener counts besides.
    pub(super) datagrams: Option<Datagrams>,
}

#[derive(Debug)]
pub(super) struct Datagrams {
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) dropped: u64,
    pub(super) unanswered_flows: u64,
    pub(super) dropped_by_reason: BTreeMap<String, u64>,
}

/// A listener as JSON has it: with the fields of a UDP listener beside the others.
#[derive(Deserialize)]
struct AnyListener {
    name: String,
    protocol: String,
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    upstream: String,
    connections: u64,
    #[serde(default)]
    removed: bool,
    #[serde(default)]
    older_plan: u64,
    #[serde(default)]
    accepted: u64,
    #[serde(default)]
    received_bytes: u64,
    #[serde(default)]
    sent_bytes: u64,
    #[serde(default)]
    errors_total: u64,
    #[serde(default)]
    received_datagrams: u64,
    #[serde(default)]
    sent_datagrams: u64,
    #[serde(default)]
    dropped_datagrams: u64,
    #[serde(default)]
    unanswered_flows: u64,
    #[serde(default)]
    dropped_by_reason: BTreeMap<String, u64>,
}

impl From<AnyListener> for Listener {
    fn from(any: AnyListener) -> Self {
        let datagrams = (any.protocol == "udp").then_some(Datagrams {
            received: any.received_datagrams,
            sent: any.sent_datagrams,
            dropped: any.dropped_datagrams,
            unanswered_flows: any.unanswered_flows,
            dropped_by_reason: any.dropped_by_reason,
        });
        Self {
            name: any.name,
            protocol: any.protocol,
            addresses: any.addresses,
            upstream: any.upstream,
            connections: any.connections,
            removed: any.removed,
            older_plan: any.older_plan,
            accepted: any.accepted,
            received_bytes: any.received_bytes,
            sent_bytes: any.sent_bytes,
            errors_total: any.errors_total,
            datagrams,
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Upstream {
    pub(super) name: String,
    #[serde(default)]
    pub(super) balance: String,
    #[serde(default)]
    pub(super) available: u64,
    #[serde(default)]
    pub(super) full: u64,
    #[serde(default)]
    pub(super) unproven: u64,
    #[serde(default)]
    pub(super) queued: u64,
    #[serde(default)]
    pub(super) held: u64,
    /// Its source of backends, if it has one.
    #[serde(default)]
    pub(super) discovery: Option<Discovery>,
    pub(super) backends: Vec<Backend>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Discovery {
    pub(super) kind: String,
    #[serde(default)]
    pub(super) backends: u64,
    #[serde(default)]
    pub(super) version: String,
    pub(super) age_seconds: Option<u64>,
    #[serde(default)]
    pub(super) is_old: bool,
    pub(super) error: Option<String>,
    #[serde(default)]
    pub(super) held: Vec<Held>,
}

impl Discovery {
    /// The state of the source in a line, for a terminal.
    pub(super) fn text(&self) -> String {
        let held = self.held.iter();
        clean(&source_text(&SourceFigures {
            kind: &self.kind,
            backends: self.backends,
            version: &self.version,
            age_seconds: self.age_seconds,
            is_old: self.is_old,
            error: self.error.as_deref(),
            held: held.map(|held| (held.address.as_str(), held.until.as_deref())),
        }))
    }
}

impl Upstream {
    /// How many of its backends the configuration or its source has.
    pub(super) fn named(&self) -> usize {
        let named = self.backends.iter().filter(|b| b.state != "removed");
        named.count()
    }

    /// How many backends no session gets because no check of them has had a result yet.
    pub(super) fn unchecked(&self) -> usize {
        let awaited = self.backends.iter().filter(|b| {
            b.awaits_check && !b.available && b.admin_state == "ready" && b.state == "down"
        });
        awaited.count()
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Held {
    pub(super) address: String,
    pub(super) until: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Backend {
    pub(super) address: String,
    /// Whether it comes from a source and not from the file.
    #[serde(default)]
    pub(super) discovered: bool,
    pub(super) state: String,
    #[serde(default)]
    pub(super) why: String,
    pub(super) admin_state: String,
    /// Whether its check has not had a result yet.
    pub(super) awaits_check: bool,
    /// Whether it takes sessions, and its connects have not failed.
    #[serde(default)]
    pub(super) available: bool,
    #[serde(default)]
    pub(super) full: bool,
    #[serde(default)]
    pub(super) role: Vec<String>,
    pub(super) last_check: Option<LastCheck>,
    #[serde(default)]
    pub(super) weight: u64,
    #[serde(default)]
    pub(super) weight_in_file: u64,
    pub(super) weight_since: Option<String>,
    pub(super) admin_state_since: Option<String>,
    /// For how long it has been in its state.
    #[serde(default)]
    pub(super) state_seconds: Option<f64>,
    #[serde(default)]
    pub(super) backup: bool,
    pub(super) connections: u64,
    #[serde(default)]
    pub(super) connections_total: u64,
    #[serde(default)]
    pub(super) connect_errors_total: u64,
    #[serde(default)]
    pub(super) received_bytes: u64,
    #[serde(default)]
    pub(super) sent_bytes: u64,
}

fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    Option::deserialize(from)
}

#[derive(Debug, Deserialize)]
pub(super) struct LastCheck {
    pub(super) result: String,
    #[serde(default)]
    pub(super) transcript: String,
}

/// `GET /api/v1/history`, as far as a command needs it.
#[derive(Debug, Deserialize)]
pub(super) struct History {
    pub(super) listeners: Vec<ListenerHistory>,
    pub(super) backends: Vec<BackendHistory>,
}

#[derive(Debug, Deserialize)]
pub(super) struct ListenerHistory {
    pub(super) name: String,
    #[serde(flatten)]
    pub(super) rates: RateHistory,
}

#[derive(Debug, Deserialize)]
pub(super) struct BackendHistory {
    pub(super) upstream: String,
    pub(super) backend: String,
    #[serde(flatten)]
    pub(super) rates: RateHistory,
}

/// Per second, the latest last.
#[derive(Debug, Deserialize)]
pub(super) struct RateHistory {
    pub(super) connects: Vec<f64>,
    pub(super) received: Vec<f64>,
    pub(super) sent: Vec<f64>,
    pub(super) errors: Vec<f64>,
}

/// The answer to a change of the operator's setting.
#[derive(Debug, Deserialize)]
pub(super) struct AdminChange {
    pub(super) upstream: String,
    pub(super) backend: String,
    pub(super) admin_state: String,
    pub(super) from: String,
    pub(super) state: String,
    pub(super) connections: u64,
    /// When its sessions are terminated; `None`: they end by themselves.
    #[serde(default)]
    pub(super) close_after_seconds: Option<f64>,
    /// What becomes of new sessions while no backend takes any.
    #[serde(default)]
    pub(super) without_backend: Option<WithoutBackend>,
}

#[derive(Debug, Deserialize)]
pub(super) struct WithoutBackend {
    /// How long they wait for one; 0: they are refused.
    hold_timeout_seconds: f64,
}

impl WithoutBackend {
    pub(super) fn warning(&self, upstream: &str) -> String {
        let wait = Duration::try_from_secs_f64(self.hold_timeout_seconds);
        no_backend_left(&clean(upstream), wait.unwrap_or(Duration::MAX))
    }
}

/// A line of `GET /api/v1/sessions`.
#[derive(Debug, Deserialize)]
pub(super) struct Session {
    pub(super) id: u64,
    pub(super) listener: String,
    pub(super) client: String,
    #[serde(default)]
    pub(super) peer: String,
    #[serde(default)]
    pub(super) upstream: String,
    pub(super) backend: Option<String>,
    pub(super) backend_port: Option<u16>,
    pub(super) state: String,
    #[serde(default)]
    pub(super) age_seconds: f64,
    #[serde(default)]
    pub(super) idle_seconds: f64,
    #[serde(default)]
    pub(super) received_bytes: u64,
    #[serde(default)]
    pub(super) sent_bytes: u64,
}

/// The line after the last session.
#[derive(Debug, Deserialize)]
pub(super) struct SessionsEnd {
    pub(super) count: u64,
    pub(super) more: bool,
}

/// The answer to a change of the node as a whole.
#[derive(Debug, Deserialize)]
pub(super) struct NodeChange {
    pub(super) admin_state: String,
    pub(super) from: String,
    /// Connections and flows.
    pub(super) connections: u64,
}

/// The answer to a change of a weight.
#[derive(Debug, Deserialize)]
pub(super) struct WeightChange {
    pub(super) upstream: String,
    pub(super) backend: String,
    pub(super) from: u64,
    pub(super) weight: u64,
    pub(super) weight_in_file: u64,
    pub(super) by_operator: bool,
    #[serde(default)]
    pub(super) without_backend: Option<WithoutBackend>,
}

/// The answers for every upstream that has an address.
#[derive(Debug, Deserialize)]
pub(super) struct AdminChanges {
    pub(super) changes: Vec<AdminChange>,
}

/// A page of the journal.
#[derive(Debug, Deserialize)]
pub(super) struct Events {
    /// As they were sent; see [`Event`].
    pub(super) events: Vec<Value>,
    pub(super) cursor: String,
    pub(super) lost: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Event {
    pub(super) number: u64,
    pub(super) kind: String,
    pub(super) time: String,
    pub(super) upstream: String,
    pub(super) backend: String,
    pub(super) address: String,
    pub(super) from: String,
    pub(super) to: String,
    pub(super) reason: String,
    #[serde(deserialize_with = "present")]
    pub(super) transcript: Option<String>,
    pub(super) doubt_seconds: f64,
    pub(super) sessions: u64,
    #[serde(deserialize_with = "present")]
    pub(super) last_session_closed_seconds: Option<f64>,
    #[serde(deserialize_with = "present")]
    pub(super) next_session_seconds: Option<f64>,
    #[serde(deserialize_with = "present")]
    pub(super) next_session_on: Option<String>,
    #[serde(default)]
    pub(super) next_session_waited_seconds: Option<f64>,
    #[serde(default)]
    pub(super) unserved_clients: Option<u64>,
}

impl Event {
    /// The error is a whole message.
    pub(super) fn read(value: &Value) -> Result<Self, String> {
        Self::deserialize(value).map_err(|why| {
            let why = clean(&why.to_string());
            format!(
                "error: an event of the answer is not as tembuku writes it: {why}\n  hint: is that \
                 the admin socket of a process of this version?\n"
            )
        })
    }
}

/// How far `tembuku kill` is.
#[derive(Debug, Deserialize)]
pub(super) struct Kill {
    pub(super) matched: u64,
    pub(super) terminated: u64,
    pub(super) pending: u64,
    pub(super) done: bool,
}

/// What an upgrade has done.
#[derive(Debug, Deserialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
pub(super) enum UpgradeStep {
    Checked {
        binary: String,
        version: String,
        done: bool,
    },
    Started {
        pid: u32,
    },
    Ready {
        sockets: u64,
        listeners: u64,
    },
    Accepting,
    Sessions {
        taken: u64,
        refused: u64,
    },
    Done {
        pid: u32,
        #[serde(default)]
        sessions_left: u64,
        #[serde(default)]
        flows_left: u64,
    },
    Failed {
        error: String,
        hint: String,
    },
    /// One that this program does not know.
    #[serde(other)]
    Other,
}

/// How far `tembuku rebalance` is.
#[derive(Debug, Deserialize)]
pub(super) struct Rebalance {
    pub(super) backends: Vec<Share>,
    pub(super) wanted: u64,
    pub(super) terminated: u64,
    pub(super) pending: u64,
    pub(super) done: bool,
    pub(super) backends_changed: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct Share {
    pub(super) backend: String,
    pub(super) backend_addr: String,
    pub(super) before: u64,
    pub(super) target: u64,
    pub(super) now: u64,
}

/// What a reload changed, or would change.
#[derive(Debug, Deserialize)]
pub(super) struct ReloadReport {
    pub(super) applied: bool,
    pub(super) file: String,
    pub(super) hash: HashChange,
    pub(super) changes: Vec<ReloadChange>,
    pub(super) warnings: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct HashChange {
    pub(super) before: String,
    pub(super) after: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct ReloadChange {
    pub(super) object: String,
    pub(super) name: String,
    pub(super) change: String,
    pub(super) keys: Vec<ChangedKey>,
    #[serde(deserialize_with = "present")]
    pub(super) sessions: Option<u64>,
    #[serde(default)]
    pub(super) on_removed: Option<String>,
    #[serde(default)]
    pub(super) close_after_seconds: Option<f64>,
    #[serde(deserialize_with = "present")]
    pub(super) moved_share: Option<f64>,
    #[serde(default)]
    pub(super) awaits_check: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct ChangedKey {
    pub(super) key: String,
    #[serde(deserialize_with = "present")]
    pub(super) before: Option<String>,
    #[serde(deserialize_with = "present")]
    pub(super) after: Option<String>,
}

/// Why a reload changed nothing.
#[derive(Debug, Deserialize)]
pub(super) struct ReloadProblems {
    /// Lines in the form of `tembuku check`.
    pub(super) text: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct CommandError {
    pub(super) error: String,
    pub(super) hint: String,
}

/// What is shown of a text that another process sent.
const MOST: usize = 500;

/// What a process sends may be long, and may be meant to steer the terminal.
pub(super) fn clean(text: &str) -> String {
    shorten(text, MOST).replace(char::is_control, "\u{fffd}")
}

/// As [`clean`], for a text of several lines, which is not shortened.
pub(super) fn clean_lines(text: &str) -> String {
    let is_wrong = |c: char| c.is_control() && c != '\n';
    text.replace(is_wrong, "\u{fffd}")
}

/// The error names what is missing or wrong.
pub(super) fn read<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status() -> Value {
        json!({
            "process": { "version": "1.2.3", "state": "running", "pid": 7, "uptime_seconds": 1,
                "connections": 5, "max_connections": 100, "flows": 20, "max_flows": 30,
                "config_hash": "0", "nodes": 1 },
            "listeners": [{ "name": "l", "protocol": "udp", "addresses": [], "upstream": "u",
                "connections": 0, "removed": false, "older_plan": 0, "accepted": 0,
                "received_bytes": 0, "sent_bytes": 0, "errors_total": 0,
                "received_datagrams": 0, "sent_datagrams": 0, "dropped_datagrams": 0,
                "dropped_by_reason": {} }],
            "upstreams": [{ "name": "u", "balance": "first", "available": 1, "full": 0,
                "queued": 0, "held": 0, "backends": [
                { "address": "a:1", "state": "up", "why": "", "admin_state": "ready",
                  "awaits_check": false, "available": true, "role": [],
                  "last_check": null, "weight": 1, "weight_in_file": 1,
                  "weight_since": null, "admin_state_since": null, "backup": false,
                  "connections": 0,
                  "connections_total": 0, "connect_errors_total": 0, "received_bytes": 0,
                  "sent_bytes": 0 } ] }],
        })
    }

    /// Every copy of `value` from which one field, at any depth, is missing.
    fn without_a_field(value: &Value) -> Vec<Value> {
        let mut out = Vec::new();
        match value {
            Value::Object(fields) => {
                for (key, inner) in fields {
                    let mut rest = fields.clone();
                    rest.remove(key);
                    out.push(Value::Object(rest));
                    for less in without_a_field(inner) {
                        let mut changed = fields.clone();
                        changed.insert(key.clone(), less);
                        out.push(Value::Object(changed));
                    }
                }
            }
            Value::Array(items) => {
                for (at, item) in items.iter().enumerate() {
                    for less in without_a_field(item) {
                        let mut changed = items.clone();
                        changed[at] = less;
                        out.push(Value::Array(changed));
                    }
                }
            }
            _ => {}
        }
        out
    }

    /// The fields by which commands decide, or which say what an answer is about.
    const NEEDED: [&str; 14] = [
        "process",
        "listeners",
        "upstreams",
        "backends",
        "name",
        "address",
        "version",
        "state",
        "pid",
        "connections",
        "flows",
        "protocol",
        "admin_state",
        "awaits_check",
    ];

    #[test]
    fn fields_by_which_a_command_decides_are_required_and_others_are_not() {
        assert!(read::<Status>(&status().to_string()).is_ok());
        let lacking = without_a_field(&status());
        let (mut refused, mut taken) = (0, 0);
        for lacking in lacking {
            match read::<Status>(&lacking.to_string()) {
                Ok(_) => taken += 1,
                Err(error) => {
                    let mut needed = NEEDED.iter().map(|f| format!("missing field `{f}`"));
                    assert!(
                        needed.any(|words| error.contains(&words)),
                        "{lacking}: {error}"
                    );
                    refused += 1;
                }
            }
        }
        assert_eq!((refused, taken), (18, 35));
    }

    #[test]
    fn every_field_about_a_change_is_required() {
        let admin_state_changed = json!({ "upstream": "u", "backend": "b",
            "admin_state": "drain", "from": "up", "state": "drained", "connections": 3 });
        assert!(read::<AdminChange>(&admin_state_changed.to_string()).is_ok());
        for lacking in without_a_field(&admin_state_changed) {
            assert!(
                read::<AdminChange>(&lacking.to_string()).is_err(),
                "{lacking}"
            );
        }
        let session = json!({ "id": 1, "listener": "l", "client": "c", "peer": "p",
            "upstream": "u", "backend": null, "backend_port": null, "state": "connecting",
            "age_seconds": 1.5, "idle_seconds": 0.0, "received_bytes": 1, "sent_bytes": 2 });
        assert!(read::<Session>(&session.to_string()).is_ok());
        let refused = without_a_field(&session).into_iter();
        let refused = refused.filter(|lacking| read::<Session>(&lacking.to_string()).is_err());
        assert_eq!(refused.count(), 4);
        let changes = json!({ "changes": [admin_state_changed] });
        assert!(read::<AdminChanges>(&changes.to_string()).is_ok());
        for lacking in without_a_field(&changes) {
            let read = read::<AdminChanges>(&lacking.to_string());
            assert!(read.is_err(), "{lacking}");
        }
        let report = json!({ "applied": true, "file": "f", "warnings": ["w"],
            "hash": { "before": "0", "after": "1" }, "changes": [
            { "object": "backend", "name": "u/a:1", "change": "changed",
              "keys": [{ "key": "weight", "before": null, "after": "1" }],
              "sessions": null, "moved_share": 0.5 }] });
        assert!(read::<ReloadReport>(&report.to_string()).is_ok());
        for lacking in without_a_field(&report) {
            let read = read::<ReloadReport>(&lacking.to_string());
            assert!(read.is_err(), "{lacking}");
        }
    }

    #[test]
    fn other_things_are_no_answers() {
        for text in ["", "{}", "null", "[]", "<!doctype html>", "{\"process\":"] {
            assert!(read::<Status>(text).is_err(), "{text}");
            assert!(read::<AdminChange>(text).is_err(), "{text}");
        }
        assert!(matches!(
            read(r#"{"stage":"later","x":1}"#),
            Ok(UpgradeStep::Other)
        ));
        // A newer process may send more.
        let mut more = status();
        more["process"]["more"] = json!(1);
        assert!(read::<Status>(&more.to_string()).is_ok());
    }
}

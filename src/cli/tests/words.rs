//! Keys, metrics and words that documents name are there; reasons, states, results, metrics and
//! fields that are there are documented.

use super::{
    messages,
    pages::{files, packages, pages},
};
use crate::{
    config,
    plan::reason::{
        BackendState, CheckResult, CloseReason, Condition, ConnectError, DropReason, RejectReason,
        SpliceFallback, WaitResult,
    },
    telemetry::metrics,
};
use serde_json::Value;
use std::collections::BTreeSet;

/// Words of other programs, and a pattern for each family of them.
const FOREIGN: &[&str] = &[
    // PostgreSQL, MySQL, Redis.
    "caching_sha2_password",
    "client_ed25519",
    "innodb_read_only",
    "max_connect_errors",
    "mysql_clear_password",
    "mysql_native_password",
    "pg_stat_activity",
    "pg_stat_wal_receiver",
    "back_log",
    "client_port",
    "read_only",
    "redis_version",
    "restore_command",
    "secure_auth",
    "server_id",
    "super_read_only",
    "superuser_reserved_connections",
    "wal_receiver_timeout",
    "wsrep_on",
    "wsrep_ready",
    // Prometheus.
    "evaluation_interval",
    "scrape_interval",
    // nginx, keepalived, the kernel.
    "limit_conn",
    "limit_conn_dry_run",
    "proxy_download_rate",
    "proxy_upload_rate",
    "worker_shutdown_timeout",
    "tembuku_node",
    "tembuku_ready",
    "advert_int",
    "ip_nonlocal_bind",
    "track_file",
    "track_process",
    "track_script",
];

/// Pages about other programs, whose words stand on them.
const OF_OTHERS: &[&str] = &["docs/coming-from-nginx.md", "docs/coming-from-haproxy.md"];

fn is_word(text: &str) -> bool {
    let mut parts = text.split('_');
    let is_part = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    parts.clone().count() > 1
        && parts.all(is_part)
        && text.starts_with(|c: char| c.is_ascii_lowercase())
}

/// Names and values of the configuration.
fn keys() -> BTreeSet<String> {
    fn collect(value: &Value, words: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                for (name, inner) in fields {
                    if name == "properties"
                        && let Value::Object(keys) = inner
                    {
                        words.extend(keys.keys().cloned());
                    }
                    collect(inner, words);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| collect(item, words)),
            Value::String(word) => drop(words.insert(word.clone())),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
    let mut words = BTreeSet::new();
    collect(&config::schema(), &mut words);
    words
}

/// Identifiers in the source of what prints JSON, and fields of the log.
fn fields() -> BTreeSet<String> {
    let mut words = messages::fields();
    let mut sources = files("src/admin", &[".rs"]);
    sources.extend(files(
        "src/telemetry",
        &["access_log.rs", "text.rs", "families.rs"],
    ));
    sources.extend(files(
        "src/control",
        &["journal.rs", "report.rs", "reload.rs"],
    ));
    for file in [
        "src/control/backend_lifecycle.rs",
        "src/upstream/pool/event.rs",
        "src/cli/explain/json.rs",
        // Words of nginx and HAProxy.
        "src/config/import/nginx/verdicts.rs",
        "src/config/keys/foreign.rs",
    ] {
        sources.extend(files(file, &[""]));
    }
    for source in &sources {
        let identifiers = source
            .text
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let written = identifiers.map(in_small_letters);
        words.extend(written.filter(|word| is_word(word)));
    }
    words
}

/// A variant as JSON has it: `FirstInOrder` as `first_in_order`.
fn in_small_letters(identifier: &str) -> String {
    let mut word = String::new();
    for c in identifier.chars() {
        if c.is_ascii_uppercase() && !word.is_empty() {
            word.push('_');
        }
        word.push(c.to_ascii_lowercase());
    }
    word
}

macro_rules! words_of {
    ($($name:ident),*) => {
        [$(($name::ALL.iter().map(|one| one.word()).collect::<Vec<_>>(), stringify!($name)),)*]
    };
}

/// With the page that has all of them.
fn reasons() -> Vec<(Vec<&'static str>, &'static str, &'static str)> {
    let words = words_of!(
        CloseReason,
        BackendState,
        CheckResult,
        ConnectError,
        DropReason,
        RejectReason,
        SpliceFallback,
        WaitResult
    );
    let page = |name: &str| match name {
        "BackendState" => "docs/failover-and-draining.md",
        _ => "docs/metrics.md",
    };
    words
        .into_iter()
        .map(|(words, name)| (words, name, page(name)))
        .collect()
}

#[test]
fn every_word_that_a_page_names_is_there() {
    let mut known = keys();
    known.extend(fields());
    known.extend(
        reasons()
            .into_iter()
            .flat_map(|(words, ..)| words)
            .map(str::to_owned),
    );
    known.extend(metrics::family_names().map(str::to_owned));
    known.extend(FOREIGN.iter().map(|word| (*word).to_owned()));
    let mut wrong = Vec::new();
    for page in pages() {
        if OF_OTHERS.contains(&&*page.name) {
            continue;
        }
        for span in page.spans() {
            // A word alone, or a key with a value.
            let word = span.text.split(" = ").next().unwrap_or_default();
            let is_meant = is_word(word) && !word.starts_with("tembuku_");
            if is_meant && !known.contains(word) {
                wrong.push(format!("{}: {:?}", span.at, span.text));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A key with a value is one of the configuration.
#[test]
fn every_key_with_a_value_is_one_of_the_configuration() {
    let keys = keys();
    let mut wrong = Vec::new();
    for page in pages()
        .iter()
        .filter(|page| !OF_OTHERS.contains(&&*page.name))
    {
        for span in page.spans() {
            let Some((key, _)) = span.text.split_once(" = ") else {
                continue;
            };
            let is_key = key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            if is_key && !keys.contains(key) && !FOREIGN.contains(&key) {
                wrong.push(format!("{}: {:?}", span.at, span.text));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Also in rules, dashboards and blocks. What ends with an underscore stands for several.
#[test]
fn every_metric_that_is_named_is_there() {
    let families: BTreeSet<&str> = metrics::family_names().collect();
    let mut wrong = Vec::new();
    let mut count = 0;
    for page in pages().into_iter().chain(packages()) {
        for (n, line) in page.text.lines().enumerate() {
            let parts = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let is_name = |name: &&str| {
                name.starts_with("tembuku_")
                    && !name.contains(|c: char| c.is_ascii_uppercase())
                    && !FOREIGN.contains(name)
            };
            for name in parts.filter(is_name) {
                count += 1;
                let ends = ["_bucket", "_count", "_sum"];
                let family = ends.iter().find_map(|end| name.strip_suffix(end));
                let is_there = families.contains(name)
                    || family.is_some_and(|family| families.contains(family))
                    || name.ends_with('_') && families.iter().any(|one| one.starts_with(name));
                if !is_there {
                    wrong.push(format!("{}:{}: {name}", page.name, n + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 100, "only {count} are found");
}

#[test]
fn every_reason_state_result_metric_and_field_is_documented() {
    let pages = pages();
    let spans = |name: &str| {
        let page = pages.iter().find(|page| page.name == name).expect("a page");
        let spans = page.spans().into_iter().map(|span| span.text);
        // Without labels.
        let names = spans.map(|text| text.split('{').next().unwrap_or_default().to_owned());
        names.collect::<BTreeSet<_>>()
    };
    let mut missing = Vec::new();
    for (words, name, page) in reasons() {
        let spans = spans(page);
        let absent = words.into_iter().filter(|word| !spans.contains(*word));
        missing.extend(absent.map(|word| format!("{page}: {name} {word}")));
    }
    let of_metrics = spans("docs/metrics.md");
    let absent = metrics::family_names().filter(|family| !of_metrics.contains(*family));
    missing.extend(absent.map(|family| format!("docs/metrics.md: {family}")));
    let of_logging = spans("docs/logging.md");
    for field in record_fields() {
        if !of_logging.contains(&field) {
            missing.push(format!("docs/logging.md: {field}"));
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// Of the access log.
fn record_fields() -> Vec<String> {
    let source = files("src/telemetry/access_log.rs", &[""]).remove(0).text;
    let record = source
        .split("pub struct AccessRecord<'a> {")
        .nth(1)
        .expect("it is there");
    let lines = record.lines().take_while(|line| *line != "}");
    let names = lines.filter_map(|line| line.trim().strip_prefix("pub ")?.split(':').next());
    let fields: Vec<String> = names.map(str::to_owned).collect();
    assert!(fields.len() > 15, "{fields:?}");
    fields
}

/// An alert on faults names every state that is one.
#[test]
fn alerts_name_every_state_that_is_a_fault() {
    let is_fault = |state: &&BackendState| state.condition() == Condition::Fault;
    let faults = BackendState::ALL.iter().filter(is_fault);
    let faults: BTreeSet<&str> = faults.map(|state| state.word()).collect();
    let mut count = 0;
    for page in pages().into_iter().chain(packages()) {
        let alerts = page.text.split("tembuku_backend_state{state=~\"").skip(1);
        for alert in alerts {
            let states = alert.split('"').next().unwrap_or_default();
            let states: BTreeSet<&str> = states.split('|').collect();
            // There is also one on failed connects alone.
            if !states.contains("unproven") {
                assert_eq!(states, faults, "{}", page.name);
                count += 1;
            }
        }
    }
    assert!(count >= 3, "only {count} are found");
}

#[test]
fn words_are_distinguished_from_text() {
    for (text, is) in [
        ("on_drain", true),
        ("up", false),
        ("a b_c", false),
        ("lag_seconds", true),
        ("_x", false),
        ("x_", false),
        ("A_b", false),
        ("sha2_password", true),
    ] {
        assert_eq!(is_word(text), is, "{text}");
    }
}

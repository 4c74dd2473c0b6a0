//! The configuration as a JSON Schema, for editors: made from the table of keys.

use super::keys::{
    ACCEPT_PROXY, ADMIN, BACKEND, BANDWIDTH, CHECK, CLOSE_AFTER, DEFAULTS, DISCOVER, KEEPALIVE,
    Keys, LISTENER, LOG, PROCESS, ROOT, SOURCE_PREFIX, UPSTREAM,
    row::{Form, Key},
};
use serde_json::{Map, Value, json};

/// A schema of draft 7, which the language servers for TOML know. What depends on more than one
/// value is not in it: `tembuku check` has the last word.
pub fn schema() -> Value {
    let mut schema = table_with(&ROOT, &["listeners"]);
    let root = schema.as_object_mut().expect("a table is an object");
    root.insert(
        "$schema".into(),
        "http://json-schema.org/draft-07/schema#".into(),
    );
    root.insert("title".into(), "tembuku".into());
    schema
}

fn table(keys: &Keys) -> Value {
    let properties: Map<String, Value> = keys
        .keys()
        .map(|key| (key.name.to_owned(), property(key)))
        .collect();
    json!({ "type": "object", "additionalProperties": false, "properties": properties })
}

/// A table in which some keys have to be.
fn table_with(keys: &Keys, required: &[&str]) -> Value {
    let mut table = table(keys);
    table["required"] = json!(required);
    table
}

fn property(key: &Key) -> Value {
    let mut value = match &key.form {
        Form::Flag => json!({ "type": "boolean" }),
        Form::Number(least, most) => {
            json!({ "type": "integer", "minimum": number(*least), "maximum": number(*most) })
        }
        Form::Duration(_) => duration(),
        Form::Size => json!({ "type": "string", "pattern": r"^\s*[0-9]+[kmg]?\s*$" }),
        Form::Word(words) => json!({ "enum": words() }),
        Form::Other(text) => other(key.name, text),
    };
    value["description"] = json!(key.doc);
    if let (false, Form::Flag | Form::Number(..)) = (key.default.is_empty(), &key.form) {
        value["default"] = serde_json::from_str(key.default).unwrap_or_default();
    } else if !key.default.is_empty() && !matches!(key.form, Form::Other(_)) {
        value["default"] = json!(key.default);
    }
    value
}

fn number(number: i128) -> Value {
    i64::try_from(number).map_or(Value::Null, Value::from)
}

fn duration() -> Value {
    let pattern = r"^\s*(([0-9]+\.?[0-9]*|\.[0-9]+)(d|h|ms|m|s|us|ns)\s*)+$";
    json!({ "type": "string", "pattern": pattern })
}

/// The keys that code reads, by their names or by their form in the table.
fn other(name: &str, form: &str) -> Value {
    let text = json!({ "type": "string" });
    let list = json!({ "type": "array", "items": text });
    let any = |alternatives: &[&Value]| json!({ "anyOf": alternatives });
    match (name, form) {
        ("process", _) => table(&PROCESS),
        ("admin", _) => table(&ADMIN),
        ("log", _) => table(&LOG),
        ("defaults", _) => table(&DEFAULTS),
        ("listeners", _) => named(&LISTENER),
        ("upstreams", _) => named(&UPSTREAM),
        ("check", _) => table_with(&CHECK, &["kind"]),
        ("discover", _) => table_with(&DISCOVER, &["kind"]),
        (_, "a duration or \"never\"") => any(&[&json!({ "const": "never" }), &duration()]),
        ("backends", _) => {
            let one = any(&[&text, &table_with(&BACKEND, &["address"])]);
            json!({ "type": "array", "items": one, "minItems": 1 })
        }
        ("keepalive", _) => any(&[&json!({ "const": false }), &table(&KEEPALIVE)]),
        ("accept_proxy", _) => any(&[&json!({ "type": "boolean" }), &table(&ACCEPT_PROXY)]),
        ("source_prefix", _) => table(&SOURCE_PREFIX),
        ("bandwidth" | "bandwidth_per_source" | "bandwidth_total", _) => table(&BANDWIDTH),
        (_, "a rate") => json!({ "type": "string", "pattern": r"^\s*[0-9]+\s*/\s*[sm]\s*$" }),
        (_, "a size in a second") => {
            json!({ "type": "string", "pattern": r"^\s*[0-9]+[kmg]?\s*$" })
        }
        ("status", _) => {
            let status = json!({ "type": ["integer", "string"] });
            any(&[&status, &json!({ "type": "array", "items": status })])
        }
        (_, "\"auto\" or a duration") => any(&[&json!({ "const": "auto" }), &duration()]),
        (_, "a duration") => duration(),
        (_, form) if form.contains("close_after") => {
            let word = json!({ "enum": ["keep", "move", "close"] });
            any(&[&word, &table_with(&CLOSE_AFTER, &["close_after"])])
        }
        (_, form) if form.ends_with("a list of them") || form.contains("or a list") => {
            any(&[&text, &list])
        }
        (_, form) if form.starts_with("a list") => list,
        _ => text,
    }
}

/// Tables of one kind by their names.
fn named(keys: &Keys) -> Value {
    json!({
        "type": "object",
        "additionalProperties": table(keys),
        "minProperties": 1,
        "propertyNames": { "pattern": "^[A-Za-z0-9_.-]{1,64}$" },
    })
}

//! The keys whose values a change of the plan concerns, with both values as `--dump` writes them.

use super::dump;
use crate::plan::{Plan, diff::Change};
use serde::Serialize;
use std::{collections::BTreeMap, fmt};
use toml::{Table, Value};

/// A key of the table that a change concerns; a point stands between the names of inner tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChangedKey {
    pub key: String,
    /// `None`: the old plan does not have the key.
    pub before: Option<String>,
    /// `None`: the new plan does not have the key.
    pub after: Option<String>,
}

/// A plan as `--dump` writes it, to be compared by its keys.
pub struct Dump(Table);

impl Dump {
    pub fn new(plan: &Plan) -> Self {
        // A dump can always be read.
        Self(dump(plan).parse().unwrap_or_default())
    }
}

impl fmt::Display for ChangedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, before, after } = self;
        let text = |value: &'_ Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        write!(f, "{key}: {} -> {}", text(before), text(after))
    }
}

/// Which keys differ between the plans in the table that `change` concerns, in their order by name.
pub fn changed_keys(old: &Dump, new: &Dump, change: &Change) -> Vec<ChangedKey> {
    let (before, after) = (values(old, change), values(new, change));
    let names = before
        .keys()
        .chain(after.keys().filter(|k| !before.contains_key(*k)));
    let mut keys: Vec<ChangedKey> = names
        .map(|key| ChangedKey {
            key: key.clone(),
            before: before.get(key).cloned(),
            after: after.get(key).cloned(),
        })
        .filter(|key| key.before != key.after)
        .collect();
    keys.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    keys
}

/// The keys of the table that `change` concerns.
fn values(Dump(dump): &Dump, change: &Change) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    if let Some(table) = table(dump, change) {
        flatten("", table, &mut values);
    }
    values
}

fn table<'a>(dump: &'a Table, change: &Change) -> Option<&'a Table> {
    let upstream = |name: &str| dump.get("upstreams")?.get(name)?.as_table();
    match change {
        Change::Process(_) => dump.get("process")?.as_table(),
        Change::Admin(_) => dump.get("admin")?.as_table(),
        Change::Log(_) => dump.get("log")?.as_table(),
        Change::Listener(edit) => dump.get("listeners")?.get(&edit.item().name)?.as_table(),
        Change::Upstream(edit) => upstream(&edit.item().name),
        Change::Backend {
            upstream: name,
            edit,
        } => {
            let backends = upstream(name)?.get("backends")?.as_array()?;
            let tables = backends.iter().filter_map(Value::as_table);
            let mut named = tables.filter(|table| address(table) == Some(&edit.item().text));
            named.next()
        }
        Change::NeedsUpgrade(change) => table(dump, change),
    }
}

fn address(backend: &Table) -> Option<&str> {
    backend.get("address")?.as_str()
}

fn flatten(prefix: &str, table: &Table, values: &mut BTreeMap<String, String>) {
    for (key, value) in table {
        let path = format!("{prefix}{key}");
        match value {
            // The settings of each backend are a change of their own.
            Value::Array(backends) if path == "backends" => {
                let tables = backends.iter().filter_map(Value::as_table);
                let addresses = tables.filter_map(|table| table.get("address"));
                let addresses: Value = addresses.cloned().collect::<Vec<_>>().into();
                values.insert(path, addresses.to_string());
            }
            Value::Table(inner) if path == "check" => flatten("check.", inner, values),
            value => {
                values.insert(path, value.to_string());
            }
        }
    }
}

//! The keys whose values a change of the plan concerns, with both values as `--dump` writes them.

use super::{
    dump::{
        admin_keys, backend_keys, check_keys, discover_keys, listener_keys, log_keys, process_keys,
        upstream_keys,
    },
    text::quote::quoted,
};
use crate::plan::{
    Plan, Upstream,
    diff::{Change, Edit},
};
use serde::Serialize;
use std::fmt;

/// A key of the table that a change concerns; a point stands between the names of inner tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChangedKey {
    pub key: String,
    /// `None`: the old plan does not have the key.
    pub before: Option<String>,
    /// `None`: the new plan does not have the key.
    pub after: Option<String>,
}

impl ChangedKey {
    fn new(key: String, before: Option<String>, after: Option<String>) -> Self {
        Self { key, before, after }
    }
}

impl fmt::Display for ChangedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, before, after } = self;
        let text = |value: &'_ Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        write!(f, "{key}: {} -> {}", text(before), text(after))
    }
}

/// Which keys the change from `old` to `new` gives another value, in their order by name.
pub fn changed_keys(old: &Plan, new: &Plan, change: &Change) -> Vec<ChangedKey> {
    let (mut before, mut after) = values(old, new, change);
    before.sort_unstable();
    after.sort_unstable();
    let mut after = after.into_iter().peekable();
    let mut keys = Vec::new();
    for (key, value) in before {
        while let Some((key, value)) = after.next_if(|(other, _)| *other < key) {
            keys.push(ChangedKey::new(key, None, Some(value)));
        }
        let other = after.next_if(|(other, _)| *other == key);
        let other = other.map(|(_, value)| value);
        if other.as_ref() != Some(&value) {
            keys.push(ChangedKey::new(key, Some(value), other));
        }
    }
    keys.extend(after.map(|(key, value)| ChangedKey::new(key, None, Some(value))));
    keys
}

type Values = Vec<(String, String)>;

/// The keys of the object that changes, before and after.
fn values(old: &Plan, new: &Plan, change: &Change) -> (Values, Values) {
    match change {
        Change::Process(edit) => of_both(edit, |process, _| owned(process_keys(process)), old, new),
        Change::Admin(edit) => of_both(edit, |admin, _| owned(admin_keys(admin)), old, new),
        Change::Log(edit) => of_both(edit, |log, _| owned(log_keys(log)), old, new),
        Change::Listener(edit) => {
            of_both(edit, |listener, _| owned(listener_keys(listener)), old, new)
        }
        Change::Backend { edit, .. } => {
            of_both(edit, |backend, _| owned(backend_keys(backend)), old, new)
        }
        Change::Upstream(edit) => of_both(edit, upstream_values, old, new),
        Change::NeedsUpgrade(change) => values(old, new, change),
    }
}

fn of_both<T>(
    edit: &Edit<T>,
    keys: impl Fn(&T, &Plan) -> Values,
    old: &Plan,
    new: &Plan,
) -> (Values, Values) {
    match edit {
        Edit::Added(item) => (Vec::new(), keys(item, new)),
        Edit::Removed(item) => (keys(item, old), Vec::new()),
        Edit::Changed { before, after } => (keys(before, old), keys(after, new)),
    }
}

fn owned(keys: impl Iterator<Item = (&'static str, String)>) -> Values {
    keys.map(|(key, value)| (key.to_owned(), value)).collect()
}

/// The settings of each backend are a change of their own.
fn upstream_values(upstream: &Upstream, plan: &Plan) -> Values {
    let mut values = Vec::new();
    for (key, value) in upstream_keys(upstream, plan) {
        let value = if key == "backends" {
            let backends = upstream.backends.iter();
            let configured = backends.filter(|b| !b.origin.is_discovered());
            let addresses: Vec<String> = configured.map(|b| quoted(&b.text)).collect();
            format!("[{}]", addresses.join(", "))
        } else {
            value
        };
        values.push((key.to_owned(), value));
    }
    let discover = upstream.discover.iter().flat_map(discover_keys);
    values.extend(discover.map(|(key, value)| (format!("discover.{key}"), value)));
    let check = upstream.check.iter().flat_map(check_keys);
    values.extend(check.map(|(key, value)| (format!("check.{key}"), value)));
    values
}

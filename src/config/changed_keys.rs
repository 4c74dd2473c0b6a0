//! The keys whose values a change of the plan concerns, with both values as `--dump` writes them.

use super::{
    dump::{
        admin_keys, backend_keys, check_keys, discover_keys, listener_keys, log_keys, process_keys,
        upstream_keys,
    },
    keys::{check, limits, listener, row::Row, upstream},
    text::quote::quoted,
};
use crate::plan::{
    Listener, Plan, Protocol, Upstream,
    diff::{Change, Edit},
};
use serde::Serialize;
use std::{collections::HashSet, fmt};

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
    let (before, after) = values(old, new, change);
    let sections = [&before, &after].map(|values| -> HashSet<String> {
        let keys = values.iter().map(|(key, _)| section(key).to_owned());
        keys.collect()
    });
    let all = differing(before, after);
    // A key begins or ceases to have an effect by the change of another one, and is not written
    // while it has none: that it has its default then is no change.
    let is_touched = |key: &ChangedKey| {
        let is_in_both = sections.iter().all(|s| s.contains(section(&key.key)));
        let (plan, value) = match (&key.before, &key.after) {
            (None, Some(value)) => (new, value),
            (Some(value), None) => (old, value),
            (Some(_), Some(_)) | (None, None) => return true,
        };
        !is_in_both || Some(value.trim_matches('"')) != default(plan, change, &key.key)
    };
    let touched: Vec<ChangedKey> = all.iter().filter(|key| is_touched(key)).cloned().collect();
    // Each change has a reason.
    if touched.is_empty() { all } else { touched }
}

/// Of inner tables, whose keys have a point in their names.
fn section(key: &str) -> &str {
    key.rsplit_once('.').map_or("", |(section, _)| section)
}

/// The default that a key has in this plan, as it is written without quotes, if it has one.
fn default(plan: &Plan, change: &Change, key: &str) -> Option<&'static str> {
    let found = match change {
        Change::Upstream(edit) if key == "on_down" => {
            let name = &edit.item().name;
            let mut listeners = plan.listeners.iter();
            let is_udp = |l: &Listener| matches!(l.protocol, Protocol::Udp(_));
            let has_flows = listeners.any(|l| is_udp(l) && l.upstream == *name);
            Some(if has_flows { "move" } else { "keep" })
        }
        Change::Upstream(_) => match key.strip_prefix("check.") {
            Some(key) => default_in(check::CHECK, key),
            None => default_in(upstream::UPSTREAM, key),
        },
        Change::Listener(_) => {
            let found = default_in(listener::LISTENER, key);
            let found = found.or_else(|| default_in(listener::OWN, key));
            found.or_else(|| default_in(limits::LIMITS, key))
        }
        Change::NeedsUpgrade(change) => default(plan, change, key),
        Change::Process(_) | Change::Admin(_) | Change::Log(_) | Change::Backend { .. } => None,
    };
    found.filter(|default| !default.is_empty())
}

fn default_in<T>(rows: &[Row<T>], key: &str) -> Option<&'static str> {
    let row = rows.iter().find(|row| row.key.name == key)?;
    Some(row.key.default)
}

/// Both in the order of their names.
fn differing(mut before: Values, mut after: Values) -> Vec<ChangedKey> {
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

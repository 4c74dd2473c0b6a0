//! What differs between two plans, and which part of it a running process can take on.
//!
//! Listeners and upstreams are identified by their names, backends by their upstream and the text
//! of their address. The order of listeners and of upstreams in the file is no difference; that of
//! backends is one, for it decides ties.

use super::{Admin, Backend, Listener, Log, Plan, Process, Upstream};
use std::{collections::HashMap, mem::discriminant};

/// One difference between two plans.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Process(Edit<Process>),
    Admin(Edit<Admin>),
    Log(Edit<Log>),
    Listener(Edit<Listener>),
    /// A backend of an upstream that both plans have.
    Backend {
        upstream: String,
        edit: Edit<Backend>,
    },
    /// An upstream. Of one that both plans have: its own settings and the order of its backends.
    Upstream(Edit<Upstream>),
    /// A running process keeps what it has; a new process is needed for this change.
    NeedsUpgrade(Box<Change>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit<T> {
    Added(Box<T>),
    Removed(Box<T>),
    Changed { before: Box<T>, after: Box<T> },
}

impl<T> Edit<T> {
    /// The newer state of what is edited.
    pub fn item(&self) -> &T {
        match self {
            Self::Added(item) | Self::Removed(item) | Self::Changed { after: item, .. } => item,
        }
    }
}

/// Every difference. What a running process cannot take on comes last.
pub fn diff(old: &Plan, new: &Plan) -> Vec<Change> {
    let reachable = reachable(old, new);
    let mut changes = compare(old, &reachable);
    let rest = compare(&reachable, new).into_iter();
    changes.extend(rest.map(|change| Change::NeedsUpgrade(Box::new(change))));
    changes
}

/// The plan that is nearest to `wanted` of those that a process with the plan `running` can take on
/// without an end of sessions that the change does not concern.
pub fn reachable(running: &Plan, wanted: &Plan) -> Plan {
    let mut plan = wanted.clone();
    // Sockets are shared out among the workers by the kernel: another number moves flows.
    plan.process.workers = running.process.workers;
    for listener in &mut plan.listeners {
        let Some(before) = running.listeners.iter().find(|l| l.name == listener.name) else {
            continue;
        };
        // Counters of one name are those of one protocol.
        if discriminant(&before.protocol) != discriminant(&listener.protocol) {
            listener.clone_from(before);
        }
    }
    let missing = running.upstreams.iter().filter(|upstream| {
        let is_used = plan.listeners.iter().any(|l| l.upstream == upstream.name);
        is_used && wanted.upstreams.iter().all(|u| u.name != upstream.name)
    });
    plan.upstreams.extend(missing.cloned());
    plan
}

fn compare(old: &Plan, new: &Plan) -> Vec<Change> {
    let mut changes = Vec::new();
    changes.extend(edit(Some(&old.process), Some(&new.process)).map(Change::Process));
    changes.extend(edit(old.admin.as_ref(), new.admin.as_ref()).map(Change::Admin));
    changes.extend(edit(Some(&old.log), Some(&new.log)).map(Change::Log));
    let listeners = edits(&old.listeners, &new.listeners, |l| &l.name);
    changes.extend(listeners.into_iter().map(Change::Listener));
    for edit in edits(&old.upstreams, &new.upstreams, |u| &u.name) {
        match edit {
            Edit::Changed { before, after } => compare_upstream(before, after, &mut changes),
            Edit::Added(_) | Edit::Removed(_) => changes.push(Change::Upstream(edit)),
        }
    }
    changes
}

fn compare_upstream(before: Box<Upstream>, after: Box<Upstream>, changes: &mut Vec<Change>) {
    let edits = edits(&before.backends, &after.backends, |b| &b.text);
    let mut with_backends = (*before).clone();
    with_backends.backends = edited(&before.backends, &edits);
    put_in_order(&mut with_backends.backends);
    changes.extend(edits.into_iter().map(|edit| Change::Backend {
        upstream: after.name.clone(),
        edit,
    }));
    if with_backends != *after {
        changes.push(Change::Upstream(Edit::Changed { before, after }));
    }
}

/// Those of the file in their order, then those that were discovered, by their addresses.
fn put_in_order(backends: &mut [Backend]) {
    backends.sort_by(
        |a, b| match (a.origin.is_discovered(), b.origin.is_discovered()) {
            (true, true) => a.text.cmp(&b.text),
            (a, b) => a.cmp(&b),
        },
    );
}

/// The backends after these edits: those that stay in their order, then those that were added.
fn edited(before: &[Backend], edits: &[Edit<Backend>]) -> Vec<Backend> {
    let by_text = edits.iter().map(|edit| (edit.item().text.as_str(), edit));
    let by_text: HashMap<&str, &Edit<Backend>> = by_text.collect();
    let stay = before
        .iter()
        .filter_map(|backend| match by_text.get(backend.text.as_str()) {
            Some(Edit::Removed(_)) => None,
            Some(Edit::Changed { after, .. }) => Some((**after).clone()),
            Some(Edit::Added(_)) | None => Some(backend.clone()),
        });
    let added = edits.iter().filter_map(|edit| match edit {
        Edit::Added(added) => Some((**added).clone()),
        Edit::Removed(_) | Edit::Changed { .. } => None,
    });
    stay.chain(added).collect()
}

fn edit<T: Clone + Eq>(old: Option<&T>, new: Option<&T>) -> Option<Edit<T>> {
    let boxed = |item: &T| Box::new(item.clone());
    match (old, new) {
        (Some(old), Some(new)) if old == new => None,
        (Some(old), Some(new)) => Some(Edit::Changed {
            before: boxed(old),
            after: boxed(new),
        }),
        (Some(old), None) => Some(Edit::Removed(boxed(old))),
        (None, Some(new)) => Some(Edit::Added(boxed(new))),
        (None, None) => None,
    }
}

fn by_key<T>(all: &[T], key: impl Fn(&T) -> &str) -> HashMap<&str, &T> {
    all.iter().map(|item| (key(item), item)).collect()
}

/// By key: what was removed in the order of the old plan, then the rest in that of the new one.
fn edits<T: Clone + Eq>(old: &[T], new: &[T], key: impl Fn(&T) -> &str) -> Vec<Edit<T>> {
    let (of_old, of_new) = (by_key(old, &key), by_key(new, &key));
    let gone = old.iter().filter(|item| !of_new.contains_key(key(item)));
    let removed = gone.filter_map(|item| edit(Some(item), None));
    let rest = new
        .iter()
        .filter_map(|item| edit(of_old.get(key(item)).copied(), Some(item)));
    removed.chain(rest).collect()
}

// What differs between two plans, and that it is the whole difference.

use std::collections::HashSet;

use proptest::{collection::vec, prelude::*};
use tembuku::internals::{
    config::{self, changed_keys},
    plan::{
        Backend, Listener, Plan, Upstream,
        diff::{Change, Edit, diff, reachable},
    },
};

use crate::generate::plan;

fn parse(text: &str) -> Plan {
    config::parse(text, "test").unwrap_or_else(|problems| panic!("{problems}"))
}

/// Two valid plans of which listeners, upstreams and backends partly have the same names.
fn two_plans() -> impl Strategy<Value = (Plan, Plan)> {
    (plan(), plan(), vec(any::<bool>(), 16)).prop_map(|(old, mut new, shared)| {
        let mut shared = shared.into_iter().cycle();
        let mut is_shared = || shared.next().unwrap_or(false);
        for (n, before) in old.listeners.iter().enumerate() {
            let is_free = new.listeners.iter().all(|l| l.name != before.name);
            if let Some(listener) = new.listeners.get_mut(n).filter(|_| is_free && is_shared()) {
                listener.name.clone_from(&before.name);
            }
        }
        for (n, before) in old.upstreams.iter().enumerate() {
            let is_free = new.upstreams.iter().all(|u| u.name != before.name);
            let Some(upstream) = new.upstreams.get_mut(n).filter(|_| is_free && is_shared()) else {
                continue;
            };
            let name = std::mem::replace(&mut upstream.name, before.name.clone());
            let users = new.listeners.iter_mut().filter(|l| l.upstream == name);
            users.for_each(|listener| listener.upstream.clone_from(&before.name));
            if is_shared() && upstream.check == before.check {
                let rest = std::mem::replace(&mut upstream.backends, before.backends.clone());
                upstream.backends.extend(rest);
                upstream.backends.reverse();
                let mut seen = HashSet::new();
                upstream.backends.retain(|b| seen.insert(b.text.clone()));
            }
        }
        (old, new)
    })
}

fn edit<T: Clone + PartialEq + std::fmt::Debug>(items: &mut Vec<T>, edit: &Edit<T>) {
    match edit {
        Edit::Added(item) => items.push((**item).clone()),
        Edit::Removed(item) => items.retain(|other| *other != **item),
        Edit::Changed { before, after } => {
            let found = items.iter_mut().find(|item| **item == **before);
            found.expect("what was before").clone_from(after);
        }
    }
}

/// Replaces a single item.
fn changed<T: Clone + PartialEq + std::fmt::Debug>(item: &mut T, change: &Edit<T>) {
    let mut one = vec![item.clone()];
    edit(&mut one, change);
    item.clone_from(&one[0]);
}

fn apply(plan: &mut Plan, change: &Change) {
    match change {
        Change::Process(edit) => changed(&mut plan.process, edit),
        Change::Log(edit) => changed(&mut plan.log, edit),
        Change::Admin(change) => {
            let mut all: Vec<_> = plan.admin.take().into_iter().collect();
            edit(&mut all, change);
            plan.admin = all.pop();
        }
        Change::Listener(change) => edit(&mut plan.listeners, change),
        Change::Backend {
            upstream,
            edit: change,
        } => {
            let mut upstreams = plan.upstreams.iter_mut();
            let upstream = upstreams.find(|u| u.name == *upstream);
            edit(&mut upstream.expect("an upstream").backends, change);
        }
        // The backends themselves have been changed before.
        Change::Upstream(Edit::Changed { after, .. }) => {
            let mut upstreams = plan.upstreams.iter_mut();
            let upstream = upstreams.find(|u| u.name == after.name);
            let upstream = upstream.expect("an upstream");
            let backends: Vec<Backend> = std::mem::take(&mut upstream.backends);
            upstream.clone_from(after);
            upstream.backends.clear();
            for Backend { text, .. } in &after.backends {
                let backend = backends.iter().find(|b| b.text == *text);
                upstream.backends.push(backend.expect("a backend").clone());
            }
            assert_eq!(backends.len(), upstream.backends.len());
        }
        Change::Upstream(change) => edit(&mut plan.upstreams, change),
        Change::NeedsUpgrade(change) => apply(plan, change),
    }
}

fn sorted(mut plan: Plan) -> Plan {
    plan.listeners
        .sort_by(|a: &Listener, b| a.name.cmp(&b.name));
    plan.upstreams
        .sort_by(|a: &Upstream, b| a.name.cmp(&b.name));
    plan
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn applying_the_difference_gives_the_new_plan((old, new) in two_plans()) {
        let mut plan = old.clone();
        diff(&old, &new).iter().for_each(|change| apply(&mut plan, change));
        prop_assert_eq!(sorted(plan), sorted(new));
    }

    #[test]
    fn equal_plans_do_not_differ(plan in plan()) {
        prop_assert_eq!(diff(&plan, &plan), []);
        let mut reordered = plan.clone();
        reordered.listeners.reverse();
        reordered.upstreams.reverse();
        prop_assert_eq!(diff(&plan, &reordered), []);
    }

    #[test]
    fn a_reachable_plan_needs_no_upgrade((old, new) in two_plans()) {
        let reachable = reachable(&old, &new);
        for change in diff(&old, &reachable) {
            prop_assert!(!matches!(change, Change::NeedsUpgrade(_)), "{:?}", change);
        }
        for listener in &reachable.listeners {
            let has_upstream = reachable.upstreams.iter().any(|u| u.name == listener.upstream);
            prop_assert!(has_upstream);
        }
    }

    #[test]
    fn every_change_names_a_key((old, new) in two_plans()) {
        for change in diff(&old, &new) {
            let keys = changed_keys(&old, &new, &change);
            prop_assert!(!keys.is_empty(), "{:?}", change);
        }
    }
}

const CONFIG: &str = r#"
[process]
workers = 2
[listeners.a]
bind = "127.0.0.1:1000"
upstream = "u"
[listeners.b]
bind = "127.0.0.1:1001"
upstream = "v"
[upstreams.u]
backends = [ { address = "10.0.0.1:1", weight = 1 }, "10.0.0.2:1" ]
check = { kind = "redis", role = "primary" }
[upstreams.v]
backends = [ "10.0.0.3:1" ]
"#;

/// What a change of one part of the text changes: the object, and its keys with both values.
fn keys_of(from: &str, to: &str) -> Vec<String> {
    assert!(CONFIG.contains(from), "{from}");
    let (old, new) = (parse(CONFIG), parse(&CONFIG.replacen(from, to, 1)));
    let mut found = Vec::new();
    for change in diff(&old, &new) {
        let object = object(&change);
        for key in changed_keys(&old, &new, &change) {
            let value = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
            let (before, after) = (value(key.before), value(key.after));
            found.push(format!("{object} {}: {before} => {after}", key.key));
        }
    }
    found
}

fn object(change: &Change) -> String {
    match change {
        Change::Process(_) => "process".to_owned(),
        Change::Admin(_) => "admin".to_owned(),
        Change::Log(_) => "log".to_owned(),
        Change::Listener(edit) => format!("listener {}", edit.item().name),
        Change::Upstream(edit) => format!("upstream {}", edit.item().name),
        Change::Backend { upstream, edit } => format!("backend {upstream} {}", edit.item().text),
        Change::NeedsUpgrade(change) => format!("upgrade: {}", object(change)),
    }
}

#[test]
fn keys_name_exactly_what_differs() {
    for (from, to, expected) in [
        (
            "workers = 2",
            "workers = 3",
            "upgrade: process workers: 2 => 3",
        ),
        (
            "workers = 2",
            "workers = 2\ndrain_timeout = \"7s\"",
            "process drain_timeout: \"30s\" => \"7s\"",
        ),
        (
            "[process]",
            "[log]\nlevel = \"warn\"\n[process]",
            "log level: \"info\" => \"warn\"",
        ),
        (
            "127.0.0.1:1001",
            "127.0.0.1:1002",
            "listener b bind: \"127.0.0.1:1001\" => \"127.0.0.1:1002\"",
        ),
        (
            "upstream = \"v\"",
            "upstream = \"v\"\nretries = 5",
            "listener b retries: 3 => 5",
        ),
        (
            "weight = 1",
            "weight = 3",
            "backend u 10.0.0.1:1 weight: 1 => 3",
        ),
        (
            "[ \"10.0.0.3:1\" ]",
            "[ \"10.0.0.3:1\" ]\nbalance = \"least_conn\"",
            "upstream v balance: \"round_robin\" => \"least_conn\"",
        ),
        (
            "\"10.0.0.3:1\" ]",
            "\"10.0.0.3:1\" ]\ncheck = { kind = \"tcp\" }\n",
            "upstream v check.",
        ),
        (
            "\"10.0.0.3:1\" ]",
            "\"10.0.0.3:1\" ]\nsend_proxy = \"v2\"\n",
            "upstream v send_proxy: \"off\" => \"v2\"",
        ),
        (
            "role = \"primary\"",
            "role = \"primary\", rise = 7",
            "upstream u check.rise: 2 => 7",
        ),
        (
            "{ address = \"10.0.0.1:1\", weight = 1 }, \"10.0.0.2:1\"",
            "\"10.0.0.2:1\", \"10.0.0.1:1\"",
            "upstream u backends: [\"10.0.0.1:1\", \"10.0.0.2:1\"] => [\"10.0.0.2:1\", \
             \"10.0.0.1:1\"]",
        ),
        (
            ", \"10.0.0.2:1\"",
            "",
            "backend u 10.0.0.2:1 address: \"10.0.0.2:1\" => -",
        ),
        (
            "upstream = \"v\"",
            "upstream = \"v\"\nprotocol = \"udp\"",
            "upgrade: listener b ",
        ),
    ] {
        let keys = keys_of(from, to);
        assert!(
            keys.iter().any(|key| key.starts_with(expected)),
            "{from} -> {to}: {keys:#?}"
        );
        // Keys of the upstream have an effect with the check, and their defaults.
        let is_check = expected == "upstream v check.";
        assert!(
            !is_check || keys.iter().all(|key| key.starts_with(expected)),
            "{keys:#?}"
        );
        if expected.contains("=>") && !expected.ends_with('-') {
            assert_eq!(keys.len(), 1, "{from} -> {to}: {keys:#?}");
        }
    }
}

//! What a reload changes, as text and figures.

use super::forecast::Forecast;
use crate::{
    config::{self, ChangedKey},
    control::{Prepared, View},
    plan::{
        Plan, SessionAction, counted,
        diff::{Change, Edit, diff, reachable},
    },
};
use serde::Serialize;
use std::path::Path;

/// What a reload changed, or would change.
#[derive(Debug, Clone, Serialize)]
pub struct ReloadReport {
    pub applied: bool,
    pub file: String,
    pub hash: HashChange,
    /// For how long it has kept a worker from its sockets; `None`: it was not applied.
    pub longest_pause_seconds: Option<f64>,
    pub changes: Vec<ReportedChange>,
    pub warnings: Vec<String>,
}

/// Hashes of the effective configuration, as [`config::hash`] makes them.
#[derive(Debug, Clone, Serialize)]
pub struct HashChange {
    pub before: String,
    /// Without what needs an upgrade.
    pub after: String,
}

#[derive(Debug, Clone, Serialize)]
pub struct ReportedChange {
    pub object: &'static str,
    pub name: String,
    pub change: &'static str,
    pub keys: Vec<ChangedKey>,
    /// That the object has when the report is made; `None`: sessions are not those of an object of
    /// this kind.
    pub sessions: Option<u64>,
    /// Those of them that the change ends, at once or later.
    pub ended_sessions: Option<u64>,
    /// What becomes of its sessions: `None` unless it is removed.
    pub on_removed: Option<&'static str>,
    /// When they are terminated; `None`: they are not.
    pub close_after_seconds: Option<f64>,
    /// The share of clients, from 0 to 1, that get another backend: of an upstream and its backends
    /// by all changes of the upstream together, of a listener by its change to another upstream.
    /// `None` unless a hash policy decides before and after.
    pub moved_share: Option<f64>,
    /// Whether it is a backend that takes sessions only when a check has succeeded.
    pub awaits_check: bool,
}

/// So many changes are named in a line.
const MOST_NAMED: usize = 5;

impl ReloadReport {
    pub(super) fn new(file: &Path, running: &View, prepared: &Prepared) -> Self {
        let (before, wanted) = (&running.plan, &prepared.plan);
        let reachable = reachable(before, wanted);
        let mut forecast = Forecast::new(running, &reachable, prepared);
        let hash = HashChange {
            before: running.hash.clone(),
            after: config::hash(&reachable),
        };
        let changes = diff(before, wanted);
        let mut reported = Vec::new();
        let mut warnings = Vec::new();
        for change in &changes {
            let described = match change {
                Change::NeedsUpgrade(_) => describe_change(&reachable, wanted, change),
                Change::Process(_)
                | Change::Admin(_)
                | Change::Log(_)
                | Change::Listener(_)
                | Change::Backend { .. }
                | Change::Upstream(_) => describe_change(before, &reachable, change),
            };
            if let Change::NeedsUpgrade(_) = change {
                warnings.push(described.warning());
            }
            let on_removed = forecast.on_removed(change);
            reported.push(ReportedChange {
                on_removed: on_removed.map(SessionAction::word),
                close_after_seconds: on_removed.and_then(close_after),
                sessions: forecast.sessions(change),
                ended_sessions: forecast.ended_sessions(change),
                moved_share: forecast.moved_share(change),
                awaits_check: forecast.awaits_check(change),
                ..described
            });
        }
        add_changed_contents(&mut reported, &mut forecast, running, &reachable, prepared);
        warnings.extend(forecast.without_backend(&changes));
        warnings.extend(forecast.warning());
        Self {
            applied: false,
            file: file.display().to_string(),
            hash,
            longest_pause_seconds: None,
            changes: reported,
            warnings,
        }
    }

    /// In one line.
    pub(super) fn summarize(&self) -> String {
        let changes = self.changes.iter();
        let named = changes.take(MOST_NAMED).map(|change| {
            let ReportedChange {
                object,
                name,
                change,
                ..
            } = change;
            match object == name {
                true => format!("{object} {change}"),
                false => format!("{object} {name} {change}"),
            }
        });
        let named: Vec<String> = named.collect();
        match self.changes.len() - named.len() {
            0 if named.is_empty() => "no changes".to_owned(),
            0 => named.join(", "),
            more => format!("{} and {}", named.join(", "), counted(more, "more change")),
        }
    }

    /// As lines of the log.
    pub(super) fn log(&self) {
        for ReportedChange {
            object,
            name,
            change,
            keys,
            sessions,
            ended_sessions,
            on_removed,
            close_after_seconds,
            moved_share,
            awaits_check,
        } in &self.changes
        {
            let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
            // Of what is added or removed, every key.
            let keys =
                (*change == "changed" || *change == "needs_upgrade").then(|| keys.join(", "));
            tracing::info!(
                object,
                name,
                change,
                keys,
                sessions,
                ended_sessions,
                on_removed,
                close_after_seconds,
                moved_share,
                awaits_check,
                "configuration differs"
            );
        }
        for warning in &self.warnings {
            tracing::warn!(warning, "reload has a warning");
        }
        let (file, hash, changes) = (&self.file, &self.hash.after, self.changes.len());
        let longest_pause_seconds = self.longest_pause_seconds;
        tracing::info!(
            file,
            hash,
            changes,
            longest_pause_seconds,
            "configuration reloaded"
        );
    }
}

/// Files that checks name and that have other contents count as changes of their upstreams.
fn add_changed_contents(
    changes: &mut Vec<ReportedChange>,
    forecast: &mut Forecast<'_>,
    running: &View,
    plan: &Plan,
    prepared: &Prepared,
) {
    for after in &plan.upstreams {
        let before = running.plan.upstreams.iter().find(|u| u.name == after.name);
        let checks = running.checks.get(&after.name);
        let inputs = prepared.upstreams.get(&after.name);
        // Of another check the keys themselves differ.
        let credentials = inputs.and_then(|inputs| inputs.credentials.as_ref());
        let (Some(before), Some(checks), Some(credentials)) = (before, checks, credentials) else {
            continue;
        };
        if before.check != after.check {
            continue;
        }
        let contents = checks.credentials().changed_contents(credentials);
        let keys = contents.into_iter().map(|key| ChangedKey {
            key: format!("check.{key}"),
            before: Some("(contents)".to_owned()),
            after: Some("(other contents)".to_owned()),
        });
        let keys: Vec<ChangedKey> = keys.collect();
        if keys.is_empty() {
            continue;
        }
        let is_it = |c: &&mut ReportedChange| c.object == "upstream" && c.name == after.name;
        match changes.iter_mut().find(is_it) {
            Some(change) => change.keys.extend(keys),
            None => {
                let (before, after) = (before.clone().into(), after.clone().into());
                let change = Change::Upstream(Edit::Changed { before, after });
                let (object, name, word) = describe(&change);
                changes.push(ReportedChange {
                    object,
                    name,
                    change: word,
                    keys,
                    sessions: forecast.sessions(&change),
                    ended_sessions: forecast.ended_sessions(&change),
                    on_removed: None,
                    close_after_seconds: None,
                    moved_share: forecast.moved_share(&change),
                    awaits_check: false,
                });
            }
        }
    }
}

/// Without figures.
fn describe_change(before: &Plan, after: &Plan, change: &Change) -> ReportedChange {
    let (object, name, word) = describe(change);
    ReportedChange {
        object,
        name,
        change: word,
        keys: config::changed_keys(before, after, change),
        sessions: None,
        ended_sessions: None,
        on_removed: None,
        close_after_seconds: None,
        moved_share: None,
        awaits_check: false,
    }
}

fn close_after(action: SessionAction) -> Option<f64> {
    match action {
        SessionAction::Keep | SessionAction::Move => None,
        SessionAction::Close => Some(0.0),
        SessionAction::CloseAfter(wait) => Some(wait.as_secs_f64()),
    }
}

impl ReportedChange {
    fn warning(&self) -> String {
        let Self { object, name, .. } = self;
        let keys: Vec<&str> = self.keys.iter().map(|key| key.key.as_str()).collect();
        let keys = keys.join(", ");
        format!("{object} {name}: not applied, needs an upgrade or restart: {keys}")
    }
}

/// The object that changes, its name and what happens to it.
fn describe(change: &Change) -> (&'static str, String, &'static str) {
    match change {
        Change::Process(edit) => ("process", "process".to_owned(), word(edit)),
        Change::Admin(edit) => ("process", "admin".to_owned(), word(edit)),
        Change::Log(edit) => ("process", "log".to_owned(), word(edit)),
        Change::Listener(edit) => ("listener", edit.item().name.clone(), word(edit)),
        Change::Upstream(edit) => ("upstream", edit.item().name.clone(), word(edit)),
        Change::Backend { upstream, edit } => {
            let name = format!("{upstream}/{}", edit.item().text);
            ("backend", name, word(edit))
        }
        Change::NeedsUpgrade(change) => {
            let (object, name, _) = describe(change);
            (object, name, "needs_upgrade")
        }
    }
}

fn word<T>(edit: &Edit<T>) -> &'static str {
    match edit {
        Edit::Added(_) => "added",
        Edit::Removed(_) => "removed",
        Edit::Changed { .. } => "changed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const CONFIG: &str = "[process]\nworkers = 2\n\
        [listeners.l]\nbind = \"127.0.0.1:1\"\nupstream = \"u\"\n\
        [upstreams.u]\nbackends = [{ address = \"127.0.0.1:2\", weight = 1 }]\n";

    fn plan(text: &str) -> Plan {
        config::parse(text, "test").expect("valid")
    }

    /// Of a process that has nothing but the plan.
    fn report(from: &str, to: &str) -> ReloadReport {
        let wanted = CONFIG.replace(from, to);
        assert_ne!(CONFIG, wanted);
        let plan_before = plan(CONFIG);
        let running = View {
            hash: config::hash(&plan_before),
            plan: plan_before,
            listeners: Vec::new(),
            removed_listeners: Vec::new(),
            pools: Vec::new(),
            checks: BTreeMap::new(),
            discoveries: BTreeMap::new(),
            pulses: Vec::new(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let prepared = runtime
            .block_on(Prepared::for_change(plan(&wanted), &running))
            .expect("nothing is missing");
        ReloadReport::new(Path::new("test"), &running, &prepared)
    }

    #[test]
    fn a_report_separates_what_needs_an_upgrade() {
        let report = report("workers = 2", "workers = 3\ndrain_timeout = \"7s\"");
        let changes: Vec<String> = report
            .changes
            .iter()
            .map(|c| {
                let keys: Vec<String> = c.keys.iter().map(ToString::to_string).collect();
                format!("{} {} {}: {}", c.object, c.name, c.change, keys.join(", "))
            })
            .collect();
        assert_eq!(
            changes,
            [
                "process process changed: drain_timeout: \"30s\" -> \"7s\"",
                "process process needs_upgrade: workers: 2 -> 3",
            ]
        );
        let [warning] = &report.warnings[..] else {
            panic!("{:?}", report.warnings);
        };
        assert!(
            warning.ends_with("upgrade or restart: workers"),
            "{warning}"
        );
        assert!(!report.applied);
        // What will be in effect.
        let reached = CONFIG.replace("workers = 2", "workers = 2\ndrain_timeout = \"7s\"");
        assert_eq!(report.hash.after, config::hash(&plan(&reached)));
        assert_eq!(report.hash.before, config::hash(&plan(CONFIG)));
    }

    #[test]
    fn a_backend_is_named_with_its_upstream() {
        let report = report("weight = 1", "weight = 5");
        let [change] = &report.changes[..] else {
            panic!("{:?}", report.changes);
        };
        assert_eq!((change.object, change.change), ("backend", "changed"));
        assert_eq!(change.name, "u/127.0.0.1:2");
        assert_eq!(change.keys[0].to_string(), "weight: 1 -> 5");
        assert_eq!((change.sessions, change.moved_share), (Some(0), None));
    }
}

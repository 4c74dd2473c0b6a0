//! `tembuku reload`: a running process reads its configuration file again.

use super::{
    client::{AdminClient, At, Reload},
    code, complain, print,
};
use crate::{
    admin::span,
    cli::response::{HashChange, ReloadChange, ReloadReport, clean},
    control::reload::Mode,
};
use clap::Args;
use std::{collections::BTreeMap, process::ExitCode};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Print what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the changes as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(super) at: At,
}

pub(super) fn run(args: &Arguments) -> ExitCode {
    let mode = match args.dry_run {
        true => Mode::DryRun,
        false => Mode::Apply,
    };
    let reloaded = AdminClient::find_to_read(&args.at, |client| client.reload(mode));
    let shown = reloaded.and_then(|Reload { report, sent }| {
        for warning in &report.warnings {
            complain(&format!("warning: {}\n", clean(warning)));
        }
        match args.json {
            true => print(&sent),
            false => print(&text(&report)),
        }
    });
    code(shown)
}

fn text(report: &ReloadReport) -> String {
    let mut out = String::new();
    // The same of all changes of an upstream.
    let mut moved = BTreeMap::new();
    for change in &report.changes {
        out.push_str(&change_text(change));
        if let (Some(upstream), Some(share)) = (upstream_of(change), change.moved_share) {
            moved.insert(clean(upstream), share);
        }
    }
    for (upstream, share) in moved {
        out += &format!("upstream {upstream}: {}", moved_text(share));
    }
    let HashChange { before, after } = &report.hash;
    if before != after {
        out += &format!("hash: {} -> {}\n", clean(before), clean(after));
    }
    let file = clean(&report.file);
    let count = match report.changes.len() {
        0 => "no changes".to_owned(),
        1 => "1 change".to_owned(),
        n => format!("{n} changes"),
    };
    out + &match report.applied {
        true => format!("{count}, reloaded from {file}\n"),
        false => format!("{count} in {file}, nothing was changed (dry run)\n"),
    }
}

/// A line, and of an object that the process had before one for each key and figure.
fn change_text(change: &ReloadChange) -> String {
    let word = match change.change.as_str() {
        "needs_upgrade" => "needs an upgrade or restart".to_owned(),
        word => clean(word),
    };
    let mut out = format!(
        "{} {}: {word}\n",
        clean(&change.object),
        clean(&change.name)
    );
    if matches!(change.change.as_str(), "changed" | "needs_upgrade") {
        for key in &change.keys {
            let value = |value: &Option<String>| clean(value.as_deref().unwrap_or("-"));
            let (before, after) = (value(&key.before), value(&key.after));
            out.push_str(&format!("  {}: {before} -> {after}\n", clean(&key.key)));
        }
    }
    if let Some(sessions) = change.sessions.filter(|_| change.change != "added") {
        let fate = fate(change).filter(|_| sessions > 0);
        let fate = fate.map_or_else(String::new, |fate| format!(", {fate}"));
        out.push_str(&format!("  sessions: {sessions}{fate}\n"));
    }
    if change.awaits_check {
        out.push_str("  takes sessions: once a check has succeeded\n");
    }
    if let (None, Some(share)) = (upstream_of(change), change.moved_share) {
        out += &format!("  {}", moved_text(share));
    }
    out
}

/// The upstream that the object is or belongs to.
fn upstream_of(change: &ReloadChange) -> Option<&str> {
    match change.object.as_str() {
        "upstream" => Some(&change.name),
        "backend" => change.name.split_once('/').map(|(upstream, _)| upstream),
        _ => None,
    }
}

fn moved_text(share: f64) -> String {
    format!("clients that move: {:.1} %\n", share * 100.0)
}

/// What becomes of the sessions of the object.
fn fate(change: &ReloadChange) -> Option<String> {
    let fate = match (change.change.as_str(), change.on_removed.as_deref()) {
        ("changed", _) => "they stay",
        // There is no other listener for its flows.
        ("removed", Some("move")) if change.object == "listener" => {
            "left to end by themselves (on_removed)"
        }
        ("removed", Some("keep")) => "left to end by themselves (on_removed)",
        ("removed", Some("move")) => "flows move to other backends (on_removed)",
        ("removed", Some(_)) => match change.close_after_seconds {
            None | Some(0.0) => "terminated at once (on_removed)",
            Some(after) => return Some(format!("terminated after {} (on_removed)", span(after))),
        },
        _ => return None,
    };
    Some(fate.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::response;

    #[test]
    fn changes_are_listed_with_their_keys_and_figures() {
        let report = |applied: bool, after: u32, changes: &str| {
            let json = format!(
                "{{\"applied\": {applied}, \"file\": \"/f\", \"changes\": [{changes}], \
                 \"hash\": {{\"before\": \"1\", \"after\": \"{after}\"}}, \"warnings\": []}}"
            );
            text(&response::read(&json).expect("a report"))
        };
        assert_eq!(report(true, 1, ""), "no changes, reloaded from /f\n");
        let change = |object: &str, name: &str, word: &str, more: &str| {
            format!(
                r#"{{"object": "{object}", "name": "{name}", "change": "{word}",
                    "keys": [{{"key": "weight", "before": "1", "after": null}}],
                    "sessions": 7, "awaits_check": {}, {more}}}"#,
                word == "added"
            )
        };
        let moved = r#""moved_share": 0.12345"#;
        let changes = [
            change("listener", "l", "changed", r#""moved_share": 0.5"#),
            change("backend", "u/a", "changed", moved),
            change("backend", "u/b", "added", moved),
            change("upstream", "u", "needs_upgrade", moved),
        ];
        assert_eq!(
            report(false, 2, &changes.join(", ")),
            "listener l: changed\n  weight: 1 -> -\n  sessions: 7, they stay\n  \
             clients that move: 50.0 %\n\
             backend u/a: changed\n  weight: 1 -> -\n  sessions: 7, they stay\n\
             backend u/b: added\n  takes sessions: once a check has succeeded\n\
             upstream u: needs an upgrade or restart\n  weight: 1 -> -\n  sessions: 7\n\
             upstream u: clients that move: 12.3 %\nhash: 1 -> 2\n\
             4 changes in /f, nothing was changed (dry run)\n"
        );
        for (on_removed, after, fate) in [
            ("null", "null", ""),
            (
                "\"keep\"",
                "null",
                ", left to end by themselves (on_removed)",
            ),
            (
                "\"move\"",
                "null",
                ", flows move to other backends (on_removed)",
            ),
            ("\"close\"", "0.0", ", terminated at once (on_removed)"),
            (
                "\"close_after\"",
                "90.0",
                ", terminated after 1m 30s (on_removed)",
            ),
        ] {
            let more = format!(
                r#""moved_share": null, "on_removed": {on_removed},
                    "close_after_seconds": {after}"#
            );
            assert_eq!(
                report(true, 1, &change("backend", "u/a", "removed", &more)),
                format!("backend u/a: removed\n  sessions: 7{fate}\n1 change, reloaded from /f\n")
            );
        }
    }
}

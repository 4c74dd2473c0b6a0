//! `tembuku reload`: a running process reads its configuration file again.

use super::{
    client::{AdminClient, At, Reload},
    code, complain, print,
};
use crate::{
    cli::response::{HashChange, ReloadChange, ReloadReport, clean},
    control::reload::Mode,
};
use clap::Args;
use std::process::ExitCode;

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
    let reloaded = AdminClient::find(&args.at).and_then(|client| client.reload(mode));
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
    for change in &report.changes {
        out.push_str(&change_text(change));
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
        out.push_str(&format!("  sessions: {sessions}\n"));
    }
    if let Some(ended) = change.ended_sessions.filter(|ended| *ended > 0) {
        out.push_str(&format!("  sessions that end: {ended}\n"));
    }
    if change.awaits_check {
        out.push_str("  takes sessions: once a check has succeeded\n");
    }
    if let Some(share) = change.moved_share {
        let percent = share * 100.0;
        out.push_str(&format!("  clients that move: {percent:.1} %\n"));
    }
    out
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
        let key = r#"{"key": "weight", "before": "1", "after": null}"#;
        let change = |word: &str, share: &str| {
            format!(
                r#"{{"object": "backend", "name": "u/a", "change": "{word}", "keys": [{key}],
                    "sessions": 7, "ended_sessions": 2, "moved_share": {share},
                    "awaits_check": {}}}"#,
                word == "added"
            )
        };
        let changes = [change("changed", "0.12345"), change("added", "null")];
        assert_eq!(
            report(false, 2, &changes.join(", ")),
            "backend u/a: changed\n  weight: 1 -> -\n  sessions: 7\n  sessions that end: 2\n  \
             clients that move: 12.3 %\nbackend u/a: added\n  sessions that end: 2\n  \
             takes sessions: once a check has succeeded\nhash: 1 -> 2\n\
             2 changes in /f, nothing was changed (dry run)\n"
        );
    }
}

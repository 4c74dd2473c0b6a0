//! `tembuku reload`: a running process reads its configuration file again.

use super::{
    client::{At, Client, Reload},
    code, complain, say,
};
use crate::{
    cli::response::{ReloadChange, ReloadReport, clean},
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
    let reloaded = Client::find(&args.at).and_then(|client| client.reload(mode));
    let shown = reloaded.and_then(|Reload { report, sent }| {
        for warning in &report.warnings {
            complain(&format!("warning: {}\n", clean(warning)));
        }
        match args.json {
            true => say(&sent),
            false => say(&text(&report)),
        }
    });
    code(shown)
}

fn text(report: &ReloadReport) -> String {
    let mut out = String::new();
    for change in &report.changes {
        out.push_str(&change_text(change));
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

/// A line, and one for each key of an object that the process had before.
fn change_text(change: &ReloadChange) -> String {
    let word = match change.change.as_str() {
        "needs_upgrade" => "needs a restart".to_owned(),
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
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::response;

    #[test]
    fn changes_are_listed_with_their_keys() {
        let report = |applied: bool, changes: &str| {
            let json = format!(
                "{{\"applied\": {applied}, \"file\": \"/f\", \"changes\": [{changes}], \
                 \"warnings\": []}}"
            );
            text(&response::read(&json).expect("a report"))
        };
        assert_eq!(report(true, ""), "no changes, reloaded from /f\n");
        let key = r#"{"key": "weight", "before": "1", "after": null}"#;
        let change = |word: &str| {
            format!(
                r#"{{"object": "backend", "name": "u/a", "change": "{word}", "keys": [{key}]}}"#
            )
        };
        assert_eq!(
            report(
                false,
                &format!("{}, {}", change("changed"), change("added"))
            ),
            "backend u/a: changed\n  weight: 1 -> -\nbackend u/a: added\n\
             2 changes in /f, nothing was changed (dry run)\n"
        );
    }
}

//! Every command line of the documentation can be parsed, and every flag that is named is there.

use super::pages::{packages, pages};
use crate::cli::Cli;
use clap::{Command, CommandFactory as _};
use std::collections::BTreeSet;

/// Flags of other programs that pages name.
const FOREIGN: &[&str] = &[
    "--check",
    "--profile",
    "--release",
    "--stop-timeout",
    "--user",
];

/// The words of a line of a shell up to its end or a comment, a pipe or another command.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for c in line.chars() {
        let last = words.last_mut().expect("one");
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => last.push(c),
            (None, '\'' | '"') => quote = Some(c),
            (None, '#') if last.is_empty() => break,
            (None, '|' | '>' | '<' | ';' | '&') => break,
            (None, '\\') => {}
            (None, c) if c.is_whitespace() => {
                if !last.is_empty() {
                    words.push(String::new());
                }
            }
            (None, c) => last.push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// A line of a block that runs the program, with those that continue it.
fn command_lines(text: &str) -> Vec<String> {
    let joined = text.replace("\\\n", " ");
    let lines = joined.lines().map(|line| {
        let line = line.trim();
        line.strip_prefix("$ ").unwrap_or(line)
    });
    let runs = |line: &&str| {
        let rest = line.strip_prefix("sudo ").unwrap_or(line);
        let rest = rest.strip_prefix("tembuku ");
        // Its output has its version in the second place.
        rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '-'))
    };
    lines
        .filter(runs)
        .map(|line| line.strip_prefix("sudo ").unwrap_or(line).to_owned())
        .collect()
}

#[test]
fn every_command_line_can_be_parsed() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for block in pages().iter().flat_map(|page| page.blocks()) {
        if !block.info.is_empty() && !["indented", "sh", "console"].contains(&&*block.info) {
            continue;
        }
        for line in command_lines(&block.text) {
            count += 1;
            if let Err(error) = Cli::command().try_get_matches_from(words(&line))
                && error.use_stderr()
            {
                wrong.push(format!("{}: {line}: {error}", block.at));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 40, "only {count} are found");
}

fn flags(command: &Command) -> BTreeSet<String> {
    let arguments = command.get_arguments();
    let long = arguments.filter_map(|argument| argument.get_long());
    let long = long.map(|name| format!("--{name}"));
    let inner = command.get_subcommands().flat_map(flags);
    long.chain(inner)
        .chain(["--help".to_owned(), "--version".to_owned()])
        .collect()
}

/// In a text as `tembuku drain --node`, in `--node` and in `drain --node`.
#[test]
fn every_command_and_flag_that_is_named_is_there() {
    let mut cli = Cli::command();
    cli.build();
    let all: BTreeSet<String> = cli.get_subcommands().flat_map(flags).collect();
    let mut wrong = Vec::new();
    for span in pages().iter().flat_map(|page| page.spans()) {
        let text = span.text.strip_prefix("tembuku ").unwrap_or(&span.text);
        let is_run = text.len() < span.text.len();
        let words = words(text);
        let Some(first) = words.first() else {
            continue;
        };
        let known = cli.find_subcommand(first);
        if is_run
            && known.is_none()
            && !span.is_planned
            && first.starts_with(|c: char| c.is_ascii_lowercase())
        {
            wrong.push(format!("{}: no command {first:?}", span.at));
        }
        let allowed = match known {
            Some(command) => flags(command),
            None if first.starts_with("--") => all.clone(),
            None => continue,
        };
        for word in words.iter().filter(|word| word.starts_with("--")) {
            let flag = word.split('=').next().unwrap_or_default();
            let flag = flag.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
            if !allowed.contains(flag) && !FOREIGN.contains(&flag) {
                wrong.push(format!("{}: no flag {flag:?} in {:?}", span.at, span.text));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// In unit files, manifests and scripts: `/usr/bin/tembuku run -c ...`.
#[test]
fn packages_run_commands_that_are_there() {
    let mut cli = Cli::command();
    cli.build();
    let mut wrong = Vec::new();
    let mut count = 0;
    for page in packages() {
        for (n, line) in page.text.lines().enumerate() {
            let runs = ["ExecStart=", "ExecReload=", "ExecStartPre="];
            let Some(rest) = runs.iter().find_map(|run| line.strip_prefix(run)) else {
                continue;
            };
            let mut words = words(rest);
            // Units of packages start other programs as well.
            if !words[0].ends_with("/tembuku") {
                continue;
            }
            count += 1;
            words[0] = "tembuku".to_owned();
            if let Err(error) = Cli::command().try_get_matches_from(words) {
                wrong.push(format!("{}:{}: {line}: {error}", page.name, n + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 1, "only {count} are found");
}

#[test]
fn lines_of_a_shell_are_split() {
    let line = "tembuku kill --client 'a b' --rate \"5/s\" | less";
    assert_eq!(
        words(line),
        ["tembuku", "kill", "--client", "a b", "--rate", "5/s"]
    );
    assert_eq!(words("tembuku run   # serve"), ["tembuku", "run"]);
    let block = "$ sudo tembuku run \\\n  -c x\ntembuku 0.1.0: running\n  tembuku man\n";
    assert_eq!(command_lines(block), ["tembuku run    -c x", "tembuku man"]);
}

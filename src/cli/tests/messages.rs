//! Log messages that documents name are there.

use super::pages::{files, pages, spans_of};
use std::collections::BTreeSet;

/// A message says what is to be known: a user of a package has no folder of this repository.
#[test]
fn no_message_names_a_page() {
    for source in files("src", &[".rs"]) {
        let lines = source.text.lines().enumerate();
        let is_text = |line: &str| line.contains("docs/") && !line.trim_start().starts_with("//");
        // The head of conf/reference.toml, and what tests read.
        let reads_it = [
            "include_str!",
            "env!",
            "compare(",
            "docs/configuration.md is; ",
        ];
        for (n, line) in lines.filter(|(_, line)| is_text(line)) {
            let is_test =
                source.name.contains("tests/") || reads_it.iter().any(|w| line.contains(w));
            assert!(is_test, "{}:{}: {line}", source.name, n + 1);
        }
    }
}

/// Calls of the log: their levels, and their arguments as text.
fn calls() -> Vec<(String, String)> {
    let mut calls = Vec::new();
    for source in files("src", &[".rs"]) {
        let mut rest = source.text.as_str();
        while let Some(at) = rest.find("tracing::") {
            rest = &rest[at + "tracing::".len()..];
            let Some((level, after)) = rest.split_once("!(") else {
                break;
            };
            if ["error", "warn", "info", "debug", "trace"].contains(&level) {
                calls.push((level.to_owned(), arguments(after).to_owned()));
            }
        }
    }
    assert!(calls.len() > 80, "only {} are found", calls.len());
    calls
}

/// Up to the parenthesis that ends them.
fn arguments(text: &str) -> &str {
    let (mut depth, mut is_text, mut is_escaped) = (1, false, false);
    for (n, c) in text.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' if is_text => is_escaped = true,
            '"' => is_text = !is_text,
            '(' if !is_text => depth += 1,
            ')' if !is_text => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &text[..n];
        }
    }
    text
}

/// The source with literals that are continued on the next line in one piece.
fn joined(source: &str) -> String {
    let mut parts = source.split("\\\n");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |joined, part| joined + part.trim_start())
}

/// Names of what varies in messages.
pub(super) fn fields() -> BTreeSet<String> {
    let calls = calls();
    let words = calls.iter().flat_map(|(_, call)| {
        let without: String = call.split('"').step_by(2).collect::<Vec<_>>().join(" ");
        let words = without.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        words.map(str::to_owned).collect::<Vec<_>>()
    });
    words.filter(|word| word.contains('_')).collect()
}

/// In the tables of docs/logging.md; "..." stands for the rest of a long one.
#[test]
fn every_message_of_the_tables_is_there() {
    let sources = files("src", &[".rs"]);
    let sources = sources
        .iter()
        .filter(|source| !source.name.contains("tests"));
    let sources: Vec<String> = sources.map(|source| joined(&source.text)).collect();
    let pages = pages();
    let page = pages.iter().find(|page| page.name == "docs/logging.md");
    let (mut is_table, mut count, mut wrong) = (false, 0, Vec::new());
    for line in page.expect("a page").text.lines() {
        match line {
            line if line.starts_with("| message |") => is_table = true,
            line if !line.starts_with('|') => is_table = false,
            line if is_table => {
                let first = line.split(" | ").next().unwrap_or_default();
                for message in spans_of(first) {
                    count += 1;
                    let literal = match message.strip_suffix(", ...") {
                        Some(begin) => format!("\"{begin}"),
                        None => format!("\"{message}\""),
                    };
                    if !sources.iter().any(|source| source.contains(&literal)) {
                        wrong.push(message);
                    }
                }
            }
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(count > 80, "only {count} are found");
}

/// Those that are constant texts, from level `info` on.
#[test]
fn every_message_that_is_logged_is_documented() {
    let (mut missing, mut count) = (Vec::new(), 0);
    let texts: String = pages().into_iter().map(|page| page.text + "\n").collect();
    let texts = texts.split_whitespace().collect::<Vec<_>>().join(" ");
    for (level, call) in calls() {
        // The message is the last text.
        let Some(message) = joined(&call).split('"').rev().nth(1).map(str::to_owned) else {
            continue;
        };
        let is_constant = !message.contains('{') && !message.contains('\\');
        if ["debug", "trace"].contains(&&*level) || !is_constant {
            continue;
        }
        count += 1;
        // Of a long one its beginning.
        let begin = message.split(", and that many").next().unwrap_or_default();
        if !texts.contains(begin) {
            missing.push(message);
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(count > 100, "only {count} are found");
}

#[test]
fn calls_are_read() {
    let call = "error = %e, count(1, \")\"), \"cannot \\\n    write\", x) + 1";
    let arguments = arguments(call);
    assert!(arguments.ends_with(", x"), "{arguments}");
    assert!(joined(arguments).contains("\"cannot write\""));
}

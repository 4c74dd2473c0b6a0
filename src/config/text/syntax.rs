//! TOML itself: text to tree, with messages of our own for its mistakes.

use std::collections::HashSet;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::report::{Fault, Lines, Report, Span};
use crate::config::text::suggestions::{quoted_key, shorten};

/// The tree, and whether it is what the user meant: a tree with duplicate keys is, one that was
/// guessed at after a syntax error is not.
pub(crate) fn parse<'a>(text: &'a str, report: &Report) -> (Spanned<DeTable<'a>>, bool) {
    let (tree, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return (tree, true);
    }
    let reliable = errors.iter().all(|error| error.message() == DUPLICATE);
    let lines = Lines::of(text);
    if !reliable && let Some((line, fault)) = other_format(text) {
        report.add(&line, fault);
        return (tree, reliable);
    }
    let mut reported = HashSet::new();
    let mut twice = HashSet::new();
    // Whatever follows a bracket that is not closed was read as a part of it, and is no mistake.
    let mut end = text.len();
    let strange: Vec<usize> = errors
        .iter()
        .filter(|error| error.message().starts_with("missing comma"))
        .filter_map(|error| error.span())
        .filter(|span| text.get(span.start..).is_some_and(begins_line_of_its_own))
        .map(|span| span.start)
        .collect();
    if let Some(open) = unclosed(tree.get_ref(), text, &strange) {
        let what = if text[open..].starts_with('[') {
            "list"
        } else {
            "table"
        };
        let closing = if what == "list" { ']' } else { '}' };
        report.add(
            &(open..open + 1),
            Fault::new(format!("the {what} that begins here is not closed")).hint(format!(
                "`{closing}` or a comma is missing after this position"
            )),
        );
        reported.insert(lines.number(open));
        end = open;
    }
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        if error.message() == DUPLICATE && is_in_second(text, span.start, &mut twice) {
            continue;
        }
        // After the first mistake in a line the parser often stumbles over the rest of it.
        if span.start <= end && reported.insert(lines.number(span.start)) {
            let (span, fault) = explain(text, &lines, span, error.message());
            report.add(&span, fault);
        }
    }
    (tree, reliable)
}

/// A file of another program, or in another format: the line that shows it.
fn other_format(text: &str) -> Option<(Span, Fault)> {
    const OF_NGINX: [&str; 5] = ["stream", "http", "server", "upstream", "events"];
    const OF_HAPROXY: [&str; 5] = ["global", "defaults", "listen", "frontend", "backend"];
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let span = start..start + line.trim_end().len();
        start += line.len();
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some(first) = words.first().filter(|word| !word.starts_with('#')) else {
            continue;
        };
        let is_indented = line.starts_with(char::is_whitespace);
        let import = |program: &str, command: &str| {
            let what = format!("this is no TOML, but looks like a configuration of {program}");
            let hint = format!("`tembuku import {command} FILE` prints one for tembuku");
            Some((span.clone(), Fault::new(what).hint(hint)))
        };
        let other = |format: &str| {
            let what = format!("this is no TOML, but looks like {format}");
            let hint = "lines are [SECTION], as in [listeners.web], or KEY = VALUE, as in bind = \
                        \"0.0.0.0:80\"";
            Some((span.clone(), Fault::new(what).hint(hint)))
        };
        match words.as_slice() {
            [name, .., "{"] if OF_NGINX.contains(name) => return import("nginx", "nginx"),
            [name] if OF_NGINX.iter().any(|n| *name == format!("{n}{{")) => {
                return import("nginx", "nginx");
            }
            [name] | [name, _] if !is_indented && OF_HAPROXY.contains(name) => {
                return import("HAProxy", "haproxy");
            }
            _ if first.starts_with('{') => return other("JSON"),
            ["---"] => return other("YAML"),
            [name] if name.ends_with(':') => return other("YAML"),
            _ if line.contains('=') || first.starts_with('[') => return None,
            // As `user www-data;` before the first block.
            _ => {}
        }
    }
    None
}

const DUPLICATE: &str = "duplicate key";

/// Whether the position is in a table that is there twice and has been reported. `twice`: the
/// names of such tables.
fn is_in_second<'a>(text: &'a str, at: usize, twice: &mut HashSet<&'a str>) -> bool {
    let end = text[at..].find('\n').map_or(text.len(), |n| at + n);
    let begin = text[..end].rfind("\n[").map_or(0, |n| n + 1);
    let Some(name) = text[begin..end].strip_prefix('[') else {
        return false;
    };
    let name = name.split(']').next().unwrap_or_default();
    let above = name.match_indices('.').map(|(n, _)| &name[..n]);
    if above.chain([name]).any(|table| twice.contains(table)) {
        return true;
    }
    if !text[begin..at].contains('\n') {
        twice.insert(name);
    }
    false
}

/// Messages of the parser about a value that is neither in quotes nor of another type.
const UNQUOTED: [&str; 4] = [
    "string values must be quoted",
    "invalid boolean",
    "invalid float",
    "invalid integer",
];

fn explain(text: &str, lines: &Lines, span: Span, message: &str) -> (Span, Fault) {
    if message == DUPLICATE {
        let name = text
            .get(span.clone())
            .unwrap_or_default()
            .trim_matches(['"', '\'']);
        let line = lines.line(text, span.start).1.trim_start();
        let fault = match line.split_inclusive(']').next() {
            Some(header) if header.starts_with('[') => {
                Fault::new(format!("the table {} is there twice", shorten(header)))
                    .hint("keep one of the two, or rename one, also where its name is used")
            }
            _ => Fault::new(format!("the key {} is there twice", quoted_key(name)))
                .hint("keep one of the two"),
        };
        return (span, fault);
    }
    let ours = [
        (
            "invalid basic string, expected `\"`",
            "the text is not closed",
            "end it with a double quote",
        ),
        (
            "invalid literal string, expected `'`",
            "the text is not closed",
            "end it with a single quote",
        ),
        (
            "missing escaped value",
            "unknown escape in a text",
            "write \\\\ for a backslash, or put the text in single quotes",
        ),
        (
            "unclosed table,",
            "the section header is not closed",
            "end it with `]`",
        ),
        (
            "unexpected leading zero",
            "a number cannot begin with 0",
            "0o10 is octal",
        ),
        (
            "key with no value",
            "after a key comes `=` and a value",
            "sections are written [like.this]",
        ),
    ];
    if let Some((_, ours, hint)) = ours.iter().find(|(theirs, ..)| message.starts_with(theirs)) {
        return (span, Fault::new(*ours).hint(*hint));
    }
    if !UNQUOTED.iter().any(|start| message.starts_with(start)) {
        let hint =
            "lines are KEY = VALUE or [SECTION]; text stands in double quotes, lists in brackets";
        return (span, Fault::new(message).hint(hint));
    }
    let (span, word) = whole_word(text, span);
    if word.is_empty() {
        let fault = Fault::new("a value is missing here");
        return (
            span,
            fault.hint("as in: key = \"text\", key = 10 or key = true"),
        );
    }
    let hint = match word.to_lowercase().as_str() {
        lower @ ("true" | "false") => format!("write {lower} in lower case"),
        _ => format!("text stands in quotes: write \"{}\"", shorten(word)),
    };
    (
        span,
        Fault::new(format!("`{}` is no value", shorten(word))).hint(hint),
    )
}

/// Extends the span that the parser reports, a part of a value, to the whole value.
fn whole_word(text: &str, span: Span) -> (Span, &str) {
    let ends = |c: char| c.is_whitespace() || ",[]{}=\"'#".contains(c);
    let (Some(before), Some(part), Some(after)) = (
        text.get(..span.start),
        text.get(span.clone()),
        text.get(span.end..),
    ) else {
        return (span, "");
    };
    let start = before.trim_end_matches(|c: char| !ends(c)).len();
    let mut end = span.end;
    // An empty part stands where something is missing, which need not be before a word.
    if !part.is_empty() || start < span.start {
        end += after.find(ends).unwrap_or(after.len());
    }
    (start..end, text[start..end].trim_end())
}

/// `key = …` or `[section]`: what belongs in no list, so that the list before it lacks its end.
fn begins_line_of_its_own(text: &str) -> bool {
    let after = text.trim_start_matches(|c: char| c.is_alphanumeric() || "_-.".contains(c));
    let key = after.len() < text.len();
    text.starts_with('[') || (key && after.trim_start_matches([' ', '\t']).starts_with('='))
}

/// Where the first list or inline table begins that has no end, or holds one of the
/// positions in `strange`.
fn unclosed(table: &DeTable<'_>, text: &str, strange: &[usize]) -> Option<usize> {
    table
        .values()
        .filter_map(|value| unclosed_value(value, text, strange))
        .min()
}

fn unclosed_value(value: &Spanned<DeValue<'_>>, text: &str, strange: &[usize]) -> Option<usize> {
    let span = value.span();
    let part = text.get(span.clone()).unwrap_or_default();
    let open = |begin, end| {
        let closed = part.len() > 1 && part.ends_with(end);
        part.starts_with(begin) && (!closed || strange.iter().any(|at| span.contains(at)))
    };
    match value.get_ref() {
        DeValue::Array(_) if open('[', ']') => Some(span.start),
        DeValue::Array(items) => items
            .iter()
            .filter_map(|item| unclosed_value(item, text, strange))
            .min(),
        DeValue::Table(_) if open('{', '}') => Some(span.start),
        DeValue::Table(table) => unclosed(table, text, strange),
        _ => None,
    }
}

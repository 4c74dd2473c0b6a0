//! TOML itself: text to tree, and its mistakes in our words.

use toml::{Spanned, de::DeTable};

use super::{
    problem::{Fault, Report, Span},
    section::{quoted_key, shorten},
};

/// The tree, and whether it is what the user meant: a tree with duplicate keys is, one that was guessed
/// at after a syntax error is not.
pub(super) fn parse<'a>(text: &'a str, report: &Report) -> (Spanned<DeTable<'a>>, bool) {
    let (tree, errors) = DeTable::parse_recoverable(text);
    let mut reliable = true;
    let mut last_line = None;
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        reliable &= error.message() == DUPLICATE;
        // After the first mistake in a line the parser often stumbles over the rest of it.
        let line = text
            .get(..span.start)
            .map(|before| before.matches('\n').count());
        if line.is_none() || line != last_line {
            let (span, fault) = explain(text, span, error.message());
            report.add(&span, fault);
        }
        last_line = line;
    }
    (tree, reliable)
}

const DUPLICATE: &str = "duplicate key";

fn explain(text: &str, span: Span, message: &str) -> (Span, Fault) {
    let part = text.get(span.clone()).unwrap_or_default();
    if message == DUPLICATE {
        let line = text
            .get(..span.start)
            .and_then(|before| before.rsplit('\n').next())
            .unwrap_or_default();
        let what = if line.trim_start().starts_with('[') {
            "table"
        } else {
            "key"
        };
        let name = quoted_key(part.trim_matches(['"', '\'']));
        return (
            span,
            Fault::new(format!("the {what} {name} is there twice")).hint("keep one of the two"),
        );
    }
    let unquoted = [
        "string values must be quoted",
        "invalid boolean",
        "invalid float",
        "invalid integer",
    ];
    if unquoted.iter().any(|start| message.starts_with(start)) {
        let (span, word) = whole_word(text, &span);
        if word.is_empty() {
            return (span, Fault::new("a value is missing here"));
        }
        let hint = match word.to_lowercase().as_str() {
            lower @ ("true" | "false") => format!("write {lower} in small letters"),
            _ => format!("text stands in quotes: write \"{}\"", shorten(word)),
        };
        let word = shorten(&format!("{word:?}"));
        return (
            span,
            Fault::new(format!("{} is no value", word.replace('"', "`"))).hint(hint),
        );
    }
    (span, Fault::new(message))
}

/// The parser marks the part of a value that surprised it; the user knows the value as a whole.
fn whole_word<'t>(text: &'t str, span: &Span) -> (Span, &'t str) {
    let ends = |c: char| c.is_whitespace() || ",[]{}=\"'#".contains(c);
    let (Some(before), Some(after)) = (text.get(..span.start), text.get(span.start..)) else {
        return (span.clone(), "");
    };
    let start = before.rfind(ends).map_or(0, |at| {
        at + before[at..].chars().next().map_or(1, char::len_utf8)
    });
    let end = span.start + after.find(ends).unwrap_or(after.len());
    (start..end, &text[start..end])
}

//! Collects what is wrong while a configuration is read. Reading never stops at the first mistake.

use std::{cell::RefCell, ops::Range};

use super::{
    excerpt::Excerpt,
    problem::{Position, Problem, Problems},
};
use crate::config::text::shorten::shorten;

/// Of a value that a message quotes so many characters are shown, and of a message so many in all:
/// a file may hold megabytes in one value.
const MOST_OF_VALUE: usize = 100;
const MOST_OF_MESSAGE: usize = 1_000;
/// Of a file with more problems the first are shown.
const MOST_PROBLEMS: usize = 1_000;

/// A range of the text, in bytes.
pub(crate) type Span = Range<usize>;

/// A rule that a value breaks; the caller adds the position of the value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    pub message: String,
    pub hint: Option<String>,
}

/// A fault with a message that is formatted.
macro_rules! fault {
    ($($message:tt)*) => { $crate::config::text::report::Fault::new(format!($($message)*)) };
}
pub(crate) use fault;

impl Fault {
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
        }
    }

    /// What was written may be quoted in it: it must not steer the terminal, nor fill it.
    fn printable(self) -> Self {
        let plain = |text: String| {
            let text = shorten_values(&text).replace(char::is_control, "\u{fffd}");
            shorten(&text, MOST_OF_MESSAGE).into_owned()
        };
        Self {
            message: plain(self.message),
            hint: self.hint.map(plain),
        }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds a hint if there is no more specific one.
    pub(crate) fn or_hint(self, hint: impl Into<String>) -> Self {
        match self.hint {
            Some(_) => self,
            None => self.hint(hint),
        }
    }
}

/// With every value in double quotes cut, where a backslash is before quotes that belong to it.
fn shorten_values(message: &str) -> String {
    let mut out = String::new();
    let mut rest = message;
    while let Some((before, after)) = rest.split_once('"') {
        out.push_str(before);
        out.push('"');
        let mut escaped = false;
        let end = after.find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let Some(end) = end else {
            rest = after;
            break;
        };
        out.push_str(&shorten(&after[..end], MOST_OF_VALUE));
        out.push('"');
        rest = &after[end + 1..];
    }
    out.push_str(rest);
    out
}

impl From<String> for Fault {
    fn from(message: String) -> Self {
        Self::new(message)
    }
}

/// The text that is read, and how to name positions in it.
pub(crate) struct Source<'a> {
    pub(crate) origin: &'a str,
    pub(crate) text: &'a str,
    /// On the command line: which part of the text belongs to which flag. Empty for a file.
    pub(crate) flags: Vec<(Span, &'static str)>,
}

#[derive(Default)]
pub(crate) struct Report {
    // Shared by every section that is open at the time, hence the cell.
    found: RefCell<Vec<(Option<Span>, Fault)>>,
}

impl Report {
    pub(crate) fn add(&self, span: &Span, fault: Fault) {
        debug_assert!(fault.hint.is_some(), "no way out: {}", fault.message);
        self.found.borrow_mut().push((Some(span.clone()), fault));
    }

    /// For a problem of the whole file.
    pub(crate) fn add_whole(&self, fault: Fault) {
        self.found.borrow_mut().push((None, fault));
    }

    pub(crate) fn finish(self, source: &Source<'_>) -> Result<(), Problems> {
        let mut found = self.found.into_inner();
        // Those of the whole file last: they are often a consequence of the others.
        let position = |span: &Option<Span>| {
            span.as_ref()
                .map_or((usize::MAX, 0), |span| (span.start, span.end))
        };
        found.sort_unstable_by(|(a, x), (b, y)| {
            position(a).cmp(&position(b)).then_with(|| x.cmp(y))
        });
        // A value in [defaults] is looked at by every section that falls back to it.
        found.dedup();
        let more = found.len().saturating_sub(MOST_PROBLEMS);
        if more > 0 {
            found.truncate(MOST_PROBLEMS);
            let fault = fault!("{more} more problems are not shown");
            found.push((None, fault.hint("correct those above first")));
        }
        let lines = Lines::of(source.text);
        let list = found.into_iter().map(|(span, fault)| {
            let Fault { message, hint } = fault.printable();
            let (position, excerpt) = span.map(|span| locate(span, source, &lines)).unzip();
            Problem {
                message,
                hint,
                position,
                excerpt,
            }
        });
        match Problems::new(source.origin, list.collect()) {
            None => Ok(()),
            Some(problems) => Err(problems),
        }
    }
}

/// Where the lines of a text begin. Made once: a file of another kind can have a mistake in every
/// line.
pub(crate) struct Lines {
    starts: Vec<usize>,
}

impl Lines {
    pub(crate) fn of(text: &str) -> Self {
        let breaks = text.match_indices('\n').map(|(at, _)| at + 1);
        Self {
            starts: std::iter::once(0).chain(breaks).collect(),
        }
    }

    /// From 0.
    pub(crate) fn number(&self, at: usize) -> usize {
        self.starts.partition_point(|start| *start <= at) - 1
    }

    /// Where the line begins that `at` is in, and the line without its end.
    pub(crate) fn line<'t>(&self, text: &'t str, at: usize) -> (usize, &'t str) {
        let number = self.number(at);
        let start = self.starts[number];
        let end = self.starts.get(number + 1).copied().unwrap_or(text.len());
        (start, text[start..end].trim_end_matches(['\n', '\r']))
    }
}

fn locate(span: Span, source: &Source<'_>, lines: &Lines) -> (Position, Excerpt) {
    let text = source.text;
    let start = floor(text, span.start);
    let end = floor(text, span.end).max(start);
    let (line_start, line) = lines.line(text, start);
    let line_end = line_start + line.len();
    // A byte order mark is no column.
    let shown = line.trim_start_matches('\u{feff}');
    let shown_start = line_end - shown.len();
    let characters = |from: usize, to: usize| {
        text.get(from..to).map_or(0, |part| {
            part.trim_end_matches(['\n', '\r']).chars().count()
        })
    };
    let before = characters(shown_start, start);
    let underlined = characters(start.max(shown_start), end.min(line_end));
    let flag = source
        .flags
        .iter()
        .find(|(part, _)| part.contains(&span.start));
    let position = Position {
        line: lines.number(start) + 1,
        column: before + 1,
        flag: flag.map(|(_, flag)| *flag),
    };
    let goes_on = text
        .get(line_end..end)
        .is_some_and(|rest| !rest.trim_end().is_empty());
    (
        position,
        Excerpt::new(shown, before..before + underlined, goes_on),
    )
}

/// The nearest character boundary at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, span: Span) -> String {
        let report = Report::default();
        report.add(&span, Fault::new("wrong").hint("right"));
        let source = Source {
            origin: "f.toml",
            text,
            flags: Vec::new(),
        };
        report.finish(&source).expect_err("one problem").to_string()
    }

    #[test]
    fn carets_stand_under_the_span() {
        assert_eq!(
            shown("a = 1\nbb = 23\n", 11..13),
            "error: wrong\n --> f.toml:2:6\n   |\n 2 | bb = 23\n   |      ^^\n  hint: right\n\n\
             1 problem in f.toml\n"
        );
    }

    #[test]
    fn tabs_and_non_ascii_count_as_one_column_each() {
        let text = "\té = \"ü\"\r\nx";
        let start = text.find('"').expect("there");
        let shown = shown(text, start..start + 4);
        let expected = "f.toml:1:6\n   |\n 1 |     é = \"ü\"\n   |         ^^^\n";
        assert!(shown.contains(expected), "{shown}");
    }

    #[test]
    fn a_span_over_several_lines_shows_the_first() {
        let shown = shown("a = [\r\n1,\r\n]\r\n", 4..12);
        assert!(shown.contains(" 1 | a = [\n   |     ^…\n"), "{shown}");
    }

    #[test]
    fn no_control_character_reaches_the_terminal() {
        assert!(!shown("a = \"\u{1b}[31m\"", 4..5).contains('\u{1b}'));
    }

    #[test]
    fn a_long_line_is_cut_around_the_place() {
        let text = format!("{}!{}", "x".repeat(500), "y".repeat(500));
        let shown = shown(&text, 500..501);
        assert!(shown.contains("f.toml:1:501"), "{shown}");
        let line = |number| shown.lines().nth(number).expect("a line");
        let column = |line: &str, c| line.chars().position(|x| x == c);
        assert_eq!(column(line(3), '!'), column(line(4), '^'));
        assert!(line(3).chars().count() < 160);
    }

    #[test]
    fn long_values_are_cut_and_their_message_is_not() {
        for value in [
            "x".repeat(1 << 20),
            "x y\"\\".repeat(1 << 18),
            "ü ".repeat(1 << 19),
        ] {
            let fault = fault!("`key` = {value:?} is wrong")
                .hint(format!("write {value:?} and {value:?}"))
                .printable();
            let (begin, end) = ("`key` = \"", "\" is wrong");
            assert!(fault.message.starts_with(begin) && fault.message.ends_with(end));
            let hint = fault.hint.expect("a hint");
            for text in [fault.message, hint] {
                assert!(text.chars().count() < 250 && text.contains('…'), "{text}");
            }
            // Without quotes as well.
            let text = fault!("`{value}` is wrong").printable().message;
            assert!(text.chars().count() <= MOST_OF_MESSAGE, "{text}");
            assert!(text.ends_with(" is wrong"), "{text}");
        }
        let short = "`a` = \"b\" is no \"c";
        assert_eq!(shorten_values(short), short);
    }

    #[test]
    fn of_very_many_problems_the_first_are_shown() {
        let report = Report::default();
        for n in 0..5_000 {
            report.add(&(n..n + 1), Fault::new("wrong").hint("right"));
        }
        let source = Source {
            origin: "f.toml",
            text: &"a".repeat(5_000),
            flags: Vec::new(),
        };
        let problems = report.finish(&source).expect_err("many");
        assert_eq!(problems.len(), MOST_PROBLEMS + 1);
        let last = problems.iter().last().map(|p| p.message.as_str());
        assert_eq!(last, Some("4000 more problems are not shown"));
    }

    #[test]
    fn a_byte_order_mark_is_no_column() {
        let expected = "f.toml:1:1\n   |\n 1 | a = 1\n   | ^\n";
        assert!(shown("\u{feff}a = 1", 3..4).contains(expected));
    }

    #[test]
    fn spans_past_the_end_or_inside_a_character_do_not_panic() {
        shown("é", 1..9);
        shown("", 0..0);
        shown("\u{feff}", 0..3);
        shown("\u{feff}a", 0..1);
        shown("a\n", 2..2);
        shown("a\r\n", 2..3);
    }

    #[test]
    fn the_same_fault_twice_is_one_problem() {
        let report = Report::default();
        for message in ["x", "y", "x", "y"] {
            report.add(&(0..1), Fault::new(message).hint("out"));
        }
        let source = Source {
            origin: "f.toml",
            text: "a",
            flags: Vec::new(),
        };
        assert_eq!(
            report.finish(&source).map_err(|problems| problems.len()),
            Err(2)
        );
    }
}

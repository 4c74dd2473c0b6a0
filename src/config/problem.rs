//! What is wrong with a configuration, where, and what to do about it.
//!
//! Problems are collected in a [`Report`] while the text is read, and become [`Problems`] at the end:
//! sorted by place, each with the line it speaks of. Reading never stops at the first one.

use std::{cell::RefCell, fmt, ops::Range};

/// Everything that is wrong with one configuration; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    origin: String,
    list: Vec<Problem>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub message: String,
    pub hint: Option<String>,
    /// `None` where the whole file is meant.
    pub position: Option<Position>,
    excerpt: Option<Excerpt>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// From 1. On the command line always 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// The flag that is meant, where the configuration came from the command line.
    pub flag: Option<&'static str>,
}

impl Problems {
    /// A problem with the whole of `origin`: it cannot be read, for example.
    pub(super) fn whole(origin: &str, message: String, hint: &str) -> Self {
        let problem = Problem {
            message,
            hint: Some(hint.to_owned()),
            position: None,
            excerpt: None,
        };
        Self {
            origin: origin.to_owned(),
            list: vec![problem],
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.list.iter()
    }

    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.list.len()
    }
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.list {
            writeln!(f, "error: {}", problem.message)?;
            match &problem.position {
                None => writeln!(f, " --> {}", self.origin)?,
                Some(Position {
                    flag: Some(flag), ..
                }) => writeln!(f, " --> {flag}")?,
                Some(p) => writeln!(f, " --> {}:{}:{}", self.origin, p.line, p.column)?,
            }
            if let (Some(excerpt), Some(position)) = (&problem.excerpt, &problem.position) {
                excerpt.write(position, f)?;
            }
            if let Some(hint) = &problem.hint {
                writeln!(f, "  hint: {hint}")?;
            }
            writeln!(f)?;
        }
        let noun = if self.list.len() == 1 {
            "problem"
        } else {
            "problems"
        };
        writeln!(f, "{} {noun} in {}", self.list.len(), self.origin)
    }
}

/// A place in the text, in bytes.
pub(super) type Span = Range<usize>;

/// A rule that a value breaks; the caller knows where the value stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Fault {
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

impl Fault {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
        }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<String> for Fault {
    fn from(message: String) -> Self {
        Self::new(message)
    }
}

/// The text that is read, and how to name places in it.
pub(super) struct Source<'a> {
    pub(super) origin: &'a str,
    pub(super) text: &'a str,
    /// On the command line: which part of the text belongs to which flag. Empty for a file.
    pub(super) flags: Vec<(Span, &'static str)>,
}

/// Collects faults while the text is read.
#[derive(Default)]
pub(super) struct Report {
    // Shared by every section that is open at the time, hence the cell.
    found: RefCell<Vec<(Option<Span>, Fault)>>,
}

impl Report {
    pub(super) fn add(&self, span: &Span, fault: impl Into<Fault>) {
        self.found
            .borrow_mut()
            .push((Some(span.clone()), fault.into()));
    }

    /// For what no part of the text can be blamed.
    pub(super) fn add_whole(&self, fault: impl Into<Fault>) {
        self.found.borrow_mut().push((None, fault.into()));
    }

    pub(super) fn finish(self, source: &Source<'_>) -> Result<(), Problems> {
        let mut found = self.found.into_inner();
        // Those of the whole file last: they are often a consequence of the others.
        let place =
            |span: &Option<Span>| span.as_ref().map_or((usize::MAX, 0), |s| (s.start, s.end));
        found.sort_by(|(a, x), (b, y)| place(a).cmp(&place(b)).then_with(|| x.cmp(y)));
        // A value in [defaults] is looked at by every section that falls back to it.
        found.dedup();
        let list: Vec<Problem> = found
            .into_iter()
            .map(|(span, fault)| problem(span, fault, source))
            .collect();
        if list.is_empty() {
            Ok(())
        } else {
            Err(Problems {
                origin: source.origin.to_owned(),
                list,
            })
        }
    }
}

fn problem(span: Option<Span>, fault: Fault, source: &Source<'_>) -> Problem {
    let Fault { message, hint } = fault;
    let Some(span) = span else {
        return Problem {
            message,
            hint,
            position: None,
            excerpt: None,
        };
    };
    let text = source.text;
    let start = floor(text, span.start);
    let end = floor(text, span.end).max(start);
    let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
    let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
    let line = text[line_start..line_end]
        .trim_end_matches('\r')
        .trim_start_matches('\u{feff}');
    // A byte order mark is no column of its own.
    let line_start = if text[line_start..].starts_with('\u{feff}') {
        line_start + '\u{feff}'.len_utf8()
    } else {
        line_start
    };
    let before = text
        .get(line_start..start)
        .unwrap_or_default()
        .chars()
        .count();
    let marked = text[start..end.min(line_end)]
        .trim_end_matches('\r')
        .chars()
        .count();
    let flag = source
        .flags
        .iter()
        .find(|(part, _)| part.contains(&span.start))
        .map(|(_, flag)| *flag);
    Problem {
        message,
        hint,
        position: Some(Position {
            line: text[..line_start].matches('\n').count() + 1,
            column: before + 1,
            flag,
        }),
        excerpt: Some(Excerpt {
            line: line.to_owned(),
            before,
            marked,
            goes_on: end > line_end,
        }),
    }
}

/// The nearest character boundary at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// The line a problem stands on. Lengths are in characters.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Excerpt {
    line: String,
    before: usize,
    marked: usize,
    goes_on: bool,
}

/// What is shown of a long line: this much before the place, and this much in all.
const LEAD: usize = 60;
const WIDTH: usize = 160;

impl Excerpt {
    fn write(&self, position: &Position, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = if position.flag.is_some() {
            String::new()
        } else {
            position.line.to_string()
        };
        let gutter = number.len().max(2);
        let skip = if self.before > LEAD {
            self.before - LEAD
        } else {
            0
        };
        let more = if skip > 0 { "…" } else { "" };

        let (mut shown, mut pad, mut carets) = (String::new(), more.chars().count(), 0);
        for (at, c) in self.line.chars().enumerate().skip(skip).take(WIDTH) {
            let width = show(c, &mut shown);
            if at < self.before {
                pad += width;
            } else if at < self.before + self.marked {
                carets += width;
            }
        }
        let cut = if self.line.chars().count() > skip + WIDTH {
            "…"
        } else {
            ""
        };
        let goes_on = if self.goes_on { "…" } else { "" };
        writeln!(f, "{:gutter$} |", "")?;
        writeln!(f, "{number:>gutter$} | {more}{shown}{cut}")?;
        writeln!(
            f,
            "{:gutter$} | {:pad$}{}{goes_on}",
            "",
            "",
            "^".repeat(carets.max(1))
        )
    }
}

/// Appends `c` as a terminal may safely show it; returns how many columns that takes.
fn show(c: char, out: &mut String) -> usize {
    match c {
        '\t' => {
            out.push_str("    ");
            4
        }
        // An escape sequence in the file must not reach the terminal.
        c if c.is_control() => {
            out.push('\u{fffd}');
            1
        }
        c => {
            out.push(c);
            1
        }
    }
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
            "error: wrong\n --> f.toml:2:6\n   |\n 2 | bb = 23\n   |      ^^\n  hint: right\n\n1 problem in f.toml\n"
        );
    }

    #[test]
    fn tabs_and_non_ascii_count_as_one_column_each() {
        let text = "\té = \"ü\"\r\nx";
        let start = text.find('"').expect("there");
        let shown = shown(text, start..start + 4);
        assert!(
            shown.contains("f.toml:1:6\n   |\n 1 |     é = \"ü\"\n   |         ^^^\n"),
            "{shown}"
        );
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
        let (source, carets) = (
            shown.lines().nth(3).expect("source"),
            shown.lines().nth(4).expect("carets"),
        );
        let column = |line: &str, c| line.chars().position(|x| x == c);
        assert_eq!(column(source, '!'), column(carets, '^'));
        assert!(source.chars().count() < 180);
    }

    #[test]
    fn a_byte_order_mark_is_no_column() {
        assert!(shown("\u{feff}a = 1", 3..4).contains("f.toml:1:1\n   |\n 1 | a = 1\n   | ^\n"));
    }

    #[test]
    fn spans_past_the_end_or_inside_a_character_do_not_panic() {
        shown("é", 1..9);
        shown("", 0..0);
        shown("\u{feff}", 0..3);
        shown("a\n", 2..2);
    }
}

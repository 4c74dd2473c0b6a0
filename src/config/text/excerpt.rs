//! The line a problem stands on, with carets under the part that is meant.

use std::{fmt, ops::Range};

/// Lengths are in characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Excerpt {
    /// As a terminal may show it.
    shown: String,
    /// Columns before the carets.
    pad: usize,
    carets: usize,
    /// The part goes on in the lines that follow.
    goes_on: bool,
}

/// How much of a long line is shown, and how much of that before the underlined part.
const WIDTH: usize = 140;
const LEAD: usize = 60;

impl Excerpt {
    /// `underlined` counts in characters of `line`.
    pub(crate) fn new(line: &str, underlined: Range<usize>, goes_on: bool) -> Self {
        let length = line.chars().count();
        let secret = secret_from(line);
        let skip = if length > WIDTH {
            underlined.start.saturating_sub(LEAD)
        } else {
            0
        };
        let mut shown = String::new();
        if skip > 0 {
            shown.push('…');
        }
        let (mut pad, mut carets) = (shown.chars().count(), 0);
        for (at, c) in line.chars().enumerate().skip(skip).take(WIDTH) {
            let width = show(if at < secret { c } else { '*' }, &mut shown);
            if at < underlined.start {
                pad += width;
            } else if at < underlined.end {
                carets += width;
            }
        }
        if length > skip + WIDTH {
            shown.push('…');
        }
        Self {
            shown,
            pad,
            carets: carets.max(1),
            goes_on,
        }
    }

    pub(crate) fn write(&self, line: Option<usize>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = line.map_or_else(String::new, |line| line.to_string());
        let (gutter, pad) = (number.len().max(2), self.pad);
        let carets = "^".repeat(self.carets);
        let goes_on = if self.goes_on { "…" } else { "" };
        writeln!(f, "{:gutter$} |", "")?;
        writeln!(f, "{number:>gutter$} | {}", self.shown)?;
        writeln!(f, "{:gutter$} | {:pad$}{carets}{goes_on}", "", "")
    }
}

/// From which character on a line is not shown: a password must not be in the file, but if it is,
/// it must not get to a terminal or a log.
fn secret_from(line: &str) -> usize {
    const KEY: &str = "password";
    let value = line.match_indices(KEY).find_map(|(at, _)| {
        let rest = line[at + KEY.len()..].trim_start_matches(['"', '\'']);
        rest.trim_start().strip_prefix('=')
    });
    value.map_or(usize::MAX, |value| {
        line.chars().count() - value.trim_start().chars().count()
    })
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

//! Tables of text, with columns below each other.

use std::io::{self, IsTerminal as _};

/// What a column of text keeps where the terminal is narrow.
const SHORTEST: usize = 16;
const GAP: &str = "  ";
/// Before text that has a line of its own.
const INDENT: &str = "    ";

/// Names, then figures, which are aligned to the right, then text again.
pub(super) struct Row(Vec<(String, bool)>);

impl Row {
    pub(super) fn of<const A: usize, const B: usize, const C: usize>(
        names: [impl Into<String>; A],
        figures: [impl Into<String>; B],
        words: [impl Into<String>; C],
    ) -> Self {
        let left = |text: String| (text, false);
        let names = names.into_iter().map(Into::into).map(left);
        let figures = figures.into_iter().map(|text| (text.into(), true));
        let words = words.into_iter().map(Into::into).map(left);
        Self(names.chain(figures).chain(words).collect())
    }
}

impl FromIterator<(String, bool)> for Row {
    /// Each cell with whether it is aligned to the right.
    fn from_iter<I: IntoIterator<Item = (String, bool)>>(cells: I) -> Self {
        Self(cells.into_iter().collect())
    }
}

/// That of standard output; `None`: it is no terminal, and nothing is to be shortened.
pub(super) fn terminal_width() -> Option<usize> {
    let out = io::stdout();
    let is_terminal = out.is_terminal();
    let size = is_terminal.then(|| rustix::termios::tcgetwinsize(&out));
    let columns = size.and_then(Result::ok).map(|size| size.ws_col);
    columns.filter(|columns| *columns > 0).map(usize::from)
}

/// A whole table, for a terminal of this width.
pub(super) fn table(rows: &[Row], terminal: Option<usize>) -> String {
    Widths::new(terminal, &[]).lay_out(rows)
}

/// The columns of a table that is printed in parts: they only get wider.
pub(super) struct Widths {
    columns: Vec<usize>,
    /// What the last column keeps, of which longer text can have a line of its own.
    last_title: usize,
    terminal: Option<usize>,
    /// Columns that are left out, in this order, where it does not help to shorten the others.
    dispensable: &'static [usize],
}

impl Widths {
    pub(super) fn new(terminal: Option<usize>, dispensable: &'static [usize]) -> Self {
        Self {
            columns: Vec::new(),
            last_title: 0,
            terminal,
            dispensable,
        }
    }

    /// The next rows of the table.
    pub(super) fn lay_out(&mut self, rows: &[Row]) -> String {
        for row in rows {
            self.columns.resize(row.0.len().max(self.columns.len()), 0);
            for (width, (text, _)) in self.columns.iter_mut().zip(&row.0) {
                *width = text.chars().count().max(*width);
            }
        }
        let Some(first) = rows.first() else {
            return String::new();
        };
        if self.last_title == 0 {
            let title = first.0.last();
            self.last_title = title.map_or(0, |(title, _)| title.chars().count());
        }
        let widths = self.shortened(first);
        let lines = rows.iter().map(|row| line(row, &widths, self.terminal));
        lines.collect()
    }

    /// The widths with which the rows fit into the terminal, as far as possible; 0: left out.
    fn shortened(&self, row: &Row) -> Vec<usize> {
        let mut widths = self.columns.clone();
        let Some(terminal) = self.terminal.filter(|most| length(&widths) > *most) else {
            return widths;
        };
        let last = widths.len() - 1;
        let texts: Vec<usize> = (0..last).filter(|n| !row.0[*n].1).collect();
        let can_move = !row.0[last].1 && widths[last] > SHORTEST;
        let counted = |widths: &[usize]| match can_move {
            true => length(&widths[..last]) + GAP.len() + self.last_title,
            false => length(widths),
        };
        for column in self.dispensable {
            let mut shortest = widths.clone();
            for n in &texts {
                shortest[*n] = shortest[*n].min(SHORTEST);
            }
            if counted(&shortest) > terminal {
                widths[*column] = 0;
            }
        }
        while counted(&widths) > terminal
            && let Some(longest) = texts.iter().max_by_key(|n| widths[**n])
            && widths[*longest] > SHORTEST
        {
            widths[*longest] -= 1;
        }
        widths
    }
}

/// Of a line with all of these columns.
fn length(widths: &[usize]) -> usize {
    let shown = widths.iter().filter(|width| **width > 0);
    let length: usize = shown.map(|width| width + GAP.len()).sum();
    length.saturating_sub(GAP.len())
}

fn line(row: &Row, widths: &[usize], terminal: Option<usize>) -> String {
    let cells = row.0.iter().zip(widths);
    let mut cells: Vec<_> = cells.filter(|(_, width)| **width > 0).collect();
    let mut below = String::new();
    if let (Some(terminal), Some(((text, false), _))) = (terminal, cells.last())
        && length(&widths[..widths.len() - 1]) + GAP.len() + text.chars().count() > terminal
        && text.chars().count() > SHORTEST
    {
        below = wrap(text, terminal);
        cells.pop();
    }
    let cells = cells
        .into_iter()
        .map(|((text, is_right), width)| fit(text, *width, *is_right));
    let line = cells.collect::<Vec<_>>().join(GAP);
    format!("{}\n{below}", line.trim_end())
}

/// Lines of this width, as far as words allow, those after the first indented.
pub(super) fn wrap_after_first(text: &str, width: usize) -> String {
    wrap_from("", text, width)
}

/// The same, all indented.
fn wrap(text: &str, width: usize) -> String {
    wrap_from(INDENT, text, width)
}

/// `indent`: that of the first line.
fn wrap_from(indent: &str, text: &str, width: usize) -> String {
    let (mut lines, mut line) = (String::new(), indent.to_owned());
    for word in text.split(' ') {
        let is_begun = !line.trim_start().is_empty();
        if is_begun && line.chars().count() + 1 + word.chars().count() > width {
            lines = lines + &line + "\n";
            INDENT.clone_into(&mut line);
        } else if is_begun {
            line.push(' ');
        }
        line += word;
    }
    lines + &line + "\n"
}

/// In so many columns; what is too long loses its middle, since names differ at their ends.
pub(super) fn fit(text: &str, width: usize, is_right: bool) -> String {
    let length = text.chars().count();
    if length > width {
        let tail = (width.saturating_sub(1)) * 2 / 3;
        let head = width.saturating_sub(1) - tail;
        let mut cut: String = text.chars().take(head).collect();
        if width > 0 {
            cut.push('…');
        }
        cut.extend(text.chars().skip(length - tail));
        return cut;
    }
    match is_right {
        true => format!("{text:>width$}"),
        false => format!("{text:<width$}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_wrapped_between_words() {
        let text = "one two three four";
        assert_eq!(wrap_after_first(text, 13), "one two three\n    four\n");
        assert_eq!(wrap_after_first(text, 80), "one two three four\n");
        assert_eq!(wrap(text, 13), "    one two\n    three\n    four\n");
        assert_eq!(
            wrap_after_first("longer than that", 4),
            "longer\n    than\n    that\n"
        );
    }

    const LONG: &str = "[2001:db8:85a3:8d3:1319:8a2e:370:7348]:16379";

    #[test]
    fn texts_fit() {
        assert_eq!(fit("abc", 5, false), "abc  ");
        assert_eq!(fit("abc", 5, true), "  abc");
        assert_eq!(fit("redis/10.0.0.1:6379", 10, false), "red…1:6379");
        assert_eq!(fit("abc", 1, false), "…");
        assert_eq!(fit("abc", 0, false), "");
    }

    #[test]
    fn a_narrow_terminal_shortens_names_and_moves_reasons_to_a_line_of_their_own() {
        let rows = [
            Row::of(
                ["backend", "state"],
                ["sessions", "total"],
                ["check", "why"],
            ),
            Row::of(
                [LONG, "drained"],
                ["1000", "1234567"],
                [
                    "ok",
                    "set by the operator; since 2026-11-30T02:20:51Z; weight 5 by operator, \
                        1 in the file",
                ],
            ),
            Row::of(["10.0.0.1:1", "up"], ["0", "7"], ["ok", ""]),
        ];
        let whole = table(&rows, None);
        let lines: Vec<&str> = whole.lines().collect();
        assert!(lines.len() == 3 && lines[1].starts_with(LONG), "{whole}");
        assert_eq!(table(&rows, Some(500)), whole);
        let expected = "\
backend                                   state    sessions    total  check  why
[2001:db8:85a…:1319:8a2e:370:7348]:16379  drained      1000  1234567  ok
    set by the operator; since 2026-11-30T02:20:51Z; weight 5 by operator, 1 in
    the file
10.0.0.1:1                                up              0        7  ok
";
        let narrow = table(&rows, Some(80));
        let is_narrow = narrow.lines().all(|line| line.chars().count() <= 80);
        assert!(is_narrow, "{narrow}");
        assert_eq!(narrow, expected, "\n{narrow}");
    }

    #[test]
    fn columns_are_left_out_where_shorter_ones_do_not_help() {
        let rows = [
            Row::of(
                ["id", "listener", "client", "backend"],
                ["port", "age"],
                ["state"],
            ),
            Row::of(["12", "cache", LONG, LONG], ["50722", "2.7s"], ["relaying"]),
        ];
        let narrow = |width| Widths::new(Some(width), &[4, 1]).lay_out(&rows);
        for (width, left_out) in [
            (72, [false, false]),
            (66, [true, false]),
            (56, [true, true]),
        ] {
            let text = narrow(width);
            let has = [text.contains("50722"), text.contains("cache")];
            assert_eq!(has.map(|has| !has), left_out, "{text}");
            assert!(
                text.lines().all(|line| line.chars().count() <= width),
                "{text}"
            );
            assert!(
                text.contains("]:16379") && text.contains("relaying"),
                "{text}"
            );
        }
    }
}

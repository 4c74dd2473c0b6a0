//! What a terminal shows: lines of styled text, and how they get there.

use std::fmt::Write as _;

/// What a part of a line means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    Dim,
    Bold,
    Good,
    Warning,
    Bad,
    /// The whole line is in reverse.
    Selected,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colours {
    Used,
    /// NO_COLOR: only bold, dim and reverse.
    Unused,
}

/// A line is made of these, and cut where the terminal ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Line(pub(super) Vec<(Style, String)>);

/// The lines that the terminal has.
#[derive(Debug, Default)]
pub(super) struct Frame(Vec<String>);

impl Colours {
    /// <https://no-color.org>
    pub(super) fn of_environment() -> Self {
        match std::env::var_os("NO_COLOR") {
            Some(value) if !value.is_empty() => Self::Unused,
            _ => Self::Used,
        }
    }
}

impl Style {
    fn code(self, colours: Colours) -> &'static str {
        match (self, colours) {
            (Self::Plain, _) | (Self::Good, Colours::Unused) => "",
            (Self::Dim, _) => "\x1b[2m",
            (Self::Bold, _) | (Self::Warning | Self::Bad, Colours::Unused) => "\x1b[1m",
            (Self::Good, Colours::Used) => "\x1b[32m",
            (Self::Warning, Colours::Used) => "\x1b[33m",
            (Self::Bad, Colours::Used) => "\x1b[1;31m",
            (Self::Selected, _) => "\x1b[7m",
        }
    }
}

impl Line {
    pub(super) fn of(style: Style, text: impl Into<String>) -> Self {
        Self(vec![(style, text.into())])
    }

    #[cfg(test)]
    pub(super) fn text(&self) -> String {
        self.0.iter().map(|(_, text)| text.as_str()).collect()
    }

    /// Not longer than the terminal is wide.
    pub(super) fn cut(mut self, columns: usize) -> Self {
        let mut left = columns;
        self.0.retain_mut(|(_, text)| {
            let length = text.chars().count();
            if length > left {
                *text = text.chars().take(left).collect();
            }
            left = left.saturating_sub(length);
            !text.is_empty()
        });
        self
    }
}

impl Frame {
    /// What makes the terminal show these lines: only what has changed since the frame before.
    pub(super) fn draw(&mut self, lines: &[Line], colours: Colours) -> String {
        let mut out = String::new();
        if self.0.len() != lines.len() {
            self.0.clear();
            out += "\x1b[0m\x1b[2J";
        }
        let written: Vec<String> = lines.iter().map(|line| write_line(line, colours)).collect();
        for (n, line) in written.iter().enumerate() {
            if self.0.get(n) != Some(line) {
                // Cleared first: after the last column the cursor is still on it.
                let _ = write!(out, "\x1b[{};1H\x1b[K{line}", n + 1);
            }
        }
        self.0 = written;
        out
    }
}

fn write_line(line: &Line, colours: Colours) -> String {
    let mut out = String::new();
    for (style, text) in &line.0 {
        let code = style.code(colours);
        match code.is_empty() {
            true => out += text,
            false => {
                let _ = write!(out, "{code}{text}\x1b[0m");
            }
        }
    }
    out
}

/// Of a rate or an amount, in at most five characters.
pub(super) fn short(value: f64) -> String {
    let mut value = value;
    for unit in ["", "k", "M", "G", "T"] {
        if value < 999.5 {
            return match value {
                0.0 => "0".to_owned(),
                v if v < 9.95 && (!unit.is_empty() || v.fract() > 0.05) => format!("{v:.1}{unit}"),
                v => format!("{v:.0}{unit}"),
            };
        }
        value /= 1_000.0;
    }
    format!("{value:.0}P")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_that_changed_are_written() {
        let mut frame = Frame::default();
        let line = |text: &str| Line::of(Style::Plain, text);
        let first = frame.draw(&[line("a"), line("b")], Colours::Used);
        assert_eq!(first, "\x1b[0m\x1b[2J\x1b[1;1H\x1b[Ka\x1b[2;1H\x1b[Kb");
        let second = frame.draw(&[line("a"), line("c")], Colours::Used);
        assert_eq!(second, "\x1b[2;1H\x1b[Kc");
        assert_eq!(frame.draw(&[line("a"), line("c")], Colours::Used), "");
        // Another size of the terminal.
        assert!(frame.draw(&[line("a")], Colours::Used).contains("\x1b[2J"));
    }

    #[test]
    fn without_colours_there_are_none() {
        let styles = [Style::Good, Style::Warning, Style::Bad, Style::Selected];
        let line = Line(styles.map(|style| (style, "x".to_owned())).to_vec());
        let written = write_line(&line, Colours::Unused);
        assert!(!written.contains("\x1b[3"), "{written:?}");
        assert!(!written.contains(";3"), "{written:?}");
        assert!(write_line(&line, Colours::Used).contains("\x1b[32m"));
    }

    #[test]
    fn figures_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.5, "0.5"),
            (3.0, "3"),
            (42.4, "42"),
            (999.0, "999"),
            (1_000.0, "1.0k"),
            (12_345.0, "12k"),
            (1.5e6, "1.5M"),
            (999_600_000.0, "1.0G"),
            (1e18, "1000P"),
        ] {
            assert_eq!(short(value), text);
        }
    }
}

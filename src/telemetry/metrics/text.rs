//! The text format of Prometheus, version 0.0.4.

use super::Histogram;
use bytes::Bytes;
use std::fmt::Write as _;

/// The text is kept in pieces of about this size, which several responses can share.
const PIECE: usize = 64 * 1024;
/// No line is expected to be longer; a piece grows if one is.
const LINE: usize = 1024;

/// All metrics of one name.
pub(super) struct Family {
    pub(super) name: &'static str,
    /// The type in the TYPE line.
    pub(super) kind: &'static str,
    /// Without backslashes and line feeds, which would have to be escaped.
    pub(super) help: &'static str,
}

#[derive(Default)]
pub(super) struct Text {
    complete: Vec<Bytes>,
    open: String,
}

impl Text {
    /// Samples of one family; its HELP and TYPE lines are written before the first of them.
    pub(super) fn samples<'a>(&'a mut self, family: &'a Family) -> Samples<'a> {
        Samples {
            text: self,
            family,
            has_header: false,
        }
    }

    pub(super) fn finish(mut self) -> Vec<Bytes> {
        self.complete_piece();
        self.complete
    }

    fn complete_piece(&mut self) {
        if !self.open.is_empty() {
            let next = String::with_capacity(PIECE + LINE);
            let piece = std::mem::replace(&mut self.open, next);
            self.complete.push(piece.into());
        }
    }
}

pub(super) struct Samples<'a> {
    text: &'a mut Text,
    family: &'a Family,
    has_header: bool,
}

impl Samples<'_> {
    /// `labels` come from [`labels`].
    pub(super) fn add(&mut self, labels: &str, value: impl Into<Value>) {
        self.line("", labels, None, value.into());
    }

    pub(super) fn add_if(&mut self, labels: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.add(labels, value);
        }
    }

    /// With one more label, whose value needs no escaping.
    pub(super) fn add_with(
        &mut self,
        labels: &str,
        label: (&str, &'static str),
        value: impl Into<Value>,
    ) {
        self.line("", labels, Some(label), value.into());
    }

    pub(super) fn histogram(&mut self, labels: &str, histogram: &Histogram) {
        let mut count = 0;
        for (le, samples) in histogram.buckets() {
            self.line("_bucket", labels, Some(("le", le)), samples.into());
            count = samples;
        }
        self.line("_sum", labels, None, histogram.sum().into());
        self.line("_count", labels, None, count.into());
    }

    /// Of what there are many, most of them unused: it is there from the first observation on, as
    /// the label values of client libraries are.
    pub(super) fn histogram_if_any(&mut self, labels: &str, histogram: &Histogram) {
        if histogram.is_any() {
            self.histogram(labels, histogram);
        }
    }

    fn line(&mut self, suffix: &str, labels: &str, more: Option<(&str, &str)>, value: Value) {
        let Family { name, kind, help } = *self.family;
        let out = &mut self.text.open;
        if !self.has_header {
            self.has_header = true;
            for (keyword, text) in [("HELP", help), ("TYPE", kind)] {
                for part in ["# ", keyword, " ", name, " ", text, "\n"] {
                    out.push_str(part);
                }
            }
        }
        out.push_str(name);
        out.push_str(suffix);
        if !labels.is_empty() || more.is_some() {
            out.push('{');
            out.push_str(labels);
            if let Some((name, value)) = more {
                if !labels.is_empty() {
                    out.push(',');
                }
                out.push_str(name);
                out.push_str("=\"");
                out.push_str(value);
                out.push('"');
            }
            out.push('}');
        }
        out.push(' ');
        value.write(out);
        out.push('\n');
        if out.len() >= PIECE {
            self.text.complete_piece();
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Value {
    Count(u64),
    Number(f64),
}

impl From<u64> for Value {
    fn from(n: u64) -> Self {
        Self::Count(n)
    }
}

impl From<f64> for Value {
    fn from(n: f64) -> Self {
        Self::Number(n)
    }
}

impl From<bool> for Value {
    fn from(is: bool) -> Self {
        Self::Count(is.into())
    }
}

impl Value {
    fn write(self, out: &mut String) {
        let written = match self {
            // The most frequent value by far.
            Self::Count(0) => {
                out.push('0');
                Ok(())
            }
            Self::Count(n) => write!(out, "{n}"),
            Self::Number(n) if n.is_infinite() => {
                write!(out, "{}Inf", if n > 0.0 { '+' } else { '-' })
            }
            Self::Number(n) => write!(out, "{n}"),
        };
        // Writing to a String does not fail.
        let _ = written;
    }
}

/// The text between the braces, escaped.
pub(super) fn labels(all: &[(&str, &str)]) -> Box<str> {
    let mut out = String::new();
    for (name, value) in all {
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(name);
        out.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                c => out.push(c),
            }
        }
        out.push('"');
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const GAUGE: Family = Family {
        name: "g",
        kind: "gauge",
        help: "A gauge.",
    };

    fn whole(text: Text) -> String {
        let pieces = text.finish();
        String::from_utf8(pieces.concat()).expect("text")
    }

    #[test]
    fn a_family_without_samples_is_not_there() {
        let mut text = Text::default();
        text.samples(&GAUGE);
        assert_eq!(whole(text), "");
    }

    #[test]
    fn one_header_for_all_samples_of_a_family() {
        let mut text = Text::default();
        let mut samples = text.samples(&GAUGE);
        samples.add("", 1.5);
        samples.add(&labels(&[("a", "x"), ("b", "y")]), f64::NAN);
        samples.add_with("", ("state", "up"), true);
        samples.add_with(&labels(&[("a", "x")]), ("state", "up"), u64::MAX);
        samples.add("", f64::INFINITY);
        samples.add("", f64::NEG_INFINITY);
        assert_eq!(
            whole(text),
            "# HELP g A gauge.\n# TYPE g gauge\ng 1.5\ng{a=\"x\",b=\"y\"} NaN\ng{state=\"up\"} 1\n\
             g{a=\"x\",state=\"up\"} 18446744073709551615\ng +Inf\ng -Inf\n"
        );
    }

    #[test]
    fn labels_are_escaped() {
        for (value, escaped) in [
            ("a\\b", "a\\\\b"),
            ("a\\\\b", "a\\\\\\\\b"),
            ("\\n", "\\\\n"),
            ("line\nline", "line\\nline"),
            ("\\\"", "\\\\\\\""),
            ("ü {}", "ü {}"),
        ] {
            assert_eq!(*labels(&[("l", value)]), *format!("l=\"{escaped}\""));
        }
    }

    #[test]
    fn a_histogram_has_cumulative_buckets_sum_and_count() {
        const FAMILY: Family = Family {
            name: "h",
            kind: "histogram",
            help: "A histogram.",
        };
        let histogram = Histogram::new(&[(0.5, "0.5"), (1.0, "1")]);
        for milliseconds in [250, 750] {
            histogram.record(Duration::from_millis(milliseconds));
        }
        let mut text = Text::default();
        text.samples(&FAMILY)
            .histogram(&labels(&[("a", "x")]), &histogram);
        assert_eq!(
            whole(text),
            "# HELP h A histogram.\n# TYPE h histogram\nh_bucket{a=\"x\",le=\"0.5\"} 1\n\
             h_bucket{a=\"x\",le=\"1\"} 2\nh_bucket{a=\"x\",le=\"+Inf\"} 2\n\
             h_sum{a=\"x\"} 1\nh_count{a=\"x\"} 2\n"
        );
    }

    #[test]
    fn pieces_are_small_and_nothing_is_lost_between_them() {
        let mut text = Text::default();
        let mut samples = text.samples(&GAUGE);
        (0..20_000_u64).for_each(|n| samples.add("", n));
        let pieces = text.finish();
        assert!(pieces.len() > 1);
        assert!(pieces.iter().all(|piece| piece.len() < PIECE + LINE));
        let text = String::from_utf8(pieces.concat()).expect("text");
        let numbers = text.lines().skip(2).map(|line| line[2..].parse::<u64>());
        assert!(numbers.eq((0..20_000).map(Ok)));
    }
}

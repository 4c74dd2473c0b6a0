//! Tables of text, with columns below each other.

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

/// A whole table.
pub(super) fn table(rows: &[Row]) -> String {
    Widths::default().lay_out(rows)
}

/// The columns of a table that is printed in parts: they only get wider.
#[derive(Default)]
pub(super) struct Widths(Vec<usize>);

impl Widths {
    /// The next rows of the table.
    pub(super) fn lay_out(&mut self, rows: &[Row]) -> String {
        for row in rows {
            self.0.resize(row.0.len().max(self.0.len()), 0);
            for (width, (text, _)) in self.0.iter_mut().zip(&row.0) {
                *width = text.chars().count().max(*width);
            }
        }
        let mut out = String::new();
        for row in rows {
            let cells = row.0.iter().zip(&self.0).map(|((text, right), width)| {
                if *right {
                    format!("{text:>width$}")
                } else {
                    format!("{text:<width$}")
                }
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            out += line.trim_end();
            out.push('\n');
        }
        out
    }
}

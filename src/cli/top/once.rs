//! `tembuku top --once`: the same as plain text.

use super::{
    feed::{Rates, Update, look_once},
    lists::columns,
    screen::fit,
    ui::Ui,
};
use crate::cli::{client::AdminClient, print, response::History};
use std::collections::HashMap;

/// Whole names and reasons, in columns that are as wide as they need. Rates are those of the last
/// five seconds; there are none in the first five of the process.
pub(super) fn show(client: &AdminClient, mut ui: Ui) -> Result<(), String> {
    let mut data = look_once(client, &ui.wants())?;
    data.rates = rates(&client.history()?);
    ui.update(Update::Data(Box::new(data)));
    let columns = columns(ui.view());
    let titles = columns.iter().map(|column| column.title.to_owned());
    let mut rows: Vec<Vec<String>> = vec![titles.chain(["why".to_owned()]).collect()];
    rows.extend(ui.entries().iter().map(|entry| {
        let cells = entry.cells.iter();
        cells.chain([&entry.detail]).cloned().collect()
    }));
    let width = |n: usize| {
        let lengths = rows.iter().map(|row| row[n].chars().count());
        lengths.max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let cells = columns.iter().zip(&widths).zip(row);
        for ((column, width), cell) in cells {
            out += &fit(cell, *width, column.is_right);
            out += "  ";
        }
        out += row.last().map_or("", String::as_str);
        out.truncate(out.trim_end().len());
        out.push('\n');
    }
    print(&out)
}

/// Those of the last sample.
fn rates(history: &History) -> HashMap<String, Rates> {
    let listeners = history.listeners.iter();
    let listeners = listeners.map(|l| (format!("l {}", l.name), &l.rates));
    let backends = history.backends.iter();
    let backends = backends.map(|b| (format!("b {}/{}", b.upstream, b.backend), &b.rates));
    let rates = listeners.chain(backends).filter_map(|(key, of)| {
        let rates = Rates {
            connects: *of.connects.last()?,
            received: *of.received.last()?,
            sent: *of.sent.last()?,
            errors: *of.errors.last()?,
        };
        Some((key, rates))
    });
    rates.collect()
}

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
    let listeners = listeners.map(|l| {
        let rates = &l.rates;
        (format!("l {}", l.name), rates, &rates.received, &rates.sent)
    });
    let backends = history.backends.iter();
    // What is sent to a backend came from clients.
    let backends = backends.map(|b| {
        let (key, rates) = (format!("b {}/{}", b.upstream, b.backend), &b.rates);
        (key, rates, &rates.sent, &rates.received)
    });
    let all = listeners.chain(backends);
    let rates = all.filter_map(|(key, of, from_clients, to_clients)| {
        let rates = Rates {
            connects: *of.connects.last()?,
            from_clients: *from_clients.last()?,
            to_clients: *to_clients.last()?,
            errors: *of.errors.last()?,
        };
        Some((key, rates))
    });
    rates.collect()
}

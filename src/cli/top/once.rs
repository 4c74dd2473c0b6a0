//! `tembuku top --once`: the same as plain text.

use super::{
    feed::{Rates, Update, look_once},
    lists::{Column, columns},
    ui::Ui,
};
use crate::cli::{
    client::AdminClient,
    print,
    response::History,
    table::{Row, table, terminal_width},
};
use std::collections::HashMap;

/// Whole names and reasons, in columns that are as wide as they need. Rates are those of the last
/// five seconds; there are none in the first five of the process.
pub(super) fn show(client: &AdminClient, mut ui: Ui) -> Result<(), String> {
    let mut data = look_once(client, &ui.wants())?;
    data.rates = rates(&client.history()?);
    ui.update(Update::Data(Box::new(data)));
    let columns = columns(ui.view());
    let title = |column: &Column| (column.title.to_owned(), column.is_right);
    let last = |text: &str| (text.to_owned(), false);
    let titles = columns.iter().map(title).chain([last("why")]);
    let mut rows = vec![Row::from_iter(titles)];
    rows.extend(ui.entries().iter().map(|entry| {
        let cells = entry.cells.iter().zip(columns);
        let cells = cells.map(|(cell, column)| (cell.clone(), column.is_right));
        cells.chain([last(&entry.detail)]).collect()
    }));
    print(&table(&rows, terminal_width()))
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

//! The limits of [listeners.NAME] that code reads.

use super::{
    keys::{BANDWIDTH, SOURCE_PREFIX, limits as rows},
    section::{Section, Text},
};
use crate::{
    config::{
        text::{
            report::{Fault, fault},
            suggestions::found,
        },
        value::rate,
    },
    plan::{Bandwidth, Listener, Rate, SourcePrefix},
};
use toml::de::DeTable;

pub(super) fn read(listener: &mut Listener, section: &Section<'_>) {
    section.read(rows::LIMITS, listener);
    let limits = &mut listener.limits;
    limits.source_prefix = read_source_prefix(section);
    limits.connection_rate = read_rate("connection_rate", section);
    limits.bandwidth = read_bandwidth("bandwidth", section);
    limits.bandwidth_per_source = read_bandwidth("bandwidth_per_source", section);
    limits.bandwidth_total = read_bandwidth("bandwidth_total", section);
    limits.connection_rate_per_source = read_rate("connection_rate_per_source", section);
}

fn read_rate(key: &str, section: &Section<'_>) -> Rate {
    let Some(Text { text, span }) = section.text(key) else {
        return Rate::default();
    };
    rate::parse_limit(text).unwrap_or_else(|fault| {
        let message = format!("`{key}`: {}", fault.message);
        section.report.add(&span, Fault { message, ..fault });
        Rate::default()
    })
}

/// The whole value is taken from `[defaults]` or none of it, as with `keepalive`.
fn read_bandwidth(key: &'static str, section: &Section<'_>) -> Bandwidth {
    let Some(value) = section.get(key) else {
        return Bandwidth::default();
    };
    if !value.get_ref().is_table() {
        let what = found(value.get_ref());
        let fault = fault!("`{key}` must be a table, not {what}")
            .hint("as in { up = \"1m\", down = \"10m\" }, bytes in a second");
        section.report.add(&value.span(), fault);
        return Bandwidth::default();
    }
    let table = Section::open(&BANDWIDTH, value, section.report);
    let read = |way| table.as_ref().and_then(|table| table.size_or_zero(way));
    Bandwidth {
        up: read("up").unwrap_or(0),
        down: read("down").unwrap_or(0),
    }
}

/// The same.
fn read_source_prefix(section: &Section<'_>) -> SourcePrefix {
    let empty = DeTable::new();
    let table = match section.get("source_prefix") {
        None => None,
        Some(value) if !value.get_ref().is_table() => {
            let what = found(value.get_ref());
            let fault = fault!("`source_prefix` must be a table, not {what}")
                .hint("as in { v4 = 24, v6 = 56 }");
            section.report.add(&value.span(), fault);
            None
        }
        Some(value) => Section::open(&SOURCE_PREFIX, value, section.report),
    };
    let table = table.unwrap_or_else(|| Section::new(&SOURCE_PREFIX, &empty, 0..0, section.report));
    let mut prefix = SourcePrefix::default();
    table.read(rows::SOURCE_PREFIX, &mut prefix);
    prefix
}

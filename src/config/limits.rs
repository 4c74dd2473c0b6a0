//! The limits of [listeners.NAME] that code reads.

use super::{
    keys::{SOURCE_PREFIX, limits as rows},
    section::{Section, Text},
};
use crate::{
    config::{
        text::{report::Fault, suggestions::found},
        value::rate,
    },
    plan::{Listener, Rate, SourcePrefix},
};
use toml::de::DeTable;

pub(super) fn read(listener: &mut Listener, section: &Section<'_>) {
    section.read(rows::LIMITS, listener);
    let limits = &mut listener.limits;
    limits.source_prefix = read_source_prefix(section);
    limits.connection_rate = read_rate("connection_rate", section);
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
fn read_source_prefix(section: &Section<'_>) -> SourcePrefix {
    let empty = DeTable::new();
    let table = match section.get("source_prefix") {
        None => None,
        Some(value) if !value.get_ref().is_table() => {
            let what = found(value.get_ref());
            let fault = Fault::new(format!("`source_prefix` must be a table, not {what}"))
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

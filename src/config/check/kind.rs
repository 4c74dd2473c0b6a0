//! The kind of a check, and the keys that are for other kinds.

use crate::{
    config::{
        check::{bytes, dns, http, mysql, postgres, redis},
        keys::{
            applies::NoEffect,
            check::{self as rows, kinds, rows_of},
        },
        section::Section,
        text::suggestions::list,
    },
    plan::{CheckKind, CheckProtocol},
};

/// `None`: the kind is missing or invalid, which has been reported.
pub(crate) fn read(section: &Section<'_>) -> Option<CheckKind> {
    if section.get("kind").is_none() {
        let names = list(kinds().into_iter());
        let hint = format!("set the kind of the check: kind = \"tcp\"; there are {names}");
        section.missing("kind", &hint);
        return None;
    }
    let word = section.one_of("kind", &kinds())?;
    let kind = CheckProtocol::ALL
        .into_iter()
        .find(|kind| kind.info().name == word)?;
    report_keys_of_others(kind, section);
    Some(match kind {
        CheckProtocol::Tcp => CheckKind::Tcp,
        CheckProtocol::SendExpect => CheckKind::SendExpect {
            send: bytes::read(section, &["send", "send_hex"]).unwrap_or_default(),
            expect: bytes::read_expect(section),
        },
        CheckProtocol::Http => http::read(section),
        CheckProtocol::Redis => redis::read(section),
        CheckProtocol::Postgres => postgres::read(section),
        CheckProtocol::Mysql => mysql::read(section),
        CheckProtocol::Dns => dns::read(section),
    })
}

fn report_keys_of_others(kind: CheckProtocol, section: &Section<'_>) {
    let is_of =
        |kind: CheckProtocol, key: &str| rows_of(kind.info()).any(|row| row.key.name == key);
    for key in section.keys() {
        let is_of_all = rows::CHECK.iter().any(|row| row.key.name == key);
        let owners: Vec<String> = CheckProtocol::ALL
            .into_iter()
            .filter(|kind| is_of(*kind, key))
            .map(|kind| format!("{:?}", kind.info().name))
            .collect();
        // A key without owners does not exist, which has been reported.
        if !is_of_all && !is_of(kind, key) && !owners.is_empty() {
            let found = NoEffect::always(
                format!("with kind = {:?}", kind.info().name),
                format!(
                    "it is for kind = {}; otherwise leave it out",
                    owners.join(" or ")
                ),
            );
            section.report_no_effect(key, &found);
        }
    }
}

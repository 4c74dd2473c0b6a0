//! [upstreams.NAME.discover]: what code reads, and the rules between keys.

mod registry;
mod servers;

use std::{path::PathBuf, time::Duration};

use super::{
    check::read_absolute,
    keys::{
        DISCOVER,
        applies::{Applies, NoEffect},
        discover::{self as rows, kinds, rows_of},
    },
    section::{Section, Text},
};
use crate::{
    config::text::{
        report::fault,
        suggestions::{list, shorten},
    },
    plan::{Check, CheckKind, Discover, DiscoverKind, DiscoverSource, Role, Tls, Upstream, Want},
};
use toml::de::DeValue;

/// The default of `empty_after`.
const EMPTY_AFTER: Duration = Duration::from_secs(30);

/// `None`: there is no such section, or its mistakes have been reported.
pub(super) fn read(upstream: &Section<'_>) -> Option<Discover> {
    let value = upstream.get("discover")?;
    let section = Section::open(&DISCOVER, value, upstream.report)?;
    let source = read_source(&section)?;
    let mut discover = Discover {
        source,
        interval: Duration::ZERO,
        timeout: Duration::ZERO,
        empty_after: read_empty_after(&section),
        max_removed: 0,
        confirm: Duration::ZERO,
    };
    section.read(rows::DISCOVER, &mut discover);
    let default = discover.clone();
    let rows = rows_of(discover.source.kind());
    section.drop_without_effect(rows, &mut discover, &default, no_effect);
    Some(discover)
}

/// Why such a key has no effect in this section.
pub(super) fn no_effect(discover: &Discover, applies: Applies) -> Option<NoEffect> {
    let (DiscoverSource::Redis { login, .. } | DiscoverSource::Sentinel { login, .. }) =
        &discover.source
    else {
        return None;
    };
    match (applies, &login.tls) {
        (Applies::TlsVerify, Tls::Off | Tls::Require) => Some(NoEffect::always(
            "without tls = \"verify\"",
            "set tls = \"verify\", or leave it out",
        )),
        _ => None,
    }
}

/// What the source and the rest of the upstream must have in common.
pub(super) fn check_upstream(upstream: &Upstream, section: &Section<'_>) {
    let Some(Discover {
        source: DiscoverSource::Sentinel { want, .. },
        ..
    }) = &upstream.discover
    else {
        return;
    };
    let role = match want {
        Want::Primary => Some(Role::Primary),
        Want::Replicas => Some(Role::Replica),
        Want::All => return,
    };
    let is_checked = matches!(
        &upstream.check,
        Some(Check { kind: CheckKind::Redis { role: asked, .. }, .. }) if *asked == role
    );
    if !is_checked && let Some(value) = section.get("discover") {
        let word = role.map_or("any", Role::word);
        let fault = fault!(
            "servers that Sentinel names need a check of kind = \"redis\" with role = {word:?}"
        )
        .hint(
            "Sentinel proposes, and after a fail-over it may still name the old server; the check \
             decides: add a section [upstreams.NAME.check]",
        );
        section.report.add(&value.span(), fault);
    }
}

fn read_source(section: &Section<'_>) -> Option<DiscoverSource> {
    if section.get("kind").is_none() {
        let names = list(kinds().into_iter());
        let hint = format!("set the kind of the source: kind = \"file\"; there are {names}");
        section.missing("kind", &hint);
        return None;
    }
    let word = section.one_of("kind", &kinds())?;
    let kind = DiscoverKind::of_word(word)?;
    report_keys_of_others(kind, section);
    match kind {
        DiscoverKind::File => read_file(section),
        DiscoverKind::Redis => servers::read_redis(section),
        DiscoverKind::Sentinel => servers::read_sentinel(section),
        DiscoverKind::Http => registry::read_http(section),
        DiscoverKind::Srv => registry::read_srv(section),
        DiscoverKind::Consul => registry::read_consul(section),
        DiscoverKind::Etcd => registry::read_etcd(section),
        DiscoverKind::Kubernetes => registry::read_kubernetes(section),
    }
}

fn read_file(section: &Section<'_>) -> Option<DiscoverSource> {
    let hint = "a file or a folder, as in \"/etc/tembuku/app.backends\"";
    let path = read_absolute(section, "path", hint);
    if section.get("path").is_none() {
        section.missing("path", hint);
    }
    Some(DiscoverSource::File { path: path? })
}

/// A text that has to be there; `None`: it is not, which has been reported.
fn required(section: &Section<'_>, key: &str, hint: &str) -> Option<String> {
    if section.get(key).is_none() {
        section.missing(key, hint);
    }
    let Text { text, span } = section.text(key)?;
    if text.is_empty() {
        let fault = fault!("`{key}` is empty").hint(hint);
        section.report.add(&span, fault);
    }
    Some(text.to_owned())
}

fn optional(section: &Section<'_>, key: &str) -> Option<String> {
    section.text(key).map(|text| text.text.to_owned())
}

fn optional_file(section: &Section<'_>, key: &str) -> Option<PathBuf> {
    read_absolute(
        section,
        key,
        "an absolute path, as in \"/etc/tembuku/file\"",
    )
}

/// `None`: never.
fn read_empty_after(section: &Section<'_>) -> Option<Duration> {
    if let Some(value) = section.own("empty_after")
        && let DeValue::String(text) = value.get_ref()
        && !text.contains(|c: char| c.is_ascii_digit())
    {
        if text != "never" {
            let shown = shorten(&format!("{text:?}"));
            let fault = fault!("`empty_after`: not a duration: {shown}");
            let fault = fault.hint("a duration, as in \"30s\", or \"never\"");
            section.report.add(&value.span(), fault);
        }
        return None;
    }
    let hint = "leave it out for the default, \"30s\"; or write \"never\"";
    let read = section.optional_duration("empty_after", |_| Ok(()), hint);
    Some(read.unwrap_or(EMPTY_AFTER))
}

fn report_keys_of_others(kind: DiscoverKind, section: &Section<'_>) {
    for key in section.keys() {
        let owners: Vec<String> = DiscoverKind::ALL
            .into_iter()
            .filter(|kind| kind.keys().contains(&key))
            .map(|kind| format!("{:?}", kind.word()))
            .collect();
        // A key without owners is for all, or does not exist, which has been reported.
        if !owners.is_empty() && !kind.keys().contains(&key) {
            let found = NoEffect::always(
                format!("with kind = {:?}", kind.word()),
                format!(
                    "it is for kind = {}; otherwise leave it out",
                    owners.join(" or ")
                ),
            );
            section.report_no_effect(key, &found);
        }
    }
}

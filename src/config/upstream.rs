//! [upstreams.NAME]: every rule and default.

use std::{collections::HashSet, time::Duration};

use super::{
    address,
    keys::BACKEND,
    listener::{MOST_CONNECTIONS, above_zero},
    report::Fault,
    section::{Section, Text, Value, Words},
    words::{found, nearest},
};
use crate::plan::{Backend, Balance, HashKey, Place, SendProxy, Target, Upstream};

/// The ring of `consistent_hash` has 160 points for each unit of weight.
const MOST_RING_WEIGHT: u64 = 65_536;

/// Without a name these are the defaults: nothing is missing there.
pub(super) fn read(name: Option<&str>, section: &Section<'_>) -> Upstream {
    let upstream = Upstream {
        name: name.unwrap_or_default().to_owned(),
        balance: read_balance(name, section),
        backends: read_backends(section),
        resolve_interval: section.limit("resolve_interval", Duration::from_secs(30)),
        resolve_required: section.flag("resolve_required", true),
        send_proxy: read_send_proxy(name, section),
    };
    if name.is_some() && section.get("backends").is_none() {
        section.missing(
            "backends",
            "say which servers it has: backends = [\"10.0.0.1:6379\"]",
        );
    }
    check_backends(&upstream, section);
    upstream
}

#[derive(Clone, Copy, PartialEq)]
enum Policy {
    RoundRobin,
    LeastConn,
    RandomTwo,
    First,
    Hash,
    IpHash,
    ConsistentHash,
}

const POLICIES: &Words<Policy> = &[
    ("round_robin", Some(Policy::RoundRobin)),
    ("least_conn", Some(Policy::LeastConn)),
    ("random_two", Some(Policy::RandomTwo)),
    ("least_time", None),
    ("hash", Some(Policy::Hash)),
    ("ip_hash", Some(Policy::IpHash)),
    ("consistent_hash", Some(Policy::ConsistentHash)),
    ("maglev", None),
    ("first", Some(Policy::First)),
];

fn read_balance(name: Option<&str>, section: &Section<'_>) -> Balance {
    let policy = section.word("balance", Policy::RoundRobin, POLICIES);
    let key = read_hash_key(section);
    let balance = match policy {
        Policy::ConsistentHash => return Balance::ConsistentHash(key),
        Policy::Hash => return Balance::Hash(key),
        Policy::RoundRobin => Balance::RoundRobin,
        Policy::LeastConn => Balance::LeastConn,
        Policy::RandomTwo => Balance::RandomTwo,
        Policy::First => Balance::First,
        Policy::IpHash => Balance::IpHash,
    };
    // In [defaults] it may be there for the upstreams that hash. A `balance` that is wrong was reported already.
    let known = section
        .get("balance")
        .is_none_or(|value| value.get_ref().as_str() == Some(balance.word()));
    if let (Some(_), true, Some(value)) = (name, known, section.own("hash_key")) {
        section.report.add(
            &value.span(),
            Fault::new(format!(
                "`hash_key` does nothing with balance = {:?}",
                balance.word()
            ))
            .hint("add balance = \"consistent_hash\", or leave `hash_key` out"),
        );
    }
    balance
}

fn read_hash_key(section: &Section<'_>) -> HashKey {
    let default = HashKey::RemoteAddr;
    let Some(Text { text, span }) = section.text("hash_key") else {
        return default;
    };
    let works = ["$remote_addr", "$binary_remote_addr"];
    let fault = match text {
        "$remote_addr" => return HashKey::RemoteAddr,
        "$binary_remote_addr" => return HashKey::BinaryRemoteAddr,
        // "$remote_addr$remote_port" is no slip of the pen.
        _ => match nearest(text, &works).filter(|near| !text.starts_with(near)) {
            Some(near) => Fault::new(format!("`hash_key` does not know {text:?}"))
                .hint(format!("did you mean \"{near}\"?")),
            None => Fault::new(format!("`hash_key` = {text:?} is not supported yet"))
                .hint(format!("supported now: {}", works.join(", "))),
        },
    };
    section.report.add(&span, fault);
    default
}

fn read_send_proxy(name: Option<&str>, section: &Section<'_>) -> SendProxy {
    let versions = [
        ("off", Some(SendProxy::Off)),
        ("v1", Some(SendProxy::V1)),
        ("v2", Some(SendProxy::V2 { tlvs: false })),
    ];
    let version = section.word("send_proxy", SendProxy::Off, &versions);
    let tlvs = section.flag("send_proxy_tlvs", false);
    if matches!(version, SendProxy::V2 { .. }) {
        return SendProxy::V2 { tlvs };
    }
    // In [defaults] it may be there for the upstreams that send version 2.
    if let (Some(_), true, Some(value)) = (name, tlvs, section.own("send_proxy_tlvs")) {
        section.report.add(
            &value.span(),
            Fault::new("`send_proxy_tlvs` does nothing without send_proxy = \"v2\"")
                .hint("only version 2 has TLVs: write send_proxy = \"v2\", or leave it out"),
        );
    }
    version
}

fn read_backends(section: &Section<'_>) -> Vec<Backend> {
    let mut seen = HashSet::new();
    let mut backends = Vec::new();
    let Some(items) = section.list("backends") else {
        return backends;
    };
    if let (true, Some(value)) = (items.is_empty(), section.get("backends")) {
        section.report.add(
            &value.span(),
            Fault::new("`backends` is an empty list")
                .hint("give at least one, as in [\"10.0.0.1:6379\"]"),
        );
    }
    for item in items {
        let Some((backend, address)) = read_backend(item, section) else {
            continue;
        };
        if !seen.insert(address.text) {
            section.report.add(
                &address.span,
                Fault::new(format!("the backend {:?} is listed twice", address.text)).hint(
                    format!(
                        "to send it a larger share, list it once: {{ address = {:?}, weight = 2 }}",
                        address.text
                    ),
                ),
            );
        }
        backends.push(backend);
    }
    backends
}

fn read_backend<'a>(item: &'a Value<'a>, section: &Section<'a>) -> Option<(Backend, Text<'a>)> {
    let report = section.report;
    if let Some(text) = item.get_ref().as_str() {
        let address = Text {
            text,
            span: item.span(),
        };
        return Some((with_defaults(&address, section), address));
    }
    if !item.get_ref().is_table() {
        let message = format!(
            "a backend is an address or a table, not {}",
            found(item.get_ref())
        );
        report.add(
            &item.span(),
            Fault::new(message)
                .hint("write \"10.0.0.1:6379\" or { address = \"10.0.0.1:6379\", weight = 2 }"),
        );
        return None;
    }
    let table = Section::open(&BACKEND, item, report)?;
    if table.get("address").is_none() {
        table.missing(
            "address",
            "as in { address = \"10.0.0.1:6379\", weight = 2 }",
        );
    }
    // Without an address the rest is still looked at.
    let address = table.text("address");
    let base = match &address {
        Some(address) => with_defaults(address, section),
        None => nameless(""),
    };
    let backend = Backend {
        weight: table.number("weight", base.weight, 0..=65_535),
        max_fails: table.number("max_fails", base.max_fails, 0..=1_000_000),
        fail_timeout: table.duration("fail_timeout", base.fail_timeout, above_zero),
        max_connections: table.number(
            "max_connections",
            base.max_connections,
            0..=MOST_CONNECTIONS,
        ),
        backup: table.flag("backup", base.backup),
        down: table.flag("down", base.down),
        ..base
    };
    Some((backend, address?))
}

fn with_defaults(address: &Text<'_>, section: &Section<'_>) -> Backend {
    let base = nameless(address.text);
    match address::target(address.text) {
        Ok(target) => Backend { target, ..base },
        Err(fault) => {
            section.report.add(&address.span, fault);
            base
        }
    }
}

/// A backend with every default, whose target is still to be filled in.
fn nameless(text: &str) -> Backend {
    Backend {
        text: text.to_owned(),
        target: Target::Place(Place::Unix(Default::default())),
        weight: 1,
        max_fails: 1,
        fail_timeout: Duration::from_secs(10),
        max_connections: 0,
        backup: false,
        down: false,
    }
}

fn check_backends(upstream: &Upstream, section: &Section<'_>) {
    let Some(value) = section.get("backends") else {
        return;
    };
    let backends = &upstream.backends;
    if !backends.is_empty() && backends.iter().all(|backend| backend.backup) {
        section.report.add(
            &value.span(),
            Fault::new("every backend is a backup: there is none to stand in for")
                .hint("take `backup = true` from at least one of them"),
        );
    }
    let sum: u64 = backends
        .iter()
        .map(|backend| u64::from(backend.weight))
        .sum();
    if matches!(upstream.balance, Balance::ConsistentHash(_)) && sum > MOST_RING_WEIGHT {
        let common = backends
            .iter()
            .map(|backend| backend.weight)
            .fold(0, common_divisor);
        let hint = if common > 1 {
            format!("divide every weight by {common}: the shares stay the same")
        } else {
            "make the weights smaller: only their proportion counts".to_owned()
        };
        section.report.add(
            &value.span(),
            Fault::new(format!(
                "the weights add up to {sum}; consistent_hash takes {MOST_RING_WEIGHT}"
            ))
            .hint(hint),
        );
    }
}

fn common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

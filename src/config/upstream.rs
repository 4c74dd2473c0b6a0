//! [upstreams.NAME]: every rule and default.

use std::{collections::HashSet, time::Duration};

use super::{
    keys::BACKEND,
    listener::{MOST_CONNECTIONS, above_zero},
    section::{Section, Text, Value, Words},
    udp,
};
use crate::{
    config::{
        check,
        references::Users,
        session_actions,
        text::{report::Fault, suggestions::found},
        value::{address, hash_key},
    },
    plan::{Addr, Backend, Balance, Bound, HashKey, SendProxy, Target, TimeOf, Upstream},
};

/// The ring of `consistent_hash` has 160 points for each unit of weight.
const MOST_RING_WEIGHT: u64 = 65_536;
/// The table of `maglev` has 65,537 slots; with fewer than ten each the shares are no longer even.
const MOST_MAGLEV_BACKENDS: usize = 6_553;

/// Without a name these are the defaults: nothing is missing there.
pub(super) fn read(name: Option<&str>, section: &Section<'_>, users: &Users) -> Upstream {
    let actions = session_actions::read(name, section, users);
    let check = check::read(name, section, &actions, users);
    let send_proxy = read_send_proxy(name, section);
    let mut upstream = Upstream {
        name: name.unwrap_or_default().to_owned(),
        balance: read_balance(name, section),
        backends: read_backends(section, users),
        resolve_interval: section.limit("resolve_interval", Duration::from_secs(30)),
        resolve_required: section.flag("resolve_required", true),
        send_proxy,
        send_proxy_on: udp::read_send_proxy_on(name, section, send_proxy, users),
        fail_on_reset: section.flag("fail_on_reset", false),
        on_drain: actions.on_drain,
        flows_move: session_actions::flows_move(&actions, check.as_ref(), users),
        check,
    };
    if name.is_some() && section.get("backends").is_none() {
        section.missing(
            "backends",
            "say which servers it has: backends = [\"10.0.0.1:6379\"]",
        );
    }
    udp::fits_upstream(&mut upstream, section, users);
    check_backends(&upstream, section);
    check::fits(&mut upstream, section);
    upstream
}

#[derive(Clone, Copy, PartialEq)]
enum Policy {
    RoundRobin,
    LeastConn,
    RandomTwo,
    LeastTime,
    First,
    Hash,
    IpHash,
    ConsistentHash,
    Maglev,
}

const POLICIES: &Words<Policy> = &[
    ("round_robin", Some(Policy::RoundRobin)),
    ("least_conn", Some(Policy::LeastConn)),
    ("random_two", Some(Policy::RandomTwo)),
    ("least_time", Some(Policy::LeastTime)),
    ("hash", Some(Policy::Hash)),
    ("ip_hash", Some(Policy::IpHash)),
    ("consistent_hash", Some(Policy::ConsistentHash)),
    ("maglev", Some(Policy::Maglev)),
    ("first", Some(Policy::First)),
];

fn read_balance(name: Option<&str>, section: &Section<'_>) -> Balance {
    let policy = section.word("balance", Policy::RoundRobin, POLICIES);
    // All are read, so that each is looked at whatever the policy.
    let key = read_hash_key(section);
    let key_is_default = key == HashKey::default();
    let bound = read_bound(section);
    let time = section.word(
        "least_time",
        TimeOf::Connect,
        &[
            ("connect", Some(TimeOf::Connect)),
            ("first_byte", Some(TimeOf::FirstByte)),
        ],
    );
    let balance = match policy {
        Policy::RoundRobin => Balance::RoundRobin,
        Policy::LeastConn => Balance::LeastConn,
        Policy::RandomTwo => Balance::RandomTwo,
        Policy::LeastTime => Balance::LeastTime(time),
        Policy::First => Balance::First,
        Policy::Hash => Balance::Hash(key),
        Policy::IpHash => Balance::IpHash,
        Policy::ConsistentHash => Balance::ConsistentHash(key, bound),
        Policy::Maglev => Balance::Maglev(key, bound),
    };
    // In [defaults] they may be there for the upstreams that use them. A `balance` that is wrong
    // was reported already.
    let known = section
        .get("balance")
        .is_none_or(|value| value.get_ref().as_str() == Some(balance.word()));
    if name.is_some() && known {
        let hashes = [Policy::Hash, Policy::ConsistentHash, Policy::Maglev];
        // A default that is written down does no harm: it says what holds anyway.
        for (key, users, is_default) in [
            ("hash_key", &hashes[..], key_is_default),
            ("hash_balance_factor", &hashes[1..], bound.is_none()),
            ("least_time", &[Policy::LeastTime], time == TimeOf::Connect),
        ] {
            if !users.contains(&policy) && !is_default {
                check_unused(key, users, &balance, section);
            }
        }
    }
    balance
}

fn check_unused(key: &str, users: &[Policy], balance: &Balance, section: &Section<'_>) {
    let Some(value) = section.own(key) else {
        return;
    };
    let users = POLICIES
        .iter()
        .filter(|(_, policy)| policy.is_some_and(|p| users.contains(&p)))
        .map(|(word, _)| *word);
    section.report.add(
        &value.span(),
        Fault::new(format!(
            "`{key}` does nothing with balance = {:?}",
            balance.word()
        ))
        .hint(format!(
            "it is for balance = {}; otherwise leave it out",
            users
                .map(|word| format!("{word:?}"))
                .collect::<Vec<_>>()
                .join(" or ")
        )),
    );
}

fn read_hash_key(section: &Section<'_>) -> HashKey {
    let Some(Text { text, span }) = section.text("hash_key") else {
        return HashKey::default();
    };
    hash_key::parse(text).unwrap_or_else(|fault| {
        section.report.add(&span, fault);
        HashKey::default()
    })
}

fn read_bound(section: &Section<'_>) -> Bound {
    let percent: u32 = section.number("hash_balance_factor", 0, 0..=100_000);
    if (1..=100).contains(&percent)
        && let Some(value) = section.get("hash_balance_factor")
    {
        section.report.add(
            &value.span(),
            Fault::new(format!(
                "`hash_balance_factor` = {percent} leaves too few places: it must be above 100"
            ))
            .hint("125 lets a backend hold a quarter more than its share; 0 turns it off"),
        );
    }
    (percent > 0).then_some(percent)
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

fn read_backends(section: &Section<'_>, users: &Users) -> Vec<Backend> {
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
        udp::check_backend(&backend, &address, section, users);
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
        slow_start: table.duration("slow_start", base.slow_start, |_| Ok(())),
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
        target: Target::Addr(Addr::Unix(Default::default())),
        weight: 1,
        max_fails: 1,
        fail_timeout: Duration::from_secs(10),
        max_connections: 0,
        slow_start: Duration::ZERO,
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
    if let Some(key) = section.own("fail_on_reset")
        && upstream.fail_on_reset
        && backends.iter().all(|backend| backend.max_fails == 0)
    {
        section.report.add(
            &key.span(),
            Fault::new("`fail_on_reset` does nothing where every backend has max_fails = 0").hint(
                "failures count only up to `max_fails`: give it, or leave `fail_on_reset` out",
            ),
        );
    }
    check_maglev(upstream, value, section);
    let sum: u64 = backends
        .iter()
        .map(|backend| u64::from(backend.weight))
        .sum();
    if matches!(upstream.balance, Balance::ConsistentHash(..)) && sum > MOST_RING_WEIGHT {
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

fn check_maglev(upstream: &Upstream, value: &Value<'_>, section: &Section<'_>) {
    let count = upstream.backends.len();
    if matches!(upstream.balance, Balance::Maglev(..)) && count > MOST_MAGLEV_BACKENDS {
        section.report.add(
            &value.span(),
            Fault::new(format!(
                "{count} backends; maglev takes {MOST_MAGLEV_BACKENDS}, so that each has slots enough"
            ))
            .hint("use balance = \"consistent_hash\", or share them out over several upstreams"),
        );
    }
}

fn common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

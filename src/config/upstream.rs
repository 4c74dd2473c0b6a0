//! [upstreams.NAME]: what code reads, and the rules between keys.

use std::collections::HashSet;

use super::{
    keys::{
        BACKEND, UPSTREAM,
        applies::{Applies, NoEffect},
        scalar::Word,
        upstream::{self as rows, UpstreamKeys},
        words::ProxyVersion,
    },
    section::{Section, Text, Value},
};
use crate::{
    config::{
        check::{self, Found},
        discover,
        references::References,
        session_actions,
        text::{
            report::{Fault, Report, fault},
            suggestions::found,
        },
        value::{address, hash_key},
    },
    plan::{Addr, Backend, Balance, HashKey, MOST_RING_WEIGHT, Target, Upstream},
};
use toml::de::DeTable;

/// The table of `maglev` has 65,537 slots; with fewer than ten each the shares are no longer even.
const MOST_MAGLEV_BACKENDS: usize = 6_553;

/// `name` is empty for the defaults.
pub(super) fn read(name: &str, section: &Section<'_>, references: &References) -> Upstream {
    let mut keys = read_keys(section, references);
    keys.plan.name = name.to_owned();
    keys.plan.backends = read_backends(section, references);
    keys.plan.discover = discover::read(section);
    let has_source = section.get("discover").is_some();
    if !section.is_defaults() && section.get("backends").is_none() && !has_source {
        section.missing(
            "backends",
            "set the servers of the upstream: backends = [\"10.0.0.1:6379\"]",
        );
    }
    check_bound(&keys, section);
    let check = check::read(section);
    if !section.is_defaults() {
        drop_without_effect(&mut keys, section, references, &check);
    }
    let mut upstream = Upstream {
        balance: keys.balance(),
        send_proxy: keys.send_proxy(),
        ..keys.plan.clone()
    };
    if let Found::Check(mut check) = check {
        check.panic_threshold = keys.panic_threshold;
        check.on_down = keys.on_down;
        check.on_role_lost = keys.on_role_lost;
        check.on_lag = keys.on_lag;
        check.on_recover = keys.on_recover;
        upstream.check = Some(*check);
    }
    upstream.flows_move = session_actions::flows_move(&keys, upstream.check.as_ref(), references);
    check_send_proxy(&keys, section, references);
    check_backends(&upstream, section);
    check::check_upstream(&upstream, section);
    discover::check_upstream(&upstream, section);
    upstream
}

fn read_keys(section: &Section<'_>, references: &References) -> UpstreamKeys {
    let mut keys = UpstreamKeys::of(&Upstream::default());
    section.read(rows::UPSTREAM, &mut keys);
    keys.hash_key = read_hash_key(section);
    session_actions::read(&mut keys, section, references);
    keys
}

fn drop_without_effect(
    keys: &mut UpstreamKeys,
    section: &Section<'_>,
    references: &References,
    check: &Found,
) {
    let (empty, report) = (DeTable::new(), Report::default());
    let nothing = Section::new(&UPSTREAM, &empty, 0..0, &report);
    let default = read_keys(&nothing, references);
    let policy = section.get("balance").map(|value| value.get_ref().as_str());
    // An invalid policy was reported already.
    let is_valid = policy.is_none_or(|word| word == Some(keys.policy.word()));
    section.drop_without_effect(
        rows::UPSTREAM,
        keys,
        &default,
        |keys, applies| match applies {
            Applies::Policy(_) if !is_valid => None,
            _ => no_effect(keys, applies, references, check),
        },
    );
}

/// Why such a key has no effect in this upstream.
pub(super) fn no_effect(
    keys: &UpstreamKeys,
    applies: Applies,
    references: &References,
    check: &Found,
) -> Option<NoEffect> {
    match applies {
        Applies::Policy(policies) if !policies.contains(&keys.policy) => {
            let words = policies.iter().map(|policy| format!("{:?}", policy.word()));
            let words = words.collect::<Vec<_>>().join(" or ");
            Some(NoEffect::unless_default(
                format!("with balance = {:?}", keys.policy.word()),
                format!("it is for balance = {words}; otherwise leave it out"),
            ))
        }
        Applies::SendProxyV2 if keys.send_proxy != ProxyVersion::V2 => {
            Some(NoEffect::unless_default(
                "without send_proxy = \"v2\"",
                "only version 2 has TLVs: write send_proxy = \"v2\", or leave it out",
            ))
        }
        Applies::SendProxyOn if !references.flows() => Some(NoEffect::unless_default(
            "where no UDP listener uses the upstream",
            "it selects the datagrams of a flow that begin with the header: leave it out",
        )),
        Applies::SendProxyOn if keys.send_proxy != ProxyVersion::V2 && !references.udp_sends_v2 => {
            Some(NoEffect::unless_default(
                "without send_proxy = \"v2\"",
                "write send_proxy = \"v2\", or leave it out",
            ))
        }
        Applies::FailOnReset if references.flows_alone() => Some(NoEffect::unless_default(
            "where UDP listeners alone use the upstream",
            "flows are never reset, and a host that refuses a datagram always counts: leave it out",
        )),
        Applies::Backup if !keys.has_backup() => Some(NoEffect::unless_default(
            "without a backup",
            "mark one with `backup = true`, or leave it out",
        )),
        Applies::Wait if references.flows_alone() && !references.waits => {
            Some(NoEffect::unless_default(
                "where listeners with per_packet = true alone use the upstream",
                "a datagram that is balanced on its own does not wait: leave one of the two out",
            ))
        }
        Applies::Queue | Applies::QueueStick if keys.plan.waits.queue_timeout.is_zero() => {
            Some(NoEffect::unless_default(
                "without queue_timeout",
                "say how long sessions may wait, as in queue_timeout = \"10s\", or leave it out",
            ))
        }
        Applies::QueueStick if !keys.policy.hashes() => Some(NoEffect::unless_default(
            format!("with balance = {:?}", keys.policy.word()),
            "it is for policies that give a client a backend of its own, such as \
             \"consistent_hash\": leave it out",
        )),
        Applies::Hold if keys.plan.waits.hold_timeout.is_zero() => Some(NoEffect::unless_default(
            "without hold_timeout",
            "say how long sessions may wait, as in hold_timeout = \"10s\", or leave it out",
        )),
        Applies::OnDrain if !references.operator => Some(NoEffect::always(
            "without an admin socket, which `tembuku drain` needs",
            "add socket = \"/run/tembuku/admin.sock\" to [admin], or leave it out",
        )),
        applies => check::no_effect_in_upstream(keys, applies, references, check),
    }
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

fn check_bound(keys: &UpstreamKeys, section: &Section<'_>) {
    let percent = keys.hash_balance_factor;
    if let (1..=100, Some(value)) = (percent, section.get("hash_balance_factor")) {
        let fault = fault!(
            "`hash_balance_factor` = {percent} leaves no capacity for one more session: it must be \
                         above 100"
        )
        .hint("125 lets a backend hold a quarter more than its share; 0 turns it off");
        section.report.add(&value.span(), fault);
    }
}

fn check_send_proxy(keys: &UpstreamKeys, section: &Section<'_>, references: &References) {
    if let (Some(listener), ProxyVersion::V1) = (&references.udp_that_inherits, keys.send_proxy)
        && let Some(value) = section.get("send_proxy")
    {
        let fault = fault!(
            "send_proxy = \"v1\" cannot be used for the UDP listener `{listener}`: version 1 \
             knows no datagrams"
        )
        .hint("write send_proxy = \"v2\", for backends that expect it");
        section.report.add(&value.span(), fault);
    }
}

fn read_backends(section: &Section<'_>, references: &References) -> Vec<Backend> {
    let mut seen = HashSet::new();
    let mut backends = Vec::new();
    let Some(items) = section.list("backends") else {
        return backends;
    };
    if let (true, Some(value)) = (items.is_empty(), section.get("backends")) {
        section.report.add(
            &value.span(),
            Fault::new("`backends` is an empty list").hint(match section.get("discover") {
                None => "give at least one, as in [\"10.0.0.1:6379\"]",
                Some(_) => "leave it out: the source of `discover` names backends",
            }),
        );
    }
    for item in items {
        let Some((backend, address)) = read_backend(item, section) else {
            continue;
        };
        if !seen.insert(address.text) {
            section.report.add(
                &address.span,
                fault!("the backend {:?} is listed twice", address.text).hint(format!(
                    "to send it a larger share, list it once: {{ address = {:?}, weight = 2 }}",
                    address.text
                )),
            );
        }
        check_backend_address(&backend, &address, section, references);
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
    let mut backend = match &address {
        Some(address) => with_defaults(address, section),
        None => with_target("", Target::default()),
    };
    table.read(rows::BACKEND, &mut backend);
    Some((backend, address?))
}

/// The keys of a backend that is discovered, all but its address.
pub fn backend_with_defaults() -> Backend {
    with_target("", Target::default())
}

/// A backend with every default.
fn with_target(text: &str, target: Target) -> Backend {
    let (empty, report) = (DeTable::new(), Report::default());
    let mut backend = Backend {
        text: text.to_owned(),
        target,
        ..Backend::default()
    };
    Section::new(&BACKEND, &empty, 0..0, &report).read(rows::BACKEND, &mut backend);
    backend
}

fn with_defaults(address: &Text<'_>, section: &Section<'_>) -> Backend {
    let target = address::target(address.text).unwrap_or_else(|fault| {
        section.report.add(&address.span, fault);
        Target::default()
    });
    with_target(address.text, target)
}

/// Reports what is wrong with the address of one backend, at its position in the file.
fn check_backend_address(
    backend: &Backend,
    address: &Text<'_>,
    section: &Section<'_>,
    references: &References,
) {
    let Target::Addr(addr) = &backend.target else {
        return;
    };
    let takes_connections = references.tcp || references.udp.is_none();
    if address::is_to_many(addr) && takes_connections && !references.unsure {
        let fault = fault!(
            "the backend {:?} cannot take connections: it is an address of many machines",
            address.text
        )
        .hint("give it the address of one server; only UDP listeners may send to many");
        section.report.add(&address.span, fault);
    }
    // The path of an address that could not be read is empty.
    if let (Some(listener), Addr::Unix(path)) = (&references.udp, addr)
        && !path.as_os_str().is_empty()
    {
        let fault = fault!(
            "the UDP listener `{listener}` cannot use the backend {:?}: there is no UDP over a \
             unix socket",
            address.text
        )
        .hint("give it an address with a port, or give the listener an upstream of its own");
        section.report.add(&address.span, fault);
    }
}

fn check_backends(upstream: &Upstream, section: &Section<'_>) {
    let Some(value) = section.get("backends") else {
        return;
    };
    let backends = &upstream.backends;
    // Backends that are discovered may be of another kind, and have the defaults of their keys.
    let are_all = upstream.discover.is_none();
    if are_all && !backends.is_empty() && backends.iter().all(|backend| backend.backup) {
        section.report.add(
            &value.span(),
            Fault::new("every backend is a backup: there is none to stand in for")
                .hint("take `backup = true` from at least one of them"),
        );
    }
    if are_all && upstream.fail_on_reset && backends.iter().all(|backend| backend.max_fails == 0) {
        let found = NoEffect::always(
            "where every backend has max_fails = 0",
            "failures count only up to `max_fails`: give it, or leave `fail_on_reset` out",
        );
        section.report_no_effect("fail_on_reset", &found);
    }
    let is_limited = |backend: &Backend| backend.max_connections > 0;
    if !upstream.waits.queue_timeout.is_zero() && !backends.iter().any(is_limited) {
        let found = NoEffect::always(
            "where no backend has `max_connections`",
            "no backend is ever full: give them a limit, as in { address = \"10.0.0.1:5432\", \
             max_connections = 80 }, or leave `queue_timeout` out",
        );
        section.report_no_effect("queue_timeout", &found);
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
            fault!("the weights add up to {sum}; consistent_hash takes {MOST_RING_WEIGHT}")
                .hint(hint),
        );
    }
}

fn check_maglev(upstream: &Upstream, value: &Value<'_>, section: &Section<'_>) {
    let count = upstream.backends.len();
    if matches!(upstream.balance, Balance::Maglev(..)) && count > MOST_MAGLEV_BACKENDS {
        section.report.add(
            &value.span(),
            fault!(
                "{count} backends; maglev takes {MOST_MAGLEV_BACKENDS}, so that each has slots \
                 enough"
            )
            .hint("use balance = \"consistent_hash\", or share them out over several upstreams"),
        );
    }
}

fn common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

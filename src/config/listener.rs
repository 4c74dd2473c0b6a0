//! [listeners.NAME]: what code reads, and the rules between keys.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use super::{
    keys::{
        ACCEPT_PROXY, KEEPALIVE, LISTENER,
        applies::{Applies, NoEffect},
        limits as limit_rows,
        listener::{self as rows, protocol_name},
        scalar::Word,
        words::{ProtocolName, ProxyVersion},
    },
    limits,
    section::{Section, Text},
};
use crate::{
    config::{
        text::{
            report::{Fault, Report, Span, fault},
            suggestions::found,
        },
        value::{access, access_log, address, unix_file},
    },
    plan::{
        AcceptProxy, AccessRule, Addr, Bind, Keepalive, Listener, PeerSet, Protocol, SendProxy, Udp,
    },
};
use toml::de::DeTable;

/// A listener, and where in the file the values stand that rules over several sections check.
pub(super) struct Read {
    pub(super) listener: Listener,
    /// Whether its protocol is what was meant.
    pub(super) sure: bool,
    pub(super) upstream_span: Option<Span>,
    /// One for each of `listener.bind`.
    pub(super) bind_spans: Vec<Span>,
}

/// With less a flow would be over before a reply could be there.
const SHORTEST_IDLE: Duration = Duration::from_millis(1);

/// `name` is empty for the defaults.
pub(super) fn read(name: &str, section: &Section<'_>) -> Read {
    let (bind, bind_spans) = read_bind(section);
    let upstream = section.text("upstream");
    report_missing(section);
    let mut listener = Listener {
        name: name.to_owned(),
        bind,
        upstream: upstream.as_ref().map_or("", |text| text.text).to_owned(),
        access: read_access(section),
        accept_proxy: read_accept_proxy(section),
        send_proxy: read_send_proxy(section),
        access_log: access_log::of_listener(section),
        unix: unix_file::read(section),
        ..Listener::default()
    };
    section.read(rows::LISTENER, &mut listener);
    limits::read(&mut listener, section);
    listener.socket.keepalive = read_keepalive(section);
    listener.socket.user_timeout = read_user_timeout(section, listener.socket.keepalive);
    let mut udp = Udp::default();
    section.read(rows::UDP, &mut udp);
    let is_udp = section.word("protocol", ProtocolName::Tcp) == ProtocolName::Udp;
    listener.idle_timeout = read_idle_timeout(&listener.name, is_udp, section);
    if is_udp {
        listener.protocol = Protocol::Udp(udp);
    }
    // With an invalid protocol no key can be reported to have no effect.
    let sure = (section.get("protocol"))
        .is_none_or(|value| value.get_ref().as_str() == Some(protocol_name(&listener).word()));
    if !section.is_defaults() && sure {
        drop_without_effect(&mut listener, udp, section);
        check_binds(&listener, &bind_spans, section);
        check_send_proxy(&listener, section);
    }
    Read {
        listener,
        sure,
        upstream_span: upstream.map(|upstream| upstream.span),
        bind_spans,
    }
}

fn report_missing(section: &Section<'_>) {
    for (key, hint) in [
        (
            "bind",
            "set the address to listen on: bind = \"0.0.0.0:6379\"",
        ),
        (
            "upstream",
            "set the upstream of the listener: upstream = \"NAME\", with a section \
             [upstreams.NAME]",
        ),
    ] {
        if !section.is_defaults() && section.get(key).is_none() {
            section.missing(key, hint);
        }
    }
}

/// Why such a key has no effect in this listener.
pub(super) fn no_effect(listener: &Listener, applies: Applies) -> Option<NoEffect> {
    let is_unix = |addr: &Addr| matches!(addr, Addr::Unix(_));
    let mut addrs = listener.bind.iter().flat_map(|bind| &bind.addrs);
    match (applies, listener.protocol) {
        (Applies::Tcp, Protocol::Udp(_)) => Some(NoEffect::unless_default(
            "with protocol = \"udp\"",
            "it is for connections, which datagrams do not need: leave it out",
        )),
        (Applies::Udp | Applies::Flows, Protocol::Tcp) => Some(NoEffect::unless_default(
            "with protocol = \"tcp\"",
            "it is for protocol = \"udp\": write that, or leave it out",
        )),
        (Applies::Flows, Protocol::Udp(udp)) if udp.per_packet => Some(NoEffect::unless_default(
            "with per_packet = true",
            "every datagram is a flow of its own there: leave one of the two out",
        )),
        // A `bind` that could not be read may be one.
        (Applies::UnixSocket, _) if !listener.bind.is_empty() && !addrs.any(is_unix) => {
            Some(NoEffect::always(
                "for a listener that binds no unix socket",
                "bind \"unix:/path\", or leave it out",
            ))
        }
        (Applies::IpAddress, _) if !listener.bind.is_empty() && addrs.all(is_unix) => {
            Some(NoEffect::unless_default(
                "for a listener that binds unix sockets alone",
                "it is for IP addresses: leave it out",
            ))
        }
        (Applies::PerSource, _) if !listener.limits.has_sources() => {
            Some(NoEffect::unless_default(
                "without a limit of each source",
                "set one, such as max_connections_per_source, or leave it out",
            ))
        }
        (Applies::Rated, _) if !listener.limits.has_rates() => Some(NoEffect::unless_default(
            "without a limit of the rate",
            "set connection_rate or connection_rate_per_source, or leave it out",
        )),
        (Applies::Rated, Protocol::Udp(udp)) if udp.per_packet => Some(NoEffect::unless_default(
            "with per_packet = true",
            "a datagram that is balanced on its own does not wait: leave one of the two out",
        )),
        (Applies::Limited, _) if !listener.limits.is_any() => Some(NoEffect::unless_default(
            "without a limit that it concerns",
            "set one, such as max_connections_per_source, or leave it out",
        )),
        _ => None,
    }
}

fn drop_without_effect(listener: &mut Listener, mut udp: Udp, section: &Section<'_>) {
    let (empty, report) = (DeTable::new(), Report::default());
    let nothing = Section::new(&LISTENER, &empty, 0..0, &report);
    let mut default = Listener {
        unix: unix_file::DEFAULT,
        ..Listener::default()
    };
    nothing.read(rows::LISTENER, &mut default);
    limits::read(&mut default, &nothing);
    default.socket.keepalive = read_keepalive(&nothing);
    default.socket.user_timeout = read_user_timeout(&nothing, default.socket.keepalive);
    let all = rows::LISTENER.iter().chain(limit_rows::LIMITS);
    section.drop_without_effect(all, listener, &default, no_effect);

    let mut default = Udp::default();
    nothing.read(rows::UDP, &mut default);
    let of_listener = listener.clone();
    section.drop_without_effect(rows::UDP, &mut udp, &default, |_, applies| {
        no_effect(&of_listener, applies)
    });
    let (Protocol::Udp(of_listener), accept) = (&mut listener.protocol, &mut listener.accept_proxy)
    else {
        return;
    };
    *of_listener = udp;
    let Some(accept) = accept else {
        return;
    };
    let mut default = AcceptProxy::default();
    Section::new(&ACCEPT_PROXY, &empty, 0..0, &report).read(rows::ACCEPT_PROXY, &mut default);
    let value = section.own("accept_proxy");
    let timeout = value.and_then(|value| value.get_ref().as_table()?.get("timeout"));
    if let (true, Some(value)) = (accept.timeout != default.timeout, timeout) {
        let found = NoEffect::unless_default(
            "with protocol = \"udp\"",
            "the header stands in the same datagram as what follows it: leave it out",
        );
        let fault = found.fault("`timeout` of `accept_proxy`");
        section.report.add(&value.span(), fault);
    }
    accept.timeout = default.timeout;
}

/// Zero is no limit for TCP; for UDP it does not exist, since a flow has no other end.
fn read_idle_timeout(name: &str, is_udp: bool, section: &Section<'_>) -> Option<Duration> {
    let of_its_own = match section.own("idle_timeout") {
        Some(_) => "",
        None => "; give it one of its own",
    };
    let default = Duration::from_secs(if is_udp { 60 } else { 600 });
    let timeout = section.checked_duration("idle_timeout", default, |idle| {
        // In [defaults] it may be there for listeners of TCP.
        if !is_udp || section.is_defaults() || idle >= SHORTEST_IDLE {
            return Ok(());
        }
        Err(fault!(
            "nothing else ends the flows of the UDP listener `{name}`: it must be at least \
             1ms{of_its_own}"
        ))
    });
    Some(timeout).filter(|timeout| is_udp || !timeout.is_zero())
}

/// Sockets that the protocol does not have.
fn check_binds(listener: &Listener, spans: &[Span], section: &Section<'_>) {
    for (bind, span) in listener.bind.iter().zip(spans) {
        let is_unix = |addr: &Addr| matches!(addr, Addr::Unix(_));
        let (name, text) = (&listener.name, &bind.text);
        let fault = match listener.protocol {
            // Connections are made to one machine.
            Protocol::Tcp if bind.addrs.iter().any(address::is_to_many) => fault!(
                "the listener `{name}` cannot bind {text:?}: connections do not come to an \
                 address of many machines"
            )
            .hint("write an address of this machine, or protocol = \"udp\" for datagrams"),
            Protocol::Udp(_) if bind.addrs.iter().any(is_unix) => fault!(
                "the UDP listener `{name}` cannot bind {text:?}: a unix socket is for protocol = \
                 \"tcp\""
            )
            .hint("datagrams arrive at \"IPV4:PORT\" or \"[IPV6]:PORT\""),
            Protocol::Tcp | Protocol::Udp(_) => continue,
        };
        section.report.add(span, fault);
    }
}

/// Every address may be bound once only for each protocol, by whichever listener, or by the admin
/// server, which uses TCP.
pub(super) fn check_collisions(listeners: &[Read], admin: Vec<(Addr, Span)>, report: &Report) {
    // In the order of the file: the later one is reported with the name of the earlier one.
    let mut taken: HashMap<(&str, Addr), String> = HashMap::new();
    for read in listeners.iter().filter(|read| read.sure) {
        let protocol = protocol_name(&read.listener).word();
        let name = &read.listener.name;
        for (bind, span) in read.listener.bind.iter().zip(&read.bind_spans) {
            let mut is_reported = false;
            for addr in bind.addrs.iter().filter(|addr| !is_port_zero(addr)) {
                let owner = format!("listener `{name}` ({:?})", bind.text);
                let Some(other) = taken.insert((protocol, addr.clone()), owner) else {
                    continue;
                };
                if !is_reported {
                    let addr = show(addr);
                    report.add(
                        span,
                        fault!("`{name}` binds {addr}, which is bound by {other} already")
                            .hint("give one of the two another port or address"),
                    );
                }
                // Two ranges may share a thousand ports: one message is enough.
                is_reported = true;
            }
        }
    }
    for (addr, span) in admin {
        let (shown, another, free) = match &addr {
            Addr::Tcp(_) => (show(&addr), "port or address", is_port_zero(&addr)),
            Addr::Unix(_) => (show(&addr), "path", false),
        };
        let mut others = taken.iter().filter(|((protocol, taken), _)| {
            *protocol == ProtocolName::Tcp.word() && overlaps(taken, &addr)
        });
        let (Some((_, other)), false) = (others.next(), free) else {
            continue;
        };
        report.add(
            &span,
            fault!("[admin] listens on {shown}, which is bound by {other} already")
                .hint(format!("give one of the two another {another}")),
        );
    }
}

/// Whether the admin server cannot listen on `admin` beside a listener on `addr`: it does not
/// share its address.
fn overlaps(addr: &Addr, admin: &Addr) -> bool {
    let (Addr::Tcp(addr), Addr::Tcp(admin)) = (addr, admin) else {
        return addr == admin;
    };
    if addr.port() != admin.port() {
        return false;
    }
    let is_any = |address: &SocketAddr| address.ip().is_unspecified();
    let same_family = addr.is_ipv4() == admin.is_ipv4();
    // [::] is for both families there.
    addr == admin
        || (same_family && (is_any(addr) || is_any(admin)))
        || (admin.is_ipv6() && is_any(admin))
}

fn is_port_zero(addr: &Addr) -> bool {
    matches!(addr, Addr::Tcp(address) if address.port() == 0)
}

fn show(addr: &Addr) -> String {
    match addr {
        Addr::Tcp(address) => address.to_string(),
        Addr::Unix(path) => format!("unix:{}", path.display()),
    }
}

fn read_bind(section: &Section<'_>) -> (Vec<Bind>, Vec<Span>) {
    let (mut binds, mut spans) = (Vec::new(), Vec::new());
    for Text { text, span } in section.texts("bind").unwrap_or_default() {
        match address::bind(text) {
            Ok(addrs) => {
                binds.push(Bind {
                    text: text.to_owned(),
                    addrs,
                });
                spans.push(span);
            }
            Err(fault) => section.report.add(&span, fault),
        }
    }
    let ports: usize = binds.iter().map(|bind: &Bind| bind.addrs.len()).sum();
    if let (true, Some(value)) = (ports > address::MOST_PORTS, section.get("bind")) {
        let most = address::MOST_PORTS;
        section.report.add(
            &value.span(),
            fault!("`bind` stands for {ports} addresses; a listener may have {most}")
                .hint("share them out over several listeners"),
        );
    }
    (binds, spans)
}

fn read_access(section: &Section<'_>) -> Vec<AccessRule> {
    let mut rules = Vec::new();
    for item in section.list("access").unwrap_or_default() {
        let Some(Text { text, span }) = section.as_text("access", item) else {
            continue;
        };
        match access::parse(text) {
            Ok(rule) => rules.push(rule),
            Err(fault) => section.report.add(&span, fault),
        }
    }
    rules
}

/// `send_proxy` in `[defaults]` is for upstreams.
fn read_send_proxy(section: &Section<'_>) -> Option<SendProxy> {
    if section.is_defaults() {
        return None;
    }
    let text = section.as_text("send_proxy", section.own("send_proxy")?)?;
    let words: Vec<&str> = ["inherit"]
        .into_iter()
        .chain(ProxyVersion::words())
        .collect();
    let word = section.as_one_of("send_proxy", &text, &words)?;
    let version = ProxyVersion::WORDS.iter().find(|(own, _)| *own == word);
    Some(match version?.1 {
        ProxyVersion::Off => SendProxy::Off,
        ProxyVersion::V1 => SendProxy::V1,
        ProxyVersion::V2 => SendProxy::V2 { tlvs: false },
    })
}

fn check_send_proxy(listener: &Listener, section: &Section<'_>) {
    if let (Protocol::Udp(_), Some(SendProxy::V1)) = (listener.protocol, listener.send_proxy)
        && let Some(value) = section.own("send_proxy")
    {
        let fault = fault!(
            "send_proxy = \"v1\" cannot be used for the UDP listener `{}`: version 1 knows no \
             datagrams",
            listener.name
        )
        .hint("write send_proxy = \"v2\", for backends that expect it");
        section.report.add(&value.span(), fault);
    }
}

/// The whole value is taken from `[defaults]` or none of it, as with `keepalive`.
fn read_accept_proxy(section: &Section<'_>) -> Option<AcceptProxy> {
    let value = section.get("accept_proxy")?;
    let empty = DeTable::new();
    let table = match value.get_ref() {
        value if value.as_bool() == Some(false) => return None,
        // All defaults.
        value if value.as_bool() == Some(true) => {
            Section::new(&ACCEPT_PROXY, &empty, 0..0, section.report)
        }
        other if !other.is_table() => {
            let what = found(other);
            let message = format!("`accept_proxy` must be true, false or a table, not {what}");
            let hint = "as in { trust = [\"10.0.0.0/8\"], timeout = \"3s\" }";
            section
                .report
                .add(&value.span(), Fault::new(message).hint(hint));
            return None;
        }
        _ => Section::open(&ACCEPT_PROXY, value, section.report)?,
    };
    let mut accept = AcceptProxy {
        trust: read_trust(&table).unwrap_or_else(|| vec![PeerSet::All]),
        ..AcceptProxy::default()
    };
    table.read(rows::ACCEPT_PROXY, &mut accept);
    Some(accept)
}

fn read_trust(table: &Section<'_>) -> Option<Vec<PeerSet>> {
    let items = table.list("trust")?;
    if let (true, Some(value)) = (items.is_empty(), table.get("trust")) {
        table.report.add(
            &value.span(),
            Fault::new("`trust` is an empty list: no header would be accepted").hint(
                "name the proxies in front, as in [\"10.0.0.0/8\"], or write accept_proxy = false",
            ),
        );
    }
    let mut trust = Vec::new();
    for item in items {
        let Some(Text { text, span }) = table.as_text("trust", item) else {
            continue;
        };
        match access::parse_peers(text) {
            Ok(peers) => trust.push(peers),
            Err(fault) => table.report.add(
                &span,
                fault.or_hint("as in \"192.0.2.1\", \"10.0.0.0/8\", \"unix\" or \"all\""),
            ),
        }
    }
    Some(trust)
}

/// The whole value is taken from `[defaults]` or none of it: its parts are not mixed.
fn read_keepalive(section: &Section<'_>) -> Option<Keepalive> {
    let empty = DeTable::new();
    let table = match section.get("keepalive") {
        None => Section::new(&KEEPALIVE, &empty, 0..0, section.report),
        Some(value) if value.get_ref().as_bool() == Some(false) => return None,
        Some(value) if !value.get_ref().is_table() => {
            let what = found(value.get_ref());
            let message = format!("`keepalive` must be false or a table, not {what}");
            let hint = "the default is { idle = \"60s\", interval = \"10s\", count = 3 }";
            section
                .report
                .add(&value.span(), Fault::new(message).hint(hint));
            return None;
        }
        Some(value) => Section::open(&KEEPALIVE, value, section.report)?,
    };
    let mut keepalive = Keepalive::default();
    table.read(rows::KEEPALIVE, &mut keepalive);
    Some(keepalive)
}

/// "auto": as long as keepalive takes to notice that an idle peer is gone. Without keepalive, and
/// for "0s", the kernel decides.
fn read_user_timeout(section: &Section<'_>, keepalive: Option<Keepalive>) -> Option<Duration> {
    let automatic = keepalive.map(|k| k.idle + k.interval * k.count);
    let is_automatic = section
        .get("user_timeout")
        .is_none_or(|value| value.get_ref().as_str() == Some("auto"));
    if is_automatic {
        return automatic.map(|timeout| timeout.min(MOST_USER_TIMEOUT));
    }
    let rule = |timeout: Duration| {
        if !timeout.subsec_nanos().is_multiple_of(1_000_000) {
            return Err(Fault::new("it must be whole milliseconds, or \"auto\""));
        }
        if timeout > MOST_USER_TIMEOUT {
            return Err(fault!(
                "it must be at most \"{}ms\", which is nearly 25 days, or \"auto\"",
                MOST_USER_TIMEOUT.as_millis()
            ));
        }
        Ok(())
    };
    let hint = "leave it out for \"auto\", the idle + interval x count of keepalive";
    let timeout = section.optional_duration("user_timeout", rule, hint);
    timeout.filter(|timeout| !timeout.is_zero())
}

/// As TCP_USER_TIMEOUT, a C int of milliseconds.
const MOST_USER_TIMEOUT: Duration = Duration::from_millis(i32::MAX as u64);

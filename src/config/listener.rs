//! [listeners.NAME]: every rule and default.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use super::{
    keys::{ACCEPT_PROXY, KEEPALIVE, LISTENER},
    section::{Section, Text},
    udp,
};
use crate::{
    config::{
        text::{
            report::{Fault, Report, Span},
            suggestions::found,
        },
        value::{access, address, unix_file},
    },
    plan::{
        AcceptProxy, AccessRule, Addr, Bind, Keepalive, Listener, Protocol, SocketOptions, Who,
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

/// Without a name these are the defaults: nothing is missing there.
pub(super) fn read(name: Option<&str>, section: &Section<'_>) -> Read {
    let (bind, bind_spans) = read_bind(section);
    let upstream = section.text("upstream");
    let udp = udp::read(section);
    let words = [
        ("tcp", Some(Protocol::Tcp)),
        ("udp", Some(Protocol::Udp(udp))),
    ];
    let protocol = section.word("protocol", Protocol::Tcp, &words);
    if name.is_some() && section.get("bind").is_none() {
        section.missing("bind", "say where clients arrive: bind = \"0.0.0.0:6379\"");
    }
    if name.is_some() && section.get("upstream").is_none() {
        section.missing(
            "upstream",
            "say where they go: upstream = \"NAME\", with a section [upstreams.NAME]",
        );
    }
    let keepalive = read_keepalive(section);
    let mut listener = Listener {
        name: name.unwrap_or_default().to_owned(),
        protocol,
        bind,
        upstream: upstream
            .as_ref()
            .map_or("", |upstream| upstream.text)
            .to_owned(),
        connect_timeout: section.duration("connect_timeout", Duration::from_secs(5), above_zero),
        idle_timeout: match protocol {
            Protocol::Tcp => section.limit("idle_timeout", Duration::from_secs(600)),
            Protocol::Udp(_) => Some(udp::read_idle_timeout(name, section)),
        },
        half_close_timeout: section.limit("half_close_timeout", Duration::from_secs(60)),
        half_close: section.flag("half_close", true),
        retries: section.number("retries", 3, 0..=1000),
        max_connections: section.number("max_connections", 0, 0..=MOST_CONNECTIONS),
        access: read_access(section),
        accept_proxy: read_accept_proxy(section),
        backlog: section.number("backlog", 4096, 1..=65_535),
        socket: SocketOptions {
            nodelay: section.flag("nodelay", true),
            keepalive,
            user_timeout: read_user_timeout(section, keepalive),
        },
        unix: unix_file::read(section),
    };
    // With a word that nobody knows nothing is known to be useless.
    let sure = (section.get("protocol"))
        .is_none_or(|value| value.get_ref().as_str() == Some(udp::word(protocol)));
    if name.is_some() && sure {
        udp::fits_listener(&mut listener, &udp, &bind_spans, section);
        unix_file::fit(&mut listener.unix, &listener.bind, section);
    }
    Read {
        listener,
        sure,
        upstream_span: upstream.map(|upstream| upstream.span),
        bind_spans,
    }
}

/// With every default there is.
pub(super) fn plain() -> Listener {
    let (empty, report) = (DeTable::new(), Report::default());
    read(None, &Section::new(&LISTENER, &empty, 0..0, &report)).listener
}

/// So long a client may take to say who it is.
pub(super) const HEADER_TIMEOUT: Duration = Duration::from_secs(3);

/// More is a slip of the pen: no machine has the ports and the memory.
pub(super) const MOST_CONNECTIONS: i128 = 1_000_000_000;

pub(super) fn above_zero(duration: Duration) -> Result<(), String> {
    if duration.is_zero() {
        Err("it must be longer than zero".to_owned())
    } else {
        Ok(())
    }
}

/// Every address may be bound once only for each protocol, by whichever listener, or by the admin
/// server, which speaks TCP.
pub(super) fn check_collisions(listeners: &[Read], admin: Vec<(Addr, Span)>, report: &Report) {
    // In the order of the file, so the later one is told about the earlier one.
    let mut taken: HashMap<(&str, Addr), String> = HashMap::new();
    for read in listeners.iter().filter(|read| read.sure) {
        let protocol = udp::word(read.listener.protocol);
        let name = &read.listener.name;
        for (bind, span) in read.listener.bind.iter().zip(&read.bind_spans) {
            let mut told = false;
            for addr in bind.addrs.iter().filter(|addr| !is_port_zero(addr)) {
                let owner = format!("listener `{name}` ({:?})", bind.text);
                let Some(other) = taken.insert((protocol, addr.clone()), owner) else {
                    continue;
                };
                if !told {
                    let addr = show(addr);
                    report.add(
                        span,
                        Fault::new(format!(
                            "`{name}` binds {addr}, which is bound by {other} already"
                        ))
                        .hint("give one of the two another port or address"),
                    );
                }
                // Two ranges may share a thousand ports: one message is enough.
                told = true;
            }
        }
    }
    for (addr, span) in admin {
        let (shown, another, free) = match &addr {
            Addr::Tcp(_) => (show(&addr), "port or address", is_port_zero(&addr)),
            Addr::Unix(_) => (show(&addr), "path", false),
        };
        let mut others = taken.iter().filter(|((protocol, taken), _)| {
            *protocol == udp::word(Protocol::Tcp) && overlaps(taken, &addr)
        });
        let (Some((_, other)), false) = (others.next(), free) else {
            continue;
        };
        report.add(
            &span,
            Fault::new(format!(
                "[admin] listens on {shown}, which is bound by {other} already"
            ))
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
            Fault::new(format!(
                "`bind` stands for {ports} addresses; a listener may have {most}"
            ))
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

/// As with `keepalive`, its parts are not mixed with those of `[defaults]`.
fn read_accept_proxy(section: &Section<'_>) -> Option<AcceptProxy> {
    let value = section.get("accept_proxy")?;
    let from_everybody = AcceptProxy {
        trust: vec![Who::All],
        timeout: HEADER_TIMEOUT,
    };
    if let Some(on) = value.get_ref().as_bool() {
        return on.then_some(from_everybody);
    }
    if !value.get_ref().is_table() {
        let message = format!(
            "`accept_proxy` must be true, false or a table, not {}",
            found(value.get_ref())
        );
        section.report.add(
            &value.span(),
            Fault::new(message).hint("as in { trust = [\"10.0.0.0/8\"], timeout = \"3s\" }"),
        );
        return None;
    }
    let table = Section::open(&ACCEPT_PROXY, value, section.report)?;
    Some(AcceptProxy {
        timeout: table.duration("timeout", from_everybody.timeout, above_zero),
        trust: read_trust(&table).unwrap_or(from_everybody.trust),
    })
}

fn read_trust(table: &Section<'_>) -> Option<Vec<Who>> {
    let items = table.list("trust")?;
    if let (true, Some(value)) = (items.is_empty(), table.get("trust")) {
        table.report.add(
            &value.span(),
            Fault::new("`trust` is an empty list: a header would be accepted from nobody").hint(
                "name the proxies in front, as in [\"10.0.0.0/8\"], or write accept_proxy = false",
            ),
        );
    }
    let mut trust = Vec::new();
    for item in items {
        let Some(Text { text, span }) = table.as_text("trust", item) else {
            continue;
        };
        match access::parse_who(text) {
            Ok(who) => trust.push(who),
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
    let default = Keepalive {
        idle: Duration::from_secs(60),
        interval: Duration::from_secs(10),
        count: 3,
    };
    let Some(value) = section.get("keepalive") else {
        return Some(default);
    };
    if value.get_ref().as_bool() == Some(false) {
        return None;
    }
    if !value.get_ref().is_table() {
        let message = format!(
            "`keepalive` must be false or a table, not {}",
            found(value.get_ref())
        );
        section.report.add(
            &value.span(),
            Fault::new(message)
                .hint("the default is { idle = \"60s\", interval = \"10s\", count = 3 }"),
        );
        return None;
    }
    let table = Section::open(&KEEPALIVE, value, section.report)?;
    Some(Keepalive {
        idle: table.duration("idle", default.idle, whole_seconds),
        interval: table.duration("interval", default.interval, whole_seconds),
        count: table.number("count", default.count, 1..=127),
    })
}

/// What TCP_KEEPIDLE and TCP_KEEPINTVL take.
fn whole_seconds(duration: Duration) -> Result<(), String> {
    if duration.subsec_nanos() != 0 || !(1..=32_767).contains(&duration.as_secs()) {
        return Err("the kernel takes whole seconds from \"1s\" to \"32767s\"".to_owned());
    }
    Ok(())
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
            return Err("it must be whole milliseconds, or \"auto\"".to_owned());
        }
        if timeout > MOST_USER_TIMEOUT {
            return Err(format!(
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

//! What a UDP listener has of its own, what it has not, and what it asks of its upstream.

use std::{net::IpAddr, time::Duration};

use super::{
    listener::{self, HEADER_TIMEOUT, MOST_CONNECTIONS},
    section::{Section, Text},
};
use crate::{
    config::{
        references::Users,
        text::report::{Fault, Span},
    },
    plan::{
        Addr, Backend, Listener, Protocol, ProxyOn, SendProxy, Target, Udp, Upstream, WhenFull,
    },
};

const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// With less a flow would be over before a reply could be there.
const SHORTEST_IDLE: Duration = Duration::from_millis(1);

/// As it is written.
pub(super) fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp(_) => "udp",
    }
}

/// Also for a listener of TCP: a mistake is one there, too.
pub(super) fn read(section: &Section<'_>) -> Udp {
    Udp {
        responses: section.number("responses", 0, 0..=1_000_000),
        requests: section.number("requests", 0, 0..=1_000_000),
        per_packet: section.flag("per_packet", false),
        max_flows_per_source: section.number("max_flows_per_source", 0, 0..=MOST_CONNECTIONS),
        when_full: section.word(
            "when_full",
            WhenFull::Refuse,
            &[
                ("refuse", Some(WhenFull::Refuse)),
                ("evict", Some(WhenFull::Evict)),
            ],
        ),
    }
}

/// There is no "no limit": nobody says goodbye.
pub(super) fn read_idle_timeout(name: Option<&str>, section: &Section<'_>) -> Duration {
    let way_out = match section.own("idle_timeout") {
        Some(_) => "",
        None => "; give it one of its own",
    };
    section.duration("idle_timeout", IDLE_TIMEOUT, |idle| match name {
        Some(name) if idle < SHORTEST_IDLE => Err(format!(
            "nothing else ends the flows of the UDP listener `{name}`: it must be at least 1ms{way_out}"
        )),
        // In [defaults] it may be there for listeners of TCP.
        _ => Ok(()),
    })
}

/// What means nothing with the protocol keeps its default; where the listener itself says
/// otherwise, it is told.
pub(super) fn fits_listener(
    listener: &mut Listener,
    udp: &Udp,
    binds: &[Span],
    section: &Section<'_>,
) {
    match listener.protocol {
        Protocol::Tcp => {
            tcp_fits(udp, section);
            check_tcp_binds(listener, binds, section);
        }
        Protocol::Udp(_) => {
            udp_fits(listener, section);
            check_binds(listener, binds, section);
        }
    }
}

fn tcp_fits(udp: &Udp, section: &Section<'_>) {
    for (key, differs) in [
        ("responses", udp.responses > 0),
        ("requests", udp.requests > 0),
        ("per_packet", udp.per_packet),
        ("max_flows_per_source", udp.max_flows_per_source > 0),
        ("when_full", udp.when_full != WhenFull::Refuse),
    ] {
        if differs {
            section.useless(
                key,
                "with protocol = \"tcp\"",
                "it is for protocol = \"udp\": write that, or leave it out",
            );
        }
    }
}

fn udp_fits(listener: &mut Listener, section: &Section<'_>) {
    let plain = listener::plain();
    let (socket, none) = (&listener.socket, &plain.socket);
    for (key, differs) in [
        (
            "connect_timeout",
            listener.connect_timeout != plain.connect_timeout,
        ),
        (
            "half_close_timeout",
            listener.half_close_timeout != plain.half_close_timeout,
        ),
        ("half_close", listener.half_close != plain.half_close),
        ("backlog", listener.backlog != plain.backlog),
        ("nodelay", socket.nodelay != none.nodelay),
        ("keepalive", socket.keepalive != none.keepalive),
        ("user_timeout", socket.user_timeout != none.user_timeout),
    ] {
        if differs {
            section.useless(
                key,
                "with protocol = \"udp\"",
                "it is for connections, which datagrams do not need: leave it out",
            );
        }
    }
    listener.connect_timeout = plain.connect_timeout;
    listener.half_close_timeout = plain.half_close_timeout;
    listener.half_close = plain.half_close;
    listener.backlog = plain.backlog;
    listener.socket = plain.socket;

    if let Some(accept) = &mut listener.accept_proxy {
        let table = section
            .own("accept_proxy")
            .and_then(|value| value.get_ref().as_table());
        let timeout = table.and_then(|table| table.get("timeout"));
        if let (true, Some(value)) = (accept.timeout != HEADER_TIMEOUT, timeout) {
            let fault =
                Fault::new("`timeout` of `accept_proxy` does nothing with protocol = \"udp\"")
                    .hint(
                        "the header stands in the same datagram as what follows it: leave it out",
                    );
            section.report.add(&value.span(), fault);
        }
        accept.timeout = HEADER_TIMEOUT;
    }
    if let Protocol::Udp(udp) = &mut listener.protocol
        && udp.per_packet
    {
        if udp.requests > 0 {
            section.useless(
                "requests",
                "with per_packet = true",
                "every datagram is a flow of its own there: leave one of the two out",
            );
        }
        udp.requests = 0;
    }
}

/// Connections are made to one machine.
fn check_tcp_binds(listener: &Listener, binds: &[Span], section: &Section<'_>) {
    for (bind, span) in listener.bind.iter().zip(binds) {
        if bind.addrs.iter().any(is_to_many) {
            let fault = Fault::new(format!(
                "the listener `{}` cannot bind {:?}: connections do not come to an address of many machines",
                listener.name, bind.text
            ))
            .hint("write an address of this machine, or protocol = \"udp\" for datagrams");
            section.report.add(span, fault);
        }
    }
}

fn is_to_many(addr: &Addr) -> bool {
    match addr {
        Addr::Tcp(address) => match address.ip().to_canonical() {
            IpAddr::V4(ip) => ip.is_multicast() || ip.is_broadcast(),
            IpAddr::V6(ip) => ip.is_multicast(),
        },
        Addr::Unix(_) => false,
    }
}

fn check_binds(listener: &Listener, binds: &[Span], section: &Section<'_>) {
    for (bind, span) in listener.bind.iter().zip(binds) {
        if bind.addrs.iter().any(|addr| matches!(addr, Addr::Unix(_))) {
            let fault = Fault::new(format!(
                "the UDP listener `{}` cannot bind {:?}: a unix socket is for protocol = \"tcp\"",
                listener.name, bind.text
            ))
            .hint("datagrams arrive at \"IPV4:PORT\" or \"[IPV6]:PORT\"");
            section.report.add(span, fault);
        }
    }
}

/// Checked one by one: each stands elsewhere in the file.
pub(super) fn check_backend(
    backend: &Backend,
    address: &Text<'_>,
    section: &Section<'_>,
    users: &Users,
) {
    if let Target::Addr(addr) = &backend.target
        && is_to_many(addr)
        && (users.tcp || users.udp.is_none())
        && !users.unsure
    {
        let fault = Fault::new(format!(
            "the backend {:?} cannot take connections: it is an address of many machines",
            address.text
        ))
        .hint("give it the address of one server; only UDP listeners may send to many");
        section.report.add(&address.span, fault);
    }
    // One that could not be read has an empty path.
    if let (Some(listener), Target::Addr(Addr::Unix(path))) = (&users.udp, &backend.target)
        && !path.as_os_str().is_empty()
    {
        let fault = Fault::new(format!(
            "the UDP listener `{listener}` cannot use the backend {:?}: there is no UDP over a unix socket",
            address.text
        ))
        .hint("give it an address with a port, or give the listener an upstream of its own");
        section.report.add(&address.span, fault);
    }
}

pub(super) fn read_send_proxy_on(
    name: Option<&str>,
    section: &Section<'_>,
    version: SendProxy,
    users: &Users,
) -> ProxyOn {
    let words = [
        ("first", Some(ProxyOn::First)),
        ("each", Some(ProxyOn::Each)),
    ];
    let on = section.word("send_proxy_on", ProxyOn::First, &words);
    let sends = matches!(version, SendProxy::V2 { .. });
    if on == ProxyOn::First || (sends && users.flows()) {
        return on;
    }
    // In [defaults] it may be there for the upstreams that send a header to datagrams.
    if name.is_some() && !users.flows() {
        section.useless(
            "send_proxy_on",
            "where no UDP listener uses the upstream",
            "it says which datagrams of a flow begin with the header: leave it out",
        );
    } else if name.is_some() {
        section.useless(
            "send_proxy_on",
            "without send_proxy = \"v2\"",
            "write send_proxy = \"v2\", or leave it out",
        );
    }
    ProxyOn::First
}

/// What cannot be done for flows.
pub(super) fn fits_upstream(upstream: &mut Upstream, section: &Section<'_>, users: &Users) {
    if let (Some(listener), SendProxy::V1) = (&users.udp, upstream.send_proxy)
        && let Some(value) = section.get("send_proxy")
    {
        let fault = Fault::new(format!(
            "send_proxy = \"v1\" cannot be used for the UDP listener `{listener}`: version 1 knows no datagrams"
        ))
        .hint("write send_proxy = \"v2\", for backends that expect it");
        section.report.add(&value.span(), fault);
    }
    if upstream.fail_on_reset && users.flows_alone() {
        section.useless(
            "fail_on_reset",
            "where UDP listeners alone use the upstream",
            "flows are never reset, and a host that refuses a datagram always counts: leave it out",
        );
        upstream.fail_on_reset = false;
    }
}

//! Keys of [listeners.NAME].

use super::{
    applies::Applies::{self, Always, Flows, IpAddress, Tcp, UnixSocket},
    inline,
    process::MOST_CONNECTIONS,
    row::{Form, Row, Rule, code, rows, value},
    scalar::Word,
    words::{ProtocolName, ProxyVersion},
};
use crate::{
    config::{
        text::quote::{quoted, quoted_list, time},
        value::{access, access_log},
    },
    plan::{AcceptProxy, Keepalive, Listener, Protocol, SendProxy, Udp, WhenFull},
};

pub(crate) static LISTENER: &[Row<Listener>] = rows! {
    "bind" Form::Other("an address or a list of addresses"), "", Always, code!(write_bind),
        "Where clients arrive: \"0.0.0.0:6379\", \"[::]:6379\", \"unix:/path\", or a range of \
         ports \"0.0.0.0:7000-7010\".";
    "protocol" Form::Word(ProtocolName::words), "tcp", Always,
        code!(|listener| Some(quoted(protocol_name(listener).word()))),
        "TCP connections or UDP datagrams.";
    "upstream" Form::Other("a name"), "", Always,
        code!(|listener| Some(quoted(&listener.upstream))),
        "The name of the upstream that sessions go to.";
    "connect_timeout" Form::Duration(Rule::AboveZero), "5s", Tcp, value!(connect_timeout),
        "For each attempt to connect to a backend.";
    "idle_timeout" Form::Other("a duration"), "", Always,
        code!(idle_timeout, |listener| Some(time(listener.idle_timeout.unwrap_or_default()))),
        "No byte in either direction for this long ends the session; \"0s\" = no limit. The \
         default is \"10m\", and for UDP \"60s\", where it is at least \"1ms\".";
    "half_close_timeout" Form::Duration(Rule::Any), "1m", Tcp, value!(half_close_timeout),
        "One side has ended, and the other is silent and has got everything; \"0s\" = no limit of \
         its own.";
    "half_close" Form::Flag, "true", Tcp, value!(half_close),
        "false: the end of one side ends the session, as nginx does without proxy_half_close.";
    "retries" Form::Number(0, 1000), "3", Always, value!(retries),
        "Other backends tried when a connect fails, before any byte is relayed. UDP: when the \
         host of a backend refuses the datagram that begins a flow.";
    "max_connections" Form::Number(0, MOST_CONNECTIONS), "0", Always, value!(max_connections),
        "Sessions or flows of this listener; 0 = no limit of its own, for UDP an equal share of \
         `max_flows`.";
    "access" Form::Other("a list of rules"), "[]", Always,
        code!(|listener| Some(quoted_list(listener.access.iter().map(access::format)))),
        "[\"allow 10.0.0.0/8\", \"deny unix\", \"deny all\"]: the first match decides; none: \
         allowed.";
    "accept_proxy" Form::Other("true, false or a table"), "false", Always,
        code!(write_accept_proxy),
        "Whether clients begin with a PROXY protocol header, version 1 or 2. With `trust` those \
         peers do, and must; from others no header is accepted. `access` then applies to the \
         address in the header.";
    "access_log" Form::Other("\"inherit\", \"off\", \"stdout\" or a path"), "inherit", Always,
        code!(access_log, |listener| Some(match &listener.access_log {
            None => quoted("inherit"),
            Some(log) => quoted(&access_log::format(log)),
        })),
        "Where the sessions of this listener are recorded; \"inherit\": as `access` of [log] says.";
    "backlog" Form::Number(1, 65_535), "4096", Tcp, value!(backlog),
        "Connections that the kernel keeps until they are accepted.";
    "freebind" Form::Flag, "false", IpAddress, value!(freebind),
        "true: an address may be bound that this host does not have yet, such as one that VRRP \
         moves between hosts.";
    "unix_mode" Form::Other("an octal mode as text"), "0666", UnixSocket,
        code!(unix.mode, |listener| Some(format!("\"{:04o}\"", listener.unix.mode))),
        "Of the files of unix sockets: a user with the right to write may connect.";
    "unix_owner" Form::Other("a user"), "", UnixSocket,
        code!(unix.owner, |listener| Some(quoted(listener.unix.owner.as_deref().unwrap_or("")))),
        "By name or number; \"\" = the user of the process. Another one takes CAP_CHOWN.";
    "unix_group" Form::Other("a group"), "", UnixSocket,
        code!(unix.group, |listener| Some(quoted(listener.unix.group.as_deref().unwrap_or("")))),
        "By name or number; \"\" = the group of the process.";
    "nodelay" Form::Flag, "true", Tcp, value!(socket.nodelay),
        "TCP_NODELAY, both sides.";
    "keepalive" Form::Other("false or a table"), "", Tcp,
        code!(socket.keepalive, |listener| Some(match &listener.socket.keepalive {
            None => "false".to_owned(),
            Some(keepalive) => inline(KEEPALIVE, keepalive, |_| true),
        })),
        "TCP keepalive, both sides of a session; at the backend after its first second.";
    "user_timeout" Form::Other("\"auto\" or a duration"), "auto", Tcp,
        code!(socket.user_timeout, |listener| {
            Some(time(listener.socket.user_timeout.unwrap_or_default()))
        }),
        "How long data may go unacknowledged, both sides; \"auto\" = idle + interval x count of \
         `keepalive`; \"0s\", or \"auto\" without keepalive = left to the kernel (about 15 \
         minutes).";
};

/// Keys that an upstream has as well: in `[defaults]` they are for upstreams.
pub(crate) static OWN: &[Row<Listener>] = rows! {
    "send_proxy" Form::Other("\"inherit\", \"off\", \"v1\" or \"v2\""), "inherit", Always,
        code!(send_proxy, |listener| Some(quoted(match listener.send_proxy {
            None => "inherit",
            Some(SendProxy::Off) => ProxyVersion::Off.word(),
            Some(SendProxy::V1) => ProxyVersion::V1.word(),
            Some(SendProxy::V2 { .. }) => ProxyVersion::V2.word(),
        }))),
        "The PROXY protocol header that backends get from sessions of this listener; \"inherit\": \
         that of the upstream, which checks always send. UDP: not \"v1\".";
};

/// Of [`Protocol::Udp`].
pub(crate) static UDP: &[Row<Udp>] = rows! {
    "responses" Form::Number(0, 1_000_000), "0", Applies::Udp, value!(responses),
        "So many replies are awaited for each datagram, and the flow is over with the last: DNS \
         has 1; 0 = when it is idle.";
    "requests" Form::Number(0, 1_000_000), "0", Flows, value!(requests),
        "After so many datagrams of a client the next one begins a new flow; 0 = never.";
    "per_packet" Form::Flag, "false", Applies::Udp, value!(per_packet),
        "true: every datagram is balanced on its own; not with `requests`.";
    "when_full" Form::Word(WhenFull::words), "refuse", Applies::Udp, value!(when_full),
        "When there are as many flows as there may be: \"refuse\" the new one, or \"evict\" the \
         flow that has been idle for longest.";
};

pub(crate) static KEEPALIVE: &[Row<Keepalive>] = rows! {
    "idle" Form::Duration(Rule::WholeSeconds), "60s", Always, value!(idle),
        "Without a byte, until the first probe.";
    "interval" Form::Duration(Rule::WholeSeconds), "10s", Always, value!(interval),
        "Between probes.";
    "count" Form::Number(1, 127), "3", Always, value!(count),
        "So many probes without an answer end the connection.";
};

pub(crate) static ACCEPT_PROXY: &[Row<AcceptProxy>] = rows! {
    "trust" Form::Other("a list of addresses, networks, \"unix\" and \"all\""), "[\"all\"]", Always,
        code!(|accept| {
            let peers = accept.trust.iter().map(|peers| access::format_peers(*peers));
            Some(quoted_list(peers))
        }),
        "From these a header is required, from others none is accepted.";
    "timeout" Form::Duration(Rule::AboveZero), "3s", Tcp, value!(timeout),
        "From the accept to the end of the header.";
};

pub(crate) fn protocol_name(listener: &Listener) -> ProtocolName {
    match listener.protocol {
        Protocol::Tcp => ProtocolName::Tcp,
        Protocol::Udp(_) => ProtocolName::Udp,
    }
}

fn write_bind(listener: &Listener) -> Option<String> {
    Some(match &listener.bind[..] {
        [one] => quoted(&one.text),
        many => quoted_list(many.iter().map(|bind| &bind.text)),
    })
}

fn write_accept_proxy(listener: &Listener) -> Option<String> {
    Some(match &listener.accept_proxy {
        None => "false".to_owned(),
        Some(accept) => inline(ACCEPT_PROXY, accept, |applies| {
            applies != Tcp || listener.protocol == Protocol::Tcp
        }),
    })
}

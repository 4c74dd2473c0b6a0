//! Keys of [listeners.NAME] that limit its clients.

use super::{
    applies::Applies::{Always, Limited, PerSource, Rated},
    inline,
    process::MOST_CONNECTIONS,
    row::{Form, Row, code, rows, value},
    scalar::Word as _,
};
use crate::{
    config::{
        text::quote::quoted,
        value::{rate, size},
    },
    plan::{Bandwidth, Listener, OverRate, SourcePrefix},
};

pub(crate) static LIMITS: &[Row<Listener>] = rows! {
    "max_connections_per_source" Form::Number(0, MOST_CONNECTIONS), "0", Always,
        value!(limits.max_connections_per_source),
        "Sessions or flows at once of one source, which is the address of a client, or its network \
         (`source_prefix`); behind `accept_proxy` that of the client in the header; 0 = no limit.";
    "connection_rate" Form::Other("a rate"), "0/s", Always,
        code!(limits.connection_rate, |listener| {
            Some(quoted(&rate::format(listener.limits.connection_rate)))
        }),
        "Sessions or flows that begin, as in \"100/s\" or \"30/m\"; what a second allows may come \
         at once; \"0/s\" = no limit.";
    "connection_rate_per_source" Form::Other("a rate"), "0/s", Always,
        code!(limits.connection_rate_per_source, |listener| {
            Some(quoted(&rate::format(listener.limits.connection_rate_per_source)))
        }),
        "The same of one source.";
    "over_rate" Form::Word(OverRate::words), "refuse", Rated, value!(limits.over_rate),
        "A session or flow that comes too early is refused (\"refuse\"), or waits \
         (\"delay\"): at most 1000 at once, and 10 seconds, beyond which it is refused.";
    "bandwidth" Form::Other("a table"), "", Always,
        code!(limits.bandwidth, |listener| write_bandwidth(listener.limits.bandwidth)),
        "Bytes in a second of each session, from the client (`up`) and to it (`down`).";
    "bandwidth_per_source" Form::Other("a table"), "", Always,
        code!(limits.bandwidth_per_source, |listener| {
            write_bandwidth(listener.limits.bandwidth_per_source)
        }),
        "The same of all sessions of one source together.";
    "bandwidth_total" Form::Other("a table"), "", Always,
        code!(limits.bandwidth_total, |listener| write_bandwidth(listener.limits.bandwidth_total)),
        "The same of all sessions of the listener together.";
    "source_prefix" Form::Other("a table"), "", PerSource,
        code!(limits.source_prefix, |listener| {
            Some(inline(SOURCE_PREFIX, &listener.limits.source_prefix, |_| true))
        }),
        "How many leading bits of an address make a source: clients whose addresses agree in them \
         are counted together.";
    "limits_dry_run" Form::Flag, "false", Limited, value!(limits.dry_run),
        "true: what is over a limit of these keys is counted \
         (`tembuku_listener_over_limit_total`), and let pass.";
};

pub(crate) static SOURCE_PREFIX: &[Row<SourcePrefix>] = rows! {
    "v4" Form::Number(1, 32), "32", Always, value!(v4),
        "Of IPv4.";
    "v6" Form::Number(1, 128), "64", Always, value!(v6),
        "Of IPv6, where a host may choose among the addresses of a /64.";
};

pub(crate) static BANDWIDTH: &[Row<Bandwidth>] = rows! {
    "up" Form::Other("a size in a second"), "0", Always,
        code!(up, |bandwidth| Some(quoted(&size::format(bandwidth.up)))),
        "From clients, as in \"10m\"; \"0\" = no limit.";
    "down" Form::Other("a size in a second"), "0", Always,
        code!(down, |bandwidth| Some(quoted(&size::format(bandwidth.down)))),
        "To clients.";
};

fn write_bandwidth(bandwidth: Bandwidth) -> Option<String> {
    Some(inline(BANDWIDTH, &bandwidth, |_| true))
}

//! Keys of [listeners.NAME] that limit its clients.

use super::{
    applies::Applies::{Always, Limited, PerSource},
    inline,
    process::MOST_CONNECTIONS,
    row::{Form, Row, code, rows, value},
};
use crate::plan::{Listener, SourcePrefix};

pub(crate) static LIMITS: &[Row<Listener>] = rows! {
    "max_connections_per_source" Form::Number(0, MOST_CONNECTIONS), "0", Always,
        value!(limits.max_connections_per_source),
        "Sessions or flows at once of one source, which is the address of a client, or its network \
         (`source_prefix`); behind `accept_proxy` that of the client in the header; 0 = no limit.";
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

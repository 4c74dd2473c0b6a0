//! A layer-4 load balancer. ARCHITECTURE.md has the map of the folders and the path of a
//! connection.
//!
//! The library exists for the program, its benchmarks, its tests and its fuzz targets: nothing in
//! it is a stable interface.

#[cfg(not(target_os = "linux"))]
compile_error!("tembuku needs Linux: it relies on splice, SO_REUSEPORT and epoll");

pub(crate) use tembuku_base::{handover, plan, proxy_protocol, sys};
pub(crate) use tembuku_config::config;
pub(crate) use tembuku_engine::{
    admin, control, discover, probe, proxy, runtime, telemetry, upstream,
};

pub(crate) mod cli;

pub use cli::main;

/// What benchmarks, tests and fuzz targets reach.
#[doc(hidden)]
pub mod internals {
    pub mod admin {
        pub use crate::admin::scrape;
    }
    pub mod config {
        pub use crate::config::{
            ChangedKey, Flags, Problems, changed_keys, dump, from_flags, load, parse,
        };
    }
    pub mod control {
        pub use crate::control::{
            OtherProcess, Prepared, Server, SessionReceiver, SessionSender, SessionsReport,
        };
    }
    pub mod datagram {
        pub use crate::sys::datagram::Local;
    }
    pub mod discover {
        pub use crate::discover::replay::run as replay;
    }
    pub mod executor {
        pub use crate::runtime::executor::{Received, Stream};
    }
    pub mod flow_table {
        pub use crate::proxy::udp::table::{Key, Table};
    }
    pub mod handover {
        pub use crate::handover::{
            channel, counters, discovery, fields, flows, hello, journal, listeners, message,
            places, pools, record, remainder, session,
        };
    }
    pub mod import {
        pub use crate::config::import::{import_haproxy, import_nginx};
    }
    pub mod metrics {
        pub use crate::telemetry::metrics::Exporter;
    }
    pub mod plan {
        pub use crate::plan::*;
    }
    pub mod pool {
        pub use crate::upstream::pool::{ConnectTimer, Pool};
    }
    pub mod balance {
        pub use crate::upstream::balance::{
            Balancer, Candidates, Entry, FULL, HashInput, LookupState,
        };
    }
    pub mod probe {
        pub use crate::probe::replay::{Replay, hash_certificate};
    }
    pub mod proxy_protocol {
        pub use crate::proxy_protocol::{
            Addresses, Header, InvalidHeader, Parser, Watch, encode_v1, encode_v2,
        };
    }
    pub mod socket {
        pub use crate::sys::socket::unacknowledged;
    }
    pub mod timer_wheel {
        pub use crate::runtime::timer_wheel::TimerWheel;
    }
}

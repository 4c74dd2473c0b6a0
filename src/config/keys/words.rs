//! The words of keys that take one of several.

use super::scalar::words;
use crate::plan::{
    BackupWhen, Handover, LogFormat, LogLevel, OverRate, ProxyOn, Role, TimeOf, Want, WhenFull,
};

/// The word of `balance`; in the plan the keys of a policy belong to it.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum PolicyName {
    #[default]
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

impl PolicyName {
    /// Whether each client has a backend of its own.
    pub(crate) fn hashes(self) -> bool {
        match self {
            Self::Hash | Self::IpHash | Self::ConsistentHash | Self::Maglev => true,
            Self::RoundRobin
            | Self::LeastConn
            | Self::RandomTwo
            | Self::LeastTime
            | Self::First => false,
        }
    }
}

/// The word of `send_proxy`.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum ProxyVersion {
    #[default]
    Off,
    V1,
    V2,
}

/// The word of `protocol`.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum ProtocolName {
    #[default]
    Tcp,
    Udp,
}

/// The word of `tls`.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum TlsMode {
    #[default]
    Off,
    Require,
    Verify,
}

/// The word of `start`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    Up,
    Down,
}

words! {
    ProtocolName {
        "tcp" => Self::Tcp,
        "udp" => Self::Udp,
    }
    LogLevel {
        "error" => Self::Error,
        "warn" => Self::Warn,
        "info" => Self::Info,
        "debug" => Self::Debug,
        "trace" => Self::Trace,
    }
    LogFormat {
        "auto" => Self::Auto,
        "text" => Self::Text,
        "json" => Self::Json,
    }
    OverRate {
        "refuse" => Self::Refuse,
        "delay" => Self::Delay,
    }
    Handover {
        "sessions" => Self::Sessions,
        "listeners" => Self::Listeners,
    }
    WhenFull {
        "refuse" => Self::Refuse,
        "evict" => Self::Evict,
    }
    ProxyOn {
        "first" => Self::First,
        "each" => Self::Each,
    }
    BackupWhen {
        "full" => Self::Full,
        "down" => Self::Down,
    }
    TimeOf {
        "connect" => Self::Connect,
        "first_byte" => Self::FirstByte,
    }
    PolicyName {
        "round_robin" => Self::RoundRobin,
        "least_conn" => Self::LeastConn,
        "random_two" => Self::RandomTwo,
        "least_time" => Self::LeastTime,
        "hash" => Self::Hash,
        "ip_hash" => Self::IpHash,
        "consistent_hash" => Self::ConsistentHash,
        "maglev" => Self::Maglev,
        "first" => Self::First,
    }
    ProxyVersion {
        "off" => Self::Off,
        "v1" => Self::V1,
        "v2" => Self::V2,
    }
    TlsMode {
        "off" => Self::Off,
        "require" => Self::Require,
        "verify" => Self::Verify,
    }
    Want {
        "primary" => Self::Primary,
        "replicas" => Self::Replicas,
        "all" => Self::All,
    }
    Start {
        "up" => Self::Up,
        "down" => Self::Down,
    }
    Option<Role> {
        "any" => None,
        "primary" => Some(Role::Primary),
        "replica" => Some(Role::Replica),
    }
}

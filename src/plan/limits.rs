//! What bounds the clients of one listener.

use std::net::IpAddr;

/// 0 is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Sessions at once of one source.
    pub max_connections_per_source: u64,
    pub source_prefix: SourcePrefix,
    /// Sessions that begin, of all clients together.
    pub connection_rate: Rate,
    /// The same of one source.
    pub connection_rate_per_source: Rate,
    pub over_rate: OverRate,
    /// Of each session.
    pub bandwidth: Bandwidth,
    /// Of the sessions of one source together.
    pub bandwidth_per_source: Bandwidth,
    /// Of all sessions together.
    pub bandwidth_total: Bandwidth,
    /// What is over a limit is counted, and let pass.
    pub dry_run: bool,
}

/// Bytes in a second, from the client and to it; 0 is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bandwidth {
    pub up: u64,
    pub down: u64,
}

impl Bandwidth {
    pub fn is_limit(self) -> bool {
        self.up > 0 || self.down > 0
    }
}

/// How many may begin in a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rate {
    /// 0: any number.
    pub connections: u32,
    pub per: Period,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Period {
    #[default]
    Second,
    Minute,
}

/// What becomes of a connection that comes too early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OverRate {
    #[default]
    Refuse,
    /// It waits for its time.
    Delay,
}

impl Rate {
    pub fn is_limit(self) -> bool {
        self.connections > 0
    }

    /// The time for one; `None`: no limit.
    pub fn interval_nanos(self) -> Option<u64> {
        let period: u64 = match self.per {
            Period::Second => 1_000_000_000,
            Period::Minute => 60_000_000_000,
        };
        period.checked_div(self.connections.into())
    }

    /// How many may begin at once after a while without any: what a second allows, at least one.
    pub fn burst(self) -> u64 {
        let in_a_second = match self.per {
            Period::Second => self.connections,
            Period::Minute => self.connections / 60,
        };
        in_a_second.max(1).into()
    }
}

/// How many leading bits of an address make a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourcePrefix {
    pub v4: u8,
    pub v6: u8,
}

impl Default for SourcePrefix {
    /// A host or a site gets a /64 of IPv6, whose addresses it may choose.
    fn default() -> Self {
        Self { v4: 32, v6: 64 }
    }
}

/// The clients that a limit for each source counts together: an address, or those that begin alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Source {
    /// With the bits after the prefix cleared.
    network: IpAddr,
    prefix: u8,
}

impl Source {
    pub fn of(address: IpAddr, prefix: SourcePrefix) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => {
                let prefix = prefix.v4.min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                Self {
                    network: IpAddr::V4((v4.to_bits() & mask).into()),
                    prefix,
                }
            }
            IpAddr::V6(v6) => {
                let prefix = prefix.v6.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                Self {
                    network: IpAddr::V6((v6.to_bits() & mask).into()),
                    prefix,
                }
            }
        }
    }
}

impl Limits {
    /// Whether some limit is one of each source.
    pub fn has_sources(&self) -> bool {
        self.max_connections_per_source > 0
            || self.connection_rate_per_source.is_limit()
            || self.bandwidth_per_source.is_limit()
    }

    pub fn has_bandwidth(&self) -> bool {
        let all = [
            self.bandwidth,
            self.bandwidth_per_source,
            self.bandwidth_total,
        ];
        all.into_iter().any(Bandwidth::is_limit)
    }

    pub fn has_rates(&self) -> bool {
        self.connection_rate.is_limit() || self.connection_rate_per_source.is_limit()
    }

    /// Whether sessions are to be refused, or only counted, when their rate is over a limit.
    pub fn refuses_over_rate(&self) -> bool {
        self.has_rates() && (self.over_rate == OverRate::Refuse || self.dry_run)
    }

    pub fn delays_over_rate(&self) -> bool {
        self.has_rates() && !self.refuses_over_rate()
    }

    /// Whether there is any limit here.
    pub fn is_any(&self) -> bool {
        self.has_sources() || self.has_rates() || self.has_bandwidth()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(address: &str, v4: u8, v6: u8) -> Source {
        let address = address.parse().expect("an address");
        Source::of(address, SourcePrefix { v4, v6 })
    }

    #[test]
    fn addresses_with_one_prefix_are_one_source() {
        for (a, b, v4, v6, same) in [
            ("10.0.0.1", "10.0.0.1", 32, 64, true),
            ("10.0.0.1", "10.0.0.2", 32, 64, false),
            ("10.0.0.1", "10.0.0.254", 24, 64, true),
            ("10.0.0.1", "10.0.1.1", 24, 64, false),
            ("10.0.0.1", "11.0.1.1", 1, 64, true),
            ("10.0.0.1", "200.0.1.1", 1, 64, false),
            // The address is the same, however it is written.
            ("10.0.0.1", "::ffff:10.0.0.1", 32, 64, true),
            ("2001:db8::1", "2001:db8::2", 32, 64, true),
            ("2001:db8::1", "2001:db8:0:1::1", 32, 64, false),
            ("2001:db8::1", "2001:db8::2", 32, 128, false),
            ("2001:db8::1", "2001:db8::2", 32, 126, true),
        ] {
            assert_eq!(source(a, v4, v6) == source(b, v4, v6), same, "{a} {b}");
        }
        // A network is not its first address: a reload may change the prefix while both count.
        assert_ne!(source("10.0.0.0", 24, 64), source("10.0.0.0", 32, 64));
    }
}

//! What the operating system allows this process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{ops::RangeInclusive, sync::OnceLock};

/// Raises the soft limit of descriptors to the hard one, and returns what is allowed now.
pub fn raise_descriptors() -> u64 {
    let before = getrlimit(Resource::Nofile);
    if before.current < before.maximum || (before.current.is_some() && before.maximum.is_none()) {
        // Where raising is refused the old limit still stands, and is what is read back.
        let _ = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: before.maximum,
                maximum: before.maximum,
            },
        );
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// CPUs that this process may use; affinity and cgroup quotas are respected.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// How many local ports the kernel gives out by itself. To sockets of UDP each of them goes once
/// only, whatever they are connected to.
pub fn local_ports() -> u64 {
    let range = local_port_range();
    (u64::from(*range.end()) + 1)
        .saturating_sub(u64::from(*range.start()))
        .max(1)
}

/// Whether the kernel may choose that port by itself. Of the range as it was when this was asked
/// first.
pub fn is_local_port(port: u16) -> bool {
    static RANGE: OnceLock<RangeInclusive<u16>> = OnceLock::new();
    RANGE.get_or_init(local_port_range).contains(&port)
}

fn local_port_range() -> RangeInclusive<u16> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let range = range.ok().and_then(|text| {
        let mut ports = text.split_whitespace().map(str::parse::<u16>);
        Some(ports.next()?.ok()?..=ports.next()?.ok()?)
    });
    // What the kernel has where nobody has changed it.
    range.unwrap_or(32_768..=60_999)
}

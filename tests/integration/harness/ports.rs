//! Port numbers for programs that must be given one.
//!
//! They come from below the range of which the kernel takes the ports of outgoing connections, so
//! that none of the thousands of connections these tests make can sit on one; a counter keeps them
//! apart within a run.

use super::proc::while_no_child_starts;
use std::{
    net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

const FIRST: u32 = 10_000;

fn end() -> u32 {
    static END: OnceLock<u32> = OnceLock::new();
    *END.get_or_init(|| {
        let range =
            std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
        let low = range
            .split_whitespace()
            .next()
            .and_then(|low| low.parse().ok());
        low.unwrap_or(32_768).max(FIRST + 2_000)
    })
}

fn next() -> u16 {
    static NEXT: OnceLock<AtomicU32> = OnceLock::new();
    let next = NEXT.get_or_init(|| {
        // Two runs at once start far apart.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        AtomicU32::new(now.subsec_nanos() ^ (std::process::id() << 7))
    });
    let n = next.fetch_add(1, Ordering::Relaxed);
    (FIRST + n % (end() - FIRST)) as u16
}

fn is_free(port: u16) -> bool {
    while_no_child_starts(|| {
        TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).is_ok()
            && TcpListener::bind(("0.0.0.0", port)).is_ok()
            && UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).is_ok()
            && UdpSocket::bind(("0.0.0.0", port)).is_ok()
    })
}

/// A port that no socket uses on any address, for TCP or UDP.
pub(crate) fn free_port() -> u16 {
    (0..2_000)
        .map(|_| next())
        .find(|&port| is_free(port))
        .expect("a free port")
}

/// The first of `count` free ports in a row.
pub(crate) fn free_range(count: u16) -> u16 {
    for _ in 0..200 {
        let first = next();
        let ports: Vec<u16> = (1..count).map(|_| next()).collect();
        let in_a_row = ports
            .iter()
            .zip(1..)
            .all(|(&port, n)| Some(port) == first.checked_add(n));
        if in_a_row && is_free(first) && ports.iter().all(|&port| is_free(port)) {
            return first;
        }
    }
    panic!("no {count} free ports in a row");
}

pub(crate) fn free_addr() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

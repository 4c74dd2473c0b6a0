//! What the tests share: programs that are started and certainly ended, ports, sockets with odd
//! options, metrics.

pub(crate) mod certs;
pub(crate) mod checked;
pub(crate) mod chromium;
pub(crate) mod dnsmasq;
pub(crate) mod etcd;
pub(crate) mod faulty;
pub(crate) mod http;
pub(crate) mod load;
pub(crate) mod mariadb;
pub(crate) mod metrics;
pub(crate) mod mysql;
pub(crate) mod net;
pub(crate) mod netns;
pub(crate) mod nsd;
pub(crate) mod pair;
pub(crate) mod ports;
pub(crate) mod postgres;
pub(crate) mod proc;
pub(crate) mod programs;
pub(crate) mod proxy;
pub(crate) mod registry;
pub(crate) mod rng;
pub(crate) mod server;
pub(crate) mod tembuku;
pub(crate) mod temp;
pub(crate) mod threads;
pub(crate) mod udp;

use std::time::{Duration, Instant};

/// Looks again and again until there is an answer. Waiting is always for a condition; `limit` is
/// only how long a broken program is given.
pub(crate) fn poll<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// [`poll`] for something that must come true.
#[track_caller]
pub(crate) fn wait_until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    if poll(limit, || holds().then_some(())).is_none() {
        panic!("still not so after {limit:?}: {what}");
    }
}

pub(crate) const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub(crate) const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Not before `first`, and before `last`: limits of time are checked generously upwards, since the
/// machine is busy.
pub(crate) fn bounded(what: Duration, first: Duration, last: Duration) -> bool {
    first <= what && what < last
}

//! The addresses that the UDP listeners of this process receive at. A datagram from one of them is
//! forged: the reply to it would come back as the next datagram of the same client, for ever.

use crate::sys::mutex::Mutex;
use ahash::AHashMap;
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

/// How long it is cached whether an address is local: interfaces change.
const CACHE_TIME: Duration = Duration::from_secs(1);
/// The most addresses in the cache: there can be many forged sources.
const MAX_CACHED: usize = 1_024;

/// Whether an address is one of this host.
type IsLocal = fn(IpAddr) -> bool;

#[derive(Debug)]
pub struct OwnAddresses {
    /// All ports, sorted: for most clients comparing the port is enough.
    ports: Vec<u16>,
    exact: BTreeSet<(IpAddr, u16)>,
    /// Ports at all addresses of a family.
    all_v4: BTreeSet<u16>,
    all_v6: BTreeSet<u16>,
    is_local: IsLocal,
    cache: Mutex<Cache>,
}

#[derive(Debug)]
struct Cache {
    since: Instant,
    local: AHashMap<IpAddr, bool>,
}

impl OwnAddresses {
    pub fn new(addresses: impl IntoIterator<Item = SocketAddr>, is_local: IsLocal) -> Self {
        let mut own = Self {
            ports: Vec::new(),
            exact: BTreeSet::new(),
            all_v4: BTreeSet::new(),
            all_v6: BTreeSet::new(),
            is_local,
            cache: Mutex::new(Cache {
                since: Instant::now(),
                local: AHashMap::new(),
            }),
        };
        for address in addresses {
            let (ip, port) = (address.ip().to_canonical(), address.port());
            own.ports.push(port);
            match ip {
                IpAddr::V4(v4) if v4.is_unspecified() => own.all_v4.insert(port),
                IpAddr::V6(v6) if v6.is_unspecified() => own.all_v6.insert(port),
                _ => own.exact.insert((ip, port)),
            };
        }
        own.ports.sort_unstable();
        own.ports.dedup();
        own
    }

    /// Whether datagrams to this address reach a listener of this process.
    pub(super) fn contains(&self, address: SocketAddr, now: Instant) -> bool {
        self.ports.binary_search(&address.port()).is_ok() && self.look_up(address, now)
    }

    #[cold]
    fn look_up(&self, address: SocketAddr, now: Instant) -> bool {
        let (ip, port) = (address.ip().to_canonical(), address.port());
        let all = match ip {
            IpAddr::V4(_) => &self.all_v4,
            IpAddr::V6(_) => &self.all_v6,
        };
        self.exact.contains(&(ip, port)) || (all.contains(&port) && self.is_local(ip, now))
    }

    fn is_local(&self, ip: IpAddr, now: Instant) -> bool {
        let mut cache = self.cache.lock();
        let age = now.saturating_duration_since(cache.since);
        if age >= CACHE_TIME || cache.local.len() >= MAX_CACHED {
            cache.local.clear();
            cache.since = now;
        }
        *cache.local.entry(ip).or_insert_with(|| (self.is_local)(ip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(addresses: &[&str], is_local: IsLocal) -> OwnAddresses {
        let addresses = addresses.iter().map(|a| a.parse().expect("an address"));
        OwnAddresses::new(addresses, is_local)
    }

    fn contains(own: &OwnAddresses, address: &str, now: Instant) -> bool {
        own.contains(address.parse().expect("an address"), now)
    }

    #[test]
    fn exact_addresses_and_local_ones_behind_a_wildcard() {
        let is_local = |ip: IpAddr| ip.is_loopback() || ip.to_string().starts_with("10.0.0.");
        let own = own(
            &["192.0.2.1:53", "[::1]:53", "0.0.0.0:54", "[::]:55"],
            is_local,
        );
        let now = Instant::now();
        for (address, is_own) in [
            ("192.0.2.1:53", true),
            ("[::ffff:192.0.2.1]:53", true),
            ("192.0.2.2:53", false),
            ("192.0.2.1:54", false),
            ("[::1]:53", true),
            ("10.0.0.1:54", true),
            ("127.0.0.9:54", true),
            ("[::ffff:10.0.0.1]:54", true),
            ("10.0.1.1:54", false),
            // A wildcard of the other family.
            ("[::1]:54", false),
            ("127.0.0.1:55", false),
            ("[::1]:55", true),
            ("127.0.0.1:40000", false),
        ] {
            assert_eq!(contains(&own, address, now), is_own, "{address}");
        }
    }

    #[test]
    fn whether_an_address_is_local_is_cached_for_a_while() {
        use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
        static LOCAL: AtomicBool = AtomicBool::new(false);
        let own = own(&["0.0.0.0:53"], |_| LOCAL.load(SeqCst));
        let began = Instant::now();
        assert!(!contains(&own, "10.0.0.1:53", began));
        LOCAL.store(true, SeqCst);
        let almost = began + CACHE_TIME - Duration::from_millis(1);
        assert!(!contains(&own, "10.0.0.1:53", almost));
        assert!(contains(&own, "10.0.0.1:53", began + CACHE_TIME));
    }
}

//! Sets of clients: every address of a network, or a sample of it.

use super::Client;
use crate::upstream::balance::Chance;
use ahash::AHashSet;
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The largest set.
pub const MOST_CLIENTS: u64 = 1 << 20;

/// The ports of outgoing connections on Linux by default.
const PORTS: std::ops::Range<u64> = 32_768..61_000;

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientSet {
    v6: bool,
    first: u128,
    /// Its distance from the first.
    last: u128,
}

impl ClientSet {
    pub fn network(net: IpNet) -> Self {
        Self::between(net.network(), net.broadcast())
    }

    /// Where the clients of the IPv4 internet come from, and some others.
    pub fn internet() -> Self {
        Self::between(
            Ipv4Addr::new(1, 0, 0, 0).into(),
            Ipv4Addr::new(223, 255, 255, 255).into(),
        )
    }

    fn between(first: IpAddr, last: IpAddr) -> Self {
        let bits = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => u128::from(ip.to_bits()),
            IpAddr::V6(ip) => ip.to_bits(),
        };
        Self {
            v6: first.is_ipv6(),
            first: bits(first),
            last: bits(last) - bits(first),
        }
    }

    /// All of them in order; `None` if they are too many.
    pub fn all(&self) -> Option<Vec<Client>> {
        let range = 0..=self.last;
        (self.last < u128::from(MOST_CLIENTS)).then(|| range.map(|at| self.at(at)).collect())
    }

    /// So many different ones, in order; `None` if there are not as many.
    pub fn sample(&self, count: u64, chance: &mut Chance) -> Option<Vec<Client>> {
        let before_last = u128::from(count.saturating_sub(1));
        let from = self.last.checked_sub(before_last)?;
        // Robert Floyd's: as many draws as there are clients, however many of all they are.
        let mut chosen = AHashSet::new();
        for end in from..=self.last {
            let drawn = up_to(end, chance);
            if !chosen.insert(drawn) {
                chosen.insert(end);
            }
        }
        let mut chosen: Vec<u128> = chosen.into_iter().collect();
        chosen.sort_unstable();
        Some(chosen.into_iter().map(|at| self.at(at)).collect())
    }

    fn at(&self, at: u128) -> Client {
        let bits = self.first + at;
        let ip = if self.v6 {
            IpAddr::V6(Ipv6Addr::from_bits(bits))
        } else {
            // An IPv4 network ends where 32 bits do.
            IpAddr::V4(Ipv4Addr::from_bits(bits as u32))
        };
        Client::Ip { ip, port: None }
    }
}

/// Gives each client a port as a program that connects would have one.
pub fn draw_ports(clients: &mut [Client], chance: &mut Chance) {
    for client in clients {
        if let Client::Ip { port, .. } = client {
            let drawn = PORTS.start + chance.draw() % (PORTS.end - PORTS.start);
            *port = u16::try_from(drawn).ok();
        }
    }
}

fn up_to(last: u128, chance: &mut Chance) -> u128 {
    let drawn = u128::from(chance.draw()) << 64 | u128::from(chance.draw());
    // The bias of the remainder is below 2^-100.
    last.checked_add(1).map_or(drawn, |count| drawn % count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> ClientSet {
        ClientSet::network(text.parse().expect("a network"))
    }

    fn names(clients: Option<Vec<Client>>) -> Vec<String> {
        let clients = clients.expect("clients").into_iter();
        clients.map(|c| c.to_string()).collect()
    }

    #[test]
    fn every_address_of_a_network() {
        let all = names(network("192.0.2.5/30").all());
        assert_eq!(all, ["192.0.2.4", "192.0.2.5", "192.0.2.6", "192.0.2.7"]);
        assert_eq!(names(network("192.0.2.5/32").all()), ["192.0.2.5"]);
        let all = names(network("2001:db8::/127").all());
        assert_eq!(all, ["2001:db8::", "2001:db8::1"]);
        let clients = |text| network(text).all().map(|all| all.len());
        assert_eq!(clients("10.0.0.0/12"), Some(1 << 20));
        assert_eq!(clients("10.0.0.0/11"), None);
        assert_eq!(clients("::/0"), None);
    }

    #[test]
    fn a_sample_is_of_different_ones_in_order() {
        let mut chance = Chance::from_seed(1);
        for text in ["10.0.0.0/8", "0.0.0.0/0", "2001:db8::/32", "::/0"] {
            let crowd = network(text);
            let net: IpNet = text.parse().expect("a network");
            let sample = crowd.sample(1000, &mut chance).expect("as many");
            let ips: Vec<IpAddr> = sample.iter().filter_map(|c| c.ip()).collect();
            assert_eq!(ips.len(), 1000);
            assert!(ips.windows(2).all(|pair| pair[0] < pair[1]));
            assert!(ips.iter().all(|ip| net.contains(ip)));
        }
        let few = network("192.0.2.0/30");
        assert_eq!(few.sample(4, &mut chance), few.all());
        assert_eq!(few.sample(5, &mut chance), None);
        // All are drawn equally often.
        let mut drawn = [0u32; 4];
        for _ in 0..4000 {
            let one = few.sample(1, &mut chance).expect("one");
            let IpAddr::V4(ip) = one[0].ip().expect("an address") else {
                panic!("{one:?}");
            };
            drawn[usize::from(ip.octets()[3])] += 1;
        }
        assert!(drawn.iter().all(|n| (850..1150).contains(n)), "{drawn:?}");
    }

    #[test]
    fn ports_are_those_of_linux() {
        let mut clients = network("10.0.0.0/16").all().expect("few");
        draw_ports(&mut clients, &mut Chance::from_seed(1));
        let ports: AHashSet<u16> = clients.iter().filter_map(|c| c.port()).collect();
        assert!(ports.iter().all(|port| (32_768..61_000).contains(port)));
        assert!(ports.len() > 20_000, "{}", ports.len());
    }
}

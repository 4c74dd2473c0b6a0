//! Which clients may connect, and which peers may name a client. Pure.

use crate::plan::{AcceptProxy, AccessRule, PeerSet};
use std::net::IpAddr;

/// The first rule that matches decides; where none does, the client is let in. A client on a unix
/// socket has no address.
pub fn allows(rules: &[AccessRule], client: Option<IpAddr>) -> bool {
    denied_by(rules, client).is_none()
}

/// The position of the rule that refuses the client, if one does.
pub fn denied_by(rules: &[AccessRule], client: Option<IpAddr>) -> Option<usize> {
    // An IPv4 client on an IPv6 socket is still an IPv4 client.
    let client = client.map(|ip| ip.to_canonical());
    let first = rules.iter().position(|rule| matches(rule.peers, client));
    first.filter(|n| !rules[*n].allow)
}

/// Whether this peer's connections begin with a PROXY protocol header.
pub fn trusts(accept: &AcceptProxy, peer: Option<IpAddr>) -> bool {
    let peer = peer.map(|ip| ip.to_canonical());
    accept.trust.iter().any(|peers| matches(*peers, peer))
}

/// Whether the client is one of these.
pub fn contains(peers: PeerSet, client: Option<IpAddr>) -> bool {
    matches(peers, client.map(|ip| ip.to_canonical()))
}

fn matches(peers: PeerSet, client: Option<IpAddr>) -> bool {
    match (peers, client) {
        (PeerSet::All, _) | (PeerSet::Unix, None) => true,
        (PeerSet::Net(IpAddr::V4(net), len), Some(IpAddr::V4(ip))) => {
            same_prefix(u128::from(net.to_bits()), u128::from(ip.to_bits()), 32, len)
        }
        (PeerSet::Net(IpAddr::V6(net), len), Some(IpAddr::V6(ip))) => {
            same_prefix(net.to_bits(), ip.to_bits(), 128, len)
        }
        _ => false,
    }
}

fn same_prefix(a: u128, b: u128, bits: u8, len: u8) -> bool {
    // A shift by all 128 bits is none in Rust; a prefix of length 0 is the same for all.
    (a ^ b)
        .checked_shr(u32::from(bits.saturating_sub(len)))
        .unwrap_or(0)
        == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str, len: u8, allow: bool) -> AccessRule {
        let peers = PeerSet::Net(text.parse().expect("an address"), len);
        AccessRule { allow, peers }
    }

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().expect("an address"))
    }

    #[test]
    fn the_first_match_decides() {
        let deny_all = AccessRule {
            allow: false,
            peers: PeerSet::All,
        };
        let rules = [
            net("10.1.0.0", 16, false),
            net("10.0.0.0", 8, true),
            deny_all,
        ];
        assert!(!allows(&rules, ip("10.1.2.3")));
        assert!(allows(&rules, ip("10.2.2.3")));
        assert!(allows(&rules, ip("::ffff:10.2.2.3")));
        assert!(!allows(&rules, ip("11.0.0.1")));
        assert!(!allows(&rules, ip("::1")));
        assert!(!allows(&rules, None));
        assert!(allows(&rules[..2], ip("11.0.0.1")));
        assert!(allows(&[], None));
    }

    #[test]
    fn prefixes_of_every_length() {
        let one = [
            net("2001:db8::", 127, true),
            AccessRule {
                allow: false,
                peers: PeerSet::All,
            },
        ];
        assert!(allows(&one, ip("2001:db8::1")));
        assert!(!allows(&one, ip("2001:db8::2")));
        for len in 0..=32 {
            assert!(!allows(&[net("0.0.0.0", len, false)], ip("0.0.0.0")));
            assert_eq!(
                allows(&[net("0.0.0.0", len, false)], ip("255.0.0.0")),
                len > 0
            );
        }
        assert!(!allows(&[net("::", 0, false)], ip("ffff::")));
    }
}

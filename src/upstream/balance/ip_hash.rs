//! `ip_hash` as nginx's http module has it: clients of one IPv4 /24 share a backend.

use super::{Candidates, MOST_TRIES, Pick, Why, by_key, weights::Weights};
use std::net::IpAddr;

/// The position of a search: the next try hashes on from the hash of the last.
#[derive(Debug, Clone)]
pub struct IpHashLookup {
    bytes: [u8; 16],
    len: usize,
    hash: u64,
    tries: u32,
}

impl IpHashLookup {
    /// Clients on a unix socket have no address and count as one.
    pub(super) fn from_client(client: Option<IpAddr>) -> Self {
        let mut bytes = [0; 16];
        let len = match client {
            None => 3,
            Some(IpAddr::V4(ip)) => {
                bytes[..3].copy_from_slice(&ip.octets()[..3]);
                3
            }
            Some(IpAddr::V6(ip)) => {
                bytes = ip.octets();
                16
            }
        };
        Self {
            bytes,
            len,
            hash: 89,
            tries: 0,
        }
    }

    pub(super) fn pick(&mut self, weights: &Weights, candidates: &impl Candidates) -> Option<Pick> {
        let total = weights.total();
        // The same at every try: it decides when the key moves to one that starts slowly.
        let of_key = u64::from(crc32fast::hash(&self.bytes[..self.len]));
        while total > 0 && self.tries <= MOST_TRIES {
            self.hash = self.bytes[..self.len].iter().fold(self.hash, |hash, byte| {
                (hash * 113 + u64::from(*byte)) % 6271
            });
            let at = self.hash % total;
            let candidate = weights.at(at)?;
            if by_key(candidates.share(candidate), of_key) {
                return Some(Pick {
                    candidate,
                    why: Why::Hash {
                        hash: self.hash,
                        at,
                        total,
                        tries: self.tries + 1,
                    },
                });
            }
            self.tries += 1;
        }
        None
    }
}

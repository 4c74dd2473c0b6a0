//! `ip_hash` as nginx's http module has it: clients of one IPv4 /24 share a backend.

use super::{Candidates, Pick, hash::try_hashes, weights::Weights};
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
        let bytes = &self.bytes[..self.len];
        let of_key = crc32fast::hash(bytes);
        try_hashes(weights, candidates, of_key, &mut self.tries, || {
            let hash = |hash, byte: &u8| (hash * 113 + u64::from(*byte)) % 6271;
            self.hash = bytes.iter().fold(self.hash, hash);
            self.hash
        })
    }
}

//! Finds a flow by the addresses of its datagrams. Pure.

use crate::sys::datagram::Local;
use ahash::RandomState;
use hashbrown::{HashTable, hash_table::Entry};
use std::net::SocketAddr;

/// Identifies a flow: datagrams with equal keys belong to the same one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    pub peer: SocketAddr,
    /// The index of the listening socket.
    pub port: u16,
    /// The destination address, where the socket has more than one.
    pub local: Option<Local>,
    /// In a box: most have none.
    pub more: Option<Box<More>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct More {
    /// Source and destination by a PROXY protocol header.
    pub named: Option<(SocketAddr, SocketAddr)>,
    /// The id of the backend, where each datagram is balanced on its own; else 0.
    pub backend: u64,
}

impl Key {
    /// Source and destination by a PROXY protocol header, if there was one.
    pub fn named(&self) -> Option<(SocketAddr, SocketAddr)> {
        self.more.as_ref().and_then(|more| more.named)
    }
}

/// Numbers of flows by their keys, which the flows themselves hold. The hash is keyed at random, so
/// that addresses cannot be chosen to collide.
#[derive(Debug, Default)]
pub struct Table {
    numbers: HashTable<u32>,
    keyed: RandomState,
}

impl Table {
    pub fn find<'a>(&self, key: &Key, key_of: impl Fn(u32) -> &'a Key) -> Option<u32> {
        let hash = self.keyed.hash_one(key);
        self.numbers.find(hash, |n| key_of(*n) == key).copied()
    }

    /// Replaces an entry with the same key.
    pub fn insert<'a>(&mut self, key: &Key, number: u32, key_of: impl Fn(u32) -> &'a Key) {
        let hash = self.keyed.hash_one(key);
        let (same, again) = (
            |n: &u32| key_of(*n) == key,
            |n: &u32| self.keyed.hash_one(key_of(*n)),
        );
        match self.numbers.entry(hash, same, again) {
            Entry::Occupied(mut entry) => *entry.get_mut() = number,
            Entry::Vacant(entry) => {
                entry.insert(number);
            }
        }
    }

    /// Removes the entry if it has this number. Returns whether it had.
    pub fn remove(&mut self, key: &Key, number: u32) -> bool {
        let hash = self.keyed.hash_one(key);
        let found = self.numbers.find_entry(hash, |n| *n == number);
        found.is_ok_and(|entry| {
            entry.remove();
            true
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn key(port: u16, to: u8) -> Key {
        Key {
            peer: SocketAddr::from(([10, 0, 0, 1], port)),
            port: 0,
            local: Some(Local {
                ip: Ipv4Addr::new(127, 0, 0, to).into(),
                interface: 0,
            }),
            more: None,
        }
    }

    #[test]
    fn every_part_of_a_key_counts() {
        let named = |n: u16| {
            let at = SocketAddr::from(([192, 0, 2, 1], n));
            Some(Box::new(More {
                named: Some((at, at)),
                backend: 0,
            }))
        };
        let on = |backend| {
            Some(Box::new(More {
                named: None,
                backend,
            }))
        };
        let mut keys: Vec<Key> = (0..50)
            .flat_map(|port| (1..5).map(move |to| key(port, to)))
            .collect();
        for more in [named(1), named(2), on(1), on(2)] {
            keys.push(Key { more, ..key(1, 1) });
        }
        keys.push(Key {
            port: 1,
            ..key(1, 1)
        });
        keys.push(Key {
            local: None,
            ..key(1, 1)
        });
        let mut table = Table::default();
        for (n, key) in keys.iter().enumerate() {
            assert_eq!(table.find(key, |n| &keys[n as usize]), None);
            table.insert(key, n as u32, |n| &keys[n as usize]);
        }
        for (n, key) in keys.iter().enumerate() {
            assert_eq!(table.find(key, |n| &keys[n as usize]), Some(n as u32));
            table.remove(key, 1_000);
            assert_eq!(table.find(key, |n| &keys[n as usize]), Some(n as u32));
            table.remove(key, n as u32);
            assert_eq!(table.find(key, |n| &keys[n as usize]), None);
        }
    }
}

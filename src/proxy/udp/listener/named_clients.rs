//! The clients that trusted peers have named by PROXY protocol headers: a later datagram of the
//! same peer may come without one. Pure.

use super::super::table::{Key, More};
use ahash::AHashMap;
use std::net::SocketAddr;

/// By the peer's own key.
pub(super) struct NamedClients {
    clients: AHashMap<Key, NamedClient>,
    swept_ms: u64,
    idle_ms: u64,
}

struct NamedClient {
    /// Source and destination; `None` where the peer speaks for itself.
    named: Named,
    last_ms: u64,
}

pub(super) type Named = Option<(SocketAddr, SocketAddr)>;

impl NamedClients {
    pub(super) fn set_idle_ms(&mut self, idle_ms: u64) {
        self.idle_ms = idle_ms;
    }

    pub(super) fn new(idle_ms: u64, ms: u64) -> Self {
        Self {
            clients: AHashMap::new(),
            swept_ms: ms,
            idle_ms,
        }
    }

    /// The client that the last header of this peer named.
    pub(super) fn get(&self, peer: &Key) -> Option<Named> {
        self.clients.get(peer).map(|client| client.named)
    }

    /// Keeps at most `max` peers.
    pub(super) fn insert(&mut self, peer: Key, named: Named, ms: u64, max: usize) {
        if self.clients.len() < max || self.clients.contains_key(&peer) {
            let last_ms = ms;
            self.clients.insert(peer, NamedClient { named, last_ms });
        }
    }

    /// All peers, with the clients that they have named and the time of the last header.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, Named, u64)> {
        let clients = self.clients.iter();
        clients.map(|(peer, client)| (peer, client.named, client.last_ms))
    }

    pub(super) fn next_sweep(&self) -> Option<u64> {
        (!self.clients.is_empty()).then(|| self.swept_ms + self.idle_ms)
    }

    /// Forgets peers that are silent for as long as a flow may be, and have no flow.
    pub(super) fn sweep(&mut self, ms: u64, has_flow: impl Fn(&Key) -> bool) {
        if self.next_sweep().is_none_or(|at| ms < at) {
            return;
        }
        self.swept_ms = ms;
        let idle_ms = self.idle_ms;
        self.clients.retain(|peer, client| {
            client.last_ms + idle_ms > ms || has_flow(&peer.for_client(client.named))
        });
    }
}

impl Key {
    /// The key of the flow of a client that this peer has named.
    pub(super) fn for_client(&self, named: Named) -> Self {
        let more = named.map(|named| {
            Box::new(More {
                named: Some(named),
                backend: 0,
            })
        });
        Self {
            more,
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(port: u16) -> Key {
        Key {
            peer: SocketAddr::from(([10, 0, 0, 1], port)),
            port: 0,
            local: None,
            more: None,
        }
    }

    #[test]
    fn a_silent_peer_without_a_flow_is_forgotten() {
        let mut all = NamedClients::new(100, 0);
        assert_eq!((all.get(&peer(1)), all.next_sweep()), (None, None));
        (1..=3).for_each(|n| all.insert(peer(n), None, 0, 2));
        assert_eq!(all.get(&peer(3)), None, "there are two already");
        let named = Some((peer(9).peer, peer(8).peer));
        all.insert(peer(2), named, 50, 2);
        assert_eq!(all.get(&peer(2)), Some(named));
        let has_flow = |key: &Key| *key == peer(2).for_client(named);
        all.sweep(99, |_| false);
        assert!(all.get(&peer(1)).is_some(), "it is too early");
        all.sweep(500, has_flow);
        assert_eq!((all.get(&peer(1)), all.get(&peer(2))), (None, Some(named)));
        all.sweep(600, |_| false);
        assert_eq!(all.next_sweep(), None);
    }
}

//! What the new process begins with.

use crate::{
    control::{inherited::HandedSocket, resolve::KnownAddresses},
    handover::{discovery::DiscoveryRecord, journal::JournalRecord, pools::PoolRecord},
    plan::Addr,
};

/// What a process gets from the one that it replaces, before it starts.
#[derive(Default)]
pub struct Inheritance {
    pub(in crate::control) sockets: Vec<HandedSocket>,
    pub(in crate::control) pools: Vec<PoolRecord>,
    pub(in crate::control) journal: JournalRecord,
    pub(in crate::control) discoveries: Vec<DiscoveryRecord>,
}

impl Inheritance {
    /// What the names of backends stand for.
    pub(in crate::control) fn addresses(&self) -> KnownAddresses {
        let mut known = KnownAddresses::new();
        for pool in &self.pools {
            for backend in pool.backends.iter().filter(|b| !b.addresses.is_empty()) {
                let addresses = backend.addresses.iter().map(|text| parse_addr(text));
                // One that is not understood is looked up.
                if let Some(addresses) = addresses.collect() {
                    let name = (pool.upstream.clone(), backend.text.clone());
                    known.insert(name, addresses);
                }
            }
        }
        known
    }
}

fn parse_addr(text: &str) -> Option<Addr> {
    match text.strip_prefix("unix:") {
        Some(path) => Some(Addr::Unix(path.into())),
        None => text.parse().ok().map(Addr::Tcp),
    }
}

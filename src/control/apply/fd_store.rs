//! The store of the service manager: it keeps listening sockets when the process ends or crashes,
//! and clients wait in their queues for the next process.

use super::{Runtime, listener::ListenerRuntime};
use crate::{
    control::{ServiceManager, bind::BoundSockets},
    plan::Addr,
};
use std::{
    collections::BTreeSet,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// What the service manager keeps, each address under a name.
pub(super) struct Store {
    manager: ServiceManager,
    names: BTreeSet<String>,
    /// `Some`: another process is the main one, and the service manager hears that alone.
    unsent: Option<Unsent>,
}

/// What to send to it as soon as this process is the main one.
#[derive(Default)]
struct Unsent {
    removed: Vec<String>,
    added: Vec<(String, Vec<OwnedFd>)>,
}

/// Whether the service manager hears this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StoreRole {
    Main,
    /// It replaces another process, which is the main one still.
    Successor,
}

impl Store {
    pub(super) fn new(manager: ServiceManager, role: StoreRole) -> Self {
        Self {
            manager,
            names: BTreeSet::new(),
            unsent: (role == StoreRole::Successor).then(Unsent::default),
        }
    }

    async fn add(&mut self, name: String, sockets: &[BorrowedFd<'_>]) {
        match &mut self.unsent {
            None => self.manager.store(&name, sockets).await,
            Some(unsent) => {
                let copies = sockets.iter().map(|fd| fd.try_clone_to_owned());
                unsent
                    .added
                    .push((name.clone(), copies.flatten().collect()));
            }
        }
        self.names.insert(name);
    }

    async fn remove(&mut self, name: String) {
        self.names.remove(&name);
        match &mut self.unsent {
            None => self.manager.remove_from_store(&name).await,
            Some(unsent) => unsent.removed.push(name),
        }
    }

    /// The service manager hears this process from now on. It keeps the sockets that it has.
    async fn become_main(&mut self) {
        let Some(Unsent { removed, added }) = self.unsent.take() else {
            return;
        };
        for name in removed {
            self.manager.remove_from_store(&name).await;
        }
        for (name, sockets) in added {
            if self.names.contains(&name) {
                let fds: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
                self.manager.store(&name, &fds).await;
            }
        }
    }
}

impl Runtime {
    /// Before the workers have them.
    pub(super) async fn store_sockets(&mut self, bound: &BoundSockets) {
        if !self.manager.has_store() {
            return;
        }
        // A socket of the store that this process has closed would still get clients.
        for name in &bound.closed {
            self.store.remove(name.clone()).await;
        }
        for (protocol, addr) in &bound.left {
            self.store.remove(name(protocol, addr)).await;
        }
        let streams = bound.streams.iter().map(|listening| {
            let fds: Vec<BorrowedFd<'_>> = listening.sockets.iter().map(AsFd::as_fd).collect();
            (name("tcp", &listening.bound), fds)
        });
        let datagrams = bound.datagrams.iter().map(|listening| {
            let fds = listening.sockets.iter().map(|port| port.socket.as_fd());
            (name("udp", &listening.bound), fds.collect())
        });
        for (name, fds) in streams.chain(datagrams) {
            self.store.add(name, &fds).await;
        }
    }

    /// Whether the service manager does not hear this process yet.
    pub(in crate::control) fn is_successor(&self) -> bool {
        self.store.unsent.is_some()
    }

    /// This process has replaced another one, and the service manager knows.
    pub(in crate::control) async fn become_main(&mut self) {
        self.store.become_main().await;
    }

    /// Removes what belongs to no listener any more.
    pub(super) async fn remove_from_store(&mut self) {
        if self.store.names.is_empty() {
            return;
        }
        let listeners = self.listeners.values().map(ListenerRuntime::view);
        let in_use = listeners.flat_map(|view| {
            let protocol = view.service.protocol();
            let names = view.addresses.iter().map(|addr| name(protocol, addr));
            names.collect::<Vec<_>>()
        });
        let in_use: BTreeSet<String> = in_use.collect();
        let gone: Vec<String> = self.store.names.difference(&in_use).cloned().collect();
        for name in gone {
            self.store.remove(name).await;
        }
    }
}

/// The protocol allows printable ASCII without colons, and 255 characters.
fn name(protocol: &str, addr: &Addr) -> String {
    let mut name = format!("{protocol}-");
    for byte in addr.to_string().bytes() {
        match byte {
            b':' => name.push('_'),
            b'_' | b'%' | 0..=b' ' | 127.. => name.push_str(&format!("%{byte:02X}")),
            plain => name.push(plain.into()),
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_printable_and_different() {
        let tcp = |text: &str| name("tcp", &Addr::Tcp(text.parse().expect("an address")));
        assert_eq!(tcp("0.0.0.0:80"), "tcp-0.0.0.0_80");
        assert_eq!(tcp("[::1]:80"), "tcp-[__1]_80");
        let unix = |path: &str| name("tcp", &Addr::Unix(path.into()));
        assert_eq!(unix("/run/a b_\u{e4}"), "tcp-unix_/run/a%20b%5F%C3%A4");
        assert_ne!(unix("/a:b"), unix("/a_b"));
    }
}

//! The store of the service manager: it keeps listening sockets when the process ends or crashes,
//! and clients wait in their queues for the next process.

use super::{Runtime, listener::ListenerRuntime};
use crate::{control::bind::Bound, plan::Addr};
use std::{
    collections::BTreeSet,
    os::fd::{AsFd, BorrowedFd},
};

impl Runtime {
    /// Before the workers have them.
    pub(super) async fn store_sockets(&mut self, bound: &Bound) {
        if !self.manager.has_store() {
            return;
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
            if self.is_held {
                // It takes nothing from this process yet.
                let copies = fds.iter().map(|fd| fd.try_clone_to_owned());
                self.unstored
                    .push((name.clone(), copies.flatten().collect()));
            } else {
                self.manager.store(&name, &fds).await;
            }
            self.stored.insert(name);
        }
    }

    /// Gives it the sockets of a start that replaced another process; it keeps those that it has.
    pub(in crate::control) async fn store_held_sockets(&mut self) {
        for (name, sockets) in std::mem::take(&mut self.unstored) {
            if self.stored.contains(&name) {
                let fds: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
                self.manager.store(&name, &fds).await;
            }
        }
    }

    /// Removes what belongs to no listener any more.
    pub(super) async fn remove_from_store(&mut self) {
        if self.stored.is_empty() {
            return;
        }
        let listeners = self.listeners.values().map(ListenerRuntime::view);
        let in_use = listeners.flat_map(|view| {
            let protocol = view.service.protocol();
            let names = view.addresses.iter().map(|addr| name(protocol, addr));
            names.collect::<Vec<_>>()
        });
        let in_use: BTreeSet<String> = in_use.collect();
        let gone: Vec<String> = self.stored.difference(&in_use).cloned().collect();
        for name in gone {
            self.manager.remove_from_store(&name).await;
            self.stored.remove(&name);
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

//! Second descriptors of the listening sockets, for another process.

use super::{
    Runtime, Workers,
    listener::ListenerSockets,
    tcp_sockets::{ClosingStreams, StreamSocket},
    udp_sockets::DatagramSockets,
};
use crate::{
    handover::listeners::{ListeningRecord, Protocol},
    plan::Addr,
    proxy::{
        tcp::{self, SocketCopy, SocketId},
        udp::{self, ListenerId, PortCopy},
    },
    sys::blocking,
};
use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    sync::mpsc,
    time::Duration,
};

/// How long workers are waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// A listening socket, and its record for another process.
pub(in crate::control) type ListeningCopy = (ListeningRecord, OwnedFd);

impl Runtime {
    /// Of all listeners, those of an address one after the other.
    pub(in crate::control) async fn copy_sockets(&self) -> io::Result<Vec<ListeningCopy>> {
        let (mut streams, mut ports) = self.workers.copy_sockets().await?;
        let mut copies = Vec::new();
        for (name, listener) in &self.listeners {
            match &listener.sockets {
                ListenerSockets::Streams(sockets) => {
                    for socket in sockets {
                        copies.extend(copy_streams(name, socket, &mut streams)?);
                    }
                }
                ListenerSockets::Datagrams(sockets) => {
                    copies.extend(copy_ports(name, sockets, &mut ports)?);
                }
            }
        }
        Ok(copies)
    }

    /// No listener accepts, until [`Self::resume_accepting`]: connections wait in the queues.
    /// Datagrams are received until their flows are given over.
    pub(in crate::control) async fn pause_accepting(&self) {
        for worker in &self.workers.connections {
            worker.send(tcp::Order::Pause);
        }
        self.workers.confirm().await;
    }

    /// Serves the clients that have connected to these addresses, each with the name of its
    /// listener, and closes their sockets: another process does not go on with them.
    pub(in crate::control) async fn close_addresses(&mut self, addresses: &[(String, String)]) {
        let mut closing = ClosingStreams::default();
        for (name, listener) in &mut self.listeners {
            let ListenerSockets::Streams(sockets) = &mut listener.sockets else {
                continue;
            };
            let is_gone = |socket: &mut StreamSocket| {
                let configured = socket.configured.to_string();
                addresses.iter().any(|(l, a)| l == name && *a == configured)
            };
            for socket in sockets.extract_if(.., is_gone) {
                for worker in &self.workers.connections {
                    worker.send(tcp::Order::ResumeOne(socket.id()));
                }
                closing.add(socket);
            }
        }
        closing.close(&self.workers).await;
    }

    pub(in crate::control) async fn resume_accepting(&self) {
        for worker in &self.workers.connections {
            worker.send(tcp::Order::Resume);
        }
        self.workers.confirm().await;
    }
}

type StreamCopies = BTreeMap<SocketId, Vec<SocketCopy>>;
type PortCopies = BTreeMap<(ListenerId, SocketAddr), Vec<PortCopy>>;

impl Workers {
    async fn copy_sockets(&self) -> io::Result<(StreamCopies, PortCopies)> {
        let (stream_copies, streams) = mpsc::channel();
        for worker in &self.connections {
            worker.send(tcp::Order::CopySockets(stream_copies.clone()));
        }
        let (port_copies, ports) = mpsc::channel();
        for worker in &self.datagrams {
            worker.send(udp::Order::CopySockets(port_copies.clone()));
        }
        drop((stream_copies, port_copies));
        let collect = move || {
            let (mut by_id, mut by_address) = (StreamCopies::new(), PortCopies::new());
            for copy in streams {
                by_id.entry(copy.id).or_default().push(copy);
            }
            for copy in ports {
                let of = (copy.listener, copy.address);
                by_address.entry(of).or_default().push(copy);
            }
            (by_id, by_address)
        };
        blocking::call(PATIENCE, collect).await
    }
}

fn copy_streams(
    listener: &str,
    socket: &StreamSocket,
    copies: &mut StreamCopies,
) -> io::Result<Vec<ListeningCopy>> {
    let record = ListeningRecord {
        listener: listener.to_owned(),
        configured: socket.configured.to_string(),
        protocol: Protocol::Stream,
        owns_file: socket.file.is_some(),
    };
    let mut sockets: Vec<OwnedFd> = Vec::new();
    for waiting in socket.waiting() {
        sockets.push(waiting.as_fd().try_clone_to_owned()?);
    }
    let mut copies = copies.remove(&socket.id()).unwrap_or_default();
    copies.sort_by_key(|copy| copy.index);
    for copy in copies {
        sockets.push(copy.socket?);
    }
    if matches!(socket.configured, Addr::Unix(_)) {
        // All workers have the same.
        sockets.truncate(1);
    }
    Ok(sockets.into_iter().map(|s| (record.clone(), s)).collect())
}

fn copy_ports(
    listener: &str,
    sockets: &DatagramSockets,
    copies: &mut PortCopies,
) -> io::Result<Vec<ListeningCopy>> {
    let mut all = Vec::new();
    for (configured, bound) in sockets.configured() {
        let record = ListeningRecord {
            listener: listener.to_owned(),
            configured: configured.to_string(),
            protocol: Protocol::Datagram,
            owns_file: false,
        };
        let copies = copies.remove(&(sockets.id(), bound));
        let mut copies = copies.unwrap_or_default();
        copies.sort_by_key(|copy| copy.index);
        for copy in copies {
            all.push((record.clone(), copy.socket?));
        }
    }
    Ok(all)
}

//! Sends the flows of datagrams to another process, or takes them over.

use super::{Runtime, listener::ListenerSockets, udp_sockets::DatagramSockets};
use crate::proxy::udp::{self, FlowReceiver, FlowSender, Scope, SentListener};
use std::{net::SocketAddr, sync::Arc, time::Duration};

/// For each answer of the other process.
const PATIENCE: Duration = Duration::from_secs(5);

impl Runtime {
    /// `left`: the addresses that the other process does not go on with, as configured, each with
    /// the name of its listener.
    pub(in crate::control) fn flow_sender(
        &self,
        left: &[(String, String)],
        scope: Scope,
    ) -> FlowSender {
        let listeners = self.datagram_listeners().map(|(name, sockets)| {
            let is_left = |configured: &str| left.iter().any(|(l, a)| l == name && a == configured);
            let addresses = sockets.configured();
            let given = addresses.filter(|(configured, _)| !is_left(&configured.to_string()));
            SentListener {
                id: sockets.id(),
                addresses: given.map(|(_, bound)| bound).collect(),
            }
        });
        FlowSender::new(self.mailboxes(), listeners.collect(), scope, PATIENCE)
    }

    pub(in crate::control) fn flow_taker(&self) -> FlowReceiver {
        let listeners = self.datagram_listeners().map(|(name, sockets)| {
            let addresses: Vec<SocketAddr> = sockets.addresses().collect();
            (name.clone(), sockets.id(), addresses)
        });
        FlowReceiver::new(self.mailboxes(), listeners)
    }

    fn datagram_listeners(&self) -> impl Iterator<Item = (&String, &DatagramSockets)> {
        let listeners = self.listeners.iter();
        listeners.filter_map(|(name, listener)| match &listener.sockets {
            ListenerSockets::Datagrams(sockets) => Some((name, sockets)),
            ListenerSockets::Streams(_) => None,
        })
    }

    fn mailboxes(&self) -> Vec<Arc<udp::Orders>> {
        let workers = self.workers.datagrams.iter();
        workers.map(|worker| Arc::clone(worker.mailbox())).collect()
    }
}

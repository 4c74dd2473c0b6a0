//! The sockets of UDP listeners. The kernel assigns flows to sockets, and the flows of a listener
//! share limits, so that the sockets of a listener stay together for as long as there are flows.

use super::Workers;
use crate::{
    control::bind::Listening,
    plan::Addr,
    proxy::udp::{
        Binding, ListenerId, Order, OwnAddresses, PeerWorkers, Port, PortUse, PortUsers, Update,
        worker_of,
    },
    session::service::Service,
};
use std::time::Duration;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tokio_util::task::TaskTracker;

/// How long sockets that are about to be closed are waited for.
const CLOSE: Duration = Duration::from_secs(2);

/// The sockets of one listener on all workers.
pub(super) struct DatagramSockets {
    id: ListenerId,
    addresses: Vec<UdpAddress>,
    peers: Arc<PeerWorkers>,
    /// Until the workers have them.
    waiting: Vec<Port>,
    is_serving: bool,
}

struct UdpAddress {
    /// As in the plan.
    configured: Addr,
    bound: SocketAddr,
    users: Arc<PortUsers>,
    /// `None`: no flow begins there, and the sockets are closed when the last has ended.
    in_use: Option<PortUse>,
    /// Tracks the sockets that are open.
    open: TaskTracker,
}

/// Keeps an address open that a plan has again.
pub(super) struct Kept(SocketAddr, PortUse);

impl DatagramSockets {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            id: ListenerId(NEXT.fetch_add(1, Relaxed)),
            addresses: Vec::new(),
            peers: Arc::default(),
            waiting: Vec::new(),
            is_serving: false,
        }
    }

    pub(super) fn id(&self) -> ListenerId {
        self.id
    }

    /// Whether sockets of this address are open, be it that they are to be closed.
    pub(super) fn has(&self, configured: &Addr) -> bool {
        let mut open = self.addresses.iter().filter(|a| !a.open.is_empty());
        open.any(|address| address.configured == *configured)
    }

    /// Keeps the sockets of this address open. `None` where they are closed, or are about to be:
    /// then waits until that is done.
    pub(super) async fn keep(&self, configured: &Addr) -> Option<Kept> {
        let mut addresses = self.addresses.iter();
        let address = addresses.find(|address| address.configured == *configured)?;
        let kept = address.users.take();
        if kept.is_none() {
            let _ = tokio::time::timeout(CLOSE, address.open.wait()).await;
        }
        kept.map(|port_use| Kept(address.bound, port_use))
    }

    /// Whether any sockets are open.
    pub(super) fn is_open(&self) -> bool {
        self.addresses
            .iter()
            .any(|address| !address.open.is_empty())
    }

    pub(super) async fn wait_closed(&self) {
        for address in &self.addresses {
            address.open.wait().await;
        }
    }

    /// Whether no flow begins there.
    pub(super) fn is_closing(&self) -> bool {
        self.addresses().next().is_none()
    }

    /// The addresses at which flows begin.
    pub(super) fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        let used = self.addresses.iter().filter(|a| a.in_use.is_some());
        used.map(|address| address.bound)
    }

    /// The same, each also as configured.
    pub(super) fn configured(&self) -> impl Iterator<Item = (&Addr, SocketAddr)> {
        let used = self.addresses.iter().filter(|a| a.in_use.is_some());
        used.map(|address| (&address.configured, address.bound))
    }

    /// Has these addresses and no others. Sockets of others are closed when their flows have ended.
    pub(super) fn change(&mut self, kept: Vec<Kept>, added: Vec<Listening<Port>>) {
        self.addresses
            .iter_mut()
            .for_each(|address| address.in_use = None);
        for Kept(bound, port_use) in kept {
            let mut addresses = self.addresses.iter_mut();
            if let Some(address) = addresses.find(|a| a.bound == bound && !a.open.is_empty()) {
                address.in_use = Some(port_use);
            }
        }
        self.addresses.retain(|address| !address.open.is_empty());
        for listening in added {
            let Some(port) = listening.sockets.first() else {
                continue;
            };
            self.addresses.push(UdpAddress {
                configured: listening.configured,
                bound: port.address,
                users: Arc::clone(&port.users),
                in_use: port.users.take(),
                open: port.open.task_tracker().clone(),
            });
            self.waiting.extend(listening.sockets);
        }
    }

    /// From now on flows begin with this service.
    pub(super) fn serve(
        &mut self,
        service: &Arc<Service>,
        own: &Arc<OwnAddresses>,
        workers: &Workers,
        tasks: &TaskTracker,
    ) {
        let addresses: Vec<SocketAddr> = self.addresses().collect();
        let mut waiting = std::mem::take(&mut self.waiting);
        let count = workers.datagrams.len();
        for (n, worker) in workers.datagrams.iter().enumerate() {
            let is_its = |port: &mut Port| worker_of(port.index, count) == n;
            let sockets = waiting.extract_if(.., is_its).collect();
            worker.send(match self.is_serving {
                true => Order::Update(Box::new(Update {
                    id: self.id,
                    service: Arc::clone(service),
                    added: sockets,
                    addresses: addresses.clone(),
                })),
                false => Order::Listen(Box::new(Binding {
                    id: self.id,
                    service: Arc::clone(service),
                    sockets,
                    peers: Arc::clone(&self.peers),
                    own: Arc::clone(own),
                    alive: tasks.token(),
                })),
            });
        }
        self.is_serving = true;
    }
}

//! The flows of one listener on one worker: from the first datagram of a client to the last reply.

mod arrivals;
mod assign;
mod begin;
mod deliver;
mod end;
mod evict;
mod failures;
mod named_clients;
mod receive_flows;
mod replies;
mod send_flows;
mod update;
mod waiting_flows;

pub(super) use replies::send_back;
pub(super) use send_flows::copy_late;

use super::{
    Binding, ListenerId, OwnAddresses, PeerWorkers, Port,
    batch::Piece,
    batch_size::BatchSize,
    flow::{Flow, idle_ms},
    per_second::PerSecond,
    table::{Key, Table},
};
use crate::{
    plan::{
        SendProxy, Udp,
        reason::{DropReason, Shortage},
    },
    proxy::udp::{context::Context, peer_workers::PeerWorker},
    runtime::timer_wheel::TimerWheel,
    session::{
        service::{Failures, Service},
        summary::Unserved,
    },
    sys::datagram,
    upstream::{backend::Lease, pool::Search},
};
use named_clients::NamedClients;
use receive_flows::Receiving;
use send_flows::Sending;
use slab::Slab;
use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
    time::Instant,
};
use tokio_util::task::task_tracker::TaskTrackerToken;
use waiting_flows::WaitingFlows;

/// Access log records per second of datagrams that begin no flow.
const REFUSAL_RECORDS: u32 = 100;

/// The flows of a listener on one worker.
pub(super) struct Listener {
    index: usize,
    id: ListenerId,
    /// What flows that begin are served with; flows that have begun keep their own.
    service: Arc<Service>,
    udp: Udp,
    ports: Slab<OpenPort>,
    flows: Slab<Flow>,
    table: Table,
    waiting: WaitingFlows,
    wheel: TimerWheel,
    peers: Arc<PeerWorkers>,
    pub(super) own: Arc<OwnAddresses>,
    /// This listener on this worker, as other workers see it.
    own_worker: Arc<PeerWorker>,
    /// Whether the listener has addresses on any worker. One that was taken over from another
    /// process may have fewer sockets than there are workers.
    has_addresses: bool,
    /// How far its flows have gone to another process; `None`: they stay.
    sending: Option<Box<Sending>>,
    /// How far it has taken over the flows of another process.
    receiving: Receiving,
    named: NamedClients,
    /// The idle timeout in milliseconds.
    idle_ms: u64,
    /// Whether every datagram is assigned on its own, because datagrams of one client may go to
    /// different flows, or get headers.
    takes_singly: bool,
    is_draining: bool,
    /// When the first of the ports that are paused is to receive again, in milliseconds.
    next_resume: Option<u64>,
    refusal_records: PerSecond,
    /// Whether datagrams have come since the kernel's drops were last counted.
    pub(super) has_received: bool,
    /// Held until a stop need not wait for this listener.
    alive: Option<TaskTrackerToken>,
}

struct OpenPort {
    port: Port,
    /// Whether no flow may begin at this address any more.
    is_closing: bool,
    reception: Reception,
    /// Whether the socket has more than one address: then each datagram comes with the address
    /// that it was sent to.
    is_wildcard: bool,
    /// The kernel's count of dropped datagrams when it was last read.
    drops: u32,
    batch_size: BatchSize,
    failures: Failures,
    /// When to receive again after a failure, in milliseconds. Until then the event loop does not
    /// wait for the socket.
    resume_ms: Option<u64>,
}

/// Whether this process receives from a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reception {
    Open,
    /// It stands still, with its flows, while they go from one process to the other.
    Held,
    /// Another process has taken it over. Flows that are still here only get replies.
    HandedOver,
}

enum NotBegun {
    Dropped(DropReason),
    /// The flow has begun to wait, under this number: its datagram is to be kept.
    Waits(u16),
}

/// How a flow begins.
#[derive(Default)]
struct Start<'a> {
    /// It replaces a flow that leaves its backend.
    moves: bool,
    /// The backend, if it was picked before.
    picked: Option<(Lease, Search)>,
    /// The TLVs of the PROXY protocol header that named the client.
    tlvs: &'a [u8],
    /// The header that the backend gets, if the flow that this one replaces had one.
    header: Option<Box<[u8]>>,
}

impl From<Shortage> for NotBegun {
    fn from(shortage: Shortage) -> Self {
        Self::Dropped(match shortage {
            Shortage::Full => DropReason::BackendsFull,
            Shortage::NoneFit => DropReason::NoBackend,
        })
    }
}

/// Why the datagram that began a flow is dropped, if there is no backend for the flow.
fn drop_reason(unserved: Unserved) -> DropReason {
    let reason = unserved.reason.unserved_drop();
    reason.unwrap_or(DropReason::NoBackend)
}

impl OpenPort {
    fn new(port: Port) -> Self {
        Self {
            is_closing: false,
            reception: match port.is_held {
                true => Reception::Held,
                false => Reception::Open,
            },
            is_wildcard: port.address.ip().is_unspecified(),
            drops: 0,
            batch_size: BatchSize::ONE,
            failures: Failures::default(),
            resume_ms: None,
            port,
        }
    }
}

/// Whether every datagram is assigned on its own.
fn takes_singly(service: &Service) -> bool {
    let singly = |udp: &Udp| udp.requests > 0 || udp.per_packet;
    service.udp().is_some_and(singly)
        || service.plan.accept_proxy.is_some()
        || service.send_proxy != SendProxy::Off
}

impl Listener {
    pub(super) fn new(binding: Binding, index: usize, context: &Context) -> io::Result<Self> {
        let Binding {
            id,
            service,
            sockets,
            peers,
            own,
            alive,
        } = binding;
        let udp = *service.udp().ok_or(io::ErrorKind::InvalidInput)?;
        let own_worker = Arc::new(PeerWorker {
            mailbox: Arc::clone(&context.mailbox),
            listener: index,
            flows: AtomicU64::default(),
        });
        peers.join(Arc::clone(&own_worker));
        let idle_ms = idle_ms(&service);
        let mut listener = Self {
            index,
            id,
            takes_singly: takes_singly(&service),
            service,
            udp,
            ports: Slab::with_capacity(sockets.len()),
            flows: Slab::new(),
            table: Table::default(),
            waiting: WaitingFlows::default(),
            wheel: TimerWheel::new(idle_ms, context.ms),
            peers,
            own,
            own_worker,
            has_addresses: true,
            sending: None,
            receiving: Receiving::default(),
            named: NamedClients::new(idle_ms, context.ms),
            idle_ms,
            is_draining: false,
            next_resume: None,
            refusal_records: PerSecond::new(REFUSAL_RECORDS),
            has_received: false,
            alive: Some(alive),
        };
        for port in sockets {
            listener.open_port(context, port)?;
        }
        Ok(listener)
    }

    pub(super) fn id(&self) -> ListenerId {
        self.id
    }

    pub(super) fn name(&self) -> &str {
        &self.service.plan.name
    }

    fn count_dropped(&self, reason: DropReason, pieces: impl IntoIterator<Item = Piece>) {
        self.count_dropped_by(reason, None, pieces);
    }

    /// Counts datagrams that were not passed on. `error`: why the kernel did not take them.
    fn count_dropped_by(
        &self,
        reason: DropReason,
        error: Option<&io::Error>,
        pieces: impl IntoIterator<Item = Piece>,
    ) {
        let datagrams: usize = pieces.into_iter().map(Piece::datagrams).sum();
        let now = Instant::now();
        self.service
            .drop_datagrams(reason, datagrams as u64, error, now);
    }

    /// Counts what the kernel dropped because a receive buffer was full.
    pub(super) fn count_kernel_drops(&mut self) {
        if !std::mem::take(&mut self.has_received) {
            return;
        }
        let ports = self.ports.iter_mut().map(|(_, open)| open);
        for open in ports.filter(|open| open.reception == Reception::Open) {
            let drops = datagram::drops(&open.port.socket).unwrap_or(0) as u32;
            let new = drops.wrapping_sub(open.drops).into();
            open.drops = drops;
            self.service
                .drop_datagrams(DropReason::ReceiveBuffer, new, None, Instant::now());
        }
    }
}

/// The client that a header named, or the peer.
fn client_of(key: &Key) -> SocketAddr {
    key.named().map_or(key.peer, |(source, _)| source)
}

//! The flows of one listener on one worker: from the first datagram of a client to the last reply.

mod arrivals;
mod assign;
mod begin;
mod deliver;
mod end;
mod failures;
mod named_clients;
mod replies;

pub(super) use replies::send_back;

use super::{
    Binding, OwnAddresses, PeerWorkers, Port,
    batch::Piece,
    batch_size::BatchSize,
    flow::Flow,
    per_second::PerSecond,
    table::{Key, Table},
    token::Token,
};
use crate::{
    plan::{Protocol, SendProxy, Udp, reason::DropReason},
    proxy::udp::{
        context::{Context, discard_datagrams},
        peer_workers::PeerWorker,
    },
    runtime::wheel::Wheel,
    session::service::{Failures, Service},
    sys::datagram,
    upstream::{backend::Lease, pool::Search},
};
use named_clients::NamedClients;
use rustix::event::epoll::EventFlags;
use slab::Slab;
use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};
use tokio_util::task::task_tracker::TaskTrackerToken;

/// The idle timeout of a flow where none is configured.
const IDLE: Duration = Duration::from_secs(60);
/// Access log records per second of datagrams that begin no flow.
const REFUSAL_RECORDS: u32 = 100;

/// The flows of a listener on one worker.
pub(super) struct Listener {
    index: usize,
    service: Arc<Service>,
    udp: Udp,
    ports: Vec<OpenPort>,
    flows: Slab<Flow>,
    table: Table,
    wheel: Wheel,
    peers: Arc<PeerWorkers>,
    own: Arc<OwnAddresses>,
    /// This listener on this worker, as other workers see it.
    own_worker: Arc<PeerWorker>,
    /// Whether it takes what the kernel gives to all workers.
    is_first: bool,
    named: NamedClients,
    /// The idle timeout in milliseconds.
    idle_ms: u64,
    /// Every datagram is assigned on its own: they may go to different flows, or get headers.
    takes_singly: bool,
    is_draining: bool,
    refusal_records: PerSecond,
    /// Since the kernel's drops were last counted.
    pub(super) has_received: bool,
    /// Held until a stop need not wait for this listener.
    alive: Option<TaskTrackerToken>,
}

struct OpenPort {
    port: Port,
    /// It has more than one address: each datagram comes with the one that it was sent to.
    is_wildcard: bool,
    /// The kernel's count of dropped datagrams when it was last read.
    drops: u32,
    batch_size: BatchSize,
    failures: Failures,
    /// When to receive again after a failure, in milliseconds. Until then the event loop does not
    /// wait for the socket.
    resume_ms: Option<u64>,
}

enum NotBegun {
    Rejected,
    NoBackend,
}

/// How a flow begins.
#[derive(Default)]
struct Start<'a> {
    /// It replaces a flow that leaves its backend.
    moves: bool,
    /// The backend, if it was picked before.
    picked: Option<(Lease, Search)>,
    /// Of the header that named the client.
    tlvs: &'a [u8],
    /// The header that the backend gets, if the flow that this one replaces had one.
    header: Option<Box<[u8]>>,
}

impl From<NotBegun> for DropReason {
    fn from(not_begun: NotBegun) -> Self {
        match not_begun {
            NotBegun::Rejected => Self::Rejected,
            NotBegun::NoBackend => Self::NoBackend,
        }
    }
}

impl Listener {
    pub(super) fn new(binding: Binding, index: usize, context: &Context) -> io::Result<Self> {
        let Binding {
            service,
            sockets,
            peers,
            own,
            is_first,
            alive,
        } = binding;
        let udp = match service.plan.protocol {
            Protocol::Udp(udp) => udp,
            Protocol::Tcp => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let mut ports = Vec::with_capacity(sockets.len());
        for (n, port) in (0..).zip(sockets) {
            let token = Token::port(index, n);
            context
                .reactor
                .register(&port.socket, token, EventFlags::IN)?;
            ports.push(OpenPort {
                is_wildcard: port.address.ip().is_unspecified(),
                drops: 0,
                batch_size: BatchSize::ONE,
                failures: Failures::default(),
                resume_ms: None,
                port,
            });
        }
        let own_worker = Arc::new(PeerWorker {
            mailbox: Arc::clone(&context.mailbox),
            listener: index,
            flows: AtomicU64::default(),
        });
        peers.join(Arc::clone(&own_worker));
        let idle = service.plan.idle_timeout.unwrap_or(IDLE);
        let idle_ms = u64::try_from(idle.as_millis()).unwrap_or(u64::MAX).max(1);
        Ok(Self {
            index,
            takes_singly: udp.requests > 0
                || udp.per_packet
                || service.plan.accept_proxy.is_some()
                || service.send_proxy != SendProxy::Off,
            service,
            udp,
            ports,
            flows: Slab::new(),
            table: Table::default(),
            wheel: Wheel::new(idle_ms, context.ms),
            peers,
            own,
            own_worker,
            is_first,
            named: NamedClients::new(idle_ms, context.ms),
            idle_ms,
            is_draining: false,
            refusal_records: PerSecond::new(REFUSAL_RECORDS),
            has_received: false,
            alive: Some(alive),
        })
    }

    fn count_dropped(&self, reason: DropReason, pieces: impl IntoIterator<Item = Piece>) {
        self.count_dropped_by(reason, None, pieces);
    }

    /// `error`: why the kernel did not take them.
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
        for open in &mut self.ports {
            let drops = datagram::drops(&open.port.socket).unwrap_or(0) as u32;
            let new = drops.wrapping_sub(open.drops).into();
            open.drops = drops;
            self.service
                .drop_datagrams(DropReason::ReceiveBuffer, new, None, Instant::now());
        }
    }

    /// Counts the replies that have come to the socket of a flow which has ended.
    pub(super) fn count_late(&self, socket: &UdpSocket, inbox: &mut datagram::Inbox) {
        let late = discard_datagrams(socket, inbox);
        self.service
            .drop_datagrams(DropReason::Late, late, None, Instant::now());
    }
}

/// The client that a header named, or the peer.
fn client_of(key: &Key) -> SocketAddr {
    key.named().map_or(key.peer, |(source, _)| source)
}

//! The flows of one listener on one worker: from the first datagram of a client to the last reply.

mod arrivals;
mod begin;
mod deliver;
mod end;
mod failures;
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
use ahash::AHashMap;
use rustix::event::epoll::EventFlags;
use slab::Slab;
use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Without a limit of its own.
const IDLE: Duration = Duration::from_secs(60);
/// Access log records of datagrams that begin no flow, in a second.
const REFUSAL_RECORDS: u32 = 100;

/// The flows of a listener on one worker.
pub(super) struct Listener {
    index: usize,
    service: Arc<Service>,
    udp: Udp,
    ports: Vec<Open>,
    flows: Slab<Flow>,
    table: Table,
    wheel: Wheel,
    peers: Arc<PeerWorkers>,
    own: Arc<OwnAddresses>,
    here: Arc<PeerWorker>,
    is_first: bool,
    /// Whom a trusted peer last named, by that peer's own key: what has no header is of that one.
    named: AHashMap<Key, Named>,
    /// When those were last looked through.
    swept: u64,
    /// In milliseconds.
    idle: u64,
    /// Every datagram is looked at on its own: they may go to different flows, or get headers.
    one_by_one: bool,
    is_draining: bool,
    refusal_records: PerSecond,
    /// Since the kernel's drops were last counted.
    pub(super) has_received: bool,
    alive: Option<TaskTrackerToken>,
}

/// Whom a peer named, if not itself, and when it last sent anything.
#[derive(Clone, Copy)]
struct Named {
    named: Option<(SocketAddr, SocketAddr)>,
    last: u64,
}

struct Open {
    port: Port,
    /// It has more than one address: which one was written to stands beside each datagram.
    is_wildcard: bool,
    /// What the kernel has dropped, as far as it was counted.
    dropped: u32,
    batch_size: BatchSize,
    failures: Failures,
    /// When to receive again, in milliseconds, after a failure. Until then the event loop does not
    /// wait for it.
    resume: Option<u64>,
}

enum NotBegun {
    Rejected,
    NoBackend,
}

/// How a flow begins.
#[derive(Default)]
struct Start<'a> {
    /// It goes on from another backend.
    moves: bool,
    /// On this one.
    picked: Option<(Lease, Search)>,
    /// Those that came with the header that named the client...
    tlvs: &'a [u8],
    /// ... or the header that its backend gets, if it is known.
    header: Option<Box<[u8]>>,
}

impl From<NotBegun> for DropReason {
    fn from(not: NotBegun) -> Self {
        match not {
            NotBegun::Rejected => Self::Rejected,
            NotBegun::NoBackend => Self::NoBackend,
        }
    }
}

impl Listener {
    pub(super) fn new(binding: Binding, index: usize, gear: &Context) -> io::Result<Self> {
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
            gear.reactor.register(&port.socket, token, EventFlags::IN)?;
            ports.push(Open {
                is_wildcard: port.address.ip().is_unspecified(),
                dropped: 0,
                batch_size: BatchSize::ONE,
                failures: Failures::default(),
                resume: None,
                port,
            });
        }
        let here = Arc::new(PeerWorker {
            mailbox: Arc::clone(&gear.mailbox),
            listener: index,
            flows: AtomicU64::default(),
        });
        peers.join(Arc::clone(&here));
        let idle = service.plan.idle_timeout.unwrap_or(IDLE);
        let idle = u64::try_from(idle.as_millis()).unwrap_or(u64::MAX).max(1);
        Ok(Self {
            index,
            one_by_one: udp.requests > 0
                || udp.per_packet
                || service.plan.accept_proxy.is_some()
                || service.send_proxy != SendProxy::Off,
            service,
            udp,
            ports,
            flows: Slab::new(),
            table: Table::default(),
            wheel: Wheel::new(idle, gear.ms),
            peers,
            own,
            here,
            is_first,
            named: AHashMap::new(),
            swept: gear.ms,
            idle,
            is_draining: false,
            refusal_records: PerSecond::new(REFUSAL_RECORDS),
            has_received: false,
            alive: Some(alive),
        })
    }

    pub(super) fn dropped(&self, reason: DropReason, pieces: impl IntoIterator<Item = Piece>) {
        self.dropped_by(reason, None, pieces);
    }

    /// `error`: why the kernel did not take them.
    pub(super) fn dropped_by(
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

    /// What the kernel had no room for.
    pub(super) fn count_drops(&mut self) {
        if !std::mem::take(&mut self.has_received) {
            return;
        }
        for open in &mut self.ports {
            let drops = datagram::drops(&open.port.socket).unwrap_or(0) as u32;
            let new = drops.wrapping_sub(open.dropped);
            open.dropped = drops;
            if new > 0 {
                self.service.drop_datagrams(
                    DropReason::ReceiveBuffer,
                    u64::from(new),
                    None,
                    Instant::now(),
                );
            }
        }
    }

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

//! What the listeners of a worker share.

use super::{
    batch::{self, Piece},
    flow::FlowSocket,
    token::SERIAL,
};
use crate::{
    plan::reason::DropReason,
    proxy::udp::order::Order,
    runtime::{mailbox::Mailbox, reactor::Reactor},
    session::{service::Service, sockets::FlowSockets},
    sys::datagram::{BATCH, Local, ReceiveBuffers, SendHeaders},
};
use smallvec::{SmallVec, smallvec};
use std::{
    collections::VecDeque,
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd,
    sync::Arc,
    time::Instant,
};

/// How long the socket of a flow that has ended is kept, in milliseconds: its port is not reused
/// meanwhile, so that a late reply does not reach another client.
const LATE: u64 = 2_000;
/// Batches that are read from such a socket in the end.
const LATE_BATCHES: usize = 64;

/// What the listeners of a worker share.
pub(super) struct Context {
    pub(super) reactor: Reactor,
    pub(super) mailbox: Arc<Mailbox<Order>>,
    /// Datagrams from clients.
    pub(super) receive_buffers: ReceiveBuffers,
    /// Which of them go to which flow, until they are sent.
    pub(super) units: Vec<Taken>,
    /// Datagrams from backends.
    pub(super) back: ReceiveBuffers,
    /// How many slots of `back` are filled.
    pub(super) filled: usize,
    /// What is in them, until it is sent.
    pub(super) replies: Vec<Reply>,
    pub(super) send_headers: SendHeaders,
    pub(super) late: VecDeque<Late>,
    pub(super) sockets: Arc<FlowSockets>,
    /// Of the flow that began last.
    serial: u32,
    /// When this turn of the reactor began.
    pub(super) now: Instant,
    /// The same in milliseconds of the reactor's clock.
    pub(super) ms: u64,
    /// Counts the turns.
    pub(super) turn: u32,
}

/// A datagram in a receive buffer, or a run of datagrams that are sent together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unit {
    pub(super) slot: usize,
    pub(super) from: usize,
    pub(super) piece: Piece,
}

impl Unit {
    pub(super) fn bytes<'a>(&self, buffers: &'a ReceiveBuffers) -> &'a [u8] {
        &buffers.get(self.slot).payload[self.from..self.from + self.piece.len]
    }

    /// In parts that are sent as one run each, or as single datagrams.
    pub(super) fn divided(self, splits: bool) -> SmallVec<[Self; 2]> {
        match splits {
            // One datagram.
            _ if self.piece.segment == 0 => smallvec![self],
            true => parts(self).collect(),
            false => self.singles().collect(),
        }
    }

    /// The same, each datagram on its own.
    pub(super) fn singles(self) -> impl Iterator<Item = Self> {
        let size = match self.piece.segment {
            0 => self.piece.len.max(1),
            segment => segment,
        };
        let count = self.piece.datagrams();
        (0..count).map(move |i| Self {
            slot: self.slot,
            from: self.from + i * size,
            piece: Piece {
                len: size.min(self.piece.len - i * size),
                segment: 0,
            },
        })
    }
}

/// On its way to a backend.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taken {
    pub(super) number: u32,
    /// The number may be that of another flow by the time that this is sent.
    pub(super) serial: u32,
    pub(super) unit: Unit,
}

/// On its way to a client.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reply {
    pub(super) listener: usize,
    pub(super) port: u16,
    /// The flow that it came on.
    pub(super) number: u32,
    pub(super) serial: u32,
    /// Whether the kernel splits runs on the way to this client.
    pub(super) splits: bool,
    pub(super) to: SocketAddr,
    pub(super) from: Option<Local>,
    pub(super) unit: Unit,
}

/// The socket of a flow that has ended.
pub(super) struct Late {
    pub(super) until: u64,
    pub(super) service: Arc<Service>,
    pub(super) link: FlowSocket,
}

impl Context {
    pub(super) fn new(
        reactor: Reactor,
        mailbox: Arc<Mailbox<Order>>,
        sockets: Arc<FlowSockets>,
    ) -> Self {
        Self {
            mailbox,
            receive_buffers: ReceiveBuffers::new(BATCH),
            units: Vec::new(),
            back: ReceiveBuffers::new(BATCH),
            filled: 0,
            replies: Vec::new(),
            send_headers: SendHeaders::new(),
            late: VecDeque::new(),
            sockets,
            serial: 0,
            now: reactor.clock().now(),
            ms: reactor.clock().now_millis(),
            turn: 0,
            reactor,
        }
    }

    pub(super) fn begin_turn(&mut self) {
        self.now = self.reactor.clock().now();
        self.ms = self.reactor.clock().now_millis();
        self.turn = self.turn.wrapping_add(1);
    }

    /// For the next flow that begins.
    pub(super) fn next_serial(&mut self) -> u32 {
        self.serial = (self.serial + 1) & ((1 << SERIAL) - 1);
        self.serial
    }

    pub(super) fn abandon_turn(&mut self) {
        self.units.clear();
        self.replies.clear();
        self.filled = 0;
    }

    /// Closes the sockets that have been kept for long enough.
    pub(super) fn discard_late(&mut self) {
        while self.late.front().is_some_and(|late| late.until <= self.ms) {
            if let Some(late) = self.late.pop_front() {
                let datagrams = discard_datagrams(&late.link.socket, &mut self.back);
                let service = &late.service;
                service.drop_datagrams(DropReason::Late, datagrams, None, self.now);
            }
        }
    }

    pub(super) fn keep_late(&mut self, service: Arc<Service>, link: FlowSocket) {
        // A socket that cannot be deregistered must not stay: it would be reported for ever.
        if self.reactor.deregister(&link.socket).is_ok() {
            self.late.push_back(Late {
                until: self.ms + LATE,
                service,
                link,
            });
        }
    }
}

/// Whether single datagrams may pass where a run does not.
pub(super) fn is_about_splitting(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMSGSIZE | libc::EINVAL | libc::EIO | libc::EOPNOTSUPP | libc::ENOPROTOOPT)
    )
}

pub(super) fn drop_reason(error: &io::Error) -> DropReason {
    match error.raw_os_error() {
        Some(libc::EMSGSIZE) => DropReason::TooLarge,
        Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => DropReason::SendBuffer,
        _ => DropReason::SendFailed,
    }
}

/// Discards what has arrived, and returns how many datagrams that was.
fn discard_datagrams(socket: &UdpSocket, buffers: &mut ReceiveBuffers) -> u64 {
    let mut datagrams = 0;
    // Bounded: a sender may never stop.
    for _ in 0..LATE_BATCHES {
        let came = match buffers.receive_plain(socket.as_fd(), 0, buffers.slots()) {
            Ok(came) => came,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            // An error of an earlier datagram comes before what has arrived.
            Err(_) => continue,
        };
        for slot in 0..came {
            let received = buffers.get(slot);
            let piece = Piece {
                len: received.payload.len(),
                segment: received.segment.into(),
            };
            datagrams += piece.datagrams() as u64;
        }
        if came < buffers.slots() {
            break;
        }
    }
    datagrams
}

/// Parts that the kernel sends in one call each.
fn parts(unit: Unit) -> impl Iterator<Item = Unit> {
    let Piece { len, segment } = unit.piece;
    let most = match segment {
        0 => len.max(1),
        segment => batch::max_bytes(segment),
    };
    (0..len.div_ceil(most).max(1)).map(move |i| {
        let len = most.min(len - i * most);
        Unit {
            slot: unit.slot,
            from: unit.from + i * most,
            piece: Piece {
                len,
                segment: if len > segment { segment } else { 0 },
            },
        }
    })
}

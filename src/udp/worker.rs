//! The thread that carries datagrams: its event loop, and what its listeners share.

use super::{
    Binding,
    batch::{self, Piece},
    bell::{Bell, Order},
    listener::{Listener, Token},
};
use crate::{
    metrics::set_shard,
    reason::DropReason,
    sys::datagram::{BATCH, Inbox, Local, Message, Outbox},
};
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
};
use smallvec::SmallVec;
use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    net::{SocketAddr, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// What one look at the event loop tells at most.
const EVENTS: usize = 256;
/// How often it is asked what the kernel dropped, while there is traffic.
const LOOK: u64 = 1_000;
/// For how long the socket of a flow that is over is kept. Its port goes to nobody else meanwhile: a reply that is late
/// must not come to another client.
const LATE: u64 = 2_000;

pub struct Worker {
    thread: JoinHandle<()>,
    bell: Arc<Bell>,
}

impl Worker {
    /// `shard`: of the counters. `most_late`: sockets of flows that are over, at most.
    pub fn spawn(index: usize, shard: usize, most_late: usize) -> io::Result<Self> {
        let bell = Arc::new(Bell::new()?);
        let engine = Engine::new(Arc::clone(&bell), most_late)?;
        // What is followed up for longer than a datagram takes runs there.
        let runtime = tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
        let thread = std::thread::Builder::new()
            .name(format!("udp-{index}"))
            .spawn(move || {
                set_shard(shard);
                let _inside = runtime.enter();
                run(engine);
            })?;
        Ok(Self { thread, bell })
    }

    pub fn listen(&self, binding: Binding) {
        self.bell.ring(Order::Listen(Box::new(binding)));
    }

    /// From now on no flow begins, and those that fall silent end.
    pub fn drain(&self) {
        self.bell.ring(Order::Drain);
    }

    /// Ends the thread and every flow that is still on it.
    pub fn join(self) {
        self.bell.ring(Order::Quit);
        if self.thread.join().is_err() {
            tracing::error!("a UDP worker ended in a panic");
        }
    }
}

fn run(mut engine: Engine) {
    let mut events = Vec::with_capacity(EVENTS);
    loop {
        match catch_unwind(AssertUnwindSafe(|| engine.turn(&mut events))) {
            Ok(Turn::Next) => {}
            Ok(Turn::Quit) => return,
            Err(_) => {
                tracing::error!("a turn of a UDP worker ended in a panic; it goes on");
                engine.gear.forget();
            }
        }
    }
}

enum Turn {
    Next,
    Quit,
}

struct Engine {
    gear: Gear,
    /// By their index; those that are over leave their place empty.
    listeners: Vec<Option<Listener>>,
    looked: u64,
}

/// What all listeners of a worker use.
pub(super) struct Gear {
    pub(super) epoll: OwnedFd,
    pub(super) bell: Arc<Bell>,
    /// From clients.
    pub(super) inbox: Inbox,
    /// What of it goes where, until it is sent.
    pub(super) units: Vec<(u32, Unit)>,
    /// From backends...
    pub(super) back: Inbox,
    /// ... of which so many slots are filled...
    pub(super) filled: usize,
    /// ... by these.
    pub(super) replies: Vec<Reply>,
    pub(super) outbox: Outbox,
    pub(super) late: VecDeque<Late>,
    most_late: usize,
    pub(super) serial: u32,
    began: Instant,
    pub(super) now: Instant,
    /// Since `began`, in milliseconds.
    pub(super) ms: u64,
}

/// Bytes in an inbox that go together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unit {
    pub(super) slot: usize,
    pub(super) from: usize,
    pub(super) piece: Piece,
}

impl Unit {
    pub(super) fn bytes<'a>(&self, inbox: &'a Inbox) -> &'a [u8] {
        &inbox.get(self.slot).payload[self.from..self.from + self.piece.len]
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

/// On its way to a client.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reply {
    pub(super) listener: usize,
    pub(super) port: u16,
    /// The flow that it came on.
    pub(super) serial: u32,
    pub(super) to: SocketAddr,
    pub(super) from: Option<Local>,
    pub(super) unit: Unit,
}

/// The socket of a flow that is over.
pub(super) struct Late {
    until: u64,
    listener: usize,
    socket: UdpSocket,
}

impl Gear {
    pub(super) fn keep_late(&mut self, listener: usize, socket: UdpSocket) {
        // Nobody listens to it any more. If it cannot be taken out it must not stay: it would ring for ever.
        if epoll::delete(&self.epoll, &socket).is_ok() {
            self.late.push_back(Late {
                until: self.ms + LATE,
                listener,
                socket,
            });
        }
    }

    /// After a panic: what was under way is lost, and the rest goes on.
    fn forget(&mut self) {
        self.units.clear();
        self.replies.clear();
        self.filled = 0;
    }
}

impl Engine {
    fn new(bell: Arc<Bell>, most_late: usize) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(Token::BELL);
        epoll::add(&epoll, bell.fd(), data, epoll::EventFlags::IN)?;
        let now = Instant::now();
        Ok(Self {
            gear: Gear {
                epoll,
                bell,
                inbox: Inbox::new(BATCH),
                units: Vec::new(),
                back: Inbox::new(BATCH),
                filled: 0,
                replies: Vec::new(),
                outbox: Outbox::new(),
                late: VecDeque::new(),
                most_late,
                serial: 0,
                began: now,
                now,
                ms: 0,
            },
            listeners: Vec::new(),
            looked: 0,
        })
    }

    /// Waits until something happens, and does what is to be done.
    fn turn(&mut self, events: &mut Vec<epoll::Event>) -> Turn {
        events.clear();
        let timeout = self.timeout();
        if let Err(error) = epoll::wait(&self.gear.epoll, spare_capacity(events), timeout.as_ref())
            && error != rustix::io::Errno::INTR
        {
            tracing::error!(%error, "cannot wait for datagrams");
            std::thread::sleep(Duration::from_millis(50));
        }
        self.gear.now = Instant::now();
        let passed = self.gear.now.saturating_duration_since(self.gear.began);
        self.gear.ms = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
        let mut rung = false;
        for event in events {
            match Token::of(event.data.u64()) {
                Token::Bell => rung = true,
                Token::Port { listener, port } => {
                    if let Some(Some(listener)) = self.listeners.get_mut(listener) {
                        listener.receive(&mut self.gear, port);
                    }
                }
                Token::Flow {
                    listener,
                    serial,
                    number,
                } => {
                    if self.gear.filled == self.gear.back.slots() {
                        self.send_back();
                    }
                    if let Some(Some(listener)) = self.listeners.get_mut(listener) {
                        listener.reply(&mut self.gear, serial, number);
                    }
                }
            }
        }
        self.send_back();
        let turn = if rung { self.obey() } else { Turn::Next };
        self.tidy();
        turn
    }

    /// Until the next time that there is something to do without an event.
    fn timeout(&self) -> Option<Timespec> {
        let listeners = self.listeners.iter().flatten();
        let flows = listeners.clone().filter_map(Listener::next).min();
        let late = self.gear.late.front().map(|late| late.until);
        let look = listeners
            .clone()
            .any(|l| l.has_received)
            .then_some(self.looked + LOOK);
        let next = flows.into_iter().chain(late).chain(look).min()?;
        let wait = Duration::from_millis(next.saturating_sub(self.gear.ms));
        Timespec::try_from(wait).ok()
    }

    fn obey(&mut self) -> Turn {
        for order in self.gear.bell.answer() {
            match order {
                Order::Listen(binding) => {
                    let name = binding.service.plan.name.clone();
                    match Listener::new(*binding, self.listeners.len(), &self.gear) {
                        Ok(listener) => self.listeners.push(Some(listener)),
                        Err(error) => {
                            tracing::error!(listener = %name, %error, "cannot receive datagrams");
                        }
                    }
                }
                Order::Drain => {
                    for listener in self.listeners.iter_mut().flatten() {
                        listener.drain(&mut self.gear);
                    }
                }
                Order::Look(token) => {
                    if let Token::Flow {
                        listener,
                        serial,
                        number,
                    } = Token::of(token)
                        && let Some(Some(listener)) = self.listeners.get_mut(listener)
                    {
                        listener.look(&mut self.gear, serial, number);
                    }
                }
                Order::Quit => return Turn::Quit,
            }
        }
        Turn::Next
    }

    fn tidy(&mut self) {
        let ms = self.gear.ms;
        let look = ms >= self.looked + LOOK;
        for listener in self.listeners.iter_mut().flatten() {
            if listener.next().is_some_and(|next| next <= ms) {
                listener.expire(&mut self.gear);
            }
            if look {
                listener.count_drops();
            }
        }
        if look {
            self.looked = ms;
        }
        for place in &mut self.listeners {
            place.take_if(|listener| listener.is_over());
        }
        let late = &mut self.gear.late;
        while late
            .front()
            .is_some_and(|l| l.until <= ms || late.len() > self.gear.most_late)
        {
            if let Some(late) = late.pop_front()
                && let Some(Some(listener)) = self.listeners.get(late.listener)
            {
                listener.count_late(&late.socket, &mut self.gear.back);
            }
        }
    }

    /// Everything that has come from backends goes to the clients.
    fn send_back(&mut self) {
        let mut replies = std::mem::take(&mut self.gear.replies);
        for same in replies.chunk_by(|a, b| (a.listener, a.port) == (b.listener, b.port)) {
            if let Some(Some(listener)) = self.listeners.get_mut(same[0].listener) {
                send_back(listener, &mut self.gear, same);
            }
        }
        replies.clear();
        self.gear.replies = replies;
        self.gear.filled = 0;
    }
}

/// All of one socket.
fn send_back(listener: &mut Listener, gear: &mut Gear, replies: &[Reply]) {
    let mut left: SmallVec<[Reply; BATCH]> = replies.into();
    while !left.is_empty() {
        let may_split = listener.splits(replies[0].port);
        let mut parts: SmallVec<[IoSlice<'_>; BATCH]> = SmallVec::new();
        // How many replies each message is, and of what size its datagrams are.
        let mut runs: SmallVec<[(usize, usize); BATCH]> = SmallVec::new();
        let mut at = 0;
        while at < left.len() && runs.len() < BATCH {
            let first = left[at];
            let same = left[at..].iter().take_while(|r| r.serial == first.serial);
            let run = match may_split {
                true => batch::run(same.map(|r| r.unit.piece)),
                false => (1, 0),
            };
            let these = &left[at..at + run.0];
            parts.extend(these.iter().map(|r| IoSlice::new(r.unit.bytes(&gear.back))));
            at += run.0;
            runs.push(run);
        }
        let mut at = 0;
        let messages: SmallVec<[Message<'_>; 16]> = runs
            .iter()
            .map(|&(count, segment)| {
                let reply = &left[at];
                let parts = &parts[at..at + count];
                at += count;
                Message {
                    parts,
                    segment: u16::try_from(segment).unwrap_or(0),
                    to: Some(reply.to),
                    from: reply.from,
                }
            })
            .collect();
        let (taken, error) = gear
            .outbox
            .send(listener.socket(replies[0].port), &messages);
        let gone: usize = runs[..taken].iter().map(|run| run.0).sum();
        listener.sent_back(&left[..gone]);
        let failed = runs.get(taken).copied();
        left.drain(..gone);
        let (Some(error), Some((count, segment))) = (error, failed) else {
            // What stopped it is told by the next try, if it is still there.
            continue;
        };
        if segment > 0 && is_about_splitting(&error) {
            // The way to this client cannot do it: each on its own, also those that come later.
            listener.never_split(replies[0].port);
            left = left
                .iter()
                .flat_map(|r| r.unit.singles().map(|unit| Reply { unit, ..*r }))
                .collect();
            continue;
        }
        let reason = drop_reason(&error);
        let count = match reason {
            DropReason::SendBuffer => left.len(),
            _ => count,
        };
        listener.dropped(reason, left.drain(..count).map(|r| r.unit.piece));
        tracing::debug!(listener = %listener.name(), %error, "a reply was dropped");
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

/// Reads what has come, for nobody, and says how many datagrams that was.
pub(super) fn empty(socket: &UdpSocket, inbox: &mut Inbox) -> u64 {
    match inbox.receive_plain(socket.as_fd(), 0, inbox.slots()) {
        Ok(came) => {
            let piece = |slot| {
                let received = inbox.get(slot);
                Piece {
                    len: received.payload.len(),
                    segment: received.segment.into(),
                }
            };
            (0..came).map(|slot| piece(slot).datagrams() as u64).sum()
        }
        Err(_) => 0,
    }
}

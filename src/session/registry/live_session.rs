//! One live session, as other threads see it.

use crate::{
    plan::reason::{CloseReason, Shortage},
    runtime::net::Client,
    sys::{mutex::Mutex, socket::local_port},
    upstream::pool::Pool,
};
use std::{
    os::fd::{AsRawFd as _, BorrowedFd, RawFd},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering, fence},
    },
    task::Waker,
    time::{Duration, Instant},
};

/// A connection that was accepted, or the first datagram of a flow.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    pub peer: Client,
    /// The client that a PROXY protocol header has named, where the header is read by now.
    pub named: Option<Client>,
    /// The port of the listener; `None` on a unix socket.
    pub server_port: Option<u16>,
    pub at: Instant,
}

/// A session of another process that goes on in this one.
#[derive(Debug, Clone, Copy)]
pub struct Continued {
    /// In the other process, and here.
    pub id: u64,
    /// When bytes were last carried, in milliseconds of the workers.
    pub active_millis: u64,
    /// Bytes from the client so far.
    pub received: u64,
    /// Bytes to the client so far.
    pub sent: u64,
}

/// Connections and flows have a budget each: a flood of one kind leaves the other alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionKind {
    Connection,
    Flow,
}

/// What sessions of a listener have in common while its plan stays the same.
#[derive(Debug)]
pub struct SessionOrigin {
    pub listener: String,
    pub pool: Arc<Pool>,
    pub kind: SessionKind,
}

#[derive(Debug)]
pub struct Session {
    /// Unique in the process; a session that begins later has a larger one.
    pub id: u64,
    pub origin: Arc<SessionOrigin>,
    /// The other end of the connection: the client, or a proxy in front.
    pub peer: Client,
    /// The port that it connected to; `None` on a unix socket.
    pub server_port: Option<u16>,
    /// The process is stopping: a session with one side finished then waits only briefly.
    pub(super) is_stopping: AtomicBool,
    /// Which table of the registry has it, and where.
    pub(super) shard: u16,
    pub(super) slot: u32,
    /// A [`BackendSocket`].
    link: AtomicI32,
    /// The client that a PROXY protocol header named. In a box: most sessions have none.
    proxied: OnceLock<Box<Client>>,
    /// When it began, in microseconds on the clock of the registry.
    began_micros: u64,
    /// When bytes were last carried in either direction, in milliseconds of the workers.
    active_millis: AtomicU64,
    /// Bytes from the client.
    pub received: AtomicU64,
    /// Bytes to the client.
    pub sent: AtomicU64,
    /// A [`Placement`], so that its parts change together: a termination that is meant for one
    /// backend never reaches the session on the next.
    placement: AtomicU64,
    /// Of the task that carries it; set before the first wait.
    waker: Mutex<Option<Waker>>,
}

/// How far a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It has no backend yet, and looks for one.
    Connecting,
    /// It waits for a place at a full backend.
    Queued,
    /// It waits for a backend that is fit.
    Held,
    Relaying,
    /// Both sides have ended, or the session is terminated, and the last bytes are under way.
    Closing,
}

impl Phase {
    pub fn word(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Queued => "queued",
            Self::Held => "held",
            Self::Relaying => "relaying",
            Self::Closing => "closing",
        }
    }

    /// Whether it is on its way to a backend.
    pub fn seeks_backend(self) -> bool {
        match self {
            Self::Connecting | Self::Queued | Self::Held => true,
            Self::Relaying | Self::Closing => false,
        }
    }
}

/// The socket towards the backend, as a number, and how far the session is. A thread that reads
/// the number has no claim to the descriptor: the worker closes it without asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct BackendSocket(RawFd);

impl BackendSocket {
    // No descriptor is negative.
    const CONNECTING: Self = Self(-1);
    const CLOSING: Self = Self(-2);
    const QUEUED: Self = Self(-3);
    const HELD: Self = Self(-4);

    fn open(socket: BorrowedFd<'_>) -> Self {
        Self(socket.as_raw_fd())
    }

    fn descriptor(self) -> Option<RawFd> {
        Some(self.0).filter(|fd| *fd >= 0)
    }
}

/// What a session has to do instead of going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interruption {
    End(CloseReason),
    /// Another process is to go on with it.
    Leave,
}

/// The backend of a session, and why it must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Placement {
    /// The id of the backend; 0 for none.
    backend: u64,
    /// 0, [`LEAVE`], or one more than the index of the reason to end for.
    end: u8,
    /// The reason holds on that backend only.
    is_of_backend: bool,
}

/// Another process is to go on with the session.
const LEAVE: u8 = 0x7f;

impl Placement {
    fn of(bits: u64) -> Self {
        Self {
            backend: bits >> 8,
            end: bits as u8 >> 1,
            is_of_backend: bits & 1 == 1,
        }
    }

    fn bits(self) -> u64 {
        self.backend << 8 | u64::from(self.end) << 1 | u64::from(self.is_of_backend)
    }

    /// The first reason stands.
    fn ending(self, reason: CloseReason, is_of_backend: bool) -> Self {
        match self.end {
            0 | LEAVE => Self {
                end: (reason as u8 + 1) & 0x7f,
                is_of_backend,
                ..self
            },
            _ => Self {
                is_of_backend: self.is_of_backend && is_of_backend,
                ..self
            },
        }
    }

    fn ends(self) -> bool {
        self.end != 0 && self.end != LEAVE
    }

    fn interruption(self) -> Option<Interruption> {
        match self.end {
            0 => None,
            LEAVE => Some(Interruption::Leave),
            n => {
                let reason = CloseReason::ALL.get(usize::from(n) - 1);
                reason.map(|reason| Interruption::End(*reason))
            }
        }
    }
}

impl Arrival {
    /// The client that the session is for.
    pub fn client(&self) -> Client {
        self.named.unwrap_or(self.peer)
    }
}

impl Session {
    /// `epoch`: where the clocks of the workers count from.
    pub(super) fn new(
        id: u64,
        arrival: Arrival,
        origin: &Arc<SessionOrigin>,
        (shard, slot): (u16, u32),
        epoch: Instant,
    ) -> Self {
        let began = arrival.at.saturating_duration_since(epoch);
        Self {
            id,
            origin: Arc::clone(origin),
            peer: arrival.peer,
            server_port: arrival.server_port,
            is_stopping: AtomicBool::new(false),
            shard,
            slot,
            link: AtomicI32::new(BackendSocket::CONNECTING.0),
            proxied: arrival
                .named
                .map_or_else(OnceLock::new, |client| Box::new(client).into()),
            began_micros: began.as_micros() as u64,
            active_millis: AtomicU64::new(began.as_millis() as u64),
            received: AtomicU64::default(),
            sent: AtomicU64::default(),
            placement: AtomicU64::default(),
            waker: Mutex::default(),
        }
    }

    /// What another process needs of it, beside the arrival.
    pub fn continued(&self) -> Continued {
        Continued {
            id: self.id,
            active_millis: self.active_millis(),
            received: self.received(),
            sent: self.sent(),
        }
    }

    pub(super) fn restore(&self, continued: &Continued) {
        self.set_active(continued.active_millis);
        self.received.store(continued.received, Ordering::Relaxed);
        self.sent.store(continued.sent, Ordering::Relaxed);
    }

    /// The client that the session is for.
    pub fn client(&self) -> Client {
        self.proxied().unwrap_or(self.peer)
    }

    /// The client that a PROXY protocol header named, if there was one.
    pub fn proxied(&self) -> Option<Client> {
        self.proxied.get().map(|client| **client)
    }

    pub fn set_proxied(&self, client: Client) {
        // A session has one header.
        let _ = self.proxied.set(Box::new(client));
    }

    pub(super) fn began(&self) -> Duration {
        Duration::from_micros(self.began_micros)
    }

    /// When it began, in microseconds of the workers.
    pub fn began_micros(&self) -> u64 {
        self.began_micros
    }

    /// When bytes were last carried, in milliseconds of the workers.
    pub fn active_millis(&self) -> u64 {
        self.active_millis.load(Ordering::Relaxed)
    }

    /// Bytes were carried now, in milliseconds of the workers. A store into memory that the
    /// counters of bytes have just touched.
    pub fn set_active(&self, millis: u64) {
        self.active_millis.store(millis, Ordering::Relaxed);
    }

    /// The session has this socket towards its backend from now on, until [`Self::set_closing`].
    pub fn set_socket(&self, socket: BorrowedFd<'_>) {
        self.link
            .store(BackendSocket::open(socket).0, Ordering::Release);
    }

    /// The session waits for what it lacks, or does not wait any more.
    pub fn set_waiting(&self, lacks: Option<Shortage>) {
        let link = match lacks {
            None => BackendSocket::CONNECTING,
            Some(Shortage::Full) => BackendSocket::QUEUED,
            Some(Shortage::NoneFit) => BackendSocket::HELD,
        };
        self.link.store(link.0, Ordering::Release);
    }

    /// Must be called before the socket towards the backend is closed.
    pub fn set_closing(&self) {
        self.link.store(BackendSocket::CLOSING.0, Ordering::Release);
    }

    fn link(&self) -> BackendSocket {
        BackendSocket(self.link.load(Ordering::Acquire))
    }

    pub fn phase(&self) -> Phase {
        match self.link() {
            _ if self.must_end().is_some() => Phase::Closing,
            BackendSocket::CONNECTING => Phase::Connecting,
            BackendSocket::CLOSING => Phase::Closing,
            BackendSocket::QUEUED => Phase::Queued,
            BackendSocket::HELD => Phase::Held,
            BackendSocket(_) => Phase::Relaying,
        }
    }

    /// Our own port towards the backend, while it relays over IP. It takes a system call, and no
    /// session needs it to work: it is asked for only when it is to be shown.
    pub fn backend_port(&self) -> Option<u16> {
        let link = self.link();
        let port = local_port(link.descriptor()?)?;
        // The number may be that of another socket by now. Then this one was closed, and before
        // that the link was changed.
        fence(Ordering::SeqCst);
        (self.link() == link).then_some(port)
    }

    /// Bytes from the client.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Bytes to the client.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// The id of its backend; 0 for none.
    pub fn backend(&self) -> u64 {
        Placement::of(self.placement.load(Ordering::Acquire)).backend
    }

    /// Enters the session on a backend, by its id; 0 for none. A session enters first and then asks
    /// the pool whether sessions of that backend were terminated since it was picked. If not, a
    /// later termination finds it by [`super::Sessions::on`]. If so, the session moves on, and a
    /// reason to end that was meant for that backend is cleared.
    pub fn set_backend(&self, id: u64) {
        self.update(|placement| match placement.is_of_backend {
            true => Placement::of(id << 8),
            false => Placement {
                backend: id,
                ..placement
            },
        });
    }

    /// Cheap: asked at every poll of the relay.
    pub fn interruption(&self) -> Option<Interruption> {
        Placement::of(self.placement.load(Ordering::Acquire)).interruption()
    }

    /// Why it must end, if it must.
    pub fn must_end(&self) -> Option<CloseReason> {
        match self.interruption() {
            Some(Interruption::End(reason)) => Some(reason),
            Some(Interruption::Leave) | None => None,
        }
    }

    /// Asks a session that is not to end to leave for another process once it relays.
    pub fn ask_to_leave(&self) {
        self.update(|placement| match placement.end {
            0 => Placement {
                end: LEAVE,
                ..placement
            },
            _ => placement,
        });
        self.wake();
    }

    /// The session stays, unless it has to end.
    pub fn stay(&self) {
        self.update(|placement| match placement.end {
            LEAVE => Placement {
                end: 0,
                ..placement
            },
            _ => placement,
        });
    }

    /// Whether it was asked to leave and has not done so yet.
    pub fn is_to_leave(&self) -> bool {
        self.interruption() == Some(Interruption::Leave)
    }

    pub fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Relaxed)
    }

    /// Terminates it, on whatever backend it is. Returns whether it had no reason to end before.
    pub fn end(&self, reason: CloseReason) -> bool {
        let before = self.update(|placement| placement.ending(reason, false));
        self.wake();
        !before.ends()
    }

    /// Terminates it unless it is on another backend by now. Returns whether it was there and had
    /// no reason to end before.
    pub fn end_if_on(&self, backend: u64, reason: CloseReason) -> bool {
        let before = self.update(|placement| match placement.backend == backend {
            true => placement.ending(reason, true),
            false => placement,
        });
        let is_there = before.backend == backend;
        if is_there {
            self.wake();
        }
        is_there && !before.ends()
    }

    /// Returns what was there before.
    fn update(&self, to: impl Fn(Placement) -> Placement) -> Placement {
        let update = |bits| Some(to(Placement::of(bits)).bits());
        let updated = self
            .placement
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, update);
        Placement::of(updated.unwrap_or_else(|bits| bits))
    }

    pub(super) fn wake(&self) {
        if let Some(waker) = &*self.waker.lock() {
            waker.wake_by_ref();
        }
    }

    /// Must be called before the first look at [`Self::must_end`] that leads to a wait.
    pub fn wake_by(&self, waker: &Waker) {
        *self.waker.lock() = Some(waker.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An idle session takes its entry, its task and two registered sockets.
    #[test]
    fn the_entry_of_a_session_is_small() {
        let size = size_of::<Session>();
        assert!(size <= 144, "{size} bytes");
    }
}

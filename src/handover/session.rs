//! Sessions over TCP and unix sockets: a record for each.
//!
//! The descriptors of a session, in this order: its connection to the client, the one to the
//! backend, and of each direction that holds bytes in a pipe, first the one from the client, both
//! ends of the pipe, first the one for reading.
//!
//! Times are microseconds or milliseconds from the start of the kernel's monotonic clock, which is
//! the same for both processes. What is one of several is a word.

pub mod waiting;

use super::record::{Malformed, Record, Tag, Writer};
use std::{net::SocketAddr, time::Duration};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRecord {
    pub id: u64,
    /// In microseconds.
    pub began: u64,
    /// When bytes were last carried, in milliseconds.
    pub active: u64,
    /// When the old process stopped to relay it, in microseconds.
    pub left: Option<u64>,
    /// Bytes from the client.
    pub received: u64,
    /// Bytes to the client.
    pub sent: u64,
    pub listener: String,
    pub upstream: String,
    pub peer: PeerRecord,
    /// The client that a PROXY protocol header has named.
    pub named: Option<PeerRecord>,
    /// The port that the client connected to; `None` on a unix socket.
    pub server_port: Option<u16>,
    pub backend: BackendRecord,
    /// When the attempt that succeeded began, in microseconds after the session began.
    pub connect_began: u64,
    /// When the backend's first byte was read, in microseconds.
    pub first_byte: Option<u64>,
    pub attempts: Vec<AttemptRecord>,
    pub to_client: SocketRecord,
    pub to_backend: SocketRecord,
    /// From the client to the backend.
    pub up: DirectionRecord,
    pub down: DirectionRecord,
    pub broken: Option<BrokenRecord>,
    /// When delivery is checked next, in milliseconds.
    pub next_check: Option<u64>,
    /// When data was last seen waiting for a peer, in milliseconds.
    pub pending_at: Option<u64>,
    pub has_keepalive: bool,
}

/// One end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerRecord {
    Ip(SocketAddr),
    /// A unix socket has no address.
    Unix,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendRecord {
    /// The address as configured.
    pub text: String,
    pub address: AddressRecord,
}

/// What a configured address stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressRecord {
    Ip(SocketAddr),
    /// The path of a unix socket.
    Path(Vec<u8>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRecord {
    pub backend: BackendRecord,
    pub result: String,
    /// Of a result that has one.
    pub reason: Option<String>,
    pub time: Duration,
    pub waited: Duration,
}

/// What is known of a connection that its socket does not report again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketRecord {
    pub peer_end: String,
    pub at_urgent_mark: bool,
    pub is_unwritable: bool,
    pub nodelay: String,
    /// Its peer has acknowledged nothing since then.
    pub undelivered: Option<UndeliveredRecord>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UndeliveredRecord {
    pub progress: u64,
    /// In microseconds.
    pub since: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectionRecord {
    pub held: HeldRecord,
    pub mode: String,
    /// What the mode counts.
    pub count: u8,
    /// Of the source.
    pub end: String,
    pub is_finished: bool,
    pub has_begun: bool,
    pub watch: String,
    /// How many bytes of a signature have arrived.
    pub watched: u8,
}

/// What was read and is not written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeldRecord {
    Nothing,
    Bytes(Vec<u8>),
    /// How many bytes are in the pipe.
    Pipe(u32),
    /// A header of our own, and what the client sent before there was a backend.
    First {
        header: Vec<u8>,
        payload: Vec<u8>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokenRecord {
    pub side: String,
    pub cause: String,
}

/// What the other process says of each session of a message, in their order; `None`: it has taken
/// it, otherwise why it has not.
pub type Verdicts = Vec<Option<String>>;

const ID: Tag = Tag::required(1);
const BEGAN: Tag = Tag::required(2);
const ACTIVE: Tag = Tag::required(3);
const RECEIVED: Tag = Tag::new(4);
const SENT: Tag = Tag::new(5);
const LISTENER: Tag = Tag::required(6);
const UPSTREAM: Tag = Tag::required(7);
const PEER: Tag = Tag::required(8);
const NAMED: Tag = Tag::required(9);
const SERVER_PORT: Tag = Tag::new(10);
const BACKEND: Tag = Tag::required(11);
const CONNECT_BEGAN: Tag = Tag::new(12);
const FIRST_BYTE: Tag = Tag::new(13);
const ATTEMPT: Tag = Tag::new(14);
const TO_CLIENT: Tag = Tag::required(15);
const TO_BACKEND: Tag = Tag::required(16);
const UP: Tag = Tag::required(17);
const DOWN: Tag = Tag::required(18);
const BROKEN: Tag = Tag::required(19);
const NEXT_CHECK: Tag = Tag::new(20);
const PENDING_AT: Tag = Tag::new(21);
const HAS_KEEPALIVE: Tag = Tag::new(22);
const LEFT: Tag = Tag::new(23);

const SESSION_TAGS: &[Tag] = &[
    ID,
    BEGAN,
    ACTIVE,
    RECEIVED,
    SENT,
    LISTENER,
    UPSTREAM,
    PEER,
    NAMED,
    SERVER_PORT,
    BACKEND,
    CONNECT_BEGAN,
    FIRST_BYTE,
    ATTEMPT,
    TO_CLIENT,
    TO_BACKEND,
    UP,
    DOWN,
    BROKEN,
    NEXT_CHECK,
    PENDING_AT,
    HAS_KEEPALIVE,
    LEFT,
];

/// Of a message with sessions.
const SESSION: Tag = Tag::required(1);
/// Of an answer to it: empty for a session that was taken.
const VERDICT: Tag = Tag::required(1);

impl SessionRecord {
    /// How many descriptors it has.
    pub fn descriptors(&self) -> usize {
        let pipes = [&self.up, &self.down].map(|direction| match direction.held {
            HeldRecord::Pipe(_) => 2,
            HeldRecord::Nothing | HeldRecord::Bytes(_) | HeldRecord::First { .. } => 0,
        });
        2 + pipes.into_iter().sum::<usize>()
    }

    pub fn write(&self, w: &mut Writer) {
        w.u64(ID, self.id)
            .u64(BEGAN, self.began)
            .u64(ACTIVE, self.active)
            .u64(RECEIVED, self.received)
            .u64(SENT, self.sent)
            .text(LISTENER, &self.listener)
            .text(UPSTREAM, &self.upstream)
            .text(PEER, &self.peer.text())
            .optional_text(NAMED, self.named.map(PeerRecord::text).as_deref())
            .optional_u64(SERVER_PORT, self.server_port.map(u64::from))
            .record(BACKEND, |w| self.backend.write(w))
            .u64(CONNECT_BEGAN, self.connect_began)
            .optional_u64(FIRST_BYTE, self.first_byte)
            .list(ATTEMPT, &self.attempts, |attempt, w| attempt.write(w))
            .record(TO_CLIENT, |w| self.to_client.write(w))
            .record(TO_BACKEND, |w| self.to_backend.write(w))
            .record(UP, |w| self.up.write(w))
            .record(DOWN, |w| self.down.write(w));
        if let Some(broken) = &self.broken {
            w.record(BROKEN, |w| broken.write(w));
        }
        w.optional_u64(NEXT_CHECK, self.next_check)
            .optional_u64(PENDING_AT, self.pending_at)
            .flag(HAS_KEEPALIVE, self.has_keepalive)
            .optional_u64(LEFT, self.left);
    }

    pub fn read(r: &Record<'_>) -> Result<Self, Malformed> {
        let broken = r.optional_record(BROKEN, BROKEN_TAGS)?;
        Ok(Self {
            id: r.u64(ID)?,
            began: r.u64(BEGAN)?,
            active: r.u64(ACTIVE)?,
            left: r.optional_u64(LEFT)?,
            received: r.optional_u64(RECEIVED)?.unwrap_or_default(),
            sent: r.optional_u64(SENT)?.unwrap_or_default(),
            listener: r.text(LISTENER)?.to_owned(),
            upstream: r.text(UPSTREAM)?.to_owned(),
            peer: PeerRecord::read(PEER, r.text(PEER)?)?,
            named: r
                .optional_text(NAMED)?
                .map(|text| PeerRecord::read(NAMED, text))
                .transpose()?,
            server_port: r.optional_number(SERVER_PORT)?,
            backend: BackendRecord::read(&r.record(BACKEND, BACKEND_TAGS)?)?,
            connect_began: r.optional_u64(CONNECT_BEGAN)?.unwrap_or_default(),
            first_byte: r.optional_u64(FIRST_BYTE)?,
            attempts: r.list(ATTEMPT, ATTEMPT_TAGS, AttemptRecord::read)?,
            to_client: SocketRecord::read(&r.record(TO_CLIENT, SOCKET_TAGS)?)?,
            to_backend: SocketRecord::read(&r.record(TO_BACKEND, SOCKET_TAGS)?)?,
            up: DirectionRecord::read(&r.record(UP, DIRECTION_TAGS)?)?,
            down: DirectionRecord::read(&r.record(DOWN, DIRECTION_TAGS)?)?,
            broken: broken.as_ref().map(BrokenRecord::read).transpose()?,
            next_check: r.optional_u64(NEXT_CHECK)?,
            pending_at: r.optional_u64(PENDING_AT)?,
            has_keepalive: r.flag(HAS_KEEPALIVE)?,
        })
    }
}

/// The body of a message with these sessions.
pub fn write_all<'a>(sessions: impl IntoIterator<Item = &'a SessionRecord>) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.list(SESSION, sessions, SessionRecord::write);
    writer.into_bytes()
}

pub fn read_all(body: &[u8]) -> Result<Vec<SessionRecord>, Malformed> {
    let message = Record::parse(body, &[SESSION])?;
    message.list(SESSION, SESSION_TAGS, SessionRecord::read)
}

/// The body of the answer to a message with sessions.
pub fn write_verdicts<'a>(verdicts: impl IntoIterator<Item = Option<&'a str>>) -> Vec<u8> {
    let mut writer = Writer::new();
    for verdict in verdicts {
        writer.text(VERDICT, verdict.unwrap_or_default());
    }
    writer.into_bytes()
}

pub fn read_verdicts(body: &[u8]) -> Result<Verdicts, Malformed> {
    let message = Record::parse(body, &[VERDICT])?;
    let verdict = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Ok(message.texts(VERDICT)?.into_iter().map(verdict).collect())
}

const UNIX: &str = "unix:";

impl PeerRecord {
    fn text(self) -> String {
        match self {
            Self::Ip(address) => address.to_string(),
            Self::Unix => UNIX.to_owned(),
        }
    }

    fn read(tag: Tag, text: &str) -> Result<Self, Malformed> {
        match text {
            UNIX => Ok(Self::Unix),
            text => address(tag, text).map(Self::Ip),
        }
    }
}

fn address(tag: Tag, text: &str) -> Result<SocketAddr, Malformed> {
    text.parse().map_err(|_| Malformed::Value(tag))
}

const TEXT: Tag = Tag::required(1);
const IP: Tag = Tag::required(2);
const PATH: Tag = Tag::required(3);
const BACKEND_TAGS: &[Tag] = &[TEXT, IP, PATH];

impl BackendRecord {
    fn write(&self, w: &mut Writer) {
        w.text(TEXT, &self.text);
        match &self.address {
            AddressRecord::Ip(address) => w.text(IP, &address.to_string()),
            AddressRecord::Path(path) => w.bytes(PATH, path),
        };
    }

    fn read(r: &Record<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            text: r.text(TEXT)?.to_owned(),
            address: match r.optional_text(IP)? {
                Some(text) => AddressRecord::Ip(address(IP, text)?),
                None => AddressRecord::Path(r.bytes(PATH)?.to_vec()),
            },
        })
    }
}

const ATTEMPT_BACKEND: Tag = Tag::new(1);
const RESULT: Tag = Tag::new(2);
const REASON: Tag = Tag::new(3);
const TIME: Tag = Tag::new(4);
const WAITED: Tag = Tag::new(5);
const ATTEMPT_TAGS: &[Tag] = &[ATTEMPT_BACKEND, RESULT, REASON, TIME, WAITED];

impl AttemptRecord {
    fn write(&self, w: &mut Writer) {
        w.record(ATTEMPT_BACKEND, |w| self.backend.write(w))
            .text(RESULT, &self.result)
            .optional_text(REASON, self.reason.as_deref())
            .duration(TIME, self.time)
            .duration(WAITED, self.waited);
    }

    fn read(r: &Record<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            backend: BackendRecord::read(&r.record(ATTEMPT_BACKEND, BACKEND_TAGS)?)?,
            result: r.text(RESULT)?.to_owned(),
            reason: r.optional_text(REASON)?.map(str::to_owned),
            time: r.duration(TIME)?,
            waited: r.duration(WAITED)?,
        })
    }
}

const PEER_END: Tag = Tag::required(1);
const AT_URGENT_MARK: Tag = Tag::required(2);
const IS_UNWRITABLE: Tag = Tag::required(3);
const NODELAY: Tag = Tag::new(4);
const PROGRESS: Tag = Tag::new(5);
const SINCE: Tag = Tag::new(6);
const SOCKET_TAGS: &[Tag] = &[
    PEER_END,
    AT_URGENT_MARK,
    IS_UNWRITABLE,
    NODELAY,
    PROGRESS,
    SINCE,
];

impl SocketRecord {
    fn write(&self, w: &mut Writer) {
        let undelivered = self.undelivered;
        w.text(PEER_END, &self.peer_end)
            .flag(AT_URGENT_MARK, self.at_urgent_mark)
            .flag(IS_UNWRITABLE, self.is_unwritable)
            .text(NODELAY, &self.nodelay)
            .optional_u64(PROGRESS, undelivered.map(|u| u.progress))
            .optional_u64(SINCE, undelivered.map(|u| u.since));
    }

    fn read(r: &Record<'_>) -> Result<Self, Malformed> {
        let progress = r.optional_u64(PROGRESS)?.zip(r.optional_u64(SINCE)?);
        Ok(Self {
            peer_end: r.text(PEER_END)?.to_owned(),
            at_urgent_mark: r.flag(AT_URGENT_MARK)?,
            is_unwritable: r.flag(IS_UNWRITABLE)?,
            nodelay: r.text(NODELAY)?.to_owned(),
            undelivered: progress.map(|(progress, since)| UndeliveredRecord { progress, since }),
        })
    }
}

const BYTES: Tag = Tag::required(1);
const PIPE: Tag = Tag::required(2);
const HEADER: Tag = Tag::required(3);
const PAYLOAD: Tag = Tag::required(4);
const MODE: Tag = Tag::new(5);
const COUNT: Tag = Tag::new(6);
const END: Tag = Tag::required(7);
const IS_FINISHED: Tag = Tag::required(8);
const HAS_BEGUN: Tag = Tag::required(9);
const WATCH: Tag = Tag::required(10);
const WATCHED: Tag = Tag::required(11);
const DIRECTION_TAGS: &[Tag] = &[
    BYTES,
    PIPE,
    HEADER,
    PAYLOAD,
    MODE,
    COUNT,
    END,
    IS_FINISHED,
    HAS_BEGUN,
    WATCH,
    WATCHED,
];

impl DirectionRecord {
    fn write(&self, w: &mut Writer) {
        match &self.held {
            HeldRecord::Nothing => {}
            HeldRecord::Bytes(bytes) => {
                w.bytes(BYTES, bytes);
            }
            HeldRecord::Pipe(bytes) => {
                w.u64(PIPE, (*bytes).into());
            }
            HeldRecord::First { header, payload } => {
                w.bytes(HEADER, header).bytes(PAYLOAD, payload);
            }
        }
        w.text(MODE, &self.mode)
            .u64(COUNT, self.count.into())
            .text(END, &self.end)
            .flag(IS_FINISHED, self.is_finished)
            .flag(HAS_BEGUN, self.has_begun)
            .text(WATCH, &self.watch)
            .u64(WATCHED, self.watched.into());
    }

    fn read(r: &Record<'_>) -> Result<Self, Malformed> {
        let first = r.optional_bytes(HEADER).zip(r.optional_bytes(PAYLOAD));
        Ok(Self {
            held: match (r.optional_bytes(BYTES), r.optional_number(PIPE)?, first) {
                (None, None, None) => HeldRecord::Nothing,
                (Some(bytes), None, None) => HeldRecord::Bytes(bytes.to_vec()),
                (None, Some(bytes), None) => HeldRecord::Pipe(bytes),
                (None, None, Some((header, payload))) => HeldRecord::First {
                    header: header.to_vec(),
                    payload: payload.to_vec(),
                },
                _ => return Err(Malformed::Value(BYTES)),
            },
            mode: r.text(MODE)?.to_owned(),
            count: r.number(COUNT)?,
            end: r.text(END)?.to_owned(),
            is_finished: r.flag(IS_FINISHED)?,
            has_begun: r.flag(HAS_BEGUN)?,
            watch: r.text(WATCH)?.to_owned(),
            watched: r.number(WATCHED)?,
        })
    }
}

const SIDE: Tag = Tag::required(1);
const CAUSE: Tag = Tag::new(2);
const BROKEN_TAGS: &[Tag] = &[SIDE, CAUSE];

impl BrokenRecord {
    fn write(&self, w: &mut Writer) {
        w.text(SIDE, &self.side).text(CAUSE, &self.cause);
    }

    fn read(r: &Record<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            side: r.text(SIDE)?.to_owned(),
            cause: r.text(CAUSE)?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests;

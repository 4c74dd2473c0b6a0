//! Sessions over TCP and unix sockets: a record for each.
//!
//! The descriptors of a session, in this order: its connection to the client, the one to the
//! backend, and of each direction that holds bytes in a pipe, first the one from the client, both
//! ends of the pipe, first the one for reading.
//!
//! Times are microseconds or milliseconds from the start of the kernel's monotonic clock, which is
//! the same for both processes. What is one of several is a word.

pub mod waiting;

pub use super::fields::{read_required_list as read_all, write_required_list as write_all};

use super::{
    fields::{Field as _, Fields, Value, record},
    record::{Malformed, Record, Tag, Writer},
};
use std::{net::SocketAddr, time::Duration};

record! {
    #[derive(Debug, Clone, PartialEq, Eq)]
    SessionRecord {
        id: u64 = (required 1),
        /// In microseconds.
        began: u64 = (required 2),
        /// When bytes were last carried, in milliseconds.
        active: u64 = (required 3),
        /// Bytes from the client.
        received: u64 = 4,
        /// Bytes to the client.
        sent: u64 = 5,
        listener: String = (required 6),
        upstream: String = (required 7),
        peer: PeerRecord = (required 8),
        /// The client that a PROXY protocol header has named.
        named: Option<PeerRecord> = (required 9),
        /// The port that the client connected to; `None` on a unix socket.
        server_port: Option<u16> = 10,
        backend: BackendRecord = (required 11),
        /// When the attempt that succeeded began, in microseconds after the session began.
        connect_began: u64 = 12,
        /// When the backend's first byte was read, in microseconds.
        first_byte: Option<u64> = 13,
        attempts: Vec<AttemptRecord> = 14,
        to_client: SocketRecord = (required 15),
        to_backend: SocketRecord = (required 16),
        /// From the client to the backend.
        up: DirectionRecord = (required 17),
        down: DirectionRecord = (required 18),
        broken: Option<BrokenRecord> = (required 19),
        /// When delivery is checked next, in milliseconds.
        next_check: Option<u64> = 20,
        /// When data was last seen waiting for a peer, in milliseconds.
        pending_at: Option<u64> = 21,
        has_keepalive: bool = 22,
        /// When the old process stopped to relay it, in microseconds.
        left: Option<u64> = 23,
    }
}

/// One end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerRecord {
    Ip(SocketAddr),
    /// A unix socket has no address.
    Unix,
}

record! {
    #[derive(Debug, Clone, PartialEq, Eq)]
    BackendRecord {
        /// The address as configured.
        text: String = (required 1),
        address: AddressRecord = inline,
    }
}

/// What a configured address stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressRecord {
    Ip(SocketAddr),
    /// The path of a unix socket.
    Path(Vec<u8>),
}

record! {
    #[derive(Debug, Clone, PartialEq, Eq)]
    AttemptRecord {
        backend: BackendRecord = 1,
        result: String = 2,
        /// Of a result that has one.
        reason: Option<String> = 3,
        time: Duration = 4,
        waited: Duration = 5,
    }
}

record! {
    /// What is known of a connection that its socket does not report again.
    #[derive(Debug, Clone, PartialEq, Eq)]
    SocketRecord {
        peer_end: String = (required 1),
        at_urgent_mark: bool = (required 2),
        is_unwritable: bool = (required 3),
        nodelay: String = 4,
        /// Its peer has acknowledged nothing beyond this progress since then, in microseconds.
        undelivered: Option<(u64, u64)> = [5, 6],
    }
}

record! {
    #[derive(Debug, Clone, PartialEq, Eq)]
    DirectionRecord {
        held: HeldRecord = inline,
        mode: String = 5,
        /// What the mode counts.
        count: u8 = 6,
        /// Of the source.
        end: String = (required 7),
        is_finished: bool = (required 8),
        has_begun: bool = (required 9),
        watch: String = (required 10),
        /// How many bytes of a signature have arrived.
        watched: u8 = (required 11),
    }
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

record! {
    #[derive(Debug, Clone, PartialEq, Eq)]
    BrokenRecord {
        side: String = (required 1),
        cause: String = 2,
    }
}

/// What the other process says of each session of a message, in their order; `None`: it has taken
/// it, otherwise why it has not.
pub type Verdicts = Vec<Option<String>>;

/// Of an answer to a message with sessions: empty for a session that was taken.
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
    let texts = Vec::<String>::read_field(VERDICT, &Record::parse(body, &[VERDICT])?)?;
    let verdicts = texts.into_iter().map(Some);
    Ok(verdicts
        .map(|v| v.filter(|text| !text.is_empty()))
        .collect())
}

const UNIX: &str = "unix:";

impl Value for PeerRecord {
    fn write_value(&self, tag: Tag, w: &mut Writer) {
        match self {
            Self::Ip(address) => w.text(tag, &address.to_string()),
            Self::Unix => w.text(tag, UNIX),
        };
    }

    fn read_value(bytes: &[u8], tag: Tag) -> Result<Self, Malformed> {
        match str::from_utf8(bytes) {
            Ok(UNIX) => Ok(Self::Unix),
            Ok(text) => address(tag, text).map(Self::Ip),
            Err(_) => Err(Malformed::Value(tag)),
        }
    }
}

fn address(tag: Tag, text: &str) -> Result<SocketAddr, Malformed> {
    text.parse().map_err(|_| Malformed::Value(tag))
}

/// Within [`BackendRecord`].
const IP: Tag = Tag::required(2);
const PATH: Tag = Tag::required(3);

impl Fields for AddressRecord {
    fn write_fields(&self, w: &mut Writer) {
        match self {
            Self::Ip(address) => w.text(IP, &address.to_string()),
            Self::Path(path) => w.bytes(PATH, path),
        };
    }

    fn read_fields(r: &Record<'_>) -> Result<Self, Malformed> {
        match Option::<String>::read_field(IP, r)? {
            Some(text) => address(IP, &text).map(Self::Ip),
            None => Ok(Self::Path(r.bytes(PATH)?.to_vec())),
        }
    }

    fn has(tag: Tag) -> bool {
        [IP, PATH].contains(&tag)
    }
}

/// Within [`DirectionRecord`].
const BYTES: Tag = Tag::required(1);
const PIPE: Tag = Tag::required(2);
const HEADER: Tag = Tag::required(3);
const PAYLOAD: Tag = Tag::required(4);

impl Fields for HeldRecord {
    fn write_fields(&self, w: &mut Writer) {
        match self {
            Self::Nothing => w,
            Self::Bytes(bytes) => w.bytes(BYTES, bytes),
            Self::Pipe(bytes) => w.u64(PIPE, (*bytes).into()),
            Self::First { header, payload } => w.bytes(HEADER, header).bytes(PAYLOAD, payload),
        };
    }

    fn read_fields(r: &Record<'_>) -> Result<Self, Malformed> {
        let pipe = Option::<u32>::read_field(PIPE, r)?;
        let first = r.optional_bytes(HEADER).zip(r.optional_bytes(PAYLOAD));
        match (r.optional_bytes(BYTES), pipe, first) {
            (None, None, None) => Ok(Self::Nothing),
            (Some(bytes), None, None) => Ok(Self::Bytes(bytes.to_vec())),
            (None, Some(bytes), None) => Ok(Self::Pipe(bytes)),
            (None, None, Some((header, payload))) => Ok(Self::First {
                header: header.to_vec(),
                payload: payload.to_vec(),
            }),
            _ => Err(Malformed::Value(BYTES)),
        }
    }

    fn has(tag: Tag) -> bool {
        [BYTES, PIPE, HEADER, PAYLOAD].contains(&tag)
    }
}

#[cfg(test)]
mod tests;

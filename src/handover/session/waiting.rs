//! Connections that wait for a backend: a record for each. The descriptor of each is its
//! connection to the client.

use super::{
    super::record::{Malformed, Record, Tag, Writer},
    ATTEMPT_TAGS, AttemptRecord, PeerRecord, SESSION, SOCKET_TAGS, SocketRecord,
};
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingRecord {
    pub id: u64,
    /// In microseconds.
    pub began: u64,
    /// When the old process stopped to look at it, in microseconds.
    pub left: Option<u64>,
    /// Bytes from the client.
    pub received: u64,
    pub listener: String,
    pub upstream: String,
    pub peer: PeerRecord,
    /// The client that a PROXY protocol header has named.
    pub named: Option<PeerRecord>,
    pub server_port: Option<u16>,
    /// What the header said, as one of version 2; `None`: there was none, or it named no client.
    pub header: Option<Vec<u8>>,
    /// What the client has sent after it.
    pub payload: Vec<u8>,
    pub attempts: Vec<AttemptRecord>,
    /// For how long it waited since the last attempt, without the wait that lasts.
    pub waited: Duration,
    pub to_client: SocketRecord,
    /// `None`: it has not waited yet.
    pub wait: Option<WaitRecord>,
}

/// A place in the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitRecord {
    /// `None`: after those that wait by now.
    pub ticket: Option<u64>,
    /// What it lacks, by the word of the wait.
    pub lacks: String,
    /// In microseconds.
    pub began: u64,
    /// For how long it may still wait for a place, and for a fit backend.
    pub left: [Duration; 2],
    /// For how long it still waits for the backend of its key alone.
    pub stick_left: Option<Duration>,
}

const ID: Tag = Tag::required(1);
const BEGAN: Tag = Tag::required(2);
const LEFT: Tag = Tag::new(3);
const RECEIVED: Tag = Tag::new(4);
const LISTENER: Tag = Tag::required(5);
const UPSTREAM: Tag = Tag::required(6);
const PEER: Tag = Tag::required(7);
const NAMED: Tag = Tag::required(8);
const SERVER_PORT: Tag = Tag::new(9);
const HEADER: Tag = Tag::required(10);
const PAYLOAD: Tag = Tag::required(11);
const ATTEMPT: Tag = Tag::new(12);
const WAITED: Tag = Tag::new(13);
const TO_CLIENT: Tag = Tag::required(14);
const WAIT: Tag = Tag::required(15);
const TAGS: &[Tag] = &[
    ID,
    BEGAN,
    LEFT,
    RECEIVED,
    LISTENER,
    UPSTREAM,
    PEER,
    NAMED,
    SERVER_PORT,
    HEADER,
    PAYLOAD,
    ATTEMPT,
    WAITED,
    TO_CLIENT,
    WAIT,
];

/// Within [`WAIT`].
const TICKET: Tag = Tag::new(1);
const LACKS: Tag = Tag::required(2);
const WAIT_BEGAN: Tag = Tag::new(3);
const QUEUE_LEFT: Tag = Tag::required(4);
const HOLD_LEFT: Tag = Tag::required(5);
const STICK_LEFT: Tag = Tag::new(6);
const OF_WAIT: &[Tag] = &[TICKET, LACKS, WAIT_BEGAN, QUEUE_LEFT, HOLD_LEFT, STICK_LEFT];

/// The body of a message with these sessions.
pub fn write_all(sessions: &[WaitingRecord]) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.list(SESSION, sessions, WaitingRecord::write);
    writer.into_bytes()
}

pub fn read_all(body: &[u8]) -> Result<Vec<WaitingRecord>, Malformed> {
    Record::parse(body, &[SESSION])?.list(SESSION, TAGS, WaitingRecord::read)
}

impl WaitingRecord {
    fn write(&self, w: &mut Writer) {
        w.u64(ID, self.id)
            .u64(BEGAN, self.began)
            .optional_u64(LEFT, self.left)
            .u64(RECEIVED, self.received)
            .text(LISTENER, &self.listener)
            .text(UPSTREAM, &self.upstream)
            .text(PEER, &self.peer.text())
            .optional_text(NAMED, self.named.map(PeerRecord::text).as_deref())
            .optional_u64(SERVER_PORT, self.server_port.map(u64::from));
        if let Some(header) = &self.header {
            w.bytes(HEADER, header);
        }
        w.bytes(PAYLOAD, &self.payload)
            .list(ATTEMPT, &self.attempts, AttemptRecord::write)
            .duration(WAITED, self.waited)
            .record(TO_CLIENT, |w| self.to_client.write(w));
        if let Some(wait) = &self.wait {
            w.record(WAIT, |w| wait.write(w));
        }
    }

    fn read(r: &Record<'_>) -> Result<Self, Malformed> {
        let wait = r.optional_record(WAIT, OF_WAIT)?;
        Ok(Self {
            id: r.u64(ID)?,
            began: r.u64(BEGAN)?,
            left: r.optional_u64(LEFT)?,
            received: r.optional_u64(RECEIVED)?.unwrap_or_default(),
            listener: r.text(LISTENER)?.to_owned(),
            upstream: r.text(UPSTREAM)?.to_owned(),
            peer: PeerRecord::read(PEER, r.text(PEER)?)?,
            named: r
                .optional_text(NAMED)?
                .map(|text| PeerRecord::read(NAMED, text))
                .transpose()?,
            server_port: r.optional_number(SERVER_PORT)?,
            header: r.optional_bytes(HEADER).map(<[u8]>::to_vec),
            payload: r.bytes(PAYLOAD)?.to_vec(),
            attempts: r.list(ATTEMPT, ATTEMPT_TAGS, AttemptRecord::read)?,
            waited: r.optional_duration(WAITED)?.unwrap_or_default(),
            to_client: SocketRecord::read(&r.record(TO_CLIENT, SOCKET_TAGS)?)?,
            wait: wait.as_ref().map(WaitRecord::read).transpose()?,
        })
    }
}

impl WaitRecord {
    fn write(&self, w: &mut Writer) {
        let [queue, hold] = self.left;
        w.optional_u64(TICKET, self.ticket)
            .text(LACKS, &self.lacks)
            .u64(WAIT_BEGAN, self.began)
            .duration(QUEUE_LEFT, queue)
            .duration(HOLD_LEFT, hold)
            .optional_duration(STICK_LEFT, self.stick_left);
    }

    fn read(r: &Record<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            ticket: r.optional_u64(TICKET)?,
            lacks: r.text(LACKS)?.to_owned(),
            began: r.optional_u64(WAIT_BEGAN)?.unwrap_or_default(),
            left: [r.duration(QUEUE_LEFT)?, r.duration(HOLD_LEFT)?],
            stick_left: r.optional_duration(STICK_LEFT)?,
        })
    }
}

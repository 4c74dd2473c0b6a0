//! Connections that wait for a backend: a record for each. The descriptor of each is its
//! connection to the client.

use super::{super::fields::record, AttemptRecord, PeerRecord, SocketRecord};
use std::time::Duration;

record! {
    #[derive(Debug, Clone, PartialEq, Eq)]
    WaitingRecord {
        id: u64 = (required 1),
        /// In microseconds.
        began: u64 = (required 2),
        /// When the old process stopped to look at it, in microseconds.
        left: Option<u64> = 3,
        /// Bytes from the client.
        received: u64 = 4,
        listener: String = (required 5),
        upstream: String = (required 6),
        peer: PeerRecord = (required 7),
        /// The client that a PROXY protocol header has named.
        named: Option<PeerRecord> = (required 8),
        server_port: Option<u16> = 9,
        /// What the header said, as one of version 2; `None`: there was none, or it named no
        /// client.
        header: Option<Box<[u8]>> = (required 10),
        /// What the client has sent after it.
        payload: Box<[u8]> = (required 11),
        attempts: Vec<AttemptRecord> = 12,
        /// For how long it waited since the last attempt, without the wait that lasts.
        waited: Duration = 13,
        to_client: SocketRecord = (required 14),
        /// `None`: it has not waited yet.
        wait: Option<WaitRecord> = (required 15),
    }
}

record! {
    /// A place in the line.
    #[derive(Debug, Clone, PartialEq, Eq)]
    WaitRecord {
        /// `None`: after those that wait by now.
        ticket: Option<u64> = 1,
        /// What it lacks, by the word of the wait.
        lacks: String = (required 2),
        /// In microseconds.
        began: u64 = 3,
        /// For how long it may still wait for a place, and for a fit backend.
        left: [Duration; 2] = [(required 4), (required 5)],
        /// For how long it still waits for the backend of its key alone.
        stick_left: Option<Duration> = 6,
    }
}

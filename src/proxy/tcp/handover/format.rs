//! Between a session as this program has it and the record that two processes exchange.

use super::{AttemptState, BackendName, ClientState, Connection, SessionState, Unsuitable};
use crate::{
    handover::session::{
        AddressRecord, AttemptRecord, BackendRecord, BrokenRecord, DirectionRecord, HeldRecord,
        PeerRecord, SessionRecord, SocketRecord,
    },
    plan::{
        Addr,
        reason::{CloseReason, ConnectError},
    },
    proxy::relay::{
        BreakCause, DeliveryState, DirectionState, HeldState, Mode, RelayState, Side, SourceEnd,
        Undelivered,
    },
    proxy_protocol::Watch,
    runtime::{
        executor::{NoDelay, PeerEnd, StreamState},
        net::Client,
    },
    session::{registry::Continued, summary::AttemptResult},
    sys::pipe::Pipe,
};
use std::{
    ffi::OsString,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    path::PathBuf,
};

/// A session with a higher number would leave none for later ones.
const MOST_ID: u64 = 1 << 62;

impl SessionState {
    /// Its descriptors are [`Self::descriptors`].
    pub fn record(&self) -> SessionRecord {
        let Self { client, relay, .. } = self;
        let continued = &client.continued;
        let delivery = relay.delivery.clone().unwrap_or_default();
        SessionRecord {
            id: continued.id,
            began: client.began,
            active: continued.active_millis,
            left: client.left,
            received: continued.received,
            sent: continued.sent,
            listener: client.listener.clone(),
            upstream: client.upstream.clone(),
            peer: peer(client.peer),
            named: client.named.map(peer),
            server_port: client.server_port,
            backend: self.backend.record(),
            connect_began: self.connect_began,
            first_byte: relay.first_byte,
            attempts: client.attempts.iter().map(AttemptState::record).collect(),
            to_client: socket(&client.connection.state, delivery.client),
            to_backend: socket(&self.to_backend.state, delivery.backend),
            up: direction(&relay.up),
            down: direction(&relay.down),
            broken: relay.broken.map(|(side, cause)| BrokenRecord {
                side: word_of(&SIDES, side),
                cause: word_of(&CAUSES, cause),
            }),
            next_check: relay.next_check,
            pending_at: delivery.pending_at,
            has_keepalive: relay.has_keepalive,
        }
    }

    /// How many bytes go into its record beside the little that every session has.
    pub fn held_bytes(&self) -> usize {
        let held = [&self.relay.up, &self.relay.down].map(|direction| match &direction.held {
            HeldState::Nothing | HeldState::Piped(_) => 0,
            HeldState::Bytes(bytes) => bytes.len(),
            HeldState::First { header, payload } => header.len() + payload.len(),
        });
        held.into_iter().sum()
    }

    /// In the order of the format.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut all = vec![
            self.client.connection.socket.as_fd(),
            self.to_backend.socket.as_fd(),
        ];
        for direction in [&self.relay.up, &self.relay.down] {
            if let HeldState::Piped(pipe) = &direction.held {
                all.extend(pipe.ends());
            }
        }
        all
    }

    /// `descriptors`: of the session, in the order of the format. Those that are not used are
    /// closed.
    pub fn of_record(record: SessionRecord, descriptors: Vec<OwnedFd>) -> Result<Self, Unsuitable> {
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().ok_or(Unsuitable::NoConnection);
        let (to_client, to_backend) = (next()?, next()?);
        let delivery = DeliveryState {
            client: undelivered(&record.to_client),
            backend: undelivered(&record.to_backend),
            pending_at: record.pending_at,
        };
        let broken = record.broken.as_ref().map(|broken| {
            let side = find(&SIDES, &broken.side)?;
            Ok((side, find(&CAUSES, &broken.cause)?))
        });
        Ok(Self {
            client: ClientState {
                continued: Continued {
                    id: checked_id(record.id)?,
                    active_millis: record.active,
                    received: record.received,
                    sent: record.sent,
                },
                began: record.began,
                left: record.left,
                listener: record.listener,
                upstream: record.upstream,
                peer: client_of(record.peer),
                named: record.named.map(client_of),
                server_port: record.server_port,
                attempts: record
                    .attempts
                    .into_iter()
                    .map(AttemptState::of_record)
                    .collect::<Result<_, _>>()?,
                connection: connection(to_client, &record.to_client)?,
            },
            backend: BackendName::of_record(record.backend),
            connect_began: record.connect_began,
            to_backend: connection(to_backend, &record.to_backend)?,
            relay: RelayState {
                up: direction_of(record.up, &mut next)?,
                down: direction_of(record.down, &mut next)?,
                broken: broken.transpose()?,
                next_check: record.next_check,
                delivery: (delivery != DeliveryState::default()).then_some(delivery),
                has_keepalive: record.has_keepalive,
                first_byte: record.first_byte,
            },
        })
    }
}

pub(super) fn checked_id(id: u64) -> Result<u64, Unsuitable> {
    match id {
        ..=MOST_ID => Ok(id),
        _ => Err(Unsuitable::NotUnderstood),
    }
}

type Words<T, const N: usize> = [(&'static str, T); N];

const PEER_ENDS: Words<PeerEnd, 3> = [
    ("open", PeerEnd::Open),
    ("ended", PeerEnd::Ended),
    ("failed", PeerEnd::Failed),
];
const NODELAYS: Words<NoDelay, 3> = [
    ("done", NoDelay::Never),
    ("before_next_write", NoDelay::BeforeNextWrite),
    ("before_second_write", NoDelay::BeforeSecondWrite),
];
const SOURCE_ENDS: Words<SourceEnd, 5> = [
    ("open", SourceEnd::Open),
    ("clean", SourceEnd::Clean),
    ("reset", SourceEnd::Reset),
    ("refused", SourceEnd::Refused),
    ("stopped", SourceEnd::Stopped),
];
const SIDES: Words<Side, 2> = [("client", Side::Client), ("backend", Side::Backend)];
const CAUSES: Words<BreakCause, 2> = [
    ("reset", BreakCause::Reset),
    ("timed_out", BreakCause::TimedOut),
];

/// Every value has a word.
fn word_of<T: PartialEq, const N: usize>(words: &Words<T, N>, value: T) -> String {
    let word = words.iter().find(|(_, v)| *v == value);
    word.map_or("", |(word, _)| *word).to_owned()
}

fn find<T: Copy, const N: usize>(words: &Words<T, N>, word: &str) -> Result<T, Unsuitable> {
    let found = words.iter().find(|(w, _)| *w == word);
    found
        .map(|(_, value)| *value)
        .ok_or(Unsuitable::NotUnderstood)
}

pub(super) fn peer(client: Client) -> PeerRecord {
    match client {
        Client::Ip(address) => PeerRecord::Ip(address),
        Client::Unix => PeerRecord::Unix,
    }
}

pub(super) fn client_of(peer: PeerRecord) -> Client {
    match peer {
        PeerRecord::Ip(address) => Client::Ip(address),
        PeerRecord::Unix => Client::Unix,
    }
}

impl BackendName {
    fn record(&self) -> BackendRecord {
        BackendRecord {
            text: self.text.clone(),
            address: match &self.addr {
                Addr::Tcp(address) => AddressRecord::Ip(*address),
                Addr::Unix(path) => AddressRecord::Path(path.as_os_str().as_bytes().to_vec()),
            },
        }
    }

    fn of_record(record: BackendRecord) -> Self {
        Self {
            text: record.text,
            addr: match record.address {
                AddressRecord::Ip(address) => Addr::Tcp(address),
                AddressRecord::Path(path) => Addr::Unix(PathBuf::from(OsString::from_vec(path))),
            },
        }
    }
}

impl AttemptState {
    pub(super) fn record(&self) -> AttemptRecord {
        let (result, reason) = match self.result {
            AttemptResult::Connected => ("connected", None),
            AttemptResult::Left => ("left", None),
            AttemptResult::Failed(error) => ("failed", Some(error.word())),
            AttemptResult::Abandoned(reason) => ("abandoned", Some(reason.word())),
        };
        AttemptRecord {
            backend: self.backend.record(),
            result: result.to_owned(),
            reason: reason.map(str::to_owned),
            time: self.time,
            waited: self.waited,
        }
    }

    pub(super) fn of_record(record: AttemptRecord) -> Result<Self, Unsuitable> {
        let reason = record.reason.unwrap_or_default();
        let result = match &*record.result {
            "connected" => Some(AttemptResult::Connected),
            "left" => Some(AttemptResult::Left),
            "failed" => ConnectError::of_word(&reason).map(AttemptResult::Failed),
            "abandoned" => CloseReason::of_word(&reason).map(AttemptResult::Abandoned),
            _ => None,
        };
        Ok(Self {
            backend: BackendName::of_record(record.backend),
            result: result.ok_or(Unsuitable::NotUnderstood)?,
            time: record.time,
            waited: record.waited,
        })
    }
}

pub(super) fn socket(state: &StreamState, undelivered: Option<Undelivered>) -> SocketRecord {
    SocketRecord {
        peer_end: word_of(&PEER_ENDS, state.peer_end),
        at_urgent_mark: state.at_urgent_mark,
        is_unwritable: state.is_unwritable,
        nodelay: word_of(&NODELAYS, state.nodelay),
        undelivered: undelivered.map(|u| (u.progress, u.since)),
    }
}

pub(super) fn connection(socket: OwnedFd, record: &SocketRecord) -> Result<Connection, Unsuitable> {
    Ok(Connection {
        socket,
        state: StreamState {
            peer_end: find(&PEER_ENDS, &record.peer_end)?,
            at_urgent_mark: record.at_urgent_mark,
            is_unwritable: record.is_unwritable,
            nodelay: find(&NODELAYS, &record.nodelay)?,
        },
    })
}

fn undelivered(record: &SocketRecord) -> Option<Undelivered> {
    let (progress, since) = record.undelivered?;
    Some(Undelivered { progress, since })
}

fn direction(state: &DirectionState) -> DirectionRecord {
    let (mode, count) = match state.mode {
        Mode::Copy { large } => ("copy", large),
        Mode::CopyOnly => ("copy_only", 0),
        Mode::Splice { full } => ("splice", full),
        Mode::SpliceSmall { small } => ("splice_small", small),
    };
    let (watch, watched) = match state.watch {
        Watch::Over => ("over", 0),
        Watch::Begun => ("begun", 0),
        Watch::V1(seen) => ("v1", seen),
        Watch::V2(seen) => ("v2", seen),
    };
    DirectionRecord {
        held: match &state.held {
            HeldState::Nothing => HeldRecord::Nothing,
            HeldState::Bytes(bytes) => HeldRecord::Bytes(bytes.clone()),
            HeldState::Piped(pipe) => HeldRecord::Pipe(pipe.len()),
            HeldState::First { header, payload } => HeldRecord::First {
                header: header.clone(),
                payload: payload.clone(),
            },
        },
        mode: mode.to_owned(),
        count,
        end: word_of(&SOURCE_ENDS, state.end),
        is_finished: state.finished,
        has_begun: state.has_begun,
        watch: watch.to_owned(),
        watched,
    }
}

/// `next`: the next descriptor of the session.
fn direction_of(
    record: DirectionRecord,
    next: &mut impl FnMut() -> Result<OwnedFd, Unsuitable>,
) -> Result<DirectionState, Unsuitable> {
    // What a mode counts is below 255, so that it can be counted on.
    let count = record.count.min(u8::MAX - 1);
    let watch = match &*record.watch {
        "over" => Some(Watch::Over),
        "begun" => Some(Watch::Begun),
        "v1" => Watch::within_v1(record.watched),
        "v2" => Watch::within_v2(record.watched),
        _ => None,
    };
    Ok(DirectionState {
        held: match record.held {
            HeldRecord::Nothing => HeldState::Nothing,
            HeldRecord::Bytes(bytes) => HeldState::Bytes(bytes),
            HeldRecord::Pipe(bytes) => {
                let pipe = Pipe::take_over(next()?, next()?, bytes);
                HeldState::Piped(pipe.map_err(|_| Unsuitable::NoConnection)?)
            }
            HeldRecord::First { header, payload } => HeldState::First { header, payload },
        },
        mode: match &*record.mode {
            "copy_only" => Mode::CopyOnly,
            "splice" => Mode::Splice { full: count },
            "splice_small" => Mode::SpliceSmall { small: count },
            // Also for a mode of a later version: it is found anew.
            _ => Mode::Copy { large: count },
        },
        end: find(&SOURCE_ENDS, &record.end)?,
        finished: record.is_finished,
        has_begun: record.has_begun,
        watch: watch.ok_or(Unsuitable::NotUnderstood)?,
    })
}

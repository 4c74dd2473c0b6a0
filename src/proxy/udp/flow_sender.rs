//! Sends the flows of this process to another one, over a channel. Blocking: for a thread of its
//! own.
//!
//! One listener on one worker at a time. While its flows are copied it goes on; it stands still
//! only from the order to freeze to the answer to the last batch. Until that answer nothing has
//! happened: the flows are here, and go on when they are taken back.

use super::{
    ListenerId,
    order::{FlowCopies, Order, SendStep},
};
use crate::{
    handover::{
        channel::{Channel, ChannelError},
        fields::Fields as _,
        flows::{FlowBatch, FlowsTaken},
        message::{Kind, MOST_DESCRIPTORS},
        record::Malformed,
    },
    runtime::mailbox::{Mailbox, Message},
};
use std::{
    fmt, io,
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

/// The flows of a process, as they are sent to another one.
pub struct FlowSender {
    workers: Vec<Arc<Mailbox<Order>>>,
    listeners: Vec<SentListener>,
    scope: Scope,
    /// For each answer of the other process.
    patience: Duration,
}

/// What the other process gets, in the version of the format that both speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Flows {
        version: u16,
    },
    /// Flows stay and carry replies, until they are silent.
    SocketsAlone {
        version: u16,
    },
}

impl Scope {
    fn format(self) -> (Kind, u16) {
        match self {
            Self::Flows { version } => (Kind::UdpFlows, version),
            Self::SocketsAlone { version } => (Kind::UdpGroup, version),
        }
    }
}

/// The addresses of a listener that the other process has sockets of.
#[derive(Debug, Clone)]
pub struct SentListener {
    pub id: ListenerId,
    pub addresses: Arc<[SocketAddr]>,
}

/// What came of it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct FlowsSent {
    pub flows: u64,
    /// They stay here, for replies only.
    pub refused: u64,
    /// For how long the flows of a listener on a worker stood still, at most.
    pub longest_pause: Duration,
}

/// Why flows were not sent or received.
#[derive(Debug)]
pub enum HandOverError {
    Channel(ChannelError),
    Malformed(Malformed),
    /// A message of this kind is not the answer.
    Unexpected(Kind),
    /// The number of descriptors is not what the message says.
    Descriptors,
    /// A worker of this process has not answered.
    Worker,
    /// A socket could not be copied.
    Copy(io::Error),
}

impl FlowSender {
    pub fn new(
        workers: Vec<Arc<Mailbox<Order>>>,
        listeners: Vec<SentListener>,
        scope: Scope,
        patience: Duration,
    ) -> Self {
        Self {
            workers,
            listeners,
            scope,
            patience,
        }
    }

    /// Sends all flows. After an error all are taken back that the other process does not have:
    /// this process receives again, unless that was all done.
    pub fn send_flows(&self, channel: &mut Channel) -> Result<FlowsSent, HandOverError> {
        let mut given = FlowsSent::default();
        let result = self.send_all(channel, &mut given);
        if result.is_err() {
            self.take_back();
        }
        result.map(|()| given)
    }

    /// Receives at all addresses again: the other process has ended. The flows that it has taken
    /// have ended with it.
    pub fn take_back(&self) {
        for listener in &self.listeners {
            for worker in &self.workers {
                worker.send(Message::Order(Order::SendFlows(
                    listener.id,
                    SendStep::TakeBack,
                )));
            }
        }
    }

    fn send_all(&self, channel: &mut Channel, given: &mut FlowsSent) -> Result<(), HandOverError> {
        for listener in &self.listeners {
            for worker in &self.workers {
                match self.scope {
                    Scope::Flows { .. } => self.send_slice(channel, listener, worker, given)?,
                    Scope::SocketsAlone { .. } => {
                        self.send_sockets(channel, listener, worker, given)?
                    }
                }
            }
        }
        if matches!(self.scope, Scope::SocketsAlone { .. }) {
            return Ok(());
        }
        for listener in &self.listeners {
            for worker in &self.workers {
                self.send_late(channel, listener, worker)?;
            }
        }
        Ok(())
    }

    /// The flows of one listener on one worker.
    fn send_slice(
        &self,
        channel: &mut Channel,
        listener: &SentListener,
        worker: &Mailbox<Order>,
        given: &mut FlowsSent,
    ) -> Result<(), HandOverError> {
        let mut refused = Vec::new();
        loop {
            let copy = self.ask(worker, listener.id, |answer| SendStep::Copy {
                addresses: Arc::clone(&listener.addresses),
                most: MOST_DESCRIPTORS,
                answer,
            })?;
            let has_more = copy.has_more;
            given.flows += copy.batch.flows.len() as u64;
            if !copy.batch.flows.is_empty() {
                refused.extend(self.send(channel, &copy.batch, &copy.sockets)?);
            }
            if !has_more {
                break;
            }
        }
        let frozen_at = Instant::now();
        let rest = self.freeze(worker, listener)?;
        given.flows += rest.batch.flows.len() as u64;
        if !rest.batch.is_empty() {
            refused.extend(self.send_rest(channel, rest)?);
        }
        given.longest_pause = given.longest_pause.max(frozen_at.elapsed());
        given.refused += refused.len() as u64;
        let release = SendStep::Release { refused };
        worker.send(Message::Order(Order::SendFlows(listener.id, release)));
        Ok(())
    }

    /// The listening sockets of one listener on one worker.
    fn send_sockets(
        &self,
        channel: &mut Channel,
        listener: &SentListener,
        worker: &Mailbox<Order>,
        given: &mut FlowsSent,
    ) -> Result<(), HandOverError> {
        let frozen = self.freeze(worker, listener)?;
        let FlowBatch {
            flows,
            peers,
            begin,
            ..
        } = frozen.batch;
        let sockets = FlowBatch {
            peers,
            begin,
            ..FlowBatch::default()
        };
        if !sockets.is_empty() {
            self.send(channel, &sockets, &[])?;
        }
        given.refused += flows.len() as u64;
        let refused = flows.iter().map(|flow| flow.id).collect();
        let release = SendStep::Release { refused };
        worker.send(Message::Order(Order::SendFlows(listener.id, release)));
        Ok(())
    }

    /// With the last message the other process begins to receive.
    fn send_rest(
        &self,
        channel: &mut Channel,
        rest: FlowCopies,
    ) -> Result<Vec<u64>, HandOverError> {
        let FlowCopies {
            mut batch, sockets, ..
        } = rest;
        let mut refused = Vec::new();
        let mut sockets = &sockets[..];
        while batch.flows.len() > MOST_DESCRIPTORS {
            let later = batch.flows.split_off(MOST_DESCRIPTORS);
            let part = FlowBatch {
                flows: std::mem::replace(&mut batch.flows, later),
                ..FlowBatch::default()
            };
            let (now, left) = sockets.split_at(MOST_DESCRIPTORS);
            refused.extend(self.send(channel, &part, now)?);
            sockets = left;
        }
        refused.extend(self.send(channel, &batch, sockets)?);
        Ok(refused)
    }

    /// The sockets that wait for late replies: without them in the other process, a port could be
    /// used again too early.
    fn send_late(
        &self,
        channel: &mut Channel,
        listener: &SentListener,
        worker: &Mailbox<Order>,
    ) -> Result<(), HandOverError> {
        let late = self.ask(worker, listener.id, |answer| SendStep::CopyLate {
            most: MOST_LATE,
            answer,
        })?;
        let mut entries = late.batch.late.chunks(MOST_DESCRIPTORS);
        for sockets in late.sockets.chunks(MOST_DESCRIPTORS) {
            let batch = FlowBatch {
                late: entries.next().unwrap_or_default().to_vec(),
                ..FlowBatch::default()
            };
            self.send(channel, &batch, sockets)?;
        }
        Ok(())
    }

    /// Returns the sessions of flows that the other process does not take.
    fn send(
        &self,
        channel: &mut Channel,
        batch: &FlowBatch,
        sockets: &[OwnedFd],
    ) -> Result<Vec<u64>, HandOverError> {
        let descriptors: Vec<_> = sockets.iter().map(|socket| socket.as_fd()).collect();
        let deadline = Instant::now() + self.patience;
        let (kind, version) = self.scope.format();
        channel.send(kind, version, &batch.write(), &descriptors, deadline)?;
        let answer = channel.receive(deadline)?;
        match answer.kind {
            Kind::UdpTaken => Ok(FlowsTaken::read(&answer.body)?.refused),
            kind => Err(HandOverError::Unexpected(kind)),
        }
    }

    fn freeze(
        &self,
        worker: &Mailbox<Order>,
        listener: &SentListener,
    ) -> Result<FlowCopies, HandOverError> {
        self.ask(worker, listener.id, |answer| SendStep::Freeze {
            addresses: Arc::clone(&listener.addresses),
            answer,
        })
    }

    fn ask(
        &self,
        worker: &Mailbox<Order>,
        listener: ListenerId,
        step: impl FnOnce(mpsc::Sender<io::Result<FlowCopies>>) -> SendStep,
    ) -> Result<FlowCopies, HandOverError> {
        let (answer, answered) = mpsc::channel();
        worker.send(Message::Order(Order::SendFlows(listener, step(answer))));
        let given = answered.recv_timeout(WORKER_PATIENCE);
        given
            .map_err(|_| HandOverError::Worker)?
            .map_err(HandOverError::Copy)
    }
}

/// For a worker of this process.
pub(super) const WORKER_PATIENCE: Duration = Duration::from_secs(5);
/// Sockets that wait for late replies, of one listener on one worker: each takes a descriptor while
/// it is sent.
const MOST_LATE: usize = 1_000;

impl From<ChannelError> for HandOverError {
    fn from(error: ChannelError) -> Self {
        Self::Channel(error)
    }
}

impl From<Malformed> for HandOverError {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error)
    }
}

impl fmt::Display for HandOverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Channel(error) => write!(f, "{error}"),
            Self::Malformed(error) => write!(f, "a message about flows {error}"),
            Self::Unexpected(kind) => write!(f, "a message {kind} was not expected"),
            Self::Descriptors => {
                f.write_str("a message about flows has not as many descriptors as flows")
            }
            Self::Worker => f.write_str("a worker has not answered in time"),
            Self::Copy(error) => write!(f, "cannot copy the socket of a flow: {error}"),
        }
    }
}

impl std::error::Error for HandOverError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Channel(error) => Some(error),
            Self::Malformed(error) => Some(error),
            Self::Copy(error) => Some(error),
            Self::Unexpected(_) | Self::Descriptors | Self::Worker => None,
        }
    }
}

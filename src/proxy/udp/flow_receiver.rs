//! Takes flows over from another process: a batch goes in parts to the workers that have the
//! sockets which its flows come to. Blocking, but for no longer than the workers take.

use super::{
    ListenerId,
    flow_sender::{HandOverError, WORKER_PATIENCE},
    order::{Order, ReceivedFlows, SendStep},
    port::worker_of,
};
use crate::{
    handover::{
        fields::Fields as _,
        flows::{FlowBatch, FlowsTaken, SocketKey},
        message::{Kind, Message},
    },
    runtime::mailbox::{self, Mailbox},
};
use ahash::AHashMap;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, mpsc},
    time::Instant,
};

/// The workers and listeners of a process that takes flows over.
pub struct FlowReceiver {
    workers: Vec<Arc<Mailbox<Order>>>,
    by_address: AHashMap<SocketAddr, ListenerId>,
    by_name: AHashMap<String, ListenerId>,
    /// Which worker and listener have the flow of a session.
    placed: AHashMap<u64, Place>,
}

/// A listener on a worker.
type Place = (usize, ListenerId);

impl FlowReceiver {
    /// `listeners`: all of the process, with their names and addresses.
    pub fn new(
        workers: Vec<Arc<Mailbox<Order>>>,
        listeners: impl IntoIterator<Item = (String, ListenerId, Vec<SocketAddr>)>,
    ) -> Self {
        let (mut by_address, mut by_name) = (AHashMap::new(), AHashMap::new());
        for (name, id, addresses) in listeners {
            by_address.extend(addresses.into_iter().map(|address| (address, id)));
            by_name.insert(name, id);
        }
        Self {
            workers,
            by_address,
            by_name,
            placed: AHashMap::new(),
        }
    }

    /// Takes what a message of [`Kind::UdpFlows`] or [`Kind::UdpGroup`] has, and returns the body
    /// of the answer, which is [`Kind::UdpTaken`].
    pub fn receive(&mut self, mut message: Message) -> Result<Vec<u8>, HandOverError> {
        if !matches!(message.kind, Kind::UdpFlows | Kind::UdpGroup) {
            return Err(HandOverError::Unexpected(message.kind));
        }
        let mut batch = FlowBatch::read(&message.body)?;
        let mut refused = Vec::new();
        if message.is_short {
            // This process may open no more: these flows stay in the other one.
            let flows = std::mem::take(&mut batch.flows);
            tracing::warn!(
                flows = flows.len(),
                "descriptors of flows were lost on the way"
            );
            refused.extend(flows.into_iter().map(|flow| flow.id));
            batch.late.clear();
            message.descriptors.clear();
        }
        if batch.descriptors() != message.descriptors.len() {
            return Err(HandOverError::Descriptors);
        }
        let (answer, answered) = mpsc::channel();
        let parts = self.divide(batch, message, &answer, &mut refused);
        drop(answer);
        let count = parts.len();
        for ((worker, listener), part) in parts {
            let order = Order::ReceiveFlows(listener, Box::new(part));
            self.workers[worker].send(mailbox::Message::Order(order));
        }
        let deadline = Instant::now() + WORKER_PATIENCE;
        for _ in 0..count {
            let left = deadline.saturating_duration_since(Instant::now());
            let more = answered.recv_timeout(left);
            refused.extend(more.map_err(|_| HandOverError::Worker)?);
        }
        Ok(FlowsTaken { refused }.write())
    }

    /// Receives wherever the other process has not said so: it has ended, or has no more to say.
    pub fn begin_rest(&self) {
        for id in self.by_name.values() {
            for worker in &self.workers {
                let order = Order::SendFlows(*id, SendStep::TakeBack);
                worker.send(mailbox::Message::Order(order));
            }
        }
    }

    fn divide(
        &mut self,
        batch: FlowBatch,
        message: Message,
        answer: &mpsc::Sender<Vec<u64>>,
        refused: &mut Vec<u64>,
    ) -> BTreeMap<Place, ReceivedFlows> {
        let mut parts: BTreeMap<Place, ReceivedFlows> = BTreeMap::new();
        let mut descriptors = message.descriptors.into_iter();
        for (flow, socket) in batch.flows.into_iter().zip(descriptors.by_ref()) {
            match self.place_of(flow.socket) {
                Some(place) => {
                    self.placed.insert(flow.id, place);
                    part_of(&mut parts, place, answer)
                        .flows
                        .push((flow, socket));
                }
                None => refused.push(flow.id),
            }
        }
        for change in batch.changes {
            if let Some(place) = self.placed.get(&change.id) {
                part_of(&mut parts, *place, answer).changes.push(change);
            }
        }
        for id in batch.ended {
            if let Some(place) = self.placed.remove(&id) {
                part_of(&mut parts, place, answer).ended.push(id);
            }
        }
        for peer in batch.peers {
            if let Some(place) = self.place_of(peer.socket) {
                part_of(&mut parts, place, answer).peers.push(peer);
            }
        }
        for begin in batch.begin {
            if let Some(place) = self.place_of(begin.socket) {
                part_of(&mut parts, place, answer).begin.push(begin);
            }
        }
        for (late, socket) in batch.late.into_iter().zip(descriptors) {
            // Any worker can wait.
            if let Some(listener) = self.by_name.get(&late.listener) {
                let part = part_of(&mut parts, (0, *listener), answer);
                part.late.push((late, socket));
            }
        }
        parts
    }

    fn place_of(&self, socket: SocketKey) -> Option<Place> {
        let listener = self.by_address.get(&socket.address)?;
        Some((worker_of(socket.index, self.workers.len()), *listener))
    }
}

fn part_of<'a>(
    parts: &'a mut BTreeMap<Place, ReceivedFlows>,
    place: Place,
    answer: &mpsc::Sender<Vec<u64>>,
) -> &'a mut ReceivedFlows {
    parts
        .entry(place)
        .or_insert_with(|| ReceivedFlows::new(answer.clone()))
}

//! The engine of a worker that carries datagrams: hands events and orders to its listeners.

use super::{
    ListenerId,
    context::Context,
    listener::{Listener, copy_late, send_back},
    order::{FlowCopies, Order, PortCopy, ReceivedFlows, SendStep},
    token::Token,
};
use crate::{
    runtime::{
        reactor::{self, Engine, Reactor, Wait},
        worker,
    },
    session::sockets::FlowSockets,
};
use rustix::event::epoll::EventFlags;
use slab::Slab;
use std::{
    io,
    sync::{Arc, mpsc},
    time::Instant,
};

/// How often the kernel is asked what it dropped, while there is traffic, in milliseconds.
const DROP_COUNT_INTERVAL: u64 = 1_000;

pub type Worker = worker::Worker<Order>;

/// `shard`: of the counters. `began`: the same for all workers, whose milliseconds are compared.
pub fn spawn_worker(
    index: usize,
    shard: usize,
    sockets: &Arc<FlowSockets>,
    began: Instant,
) -> io::Result<Worker> {
    let sockets = Arc::clone(sockets);
    Worker::spawn(
        format!("udp-{index}"),
        shard,
        began,
        move |reactor, mailbox| {
            let mut engine = UdpEngine {
                context: Context::new(reactor, Arc::clone(&mailbox), sockets),
                listeners: Slab::new(),
                drops_counted: 0,
                due: None,
            };
            reactor::run(&mut engine, &mailbox);
        },
    )
}

struct UdpEngine {
    context: Context,
    /// By their index.
    listeners: Slab<Listener>,
    /// When drops were last counted.
    drops_counted: u64,
    /// When something is to be done without an event, in milliseconds of the reactor's clock.
    due: Option<u64>,
}

impl Engine for UdpEngine {
    type Order = Order;

    fn reactor(&self) -> &Reactor {
        &self.context.reactor
    }

    fn wait(&self) -> Wait {
        self.due.map_or(Wait::ForEvents, Wait::Until)
    }

    fn begin_turn(&mut self) {
        self.context.begin_turn();
    }

    fn handle_event(&mut self, token: u64, flags: EventFlags) {
        match Token::of(token) {
            Token::Port { listener, port } => {
                if let Some(listener) = self.listeners.get_mut(listener) {
                    listener.receive_if_open(&mut self.context, port);
                }
            }
            Token::Flow {
                listener,
                serial,
                number,
            } => {
                if self.context.filled == self.context.back.slots() {
                    self.send_back();
                }
                if let Some(listener) = self.listeners.get_mut(listener) {
                    if flags.contains(EventFlags::ERR) {
                        listener.take_reports_of(serial, number);
                    }
                    listener.reply(&mut self.context, serial, number);
                }
            }
            Token::Waiting { .. } => {}
        }
    }

    fn wake(&mut self, token: u64) {
        match Token::of(token) {
            Token::Port { .. } => {}
            Token::Flow {
                listener,
                serial,
                number,
            } => {
                if let Some(listener) = self.listeners.get_mut(listener) {
                    listener.check_termination(&mut self.context, serial, number);
                }
            }
            Token::Waiting {
                listener,
                serial,
                number,
            } => {
                if let Some(listener) = self.listeners.get_mut(listener) {
                    listener.advance_woken(&mut self.context, serial, number);
                }
            }
        }
    }

    fn execute(&mut self, order: Order) {
        match order {
            Order::Listen(binding) => {
                let name = binding.service.plan.name.clone();
                let intake = Arc::clone(&binding.service.intake);
                let entry = self.listeners.vacant_entry();
                match Listener::new(*binding, entry.key(), &self.context) {
                    Ok(listener) => {
                        entry.insert(listener);
                    }
                    Err(error) => {
                        tracing::error!(listener = %name, %error, "cannot receive datagrams");
                        intake.note_lost_socket();
                    }
                }
            }
            Order::Update(update) => {
                let mut listeners = self.listeners.iter_mut().map(|(_, listener)| listener);
                if let Some(listener) = listeners.find(|l| l.id() == update.id) {
                    listener.update(&mut self.context, *update);
                }
            }
            Order::SetOwnAddresses(own) => {
                for (_, listener) in &mut self.listeners {
                    listener.own = Arc::clone(&own);
                }
            }
            Order::CopySockets(copies) => self.copy_sockets(&copies),
            Order::Confirm(token) => drop(token),
            Order::Drain => {
                for (_, listener) in &mut self.listeners {
                    listener.drain(&mut self.context);
                }
            }
            Order::Evict(listener) => {
                if let Some(listener) = self.listeners.get_mut(listener) {
                    listener.evict_for_another_worker(&mut self.context);
                }
            }
            Order::SendFlows(id, step) => self.send_flows(id, step),
            Order::ReceiveFlows(id, flows) => self.receive_flows(id, *flows),
        }
    }

    fn end_turn(&mut self, _has_all_events: bool) {
        self.send_back();
        let ms = self.context.ms;
        let counts_drops = ms >= self.drops_counted + DROP_COUNT_INTERVAL;
        if counts_drops {
            self.drops_counted = ms;
        }
        let next_count = self.drops_counted + DROP_COUNT_INTERVAL;
        self.due = None;
        for (_, listener) in &mut self.listeners {
            let mut next = listener.next_expiry();
            if next.is_some_and(|next| next <= ms) {
                listener.expire(&mut self.context);
                next = listener.next_expiry();
            }
            if counts_drops {
                listener.count_kernel_drops();
            }
            let is_closing = listener.is_closing();
            if is_closing {
                listener.close_unused_ports(&self.context);
            }
            listener.release_when_empty();
            // Flows of an address that is to be closed may end on another worker.
            let looks = (listener.has_received || is_closing).then_some(next_count);
            self.due = earlier(self.due, earlier(next, looks));
        }
        self.listeners.retain(|_, listener| listener.is_open());
        self.context.discard_late();
        let late = self.context.late.front().map(|late| late.until);
        self.due = earlier(self.due, late);
    }

    fn abandon_turn(&mut self) {
        self.context.abandon_turn();
        // What was due may not have been done.
        self.due = Some(self.context.ms);
    }
}

impl UdpEngine {
    fn send_flows(&mut self, id: ListenerId, step: SendStep) {
        // Replies that have come belong in front of those that the other process will send.
        self.send_back();
        let mut listeners = self.listeners.iter_mut().map(|(_, listener)| listener);
        let listener = listeners.find(|listener| listener.id() == id);
        let context = &mut self.context;
        // An answer that is not awaited any more is dropped: an order to take back follows.
        match (step, listener) {
            (
                SendStep::Copy { answer, .. }
                | SendStep::Freeze { answer, .. }
                | SendStep::CopyLate { answer, .. },
                None,
            ) => drop(answer.send(Ok(FlowCopies::default()))),
            (SendStep::Release { .. } | SendStep::TakeBack, None) => {}
            (
                SendStep::Copy {
                    addresses,
                    most,
                    answer,
                },
                Some(listener),
            ) => drop(answer.send(listener.copy_flows(context, &addresses, most))),
            (SendStep::Freeze { addresses, answer }, Some(listener)) => {
                drop(answer.send(listener.freeze(context, &addresses)));
            }
            (SendStep::Release { refused }, Some(listener)) => listener.release(context, &refused),
            (SendStep::CopyLate { most, answer }, Some(listener)) => {
                drop(answer.send(copy_late(context, listener.name(), most)));
            }
            (SendStep::TakeBack, Some(listener)) => listener.take_back(context),
        }
    }

    fn receive_flows(&mut self, id: ListenerId, flows: ReceivedFlows) {
        let answer = flows.answer.clone();
        let mut listeners = self.listeners.iter_mut().map(|(_, listener)| listener);
        let refused = match listeners.find(|listener| listener.id() == id) {
            Some(listener) => listener.receive_flows(&mut self.context, flows),
            None => flows.flows.iter().map(|(flow, _)| flow.id).collect(),
        };
        let _ = answer.send(refused);
    }
}

fn earlier(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

impl UdpEngine {
    fn copy_sockets(&self, copies: &mpsc::Sender<PortCopy>) {
        for (_, listener) in &self.listeners {
            for (index, address, socket) in listener.copy_sockets() {
                // The receiver may have given up.
                let _ = copies.send(PortCopy {
                    listener: listener.id(),
                    address,
                    index,
                    socket,
                });
            }
        }
    }

    /// Sends to the clients what has come from backends.
    fn send_back(&mut self) {
        let mut replies = std::mem::take(&mut self.context.replies);
        for same in replies.chunk_by(|a, b| (a.listener, a.port) == (b.listener, b.port)) {
            if let Some(listener) = self.listeners.get_mut(same[0].listener) {
                send_back(listener, &mut self.context, same);
            }
        }
        replies.clear();
        self.context.replies = replies;
        self.context.filled = 0;
    }
}

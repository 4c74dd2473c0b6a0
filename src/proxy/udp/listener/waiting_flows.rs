//! Flows that wait before they begin: until a limited rate allows them, and for a
//! backend. The datagram that began a flow is kept; those that follow meanwhile are dropped.

use super::{
    super::{batch::Piece, port::PortUse, table::Key, token::Token},
    Listener, NotBegun, drop_reason,
};
use crate::{
    plan::reason::{CloseReason, DropReason},
    proxy::udp::context::{Context, Unit},
    runtime::mailbox::Message,
    session::{
        admission::Permits,
        rate::Delay,
        retry::Waited,
        sockets::SocketPermit,
        summary::{Attempt, Unserved},
    },
    upstream::{
        backend::Lease,
        pool::{Search, Served, WaitProgress, WaitingSession},
    },
};
use ahash::AHashMap;
use slab::Slab;
use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

/// As many as tokens can number.
const MOST: usize = u16::MAX as usize;

/// The flows of a listener on one worker that wait.
#[derive(Default)]
pub(super) struct WaitingFlows {
    flows: Slab<WaitingFlow>,
    numbers: AHashMap<Key, u16>,
    /// When they are looked at, in milliseconds.
    due: BTreeSet<(u64, u16)>,
}

/// A flow that is admitted, and has no backend yet.
pub(super) struct AdmittedFlow {
    pub(super) key: Key,
    pub(super) port: PortUse,
    pub(super) permits: Permits,
    pub(super) socket: SocketPermit,
    /// For the backend.
    pub(super) header: Option<Box<[u8]>>,
    pub(super) attempts: Vec<Attempt>,
}

/// What is known of the backend for a flow that begins.
pub(super) enum Candidate {
    Unknown,
    Picked(Lease, Search),
    /// The flow has waited for it.
    Served(Box<Served>),
}

struct WaitingFlow {
    beginning: AdmittedFlow,
    serial: u32,
    waits_for: WaitsFor,
    since: Instant,
    due: u64,
    datagram: Box<[u8]>,
}

pub(super) enum WaitsFor {
    Rate(Delay),
    Backend(WaitingSession),
}

/// What becomes of a flow that waited.
enum Next {
    WaitUntil(Instant),
    /// Its turn has come.
    FindBackend,
    Serve(Box<Served>),
    End(Unserved),
}

impl WaitingFlows {
    pub(super) fn has(&self, key: &Key) -> bool {
        !self.numbers.is_empty() && self.numbers.contains_key(key)
    }

    pub(super) fn has_space(&self) -> bool {
        self.flows.len() < MOST
    }

    pub(super) fn next_due(&self) -> Option<u64> {
        self.due.first().map(|(due, _)| *due)
    }

    fn set_due(&mut self, number: u16, due: u64) {
        if let Some(flow) = self.flows.get_mut(usize::from(number)) {
            self.due.remove(&(flow.due, number));
            flow.due = due;
            self.due.insert((due, number));
        }
    }

    fn remove(&mut self, number: u16) -> Option<WaitingFlow> {
        let flow = self.flows.try_remove(usize::from(number))?;
        self.due.remove(&(flow.due, number));
        self.numbers.remove(&flow.beginning.key);
        Some(flow)
    }
}

impl WaitingFlow {
    fn next(&mut self, context: &Context, token: u64) -> Next {
        let now = Instant::now();
        if let Some(reason) = self.beginning.permits.session().must_end() {
            return Next::End(self.ended(reason, now));
        }
        let waiting = match &mut self.waits_for {
            WaitsFor::Rate(delay) if now < delay.until => return Next::WaitUntil(delay.until),
            WaitsFor::Rate(_) => return Next::FindBackend,
            WaitsFor::Backend(waiting) => waiting,
        };
        match waiting.poll(&context.mailbox.waker(token), now) {
            WaitProgress::Pending(lacks, until) => {
                self.beginning.permits.session().set_waiting(Some(lacks));
                Next::WaitUntil(until)
            }
            WaitProgress::Served(served) => {
                self.beginning.permits.session().set_waiting(None);
                Next::Serve(served)
            }
            WaitProgress::Ended {
                lacks,
                has_limit,
                waited,
            } => {
                let reason = Waited::reason_after(lacks, has_limit);
                Next::End(unserved(reason, waited))
            }
        }
    }

    fn ended(&self, reason: CloseReason, now: Instant) -> Unserved {
        let waited = match self.waits_for {
            WaitsFor::Rate(_) => Duration::ZERO,
            WaitsFor::Backend(_) => now.saturating_duration_since(self.since),
        };
        unserved(reason, waited)
    }
}

fn unserved(reason: CloseReason, waited: Duration) -> Unserved {
    Unserved {
        reason,
        error: None,
        waited,
    }
}

impl Listener {
    /// Enters a flow among those that wait. The caller keeps its datagram there.
    pub(super) fn enter_waiting(
        &mut self,
        context: &mut Context,
        beginning: AdmittedFlow,
        waits_for: WaitsFor,
    ) -> NotBegun {
        let serial = context.next_serial();
        let number = self.waiting.flows.vacant_key() as u16;
        let token = Token::waiting(self.index, serial, number);
        let session = beginning.permits.session();
        session.wake_by(&context.mailbox.waker(token));
        session.set_active(context.ms);
        self.waiting.numbers.insert(beginning.key.clone(), number);
        self.waiting.flows.insert(WaitingFlow {
            beginning,
            serial,
            waits_for,
            since: context.now,
            due: context.ms,
            datagram: Box::default(),
        });
        self.waiting.due.insert((context.ms, number));
        // It is looked at in the next turn: it may have been served, or terminated, by then.
        context.mailbox.send(Message::Wake(token));
        NotBegun::Waits(number)
    }

    /// Keeps the first datagram of a flow that has just begun to wait.
    pub(super) fn keep(&mut self, context: &Context, number: u16, unit: Unit) {
        let mut datagrams = unit.singles();
        if let Some(first) = datagrams.next()
            && let Some(flow) = self.waiting.flows.get_mut(usize::from(number))
        {
            flow.datagram = first.bytes(&context.receive_buffers).into();
        }
        let pieces: Vec<Piece> = datagrams.map(|unit| unit.piece).collect();
        self.count_dropped(DropReason::Waiting, pieces);
    }

    /// The waker of a flow that waits was called.
    pub(in crate::proxy::udp) fn advance_woken(
        &mut self,
        context: &mut Context,
        serial: u32,
        number: u16,
    ) {
        let flow = self.waiting.flows.get(usize::from(number));
        if flow.is_some_and(|flow| flow.serial == serial) {
            self.advance(context, number);
        }
    }

    /// Looks at the flows whose time has come.
    pub(super) fn advance_due(&mut self, context: &mut Context) {
        while let Some(&(due, number)) = self.waiting.due.first()
            && due <= context.ms
        {
            self.advance(context, number);
        }
    }

    fn advance(&mut self, context: &mut Context, number: u16) {
        let Some(flow) = self.waiting.flows.get_mut(usize::from(number)) else {
            return;
        };
        let token = Token::waiting(self.index, flow.serial, number);
        let next = flow.next(context, token);
        if let Next::WaitUntil(until) = next {
            let due = context.reactor.clock().millis_at(until);
            return self.waiting.set_due(number, due.max(context.ms + 1));
        }
        let Some(flow) = self.waiting.remove(number) else {
            return;
        };
        match next {
            Next::WaitUntil(_) => {}
            Next::FindBackend => self.leave_wait(context, flow, Candidate::Unknown),
            Next::Serve(served) => self.leave_wait(context, flow, Candidate::Served(served)),
            Next::End(unserved) => self.end_waiting(context, flow, unserved),
        }
    }

    /// The wait of a flow is over: it begins, unless it has to wait for something else now.
    fn leave_wait(&mut self, context: &mut Context, waited: WaitingFlow, candidate: Candidate) {
        let WaitingFlow {
            beginning,
            datagram,
            ..
        } = waited;
        // The one that it follows, if it is the next of a client.
        let before = self.find(&beginning.key);
        let piece = Piece {
            len: datagram.len(),
            segment: 0,
        };
        match self.find_backend(context, beginning, candidate) {
            Ok(number) => {
                if let Some(before) = before
                    && let Some(flow) = self.flows.get(before as usize)
                    && flow.retired.is_none()
                {
                    let serial = flow.serial;
                    self.retire(context, serial, before, CloseReason::Ok);
                }
                context.receive_buffers.put(0, &datagram);
                let whole = Unit {
                    slot: 0,
                    from: 0,
                    piece,
                };
                self.take_unit(context, number, whole);
                self.deliver_all(context);
            }
            Err(NotBegun::Waits(number)) => {
                if let Some(flow) = self.waiting.flows.get_mut(usize::from(number)) {
                    flow.datagram = datagram;
                }
            }
            Err(NotBegun::Dropped(reason)) => self.count_dropped(reason, [piece]),
        }
    }

    fn end_waiting(&mut self, context: &Context, flow: WaitingFlow, unserved: Unserved) {
        let beginning = flow.beginning;
        let session = Arc::clone(beginning.permits.session());
        self.finish_unserved(context, &session, unserved, &beginning.attempts);
        self.count_dropped(
            drop_reason(unserved),
            [Piece {
                len: flow.datagram.len(),
                segment: 0,
            }],
        );
    }

    /// No flow waits any more: the process stops, or another one goes on.
    pub(super) fn end_all_waiting(&mut self, context: &Context) {
        let numbers: Vec<u16> = self.waiting.numbers.values().copied().collect();
        for number in numbers {
            if let Some(flow) = self.waiting.remove(number) {
                let unserved = flow.ended(CloseReason::Drained, context.now);
                self.end_waiting(context, flow, unserved);
            }
        }
    }
}

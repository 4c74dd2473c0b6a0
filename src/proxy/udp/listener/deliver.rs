//! Sending the datagrams of clients to the backends.

use super::{
    super::{batch, flow::Flow},
    Listener,
    failures::AfterError,
};
use crate::{
    plan::{
        ProxyOn,
        reason::{CloseReason, DropReason},
    },
    proxy::udp::context::{Context, Taken, Unit, drop_reason, is_about_splitting},
    sys::datagram::{BATCH, Message},
};
use smallvec::SmallVec;
use std::{
    io::{self, IoSlice},
    os::fd::AsFd,
    sync::atomic::Ordering::Relaxed,
};

impl Listener {
    /// Sends all datagrams that were assigned to flows.
    pub(super) fn deliver_all(&mut self, context: &mut Context) {
        let mut units = std::mem::take(&mut context.units);
        // Stable: what belongs to one flow keeps its order, and flows keep the order in which they
        // began, since several may be of one client.
        if !units.is_sorted_by_key(|taken| taken.serial) {
            units.sort_by_key(|taken| taken.serial);
        }
        for same in units.chunk_by(|a, b| (a.number, a.serial) == (b.number, b.serial)) {
            self.deliver(context, same);
        }
        units.clear();
        context.units = units;
    }

    /// Sends datagrams of one flow, or of another that it moves to.
    fn deliver(&mut self, context: &mut Context, taken: &[Taken]) {
        let Taken {
            mut number, serial, ..
        } = taken[0];
        let mut remaining: Units = taken.iter().map(|taken| taken.unit).collect();
        let Some(flow) = self.flow(serial, number) else {
            return self.drop_all(&remaining);
        };
        let each = flow.service().send_proxy_on == ProxyOn::Each;
        let mut tries = 0;
        while !remaining.is_empty() {
            let Some(flow) = self.flows.get_mut(number as usize) else {
                return self.drop_all(&remaining);
            };
            if !flow.splits_to_backend && remaining.iter().any(|unit| unit.piece.segment > 0) {
                remaining = remaining.iter().flat_map(|unit| unit.singles()).collect();
            }
            let sent = send(flow, context, &remaining, each);
            flow.note_sent(&sent);
            remaining.drain(..sent.units);
            let Some((error, segment)) = sent.error else {
                // An error that persists comes again at the next try. One of an earlier datagram is
                // returned only once; if more were sent after that, they bring another.
                continue;
            };
            if segment > 0 && is_about_splitting(&error) {
                flow.splits_to_backend = false;
                continue;
            }
            tries += 1;
            let may_retry = tries <= self.service.plan.retries.saturating_add(1);
            match self.send_failed(number, &error) {
                AfterError::SendAgain if may_retry => {}
                AfterError::TryAnother { again_here } => {
                    let next = may_retry
                        .then(|| self.after_failure(context, number, again_here, &remaining));
                    match next.flatten() {
                        Some(next) => number = next,
                        None => return self.drop_all(&remaining),
                    }
                }
                AfterError::SendAgain | AfterError::Drop => {
                    self.drop_failed(&mut remaining, &error);
                }
            }
        }
    }

    fn drop_all(&self, units: &Units) {
        self.count_dropped(DropReason::NoBackend, units.iter().map(|unit| unit.piece));
    }

    /// Drops the datagram that the kernel did not take, or all of them if it takes no more now.
    fn drop_failed(&self, units: &mut Units, error: &io::Error) {
        let reason = drop_reason(error);
        let count = match reason {
            DropReason::SendBuffer => units.len(),
            DropReason::Rejected
            | DropReason::NoBackend
            | DropReason::BackendsFull
            | DropReason::Waiting
            | DropReason::Bandwidth
            | DropReason::ReceiveBuffer
            | DropReason::Truncated
            | DropReason::TooLarge
            | DropReason::SendFailed
            | DropReason::OwnAddress
            | DropReason::Late => 1,
        };
        let pieces = units.drain(..count).map(|unit| unit.piece);
        self.count_dropped_by(reason, Some(error), pieces);
    }

    /// The flow for datagrams whose backend could not be reached. `None`: there is no other
    /// backend, and this one would fail again.
    fn after_failure(
        &mut self,
        context: &mut Context,
        number: u32,
        again_here: bool,
        units: &[Unit],
    ) -> Option<u32> {
        if self.udp.per_packet {
            // The pick was for these datagrams alone.
            let another = self.another_flow_for_datagram(context, number);
            return another.or(again_here.then_some(number));
        }
        let flow = self.flows.get_mut(number as usize)?;
        let may_move = flow.service().pool.moves_if_unreachable();
        let serial = flow.serial;
        if !may_move || flow.retired.is_some() {
            return again_here.then_some(number);
        }
        flow.is_unreachable = false;
        let next = self.move_flow(context, number, CloseReason::BackendRefused);
        let next = next.ok()?;
        let flow = self.flows.get_mut(next as usize)?;
        if flow.serial == serial {
            return again_here.then_some(next);
        }
        let datagrams: usize = units.iter().map(|u| u.piece.datagrams()).sum();
        flow.count_taken(datagrams);
        Some(next)
    }
}

type Units = SmallVec<[Unit; 8]>;

impl Flow {
    fn note_sent(&mut self, sent: &Sent) {
        self.sent = self.sent.saturating_add(sent.datagrams as u32);
        let counts = self.lease.backend().metrics.counts.mine();
        counts.sent.add(sent.bytes);
        let received = &self.permits.session().received;
        received.fetch_add(sent.bytes, Relaxed);
        if let Some(extras) = &mut self.extras {
            extras.datagrams[0] += sent.datagrams;
        }
    }
}

/// What was sent; the error of the next run, and the size of its datagrams.
struct Sent {
    units: usize,
    datagrams: u64,
    bytes: u64,
    error: Option<(io::Error, usize)>,
}

/// `each`: every datagram gets the header, if there is one.
fn send(flow: &mut Flow, context: &mut Context, units: &[Unit], each: bool) -> Sent {
    let sent = send_as_it_is(flow, context, units, each);
    if let (true, Some(extras)) = (sent.units > 0, &mut flow.extras) {
        extras.header_is_due = false;
    }
    sent
}

fn send_as_it_is(flow: &Flow, context: &mut Context, units: &[Unit], each: bool) -> Sent {
    let extras = flow.extras.as_deref();
    let header = extras
        .filter(|extras| (each || extras.header_is_due) && !extras.header.is_empty())
        .map(|extras| &extras.header[..]);
    let mut parts: SmallVec<[IoSlice<'_>; 16]> = SmallVec::new();
    // Of each message: units, parts, the size of its datagrams.
    let mut runs: SmallVec<[(usize, usize, usize); 16]> = SmallVec::new();
    let mut at = 0;
    while at < units.len() && runs.len() < BATCH {
        let headed = header.filter(|_| each || at == 0);
        let (count, segment) = match headed.is_some() || !flow.splits_to_backend {
            true => (1, units[at].piece.segment),
            false => batch::run(units[at..].iter().map(|unit| unit.piece)),
        };
        parts.extend(headed.map(IoSlice::new));
        let these = &units[at..at + count];
        parts.extend(
            these
                .iter()
                .map(|unit| IoSlice::new(unit.bytes(&context.receive_buffers))),
        );
        runs.push((count, count + usize::from(headed.is_some()), segment));
        at += count;
    }
    let mut at = 0;
    let messages: SmallVec<[Message<'_>; 16]> = runs
        .iter()
        .map(|&(_, count, segment)| {
            let parts = &parts[at..at + count];
            at += count;
            Message {
                parts,
                segment: u16::try_from(segment).unwrap_or(0),
                to: None,
                from: None,
            }
        })
        .collect();
    let (taken, error) = context
        .send_headers
        .send(flow.link.socket.as_fd(), &messages);
    let failed = runs.get(taken).map_or(0, |run| run.2);
    let count = runs[..taken].iter().map(|run| run.0).sum();
    Sent {
        units: count,
        datagrams: units[..count]
            .iter()
            .map(|u| u.piece.datagrams() as u64)
            .sum(),
        bytes: units[..count].iter().map(|u| u.piece.len as u64).sum(),
        error: error.map(|error| (error, failed)),
    }
}

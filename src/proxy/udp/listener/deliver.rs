//! What was taken of a batch goes to the backends.

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
    /// Sends what was taken of a batch.
    pub(super) fn deliver_all(&mut self, gear: &mut Context) {
        let mut units = std::mem::take(&mut gear.units);
        // Stable: what belongs to one flow keeps its order.
        if !units.is_sorted_by_key(|taken| taken.number) {
            units.sort_by_key(|taken| taken.number);
        }
        for same in units.chunk_by(|a, b| (a.number, a.serial) == (b.number, b.serial)) {
            self.deliver(gear, same);
        }
        units.clear();
        gear.units = units;
    }

    pub(super) fn deliver(&mut self, gear: &mut Context, taken: &[Taken]) {
        let Taken {
            mut number, serial, ..
        } = taken[0];
        let mut left: SmallVec<[Unit; 8]> = taken.iter().map(|taken| taken.unit).collect();
        if self.flow(serial, number).is_none() {
            return self.dropped(DropReason::NoBackend, left.iter().map(|u| u.piece));
        }
        let each = self.service.send_proxy_on == ProxyOn::Each;
        let mut tries = 0;
        while !left.is_empty() {
            let Some(flow) = self.flows.get_mut(number as usize) else {
                return self.dropped(DropReason::NoBackend, left.iter().map(|u| u.piece));
            };
            if !flow.splits && left.iter().any(|unit| unit.piece.segment > 0) {
                left = left.iter().flat_map(|unit| unit.singles()).collect();
            }
            let sent = send(flow, gear, &left, each);
            flow.sent = flow.sent.saturating_add(sent.datagrams as u32);
            let counts = flow.lease.backend().metrics.counts.mine();
            counts.sent.add(sent.bytes);
            flow.permits
                .session()
                .received
                .fetch_add(sent.bytes, Relaxed);
            if let Some(rare) = &mut flow.rare {
                rare.datagrams[0] += sent.datagrams;
            }
            left.drain(..sent.units);
            let Some((error, segment)) = sent.error else {
                // What stopped it in the middle comes again if it is still so. It may have been an
                // error of an earlier datagram, which is told once only; then those after it bring
                // another.
                continue;
            };
            let flow = &mut self.flows[number as usize];
            if segment > 0 && is_about_splitting(&error) {
                flow.splits = false;
                continue;
            }
            let after = self.send_failed(number, &error);
            tries += 1;
            let is_enough = tries > self.service.plan.retries.saturating_add(1);
            match after {
                AfterError::SendAgain if !is_enough => {}
                AfterError::TryAnother { again_here } => {
                    let next = match is_enough {
                        true => None,
                        false => self.after_failure(gear, number, again_here, &left),
                    };
                    let Some(next) = next else {
                        return self.dropped(DropReason::NoBackend, left.iter().map(|u| u.piece));
                    };
                    number = next;
                }
                AfterError::SendAgain | AfterError::Drop => {
                    let reason = drop_reason(&error);
                    let count = match reason {
                        DropReason::SendBuffer => left.len(),
                        _ => 1,
                    };
                    let pieces = left.drain(..count).map(|u| u.piece);
                    self.dropped_by(reason, Some(&error), pieces);
                }
            }
        }
    }

    /// On which flow to go on with datagrams whose backend could not be reached; `None`: there is
    /// no other backend, and it would fail again on this one.
    fn after_failure(
        &mut self,
        gear: &mut Context,
        number: u32,
        again_here: bool,
        left: &[Unit],
    ) -> Option<u32> {
        if self.udp.per_packet {
            // The pick was for these datagrams alone.
            let another = self.another_for_one(gear, number);
            return another.or(again_here.then_some(number));
        }
        let may_move = self.service.pool.moves.down;
        let flow = self.flows.get_mut(number as usize)?;
        let serial = flow.serial;
        if !may_move || flow.retired.is_some() {
            return again_here.then_some(number);
        }
        flow.refused = false;
        let next = self.go_elsewhere(gear, number, CloseReason::BackendRefused);
        let next = next.ok()?;
        let flow = self.flows.get_mut(next as usize)?;
        if flow.serial == serial {
            return again_here.then_some(next);
        }
        let datagrams: usize = left.iter().map(|u| u.piece.datagrams()).sum();
        flow.taken = flow.taken.saturating_add(datagrams as u32);
        Some(next)
    }
}

/// What was sent, and what was in the way of the rest: the error, and what size of datagrams it was
/// about.
struct Sent {
    units: usize,
    datagrams: u64,
    bytes: u64,
    error: Option<(io::Error, usize)>,
}

/// `each`: every datagram gets the header, if there is one.
fn send(flow: &mut Flow, gear: &mut Context, units: &[Unit], each: bool) -> Sent {
    let sent = send_as_it_is(flow, gear, units, each);
    if let (true, Some(rare)) = (sent.units > 0, &mut flow.rare) {
        rare.header_is_due = false;
    }
    sent
}

fn send_as_it_is(flow: &Flow, gear: &mut Context, units: &[Unit], each: bool) -> Sent {
    let rare = flow.rare.as_deref();
    let header = rare
        .filter(|rare| (each || rare.header_is_due) && !rare.header.is_empty())
        .map(|rare| &rare.header[..]);
    let mut parts: SmallVec<[IoSlice<'_>; 16]> = SmallVec::new();
    // Of each message: units, parts, the size of its datagrams.
    let mut runs: SmallVec<[(usize, usize, usize); 16]> = SmallVec::new();
    let mut at = 0;
    while at < units.len() && runs.len() < BATCH {
        let headed = header.filter(|_| each || at == 0);
        let (count, segment) = match headed.is_some() || !flow.splits {
            true => (1, units[at].piece.segment),
            false => batch::run(units[at..].iter().map(|unit| unit.piece)),
        };
        parts.extend(headed.map(IoSlice::new));
        let these = &units[at..at + count];
        parts.extend(
            these
                .iter()
                .map(|unit| IoSlice::new(unit.bytes(&gear.inbox))),
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
    let (taken, error) = gear.outbox.send(flow.link.socket.as_fd(), &messages);
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

//! What backends send goes to the clients.

use super::{
    super::batch::{self, Piece},
    Listener,
};
use crate::{
    plan::reason::{CloseReason, DropReason},
    proxy::udp::context::{Context, Reply, Unit, drop_reason, is_about_splitting},
    sys::datagram::{BATCH, Message, receive_buffer, take_coalesced},
};
use smallvec::SmallVec;
use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, atomic::Ordering::Relaxed},
};

/// Replies that one flow may hand over before others get a turn.
const REPLIES: usize = 16;
/// A flow that has had so many is asked to have runs of them put together. Short ones do not pay
/// the call for it.
const SUSTAINED: u32 = 16;
/// What such a flow may have waiting, where the kernel allows it.
const BUFFER: usize = 1 << 20;

impl Listener {
    /// There is something in the error queue of this flow.
    pub(in crate::proxy::udp) fn reported(&mut self, serial: u32, number: u32) {
        if self.flow(serial, number).is_some() {
            self.take_reports(number);
        }
    }

    /// Takes some of what has come on this flow. There is room for one at least.
    pub(in crate::proxy::udp) fn reply(&mut self, gear: &mut Context, serial: u32, number: u32) {
        let (index, responses) = (self.index, self.udp.responses);
        let requests = self.udp.requests;
        let Some(flow) = self.flow(serial, number) else {
            return;
        };
        let size = flow.batch_size.get();
        let room = (gear.back.slots() - gear.filled).min(size);
        let first = gear.filled;
        let came = gear
            .back
            .receive_plain(flow.link.socket.as_fd(), first, room);
        let came = match came {
            Ok(came) => came,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => return self.receive_failed(gear, number, &error),
        };
        flow.receive_failures = 0;
        if room == size {
            flow.batch_size.adapt(came, gear.turn, REPLIES);
        }
        gear.filled += came;
        let (mut bytes, mut datagrams) = (0, 0);
        let mut truncated = SmallVec::<[Piece; 1]>::new();
        for slot in first..first + came {
            let received = gear.back.get(slot);
            let piece = Piece {
                len: received.payload.len(),
                segment: received.segment.into(),
            };
            if received.truncated {
                truncated.push(piece);
                continue;
            }
            bytes += piece.len as u64;
            datagrams += piece.datagrams();
            let whole = Unit {
                slot,
                from: 0,
                piece,
            };
            let units = whole.divided(flow.splits_back).into_iter();
            gear.replies.extend(units.map(|unit| Reply {
                listener: index,
                port: flow.key.port,
                number,
                serial,
                splits: flow.splits_back,
                to: flow.key.peer,
                from: flow.key.local,
                unit,
            }));
        }
        let is_first = flow.replies == 0;
        let mut dropped = 0;
        flow.replies = flow.replies.saturating_add(datagrams as u32);
        // One that has gone elsewhere does not stay for ever because its old backend goes on.
        if !flow.has_left_backend() {
            let is_another_second = flow.last / 1_000 != gear.ms / 1_000;
            flow.last = gear.ms;
            if is_another_second && flow.coalesces {
                dropped = flow.new_drops();
            }
        }
        flow.permits.session().sent.fetch_add(bytes, Relaxed);
        let backend = flow.lease.backend();
        backend.heard.store(gear.ms, Relaxed);
        backend.metrics.counts.mine().received.add(bytes);
        if !flow.coalesces && flow.replies >= SUSTAINED {
            flow.coalesces = true;
            // Without it each comes on its own.
            let _ = take_coalesced(&flow.link.socket);
            receive_buffer(&flow.link.socket, BUFFER);
        }
        if let Some(rare) = &mut flow.rare {
            rare.datagrams[1] += datagrams as u64;
        }
        // As in nginx: where its datagrams are limited, it waits for all of them.
        let is_answered = flow.has_all_replies(responses) && flow.has_all_requests(requests);
        self.dropped(DropReason::Truncated, truncated);
        self.service
            .drop_datagrams(DropReason::ReceiveBuffer, dropped, None, gear.now);
        if is_first {
            self.first_reply(gear, number);
        }
        if is_answered {
            let reason = self.flows[number as usize].retired;
            self.close(gear, number, reason.unwrap_or(CloseReason::Ok));
        }
    }

    pub(super) fn first_reply(&mut self, gear: &Context, number: u32) {
        let flow = &mut self.flows[number as usize];
        let took = gear.now.saturating_duration_since(flow.opened);
        self.service.metrics.first_byte_duration.record(took);
        if let Some(rare) = &mut flow.rare {
            rare.first_reply = Some(took);
            if let Some(mut clock) = rare.clock.take() {
                clock.replied(gear.now);
            }
        }
        if flow.has_passed_trial(gear.now, false) {
            let backend = Arc::clone(flow.lease.backend());
            self.service.pool.answered(&backend, gear.now);
        }
    }

    pub(super) fn socket(&self, port: u16) -> BorrowedFd<'_> {
        self.ports[usize::from(port)].port.socket.as_fd()
    }

    pub(super) fn sent_back(&self, replies: &[Reply]) {
        let counts = self.service.metrics.counts.mine();
        let (bytes, datagrams) = replies.iter().fold((0, 0), |(bytes, datagrams), reply| {
            let piece = reply.unit.piece;
            (bytes + piece.len, datagrams + piece.datagrams())
        });
        counts.sent.add(bytes as u64);
        counts.sent_datagrams.add(datagrams as u64);
    }
}

/// All of one socket.
pub(in crate::proxy::udp) fn send_back(
    listener: &mut Listener,
    gear: &mut Context,
    replies: &[Reply],
) {
    let mut left: SmallVec<[Reply; BATCH]> = replies.into();
    while !left.is_empty() {
        let mut parts: SmallVec<[IoSlice<'_>; BATCH]> = SmallVec::new();
        // How many replies each message is, and of what size its datagrams are.
        let mut runs: SmallVec<[(usize, usize); BATCH]> = SmallVec::new();
        let mut at = 0;
        while at < left.len() && runs.len() < BATCH {
            let first = left[at];
            let same = left[at..].iter().take_while(|r| r.serial == first.serial);
            let run = match first.splits {
                true => batch::run(same.map(|r| r.unit.piece)),
                false => (1, 0),
            };
            let these = &left[at..at + run.0];
            parts.extend(these.iter().map(|r| IoSlice::new(r.unit.bytes(&gear.back))));
            at += run.0;
            runs.push(run);
        }
        let mut at = 0;
        let messages: SmallVec<[Message<'_>; 16]> = runs
            .iter()
            .map(|&(count, segment)| {
                let reply = &left[at];
                let parts = &parts[at..at + count];
                at += count;
                Message {
                    parts,
                    segment: u16::try_from(segment).unwrap_or(0),
                    to: Some(reply.to),
                    from: reply.from,
                }
            })
            .collect();
        let (taken, error) = gear
            .outbox
            .send(listener.socket(replies[0].port), &messages);
        let gone: usize = runs[..taken].iter().map(|run| run.0).sum();
        listener.sent_back(&left[..gone]);
        let failed = runs.get(taken).copied();
        left.drain(..gone);
        let (Some(error), Some((count, segment))) = (error, failed) else {
            // What stopped it is told by the next try, if it is still there.
            continue;
        };
        if segment > 0 && is_about_splitting(&error) {
            // The way to this client cannot do it: each on its own, also those that come later.
            let Reply { number, serial, .. } = left[0];
            if let Some(flow) = listener.flow(serial, number) {
                flow.splits_back = false;
            }
            let (these, others) = left.split_at(count);
            let singles = these.iter().flat_map(|r| {
                r.unit.singles().map(|unit| Reply {
                    unit,
                    splits: false,
                    ..*r
                })
            });
            left = singles.chain(others.iter().copied()).collect();
            continue;
        }
        let reason = drop_reason(&error);
        let count = match reason {
            DropReason::SendBuffer => left.len(),
            _ => count,
        };
        let pieces = left.drain(..count).map(|r| r.unit.piece);
        listener.dropped_by(reason, Some(&error), pieces);
    }
}

//! Receiving what backends send, and sending it to the clients.

use super::{
    super::{
        batch::{self, Piece},
        flow::Flow,
    },
    Listener,
};
use crate::{
    plan::reason::{CloseReason, DropReason},
    proxy::udp::context::{Context, Reply, Unit, drop_reason, is_about_splitting},
    session::bandwidth::Way,
    sys::datagram::{BATCH, Message, receive_buffer, take_coalesced},
};
use smallvec::SmallVec;
use std::{
    io::{self, IoSlice},
    ops::Range,
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::Ordering::Relaxed,
};

/// Replies that are received from one flow before others get a turn.
const REPLIES: usize = 16;
/// After so many replies a flow asks the kernel to join them to runs; for a short flow the call
/// costs more than it saves.
const SUSTAINED: u32 = 16;
/// The receive buffer that such a flow asks for.
const BUFFER: usize = 1 << 20;

/// What has become of replies.
#[derive(Default)]
struct Queued {
    /// How many are to be sent to the client.
    datagrams: usize,
    truncated: SmallVec<[Piece; 1]>,
    over_limit: SmallVec<[Piece; 1]>,
}

fn count_datagrams(pieces: &[Piece]) -> usize {
    pieces.iter().map(|piece| piece.datagrams()).sum()
}

impl Listener {
    /// Receives some of the replies that have come on this flow. At least one slot is free for
    /// them.
    pub(in crate::proxy::udp) fn reply(&mut self, context: &mut Context, serial: u32, number: u32) {
        let Some(flow) = self.flow(serial, number) else {
            return;
        };
        let size = flow.batch_size.get();
        let free = (context.back.slots() - context.filled).min(size);
        let first = context.filled;
        let socket = flow.link.socket.as_fd();
        let count = match context.back.receive_plain(socket, first, free) {
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => return self.receive_failed(context, number, &error),
        };
        flow.receive_failures = 0;
        if free == size {
            flow.batch_size.adapt(count, context.turn, REPLIES);
        }
        context.filled += count;
        let queued = self.queue_replies(context, number, first..first + count);
        let flow = &mut self.flows[number as usize];
        let is_first = flow.replies == 0;
        let datagrams = queued.datagrams + count_datagrams(&queued.over_limit);
        flow.replies = flow.replies.saturating_add(datagrams as u32);
        if let Some(extras) = &mut flow.extras {
            extras.datagrams[1] += queued.datagrams as u64;
        }
        let drops = flow.note_reply(context.ms);
        flow.coalesce_if_sustained();
        // As in nginx: where its datagrams are limited, it waits for all of them.
        let is_answered = flow.has_all_replies() && flow.has_all_requests();
        self.count_dropped(DropReason::Truncated, queued.truncated);
        self.count_dropped(DropReason::Bandwidth, queued.over_limit);
        self.service
            .drop_datagrams(DropReason::ReceiveBuffer, drops, None, context.now);
        if is_first {
            self.first_reply(context, number);
        }
        if is_answered {
            let reason = self.flows[number as usize].retired;
            self.close(context, number, reason.unwrap_or(CloseReason::Ok));
        }
    }

    /// Queues the replies in these slots for the client, and counts their bytes.
    fn queue_replies(&self, context: &mut Context, number: u32, slots: Range<usize>) -> Queued {
        let flow = &self.flows[number as usize];
        let mut queued = Queued::default();
        let (mut bytes, mut bytes_read) = (0, 0);
        for slot in slots {
            let received = context.back.get(slot);
            let piece = Piece {
                len: received.payload.len(),
                segment: received.segment.into(),
            };
            if received.truncated {
                queued.truncated.push(piece);
                continue;
            }
            bytes_read += piece.len as u64;
            if !flow.admits(Way::Down, piece, context.now) {
                queued.over_limit.push(piece);
                continue;
            }
            bytes += piece.len as u64;
            queued.datagrams += piece.datagrams();
            let whole = Unit {
                slot,
                from: 0,
                piece,
            };
            let units = whole.divided(flow.splits_to_client).into_iter();
            context.replies.extend(units.map(|unit| Reply {
                listener: self.index,
                port: flow.key.port,
                number,
                serial: flow.serial,
                splits: flow.splits_to_client,
                to: flow.key.peer,
                from: flow.key.local,
                unit,
            }));
        }
        flow.permits.session().sent.fetch_add(bytes, Relaxed);
        let backend = flow.lease.backend();
        backend.last_reply_ms.store(context.ms, Relaxed);
        backend.metrics.counts.mine().received.add(bytes_read);
        queued
    }

    fn first_reply(&mut self, context: &Context, number: u32) {
        let flow = &mut self.flows[number as usize];
        let took = context
            .now
            .saturating_duration_since(flow.permits.began_at());
        flow.service().metrics.first_byte_duration.record(took);
        if let Some(extras) = &mut flow.extras {
            extras.first_reply = Some(took);
            if let Some(mut clock) = extras.clock.take() {
                clock.replied(context.now);
            }
        }
        if flow.has_passed_trial(context.now, false) {
            let pool = &flow.service().pool;
            pool.answered(flow.lease.backend(), context.now);
        }
    }

    fn socket(&self, port: u16) -> BorrowedFd<'_> {
        self.ports[usize::from(port)].port.socket.as_fd()
    }

    fn count_sent(&self, replies: &[Reply]) {
        let counts = self.service.metrics.counts.mine();
        let (bytes, datagrams) = replies.iter().fold((0, 0), |(bytes, datagrams), reply| {
            let piece = reply.unit.piece;
            (bytes + piece.len, datagrams + piece.datagrams())
        });
        counts.sent.add(bytes as u64);
        counts.sent_datagrams.add(datagrams as u64);
    }
}

/// Sends replies that leave on the same socket.
pub(in crate::proxy::udp) fn send_back(
    listener: &mut Listener,
    context: &mut Context,
    replies: &[Reply],
) {
    let mut remaining = replies;
    while !remaining.is_empty() {
        let mut runs = Runs::new();
        divide(remaining, &mut runs);
        let (count, error) = send_runs(listener, context, remaining, &runs);
        let sent: usize = runs[..count].iter().map(|run| run.0).sum();
        listener.count_sent(&remaining[..sent]);
        remaining = &remaining[sent..];
        let (Some(error), Some(&(count, segment))) = (error, runs.get(count)) else {
            // An error that persists comes again at the next try.
            continue;
        };
        if segment > 0 && is_about_splitting(&error) {
            // The path to this client does not allow it: each datagram is sent alone from now on.
            let Reply { number, serial, .. } = remaining[0];
            if let Some(flow) = listener.flow(serial, number) {
                flow.splits_to_client = false;
            }
            let singles: Vec<Reply> = remaining[..count].iter().flat_map(singles).collect();
            send_back(listener, context, &singles);
            remaining = &remaining[count..];
            continue;
        }
        let reason = drop_reason(&error);
        let count = match reason == DropReason::SendBuffer {
            true => remaining.len(),
            false => count,
        };
        let pieces = remaining[..count].iter().map(|r| r.unit.piece);
        listener.count_dropped_by(reason, Some(&error), pieces);
        remaining = &remaining[count..];
    }
}

/// How many replies each message has, and the size of its datagrams.
type Runs = SmallVec<[(usize, usize); BATCH]>;

fn divide(replies: &[Reply], runs: &mut Runs) {
    let mut at = 0;
    while at < replies.len() && runs.len() < BATCH {
        let first = replies[at];
        let same = replies[at..]
            .iter()
            .take_while(|r| r.serial == first.serial);
        let run = match first.splits {
            true => batch::run(same.map(|r| r.unit.piece)),
            false => (1, 0),
        };
        at += run.0;
        runs.push(run);
    }
}

/// Returns how many runs were sent, and the error of the next one.
fn send_runs(
    listener: &Listener,
    context: &mut Context,
    replies: &[Reply],
    runs: &Runs,
) -> (usize, Option<io::Error>) {
    let count = runs.iter().map(|run| run.0).sum();
    let parts: SmallVec<[IoSlice<'_>; BATCH]> = replies[..count]
        .iter()
        .map(|r| IoSlice::new(r.unit.bytes(&context.back)))
        .collect();
    let mut at = 0;
    let messages: SmallVec<[Message<'_>; 16]> = runs
        .iter()
        .map(|&(count, segment)| {
            let reply = &replies[at];
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
    context
        .send_headers
        .send(listener.socket(replies[0].port), &messages)
}

/// The datagrams of a run, each as a reply of its own.
fn singles(reply: &Reply) -> impl Iterator<Item = Reply> {
    let reply = *reply;
    reply.unit.singles().map(move |unit| Reply {
        unit,
        splits: false,
        ..reply
    })
}

impl Flow {
    /// Notes that a reply has come now. Returns how many the kernel has dropped, once a second of
    /// sustained replies. A backend that the flow has left does not prolong it.
    fn note_reply(&mut self, ms: u64) -> u64 {
        if self.has_left_backend() {
            return 0;
        }
        let is_another_second = self.last_ms() / 1_000 != ms / 1_000;
        self.set_last_ms(ms);
        match is_another_second && self.is_coalescing {
            true => self.new_drops(),
            false => 0,
        }
    }

    fn coalesce_if_sustained(&mut self) {
        if !self.is_coalescing && self.replies >= SUSTAINED {
            self.is_coalescing = true;
            // Without it each reply is received on its own.
            let _ = take_coalesced(&self.link.socket);
            receive_buffer(&self.link.socket, BUFFER);
        }
    }
}

//! The format of UDP flows. A batch has flows, each with the descriptor of its socket towards the
//! backend, and what has changed since others were sent; with the last batch of a set of listening
//! sockets the receiver begins to read them.
//!
//! Times are those of CLOCK_MONOTONIC, which all processes share.

use super::{
    fields::{Bytes, Field, Fields, Numbers, RareFlag, record},
    record::{Malformed, Record, Tag, Writer},
};
use crate::sys::datagram::Local;
use std::net::{IpAddr, SocketAddr};

record! {
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    SocketKey {
        address: SocketAddr = 2,
        /// Counted from 0, in the order in which they were bound.
        index: u16 = 3,
    }
}

record! {
    #[derive(Debug, Default, Clone, PartialEq)]
    FlowBatch {
        flows: Vec<FlowState> = 1,
        /// Of flows that were sent before.
        changes: Vec<FlowChange> = 2,
        /// The sessions of flows that were sent before and have ended.
        ended: Vec<u64> = 3 as Numbers,
        peers: Vec<NamedPeer> = 4,
        late: Vec<LateSocket> = 5,
        /// The receiver reads these sockets from now on; the sender does not any more.
        begin: Vec<SocketBegin> = (required 6),
    }
}

record! {
    #[derive(Debug, Default, Clone, PartialEq, Eq)]
    FlowsTaken {
        /// The sessions of flows that stay with the sender.
        refused: Vec<u64> = 1 as Numbers,
    }
}

record! {
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    SocketBegin {
        socket: SocketKey = inline,
        /// The kernel's count of dropped datagrams, as far as they are in the sender's metrics.
        drops: u32 = 20,
    }
}

record! {
    #[derive(Debug, Clone, PartialEq)]
    FlowState {
        /// Of its session.
        id: u64 = 1,
        /// Where its datagrams come to.
        socket: SocketKey = inline,
        peer: SocketAddr = 4,
        /// The destination address, where the socket has more than one.
        local: Option<Local> = [5, 6] as LocalParts,
        /// Source and destination by a PROXY protocol header.
        named: Option<(SocketAddr, SocketAddr)> = [7, 8],
        /// Each datagram is balanced on its own.
        per_packet: bool = (required 9) as RareFlag,
        /// Whether the next datagram of the client belongs to it.
        is_current: bool = 10,
        /// As configured.
        backend: String = 11,
        /// What that stands for.
        backend_address: String = 12,
        /// In microseconds.
        began_micros: u64 = 13,
        /// For the backend, in front of a datagram.
        header: Vec<u8> = 14 as Bytes,
        progress: FlowProgress = inline,
    }
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct FlowProgress {
    /// When a datagram was last carried, in milliseconds.
    pub active_millis: u64,
    /// Datagrams from the client, those of them that were sent, and replies: of limits.
    pub taken: u32,
    pub sent: u32,
    pub replies: u32,
    /// From the client, and to it.
    pub bytes: [u64; 2],
    /// The same, for the access log.
    pub datagrams: [u64; 2],
    /// The kernel's count of dropped replies, as far as they are in the sender's metrics.
    pub drops: u32,
    /// From the begin to the first reply, in microseconds.
    pub first_reply_micros: Option<u64>,
    pub flags: FlowFlags,
    /// Why it gets no more datagrams, as a word.
    pub retired: Option<String>,
}

/// The defaults are those of most flows.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct FlowFlags {
    pub is_unreachable: bool,
    pub is_proven: bool,
    pub is_coalescing: bool,
    pub header_is_due: bool,
    pub never_splits_to_backend: bool,
    pub never_splits_to_client: bool,
}

record! {
    #[derive(Debug, Clone, PartialEq, Eq)]
    FlowChange {
        id: u64 = 1,
        progress: FlowProgress = inline,
    }
}

record! {
    #[derive(Debug, Clone, PartialEq, Eq)]
    NamedPeer {
        socket: SocketKey = inline,
        peer: SocketAddr = 4,
        local: Option<Local> = [5, 6] as LocalParts,
        /// `None`: the peer speaks for itself.
        named: Option<(SocketAddr, SocketAddr)> = [7, 8],
        /// In milliseconds.
        last_millis: u64 = 17,
    }
}

record! {
    #[derive(Debug, Clone, PartialEq, Eq)]
    LateSocket {
        /// The listener of the flow.
        listener: String = 18,
        /// In milliseconds.
        until_millis: u64 = 19,
    }
}

/// Within the records that have a [`FlowProgress`].
const PROGRESS: Tag = Tag::new(15);
const RETIRED: Tag = Tag::new(16);

impl FlowBatch {
    /// How many descriptors belong to it.
    pub fn descriptors(&self) -> usize {
        self.flows.len() + self.late.len()
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

struct LocalParts;

impl LocalParts {
    fn write(local: &Option<Local>, tags: [Tag; 2], w: &mut Writer) {
        local.map(|l| (l.ip, l.interface)).write_field(tags, w);
    }

    fn read(tags: [Tag; 2], record: &Record<'_>) -> Result<Option<Local>, Malformed> {
        let parts = Option::<(IpAddr, u32)>::read_field(tags, record)?;
        Ok(parts.map(|(ip, interface)| Local { ip, interface }))
    }
}

impl Fields for FlowProgress {
    /// The numbers in one field: more may follow them in a later version, and are skipped.
    fn write_fields(&self, w: &mut Writer) {
        let [received, sent] = self.bytes;
        let [received_datagrams, sent_datagrams] = self.datagrams;
        let numbers = [
            self.active_millis,
            self.taken.into(),
            self.sent.into(),
            self.replies.into(),
            received,
            sent,
            received_datagrams,
            sent_datagrams,
            self.drops.into(),
            self.flags.bits(),
            // 0: none has come.
            self.first_reply_micros
                .map_or(0, |micros| micros.saturating_add(1)),
        ];
        w.numbers(PROGRESS, numbers);
        self.retired.write_field(RETIRED, w);
    }

    fn read_fields(r: &Record<'_>) -> Result<Self, Malformed> {
        let numbers = r.numbers(PROGRESS)?;
        let &[
            active_millis,
            taken,
            sent,
            replies,
            received_bytes,
            sent_bytes,
            received_datagrams,
            sent_datagrams,
            drops,
            flags,
            first_reply,
            ..,
        ] = &numbers[..]
        else {
            return Err(Malformed::Length(PROGRESS));
        };
        let small = |n: u64| u32::try_from(n).map_err(|_| Malformed::Value(PROGRESS));
        Ok(Self {
            active_millis,
            taken: small(taken)?,
            sent: small(sent)?,
            replies: small(replies)?,
            bytes: [received_bytes, sent_bytes],
            datagrams: [received_datagrams, sent_datagrams],
            drops: small(drops)?,
            first_reply_micros: first_reply.checked_sub(1),
            flags: FlowFlags::of(flags),
            retired: Option::read_field(RETIRED, r)?,
        })
    }

    fn has(tag: Tag) -> bool {
        [PROGRESS, RETIRED].contains(&tag)
    }
}

impl FlowFlags {
    fn bits(self) -> u64 {
        let Self {
            is_unreachable,
            is_proven,
            is_coalescing,
            header_is_due,
            never_splits_to_backend,
            never_splits_to_client,
        } = self;
        let flags = [
            is_unreachable,
            is_proven,
            is_coalescing,
            header_is_due,
            never_splits_to_backend,
            never_splits_to_client,
        ];
        let bits = flags.iter().enumerate();
        bits.fold(0, |bits, (n, flag)| bits | u64::from(*flag) << n)
    }

    /// Bits of a later version are skipped.
    fn of(bits: u64) -> Self {
        let has = |n: u32| bits >> n & 1 == 1;
        Self {
            is_unreachable: has(0),
            is_proven: has(1),
            is_coalescing: has(2),
            header_is_due: has(3),
            never_splits_to_backend: has(4),
            never_splits_to_client: has(5),
        }
    }
}

#[cfg(test)]
mod tests;

//! The format of UDP flows. A batch has flows, each with the descriptor of its socket towards the
//! backend, and what has changed since others were sent; with the last batch of a set of listening
//! sockets the receiver begins to read them.
//!
//! Times are those of CLOCK_MONOTONIC, which all processes share.

use super::record::{Malformed, Record, Tag, Writer};
use crate::sys::datagram::Local;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Identifies one of the sockets that share an address: the kernel assigns clients to sockets by
/// their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SocketKey {
    pub address: SocketAddr,
    /// Counted from 0, in the order in which they were bound.
    pub index: u16,
}

/// What goes in one message. Its descriptors are those of `flows`, then those of `late`.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct FlowBatch {
    pub flows: Vec<FlowState>,
    /// Of flows that were sent before.
    pub changes: Vec<FlowChange>,
    /// The sessions of flows that were sent before and have ended.
    pub ended: Vec<u64>,
    pub peers: Vec<NamedPeer>,
    pub late: Vec<LateSocket>,
    /// The receiver reads these sockets from now on; the sender does not any more.
    pub begin: Vec<SocketBegin>,
}

/// The answer to a batch.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct FlowsTaken {
    /// The sessions of flows that stay with the sender.
    pub refused: Vec<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketBegin {
    pub socket: SocketKey,
    /// The kernel's count of dropped datagrams, as far as they are in the sender's metrics.
    pub drops: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub struct FlowState {
    /// Of its session.
    pub id: u64,
    /// Where its datagrams come to.
    pub socket: SocketKey,
    pub peer: SocketAddr,
    /// The destination address, where the socket has more than one.
    pub local: Option<Local>,
    /// Source and destination by a PROXY protocol header.
    pub named: Option<(SocketAddr, SocketAddr)>,
    /// Each datagram is balanced on its own.
    pub per_packet: bool,
    /// Whether the next datagram of the client belongs to it.
    pub is_current: bool,
    /// As configured.
    pub backend: String,
    /// What that stands for.
    pub backend_address: String,
    /// In microseconds.
    pub began_micros: u64,
    /// For the backend, in front of a datagram.
    pub header: Vec<u8>,
    pub progress: FlowProgress,
}

/// What changes while a flow lives.
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

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowChange {
    pub id: u64,
    pub progress: FlowProgress,
}

/// The client that a trusted peer has named by its last header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPeer {
    pub socket: SocketKey,
    pub peer: SocketAddr,
    pub local: Option<Local>,
    /// `None`: the peer speaks for itself.
    pub named: Option<(SocketAddr, SocketAddr)>,
    /// In milliseconds.
    pub last_millis: u64,
}

/// The socket of a flow that has ended, kept so that a late reply reaches no other client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LateSocket {
    /// The listener of the flow.
    pub listener: String,
    /// In milliseconds.
    pub until_millis: u64,
}

const FLOW: Tag = Tag::new(1);
const CHANGE: Tag = Tag::new(2);
const ENDED: Tag = Tag::new(3);
const PEER: Tag = Tag::new(4);
const LATE: Tag = Tag::new(5);
const BEGIN: Tag = Tag::required(6);
const BATCH: &[Tag] = &[FLOW, CHANGE, ENDED, PEER, LATE, BEGIN];

const REFUSED: Tag = Tag::new(1);

/// Tags of flows, changes and peers: one that two of them have means the same in both.
const ID: Tag = Tag::new(1);
const ADDRESS: Tag = Tag::new(2);
const INDEX: Tag = Tag::new(3);
const FROM: Tag = Tag::new(4);
const LOCAL_IP: Tag = Tag::new(5);
const LOCAL_INTERFACE: Tag = Tag::new(6);
const NAMED_SOURCE: Tag = Tag::new(7);
const NAMED_DESTINATION: Tag = Tag::new(8);
const PER_PACKET: Tag = Tag::required(9);
const IS_CURRENT: Tag = Tag::new(10);
const BACKEND: Tag = Tag::new(11);
const BACKEND_ADDRESS: Tag = Tag::new(12);
const BEGAN: Tag = Tag::new(13);
const HEADER: Tag = Tag::new(14);
const PROGRESS: Tag = Tag::new(15);
const RETIRED: Tag = Tag::new(16);
const LAST: Tag = Tag::new(17);
const LISTENER: Tag = Tag::new(18);
const UNTIL: Tag = Tag::new(19);
const DROPS: Tag = Tag::new(20);

const STATE: &[Tag] = &[
    ID,
    ADDRESS,
    INDEX,
    FROM,
    LOCAL_IP,
    LOCAL_INTERFACE,
    NAMED_SOURCE,
    NAMED_DESTINATION,
    PER_PACKET,
    IS_CURRENT,
    BACKEND,
    BACKEND_ADDRESS,
    BEGAN,
    HEADER,
    PROGRESS,
    RETIRED,
    LAST,
    LISTENER,
    UNTIL,
    DROPS,
];

impl FlowBatch {
    pub fn write(&self, w: &mut Writer) {
        w.list(FLOW, &self.flows, FlowState::write);
        w.list(CHANGE, &self.changes, FlowChange::write);
        if !self.ended.is_empty() {
            w.numbers(ENDED, self.ended.iter().copied());
        }
        w.list(PEER, &self.peers, NamedPeer::write);
        w.list(LATE, &self.late, |late, w| {
            w.text(LISTENER, &late.listener)
                .u64(UNTIL, late.until_millis);
        });
        w.list(BEGIN, &self.begin, |begin, w| {
            begin.socket.write(w);
            w.u64(DROPS, begin.drops.into());
        });
    }

    pub fn read(body: &[u8]) -> Result<Self, Malformed> {
        let r = Record::parse(body, BATCH)?;
        Ok(Self {
            flows: r.list(FLOW, STATE, FlowState::read)?,
            changes: r.list(CHANGE, STATE, FlowChange::read)?,
            ended: r.numbers(ENDED)?,
            peers: r.list(PEER, STATE, NamedPeer::read)?,
            late: r.list(LATE, STATE, |r| {
                Ok(LateSocket {
                    listener: r.text(LISTENER)?.to_owned(),
                    until_millis: r.u64(UNTIL)?,
                })
            })?,
            begin: r.list(BEGIN, STATE, |r| {
                Ok(SocketBegin {
                    socket: SocketKey::read(r)?,
                    drops: r.number(DROPS)?,
                })
            })?,
        })
    }

    /// How many descriptors belong to it.
    pub fn descriptors(&self) -> usize {
        self.flows.len() + self.late.len()
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl FlowsTaken {
    pub fn write(&self, w: &mut Writer) {
        if !self.refused.is_empty() {
            w.numbers(REFUSED, self.refused.iter().copied());
        }
    }

    pub fn read(body: &[u8]) -> Result<Self, Malformed> {
        let r = Record::parse(body, &[REFUSED])?;
        Ok(Self {
            refused: r.numbers(REFUSED)?,
        })
    }
}

impl SocketKey {
    fn write(&self, w: &mut Writer) {
        write_address(w, ADDRESS, self.address);
        w.u64(INDEX, self.index.into());
    }

    fn read(r: &Record<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            address: read_address(r, ADDRESS)?.ok_or(Malformed::Missing(ADDRESS))?,
            index: r.number(INDEX)?,
        })
    }
}

impl FlowState {
    fn write(&self, w: &mut Writer) {
        w.u64(ID, self.id);
        self.socket.write(w);
        write_peer(w, self.peer, self.local, self.named);
        // Only where it is set: to a reader that does not know it, other flows are plain ones.
        if self.per_packet {
            w.flag(PER_PACKET, true);
        }
        w.flag(IS_CURRENT, self.is_current);
        w.text(BACKEND, &self.backend)
            .text(BACKEND_ADDRESS, &self.backend_address)
            .u64(BEGAN, self.began_micros);
        if !self.header.is_empty() {
            w.bytes(HEADER, &self.header);
        }
        self.progress.write(w);
    }

    fn read(r: &Record<'_>) -> Result<Self, Malformed> {
        let (peer, local, named) = read_peer(r)?;
        Ok(Self {
            id: r.u64(ID)?,
            socket: SocketKey::read(r)?,
            peer,
            local,
            named,
            per_packet: r.flag(PER_PACKET)?,
            is_current: r.flag(IS_CURRENT)?,
            backend: r.text(BACKEND)?.to_owned(),
            backend_address: r.text(BACKEND_ADDRESS)?.to_owned(),
            began_micros: r.u64(BEGAN)?,
            header: r.optional_bytes(HEADER).unwrap_or_default().to_vec(),
            progress: FlowProgress::read(r)?,
        })
    }
}

impl FlowChange {
    fn write(&self, w: &mut Writer) {
        w.u64(ID, self.id);
        self.progress.write(w);
    }

    fn read(r: &Record<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            id: r.u64(ID)?,
            progress: FlowProgress::read(r)?,
        })
    }
}

impl FlowProgress {
    /// The numbers in one field: more may follow them in a later version, and are skipped.
    fn write(&self, w: &mut Writer) {
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
        w.optional_text(RETIRED, self.retired.as_deref());
    }

    fn read(r: &Record<'_>) -> Result<Self, Malformed> {
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
            retired: r.optional_text(RETIRED)?.map(str::to_owned),
        })
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

impl NamedPeer {
    fn write(&self, w: &mut Writer) {
        self.socket.write(w);
        write_peer(w, self.peer, self.local, self.named);
        w.u64(LAST, self.last_millis);
    }

    fn read(r: &Record<'_>) -> Result<Self, Malformed> {
        let (peer, local, named) = read_peer(r)?;
        Ok(Self {
            socket: SocketKey::read(r)?,
            peer,
            local,
            named,
            last_millis: r.u64(LAST)?,
        })
    }
}

type Named = Option<(SocketAddr, SocketAddr)>;

fn write_peer(w: &mut Writer, peer: SocketAddr, local: Option<Local>, named: Named) {
    write_address(w, FROM, peer);
    if let Some(local) = local {
        write_ip(w, LOCAL_IP, local.ip);
        w.u64(LOCAL_INTERFACE, local.interface.into());
    }
    if let Some((source, destination)) = named {
        write_address(w, NAMED_SOURCE, source);
        write_address(w, NAMED_DESTINATION, destination);
    }
}

fn read_peer(r: &Record<'_>) -> Result<(SocketAddr, Option<Local>, Named), Malformed> {
    let peer = read_address(r, FROM)?.ok_or(Malformed::Missing(FROM))?;
    let local = match r.optional_bytes(LOCAL_IP) {
        Some(bytes) => Some(Local {
            ip: read_ip(bytes).ok_or(Malformed::Length(LOCAL_IP))?,
            interface: r.number(LOCAL_INTERFACE)?,
        }),
        None => None,
    };
    let named = match read_address(r, NAMED_SOURCE)? {
        Some(source) => {
            let destination = read_address(r, NAMED_DESTINATION)?;
            Some((
                source,
                destination.ok_or(Malformed::Missing(NAMED_DESTINATION))?,
            ))
        }
        None => None,
    };
    Ok((peer, local, named))
}

fn write_ip(w: &mut Writer, tag: Tag, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => w.bytes(tag, &ip.octets()),
        IpAddr::V6(ip) => w.bytes(tag, &ip.octets()),
    };
}

fn read_ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(octets).into());
    }
    let octets = <[u8; 16]>::try_from(bytes).ok()?;
    Some(Ipv6Addr::from(octets).into())
}

/// Address and port; of IPv6 flow information and scope as well.
fn write_address(w: &mut Writer, tag: Tag, address: SocketAddr) {
    let mut bytes = [0; 26];
    let len = match address {
        SocketAddr::V4(v4) => {
            bytes[..4].copy_from_slice(&v4.ip().octets());
            bytes[4..6].copy_from_slice(&v4.port().to_le_bytes());
            6
        }
        SocketAddr::V6(v6) => {
            bytes[..16].copy_from_slice(&v6.ip().octets());
            bytes[16..18].copy_from_slice(&v6.port().to_le_bytes());
            bytes[18..22].copy_from_slice(&v6.flowinfo().to_le_bytes());
            bytes[22..].copy_from_slice(&v6.scope_id().to_le_bytes());
            26
        }
    };
    w.bytes(tag, &bytes[..len]);
}

fn read_address(r: &Record<'_>, tag: Tag) -> Result<Option<SocketAddr>, Malformed> {
    let Some(bytes) = r.optional_bytes(tag) else {
        return Ok(None);
    };
    let address = if let Ok([a, b, c, d, p, q]) = <[u8; 6]>::try_from(bytes) {
        let ip = Ipv4Addr::new(a, b, c, d);
        SocketAddrV4::new(ip, u16::from_le_bytes([p, q])).into()
    } else {
        let bytes = <[u8; 26]>::try_from(bytes).map_err(|_| Malformed::Length(tag))?;
        let (ip, rest) = bytes.split_at(16);
        let ip = <[u8; 16]>::try_from(ip).map_err(|_| Malformed::Length(tag))?;
        let &[p, q, a, b, c, d, e, f, g, h] = rest else {
            return Err(Malformed::Length(tag));
        };
        let port = u16::from_le_bytes([p, q]);
        let flow = u32::from_le_bytes([a, b, c, d]);
        let scope = u32::from_le_bytes([e, f, g, h]);
        SocketAddrV6::new(ip.into(), port, flow, scope).into()
    };
    Ok(Some(address))
}

#[cfg(test)]
mod tests;

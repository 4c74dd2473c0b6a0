//! The address and control messages of a datagram, as the kernel lays them out in memory. They are
//! read and written as bytes, which needs no `unsafe`.

use super::Local;
use libc::c_int;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Space for an address of either family; the kernel cuts off what does not fit.
#[repr(align(8))]
#[derive(Clone, Copy)]
pub(super) struct Name(pub(super) [u8; NAME]);

/// An address of IPv6: family, port, flow, 16 bytes, scope.
pub(super) const NAME: usize = 28;
const NAME_V4: usize = 16;

/// Space for the control messages of one datagram: the largest are an address of IPv6 (40 bytes)
/// and a size (24).
#[repr(align(8))]
#[derive(Clone, Copy)]
pub(super) struct Control(pub(super) [u8; CONTROL]);

pub(super) const CONTROL: usize = 80;

const WORD: usize = size_of::<usize>();
/// Length, level and kind.
const HEADER: usize = WORD + 8;

impl Name {
    pub(super) const EMPTY: Self = Self([0; NAME]);

    /// Returns how many bytes the address takes.
    pub(super) fn write(&mut self, address: SocketAddr) -> usize {
        let name = &mut self.0;
        name[2..4].copy_from_slice(&address.port().to_be_bytes());
        match address {
            SocketAddr::V4(v4) => {
                name[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                name[4..8].copy_from_slice(&v4.ip().octets());
                name[8..NAME_V4].fill(0);
                NAME_V4
            }
            SocketAddr::V6(v6) => {
                name[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
                name[4..8].copy_from_slice(&v6.flowinfo().to_ne_bytes());
                name[8..24].copy_from_slice(&v6.ip().octets());
                name[24..].copy_from_slice(&v6.scope_id().to_ne_bytes());
                NAME
            }
        }
    }

    /// The address in the first `len` bytes, as the kernel has written it.
    pub(super) fn read(&self, len: usize) -> Option<SocketAddr> {
        let name = self.0.get(..len)?;
        let family = u16::from_ne_bytes(array(name, 0)?);
        let port = u16::from_be_bytes(array(name, 2)?);
        match c_int::from(family) {
            libc::AF_INET => {
                let ip = Ipv4Addr::from(array::<4>(name, 4)?);
                Some(SocketAddrV4::new(ip, port).into())
            }
            libc::AF_INET6 => {
                let flow = u32::from_ne_bytes(array(name, 4)?);
                let ip = Ipv6Addr::from(array::<16>(name, 8)?);
                let scope = u32::from_ne_bytes(array(name, 24)?);
                Some(SocketAddrV6::new(ip, port, flow, scope).into())
            }
            _ => None,
        }
    }
}

impl Control {
    pub(super) const EMPTY: Self = Self([0; CONTROL]);

    /// Writes the control messages for a datagram to send, and returns how many bytes they take.
    pub(super) fn write(&mut self, from: Option<Local>, segment: u16) -> usize {
        let mut at = 0;
        match from.map(|local| (local.ip, local.interface)) {
            Some((IpAddr::V4(ip), _)) => {
                // in_pktinfo: an interface of 0 leaves the route to the kernel; then the address to
                // send from, and one that counts only for what is received.
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&ip.octets());
                at = self.put(at, libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            Some((IpAddr::V6(ip), interface)) => {
                let mut info = [0; 20];
                info[..16].copy_from_slice(&ip.octets());
                info[16..].copy_from_slice(&interface.to_ne_bytes());
                at = self.put(at, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
            None => {}
        }
        if segment > 0 {
            let size = segment.to_ne_bytes();
            at = self.put(at, libc::SOL_UDP, libc::UDP_SEGMENT, &size);
        }
        at
    }

    fn put(&mut self, at: usize, level: c_int, kind: c_int, data: &[u8]) -> usize {
        let message = &mut self.0[at..];
        message[..WORD].copy_from_slice(&(HEADER + data.len()).to_ne_bytes());
        message[WORD..WORD + 4].copy_from_slice(&level.to_ne_bytes());
        message[WORD + 4..HEADER].copy_from_slice(&kind.to_ne_bytes());
        message[HEADER..HEADER + data.len()].copy_from_slice(data);
        at + (HEADER + data.len()).next_multiple_of(WORD)
    }

    /// Number and origin of the error in an entry of the error queue, whose control messages are
    /// the first `len` bytes.
    pub(super) fn read_report(&self, len: usize) -> Option<(c_int, u8)> {
        let mut rest = self.0.get(..len).unwrap_or_default();
        while let Some((level, kind, data, next)) = first(rest) {
            match (level, kind) {
                (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) => {
                    // sock_extended_err: the number, then one byte for the origin.
                    let errno = array(data, 0).map(c_int::from_ne_bytes)?;
                    return Some((errno, *data.get(4)?));
                }
                _ => rest = next,
            }
        }
        None
    }

    /// The control messages in the first `len` bytes.
    pub(super) fn read(&self, len: usize) -> Ancillary {
        let mut ancillary = Ancillary::default();
        let mut rest = self.0.get(..len).unwrap_or_default();
        while let Some((level, kind, data, next)) = first(rest) {
            match (level, kind) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    ancillary.to = local_v4(data);
                    ancillary.to_many = is_to_many(data);
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    ancillary.to = local_v6(data);
                    ancillary.to_many = ancillary.to.is_some_and(|to| to.ip.is_multicast());
                }
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    ancillary.segment = array(data, 0).map(c_int::from_ne_bytes)
                }
                _ => {}
            }
            rest = next;
        }
        ancillary
    }
}

/// What the kernel reports with a datagram.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ancillary {
    /// The address that it was sent to.
    pub(super) to: Option<Local>,
    /// That is a broadcast or multicast address.
    pub(super) to_many: bool,
    /// The size of the datagrams that were coalesced into one.
    pub(super) segment: Option<c_int>,
}

/// Without a broadcast, the address in the header is also the one to reply from.
fn is_to_many(info: &[u8]) -> bool {
    array::<4>(info, 4) != array::<4>(info, 8)
}

/// Level, kind and data of the first message, and the bytes after it.
fn first(rest: &[u8]) -> Option<(c_int, c_int, &[u8], &[u8])> {
    let len = usize::from_ne_bytes(array(rest, 0)?);
    let level = c_int::from_ne_bytes(array(rest, WORD)?);
    let kind = c_int::from_ne_bytes(array(rest, WORD + 4)?);
    let data = rest.get(HEADER..len)?;
    // The last one may lack the padding of its word.
    let next = rest.get(len.next_multiple_of(WORD)..).unwrap_or_default();
    Some((level, kind, data, next))
}

/// The address to reply from in in_pktinfo, not that in the header, which may be of a broadcast.
fn local_v4(info: &[u8]) -> Option<Local> {
    Some(Local {
        ip: Ipv4Addr::from(array::<4>(info, 4)?).into(),
        interface: 0,
    })
}

fn local_v6(info: &[u8]) -> Option<Local> {
    let ip = Ipv6Addr::from(array::<16>(info, 0)?);
    let interface = u32::from_ne_bytes(array(info, 16)?);
    Some(Local {
        ip: ip.into(),
        // Any other address is reached by the routes, which may lead back through another
        // interface.
        interface: if ip.is_unicast_link_local() {
            interface
        } else {
            0
        },
    })
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

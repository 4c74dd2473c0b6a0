//! Version 2: binary, with optional fields after the addresses.

use super::{Addresses, Header, InvalidHeader, SIGNATURE_V2, tlv};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The part that every header has: signature, version and command, family and protocol, length.
pub(super) const FIXED: usize = 16;
/// The addresses of each family.
const INET: usize = 12;
const INET6: usize = 36;
pub(super) const UNIX: usize = 216;

const VERSION: u8 = 2;
const LOCAL: u8 = 0;
const PROXY: u8 = 1;
const STREAM: u8 = 1;
const DATAGRAM: u8 = 2;

#[derive(Clone, Copy, PartialEq)]
enum Family {
    Unspec,
    Inet,
    Inet6,
    Unix,
}

impl Family {
    fn of(code: u8) -> Option<Self> {
        [Self::Unspec, Self::Inet, Self::Inet6, Self::Unix]
            .get(usize::from(code))
            .copied()
    }

    fn size(self) -> usize {
        match self {
            Self::Unspec => 0,
            Self::Inet => INET,
            Self::Inet6 => INET6,
            Self::Unix => UNIX,
        }
    }
}

pub(super) fn parse<'a>(
    bytes: &'a [u8],
    reader: &mut tlv::TlvReader,
) -> Result<Option<Header<'a>>, InvalidHeader> {
    let Some(first) = bytes.get(SIGNATURE_V2.len()) else {
        return Ok(None);
    };
    if first >> 4 != VERSION {
        return Err(InvalidHeader::Version);
    }
    let is_local = match first & 0xf {
        LOCAL => true,
        PROXY => false,
        _ => return Err(InvalidHeader::Command),
    };
    let Some(second) = bytes.get(SIGNATURE_V2.len() + 1) else {
        return Ok(None);
    };
    // With LOCAL even the family is ignored.
    let (family, has_protocol) = if is_local {
        (Family::Unspec, false)
    } else {
        let family = Family::of(second >> 4).ok_or(InvalidHeader::Family)?;
        match second & 0xf {
            protocol @ 0..=2 => (family, protocol != 0),
            _ => return Err(InvalidHeader::Protocol),
        }
    };
    let Some(&[high, low]) = bytes.get(FIXED - 2..FIXED) else {
        return Ok(None);
    };
    let end = FIXED + usize::from(u16::from_be_bytes([high, low]));
    let tlvs_at = FIXED + family.size();
    if end < tlvs_at {
        return Err(InvalidHeader::TooShort);
    }
    if family != Family::Unspec {
        reader.advance(bytes, tlvs_at, end)?;
    }
    let Some(header) = bytes.get(..end) else {
        return Ok(None);
    };
    let tlvs = match family {
        _ if is_local => &[],
        Family::Unspec => tlvs_without_addresses(header, reader)?,
        _ => {
            reader.verify(header)?;
            &header[tlvs_at..]
        }
    };
    let addresses = if has_protocol {
        addresses(family, &header[FIXED..])
    } else {
        Addresses::Own
    };
    Ok(Some(Header {
        addresses,
        tlvs,
        taken: end,
    }))
}

/// Addresses of family UNSPEC have no defined length, so TLVs may begin anywhere. Senders write no
/// addresses then; bytes that are not valid TLVs from first to last count as addresses, and are
/// ignored.
fn tlvs_without_addresses<'a>(
    header: &'a [u8],
    reader: &mut tlv::TlvReader,
) -> Result<&'a [u8], InvalidHeader> {
    if reader.advance(header, FIXED, header.len()).is_err() {
        return Ok(&[]);
    }
    reader.verify(header)?;
    Ok(&header[FIXED..])
}

fn addresses(family: Family, block: &[u8]) -> Addresses {
    let port = |at: usize| u16::from_be_bytes([block[at], block[at + 1]]);
    let both = |source: IpAddr, destination: IpAddr, ports: usize| Addresses::Ip {
        source: SocketAddr::new(source, port(ports)),
        destination: SocketAddr::new(destination, port(ports + 2)),
    };
    match family {
        Family::Unspec => Addresses::Own,
        Family::Inet => {
            let ip = |at: usize| Ipv4Addr::from(array::<4>(&block[at..]));
            both(ip(0).into(), ip(4).into(), 8)
        }
        Family::Inet6 => {
            let ip = |at: usize| Ipv6Addr::from(array::<16>(&block[at..]));
            both(ip(0).into(), ip(16).into(), 32)
        }
        Family::Unix => Addresses::Unix(Box::new(array(block))),
    }
}

/// The first bytes of a slice, which must have them.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[..N]);
    array
}

pub(super) fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// With a checksum, and with those of `tlvs`, from an accepted header, that fit. Where the two ends
/// are of different families, the IPv4 one becomes an IPv6 address. Without addresses the command
/// is LOCAL, which every receiver must accept; HAProxy refuses PROXY with UNSPEC.
pub fn encode(addresses: &Addresses, tlvs: &[u8]) -> Vec<u8> {
    encode_for(STREAM, addresses, tlvs)
}

/// The same in front of a datagram.
pub fn encode_datagram(addresses: &Addresses, tlvs: &[u8]) -> Vec<u8> {
    encode_for(DATAGRAM, addresses, tlvs)
}

fn encode_for(transport: u8, addresses: &Addresses, tlvs: &[u8]) -> Vec<u8> {
    let mut block = Vec::with_capacity(UNIX);
    let family = match addresses {
        Addresses::Own => Family::Unspec,
        Addresses::Unix(both) => {
            block.extend_from_slice(&both[..]);
            Family::Unix
        }
        Addresses::Ip {
            source,
            destination,
        } => {
            let family = match (source.ip(), destination.ip()) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    block.extend_from_slice(&from.octets());
                    block.extend_from_slice(&to.octets());
                    Family::Inet
                }
                (from, to) => {
                    block.extend_from_slice(&mapped(from).octets());
                    block.extend_from_slice(&mapped(to).octets());
                    Family::Inet6
                }
            };
            block.extend_from_slice(&source.port().to_be_bytes());
            block.extend_from_slice(&destination.port().to_be_bytes());
            family
        }
    };
    block.extend_from_slice(&[tlv::CRC32C, 0, tlv::CHECKSUM as u8]);
    let checksum_at = FIXED + block.len();
    block.extend_from_slice(&[0; tlv::CHECKSUM]);
    block.extend(tlv::passed_on(tlvs, usize::from(u16::MAX) - block.len()));

    let (command, protocol) = match family {
        Family::Unspec => (LOCAL, 0),
        _ => (PROXY, transport),
    };
    let mut header = Vec::with_capacity(FIXED + block.len());
    header.extend_from_slice(SIGNATURE_V2);
    header.extend_from_slice(&[VERSION << 4 | command, (family as u8) << 4 | protocol]);
    header.extend_from_slice(&u16::try_from(block.len()).unwrap_or(u16::MAX).to_be_bytes());
    header.append(&mut block);
    let after = checksum_at + tlv::CHECKSUM;
    let checksum = tlv::checksum(&header[..checksum_at], &header[after..]);
    header[checksum_at..after].copy_from_slice(&checksum.to_be_bytes());
    header
}

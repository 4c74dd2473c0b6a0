//! Version 1: a line of text.

use super::{Addresses, Header, InvalidHeader, SIGNATURE_V1};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

/// The longest line, its CR and LF included.
const MAX_LINE: usize = 107;
const MAX_IPV4: usize = 15;
/// Of the form that ends in an IPv4 address.
const MAX_IPV6: usize = 45;
const MAX_PORT: usize = 5;

pub(super) fn parse(bytes: &[u8]) -> Result<Option<Header<'_>>, InvalidHeader> {
    let line = &bytes[..bytes.len().min(MAX_LINE)];
    let Some(rest) = line.get(SIGNATURE_V1.len()..) else {
        return Ok(None);
    };
    let mut fields = Fields {
        rest,
        max: MAX_LINE - SIGNATURE_V1.len(),
    };
    let addresses = if fields.is_kind(b"TCP4 ") {
        fields.addresses(InvalidHeader::Ipv4, could_be_ipv4, whole::<Ipv4Addr>)?
    } else if fields.is_kind(b"TCP6 ") {
        fields.addresses(InvalidHeader::Ipv6, could_be_ipv6, whole::<Ipv6Addr>)?
    } else if fields.is_kind(b"UNKNOWN") {
        fields.unknown()?
    } else if ["TCP4 ", "TCP6 ", "UNKNOWN"]
        .map(str::as_bytes)
        .iter()
        .any(|k| k.starts_with(rest))
    {
        None
    } else {
        return Err(InvalidHeader::Kind);
    };
    Ok(addresses.map(|addresses| Header {
        addresses,
        tlvs: &[],
        taken: line.len() - fields.rest.len(),
    }))
}

/// The part of the line that has arrived, from the kind on.
struct Fields<'a> {
    rest: &'a [u8],
    /// The longest that `rest` can become.
    max: usize,
}

impl<'a> Fields<'a> {
    fn is_kind(&mut self, kind: &[u8]) -> bool {
        let is = self.rest.starts_with(kind);
        if is {
            self.skip(kind.len());
        }
        is
    }

    fn skip(&mut self, n: usize) {
        self.rest = &self.rest[n..];
        self.max -= n;
    }

    /// Everything up to the end of the line is ignored.
    fn unknown(&mut self) -> Result<Option<Addresses>, InvalidHeader> {
        if let Some(at) = self.rest.windows(2).position(|two| two == b"\r\n") {
            self.skip(at + 2);
            return Ok(Some(Addresses::Own));
        }
        let cr_at = self.max - 2;
        match self.rest.get(cr_at..) {
            None | Some([] | [b'\r']) => Ok(None),
            Some(_) => Err(InvalidHeader::LineTooLong),
        }
    }

    fn addresses(
        &mut self,
        wrong: InvalidHeader,
        could_be: fn(&[u8]) -> bool,
        ip: fn(&str) -> Option<IpAddr>,
    ) -> Result<Option<Addresses>, InvalidHeader> {
        let Some(source) = self.field(b' ', wrong, could_be, ip)? else {
            return Ok(None);
        };
        let Some(destination) = self.field(b' ', wrong, could_be, ip)? else {
            return Ok(None);
        };
        let Some(source_port) = self.field(b' ', InvalidHeader::Port, could_be_port, port)? else {
            return Ok(None);
        };
        let Some(destination_port) = self.field(b'\r', InvalidHeader::Port, could_be_port, port)?
        else {
            return Ok(None);
        };
        match self.rest.first() {
            None if self.max == 0 => return Err(InvalidHeader::LineTooLong),
            None => return Ok(None),
            Some(b'\n') => self.skip(1),
            Some(_) => return Err(InvalidHeader::LineEnd),
        }
        Ok(Some(Addresses::Ip {
            source: SocketAddr::new(source, source_port),
            destination: SocketAddr::new(destination, destination_port),
        }))
    }

    /// Reads the next field and the byte that ends it. A part of a field is checked as well.
    fn field<T>(
        &mut self,
        end: u8,
        wrong: InvalidHeader,
        could_be: fn(&[u8]) -> bool,
        read: fn(&str) -> Option<T>,
    ) -> Result<Option<T>, InvalidHeader> {
        let length = self.rest.iter().position(|byte| *byte == end);
        let field = &self.rest[..length.unwrap_or(self.rest.len())];
        if !could_be(field) {
            return Err(wrong);
        }
        let Some(length) = length else {
            return if field.len() < self.max {
                Ok(None)
            } else {
                Err(InvalidHeader::LineTooLong)
            };
        };
        let text = std::str::from_utf8(field).map_err(|_| wrong)?;
        let value = read(text).ok_or(wrong)?;
        self.skip(length + 1);
        Ok(Some(value))
    }
}

/// The parsers of the standard library are exact: no leading zeros in IPv4, no zone, no brackets.
fn whole<T: FromStr + Into<IpAddr>>(text: &str) -> Option<IpAddr> {
    text.parse::<T>().ok().map(Into::into)
}

fn port(text: &str) -> Option<u16> {
    text.parse().ok()
}

fn is_number(digits: &[u8], most: usize) -> bool {
    digits.iter().all(u8::is_ascii_digit)
        && digits.len() <= most
        && (digits.len() < 2 || digits[0] != b'0')
}

fn could_be_port(field: &[u8]) -> bool {
    is_number(field, MAX_PORT)
}

fn could_be_ipv4(field: &[u8]) -> bool {
    field.len() <= MAX_IPV4 && field.split(|b| *b == b'.').all(|octet| is_number(octet, 3))
}

fn could_be_ipv6(field: &[u8]) -> bool {
    let is_allowed = |b: &u8| b.is_ascii_hexdigit() || matches!(b, b':' | b'.');
    field.len() <= MAX_IPV6 && field.iter().all(is_allowed)
}

/// Where the two ends are of different families, the IPv4 one is written as an IPv6 address.
pub fn encode(addresses: &Addresses) -> Vec<u8> {
    let (source, destination) = match addresses {
        Addresses::Own | Addresses::Unix(_) => return b"PROXY UNKNOWN\r\n".to_vec(),
        Addresses::Ip {
            source,
            destination,
        } => (*source, *destination),
    };
    let (kind, from, to) = match (source.ip(), destination.ip()) {
        (from @ IpAddr::V4(_), to @ IpAddr::V4(_)) => ("TCP4", from, to),
        (from, to) => (
            "TCP6",
            super::v2::mapped(from).into(),
            super::v2::mapped(to).into(),
        ),
    };
    let (from_port, to_port) = (source.port(), destination.port());
    format!("PROXY {kind} {from} {to} {from_port} {to_port}\r\n").into_bytes()
}

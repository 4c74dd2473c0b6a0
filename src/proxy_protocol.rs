//! The PROXY protocol, versions 1 and 2: from bytes to a header and back. Pure.
//!
//! The parser is strict: it refuses bytes that the specification does not allow as soon as they
//! have arrived.

mod invalid_header;
mod tlv;
mod v1;
mod v2;
mod watch;

pub use invalid_header::InvalidHeader;
pub use v1::encode as encode_v1;
pub use v2::{encode as encode_v2, encode_datagram as encode_v2_datagram};
pub use watch::Watch;

use std::net::SocketAddr;

/// The first bytes of a header, by which the two versions are distinguished.
const SIGNATURE_V1: &[u8] = b"PROXY ";
pub const SIGNATURE_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Both ends of a connection as a header names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addresses {
    /// None: LOCAL, UNKNOWN or UNSPEC. The addresses of the connection itself count.
    Own,
    Ip {
        source: SocketAddr,
        destination: SocketAddr,
    },
    /// Two unix sockets, 108 bytes each as in the header. In a box: they are rare, and large.
    Unix(Box<[u8; v2::UNIX]>),
}

/// A complete and valid header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header<'a> {
    pub addresses: Addresses,
    /// As received; see [`encode_v2`].
    pub tlvs: &'a [u8],
    /// Its length in bytes. The bytes after it are the client's.
    pub taken: usize,
}

/// Reads a header while its bytes arrive.
#[derive(Debug, Default)]
pub struct Parser {
    /// Kept between calls, so that a long header in small pieces is not parsed again for each.
    tlvs: tlv::TlvReader,
}

impl Parser {
    /// `bytes` are all bytes so far, at every call from the first one on. `None`: more are needed.
    pub fn parse<'a>(&mut self, bytes: &'a [u8]) -> Result<Option<Header<'a>>, InvalidHeader> {
        if begins(bytes, SIGNATURE_V1) {
            v1::parse(bytes)
        } else if begins(bytes, SIGNATURE_V2) {
            v2::parse(bytes, &mut self.tlvs)
        } else {
            Err(InvalidHeader::NoHeader)
        }
    }
}

/// Whether these bytes are the signature, or begin it.
fn begins(bytes: &[u8], signature: &[u8]) -> bool {
    let both = bytes.len().min(signature.len());
    bytes[..both] == signature[..both]
}

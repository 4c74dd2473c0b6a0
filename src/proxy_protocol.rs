//! The PROXY protocol, versions 1 and 2: from bytes to a header and back. Pure.
//!
//! The reader is exact: what the specification does not allow is refused, and as soon as it is
//! known.

mod refusal;
mod tlv;
mod v1;
mod v2;
mod watch;

pub use refusal::Refusal;
pub use v1::encode as encode_v1;
pub use v2::{encode as encode_v2, encode_datagram as encode_v2_datagram};
pub use watch::Watch;

use std::net::SocketAddr;

/// What stands at the very beginning of a header: nothing else tells the two versions apart.
const SIGNATURE_V1: &[u8] = b"PROXY ";
pub const SIGNATURE_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Both ends of a connection as a header names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addresses {
    /// None: LOCAL, UNKNOWN or UNSPEC. Those of the connection that the header came on count.
    Own,
    Ip {
        source: SocketAddr,
        destination: SocketAddr,
    },
    /// Two unix sockets, 108 bytes each as in the header. In a box: they are rare, and large.
    Unix(Box<[u8; v2::UNIX]>),
}

/// A header that is complete and right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header<'a> {
    pub addresses: Addresses,
    /// As they came; see [`encode_v2`].
    pub tlvs: &'a [u8],
    /// So many bytes it took. What follows is the client's.
    pub taken: usize,
}

/// Reads a header while its bytes arrive.
#[derive(Debug, Default)]
pub struct Parser {
    /// Kept between calls, so that a long header in small pieces is not walked through again for
    /// each.
    tlvs: tlv::Walk,
}

impl Parser {
    /// `bytes` is everything that has come so far, at every call from the first byte on. `None`:
    /// more is needed.
    pub fn parse<'a>(&mut self, bytes: &'a [u8]) -> Result<Option<Header<'a>>, Refusal> {
        if begins(bytes, SIGNATURE_V1) {
            v1::parse(bytes)
        } else if begins(bytes, SIGNATURE_V2) {
            v2::parse(bytes, &mut self.tlvs)
        } else {
            Err(Refusal::NoHeader)
        }
    }
}

/// Whether this is the signature, or so much of it as has come.
fn begins(bytes: &[u8], signature: &[u8]) -> bool {
    let both = bytes.len().min(signature.len());
    bytes[..both] == signature[..both]
}

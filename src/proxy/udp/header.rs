//! PROXY protocol headers in front of datagrams: version 2 only, since version 1 is for
//! connections.

use super::table::More;
use crate::proxy_protocol::{Addresses, Parser, SIGNATURE_V2, encode_v2_datagram};
use std::net::SocketAddr;

/// What a datagram from a trusted peer begins with.
pub(super) enum Begins {
    /// A header of `taken` bytes, which names the client and the address that it sent to, or
    /// neither: then the peer is the client.
    Header {
        taken: usize,
        named: Option<(SocketAddr, SocketAddr)>,
        tlvs: Vec<u8>,
    },
    Payload,
    /// A header that is invalid or incomplete.
    Wrong,
}

pub(super) fn has_signature(datagram: &[u8]) -> bool {
    datagram.starts_with(SIGNATURE_V2)
}

pub(super) fn read(datagram: &[u8], keep_tlvs: bool) -> Begins {
    if !has_signature(datagram) {
        return Begins::Payload;
    }
    match Parser::default().parse(datagram) {
        Ok(Some(header)) => Begins::Header {
            taken: header.taken,
            named: match header.addresses {
                Addresses::Ip {
                    source,
                    destination,
                } => Some((source, destination)),
                // The peer itself is the client.
                Addresses::Own | Addresses::Unix(_) => None,
            },
            tlvs: if keep_tlvs {
                header.tlvs.to_vec()
            } else {
                Vec::new()
            },
        },
        Ok(None) | Err(_) => Begins::Wrong,
    }
}

/// For the backend: the two ends as a header has named them, or those of the flow itself.
pub(super) fn write(
    peer: SocketAddr,
    local: SocketAddr,
    more: Option<&More>,
    tlvs: &[u8],
) -> Box<[u8]> {
    let (source, destination) = more.and_then(|m| m.named).unwrap_or((peer, local));
    let addresses = Addresses::Ip {
        source,
        destination,
    };
    encode_v2_datagram(&addresses, tlvs).into_boxed_slice()
}

//! A check against bytes instead of a server, for fuzz targets and tests.

use super::{CheckCredentials, CredentialsError, dialogue::Step, protocol::Exchange, tls};
use crate::plan::{Addr, Check, reason::CheckResult};
use std::net::{Ipv4Addr, SocketAddr};

/// Of every query; a reply with another id is none.
const QUERY_ID: u16 = 0x1234;

/// One kind of check with its settings.
pub struct Replay(Exchange);

impl Replay {
    pub fn new(check: &Check) -> Result<Self, CredentialsError> {
        let addr = Addr::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
        let secret = CheckCredentials::load(check)?.secret;
        Ok(Self(Exchange::new(check, &addr, secret)))
    }

    /// The result of a check to which a server sends these bytes and then ends the connection.
    /// They arrive in pieces of at most `piece` bytes.
    ///
    /// # Panics
    ///
    /// If the dialogue makes no progress, or consumes more than there is.
    pub fn run(&self, received: &[u8], piece: usize) -> CheckResult {
        let protocol = match &self.0 {
            Exchange::Stream(protocol) => protocol,
            Exchange::Datagram(query) => {
                let answer = query.receive(QUERY_ID, received);
                return answer.map_or(CheckResult::Timeout, |answer| answer.result);
            }
        };
        let mut dialogue = protocol.begin();
        let most = dialogue.max_bytes().min(received.len());
        let mut pieces = received[..most].chunks(piece);
        let (mut unread, mut ended) = (Vec::new(), false);
        loop {
            match dialogue.receive(&unread, ended) {
                Step::Done(answer) => return answer.result,
                Step::Send { consumed, bytes } => {
                    assert!(consumed > 0 || !bytes.is_empty(), "no progress");
                    unread.drain(..consumed);
                }
                Step::StartTls { consumed } => {
                    unread.drain(..consumed);
                    dialogue.encrypted(Some(vec![7; 32]));
                }
                Step::Wait if ended => return CheckResult::Closed,
                Step::Wait => match pieces.next() {
                    Some(piece) => unread.extend_from_slice(piece),
                    None => ended = true,
                },
            }
        }
    }
}

/// What a login is bound to by this certificate, in DER.
pub fn hash_certificate(certificate: &[u8]) -> Option<Vec<u8>> {
    tls::end_point::of(certificate)
}

//! The PROXY protocol header of a connection: the one that a proxy in front sends, and the one that
//! the backend gets.

use crate::{
    plan::{AcceptProxy, SendProxy, reason::RejectReason},
    proxy::relay::FirstBytes,
    proxy_protocol::{Addresses, InvalidHeader, Parser, encode_v1, encode_v2},
    runtime::{
        executor,
        net::{Client, Stream},
    },
    session::{registry::Session, service::Service},
};
use std::{
    fmt,
    future::poll_fn,
    io,
    task::Poll,
    time::{Duration, Instant},
};

/// Bytes of one read at most: the header, and usually the client's first request.
const READ: usize = 4096;

/// What a client sent before a backend was searched.
pub(super) struct Preamble {
    addresses: Addresses,
    tlvs: Vec<u8>,
    /// The bytes by then, after a header if there was one.
    pub(super) payload: Vec<u8>,
}

impl Default for Preamble {
    /// Without a header the client is the other end of the connection.
    fn default() -> Self {
        Self {
            addresses: Addresses::Own,
            tlvs: Vec::new(),
            payload: Vec::new(),
        }
    }
}

impl Preamble {
    /// `header`: of a client in another process, see [`Self::header`]. `None`: it is none.
    pub(super) fn of(header: Option<&[u8]>, payload: Vec<u8>) -> Option<Self> {
        let Some(bytes) = header else {
            return Some(Self {
                payload,
                ..Self::default()
            });
        };
        let header = Parser::default().parse(bytes).ok().flatten()?;
        Some(Self {
            tlvs: header.tlvs.to_vec(),
            addresses: header.addresses,
            payload,
        })
    }

    /// What the header of the client said, as one of version 2, if that is more than nothing.
    pub(super) fn header(&self) -> Option<Vec<u8>> {
        let is_empty = self.addresses == Addresses::Own && self.tlvs.is_empty();
        (!is_empty).then(|| encode_v2(&self.addresses, &self.tlvs))
    }

    /// What the backend gets first.
    pub(super) fn into_first(
        self,
        service: &Service,
        session: &Session,
        client: &Stream,
    ) -> Option<Box<FirstBytes>> {
        let (tlvs, payload) = (self.tlvs, self.payload);
        let addresses = || match self.addresses {
            Addresses::Own => own(session, client),
            given => given,
        };
        let header = match service.send_proxy {
            SendProxy::Off => Vec::new(),
            SendProxy::V1 => encode_v1(&addresses()),
            SendProxy::V2 { .. } => encode_v2(&addresses(), &tlvs),
        };
        FirstBytes::new(header, payload)
    }
}

/// The two ends of the connection itself. A client on a unix socket has no address.
fn own(session: &Session, client: &Stream) -> Addresses {
    match (session.peer, client.local_addr()) {
        (Client::Ip(source), Some(destination)) => Addresses::Ip {
            source,
            destination,
        },
        _ => Addresses::Own,
    }
}

/// Reads what the client has sent by now, which takes no longer than asking whether there is
/// something. An end of the stream is found again by the relay.
pub(super) fn read_early(client: &Stream) -> io::Result<Vec<u8>> {
    let mut buffer = [0; READ];
    match client.poll_read(&mut buffer) {
        Poll::Ready(read) => Ok(buffer[..read?].to_vec()),
        Poll::Pending => Ok(Vec::new()),
    }
}

enum PreambleFailure {
    Wrong(InvalidHeader),
    Missing,
    Incomplete,
    Broken(io::Error),
    Late(Duration),
    Terminated,
}

/// Reads the header that this peer begins with, and enters the client that it names into the
/// session. The time limit runs from `accepted`, however slowly the bytes come.
pub(super) async fn receive(
    service: &Service,
    accept: &AcceptProxy,
    client: &Stream,
    session: &Session,
    accepted: Instant,
) -> Result<Preamble, RejectReason> {
    let keep_tlvs = service.send_proxy == SendProxy::V2 { tlvs: true };
    let failure = match read(accept, client, session, keep_tlvs, accepted).await {
        Ok(preamble) => {
            match &preamble.addresses {
                Addresses::Own => {}
                Addresses::Ip { source, .. } => session.set_proxied(Client::Ip(*source)),
                Addresses::Unix(_) => session.set_proxied(Client::Unix),
            }
            return Ok(preamble);
        }
        Err(failure) => failure,
    };
    let reason = failure.reason();
    service.log_rejection(reason, &session.peer, Some(&failure), Instant::now());
    Err(reason)
}

async fn read(
    accept: &AcceptProxy,
    client: &Stream,
    session: &Session,
    keep_tlvs: bool,
    accepted: Instant,
) -> Result<Preamble, PreambleFailure> {
    let deadline = accepted + accept.timeout;
    let mut parser = Parser::default();
    let mut bytes = Vec::new();
    loop {
        let so_far = bytes.len();
        // No more than it may need: doubling would keep twice the longest header for each client
        // that does not end it.
        bytes.reserve_exact(READ.max(so_far / 4));
        bytes.resize(so_far + READ, 0);
        let n = poll_fn(|cx| {
            session.wake_by(cx.waker());
            if session.must_end().is_some() {
                return Poll::Ready(Err(PreambleFailure::Terminated));
            }
            let read = client.poll_read(&mut bytes[so_far..]);
            if read.is_pending() {
                if Instant::now() >= deadline {
                    return Poll::Ready(Err(PreambleFailure::Late(accept.timeout)));
                }
                executor::wake_at(deadline);
            }
            read.map_err(PreambleFailure::Broken)
        })
        .await?;
        bytes.truncate(so_far + n);
        if n == 0 {
            return Err(if so_far == 0 {
                PreambleFailure::Missing
            } else {
                PreambleFailure::Incomplete
            });
        }
        if let Some(header) = parser.parse(&bytes).map_err(PreambleFailure::Wrong)? {
            let tlvs = if keep_tlvs { header.tlvs } else { &[] };
            return Ok(Preamble {
                tlvs: tlvs.to_vec(),
                payload: bytes[header.taken..].to_vec(),
                addresses: header.addresses,
            });
        }
    }
}

impl PreambleFailure {
    fn reason(&self) -> RejectReason {
        match self {
            Self::Wrong(_) => RejectReason::ProxyHeader,
            Self::Missing | Self::Incomplete | Self::Broken(_) => RejectReason::ProxyEnded,
            Self::Late(_) => RejectReason::ProxyTimeout,
            Self::Terminated => RejectReason::Drained,
        }
    }
}

impl fmt::Display for PreambleFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wrong(refusal) => refusal.fmt(f),
            Self::Missing => f.write_str("it ended without a byte"),
            Self::Incomplete => f.write_str("it ended before the header was complete"),
            Self::Broken(error) => write!(f, "it broke before the header was complete: {error}"),
            Self::Late(limit) => write!(f, "the header was not complete after {limit:?}"),
            Self::Terminated => f.write_str("the process ends"),
        }
    }
}

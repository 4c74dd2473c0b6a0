//! Asks name servers: by datagram, and by TCP what is too long for one.

use super::{
    message::{self, Edns, NoReply, Reply},
    name::Name,
};
use crate::{
    plan::{Addr, Rcode, RecordType},
    probe::connection::connect,
    sys::mutex::Mutex,
};
use std::{
    collections::HashMap,
    fmt, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UdpSocket,
    time::{Instant, timeout_at},
};

const LONGEST: usize = 65_535;
/// A server that did not answer is asked last for so long.
const ASIDE: Duration = Duration::from_secs(30);

/// Name servers in the order in which they are asked.
#[derive(Debug, Clone)]
pub(super) struct Resolver {
    pub(super) servers: Vec<SocketAddr>,
    /// For each server.
    pub(super) timeout: Duration,
    /// Servers that did not answer, and until when they are asked last.
    pub(super) aside: Aside,
}

pub(super) type Aside = Arc<Mutex<HashMap<SocketAddr, Instant>>>;

impl Resolver {
    /// The first reply that says what there is, or that there is nothing.
    pub(super) async fn ask(&self, name: &Name, kind: RecordType) -> Result<Reply, AskError> {
        let mut failures = Vec::new();
        for server in self.in_order() {
            match self.ask_server(server, name, kind).await {
                Ok(reply) => match Rcode::of_extended(reply.code) {
                    Some(Rcode::NoError | Rcode::NxDomain) => return Ok(reply),
                    _ => failures.push((server, Failure::Code(reply.code))),
                },
                Err(e) => {
                    self.aside.lock().insert(server, Instant::now() + ASIDE);
                    failures.push((server, e));
                }
            }
        }
        Err(AskError {
            name: name.clone(),
            kind,
            failures,
        })
    }

    fn in_order(&self) -> Vec<SocketAddr> {
        let now = Instant::now();
        let mut aside = self.aside.lock();
        aside.retain(|_, until| *until > now);
        let mut servers = self.servers.clone();
        // Others stay in their order.
        servers.sort_by_key(|server| aside.contains_key(server));
        servers
    }

    async fn ask_server(
        &self,
        server: SocketAddr,
        name: &Name,
        kind: RecordType,
    ) -> Result<Reply, Failure> {
        let began = Instant::now();
        let deadline = began + self.timeout;
        let mut reply = self
            .by_datagram(server, name, kind, Edns::Yes, began)
            .await?;
        if let Some(Rcode::FormErr | Rcode::NotImp) = Rcode::of_extended(reply.code) {
            // It may not know EDNS.
            reply = self
                .by_datagram(server, name, kind, Edns::No, began)
                .await?;
        }
        if !reply.is_truncated {
            return Ok(reply);
        }
        match timeout_at(deadline, by_stream(server, name, kind)).await {
            Ok(Ok(reply)) if reply.is_truncated => Err(Failure::Truncated),
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(e)) => Err(Failure::Stream(Box::new(e))),
            Err(_) => Err(Failure::Stream(Box::new(Failure::Timeout(self.timeout)))),
        }
    }

    /// From a socket of its own, so that its port cannot be guessed. A datagram may be lost: half
    /// of the time is for a second one.
    async fn by_datagram(
        &self,
        server: SocketAddr,
        name: &Name,
        kind: RecordType,
        edns: Edns,
        began: Instant,
    ) -> Result<Reply, Failure> {
        let any: SocketAddr = match server {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any).await.map_err(Failure::Network)?;
        socket.connect(server).await.map_err(Failure::Network)?;
        let id = rand::random();
        let asked = message::ask(id, name, kind, edns);
        for until in [began + self.timeout / 2, began + self.timeout] {
            socket.send(&asked).await.map_err(Failure::Network)?;
            match timeout_at(until, receive(&socket, id, name, kind)).await {
                Ok(reply) => return reply,
                Err(_) => continue,
            }
        }
        Err(Failure::Timeout(self.timeout))
    }
}

async fn receive(
    socket: &UdpSocket,
    id: u16,
    name: &Name,
    kind: RecordType,
) -> Result<Reply, Failure> {
    let mut buffer = vec![0; LONGEST];
    loop {
        let length = socket.recv(&mut buffer).await.map_err(Failure::Network)?;
        match message::read(id, name, kind, &buffer[..length]) {
            Ok(reply) => return Ok(reply),
            Err(NoReply::Broken) => return Err(Failure::Broken),
            // Forged, as one must suppose.
            Err(NoReply::Other) => {}
        }
    }
}

async fn by_stream(server: SocketAddr, name: &Name, kind: RecordType) -> Result<Reply, Failure> {
    let id = rand::random();
    let asked = message::ask(id, name, kind, Edns::Yes);
    let length = u16::try_from(asked.len()).unwrap_or_default();
    let connected = connect(&Addr::Tcp(server), true).await;
    let mut stream = connected.map_err(Failure::Network)?;
    let whole = [&length.to_be_bytes()[..], &asked].concat();
    stream.write_all(&whole).await.map_err(Failure::Network)?;
    let length = stream.read_u16().await.map_err(Failure::Network)?;
    let mut reply = vec![0; usize::from(length)];
    let read = stream.read_exact(&mut reply).await;
    read.map_err(Failure::Network)?;
    message::read(id, name, kind, &reply).map_err(|_| Failure::Broken)
}

/// What a server did instead of an answer.
#[derive(Debug)]
pub(super) enum Failure {
    Network(io::Error),
    Timeout(Duration),
    /// Its reply cannot be read.
    Broken,
    Code(u16),
    /// The same by TCP, after a truncated datagram.
    Stream(Box<Self>),
    /// Also by TCP.
    Truncated,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(e) => {
                let text = e.to_string();
                let plain = text.split(" (os error").next().unwrap_or_default();
                f.write_str(plain)
            }
            Self::Timeout(limit) => write!(f, "no reply within {limit:?} (`timeout`)"),
            Self::Broken => f.write_str("the reply is malformed"),
            Self::Code(code) => f.write_str(&Rcode::describe(*code)),
            Self::Stream(e) => write!(f, "the reply is truncated, and by TCP: {e}"),
            Self::Truncated => f.write_str("the reply is truncated, by TCP as well"),
        }
    }
}

/// No server has an answer.
#[derive(Debug)]
pub(super) struct AskError {
    name: Name,
    kind: RecordType,
    failures: Vec<(SocketAddr, Failure)>,
}

impl std::error::Error for AskError {}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: ", self.name, self.kind)?;
        for (n, (server, failure)) in self.failures.iter().enumerate() {
            let separator = if n > 0 { "; " } else { "" };
            write!(f, "{separator}{server}: {failure}")?;
        }
        Ok(())
    }
}

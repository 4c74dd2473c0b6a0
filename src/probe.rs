//! Checks a backend. Each kind of check is a dialogue: what is sent, and what the bytes that come
//! back mean; pure, one protocol per file below. Connecting, waiting, limits and closing are here,
//! once.

pub(crate) mod connection;
mod datagram;
mod dialogue;
mod dns;
mod expect;
mod http;
mod mysql;
mod postgres;
mod protocol;
mod redis;
pub mod replay;
pub(crate) mod resp;
pub(crate) mod secret;
pub(crate) mod tls;
mod transcript;

pub use secret::Secret;

use crate::{
    config::text::shorten::shorten,
    plan::{Addr, Check, CheckAt, SendProxy, StartTls, reason::CheckResult},
    proxy_protocol::{Addresses, encode_v1, encode_v2},
    upstream::health::Finding,
};
use connection::{Connection, connect};
use dialogue::{Answer, Dialogue, Step};
use protocol::Exchange;
use secret::SecretError;
use std::{fmt, io, net::SocketAddr, time::Duration};
use tls::{Encryption, TlsError};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout_at},
};

/// How many characters are kept of what a check received.
const MAX_TRANSCRIPT: usize = 500;
/// After the answer a server may have so many bytes more to send, and so much time for it, but
/// never so much that the next check would be late.
const MAX_DISCARDED: usize = 256 << 10;
const MAX_DISCONNECT_TIME: Duration = Duration::from_secs(1);

/// What one check found.
#[derive(Debug)]
pub struct CheckReport {
    pub result: CheckResult,
    pub finding: Finding,
    /// What was received, in short; never with a secret in it.
    pub transcript: String,
    pub took: Duration,
}

/// What a check needs besides its configuration, loaded at the start.
#[derive(Clone, Default)]
pub struct CheckCredentials {
    pub secret: Option<Secret>,
    encryption: Option<Encryption>,
}

impl CheckCredentials {
    /// Files may hang: call it by [`crate::sys::blocking`].
    pub fn load(check: &Check) -> Result<Self, CredentialsError> {
        let secret = check.kind.password().map(Secret::load).transpose();
        Ok(Self {
            secret: secret.map_err(CredentialsError::Secret)?,
            encryption: Encryption::load(&check.tls).map_err(CredentialsError::Tls)?,
        })
    }

    /// The keys of a check whose files have other contents in `new`, which was loaded for the same
    /// check.
    pub fn changed_contents(&self, new: &Self) -> Vec<&'static str> {
        let mut keys = Vec::new();
        if self.secret != new.secret {
            keys.push("password_file");
        }
        let verifies_alike = match (&self.encryption, &new.encryption) {
            (Some(before), Some(after)) => before.has_roots_of(after),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if !verifies_alike {
            keys.push("tls_ca");
        }
        keys
    }
}

/// Why a check cannot be made.
#[derive(Debug)]
pub enum CredentialsError {
    Secret(SecretError),
    Tls(TlsError),
}

impl std::error::Error for CredentialsError {}

impl fmt::Display for CredentialsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(e) => e.fmt(f),
            Self::Tls(e) => e.fmt(f),
        }
    }
}

/// Checks one address of a backend, any number of times.
pub struct Probe {
    addr: Addr,
    exchange: Exchange,
    /// The PROXY protocol header, which comes before anything else.
    header: Vec<u8>,
    encryption: Option<Encryption>,
    /// Whether TLS begins right after the connect.
    starts_with_tls: bool,
    /// What a certificate must name, if the configuration names nothing else.
    host: String,
    timeout: Duration,
    disconnect_time: Duration,
}

impl Probe {
    /// `backend` is an address of the backend that the configuration calls `text`; the check may
    /// name another address.
    pub fn new(
        backend: &Addr,
        text: &str,
        check: &Check,
        send_proxy: SendProxy,
        credentials: CheckCredentials,
    ) -> Self {
        let addr = match (&check.at, backend) {
            (CheckAt::Addr(addr), _) => addr.clone(),
            (CheckAt::Port(port), Addr::Tcp(address)) => {
                Addr::Tcp(SocketAddr::new(address.ip(), *port))
            }
            (CheckAt::Port(_) | CheckAt::Backend, addr) => addr.clone(),
        };
        let host = match (&check.at, &addr) {
            (CheckAt::Addr(_), Addr::Tcp(address)) => address.ip().to_string(),
            (_, Addr::Tcp(_)) => host_in(text).to_owned(),
            (_, Addr::Unix(_)) => "localhost".to_owned(),
        };
        Self {
            exchange: Exchange::new(check, &addr, credentials.secret),
            // A check has no client, and the header shows that; as in HAProxy.
            header: match send_proxy {
                SendProxy::Off => Vec::new(),
                SendProxy::V1 => encode_v1(&Addresses::Own),
                SendProxy::V2 { .. } => encode_v2(&Addresses::Own, &[]),
            },
            encryption: credentials.encryption,
            starts_with_tls: check.kind.info().tls == StartTls::AtOnce,
            host,
            addr,
            timeout: check.timeout,
            disconnect_time: MAX_DISCONNECT_TIME.min(check.fast_interval / 2),
        }
    }

    /// The address that is checked.
    pub fn addr(&self) -> &Addr {
        &self.addr
    }

    /// One check, under one deadline from the connect to the answer. The connection is still to be
    /// ended by the [`Disconnect`]. `random` is for what must not be guessed.
    pub async fn ask(&self, random: u64) -> (CheckReport, Option<Disconnect>) {
        let protocol = match &self.exchange {
            Exchange::Stream(protocol) => protocol,
            Exchange::Datagram(question) => {
                // The upper bits: all bits of the number are random.
                let id = (random >> 48) as u16;
                let report = datagram::ask(question, &self.addr, id, self.timeout).await;
                return (report, None);
            }
        };
        let began = Instant::now();
        let mut dialogue = protocol.begin();
        let mut progress = Progress {
            stage: "connecting",
            received: Vec::new(),
        };
        let run = self.run(&mut *dialogue, &mut progress);
        let done = timeout_at(began + self.timeout, run).await;
        let (answer, connection) = match done {
            Ok(Ok((answer, connection))) => (answer, Some(connection)),
            Ok(Err(e)) => {
                let (result, error) = match tls::error(&e) {
                    Some(error) => (CheckResult::Tls, error),
                    None => (CheckResult::of(&e), transcript::error(&e)),
                };
                let text = progress.describe(&error, &*dialogue);
                (Answer::new(result, text), None)
            }
            Err(_) => {
                let what = match progress.received.is_empty() {
                    true => "no answer",
                    false => "not all of the expected answer",
                };
                let error = format!("{what} within {:?}", self.timeout);
                let text = progress.describe(&error, &*dialogue);
                (Answer::new(CheckResult::Timeout, text), None)
            }
        };
        let report = CheckReport {
            result: answer.result,
            finding: answer.finding,
            // Servers and certificates may send a lot.
            transcript: shorten(&answer.transcript, MAX_TRANSCRIPT).into_owned(),
            took: began.elapsed(),
        };
        let disconnect = connection.map(|connection| Disconnect {
            connection,
            last_message: answer.last_message,
            time: self.disconnect_time,
        });
        (report, disconnect)
    }

    async fn run(
        &self,
        dialogue: &mut dyn Dialogue,
        progress: &mut Progress,
    ) -> io::Result<(Answer, Connection)> {
        // Inside TLS the end of the handshake and the first request are two pieces, as are a header
        // and what follows it, and the other side sends nothing in between: the second would wait
        // for the acknowledgement of the first, which takes 40 ms.
        let nodelay = self.encryption.is_some() || !self.header.is_empty();
        let mut connection = connect(&self.addr, nodelay).await?;
        if !self.header.is_empty() {
            progress.stage = "sending";
            connection.write_all(&self.header).await?;
        }
        if self.starts_with_tls {
            (connection, _) = self.encrypt(connection, progress).await?;
        }
        let (mut total, mut ended) = (0, false);
        loop {
            match dialogue.receive(&progress.received, ended) {
                Step::Done(answer) => return Ok((answer, connection)),
                Step::Send { consumed, bytes } => {
                    progress.received.drain(..consumed);
                    if !bytes.is_empty() {
                        progress.stage = "sending";
                        connection.write_all(&bytes).await?;
                        connection.flush().await?;
                    }
                }
                Step::StartTls { consumed } => {
                    progress.received.drain(..consumed);
                    // The server has no reason to send anything before TLS has begun: it may have
                    // been inserted on the way.
                    if !progress.received.is_empty() {
                        let shown = dialogue.show(&progress.received);
                        let text = format!("got {shown} before TLS had begun");
                        return Ok((Answer::new(CheckResult::Protocol, text), connection));
                    }
                    let end_point;
                    (connection, end_point) = self.encrypt(connection, progress).await?;
                    dialogue.encrypted(end_point);
                }
                Step::Wait => {
                    progress.stage = "waiting for the answer";
                    let most = dialogue.max_bytes();
                    if let Some(answer) = progress.give_up(ended, total == most, dialogue) {
                        return Ok((answer, connection));
                    }
                    let mut piece = [0; 1024];
                    let length = piece.len().min(most - total);
                    let n = read_some(&mut connection, &mut piece[..length]).await?;
                    progress.received.extend_from_slice(&piece[..n]);
                    total += n;
                    ended = n == 0;
                }
            }
        }
    }

    async fn encrypt(
        &self,
        connection: Connection,
        progress: &mut Progress,
    ) -> io::Result<(Connection, Option<Vec<u8>>)> {
        progress.stage = "beginning TLS";
        match &self.encryption {
            Some(encryption) => encryption.begin(connection, &self.host).await,
            None => Ok((connection, None)),
        }
    }
}

/// How far a check has come, for its transcript.
struct Progress {
    stage: &'static str,
    /// What was received and is not consumed.
    received: Vec<u8>,
}

impl Progress {
    fn describe(&self, error: &str, dialogue: &dyn Dialogue) -> String {
        format!("{}: {error}{}", self.stage, self.shown(dialogue))
    }

    fn shown(&self, dialogue: &dyn Dialogue) -> String {
        match &self.received[..] {
            [] => String::new(),
            bytes => format!("; got {}", dialogue.show(bytes)),
        }
    }

    /// The answer of a check that waits in vain: the server has ended the connection, or has sent
    /// as much as is read.
    fn give_up(&self, ended: bool, is_full: bool, dialogue: &dyn Dialogue) -> Option<Answer> {
        let shown = self.shown(dialogue);
        if ended {
            let text = format!("it closed before it had answered{shown}");
            return Some(Answer::new(CheckResult::Closed, text));
        }
        let most = dialogue.max_bytes();
        is_full.then(|| {
            let text = format!("no end of the answer after {most} bytes{shown}");
            Answer::new(CheckResult::Protocol, text)
        })
    }
}

/// A TLS connection that ends without close_notify has ended: what was received counts, not how it
/// ended.
async fn read_some(connection: &mut Connection, piece: &mut [u8]) -> io::Result<usize> {
    match connection.read(piece).await {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
        read => read,
    }
}

/// The host of an address text of the configuration, as a certificate names it.
fn host_in(text: &str) -> &str {
    let host = text.rsplit_once(':').map_or(text, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

/// The end of a connection to a server that has answered. The verdict does not wait for it.
pub struct Disconnect {
    connection: Connection,
    last_message: Vec<u8>,
    time: Duration,
}

impl Disconnect {
    /// Ends the connection so that the server sees a clean end: what it still sends is read, since
    /// closing a socket with unread bytes in it is a reset.
    pub async fn complete(mut self) {
        let end = async {
            self.connection.write_all(&self.last_message).await?;
            self.connection.shutdown().await?;
            let mut rest = [0; 2048];
            let mut total = 0;
            while total < MAX_DISCARDED {
                match self.connection.read(&mut rest).await? {
                    0 => break,
                    n => total += n,
                }
            }
            io::Result::Ok(())
        };
        // An error changes nothing: the answer is there.
        let _ = timeout_at(Instant::now() + self.time, end).await;
    }
}

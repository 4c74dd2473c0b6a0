//! A connection to a server that speaks the protocol of Redis: Redis itself, or Sentinel.

use super::{SourceError, excerpt::plain, redis_progress::Progress};
use crate::{
    plan::{Addr, RedisLogin, ServerAddress, Target},
    probe::{
        Secret,
        connection::{Connection, connect},
        resp::{self, Reply, Stop},
        tls::{self, Encryption},
    },
    sys::blocking,
};
use std::{fmt, io, net::ToSocketAddrs as _, time::Duration};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Of one reply.
const LIMITS: resp::Limits = resp::Limits {
    deepest: 4,
    // Of a sorted set or a hash each backend is two elements.
    widest: 2 * super::format::MOST_BACKENDS + 2,
    longest: 64 << 10,
    has_null_lists: true,
};
/// Of all replies that have not been taken.
const MOST_BYTES: usize = 16 << 20;
/// Read at once.
const PIECE: usize = 64 << 10;

/// A reply, with text as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Status(String),
    Error(String),
    Number(i64),
    /// `None`: null, also of a list.
    Text(Option<Vec<u8>>),
    List(Vec<Value>),
}

pub(super) struct RedisClient {
    connection: Connection,
    received: Vec<u8>,
    /// As configured, for messages.
    server: String,
}

impl RedisClient {
    /// Connects and logs in. Files are read each time: they may have other contents by now.
    pub(super) async fn connect(
        server: &ServerAddress,
        login: &RedisLogin,
    ) -> Result<Self, SourceError> {
        let failed =
            |what: &dyn fmt::Display| SourceError::new(format!("server {}: {what}", server.text));
        let (secret, encryption) = load(login.clone())
            .await
            .map_err(|why| failed(&why.message))?;
        let connection = open(server, encryption.as_ref()).await;
        let connection = connection.map_err(|e| match tls::error(&e) {
            Some(text) => failed(&format_args!("TLS: {text}")),
            None => failed(&e),
        })?;
        let mut client = Self {
            connection,
            received: Vec::new(),
            server: server.text.clone(),
        };
        if let Some(secret) = &secret {
            let user = login.user.as_deref().map(str::as_bytes);
            let parts: Vec<&[u8]> = [Some(&b"AUTH"[..]), user, Some(secret.bytes())]
                .into_iter()
                .flatten()
                .collect();
            // The reply may quote the password in no case, but the server is not known well.
            match client.ask(&parts).await? {
                Value::Status(_) => {}
                Value::Error(text) => {
                    let word = text.split_whitespace().next().unwrap_or_default();
                    let word = word.to_owned();
                    return Err(client.wrong(&format_args!(
                        "it refuses the login ({word}): see `user` and `password_file`"
                    )));
                }
                Value::Number(_) | Value::Text(_) | Value::List(_) => {
                    return Err(client.wrong(&"its reply to AUTH is none of Redis"));
                }
            }
        }
        Ok(client)
    }

    /// Sends a command and waits for its reply.
    pub(super) async fn ask(&mut self, command: &[&[u8]]) -> Result<Value, SourceError> {
        self.send(command).await?;
        self.receive().await
    }

    /// The same; an error that the server replies with is one here as well.
    pub(super) async fn ask_for(&mut self, command: &[&[u8]]) -> Result<Value, SourceError> {
        match self.ask(command).await? {
            Value::Error(text) => {
                let name = String::from_utf8_lossy(command[0]).into_owned();
                Err(self.wrong(&format_args!("its reply to {name}: {text}")))
            }
            value => Ok(value),
        }
    }

    pub(super) async fn send(&mut self, command: &[&[u8]]) -> Result<(), SourceError> {
        let mut bytes = Vec::new();
        resp::write_command(&mut bytes, command);
        let sent = async {
            self.connection.write_all(&bytes).await?;
            self.connection.flush().await
        };
        sent.await.map_err(|e| self.wrong(&e))
    }

    /// The next reply, or the next message of a subscription.
    pub(super) async fn receive(&mut self) -> Result<Value, SourceError> {
        let mut progress = Progress::default();
        loop {
            if progress.is_due(&self.received, &LIMITS) {
                match resp::read_within(&self.received, &LIMITS) {
                    Ok((reply, rest)) => {
                        let value = own(&reply);
                        let taken = self.received.len() - rest.len();
                        self.received.drain(..taken);
                        return Ok(value);
                    }
                    Err(Stop::Incomplete) => {}
                    Err(Stop::TooLong) => return Err(self.wrong(&"its reply is too long")),
                    Err(Stop::Wrong) => return Err(self.wrong(&"this is not Redis")),
                }
            }
            if self.received.len() >= MOST_BYTES {
                return Err(self.wrong(&"its reply is too long"));
            }
            let length = self.received.len();
            self.received.resize(length + PIECE, 0);
            let read = self.connection.read(&mut self.received[length..]).await;
            let count = read.as_ref().map_or(0, |n| *n);
            self.received.truncate(length + count);
            match read {
                Ok(0) => return Err(self.wrong(&"it has closed the connection")),
                Ok(_) => {}
                Err(e) => return Err(self.wrong(&e)),
            }
        }
    }

    pub(super) fn wrong(&self, what: &dyn fmt::Display) -> SourceError {
        SourceError::new(format!("server {}: {what}", self.server))
    }
}

/// The first reply in these bytes, which come in two pieces. Whether it is complete does not depend
/// on them.
pub(super) fn replay(bytes: &[u8], cut: usize) -> Option<Value> {
    let (mut whole, mut in_pieces) = (Progress::default(), Progress::default());
    let is_due = whole.is_due(bytes, &LIMITS);
    let is_due_early = in_pieces.is_due(&bytes[..cut], &LIMITS);
    assert_eq!(is_due, is_due_early || in_pieces.is_due(bytes, &LIMITS));
    let read = resp::read_within(bytes, &LIMITS).map(|(reply, _)| own(&reply));
    match is_due {
        true => assert_ne!(read, Err(Stop::Incomplete)),
        // What is wrong is seen at the end of its line.
        false => assert!(read.is_err(), "{read:?}"),
    }
    read.ok()
}

fn own(reply: &Reply<'_>) -> Value {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match reply {
        Reply::Status(bytes) => Value::Status(text(bytes)),
        Reply::Error(bytes) => Value::Error(plain(&text(bytes))),
        Reply::Number(number) => Value::Number(*number),
        Reply::Text(bytes) => Value::Text(bytes.map(<[u8]>::to_vec)),
        Reply::List(items) => Value::List(items.iter().map(own).collect()),
    }
}

async fn load(login: RedisLogin) -> Result<(Option<Secret>, Option<Encryption>), SourceError> {
    let load = move || {
        let secret = login.password.as_ref().map(Secret::load).transpose();
        let secret = secret.map_err(|e| SourceError::new(e.to_string()))?;
        let encryption = Encryption::load(&login.tls);
        Ok((
            secret,
            encryption.map_err(|e| SourceError::new(e.to_string()))?,
        ))
    };
    let loaded = blocking::call(blocking::LIMIT, load).await;
    loaded.map_err(|e| SourceError::new(e.to_string()))?
}

/// Connects to the first address of the server that answers.
async fn open(server: &ServerAddress, encryption: Option<&Encryption>) -> io::Result<Connection> {
    let (host, addresses) = match &server.target {
        Target::Addr(addr) => {
            let host = match addr {
                Addr::Tcp(address) => address.ip().to_string(),
                Addr::Unix(_) => "localhost".to_owned(),
            };
            (host, vec![addr.clone()])
        }
        Target::Name { host, port } => {
            let name = (host.clone(), *port);
            let look_up = move || name.to_socket_addrs().map(Iterator::collect::<Vec<_>>);
            let found = blocking::call(LOOK_UP_LIMIT, look_up).await.flatten()?;
            (host.clone(), found.into_iter().map(Addr::Tcp).collect())
        }
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
    for addr in addresses {
        match connect(&addr, true).await {
            Ok(connection) => {
                return match encryption {
                    None => Ok(connection),
                    Some(encryption) => Ok(encryption.begin(connection, &host).await?.0),
                };
            }
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// Of a name.
const LOOK_UP_LIMIT: Duration = Duration::from_secs(10);

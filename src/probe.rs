//! Asks a backend whether it is well. Each kind is a conversation: what is said, and what is made of the bytes that come
//! back; pure, and told by a file below. Connecting, waiting, the limits and taking leave are here, once.

mod expect;
mod http;
mod redis;
mod resp;
mod secret;
mod transcript;

pub use secret::Secret;

use crate::{
    net::{Stream, open},
    plan::{Check, CheckAt, CheckKind, Place, Role, SendProxy, SocketOptions},
    proxy_protocol::{Addresses, encode_v1, encode_v2},
    reason::CheckResult,
};
use std::{future::poll_fn, io, net::SocketAddr, time::Duration};
use tokio::time::{Instant, timeout_at};

/// More than this is read for no answer.
const MOST: usize = 16 << 10;
/// A server that is taken leave of may have so much more to say, and so much time, but never so much that the next check
/// would be late.
const FAREWELL: usize = 256 << 10;
const PATIENCE: Duration = Duration::from_secs(1);

/// What is said goes out in one piece: there is nothing for nodelay to hurry.
const OPTIONS: SocketOptions = SocketOptions {
    nodelay: false,
    keepalive: None,
    user_timeout: None,
};

/// What one check found.
#[derive(Debug)]
pub struct Report {
    pub result: CheckResult,
    /// What the server says that it is.
    pub role: Option<Role>,
    /// In a few words; never with a secret in it.
    pub transcript: String,
    pub took: Duration,
}

/// What a conversation makes of the bytes that have come.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    result: CheckResult,
    role: Option<Role>,
    /// What came, for the transcript.
    heard: String,
}

impl Answer {
    fn new(result: CheckResult, heard: impl Into<String>) -> Self {
        Self {
            result,
            role: None,
            heard: heard.into(),
        }
    }
}

enum Conversation {
    Tcp,
    Expect(expect::Talk),
    Http(http::Talk),
    Redis(redis::Talk),
}

/// Asks one address of a backend, as often as it is told to.
pub struct Probe {
    place: Place,
    conversation: Conversation,
    /// Comes before anything else.
    header: Vec<u8>,
    timeout: Duration,
    patience: Duration,
}

impl Probe {
    /// `backend` is an address of the backend; the check may name another place.
    pub fn new(
        backend: &Place,
        check: &Check,
        send_proxy: SendProxy,
        secret: Option<Secret>,
    ) -> Self {
        let place = match (&check.at, backend) {
            (CheckAt::Place(place), _) => place.clone(),
            (CheckAt::Port(port), Place::Tcp(address)) => {
                Place::Tcp(SocketAddr::new(address.ip(), *port))
            }
            (CheckAt::Port(_) | CheckAt::Backend, place) => place.clone(),
        };
        // A check is nobody's session, and the header says so; as in HAProxy.
        let header = match send_proxy {
            SendProxy::Off => Vec::new(),
            SendProxy::V1 => encode_v1(&Addresses::Own),
            SendProxy::V2 { .. } => encode_v2(&Addresses::Own, &[]),
        };
        let conversation = match &check.kind {
            CheckKind::Tcp => Conversation::Tcp,
            CheckKind::SendExpect { send, expect } => {
                Conversation::Expect(expect::Talk::new(send, expect))
            }
            CheckKind::Http { path, host, status } => {
                let host = host.clone().unwrap_or_else(|| http::host_of(&place));
                Conversation::Http(http::Talk::new(path, &host, status))
            }
            CheckKind::Redis { role, user, .. } => {
                Conversation::Redis(redis::Talk::new(*role, user.clone(), secret))
            }
        };
        Self {
            place,
            conversation,
            header,
            timeout: check.timeout,
            patience: PATIENCE.min(check.fast_interval / 2),
        }
    }

    /// Where it asks.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// One check, under one deadline from the connect to the answer. Whoever has answered is still to be taken leave of.
    pub async fn ask(&self) -> (Report, Option<Farewell>) {
        let began = Instant::now();
        let mut course = Course {
            stage: "connecting",
            heard: Vec::new(),
        };
        let asked = timeout_at(began + self.timeout, self.talk(&mut course)).await;
        let (answer, stream) = match asked {
            Ok(Ok((answer, stream))) => (answer, Some(stream)),
            Ok(Err(e)) => {
                let error = transcript::error(&e);
                let heard = self.conversation.quote(&course.heard);
                let text = format!("{}: {error}{heard}", course.stage);
                (Answer::new(CheckResult::of(&e), text), None)
            }
            Err(_) => {
                let heard = self.conversation.quote(&course.heard);
                let text = format!(
                    "{}: no answer within {:?}{heard}",
                    course.stage, self.timeout
                );
                (Answer::new(CheckResult::Timeout, text), None)
            }
        };
        let report = Report {
            result: answer.result,
            role: answer.role,
            transcript: answer.heard,
            took: began.elapsed(),
        };
        (
            report,
            stream.map(|stream| Farewell {
                stream,
                patience: self.patience,
            }),
        )
    }

    async fn talk(&self, course: &mut Course) -> io::Result<(Answer, Stream)> {
        let mut stream = open(&self.place, &OPTIONS).await?;
        let mut words = self.header.clone();
        self.conversation.begin(&mut words);
        course.stage = "sending";
        write(&mut stream, &words).await?;
        course.stage = "waiting for the answer";
        if let Some(answer) = self.conversation.hear(&[], false) {
            return Ok((answer, stream));
        }
        let mut piece = [0; 1024];
        loop {
            let most = piece.len().min(MOST - course.heard.len());
            let n = poll_fn(|cx| stream.poll_read(cx, &mut piece[..most])).await?;
            course.heard.extend_from_slice(&piece[..n]);
            if let Some(answer) = self.conversation.hear(&course.heard, n == 0) {
                return Ok((answer, stream));
            }
            let heard = || self.conversation.quote(&course.heard);
            if n == 0 {
                let text = format!("it closed before it had answered{}", heard());
                return Ok((Answer::new(CheckResult::Closed, text), stream));
            }
            if course.heard.len() == MOST {
                let text = format!("no end of the answer after {MOST} bytes{}", heard());
                return Ok((Answer::new(CheckResult::Protocol, text), stream));
            }
        }
    }
}

/// How far a check has come, to be told when its time is over.
struct Course {
    stage: &'static str,
    heard: Vec<u8>,
}

/// A server that is still to be told that this is all. The verdict does not wait for it.
pub struct Farewell {
    stream: Stream,
    patience: Duration,
}

impl Farewell {
    /// Ends the connection so that the server sees a clean end: what it has still to say is read, since closing a socket
    /// with unread bytes in it is a reset.
    pub async fn say(mut self) {
        let leave = async {
            poll_fn(|cx| self.stream.shutdown_write(cx)).await?;
            let mut rest = [0; 2048];
            let mut read = 0;
            while read < FAREWELL {
                match poll_fn(|cx| self.stream.poll_read(cx, &mut rest)).await? {
                    0 => break,
                    n => read += n,
                }
            }
            io::Result::Ok(())
        };
        // Whatever becomes of it: the answer is there.
        let _ = timeout_at(Instant::now() + self.patience, leave).await;
    }
}

impl Conversation {
    fn begin(&self, words: &mut Vec<u8>) {
        match self {
            Self::Tcp => {}
            Self::Expect(talk) => words.extend_from_slice(talk.says()),
            Self::Http(talk) => words.extend_from_slice(talk.says()),
            Self::Redis(talk) => talk.say(words),
        }
    }

    /// `bytes` is everything that has come so far; `ended`: nothing more will. `None`: it is no answer yet.
    fn hear(&self, bytes: &[u8], ended: bool) -> Option<Answer> {
        match self {
            Self::Tcp => Some(Answer::new(CheckResult::Ok, "connected")),
            Self::Expect(talk) => talk.hear(bytes, ended),
            Self::Http(talk) => talk.hear(bytes),
            Self::Redis(talk) => talk.hear(bytes),
        }
    }

    /// What has come, for the transcript, as far as it may be shown.
    fn quote(&self, bytes: &[u8]) -> String {
        match self {
            _ if bytes.is_empty() => String::new(),
            // An echo of what was said would hold the password.
            Self::Redis(talk) if talk.has_secret() => format!("; got {} bytes", bytes.len()),
            _ => format!("; got {}", transcript::quote(bytes)),
        }
    }
}

async fn write(stream: &mut Stream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match poll_fn(|cx| stream.poll_write(cx, bytes)).await? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => bytes = &bytes[n..],
        }
    }
    Ok(())
}

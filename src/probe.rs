//! Asks a backend whether it is well. Each kind is a conversation: what is said, and what is made
//! of the bytes that come back; pure, and told by a file below. Connecting, waiting, the limits and
//! taking leave are here, once.

mod datagram;
mod dns;
mod expect;
mod http;
mod line;
mod mysql;
mod postgres;
mod redis;
mod resp;
mod secret;
mod tls;
mod transcript;

pub use secret::Secret;
pub use tls::Encryption;

use crate::{
    config::text::shorten::shorten,
    plan::{Addr, Check, CheckAt, CheckKind, SendProxy, Tls, reason::CheckResult},
    proxy_protocol::{Addresses, encode_v1, encode_v2},
    upstream::health::Finding,
};
use line::{Line, connect};
use std::{io, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout_at},
};

/// More than this is read for no answer.
const MOST: usize = 16 << 10;
/// Of what a check saw so many characters are kept.
const MOST_OF_TRANSCRIPT: usize = 500;
/// A server that is taken leave of may have so much more to say, and so much time, but never so
/// much that the next check would be late.
const FAREWELL: usize = 256 << 10;
const PATIENCE: Duration = Duration::from_secs(1);

/// What one check found.
#[derive(Debug)]
pub struct Report {
    pub result: CheckResult,
    pub finding: Finding,
    /// In a few words; never with a secret in it.
    pub transcript: String,
    pub took: Duration,
}

/// What a conversation makes of the bytes that have come.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    result: CheckResult,
    finding: Finding,
    /// What came, for the transcript.
    heard: String,
    /// What the server is still to be told, so that it knows that this is all.
    goodbye: Vec<u8>,
}

impl Answer {
    fn new(result: CheckResult, heard: impl Into<String>) -> Self {
        Self {
            result,
            finding: Finding::default(),
            heard: heard.into(),
            goodbye: Vec::new(),
        }
    }
}

/// What comes next in a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Turn {
    /// The other side has still to say something.
    Wait,
    /// So many bytes are dealt with, and this is said; then the rest is heard. One of the two is
    /// not nothing.
    Say {
        read: usize,
        words: Vec<u8>,
    },
    /// So many bytes are dealt with, and whatever follows is said inside TLS.
    Encrypt {
        read: usize,
    },
    Answer(Answer),
}

/// One check's conversation: what is said, and what is made of what comes back. Pure.
trait Talk: Send {
    /// `bytes` is what has come and is not dealt with; at the beginning nothing has. `ended`:
    /// nothing more will come.
    fn hear(&mut self, bytes: &[u8], ended: bool) -> Turn;

    /// From here on all is said inside TLS; `end_point` is what a login can be bound to.
    fn encrypted(&mut self, _end_point: Option<Vec<u8>>) {}

    /// More than this is not read.
    fn most(&self) -> usize {
        MOST
    }

    /// What has come, for the transcript, as far as it may be shown.
    fn show(&self, bytes: &[u8]) -> String {
        transcript::quote(bytes)
    }
}

/// One that says all that it has to say at once, and then listens.
struct Once<F> {
    words: Option<Vec<u8>>,
    hear: F,
    most: usize,
    /// An echo of what was said would hold the password.
    hides: bool,
}

impl<F: FnMut(&[u8], bool) -> Option<Answer> + Send> Talk for Once<F> {
    fn hear(&mut self, bytes: &[u8], ended: bool) -> Turn {
        if let Some(words) = self.words.take().filter(|words| !words.is_empty()) {
            return Turn::Say { read: 0, words };
        }
        (self.hear)(bytes, ended).map_or(Turn::Wait, Turn::Answer)
    }

    fn most(&self) -> usize {
        self.most
    }

    fn show(&self, bytes: &[u8]) -> String {
        match self.hides {
            true => format!("{} bytes", bytes.len()),
            false => transcript::quote(bytes),
        }
    }
}

enum Kind {
    Tcp,
    Expect(expect::Talk),
    Http(http::Talk),
    Redis(redis::Talk),
    Postgres(postgres::Talk),
    Mysql(mysql::Asked),
    Dns(dns::Talk),
}

/// What a check needs beside its configuration, loaded at the start.
#[derive(Clone, Default)]
pub struct Means {
    pub secret: Option<Secret>,
    pub encryption: Option<Encryption>,
}

/// Asks one address of a backend, as often as it is told to.
pub struct Probe {
    addr: Addr,
    kind: Kind,
    /// Comes before anything else.
    header: Vec<u8>,
    encryption: Option<Encryption>,
    /// Whom a certificate must name, if the configuration does not say.
    host: String,
    timeout: Duration,
    patience: Duration,
}

impl Probe {
    /// `backend` is an address of the backend that the configuration calls `text`; the check may
    /// name another address.
    pub fn new(
        backend: &Addr,
        text: &str,
        check: &Check,
        send_proxy: SendProxy,
        means: Means,
    ) -> Self {
        let addr = match (&check.at, backend) {
            (CheckAt::Addr(addr), _) => addr.clone(),
            (CheckAt::Port(port), Addr::Tcp(address)) => {
                Addr::Tcp(SocketAddr::new(address.ip(), *port))
            }
            (CheckAt::Port(_) | CheckAt::Backend, addr) => addr.clone(),
        };
        // A check is nobody's session, and the header says so; as in HAProxy.
        let header = match send_proxy {
            SendProxy::Off => Vec::new(),
            SendProxy::V1 => encode_v1(&Addresses::Own),
            SendProxy::V2 { .. } => encode_v2(&Addresses::Own, &[]),
        };
        let Means { secret, encryption } = means;
        let kind = match &check.kind {
            CheckKind::Tcp => Kind::Tcp,
            CheckKind::SendExpect { send, expect } => Kind::Expect(expect::Talk::new(send, expect)),
            CheckKind::Http { path, host, status } => {
                let host = host
                    .clone()
                    .unwrap_or_else(|| http::host_of(&addr, encryption.is_some()));
                Kind::Http(http::Talk::new(path, &host, status))
            }
            CheckKind::Redis {
                role,
                user,
                replicating,
                max_lag,
                min_version,
                require_writes,
                ..
            } => Kind::Redis(redis::Talk {
                wanted: *role,
                replicating: *replicating,
                user: user.clone(),
                secret,
                max_lag: *max_lag,
                min_version: *min_version,
                require_writes: *require_writes,
            }),
            CheckKind::Postgres {
                role,
                login,
                startup,
                replicating,
                limit,
            } => Kind::Postgres(postgres::Talk {
                wanted: *role,
                replicating: *replicating,
                user: login.as_ref().map(|login| postgres::User {
                    name: login.user.clone(),
                    database: login.database.clone(),
                    secret,
                }),
                startup: startup.clone(),
                limit: *limit,
                encrypted: check.tls != Tls::Off,
                local: matches!(addr, Addr::Unix(_)),
            }),
            CheckKind::Mysql {
                role,
                user,
                replicating,
                max_lag,
                ..
            } => Kind::Mysql(mysql::Asked {
                role: *role,
                replicating: *replicating,
                max_lag: *max_lag,
                user: user.clone(),
                secret,
                encrypted: encryption.is_some(),
                verified: matches!(check.tls, Tls::Verify { .. }),
                local: matches!(addr, Addr::Unix(_)),
            }),
            CheckKind::Dns {
                query,
                query_type,
                rcode,
            } => Kind::Dns(dns::Talk::new(query, *query_type, rcode)),
        };
        let host = match (&check.at, &addr) {
            (CheckAt::Addr(_), Addr::Tcp(address)) => address.ip().to_string(),
            (_, Addr::Tcp(_)) => host_in(text).to_owned(),
            (_, Addr::Unix(_)) => "localhost".to_owned(),
        };
        Self {
            addr,
            kind,
            header,
            encryption,
            host,
            timeout: check.timeout,
            patience: PATIENCE.min(check.fast_interval / 2),
        }
    }

    /// Where it asks.
    pub fn addr(&self) -> &Addr {
        &self.addr
    }

    /// One check, under one deadline from the connect to the answer. Whoever has answered is still
    /// to be taken leave of. `chance` is for what must not be guessed.
    pub async fn ask(&self, chance: u64) -> (Report, Option<Farewell>) {
        if let Kind::Dns(talk) = &self.kind {
            // Its upper bits, which are as good as any.
            let id = (chance >> 48) as u16;
            let report = datagram::ask(talk, &self.addr, id, self.timeout).await;
            return (report, None);
        }
        let began = Instant::now();
        let mut talk = self.kind.talk();
        let mut course = Course {
            stage: "connecting",
            heard: Vec::new(),
        };
        let asked = timeout_at(began + self.timeout, self.converse(&mut *talk, &mut course)).await;
        let heard = match &course.heard[..] {
            [] => String::new(),
            bytes => format!("; got {}", talk.show(bytes)),
        };
        let stage = course.stage;
        let (answer, line) = match asked {
            Ok(Ok((answer, line))) => (answer, Some(line)),
            Ok(Err(e)) => {
                let (result, error) = match tls::error(&e) {
                    Some(error) => (CheckResult::Tls, error),
                    None => (CheckResult::of(&e), transcript::error(&e)),
                };
                (
                    Answer::new(result, format!("{stage}: {error}{heard}")),
                    None,
                )
            }
            Err(_) => {
                let text = format!("{stage}: no answer within {:?}{heard}", self.timeout);
                (Answer::new(CheckResult::Timeout, text), None)
            }
        };
        let report = Report {
            result: answer.result,
            finding: answer.finding,
            // Servers and certificates may say a lot.
            transcript: shorten(&answer.heard, MOST_OF_TRANSCRIPT).into_owned(),
            took: began.elapsed(),
        };
        let farewell = line.map(|line| Farewell {
            line,
            goodbye: answer.goodbye,
            patience: self.patience,
        });
        (report, farewell)
    }

    async fn converse(
        &self,
        talk: &mut dyn Talk,
        course: &mut Course,
    ) -> io::Result<(Answer, Line)> {
        // Inside TLS the last words of the handshake and the first of the question are two pieces,
        // as are a header and what follows it, and the other side says nothing in between: the
        // second would wait for the first to be acknowledged, which takes 40 ms.
        let nodelay = self.encryption.is_some() || !self.header.is_empty();
        let mut line = connect(&self.addr, nodelay).await?;
        if !self.header.is_empty() {
            course.stage = "sending";
            line.write_all(&self.header).await?;
        }
        if self.kind.is_encrypted_from_the_start() {
            (line, _) = self.encrypt(line, course).await?;
        }
        let (most, mut total, mut ended) = (talk.most(), 0, false);
        loop {
            let (read, words) = match talk.hear(&course.heard, ended) {
                Turn::Answer(answer) => return Ok((answer, line)),
                Turn::Say { read, words } => (read, words),
                Turn::Encrypt { read } => {
                    course.heard.drain(..read);
                    // Nobody has said anything since, or it was put there by somebody on the way.
                    if !course.heard.is_empty() {
                        let text = format!("got {} before TLS had begun", talk.show(&course.heard));
                        return Ok((Answer::new(CheckResult::Protocol, text), line));
                    }
                    let end_point;
                    (line, end_point) = self.encrypt(line, course).await?;
                    talk.encrypted(end_point);
                    continue;
                }
                Turn::Wait => {
                    course.stage = "waiting for the answer";
                    let heard = || match &course.heard[..] {
                        [] => String::new(),
                        bytes => format!("; got {}", talk.show(bytes)),
                    };
                    if ended {
                        let text = format!("it closed before it had answered{}", heard());
                        return Ok((Answer::new(CheckResult::Closed, text), line));
                    }
                    if total == most {
                        let text = format!("no end of the answer after {most} bytes{}", heard());
                        return Ok((Answer::new(CheckResult::Protocol, text), line));
                    }
                    let mut piece = [0; 1024];
                    let room = piece.len().min(most - total);
                    let n = read_some(&mut line, &mut piece[..room]).await?;
                    course.heard.extend_from_slice(&piece[..n]);
                    total += n;
                    ended = n == 0;
                    continue;
                }
            };
            course.heard.drain(..read);
            if !words.is_empty() {
                course.stage = "sending";
                line.write_all(&words).await?;
                line.flush().await?;
            }
        }
    }

    async fn encrypt(
        &self,
        line: Line,
        course: &mut Course,
    ) -> io::Result<(Line, Option<Vec<u8>>)> {
        course.stage = "beginning TLS";
        match &self.encryption {
            Some(encryption) => encryption.begin(line, &self.host).await,
            None => Ok((line, None)),
        }
    }
}

/// The end of a TLS connection without a goodbye is an end: what was said is judged, not how it
/// ended.
async fn read_some(line: &mut Line, piece: &mut [u8]) -> io::Result<usize> {
    match line.read(piece).await {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
        read => read,
    }
}

/// The host of an address text of the configuration, as a certificate names it.
fn host_in(text: &str) -> &str {
    let host = text.rsplit_once(':').map_or(text, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

/// How far a check has come, to be told when its time is over.
struct Course {
    stage: &'static str,
    /// And is not dealt with.
    heard: Vec<u8>,
}

/// A server that is still to be told that this is all. The verdict does not wait for it.
pub struct Farewell {
    line: Line,
    goodbye: Vec<u8>,
    patience: Duration,
}

impl Farewell {
    /// Ends the connection so that the server sees a clean end: what it has still to say is read,
    /// since closing a socket with unread bytes in it is a reset.
    pub async fn say(mut self) {
        let leave = async {
            self.line.write_all(&self.goodbye).await?;
            self.line.shutdown().await?;
            let mut rest = [0; 2048];
            let mut read = 0;
            while read < FAREWELL {
                match self.line.read(&mut rest).await? {
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

impl Kind {
    fn talk(&self) -> Box<dyn Talk + '_> {
        let mut words = Vec::new();
        match self {
            Self::Tcp => once(words, MOST, false, |_, _| {
                Some(Answer::new(CheckResult::Ok, "connected"))
            }),
            Self::Expect(talk) => once(talk.says().to_vec(), MOST, false, |bytes, ended| {
                talk.hear(bytes, ended)
            }),
            Self::Http(talk) => once(talk.says().to_vec(), MOST, false, |bytes, _| {
                talk.hear(bytes)
            }),
            Self::Redis(talk) => {
                talk.say(&mut words);
                once(words, resp::MOST, talk.has_secret(), |bytes, _| {
                    talk.hear(bytes)
                })
            }
            Self::Postgres(talk) => Box::new(talk.begin()),
            Self::Mysql(asked) => Box::new(mysql::Talk::new(asked)),
            // Asked for in datagrams, by `ask`.
            Self::Dns(_) => once(words, MOST, false, |_, _| None),
        }
    }

    /// Where the protocol has no way of beginning in the clear.
    fn is_encrypted_from_the_start(&self) -> bool {
        matches!(self, Self::Http(_) | Self::Redis(_))
    }
}

fn once<'a>(
    words: Vec<u8>,
    most: usize,
    hides: bool,
    hear: impl FnMut(&[u8], bool) -> Option<Answer> + Send + 'a,
) -> Box<dyn Talk + 'a> {
    Box::new(Once {
        words: Some(words),
        most,
        hear,
        hides,
    })
}

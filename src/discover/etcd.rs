//! `etcd`: the keys below a prefix, by version 3 of its interface as JSON: listed, then watched.
//!
//! A watch says nothing while its server is gone, so silence is checked: the number of keys and
//! the newest of them must be those that are known.

mod message;
mod state;

use super::{
    Found, Snapshot, Source, SourceError,
    client::{Ask, Deadline, HttpAnswer, HttpClient, HttpError, TlsFiles},
    lines::{GATHERING, Lines},
    restart::Restart,
};
use crate::{
    plan::PasswordFrom,
    probe::{Secret, secret::SecretError, tls::Identity},
    sys::blocking,
};
use hyper::header::AUTHORIZATION;
use message::{ErrorBody, MessageError, ask_newest, ask_range, ask_watch};
use serde_json::{Value, json};
use state::{EtcdState, ValueError};
use std::{
    fmt, io,
    path::PathBuf,
    time::{Duration, Instant},
};
use tokio::time::timeout;

pub(crate) struct Etcd {
    /// In the order in which they are asked.
    servers: Vec<HttpClient>,
    prefix: String,
    login: Option<Login>,
    interval: Duration,
    timeout: Duration,
    state: Option<EtcdState>,
    /// With the place of its server among all.
    watch: Option<(usize, Lines)>,
    restart: Restart,
}

struct Login {
    user: String,
    password: PasswordFrom,
    token: Token,
}

enum Token {
    None,
    Some(String),
    /// The servers have no users yet.
    NotNeeded,
}

/// The keys of the configuration.
pub(crate) struct EtcdSettings {
    pub(crate) endpoints: Vec<String>,
    pub(crate) prefix: String,
    pub(crate) login: Option<(String, PasswordFrom)>,
    pub(crate) tls_ca: Option<PathBuf>,
    pub(crate) identity: Option<Identity>,
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
}

impl Etcd {
    pub(crate) fn new(settings: EtcdSettings) -> Self {
        let tls = TlsFiles {
            ca: settings.tls_ca,
            identity: settings.identity,
        };
        let client = |url: &String| HttpClient::new(url, tls.clone());
        Self {
            servers: settings.endpoints.iter().map(client).collect(),
            prefix: settings.prefix,
            login: settings.login.map(|(user, password)| Login {
                user,
                password,
                token: Token::None,
            }),
            interval: settings.interval,
            timeout: settings.timeout,
            state: None,
            watch: None,
            restart: Restart::default(),
        }
    }

    /// Follows the watch until there is something to say.
    async fn follow(&mut self) -> Result<Snapshot, EtcdError> {
        loop {
            let Some((n, lines)) = &mut self.watch else {
                self.restart.wait().await;
                return self.begin().await;
            };
            let n = *n;
            let ended = match timeout(self.interval, lines.next()).await {
                Ok(Ok(Some(line))) => match self.take(line).await {
                    Ok(true) => return self.snapshot(),
                    Ok(false) => None,
                    Err(e) => Some(e),
                },
                Ok(Ok(None)) => Some(EtcdError::Ended),
                Ok(Err(e)) => Some(e.into()),
                Err(_) => match self.confirm(n).await {
                    Ok(true) => {
                        self.restart.forget();
                        return self.snapshot();
                    }
                    Ok(false) => {
                        self.state = None;
                        Some(EtcdError::Behind)
                    }
                    Err(e) => Some(e),
                },
            };
            if let Some(error) = ended {
                tracing::debug!(server = self.servers[n].place(), %error, "watch of etcd ended");
                self.watch = None;
            }
        }
    }

    /// Whether a message, and those that have come with it, has changed something.
    async fn take(&mut self, line: Vec<u8>) -> Result<bool, EtcdError> {
        let until = Instant::now() + GATHERING;
        let mut line = Some(line);
        let mut is_changed = false;
        while let Some(bytes) = line {
            let watched = message::read_watched(&bytes).map_err(EtcdError::Message)?;
            if watched.canceled {
                if watched.compact_revision > 0 {
                    self.state = None;
                }
                return Err(EtcdError::Message(MessageError::Refused(watched.refusal())));
            }
            if let Some(state) = &mut self.state {
                is_changed |= state.apply(watched);
            }
            line = match &mut self.watch {
                Some((_, lines)) => lines.next_received(until).await,
                None => None,
            };
        }
        if is_changed {
            self.restart.forget();
        }
        Ok(is_changed)
    }

    fn snapshot(&self) -> Result<Snapshot, EtcdError> {
        let state = self.state.as_ref().ok_or(EtcdError::Behind)?;
        state.snapshot(&self.prefix).map_err(EtcdError::Value)
    }

    /// Lists the keys, or sees that they are the same as before, and begins to watch them: at the
    /// first server that answers.
    async fn begin(&mut self) -> Result<Snapshot, EtcdError> {
        let mut failures = Vec::new();
        for n in 0..self.servers.len() {
            match self.begin_at(n).await {
                Ok(()) => return self.snapshot(),
                Err(e) => failures.push((self.servers[n].place(), e)),
            }
        }
        Err(EtcdError::All(failures))
    }

    async fn begin_at(&mut self, n: usize) -> Result<(), EtcdError> {
        if self.state.is_none() || !self.confirm(n).await? {
            let answer = self
                .call(n, "/v3/kv/range", &ask_range(&self.prefix))
                .await?;
            let range = message::read_range(&answer.body).map_err(EtcdError::Message)?;
            self.state = Some(EtcdState::new(range));
        }
        let from = self.state.as_ref().map_or(0, EtcdState::next_revision);
        let asked = ask_watch(&self.prefix, from);
        let ask = self.authorize(n, "/v3/watch", &asked).await?;
        let limit = Deadline::after(self.timeout);
        match self.servers[n].open(ask, limit).await {
            Ok(response) => {
                self.watch = Some((n, Lines::new(response)));
                Ok(())
            }
            Err(HttpError::Status(status, body)) => {
                self.forget_token(&body);
                Err(refused(HttpError::Status(status, body)))
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Whether the keys are those that are known.
    async fn confirm(&mut self, n: usize) -> Result<bool, EtcdError> {
        let asked = ask_newest(&self.prefix);
        let answer = self.call(n, "/v3/kv/range", &asked).await?;
        let newest = message::read_range(&answer.body).map_err(EtcdError::Message)?;
        Ok(self
            .state
            .as_mut()
            .is_some_and(|state| state.confirm(&newest)))
    }

    /// An answer with a success; a token that is refused is replaced once.
    async fn call(&mut self, n: usize, path: &str, asked: &Value) -> Result<HttpAnswer, EtcdError> {
        let ask = self.authorize(n, path, asked).await?;
        let limit = Deadline::after(self.timeout);
        let answer = self.servers[n].fetch(ask, limit).await?;
        if answer.status.is_success() || !self.forget_token(&answer.body) {
            return answer.ok().map_err(refused);
        }
        let ask = self.authorize(n, path, asked).await?;
        let answer = self.servers[n].fetch(ask, limit).await?;
        answer.ok().map_err(refused)
    }

    /// Whether it was the token that was refused.
    fn forget_token(&mut self, body: &[u8]) -> bool {
        let Some(login) = &mut self.login else {
            return false;
        };
        let is_of_token = ErrorBody::read(body).is_some_and(|refusal| refusal.is_of_token());
        if is_of_token {
            login.token = Token::None;
        }
        is_of_token
    }

    async fn authorize(&mut self, n: usize, path: &str, asked: &Value) -> Result<Ask, EtcdError> {
        let ask = Ask::post(path.to_owned(), asked);
        let Some(login) = &mut self.login else {
            return Ok(ask);
        };
        if matches!(login.token, Token::None) {
            login.token = log_in(&mut self.servers[n], login, self.timeout).await?;
        }
        match &login.token {
            Token::Some(token) => Ok(ask.field(AUTHORIZATION, token)?),
            Token::None | Token::NotNeeded => Ok(ask),
        }
    }
}

impl Source for Etcd {
    async fn next(&mut self) -> Result<Snapshot, SourceError> {
        let followed = self.follow().await;
        followed.map_err(|e| SourceError::new(format!("etcd, prefix {:?}: {e}", self.prefix)))
    }
}

/// The password is read again each time: it may have been changed.
async fn log_in(
    client: &mut HttpClient,
    login: &Login,
    limit: Duration,
) -> Result<Token, EtcdError> {
    let from = login.password.clone();
    let loaded = blocking::call(blocking::LIMIT, move || Secret::load(&from)).await;
    let secret = loaded.map_err(EtcdError::PasswordFile)?;
    let secret = secret.map_err(EtcdError::Password)?;
    let password = String::from_utf8(secret.bytes().to_vec());
    let password = password.map_err(|_| EtcdError::PasswordText)?;
    let asked = json!({"name": login.user, "password": password});
    let ask = Ask::post("/v3/auth/authenticate".to_owned(), &asked);
    let answer = client.fetch(ask, Deadline::after(limit)).await?;
    if !answer.status.is_success()
        && ErrorBody::read(&answer.body).is_some_and(|refusal| refusal.is_without_users())
    {
        return Ok(Token::NotNeeded);
    }
    let answer = answer.ok().map_err(refused)?;
    let token = message::read_token(&answer.body).map_err(EtcdError::Message)?;
    Ok(Token::Some(token))
}

/// With the text of the server where it has one.
fn refused(e: HttpError) -> EtcdError {
    if let HttpError::Status(_, body) = &e
        && let Some(refusal) = ErrorBody::read(body)
    {
        return EtcdError::Message(MessageError::Refused(refusal));
    }
    EtcdError::Http(e)
}

/// What a range, in the first line, and the messages of a watch after it stand for.
pub(super) fn replay(lines: &[u8]) -> Result<Vec<Found>, SourceError> {
    let read = || {
        let mut lines = lines.split(|byte| *byte == b'\n');
        let range = message::read_range(lines.next().unwrap_or_default());
        let mut state = EtcdState::new(range.map_err(EtcdError::Message)?);
        for line in lines {
            state.apply(message::read_watched(line).map_err(EtcdError::Message)?);
        }
        state.snapshot("/").map_err(EtcdError::Value)
    };
    let snapshot = read().map_err(|e| SourceError::new(e.to_string()))?;
    Ok(snapshot.backends)
}

#[derive(Debug)]
enum EtcdError {
    Http(HttpError),
    Message(MessageError),
    Value(ValueError),
    Ended,
    /// The watch has not reported a change.
    Behind,
    Password(SecretError),
    PasswordFile(io::Error),
    PasswordText,
    /// Of each server.
    All(Vec<(String, Self)>),
}

impl From<HttpError> for EtcdError {
    fn from(e: HttpError) -> Self {
        Self::Http(e)
    }
}

impl std::error::Error for EtcdError {}

impl fmt::Display for EtcdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(e) => e.fmt(f),
            Self::Message(e) => e.fmt(f),
            Self::Value(e) => e.fmt(f),
            Self::Ended => f.write_str("the watch has ended"),
            Self::Behind => f.write_str("the watch is behind"),
            Self::Password(e) => e.fmt(f),
            Self::PasswordFile(e) => write!(f, "cannot read the password file: {e}"),
            Self::PasswordText => f.write_str("the password is not UTF-8"),
            Self::All(failures) => {
                for (n, (place, e)) in failures.iter().enumerate() {
                    let separator = if n > 0 { "; " } else { "" };
                    write!(f, "{separator}{place}: {e}")?;
                }
                Ok(())
            }
        }
    }
}

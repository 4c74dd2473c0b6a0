//! `consul`: the instances of a service with their health, by blocking queries: each is answered
//! when something has changed, and at the latest after `interval`.

mod answer;

use super::{
    Found, Snapshot, Source, SourceError,
    client::{Ask, Deadline, HttpAnswer, HttpClient, HttpError, TlsFiles},
    token::{Token, TokenError},
};
use crate::config::value::url::escape;
use answer::{InstanceError, UseHealth};
use hyper::header::HeaderName;
use std::{fmt, path::PathBuf, time::Duration};
use tokio::time::{Instant, sleep_until};

/// At least from one question to the next: a service that changes all the time has its changes
/// taken together.
const SHORTEST: Duration = Duration::from_millis(50);

pub(crate) struct Consul {
    client: HttpClient,
    service: String,
    tag: Option<String>,
    datacenter: Option<String>,
    token: Option<Token>,
    use_health: UseHealth,
    interval: Duration,
    timeout: Duration,
    /// What the server calls the last answer; 0: the next one is not waited for.
    index: u64,
    not_before: Option<Instant>,
}

/// The keys of the configuration.
pub(crate) struct ConsulSettings {
    pub(crate) url: String,
    pub(crate) service: String,
    pub(crate) tag: Option<String>,
    pub(crate) datacenter: Option<String>,
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) use_health: bool,
    pub(crate) tls_ca: Option<PathBuf>,
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
}

impl Consul {
    pub(crate) fn new(settings: ConsulSettings) -> Self {
        let tls = TlsFiles {
            ca: settings.tls_ca,
            identity: None,
        };
        Self {
            client: HttpClient::new(&settings.url, tls),
            service: settings.service,
            tag: settings.tag,
            datacenter: settings.datacenter,
            token: settings.token_file.map(Token::new),
            use_health: match settings.use_health {
                true => UseHealth::Yes,
                false => UseHealth::No,
            },
            interval: settings.interval,
            timeout: settings.timeout,
            index: 0,
            not_before: None,
        }
    }

    async fn ask(&mut self) -> Result<Snapshot, ConsulError> {
        // Not the same for all nodes, or their questions would come at once.
        let spread: f64 = rand::random_range(0.9..1.1);
        let wait = self.interval.mul_f64(spread);
        let mut ask = Ask::get(self.path(wait));
        if let Some(token) = &self.token {
            let value = token.read().await.map_err(ConsulError::Token)?;
            ask = ask.field(HeaderName::from_static("x-consul-token"), value)?;
        }
        // The server adds up to a sixteenth, and may need as long as for any answer.
        let limit = match self.index {
            0 => self.timeout,
            _ => wait + wait / 16 + self.timeout,
        };
        let asked = self.client.fetch(ask, Deadline::after(limit)).await;
        let before = std::mem::take(&mut self.index);
        let answer = asked?.ok()?;
        let index = index(&answer)?;
        // During the election of a leader there may be an answer without anything.
        if answer.field("x-consul-knownleader") == Some("false") {
            return Err(ConsulError::NoLeader);
        }
        let backends = answer::read(&answer.body, self.use_health);
        let backends = backends.map_err(ConsulError::Instance)?;
        // It goes back when the servers have been restored: then nothing is known of it.
        self.index = if index < before { 0 } else { index };
        Ok(Snapshot {
            backends,
            version: format!("index {index}"),
            valid_for: None,
            gap: None,
        })
    }

    fn path(&self, wait: Duration) -> String {
        let mut path = format!("/v1/health/service/{}", escape(&self.service));
        let mut separator = '?';
        let mut add = |key: &str, value: &str| {
            path.push_str(&format!("{separator}{key}={}", escape(value)));
            separator = '&';
        };
        if let Some(tag) = &self.tag {
            add("tag", tag);
        }
        if let Some(datacenter) = &self.datacenter {
            add("dc", datacenter);
        }
        if self.index > 0 {
            add("index", &self.index.to_string());
            add("wait", &format!("{}ms", wait.as_millis()));
        }
        path
    }
}

/// Without one a proxy may have answered in the place of Consul.
fn index(answer: &HttpAnswer) -> Result<u64, ConsulError> {
    let index = answer.field("x-consul-index").and_then(|i| i.parse().ok());
    index.filter(|index| *index > 0).ok_or(ConsulError::NoIndex)
}

impl Source for Consul {
    async fn next(&mut self) -> Result<Snapshot, SourceError> {
        if let Some(not_before) = self.not_before {
            sleep_until(not_before).await;
        }
        self.not_before = Some(Instant::now() + SHORTEST);
        self.ask().await.map_err(|e| {
            let (place, service) = (self.client.place(), &self.service);
            SourceError::new(format!("consul at {place}, service {service:?}: {e}"))
        })
    }
}

/// What a list of instances stands for.
pub(super) fn replay(list: &[u8]) -> Result<Vec<Found>, SourceError> {
    answer::read(list, UseHealth::Yes).map_err(|e| SourceError::new(e.to_string()))
}

#[derive(Debug)]
enum ConsulError {
    Http(HttpError),
    Token(TokenError),
    NoIndex,
    NoLeader,
    Instance(InstanceError),
}

impl From<HttpError> for ConsulError {
    fn from(e: HttpError) -> Self {
        Self::Http(e)
    }
}

impl std::error::Error for ConsulError {}

impl fmt::Display for ConsulError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(e) => {
                e.fmt(f)?;
                match e {
                    HttpError::Status(status, _) if status.as_u16() == 403 => {
                        f.write_str("; the token of `token_file` needs service:read and node:read")
                    }
                    _ => Ok(()),
                }
            }
            Self::Token(e) => e.fmt(f),
            Self::NoIndex => f.write_str(
                "the answer has no field X-Consul-Index: it is not from Consul, \
                 or a proxy drops it",
            ),
            Self::NoLeader => f.write_str("the servers have no leader"),
            Self::Instance(e) => e.fmt(f),
        }
    }
}

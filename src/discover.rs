//! Discovery of backends: one file per kind of source.
//!
//! A source yields whole sets or errors, never differences, and holds no policy: what an empty
//! answer, a large loss or an error leads to is decided by `control`, the same for all kinds.
//!
//! A kind has its keys in `plan/discover`, `config/keys/discover` and `config/discover`, an example
//! of them in `tests/config/reference.toml`, and a variant of [`AnySource`].

mod client;
mod consul;
mod etcd;
mod excerpt;
mod file;
pub mod format;
mod http;
mod kubernetes;
mod lines;
pub(crate) mod merge;
mod redis;
mod redis_client;
mod redis_progress;
pub mod replay;
mod restart;
mod sentinel;
mod srv;
#[cfg(test)]
mod tests;
mod token;

use crate::{
    config::text::shorten::shorten,
    plan::{Discover, DiscoverSource},
    probe::tls::Identity,
};
use std::{future::pending, net::SocketAddr, time::Duration};
use tokio::time::Instant;

/// In characters.
const MOST_OF_ERROR: usize = 1_000;

/// A backend as its source has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// As in the file: `host:port`, `[::1]:53` or `unix:/path`.
    pub address: String,
    pub weight: u32,
    pub backup: bool,
    /// For display alone.
    pub name: Option<String>,
    /// Whether it takes nothing new.
    pub draining: bool,
}

/// All backends of a source at one moment, in any order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub backends: Vec<Found>,
    /// What the source calls this state, for people.
    pub version: String,
    /// How long the source itself calls it valid, as the time to live of DNS.
    pub valid_for: Option<Duration>,
    /// What the source could not tell; `None`: these are all its backends.
    pub gap: Option<Gap>,
}

/// A part of an answer that is missing, though the rest is good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    pub error: SourceError,
    pub unknown: Vec<Unknown>,
}

/// It is unknown whether there are backends of this name and port in this family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    pub name: String,
    pub port: u16,
    pub is_ipv6: bool,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceError {
    /// Names the place, and the way out.
    pub message: String,
}

/// A source of any kind.
pub(crate) enum AnySource {
    File(file::FileSource),
    Redis(redis::RedisSource),
    Sentinel(sentinel::SentinelSource),
    Http(Box<http::HttpList>),
    Srv(srv::SrvRecords),
    Consul(Box<consul::Consul>),
    Etcd(Box<etcd::Etcd>),
    Kubernetes(Box<kubernetes::Kubernetes>),
}

/// One answer of a source, for an operator.
pub async fn ask_once(discover: &Discover) -> Result<Snapshot, SourceError> {
    let mut source = AnySource::open(discover);
    // Of several servers the first may not answer. A source itself says best what has taken so
    // long.
    let limit = discover.timeout * discover.source.servers() + discover.timeout;
    let answer = tokio::time::timeout(limit, source.next()).await;
    answer.unwrap_or_else(|_| Err(SourceError::timed_out(limit)))
}

impl AnySource {
    /// Asks nothing yet. Files with credentials are read whenever a source connects, so that
    /// rotated ones are followed.
    pub(crate) fn open(discover: &Discover) -> Self {
        match &discover.source {
            DiscoverSource::File { path } => Self::File(file::FileSource::new(path, discover)),
            DiscoverSource::Redis { server, key, login } => {
                Self::Redis(redis::RedisSource::new(server, key, login, discover))
            }
            DiscoverSource::Sentinel {
                sentinels,
                master,
                want,
                login,
            } => Self::Sentinel(sentinel::SentinelSource::new(
                sentinels, master, *want, login, discover,
            )),
            DiscoverSource::Http {
                url,
                headers,
                tls_ca,
            } => Self::Http(Box::new(http::HttpList::new(
                url,
                headers,
                tls_ca.as_deref(),
                discover,
            ))),
            DiscoverSource::Srv { name, nameservers } => {
                Self::Srv(srv::SrvRecords::new(name, nameservers, discover))
            }
            DiscoverSource::Consul {
                url,
                service,
                tag,
                datacenter,
                token_file,
                use_health,
                tls_ca,
            } => Self::Consul(Box::new(consul::Consul::new(consul::ConsulSettings {
                url: url.clone(),
                service: service.clone(),
                tag: tag.clone(),
                datacenter: datacenter.clone(),
                token_file: token_file.clone(),
                use_health: *use_health,
                tls_ca: tls_ca.clone(),
                interval: discover.interval,
                timeout: discover.timeout,
            }))),
            DiscoverSource::Etcd {
                endpoints,
                prefix,
                user,
                password,
                tls_ca,
                client,
            } => Self::Etcd(Box::new(etcd::Etcd::new(etcd::EtcdSettings {
                endpoints: endpoints.clone(),
                prefix: prefix.clone(),
                login: user.clone().zip(password.clone()),
                tls_ca: tls_ca.clone(),
                identity: client
                    .clone()
                    .map(|(certificate, key)| Identity { certificate, key }),
                interval: discover.interval,
                timeout: discover.timeout,
            }))),
            DiscoverSource::Kubernetes {
                namespace,
                service,
                port,
                url,
                token_file,
                tls_ca,
            } => Self::Kubernetes(Box::new(kubernetes::Kubernetes::new(
                kubernetes::KubernetesSettings {
                    namespace: namespace.clone(),
                    service: service.clone(),
                    port: port.clone(),
                    url: url.clone(),
                    token_file: token_file.clone(),
                    tls_ca: tls_ca.clone(),
                    interval: discover.interval,
                    timeout: discover.timeout,
                },
            ))),
        }
    }
}

/// Where backends come from.
pub(crate) trait Source: Send {
    /// The first call answers at once. Later ones return when there may be something new: a source
    /// that is polled waits for `interval` itself, from the end of its last answer (see
    /// [`Interval`]); one that watches waits for an event. An error is returned as soon as it is
    /// known, and the caller waits before it calls again: that call does not wait for `interval`
    /// any more. One question takes `timeout` at most, of each server that is asked. A call can be
    /// dropped at any point; the next one begins anew.
    fn next(&mut self) -> impl Future<Output = Result<Snapshot, SourceError>> + Send;
}

impl AnySource {
    /// Returns when what made the last answer an error has changed, where that is noticed without
    /// asking.
    pub(crate) async fn mended(&mut self) {
        match self {
            Self::File(source) => source.touched().await,
            Self::Redis(_)
            | Self::Sentinel(_)
            | Self::Http(_)
            | Self::Srv(_)
            | Self::Consul(_)
            | Self::Etcd(_)
            | Self::Kubernetes(_) => pending().await,
        }
    }
}

impl Source for AnySource {
    async fn next(&mut self) -> Result<Snapshot, SourceError> {
        match self {
            Self::File(source) => source.next().await,
            Self::Redis(source) => source.next().await,
            Self::Sentinel(source) => source.next().await,
            Self::Http(source) => source.next().await,
            Self::Srv(source) => source.next().await,
            Self::Consul(source) => source.next().await,
            Self::Etcd(source) => source.next().await,
            Self::Kubernetes(source) => source.next().await,
        }
    }
}

impl Found {
    /// One with the defaults of a backend in the file.
    pub(crate) fn new(address: impl Into<String>) -> Self {
        Self {
            address: address.into(),
            weight: 1,
            backup: false,
            name: None,
            draining: false,
        }
    }
}

impl Unknown {
    /// Whether this backend may be one of them.
    pub(crate) fn may_be(&self, found: &Found) -> bool {
        let is_it = |at: SocketAddr| (at.port(), at.is_ipv6()) == (self.port, self.is_ipv6);
        let name = found.name.as_deref().unwrap_or_default();
        name.eq_ignore_ascii_case(&self.name) && found.address.parse().is_ok_and(is_it)
    }
}

impl SourceError {
    /// On one line, and not longer than some lines of a terminal, whatever a server has sent.
    pub(crate) fn new(message: impl AsRef<str>) -> Self {
        let message = shorten(message.as_ref(), MOST_OF_ERROR);
        Self {
            message: message.replace(char::is_control, " "),
        }
    }

    pub(crate) fn timed_out(limit: Duration) -> Self {
        Self::new(format!("no answer within {limit:?}"))
    }
}

/// The time from one answer of a source that is polled to the next question.
pub(crate) struct Interval {
    length: Duration,
    /// `None`: nothing has been answered, or the last question has failed.
    next: Option<Instant>,
}

impl Interval {
    pub(crate) fn new(length: Duration) -> Self {
        Self { length, next: None }
    }

    /// Until the next question is due; the one after this call is due at once, unless
    /// [`Self::answered`] follows.
    pub(crate) async fn wait(&mut self) {
        if let Some(next) = self.next {
            tokio::time::sleep_until(next).await;
        }
        self.next = None;
    }

    /// `valid_for`: see [`Snapshot`]; the shorter time counts.
    pub(crate) fn answered(&mut self, valid_for: Option<Duration>) {
        let length = valid_for.map_or(self.length, |valid| valid.min(self.length));
        self.next = Some(Instant::now() + length);
    }
}

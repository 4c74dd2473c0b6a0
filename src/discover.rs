//! Backends from elsewhere: one file per kind of source.
//!
//! A source yields whole sets or errors, never differences, and holds no policy: what an empty
//! answer, a large loss or an error leads to is decided by `control`, the same for all kinds.
//!
//! To add a kind: [`DiscoverKind::is_supported`] says that it is there, and [`AnySource`] gets its
//! variant. Its keys are declared already, in `plan/discover`, `config/keys/discover` and
//! `config/discover`; an example of them goes into `tests/config/reference.toml`.

mod file;
pub(crate) mod format;
pub(crate) mod merge;
mod redis;
mod redis_client;
mod sentinel;

use crate::plan::{Discover, DiscoverKind, DiscoverSource};
use std::time::Duration;
use tokio::time::Instant;

/// A backend as its source has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// As in the file: "host:port", "[::1]:53" or "unix:/path".
    pub(crate) address: String,
    pub(crate) weight: u32,
    pub(crate) backup: bool,
    /// For display alone.
    pub(crate) name: Option<String>,
    /// Whether it takes nothing new.
    pub(crate) draining: bool,
}

/// All backends of a source at one moment, in any order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) backends: Vec<Found>,
    /// What the source calls this state, for people.
    pub(crate) version: String,
    /// How long the source itself calls it valid, as the time to live of DNS.
    pub(crate) valid_for: Option<Duration>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SourceError {
    /// Names the place, and the way out.
    pub(crate) message: String,
}

/// Where backends come from.
pub(crate) trait Source: Send {
    /// The first call answers at once. Later ones return when there may be something new: a source
    /// that is polled waits for `interval` itself, from the end of its last answer (see
    /// [`Interval`]); one that watches waits for an event. An error is returned as soon as it is
    /// known, and the caller waits before it calls again: that call does not wait for `interval`
    /// any more. One question takes `timeout` at most. A call can be dropped at any point; the next
    /// one begins anew.
    fn next(&mut self) -> impl Future<Output = Result<Snapshot, SourceError>> + Send;
}

/// A source of any kind.
pub(crate) enum AnySource {
    File(file::FileSource),
    Redis(redis::RedisSource),
    Sentinel(sentinel::SentinelSource),
    /// Kinds that the configuration refuses.
    Unsupported(DiscoverKind),
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
            source @ (DiscoverSource::Http { .. }
            | DiscoverSource::Srv { .. }
            | DiscoverSource::Consul { .. }
            | DiscoverSource::Etcd { .. }
            | DiscoverSource::Kubernetes { .. }) => Self::Unsupported(source.kind()),
        }
    }
}

impl Source for AnySource {
    async fn next(&mut self) -> Result<Snapshot, SourceError> {
        match self {
            Self::File(source) => source.next().await,
            Self::Redis(source) => source.next().await,
            Self::Sentinel(source) => source.next().await,
            Self::Unsupported(kind) => Err(SourceError::new(format!(
                "sources of kind {:?} are not supported yet",
                kind.word()
            ))),
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

impl SourceError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
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

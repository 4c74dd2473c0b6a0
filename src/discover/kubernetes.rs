//! `kubernetes`: the EndpointSlices of a service, listed and then watched.
//!
//! A watch says nothing while its server hangs, so silence is checked by a list that is not older
//! than what is known.

mod message;
mod state;

use super::{
    Found, Snapshot, Source, SourceError,
    client::{Ask, Deadline, HttpClient, HttpError, TlsFiles},
    lines::{GATHERING, Lines},
    restart::Restart,
    token::{Token, TokenError},
};
use crate::config::value::url::escape;
use hyper::header::AUTHORIZATION;
use message::{MessageError, Status};
use state::{ServiceState, SliceError};
use std::{
    fmt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::time::timeout;

/// What a pod is given to ask its cluster with.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Silence is not checked more often: a list costs the server more than an event.
const SHORTEST_CHECK: Duration = Duration::from_secs(10);
/// A watch ends by itself after so many seconds, and up to as many more, so that not all of them
/// end at once.
const WATCH: u32 = 300;

pub(crate) struct Kubernetes {
    /// `None`: this process is not in a cluster.
    server: Option<HttpClient>,
    token: Option<Token>,
    namespace: String,
    service: String,
    port: Option<String>,
    pub(super) check_every: Duration,
    pub(super) timeout: Duration,
    state: Option<ServiceState>,
    watch: Option<Lines>,
    restart: Restart,
}

/// The keys of the configuration.
pub(crate) struct KubernetesSettings {
    pub(crate) namespace: String,
    pub(crate) service: String,
    pub(crate) port: Option<String>,
    /// `None`: that of the cluster in which this process runs.
    pub(crate) url: Option<String>,
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) tls_ca: Option<PathBuf>,
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
}

impl Kubernetes {
    pub(crate) fn new(settings: KubernetesSettings) -> Self {
        let of_account = |name: &str| Some(Path::new(ACCOUNT).join(name));
        let variable = |name: &str| std::env::var(name).ok();
        let (url, token, ca) = match settings.url {
            Some(url) => (Some(url), settings.token_file, settings.tls_ca),
            None => (
                in_cluster(variable),
                settings.token_file.or_else(|| of_account("token")),
                settings.tls_ca.or_else(|| of_account("ca.crt")),
            ),
        };
        let tls = TlsFiles { ca, identity: None };
        Self {
            server: url.map(|url| HttpClient::new(&url, tls)),
            token: token.map(Token::new),
            namespace: settings.namespace,
            service: settings.service,
            port: settings.port,
            check_every: settings.interval.max(SHORTEST_CHECK),
            timeout: settings.timeout,
            state: None,
            watch: None,
            restart: Restart::default(),
        }
    }

    /// Follows the watch until there is something to say.
    async fn follow(&mut self) -> Result<Snapshot, KubernetesError> {
        loop {
            let Some(lines) = &mut self.watch else {
                self.restart.wait().await;
                if self.begin().await? == Begun::List {
                    return self.snapshot();
                }
                continue;
            };
            let ended = match timeout(self.check_every, lines.next()).await {
                Ok(Ok(Some(line))) => match self.take(line).await {
                    Ok(true) => return self.snapshot(),
                    Ok(false) => None,
                    Err(e) => {
                        self.state = None;
                        Some(e)
                    }
                },
                Ok(Ok(None)) => Some(KubernetesError::Ended),
                Ok(Err(e)) => Some(e.into()),
                Err(_) => {
                    self.confirm().await?;
                    return self.snapshot();
                }
            };
            if let Some(error) = ended {
                tracing::debug!(service = self.service, %error, "watch of Kubernetes ended");
                self.watch = None;
            }
        }
    }

    /// Whether an event, and those that have come with it, has changed something.
    async fn take(&mut self, line: Vec<u8>) -> Result<bool, KubernetesError> {
        let until = Instant::now() + GATHERING;
        let mut line = Some(line);
        let mut is_changed = false;
        while let Some(bytes) = line {
            let event = message::read_event(&bytes).map_err(KubernetesError::Message)?;
            if let Some(state) = &mut self.state {
                is_changed |= state.apply(event);
            }
            line = match &mut self.watch {
                Some(lines) => lines.next_received(until).await,
                None => None,
            };
        }
        if is_changed {
            self.restart.forget();
        }
        Ok(is_changed)
    }

    fn snapshot(&self) -> Result<Snapshot, KubernetesError> {
        let state = self.state.as_ref().ok_or(KubernetesError::Ended)?;
        let snapshot = state.snapshot(self.port.as_deref());
        snapshot.map_err(KubernetesError::Slice)
    }

    /// Goes on where the last watch has ended, or lists the slices first: also after watches that
    /// have ended in a row without an event, since a list shows what is wrong.
    async fn begin(&mut self) -> Result<Begun, KubernetesError> {
        if let Some(state) = &self.state
            && self.restart.in_row() <= MOST_RESTARTS
        {
            let version = state.version.clone();
            match self.open(&version).await {
                Ok(()) => return Ok(Begun::Watch),
                // The events since then are gone: the list says what there is.
                Err(e) if e.is_gone() => {}
                Err(e) => {
                    self.state = None;
                    return Err(e);
                }
            }
        }
        self.state = None;
        let state = self.list("").await?;
        self.open(&state.version).await?;
        self.state = Some(state);
        Ok(Begun::List)
    }

    /// Whether the slices are those that are known; if not, they are now, and another watch begins.
    async fn confirm(&mut self) -> Result<(), KubernetesError> {
        let version = self.state.as_ref().map(|state| escape(&state.version));
        let query =
            version.map(|v| format!("&resourceVersion={v}&resourceVersionMatch=NotOlderThan"));
        match self.list(&query.unwrap_or_default()).await {
            Ok(state) => {
                if !self
                    .state
                    .as_ref()
                    .is_some_and(|known| known.has_slices_of(&state))
                {
                    self.watch = None;
                }
                self.state = Some(state);
                self.restart.forget();
                Ok(())
            }
            Err(e) => {
                self.watch = None;
                self.state = None;
                Err(e)
            }
        }
    }

    async fn list(&mut self, query: &str) -> Result<ServiceState, KubernetesError> {
        let ask = self.ask(query).await?;
        let deadline = Deadline::after(self.timeout);
        let answer = self.server()?.fetch(ask, deadline).await?;
        let answer = answer.ok().map_err(refused)?;
        let list = message::read_list(&answer.body).map_err(KubernetesError::Message)?;
        Ok(ServiceState::new(list))
    }

    async fn open(&mut self, version: &str) -> Result<(), KubernetesError> {
        let lasts = rand::random_range(WATCH..2 * WATCH);
        let version = escape(version);
        let query = format!(
            "&watch=true&allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds={lasts}"
        );
        let ask = self.ask(&query).await?;
        let deadline = Deadline::after(self.timeout);
        let response = self.server()?.open(ask, deadline).await.map_err(refused)?;
        self.watch = Some(Lines::new(response));
        Ok(())
    }

    async fn ask(&mut self, query: &str) -> Result<Ask, KubernetesError> {
        let (namespace, service) = (escape(&self.namespace), escape(&self.service));
        let ask = Ask::get(format!(
            "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices\
             ?labelSelector=kubernetes.io%2Fservice-name%3D{service}{query}"
        ));
        let Some(token) = &self.token else {
            return Ok(ask);
        };
        let token = token.read().await.map_err(KubernetesError::Token)?;
        Ok(ask.field(AUTHORIZATION, [&b"Bearer "[..], &token].concat())?)
    }

    fn server(&mut self) -> Result<&mut HttpClient, KubernetesError> {
        self.server.as_mut().ok_or(KubernetesError::Outside)
    }
}

/// How a watch has begun.
#[derive(Debug, PartialEq, Eq)]
enum Begun {
    /// With a list: it tells what there is.
    List,
    /// Where the last one has ended: nothing is known that was not before.
    Watch,
}

impl Source for Kubernetes {
    async fn next(&mut self) -> Result<Snapshot, SourceError> {
        self.follow().await.map_err(|e| {
            let place = self
                .server
                .as_ref()
                .map_or_else(String::new, HttpClient::place);
            let service = format!("{}/{}", self.namespace, self.service);
            SourceError::new(format!("kubernetes {place}, service {service}: {e}"))
        })
    }
}

/// The API server of the cluster that this process runs in.
fn in_cluster(variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    let host = variable("KUBERNETES_SERVICE_HOST").filter(|host| !host.is_empty())?;
    let port = variable("KUBERNETES_SERVICE_PORT").filter(|port| !port.is_empty());
    let port = port.unwrap_or_else(|| "443".to_owned());
    Some(match host.contains(':') {
        true => format!("https://[{host}]:{port}"),
        false => format!("https://{host}:{port}"),
    })
}

/// With the text of the server where it has one.
fn refused(e: HttpError) -> KubernetesError {
    match e {
        HttpError::Status(status, body) => match Status::read(&body) {
            Some(refusal) => KubernetesError::Message(MessageError::Refused(refusal)),
            None => KubernetesError::Http(HttpError::Status(status, body)),
        },
        e => KubernetesError::Http(e),
    }
}

/// What a list, in the first line, and the events of a watch after it stand for.
pub(super) fn replay(lines: &[u8]) -> Result<Vec<Found>, SourceError> {
    let read = || {
        let mut lines = lines.split(|byte| *byte == b'\n');
        let list = message::read_list(lines.next().unwrap_or_default());
        let mut state = ServiceState::new(list.map_err(KubernetesError::Message)?);
        for line in lines {
            state.apply(message::read_event(line).map_err(KubernetesError::Message)?);
        }
        state.snapshot(Some("sql")).map_err(KubernetesError::Slice)
    };
    let snapshot = read().map_err(|e| SourceError::new(e.to_string()))?;
    Ok(snapshot.backends)
}

/// Watches in a row without an event before the slices are listed again.
const MOST_RESTARTS: u32 = 2;

#[derive(Debug)]
enum KubernetesError {
    Http(HttpError),
    Message(MessageError),
    Slice(SliceError),
    Token(TokenError),
    /// The watch has.
    Ended,
    /// Not in a cluster, and no other is named.
    Outside,
}

impl KubernetesError {
    fn is_gone(&self) -> bool {
        match self {
            Self::Message(MessageError::Refused(status)) => status.is_gone(),
            Self::Http(HttpError::Status(status, _)) => status.as_u16() == 410,
            _ => false,
        }
    }
}

impl From<HttpError> for KubernetesError {
    fn from(e: HttpError) -> Self {
        Self::Http(e)
    }
}

impl std::error::Error for KubernetesError {}

impl fmt::Display for KubernetesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(e) => e.fmt(f),
            Self::Message(MessageError::Refused(status)) if status.code == 403 => write!(
                f,
                "{status}; a role with get, list and watch on endpointslices of the group \
                 discovery.k8s.io is needed"
            ),
            Self::Message(e) => e.fmt(f),
            Self::Slice(e) => e.fmt(f),
            Self::Token(e) => e.fmt(f),
            Self::Ended => f.write_str("the watch has ended"),
            Self::Outside => f.write_str(
                "KUBERNETES_SERVICE_HOST is not set: outside of a cluster name its API server \
                 with `url`",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_of_the_cluster() {
        let of = |host: &'static str, port: Option<&'static str>| {
            in_cluster(|name| match name {
                "KUBERNETES_SERVICE_HOST" => Some(host.to_owned()),
                _ => port.map(str::to_owned),
            })
        };
        assert_eq!(
            of("10.96.0.1", Some("6443")).as_deref(),
            Some("https://10.96.0.1:6443")
        );
        assert_eq!(
            of("fd00::1", None).as_deref(),
            Some("https://[fd00::1]:443")
        );
        assert_eq!(of("", None), None);
        assert_eq!(in_cluster(|_| None), None);
    }
}

//! `http`: a list of backends in JSON, asked for again and again.
//!
//! Always for the whole of it: an ETag may stay the same although the list has changed. That of
//! nginx is made of the size and the second of the last change.

use super::{
    Interval, Snapshot, Source, SourceError,
    client::{Ask, Deadline, HttpClient, HttpError, TlsFiles},
    excerpt::excerpt,
    format,
};
use crate::plan::Discover;
use hyper::{StatusCode, header::HeaderName};
use std::{fmt, path::Path, time::Duration};
use xxhash_rust::xxh3::xxh3_64;

pub(crate) struct HttpList {
    client: HttpClient,
    headers: Vec<(String, String)>,
    timeout: Duration,
    interval: Interval,
}

impl HttpList {
    pub(crate) fn new(
        url: &str,
        headers: &[(String, String)],
        tls_ca: Option<&Path>,
        discover: &Discover,
    ) -> Self {
        let tls = TlsFiles {
            ca: tls_ca.map(Path::to_owned),
            identity: None,
        };
        Self {
            client: HttpClient::new(url, tls),
            headers: headers.to_vec(),
            timeout: discover.timeout,
            interval: Interval::new(discover.interval),
        }
    }

    async fn ask(&mut self) -> Result<Snapshot, ListError> {
        let mut ask = Ask::default();
        for (name, value) in &self.headers {
            let bad = || HttpError::Field(name.clone());
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?;
            ask = ask.field(name, value)?;
        }
        let answer = self
            .client
            .fetch(ask, Deadline::after(self.timeout))
            .await?;
        let answer = answer.ok()?;
        if answer.status == StatusCode::NO_CONTENT {
            return Err(ListError::NoContent);
        }
        Ok(Snapshot {
            backends: format::parse_json(&answer.body)
                .map_err(|e| ListError::NoList(e, excerpt(&answer.body)))?,
            version: format!("content {:016x}", xxh3_64(&answer.body)),
            valid_for: None,
            gap: None,
        })
    }
}

impl Source for HttpList {
    async fn next(&mut self) -> Result<Snapshot, SourceError> {
        self.interval.wait().await;
        let asked = self.ask().await;
        if asked.is_ok() {
            self.interval.answered(None);
        }
        asked.map_err(|e| SourceError::new(format!("{}: {e}", self.client.place())))
    }
}

#[derive(Debug)]
enum ListError {
    Http(HttpError),
    NoContent,
    /// Why not, and what it begins with.
    NoList(SourceError, String),
}

impl From<HttpError> for ListError {
    fn from(e: HttpError) -> Self {
        Self::Http(e)
    }
}

impl std::error::Error for ListError {}

impl fmt::Display for ListError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(e) => e.fmt(f),
            Self::NoContent => f.write_str("status 204: an empty list of backends is []"),
            Self::NoList(e, text) => write!(f, "{}; the answer begins with {text}", e.message),
        }
    }
}

//! Why a server gave no answer, and the way out.

use crate::{
    config::value::url::UrlError,
    discover::excerpt::excerpt,
    plan::Addr,
    probe::tls::{TlsError, error as tls_text},
};
use bytes::Bytes;
use hyper::StatusCode;
use std::{error::Error, fmt, io, time::Duration};

/// What was waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::discover) enum Stage {
    LookUp,
    Connect,
    Tls,
    Response,
    Body,
}

impl Stage {
    fn describe(self) -> &'static str {
        match self {
            Self::LookUp => "the resolver has not answered",
            Self::Connect => "the connection is not accepted",
            Self::Tls => "TLS is not established",
            Self::Response => "there is no response",
            Self::Body => "the response is not complete",
        }
    }
}

#[derive(Debug)]
pub(in crate::discover) enum HttpError {
    Url(UrlError),
    LookUp(String, io::Error),
    /// The name resolves to nothing.
    NoAddress(String),
    Connect(Addr, io::Error),
    Credentials(TlsError),
    /// Files could not be read in time.
    Files(io::Error),
    Tls(io::Error),
    Timeout(Stage, Duration),
    Exchange(hyper::Error),
    Redirect(StatusCode, Option<String>),
    Status(StatusCode, Bytes),
    /// Longer than so many bytes.
    TooLong(usize),
    /// What the body is compressed by.
    Encoding(String),
    /// A field of the request with bytes that none can have.
    Field(String),
    Path(String),
}

impl Error for HttpError {}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(e) => e.fmt(f),
            Self::LookUp(host, e) => write!(f, "cannot resolve {host}: {}", plain(e)),
            Self::NoAddress(host) => write!(f, "{host} has no address"),
            Self::Connect(address, e) => write!(f, "cannot connect to {address}: {}", plain(e)),
            Self::Credentials(e) => e.fmt(f),
            Self::Files(e) => write!(f, "cannot read the files of TLS: {}", plain(e)),
            Self::Tls(e) => match tls_text(e) {
                Some(text) => write!(f, "TLS: {text}"),
                None => write!(f, "TLS: {}", plain(e)),
            },
            Self::Timeout(stage, limit) => {
                write!(f, "{} within {limit:?} (`timeout`)", stage.describe())
            }
            Self::Exchange(e) => {
                write!(f, "HTTP: {e}")?;
                match e.source() {
                    Some(source) => write!(f, ": {source}"),
                    None => Ok(()),
                }
            }
            Self::Redirect(status, Some(place)) => write!(
                f,
                "status {}: redirects are not followed, name the place itself: {}",
                status.as_u16(),
                excerpt(place.as_bytes())
            ),
            Self::Redirect(status, None) => {
                write!(f, "status {}: redirects are not followed", status.as_u16())
            }
            Self::Status(status, body) if body.is_empty() => {
                write!(f, "status {}", status.as_u16())
            }
            Self::Status(status, body) => {
                write!(f, "status {}: {}", status.as_u16(), excerpt(body))
            }
            Self::Encoding(encoding) => write!(
                f,
                "the answer is encoded as {}, which was not asked for: let the server send it \
                 as it is",
                excerpt(encoding.as_bytes())
            ),
            Self::TooLong(most) => write!(f, "the answer is longer than {} MiB", most >> 20),
            Self::Field(name) => write!(
                f,
                "the value for the field {name} has bytes in it that HTTP does not allow"
            ),
            Self::Path(path) => write!(f, "{} cannot be asked for", excerpt(path.as_bytes())),
        }
    }
}

/// Without "(os error 111)".
fn plain(e: &io::Error) -> String {
    let text = e.to_string();
    match text.find(" (os error") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

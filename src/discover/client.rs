//! HTTP/1.1 to a source: each request on a connection of its own, with limits of time and size.

mod error;

pub(super) use error::{HttpError, Stage};

use crate::{
    config::value::url::{Url, UrlError},
    plan::{Addr, Tls},
    probe::{
        connection::{Connection, connect},
        tls::{Encryption, Identity},
    },
    sys::blocking,
};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request, StatusCode,
    body::{Body as _, Incoming},
    client::conn::http1,
    header::{self, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use std::{
    future::poll_fn,
    net::{SocketAddr, ToSocketAddrs as _},
    path::PathBuf,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, timeout_at};

/// A longer answer is an error: 5,000 backends take some 5 MiB in the longest format.
pub(super) const MOST_BYTES: usize = 16 << 20;
/// Of the head of a response, with all its fields.
const MOST_OF_HEAD: usize = 64 << 10;
/// Of the body of an error.
const MOST_OF_ERROR: usize = 4096;

/// Until when all of an exchange must have happened.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    at: Instant,
    /// How long that was at the beginning, for messages.
    limit: Duration,
}

impl Deadline {
    pub(super) fn after(limit: Duration) -> Self {
        Self {
            at: Instant::now() + limit,
            limit,
        }
    }

    async fn hold<T>(self, stage: Stage, work: impl Future<Output = T>) -> Result<T, HttpError> {
        let error = HttpError::Timeout(stage, self.limit);
        timeout_at(self.at, work).await.map_err(|_| error)
    }
}

/// The files of TLS that a server is reached with.
#[derive(Debug, Clone, Default)]
pub(super) struct TlsFiles {
    /// The certificates that are trusted; `None`: those of the system.
    pub(super) ca: Option<PathBuf>,
    pub(super) identity: Option<Identity>,
}

/// What is asked for.
#[derive(Default)]
pub(super) struct Ask {
    pub(super) method: Method,
    /// Below that of the server, with the query; begins with a slash. Empty: that of the server
    /// itself.
    pub(super) path: String,
    pub(super) fields: Vec<(HeaderName, HeaderValue)>,
    pub(super) body: Bytes,
}

impl Ask {
    pub(super) fn get(path: String) -> Self {
        Self {
            path,
            ..Self::default()
        }
    }

    pub(super) fn post(path: String, json: &serde_json::Value) -> Self {
        let kind = HeaderValue::from_static("application/json");
        Self {
            method: Method::POST,
            path,
            fields: vec![(header::CONTENT_TYPE, kind)],
            body: json.to_string().into(),
        }
    }

    pub(super) fn field(
        mut self,
        name: HeaderName,
        value: impl AsRef<[u8]>,
    ) -> Result<Self, HttpError> {
        let value = HeaderValue::from_bytes(value.as_ref());
        let mut value = value.map_err(|_| HttpError::Field(name.to_string()))?;
        value.set_sensitive(true);
        self.fields.push((name, value));
        Ok(self)
    }

    fn into_request(self, url: &Url) -> Result<Request<Full<Bytes>>, HttpError> {
        let path = match self.path.is_empty() {
            true => url.path.clone(),
            false => url.join(&self.path),
        };
        let request = Request::builder().method(self.method).uri(&path);
        let request = request.body(Full::new(self.body));
        let mut request = request.map_err(|_| HttpError::Path(path))?;
        let host = HeaderValue::from_str(&url.authority());
        let host = host.map_err(|_| HttpError::Field("Host".into()))?;
        let agent = HeaderValue::from_static(concat!("tembuku/", env!("CARGO_PKG_VERSION")));
        let fields = request.headers_mut();
        fields.insert(header::HOST, host);
        fields.insert(header::USER_AGENT, agent);
        fields.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        fields.insert(header::CONNECTION, HeaderValue::from_static("close"));
        for (name, value) in self.fields {
            fields.insert(name, value);
        }
        Ok(request)
    }
}

/// A whole answer.
#[derive(Debug)]
pub(super) struct HttpAnswer {
    pub(super) status: StatusCode,
    pub(super) fields: HeaderMap,
    pub(super) body: Bytes,
}

impl HttpAnswer {
    /// An error unless its status is a success.
    pub(super) fn ok(self) -> Result<Self, HttpError> {
        match self.status.is_success() {
            true => Ok(self),
            false => Err(HttpError::Status(self.status, self.body)),
        }
    }

    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name)?.to_str().ok()
    }
}

/// One server.
pub(super) struct HttpClient {
    url: Result<Url, UrlError>,
    /// As configured.
    text: String,
    tls: TlsFiles,
    /// Loaded with the first connection, and again after a connection that failed: its files may
    /// have changed.
    encryption: Option<Encryption>,
}

impl HttpClient {
    pub(super) fn new(url: &str, tls: TlsFiles) -> Self {
        Self {
            url: Url::parse(url),
            text: url.to_owned(),
            tls,
            encryption: None,
        }
    }

    /// For messages.
    pub(super) fn place(&self) -> String {
        match &self.url {
            Ok(url) => url.to_string(),
            Err(_) => self.text.clone(),
        }
    }

    /// The whole answer, whatever its status is.
    pub(super) async fn fetch(
        &mut self,
        ask: Ask,
        deadline: Deadline,
    ) -> Result<HttpAnswer, HttpError> {
        let mut response = self.send(ask, deadline).await?;
        // None was asked for: what came would be called no JSON.
        if let Some(encoding) = response.fields.get(header::CONTENT_ENCODING)
            && encoding.as_bytes() != b"identity"
        {
            let encoding = String::from_utf8_lossy(encoding.as_bytes()).into_owned();
            return Err(HttpError::Encoding(encoding));
        }
        let body = deadline
            .hold(Stage::Body, response.read(MOST_BYTES))
            .await??;
        Ok(HttpAnswer {
            status: response.status,
            fields: std::mem::take(&mut response.fields),
            body,
        })
    }

    /// An answer that is read as it comes. Its status is a success.
    pub(super) async fn open(
        &mut self,
        ask: Ask,
        deadline: Deadline,
    ) -> Result<Response, HttpError> {
        let mut response = self.send(ask, deadline).await?;
        if response.status.is_success() {
            return Ok(response);
        }
        let body = deadline.hold(Stage::Body, response.read(MOST_OF_ERROR));
        let body = body.await?.unwrap_or_default();
        Err(HttpError::Status(response.status, body))
    }

    async fn send(&mut self, ask: Ask, deadline: Deadline) -> Result<Response, HttpError> {
        let url = self.url.clone().map_err(HttpError::Url)?;
        let request = ask.into_request(&url)?;
        let connection = self.connect(&url, deadline).await?;
        let mut builder = http1::Builder::new();
        builder.max_buf_size(MOST_OF_HEAD);
        let handshake = builder.handshake(TokioIo::new(connection));
        let (sender, connection) = handshake.await.map_err(HttpError::Exchange)?;
        let mut exchange = Exchange {
            sender,
            connection: Some(Box::pin(connection)),
        };
        let response = exchange.send(request);
        let response = deadline.hold(Stage::Response, response).await?;
        let (head, body) = response.map_err(HttpError::Exchange)?.into_parts();
        if head.status.is_redirection() && head.status != StatusCode::NOT_MODIFIED {
            let place = head.headers.get(header::LOCATION);
            let place = place.map(|place| String::from_utf8_lossy(place.as_bytes()).into_owned());
            return Err(HttpError::Redirect(head.status, place));
        }
        Ok(Response {
            status: head.status,
            fields: head.headers,
            body,
            exchange,
        })
    }

    async fn connect(&mut self, url: &Url, deadline: Deadline) -> Result<Connection, HttpError> {
        let addresses = look_up(url, deadline).await?;
        let mut last = HttpError::NoAddress(url.host.clone());
        // Each gets its share of the time that is left.
        for (n, address) in addresses.iter().enumerate() {
            let now = Instant::now();
            let left = u32::try_from(addresses.len() - n).unwrap_or(u32::MAX);
            let share = Deadline {
                at: now + deadline.at.saturating_duration_since(now) / left,
                ..deadline
            };
            match self.connect_to(url, *address, share).await {
                Ok(connection) => return Ok(connection),
                Err(e) => last = e,
            }
        }
        self.encryption = None;
        Err(last)
    }

    async fn connect_to(
        &mut self,
        url: &Url,
        address: SocketAddr,
        deadline: Deadline,
    ) -> Result<Connection, HttpError> {
        let address = Addr::Tcp(address);
        let connected = deadline.hold(Stage::Connect, connect(&address, true));
        let connection = connected
            .await?
            .map_err(|e| HttpError::Connect(address, e))?;
        if !url.is_encrypted {
            return Ok(connection);
        }
        let encryption = match self.encryption.take() {
            Some(encryption) => encryption,
            None => load(self.tls.clone()).await?,
        };
        let begun = encryption.begin(connection, &url.host);
        let begun = deadline.hold(Stage::Tls, begun).await?;
        let (connection, _) = begun.map_err(HttpError::Tls)?;
        self.encryption = Some(encryption);
        Ok(connection)
    }
}

async fn look_up(url: &Url, deadline: Deadline) -> Result<Vec<SocketAddr>, HttpError> {
    let (host, port) = (url.host.clone(), url.port);
    if let Ok(ip) = host.parse() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let work = move || (host, port).to_socket_addrs().map(Iterator::collect);
    let found = deadline.hold(Stage::LookUp, blocking::call(deadline.limit, work));
    let found = found.await?.flatten();
    found.map_err(|e| HttpError::LookUp(url.host.clone(), e))
}

async fn load(files: TlsFiles) -> Result<Encryption, HttpError> {
    let tls = Tls::Verify {
        ca: files.ca,
        name: None,
    };
    let work = move || Encryption::load_with(&tls, files.identity.as_ref());
    let loaded = blocking::call(blocking::LIMIT, work).await;
    let loaded = loaded.map_err(HttpError::Files)?;
    let encryption = loaded.map_err(HttpError::Credentials)?;
    encryption.ok_or(HttpError::NoAddress("TLS is off".to_owned()))
}

type Wire = http1::Connection<TokioIo<Connection>, Full<Bytes>>;

/// Both sides of the protocol, driven by what waits for its result: there is no task of its own.
struct Exchange {
    sender: http1::SendRequest<Full<Bytes>>,
    /// Until it has ended.
    connection: Option<Pin<Box<Wire>>>,
}

impl Exchange {
    async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> hyper::Result<hyper::Response<Incoming>> {
        let mut response = pin!(self.sender.send_request(request));
        poll_fn(|cx| {
            // What it fails with is the result of the request, too.
            drive(&mut self.connection, cx);
            response.as_mut().poll(cx)
        })
        .await
    }
}

fn drive(connection: &mut Option<Pin<Box<Wire>>>, cx: &mut Context<'_>) {
    if let Some(wire) = connection
        && wire.as_mut().poll(cx).is_ready()
    {
        *connection = None;
    }
}

/// An answer whose body is still to come.
pub(super) struct Response {
    pub(super) status: StatusCode,
    fields: HeaderMap,
    body: Incoming,
    exchange: Exchange,
}

impl Response {
    /// The next bytes; `None`: it has ended as it should. Can be dropped without a loss.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, HttpError> {
        loop {
            let frame = poll_fn(|cx| self.poll_frame(cx)).await;
            match frame {
                None => return Ok(None),
                Some(Err(e)) => return Err(HttpError::Exchange(e)),
                // Trailing fields are of no use.
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<hyper::body::Frame<Bytes>>>> {
        drive(&mut self.exchange.connection, cx);
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if frame.is_pending() {
            // The body may have asked for more meanwhile.
            drive(&mut self.exchange.connection, cx);
            return Pin::new(&mut self.body).poll_frame(cx);
        }
        frame
    }

    async fn read(&mut self, most: usize) -> Result<Bytes, HttpError> {
        let mut whole = Vec::new();
        while let Some(bytes) = self.chunk().await? {
            if whole.len() + bytes.len() > most {
                return Err(HttpError::TooLong(most));
            }
            whole.extend_from_slice(&bytes);
        }
        Ok(whole.into())
    }
}

//! The HTTP server of the admin side. Read only on TCP; the unix socket also takes commands.

use super::{
    control, events,
    fields::Fields,
    host::{self, HostError},
    lifetime::Lifetime,
    overview::Rows,
    page, readiness, reload,
    render::{DocumentKind, Part, Renderer, SharedBody},
    request::Refusal,
    sessions,
    stream::Stream,
    terminate, upgrade,
};
use crate::{control::State, sys::task::boxed, telemetry::throttle::Throttle};
use http_body_util::{Either, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{
        ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue,
        X_CONTENT_TYPE_OPTIONS,
    },
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::pin,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    task::AbortHandle,
};
use tokio_util::sync::CancellationToken;

/// The time limit for a request's headers.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// No connection lasts longer: clients that do not read cannot occupy all of them for ever.
const LIFETIME: Duration = Duration::from_secs(30);
/// The longest time of a connection on the unix socket, where a reload may wait for others and for
/// a resolver. A response that is made while it is read may take as long from one piece to the
/// next.
const CONTROL_LIFETIME: Duration = Duration::from_secs(150);
/// Each scraper keeps a connection; beyond this number the oldest is closed.
const MAX_CONNECTIONS: usize = 64;
/// Other web pages cannot use a response: no header allows them to read it, and these forbid to
/// include it as a script, a style or an image.
const SECURITY_HEADERS: [(HeaderName, &str); 3] = [
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    (
        CONTENT_SECURITY_POLICY,
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
];

/// The buffer of one connection.
const BUFFER: usize = 64 * 1024;

type Body = Either<Full<Bytes>, Either<SharedBody, Stream>>;

/// A listening socket of the admin side.
pub enum AdminListener {
    Tcp(TcpListener),
    /// With commands.
    Unix(UnixListener),
}

/// Answers until dropped.
pub async fn serve(listener: AdminListener, state: Arc<State>, renderer: Arc<Renderer>) {
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    let failures = Throttle::<1>::new(Instant::now());
    let end = CancellationToken::new();
    // Connections that are kept open would go on with this process when another one has the
    // address.
    let _end = end.clone().drop_guard();
    loop {
        let accepted = match &listener {
            AdminListener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                serve_connection(stream, Access::ReadOnly, &state, &renderer, &end)
            }),
            AdminListener::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                serve_connection(stream, Access::Control, &state, &renderer, &end)
            }),
        };
        match accepted {
            Ok(task) => {
                open.retain(|task| !task.is_finished());
                open.push_back(task);
                if open.len() > MAX_CONNECTIONS
                    && let Some(oldest) = open.pop_front()
                {
                    oldest.abort();
                }
            }
            Err(error) => {
                if let Some(count) = failures.add(0, 1, Instant::now()) {
                    tracing::warn!(%error, count, "cannot accept on the admin address, waiting");
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    ReadOnly,
    Control,
}

/// Serves one connection in a task of its own. Once `listener_end` is cancelled, it answers the
/// requests that it has, and closes.
fn serve_connection<S>(
    stream: S,
    access: Access,
    state: &Arc<State>,
    renderer: &Arc<Renderer>,
    listener_end: &CancellationToken,
) -> AbortHandle
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (tracker, listener_end) = (state.admin_connections.clone(), listener_end.clone());
    let (state, renderer) = (Arc::clone(state), Arc::clone(renderer));
    let lifetime = Arc::new(Lifetime::new(match access {
        Access::ReadOnly => LIFETIME,
        Access::Control => CONTROL_LIFETIME,
    }));
    let end = Arc::clone(&lifetime);
    let service = service_fn(move |request| {
        let (state, renderer) = (Arc::clone(&state), Arc::clone(&renderer));
        answer(request, access, state, renderer, Arc::clone(&lifetime))
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .max_buf_size(BUFFER)
        // A client may end its side after the request, as `nc -N` does, and still read the answer.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    // An error here is the client's: it disconnected, or did not speak HTTP.
    let bounded = async move {
        let mut served = pin!(served);
        tokio::select! {
            _ = &mut served => {}
            () = end.passed() => {}
            () = listener_end.cancelled() => {
                served.as_mut().graceful_shutdown();
                tokio::select! {
                    _ = served => {}
                    () = end.passed() => {}
                }
            }
        }
    };
    tracker.spawn(boxed(bounded)).abort_handle()
}

async fn answer(
    request: Request<Incoming>,
    access: Access,
    state: Arc<State>,
    renderer: Arc<Renderer>,
    lifetime: Arc<Lifetime>,
) -> Result<Response<Body>, Infallible> {
    // The unix socket is out of reach of browsers.
    if access == Access::ReadOnly
        && let Some(refusal) = refuse_host(&request, &state)
    {
        return Ok(refusal);
    }
    let reading = matches!(*request.method(), Method::GET | Method::HEAD);
    let response = match request.uri().path() {
        path if !reading && (DocumentKind::at(path).is_some() || is_probe(path)) => {
            let refused = text(StatusCode::METHOD_NOT_ALLOWED, "read only: GET or HEAD\n");
            allowing(refused, "GET, HEAD")
        }
        path if is_of_socket(path) && access == Access::ReadOnly => text(
            StatusCode::NOT_FOUND,
            "not found: control is on the unix socket alone, `socket` in [admin]\n",
        ),
        path if is_command(path) => command(request, &state).await,
        sessions::PATH => {
            let answer = sessions::answer(request.method(), request.uri(), &state, &lifetime);
            streamed(answer, "GET")
        }
        // Without a query the answer is a document, as that of other paths.
        events::PATH if request.uri().query().is_some() => {
            let query = request.uri().query().unwrap_or_default();
            let page = events::answer(query, &state).await;
            json(page.map(|page| (StatusCode::OK, page)))
        }
        terminate::KILL => streamed(terminate::kill(request, &state, &lifetime).await, "POST"),
        upgrade::PATH => streamed(upgrade::answer(request, &state, &lifetime).await, "POST"),
        terminate::REBALANCE => streamed(
            terminate::rebalance(request, &state, &lifetime).await,
            "POST",
        ),
        "/livez" => text(StatusCode::OK, "ok\n"),
        readiness::PATH => plain(readiness::answer(request.uri().query(), &state)),
        readiness::NODE_PATH => plain(readiness::node(&state).await),
        path => match DocumentKind::at(path) {
            Some(kind) => document(kind, &request, &renderer).await,
            None => text(
                StatusCode::NOT_FOUND,
                "not found; there are /, /metrics, /livez, /readyz, /readyz/node, /api/v1/status, \
                 /api/v1/overview, /api/v1/events, /api/v1/history and /api/v1/sessions/ages\n",
            ),
        },
    };
    Ok(response)
}

/// The answer to a request that names another host.
fn refuse_host<B>(request: &Request<B>, state: &State) -> Option<Response<Body>> {
    static REFUSED: LazyLock<Throttle<1>> = LazyLock::new(|| Throttle::new(Instant::now()));
    let view = state.view();
    let names = view.plan.admin.as_ref().map_or(&[][..], |a| &a.hosts);
    let refusal = host::check(request, names).err()?;
    if let HostError::UnknownName(host) = &refusal
        && let Some(count) = REFUSED.add(0, 1, Instant::now())
    {
        tracing::warn!(
            host,
            count,
            "request refused, its Host is not in `hosts` of [admin]"
        );
    }
    Some(text(refusal.status(), refusal.text()))
}

/// Whether it is served on the unix socket alone.
fn is_of_socket(path: &str) -> bool {
    let streamed = [
        sessions::PATH,
        terminate::KILL,
        terminate::REBALANCE,
        upgrade::PATH,
    ];
    is_command(path) || streamed.contains(&path)
}

/// `methods`: those that the path accepts.
fn streamed(answer: Result<Stream, Refusal>, methods: &'static str) -> Response<Body> {
    match answer {
        Ok(stream) => {
            let body = Either::Right(Either::Right(stream));
            with_type(StatusCode::OK, "application/json", body)
        }
        Err(refusal) => refused(refusal, methods),
    }
}

fn refused(refusal: Refusal, methods: &'static str) -> Response<Body> {
    let (code, json) = refusal.into_answer();
    let answer = typed(code, "application/json", format!("{json:#}\n"));
    match code {
        StatusCode::METHOD_NOT_ALLOWED => allowing(answer, methods),
        _ => answer,
    }
}

fn is_command(path: &str) -> bool {
    path == reload::PATH
        || path == control::NODE_PATH
        || path == control::RELEASE_PATH
        || control::is_at(path)
}

async fn command(request: Request<Incoming>, state: &State) -> Response<Body> {
    let answer = match request.uri().path() {
        reload::PATH => reload::answer(request, state).await,
        control::NODE_PATH => control::answer_node(request, state).await,
        control::RELEASE_PATH => control::answer_release(request, state).await,
        _ => control::answer(request, state).await,
    };
    json(answer)
}

fn json(answer: Result<(StatusCode, impl Serialize), Refusal>) -> Response<Body> {
    match answer.map(|(code, value)| (code, serde_json::to_string_pretty(&value))) {
        Ok((code, Ok(written))) => typed(code, "application/json", written + "\n"),
        Ok((_, Err(_))) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            "this answer cannot be written\n",
        ),
        Err(refusal) => refused(refusal, "POST"),
    }
}

fn is_probe(path: &str) -> bool {
    matches!(path, "/livez" | readiness::PATH | readiness::NODE_PATH)
}

/// For HEAD nothing is rendered.
async fn document<B>(
    kind: DocumentKind,
    request: &Request<B>,
    renderer: &Renderer,
) -> Response<Body> {
    let part = match part(kind, request.uri().query().unwrap_or_default()) {
        Ok(part) => part,
        Err(refusal) => return refused(refusal, "GET, HEAD"),
    };
    if *request.method() == Method::HEAD {
        return typed(StatusCode::OK, kind.content_type(), Bytes::new());
    }
    match renderer.document(kind, part).await {
        Some(body) => {
            let body = Either::Right(Either::Left(body));
            let mut response = with_type(StatusCode::OK, kind.content_type(), body);
            if kind == DocumentKind::Page {
                let policy = page::content_security_policy();
                (response.headers_mut()).insert(CONTENT_SECURITY_POLICY, policy);
            }
            response
        }
        None => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            "this document cannot be made; the log says why\n",
        ),
    }
}

/// By the query: `after=NUMBER`, of the last sample that the client has, and the rows.
fn part(kind: DocumentKind, query: &str) -> Result<Part, Refusal> {
    let mut part = Part::default();
    match kind {
        DocumentKind::History | DocumentKind::Overview => {}
        DocumentKind::Page
        | DocumentKind::Metrics
        | DocumentKind::Status
        | DocumentKind::Events
        | DocumentKind::Ages => return Ok(part),
    }
    let mut fields = Fields::of_query(query)?;
    part.after = fields.number("after", u64::MAX)?.unwrap_or_default();
    if kind == DocumentKind::History {
        fields.finish(&["after"])?;
        return Ok(part);
    }
    part.rows = Rows::read(&mut fields)?;
    fields.finish(&["after", "filter", "sort", "unwell", "limit"])?;
    Ok(part)
}

fn allowing(mut refused: Response<Body>, methods: &'static str) -> Response<Body> {
    let methods = HeaderValue::from_static(methods);
    refused.headers_mut().insert(ALLOW, methods);
    refused
}

fn plain((code, body): readiness::Answer) -> Response<Body> {
    text(code, body)
}

fn text(code: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    typed(code, "text/plain; charset=utf-8", body)
}

fn typed(code: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    with_type(code, kind, Either::Left(Full::new(body.into())))
}

fn with_type(code: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for (name, value) in SECURITY_HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

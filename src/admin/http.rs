//! The HTTP side: one thread, never in the way of traffic. Read only, except on the socket.

use super::{
    control, host,
    render::{Kind, Renderer, SharedBody},
    status,
};
use crate::{control::State, telemetry::throttle::Throttle};
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
use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    task::AbortHandle,
};

/// A client that does not send its request in this time is not waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// No connection lasts longer, so that clients which do not read cannot keep all places for ever.
const LIFETIME: Duration = Duration::from_secs(30);
/// Scrapers keep a connection each; of more than this at once the oldest is closed.
const CONNECTIONS: usize = 64;
/// What other web pages may do with an answer: nothing. They cannot read it, since no header allows
/// that; nor can they include it as a script, a style or an image.
const BROWSERS: [(HeaderName, &str); 3] = [
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    (
        CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'",
    ),
];

/// What waits for a slow client in one connection.
const BUFFER: usize = 64 * 1024;

type Body = Either<Full<Bytes>, SharedBody>;

/// Where requests come in.
pub enum Door {
    Tcp(TcpListener),
    /// Here there is control besides.
    Unix(UnixListener),
}

/// Answers until dropped.
pub async fn serve(door: Door, state: Arc<State>, renderer: Arc<Renderer>) {
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    let failures = Throttle::<1>::new(Instant::now());
    loop {
        let accepted = match &door {
            Door::Tcp(listener) => listener
                .accept()
                .await
                .map(|(stream, _)| converse(stream, false, &state, &renderer)),
            Door::Unix(listener) => listener
                .accept()
                .await
                .map(|(stream, _)| converse(stream, true, &state, &renderer)),
        };
        match accepted {
            Ok(task) => {
                open.retain(|task| !task.is_finished());
                open.push_back(task);
                if open.len() > CONNECTIONS
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

/// One connection, as a task of its own. `may_control`: whether it may change something.
fn converse<S>(
    stream: S,
    may_control: bool,
    state: &Arc<State>,
    renderer: &Arc<Renderer>,
) -> AbortHandle
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (state, renderer) = (Arc::clone(state), Arc::clone(renderer));
    let service = service_fn(move |request| {
        answer(
            request,
            may_control,
            Arc::clone(&state),
            Arc::clone(&renderer),
        )
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(BUFFER)
        // A client may end its side after the request, as `nc -N` does, and still read the answer.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    // Errors here are a client's: it went away, or spoke something else.
    tokio::spawn(tokio::time::timeout(LIFETIME, served)).abort_handle()
}

async fn answer(
    request: Request<Incoming>,
    may_control: bool,
    state: Arc<State>,
    renderer: Arc<Renderer>,
) -> Result<Response<Body>, Infallible> {
    // The unix socket is out of reach of browsers.
    if !may_control && let Some(refusal) = refuse_host(&request, &state) {
        return Ok(refusal);
    }
    let reading = matches!(*request.method(), Method::GET | Method::HEAD);
    let response = match request.uri().path() {
        path if !reading && (Kind::at(path).is_some() || is_probe(path)) => {
            let refused = text(StatusCode::METHOD_NOT_ALLOWED, "read only: GET or HEAD\n");
            allowing(refused, "GET, HEAD")
        }
        path if path.starts_with(control::PREFIX) && may_control => {
            let (code, json) = control::answer(request, &state).await;
            let answer = typed(code, "application/json", format!("{json:#}\n"));
            match code {
                StatusCode::METHOD_NOT_ALLOWED => allowing(answer, "POST"),
                _ => answer,
            }
        }
        path if path.starts_with(control::PREFIX) => text(
            StatusCode::NOT_FOUND,
            "not found: control is on the unix socket alone, `socket` in [admin]\n",
        ),
        "/livez" => text(StatusCode::OK, "ok\n"),
        "/readyz" if state.is_ready() => text(StatusCode::OK, "ok\n"),
        "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, status::unready(&state)),
        path => match Kind::at(path) {
            Some(kind) => document(kind, *request.method() == Method::HEAD, &renderer).await,
            None => text(
                StatusCode::NOT_FOUND,
                "not found; there are /, /metrics, /livez, /readyz, /api/v1/status and /api/v1/events\n",
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
    if let host::Refusal::UnknownName(host) = &refusal
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

fn is_probe(path: &str) -> bool {
    matches!(path, "/livez" | "/readyz")
}

/// For the head alone nothing is made.
async fn document(kind: Kind, only_head: bool, renderer: &Renderer) -> Response<Body> {
    if only_head {
        return typed(StatusCode::OK, kind.content_type(), Bytes::new());
    }
    match renderer.document(kind).await {
        Some(body) => with_type(StatusCode::OK, kind.content_type(), Either::Right(body)),
        None => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            "this document cannot be made; the log says why\n",
        ),
    }
}

fn allowing(mut refused: Response<Body>, methods: &'static str) -> Response<Body> {
    let methods = HeaderValue::from_static(methods);
    refused.headers_mut().insert(ALLOW, methods);
    refused
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
    for (name, value) in BROWSERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

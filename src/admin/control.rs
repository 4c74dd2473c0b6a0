//! Changes by an operator: `POST /api/v1/upstreams/NAME/backends/ADDRESS` with `{"admin_state":
//! "drain"}`.

use crate::{
    config::nearest,
    control::{State, Unknown},
    upstream::pool::AdminState,
};
use http_body_util::{BodyExt as _, Limited};
use hyper::{
    Method, Request, StatusCode,
    body::{Bytes, Incoming},
};
use serde::Deserialize;
use serde_json::{Value, json};

/// A request is short.
const MOST_BYTES: usize = 4096;
/// How many known names an error about an unknown one lists.
const MOST_NAMES: usize = 20;

pub(super) const PREFIX: &str = "/api/v1/upstreams/";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    admin_state: String,
}

/// What went wrong: the code, what it is, and what to do.
pub(super) struct Refusal(pub(super) StatusCode, pub(super) String, pub(super) String);

impl Refusal {
    /// The answer as JSON, with its code.
    pub(super) fn into_answer(self) -> (StatusCode, Value) {
        let Self(code, error, hint) = self;
        (code, json!({ "error": error, "hint": hint }))
    }
}

pub(super) const NODE_PATH: &str = "/api/v1/node";

/// `POST /api/v1/node` with `{"admin_state": "drain"}` or `"ready"`: this process as a whole.
pub(super) async fn answer_node(
    request: Request<Incoming>,
    state: &State,
) -> Result<(StatusCode, Value), Refusal> {
    if request.method() != Method::POST {
        return Err(Refusal(
            StatusCode::METHOD_NOT_ALLOWED,
            "this is for POST alone".to_owned(),
            "whether the node is ready is at /readyz/node".to_owned(),
        ));
    }
    let admin_state = read_admin_state(request).await?;
    let is_drained = match admin_state {
        AdminState::Ready => false,
        AdminState::Drain => true,
        AdminState::Maint => {
            return Err(Refusal(
                StatusCode::BAD_REQUEST,
                "a node is ready or drained; maintenance is for backends".to_owned(),
                "drain it, and stop the process".to_owned(),
            ));
        }
    };
    let change = state.set_node_drained(is_drained).await;
    let word = |is_drained| match is_drained {
        true => AdminState::Drain.word(),
        false => AdminState::Ready.word(),
    };
    let answer = json!({
        "admin_state": word(is_drained),
        "from": word(change.was_drained),
        "connections": change.sessions,
    });
    Ok((StatusCode::OK, answer))
}

/// The answer as JSON, with its code.
pub(super) async fn answer(
    request: Request<Incoming>,
    state: &State,
) -> Result<(StatusCode, Value), Refusal> {
    let done = admin_state(request, state).await?;
    Ok((StatusCode::OK, done))
}

async fn admin_state(request: Request<Incoming>, state: &State) -> Result<Value, Refusal> {
    let path = request.uri().path();
    let (upstream, backend) = target(path).ok_or_else(|| {
        let hint = format!("there is {PREFIX}NAME/backends/ADDRESS, percent-encoded");
        Refusal(StatusCode::NOT_FOUND, "not found".to_owned(), hint)
    })?;
    if request.method() != Method::POST {
        return Err(Refusal(
            StatusCode::METHOD_NOT_ALLOWED,
            "this is for POST alone".to_owned(),
            "the state of all backends is at /api/v1/status".to_owned(),
        ));
    }
    let admin_state = read_admin_state(request).await?;
    match state.set_admin_state(&upstream, &backend, admin_state) {
        Ok(done) => Ok(json!({
            "upstream": upstream,
            "backend": backend,
            "admin_state": admin_state.word(),
            "from": done.from.word(),
            "state": done.to.word(),
            "connections": done.sessions,
        })),
        Err(unknown) => Err(not_there(&upstream, &backend, &unknown)),
    }
}

async fn read_admin_state(request: Request<Incoming>) -> Result<AdminState, Refusal> {
    let body = read_body(request, bad).await?;
    let body: Body = serde_json::from_slice(&body)
        .map_err(|e| bad(format!("the body is not what it should be: {e}")))?;
    AdminState::of(&body.admin_state).ok_or_else(|| {
        let words = AdminState::ALL.map(AdminState::word);
        Refusal(
            StatusCode::BAD_REQUEST,
            format!(
                "`admin_state` does not know the word {:?}",
                shown(&body.admin_state)
            ),
            hint(&body.admin_state, &words),
        )
    })
}

/// `refuse` makes the refusal from a message.
pub(super) async fn read_body(
    request: Request<Incoming>,
    refuse: impl Fn(String) -> Refusal,
) -> Result<Bytes, Refusal> {
    let body = Limited::new(request.into_body(), MOST_BYTES);
    let collected = body.collect().await;
    let collected = collected.map_err(|e| refuse(format!("the body cannot be read: {e}")))?;
    Ok(collected.to_bytes())
}

fn not_there(upstream: &str, backend: &str, unknown: &Unknown) -> Refusal {
    let (error, name, known) = match unknown {
        Unknown::Upstream(known) => {
            let error = format!("there is no upstream {:?}", shown(upstream));
            (error, upstream, known)
        }
        Unknown::Backend(known) => {
            let error = format!(
                "the upstream {upstream:?} has no backend {:?}",
                shown(backend)
            );
            (error, backend, known)
        }
    };
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    Refusal(StatusCode::NOT_FOUND, error, hint(name, &known))
}

fn bad(error: String) -> Refusal {
    let hint = "as in {\"admin_state\": \"drain\"}".to_owned();
    Refusal(StatusCode::BAD_REQUEST, error, hint)
}

pub(super) fn hint(name: &str, known: &[&str]) -> String {
    if let Some(near) = nearest(name, known) {
        return format!("did you mean {near:?}?");
    }
    let more = match known.len().saturating_sub(MOST_NAMES) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    let known = known[..known.len().min(MOST_NAMES)].join(", ");
    format!("there is {known}{more}")
}

/// Not more of it than helps.
pub(super) fn shown(name: &str) -> String {
    name.chars().take(100).collect()
}

/// The names in the path. An upstream has no slash in its name; the address of a unix socket may
/// come with its own.
fn target(path: &str) -> Option<(String, String)> {
    let (upstream, backend) = path.strip_prefix(PREFIX)?.split_once("/backends/")?;
    let names = (decode(upstream)?, decode(backend)?);
    (!names.0.is_empty() && !names.1.is_empty()).then_some(names)
}

/// Percent-decoded; `None`: that is not possible.
pub(super) fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        out.push(u8::try_from(digit()? * 16 + digit()?).ok()?);
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_a_path() {
        let of = |path: &str| target(&format!("{PREFIX}{path}"));
        let names = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(of("u/backends/10.0.0.1:1"), names("u", "10.0.0.1:1"));
        assert_eq!(of("u/backends/%5B::1%5d:1"), names("u", "[::1]:1"));
        let socket = names("u.1", "unix:/run/ä/backends/x");
        assert_eq!(of("u.1/backends/unix:/run/%c3%A4/backends/x"), socket);
        assert_eq!(
            of("u.1/backends/unix%3A%2Frun%2F%C3%A4%2Fbackends%2Fx"),
            socket
        );
        for wrong in ["", "u", "u/", "u/backends", "u/backends/", "/backends/a:1"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
        for wrong in ["%", "%1", "%zz", "%+1", "%ff", "%é"] {
            assert_eq!(of(&format!("u/backends/{wrong}")), None, "{wrong}");
        }
        assert_eq!(target("/metrics"), None);
    }

    #[test]
    fn a_hint_is_short() {
        assert_eq!(
            hint("drian", &["ready", "drain"]),
            "did you mean \"drain\"?"
        );
        let many: Vec<String> = (0..30).map(|n| format!("10.0.0.{n}:1")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(hint("nothing like it", &many).ends_with("10.0.0.19:1 and 10 more"));
    }
}

//! Requests to the admin side: what they may not be, how they are refused, and their bodies.

use crate::config::nearest;
use http_body_util::{BodyExt as _, Limited};
use hyper::{
    Method, Request, StatusCode,
    body::{Bytes, Incoming},
};
use serde_json::{Value, json};

/// A request is short.
const MOST_BYTES: usize = 4096;
/// How many names an error about an unknown one lists.
const MOST_NAMES: usize = 20;

/// What went wrong: the code, what it is, and what to do.
pub(super) struct Refusal(pub(super) StatusCode, pub(super) String, pub(super) String);

impl Refusal {
    pub(super) fn new(code: StatusCode, error: impl Into<String>, hint: impl Into<String>) -> Self {
        Self(code, error.into(), hint.into())
    }

    /// The answer as JSON, with its code.
    pub(super) fn into_answer(self) -> (StatusCode, Value) {
        let Self(code, error, hint) = self;
        (code, json!({ "error": error, "hint": hint }))
    }
}

pub(super) fn bad(error: String, hint: &str) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, error, hint.to_owned())
}

/// Refuses other methods than the required one, with what to do instead.
pub(super) fn require(required: Method, method: &Method, instead: &str) -> Result<(), Refusal> {
    if *method == required {
        return Ok(());
    }
    let error = format!("this is for {required} alone");
    Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, error, instead))
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

/// What a part of a path or a query stands for; `None`: it is not percent-encoded UTF-8.
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

//! Changes by an operator: `POST /api/v1/upstreams/NAME/backends/ADDRESS` with `{"admin_state":
//! "drain"}` or `{"weight": 5}`, and `POST /api/v1/backends/ADDRESS` for every upstream that has
//! the address.

use super::request::{Refusal, decode, hint, read_body, require, shown};
use crate::{
    config::parse_duration,
    control::{AddressError, State, Unknown, View, WeightRefused},
    plan::{MOST_WEIGHT, SessionAction},
    upstream::pool::{AdminChange, AdminOrder, AdminState},
};
use hyper::{Method, Request, StatusCode, body::Incoming};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const UPSTREAMS: &str = "/api/v1/upstreams/";
const BACKENDS: &str = "/api/v1/backends/";

/// The backends that a request is for.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    Backend {
        upstream: String,
        backend: String,
    },
    /// In every upstream that has it.
    Address(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    admin_state: Option<String>,
    close_after: Option<String>,
    /// `Some(None)`, written as null: that of the file.
    #[serde(default, deserialize_with = "present")]
    weight: Option<Option<i64>>,
    /// Finds the backends, and changes nothing.
    #[serde(default)]
    dry_run: bool,
}

/// What a body asks for.
enum Order {
    Admin(AdminOrder),
    Weight(Option<u32>),
    /// The admin state would be set.
    DryRun,
}

/// Distinguishes null from a field that is not there.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

pub(super) const NODE_PATH: &str = "/api/v1/node";

pub(super) const RELEASE_PATH: &str = "/api/v1/release";

/// `POST /api/v1/release`: another process is to have the addresses of this one.
pub(super) async fn answer_release(
    request: Request<Incoming>,
    state: &State,
) -> Result<(StatusCode, Value), Refusal> {
    require(
        Method::POST,
        request.method(),
        "a process asks for it that starts",
    )?;
    match state.release().await {
        true => Ok((StatusCode::OK, json!({ "released": true }))),
        false => Err(Refusal::new(
            StatusCode::CONFLICT,
            "the process has not given up its addresses",
            "it does while it drains: stop it first",
        )),
    }
}

/// `POST /api/v1/node` with `{"admin_state": "drain"}` or `"ready"`: this process as a whole.
pub(super) async fn answer_node(
    request: Request<Incoming>,
    state: &State,
) -> Result<(StatusCode, Value), Refusal> {
    require(
        Method::POST,
        request.method(),
        "whether the node is ready is at /readyz/node",
    )?;
    let Order::Admin(AdminOrder {
        admin_state,
        close_after: None,
    }) = read_order(request).await?
    else {
        let error = "a node has `admin_state` alone".to_owned();
        let hint = "as in {\"admin_state\": \"drain\"}".to_owned();
        return Err(Refusal(StatusCode::BAD_REQUEST, error, hint));
    };
    let is_drained = match admin_state {
        AdminState::Ready => false,
        AdminState::Drain => true,
        AdminState::Maint => {
            return Err(Refusal::new(
                StatusCode::BAD_REQUEST,
                "a node is ready or drained; maintenance is for backends",
                "drain it, and stop the process",
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

/// Whether requests for this path are answered here.
pub(super) fn is_at(path: &str) -> bool {
    path.starts_with(UPSTREAMS) || path.starts_with(BACKENDS)
}

async fn admin_state(request: Request<Incoming>, state: &State) -> Result<Value, Refusal> {
    let path = request.uri().path();
    let target = target(path).ok_or_else(|| {
        let hint = format!(
            "there are {UPSTREAMS}NAME/backends/ADDRESS and {BACKENDS}ADDRESS, percent-encoded"
        );
        Refusal(StatusCode::NOT_FOUND, "not found".to_owned(), hint)
    })?;
    require(
        Method::POST,
        request.method(),
        "the state of all backends is at /api/v1/status",
    )?;
    let order = match (read_order(request).await?, &target) {
        (Order::Admin(order), _) => order,
        (Order::DryRun, Target::Backend { upstream, backend }) => {
            let found = state.check_backend(upstream, backend);
            found.map_err(|unknown| not_there(upstream, backend, &unknown))?;
            return Ok(json!({ "dry_run": true }));
        }
        (Order::DryRun, Target::Address(address)) => {
            let found = state.check_address(address);
            found.map_err(|error| not_at(address, &error))?;
            return Ok(json!({ "dry_run": true }));
        }
        (Order::Weight(weight), Target::Backend { upstream, backend }) => {
            return set_weight(state, upstream, backend, weight);
        }
        (Order::Weight(_), Target::Address(_)) => {
            let error = "a weight is set for a backend of one upstream".to_owned();
            let hint = format!("POST to {UPSTREAMS}NAME/backends/ADDRESS");
            return Err(Refusal(StatusCode::BAD_REQUEST, error, hint));
        }
    };
    match target {
        Target::Backend { upstream, backend } => {
            match state.set_admin_state(&upstream, &backend, order) {
                Ok(change) => Ok(shown_change(state, &upstream, &backend, order, change)),
                Err(unknown) => Err(not_there(&upstream, &backend, &unknown)),
            }
        }
        Target::Address(address) => match state.set_admin_state_at(&address, order) {
            Ok(changed) => {
                let changed = changed.iter();
                let changes: Vec<Value> = changed
                    .map(|c| shown_change(state, &c.upstream, &c.backend, order, c.change))
                    .collect();
                Ok(json!({ "changes": changes }))
            }
            Err(error) => Err(not_at(&address, &error)),
        },
    }
}

fn set_weight(
    state: &State,
    upstream: &str,
    backend: &str,
    weight: Option<u32>,
) -> Result<Value, Refusal> {
    match state.set_weight(upstream, backend, weight) {
        Ok(set) => Ok(json!({
            "upstream": upstream,
            "backend": backend,
            "from": set.from,
            "weight": set.to,
            "weight_in_file": set.in_file,
            "by_operator": set.is_by_operator,
            "without_backend": Some(set.to).filter(|to| *to == 0)
                .and_then(|_| without_backend(&state.view(), upstream)),
        })),
        Err(WeightRefused::Unknown(unknown)) => Err(not_there(upstream, backend, &unknown)),
        Err(WeightRefused::TooMuch { sum, most }) => Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            format!(
                "the weights of {upstream} would add up to {sum}; consistent_hash takes {most}"
            ),
            "only the proportion of weights counts: make others smaller in the file",
        )),
    }
}

async fn read_order(request: Request<Incoming>) -> Result<Order, Refusal> {
    let body = read_body(request, bad).await?;
    let body: Body = serde_json::from_slice(&body)
        .map_err(|e| bad(format!("the body is not what it should be: {e}")))?;
    match (&body.admin_state, body.weight) {
        (Some(word), None) => {
            let order = read_admin_order(word, body.close_after.as_deref())?;
            Ok(match body.dry_run {
                true => Order::DryRun,
                false => Order::Admin(order),
            })
        }
        (None, Some(_)) if body.dry_run => Err(bad("`dry_run` goes with `admin_state`".to_owned())),
        (None, Some(_)) if body.close_after.is_some() => {
            Err(bad("`close_after` goes with `admin_state`".to_owned()))
        }
        (None, Some(None)) => Ok(Order::Weight(None)),
        (None, Some(Some(weight))) => {
            let weight = u32::try_from(weight).ok().filter(|n| *n <= MOST_WEIGHT);
            let error = || format!("`weight` is a number from 0 to {MOST_WEIGHT}, or null");
            weight.map(|n| Order::Weight(Some(n))).ok_or_else(|| {
                let hint = "as in {\"weight\": 5}; null: as in the file".to_owned();
                Refusal(StatusCode::BAD_REQUEST, error(), hint)
            })
        }
        (Some(_), Some(_)) => Err(bad("either `admin_state` or `weight`, not both".to_owned())),
        (None, None) => Err(bad(
            "the body has neither `admin_state` nor `weight`".to_owned()
        )),
    }
}

fn read_admin_order(word: &str, close_after: Option<&str>) -> Result<AdminOrder, Refusal> {
    let admin_state = AdminState::of_word(word).ok_or_else(|| {
        let words = AdminState::ALL.map(AdminState::word);
        Refusal(
            StatusCode::BAD_REQUEST,
            format!("`admin_state` has no value {:?}", shown(word)),
            hint(word, &words),
        )
    })?;
    let close_after = match close_after {
        None => None,
        Some(_) if admin_state == AdminState::Ready => {
            return Err(Refusal::new(
                StatusCode::BAD_REQUEST,
                "`close_after` does not go with \"ready\"",
                "sessions end when the backend is drained or taken into maintenance",
            ));
        }
        Some(text) => Some(parse_duration(text).map_err(|fault| {
            let hint = fault.hint.unwrap_or_else(|| "as in \"30s\"".to_owned());
            let error = format!("`close_after`: {}", fault.message);
            Refusal(StatusCode::BAD_REQUEST, error, hint)
        })?),
    };
    Ok(AdminOrder {
        admin_state,
        close_after,
    })
}

fn shown_change(
    state: &State,
    upstream: &str,
    backend: &str,
    order: AdminOrder,
    change: AdminChange,
) -> Value {
    let view = state.view();
    let plan = view.plan.upstreams.iter().find(|u| u.name == upstream);
    let is_out = order.admin_state != AdminState::Ready;
    let plan = plan.filter(|_| is_out);
    let on_drain = plan.and_then(|plan| match plan.on_drain {
        SessionAction::Close => Some(Duration::ZERO),
        SessionAction::CloseAfter(wait) => Some(wait),
        SessionAction::Keep | SessionAction::Move => None,
    });
    // An order that changes nothing does not begin it again.
    let on_drain = on_drain.map(|wait| wait.saturating_sub(change.age));
    let close_after = change.close_after.filter(|_| is_out).or(on_drain);
    json!({
        "close_after_seconds": close_after.map(|after| after.as_secs_f64()),
        "without_backend": plan.and_then(|_| without_backend(&view, upstream)),
        "upstream": upstream,
        "backend": backend,
        "admin_state": order.admin_state.word(),
        "from": change.from.word(),
        "state": change.to.word(),
        "connections": change.sessions,
    })
}

/// What becomes of new sessions of an upstream, if no backend takes any now.
fn without_backend(view: &View, upstream: &str) -> Option<Value> {
    let plan = view.plan.upstreams.iter().find(|u| u.name == upstream)?;
    let pool = view.pools().find(|pool| *pool.name == *upstream)?;
    let is_any_left = pool.is_available(Instant::now());
    let hold_timeout = plan.waits.hold_timeout.as_secs_f64();
    (!is_any_left).then(|| json!({ "hold_timeout_seconds": hold_timeout }))
}

fn not_there(upstream: &str, backend: &str, unknown: &Unknown) -> Refusal {
    let (error, name, known) = match unknown {
        Unknown::Upstream(known) => {
            let error = format!("there is no upstream {:?}", shown(upstream));
            (error, upstream, known)
        }
        Unknown::Backend(known) if known.is_empty() => {
            let error = format!("the upstream {upstream:?} has no backends now");
            let hint = "`tembuku kill` ends sessions on backends that were removed".to_owned();
            return Refusal(StatusCode::NOT_FOUND, error, hint);
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

fn not_at(address: &str, error: &AddressError) -> Refusal {
    match error {
        AddressError::Unknown { known, of_upstream } => {
            let error = format!("no upstream has a backend {:?}", shown(address));
            let hint = match of_upstream.first() {
                Some(one) => {
                    format!(
                        "{address} is an upstream: name a backend, as {address}/{one}; `tembuku \
                         drain '{address}/*'` is for all of them"
                    )
                }
                None => {
                    let known: Vec<&str> = known.iter().map(String::as_str).collect();
                    hint(address, &known)
                }
            };
            Refusal(StatusCode::NOT_FOUND, error, hint)
        }
        AddressError::Shared {
            upstream,
            backend,
            addresses,
        } => Refusal::new(
            StatusCode::CONFLICT,
            format!(
                "{:?} is one of {addresses} addresses of the backend {backend:?} in the upstream \
                 {upstream:?}, nothing was changed",
                shown(address)
            ),
            format!("a backend is set as a whole: {upstream}/{backend}"),
        ),
    }
}

fn bad(error: String) -> Refusal {
    let hint = "as in {\"admin_state\": \"drain\"} or {\"weight\": 5}".to_owned();
    Refusal(StatusCode::BAD_REQUEST, error, hint)
}

/// What the path names. An upstream has no slash in its name; the address of a unix socket may
/// come with its own.
fn target(path: &str) -> Option<Target> {
    let not_empty = |name: String| Some(name).filter(|name| !name.is_empty());
    if let Some(address) = path.strip_prefix(BACKENDS) {
        return Some(Target::Address(not_empty(decode(address)?)?));
    }
    let (upstream, backend) = path.strip_prefix(UPSTREAMS)?.split_once("/backends/")?;
    Some(Target::Backend {
        upstream: not_empty(decode(upstream)?)?,
        backend: not_empty(decode(backend)?)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_a_path() {
        let of = |path: &str| target(&format!("{UPSTREAMS}{path}"));
        let names = |upstream: &str, backend: &str| {
            let (upstream, backend) = (upstream.to_owned(), backend.to_owned());
            Some(Target::Backend { upstream, backend })
        };
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
        let address = Target::Address("unix:/run/x".to_owned());
        assert_eq!(target(&format!("{BACKENDS}unix%3a/run/x")), Some(address));
        for wrong in ["", "%"] {
            assert_eq!(target(&format!("{BACKENDS}{wrong}")), None, "{wrong}");
        }
    }
}

//! `POST /api/v1/reload`, with nothing or `{"dry_run": true}`.

use super::control::{Refusal, read_body};
use crate::{
    config::Problems,
    control::{
        StartErrors, State,
        reload::{Mode, ReloadError},
    },
};
use hyper::{Method, Request, StatusCode, body::Incoming};
use serde::Deserialize;
use serde_json::{Value, json};

pub(super) const PATH: &str = "/api/v1/reload";

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    #[serde(default)]
    dry_run: bool,
}

/// Answers when the reload has ended.
pub(super) async fn answer(
    request: Request<Incoming>,
    state: &State,
) -> Result<(StatusCode, Value), Refusal> {
    if request.method() != Method::POST {
        return Err(Refusal(
            StatusCode::METHOD_NOT_ALLOWED,
            "this is for POST alone".to_owned(),
            "the configuration in effect is not shown".to_owned(),
        ));
    }
    let body = read_body(request, bad).await?;
    let body: Body = match body.is_empty() {
        true => Body::default(),
        false => serde_json::from_slice(&body)
            .map_err(|e| bad(format!("the body is not what it should be: {e}")))?,
    };
    let mode = match body.dry_run {
        true => Mode::DryRun,
        false => Mode::Apply,
    };
    match state.reloads.request(mode).await {
        Ok(report) => Ok((StatusCode::OK, json!(report))),
        Err(error) => failure(&error),
    }
}

fn bad(error: String) -> Refusal {
    let hint = "nothing, or {\"dry_run\": true}".to_owned();
    Refusal(StatusCode::BAD_REQUEST, error, hint)
}

fn failure(error: &ReloadError) -> Result<(StatusCode, Value), Refusal> {
    let problems = match error {
        ReloadError::NoFile => {
            return Err(Refusal(
                StatusCode::CONFLICT,
                "the process was started without a configuration file".to_owned(),
                "start it with `tembuku run -c FILE` to be able to reload".to_owned(),
            ));
        }
        ReloadError::Stopping => {
            return Err(Refusal(
                StatusCode::SERVICE_UNAVAILABLE,
                "the process stops".to_owned(),
                "nothing was changed".to_owned(),
            ));
        }
        ReloadError::Unread { source, .. } | ReloadError::Uncompared { source, .. } => {
            vec![plain(&source.to_string())]
        }
        ReloadError::Invalid(problems) => with_places(problems),
        ReloadError::Failed(StartErrors(errors)) => {
            let messages = errors.iter().map(ToString::to_string);
            messages.map(|message| plain(&message)).collect()
        }
    };
    let answer = json!({
        "applied": false,
        "problems": problems,
        "text": error.to_string(),
    });
    Ok((StatusCode::UNPROCESSABLE_ENTITY, answer))
}

fn with_places(problems: &Problems) -> Vec<Value> {
    let place = |problem: &crate::config::Problem| {
        let position = problem.position.as_ref();
        json!({
            "message": problem.message,
            "hint": problem.hint,
            "line": position.map(|position| position.line),
            "column": position.map(|position| position.column),
        })
    };
    problems.iter().map(place).collect()
}

fn plain(message: &str) -> Value {
    json!({ "message": message, "hint": null, "line": null, "column": null })
}

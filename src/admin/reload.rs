//! `POST /api/v1/reload`, with nothing or `{"dry_run": true}`.

use super::{fields::Fields, request::Refusal};
use crate::{
    config::Problems,
    control::{
        StartErrors, State,
        reload::{Mode, ReloadError},
    },
};
use hyper::{Request, StatusCode, body::Incoming};
use serde_json::{Value, json};

pub(super) const PATH: &str = "/api/v1/reload";

const EXAMPLE: &str = "nothing, or {\"dry_run\": true}";

/// Answers when the reload has ended.
pub(super) async fn answer(
    request: Request<Incoming>,
    state: &State,
) -> Result<(StatusCode, Value), Refusal> {
    let instead = "the configuration in effect is not shown";
    let mut fields = Fields::of_post(request, instead, EXAMPLE).await?;
    let mode = match fields.flag("dry_run")? {
        true => Mode::DryRun,
        false => Mode::Apply,
    };
    fields.finish(&["dry_run"])?;
    match state.reloads.request(mode).await {
        Ok(report) => Ok((StatusCode::OK, json!(report))),
        Err(error) => failure(&error),
    }
}

fn failure(error: &ReloadError) -> Result<(StatusCode, Value), Refusal> {
    let problems = match error {
        ReloadError::NoFile => {
            return Err(Refusal::new(
                StatusCode::CONFLICT,
                "the process was started without a configuration file",
                "start it with `tembuku run -c FILE` to be able to reload",
            ));
        }
        ReloadError::Stopping => {
            return Err(Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "the process stops",
                "nothing was changed",
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

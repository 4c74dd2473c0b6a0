//! `POST /api/v1/upgrade` with `{"binary": PATH, "check": false}`, or nothing: a line about each
//! step.

use super::{fields::Fields, lifetime::Lifetime, request::Refusal, stream::Stream};
use crate::control::{
    State,
    upgrade::{NotRequested, Step, UpgradeError, UpgradeOrder},
};
use hyper::{Request, StatusCode, body::Incoming};
use std::{path::PathBuf, sync::Arc};

pub(super) const PATH: &str = "/api/v1/upgrade";

const EXAMPLE: &str = "nothing, or {\"binary\": \"/usr/bin/tembuku\"}";

pub(super) async fn answer(
    request: Request<Incoming>,
    state: &Arc<State>,
    lifetime: &Arc<Lifetime>,
) -> Result<Stream, Refusal> {
    let mut fields = Fields::of_post(request, "`tembuku upgrade` sends it", EXAMPLE).await?;
    let order = UpgradeOrder {
        binary: fields.text("binary")?.map(PathBuf::from),
        check_only: fields.flag("check")?,
    };
    fields.finish(&["binary", "check"])?;
    let steps = state.upgrades.request(order).await;
    let mut steps = steps.map_err(refuse)?;
    Ok(Stream::start(lifetime, |mut writer| async move {
        while let Some(step) = steps.recv().await {
            writer.write_line(&step).await?;
            if step.is_last() {
                return Ok(());
            }
        }
        // It has waited for another one, which has replaced this process.
        let stopping = Step::failed(&UpgradeError::Stopping);
        writer.write_line(&stopping).await
    }))
}

fn refuse(why: NotRequested) -> Refusal {
    let (code, error, hint) = match why {
        NotRequested::UnderWay => (
            StatusCode::CONFLICT,
            "another upgrade is under way",
            "wait for the other command to end",
        ),
        NotRequested::Stopping => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the process stops",
            "nothing was changed",
        ),
    };
    Refusal(code, error.to_owned(), hint.to_owned())
}

//! What becomes of sessions when their backend is no longer to be used: how that is written, and
//! what it means for flows.

use super::{
    keys::{CLOSE_AFTER, row::Rule, upstream::UpstreamKeys},
    references::References,
    section::{Section, Value},
};
use crate::{
    config::{
        keys::applies::NoEffect,
        text::{
            report::fault,
            suggestions::{found, nearest},
        },
    },
    plan::{Check, FlowsMove, SessionAction},
};
use std::time::Duration;

pub(super) fn read(keys: &mut UpstreamKeys, section: &Section<'_>, references: &References) {
    // A flow that waits for a backend that is gone waits in vain, and loses nothing by moving to
    // another one.
    let gone = match references.flows() {
        true => SessionAction::Move,
        false => SessionAction::Keep,
    };
    let read = |key, default| match read_action(key, default, section) {
        SessionAction::Move if !references.flows() => {
            let found = NoEffect::always(
                "as \"move\" where no UDP listener uses the upstream",
                "sessions of TCP cannot be moved: write \"keep\"",
            );
            section.report_no_effect(key, &found);
            SessionAction::Keep
        }
        action => action,
    };
    keys.on_down = read("on_down", gone);
    keys.on_role_lost = read("on_role_lost", SessionAction::Close);
    keys.on_lag = read("on_lag", SessionAction::Keep);
    keys.on_recover = read("on_recover", SessionAction::Keep);
    keys.plan.on_drain = read("on_drain", gone);
    keys.plan.on_removed = read("on_removed", gone);
}

/// Why `on_down` has no effect without a check: but flows leave a backend all the same when the
/// network reports that it is gone.
pub(super) fn no_effect_but_for_flows(
    action: SessionAction,
    references: &References,
) -> Option<NoEffect> {
    const WHY: &str = "without a check";
    const HINT: &str = "add a section [upstreams.NAME.check], or leave it out";
    match action {
        SessionAction::Keep | SessionAction::Move if references.flows() => None,
        SessionAction::Close | SessionAction::CloseAfter(_) if references.flows() => {
            Some(NoEffect::always(
                format!("but move flows {WHY}"),
                format!("{HINT}: \"move\" is the default"),
            ))
        }
        SessionAction::Keep
        | SessionAction::Move
        | SessionAction::Close
        | SessionAction::CloseAfter(_) => Some(NoEffect::always(WHY, HINT)),
    }
}

/// Every action that terminates sessions moves flows, too, until they are terminated.
pub(super) fn flows_move(
    keys: &UpstreamKeys,
    check: Option<&Check>,
    references: &References,
) -> FlowsMove {
    let moves = |action: SessionAction| action != SessionAction::Keep;
    FlowsMove {
        down: (check.is_some() || references.flows()) && moves(keys.on_down),
        role_lost: check.is_none() || moves(keys.on_role_lost),
        lag: check.is_some() && moves(keys.on_lag),
        drain: moves(keys.plan.on_drain),
        removed: moves(keys.plan.on_removed),
    }
}

fn read_action(key: &str, default: SessionAction, section: &Section<'_>) -> SessionAction {
    let Some(value) = section.get(key) else {
        return default;
    };
    if value.get_ref().is_table() {
        return read_close_after(key, value, section);
    }
    // A session on a backup is served well: only a termination makes it leave.
    let moves = key != "on_recover";
    let words: &[&str] = match moves {
        true => &["keep", "move", "close"],
        false => &["keep", "close"],
    };
    let values: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    let hint = format!("one of: {}, {{ close_after = \"30s\" }}", values.join(", "));
    let unknown = |text| fault!("`{key}` has no value {text:?}");
    let fault = match value.get_ref().as_str() {
        Some("keep") => return SessionAction::Keep,
        Some("move") if moves => return SessionAction::Move,
        Some("close") => return SessionAction::Close,
        Some("move") => unknown("move").hint(format!(
            "{hint}; a flow that is closed goes on at another backend with its next datagram"
        )),
        Some(text) => unknown(text).hint(match nearest(text, words) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => hint,
        }),
        None => {
            let what = found(value.get_ref());
            fault!("`{key}` must be a word or a table, not {what}").hint(hint)
        }
    };
    section.report.add(&value.span(), fault);
    default
}

fn read_close_after<'a>(key: &str, value: &'a Value<'a>, section: &Section<'a>) -> SessionAction {
    let Some(table) = Section::open(&CLOSE_AFTER, value, section.report) else {
        return SessionAction::Keep;
    };
    if table.get("close_after").is_none() {
        let hint = format!("write {key} = {{ close_after = \"30s\" }}");
        table.missing("close_after", &hint);
    }
    let default = Duration::from_secs(30);
    SessionAction::CloseAfter(table.duration("close_after", default, Rule::AboveZero))
}

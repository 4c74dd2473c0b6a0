//! What becomes of sessions when their backend is taken out: the words, their defaults, and where
//! they mean nothing.

use std::time::Duration;

use super::{
    keys::ON_LEAVE,
    listener::above_zero,
    section::{Section, Value},
};
use crate::{
    config::{
        references::Users,
        text::{
            report::Fault,
            suggestions::{found, nearest},
        },
    },
    plan::{Check, FlowsMove, OnLeave},
};

/// As written, or else by default.
#[derive(Clone, Copy)]
pub(super) struct Actions {
    pub(super) on_down: OnLeave,
    pub(super) on_role_lost: OnLeave,
    pub(super) on_lag: OnLeave,
    pub(super) on_recover: OnLeave,
    pub(super) on_drain: OnLeave,
}

/// Without a name these are the defaults: nothing is useless there.
pub(super) fn read(name: Option<&str>, section: &Section<'_>, users: &Users) -> Actions {
    // A flow that waits for a backend that is gone waits in vain, and loses nothing by going
    // elsewhere.
    let gone = if users.flows() {
        OnLeave::Move
    } else {
        OnLeave::Keep
    };
    let read = |key, default| match read_action(key, default, section) {
        OnLeave::Move if !users.flows() => {
            let why = "as \"move\" where no UDP listener uses the upstream";
            let hint = "sessions of TCP cannot be moved: write \"keep\"";
            useless(name, section, key, why, hint);
            OnLeave::Keep
        }
        action => action,
    };
    let mut actions = Actions {
        on_down: read("on_down", gone),
        on_role_lost: read("on_role_lost", OnLeave::Close),
        on_lag: read("on_lag", OnLeave::Keep),
        on_recover: read("on_recover", OnLeave::Keep),
        on_drain: read("on_drain", gone),
    };
    if !users.operator {
        actions.on_drain = drains(name, actions.on_drain, section, users);
    }
    actions
}

/// Nobody can drain a backend; flows leave it all the same when the resolver no longer names it.
fn drains(name: Option<&str>, on_drain: OnLeave, section: &Section<'_>, users: &Users) -> OnLeave {
    let hint = "add socket = \"/run/tembuku/admin.sock\" to [admin], or leave it out";
    let nobody = "without an admin socket: nobody can drain a backend";
    match on_drain {
        OnLeave::Keep | OnLeave::Move if users.flows() => on_drain,
        _ if !users.flows() => {
            useless(name, section, "on_drain", nobody, hint);
            OnLeave::Keep
        }
        _ => {
            let why = format!("but move flows {nobody}");
            useless(
                name,
                section,
                "on_drain",
                &why,
                &format!("{hint}: \"move\" is the default"),
            );
            OnLeave::Move
        }
    }
}

/// Nothing says that a backend is down, but that the network may answer a flow's datagrams that it
/// is.
pub(super) fn without_check(
    name: Option<&str>,
    actions: &Actions,
    section: &Section<'_>,
    users: &Users,
) {
    let without = "without a check";
    let hint = "add a section [upstreams.NAME.check], or leave it out";
    for key in ["on_role_lost", "on_lag", "on_recover", "panic_threshold"] {
        useless(name, section, key, without, hint);
    }
    match actions.on_down {
        OnLeave::Keep | OnLeave::Move if users.flows() => {}
        _ if !users.flows() => useless(name, section, "on_down", without, hint),
        _ => {
            let why = format!("but move flows {without}");
            useless(
                name,
                section,
                "on_down",
                &why,
                &format!("{hint}: \"move\" is the default"),
            );
        }
    }
}

/// Whatever ends sessions moves flows as well: those that are not told yet have no reason to stay.
pub(super) fn flows_move(actions: &Actions, check: Option<&Check>, users: &Users) -> FlowsMove {
    let moves = |action: OnLeave| action != OnLeave::Keep;
    FlowsMove {
        down: match check {
            Some(check) => moves(check.on_down),
            None => users.flows() && moves(actions.on_down),
        },
        role_lost: check.is_none_or(|check| moves(check.on_role_lost)),
        lag: check.is_some_and(|check| moves(check.on_lag)),
        drain: moves(actions.on_drain),
    }
}

/// In `[defaults]` a key may be there for the upstreams that it means something to.
pub(super) fn useless(name: Option<&str>, section: &Section<'_>, key: &str, why: &str, hint: &str) {
    if name.is_some() {
        section.useless(key, why, hint);
    }
}

fn read_action(key: &str, default: OnLeave, section: &Section<'_>) -> OnLeave {
    let Some(value) = section.get(key) else {
        return default;
    };
    if value.get_ref().is_table() {
        return read_close_after(key, value, section);
    }
    // Whoever is on a backup is well there: what is to leave it has to be told.
    let moves = key != "on_recover";
    let words: &[&str] = if moves {
        &["keep", "move", "close"]
    } else {
        &["keep", "close"]
    };
    let known: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    let hint = format!("one of: {}, {{ close_after = \"30s\" }}", known.join(", "));
    let fault = match value.get_ref().as_str() {
        Some("keep") => return OnLeave::Keep,
        Some("move") if moves => return OnLeave::Move,
        Some("close") => return OnLeave::Close,
        Some("move") => Fault::new(format!("`{key}` does not know the word \"move\"")).hint(
            format!("{hint}; a flow that is closed goes on elsewhere at its next datagram"),
        ),
        Some(text) => Fault::new(format!("`{key}` does not know the word {text:?}")).hint(
            match nearest(text, words) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => hint,
            },
        ),
        None => Fault::new(format!(
            "`{key}` must be a word or a table, not {}",
            found(value.get_ref())
        ))
        .hint(hint),
    };
    section.report.add(&value.span(), fault);
    default
}

fn read_close_after<'a>(key: &str, value: &'a Value<'a>, section: &Section<'a>) -> OnLeave {
    let Some(table) = Section::open(&ON_LEAVE, value, section.report) else {
        return OnLeave::Keep;
    };
    if table.get("close_after").is_none() {
        table.missing(
            "close_after",
            &format!("write {key} = {{ close_after = \"30s\" }}"),
        );
    }
    OnLeave::CloseAfter(table.duration("close_after", Duration::from_secs(30), above_zero))
}

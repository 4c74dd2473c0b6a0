//! [upstreams.NAME.check]: every rule and default.

mod bytes;
mod dns;
pub(super) mod dump;
mod guards;
mod kind;
mod mysql;
mod postgres;
mod tls;

use std::time::Duration;

use super::{
    keys::CHECK,
    listener::above_zero,
    section::{Section, Text},
};
use crate::{
    config::{
        references::Users,
        session_actions::{self, Actions, useless},
        text::report::Fault,
        value::address,
    },
    plan::{Addr, Check, CheckAt, CheckKind, OnLeave, Target, Upstream},
};

const INTERVAL: Duration = Duration::from_secs(2);
/// Oftener is an attack.
const SHORTEST: Duration = Duration::from_millis(10);
/// The default of `fast_interval` is a quarter of `interval`, and not below this.
const FAST: Duration = Duration::from_millis(100);

/// Without a name these are the defaults: nothing is missing there, and nothing is useless.
pub(super) fn read(
    name: Option<&str>,
    upstream: &Section<'_>,
    actions: &Actions,
    users: &Users,
) -> Option<Check> {
    let panic_threshold = upstream.number("panic_threshold", 0, 0..=100);
    let Some(value) = upstream.get("check") else {
        session_actions::without_check(name, actions, upstream, users);
        return None;
    };
    let section = Section::open(&CHECK, value, upstream.report)?;
    let kind = kind::read(&section);
    let has_role = kind.as_ref().is_none_or(|kind| kind.role().is_some());
    if !has_role {
        let why = "where the check asks for no role";
        useless(
            name,
            upstream,
            "on_role_lost",
            why,
            "add role = \"primary\" to a check of kind \"redis\", \"postgres\" or \"mysql\", or leave it out",
        );
    }
    let asks_role = kind.as_ref().is_some_and(|kind| kind.role().is_some());
    if asks_role {
        useless(
            name,
            upstream,
            "panic_threshold",
            "where the check asks for a role",
            "sessions never go to a server of another role: leave it out",
        );
    }
    let limits_lag = kind.as_ref().is_none_or(CheckKind::limits_lag);
    if !limits_lag {
        useless(
            name,
            upstream,
            "on_lag",
            "where the check has no limit for it",
            "ask for role = \"replica\", or add `max_lag`, in a check of kind \"redis\", \"postgres\" or \"mysql\", or leave it out",
        );
    }
    let interval = section.duration("interval", INTERVAL, not_too_short);
    let timeout = section.duration("timeout", Duration::from_secs(1), above_zero);
    let check = Check {
        stale_after: guards::read_stale_after(&section, kind.as_ref(), interval + timeout),
        panic_threshold: if asks_role { 0 } else { panic_threshold },
        interval,
        fast_interval: read_fast_interval(&section, interval),
        timeout,
        rise: section.number("rise", 2, 1..=1000),
        fall: section.number("fall", 3, 1..=1000),
        // Whose role nobody knows yet must not be written to.
        start_up: section.word(
            "start",
            kind.as_ref().is_none_or(|kind| kind.role().is_none()),
            &[("up", Some(true)), ("down", Some(false))],
        ),
        at: read_at(&section),
        tls: tls::read(&section),
        on_down: actions.on_down,
        on_role_lost: if has_role {
            actions.on_role_lost
        } else {
            OnLeave::Close
        },
        on_lag: if limits_lag {
            actions.on_lag
        } else {
            OnLeave::Keep
        },
        on_recover: actions.on_recover,
        kind: kind?,
    };
    Some(check)
}

/// What the check and the backends must have in common.
pub(super) fn fits(upstream: &mut Upstream, section: &Section<'_>) {
    let Some(check) = &mut upstream.check else {
        return;
    };
    let named = Some(upstream.name.as_str()).filter(|name| !name.is_empty());
    if !upstream.backends.iter().any(|backend| backend.backup) {
        check.on_recover = OnLeave::Keep;
        useless(
            named,
            section,
            "on_recover",
            "without a backup",
            "mark one with `backup = true`, or leave it out",
        );
    }
    dns::fits(upstream, section);
    postgres::fits(upstream, section);
    let Some(check) = &upstream.check else {
        return;
    };
    if let (Some(role), CheckAt::Addr(_)) = (check.kind.role(), &check.at)
        && upstream.backends.len() > 1
        && let Some(value) = section.get("check")
    {
        let word = role.word();
        section.report.add(
            &value.span(),
            Fault::new(format!(
                "with `address` one server would tell for all {} backends whether they are a {word}",
                upstream.backends.len()
            ))
            .hint("leave `address` out; for another port of each backend's own host use `port`"),
        );
    }
    let unix = |target: &Target| matches!(target, Target::Addr(Addr::Unix(_)));
    if matches!(check.at, CheckAt::Port(_))
        && let Some(backend) = upstream.backends.iter().find(|b| unix(&b.target))
        && let Some(value) = section.get("check")
    {
        section.report.add(
            &value.span(),
            Fault::new(format!(
                "`port` does nothing for the backend {:?}: a unix socket has none",
                backend.text
            ))
            .hint("name the place with `address`, or leave `port` out"),
        );
    }
}

fn not_too_short(duration: Duration) -> Result<(), String> {
    if duration < SHORTEST {
        Err("it must be at least 10ms".to_owned())
    } else {
        Ok(())
    }
}

fn read_fast_interval(section: &Section<'_>, interval: Duration) -> Duration {
    let default = (interval / 4).max(FAST).min(interval);
    section.duration("fast_interval", default, |fast| {
        not_too_short(fast)?;
        if fast > interval {
            return Err("it must not be longer than `interval`".to_owned());
        }
        Ok(())
    })
}

fn read_at(section: &Section<'_>) -> CheckAt {
    let port = section.number("port", 0u16, 1..=65_535);
    let Some(Text { text, span }) = section.text("address") else {
        return match section.get("port") {
            Some(_) => CheckAt::Port(port),
            None => CheckAt::Backend,
        };
    };
    let fault = match address::target(text) {
        Ok(_) if section.get("port").is_some() => {
            Fault::new("`address` and `port` both say where the check goes")
                .hint("`port` is for the same host with another port; `address` for one place for all backends: keep one")
        }
        Ok(Target::Addr(addr)) => return CheckAt::Addr(addr),
        Ok(Target::Name { .. }) => Fault::new(format!("`address` = {text:?} is a name; checks take an address"))
            .hint("write \"IP:PORT\", or use `port` for another port of each backend's own host"),
        Err(fault) => fault,
    };
    section.report.add(&span, fault);
    CheckAt::Backend
}

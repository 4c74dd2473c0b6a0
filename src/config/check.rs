//! [upstreams.NAME.check]: what code reads, and the rules between keys.

mod bytes;
pub(in crate::config) mod dns;
mod http;
mod kind;
mod login;
mod mysql;
mod path;
mod postgres;
mod redis;
mod tls;

pub(super) use login::read_password;
pub(super) use path::read_absolute;
pub(super) use tls::read as read_tls;

use std::time::Duration;

use super::{
    keys::{
        CHECK,
        applies::{Applies, NoEffect},
        check::{self as rows, INTERVAL, rows_of},
        scalar::Word as _,
        upstream::UpstreamKeys,
        words::Start,
    },
    section::{Section, Text},
};
use crate::{
    config::{
        references::References,
        session_actions::no_effect_but_for_flows,
        text::report::{Fault, fault},
        value::{address, duration},
    },
    plan::{Addr, Check, CheckAt, CheckKind, Role, Target, Tls, Upstream},
};

/// The default of `fast_interval` is a quarter of `interval`, and not below this.
const SHORTEST_FAST_INTERVAL: Duration = Duration::from_millis(100);
/// How many times the longest duration of a check the default of `stale_after` is, ...
const STALE_CHECKS: u32 = 3;
/// ... unless that is less than this.
const SHORTEST_STALE: Duration = Duration::from_secs(30);

/// The check of an upstream.
pub(super) enum Found {
    None,
    /// The kind is invalid: no key can be reported to have no effect.
    Mistaken,
    Check(Box<Check>),
}

/// What depends on the upstream is left to it: the actions, and the panic threshold.
pub(super) fn read(upstream: &Section<'_>) -> Found {
    let Some(value) = upstream.get("check") else {
        return Found::None;
    };
    let Some(section) = Section::open(&CHECK, value, upstream.report) else {
        return Found::Mistaken;
    };
    let kind = kind::read(&section);
    let is_known = kind.is_some();
    let mut check = Check {
        kind: kind.unwrap_or_default(),
        at: read_at(&section),
        tls: tls::read(&section),
        ..Check::default()
    };
    section.read(rows::CHECK, &mut check);
    check.fast_interval = read_fast_interval(&section, check.interval);
    let role = check.kind.role();
    if role == Some(Role::Primary) || !is_known {
        check.stale_after = read_stale_after(&section, check.interval + check.timeout);
    }
    check.role_fallback = section.flag("role_fallback", false) && role == Some(Role::Replica);
    // Before a check has found its role a server must not be written to.
    let start = match role {
        Some(_) => Start::Down,
        None => Start::Up,
    };
    check.start_up = section.word("start", start) == Start::Up;
    if !is_known {
        return Found::Mistaken;
    }
    // A word that is no role has been reported already.
    let role = section.get("role").map(|value| value.get_ref().as_str());
    let role_is_known = role.is_none_or(|word| word == Some(check.kind.role().word()));
    let default = check.clone();
    let rows = rows::CHECK.iter().chain(rows_of(check.kind.info()));
    section.drop_without_effect(rows, &mut check, &default, |check, applies| match applies {
        Applies::Replicating | Applies::Primary if !role_is_known => None,
        _ => no_effect(check, applies),
    });
    let roles = <Option<Role>>::words();
    let is_role = |word: Option<&str>| word.is_some_and(|word| roles.contains(&word));
    match role.is_none_or(is_role) {
        true => Found::Check(Box::new(check)),
        // What needs a role may be right.
        false => Found::Mistaken,
    }
}

/// Why such a key has no effect in this check.
pub(super) fn no_effect(check: &Check, applies: Applies) -> Option<NoEffect> {
    let role = check.kind.role();
    match (applies, &check.kind) {
        (Applies::Primary, _) if role != Some(Role::Primary) => Some(NoEffect::always(
            "unless the check asks for the primary",
            "add role = \"primary\", or leave it out: only a primary does harm by being used \
             unseen",
        )),
        (Applies::TlsVerify, _) if !matches!(check.tls, Tls::Verify { .. }) => {
            Some(NoEffect::always(
                "without tls = \"verify\"",
                "set tls = \"verify\", or leave it out",
            ))
        }
        (
            Applies::User,
            CheckKind::Redis {
                user: Some(_),
                password: None,
                ..
            },
        ) => Some(NoEffect::always(
            "without a password",
            "add `password_file` or `password_env`, or leave it out",
        )),
        (
            Applies::Database,
            CheckKind::Postgres {
                startup: Some(_), ..
            },
        ) => None,
        (
            Applies::Login | Applies::Database | Applies::Lag | Applies::Replicating,
            CheckKind::Postgres {
                login: None,
                startup,
                ..
            },
        ) => Some(match startup {
            Some(_) => NoEffect::always(
                "with `login` = false",
                "leave it out, or let the check log in with `login` = true",
            ),
            None => NoEffect::always(
                "without `user` where kind = \"postgres\"",
                "add the `user` that the check logs in as, or leave it out: then it only looks \
                 whether the server answers",
            ),
        }),
        (Applies::Replicating, _) if role != Some(Role::Replica) => Some(NoEffect::always(
            "unless role = \"replica\"",
            "ask for role = \"replica\", or leave it out",
        )),
        (Applies::Lag, CheckKind::Mysql { .. }) if role == Some(Role::Primary) => {
            Some(NoEffect::always(
                "with role = \"primary\": a primary has no lag",
                "it is for role = \"replica\" or \"any\"; otherwise leave it out",
            ))
        }
        (Applies::Lag, _) if role == Some(Role::Primary) => Some(NoEffect::always(
            "with role = \"primary\"",
            "a primary has no lag: remove the key, or set role = \"replica\"",
        )),
        _ => None,
    }
}

/// Why such a key of an upstream has no effect with this check.
pub(super) fn no_effect_in_upstream(
    keys: &UpstreamKeys,
    applies: Applies,
    references: &References,
    check: &Found,
) -> Option<NoEffect> {
    const WITHOUT_CHECK: &str = "without a check";
    const ADD_CHECK: &str = "add a section [upstreams.NAME.check], or leave it out";
    let kind = match (check, applies) {
        (Found::Mistaken, _) => return None,
        (Found::Check(check), _) => &check.kind,
        (Found::None, Applies::OnDown) => {
            return no_effect_but_for_flows(keys.on_down, references);
        }
        (
            Found::None,
            Applies::OnRoleLost | Applies::OnLag | Applies::OnRecover | Applies::PanicThreshold,
        ) => return Some(NoEffect::always(WITHOUT_CHECK, ADD_CHECK)),
        (Found::None, _) => return None,
    };
    match applies {
        Applies::PanicThreshold if kind.role().is_some() => Some(NoEffect::always(
            "where the check asks for a role",
            "sessions never go to a server of another role: leave it out",
        )),
        Applies::OnRoleLost if kind.role().is_none() => Some(NoEffect::always(
            "where the check asks for no role",
            "add role = \"primary\" to a check of kind \"redis\", \"postgres\" or \"mysql\", or \
             leave it out",
        )),
        Applies::OnLag if !kind.limits_lag() => Some(NoEffect::always(
            "where the check has no limit for it",
            "it needs `replicating = true` (the default with role = \"replica\") or `max_lag` in a \
             check of kind \"redis\", \"postgres\" or \"mysql\"; or leave it out",
        )),
        Applies::OnRecover if !keys.has_backup() && !falls_back(check) => Some(NoEffect::always(
            "without a backup",
            "mark one with `backup = true`, use `role_fallback` in the check, or leave it out",
        )),
        _ => None,
    }
}

fn falls_back(check: &Found) -> bool {
    matches!(check, Found::Check(check) if check.role_fallback)
}

/// What the check and the backends must have in common.
pub(super) fn check_upstream(upstream: &Upstream, section: &Section<'_>) {
    dns::check_upstream(upstream, section);
    postgres::check_tls(upstream, section);
    let Some(check) = &upstream.check else {
        return;
    };
    if let (Some(role), CheckAt::Addr(_)) = (check.kind.role(), &check.at)
        && (upstream.backends.len() > 1 || upstream.discover.is_some())
        && let Some(value) = section.get("check")
    {
        let word = role.word();
        section.report.add(
            &value.span(),
            fault!(
                "with `address` the role of one server would decide for all {} backends whether \
                they are a {word}",
                upstream.backends.len()
            )
            .hint("leave `address` out; for another port of each backend's own host use `port`"),
        );
    }
    let unix = |target: &Target| matches!(target, Target::Addr(Addr::Unix(_)));
    if matches!(check.at, CheckAt::Port(_))
        && let Some(backend) = upstream.backends.iter().find(|b| unix(&b.target))
        && let Some(value) = section.get("check")
    {
        let found = NoEffect::always(
            format!("for the backend {:?}: a unix socket has none", backend.text),
            "set the server's IP and port with `address`, or leave `port` out",
        );
        section.report.add(&value.span(), found.fault("`port`"));
    }
}

fn read_fast_interval(section: &Section<'_>, interval: Duration) -> Duration {
    let default = (interval / 4).max(SHORTEST_FAST_INTERVAL).min(interval);
    section.checked_duration("fast_interval", default, |fast| {
        INTERVAL.check(fast)?;
        if fast > interval {
            return Err(Fault::new("it must not be longer than `interval`"));
        }
        Ok(())
    })
}

/// `longest` is what lies at most between two answers of a healthy server.
fn read_stale_after(section: &Section<'_>, longest: Duration) -> Option<Duration> {
    let least = longest.min(duration::LONGEST);
    let default = (longest * STALE_CHECKS)
        .max(SHORTEST_STALE)
        .min(duration::LONGEST);
    let stale_after = section.checked_duration("stale_after", default, |stale_after| {
        if !stale_after.is_zero() && stale_after < least {
            return Err(fault!(
                "it must not be shorter than `interval` and `timeout` together, {}",
                duration::format(least)
            ));
        }
        Ok(())
    });
    Some(stale_after).filter(|stale_after| !stale_after.is_zero())
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
            Fault::new("`address` and `port` both set the target of the check").hint(
                "`port` is for the same host with another port; `address` for one target \
                for all backends: keep one",
            )
        }
        Ok(Target::Addr(addr)) => return CheckAt::Addr(addr),
        Ok(Target::Name { .. }) => fault!(
            "`address` = {text:?} is a name; checks \
            take an address"
        )
        .hint("write \"IP:PORT\", or use `port` for another port of each backend's own host"),
        Err(fault) => fault,
    };
    section.report.add(&span, fault);
    CheckAt::Backend
}

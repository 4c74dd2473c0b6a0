//! A plan as a configuration file with every default filled in.

use std::{fmt, fmt::Write as _};

use super::{
    check::{self, Found},
    discover,
    keys::{
        applies::{Applies, NoEffect},
        check as check_rows, discover as discover_rows, limits as limit_rows,
        listener as listener_rows, process as process_rows,
        row::Row,
        upstream::{self as upstream_rows, UpstreamKeys},
    },
    listener,
    references::References,
    text::quote::key,
    upstream,
};
use crate::plan::{
    Admin, Backend, Check, Discover, Listener, Log, Plan, Process, Protocol, Upstream,
};

/// Reading the result gives a plan equal to `plan`.
pub fn dump(plan: &Plan) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    let _ = write_plan(plan, &mut out);
    out
}

fn write_plan(plan: &Plan, out: &mut String) -> fmt::Result {
    writeln!(out, "[process]")?;
    write_keys(process_keys(&plan.process), out)?;
    if let Some(admin) = &plan.admin {
        writeln!(out, "\n[admin]")?;
        write_keys(admin_keys(admin), out)?;
    }
    writeln!(out, "\n[log]")?;
    write_keys(log_keys(&plan.log), out)?;
    for listener in &plan.listeners {
        writeln!(out, "\n[listeners.{}]", key(&listener.name))?;
        write_keys(listener_keys(listener), out)?;
    }
    for upstream in &plan.upstreams {
        writeln!(out, "\n[upstreams.{}]", key(&upstream.name))?;
        write_keys(upstream_keys(upstream, plan), out)?;
        if let Some(discover) = &upstream.discover {
            writeln!(out, "\n[upstreams.{}.discover]", key(&upstream.name))?;
            write_keys(discover_keys(discover), out)?;
        }
        if let Some(check) = &upstream.check {
            writeln!(out, "\n[upstreams.{}.check]", key(&upstream.name))?;
            write_keys(check_keys(check), out)?;
        }
    }
    Ok(())
}

fn write_keys(
    keys: impl IntoIterator<Item = (&'static str, String)>,
    out: &mut String,
) -> fmt::Result {
    for (name, value) in keys {
        writeln!(out, "{name} = {value}")?;
    }
    Ok(())
}

/// The keys that have an effect, with their values as TOML.
fn keys_of<'r, T: 'static>(
    rows: impl IntoIterator<Item = &'r Row<T>>,
    target: &T,
    no_effect: impl Fn(Applies) -> Option<NoEffect>,
) -> impl Iterator<Item = (&'static str, String)> {
    rows.into_iter().filter_map(move |row| {
        let value = row.write(target)?;
        no_effect(row.key.applies)
            .is_none()
            .then_some((row.key.name, value))
    })
}

pub(super) fn process_keys(process: &Process) -> impl Iterator<Item = (&'static str, String)> {
    keys_of(process_rows::PROCESS, process, |_| None)
}

pub(super) fn admin_keys(admin: &Admin) -> impl Iterator<Item = (&'static str, String)> {
    keys_of(process_rows::ADMIN, admin, |_| None)
}

pub(super) fn log_keys(log: &Log) -> impl Iterator<Item = (&'static str, String)> {
    keys_of(process_rows::LOG, log, |_| None)
}

pub(super) fn backend_keys(backend: &Backend) -> impl Iterator<Item = (&'static str, String)> {
    keys_of(upstream_rows::BACKEND, backend, |_| None)
}

pub(super) fn listener_keys(listener: &Listener) -> impl Iterator<Item = (&'static str, String)> {
    let no_effect = |applies| listener::no_effect(listener, applies);
    let udp = match &listener.protocol {
        Protocol::Tcp => None,
        Protocol::Udp(udp) => Some(keys_of(listener_rows::UDP, udp, no_effect)),
    };
    keys_of(listener_rows::LISTENER, listener, no_effect)
        .chain(keys_of(listener_rows::OWN, listener, no_effect))
        .chain(keys_of(limit_rows::LIMITS, listener, no_effect))
        .chain(udp.into_iter().flatten())
}

/// Without those of the check. Which keys have an effect depends on the plan.
pub(super) fn upstream_keys(upstream: &Upstream, plan: &Plan) -> Vec<(&'static str, String)> {
    let operator = plan.admin.as_ref().is_some_and(|a| a.socket.is_some());
    let references = References::of(&upstream.name, plan.listeners.iter(), true, operator);
    let keys = UpstreamKeys::of(upstream);
    let found = match &upstream.check {
        Some(check) => Found::Check(Box::new(check.clone())),
        None => Found::None,
    };
    let no_effect = |applies| upstream::no_effect(&keys, applies, &references, &found);
    keys_of(upstream_rows::UPSTREAM, &keys, no_effect).collect()
}

pub(super) fn discover_keys(discover: &Discover) -> impl Iterator<Item = (&'static str, String)> {
    let rows = discover_rows::DISCOVER
        .iter()
        .chain(discover_rows::rows_of(discover.source.kind()));
    keys_of(rows, discover, |applies| {
        discover::no_effect(discover, applies)
    })
}

pub(super) fn check_keys(check: &Check) -> impl Iterator<Item = (&'static str, String)> {
    let rows = check_rows::CHECK
        .iter()
        .chain(check_rows::rows_of(check.kind.info()));
    keys_of(rows, check, |applies| check::no_effect(check, applies))
}

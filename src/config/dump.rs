//! A plan as a configuration file with every default filled in.

use std::{fmt, fmt::Write as _};

use super::{
    check::{self, Found},
    keys::{
        applies::{Applies, NoEffect},
        check as check_rows, listener as listener_rows, process,
        row::Row,
        upstream::{self as upstream_rows, UpstreamKeys},
    },
    listener,
    references::References,
    text::quote::key,
    upstream,
};
use crate::plan::{Listener, Plan, Protocol, Upstream};

/// Reading the result gives a plan equal to `plan`.
pub fn dump(plan: &Plan) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    let _ = write_plan(plan, &mut out);
    out
}

fn write_plan(plan: &Plan, out: &mut String) -> fmt::Result {
    writeln!(out, "[process]")?;
    write_rows(process::PROCESS, &plan.process, |_| None, out)?;
    if let Some(admin) = &plan.admin {
        writeln!(out, "\n[admin]")?;
        write_rows(process::ADMIN, admin, |_| None, out)?;
    }
    writeln!(out, "\n[log]")?;
    write_rows(process::LOG, &plan.log, |_| None, out)?;
    for listener in &plan.listeners {
        write_listener(listener, out)?;
    }
    let operator = plan.admin.as_ref().is_some_and(|a| a.socket.is_some());
    for upstream in &plan.upstreams {
        let references = References::of(&upstream.name, plan.listeners.iter(), true, operator);
        write_upstream(upstream, &references, out)?;
    }
    Ok(())
}

/// Writes the keys that have an effect.
fn write_rows<'r, T: 'static>(
    rows: impl IntoIterator<Item = &'r Row<T>>,
    target: &T,
    no_effect: impl Fn(Applies) -> Option<NoEffect>,
    out: &mut String,
) -> fmt::Result {
    for row in rows {
        if no_effect(row.key.applies).is_none()
            && let Some(value) = row.write(target)
        {
            writeln!(out, "{} = {value}", row.key.name)?;
        }
    }
    Ok(())
}

fn write_listener(listener: &Listener, out: &mut String) -> fmt::Result {
    let no_effect = |applies| listener::no_effect(listener, applies);
    writeln!(out, "\n[listeners.{}]", key(&listener.name))?;
    write_rows(listener_rows::LISTENER, listener, no_effect, out)?;
    match &listener.protocol {
        Protocol::Tcp => Ok(()),
        Protocol::Udp(udp) => write_rows(listener_rows::UDP, udp, no_effect, out),
    }
}

fn write_upstream(upstream: &Upstream, references: &References, out: &mut String) -> fmt::Result {
    let keys = UpstreamKeys::of(upstream);
    let found = match &upstream.check {
        Some(check) => Found::Check(Box::new(check.clone())),
        None => Found::None,
    };
    let no_effect = |applies| upstream::no_effect(&keys, applies, references, &found);
    writeln!(out, "\n[upstreams.{}]", key(&upstream.name))?;
    write_rows(upstream_rows::UPSTREAM, &keys, no_effect, out)?;
    let Some(check) = &upstream.check else {
        return Ok(());
    };
    writeln!(out, "\n[upstreams.{}.check]", key(&upstream.name))?;
    let rows = check_rows::CHECK
        .iter()
        .chain(check_rows::rows_of(check.kind.info()));
    write_rows(rows, check, |applies| check::no_effect(check, applies), out)
}

//! A check as it would be written.

use std::fmt::{self, Write as _};

use crate::{
    config::{
        dump::{key, quoted, time},
        value::size,
    },
    plan::{
        Check, CheckAt, CheckKind, Expect, LagLimit, OnLeave, PasswordFrom, Role, Tls, Upstream,
    },
};

/// What becomes of sessions, as far as it means something here.
pub(crate) fn write_actions(upstream: &Upstream, check: &Check, out: &mut String) -> fmt::Result {
    writeln!(out, "on_down = {}", action(check.on_down))?;
    match check.kind.role() {
        Some(_) => writeln!(out, "on_role_lost = {}", action(check.on_role_lost))?,
        None => writeln!(out, "panic_threshold = {}", check.panic_threshold)?,
    }
    if check.kind.limits_lag() {
        writeln!(out, "on_lag = {}", action(check.on_lag))?;
    }
    if upstream.backends.iter().any(|backend| backend.backup) {
        writeln!(out, "on_recover = {}", action(check.on_recover))?;
    }
    Ok(())
}

/// A table of its own, so it stands last.
pub(crate) fn write_check(upstream: &str, check: &Check, out: &mut String) -> fmt::Result {
    writeln!(out, "\n[upstreams.{}.check]", key(upstream))?;
    writeln!(out, "kind = {}", quoted(check.kind.word()))?;
    writeln!(out, "interval = {}", time(check.interval))?;
    writeln!(out, "fast_interval = {}", time(check.fast_interval))?;
    writeln!(out, "timeout = {}", time(check.timeout))?;
    writeln!(out, "rise = {}", check.rise)?;
    writeln!(out, "fall = {}", check.fall)?;
    let start = if check.start_up { "up" } else { "down" };
    writeln!(out, "start = {}", quoted(start))?;
    if check.kind.role() == Some(Role::Primary) {
        let stale_after = check.stale_after.unwrap_or_default();
        writeln!(out, "stale_after = {}", time(stale_after))?;
    }
    match &check.at {
        CheckAt::Backend => {}
        CheckAt::Port(port) => writeln!(out, "port = {port}")?,
        CheckAt::Addr(addr) => writeln!(out, "address = {}", quoted(&addr.to_string()))?,
    }
    if check.kind.speaks_tls() {
        write_tls(&check.tls, out)?;
    }
    match &check.kind {
        CheckKind::Tcp => Ok(()),
        CheckKind::SendExpect { send, expect } => {
            if !send.is_empty() {
                write_bytes("send", send, out)?;
            }
            match expect {
                Expect::Bytes(bytes) => write_bytes("expect", bytes, out),
                Expect::Regex(regex) => writeln!(out, "expect_regex = {}", quoted(regex)),
            }
        }
        CheckKind::Http { path, host, status } => {
            writeln!(out, "path = {}", quoted(path))?;
            if let Some(host) = host {
                writeln!(out, "host = {}", quoted(host))?;
            }
            let ranges = status.iter().map(|range| match range {
                (first, last) if first == last => quoted(&first.to_string()),
                (first, last) => quoted(&format!("{first}-{last}")),
            });
            writeln!(out, "status = [{}]", ranges.collect::<Vec<_>>().join(", "))
        }
        CheckKind::Redis {
            role,
            user,
            password,
            replicating,
            max_lag,
            min_version,
            require_writes,
        } => {
            write_role(*role, *replicating, out)?;
            if let Some(user) = user {
                writeln!(out, "user = {}", quoted(user))?;
            }
            write_password(password.as_ref(), out)?;
            if let Some(most) = max_lag {
                writeln!(out, "max_lag = {}", time(*most))?;
            }
            if let Some(version) = min_version {
                writeln!(out, "min_version = {}", quoted(&version.to_string()))?;
            }
            writeln!(out, "require_writes = {require_writes}")
        }
        // Where nobody logs in nothing else is asked.
        CheckKind::Postgres {
            login: None,
            startup,
            ..
        } => {
            writeln!(out, "login = false")?;
            match startup {
                Some((user, database)) => {
                    writeln!(out, "user = {}", quoted(user))?;
                    writeln!(out, "database = {}", quoted(database))
                }
                None => Ok(()),
            }
        }
        CheckKind::Postgres {
            role,
            login: Some(login),
            startup: _,
            replicating,
            limit,
        } => {
            write_role(*role, *replicating, out)?;
            writeln!(out, "login = true")?;
            writeln!(out, "user = {}", quoted(&login.user))?;
            write_password(login.password.as_ref(), out)?;
            writeln!(out, "database = {}", quoted(&login.database))?;
            write_limit(limit, out)
        }
        CheckKind::Mysql {
            role,
            user,
            password,
            replicating,
            max_lag,
        } => {
            write_role(*role, *replicating, out)?;
            writeln!(out, "user = {}", quoted(user))?;
            write_password(password.as_ref(), out)?;
            match max_lag {
                Some(most) => writeln!(out, "max_lag = {}", time(*most)),
                None => Ok(()),
            }
        }
        CheckKind::Dns {
            query,
            query_type,
            rcode,
        } => {
            writeln!(out, "query = {}", quoted(query))?;
            writeln!(out, "query_type = {}", quoted(query_type.word()))?;
            let words = rcode.iter().map(|rcode| quoted(rcode.word()));
            writeln!(out, "rcode = [{}]", words.collect::<Vec<_>>().join(", "))
        }
    }
}

fn write_role(role: Option<Role>, replicating: bool, out: &mut String) -> fmt::Result {
    writeln!(out, "role = {}", quoted(role.map_or("any", Role::word)))?;
    match role {
        Some(Role::Replica) => writeln!(out, "replicating = {replicating}"),
        _ => Ok(()),
    }
}

fn write_password(from: Option<&PasswordFrom>, out: &mut String) -> fmt::Result {
    match from {
        None => Ok(()),
        Some(PasswordFrom::File(path)) => {
            writeln!(out, "password_file = {}", quoted(&path.to_string_lossy()))
        }
        Some(PasswordFrom::Variable(name)) => writeln!(out, "password_env = {}", quoted(name)),
    }
}

fn write_limit(limit: &LagLimit, out: &mut String) -> fmt::Result {
    if let Some(most) = limit.time {
        writeln!(out, "max_lag = {}", time(most))?;
    }
    match limit.bytes {
        Some(most) => writeln!(out, "max_lag_bytes = {}", quoted(&size::format(most))),
        None => Ok(()),
    }
}

fn write_tls(tls: &Tls, out: &mut String) -> fmt::Result {
    match tls {
        Tls::Off => writeln!(out, "tls = \"off\""),
        Tls::Require => writeln!(out, "tls = \"require\""),
        Tls::Verify { ca, name } => {
            writeln!(out, "tls = \"verify\"")?;
            if let Some(path) = ca {
                writeln!(out, "tls_ca = {}", quoted(&path.to_string_lossy()))?;
            }
            match name {
                Some(name) => writeln!(out, "tls_name = {}", quoted(name)),
                None => Ok(()),
            }
        }
    }
}

fn write_bytes(key: &str, bytes: &[u8], out: &mut String) -> fmt::Result {
    match std::str::from_utf8(bytes) {
        Ok(text) => writeln!(out, "{key} = {}", quoted(text)),
        Err(_) => {
            write!(out, "{key}_hex = \"")?;
            for byte in bytes {
                write!(out, "{byte:02x}")?;
            }
            writeln!(out, "\"")
        }
    }
}

pub(crate) fn action(action: OnLeave) -> String {
    match action {
        OnLeave::Keep => quoted("keep"),
        OnLeave::Move => quoted("move"),
        OnLeave::Close => quoted("close"),
        OnLeave::CloseAfter(wait) => format!("{{ close_after = {} }}", time(wait)),
    }
}

//! A plan as a configuration file with every default filled in.

use std::{fmt, fmt::Write as _, time::Duration};

use super::udp;
use crate::{
    config::{
        check::dump as check_dump,
        value::{access, duration, hash_key},
    },
    plan::{
        AccessLog, Addr, Backend, Balance, Listener, LogFormat, LogLevel, OnLeave, Plan, Protocol,
        ProxyOn, SendProxy, StartWait, TimeOf, Udp, UnixFile, Upstream, WhenFull,
    },
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
    writeln!(out, "workers = {}", plan.process.workers)?;
    writeln!(out, "max_connections = {}", plan.process.max_connections)?;
    writeln!(out, "max_flows = {}", plan.process.max_flows)?;
    match plan.process.start_wait {
        StartWait::Auto => out.push_str("start_wait = \"auto\"\n"),
        StartWait::AtMost(limit) => writeln!(out, "start_wait = {}", time(limit))?,
    }
    writeln!(out, "drain_timeout = {}", time(plan.process.drain_timeout))?;
    if let Some(admin) = &plan.admin {
        writeln!(out, "\n[admin]")?;
        if let Some(listen) = admin.listen {
            writeln!(out, "listen = {}", quoted(&listen.to_string()))?;
            let hosts: Vec<String> = admin.hosts.iter().map(|name| quoted(name)).collect();
            writeln!(out, "hosts = [{}]", hosts.join(", "))?;
        }
        if let Some(socket) = &admin.socket {
            writeln!(out, "socket = {}", quoted(&socket.to_string_lossy()))?;
        }
    }
    writeln!(out, "\n[log]")?;
    writeln!(out, "level = {}", quoted(level(plan.log.level)))?;
    writeln!(out, "format = {}", quoted(format(plan.log.format)))?;
    let access = match &plan.log.access {
        AccessLog::Off => "off".into(),
        AccessLog::Stdout => "stdout".into(),
        AccessLog::File(path) => path.to_string_lossy(),
    };
    writeln!(out, "access = {}", quoted(&access))?;
    for listener in &plan.listeners {
        write_listener(listener, out)?;
    }
    let controlled = plan.admin.as_ref().is_some_and(|a| a.socket.is_some());
    for upstream in &plan.upstreams {
        let uses = |listener: &Listener| listener.upstream == upstream.name;
        let is_udp = |listener: &Listener| matches!(listener.protocol, Protocol::Udp(_));
        let flows = plan.listeners.iter().any(|l| uses(l) && is_udp(l));
        write_upstream(upstream, controlled, flows, out)?;
    }
    Ok(())
}

fn write_listener(listener: &Listener, out: &mut String) -> fmt::Result {
    let bind: Vec<String> = listener
        .bind
        .iter()
        .map(|bind| quoted(&bind.text))
        .collect();
    let access: Vec<String> = listener
        .access
        .iter()
        .map(|rule| quoted(&access::format(rule)))
        .collect();

    writeln!(out, "\n[listeners.{}]", key(&listener.name))?;
    match &bind[..] {
        [one] => writeln!(out, "bind = {one}")?,
        many => writeln!(out, "bind = [{}]", many.join(", "))?,
    }
    let protocol = udp::word(listener.protocol);
    writeln!(out, "protocol = {}", quoted(protocol))?;
    writeln!(out, "upstream = {}", quoted(&listener.upstream))?;
    let idle_timeout = listener.idle_timeout.unwrap_or_default();
    writeln!(out, "idle_timeout = {}", time(idle_timeout))?;
    writeln!(out, "retries = {}", listener.retries)?;
    writeln!(out, "max_connections = {}", listener.max_connections)?;
    writeln!(out, "access = [{}]", access.join(", "))?;
    match &listener.accept_proxy {
        None => writeln!(out, "accept_proxy = false")?,
        Some(accept) => {
            let trust: Vec<String> = accept
                .trust
                .iter()
                .map(|who| quoted(&access::format_who(*who)))
                .collect();
            let timeout = match listener.protocol {
                Protocol::Tcp => format!(", timeout = {}", time(accept.timeout)),
                Protocol::Udp(_) => String::new(),
            };
            writeln!(
                out,
                "accept_proxy = {{ trust = [{}]{timeout} }}",
                trust.join(", ")
            )?;
        }
    }
    match &listener.protocol {
        Protocol::Tcp => write_tcp(listener, out),
        Protocol::Udp(udp) => write_udp(udp, out),
    }
}

fn write_tcp(listener: &Listener, out: &mut String) -> fmt::Result {
    let half_close = listener.half_close_timeout.unwrap_or_default();
    let user_timeout = listener.socket.user_timeout.unwrap_or_default();
    writeln!(out, "connect_timeout = {}", time(listener.connect_timeout))?;
    writeln!(out, "half_close_timeout = {}", time(half_close))?;
    writeln!(out, "half_close = {}", listener.half_close)?;
    writeln!(out, "backlog = {}", listener.backlog)?;
    let mut addrs = listener.bind.iter().flat_map(|bind| &bind.addrs);
    if addrs.any(|addr| matches!(addr, Addr::Unix(_))) {
        let UnixFile { mode, owner, group } = &listener.unix;
        let name = |name: &Option<String>| quoted(name.as_deref().unwrap_or_default());
        writeln!(out, "unix_mode = \"{mode:04o}\"")?;
        writeln!(out, "unix_owner = {}", name(owner))?;
        writeln!(out, "unix_group = {}", name(group))?;
    }
    writeln!(out, "nodelay = {}", listener.socket.nodelay)?;
    match &listener.socket.keepalive {
        None => writeln!(out, "keepalive = false")?,
        Some(keepalive) => writeln!(
            out,
            "keepalive = {{ idle = {}, interval = {}, count = {} }}",
            time(keepalive.idle),
            time(keepalive.interval),
            keepalive.count
        )?,
    }
    writeln!(out, "user_timeout = {}", time(user_timeout))
}

fn write_udp(udp: &Udp, out: &mut String) -> fmt::Result {
    let when_full = match udp.when_full {
        WhenFull::Refuse => "refuse",
        WhenFull::Evict => "evict",
    };
    writeln!(out, "responses = {}", udp.responses)?;
    writeln!(out, "per_packet = {}", udp.per_packet)?;
    if !udp.per_packet {
        writeln!(out, "requests = {}", udp.requests)?;
    }
    writeln!(out, "max_flows_per_source = {}", udp.max_flows_per_source)?;
    writeln!(out, "when_full = {}", quoted(when_full))
}

/// `controlled`: whether somebody can drain its backends; `flows`: whether a UDP listener uses it.
fn write_upstream(
    upstream: &Upstream,
    controlled: bool,
    flows: bool,
    out: &mut String,
) -> fmt::Result {
    writeln!(out, "\n[upstreams.{}]", key(&upstream.name))?;
    writeln!(out, "balance = {}", quoted(upstream.balance.word()))?;
    if let Some(key) = upstream.balance.hash_key() {
        writeln!(out, "hash_key = {}", quoted(&hash_key::format(key)))?;
    }
    match upstream.balance {
        Balance::ConsistentHash(_, bound) | Balance::Maglev(_, bound) => {
            writeln!(out, "hash_balance_factor = {}", bound.unwrap_or(0))?;
        }
        Balance::LeastTime(TimeOf::Connect) => writeln!(out, "least_time = \"connect\"")?,
        Balance::LeastTime(TimeOf::FirstByte) => writeln!(out, "least_time = \"first_byte\"")?,
        _ => {}
    }
    writeln!(out, "backends = [")?;
    for backend in &upstream.backends {
        write_backend(backend, out)?;
    }
    writeln!(out, "]")?;
    writeln!(
        out,
        "resolve_interval = {}",
        time(upstream.resolve_interval.unwrap_or(Duration::ZERO))
    )?;
    writeln!(out, "resolve_required = {}", upstream.resolve_required)?;
    let (version, tlvs) = match upstream.send_proxy {
        SendProxy::Off => ("off", false),
        SendProxy::V1 => ("v1", false),
        SendProxy::V2 { tlvs } => ("v2", tlvs),
    };
    writeln!(out, "send_proxy = {}", quoted(version))?;
    writeln!(out, "send_proxy_tlvs = {tlvs}")?;
    if flows && version == "v2" {
        let on = match upstream.send_proxy_on {
            ProxyOn::First => "first",
            ProxyOn::Each => "each",
        };
        writeln!(out, "send_proxy_on = {}", quoted(on))?;
    }
    writeln!(out, "fail_on_reset = {}", upstream.fail_on_reset)?;
    if controlled || flows {
        writeln!(out, "on_drain = {}", check_dump::action(upstream.on_drain))?;
    }
    let Some(check) = &upstream.check else {
        let on_down = if upstream.flows_move.down {
            OnLeave::Move
        } else {
            OnLeave::Keep
        };
        return match flows {
            true => writeln!(out, "on_down = {}", check_dump::action(on_down)),
            false => Ok(()),
        };
    };
    check_dump::write_actions(upstream, check, out)?;
    check_dump::write_check(&upstream.name, check, out)
}

/// In one line: TOML 1.0 has no line breaks in inline tables.
fn write_backend(backend: &Backend, out: &mut String) -> fmt::Result {
    writeln!(
        out,
        "  {{ address = {}, weight = {}, max_fails = {}, fail_timeout = {}, max_connections = {}, slow_start = {}, backup = {}, down = {} }},",
        quoted(&backend.text),
        backend.weight,
        backend.max_fails,
        time(backend.fail_timeout),
        backend.max_connections,
        time(backend.slow_start),
        backend.backup,
        backend.down
    )
}

fn level(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    }
}

fn format(format: LogFormat) -> &'static str {
    match format {
        LogFormat::Auto => "auto",
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    }
}

pub(super) fn time(duration: Duration) -> String {
    quoted(&duration::format(duration))
}

/// A name as a TOML key; one with a point in it needs quotes.
pub(super) fn key(name: &str) -> String {
    let bare = !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if bare { name.to_owned() } else { quoted(name) }
}

/// A TOML basic string.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

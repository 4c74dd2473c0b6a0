//! The whole file: sections, and the rules that hold between them.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use toml::de::{DeTable, DeValue};

use super::{
    forwarding_loops::find_forwarding_loops,
    keys::{self, process as rows, row::Rule},
    listener,
    section::{Section, Text},
    upstream,
};
use crate::{
    config::{
        keys::applies::NoEffect,
        references::References,
        text::{
            problem::Problems,
            report::{Fault, Report, Source, Span, fault},
            suggestions::{found, nearest, quoted_key, shorten},
        },
        value::{access_log, address, host},
    },
    plan::{Addr, Admin, Listener, Log, Plan, Process, Protocol, StartWait, Target, Upstream},
};

/// `report` may hold problems already, of syntax or of the command line.
pub(super) fn plan(
    root: &DeTable<'_>,
    source: &Source<'_>,
    report: Report,
) -> Result<Plan, Problems> {
    let plan = read(root, &report);
    report.finish(source)?;
    Ok(plan)
}

fn read<'a>(table: &'a DeTable<'a>, report: &'a Report) -> Plan {
    let root = Section::new(&keys::ROOT, table, 0..0, report);
    let process = read_process(&root);
    let (admin, admin_places) = read_admin(&root).unzip();
    // A socket with a mistake in it counts: it was meant to be there.
    let admin_table = root
        .get("admin")
        .and_then(|value| value.get_ref().as_table());
    let controlled = admin_table.is_some_and(|table| table.contains_key("socket"));
    let log = read_log(&root);
    let defaults = read_defaults(&root);

    // Before the upstreams, whose rules depend on the listeners that use them.
    let listeners: Vec<listener::Read> = named(&root, "listeners")
        .into_iter()
        .filter_map(|(name, value)| {
            let section = Section::open(&keys::LISTENER, value, report)?.with_defaults(defaults);
            Some(listener::read(name, &section))
        })
        .collect();
    let names = named(&root, "upstreams");
    let known: HashSet<&str> = names.iter().map(|(name, _)| *name).collect();
    let mut by_upstream: HashMap<&str, Vec<&Listener>> = HashMap::new();
    for read in &listeners {
        let upstream = read.listener.upstream.as_str();
        by_upstream
            .entry(upstream)
            .or_default()
            .push(&read.listener);
    }
    let sure = listeners.iter().all(|read| read.sure)
        && by_upstream.keys().all(|upstream| known.contains(upstream));
    let upstreams: Vec<Upstream> = names
        .into_iter()
        .filter_map(|(name, value)| {
            let section = Section::open(&keys::UPSTREAM, value, report)?.with_defaults(defaults);
            let all = by_upstream.get(name).into_iter().flatten().copied();
            let references = References::of(name, all, sure, controlled);
            Some(upstream::read(name, &section, &references))
        })
        .collect();

    if root.get("listeners").is_none_or(|value| {
        value
            .get_ref()
            .as_table()
            .is_some_and(|table| table.is_empty())
    }) {
        report.add_whole(
            Fault::new("there is no listener: nothing to do")
                .hint("add a section [listeners.NAME] with `bind` and `upstream`"),
        );
    }
    check_upstream_names(&root, &listeners, report);
    check_max_flows(&root, &process, &listeners);
    listener::check_collisions(&listeners, admin_places.unwrap_or_default(), report);
    check_forwarding_loops(&listeners, &upstreams, report);

    Plan {
        process,
        admin,
        log,
        listeners: listeners.into_iter().map(|read| read.listener).collect(),
        upstreams,
    }
}

fn read_process(root: &Section<'_>) -> Process {
    let empty = DeTable::new();
    let section = match root.get("process") {
        Some(value) => Section::open(&keys::PROCESS, value, root.report),
        None => None,
    };
    let section =
        section.unwrap_or_else(|| Section::new(&keys::PROCESS, &empty, 0..0, root.report));
    let mut process = Process {
        start_wait: read_start_wait(&section),
        ready_file: read_ready_file(&section),
        ..Process::default()
    };
    section.read(rows::PROCESS, &mut process);
    check_drain_quiet(&section, &process);
    process
}

fn read_ready_file(section: &Section<'_>) -> Option<PathBuf> {
    let Text { text, span } = section.text("ready_file")?;
    let fault = match text {
        "" => return None,
        _ if !text.starts_with('/') => {
            fault!("`ready_file` must be an absolute path, not {text:?}")
                .hint("as in \"/run/tembuku/ready\"")
        }
        _ if text.ends_with('/') => {
            fault!("`ready_file` names a folder: {text:?}").hint("add a file name")
        }
        _ if text.contains('\0') => {
            Fault::new("the path in `ready_file` holds a zero byte").hint("take it out")
        }
        _ => return Some(PathBuf::from(text)),
    };
    section.report.add(&span, fault);
    None
}

fn check_drain_quiet(section: &Section<'_>, process: &Process) {
    if !process.drain_quiet.is_zero() && process.drain_delay.is_zero() {
        let found = NoEffect::always(
            "without `drain_delay`",
            "set `drain_delay` to the longest time to wait, or leave `drain_quiet` out",
        );
        section.report_no_effect("drain_quiet", &found);
    }
}

fn read_start_wait(section: &Section<'_>) -> StartWait {
    if let Some(DeValue::String(text)) = section.own("start_wait").map(|v| v.get_ref())
        && text == "auto"
    {
        return StartWait::Auto;
    }
    let hint = "leave it out for \"auto\": the timeout of the checks";
    let read = section.optional_duration("start_wait", |wait| Rule::Any.check(wait), hint);
    read.map_or(StartWait::Auto, StartWait::AtMost)
}

/// Absent is off. Also given: what it binds, and where that is written.
fn read_admin(root: &Section<'_>) -> Option<(Admin, Vec<(Addr, Span)>)> {
    let section = Section::open(&keys::ADMIN, root.get("admin")?, root.report)?;
    let default = Text {
        text: "127.0.0.1:9900",
        span: section.header.clone(),
    };
    let (listen, socket) = (section.text("listen"), section.text("socket"));
    // With a socket alone there is no port.
    let listen = listen.or_else(|| socket.is_none().then_some(default));
    let mut addrs = Vec::new();
    let mut good = |addr: Result<Addr, Fault>, span: Span| match addr {
        Ok(addr) => addrs.push((addr, span)),
        Err(fault) => root.report.add(&span, fault),
    };
    let mut admin = Admin {
        listen: None,
        socket: None,
        hosts: read_hosts(&section, listen.is_some()),
    };
    if let Some(Text { text, span }) = listen {
        let address = address::admin(text);
        admin.listen = address.as_ref().ok().copied();
        good(address.map(Addr::Tcp), span);
    }
    if let Some(Text { text, span }) = socket {
        let path = address::admin_socket(text);
        admin.socket = path.as_ref().ok().cloned();
        good(path.map(Addr::Unix), span);
    }
    Some((admin, addrs))
}

/// Names in lower case, each once.
fn read_hosts(section: &Section<'_>, has_port: bool) -> Vec<String> {
    if section.own("hosts").is_none() {
        return Vec::new();
    }
    let list = section.list("hosts").unwrap_or_default();
    if !list.is_empty() && !has_port {
        let found = NoEffect::always(
            "without `listen`",
            "leave it out: the unix socket answers whatever name a request has",
        );
        section.report_no_effect("hosts", &found);
    }
    let mut names = Vec::new();
    for item in list {
        let Some(Text { text, span }) = section.as_text("hosts", item) else {
            continue;
        };
        match host::header_name(text) {
            Ok(name) if names.contains(&name) => {}
            Ok(name) => names.push(name),
            Err(fault) => section.report.add(&span, fault),
        }
    }
    names
}

fn read_log(root: &Section<'_>) -> Log {
    let empty = DeTable::new();
    let section = match root.get("log") {
        Some(value) => Section::open(&keys::LOG, value, root.report),
        None => None,
    };
    let section = section.unwrap_or_else(|| Section::new(&keys::LOG, &empty, 0..0, root.report));
    let mut log = Log {
        access: access_log::of_process(&section),
        ..Log::default()
    };
    section.read(rows::LOG, &mut log);
    log
}

/// Also read by itself: a mistake is reported even where every section overrides the key.
fn read_defaults<'a>(root: &Section<'a>) -> Option<&'a DeTable<'a>> {
    let value = root.get("defaults")?;
    let section = Section::open(&keys::DEFAULTS, value, root.report)?;
    listener::read("", &section);
    upstream::read("", &section, &References::any());
    value.get_ref().as_table()
}

/// The tables of `[listeners]` or `[upstreams]`, by name.
fn named<'a>(root: &Section<'a>, key: &str) -> Vec<(&'a str, &'a super::section::Value<'a>)> {
    let Some(value) = root.get(key) else {
        return Vec::new();
    };
    let DeValue::Table(table) = value.get_ref() else {
        let what = found(value.get_ref());
        root.report.add(
            &value.span(),
            fault!("`{key}` holds sections [{key}.NAME], not {what}")
                .hint(format!("write [{key}.NAME], in single brackets, for each")),
        );
        return Vec::new();
    };
    for name in table.keys() {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        if !(1..=64).contains(&name.get_ref().len()) || !name.get_ref().chars().all(allowed) {
            root.report.add(
                &name.span(),
                fault!(
                    "{} is no name for a section of [{key}]",
                    quoted_key(name.get_ref())
                )
                .hint("names have 1 to 64 characters out of A-Z a-z 0-9 _ . -"),
            );
        }
    }
    table
        .iter()
        .map(|(name, value)| (name.get_ref().as_ref(), value))
        .collect()
}

fn check_max_flows(root: &Section<'_>, process: &Process, listeners: &[listener::Read]) {
    let is_udp = |read: &listener::Read| matches!(read.listener.protocol, Protocol::Udp(_));
    if process.max_flows == 0 || listeners.iter().any(|read| is_udp(read) || !read.sure) {
        return;
    }
    let table = root.get("process").and_then(|v| v.get_ref().as_table());
    if let Some(value) = table.and_then(|table| table.get("max_flows")) {
        let found = NoEffect::always(
            "without a UDP listener",
            "sessions of TCP are limited by `max_connections`: leave `max_flows` out",
        );
        root.report.add(&value.span(), found.fault("`max_flows`"));
    }
}

/// From the file alone loopback addresses and equal ones can be checked; the others are checked at
/// the start.
fn check_forwarding_loops(reads: &[listener::Read], upstreams: &[Upstream], report: &Report) {
    let sure = reads.iter().all(|read| read.sure);
    if !sure {
        return;
    }
    let listeners: Vec<Listener> = reads.iter().map(|read| read.listener.clone()).collect();
    let addrs = |upstream: &Upstream, backend: usize| match &upstream.backends[backend].target {
        Target::Addr(addr) => vec![addr.clone()],
        Target::Name { host, port } if host == "localhost" => {
            let both = [
                IpAddr::from(Ipv4Addr::LOCALHOST),
                Ipv6Addr::LOCALHOST.into(),
            ];
            both.map(|ip| Addr::Tcp(SocketAddr::new(ip, *port)))
                .to_vec()
        }
        Target::Name { .. } => Vec::new(),
    };
    for found in find_forwarding_loops(&listeners, upstreams, addrs, |ip| ip.is_loopback()) {
        let read = &reads[found.listener];
        report.add(
            &read.bind_spans[found.bind],
            fault!(
                "the listener `{}` is its own backend: {}",
                read.listener.name,
                found.way
            )
            .hint("each session would begin the next, without end: name the address of the server"),
        );
    }
}

fn check_upstream_names(root: &Section<'_>, listeners: &[listener::Read], report: &Report) {
    let table = root
        .get("upstreams")
        .and_then(|value| value.get_ref().as_table());
    for read in listeners {
        let Some(span) = &read.upstream_span else {
            continue;
        };
        let name = read.listener.upstream.as_str();
        // Also one with mistakes of its own counts: it is there.
        if table.is_some_and(|table| table.contains_key(name)) {
            continue;
        }
        let names: Vec<&str> = table
            .into_iter()
            .flat_map(|table| table.keys())
            .map(|key| key.get_ref().as_ref())
            .collect();
        let listed = shorten(&names.join(", "));
        let hint = match nearest(name, &names) {
            Some(near) => format!("did you mean \"{near}\"? Known: {listed}"),
            None if names.is_empty() => {
                format!("there is no upstream yet: add a section [upstreams.{name}]")
            }
            None => format!("known: {listed}; or add a section [upstreams.{name}]"),
        };
        report.add(
            span,
            fault!("there is no upstream {}", quoted_key(name)).hint(hint),
        );
    }
}

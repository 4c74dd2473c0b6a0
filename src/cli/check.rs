//! `tembuku check`: is the configuration valid, and what does it come to?

use super::{
    code, complain, print,
    table::{Row, table, terminal_width},
};
use crate::{
    admin::check_socket,
    cli::response::clean,
    config,
    control::{
        ProbeOutcome, ProbedBackend, SourceAnswer, StartError, StartErrors, WrongPrimaries,
        ask_sources_once, find_obstacles, find_wrong_primaries, may_bind, probe_once,
    },
    plan::{Addr, Backend, Listener, Plan, Role, Upstream, counted},
    sys,
};
use std::{collections::BTreeSet, net::IpAddr, path::Path, process::ExitCode};

/// Marks backends that do not answer as they have to.
const FAILED: &str = "FAIL";

/// The effective configuration goes to standard output.
pub(super) fn dump(path: &Path) -> ExitCode {
    let dumped = load(path).and_then(|plan| print(&config::dump(&plan)));
    code(dumped)
}

/// A summary goes to standard output, problems go to standard error.
pub(super) fn run(path: &Path, file_only: bool) -> ExitCode {
    let checked = load(path).and_then(|plan| {
        complain(&readers_of_two(&plan));
        if !file_only {
            for listener in &plan.listeners {
                complain(&foreign_addresses(listener, is_local));
            }
            check_machine(&plan)?;
        }
        let (summary, sources) = (summary(&plan), sources(&plan, path));
        print(&format!("{}: ok: {summary}\n{sources}", path.display()))
    });
    code(checked)
}

fn load(path: &Path) -> Result<Plan, String> {
    config::load(path).map_err(|problems| problems.to_string())
}

/// Whether a start by this user would find what it needs on this machine. The error is what would
/// keep it from starting.
fn check_machine(plan: &Plan) -> Result<(), String> {
    let mut found = wait_for(find_obstacles(plan))?;
    if let Some(admin) = &plan.admin {
        let checked = admin.socket.as_deref().map_or(Ok(()), check_socket);
        if let Err(error) = checked {
            found.errors.push(StartError::Admin(error.to_string()));
        }
        if let Some(listen) = admin.listen.filter(|listen| !may_bind(*listen)) {
            let why = format!(
                "cannot listen on {listen}: permission denied; ports below 1024 need \
                 CAP_NET_BIND_SERVICE"
            );
            found.warnings.push(StartError::Admin(why));
        }
    }
    let warnings = found.warnings.iter().map(|w| format!("warning: {w}\n"));
    complain(&warnings.collect::<String>());
    if found.errors.is_empty() {
        return Ok(());
    }
    let errors = StartErrors(found.errors).to_string();
    Err(errors
        + "  hint: `tembuku run` would not start here as this user; check as the user that runs \
           it, or with --file-only on another machine\n")
}

fn wait_for<T>(future: impl Future<Output = T>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("error: cannot start: {e}\n"))?;
    let result = runtime.block_on(future);
    // Look-ups that hang are not waited for.
    runtime.shutdown_background();
    Ok(result)
}

/// Checks every backend once, also those that sources name. What they answer goes to standard
/// output.
pub(super) fn probe(path: &Path) -> ExitCode {
    let mut plan = match load(path) {
        Ok(plan) => plan,
        Err(why) => return code(Err(why)),
    };
    complain(&readers_of_two(&plan));
    let is_ready = match check_machine(&plan) {
        Ok(()) => true,
        Err(why) => {
            complain(&why);
            false
        }
    };
    let answers = match wait_for(ask_sources_once(&mut plan)) {
        Ok(answers) => answers,
        Err(why) => return code(Err(why)),
    };
    let is_ready = report_answers(&answers) && is_ready;
    let probed = wait_for(probe_once(&plan));
    let probed = match probed.and_then(|probed| probed.map_err(|errors| errors.to_string())) {
        Ok(probed) => probed,
        // It has been named above.
        Err(_) if !is_ready => return ExitCode::FAILURE,
        Err(why) => return code(Err(why)),
    };
    let failed = probed.iter().filter(|one| one.outcome.is_failure()).count();
    let written = print(&probed_table(&probed));
    let wrong = find_wrong_primaries(&plan, &probed);
    complain(
        &wrong
            .iter()
            .map(describe_wrong_primaries)
            .collect::<String>(),
    );
    let is_ready = is_ready && wrong.is_empty();
    match (written, failed) {
        (Ok(()), 0) if is_ready => ExitCode::SUCCESS,
        (Ok(()), 0) => ExitCode::FAILURE,
        (Ok(()), failed) => {
            let backends = counted(probed.len() as u64, "backend");
            let mut text = format!("{failed} of {backends} failed\n");
            if probed.iter().any(|one| one.outcome.is_refused_login()) {
                text += "  hint: a server wants a password, or refuses the one that it got: set \
                         `password_file` (or `password_env`) and, for an account, `user` in the \
                         `check` of its upstream\n";
            }
            if probed.iter().any(|one| one.outcome.may_pass()) {
                text += "  hint: a server that loads its data, and a replica that has not finished \
                         its first synchronisation, answer as they have to after that: try again\n";
            }
            complain(&text);
            ExitCode::FAILURE
        }
        (Err(why), _) => code(Err(why)),
    }
}

fn describe_wrong_primaries(wrong: &WrongPrimaries) -> String {
    let WrongPrimaries {
        upstream,
        primaries,
    } = wrong;
    match primaries.len() {
        0 => format!(
            "error: upstream {upstream}: no server is primary, so that none would take sessions\n"
        ),
        count => format!(
            "error: upstream {upstream}: {count} backends are primary: {}; only one of them would \
             take sessions, and what clients write to another is lost\n  hint: make each of the \
             others a replica of the right one\n",
            primaries.join(", ")
        ),
    }
}

/// What sources name goes to standard output; whether all have answered.
fn report_answers(answers: &[SourceAnswer]) -> bool {
    let mut have_all = true;
    for SourceAnswer {
        upstream,
        kind,
        backends,
    } in answers
    {
        let source = format!("upstream {upstream}: its source ({kind})");
        let shown = match backends {
            Ok(count) => print(&format!("{source} names {}\n", counted(*count, "backend"))),
            Err(error) => Err(format!(
                "error: {source} has no usable answer: {}\n",
                clean(&error.message)
            )),
        };
        if let Err(why) = shown {
            complain(&why);
            have_all = false;
        }
    }
    have_all
}

fn probed_table(probed: &[ProbedBackend]) -> String {
    // The first column shows where to look.
    let mut rows = vec![Row::of(
        ["check", "backend", "result", "role"],
        ["time"],
        ["transcript"],
    )];
    rows.extend(probed.iter().map(|one| {
        let name = format!("{}/{}", one.upstream, one.backend);
        // What a host name stands for.
        let name = match &one.address {
            Some(address) if address.to_string() != one.backend => format!("{name} ({address})"),
            Some(_) | None => name,
        };
        let dash = || "-".to_owned();
        let not_asked = |why: &str| {
            let mark = if one.outcome.is_failure() {
                FAILED
            } else {
                "-"
            };
            Row::of([mark, &name, "-", "-"], ["-"], [why])
        };
        match &one.outcome {
            ProbeOutcome::Checked(report) => {
                let role = report.finding.role.map(|role| role.word().to_owned());
                let millis = report.took.as_secs_f64() * 1e3;
                let mark = if one.outcome.is_failure() {
                    FAILED
                } else {
                    "ok"
                };
                Row::of(
                    [
                        mark.to_owned(),
                        name,
                        report.result.word().to_owned(),
                        role.unwrap_or_else(dash),
                    ],
                    [format!("{millis:.1} ms")],
                    [clean(&report.transcript)],
                )
            }
            ProbeOutcome::Disabled => not_asked("set to down in the configuration"),
            ProbeOutcome::NotResolved => not_asked("its name does not resolve"),
            ProbeOutcome::NoCheck => not_asked("UDP without a check: nothing was sent to it"),
        }
    }));
    table(&rows, terminal_width())
}

/// Where the kernel gives no answer, there is nothing to warn of.
fn is_local(ip: IpAddr) -> bool {
    ip.is_unspecified() || ip.is_multicast() || sys::route::is_local(ip).unwrap_or(true)
}

/// Warnings of addresses that cannot be bound on this machine as it is now.
fn foreign_addresses(listener: &Listener, is_local: impl Fn(IpAddr) -> bool) -> String {
    let mut foreign = BTreeSet::new();
    for addr in listener.bind.iter().flat_map(|bind| &bind.addrs) {
        if let Addr::Tcp(address) = addr
            && !listener.freebind
            && !is_local(address.ip())
        {
            foreign.insert(address.ip());
        }
    }
    let warning = |ip: &IpAddr| {
        let name = &listener.name;
        format!(
            "warning: listener {name}: no interface of this machine has the address {ip}\n  hint: \
             freebind = true binds an address that comes later, such as one of keepalived\n"
        )
    };
    foreign.iter().map(warning).collect()
}

/// Notes on upstreams for readers that have two servers, of which one is the primary: there is one
/// replica at most, and none while one of the servers is lost.
fn readers_of_two(plan: &Plan) -> String {
    fn asks_for(upstream: &Upstream, role: Role) -> bool {
        let check = upstream.check.as_ref();
        check.is_some_and(|check| check.kind.role() == Some(role))
    }
    let are_two = |upstream: &&Upstream| {
        let has = |b: &Backend| upstream.backends.iter().any(|own| own.text == b.text);
        let mut primaries = plan.upstreams.iter().filter(|u| asks_for(u, Role::Primary));
        let used = upstream.backends.iter().filter(|b| !b.down);
        // Where another server is the primary, both are replicas.
        used.count() == 2
            && upstream.discover.is_none()
            && primaries.all(|u| u.discover.is_none() && u.backends.iter().all(has))
    };
    let may_lose_all = |upstream: &&Upstream| {
        let falls_back = upstream.check.as_ref().is_some_and(|c| c.role_fallback);
        asks_for(upstream, Role::Replica) && !falls_back && are_two(upstream)
    };
    let note = |upstream: &Upstream| {
        format!(
            "note: upstream {}: if one of its two servers is the primary, no replica is left when \
             the other one is lost or promoted\n  hint: role_fallback = true in its `check` lets \
             readers use the primary meanwhile\n",
            upstream.name
        )
    };
    plan.upstreams
        .iter()
        .filter(may_lose_all)
        .map(note)
        .collect()
}

/// Where further backends come from, a line for each source.
fn sources(plan: &Plan, path: &Path) -> String {
    let lines = plan.upstreams.iter().filter_map(|upstream| {
        let kind = upstream.discover.as_ref()?.source.kind().word();
        let (name, path) = (&upstream.name, path.display());
        Some(format!(
            "upstream {name}: further backends come from its source ({kind}), which was not asked; \
             `tembuku discover -c {path} {name}` asks it, `tembuku check --probe -c {path}` its \
             backends as well\n"
        ))
    });
    lines.collect()
}

fn summary(plan: &Plan) -> String {
    let backends = plan
        .upstreams
        .iter()
        .map(|upstream| upstream.backends.len())
        .sum();
    let summary = [
        (plan.listeners.len(), "listener"),
        (plan.upstreams.len(), "upstream"),
        (backends, "backend"),
    ]
    .map(|(count, noun)| format!("{count} {noun}{}", if count == 1 { "" } else { "s" }))
    .join(", ");
    match plan.upstreams.iter().any(|u| u.discover.is_some()) {
        true => summary + " in the file",
        false => summary,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_another_machine_is_warned_of_once() {
        let warnings = |freebind: bool| {
            let text = format!(
                "[listeners.l]\nbind = [\"10.0.0.9:1-5\", \"127.0.0.1:1\"]\nfreebind = {freebind}\n\
                 upstream = \"u\"\n[upstreams.u]\nbackends = [\"a:1\"]\n"
            );
            let plan = config::parse(&text, "test").expect("valid");
            foreign_addresses(&plan.listeners[0], |ip| ip.is_loopback())
        };
        assert_eq!(warnings(true), "");
        let warning = warnings(false);
        assert_eq!(warning.matches("warning:").count(), 1, "{warning}");
        assert!(warning.contains("10.0.0.9"), "{warning}");
    }

    #[test]
    fn role_fallback_is_named_for_readers_of_two_servers() {
        let note = |backends: &str, check: &str, more: &str| {
            let text = format!(
                "[listeners.l]\nbind = \"0.0.0.0:1\"\nupstream = \"r\"\n\
                 [listeners.w]\nbind = \"0.0.0.0:2\"\nupstream = \"w\"\n\
                 [upstreams.r]\nbackends = [{backends}]\n\
                 check = {{ kind = \"redis\", role = \"replica\"{check} }}\n\
                 [upstreams.w]\nbackends = [\"a:1\", \"b:1\"{more}]\n\
                 check = {{ kind = \"redis\", role = \"primary\" }}\n"
            );
            readers_of_two(&config::parse(&text, "test").expect("valid"))
        };
        let both = "\"a:1\", \"b:1\"";
        let text = note(both, "", "");
        assert_eq!(text.matches("note: upstream r: ").count(), 1, "{text}");
        assert!(text.contains("role_fallback = true"), "{text}");
        let down = ", { address = \"c:1\", down = true }";
        assert_eq!(note(&(both.to_owned() + down), "", ", \"c:1\""), text);
        for (backends, check, more) in [
            (both, ", role_fallback = true", ""),
            // Two replicas of another server, and three servers.
            (both, "", ", \"c:1\""),
            ("\"a:1\", \"b:1\", \"c:1\"", "", ", \"c:1\""),
            ("\"a:1\"", "", ""),
        ] {
            assert_eq!(note(backends, check, more), "", "{backends} {check} {more}");
        }
    }

    #[test]
    fn one_and_many() {
        let text = "[listeners.a]\nbind = \"0.0.0.0:1\"\nupstream = \"u\"\n\
                    [listeners.b]\nbind = \"0.0.0.0:2\"\nupstream = \"u\"\n\
                    [upstreams.u]\nbackends = [\"a:1\", \"b:1\", \"c:1\"]\n";
        let plan = config::parse(text, "test").expect("valid");
        assert_eq!(summary(&plan), "2 listeners, 1 upstream, 3 backends");
    }
}

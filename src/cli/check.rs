//! `tembuku check`: is the configuration valid, and what does it come to?

use super::{
    code, complain, print,
    table::{Row, table},
};
use crate::{
    cli::response::clean,
    config,
    control::{ProbeOutcome, ProbedBackend, probe_once},
    plan::{Addr, Listener, Plan},
    sys,
};
use std::{collections::BTreeSet, net::IpAddr, path::Path, process::ExitCode};

/// The dump or a summary goes to stdout, problems go to stderr.
pub(super) fn run(path: &Path, dump: bool) -> ExitCode {
    match config::load(path) {
        Ok(plan) if dump => code(print(&config::dump(&plan))),
        Ok(plan) => {
            for listener in &plan.listeners {
                complain(&foreign_addresses(listener, is_local));
            }
            let summary = summary(&plan);
            code(print(&format!("{}: ok: {summary}\n", path.display())))
        }
        Err(problems) => {
            complain(&problems.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Checks every backend once. What they answer goes to standard output.
pub(super) fn probe(path: &Path) -> ExitCode {
    let plan = match config::load(path) {
        Ok(plan) => plan,
        Err(problems) => {
            complain(&problems.to_string());
            return ExitCode::FAILURE;
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let probed = match runtime {
        Ok(runtime) => {
            let probed = runtime.block_on(probe_once(&plan));
            // Look-ups that hang are not waited for.
            runtime.shutdown_background();
            probed.map_err(|errors| errors.to_string())
        }
        Err(e) => Err(format!("error: cannot start: {e}\n")),
    };
    let probed = match probed {
        Ok(probed) => probed,
        Err(why) => {
            complain(&why);
            return ExitCode::FAILURE;
        }
    };
    let failed = probed.iter().filter(|one| one.outcome.is_failure()).count();
    let written = print(&probed_table(&probed));
    match (written, failed) {
        (Ok(()), 0) => ExitCode::SUCCESS,
        (Ok(()), failed) => {
            let count = probed.len();
            let mut text = format!("{failed} of {count} backends do not answer as they have to\n");
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

fn probed_table(probed: &[ProbedBackend]) -> String {
    let mut rows = vec![Row::of(
        ["backend", "result", "role"],
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
        match &one.outcome {
            ProbeOutcome::Checked(report) => {
                let role = report.finding.role.map(|role| role.word().to_owned());
                let millis = report.took.as_secs_f64() * 1e3;
                Row::of(
                    [
                        name,
                        report.result.word().to_owned(),
                        role.unwrap_or_else(dash),
                    ],
                    [format!("{millis:.1} ms")],
                    [clean(&report.transcript)],
                )
            }
            ProbeOutcome::Disabled => not_asked(name, "set to down in the configuration"),
            ProbeOutcome::NotResolved => not_asked(name, "its name does not resolve"),
            ProbeOutcome::NoCheck => not_asked(name, "it is for datagrams, and has no check"),
        }
    }));
    table(&rows)
}

fn not_asked(name: String, why: &str) -> Row {
    Row::of([name, "-".to_owned(), "-".to_owned()], ["-"], [why])
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

fn summary(plan: &Plan) -> String {
    let backends = plan
        .upstreams
        .iter()
        .map(|upstream| upstream.backends.len())
        .sum();
    [
        (plan.listeners.len(), "listener"),
        (plan.upstreams.len(), "upstream"),
        (backends, "backend"),
    ]
    .map(|(count, noun)| format!("{count} {noun}{}", if count == 1 { "" } else { "s" }))
    .join(", ")
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
    fn one_and_many() {
        let text = "[listeners.a]\nbind = \"0.0.0.0:1\"\nupstream = \"u\"\n\
                    [listeners.b]\nbind = \"0.0.0.0:2\"\nupstream = \"u\"\n\
                    [upstreams.u]\nbackends = [\"a:1\", \"b:1\", \"c:1\"]\n";
        let plan = config::parse(text, "test").expect("valid");
        assert_eq!(summary(&plan), "2 listeners, 1 upstream, 3 backends");
    }
}

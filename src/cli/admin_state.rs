//! `tembuku drain`, `ready` and `maint`: what the operator wants of backends.

use super::{
    client::{At, Client, encode},
    code, complain, say,
};
use crate::{
    cli::response::{AdminChange, Backend, NodeChange, Status, clean},
    upstream::pool::AdminState,
};
use clap::Args;
use serde_json::json;
use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

/// Between two looks whether sessions have ended.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct Ready {
    /// The backends, as configured: redis/10.0.0.1:6379
    #[arg(required_unless_present = "node", value_name = "UPSTREAM/BACKEND", value_parser = target)]
    targets: Vec<Target>,
    /// The process as a whole: it says that it is not ready, so that clients are sent to other
    /// nodes, and serves those that still come
    #[arg(long, conflicts_with = "targets")]
    node: bool,
    #[command(flatten)]
    pub(super) at: At,
}

#[derive(Debug, Args)]
pub(super) struct Out {
    #[command(flatten)]
    pub(super) which: Ready,
    /// Wait until they have no session left
    #[arg(long)]
    wait: bool,
    /// … but not longer than this
    #[arg(long, value_name = "TIME", default_value = "60s", requires = "wait", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    upstream: String,
    backend: String,
}

fn target(text: &str) -> Result<Target, String> {
    match text.split_once('/') {
        // The address of a unix socket has slashes of its own.
        Some((upstream, backend)) if !upstream.is_empty() && !backend.is_empty() => Ok(Target {
            upstream: upstream.to_owned(),
            backend: backend.to_owned(),
        }),
        _ => Err("a backend is named with its upstream, as in redis/10.0.0.1:6379".to_owned()),
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = format!("{}/{}", self.upstream, self.backend);
        f.write_str(&name.replace(char::is_control, "\u{fffd}"))
    }
}

pub(super) fn ready(args: &Ready) -> ExitCode {
    run(args, AdminState::Ready, None)
}

pub(super) fn out(args: &Out, admin_state: AdminState) -> ExitCode {
    if args.which.node && admin_state == AdminState::Maint {
        complain(
            "error: maintenance is for backends\n  hint: `tembuku drain --node` sends clients to \
             other nodes\n",
        );
        return ExitCode::from(2);
    }
    run(&args.which, admin_state, args.wait.then_some(args.timeout))
}

fn run(args: &Ready, admin_state: AdminState, wait: Option<Duration>) -> ExitCode {
    let client = match Client::find(&args.at) {
        Ok(client) => client,
        Err(why) => {
            complain(&why);
            return ExitCode::FAILURE;
        }
    };
    if args.node {
        return code(run_for_node(&client, admin_state, wait));
    }
    // One that fails is no reason to leave the others as they are.
    let mut code = ExitCode::SUCCESS;
    let mut taken = Vec::new();
    for target in &args.targets {
        let done = put(&client, target, admin_state);
        if done.is_ok() {
            taken.push(target);
        }
        if let Err(why) = done.and_then(|line| say(&line)) {
            complain(&why);
            code = ExitCode::FAILURE;
        }
    }
    if let Some(timeout) = wait
        && let Err(why) = wait_for_none(&client, taken, admin_state, timeout)
    {
        complain(&why);
        code = ExitCode::FAILURE;
    }
    code
}

fn run_for_node(
    client: &Client,
    admin_state: AdminState,
    wait: Option<Duration>,
) -> Result<(), String> {
    let body = json!({ "admin_state": admin_state.word() });
    let done: NodeChange = client.post("/api/v1/node", &body)?;
    let (from, to) = (clean(&done.from), clean(&done.admin_state));
    let change = match from == to {
        true => format!("{to} already"),
        false => format!("{from} -> {to}"),
    };
    say(&format!("node: {change}, {}\n", counted(done.connections)))?;
    let Some(timeout) = wait else {
        return Ok(());
    };
    let began = Instant::now();
    loop {
        let (Status { process, .. }, _) = client.status()?;
        if process.state != "draining" {
            return Err("error: not waiting: the node is drained no longer\n".to_owned());
        }
        let sessions = process.connections + process.flows;
        if sessions == 0 {
            return say("node: no sessions left\n");
        }
        let Some(rest) = timeout.checked_sub(began.elapsed()) else {
            let sessions = counted(sessions);
            return Err(format!("error: node: still {sessions} after {timeout:?}\n"));
        };
        std::thread::sleep(LOOK.min(rest));
    }
}

/// The line about the result.
fn put(client: &Client, target: &Target, admin_state: AdminState) -> Result<String, String> {
    let (upstream, backend) = (encode(&target.upstream), encode(&target.backend));
    let path = format!("/api/v1/upstreams/{upstream}/backends/{backend}");
    let done: AdminChange = client.post(&path, &json!({ "admin_state": admin_state.word() }))?;
    let of = (&done.upstream, &done.backend, done.admin_state.as_str());
    if of != (&target.upstream, &target.backend, admin_state.word()) {
        return Err(format!(
            "error: the answer for {target} and {} is about {}/{} and {}\n  hint: is that \
             the admin socket of tembuku?\n",
            admin_state.word(),
            clean(of.0),
            clean(of.1),
            clean(of.2)
        ));
    }
    let (from, to) = (clean(&done.from), clean(&done.state));
    let change = if from == to {
        format!("{to} already")
    } else {
        format!("{from} -> {to}")
    };
    let sessions = counted(done.connections);
    Ok(format!("{target}: {change}, {sessions}\n"))
}

fn wait_for_none(
    client: &Client,
    mut left: Vec<&Target>,
    admin_state: AdminState,
    timeout: Duration,
) -> Result<(), String> {
    let began = Instant::now();
    loop {
        let (status, _) = client.status()?;
        let mut held = String::new();
        let mut still = Vec::new();
        for target in left {
            let backend = find(&status, target)
                .ok_or_else(|| format!("error: {target} is not there any more\n"))?;
            if backend.admin_state != admin_state.word() {
                return Err(format!(
                    "error: not waiting for {target}: another command has set it to {}\n",
                    clean(&backend.admin_state)
                ));
            }
            match backend.connections {
                0 => say(&format!("{target}: no sessions left\n"))?,
                n => {
                    held += &format!("error: {target}: still {} after {timeout:?}\n", counted(n));
                    still.push(target);
                }
            }
        }
        if still.is_empty() {
            return Ok(());
        }
        left = still;
        let Some(rest) = timeout.checked_sub(began.elapsed()) else {
            return Err(held);
        };
        std::thread::sleep(LOOK.min(rest));
    }
}

fn find<'a>(status: &'a Status, target: &Target) -> Option<&'a Backend> {
    let mut upstreams = status.upstreams.iter();
    let upstream = upstreams.find(|u| u.name == target.upstream)?;
    let mut backends = upstream.backends.iter();
    backends.find(|b| b.address == target.backend)
}

fn counted(sessions: u64) -> String {
    match sessions {
        1 => "1 session".to_owned(),
        n => format!("{n} sessions"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_have_two_names() {
        let one = target("u/unix:/run/x.sock").expect("good");
        assert_eq!(one.to_string(), "u/unix:/run/x.sock");
        assert_eq!(one.backend, "unix:/run/x.sock");
        for wrong in ["", "/", "u", "u/", "/b", "10.0.0.1:6379"] {
            assert!(target(wrong).is_err(), "{wrong}");
        }
    }
}

//! `tembuku discover`: asks the source of an upstream once, and prints its answer.

use super::{ConfigFile, code, complain, print};
use crate::{
    cli::response::clean,
    config,
    discover::{Found, Snapshot, SourceError, ask_once, format::check_address},
    plan::{Discover, Upstream, counted},
};
use clap::Args;
use serde_json::json;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "\
The answer is printed in the form that a source of kind \"file\" reads. It is that of the source \
alone: which of it a running process uses, and what it holds, is shown by `tembuku status`.")]
pub(super) struct Arguments {
    #[command(flatten)]
    file: ConfigFile,
    /// The upstream whose source is asked
    #[arg(value_name = "UPSTREAM")]
    upstream: String,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Arguments) -> ExitCode {
    let plan = match config::load(&args.file.config) {
        Ok(plan) => plan,
        Err(problems) => {
            complain(&problems.to_string());
            return ExitCode::FAILURE;
        }
    };
    let discover = match find(&plan.upstreams, &args.upstream) {
        Ok(discover) => discover,
        Err(why) => {
            complain(&why);
            return ExitCode::from(2);
        }
    };
    let kind = discover.source.kind().word();
    let checked = |snapshot: Snapshot| {
        let mut addresses = snapshot.backends.iter().map(|found| &found.address);
        addresses.try_for_each(|address| check_address(address))?;
        Ok(snapshot)
    };
    let answer = ask(discover).map(|answer| answer.and_then(checked));
    let shown = match answer {
        Ok(Ok(snapshot)) if args.json => Ok(as_json(&args.upstream, kind, &snapshot)),
        Ok(Ok(snapshot)) => Ok(as_lines(kind, &snapshot)),
        Ok(Err(error)) => Err(format!(
            "error: upstream {}: {}\n",
            args.upstream,
            clean(&error.message)
        )),
        Err(error) => Err(format!("error: cannot start: {error}\n")),
    };
    code(shown.and_then(|shown| print(&shown)))
}

/// The error is a whole message.
fn find<'a>(upstreams: &'a [Upstream], name: &str) -> Result<&'a Discover, String> {
    let found = upstreams.iter().find(|upstream| upstream.name == name);
    if let Some(discover) = found.and_then(|upstream| upstream.discover.as_ref()) {
        return Ok(discover);
    }
    let with_source = upstreams
        .iter()
        .filter(|upstream| upstream.discover.is_some());
    let names: Vec<&str> = with_source.map(|upstream| upstream.name.as_str()).collect();
    let known = match names.is_empty() {
        true => "no upstream has one".to_owned(),
        false => format!("there are: {}", names.join(", ")),
    };
    let what = match found {
        Some(_) => format!("the upstream {name:?} has no section `discover`"),
        None => format!("there is no upstream {name:?}"),
    };
    Err(format!("error: {what}; {known}\n"))
}

fn ask(discover: &Discover) -> std::io::Result<Result<Snapshot, SourceError>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let answer = runtime.block_on(ask_once(discover));
    // What hangs is not waited for.
    runtime.shutdown_background();
    Ok(answer)
}

fn as_lines(kind: &str, snapshot: &Snapshot) -> String {
    let count = counted(snapshot.backends.len(), "backend");
    let version = clean(&snapshot.version);
    let mut out = format!("# {kind}, version {version}, {count}\n");
    if let Some(gap) = &snapshot.gap {
        out += &format!("# not whole: {}\n", clean(&gap.error.message));
    }
    for found in &snapshot.backends {
        let Found {
            address,
            weight,
            backup,
            name,
            draining,
        } = found;
        out += &clean(address);
        out += &format!(" weight={weight}");
        if *backup {
            out += " backup";
        }
        if *draining {
            out += " draining";
        }
        if let Some(name) = name {
            out += &format!(" name={}", clean(name));
        }
        out.push('\n');
    }
    out
}

fn as_json(upstream: &str, kind: &str, snapshot: &Snapshot) -> String {
    let backends = snapshot.backends.iter().map(|found| {
        json!({
            "address": found.address,
            "weight": found.weight,
            "backup": found.backup,
            "name": found.name,
            "draining": found.draining,
        })
    });
    let answer = json!({
        "upstream": upstream,
        "kind": kind,
        "version": snapshot.version,
        "gap": snapshot.gap.as_ref().map(|gap| &gap.error.message),
        "valid_for_seconds": snapshot.valid_for.map(|time| time.as_secs_f64()),
        "backends": backends.collect::<Vec<_>>(),
    });
    format!("{answer}\n")
}

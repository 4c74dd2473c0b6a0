//! `tembuku check`: is the configuration valid, and what does it come to?

use super::{code, complain, say};
use crate::{config, plan::Plan};
use std::{path::Path, process::ExitCode};

/// The dump or a summary goes to stdout, problems go to stderr.
pub(super) fn run(path: &Path, dump: bool) -> ExitCode {
    match config::load(path) {
        Ok(plan) if dump => code(say(&config::dump(&plan))),
        Ok(plan) => {
            let summary = summary(&plan);
            code(say(&format!("{}: ok: {summary}\n", path.display())))
        }
        Err(problems) => {
            complain(&problems.to_string());
            ExitCode::FAILURE
        }
    }
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
    fn one_and_many() {
        let text = "[listeners.a]\nbind = \"0.0.0.0:1\"\nupstream = \"u\"\n\
                    [listeners.b]\nbind = \"0.0.0.0:2\"\nupstream = \"u\"\n\
                    [upstreams.u]\nbackends = [\"a:1\", \"b:1\", \"c:1\"]\n";
        let plan = config::parse(text, "test").expect("valid");
        assert_eq!(summary(&plan), "2 listeners, 1 upstream, 3 backends");
    }
}

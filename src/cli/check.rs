//! `tembuku check`: is the configuration valid, and what does it come to?

use std::{
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use crate::{config, plan::Plan};

/// The dump or a summary goes to stdout, problems go to stderr.
pub(super) fn run(path: &Path, dump: bool) -> ExitCode {
    let (said, code) = match config::load(path) {
        Ok(plan) if dump => (print(&config::dump(&plan)), ExitCode::SUCCESS),
        Ok(plan) => (
            print(&format!("{}: ok: {}\n", path.display(), summary(&plan))),
            ExitCode::SUCCESS,
        ),
        Err(problems) => (
            io::stderr()
                .lock()
                .write_all(problems.to_string().as_bytes()),
            ExitCode::FAILURE,
        ),
    };
    match said {
        Ok(()) => code,
        // `tembuku check --dump | head` has seen enough: the verdict stands.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => code,
        Err(_) => ExitCode::FAILURE,
    }
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
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

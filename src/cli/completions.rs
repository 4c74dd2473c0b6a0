//! `tembuku completions` and `tembuku man`: from the definition of the command line.

use super::{Cli, code, print};
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;
use std::{path::PathBuf, process::ExitCode};

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell that is to complete commands of tembuku
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct Man {
    /// Write the pages of all commands into this folder instead of one page to standard output
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

pub(super) fn completions(arguments: &Completions) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "tembuku", &mut script);
    code(print(&String::from_utf8_lossy(&script)))
}

pub(super) fn man(arguments: &Man) -> ExitCode {
    let command = Cli::command();
    if let Some(folder) = &arguments.to {
        let made = match folder.exists() {
            true => Ok(()),
            false => std::fs::create_dir(folder),
        };
        let result = made.and_then(|()| clap_mangen::generate_to(command, folder));
        let why = |e| format!("error: cannot write to {}: {e}\n", folder.display());
        return code(result.map_err(why));
    }
    let mut page = Vec::new();
    let result = clap_mangen::Man::new(command).render(&mut page);
    let text = String::from_utf8_lossy(&page);
    code(
        result
            .map_err(|e| format!("error: {e}\n"))
            .and_then(|()| print(&text)),
    )
}

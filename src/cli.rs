//! The command line: one file for each subcommand.

mod check;
mod demo;
mod explain;
mod run;

use crate::config::{self, Flags};
use clap::{Args, Parser, Subcommand};
use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

/// Subcommands that are planned, and refused until they work.
const NOT_YET: [&str; 12] = [
    "status",
    "reload",
    "drain",
    "ready",
    "maint",
    "weight",
    "sessions",
    "top",
    "import",
    "schema",
    "completions",
    "man",
];

#[derive(Debug, Parser)]
#[command(name = "tembuku", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Try it: three backends, a listener in front and the status page, all in this one process
    Demo,
    /// Serve, by a configuration file or by the flags alone
    Run(Run),
    /// Validate a configuration: every problem at once, with its place
    Check {
        #[command(flatten)]
        file: ConfigFile,
        /// Print the effective configuration with all defaults filled in
        #[arg(long)]
        dump: bool,
    },
    /// Which backend a client would get, and why: by the configuration alone, no network is touched
    Explain(explain::Explain),
}

#[derive(Debug, Args)]
struct ConfigFile {
    /// The configuration file
    #[arg(
        short,
        long,
        value_name = "FILE",
        env = "TEMBUKU_CONFIG",
        default_value = "/etc/tembuku/tembuku.toml"
    )]
    config: PathBuf,
}

#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    file: ConfigFile,
    /// Serve without a file: accept here ("0.0.0.0:6379", "[::]:53", "unix:/path")
    #[arg(long, value_name = "ADDR", requires = "to")]
    listen: Vec<String>,
    /// … and relay to these backends
    #[arg(long, value_name = "ADDR", requires = "listen")]
    to: Vec<String>,
    /// … datagrams instead of connections
    #[arg(long, requires = "listen")]
    udp: bool,
    /// … chosen by this policy
    #[arg(long, value_name = "POLICY", requires = "listen")]
    balance: Option<String>,
    /// … with metrics and status here
    #[arg(long, value_name = "ADDR", requires = "listen")]
    admin: Option<String>,
}

/// The whole program; the code is the process's.
pub fn main() -> ExitCode {
    let first = std::env::args_os().nth(1).unwrap_or_default();
    if let Some(first) = NOT_YET.iter().find(|word| first == **word) {
        complain(&format!("error: `tembuku {first}` is not supported yet\n"));
        return ExitCode::from(2);
    }
    let matches = <Cli as clap::CommandFactory>::command().get_matches();
    let file_was_named = matches.subcommand_matches("run").is_some_and(|run| {
        run.value_source("config") == Some(clap::parser::ValueSource::CommandLine)
    });
    let cli = match <Cli as clap::FromArgMatches>::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(e) => e.exit(),
    };
    match cli.command {
        Command::Demo => demo::run(),
        Command::Check { file, dump } => check::run(&file.config, dump),
        Command::Explain(args) => explain::run(&args),
        Command::Run(args) if args.listen.is_empty() => planned(config::load(&args.file.config)),
        Command::Run(_) if file_was_named => {
            complain(
                "error: -c FILE and --listen exclude each other: the file names its own listeners\n",
            );
            ExitCode::from(2)
        }
        Command::Run(args) => planned(config::from_flags(&Flags {
            listen: args.listen,
            to: args.to,
            udp: args.udp,
            balance: args.balance,
            admin: args.admin,
        })),
    }
}

fn planned(plan: Result<crate::plan::Plan, config::Problems>) -> ExitCode {
    match plan {
        Ok(plan) => run::run(plan),
        Err(problems) => {
            complain(&problems.to_string());
            ExitCode::FAILURE
        }
    }
}

/// To standard error; nobody listening there is no reason to fail.
fn complain(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

//! The command line: one file for each subcommand.

mod admin_sockets;
mod admin_state;
mod check;
mod client;
mod completions;
mod demo;
mod discover;
mod events;
mod explain;
mod foreign_words;
mod handover_formats;
pub(crate) mod import;
mod reload;
mod response;
mod run;
mod schema;
mod sessions;
mod status;
mod table;
mod terminate;
#[cfg(test)]
mod tests;
mod top;
mod upgrade;
mod weight;

use crate::{
    config::{self, Flags, text::shorten::shorten},
    control::upgrade::FILE_ONLY,
    plan::Plan,
    upstream::pool::AdminState,
};
use clap::{
    Args, Parser, Subcommand,
    error::{ContextKind, ContextValue, ErrorKind},
};
use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

/// What is shown of an error about the command line, which may quote a long argument.
const MOST_OF_USAGE: usize = 2_000;

/// At the end of the help.
const ABOUT: &str = "\
Begin with `tembuku demo`, or with a file: `tembuku check -c FILE`, `tembuku run -c FILE`.

Commands about a running process find it by the admin socket that its file names (-c FILE, or
$TEMBUKU_CONFIG, or /etc/tembuku/tembuku.toml), or by --socket PATH.

Exit codes: 0 success; 1 an invalid configuration or a failure; 2 wrong usage.";

#[derive(Debug, Parser)]
#[command(name = "tembuku", version, about, max_term_width = 100, after_help = ABOUT)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Try it: backends, listeners for TCP and UDP in front and the status page, all in this one
    /// process
    Demo,
    /// Serve, by a configuration file or by the flags alone
    Run(Run),
    /// Validate a configuration: every problem at once, with its place; and what would keep a start
    /// from opening its files here
    Check {
        #[command(flatten)]
        file: ConfigFile,
        /// Print the effective configuration with all defaults filled in
        #[arg(long)]
        dump: bool,
        /// Check every backend once, or connect to it where there is no check, and print what it
        /// answers; exit code 1 if one does not answer as it has to
        #[arg(long, conflicts_with = "dump")]
        probe: bool,
        /// Look at the file alone: not whether the folders, rights and users that it needs are
        /// there on this machine
        #[arg(long, conflicts_with = "probe", env = FILE_ONLY, hide_env = true)]
        file_only: bool,
    },
    /// Which backend a client would get, and why: by the configuration alone, no network is touched
    Explain(explain::Explain),
    /// Ask the source of an upstream's backends once, and print its answer
    Discover(discover::Arguments),
    /// Convert the configuration of another program
    Import(import::Import),
    /// Print the JSON Schema of the configuration, for editors
    Schema,
    /// Print a script that makes a shell complete commands of tembuku
    Completions(completions::Completions),
    /// Print the manual page, or write those of all commands
    Man(completions::Man),
    /// Listeners, upstreams and backends of a running process
    Status(status::Status),
    /// Live sessions of a running process: their clients, backends, age and bytes
    Sessions(sessions::Sessions),
    /// The last changes of backends of a running process
    Events(events::Arguments),
    /// Terminate sessions of a running process
    Kill(terminate::Kill),
    /// Terminate sessions of an upstream that are above the fair share of their backend, or where
    /// their key no longer leads, so that they spread again
    Rebalance(terminate::Rebalance),
    /// The live view of a running process in the terminal: states, rates of the last second,
    /// sessions, events, and keys that drain backends or set their weight
    Top(top::Arguments),
    /// Make a running process read its configuration file again: prints the changes, or every
    /// problem
    Reload(reload::Arguments),
    /// Replace a running process by one of the binary that is on disk now, under load: listeners
    /// and state go over to it
    Upgrade(upgrade::Arguments),
    /// Print the formats of what an upgrade hands over
    #[command(hide = true)]
    HandoverFormats,
    /// Give backends nothing new; checks continue, and sessions stay unless `on_drain` or
    /// --close-after ends them
    Drain(admin_state::Out),
    /// Let backends serve again
    Ready(admin_state::Ready),
    /// Give backends nothing new, and do not check them either; sessions stay unless `on_drain` or
    /// --close-after ends them
    #[command(mut_arg("node", |node| node.hide(true)))]
    Maint(admin_state::Out),
    /// Give a backend another weight than the file does, until the process ends
    Weight(weight::Arguments),
}

#[derive(Debug, Clone, Args)]
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
    #[arg(
        long,
        value_name = "ADDR",
        requires = "to",
        help = "Serve without a file: accept here (\"0.0.0.0:6379\", \"[::]:53\", \"unix:/path\")"
    )]
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
    let mut command = <Cli as clap::CommandFactory>::command();
    let matches = match command.try_get_matches_from_mut(std::env::args_os()) {
        Ok(matches) => matches,
        Err(usage) if usage.use_stderr() => return refuse(&with_whole_usage(usage, &mut command)),
        // Help or the version.
        Err(asked) => return code(written(asked.print())),
    };
    // The variable that names it, or the default, is no contradiction.
    let file_was_named = matches.subcommand().is_some_and(|(_, sub)| {
        let has_file = sub.try_contains_id("config").is_ok();
        has_file && sub.value_source("config") == Some(clap::parser::ValueSource::CommandLine)
    });
    let cli = match <Cli as clap::FromArgMatches>::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(e) => e.exit(),
    };
    match cli.command {
        Command::Demo => demo::run(),
        Command::Check {
            file, probe: true, ..
        } => check::probe(&file.config),
        Command::Check {
            file, dump: true, ..
        } => check::dump(&file.config),
        Command::Check {
            file, file_only, ..
        } => check::run(&file.config, file_only),
        Command::Explain(args) => explain::run(&args),
        Command::Discover(args) => discover::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Schema => schema::run(),
        Command::Completions(args) => completions::completions(&args),
        Command::Man(args) => completions::man(&args),
        Command::Status(status::Status { at, .. })
        | Command::Sessions(sessions::Sessions { at, .. })
        | Command::Events(events::Arguments { at, .. })
        | Command::Top(top::Arguments { at, .. })
        | Command::Weight(weight::Arguments { at, .. })
        | Command::Kill(terminate::Kill { at, .. })
        | Command::Rebalance(terminate::Rebalance { at, .. })
        | Command::Reload(reload::Arguments { at, .. })
        | Command::Upgrade(upgrade::Arguments { at, .. })
        | Command::Drain(admin_state::Out {
            which: admin_state::Which { at, .. },
            ..
        })
        | Command::Maint(admin_state::Out {
            which: admin_state::Which { at, .. },
            ..
        })
        | Command::Ready(admin_state::Ready {
            which: admin_state::Which { at, .. },
            ..
        }) if file_was_named && at.socket.is_some() => {
            complain(
                "error: -c FILE and --socket exclude each other: the file names its own socket\n",
            );
            ExitCode::from(2)
        }
        Command::Status(args) => status::run(&args),
        Command::Sessions(args) => sessions::run(&args),
        Command::Events(args) => events::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Kill(args) => terminate::kill(&args),
        Command::Rebalance(args) => terminate::rebalance(&args),
        Command::Reload(args) => reload::run(&args),
        Command::Upgrade(args) => upgrade::run(&args),
        Command::HandoverFormats => handover_formats::run(),
        Command::Drain(args) => admin_state::out(&args, AdminState::Drain),
        Command::Weight(args) => weight::run(&args),
        Command::Ready(args) => admin_state::ready(&args),
        Command::Maint(args) => admin_state::out(&args, AdminState::Maint),
        Command::Run(args) if args.listen.is_empty() => {
            let file = args.file.config;
            planned(config::load(&file), Some(file))
        }
        Command::Run(_) if file_was_named => {
            complain(
                "error: -c FILE and --listen exclude each other: the file names its own \
                 listeners\n",
            );
            ExitCode::from(2)
        }
        Command::Run(args) => {
            let flags = Flags {
                listen: args.listen,
                to: args.to,
                udp: args.udp,
                balance: args.balance,
                admin: args.admin,
            };
            planned(config::from_flags(&flags), None)
        }
    }
}

/// `file`: where the plan came from.
fn planned(plan: Result<Plan, config::Problems>, file: Option<PathBuf>) -> ExitCode {
    match plan {
        Ok(plan) => run::run(plan, file),
        Err(problems) => {
            complain(&problems.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Where an argument is missing, clap shows those that are there as if they were required, such as
/// the file that a variable names.
fn with_whole_usage(mut error: clap::Error, command: &mut clap::Command) -> clap::Error {
    let word = std::env::args_os().nth(1);
    let subcommand = word.and_then(|word| command.find_subcommand_mut(word));
    if let Some(subcommand) = subcommand
        && error.kind() == ErrorKind::MissingRequiredArgument
    {
        let usage = ContextValue::StyledStr(subcommand.render_usage());
        error.insert(ContextKind::Usage, usage);
    }
    // No name begins with a dash: the tip to write an unknown option after `--` leads nowhere.
    if error.kind() == ErrorKind::UnknownArgument
        && let Some(ContextValue::StyledStrs(tips)) = error.get(ContextKind::Suggested)
    {
        let useful = tips.iter().filter(|tip| !tip.to_string().contains("'-- "));
        let useful: Vec<_> = useful.cloned().collect();
        let useful = match useful.is_empty() {
            true => ContextValue::None,
            false => ContextValue::StyledStrs(useful),
        };
        error.insert(ContextKind::Suggested, useful);
    }
    error
}

/// A command line that is not understood.
fn refuse(usage: &clap::Error) -> ExitCode {
    if let Some(word) = unknown_command(usage)
        && let Some(advice) = foreign_words::find(&arguments())
    {
        complain(&format!(
            "error: there is no command {word:?}\n  hint: {advice}\n"
        ));
        return ExitCode::from(2);
    }
    if let Some(hint) = hint_for_status(usage) {
        complain(&hint);
        return ExitCode::from(2);
    }
    let text = usage.render().to_string();
    let is_file = names_a_file(usage);
    // Of a command without arguments the error is its help, whole.
    let is_help = usage.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if is_help || text.len() <= MOST_OF_USAGE && !is_file {
        usage.exit();
    }
    complain(&shorten(&text, MOST_OF_USAGE));
    if is_file {
        complain("\n  tip: a configuration file is named by -c FILE\n");
    }
    ExitCode::from(2)
}

/// The word in the place of the command that is none, or an option in its place.
fn unknown_command(usage: &clap::Error) -> Option<String> {
    let word = match usage.kind() {
        ErrorKind::InvalidSubcommand => usage.get(ContextKind::InvalidSubcommand),
        ErrorKind::UnknownArgument => usage.get(ContextKind::InvalidArg),
        _ => None,
    };
    let first = std::env::args_os().nth(1)?;
    match word {
        Some(ContextValue::String(word)) if *word.as_str() == *first => Some(word.clone()),
        _ => None,
    }
}

fn arguments() -> Vec<String> {
    let arguments = std::env::args_os().skip(1);
    arguments
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect()
}

/// `tembuku status` shows everything, once: for one upstream or again and again there is another
/// command.
fn hint_for_status(usage: &clap::Error) -> Option<String> {
    let Some(ContextValue::String(word)) = usage.get(ContextKind::InvalidArg) else {
        return None;
    };
    if usage.kind() != ErrorKind::UnknownArgument
        || names_a_file(usage)
        || arguments()
            .first()
            .is_none_or(|command| command != "status")
    {
        return None;
    }
    let hint = match word.as_str() {
        "-w" | "--watch" | "-f" | "--follow" => {
            "`tembuku top` is the live view, `tembuku events --follow` prints changes".to_owned()
        }
        option if option.starts_with('-') => return None,
        name => format!(
            "it shows all upstreams; `tembuku top --filter {name}` shows what has this in its \
             name, `tembuku status --json` is for scripts"
        ),
    };
    Some(format!(
        "error: `tembuku status` has no argument {word:?}\n  hint: {hint}\n"
    ))
}

/// Whether an argument that is not understood looks like a configuration file.
fn names_a_file(usage: &clap::Error) -> bool {
    let is_file = |value: &ContextValue| {
        matches!(value, ContextValue::String(text)
            if Path::new(text).extension().is_some_and(|end| end == "toml" || end == "conf"))
    };
    let argument = usage.get(ContextKind::InvalidArg);
    usage.kind() == ErrorKind::UnknownArgument && argument.is_some_and(is_file)
}

/// To standard error; a closed one is no reason to fail.
fn complain(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// To standard output. The error is a whole message.
fn print(text: &str) -> Result<(), String> {
    written(io::stdout().lock().write_all(text.as_bytes()))
}

/// What became of writing to standard output, once the rest of it is written. A reader that has
/// seen enough, as `head` has, is no failure.
fn written(result: io::Result<()>) -> Result<(), String> {
    match result.and_then(|()| io::stdout().lock().flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(format!("error: cannot write to standard output: {e}\n"))
        }
        _ => Ok(()),
    }
}

/// Complains about an error.
fn code(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            complain(&why);
            ExitCode::FAILURE
        }
    }
}

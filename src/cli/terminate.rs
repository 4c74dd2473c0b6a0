//! `tembuku kill` and `tembuku rebalance`: terminations that last as long as the command.

use super::{
    client::{AdminClient, At},
    code, complain, print,
    sessions::{Filters, reason},
    table::{Row, table, terminal_width},
};
use crate::{
    cli::response::{self, clean},
    config::parse_rate,
    plan::counted,
    sys::mutex::Mutex,
};
use clap::Args;
use serde_json::{Map, Value, json};
use std::{
    io::{self, IsTerminal as _},
    process::ExitCode,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// From one line about progress to the next.
const INTERVAL: Duration = Duration::from_secs(1);
/// As a shell has it of a program that INT has ended.
const INTERRUPTED: i32 = 130;

#[derive(Debug, Args)]
pub(super) struct Kill {
    #[command(flatten)]
    filters: Filters,
    /// Every session of the process
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    pub(super) at: At,
}

#[derive(Debug, Args)]
pub(super) struct Rebalance {
    /// The upstream
    upstream: String,
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    pub(super) at: At,
}

#[derive(Debug, Args)]
struct How {
    /// Print what would be terminated, and terminate nothing
    #[arg(long)]
    dry_run: bool,
    /// Terminate no more than this ("10/s", "30/m"); without it 2,000 a second, which is the
    /// most for all terminations of the process together
    #[arg(long, value_name = "N/s", value_parser = rate)]
    rate: Option<String>,
}

fn rate(text: &str) -> Result<String, String> {
    parse_rate(text).map(|_| text.to_owned()).map_err(reason)
}

/// Shows progress on a terminal, where its reader waits, and what was done when Ctrl-C ends the
/// command.
struct Progress {
    is_shown: bool,
    next: Instant,
    /// How many are terminated, and of how many.
    reported: Arc<Mutex<(u64, u64)>>,
}

impl Progress {
    fn new() -> Self {
        let reported = Arc::default();
        let of_interrupt = Arc::clone(&reported);
        // Where there is no thread for it, Ctrl-C ends the command without a word.
        let _ = thread::Builder::new().spawn(move || report_interrupt(&of_interrupt));
        Self {
            is_shown: io::stderr().is_terminal(),
            next: Instant::now() + INTERVAL,
            reported,
        }
    }

    fn show(&mut self, terminated: u64, of: u64) {
        *self.reported.lock() = (terminated, of);
        if self.is_shown && Instant::now() >= self.next {
            self.next = Instant::now() + INTERVAL;
            complain(&format!("terminated {terminated} of {of}\n"));
        }
    }
}

/// Waits for Ctrl-C, and ends the command with it: the process then terminates no more.
fn report_interrupt(reported: &Mutex<(u64, u64)>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let Ok(runtime) = runtime else { return };
    if runtime.block_on(tokio::signal::ctrl_c()).is_err() {
        return;
    }
    let (terminated, of) = *reported.lock();
    complain(&format!(
        "stopped: terminated {terminated} of {}, the others stay\n  hint: the log of the process \
         also counts those of the last moment\n",
        counted(of, "session")
    ));
    std::process::exit(INTERRUPTED);
}

pub(super) fn kill(args: &Kill) -> ExitCode {
    if args.filters.is_empty() != args.all {
        complain(match args.all {
            true => "error: --all and filters exclude each other\n",
            false => {
                "error: without a filter every session would be terminated\n  hint: name filters, \
                 or --all\n"
            }
        });
        return ExitCode::from(2);
    }
    let client = args
        .filters
        .check()
        .and_then(|()| AdminClient::find(&args.at));
    code(client.and_then(|client| run_kill(args, &client)))
}

fn run_kill(args: &Kill, client: &AdminClient) -> Result<(), String> {
    let fields = args.filters.fields().into_iter();
    let fields = fields.map(|(name, value)| (name.to_owned(), Value::from(value)));
    let mut fields: Map<String, Value> = fields.collect();
    fields.insert("all".to_owned(), args.all.into());
    let body = args.how.add_to(fields);
    let mut lines = client.lines("POST", "/api/v1/sessions/kill", &body)?;
    let mut progress = Progress::new();
    loop {
        let line: response::Kill = lines.read()?;
        if !line.done {
            progress.show(line.terminated, line.matched);
            continue;
        }
        if args.how.dry_run {
            let count = counted(line.matched, "session");
            return print(&format!("{count} would be terminated (dry run)\n"));
        }
        print(&format!(
            "terminated {}\n",
            counted(line.terminated, "session")
        ))?;
        return check_pending(line.pending);
    }
}

pub(super) fn rebalance(args: &Rebalance) -> ExitCode {
    code(AdminClient::find(&args.at).and_then(|client| run_rebalance(args, &client)))
}

fn run_rebalance(args: &Rebalance, client: &AdminClient) -> Result<(), String> {
    let mut fields = Map::new();
    fields.insert("upstream".to_owned(), json!(args.upstream));
    let body = args.how.add_to(fields);
    let mut lines = client.lines("POST", "/api/v1/rebalance", &body)?;
    let mut progress = Progress::new();
    loop {
        let line: response::Rebalance = lines.read()?;
        if !line.done {
            progress.show(line.terminated, line.wanted);
            continue;
        }
        print(&shares(&line))?;
        if args.how.dry_run {
            let count = counted(line.wanted, "session");
            return print(&format!("\n{count} would be terminated (dry run)\n"));
        }
        print(&format!(
            "\nterminated {}\n",
            counted(line.terminated, "session")
        ))?;
        if line.backends_changed {
            return Err(
                "error: stopped, since other backends take sessions than at the beginning\n  hint: \
                 run it again\n"
                    .to_owned(),
            );
        }
        return check_pending(line.pending);
    }
}

impl How {
    /// The body of a request.
    fn add_to(&self, mut fields: Map<String, Value>) -> String {
        fields.insert("dry_run".to_owned(), self.dry_run.into());
        fields.insert("rate".to_owned(), self.rate.clone().into());
        Value::Object(fields).to_string()
    }
}

fn shares(line: &response::Rebalance) -> String {
    let mut rows = vec![Row::of(["backend"], ["before", "target", "now"], [""; 0])];
    rows.extend(line.backends.iter().map(|share| {
        let (name, address) = (clean(&share.backend), clean(&share.backend_addr));
        let name = match name == address {
            true => name,
            false => format!("{name} ({address})"),
        };
        let figures = [share.before, share.target, share.now];
        Row::of([name], figures.map(|n| n.to_string()), [""; 0])
    }));
    table(&rows, terminal_width())
}

fn check_pending(pending: u64) -> Result<(), String> {
    match pending {
        0 => Ok(()),
        n => Err(format!(
            "error: {} of them {} not ended yet\n  hint: `tembuku sessions` shows them as \
             closing\n",
            n,
            if n == 1 { "has" } else { "have" }
        )),
    }
}

//! `tembuku top`: listeners, backends, sessions and events of a running process in the terminal,
//! refreshed every second.

mod feed;
mod keys;
mod lists;
mod once;
mod screen;
mod terminal;
#[cfg(test)]
mod tests;
mod ui;

use super::{
    client::{AdminClient, At},
    code, complain,
};
use clap::{Args, ValueEnum};
use feed::{Feed, Update};
use keys::Key;
use screen::Colours;
use std::{
    io::{self, IsTerminal as _},
    process::ExitCode,
};
use terminal::Terminal;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use ui::{Effect, Ui};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Print it once, as plain text, and end; for scripts, and where there is no terminal. Rates
    /// are those of the last five seconds, "-" in the first five of the process
    #[arg(long)]
    once: bool,
    /// What is shown first
    #[arg(long, value_enum, default_value_t = View::Backends)]
    view: View,
    /// Only what has all these words in its name, state or reason
    #[arg(long, value_name = "WORDS", default_value = "")]
    filter: String,
    #[arg(
        long,
        value_enum,
        default_value_t = Sort::File,
        help = "The order; figures: the largest first"
    )]
    sort: Sort,
    /// Only what is not well
    #[arg(long)]
    unwell: bool,
    #[command(flatten)]
    pub(super) at: At,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum View {
    Backends,
    Listeners,
    Sessions,
    Events,
    Upstreams,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sort {
    /// As in the configuration; of sessions: the oldest first
    File,
    /// The worst first
    State,
    Sessions,
    /// Connects per second
    Connects,
    /// Bytes per second in both directions
    Bytes,
    /// Errors per second
    Errors,
}

impl View {
    const ALL: [Self; 5] = [
        Self::Backends,
        Self::Listeners,
        Self::Sessions,
        Self::Events,
        Self::Upstreams,
    ];

    fn word(self) -> &'static str {
        match self {
            Self::Backends => "backends",
            Self::Listeners => "listeners",
            Self::Sessions => "sessions",
            Self::Events => "events",
            Self::Upstreams => "upstreams",
        }
    }

    /// Of all views, the one after this.
    fn next(self) -> Self {
        Self::ALL[(self as usize + 1) % Self::ALL.len()]
    }
}

impl Sort {
    fn word(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::State => "state",
            Self::Sessions => "sessions",
            Self::Connects => "connects",
            Self::Bytes => "bytes",
            Self::Errors => "errors",
        }
    }

    fn next(self) -> Self {
        match self {
            Self::File => Self::State,
            Self::State => Self::Sessions,
            Self::Sessions => Self::Connects,
            Self::Connects => Self::Bytes,
            Self::Bytes => Self::Errors,
            Self::Errors => Self::File,
        }
    }
}

pub(super) fn run(args: &Arguments) -> ExitCode {
    let client = match AdminClient::find(&args.at) {
        Ok(client) => client,
        Err(why) => {
            complain(&why);
            return ExitCode::FAILURE;
        }
    };
    let ui = Ui::new(args.view, args.sort, &args.filter, args.unwell);
    if args.once {
        return code(once::show(&client, ui));
    }
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    if is_dumb || !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        complain("error: this needs a terminal\n  hint: --once prints it once, as plain text\n");
        return ExitCode::from(2);
    }
    // An error is shown by a command that has not changed the terminal.
    if let Err(why) = client.status() {
        complain(&why);
        return ExitCode::FAILURE;
    }
    match show(client, ui) {
        Ok(code) => code,
        Err(why) => {
            complain(&format!("error: {why}\n"));
            ExitCode::FAILURE
        }
    }
}

/// What the loop waits for.
enum Event {
    Key(Option<Key>),
    Update(Option<Update>),
    Resize,
    /// A signal that ends the program.
    Signal(u8),
}

fn show(client: AdminClient, mut ui: Ui) -> io::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        let mut resized = signal(SignalKind::window_change())?;
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        let mut hup = signal(SignalKind::hangup())?;
        let mut quit = signal(SignalKind::quit())?;
        let colours = Colours::of_environment();
        let (mut feed, mut updates) = Feed::start(client, ui.wants())?;
        let mut terminal = Terminal::enter()?;
        let mut keys = keys::read()?;
        let mut frame = screen::Frame::default();
        loop {
            let size = terminal.size();
            ui.fit(size);
            terminal.write(&frame.draw(&ui.lines(size), colours))?;
            let event = tokio::select! {
                key = keys.recv() => Event::Key(key),
                update = updates.recv() => Event::Update(update),
                _ = resized.recv() => Event::Resize,
                _ = term.recv() => Event::Signal(15),
                _ = int.recv() => Event::Signal(2),
                _ = hup.recv() => Event::Signal(1),
                _ = quit.recv() => Event::Signal(3),
            };
            let effect = match event {
                // The terminal is gone.
                Event::Key(None) => Effect::Quit,
                Event::Key(Some(key)) => ui.press(key),
                Event::Update(Some(update)) => {
                    ui.update(update);
                    Effect::None
                }
                Event::Update(None) => {
                    return Err(io::Error::other(
                        "the thread that asks the process has ended",
                    ));
                }
                Event::Resize => Effect::Redraw,
                Event::Signal(number) => return Ok(ExitCode::from(128 + number)),
            };
            match effect {
                Effect::None => feed.want(ui.wants()),
                Effect::Order(order) => feed.order(order),
                Effect::Redraw => frame = screen::Frame::default(),
                Effect::Suspend => {
                    terminal.suspend()?;
                    frame = screen::Frame::default();
                }
                Effect::Quit => return Ok(ExitCode::SUCCESS),
            }
        }
    })
}

/// Channels between threads that have nothing else to say to each other.
fn channel<T>() -> (mpsc::UnboundedSender<T>, mpsc::UnboundedReceiver<T>) {
    mpsc::unbounded_channel()
}

//! The log, on standard error.

use crate::{
    plan::{LogFormat, LogLevel},
    telemetry::line_writer::{Destination, Lines},
};
use std::io::{self, IsTerminal};
use tracing_subscriber::{filter::LevelFilter, fmt::MakeWriter};

/// The writer of the log, to be flushed at the end.
pub struct Log(Option<Lines>);

impl Log {
    /// Writes text that is no event, after the events before it. A reader that has stalled is not
    /// waited for.
    pub fn write(&self, text: &str) {
        match &self.0 {
            Some(lines) => lines.write(text.as_bytes().to_vec()),
            None => {
                let _ = io::Write::write_all(&mut io::stderr().lock(), text.as_bytes());
            }
        }
    }

    pub fn flush(&self) {
        if let Some(lines) = &self.0 {
            lines.flush();
        }
    }
}

/// Sets the process's log up; a second call changes nothing.
pub fn init(level: LogLevel, format: LogFormat) -> Log {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let terminal = io::stderr().is_terminal();
    let text = match format {
        LogFormat::Auto => terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    // Without a thread for it there is no log, and the traffic goes on.
    let Ok(lines) = Lines::open(Destination::Stderr) else {
        return Log(None);
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        // A log that cannot be written is no reason for a panic.
        .log_internal_errors(false)
        .with_writer(Writer(lines.clone()));
    let _ = if text {
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        builder.with_ansi(colour).try_init()
    } else {
        builder.json().flatten_event(true).try_init()
    };
    Log(Some(lines))
}

struct Writer(Lines);

impl<'a> MakeWriter<'a> for Writer {
    type Writer = Event<'a>;

    fn make_writer(&'a self) -> Event<'a> {
        Event(&self.0)
    }
}

/// One event is written in one piece.
struct Event<'a>(&'a Lines);

impl io::Write for Event<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

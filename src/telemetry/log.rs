//! The log, on standard error.

use crate::{
    plan::{LogFormat, LogLevel},
    telemetry::line_writer::{Destination, Lines},
};
use std::{
    fmt,
    io::{self, IsTerminal},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};
use tracing::{Event as Record, Subscriber};
use tracing_subscriber::{
    Registry,
    filter::LevelFilter,
    fmt::{
        FmtContext, MakeWriter,
        format::{Format, FormatEvent, FormatFields, Full, Json, Writer as Text},
    },
    layer::SubscriberExt as _,
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt as _,
};

/// Of the log of the process, once it is set up.
static FILTER: OnceLock<reload::Handle<LevelFilter, Registry>> = OnceLock::new();
static IS_TEXT: AtomicBool = AtomicBool::new(true);

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
    // Without a thread for it there is no log, and the traffic goes on.
    let Ok(lines) = Lines::open(Destination::Stderr) else {
        return Log(None);
    };
    let terminal = io::stderr().is_terminal();
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let (filter, handle) = reload::Layer::new(filter(level));
    let output = tracing_subscriber::fmt::layer()
        .event_format(EitherFormat::default())
        .with_ansi(colour)
        // A log that cannot be written is no reason for a panic.
        .log_internal_errors(false)
        .with_writer(Writer(lines.clone()));
    IS_TEXT.store(is_text(format), Relaxed);
    let log = tracing_subscriber::registry().with(filter).with(output);
    if log.try_init().is_ok() {
        // It is set once, as the log is.
        let _ = FILTER.set(handle);
    }
    Log(Some(lines))
}

/// Changes what is logged from now on, and how. Nothing if there is no log.
pub fn set(level: LogLevel, format: LogFormat) {
    IS_TEXT.store(is_text(format), Relaxed);
    if let Some(handle) = FILTER.get() {
        // An error would be that there is no log any more.
        let _ = handle.reload(filter(level));
    }
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

fn is_text(format: LogFormat) -> bool {
    match format {
        LogFormat::Auto => io::stderr().is_terminal(),
        LogFormat::Text => true,
        LogFormat::Json => false,
    }
}

/// The format that is set at the moment.
struct EitherFormat {
    text: Format<Full>,
    json: Format<Json>,
}

impl Default for EitherFormat {
    fn default() -> Self {
        let text = Format::default().with_target(false);
        Self {
            json: text.clone().json().flatten_event(true),
            text,
        }
    }
}

impl<S, N> FormatEvent<S, N> for EitherFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        to: Text<'_>,
        event: &Record<'_>,
    ) -> fmt::Result {
        match IS_TEXT.load(Relaxed) {
            true => self.text.format_event(context, to, event),
            false => self.json.format_event(context, to, event),
        }
    }
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

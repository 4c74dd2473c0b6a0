//! One record a session, handed to a writer thread through a bounded queue: a disk that stalls costs
//! records, which are counted, and never a session.

use crate::metrics::ProcessMetrics;
use serde::Serialize;
use std::{
    fmt::Write as _,
    fs::{File, OpenOptions},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    thread::JoinHandle,
    time::SystemTime,
};

/// Records that may wait for the writer.
const QUEUE: usize = 8192;

/// Times are in seconds; the names are those of nginx's stream variables where it has them.
#[derive(Debug, Serialize)]
pub struct Record<'a> {
    pub time: String,
    pub listener: &'a str,
    pub protocol: &'a str,
    pub remote_addr: String,
    pub remote_port: Option<u16>,
    pub proxy_protocol_addr: Option<String>,
    pub upstream: &'a str,
    pub backend: Option<&'a str>,
    pub attempts: Vec<Attempt<'a>>,
    pub connect_time: Option<f64>,
    pub first_byte_time: Option<f64>,
    pub session_time: f64,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub close_reason: &'a str,
}

#[derive(Debug, Serialize)]
pub struct Attempt<'a> {
    pub backend: &'a str,
    pub result: &'a str,
    pub connect_time: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

#[derive(Debug, Clone)]
pub enum Destination {
    Stdout,
    File(PathBuf),
}

pub struct AccessLog {
    queue: SyncSender<Message>,
    format: Format,
    metrics: Arc<ProcessMetrics>,
}

/// Waits, when asked to, until everything queued has been written.
pub struct Writer {
    thread: JoinHandle<()>,
}

enum Message {
    Line(String),
    Reopen,
    End,
}

impl AccessLog {
    pub fn open(
        destination: Destination,
        format: Format,
        metrics: Arc<ProcessMetrics>,
    ) -> io::Result<(Self, Writer)> {
        let output = Output::open(destination)?;
        let (queue, messages) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_all(output, &messages))?;
        let log = Self {
            queue,
            format,
            metrics,
        };
        Ok((log, Writer { thread }))
    }

    pub fn record(&self, record: &Record<'_>) {
        let line = match self.format {
            Format::Json => serde_json::to_string(record).unwrap_or_default(),
            Format::Text => text(record),
        };
        if self.queue.try_send(Message::Line(line)).is_err() {
            self.metrics.access_log_dropped.add(1);
        }
    }

    /// The file has been moved away: write to a new one of the same name.
    pub fn reopen(&self) {
        let _ = self.queue.send(Message::Reopen);
    }

    /// No more records will come.
    pub fn end(&self) {
        let _ = self.queue.send(Message::End);
    }
}

impl Writer {
    pub fn join(self) {
        let _ = self.thread.join();
    }
}

pub fn now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

fn text(r: &Record<'_>) -> String {
    let mut line = format!("{} {} {} {}", r.time, r.listener, r.protocol, r.remote_addr);
    if let Some(port) = r.remote_port {
        let _ = write!(line, " {port}");
    }
    let _ = write!(
        line,
        " -> {} {} {} session_time={:.6} bytes_received={} bytes_sent={}",
        r.upstream,
        r.backend.unwrap_or("-"),
        r.close_reason,
        r.session_time,
        r.bytes_received,
        r.bytes_sent
    );
    for (name, value) in [
        ("connect_time", r.connect_time),
        ("first_byte_time", r.first_byte_time),
    ] {
        if let Some(value) = value {
            let _ = write!(line, " {name}={value:.6}");
        }
    }
    if r.attempts.len() > 1 || r.backend.is_none() {
        line.push_str(" attempts=");
        for (i, a) in r.attempts.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let _ = write!(
                line,
                "{comma}{}:{}:{:.6}",
                a.backend, a.result, a.connect_time
            );
        }
    }
    line
}

fn write_all(mut output: Output, messages: &Receiver<Message>) {
    loop {
        let message = match messages.try_recv() {
            Ok(message) => message,
            Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) => {
                output.flush();
                match messages.recv() {
                    Ok(message) => message,
                    Err(_) => return,
                }
            }
        };
        match message {
            Message::Line(line) => output.line(&line),
            Message::Reopen => output.reopen(),
            Message::End => return output.flush(),
        }
    }
}

struct Output {
    destination: Destination,
    to: BufWriter<Box<dyn Write + Send>>,
    complained: bool,
}

impl Output {
    fn open(destination: Destination) -> io::Result<Self> {
        let to: Box<dyn Write + Send> = match &destination {
            Destination::Stdout => Box::new(io::stdout()),
            Destination::File(path) => Box::new(append(path)?),
        };
        Ok(Self {
            destination,
            to: BufWriter::new(to),
            complained: false,
        })
    }

    fn line(&mut self, line: &str) {
        let written = writeln!(self.to, "{line}");
        self.check(written);
    }

    fn flush(&mut self) {
        let flushed = self.to.flush();
        self.check(flushed);
    }

    fn reopen(&mut self) {
        self.flush();
        match Self::open(self.destination.clone()) {
            Ok(new) => *self = new,
            Err(error) => {
                tracing::error!(%error, "cannot reopen the access log, keeping the old file")
            }
        }
    }

    /// A full disk is told of once, not once a session.
    fn check(&mut self, result: io::Result<()>) {
        match result {
            Ok(()) => self.complained = false,
            Err(error) if !self.complained => {
                self.complained = true;
                tracing::error!(%error, "cannot write the access log");
            }
            Err(_) => {}
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

//! One record for each session, and for each client that is refused.

use crate::{
    sys::mutex::Mutex,
    telemetry::{
        line_writer::{Destination, Lines},
        metrics::{Transfer, Visitor},
    },
};
use serde::Serialize;
use std::{
    fmt::Write as _,
    io,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::SystemTime,
};

/// Times are in seconds; the names are those of nginx's stream variables where it has them.
#[derive(Debug, Serialize)]
pub struct AccessRecord<'a> {
    pub time: String,
    /// Its number; `None` of a client that was refused before it was a session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<u64>,
    pub listener: &'a str,
    pub protocol: &'a str,
    pub remote_addr: String,
    pub remote_port: Option<u16>,
    /// The client that a PROXY protocol header named.
    pub proxy_protocol_addr: Option<String>,
    /// The peer of the connection, where the header named another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub realip_remote_addr: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub realip_remote_port: Option<u16>,
    pub upstream: &'a str,
    pub backend: Option<&'a str>,
    /// The address behind a host name.
    pub backend_addr: Option<String>,
    /// Our own port towards it: what the backend's log shows as the port of its client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_port: Option<u16>,
    pub attempts: Vec<AttemptRecord<'a>>,
    pub connect_time: Option<f64>,
    /// Of a session that has waited for a backend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_time: Option<f64>,
    pub first_byte_time: Option<f64>,
    pub session_time: f64,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    /// Of a flow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datagrams_received: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datagrams_sent: Option<u64>,
    pub close_reason: &'a str,
}

/// The result of the attempt of a flow to which its backend owed replies, and sent none.
pub const NO_REPLY: &str = "no_reply";

#[derive(Debug, Serialize)]
pub struct AttemptRecord<'a> {
    pub backend: &'a str,
    pub backend_addr: String,
    pub result: &'a str,
    pub connect_time: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

pub struct AccessLogWriter {
    lines: Lines,
    destination: Destination,
    format: Format,
}

/// The access logs that are open: that of the plan in effect, and those that sessions began with.
#[derive(Default)]
pub struct AccessLogs {
    open: Mutex<Vec<Weak<AccessLogWriter>>>,
    /// Records that were not written, also of logs that are closed by now.
    dropped: Arc<AtomicU64>,
}

impl AccessLogs {
    /// One that is open already is shared, and its file opened again by its name. A file may hang:
    /// call it by [`crate::sys::blocking`].
    pub fn open(
        &self,
        destination: Destination,
        format: Format,
    ) -> io::Result<Arc<AccessLogWriter>> {
        let is_it =
            |log: &&Arc<AccessLogWriter>| log.destination == destination && log.format == format;
        if let Some(log) = self.all().iter().find(is_it) {
            log.lines.reopen();
            return Ok(Arc::clone(log));
        }
        let lines = Lines::open_counting(destination.clone(), Arc::clone(&self.dropped))?;
        let log = Arc::new(AccessLogWriter {
            lines,
            destination,
            format,
        });
        let mut open = self.open.lock();
        open.retain(|log| log.strong_count() > 0);
        open.push(Arc::downgrade(&log));
        Ok(log)
    }

    /// Writes to new files of the same names: the old ones have been moved away.
    pub fn reopen(&self) {
        self.all().iter().for_each(|log| log.lines.reopen());
    }

    /// Waits until all records so far have been written, but not for a writer that is stuck.
    pub fn flush(&self) {
        self.all().iter().for_each(|log| log.lines.flush());
    }

    /// Records that have still to be written.
    pub fn pending(&self) -> u64 {
        self.all().iter().map(|log| log.lines.pending()).sum()
    }

    /// Records that were not written.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    fn all(&self) -> Vec<Arc<AccessLogWriter>> {
        self.open.lock().iter().filter_map(Weak::upgrade).collect()
    }
}

impl Transfer for AccessLogs {
    fn visit(&self, visitor: &mut dyn Visitor) {
        let add = |n| {
            self.dropped.fetch_add(n, Relaxed);
        };
        visitor.count("dropped", self.dropped(), &add);
    }
}

impl AccessLogWriter {
    pub fn record(&self, record: &AccessRecord<'_>) {
        let mut line = match self.format {
            Format::Json => serde_json::to_string(record).unwrap_or_default(),
            Format::Text => text(record),
        };
        line.push('\n');
        self.lines.write(line.into_bytes());
    }
}

pub fn now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

fn text(r: &AccessRecord<'_>) -> String {
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
        ("datagrams_received", r.datagrams_received),
        ("datagrams_sent", r.datagrams_sent),
    ] {
        if let Some(value) = value {
            let _ = write!(line, " {name}={value}");
        }
    }
    if let Some(id) = r.session {
        let _ = write!(line, " session={id}");
    }
    if let Some(address) = &r.backend_addr {
        let _ = write!(line, " backend_addr={address}");
    }
    if let Some(port) = r.backend_port {
        let _ = write!(line, " backend_port={port}");
    }
    if let Some(peer) = &r.realip_remote_addr {
        let _ = write!(line, " realip_remote_addr={peer}");
    }
    if let Some(port) = r.realip_remote_port {
        let _ = write!(line, " realip_remote_port={port}");
    }
    for (name, value) in [
        ("connect_time", r.connect_time),
        ("queue_time", r.queue_time),
        ("first_byte_time", r.first_byte_time),
    ] {
        if let Some(value) = value {
            let _ = write!(line, " {name}={value:.6}");
        }
    }
    if r.attempts.len() > 1 || (r.backend.is_none() && !r.attempts.is_empty()) {
        line.push_str(" attempts=");
        for (i, a) in r.attempts.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let _ = write!(line, "{comma}{}", a.backend);
            if a.backend_addr != a.backend {
                let _ = write!(line, "({})", a.backend_addr);
            }
            let _ = write!(line, ":{}:{:.6}", a.result, a.connect_time);
        }
    }
    line
}

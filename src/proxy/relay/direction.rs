//! One direction of a session.

use super::FirstBytes;
use crate::{
    plan::reason::{self, ConnectError, SpliceFallback},
    proxy_protocol::Watch,
    runtime::executor::{self, Received, Stream},
    sys::{self, pipe::Pipe},
    telemetry::metrics::{Counter, RelayCounts},
};
use std::{
    cell::Cell,
    io,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::{Poll, ready},
    time::Instant,
};

/// A read of at least this much is large: one of a sustained transfer.
const LARGE: usize = 64 * 1024;
/// Large reads in a row after which a direction splices.
const LARGE_READS: u8 = 2;
/// Reads below half of `LARGE` in a row after which it copies again.
const SMALL_READS: u8 = 2;
/// Full pipes in a row after which it gets a larger one, if there is one.
const FULL_PIPES: u8 = 4;
/// A read of no more than this is written at the end of the turn, together with those of other
/// sessions.
const DEFERRED: usize = 20 * 1024;
/// Reads in one poll, before other tasks run.
const ROUNDS: usize = 4;

#[derive(Debug, Default)]
pub(super) struct Direction {
    held: Held,
    mode: Mode,
    end: End,
    /// The end was passed on, or the sink is gone.
    pub(super) finished: bool,
    /// A byte was read.
    pub(super) has_begun: bool,
    /// The last poll ended waiting for the sink.
    is_blocked: bool,
    /// It is over before a direction can splice: only what is copied needs to be checked.
    watch: Watch,
}

/// What was read and could not be written at once. An idle direction holds nothing.
#[derive(Debug, Default)]
enum Held {
    #[default]
    Nothing,
    Bytes(Box<Rest>),
    /// The sink writes it at the end of the turn.
    Deferred,
    Piped(Pipe),
    First(Box<FirstBytes>),
}

/// In a box, since an idle direction holds nothing.
#[derive(Debug)]
struct Rest {
    bytes: Vec<u8>,
    at: usize,
}

impl Held {
    fn bytes(bytes: Vec<u8>) -> Self {
        Self::Bytes(Box::new(Rest { bytes, at: 0 }))
    }
}

#[derive(Debug, Clone, Copy)]
enum Mode {
    /// `large`: how many reads in a row were.
    Copy { large: u8 },
    /// The kernel refused to splice one of the two sockets.
    CopyOnly,
    /// `full`: how many pipes in a row were.
    Splice { full: u8 },
    /// `small`: how many reads in a row were.
    SpliceSmall { small: u8 },
}

impl Default for Mode {
    fn default() -> Self {
        Self::Copy { large: 0 }
    }
}

impl Mode {
    /// The mode after a read of so many bytes. It takes more than one read to change it, either
    /// way.
    fn after(self, bytes: usize) -> Self {
        match self {
            Self::CopyOnly => Self::CopyOnly,
            Self::Copy { .. } if bytes < LARGE => Self::Copy { large: 0 },
            Self::Copy { large } if large + 1 < LARGE_READS => Self::Copy { large: large + 1 },
            Self::Copy { .. } => Self::Splice { full: 0 },
            Self::Splice { full } if bytes >= LARGE / 2 => Self::Splice { full },
            Self::SpliceSmall { .. } if bytes >= LARGE / 2 => Self::Splice { full: 0 },
            Self::Splice { .. } => Self::SpliceSmall { small: 1 },
            Self::SpliceSmall { small } if small + 1 < SMALL_READS => {
                Self::SpliceSmall { small: small + 1 }
            }
            Self::SpliceSmall { .. } => Self::Copy { large: 0 },
        }
    }

    fn copies(self) -> bool {
        match self {
            Self::Copy { .. } | Self::CopyOnly => true,
            Self::Splice { .. } | Self::SpliceSmall { .. } => false,
        }
    }
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum End {
    #[default]
    Open,
    Clean,
    Reset,
    /// The source began a PROXY protocol header that it may not send; nothing of it is passed on.
    Refused,
    /// Nothing more is read, since the session ends with the other side's end.
    Stopped,
}

/// The stream that no longer works.
#[derive(Debug, Clone, Copy)]
pub(super) enum Broken {
    Source(Cause),
    Sink(Cause),
}

/// How a connection broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    Reset,
    /// The peer's host did not answer the kernel in time.
    TimedOut,
}

impl Cause {
    fn of(error: &io::Error) -> Self {
        match reason::Cause::of(error).word {
            // The kernel keeps what a router reported of an established connection, and returns it
            // when time has run out.
            ConnectError::Timeout | ConnectError::Unreachable | ConnectError::Prohibited => {
                Self::TimedOut
            }
            _ => Self::Reset,
        }
    }
}

/// What a direction needs to know and count at each poll.
pub(super) struct DirectionContext<'a> {
    pub(super) read: &'a Counter,
    pub(super) written: &'a Counter,
    pub(super) client_bytes_read: Option<&'a AtomicU64>,
    pub(super) client_bytes_written: Option<&'a AtomicU64>,
    pub(super) relayed: &'a RelayCounts,
    pub(super) moved: &'a Cell<bool>,
    pub(super) now: Instant,
    /// A write to the source failed: its end, when it comes, is that of a reset.
    pub(super) source_is_broken: bool,
    /// The session ends with this end: closing the connection says what a shutdown would.
    pub(super) last_to_end: bool,
}

impl DirectionContext<'_> {
    fn add_read(&self, n: usize) {
        self.moved.set(true);
        self.read.add(n as u64);
        if let Some(total) = self.client_bytes_read {
            total.fetch_add(n as u64, Relaxed);
        }
    }

    fn add_written(&self, n: usize, mode: &Counter) {
        self.moved.set(true);
        self.written.add(n as u64);
        mode.add(n as u64);
        if let Some(total) = self.client_bytes_written {
            total.fetch_add(n as u64, Relaxed);
        }
    }

    /// For bytes that were counted when they were deferred.
    fn subtract_written(&self, n: usize) {
        self.written.take_back(n as u64);
        self.relayed.copy.take_back(n as u64);
        if let Some(total) = self.client_bytes_written {
            total.fetch_sub(n as u64, Relaxed);
        }
    }
}

impl Direction {
    /// From a client to a backend, which gets `first` before all else.
    pub(super) fn from_client(first: Option<Box<FirstBytes>>, watch: Watch) -> Self {
        Self {
            has_begun: first.as_ref().is_some_and(|first| first.has_payload()),
            held: first.map_or(Held::Nothing, Held::First),
            watch,
            ..Self::default()
        }
    }

    /// Moves what can be moved. Ready when everything including the end has been passed on.
    pub(super) fn poll(
        &mut self,
        source: &Stream,
        sink: &Stream,
        context: &DirectionContext<'_>,
    ) -> Poll<Result<(), Broken>> {
        for _ in 0..ROUNDS {
            match self.deliver(sink, context) {
                Poll::Ready(delivered) => delivered?,
                Poll::Pending => {
                    if std::mem::replace(&mut self.is_blocked, true) {
                        // Polled in vain, probably because of what has arrived meanwhile.
                        source.suspend_read_interest();
                    }
                    return Poll::Pending;
                }
            }
            self.is_blocked = false;
            match self.end {
                End::Open => {}
                End::Reset | End::Refused | End::Stopped => return Poll::Ready(Ok(())),
                End::Clean => {
                    if !context.last_to_end {
                        // It fails only on a stream that is dead, which reading it will show.
                        let _ = sink.end_writing();
                    }
                    return Poll::Ready(Ok(()));
                }
            }
            match self.mode.copies() {
                true => ready!(self.copy(source, sink, context))?,
                false => ready!(self.splice(source, sink, context))?,
            }
        }
        executor::wake_next_turn();
        Poll::Pending
    }

    /// Moves nothing more, and drops what it holds.
    pub(super) fn finish(&mut self) {
        self.finished = true;
        self.held = Held::Nothing;
    }

    /// Reads nothing more. What is held is still delivered.
    pub(super) fn stop_reading(&mut self) {
        if self.end == End::Open {
            self.end = End::Stopped;
        }
    }

    /// Whether it finished before its source had ended.
    pub(super) fn was_stopped(&self) -> bool {
        self.end == End::Stopped
    }

    pub(super) fn was_refused(&self) -> bool {
        self.end == End::Refused
    }

    /// The source has ended and everything was delivered.
    pub(super) fn has_nothing_left(&self) -> bool {
        self.end != End::Open && matches!(self.held, Held::Nothing)
    }

    /// Whether something is on the way to the sink, or may be.
    pub(super) fn has_more(&self, source: &Stream) -> bool {
        !matches!(self.held, Held::Nothing)
            || !sys::socket::unread(source).is_ok_and(|bytes| bytes == 0)
    }

    fn copy(
        &mut self,
        source: &Stream,
        sink: &Stream,
        context: &DirectionContext<'_>,
    ) -> Poll<Result<(), Broken>> {
        let forwarded = source.with_received(|received| {
            if received.is_empty() {
                self.source_ended(source, context);
                return Poll::Ready(Ok(()));
            }
            self.forward(received, source.peer_has_ended(), sink, context)
        });
        match ready!(forwarded) {
            Ok(forwarded) => forwarded,
            Err(error) => self.source_failed(&error),
        }
    }

    /// `is_last`: the end of the source comes next, and can travel with these bytes.
    fn forward(
        &mut self,
        received: Received<'_>,
        is_last: bool,
        sink: &Stream,
        context: &DirectionContext<'_>,
    ) -> Poll<Result<(), Broken>> {
        let n = received.len();
        context.add_read(n);
        self.has_begun = true;
        if self.watch != Watch::Over && self.watch.sees_header(&received) {
            self.end = End::Refused;
            return Poll::Ready(Ok(()));
        }
        self.mode = self.mode.after(n);
        if n <= DEFERRED && !is_last {
            context.add_written(n, &context.relayed.copy);
            sink.defer(received);
            self.held = Held::Deferred;
            return Poll::Ready(Ok(()));
        }
        self.reconcile_deferred(sink, context)?;
        if let Held::Bytes(rest) = &mut self.held {
            rest.bytes.extend_from_slice(&received);
            return Poll::Ready(Ok(()));
        }
        let mut rest = &received[..];
        while !rest.is_empty() {
            match sink.poll_write(rest, is_last) {
                Poll::Ready(Ok(n)) => {
                    context.add_written(n, &context.relayed.copy);
                    rest = &rest[n..];
                }
                Poll::Ready(Err(error)) => return Poll::Ready(sink_failed(&error)),
                Poll::Pending => {
                    self.held = Held::bytes(rest.to_vec());
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn splice(
        &mut self,
        source: &Stream,
        sink: &Stream,
        context: &DirectionContext<'_>,
    ) -> Poll<Result<(), Broken>> {
        if sys::pipe::is_forbidden() {
            self.copy_from_now_on(context);
            return Poll::Ready(Ok(()));
        }
        // Before a pipe is taken: a direction that waits holds none.
        if let Err(error) = ready!(source.poll_readable()) {
            return self.source_failed(&error);
        }
        let is_full = matches!(self.mode, Mode::Splice { full } if full >= FULL_PIPES);
        let Some(mut pipe) = sys::pipe::take(context.now, is_full) else {
            context.relayed.fallbacks[SpliceFallback::NoPipe as usize].add(1);
            self.mode = Mode::default();
            return Poll::Ready(Ok(()));
        };
        match pipe.fill(source) {
            Ok(n) if n > 0 => {
                context.add_read(n);
                self.mode = self.mode.after(n);
                if let Mode::Splice { full } = &mut self.mode {
                    *full = match pipe.was_filled_by(n) {
                        true => full.saturating_add(1),
                        // A large one that is half full is worth it, too.
                        false if n >= sys::pipe::SIZE => *full,
                        false => 0,
                    };
                }
                self.held = Held::Piped(pipe);
                Poll::Ready(Ok(()))
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {
                pipe.give_back();
                Poll::Ready(Ok(()))
            }
            Err(e) if is_about_the_call(&e, source) => {
                pipe.give_back();
                self.copy_after_refusal(&e, context);
                Poll::Ready(Ok(()))
            }
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => self.source_failed(&e),
            Err(_) if !source.is_at_urgent_mark() => {
                pipe.give_back();
                source.mark_would_block();
                match ready!(source.poll_readable()) {
                    Ok(()) => Poll::Ready(Ok(())),
                    Err(e) => self.source_failed(&e),
                }
            }
            // The end, or a mark of TCP's urgent data, before which splicing stops as if it were
            // the end or there were nothing. A read tells which, and passes the mark.
            Ok(_) | Err(_) => {
                pipe.give_back();
                self.copy(source, sink, context)
            }
        }
    }

    fn deliver(
        &mut self,
        sink: &Stream,
        context: &DirectionContext<'_>,
    ) -> Poll<Result<(), Broken>> {
        loop {
            match &mut self.held {
                Held::Nothing => return Poll::Ready(Ok(())),
                Held::Bytes(rest) => match ready!(sink.poll_write(&rest.bytes[rest.at..], false)) {
                    Ok(n) => {
                        context.add_written(n, &context.relayed.copy);
                        rest.at += n;
                        if rest.at == rest.bytes.len() {
                            self.held = Held::Nothing;
                        }
                    }
                    Err(e) => return Poll::Ready(sink_failed(&e)),
                },
                // The result is not known yet, and so far nothing depends on it.
                Held::Deferred
                    if sink.has_deferred() && self.end == End::Open && self.mode.copies() =>
                {
                    return Poll::Ready(Ok(()));
                }
                Held::Deferred => self.reconcile_deferred(sink, context)?,
                Held::First(first) if !first.has_header() => {
                    context.add_written(first.remaining().len(), &context.relayed.copy);
                    sink.defer_copy(first.remaining());
                    self.held = Held::Deferred;
                }
                Held::First(first) => match ready!(sink.poll_write(first.remaining(), false)) {
                    Ok(n) => {
                        context.add_written(first.advance(n), &context.relayed.copy);
                        if first.remaining().is_empty() {
                            self.held = Held::Nothing;
                        }
                    }
                    Err(e) => return Poll::Ready(sink_failed(&e)),
                },
                Held::Piped(_) => ready!(self.drain_pipe(sink, context))?,
            }
        }
    }

    fn drain_pipe(
        &mut self,
        sink: &Stream,
        context: &DirectionContext<'_>,
    ) -> Poll<Result<(), Broken>> {
        let Held::Piped(pipe) = &mut self.held else {
            return Poll::Ready(Ok(()));
        };
        if let Err(error) = ready!(sink.poll_writable()) {
            return Poll::Ready(sink_failed(&error));
        }
        match sink.try_write(|fd| pipe.drain(fd)) {
            Ok(n) if n > 0 => {
                context.add_written(n, &context.relayed.splice);
                if pipe.is_empty()
                    && let Held::Piped(pipe) = std::mem::take(&mut self.held)
                {
                    pipe.give_back();
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if is_about_the_call(&e, sink) => {
                self.copy_after_refusal(&e, context);
                self.read_pipe_out(sink)?;
            }
            Ok(_) => return Poll::Ready(Err(Broken::Sink(Cause::Reset))),
            Err(e) => return Poll::Ready(sink_failed(&e)),
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what was deferred, and holds what the sink does not take.
    pub(super) fn reconcile_deferred(
        &mut self,
        sink: &Stream,
        context: &DirectionContext<'_>,
    ) -> Result<(), Broken> {
        if !matches!(self.held, Held::Deferred) {
            return Ok(());
        }
        self.held = Held::Nothing;
        let Some(unwritten) = sink.take_unwritten() else {
            return Ok(());
        };
        context.subtract_written(unwritten.bytes.len());
        if let Some(error) = &unwritten.error {
            return sink_failed(error);
        }
        self.held = Held::bytes(unwritten.bytes);
        Ok(())
    }

    /// The sink does not take spliced pages: the bytes in the pipe are copied.
    fn read_pipe_out(&mut self, sink: &Stream) -> Result<(), Broken> {
        if let Held::Piped(pipe) = std::mem::take(&mut self.held) {
            let Ok(bytes) = pipe.into_bytes() else {
                // A clean end would hide that bytes are missing.
                sys::socket::reset_on_close(sink);
                return Err(Broken::Sink(Cause::Reset));
            };
            self.held = Held::bytes(bytes);
        }
        Ok(())
    }

    /// Copies for the moment where the kernel lacks memory; for good otherwise.
    fn copy_after_refusal(&mut self, error: &io::Error, context: &DirectionContext<'_>) {
        if !sys::pipe::note_refusal("splice", error) && error.kind() == io::ErrorKind::OutOfMemory {
            context.relayed.fallbacks[SpliceFallback::Refused as usize].add(1);
            self.mode = Mode::default();
            return;
        }
        self.copy_from_now_on(context);
    }

    fn copy_from_now_on(&mut self, context: &DirectionContext<'_>) {
        context.relayed.fallbacks[SpliceFallback::Refused as usize].add(1);
        self.mode = Mode::CopyOnly;
    }

    fn source_ended(&mut self, source: &Stream, context: &DirectionContext<'_>) {
        self.end = if context.source_is_broken || source.is_unwritable() {
            End::Reset
        } else {
            End::Clean
        };
    }

    fn source_failed(&mut self, error: &io::Error) -> Poll<Result<(), Broken>> {
        self.end = End::Reset;
        Poll::Ready(Err(Broken::Source(Cause::of(error))))
    }
}

fn sink_failed(error: &io::Error) -> Result<(), Broken> {
    Err(Broken::Sink(Cause::of(error)))
}

/// Whether a failed `splice` is about the call, which a filter or the kernel refused, and not about
/// the connection. A read or a write then works, or reports what is wrong with the connection.
fn is_about_the_call(error: &io::Error, stream: &Stream) -> bool {
    use io::ErrorKind as K;
    let is_about_connection = matches!(
        error.kind(),
        K::WouldBlock
            | K::ConnectionReset
            | K::ConnectionAborted
            | K::ConnectionRefused
            | K::BrokenPipe
            | K::NotConnected
            | K::TimedOut
            | K::HostUnreachable
            | K::NetworkUnreachable
            | K::NetworkDown
    ) || matches!(
        error.raw_os_error(),
        Some(libc::EHOSTDOWN | libc::ENONET | libc::EPROTO | libc::ENOPROTOOPT | libc::EMSGSIZE)
    );
    // No connection ends with these.
    let is_of_the_call = matches!(
        error.raw_os_error(),
        Some(libc::EPERM | libc::ENOSYS | libc::EINVAL | libc::ENOMEM)
    );
    // It can end with any other that an ICMP message stands for. The kernel reports it only once: a
    // read after it would see a clean end, where nothing is left to be read.
    let has_ended = || {
        let has_unread = sys::socket::unread(stream).is_ok_and(|unread| unread > 0);
        stream.is_tcp() && sys::socket::is_dead(stream) && !has_unread
    };
    is_of_the_call || !(is_about_connection || has_ended())
}

//! One direction of a session.

mod splice;

use super::{FirstBytes, context::DirectionContext, mode::Mode};
use crate::{
    plan::reason::{self, ConnectError},
    proxy_protocol::Watch,
    runtime::executor::{self, Received, Stream},
    sys::{self, pipe::Pipe},
};
use std::{
    io,
    task::{Poll, ready},
};

/// A read of no more than this is written at the end of the turn, together with those of other
/// sessions.
const DEFERRED: usize = 20 * 1024;
/// Reads in one poll, before other tasks run.
const ROUNDS: usize = 4;

#[derive(Debug, Default)]
pub(super) struct Direction {
    held: Held,
    mode: Mode,
    end: SourceEnd,
    /// The end was passed on, or the sink is gone.
    pub(super) finished: bool,
    /// A byte was read.
    pub(super) has_begun: bool,
    /// The last poll ended waiting for the sink, or in a pause.
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

/// A direction as plain data.
#[derive(Debug)]
pub struct DirectionState {
    pub held: HeldState,
    pub mode: Mode,
    pub end: SourceEnd,
    pub finished: bool,
    pub has_begun: bool,
    pub watch: Watch,
}

/// What was read and is not written.
#[derive(Debug)]
pub enum HeldState {
    Nothing,
    Bytes(Vec<u8>),
    Piped(Pipe),
    /// A header of our own, and what the client sent before there was a backend.
    First {
        header: Vec<u8>,
        payload: Vec<u8>,
    },
}

impl Held {
    fn bytes(bytes: Vec<u8>) -> Self {
        Self::Bytes(Box::new(Rest { bytes, at: 0 }))
    }
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum SourceEnd {
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
    Source(BreakCause),
    Sink(BreakCause),
}

/// How a connection broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakCause {
    Reset,
    /// The peer's host did not answer the kernel in time.
    TimedOut,
}

impl BreakCause {
    pub(super) fn of(error: &io::Error) -> Self {
        match reason::ErrorCause::of(error).word {
            // The kernel keeps what a router reported of an established connection, and returns it
            // when time has run out.
            ConnectError::Timeout | ConnectError::Unreachable | ConnectError::Prohibited => {
                Self::TimedOut
            }
            _ => Self::Reset,
        }
    }
}

impl Direction {
    /// From a client to a backend, which gets `first` before all else.
    pub(super) fn from_client(first: Option<Box<FirstBytes>>, watch: Watch) -> Self {
        Self {
            has_begun: first.as_ref().is_some_and(|first| first.payload() > 0),
            held: first.map_or(Held::Nothing, Held::First),
            watch,
            ..Self::default()
        }
    }

    /// Nothing must be deferred. What it holds in a pipe gets other descriptors.
    pub(super) fn state(&self) -> io::Result<DirectionState> {
        Ok(DirectionState {
            held: match &self.held {
                Held::Nothing | Held::Deferred => HeldState::Nothing,
                Held::Bytes(rest) => HeldState::Bytes(rest.bytes[rest.at..].to_vec()),
                Held::Piped(pipe) => HeldState::Piped(pipe.copy()?),
                Held::First(first) => {
                    let (header, payload) = first.parts();
                    HeldState::First {
                        header: header.to_vec(),
                        payload: payload.to_vec(),
                    }
                }
            },
            mode: self.mode,
            end: self.end,
            finished: self.finished,
            has_begun: self.has_begun,
            watch: self.watch,
        })
    }

    /// Goes on where another process has stopped.
    pub(super) fn resume_from(&mut self, state: DirectionState) {
        *self = Self {
            held: match state.held {
                HeldState::Nothing => Held::Nothing,
                HeldState::Bytes(bytes) if bytes.is_empty() => Held::Nothing,
                HeldState::Bytes(bytes) => Held::bytes(bytes),
                HeldState::Piped(pipe) if pipe.is_empty() => Held::Nothing,
                HeldState::Piped(pipe) => Held::Piped(pipe),
                HeldState::First { header, payload } => {
                    FirstBytes::new(header, payload).map_or(Held::Nothing, Held::First)
                }
            },
            mode: state.mode,
            end: state.end,
            finished: state.finished,
            has_begun: state.has_begun,
            is_blocked: false,
            watch: state.watch,
        };
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
                    self.leave_unread(source);
                    return Poll::Pending;
                }
            }
            match self.end {
                SourceEnd::Open => {}
                SourceEnd::Reset | SourceEnd::Refused | SourceEnd::Stopped => {
                    return Poll::Ready(Ok(()));
                }
                SourceEnd::Clean => {
                    if !context.last_to_end {
                        // It fails only on a stream that is dead, which reading it will show.
                        let _ = sink.end_writing();
                    }
                    return Poll::Ready(Ok(()));
                }
            }
            let Some(allowed) = context.allowance() else {
                self.leave_unread(source);
                return Poll::Pending;
            };
            self.is_blocked = false;
            match self.mode.copies() {
                true => ready!(self.copy(source, sink, allowed, context))?,
                false => ready!(self.splice(source, sink, allowed, context))?,
            }
        }
        executor::wake_next_turn();
        Poll::Pending
    }

    /// Whether it reads nothing for the time being, so that no read shows how its source has ended.
    pub(super) fn leaves_unread(&self) -> bool {
        self.is_blocked && !self.finished
    }

    fn leave_unread(&mut self, source: &Stream) {
        match std::mem::replace(&mut self.is_blocked, true) {
            false => source.watch_end(),
            // Polled in vain, probably because of what has arrived meanwhile.
            true => source.suspend_read_interest(),
        }
    }

    /// Moves nothing more, and drops what it holds.
    pub(super) fn finish(&mut self) {
        self.finished = true;
        self.held = Held::Nothing;
    }

    /// Reads nothing more. What is held is still delivered.
    pub(super) fn stop_reading(&mut self) {
        if self.end == SourceEnd::Open {
            self.end = SourceEnd::Stopped;
        }
    }

    /// Whether it finished before its source had ended.
    pub(super) fn was_stopped(&self) -> bool {
        self.end == SourceEnd::Stopped
    }

    pub(super) fn was_refused(&self) -> bool {
        self.end == SourceEnd::Refused
    }

    /// The source has ended and everything was delivered.
    pub(super) fn has_nothing_left(&self) -> bool {
        self.end != SourceEnd::Open && matches!(self.held, Held::Nothing)
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
        allowed: usize,
        context: &DirectionContext<'_>,
    ) -> Poll<Result<(), Broken>> {
        let forwarded = source.with_received(allowed, |received| {
            if received.is_empty() {
                self.source_ended(source, context);
                return Poll::Ready(Ok(()));
            }
            let is_last = source.peer_has_ended() && received.len() < allowed;
            self.forward(received, is_last, allowed, sink, context)
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
        allowed: usize,
        sink: &Stream,
        context: &DirectionContext<'_>,
    ) -> Poll<Result<(), Broken>> {
        let n = received.len();
        context.add_read(n);
        self.has_begun = true;
        if self.watch != Watch::Over && self.watch.sees_header(&received) {
            self.end = SourceEnd::Refused;
            return Poll::Ready(Ok(()));
        }
        self.mode = self.mode.after(n, allowed);
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
                // Not written yet, and so far nothing depends on the result.
                Held::Deferred
                    if sink.has_deferred() && self.end == SourceEnd::Open && self.mode.copies() =>
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

    fn source_ended(&mut self, source: &Stream, context: &DirectionContext<'_>) {
        self.end = if context.source_is_broken || source.is_unwritable() {
            SourceEnd::Reset
        } else {
            SourceEnd::Clean
        };
    }

    fn source_failed(&mut self, error: &io::Error) -> Poll<Result<(), Broken>> {
        self.end = SourceEnd::Reset;
        Poll::Ready(Err(Broken::Source(BreakCause::of(error))))
    }
}

fn sink_failed(error: &io::Error) -> Result<(), Broken> {
    Err(Broken::Sink(BreakCause::of(error)))
}

//! The buffer that all sockets of a thread read into, and writes from it at the end of a turn.
//!
//! A turn reads from all sockets that have something, and then writes to all that get something.
//! Were each written to at once, a peer that serves many of them would wake up for the first, have
//! nothing to do before the second, and so on: measured, these wake-ups take up to a fifth of what
//! a small request costs.

use super::{Core, Stream, with_core};
use crate::sys;
use ahash::AHashMap;
use std::{
    io,
    ops::Deref,
    os::fd::{AsFd, AsRawFd, RawFd},
    task::{Poll, ready},
    time::{Duration, Instant},
};

/// Deferred bytes that make all deferred writes due.
const MOST_DEFERRED: usize = 128 * 1024;
/// Most bytes of one read.
const READ: usize = 128 * 1024;
/// How long a write may be deferred, however much the turn has to do.
const MOST_DELAY: Duration = Duration::from_micros(100);

/// Deferred writes are at the front; what is read goes behind them.
pub(super) fn new_buffer() -> Box<[u8]> {
    vec![0; MOST_DEFERRED + READ].into()
}

#[derive(Default)]
pub(super) struct DeferredWrites {
    writes: Vec<PendingWrite>,
    /// Where the deferred bytes in the buffer end.
    end: usize,
    /// When the first write was deferred, or a little earlier.
    since: Option<Instant>,
    /// By socket number.
    unwritten: AHashMap<u32, Unwritten>,
}

struct PendingWrite {
    socket: u32,
    /// It is open: a socket that is closed writes what is deferred first.
    fd: RawFd,
    /// Position in the buffer.
    at: usize,
    len: usize,
}

/// What could not be written at the end of a turn.
#[derive(Debug)]
pub struct Unwritten {
    pub bytes: Vec<u8>,
    /// Why they never can be written, if so.
    pub error: Option<io::Error>,
}

/// Bytes that were read, in the buffer of the thread. The buffer cannot be written to while they
/// are borrowed, so they are those of the socket that was read from, and of no other.
///
/// They can be written at the end of the turn without being moved:
///
/// ```
/// use tembuku_engine::runtime::executor::Stream;
/// fn forward(from: &Stream, to: &Stream) {
///     let _ = from.with_received(4096, |received| to.defer(received));
/// }
/// ```
///
/// They cannot be kept until the buffer holds those of another socket:
///
/// ```compile_fail,E0521
/// use tembuku_engine::runtime::executor::Stream;
/// fn forward(from: &Stream, to: &Stream) {
///     let mut kept = None;
///     let _ = from.with_received(4096, |received| kept = Some(received));
///     kept.map(|received| to.defer(received));
/// }
/// ```
///
/// And they cannot be sent to a second socket, after the first:
///
/// ```compile_fail,E0382
/// use tembuku_engine::runtime::executor::Stream;
/// fn forward(from: &Stream, to: &Stream, other: &Stream) {
///     let _ = from.with_received(4096, |received| {
///         to.defer(received);
///         other.defer(received);
///     });
/// }
/// ```
#[derive(Debug)]
pub struct Received<'a> {
    bytes: &'a [u8],
    /// Position in the buffer.
    at: usize,
}

impl Deref for Received<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

impl Stream {
    /// Reads at most once and `most` bytes, and lends what was read to `handle`; it is empty at the
    /// end. Nothing else can be read or copied into the buffer meanwhile.
    pub fn with_received<R>(
        &self,
        most: usize,
        handle: impl FnOnce(Received<'_>) -> R,
    ) -> Poll<io::Result<R>> {
        with_core(|core| {
            let at = core.deferred.borrow().end;
            let end = at + most.min(READ);
            let len = ready!(self.poll_read(&mut core.buffer.borrow_mut()[at..end]))?;
            let bytes = &core.buffer.borrow()[at..at + len];
            Poll::Ready(Ok(handle(Received { bytes, at })))
        })
    }

    /// Writes what was received at the end of this turn. If the kernel does not take all of it
    /// then, the task that is polled now is polled again; [`Self::take_unwritten`] comes before
    /// anything else is written.
    pub fn defer(&self, received: Received<'_>) {
        with_core(|core| core.defer(self, received.at, received.len()));
    }

    /// The same with bytes that are not in the receive buffer, which are copied.
    pub fn defer_copy(&self, bytes: &[u8]) {
        with_core(|core| {
            let at = core.deferred.borrow().end;
            core.buffer.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
            core.defer(self, at, bytes.len());
        });
    }
}

impl Core {
    fn defer(&self, to: &Stream, at: usize, len: usize) {
        to.count_write();
        to.socket.update(|source| {
            source.task = self.current.get();
            source.has_deferred = true;
        });
        let mut deferred = self.deferred.borrow_mut();
        deferred.since.get_or_insert(self.reactor.clock().now());
        deferred.end = at + len;
        deferred.writes.push(PendingWrite {
            socket: to.socket.number,
            fd: to.as_fd().as_raw_fd(),
            at,
            len,
        });
        let is_full = deferred.end > MOST_DEFERRED;
        drop(deferred);
        if is_full {
            self.flush();
        }
    }

    pub(super) fn flush_if_old(&self) {
        let since = self.deferred.borrow().since;
        let now = self.reactor.clock().now();
        if since.is_some_and(|since| now.saturating_duration_since(since) >= MOST_DELAY) {
            self.flush();
        }
    }

    /// Writes everything that is deferred.
    pub(super) fn flush(&self) {
        let (mut deferred, buffer) = (self.deferred.borrow_mut(), self.buffer.borrow());
        let DeferredWrites {
            writes,
            end,
            since,
            unwritten,
        } = &mut *deferred;
        (*end, *since) = (0, None);
        for write in writes.drain(..) {
            let bytes = &buffer[write.at..write.at + write.len];
            let mut sources = self.sources.borrow_mut();
            let Some(source) = sources.get_mut(write.socket as usize) else {
                continue;
            };
            source.has_deferred = false;
            if let Some(before) = unwritten.get_mut(&write.socket) {
                before.bytes.extend_from_slice(bytes);
                continue;
            }
            let (written, error) = match source.writable {
                false => (0, None),
                true => match sys::socket::send_now(write.fd, bytes) {
                    Ok(n) if n == bytes.len() => continue,
                    Ok(n) => (n, None),
                    Err(error) => (0, Some(error)),
                },
            };
            source.has_unwritten = true;
            // What the error is about is found at the next try.
            source.writable = error.is_some();
            source.is_unwritable |= error.is_some();
            let bytes = bytes[written..].to_vec();
            unwritten.insert(write.socket, Unwritten { bytes, error });
            let task = source.task;
            drop(sources);
            self.wake(task);
        }
    }

    pub(super) fn take_unwritten(&self, socket: u32) -> Option<Unwritten> {
        self.deferred.borrow_mut().unwritten.remove(&socket)
    }
}

#[cfg(test)]
impl DeferredWrites {
    pub(super) fn has_unwritten(&self) -> bool {
        !self.unwritten.is_empty()
    }
}

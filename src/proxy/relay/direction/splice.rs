//! Splicing: from the source into a pipe, and from the pipe into the sink.

use super::{BreakCause, Broken, Direction, Held, sink_failed};
use crate::{
    plan::reason::SpliceFallback,
    proxy::relay::{context::DirectionContext, mode::Mode},
    runtime::executor::Stream,
    sys,
};
use std::{
    io,
    task::{Poll, ready},
};

/// Full pipes in a row after which it gets a larger one, if there is one.
const FULL_PIPES: u8 = 4;
impl Direction {
    pub(super) fn splice(
        &mut self,
        source: &Stream,
        sink: &Stream,
        allowed: usize,
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
        match pipe.fill(source, allowed) {
            Ok(n) if n > 0 => {
                context.add_read(n);
                self.mode = self.mode.after(n, allowed);
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
            // the end or there were nothing. A read shows which, and passes the mark.
            Ok(_) | Err(_) => {
                pipe.give_back();
                self.copy(source, sink, allowed, context)
            }
        }
    }

    pub(super) fn drain_pipe(
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
            Ok(_) => return Poll::Ready(Err(Broken::Sink(BreakCause::Reset))),
            Err(e) => return Poll::Ready(sink_failed(&e)),
        }
        Poll::Ready(Ok(()))
    }

    /// The sink does not take spliced pages: the bytes in the pipe are copied.
    fn read_pipe_out(&mut self, sink: &Stream) -> Result<(), Broken> {
        if let Held::Piped(pipe) = std::mem::take(&mut self.held) {
            let Ok(bytes) = pipe.into_bytes() else {
                // A clean end would hide that bytes are missing.
                sys::socket::reset_on_close(sink);
                return Err(Broken::Sink(BreakCause::Reset));
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

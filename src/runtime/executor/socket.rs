//! A socket of a task: what may be tried with it, and waiting until something may.

use super::{Core, Fresh, HERE, Left, NOBODY, Source, here};
use rustix::{
    event::epoll,
    io::Errno,
    net::{
        RecvFlags, SendFlags, Shutdown, SocketFlags, acceptfrom_with, connect, recv, send, shutdown,
    },
};
use std::{
    io,
    marker::PhantomData,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    task::{Poll, ready},
};

/// Reading may be worth a try.
const READ: u16 = 1;
/// Writing may be.
pub(super) const WRITE: u16 = 2;
/// Nothing comes any more after what is there: reading is always worth a try.
const ENDED: u16 = 4;
/// There was TCP urgent data: a read ends before it, whatever comes after.
const MARKED: u16 = 32;
/// The kernel does not tell of what comes until somebody waits for it again.
const MUTED: u16 = 128;
/// Something is to be written at the end of the turn.
pub(super) const POSTED: u16 = 256;
/// Something could not be.
pub(super) const LEFT: u16 = 512;
/// Something never can be. The kernel has told why, and tells only once: whoever reads then finds a
/// clean end.
pub(super) const UNWRITABLE: u16 = 1024;
/// It ended by an error, which comes after what is there.
const FAILED: u16 = 64;
/// The kernel tells of it.
const WATCHED: u16 = 8;
/// The kernel also tells when it may be written to again. Most sockets never have to wait for that,
/// and are not woken for it in vain.
const WATCHED_FOR_WRITING: u16 = 16;

/// What an event says.
pub(super) fn flags(events: epoll::EventFlags) -> u16 {
    use epoll::EventFlags as E;
    let mut flags = 0;
    if events.intersects(E::IN | E::PRI | E::RDHUP | E::HUP | E::ERR) {
        flags |= READ;
    }
    if events.intersects(E::OUT | E::HUP | E::ERR) {
        flags |= WRITE;
    }
    if events.intersects(E::RDHUP | E::HUP | E::ERR) {
        flags |= ENDED;
    }
    if events.contains(E::PRI) {
        flags |= MARKED;
    }
    if events.contains(E::ERR) {
        flags |= FAILED;
    }
    flags
}

/// A stream. It must be non-blocking, and stays on the thread that made it.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    /// Its number with the event loop of this thread.
    source: u32,
    stays: PhantomData<*const ()>,
}

impl Socket {
    /// `may_read`: something may have come already, so that reading is tried before the kernel is
    /// asked to tell.
    pub fn new(fd: OwnedFd, may_read: bool) -> Self {
        let flags = WRITE | if may_read { READ } else { 0 };
        let source = here(|core| {
            let task = NOBODY;
            core.sources.borrow_mut().insert(Source { task, flags })
        });
        Self {
            fd,
            source: source as u32,
            stays: PhantomData,
        }
    }

    /// Reads at most once. `stream`: the kernel has no more than fills the buffer, which saves the
    /// call that would say so.
    pub fn poll_read(&self, buf: &mut [u8], stream: bool) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_readable())?;
            match recv(&self.fd, &mut *buf, RecvFlags::empty()) {
                Ok((n, _)) => {
                    // After the end there is always the end.
                    if stream && n > 0 && n < buf.len() {
                        self.taken_for_empty();
                    }
                    return Poll::Ready(Ok(n));
                }
                Err(Errno::AGAIN) => self.clear(READ),
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// `more`: something else follows at once, which is to leave together with this.
    pub fn poll_write(&self, buf: &[u8], more: bool) -> Poll<io::Result<usize>> {
        debug_assert!(!self.has(POSTED | LEFT), "something comes before it");
        let mut flags = SendFlags::NOSIGNAL;
        flags.set(SendFlags::MORE, more);
        loop {
            ready!(self.poll_writable())?;
            match send(&self.fd, buf, flags) {
                Ok(n) => {
                    if n < buf.len() {
                        self.clear(WRITE);
                    }
                    return Poll::Ready(Ok(n));
                }
                Err(Errno::AGAIN) => self.clear(WRITE),
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// Whether the peer is known to have said its last: what is there can be read at once, up to a
    /// clean end.
    pub fn has_ended(&self) -> bool {
        self.flags() & (ENDED | FAILED) == ENDED
    }

    /// Whether there was TCP urgent data, before which a read ends, whatever comes after.
    pub fn is_marked(&self) -> bool {
        self.has(MARKED)
    }

    /// A call that reads has found nothing: the next [`Self::poll_readable`] waits.
    pub fn found_nothing(&self) {
        self.clear(READ);
    }

    /// There is something to read, and nobody to read it now: what comes after it need not wake
    /// anybody until somebody waits for it.
    pub fn mute(&self) {
        here(|core| {
            let mut sources = core.sources.borrow_mut();
            if let Some(source) = sources.get_mut(self.source as usize)
                && source.flags & (WATCHED | READ) == WATCHED | READ
            {
                let flags = source.flags | MUTED;
                // What cannot be changed stays as it is, and costs wake-ups.
                let _ = self.set_watch(core, source, flags);
            }
        });
    }

    /// Ready when reading is worth a try.
    pub fn poll_readable(&self) -> Poll<io::Result<()>> {
        self.wait_for(READ)
    }

    /// Ready when writing is worth a try.
    pub fn poll_writable(&self) -> Poll<io::Result<()>> {
        self.wait_for(WRITE)
    }

    /// Takes all of it, to be written at the end of this turn. If the kernel does not take all of
    /// it then, the task is polled again. [`Self::take_left`] comes before anything else is
    /// written.
    pub fn write_later(&self, bytes: &[u8]) {
        here(|core| core.post(self.source, self.fd.as_raw_fd(), bytes));
    }

    /// The same of what was read last.
    pub fn write_fresh_later(&self, fresh: &Fresh) {
        here(|core| core.post_fresh(self.source, self.fd.as_raw_fd(), fresh));
    }

    /// Whether something is to be written at the end of this turn.
    pub fn has_posted(&self) -> bool {
        self.has(POSTED)
    }

    #[cfg(test)]
    pub fn has_left(&self) -> bool {
        self.has(LEFT)
    }

    /// Writes what is to be written at the end of this turn; all that was to be and could not be.
    pub fn take_left(&self) -> Option<Left> {
        if self.has(POSTED) {
            here(Core::write_letters);
        }
        if !self.has(LEFT) {
            return None;
        }
        self.clear(LEFT);
        here(|core| core.take_left(self.source))
    }

    /// Whether writing at the end of a turn has failed, so that reading does not tell any more how
    /// the connection ended.
    pub fn is_unwritable(&self) -> bool {
        self.has(UNWRITABLE)
    }

    /// Runs a call that writes; "would block" makes the next [`Self::poll_writable`] wait.
    pub fn try_write<R>(
        &self,
        call: impl FnOnce(BorrowedFd<'_>) -> io::Result<R>,
    ) -> io::Result<R> {
        let result = call(self.fd.as_fd());
        if matches!(&result, Err(e) if e.kind() == io::ErrorKind::WouldBlock) {
            self.clear(WRITE);
        }
        result
    }

    /// Begins to connect, or goes on: ready when it has succeeded or failed. Where it is said to be
    /// under way on Linux, asking again is what tells how it went.
    pub fn poll_connect(&self, address: &SocketAddr) -> Poll<io::Result<()>> {
        let mut result = connect(&self.fd, address);
        // On this very machine the other side has answered by now.
        if result == Err(Errno::INPROGRESS) && address.ip().is_loopback() {
            result = connect(&self.fd, address);
        }
        match result {
            Ok(()) | Err(Errno::ISCONN) => Poll::Ready(Ok(())),
            Err(Errno::INPROGRESS | Errno::ALREADY | Errno::INTR) => {
                self.clear(WRITE);
                // Never ready: there is an event when there is something to be said.
                ready!(self.poll_writable())?;
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }

    /// The peer sees the end after everything that was written before.
    pub fn end_writing(&self) -> io::Result<()> {
        if self.has(POSTED) {
            here(Core::write_letters);
        }
        Ok(shutdown(&self.fd, Shutdown::Write)?)
    }

    fn wait_for(&self, what: u16) -> Poll<io::Result<()>> {
        here(|core| {
            let mut sources = core.sources.borrow_mut();
            let Some(source) = sources.get_mut(self.source as usize) else {
                return Poll::Ready(Err(io::ErrorKind::NotFound.into()));
            };
            if source.flags & what != 0 {
                return Poll::Ready(Ok(()));
            }
            source.task = core.current.get();
            match self.watch(core, source, what) {
                Ok(()) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
            }
        })
    }

    /// What has happened before this counts as an event, too: nothing is missed.
    fn watch(&self, core: &Core, source: &mut Source, what: u16) -> io::Result<()> {
        let flags = match what {
            WRITE => source.flags | WATCHED | WATCHED_FOR_WRITING,
            _ => (source.flags | WATCHED) & !MUTED,
        };
        self.set_watch(core, source, flags)
    }

    fn set_watch(&self, core: &Core, source: &mut Source, flags: u16) -> io::Result<()> {
        if flags == source.flags {
            return Ok(());
        }
        use epoll::EventFlags as E;
        let mut events = E::RDHUP | E::ET;
        events.set(E::IN | E::PRI, flags & MUTED == 0);
        events.set(E::OUT, flags & WATCHED_FOR_WRITING != 0);
        let data = epoll::EventData::new_u64(u64::from(self.source));
        match source.flags & WATCHED {
            0 => epoll::add(&core.epoll, &self.fd, data, events)?,
            _ => epoll::modify(&core.epoll, &self.fd, data, events)?,
        }
        source.flags = flags;
        Ok(())
    }

    fn flags(&self) -> u16 {
        here(|core| {
            let sources = core.sources.borrow();
            sources.get(self.source as usize).map_or(0, |s| s.flags)
        })
    }

    fn has(&self, flags: u16) -> bool {
        self.flags() & flags != 0
    }

    fn clear(&self, what: u16) {
        self.change(|flags| flags & !what);
    }

    /// A read was short, which means that there is no more, unless it is known to mean less.
    fn taken_for_empty(&self) {
        self.change(|flags| match flags & (ENDED | MARKED) {
            0 => flags & !READ,
            _ => flags,
        });
    }

    fn change(&self, to: impl FnOnce(u16) -> u16) {
        here(|core| {
            if let Some(source) = core.sources.borrow_mut().get_mut(self.source as usize) {
                source.flags = to(source.flags);
            }
        });
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Socket {
    /// Closing takes it from the kernel's list.
    fn drop(&mut self) {
        // After the loop there is no list either.
        let _ = HERE.try_with(|here| {
            let core = here.get()?;
            if self.has(POSTED) {
                core.write_letters();
            }
            let source = core.sources.borrow_mut().try_remove(self.source as usize)?;
            if source.flags & LEFT != 0 {
                core.take_left(self.source);
            }
            Some(())
        });
    }
}

/// A socket that accepts others. It must be non-blocking.
#[derive(Debug)]
pub struct Listening(Socket);

impl Listening {
    pub fn new(fd: impl Into<OwnedFd>) -> Self {
        Self(Socket::new(fd.into(), true))
    }

    /// The next one, and where it comes from if that is an IP address.
    pub fn poll_accept(&self) -> Poll<io::Result<(OwnedFd, Option<SocketAddr>)>> {
        loop {
            ready!(self.0.poll_readable())?;
            match self.accept() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.0.clear(READ | ENDED)
                }
                result => return Poll::Ready(result),
            }
        }
    }

    /// Asks the kernel, whatever the event loop believes.
    pub fn accept(&self) -> io::Result<(OwnedFd, Option<SocketAddr>)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (socket, address) = acceptfrom_with(&self.0, flags)?;
        Ok((socket, address.and_then(|address| address.try_into().ok())))
    }
}

impl Drop for Listening {
    /// The workers share unix sockets, so that closing alone does not take it from the kernel's
    /// list.
    fn drop(&mut self) {
        let _ = HERE.try_with(|here| {
            here.get()
                .map(|core| epoll::delete(&core.epoll, self.0.fd.as_fd()))
        });
    }
}

impl AsFd for Listening {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

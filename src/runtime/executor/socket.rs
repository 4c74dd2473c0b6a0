//! A socket of a task: whether a call may succeed, and waiting until it may.

use super::{CORE, Core, NO_TASK, with_core};
use rustix::event::epoll::EventFlags;
use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    task::Poll,
};

/// What the executor knows of a socket.
pub(super) struct Source {
    /// The task to wake.
    pub(super) task: u32,
    /// Reading may succeed.
    pub(super) readable: bool,
    /// Writing may succeed.
    pub(super) writable: bool,
    pub(super) end: PeerEnd,
    /// There was TCP urgent data: a read ends before it, whatever comes after.
    pub(super) at_urgent_mark: bool,
    /// `None` before the first wait: then the kernel reports nothing.
    interest: Option<Interest>,
    /// Bytes are to be written at the end of the turn.
    pub(super) has_deferred: bool,
    /// Deferred bytes could not be written.
    pub(super) has_unwritten: bool,
    /// A deferred write failed. The kernel reports an error once: a read after it finds a clean
    /// end.
    pub(super) is_unwritable: bool,
}

/// Whether the peer has ended its side, so that nothing follows what has arrived: then reading
/// always returns at once.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerEnd {
    #[default]
    Open,
    Ended,
    /// It ended by an error, which is reported after what has arrived.
    Failed,
}

/// What the kernel is asked to report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Interest {
    read: bool,
    /// Most sockets never have to wait for this, and are not woken for it in vain.
    write: bool,
}

impl Source {
    pub(super) fn note_event(&mut self, flags: EventFlags) {
        use EventFlags as E;
        self.readable |= flags.intersects(E::IN | E::PRI | E::RDHUP | E::HUP | E::ERR);
        self.writable |= flags.intersects(E::OUT | E::HUP | E::ERR);
        self.at_urgent_mark |= flags.contains(E::PRI);
        if flags.contains(E::ERR) {
            self.end = PeerEnd::Failed;
        } else if flags.intersects(E::RDHUP | E::HUP) {
            self.end = self.end.max(PeerEnd::Ended);
        }
    }
}

/// A non-blocking descriptor. It stays on the thread that made it.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    /// Its number with the executor of this thread.
    pub(super) number: u32,
    stays: PhantomData<*const ()>,
}

impl Socket {
    /// `readable`: something may have come already, so that reading is tried before the kernel is
    /// asked to report.
    pub(super) fn new(fd: OwnedFd, readable: bool) -> Self {
        let source = Source {
            task: NO_TASK,
            readable,
            writable: true,
            end: PeerEnd::Open,
            at_urgent_mark: false,
            interest: None,
            has_deferred: false,
            has_unwritten: false,
            is_unwritable: false,
        };
        let number = with_core(|core| core.sources.borrow_mut().insert(source));
        Self {
            fd,
            number: number as u32,
            stays: PhantomData,
        }
    }

    pub(super) fn poll_readable(&self) -> Poll<io::Result<()>> {
        self.wait_for(|source| source.readable, |interest| interest.read = true)
    }

    pub(super) fn poll_writable(&self) -> Poll<io::Result<()>> {
        self.wait_for(|source| source.writable, |interest| interest.write = true)
    }

    /// Ready when the peer is known to have ended. What arrives before that wakes no task.
    pub(super) fn poll_peer_end(&self) -> Poll<io::Result<()>> {
        self.wait_for(
            |source| source.end != PeerEnd::Open,
            |interest| interest.read = false,
        )
    }

    /// Events that came before the kernel is asked to report them are reported, too.
    fn wait_for(
        &self,
        is_ready: impl FnOnce(&Source) -> bool,
        ask: impl FnOnce(&mut Interest),
    ) -> Poll<io::Result<()>> {
        with_core(|core| {
            let mut sources = core.sources.borrow_mut();
            let Some(source) = sources.get_mut(self.number as usize) else {
                return Poll::Ready(Err(io::ErrorKind::NotFound.into()));
            };
            if is_ready(source) {
                return Poll::Ready(Ok(()));
            }
            source.task = core.current.get();
            let mut interest = source.interest.unwrap_or(Interest {
                read: true,
                write: false,
            });
            ask(&mut interest);
            match self.set_interest(core, source, interest) {
                Ok(()) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
            }
        })
    }

    /// The kernel reports at least how the peer ends.
    pub(super) fn watch_end(&self) {
        with_core(|core| {
            if let Some(source) = core.sources.borrow_mut().get_mut(self.number as usize)
                && source.interest.is_none()
            {
                source.task = core.current.get();
                let interest = Interest {
                    read: false,
                    write: false,
                };
                // Where it cannot be, the next read or write shows it.
                let _ = self.set_interest(core, source, interest);
            }
        });
    }

    /// Until the next wait to read, what arrives after something unread wakes no task.
    pub(super) fn suspend_read_interest(&self) {
        with_core(|core| {
            if let Some(source) = core.sources.borrow_mut().get_mut(self.number as usize)
                && let Some(interest) = source.interest
                && source.readable
            {
                let interest = Interest {
                    read: false,
                    ..interest
                };
                // Where it cannot be changed, tasks are woken in vain.
                let _ = self.set_interest(core, source, interest);
            }
        });
    }

    fn set_interest(&self, core: &Core, source: &mut Source, interest: Interest) -> io::Result<()> {
        if source.interest == Some(interest) {
            return Ok(());
        }
        use EventFlags as E;
        let mut events = E::RDHUP | E::ET;
        events.set(E::IN | E::PRI, interest.read);
        events.set(E::OUT, interest.write);
        match source.interest {
            None => core
                .reactor
                .register(&self.fd, self.number.into(), events)?,
            Some(_) => core.reactor.change(&self.fd, self.number.into(), events)?,
        }
        source.interest = Some(interest);
        Ok(())
    }

    /// To be called before it is closed where another process has the socket as well: the kernel
    /// would go on reporting it.
    pub(super) fn deregister(&self) {
        with_core(|core| {
            if let Some(source) = core.sources.borrow_mut().get_mut(self.number as usize)
                && source.interest.take().is_some()
            {
                // It fails only where it is not registered.
                let _ = core.reactor.deregister(&self.fd);
            }
        });
    }

    pub(super) fn get(&self, property: impl FnOnce(&Source) -> bool) -> bool {
        with_core(|core| {
            let sources = core.sources.borrow();
            sources.get(self.number as usize).is_some_and(property)
        })
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut Source)) {
        with_core(|core| {
            let mut sources = core.sources.borrow_mut();
            sources.get_mut(self.number as usize).map(change);
        });
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Socket {
    /// Writes what is deferred. Closing deregisters it.
    fn drop(&mut self) {
        // After the executor there are no sources either.
        let _ = CORE.try_with(|core| {
            let core = core.get()?;
            if self.get(|source| source.has_deferred) {
                core.flush();
            }
            let source = core.sources.borrow_mut().try_remove(self.number as usize)?;
            if source.has_unwritten {
                core.take_unwritten(self.number);
            }
            Some(())
        });
    }
}

//! A connection of a task, TCP and unix alike.

use super::{
    Core,
    deferred::Unwritten,
    socket::{PeerEnd, Socket},
    with_core,
};
use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, Shutdown, connect, recv, send, shutdown},
};
use socket2::SockRef;
use std::{
    cell::Cell,
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    task::{Poll, ready},
};

#[derive(Debug)]
pub struct Stream {
    pub(super) socket: Socket,
    kind: StreamKind,
    nodelay: Cell<NoDelay>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamKind {
    Tcp,
    Unix,
}

/// What is known of a connection that its socket does not report again.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct StreamState {
    pub peer_end: PeerEnd,
    pub at_urgent_mark: bool,
    pub is_unwritable: bool,
    pub nodelay: NoDelay,
}

/// When TCP_NODELAY is set. The first bytes leave at once without it, and many sessions send no
/// others: it is set before the second write.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum NoDelay {
    /// It is set already, or not wanted.
    #[default]
    Never,
    BeforeNextWrite,
    BeforeSecondWrite,
}

impl Stream {
    /// A connection that was accepted: its client may have sent something already.
    pub fn accepted(fd: OwnedFd, kind: StreamKind) -> Self {
        Self::new(Socket::new(fd, true), kind)
    }

    /// A connection to be made by [`Self::poll_connect`], or just made.
    pub fn connecting(fd: OwnedFd, kind: StreamKind) -> Self {
        Self::new(Socket::new(fd, false), kind)
    }

    /// A connection that another process has carried so far. Everything is tried, since that
    /// process has seen the events.
    pub fn taken_over(fd: OwnedFd, kind: StreamKind, state: StreamState) -> Self {
        let stream = Self::new(Socket::new(fd, true), kind);
        stream.nodelay.set(state.nodelay);
        stream.socket.update(|source| {
            source.end = state.peer_end;
            source.at_urgent_mark = state.at_urgent_mark;
            source.is_unwritable = state.is_unwritable;
        });
        stream
    }

    pub fn state(&self) -> StreamState {
        let mut state = StreamState {
            nodelay: self.nodelay.get(),
            ..StreamState::default()
        };
        self.socket.update(|source| {
            state.peer_end = source.end;
            state.at_urgent_mark = source.at_urgent_mark;
            state.is_unwritable = source.is_unwritable;
        });
        state
    }

    /// To be called before it is closed where another process has the socket as well: the kernel
    /// would go on reporting it.
    pub fn deregister(&self) {
        self.socket.deregister();
    }

    pub fn kind(&self) -> StreamKind {
        self.kind
    }

    fn new(socket: Socket, kind: StreamKind) -> Self {
        Self {
            socket,
            kind,
            nodelay: Cell::new(NoDelay::Never),
        }
    }

    pub fn is_tcp(&self) -> bool {
        self.kind == StreamKind::Tcp
    }

    /// Sets TCP_NODELAY before the second write.
    pub fn set_nodelay_later(&self) {
        self.nodelay.set(NoDelay::BeforeSecondWrite);
    }

    pub(super) fn count_write(&self) {
        match self.nodelay.get() {
            NoDelay::Never => {}
            NoDelay::BeforeSecondWrite => self.nodelay.set(NoDelay::BeforeNextWrite),
            NoDelay::BeforeNextWrite => {
                // It fails only on a socket that is dead.
                let _ = SockRef::from(&self.socket).set_tcp_nodelay(true);
                self.nodelay.set(NoDelay::Never);
            }
        }
    }

    /// The address that the peer connected to, if that is an IP address. A system call.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        let address = SockRef::from(&self.socket).local_addr().ok()?;
        address.as_socket()
    }

    /// Starts to connect, or goes on: ready when it has succeeded or failed. While a connect is
    /// under way, Linux reports its result to the next call.
    pub fn poll_connect(&self, address: &SocketAddr) -> Poll<io::Result<()>> {
        let mut result = connect(&self.socket, address);
        // A peer on this machine has answered by now.
        if result == Err(Errno::INPROGRESS) && address.ip().is_loopback() {
            result = connect(&self.socket, address);
        }
        match result {
            Ok(()) | Err(Errno::ISCONN) => Poll::Ready(Ok(())),
            Err(Errno::INPROGRESS | Errno::ALREADY | Errno::INTR) => {
                self.mark_unwritable();
                ready!(self.socket.poll_writable())?;
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }

    /// Ready when reading may succeed.
    pub fn poll_readable(&self) -> Poll<io::Result<()>> {
        self.socket.poll_readable()
    }

    /// Ready when writing may succeed.
    pub fn poll_writable(&self) -> Poll<io::Result<()>> {
        self.socket.poll_writable()
    }

    /// Ready when the peer is known to have ended. What it sends before wakes no task.
    pub fn poll_peer_end(&self) -> Poll<io::Result<()>> {
        self.socket.poll_peer_end()
    }

    /// Reads at most once; 0 is the end.
    pub fn poll_read(&self, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_readable())?;
            match recv(&self.socket, &mut *buf, RecvFlags::empty()) {
                Ok((n, _)) => {
                    // A short read has drained a TCP socket, which saves the call that would return
                    // nothing. On a unix socket a read also ends where a descriptor was passed.
                    if self.is_tcp() && n > 0 && n < buf.len() {
                        self.mark_drained();
                    }
                    return Poll::Ready(Ok(n));
                }
                Err(Errno::AGAIN) => self.mark_would_block(),
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// A read was short: the socket is empty, unless its end or an urgent mark cut the read.
    fn mark_drained(&self) {
        self.socket.update(|source| {
            if source.end == PeerEnd::Open && !source.at_urgent_mark {
                source.readable = false;
            }
        });
    }

    /// A call that reads has found nothing: the next [`Self::poll_readable`] waits.
    pub fn mark_would_block(&self) {
        self.socket.update(|source| source.readable = false);
    }

    fn mark_unwritable(&self) {
        self.socket.update(|source| source.writable = false);
    }

    /// Whether the end of the peer has arrived, and was clean: what is before it can be read at
    /// once.
    pub fn peer_has_ended(&self) -> bool {
        self.socket.get(|source| source.end == PeerEnd::Ended)
    }

    /// Whether the connection is known to have failed: nothing that is written arrives any more.
    pub fn has_failed(&self) -> bool {
        self.socket.get(|source| source.end == PeerEnd::Failed)
    }

    /// Why. A read finds a clean end afterwards.
    pub fn take_error(&self) -> Option<io::Error> {
        SockRef::from(&self.socket).take_error().ok().flatten()
    }

    /// Whether there was TCP urgent data, before which a read ends, whatever comes after.
    pub fn is_at_urgent_mark(&self) -> bool {
        self.socket.get(|source| source.at_urgent_mark)
    }

    /// For a reader that waits for another socket: it learns at least of the end of this one.
    pub fn watch_end(&self) {
        self.socket.watch_end();
    }

    /// For a reader that waits for another socket: until its next wait to read, what arrives after
    /// something unread does not wake it.
    pub fn suspend_read_interest(&self) {
        self.socket.suspend_read_interest();
    }

    /// `more`: something else follows at once, be it the end, which is to leave together with this.
    pub fn poll_write(&self, buf: &[u8], more: bool) -> Poll<io::Result<usize>> {
        debug_assert!(
            !self.socket.get(|s| s.has_deferred || s.has_unwritten),
            "deferred bytes come first"
        );
        self.count_write();
        let mut flags = SendFlags::NOSIGNAL;
        flags.set(SendFlags::MORE, more);
        loop {
            ready!(self.socket.poll_writable())?;
            match send(&self.socket, buf, flags) {
                Ok(n) => {
                    if n < buf.len() {
                        self.mark_unwritable();
                    }
                    return Poll::Ready(Ok(n));
                }
                Err(Errno::AGAIN) => self.mark_unwritable(),
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// Runs a call that writes; "would block" makes the next [`Self::poll_writable`] wait.
    pub fn try_write<R>(
        &self,
        call: impl FnOnce(BorrowedFd<'_>) -> io::Result<R>,
    ) -> io::Result<R> {
        self.count_write();
        let result = call(self.socket.as_fd());
        if matches!(&result, Err(e) if e.kind() == io::ErrorKind::WouldBlock) {
            self.mark_unwritable();
        }
        result
    }

    /// Whether bytes are to be written at the end of this turn.
    pub fn has_deferred(&self) -> bool {
        self.socket.get(|source| source.has_deferred)
    }

    /// Writes what is deferred, and returns all that could not be written, now or before.
    pub fn take_unwritten(&self) -> Option<Unwritten> {
        if self.has_deferred() {
            with_core(Core::flush);
        }
        if !self.socket.get(|source| source.has_unwritten) {
            return None;
        }
        self.socket.update(|source| source.has_unwritten = false);
        with_core(|core| core.take_unwritten(self.socket.number))
    }

    /// Whether a deferred write has failed, so that reading does not show any more how the
    /// connection ended.
    pub fn is_unwritable(&self) -> bool {
        self.socket.get(|source| source.is_unwritable)
    }

    /// The peer sees the end after everything that was written before.
    pub fn end_writing(&self) -> io::Result<()> {
        if self.has_deferred() {
            with_core(Core::flush);
        }
        Ok(shutdown(&self.socket, Shutdown::Write)?)
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

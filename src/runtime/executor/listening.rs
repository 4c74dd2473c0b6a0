//! A socket that accepts connections.

use super::socket::{PeerEnd, Socket};
use crate::runtime::executor::CORE;
use rustix::net::{SocketFlags, acceptfrom_with};
use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    task::{Poll, ready},
};

/// It must be non-blocking.
#[derive(Debug)]
pub struct ListeningSocket(Socket);

impl ListeningSocket {
    pub fn new(fd: impl Into<OwnedFd>) -> Self {
        Self(Socket::new(fd.into(), true))
    }

    /// The next connection, and its peer's address if that is an IP address.
    pub fn poll_accept(&self) -> Poll<io::Result<(OwnedFd, Option<SocketAddr>)>> {
        loop {
            ready!(self.0.poll_readable())?;
            match self.accept() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.0.update(|source| {
                        source.readable = false;
                        source.end = PeerEnd::Open;
                    });
                }
                result => return Poll::Ready(result),
            }
        }
    }

    /// Wakes its task no more, until the next wait. That begins with an attempt.
    pub fn suspend(&self) {
        self.0.deregister();
        self.0.update(|source| source.readable = true);
    }

    /// Asks the kernel, whatever the executor knows.
    pub fn accept(&self) -> io::Result<(OwnedFd, Option<SocketAddr>)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (socket, address) = acceptfrom_with(&self.0, flags)?;
        Ok((socket, address.and_then(|address| address.try_into().ok())))
    }
}

impl AsFd for ListeningSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Drop for ListeningSocket {
    /// Workers share unix sockets, so that closing alone does not deregister it.
    fn drop(&mut self) {
        let _ = CORE.try_with(|core| {
            core.get()
                .map(|core| core.reactor.deregister(self.0.as_fd()))
        });
    }
}

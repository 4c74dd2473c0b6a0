//! Whether the system calls for batches of datagrams are available.

use super::receive::empty;
use std::{io, net::UdpSocket, os::fd::AsRawFd, ptr};

/// A system call that is needed and missing: the kernel has none, or a filter refuses it.
#[derive(Debug)]
pub struct MissingCall {
    pub name: &'static str,
    pub error: io::Error,
}

/// Tries each call once on a socket that receives nothing and sends nothing.
pub fn find_missing_call() -> Option<MissingCall> {
    let socket = UdpSocket::bind(("127.0.0.1", 0))
        .or_else(|_| UdpSocket::bind(("::1", 0)))
        .ok()?;
    let socket = socket.as_raw_fd();
    let mut header = empty();
    // SAFETY: one header, a live local that points to no name, no buffer and no control space; the
    // descriptor is that of a live socket.
    let received = unsafe {
        libc::recvmmsg(
            socket,
            &raw mut header,
            1,
            libc::MSG_DONTWAIT as _,
            ptr::null_mut(),
        )
    };
    let received = (received, io::Error::last_os_error());
    // SAFETY: as above. Without a destination the kernel refuses it.
    let sent = unsafe { libc::sendmmsg(socket, &raw mut header, 1, libc::MSG_DONTWAIT as _) };
    let sent = (sent, io::Error::last_os_error());
    let calls = [("recvmmsg", received), ("sendmmsg", sent)];
    calls.into_iter().find_map(|(name, (result, error))| {
        let is_missing = matches!(
            error.raw_os_error(),
            Some(libc::ENOSYS | libc::EPERM | libc::EACCES)
        );
        (result < 0 && is_missing).then_some(MissingCall { name, error })
    })
}

//! What the standard library and tokio do not tell about a socket.

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{SendFlags, connect_unspec, send},
};
use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    time::Duration,
};

/// What can be learned of a peer without reading and without touching the event loop's own view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerNow {
    Here,
    /// It has said that it will send no more, and has sent nothing that we have not read.
    EndedSilently,
    /// Reset, or both directions closed.
    Gone,
}

pub fn peer_now(socket: impl AsFd) -> io::Result<PeerNow> {
    let mut fds = [PollFd::new(&socket, PollFlags::IN | PollFlags::RDHUP)];
    poll(&mut fds, Some(&rustix::time::Timespec::default()))?;
    let events = fds[0].revents();
    Ok(
        if events.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
            PeerNow::Gone
        } else if events.contains(PollFlags::RDHUP) && unread(&socket)? == 0 {
            PeerNow::EndedSilently
        } else {
            PeerNow::Here
        },
    )
}

/// Bytes that have arrived and were not read.
pub fn unread(socket: impl AsFd) -> io::Result<u64> {
    Ok(rustix::io::ioctl_fionread(socket)?)
}

/// Bytes that were written and that the peer's kernel has not acknowledged.
pub fn unacknowledged(socket: impl AsFd) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: TIOCOUTQ (SIOCOUTQ) writes one int to the address given, which is that of a live local
    // variable of that type; the descriptor is borrowed and so open.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u32::try_from(bytes).unwrap_or(0))
}

/// Writes what fits, possibly nothing. The descriptor must be one of the caller's sockets, and open.
pub fn send_now(socket: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: it stays open for as long as this is borrowed, which is this call: the caller says so.
    let socket = unsafe { BorrowedFd::borrow_raw(socket) };
    loop {
        match send(socket, bytes, SendFlags::NOSIGNAL) {
            Ok(n) => return Ok(n),
            Err(Errno::AGAIN) => return Ok(0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// From now on closing the socket sends a reset instead of a clean end.
pub fn reset_on_close(socket: impl AsFd) {
    let lingers = socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO));
    if lingers.is_err() {
        // Resets at once. A socket that is already dead refuses this as well, and needs no reset.
        let _ = connect_unspec(&socket);
    }
}

/// Whether the connection is known to be over for the kernel: nothing that was written will still be delivered.
pub fn is_dead(socket: impl AsFd) -> bool {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, the size of `info`, to the address of `info`, and to
    // `len` how many it wrote; both are live locals, and the descriptor is borrowed and so open.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    // SAFETY: every field is an integer, for which the zeros that were there from the start are valid.
    let info = unsafe { info.assume_init() };
    result == 0 && info.tcpi_state == TCP_CLOSE
}

/// From the kernel's list of TCP states.
const TCP_CLOSE: u8 = 7;

//! What the standard library and tokio do not tell about a socket.

use rustix::event::{PollFd, PollFlags, poll};
use std::{
    io,
    os::fd::{AsFd, AsRawFd},
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

/// From now on closing the socket sends a reset instead of a clean end.
pub fn reset_on_close(socket: impl AsFd) {
    // A socket that is already dead refuses; it needs no reset then.
    let _ = socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO));
}

/// Whether the connection is over for the kernel: nothing sent on it will arrive.
pub fn is_dead(socket: impl AsFd) -> bool {
    peer_now(socket).is_ok_and(|now| now == PeerNow::Gone)
}

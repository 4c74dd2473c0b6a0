//! The error queue of a socket: what the network or the local kernel reported about datagrams that
//! were sent before.

use super::{
    control::{CONTROL, Control, NAME, Name},
    options::set,
    receive::empty,
};
use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

/// Where a report comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The call that sent the datagram, which has returned the same error.
    Local,
    /// An ICMP message; also one of this host, where no neighbour has the address.
    Icmp,
    Other,
}

/// One entry of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorReport {
    pub errno: i32,
    pub origin: Origin,
    /// The address that the datagram was sent to.
    pub to: Option<SocketAddr>,
}

/// Asks for reports of every ICMP error, also of those that are not final, into the error queue.
/// `to`: what the socket is connected to. The queue has to be emptied with [`next_report`]: until
/// then epoll reports the socket.
pub fn ask_for_reports(socket: impl AsFd, to: &SocketAddr) -> io::Result<()> {
    let is_v4 = match to {
        SocketAddr::V4(_) => true,
        SocketAddr::V6(v6) => v6.ip().to_ipv4_mapped().is_some(),
    };
    match is_v4 {
        true => set(&socket, libc::IPPROTO_IP, libc::IP_RECVERR, 1),
        false => set(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1),
    }
}

/// Takes one report from the queue; `None` where it is empty.
pub fn next_report(socket: BorrowedFd<'_>) -> Option<ErrorReport> {
    let mut name = Name::EMPTY;
    let mut control = Control::EMPTY;
    let mut header = empty().msg_hdr;
    header.msg_name = (&raw mut name).cast();
    header.msg_namelen = NAME as libc::socklen_t;
    header.msg_control = (&raw mut control).cast();
    header.msg_controllen = CONTROL as _;
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: the header points to a name and a control space with their true lengths, live locals
    // that nothing else refers to, and to no buffer: the datagram itself is not wanted. The
    // descriptor is borrowed and so open.
    let result = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    if result < 0 {
        return None;
    }
    let (errno, origin) = control
        .read_report(header.msg_controllen as _)
        .unwrap_or((0, 0));
    Some(ErrorReport {
        errno,
        origin: match origin {
            libc::SO_EE_ORIGIN_LOCAL => Origin::Local,
            libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6 => Origin::Icmp,
            _ => Origin::Other,
        },
        to: name.read(header.msg_namelen as usize),
    })
}

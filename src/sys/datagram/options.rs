//! Options of sockets for datagrams.

use libc::c_int;
use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

/// Lets each datagram come with the address that it was sent to.
pub fn ask_for_destination(socket: impl AsFd, v6: bool) -> io::Result<()> {
    if v6 {
        set(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)
    } else {
        set(&socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)
    }
}

/// Lets datagrams of one size and one sender come as one, with their size.
pub fn take_coalesced(socket: impl AsFd) -> io::Result<()> {
    set(&socket, libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Sends datagrams that are too large for the path in fragments, instead of refusing or losing
/// them.
pub fn never_forbid_fragments(socket: impl AsFd, v6: bool) -> io::Result<()> {
    if v6 {
        let (level, option) = (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER);
        set(&socket, level, option, libc::IPV6_PMTUDISC_DONT)?;
    }
    // Also of an IPv6 socket, which may use IPv4 with mapped addresses.
    let (level, option) = (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER);
    set(&socket, level, option, libc::IP_PMTUDISC_DONT)
}

/// Datagrams that the kernel has dropped because the receive buffer was full, since the socket was
/// made, and the few with a wrong checksum. The counter has 32 bits and wraps.
pub fn drops(socket: impl AsFd) -> io::Result<u64> {
    let memory: [u32; MEMORY_FIELDS] = get(&socket, libc::SOL_SOCKET, libc::SO_MEMINFO)?;
    Ok(memory[DROPS].into())
}

/// How many numbers SO_MEMINFO has, and which of them are the drops (SK_MEMINFO_DROPS).
const MEMORY_FIELDS: usize = 9;
const DROPS: usize = 8;

/// Sets the size, or what is allowed of it: CAP_NET_ADMIN is needed beyond the system's limit.
pub fn receive_buffer(socket: impl AsFd, bytes: usize) {
    buffer(&socket, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, bytes);
}

/// Sets the size, or what is allowed of it: CAP_NET_ADMIN is needed beyond the system's limit.
pub fn send_buffer(socket: impl AsFd, bytes: usize) {
    buffer(&socket, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, bytes);
}

fn buffer(socket: &impl AsFd, forced: c_int, allowed: c_int, bytes: usize) {
    // The kernel doubles the number, and silently limits it.
    let bytes = c_int::try_from(bytes).unwrap_or(c_int::MAX / 2);
    let _ = set(socket, libc::SOL_SOCKET, forced, bytes)
        .or_else(|_| set(socket, libc::SOL_SOCKET, allowed, bytes));
}

pub(super) fn set(socket: &impl AsFd, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the kernel reads one int from the address given, which is that of a live local
    // variable of that type; the descriptor is borrowed and so open.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<c_int>() as libc::socklen_t,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Numbers that the kernel does not have are 0.
pub(super) fn get<const N: usize>(
    socket: &impl AsFd,
    level: c_int,
    option: c_int,
) -> io::Result<[u32; N]> {
    let mut numbers = [0; N];
    let mut len = size_of_val(&numbers) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, the size of `numbers`, to the address of
    // `numbers`, and to `len` how many it wrote; both are live locals, and the descriptor is
    // borrowed and so open.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            numbers.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(numbers)
}

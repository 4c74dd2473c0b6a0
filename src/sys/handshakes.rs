//! Handshakes of TCP that a listening socket takes part in: none is to begin any more when the
//! socket is about to be closed, and those that have begun are waited for.

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
};

/// The kernel drops what would begin a handshake with this listening socket from now on; the client
/// repeats it after a second. Handshakes that are under way go on.
pub fn refuse(socket: impl AsFd) -> io::Result<()> {
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    let step = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    // Filters of sockets see a packet from its TCP header on.
    let mut steps = [
        step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, FLAGS),
        step(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, SYN | ACK),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, SYN),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    ];
    let program = libc::sock_fprog {
        len: steps.len() as libc::c_ushort,
        filter: steps.as_mut_ptr(),
    };
    set_option(socket, libc::SO_ATTACH_FILTER, &program)
}

/// An accepted socket has inherited the filter of its listening socket, and needs none.
pub fn detach_filter(socket: impl AsFd) {
    // It fails where there is none.
    let _ = set_option(socket, libc::SO_DETACH_FILTER, &0_i32);
}

fn set_option<T>(socket: impl AsFd, option: i32, value: &T) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as `value` has, from where it is, and for a filter the
    // steps that it points to, which live until the caller returns; the descriptor is borrowed and
    // so open.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const *value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// struct nlmsghdr.
const HEADER: usize = 16;
/// struct inet_diag_req_v2.
const REQUEST: usize = 56;
/// TCP_SYN_RECV.
const SYN_RECV: u32 = 3;
/// In struct inet_diag_msg: the local port and address.
const PORT: usize = HEADER + 4;
const ADDRESS: usize = HEADER + 8;

/// Whether a client is in a handshake with one of these addresses of this host. May take
/// milliseconds where there are many sockets.
pub fn any_under_way(addresses: &[SocketAddr]) -> io::Result<bool> {
    for family in [libc::AF_INET, libc::AF_INET6] {
        let is_v6 = family == libc::AF_INET6;
        if addresses.iter().any(|address| address.is_ipv6() == is_v6)
            && any_of_family(family, addresses)?
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn any_of_family(family: i32, addresses: &[SocketAddr]) -> io::Result<bool> {
    let kind = SocketType::RAW;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let protocol = Some(netlink::SOCK_DIAG);
    let socket = socket_with(AddressFamily::NETLINK, kind, flags, protocol)?;
    send(&socket, &request(family), SendFlags::empty())?;
    let mut response = vec![0; 32 << 10];
    let mut any = false;
    loop {
        // The kernel prepares the next part while it is received: there is no wait.
        let (length, _) = recv(&socket, response.as_mut_slice(), RecvFlags::empty())?;
        let mut rest = response.get(..length).unwrap_or_default();
        while rest.len() >= HEADER {
            let size = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            let message = rest.get(..size).filter(|message| message.len() >= HEADER);
            let message = message.ok_or(io::ErrorKind::InvalidData)?;
            match i32::from(u16::from_ne_bytes([message[4], message[5]])) {
                libc::NLMSG_DONE => return Ok(any),
                libc::NLMSG_ERROR => return Err(error_of(message)),
                _ => {
                    let local = local_address(family, message);
                    any |= local.is_some_and(|local| addresses.iter().any(|a| covers(a, local)));
                }
            }
            rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// SOCK_DIAG_BY_FAMILY for all sockets in the state SYN_RECV.
fn request(family: i32) -> Vec<u8> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    let mut bytes = Vec::with_capacity(HEADER + REQUEST);
    bytes.extend(((HEADER + REQUEST) as u32).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence and port.
    bytes.extend([0; 8]);
    bytes.extend([family as u8, libc::IPPROTO_TCP as u8, 0, 0]);
    bytes.extend((1_u32 << SYN_RECV).to_ne_bytes());
    // Any addresses.
    bytes.resize(HEADER + REQUEST, 0);
    bytes
}

/// `None`: the message is too short for one.
fn local_address(family: i32, message: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(message.get(PORT..PORT + 2)?.try_into().ok()?);
    let ip = match family {
        libc::AF_INET => {
            let octets: [u8; 4] = message.get(ADDRESS..ADDRESS + 4)?.try_into().ok()?;
            IpAddr::V4(Ipv4Addr::from(octets))
        }
        _ => {
            let octets: [u8; 16] = message.get(ADDRESS..ADDRESS + 16)?.try_into().ok()?;
            IpAddr::V6(Ipv6Addr::from(octets))
        }
    };
    Some(SocketAddr::new(ip, port))
}

/// Whether a socket that listens there takes connections to this address.
fn covers(listening: &SocketAddr, local: SocketAddr) -> bool {
    let is_any = listening.ip().is_unspecified() && listening.is_ipv6() == local.is_ipv6();
    listening.port() == local.port() && (is_any || listening.ip() == local.ip())
}

fn error_of(message: &[u8]) -> io::Error {
    let code = message
        .get(HEADER..HEADER + 4)
        .and_then(|code| code.try_into().ok());
    let code = i32::from_ne_bytes(code.unwrap_or_default());
    io::Error::from_raw_os_error(-code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        time::Duration,
    };

    #[test]
    fn a_refused_handshake_begins_later_and_what_was_accepted_goes_on() {
        let first = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = first.local_addr().expect("an address");
        let mut queued = TcpStream::connect(address).expect("connected");
        refuse(&first).expect("a filter");
        let quick = Duration::from_millis(100);
        let refused = TcpStream::connect_timeout(&address, quick);
        assert_eq!(
            refused.map_err(|e| e.kind()).err(),
            Some(io::ErrorKind::TimedOut)
        );
        let (mut accepted, _) = first.accept().expect("accepted");
        detach_filter(&accepted);
        drop(first);
        queued.write_all(b"x").expect("written");
        let mut byte = [0];
        accepted.read_exact(&mut byte).expect("read");
        assert_eq!(byte, *b"x");
    }

    #[test]
    fn handshakes_of_other_addresses_do_not_count() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address");
        let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, address.port()));
        assert!(!any_under_way(&[address, v6]).expect("known"));
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
        assert!(covers(&any, address) && covers(&address, address));
        assert!(!covers(&address, any) && !covers(&any, v6));
    }

    /// A client that does not acknowledge the answer of the kernel: a filter drops what comes.
    #[test]
    fn a_handshake_that_is_not_over_is_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address");
        let kind = socket2::Type::STREAM.nonblocking();
        let client = socket2::Socket::new(socket2::Domain::IPV4, kind, None).expect("a socket");
        // It drops whatever comes for it.
        let mut step = libc::sock_filter {
            code: (libc::BPF_RET | libc::BPF_K) as u16,
            jt: 0,
            jf: 0,
            k: 0,
        };
        let nothing = libc::sock_fprog {
            len: 1,
            filter: &raw mut step,
        };
        set_option(&client, libc::SO_ATTACH_FILTER, &nothing).expect("a filter");
        let _ = client.connect(&address.into());
        assert!(any_under_way(&[address]).expect("known"));
        drop(client);
    }
}

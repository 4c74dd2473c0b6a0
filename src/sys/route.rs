//! Whether the kernel routes an address to this host.

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};
use std::{io, net::IpAddr};

/// struct nlmsghdr, and struct rtmsg behind it.
const HEADER: usize = 16;
const ROUTE: usize = 12;
/// Position of a route's kind in a response.
const KIND: usize = HEADER + 7;

/// Whether packets to this address are delivered to this host: the address of an interface, of a
/// loopback network, or of a `local` route.
pub fn is_local(ip: IpAddr) -> io::Result<bool> {
    let kind = SocketType::RAW;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // NETLINK_ROUTE is 0, as is no protocol.
    let socket = socket_with(AddressFamily::NETLINK, kind, flags, None)?;
    send(&socket, &request(ip), SendFlags::empty())?;
    // The kernel has responded by the time that the call returns.
    let mut response = [0; 512];
    let (length, _) = recv(&socket, &mut response, RecvFlags::empty())?;
    let is_route = response[4..6] == libc::RTM_NEWROUTE.to_ne_bytes();
    // No route at all is an error message, of another kind.
    Ok(length > KIND && is_route && response[KIND] == libc::RTN_LOCAL)
}

/// RTM_GETROUTE with the address as the destination.
fn request(ip: IpAddr) -> Vec<u8> {
    let (family, address) = match ip {
        IpAddr::V4(v4) => (libc::AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec()),
    };
    let attribute = 4 + address.len();
    let length = HEADER + ROUTE + attribute;
    let mut bytes = Vec::with_capacity(length);
    bytes.extend((length as u32).to_ne_bytes());
    bytes.extend(libc::RTM_GETROUTE.to_ne_bytes());
    bytes.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    // Sequence and port.
    bytes.extend([0; 8]);
    let mut route = [0; ROUTE];
    route[0] = family as u8;
    route[1] = (address.len() * 8) as u8;
    bytes.extend(route);
    bytes.extend((attribute as u16).to_ne_bytes());
    bytes.extend(libc::RTA_DST.to_ne_bytes());
    bytes.extend(address);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_addresses_are_local_and_others_are_not() {
        for (ip, local) in [
            ("127.0.0.1", true),
            ("127.9.8.7", true),
            ("::1", true),
            ("192.0.2.1", false),
            ("2001:db8::1", false),
            ("255.255.255.255", false),
        ] {
            let ip = ip.parse().expect("an address");
            assert_eq!(is_local(ip).expect("asked"), local, "{ip}");
        }
    }
}

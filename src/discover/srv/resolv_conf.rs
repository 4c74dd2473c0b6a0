//! The name servers of the system.

use nix::net::if_::if_nametoindex;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};

pub(super) const PATH: &str = "/etc/resolv.conf";
pub(super) const PORT: u16 = 53;
/// As many as the C library reads.
const MOST: usize = 3;

/// In their order; without any it is the one of this machine, as in the C library.
pub(super) fn read(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| address(words.next()?))?
    });
    let servers: Vec<SocketAddr> = servers.take(MOST).collect();
    match servers.is_empty() {
        true => vec![SocketAddr::from((Ipv4Addr::LOCALHOST, PORT))],
        false => servers,
    }
}

fn address(text: &str) -> Option<SocketAddr> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(SocketAddr::new(ip, PORT));
    }
    // Of a link, as in fe80::1%eth0.
    let (ip, interface) = text.split_once('%')?;
    let number = match interface.parse() {
        Ok(number) => number,
        Err(_) => if_nametoindex(interface).ok()?,
    };
    let address = SocketAddrV6::new(ip.parse().ok()?, PORT, 0, number);
    Some(address.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_in_their_order() {
        let text = "# nameserver 9.9.9.9\nsearch a b\n nameserver 10.0.0.1 \nnameserver fd00::1\n\
             nameserver x\nnameserver\nnameserver fe80::1%lo\nnameserver 10.0.0.4\n";
        let servers: Vec<String> = read(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.0.0.1:53", "[fd00::1]:53", "[fe80::1%1]:53"]);
        for text in ["", "\0", "nameserver", "nameserver 1.2.3"] {
            let servers: Vec<String> = read(text).iter().map(ToString::to_string).collect();
            assert_eq!(servers, ["127.0.0.1:53"], "{text:?}");
        }
    }
}

//! What a hash key can be made of, and the key.

use crate::plan::{HashKey, KeyPart, Variable};
use smallvec::SmallVec;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Long enough for two addresses as text: a key is made without allocating.
pub(super) type KeyBytes = SmallVec<[u8; 96]>;

/// The properties of a session that a key may consist of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HashInput {
    /// `None`, here and below: a client on a unix socket.
    pub remote_addr: Option<IpAddr>,
    pub remote_port: Option<u16>,
    /// The port that the client connected to.
    pub server_port: Option<u16>,
    /// The address in an accepted PROXY header.
    pub proxy_protocol_addr: Option<IpAddr>,
}

impl HashInput {
    /// An empty key does not identify the client.
    pub fn has_key(&self, key: &HashKey) -> bool {
        !self.key(key).is_empty()
    }

    pub(super) fn key(&self, key: &HashKey) -> KeyBytes {
        let mut out = KeyBytes::new();
        for part in &key.0 {
            match part {
                KeyPart::Text(text) => out.extend_from_slice(text.as_bytes()),
                KeyPart::Variable(variable) => self.append(*variable, &mut out),
            }
        }
        out
    }

    fn append(&self, variable: Variable, out: &mut KeyBytes) {
        match (variable, self.remote_addr) {
            // Clients on a unix socket have no address; nginx calls them all `unix:`, and so do we.
            (Variable::RemoteAddr | Variable::BinaryRemoteAddr, None) => {
                out.extend_from_slice(b"unix:");
            }
            (Variable::RemoteAddr, Some(ip)) => print_ip(out, ip),
            (Variable::BinaryRemoteAddr, Some(IpAddr::V4(ip))) => {
                out.extend_from_slice(&ip.octets());
            }
            (Variable::BinaryRemoteAddr, Some(IpAddr::V6(ip))) => {
                out.extend_from_slice(&ip.octets());
            }
            (Variable::RemotePort, _) => print_port(out, self.remote_port),
            (Variable::ServerPort, _) => print_port(out, self.server_port),
            (Variable::ProxyProtocolAddr, _) => {
                self.proxy_protocol_addr
                    .into_iter()
                    .for_each(|ip| print_ip(out, ip));
            }
        }
    }
}

// Printed by hand: the formatter of the standard library takes longer than all the rest of a pick.

fn print_ip(out: &mut KeyBytes, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => print_v4(out, ip),
        IpAddr::V6(ip) => print_v6(out, ip),
    }
}

fn print_v4(out: &mut KeyBytes, ip: Ipv4Addr) {
    for (i, octet) in ip.octets().into_iter().enumerate() {
        if i > 0 {
            out.push(b'.');
        }
        print_number(out, u16::from(octet));
    }
}

fn print_v6(out: &mut KeyBytes, ip: Ipv6Addr) {
    if let Some(mapped) = ip.to_ipv4_mapped() {
        out.extend_from_slice(b"::ffff:");
        return print_v4(out, mapped);
    }
    if let Some(compatible) = ipv4_compatible(ip) {
        out.extend_from_slice(b"::");
        return print_v4(out, compatible);
    }
    let groups = ip.segments();
    let (from, len) = longest_zeros(&groups);
    for (i, group) in groups.into_iter().enumerate() {
        if i == from && len > 0 {
            out.extend_from_slice(b"::");
        }
        if (from..from + len).contains(&i) {
            continue;
        }
        if i > 0 && i != from + len {
            out.push(b':');
        }
        print_hex(out, group);
    }
}

/// nginx prints most addresses of the long deprecated `::/96` in this mixed form; the standard
/// library does not.
fn ipv4_compatible(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let [0, 0, 0, 0, 0, 0, high, _] = ip.segments() else {
        return None;
    };
    let [.., a, b, c, d] = ip.octets();
    (high != 0 || (c != 0 && d != 1)).then(|| Ipv4Addr::new(a, b, c, d))
}

/// Where the first longest run of at least two groups of zero begins, and how long it is; if none,
/// 8 and 0.
fn longest_zeros(groups: &[u16; 8]) -> (usize, usize) {
    let (mut from, mut len) = (8, 0);
    let mut run = 0;
    for (i, group) in groups.iter().enumerate() {
        run = if *group == 0 { run + 1 } else { 0 };
        if run > len.max(1) {
            (from, len) = (i + 1 - run, run);
        }
    }
    (from, len)
}

fn print_port(out: &mut KeyBytes, port: Option<u16>) {
    if let Some(port) = port {
        print_number(out, port);
    }
}

fn print_number(out: &mut KeyBytes, number: u16) {
    let digit = |unit: u16| b'0' + (number / unit % 10) as u8;
    for unit in [10_000, 1_000, 100, 10] {
        if number >= unit {
            out.push(digit(unit));
        }
    }
    out.push(digit(1));
}

fn print_hex(out: &mut KeyBytes, number: u16) {
    let digit = |shift: u16| b"0123456789abcdef"[usize::from(number >> shift & 15)];
    for shift in [12, 8, 4] {
        if number >> shift > 0 {
            out.push(digit(shift));
        }
    }
    out.push(digit(0));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hash_input(remote: &str) -> HashInput {
        HashInput {
            remote_addr: Some(remote.parse().expect("an address")),
            remote_port: Some(5000),
            server_port: Some(6379),
            proxy_protocol_addr: None,
        }
    }

    fn key(input: &HashInput, parts: &[KeyPart]) -> Vec<u8> {
        input.key(&HashKey(parts.to_vec())).to_vec()
    }

    fn variable(v: Variable) -> KeyPart {
        KeyPart::Variable(v)
    }

    #[test]
    fn addresses_print_as_in_nginx() {
        for (ip, text) in [
            ("192.0.2.7", "192.0.2.7"),
            ("2001:DB8:0:0:1:0:0:1", "2001:db8::1:0:0:1"),
            ("2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1"),
            ("::ffff:192.0.2.1", "::ffff:192.0.2.1"),
            // Taken from nginx 1.22.1.
            ("::92a2", "::0.0.146.162"),
            ("::1:0", "::0.1.0.0"),
            ("::2", "::2"),
            ("::1", "::1"),
        ] {
            let got = key(&hash_input(ip), &[variable(Variable::RemoteAddr)]);
            assert_eq!(String::from_utf8_lossy(&got), text);
        }
        let got = key(
            &hash_input("192.0.2.7"),
            &[variable(Variable::BinaryRemoteAddr)],
        );
        assert_eq!(got, [192, 0, 2, 7]);
    }

    proptest! {
        #[test]
        fn numbers_and_addresses_print_as_in_the_standard_library(
            v4 in any::<u32>(),
            // Of zeros and others, so that there are runs to shorten.
            v6 in proptest::array::uniform8(prop_oneof![Just(0u16), Just(0xffff), any::<u16>()]),
            port in any::<u16>(),
        ) {
            let text = |print: &dyn Fn(&mut KeyBytes)| {
                let mut out = KeyBytes::new();
                print(&mut out);
                String::from_utf8_lossy(&out).into_owned()
            };
            let (v4, v6) = (Ipv4Addr::from(v4), Ipv6Addr::from(v6));
            prop_assert_eq!(text(&|out| print_v4(out, v4)), v4.to_string());
            if ipv4_compatible(v6).is_none() {
                prop_assert_eq!(text(&|out| print_v6(out, v6)), v6.to_string());
            }
            let mapped = v4.to_ipv6_mapped();
            prop_assert_eq!(text(&|out| print_v6(out, mapped)), mapped.to_string());
            prop_assert_eq!(text(&|out| print_number(out, port)), port.to_string());
        }
    }

    #[test]
    fn parts_follow_each_other() {
        let parts = [
            variable(Variable::RemoteAddr),
            KeyPart::Text("-".to_owned()),
            variable(Variable::RemotePort),
            variable(Variable::ServerPort),
        ];
        assert_eq!(key(&hash_input("192.0.2.7"), &parts), b"192.0.2.7-50006379");
        assert_eq!(key(&HashInput::default(), &parts), b"unix:-");
    }

    #[test]
    fn without_a_header_its_address_is_empty() {
        let part = [variable(Variable::ProxyProtocolAddr)];
        let mut input = hash_input("192.0.2.7");
        assert_eq!(key(&input, &part), b"");
        input.proxy_protocol_addr = input.remote_addr;
        assert_eq!(key(&input, &part), b"192.0.2.7");
    }
}

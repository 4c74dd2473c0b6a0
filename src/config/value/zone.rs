//! The zone of a link-local address: the interface in `[fe80::1%eth0]:80`.

use crate::config::text::report::{Fault, fault};
use nix::net::if_::if_nametoindex;
use std::net::Ipv6Addr;

/// The kernel gives out no such numbers. An interface that this machine does not have gets one of
/// them, so that a configuration can be checked and explained on another machine; a start refuses
/// it.
const ABSENT: u32 = 1 << 31;

/// The kernel's limit, without the zero at the end.
const LONGEST_NAME: usize = 15;

/// The number of the interface; 0 for addresses that need none. `text` is the whole address, for
/// messages.
pub(crate) fn read(text: &str, ip: Ipv6Addr, zone: Option<&str>) -> Result<u32, Fault> {
    let port = text.rsplit_once("]:").map_or("PORT", |(_, port)| port);
    let example = format!("[{ip}%eth0]:{port}");
    match zone {
        None if needs_zone(ip) => Err(fault!(
            "{text:?}: a link-local address is ambiguous without its interface"
        )
        .hint(format!(
            "add it as in {example:?}; `ip -6 address` lists interfaces and addresses"
        ))),
        None => Ok(0),
        Some(_) if !needs_zone(ip) => Err(fault!(
            "{text:?}: only link-local addresses have an interface"
        )
        .hint("leave out the % and what follows it")),
        Some(zone) => number(zone).ok_or_else(|| {
            fault!("{text:?}: {zone:?} is no name of an interface")
                .hint(format!("the name or the number of one, as in {example:?}"))
        }),
    }
}

/// As the kernel has it.
fn needs_zone(ip: Ipv6Addr) -> bool {
    ip.is_unicast_link_local() || matches!(ip.segments()[0] & 0xff0f, 0xff01 | 0xff02)
}

fn number(zone: &str) -> Option<u32> {
    // Digits alone are a number, also one that is out of range.
    if zone.bytes().all(|b| b.is_ascii_digit()) {
        return zone
            .parse()
            .ok()
            .filter(|number| (1..ABSENT).contains(number));
    }
    let allowed = |c: char| !c.is_whitespace() && !c.is_control() && c != '/' && c != ':';
    if zone.is_empty() || zone.len() > LONGEST_NAME || !zone.chars().all(allowed) {
        return None;
    }
    Some(if_nametoindex(zone).unwrap_or_else(|_| {
        // Another number for each name, so that two of them are two addresses.
        let hash = zone.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
        ABSENT | hash
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let ip: Ipv6Addr = "fe80::1".parse().expect("an address");
        let zone = |zone| read("[fe80::1%x]:80", ip, Some(zone));
        assert_eq!(zone("3"), Ok(3));
        assert_eq!(zone("lo"), Ok(1));
        let absent = zone("no-such-if").expect("a name");
        assert!(absent >= ABSENT && zone("no-such-if2") != Ok(absent));
        for bad in [
            "",
            "0",
            "2147483648",
            "4294967296",
            "a b",
            "a/b",
            "sixteen-bytes-ab",
        ] {
            assert!(zone(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn which_addresses_have_one() {
        for (text, needed) in [
            ("fe80::1", true),
            ("febf::1", true),
            ("ff02::1", true),
            ("ff05::1", false),
            ("fec0::1", false),
            ("2001:db8::1", false),
            ("::1", false),
        ] {
            let ip = text.parse().expect("an address");
            let whole = format!("[{text}]:80");
            assert_eq!(read(&whole, ip, None).is_err(), needed, "{text}");
            assert_eq!(read(&whole, ip, Some("lo")).is_ok(), needed, "{text}");
        }
        let ip = "fe80::1".parse().expect("an address");
        let fault = read("[fe80::1]:80", ip, None).expect_err("refused");
        let hint = fault.hint.unwrap_or_default();
        assert!(hint.contains("\"[fe80::1%eth0]:80\""), "{hint}");
    }
}

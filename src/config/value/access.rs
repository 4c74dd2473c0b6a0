//! Access rules as text: "allow 10.0.0.0/8", "deny unix", "deny all".

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{
    config::text::{report::Fault, suggestions::nearest},
    plan::{AccessRule, PeerSet},
};

/// What an import writes for a rule that it cannot carry over: without it clients would be served
/// that the rule refuses.
pub(crate) const UNDECIDED: &str = "undecided";
/// What is to be done with it.
pub(crate) const INSTEAD: &str = "write \"allow PEER\" or \"deny PEER\" in the place of \
                                  \"undecided\", or take it out and write a limit into the \
                                  listener, such as `max_connections_per_source` or \
                                  `connection_rate_per_source`";

pub(crate) fn parse(text: &str) -> Result<AccessRule, Fault> {
    read(text).map_err(|fault| {
        fault.or_hint(
            "as in \"allow 192.0.2.1\", \"allow 10.0.0.0/8\", \"deny unix\" or \"deny all\"",
        )
    })
}

fn read(text: &str) -> Result<AccessRule, Fault> {
    if text == UNDECIDED {
        return Err(Fault::new(format!(
            "{UNDECIDED:?} stands for an access rule that an import could not carry over"
        ))
        .hint(format!(
            "{INSTEAD}; without either the clients that the rule refuses are served"
        )));
    }
    let mut words = text.split_whitespace();
    let (Some(verb), Some(peers), None) = (words.next(), words.next(), words.next()) else {
        return Err(Fault::new(format!("{text:?} is no access rule")).hint(
            "write \"allow PEER\" or \"deny PEER\"; PEER is an address, a network, `unix` or `all`",
        ));
    };
    let allow = match verb {
        "allow" => true,
        "deny" => false,
        _ => {
            return Err(Fault::new(format!(
                "an access rule begins with `allow` or `deny`, not {verb:?}"
            ))
            .hint(nearest(verb, &["allow", "deny"]).map_or_else(
                || "as in \"allow 10.0.0.0/8\"".to_owned(),
                |near| format!("did you mean `{near}`?"),
            )));
        }
    };
    Ok(AccessRule {
        allow,
        peers: parse_peers(peers)?,
    })
}

pub fn format(rule: &AccessRule) -> String {
    let verb = if rule.allow { "allow" } else { "deny" };
    format!("{verb} {}", format_peers(rule.peers))
}

pub(crate) fn format_peers(peers: PeerSet) -> String {
    match peers {
        PeerSet::All => "all".to_owned(),
        PeerSet::Unix => "unix".to_owned(),
        PeerSet::Net(ip, length) => format!("{ip}/{length}"),
    }
}

pub fn parse_peers(peers: &str) -> Result<PeerSet, Fault> {
    match peers {
        "all" => return Ok(PeerSet::All),
        "unix" => return Ok(PeerSet::Unix),
        _ => {}
    }
    if let Ok(ip) = peers.parse::<IpAddr>() {
        return Ok(net(ip, if ip.is_ipv4() { 32 } else { 128 }));
    }
    let Some((ip, length)) = peers.split_once('/') else {
        let fault = Fault::new(format!(
            "{peers:?} is no address, no network, and neither `unix` nor `all`"
        ));
        return Err(match nearest(peers, &["all", "unix"]) {
            Some(near) => fault.hint(format!("did you mean `{near}`?")),
            None => fault,
        });
    };
    let Ok(ip) = ip.parse::<IpAddr>() else {
        return Err(Fault::new(format!("{ip:?} is no IP address")));
    };
    let most = if ip.is_ipv4() { 32 } else { 128 };
    let digits = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
    let net = length
        .parse::<u8>()
        .ok()
        .filter(|_| digits)
        .and_then(|length| IpNet::new(ip, length).ok());
    let Some(net) = net else {
        return Err(
            Fault::new(format!("{length:?} is no prefix length for {ip}"))
                .hint(format!("from 0 to {most}")),
        );
    };
    if net.trunc() != net {
        return Err(Fault::new(format!(
            "{peers} is no network: bits are set beyond /{length}"
        ))
        .hint(format!(
            "did you mean {}? For the one address write {ip}",
            net.trunc()
        )));
    }
    Ok(self::net(ip, net.prefix_len()))
}

/// Mapped IPv4 addresses are those of IPv4 clients, and are compared as such.
fn net(ip: IpAddr, length: u8) -> PeerSet {
    match (ip.to_canonical(), length.checked_sub(96)) {
        (IpAddr::V4(mapped), Some(length)) if ip.is_ipv6() => PeerSet::Net(mapped.into(), length),
        _ => PeerSet::Net(ip, length),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read() {
        let net = |text: &str, length| PeerSet::Net(text.parse().expect("ip"), length);
        for (text, allow, peers) in [
            ("allow 10.0.0.0/8", true, net("10.0.0.0", 8)),
            ("deny  192.0.2.1", false, net("192.0.2.1", 32)),
            ("deny all", false, PeerSet::All),
            ("allow unix", true, PeerSet::Unix),
            ("allow 2001:db8::/32", true, net("2001:db8::", 32)),
            ("allow ::1", true, net("::1", 128)),
            ("deny ::ffff:10.9.0.0/112", false, net("10.9.0.0", 16)),
            ("deny ::ffff:10.9.0.1", false, net("10.9.0.1", 32)),
            ("deny ::/64", false, net("::", 64)),
            ("allow 0.0.0.0/0", true, net("0.0.0.0", 0)),
        ] {
            let rule = AccessRule { allow, peers };
            assert_eq!(parse(text), Ok(rule.clone()), "{text}");
            assert_eq!(parse(&format(&rule)), Ok(rule), "{text}");
        }
    }

    #[test]
    fn what_is_refused() {
        for (text, part) in [
            ("", "no access rule"),
            ("allow", "no access rule"),
            ("allow a b", "no access rule"),
            ("permit all", "not \"permit\""),
            ("alow all", "did you mean `allow`"),
            ("allow al", "did you mean `all`"),
            (
                "allow 10.0.0.1/8",
                "did you mean 10.0.0.0/8? For the one address write 10.0.0.1",
            ),
            ("allow 10.0.0.0/33", "from 0 to 32"),
            ("allow 10.0.0.0/+8", "no prefix length"),
            ("allow 10.0.0.0/", "no prefix length"),
            ("allow ::/129", "from 0 to 128"),
            ("allow x/8", "\"x\" is no IP address"),
        ] {
            let fault = parse(text).expect_err(text);
            let message = format!("{} {}", fault.message, fault.hint.unwrap_or_default());
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}

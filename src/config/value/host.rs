//! The host of an address: an IP address, or a name that could be one of a machine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::zone;
use crate::config::text::report::{Fault, fault};

pub(crate) enum Host<'a> {
    /// With the number of its interface, where it is link-local; else 0.
    Ip(IpAddr, u32),
    Name(&'a str),
}

/// `text` is the whole address, for messages; `host` has its brackets still.
pub(crate) fn parse<'a>(text: &str, host: &'a str) -> Result<Host<'a>, Fault> {
    if let Some(inner) = host.strip_prefix('[') {
        let inner = inner.trim_end_matches(']');
        let (address, zone) = match inner.split_once('%') {
            Some((address, zone)) => (address, Some(zone)),
            None => (inner, None),
        };
        return match address.parse::<Ipv6Addr>() {
            Ok(ip) => zone::read(text, ip, zone).map(|zone| Host::Ip(ip.into(), zone)),
            Err(_) if !inner.contains(':') && !inner.is_empty() => {
                Err(fault!("{text:?}: brackets are for IPv6 addresses")
                    .hint(format!("write {:?}", text.replace(['[', ']'], ""))))
            }
            Err(_) => Err(fault!("{inner:?} is no IPv6 address")),
        };
    }
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        return Ok(Host::Ip(ip.into(), 0));
    }
    // Resolvers take "10.1" and "0x7f.1" for addresses; a slip of the pen must not go that way.
    let last = host
        .trim_end_matches('.')
        .rsplit('.')
        .next()
        .unwrap_or_default();
    let hex = last.strip_prefix("0x").or(last.strip_prefix("0X"));
    if last.bytes().all(|b| b.is_ascii_digit())
        || hex.is_some_and(|x| x.bytes().all(|b| b.is_ascii_hexdigit()))
    {
        return Err(fault!("{host:?} is no IPv4 address")
            .hint("four numbers from 0 to 255 without leading zeros, with points between them"));
    }
    name(host).map(|()| Host::Name(host))
}

/// A name that the Host header of a request may have, in lower case and without a dot at its end.
pub(crate) fn header_name(text: &str) -> Result<String, Fault> {
    if text.contains("://") {
        let host = text.split('/').nth(2).unwrap_or_default();
        let host = host.split(':').next().unwrap_or_default();
        return Err(
            fault!("`hosts`: {text:?} is a URL, not a host name").hint(format!("write {host:?}"))
        );
    }
    if text.is_empty() {
        return Err(Fault::new("`hosts`: a name is empty").hint("leave it out"));
    }
    if text.contains('*') {
        return Err(fault!("`hosts`: {text:?} is no host name")
            .hint("patterns are not supported: write each name in full"));
    }
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    if bare.parse::<IpAddr>().is_ok() || text.parse::<SocketAddr>().is_ok() {
        return Err(fault!("`hosts`: {text:?} is an address, not a name")
            .hint("leave it out: requests that name an address are always answered"));
    }
    if let Some((name, _)) = text.split_once(':') {
        return Err(fault!("`hosts`: {text:?} is a name with a port")
            .hint(format!("write {name:?}: any port is accepted")));
    }
    let fault = |fault: Fault| Fault {
        message: format!("`hosts`: {}", fault.message),
        ..fault
    };
    match parse(text, text).map_err(|f| fault(f).or_hint("as in \"status.example.com\""))? {
        Host::Name(name) => Ok(name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()),
        Host::Ip(ip, _) => Ok(ip.to_string()),
    }
}

/// RFC 1123, and the underscore that container networks like to use.
fn name(host: &str) -> Result<(), Fault> {
    let bad = |why: String| Err(fault!("{host:?} is no host name: {why}"));
    if host.len() > 253 {
        return bad(format!("it has {} characters; 253 are allowed", host.len()));
    }
    // A point at the end means: do not try search domains.
    for label in host.strip_suffix('.').unwrap_or(host).split('.') {
        if label.is_empty() {
            return bad("there is nothing between two points".to_owned());
        }
        if label.len() > 63 {
            return bad(format!(
                "a part has {} characters; 63 are allowed",
                label.len()
            ));
        }
        if let Some(c) = label
            .chars()
            .find(|c| !c.is_ascii_alphanumeric() && *c != '-' && *c != '_')
        {
            return bad(format!("the character {c:?} is not allowed"));
        }
        if label.starts_with('-') || label.ends_with('-') {
            return bad("a part begins or ends with a hyphen".to_owned());
        }
    }
    Ok(())
}

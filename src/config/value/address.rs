//! Addresses as text: "host:port", `[::1]:53`, "unix:/path", and in `bind` a range
//! "0.0.0.0:7000-7010".
//!
//! Pure: no name is looked up here.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    path::PathBuf,
};

use super::host::{self, Host};
use crate::{
    config::text::report::{Fault, fault},
    plan::{Addr, Target},
};

/// The ports of one listener may be so many in all: each is a socket of its own for each worker.
pub(crate) const MOST_PORTS: usize = 1024;

const OWN: &str = "an address here is \"IPV4:PORT\", \"[IPV6]:PORT\" or \"unix:/path\"";
const OTHERS: &str = "an address here is \"HOST:PORT\", \"[IPV6]:PORT\" or \"unix:/path\"";

/// `sun_path` holds 108 bytes and ends with a zero.
const LONGEST_UNIX_PATH: usize = 107;

/// Where a listener binds: only addresses that are the machine's own, never a name.
pub(crate) fn bind(text: &str) -> Result<Vec<Addr>, Fault> {
    read_bind(text).map_err(|fault| fault.or_hint(OWN))
}

fn read_bind(text: &str) -> Result<Vec<Addr>, Fault> {
    let (host, port) = match split(text, "0.0.0.0")? {
        Split::Unix(path) => return Ok(vec![Addr::Unix(path)]),
        Split::Inet(host, port) => (host, port),
    };
    let (ip, zone) = own_ip(text, host, port)?;
    let (first, last) = match port.split_once('-') {
        None => {
            let port = number(text, port)?;
            (port, port)
        }
        Some((first, last)) => (number(text, first)?, number(text, last)?),
    };
    if first > last {
        return Err(fault!("the port range of {text:?} is the wrong way round")
            .hint(format!("write {last}-{first}")));
    }
    if first == 0 && last > 0 {
        return Err(fault!("the port range of {text:?} begins with 0")
            .hint("port 0 lets the kernel choose one; a range begins at 1"));
    }
    if usize::from(last - first) >= MOST_PORTS {
        return Err(fault!(
            "{text:?} stands for {} ports; a listener may have {MOST_PORTS}",
            usize::from(last - first) + 1
        )
        .hint("share them out over several listeners"));
    }
    Ok((first..=last)
        .map(|port| Addr::Tcp(socket_address(ip, zone, port)))
        .collect())
}

/// Where the HTTP server of `[admin]` listens.
pub(crate) fn admin(text: &str) -> Result<SocketAddr, Fault> {
    read_admin(text)
        .map_err(|fault| fault.or_hint("an address here is \"IPV4:PORT\" or \"[IPV6]:PORT\""))
}

fn read_admin(text: &str) -> Result<SocketAddr, Fault> {
    match split(text, "127.0.0.1")? {
        Split::Unix(_) => Err(
            Fault::new("`listen` is an address with a port, not a unix socket").hint(format!(
                "write socket = {:?}",
                text.trim_start_matches("unix:")
            )),
        ),
        Split::Inet(host, port) => {
            if port.contains('-') {
                return Err(no_range(text));
            }
            let (ip, zone) = own_ip(text, host, port)?;
            Ok(socket_address(ip, zone, number(text, port)?))
        }
    }
}

/// The path of the unix socket of `[admin]`.
pub(crate) fn admin_socket(text: &str) -> Result<PathBuf, Fault> {
    const EXAMPLE: &str = "as in \"/run/tembuku/admin.sock\"";
    let fault = match text.strip_prefix("unix:") {
        Some(path) => {
            fault!("`socket` is a path, not the address {text:?}").hint(format!("write {path:?}"))
        }
        None if text.starts_with('/') => {
            return unix(text, text).map_err(|fault| fault.or_hint(EXAMPLE));
        }
        None if text.contains('/') || !text.contains(':') => {
            fault!("`socket` = {text:?} is no absolute path")
        }
        None => fault!("`socket` is a path, not the address {text:?}")
            .hint(format!("write listen = {text:?}")),
    };
    Err(fault.or_hint(EXAMPLE))
}

/// Where a session goes.
pub fn target(text: &str) -> Result<Target, Fault> {
    read_target(text).map_err(|fault| fault.or_hint(OTHERS))
}

fn read_target(text: &str) -> Result<Target, Fault> {
    let (host, port) = match split(text, "127.0.0.1")? {
        Split::Unix(path) => return Ok(Target::Addr(Addr::Unix(path))),
        Split::Inet(host, port) => (host, port),
    };
    if host == "*" {
        return Err(fault!("{text:?} is no address to connect to"));
    }
    let host = match host::parse(text, host)? {
        Host::Ip(ip, zone) => {
            may_be_reached(text, ip, port)?;
            Ok((ip, zone))
        }
        Host::Name(name) => Err(name),
    };
    if port.contains('-') {
        return Err(no_range(text));
    }
    let port = number(text, port)?;
    if port == 0 {
        return Err(fault!("{text:?}: nothing can be reached at port 0"));
    }
    Ok(match host {
        Ok((ip, zone)) => Target::Addr(Addr::Tcp(socket_address(ip, zone, port))),
        Err(name) => Target::Name {
            host: name.to_owned(),
            port,
        },
    })
}

/// Whether it is an address of many machines.
pub(crate) fn is_to_many(addr: &Addr) -> bool {
    match addr {
        Addr::Tcp(address) => match address.ip().to_canonical() {
            IpAddr::V4(ip) => ip.is_multicast() || ip.is_broadcast(),
            IpAddr::V6(ip) => ip.is_multicast(),
        },
        Addr::Unix(_) => false,
    }
}

enum Split<'a> {
    Unix(PathBuf),
    /// The host, in brackets if it was, and the text of the port.
    Inet(&'a str, &'a str),
}

/// `any` is the host proposed where it is missing.
fn split<'a>(text: &'a str, any: &str) -> Result<Split<'a>, Fault> {
    if text.is_empty() {
        return Err(Fault::new("the address is empty")
            .hint(format!("write \"{any}:PORT\" or \"unix:/path\"")));
    }
    if let Some(path) = text.strip_prefix("unix:") {
        return unix(text, path).map(Split::Unix);
    }
    if text.starts_with(['/', '.']) {
        return Err(
            fault!("{text:?} is a path").hint(format!("for a unix socket write \"unix:{text}\""))
        );
    }
    if let Some((_, rest)) = text.split_once("://") {
        let rest = rest.trim_end_matches('/');
        return Err(
            fault!("{text:?} is a URL; an address is host:port").hint(format!("write {rest:?}"))
        );
    }
    if text.contains(char::is_whitespace) {
        let fault = fault!("there is a blank in the address {text:?}");
        let (address, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let hint = match rest.trim() {
            "udp" => Some(format!("write \"{address}\", and protocol = \"udp\"")),
            rest if rest.contains("weight=") || rest.contains("backup") => Some(format!(
                "write a table, as in {{ address = \"{address}\", weight = 2, backup = true }}"
            )),
            _ => None,
        };
        return Err(Fault { hint, ..fault });
    }
    let missing_port = |host: &str| {
        fault!("the address {text:?} has no port").hint(format!("write \"{host}:PORT\""))
    };

    let (host, port) = if text.starts_with('[') {
        let Some(end) = text.find(']') else {
            return Err(
                fault!("the bracket in {text:?} is not closed").hint("write \"[::1]:PORT\"")
            );
        };
        let (host, rest) = text.split_at(end + 1);
        match rest.strip_prefix(':') {
            Some(port) => (host, port),
            None if rest.is_empty() => return Err(missing_port(host)),
            None => {
                return Err(fault!("after the bracket of {text:?} comes :PORT"));
            }
        }
    } else {
        match text.matches(':').count() {
            0 if text.bytes().all(|b| b.is_ascii_digit()) => {
                return Err(fault!("the address {text:?} has no host")
                    .hint(format!("write \"{any}:{text}\"")));
            }
            0 => return Err(missing_port(text)),
            1 => text.split_once(':').unwrap_or((text, "")),
            _ => return Err(unbracketed(text)),
        }
    };
    if host.is_empty() {
        let hint = if any == "0.0.0.0" {
            format!("write \"0.0.0.0:{port}\" or \"[::]:{port}\"")
        } else {
            format!("write \"{any}:{port}\"")
        };
        return Err(fault!("the address {text:?} has no host").hint(hint));
    }
    if port.is_empty() {
        return Err(missing_port(host));
    }
    Ok(Split::Inet(host, port))
}

fn unbracketed(text: &str) -> Fault {
    let head_is_ip = text
        .rsplit_once(':')
        .filter(|(head, _)| head.parse::<Ipv6Addr>().is_ok());
    match head_is_ip {
        // Also where the whole is an IPv6 address: ::1:6379 is both, and a port was certainly
        // meant.
        Some((head, port)) => fault!("the IPv6 address in {text:?} needs brackets")
            .hint(format!("write \"[{head}]:{port}\"")),
        None if text.parse::<Ipv6Addr>().is_ok() => {
            fault!("the address {text:?} has no port").hint(format!("write \"[{text}]:PORT\""))
        }
        None => fault!("{text:?} has more than one colon, and is no IPv6 address in brackets"),
    }
}

fn unix(text: &str, path: &str) -> Result<PathBuf, Fault> {
    if path.is_empty() {
        return Err(Fault::new("the path of the unix socket is empty").hint("write \"unix:/path\""));
    }
    if !path.starts_with('/') {
        return Err(
            fault!("the path of the unix socket {text:?} is not absolute").hint(format!(
                "write \"unix:/{}\"",
                path.trim_start_matches(['.', '/', '@'])
            )),
        );
    }
    if path.contains('\0') {
        return Err(Fault::new("the path of the unix socket holds a zero byte"));
    }
    if path.ends_with('/') {
        return Err(fault!("{text:?} names a directory, not a socket"));
    }
    if path.len() > LONGEST_UNIX_PATH {
        return Err(fault!(
            "the path of the unix socket has {} bytes; the kernel takes {LONGEST_UNIX_PATH}",
            path.len()
        ));
    }
    Ok(PathBuf::from(path))
}

/// The address of a socket of ours: a name could stand for several, and change.
fn own_ip(text: &str, host: &str, port: &str) -> Result<(IpAddr, u32), Fault> {
    if host == "*" {
        return Err(
            fault!("{text:?}: `*` selects no address family").hint(format!(
                "write \"0.0.0.0:{port}\" for IPv4 or \"[::]:{port}\" for IPv6"
            )),
        );
    }
    match host::parse(text, host)? {
        Host::Ip(ip, zone) => match ip.to_canonical() {
            // Sockets of IPv6 are for IPv6 alone here.
            IpAddr::V4(v4) if ip.is_ipv6() => Err(fault!(
                "{text:?} is an IPv4 address in the form of IPv6, where nothing can listen"
            )
            .hint(format!("write \"{v4}:{port}\""))),
            _ => Ok((ip, zone)),
        },
        Host::Name("localhost") => Err(fault!(
            "{text:?}: a listener needs an IP address, not a name"
        )
        .hint(format!("write \"127.0.0.1:{port}\" or \"[::1]:{port}\""))),
        Host::Name(_) => Err(
            fault!("{text:?}: a listener needs an IP address, not a name").hint(format!(
                "write the machine's address, or \"0.0.0.0:{port}\" for all of them"
            )),
        ),
    }
}

/// `zone`: the number of the interface of a link-local address.
fn socket_address(ip: IpAddr, zone: u32, port: u16) -> SocketAddr {
    match ip {
        IpAddr::V4(ip) => SocketAddr::from((ip, port)),
        IpAddr::V6(ip) => SocketAddr::V6(SocketAddrV6::new(ip, port, 0, zone)),
    }
}

/// Whether a server can have this address.
fn may_be_reached(text: &str, ip: IpAddr, port: &str) -> Result<(), Fault> {
    match ip.to_canonical() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Err(fault!(
            "{text:?} stands for all addresses of a machine, which is where to listen and not \
             where to connect to"
        )
        .hint(format!(
            "for a server on this machine write \"127.0.0.1:{port}\""
        ))),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Err(fault!(
            "{text:?} stands for all addresses of a machine, which is where to listen and not \
             where to connect to"
        )
        .hint(format!(
            "for a server on this machine write \"[::1]:{port}\""
        ))),
        IpAddr::V4(Ipv4Addr::BROADCAST) => Err(fault!(
            "{text:?} is the broadcast address, not that of one server"
        )),
        _ => Ok(()),
    }
}

fn number(text: &str, port: &str) -> Result<u16, Fault> {
    if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
        return Err(fault!("{text:?}: {port:?} is no port number"));
    }
    port.parse()
        .map_err(|_| fault!("{text:?}: the port is above 65535"))
}

fn no_range(text: &str) -> Fault {
    fault!("{text:?}: a port range works in `bind` only")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binds() {
        let tcp = |text: &str| Addr::Tcp(text.parse().expect("address"));
        assert_eq!(bind("0.0.0.0:80"), Ok(vec![tcp("0.0.0.0:80")]));
        assert_eq!(bind("[::1]:0"), Ok(vec![tcp("[::1]:0")]));
        assert_eq!(
            bind("unix:/run/x.sock"),
            Ok(vec![Addr::Unix("/run/x.sock".into())])
        );
        assert_eq!(
            bind("[::]:7000-7002"),
            Ok(vec![tcp("[::]:7000"), tcp("[::]:7001"), tcp("[::]:7002")])
        );
        assert_eq!(bind("0.0.0.0:1-1024").map(|p| p.len()), Ok(1024));
        assert_eq!(bind("0.0.0.0:65535-65535").map(|p| p.len()), Ok(1));
    }

    #[test]
    fn targets() {
        let name = |host: &str, port| {
            Ok(Target::Name {
                host: host.to_owned(),
                port,
            })
        };
        assert_eq!(target("db_1.example.:5432"), name("db_1.example.", 5432));
        assert_eq!(target("3com.com:1"), name("3com.com", 1));
        assert_eq!(
            target("[2001:db8::1]:53"),
            Ok(Target::Addr(Addr::Tcp(
                "[2001:db8::1]:53".parse().expect("v6")
            )))
        );
        assert_eq!(
            target("unix:/run/x.sock"),
            Ok(Target::Addr(Addr::Unix("/run/x.sock".into())))
        );
    }

    /// What is wrong, and a part of message and hint together.
    const BAD_EVERYWHERE: &[(&str, &str)] = &[
        ("", "is empty"),
        ("10.0.0.1", "has no port; write \"10.0.0.1:PORT\""),
        ("10.0.0.1:", "has no port"),
        ("6379", "has no host; write \""),
        (":6379", "has no host; write \""),
        ("10.0.0.1:65536", "above 65535"),
        ("10.0.0.1:99999999999", "above 65535"),
        ("10.0.0.1:+80", "no port number"),
        ("10.0.0.1:http", "\"http\" is no port number"),
        ("::1:6379", "needs brackets; write \"[::1]:6379\""),
        ("::", "has no port; write \"[::]:PORT\""),
        ("a:b:c", "more than one colon"),
        ("[::1]", "has no port; write \"[::1]:PORT\""),
        ("[::1]6379", "comes :PORT"),
        ("[::1", "not closed"),
        (
            "[localhost]:80",
            "brackets are for IPv6 addresses; write \"localhost:80\"",
        ),
        ("[127.0.0.1]:80", "brackets are for IPv6"),
        ("[]:80", "no IPv6 address"),
        ("[:::]:80", "no IPv6 address"),
        ("[fe80::1]:80", "add it as in \"[fe80::1%eth0]:80\""),
        ("[2001:db8::1%eth0]:80", "only link-local"),
        ("[fe80::1%]:80", "no name of an interface"),
        ("10.0.0.300:1", "\"10.0.0.300\" is no IPv4 address"),
        ("10.0.0:1", "no IPv4 address"),
        ("010.0.0.1:1", "no IPv4 address"),
        ("127.0x1:1", "no IPv4 address"),
        ("a..b:1", "nothing between two points"),
        ("-a:1", "hyphen"),
        ("a b:1", "blank"),
        (" a:1", "blank"),
        ("ü:1", "'ü' is not allowed"),
        (
            "tcp://10.0.0.1:80/",
            "URL; an address is host:port; write \"10.0.0.1:80\"",
        ),
        (
            "/run/x.sock",
            "is a path; for a unix socket write \"unix:/run/x.sock\"",
        ),
        ("unix:", "is empty"),
        ("unix:x.sock", "not absolute; write \"unix:/x.sock\""),
        ("unix:@x", "not absolute"),
        ("unix:/a\0b", "zero byte"),
        ("unix:/run/", "directory"),
    ];

    fn refused<T: std::fmt::Debug>(result: Result<T, Fault>) -> String {
        let fault = result.expect_err("refused");
        format!("{}; {}", fault.message, fault.hint.unwrap_or_default())
    }

    #[test]
    fn refused_everywhere() {
        for (text, part) in BAD_EVERYWHERE {
            for message in [
                refused(bind(text)),
                refused(target(text)),
                refused(admin(text)),
            ] {
                assert!(message.contains(part), "{text}: {message}");
            }
        }
    }

    #[test]
    fn refused_in_bind() {
        for (text, part) in [
            ("localhost:80", "not a name; write \"127.0.0.1:80\""),
            ("[::ffff:192.0.2.1]:80", "write \"192.0.2.1:80\""),
            ("example.com:80", "not a name; write the machine's address"),
            (
                "*:80",
                "write \"0.0.0.0:80\" for IPv4 or \"[::]:80\" for IPv6",
            ),
            (":80", "write \"0.0.0.0:80\" or \"[::]:80\""),
            ("0.0.0.0:20-10", "wrong way round; write 10-20"),
            ("0.0.0.0:0-10", "begins with 0"),
            ("0.0.0.0:1-1025", "1025 ports"),
            ("0.0.0.0:1-", "\"\" is no port number"),
            ("0.0.0.0:1-2-3", "\"2-3\" is no port number"),
        ] {
            let message = refused(bind(text));
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn refused_as_target() {
        let long = format!("{}:80", "a".repeat(64));
        let longer = format!("{}b:80", "a.".repeat(127));
        for (text, part) in [
            ("10.0.0.1:0", "port 0"),
            ("10.0.0.1:1-2", "in `bind` only"),
            ("*:80", "no address to connect to"),
            (&long, "64 characters"),
            (&longer, "255 characters"),
        ] {
            let message = refused(target(text));
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn unix_paths_end_at_107_bytes() {
        let path = |n: usize| format!("unix:/{}", "x".repeat(n - 1));
        assert!(target(&path(107)).is_ok());
        assert!(refused(target(&path(108))).contains("108 bytes"));
    }
}

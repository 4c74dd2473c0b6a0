//! Which names a request on the TCP listener may use for this server.
//!
//! A browser lets a web page read what its own origin answers, and an origin is a host name. A name
//! that an attacker makes resolve to this machine (DNS rebinding) would therefore open the status
//! to every page that an operator visits. An IP address cannot be pointed at another machine.

use hyper::{Request, StatusCode, Version, header::HOST};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Why a request is not answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HostError {
    /// Not valid HTTP.
    Malformed(&'static str),
    /// A valid name that is not among the accepted ones.
    UnknownName(String),
}

impl HostError {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::UnknownName(_) => StatusCode::MISDIRECTED_REQUEST,
        }
    }

    pub(super) fn text(&self) -> String {
        match self {
            Self::Malformed(why) => format!(
                "bad request: {why}; requests name an IP address, localhost or one of `hosts` in \
                 [admin]\n"
            ),
            Self::UnknownName(name) => format!(
                "refused: {name:?} is no name of this server; requests name an IP address, \
                 localhost or one of `hosts` in [admin]. To use this name write \
                 hosts = [{name:?}] there\n"
            ),
        }
    }
}

/// Whether a request names an IP address, localhost or one of `names`, which are in lower case and
/// have no dot at their end.
pub(super) fn check<B>(request: &Request<B>, names: &[String]) -> Result<(), HostError> {
    // The target of a request to a proxy ("GET http://name/ HTTP/1.1") names a host as well.
    if let Some(authority) = request.uri().authority() {
        check_value(authority.as_str(), names)?;
    }
    let mut values = request.headers().get_all(HOST).iter();
    let Some(value) = values.next() else {
        // No browser leaves it out. Simple health checkers do, with HTTP/1.0.
        return match request.version() {
            Version::HTTP_09 | Version::HTTP_10 => Ok(()),
            _ => Err(HostError::Malformed("it has no Host header")),
        };
    };
    if values.next().is_some() {
        return Err(HostError::Malformed("it has more than one Host header"));
    }
    let value = value.to_str().map_err(|_| INVALID)?;
    check_value(value.trim(), names)
}

const INVALID: HostError = HostError::Malformed("its Host is no host name or IP address");

fn check_value(value: &str, names: &[String]) -> Result<(), HostError> {
    let (host, port) = match value.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or(INVALID)?;
            // A zone ("[fe80::1%eth0]") has a meaning for the client alone.
            let address = address.split_once('%').map_or(address, |(ip, _)| ip);
            address.parse::<Ipv6Addr>().map_err(|_| INVALID)?;
            ("", port)
        }
        None => value.split_at(value.find(':').unwrap_or(value.len())),
    };
    // Any port: a forwarded one is as good.
    let port = port.strip_prefix(':').unwrap_or(port);
    if !port.is_empty() && port.parse::<u16>().is_err() || port.starts_with('+') {
        return Err(INVALID);
    }
    if value.starts_with('[') || host.parse::<Ipv4Addr>().is_ok() {
        return Ok(());
    }
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if !(1..=253).contains(&name.len()) || !name.bytes().all(allowed) {
        return Err(INVALID);
    }
    if name == "localhost" || names.contains(&name) {
        return Ok(());
    }
    Err(HostError::UnknownName(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(target: &str, version: Version, hosts: &[&str]) -> Result<(), HostError> {
        let mut request = Request::builder().uri(target).version(version);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let names = ["status.example.com".to_owned()];
        check(&request.body(()).expect("a request"), &names)
    }

    fn host(value: &str) -> Result<(), HostError> {
        asked("/metrics", Version::HTTP_11, &[value])
    }

    #[test]
    fn addresses_localhost_and_the_names_given_are_accepted() {
        for good in [
            "127.0.0.1",
            "10.1.2.3:9900",
            "[::1]",
            "[2001:db8::1]:80",
            "[fe80::1%eth0]:80",
            "localhost",
            "LocalHost.:9900",
            "localhost:",
            "status.example.com",
            "STATUS.Example.com.",
            "status.example.com:443",
        ] {
            assert_eq!(host(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn other_names_are_refused() {
        for (bad, name) in [
            ("evil.example", "evil.example"),
            ("Evil.Example.:9900", "evil.example"),
            ("localhost.evil.example", "localhost.evil.example"),
            ("x.localhost", "x.localhost"),
            ("example.com", "example.com"),
            ("x.status.example.com", "x.status.example.com"),
            ("127.0.0.1.evil.example", "127.0.0.1.evil.example"),
            ("127.1", "127.1"),
            ("2130706433", "2130706433"),
            ("localhost..", "localhost."),
        ] {
            assert_eq!(
                host(bad),
                Err(HostError::UnknownName(name.to_owned())),
                "{bad}"
            );
        }
    }

    #[test]
    fn what_is_no_host_is_malformed() {
        for bad in [
            "",
            ".",
            ":80",
            "::1",
            "[::1",
            "[]",
            "[::1]x",
            "[127.0.0.1]",
            "localhost:80:80",
            "localhost:x",
            "localhost:+80",
            "localhost:65536",
            "user@localhost",
            "localhost, localhost",
            "localhost/evil.example",
            "localhost evil.example",
            "\u{e9}.example",
            &"a".repeat(254),
        ] {
            let refused = host(bad);
            assert!(matches!(refused, Err(HostError::Malformed(_))), "{bad}");
        }
    }

    #[test]
    fn one_host_header_is_required_from_http_1_1_on() {
        let malformed = |hosts: &[&str], version| {
            matches!(
                asked("/", version, hosts),
                Err(HostError::Malformed(why)) if why.contains("Host header")
            )
        };
        assert!(malformed(&[], Version::HTTP_11));
        assert!(malformed(&["localhost", "localhost"], Version::HTTP_11));
        assert!(malformed(&["localhost", "evil.example"], Version::HTTP_10));
        assert_eq!(asked("/", Version::HTTP_10, &[]), Ok(()));
        let unknown = Err(HostError::UnknownName("evil.example".to_owned()));
        assert_eq!(asked("/", Version::HTTP_10, &["evil.example"]), unknown);
    }

    #[test]
    fn an_absolute_target_is_checked_as_well() {
        let unknown = || Err(HostError::UnknownName("evil.example".to_owned()));
        let asked = |target, host| asked(target, Version::HTTP_11, &[host]);
        assert_eq!(asked("http://127.0.0.1:1/", "127.0.0.1:1"), Ok(()));
        assert_eq!(asked("http://evil.example/", "127.0.0.1:1"), unknown());
        assert_eq!(asked("http://127.0.0.1:1/", "evil.example"), unknown());
        let user = asked("http://evil.example@localhost/", "localhost");
        assert_eq!(user, Err(INVALID));
    }
}

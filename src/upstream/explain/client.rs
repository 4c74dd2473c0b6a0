//! A client as it is written on the command line and in the output.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// On a unix socket.
    Unix,
    Ip {
        ip: IpAddr,
        port: Option<u16>,
    },
}

impl Client {
    pub fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Unix => None,
            Self::Ip { ip, .. } => Some(ip),
        }
    }

    pub fn port(self) -> Option<u16> {
        match self {
            Self::Unix => None,
            Self::Ip { port, .. } => port,
        }
    }
}

impl FromStr for Client {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "unix:" {
            return Ok(Self::Unix);
        }
        let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
        let ip = match bare {
            Some(inner) => inner.parse().ok().map(IpAddr::V6),
            None => text.parse().ok(),
        };
        if let Some(ip) = ip {
            return Ok(Self::Ip { ip, port: None });
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() > 0 => Ok(Self::Ip {
                ip: address.ip(),
                port: Some(address.port()),
            }),
            _ => Err(
                "a client is an address (\"192.0.2.1\", \"2001:db8::1\"), one with a port \
                 (\"192.0.2.1:5000\", \"[2001:db8::1]:5000\"), or \"unix:\"",
            ),
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Unix => f.pad("unix:"),
            Self::Ip { ip, port: None } => ip.fmt(f),
            Self::Ip {
                ip,
                port: Some(port),
            } => SocketAddr::new(ip, port).fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_client() {
        for (text, printed) in [
            ("192.0.2.1", "192.0.2.1"),
            ("192.0.2.1:5000", "192.0.2.1:5000"),
            ("2001:DB8:0::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:5000", "[2001:db8::1]:5000"),
            ("unix:", "unix:"),
        ] {
            let client: Client = text.parse().expect(text);
            assert_eq!(client.to_string(), printed);
        }
        for text in [
            "",
            "example.org",
            "192.0.2",
            "192.0.2.1:",
            "192.0.2.1:0",
            "192.0.2.1:65536",
            "[192.0.2.1]",
            "10.0.0.0/8",
            "unix:/run/x",
        ] {
            assert!(text.parse::<Client>().is_err(), "{text}");
        }
    }
}

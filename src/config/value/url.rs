//! "http://HOST:PORT/PATH" or "https://…": the place of a server that speaks HTTP. Pure.

use hyper::Uri;
use std::{fmt, net::IpAddr};

/// `http://` or `https://`, a host, and what a path begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    pub is_encrypted: bool,
    /// A name or an address, without brackets.
    pub host: String,
    pub port: u16,
    /// Path and query; begins with a slash.
    pub path: String,
}

impl Url {
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let uri: Uri = text.parse().map_err(|_| UrlError::NotOne)?;
        let is_encrypted = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(UrlError::Scheme),
        };
        let authority = uri.authority().ok_or(UrlError::NotOne)?;
        if authority.as_str().contains('@') {
            return Err(UrlError::User);
        }
        if text.contains('#') {
            return Err(UrlError::Fragment);
        }
        let host = authority.host();
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host = match bare {
            Some(bare) if bare.parse::<IpAddr>().is_ok() => bare,
            Some(_) => return Err(UrlError::NotOne),
            None => host,
        };
        if host.is_empty() {
            return Err(UrlError::NotOne);
        }
        let port = match (authority.port(), authority.as_str().rsplit_once(':')) {
            (Some(_), _) => authority.port_u16().filter(|port| *port > 0),
            // "http://host:" and "http://host:70000" are read as if they had none.
            (None, Some((_, rest))) if !rest.contains(']') => None,
            (None, _) => Some(if is_encrypted { 443 } else { 80 }),
        };
        Ok(Self {
            is_encrypted,
            host: host.to_owned(),
            port: port.ok_or(UrlError::Port)?,
            path: uri.path_and_query().map_or("/", |p| p.as_str()).to_owned(),
        })
    }

    /// With a path below this one. `path` begins with a slash.
    pub fn join(&self, path: &str) -> String {
        format!("{}{path}", self.path.trim_end_matches('/'))
    }

    /// What stands after `Host:`.
    pub fn authority(&self) -> String {
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        match (self.is_encrypted, self.port) {
            (false, 80) | (true, 443) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

/// Without the query, which may hold a secret.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_encrypted { "https" } else { "http" };
        let path = self.path.split('?').next().unwrap_or_default();
        let path = if path == "/" { "" } else { path };
        write!(f, "{scheme}://{}{path}", self.authority())
    }
}

/// Bytes that stand for themselves in a part of a path or of a query; others are escaped.
pub fn escape(text: &str) -> String {
    text.bytes().fold(String::new(), |mut escaped, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                escaped.push(char::from(byte));
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
        escaped
    })
}

/// Why a text is no such address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UrlError {
    NotOne,
    Scheme,
    User,
    Fragment,
    Port,
}

impl std::error::Error for UrlError {}

impl fmt::Display for UrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotOne => "not a URL; write \"http://HOST:PORT/PATH\" or \"https://…\"",
            Self::Scheme => "a URL here begins with http:// or https://",
            Self::User => "a URL here has no user and no password",
            Self::Fragment => "a URL here has no part after `#`",
            Self::Port => "the port of a URL is a number from 1 to 65535",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parts_of_a_url() {
        for (text, encrypted, host, port, path, shown) in [
            ("http://a", false, "a", 80, "/", "http://a"),
            ("https://a/", true, "a", 443, "/", "https://a"),
            (
                "http://127.0.0.1:8500/v1/x?a=b",
                false,
                "127.0.0.1",
                8500,
                "/v1/x?a=b",
                "http://127.0.0.1:8500/v1/x",
            ),
            (
                "https://[::1]:80/x/",
                true,
                "::1",
                80,
                "/x/",
                "https://[::1]:80/x/",
            ),
            (
                "http://[fd00::1]",
                false,
                "fd00::1",
                80,
                "/",
                "http://[fd00::1]",
            ),
        ] {
            let url = Url::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            let parts = (url.is_encrypted, &url.host[..], url.port, &url.path[..]);
            assert_eq!(parts, (encrypted, host, port, path), "{text}");
            assert_eq!(url.to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_url() {
        for (text, why) in [
            ("", UrlError::NotOne),
            ("a:80", UrlError::Scheme),
            ("ftp://a", UrlError::Scheme),
            ("/path", UrlError::Scheme),
            ("http://", UrlError::NotOne),
            ("http://a b", UrlError::NotOne),
            ("http://u:p@a/", UrlError::User),
            ("http://a/#x", UrlError::Fragment),
            ("http://a:0/", UrlError::Port),
        ] {
            assert_eq!(Url::parse(text), Err(why), "{text}");
        }
        for text in ["http://a:70000", "http://a:x/", "http://[a]/", "http://:80"] {
            assert!(Url::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn paths_are_joined() {
        for (url, path, joined) in [
            ("http://a", "/v3/kv", "/v3/kv"),
            ("http://a/", "/v3/kv", "/v3/kv"),
            ("http://a/b/", "/v3/kv", "/b/v3/kv"),
        ] {
            let url = Url::parse(url).expect("a URL");
            assert_eq!(url.join(path), joined);
        }
        assert_eq!(escape("a/b c=ü"), "a%2Fb%20c%3D%C3%BC");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _ = Url::parse(&text);
            let _ = Url::parse(&format!("http://{text}"));
        }
    }
}

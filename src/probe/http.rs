//! `http`: a GET, and a status line. Pure.

use super::{dialogue::Answer, transcript::quote};
use crate::plan::{Addr, reason::CheckResult};

/// No server has a longer reason phrase.
const LONGEST_LINE: usize = 4096;

pub(super) struct HttpCheck {
    request: Vec<u8>,
    status: Vec<(u16, u16)>,
}

impl HttpCheck {
    pub(super) fn new(path: &str, host: &str, status: &[(u16, u16)]) -> Self {
        let version = env!("CARGO_PKG_VERSION");
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: tembuku/{version}\r\nAccept: \
             */*\r\nConnection: close\r\n\r\n"
        );
        Self {
            request: request.into_bytes(),
            status: status.to_vec(),
        }
    }

    pub(super) fn request(&self) -> &[u8] {
        &self.request
    }

    pub(super) fn receive(&self, bytes: &[u8]) -> Option<Answer> {
        let protocol = || Answer::new(CheckResult::Protocol, format!("got {}", quote(bytes)));
        if !could_be_status(bytes) {
            return Some(protocol());
        }
        let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") else {
            return (bytes.len() > LONGEST_LINE).then(protocol);
        };
        let line = &bytes[..end];
        let Some(code) = code(line) else {
            return Some(protocol());
        };
        // An informational response (103 Early Hints): the answer follows after the empty line.
        if code < 200 && code != 101 {
            let whole = bytes.windows(4).position(|four| four == b"\r\n\r\n");
            return self.receive(&bytes[whole? + 4..]);
        }
        let expected = self
            .status
            .iter()
            .any(|(from, to)| (*from..=*to).contains(&code));
        let result = if expected {
            CheckResult::Ok
        } else {
            CheckResult::Unexpected
        };
        Some(Answer::new(result, format!("got {}", quote(line))))
    }
}

/// What stands after `Host:` where the configuration names no host.
pub(super) fn host_of(addr: &Addr, encrypted: bool) -> String {
    let default = if encrypted { 443 } else { 80 };
    match addr {
        Addr::Tcp(address) if address.port() == default && address.is_ipv4() => {
            address.ip().to_string()
        }
        Addr::Tcp(address) if address.port() == default => format!("[{}]", address.ip()),
        Addr::Tcp(address) => address.to_string(),
        Addr::Unix(_) => "localhost".to_owned(),
    }
}

/// The form of what a line begins with; `0` stands for a digit.
const FORM: &[u8] = b"HTTP/1.0 000";

/// Lets another protocol be detected at its first wrong byte.
fn could_be_status(bytes: &[u8]) -> bool {
    bytes.iter().zip(FORM).all(|(byte, form)| match form {
        b'0' => byte.is_ascii_digit(),
        _ => byte == form,
    })
}

/// The code of a whole status line. The blank before the reason may be missing with it, as many
/// servers have it.
fn code(line: &[u8]) -> Option<u16> {
    let ended = matches!(line.get(FORM.len()), None | Some(b' '));
    let reason = line.get(FORM.len()..)?;
    let clean = reason
        .iter()
        .all(|b| *b == b'\t' || *b >= b' ' && *b != 0x7f);
    let digits = std::str::from_utf8(&line[FORM.len() - 3..FORM.len()]).ok()?;
    let code = digits.parse().ok()?;
    (ended && clean && code >= 100).then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn receive(bytes: &[u8]) -> Option<CheckResult> {
        let settings = HttpCheck::new("/primary", "db:8008", &[(200, 299), (418, 418)]);
        settings.receive(bytes).map(|a| a.result)
    }

    #[test]
    fn the_request() {
        let settings = HttpCheck::new("/replica?lag=1MB", "db", &[(200, 299)]);
        let text = String::from_utf8_lossy(settings.request()).into_owned();
        assert!(text.starts_with("GET /replica?lag=1MB HTTP/1.1\r\nHost: db\r\n"));
        assert!(text.ends_with("\r\nConnection: close\r\n\r\n"));
    }

    #[test]
    fn status_lines() {
        for (line, wanted) in [
            ("HTTP/1.1 200 OK", CheckResult::Ok),
            ("HTTP/1.0 204 ", CheckResult::Ok),
            ("HTTP/1.1 299", CheckResult::Ok),
            ("HTTP/1.1 418 I'm a teapot", CheckResult::Ok),
            ("HTTP/1.1 503 Service Unavailable", CheckResult::Unexpected),
            ("HTTP/1.1 300 Multiple", CheckResult::Unexpected),
            ("HTTP/1.1 2000 OK", CheckResult::Protocol),
            ("HTTP/1.1 099 x", CheckResult::Protocol),
            ("HTTP/1.1  200 OK", CheckResult::Protocol),
            ("HTTP/2.0 200 OK", CheckResult::Protocol),
            ("http/1.1 200 OK", CheckResult::Protocol),
            ("HTTP/1.1 200 O\u{1}K", CheckResult::Protocol),
            ("HTTP/1.1 20", CheckResult::Protocol),
            ("+PONG", CheckResult::Protocol),
            ("", CheckResult::Protocol),
        ] {
            let whole = format!("{line}\r\nServer: x\r\n\r\n");
            assert_eq!(receive(whole.as_bytes()), Some(wanted), "{line}");
        }
    }

    #[test]
    fn what_comes_before_the_answer_is_not_the_answer() {
        let early = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
        for before in [
            early.to_owned(),
            early.repeat(3),
            "HTTP/1.1 100 Continue\r\n\r\n".into(),
        ] {
            for n in 0..=before.len() {
                assert_eq!(receive(&before.as_bytes()[..n]), None, "{n} of {before:?}");
            }
            for (line, wanted) in [
                ("HTTP/1.1 200 OK\r\n", CheckResult::Ok),
                ("HTTP/1.1 503 No\r\n", CheckResult::Unexpected),
                ("+PONG\r\n", CheckResult::Protocol),
            ] {
                assert_eq!(receive(format!("{before}{line}").as_bytes()), Some(wanted));
            }
        }
        assert_eq!(
            receive(b"HTTP/1.1 101 Switching Protocols\r\n"),
            Some(CheckResult::Unexpected)
        );
    }

    #[test]
    fn a_byte_at_a_time() {
        let line = b"HTTP/1.1 200 OK\r\n";
        for n in 0..line.len() {
            assert_eq!(receive(&line[..n]), None, "{n}");
        }
        assert_eq!(receive(line), Some(CheckResult::Ok));
        assert_eq!(receive(b"+"), Some(CheckResult::Protocol));
        let endless = [&b"HTTP/1.1 200 "[..], &[b'a'; LONGEST_LINE]].concat();
        assert_eq!(receive(&endless), Some(CheckResult::Protocol));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = receive(&bytes);
            let _ = receive(&[&b"HTTP/1.1 "[..], &bytes, b"\r\n"].concat());
        }
    }
}

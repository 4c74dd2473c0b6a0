//! The messages of a PostgreSQL server, as far as a check needs them. Pure.

use crate::plan::reason::CheckResult;

/// No answer to a query of a check is longer.
const LONGEST: usize = 8 << 10;
/// Messages that are skipped may be longer. Such a check fails for the sum of what it has read.
const CHATTER: usize = 1 << 20;
/// The fields of an error message.
const SHOWN: usize = 200;

/// What came is not the protocol.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong;

/// What kind it is, what is in it, and what follows; `None`: there is still more to come.
pub(super) type Read<'a> = Result<Option<(u8, &'a [u8], &'a [u8])>, Wrong>;

pub(super) fn read(bytes: &[u8]) -> Read<'_> {
    let Some((&kind, rest)) = bytes.split_first() else {
        return Ok(None);
    };
    // Those that a server may send to a client that neither copies nor prepares. So another
    // protocol is recognised at its first byte.
    if !b"ACDEIKNRSTZv".contains(&kind) {
        return Err(Wrong);
    }
    let Some((length, rest)) = rest.split_first_chunk() else {
        return Ok(None);
    };
    let longest = match kind {
        b'A' | b'N' | b'S' => CHATTER,
        _ => LONGEST,
    };
    // It counts itself.
    let length = (u32::from_be_bytes(*length) as usize)
        .checked_sub(4)
        .filter(|length| *length <= longest)
        .ok_or(Wrong)?;
    Ok(rest
        .split_at_checked(length)
        .map(|(inside, after)| (kind, inside, after)))
}

/// An error as it was sent before version 7.4, and still is by a server that cannot even start a
/// process for the connection: a character and text up to a zero byte.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Old {
    /// Up to now it looks like one.
    Wait,
    Error(String),
}

/// `None`: it is something else.
pub(super) fn old_error(bytes: &[u8], ended: bool) -> Option<Old> {
    let (_, rest) = bytes.split_first().filter(|(kind, _)| **kind == b'E')?;
    let end = rest.iter().position(|b| *b == 0);
    let text = &rest[..end.unwrap_or(rest.len())];
    // So that neither a length is taken for text, nor a line that ends as in Telnet.
    let is_text = text.iter().all(|b| !b.is_ascii_control() || *b == b'\n');
    if !is_text || text.len() > LONGEST {
        return None;
    }
    match (end, text) {
        // A length begins so.
        (Some(_), []) => None,
        (None, _) if !ended => Some(Old::Wait),
        (None, _) => None,
        (Some(_), text) => Some(Old::Error(printable(text))),
    }
}

/// The columns of a row, which come as text; `None` is null.
pub(super) fn row(inside: &[u8]) -> Result<Vec<Option<&str>>, Wrong> {
    let (count, mut rest) = inside.split_first_chunk().ok_or(Wrong)?;
    let mut columns = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk().ok_or(Wrong)?;
        rest = after;
        columns.push(match i32::from_be_bytes(*length) {
            -1 => None,
            length => {
                let length = usize::try_from(length).map_err(|_| Wrong)?;
                let (text, after) = rest.split_at_checked(length).ok_or(Wrong)?;
                rest = after;
                Some(std::str::from_utf8(text).map_err(|_| Wrong)?)
            }
        });
    }
    rest.is_empty().then_some(columns).ok_or(Wrong)
}

/// An error of a server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Error {
    pub(super) severity: String,
    pub(super) code: String,
    pub(super) message: String,
}

impl Error {
    pub(super) fn read(inside: &[u8]) -> Result<Self, Wrong> {
        let mut error = Self::default();
        for field in inside.split(|b| *b == 0) {
            let Some((kind, text)) = field.split_first() else {
                continue;
            };
            let text = printable(text);
            match kind {
                b'S' if error.severity.is_empty() => error.severity = text,
                // The same, and not in the language of the server.
                b'V' => error.severity = text,
                b'C' => error.code = text,
                b'M' => error.message = text,
                _ => {}
            }
        }
        let code = error.code.as_bytes();
        let is_valid = code.len() == 5 && code.iter().all(u8::is_ascii_alphanumeric);
        (is_valid && inside.last() == Some(&0))
            .then_some(error)
            .ok_or(Wrong)
    }

    /// Leaves nothing but what it means.
    pub(super) fn conceal(&mut self) {
        self.severity = "ERROR".to_owned();
        self.message = "(not shown)".to_owned();
    }

    /// Whether it has nothing to do with the user that was named: the server starts or stops, lacks
    /// something, or is broken.
    pub(super) fn concerns_everyone(&self) -> bool {
        ["53", "57", "58", "XX"].contains(&&self.code[..2])
    }

    pub(super) fn result(&self) -> CheckResult {
        match self.code.as_str() {
            // Starting, not consistent yet, or shutting down.
            "57P03" => CheckResult::Loading,
            // A valid user that may not use the database.
            "42501" => CheckResult::Auth,
            code if code.starts_with("28") => CheckResult::Auth,
            _ => CheckResult::Unexpected,
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            severity,
            code,
            message,
        } = self;
        write!(f, "{severity} {code}: {message}")
    }
}

fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let shown = text.chars().filter(|c| !c.is_control()).take(SHOWN);
    shown.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_byte_at_a_time() {
        let whole = b"Z\0\0\0\x05IR";
        for n in 0..6 {
            assert_eq!(read(&whole[..n]), Ok(None), "{n}");
        }
        assert_eq!(read(whole), Ok(Some((b'Z', &b"I"[..], &b"R"[..]))));
    }

    #[test]
    fn what_is_none() {
        for bytes in [
            &b"+PONG\r\n"[..],
            b"HTTP/1.1 400 Bad Request\r\n",
            b"\x16\x03\x01",
            b"E\0\0\0\x03",
            b"E\0\0\0\0",
            b"Email!",
            b"S\xff\xff\xff\xff",
        ] {
            assert_eq!(read(bytes), Err(Wrong), "{}", bytes.escape_ascii());
        }
        for bytes in [
            &b""[..],
            b"\0",
            b"\0\x01",
            b"\0\x01\0\0\0\x02t",
            b"\0\x01\0\0\0\x01tt",
            b"\0\x01\xff\xff\xff\xfe",
            b"\0\x01\0\0\0\x01\xff",
        ] {
            assert_eq!(row(bytes), Err(Wrong), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn an_unexpected_message_may_be_long() {
        for (kind, length, result) in [
            (b'N', 60_000, Ok(None)),
            (b'S', 60_000, Ok(None)),
            (b'D', 60_000, Err(Wrong)),
            (b'N', 1 << 21, Err(Wrong)),
        ] {
            let bytes = [&[kind], &u32::to_be_bytes(length)[..], b"begins"].concat();
            assert_eq!(read(&bytes), result, "{}", bytes.escape_ascii());
        }
        let whole = [b"N\0\0\xea\x60", &[b'x'; 59_996][..], b"Z"].concat();
        let (kind, inside, after) = read(&whole).expect("a message").expect("a whole one");
        assert_eq!((kind, inside.len(), after), (b'N', 59_996, &b"Z"[..]));
    }

    #[test]
    fn errors_of_old() {
        let bytes = b"Ecould not fork new process for connection: Cannot allocate memory\n\0";
        for n in 1..bytes.len() {
            assert_eq!(old_error(&bytes[..n], false), Some(Old::Wait), "{n}");
            assert_eq!(old_error(&bytes[..n], true), None, "{n}");
        }
        let text = "could not fork new process for connection: Cannot allocate memory";
        assert_eq!(old_error(bytes, false), Some(Old::Error(text.into())));
        for bytes in [
            &b""[..],
            b"N",
            b"E\0",
            b"E\0\0\0\x50SFATAL\0",
            b"ERR unknown command\r\n",
            b"E\x1b[31m\0",
        ] {
            assert_eq!(old_error(bytes, false), None, "{}", bytes.escape_ascii());
        }
        assert_eq!(old_error(&[b'E'; LONGEST + 2], false), None);
    }

    #[test]
    fn rows_and_errors() {
        let bytes = b"\0\x03\0\0\0\x01t\xff\xff\xff\xff\0\0\0\0";
        assert_eq!(row(bytes), Ok(vec![Some("t"), None, Some("")]));
        let error = Error::read(b"SFATAL\0VFATAL\0C28P01\0Mno\r\n such\0Fauth.c\0\0");
        let error = error.expect("an error");
        assert_eq!(error.to_string(), "FATAL 28P01: no such");
        assert_eq!(error.result(), CheckResult::Auth);
        assert_eq!(Error::read(b"SFATAL\0Mno code\0\0"), Err(Wrong));
        assert_eq!(Error::read(b"C28P01\0Mno end"), Err(Wrong));
        let long = [b"C08P01\0M".as_slice(), &[b'x'; 4000], b"\0\0"].concat();
        let message = Error::read(&long).expect("an error").message;
        assert_eq!(message.len(), SHOWN);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = (read(&bytes), row(&bytes), Error::read(&bytes));
            let old = [b"E", &bytes[..]].concat();
            let _ = (old_error(&old, false), old_error(&old, true));
        }
    }
}

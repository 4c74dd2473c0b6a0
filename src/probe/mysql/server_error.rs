//! Errors that servers send instead of an answer. Pure.

use super::{
    packet::{Reader, Wrong},
    result_set::narrow,
};
use crate::plan::reason::CheckResult;

/// An error of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServerError {
    pub(super) code: u16,
    pub(super) message: Vec<u8>,
}

/// A syntax error: the server does not know a keyword of the query.
pub(super) const SYNTAX: u16 = 1064;
/// A privilege is missing.
pub(super) const DENIED: u16 = 1227;

impl ServerError {
    /// `None`: this packet is none.
    pub(super) fn read(payload: &[u8]) -> Result<Option<Self>, Wrong> {
        let Some(rest) = payload.strip_prefix(b"\xff") else {
            return Ok(None);
        };
        let mut reader = Reader(rest);
        let code = reader.u16()?;
        // SQLSTATE, five characters, is missing until the server knows the client's version.
        if reader.0.first() == Some(&b'#') {
            reader.take(6)?;
        }
        Ok(Some(Self {
            code,
            message: narrow(reader.0),
        }))
    }

    pub(super) fn result(&self) -> CheckResult {
        match self.code {
            // Wrong user, password or address; an account that is locked, or may not ask this.
            1044 | 1045 | 1129 | 1130 | 1142 | 1227 | 1251 | 1275 | 1524 | 1698 | 1820 | 1862
            | 3118 | 4151 => CheckResult::Auth,
            // It wants TLS, and got none.
            3159 => CheckResult::Tls,
            _ => CheckResult::Unexpected,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn errors_and_what_they_mean() {
        let early = ServerError::read(b"\xff\x10\x04Too many connections");
        let early = early.expect("well-formed").expect("an error");
        assert_eq!(
            (early.code, &early.message[..]),
            (1040, &b"Too many connections"[..])
        );
        assert_eq!(early.result(), CheckResult::Unexpected);
        let later = ServerError::read(b"\xff\x15\x04#28000Access denied");
        let later = later.expect("well-formed").expect("an error");
        assert_eq!(
            (later.code, &later.message[..]),
            (1045, &b"Access denied"[..])
        );
        assert_eq!(later.result(), CheckResult::Auth);
        assert_eq!(ServerError::read(b"\0"), Ok(None));
        assert!(ServerError::read(b"\xff\x15").is_err());
        assert!(ServerError::read(b"\xff\x15\x04#28").is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = ServerError::read(&[&b"\xff"[..], &bytes].concat());
        }
    }
}

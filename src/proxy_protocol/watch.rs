//! Detects a header from a client that must not send one.

use super::{SIGNATURE_V1, SIGNATURE_V2};

/// Compares the first bytes of such a client with the signatures, for as long as they could begin
/// one. A backend that accepts headers would trust the addresses in it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// The bytes are no header, or need not be checked.
    #[default]
    Over,
    /// No byte has arrived.
    Begun,
    /// This many bytes of a signature have arrived, and nothing else.
    V1(u8),
    V2(u8),
}

impl Watch {
    /// `None`: a signature is not as long.
    pub fn within_v1(seen: u8) -> Option<Self> {
        (usize::from(seen) <= SIGNATURE_V1.len()).then_some(Self::V1(seen))
    }

    /// `None`: a signature is not as long.
    pub fn within_v2(seen: u8) -> Option<Self> {
        (usize::from(seen) <= SIGNATURE_V2.len()).then_some(Self::V2(seen))
    }

    /// Takes the next bytes. Returns whether a signature is complete with them.
    pub fn sees_header(&mut self, bytes: &[u8]) -> bool {
        let within = match (*self, bytes.first()) {
            (Self::Begun, Some(first)) if *first == SIGNATURE_V1[0] => Self::V1(0),
            (Self::Begun, Some(first)) if *first == SIGNATURE_V2[0] => Self::V2(0),
            (Self::Begun, Some(_)) => Self::Over,
            (so_far, _) => so_far,
        };
        let (signature, seen, version): (_, _, fn(u8) -> Self) = match within {
            Self::Over | Self::Begun => {
                *self = within;
                return false;
            }
            Self::V1(seen) => (SIGNATURE_V1, seen, Self::V1),
            Self::V2(seen) => (SIGNATURE_V2, seen, Self::V2),
        };
        let missing = &signature[usize::from(seen)..];
        let both = missing.len().min(bytes.len());
        if missing[..both] != bytes[..both] {
            *self = Self::Over;
            return false;
        }
        // Never longer than a signature.
        *self = version(seen + both as u8);
        both == missing.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_a_signature_in_whatever_pieces() {
        for signature in [SIGNATURE_V1, SIGNATURE_V2] {
            let text = [signature, b"anything"].concat();
            for cut in 0..=text.len() {
                let mut watch = Watch::Begun;
                let (first, second) = text.split_at(cut);
                let at_once = watch.sees_header(first);
                assert_eq!(at_once, cut >= signature.len(), "{cut}");
                assert!(at_once || watch.sees_header(second), "{cut}");
            }
            let mut watch = Watch::Begun;
            for (i, byte) in signature.iter().enumerate() {
                assert_eq!(watch.sees_header(&[*byte]), i + 1 == signature.len());
            }
        }
    }

    #[test]
    fn is_over_with_the_first_other_byte() {
        for text in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PROXYING",
            b"PROXY\tTCP4 ",
            b"\r\n\r\n\0\r\nQUIT\r",
            b"\r\nPROXY ",
            b" PROXY ",
        ] {
            let mut watch = Watch::Begun;
            for byte in text {
                assert!(!watch.sees_header(&[*byte]), "{text:?}");
            }
            assert_eq!(watch, Watch::Over);
            let mut watch = Watch::Begun;
            assert!(!watch.sees_header(text));
            assert_eq!(watch, Watch::Over);
            assert!(!watch.sees_header(SIGNATURE_V1));
        }
    }
}

//! Names of DNS. Pure.

use std::{fmt, str::FromStr};

const LONGEST_LABEL: usize = 63;
const LONGEST: usize = 255;
/// A name that is made of more pointers is a loop.
const MOST_POINTERS: usize = 64;

/// As in a message, without compression and in lower case.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Name(Vec<u8>);

/// Not a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NameError;

impl Name {
    pub(super) fn wire(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn is_root(&self) -> bool {
        self.0 == [0]
    }

    /// The name that begins at `at`, and where what follows it begins.
    pub(super) fn read(message: &[u8], at: usize) -> Option<(Self, usize)> {
        let mut name = Vec::new();
        let (mut at, mut end) = (at, None);
        for _ in 0..MOST_POINTERS {
            loop {
                let length = *message.get(at)?;
                match length >> 6 {
                    0 if length == 0 => {
                        name.push(0);
                        return Some((Self(name), end.unwrap_or(at + 1)));
                    }
                    0 => {
                        let next = at + 1 + usize::from(length);
                        let label = message.get(at..next)?;
                        name.extend(label.iter().map(u8::to_ascii_lowercase));
                        // With the end of the name.
                        if name.len() >= LONGEST {
                            return None;
                        }
                        at = next;
                    }
                    3 => break,
                    _ => return None,
                }
            }
            let low = *message.get(at + 1)?;
            end = end.or(Some(at + 2));
            at = usize::from(u16::from_be_bytes([message[at] & 0x3f, low]));
        }
        None
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let mut name = Vec::new();
        let text = text.strip_suffix('.').unwrap_or(text);
        for label in text.split('.').filter(|_| !text.is_empty()) {
            let is_good = !label.is_empty() && label.is_ascii();
            let length = u8::try_from(label.len()).map_err(|_| NameError)?;
            if !is_good || label.len() > LONGEST_LABEL {
                return Err(NameError);
            }
            name.push(length);
            name.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
        }
        name.push(0);
        match name.len() > LONGEST {
            true => Err(NameError),
            false => Ok(Self(name)),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            return f.write_str(".");
        }
        let mut rest = &self.0[..];
        let mut separator = "";
        while let Some((length, after)) = rest.split_first().filter(|(length, _)| **length > 0) {
            let (label, after) = after.split_at(usize::from(*length).min(after.len()));
            write!(f, "{separator}{}", label.escape_ascii())?;
            (rest, separator) = (after, ".");
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl std::error::Error for NameError {}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a name of DNS, as in \"_redis._tcp.example.com\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_and_bytes() {
        let name: Name = "_Redis._tcp.Example.".parse().expect("a name");
        assert_eq!(name.wire(), b"\x06_redis\x04_tcp\x07example\0");
        assert_eq!(name.to_string(), "_redis._tcp.example");
        let root: Name = ".".parse().expect("the root");
        assert_eq!((root.is_root(), &root.to_string()[..]), (true, "."));
        for text in [
            "a..b",
            ".a",
            "ü.example",
            &"a".repeat(64),
            &"a.".repeat(128),
        ] {
            assert_eq!(text.parse::<Name>(), Err(NameError), "{text}");
        }
    }

    #[test]
    fn compressed_names() {
        let message = b"\x01b\x01C\0\x01a\xc0\x00\xff\xc0\x05";
        let (name, end) = Name::read(message, 5).expect("a name");
        assert_eq!((name.to_string(), end), ("a.b.c".to_owned(), 9));
        let (name, end) = Name::read(message, 10).expect("a name");
        assert_eq!((name.to_string(), end), ("a.b.c".to_owned(), 12));
        for bytes in [
            &b"\xc0\x00"[..],
            b"\xc0",
            b"\x05abc",
            b"\x01a\xc0\x00",
            b"\x80",
            b"",
        ] {
            assert_eq!(Name::read(bytes, 0), None, "{bytes:?}");
        }
        let long = [b"\x3f".as_slice(), &[b'a'; 63]].concat().repeat(4);
        assert_eq!(Name::read(&long, 0), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, at in 0_usize..70_000) {
            let _ = Name::read(&bytes, at % (bytes.len() + 2));
        }

        #[test]
        fn what_is_read_can_be_asked_for(bytes: Vec<u8>) {
            if let Some((name, _)) = Name::read(&bytes, 0) {
                prop_assert!(name.wire().len() <= LONGEST);
                let wire = name.wire();
                prop_assert_eq!(Name::read(wire, 0), Some((name.clone(), wire.len())));
            }
        }
    }
}

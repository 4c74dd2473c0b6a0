//! What a check saw, in a few printable characters.

use std::{fmt::Write as _, io};

/// More would fill the log.
const MOST: usize = 80;

/// Bytes as text between quotes: what is not printable is escaped, and what is too much is left
/// out.
pub(super) fn quote(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    for &byte in bytes.iter().take(MOST) {
        // Writing to a String does not fail.
        let _ = match byte {
            b'\'' => write!(out, "'"),
            _ => write!(out, "{}", byte.escape_ascii()),
        };
    }
    out.push('"');
    if bytes.len() > MOST {
        let _ = write!(out, "... ({} bytes)", bytes.len());
    }
    out
}

pub(super) fn error(e: &io::Error) -> String {
    // Without "(os error 111)".
    let text = e.to_string();
    match text.find(" (os error") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_short_and_printable() {
        assert_eq!(quote(b"+PONG\r\n\0\xff\"\\"), r#""+PONG\r\n\x00\xff\"\\""#);
        assert_eq!(quote(b"user 'a'"), "\"user 'a'\"");
        let long = quote(&[7; 1000]);
        assert!(long.is_ascii() && long.len() < 400 && long.ends_with("(1000 bytes)"));
        assert!(!long.contains('\u{7}'));
    }

    #[test]
    fn errors_are_words() {
        assert_eq!(
            error(&io::Error::from_raw_os_error(111)),
            "Connection refused"
        );
    }
}

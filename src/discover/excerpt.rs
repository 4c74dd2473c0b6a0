//! What a server has sent, in a message.

use super::format::shown;

/// Longer than what is shown, in bytes.
const MOST: usize = 1024;

/// The beginning of it, in quotes and printable.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    let beginning = &bytes[..bytes.len().min(MOST)];
    shown(String::from_utf8_lossy(beginning).trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_short_and_printable(bytes: Vec<u8>) {
            let text = excerpt(&bytes);
            prop_assert!(text.len() < 1_000 && !text.contains(char::is_control), "{}", text);
        }
    }
}

//! What a server has sent, in a message.

use super::format::shown;
use crate::config::text::shorten::shorten;

/// Longer than what is shown, in bytes.
const MOST: usize = 1024;
/// Of a text of its own, in characters.
const MOST_OF_TEXT: usize = 300;

/// The beginning of it, in quotes and printable.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    let beginning = &bytes[..bytes.len().min(MOST)];
    shown(String::from_utf8_lossy(beginning).trim())
}

/// What it says itself, or what a parser says of it, on one line.
pub(super) fn plain(text: &str) -> String {
    shorten(text, MOST_OF_TEXT).replace(char::is_control, " ")
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
            let text = plain(&String::from_utf8_lossy(&bytes).repeat(10));
            prop_assert!(text.chars().count() <= 300 && !text.contains(char::is_control));
        }
    }
}

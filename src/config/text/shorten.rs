//! Text from outside in messages and logs: a configuration, a server or a client may send
//! megabytes.

use std::borrow::Cow;

/// `text`, but of one with more than `most` characters only its beginning and its end: what
/// surrounds a long value in a message stays.
pub fn shorten(text: &str, most: usize) -> Cow<'_, str> {
    // Bytes are at least as many.
    if text.len() <= most || text.chars().count() <= most {
        return Cow::Borrowed(text);
    }
    let tail = most / 3;
    let head: String = text.chars().take(most.saturating_sub(tail + 1)).collect();
    let from = text.char_indices().rev().take(tail).last();
    let end = from.map_or("", |(at, _)| &text[at..]);
    Cow::Owned(format!("{head}…{end}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_in_the_middle() {
        assert_eq!(shorten("", 10), "");
        assert_eq!(shorten("0123456789", 10), "0123456789");
        assert_eq!(shorten("0123456789a", 10), "012345…89a");
        assert_eq!(shorten(&"é".repeat(10), 10), "é".repeat(10));
        assert_eq!(shorten(&"é".repeat(99), 10), "éééééé…ééé");
        for most in 1..12 {
            let cut = shorten(&"ü".repeat(1_000), most).chars().count();
            assert_eq!(cut, most);
        }
    }
}

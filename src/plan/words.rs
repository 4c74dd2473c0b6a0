//! How counts are written in messages.

/// A count of things, with the word in the number that goes with it: "1 session", "2 sessions".
/// `one`: the word for one of them, whose plural adds an s.
pub fn counted(count: impl TryInto<u64>, one: &str) -> String {
    match count.try_into().unwrap_or(u64::MAX) {
        1 => format!("1 {one}"),
        n => format!("{n} {one}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::counted;

    #[test]
    fn one_is_no_plural() {
        let texts = [0u64, 1, 2].map(|n| counted(n, "session"));
        assert_eq!(texts, ["0 sessions", "1 session", "2 sessions"]);
        assert_eq!(counted(1usize, "failed connect"), "1 failed connect");
    }
}

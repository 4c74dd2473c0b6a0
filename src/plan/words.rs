//! How counts are written in messages.

use humantime::format_duration;
use std::time::Duration;

/// A count of things, with the word in the number that goes with it: "1 session", "2 sessions".
/// `one`: the word for one of them, whose plural adds an s.
pub fn counted(count: impl TryInto<u64>, one: &str) -> String {
    match count.try_into().unwrap_or(u64::MAX) {
        1 => format!("1 {one}"),
        n => format!("{n} {one}s"),
    }
}

/// That an upstream has no backend which takes sessions, and what becomes of new ones.
pub fn no_backend_left(upstream: &str, hold_timeout: Duration) -> String {
    let fate = match hold_timeout {
        Duration::ZERO => "are refused (hold_timeout lets them wait)".to_owned(),
        wait => format!("wait for up to {} (hold_timeout)", format_duration(wait)),
    };
    format!("upstream {upstream} has no backend left that takes sessions; new ones {fate}")
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

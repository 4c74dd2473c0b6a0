//! Decides which failures of one name are logged: the first, and others at growing intervals.

use std::time::{Duration, Instant};

/// After the first line; doubled with each one, up to [`LONGEST`].
const FIRST: Duration = Duration::from_secs(30);
const LONGEST: Duration = Duration::from_secs(300);

/// The look-ups of one name that failed since the last one that did not.
#[derive(Debug, Default)]
pub(super) struct Failures {
    count: u64,
    began: Option<Instant>,
    next: Option<(Instant, Duration)>,
}

impl Failures {
    /// `Some`: a log line is due, with the count of failures.
    pub(super) fn add(&mut self, now: Instant) -> Option<u64> {
        self.count += 1;
        self.began.get_or_insert(now);
        let gap = match self.next {
            None => FIRST,
            Some((at, gap)) if now >= at => (gap * 2).min(LONGEST),
            Some(_) => return None,
        };
        self.next = Some((now + gap, gap));
        Some(self.count)
    }

    /// The name resolves. `Some`: how often, and for how long, it had failed.
    pub(super) fn end(&mut self, now: Instant) -> Option<(u64, Duration)> {
        let Self { count, began, .. } = std::mem::take(self);
        began.map(|began| (count, now.saturating_duration_since(began)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_get_rarer_and_tell_how_many_failures_there_were() {
        let start = Instant::now();
        let mut failures = Failures::default();
        let lines: Vec<(u64, u64)> = (0..1_000)
            .filter_map(|s| {
                let count = failures.add(start + Duration::from_secs(s))?;
                Some((s, count))
            })
            .collect();
        let expected = [0, 30, 90, 210, 450, 750].map(|s| (s, s + 1));
        assert_eq!(lines, expected);
        let end = start + Duration::from_secs(1_000);
        assert_eq!(failures.end(end), Some((1_000, Duration::from_secs(1_000))));
        assert_eq!(failures.end(end), None);
        assert_eq!(failures.add(end), Some(1), "the next trouble is a new one");
    }
}

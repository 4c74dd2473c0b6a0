//! Passive health: failed connects, by nginx's rules for `max_fails` and `fail_timeout`. Pure.

use std::time::{Duration, Instant};

/// How many failures count, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailRule {
    /// 0: failures never make the backend unavailable.
    pub max_fails: u32,
    pub fail_timeout: Duration,
}

/// What has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FailureOf {
    /// A connection could not be made.
    #[default]
    Connection,
    /// It was made, and ended before the first byte of an answer.
    Answer,
    /// A datagram could not be delivered, or was not replied to.
    Flow,
}

impl FailureOf {
    /// As explanations name it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Connection | Self::Answer => "failed connect",
            Self::Flow => "failed flow",
        }
    }
}

/// The failures of one backend.
#[derive(Debug, Clone, Copy, Default)]
pub struct Passive {
    fails: u32,
    /// Of the last failure.
    of: FailureOf,
    /// When the first of those that count began: from then on a session was without an answer.
    first: Option<Instant>,
    /// The last failure.
    accessed: Option<Instant>,
    /// The last failure, or the last time the backend was tried again after one.
    checked: Option<Instant>,
}

impl Passive {
    /// Goes on where another one has stopped. `times`: as of [`Self::times`].
    pub fn resume(fails: u32, times: [Option<Instant>; 3]) -> Self {
        let [first, accessed, checked] = times;
        Self {
            fails,
            of: FailureOf::default(),
            first,
            accessed,
            checked,
        }
    }

    /// When the first failure that counts began, the last one, and the last trial or failure.
    pub fn times(&self) -> [Option<Instant>; 3] {
        [self.first, self.accessed, self.checked]
    }

    /// What failed `now` began then.
    pub fn failed(&mut self, of: FailureOf, began: Instant, now: Instant) {
        self.of = of;
        if self.fails == 0 {
            self.first = Some(began);
        }
        self.fails = self.fails.saturating_add(1);
        self.accessed = Some(now);
        self.checked = Some(now);
    }

    /// A success counts only when its connect began after the last failure.
    pub fn succeeded(&mut self) {
        if self.accessed < self.checked {
            self.fails = 0;
        }
    }

    /// A check that began at `asked` succeeded, which shows that these would, too: failures before
    /// that do not count any more. Returns whether there were any.
    pub fn answered(&mut self, shows: &[FailureOf], asked: Instant) -> bool {
        let counts = self.fails > 0
            && shows.contains(&self.of)
            && self.accessed.is_some_and(|failed| failed < asked);
        if counts {
            self.fails = 0;
        }
        counts
    }

    pub fn is_available(&self, rule: FailRule, now: Instant) -> bool {
        rule.max_fails == 0 || self.fails < rule.max_fails || self.is_over(rule, now)
    }

    /// The backend was picked. After `fail_timeout` this is the one live probe that it gets.
    pub fn picked(&mut self, rule: FailRule, now: Instant) {
        if self.is_over(rule, now) {
            self.checked = Some(now);
        }
    }

    pub fn fails(&self) -> u32 {
        self.fails
    }

    /// What failed last.
    pub fn last_of(&self) -> FailureOf {
        self.of
    }

    /// How long it has been failing.
    pub fn doubted_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.failing_since().unwrap_or(now))
    }

    /// When the first failure that counts began.
    pub fn failing_since(&self) -> Option<Instant> {
        self.first.filter(|_| self.fails > 0)
    }

    pub fn last_failure(&self) -> Option<Instant> {
        self.accessed
    }

    /// When time makes it available again, if it is not.
    pub fn available_at(&self, rule: FailRule, now: Instant) -> Option<Instant> {
        let since = self.checked.filter(|_| !self.is_available(rule, now))?;
        Some(since + rule.fail_timeout + Duration::from_millis(1))
    }

    /// Whether `fail_timeout` has passed since the last failure, and since it was last tried again.
    pub fn is_over(&self, rule: FailRule, now: Instant) -> bool {
        self.checked
            .is_none_or(|checked| now.saturating_duration_since(checked) > rule.fail_timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [FailureOf; 1] = [FailureOf::Connection];

    const RULE: FailRule = FailRule {
        max_fails: 2,
        fail_timeout: Duration::from_secs(10),
    };

    #[test]
    fn unavailable_from_max_fails_on_until_fail_timeout_has_passed() {
        let t = Instant::now();
        let s = |n| t + Duration::from_secs(n);
        let mut p = Passive::default();
        p.failed(FailureOf::Connection, t, t);
        assert!(p.is_available(RULE, t));
        p.failed(FailureOf::Connection, s(1), s(1));
        assert!(!p.is_available(RULE, s(1)));
        assert!(!p.is_available(RULE, s(11)));
        assert!(p.is_available(RULE, s(11) + Duration::from_millis(1)));
    }

    #[test]
    fn one_probe_each_fail_timeout() {
        let t = Instant::now();
        let s = |n| t + Duration::from_secs(n);
        let mut p = Passive::default();
        p.failed(FailureOf::Connection, t, t);
        p.failed(FailureOf::Connection, t, t);
        assert!(p.is_available(RULE, s(11)));
        p.picked(RULE, s(11));
        assert!(!p.is_available(RULE, s(11)), "the probe is out");
        p.succeeded();
        assert!(p.is_available(RULE, s(11)));
        assert_eq!(p.fails(), 0);
    }

    #[test]
    fn a_success_that_began_before_the_failure_proves_nothing() {
        let t = Instant::now();
        let mut p = Passive::default();
        p.picked(RULE, t);
        p.failed(
            FailureOf::Connection,
            t + Duration::from_secs(1),
            t + Duration::from_secs(1),
        );
        p.failed(
            FailureOf::Connection,
            t + Duration::from_secs(1),
            t + Duration::from_secs(1),
        );
        p.succeeded();
        assert!(!p.is_available(RULE, t + Duration::from_secs(2)));
    }

    #[test]
    fn an_answer_to_a_question_after_the_failure_ends_it() {
        let t = Instant::now();
        let s = |n| t + Duration::from_secs(n);
        let mut p = Passive::default();
        p.answered(&ALL, t);
        p.failed(FailureOf::Connection, s(1), s(1));
        p.failed(FailureOf::Connection, s(2), s(2));
        p.answered(&ALL, s(2));
        assert!(!p.is_available(RULE, s(3)), "asked before it failed");
        p.answered(&ALL, s(3));
        assert!(p.is_available(RULE, s(3)));
        assert_eq!(p.fails(), 0);
    }

    #[test]
    fn zero_max_fails_never_counts() {
        let rule = FailRule {
            max_fails: 0,
            ..RULE
        };
        let t = Instant::now();
        let mut p = Passive::default();
        for _ in 0..100 {
            p.failed(FailureOf::Connection, t, t);
        }
        assert!(p.is_available(rule, t));
    }
}

//! From what single checks find to a verdict about a backend.
//!
//! Life is doubted until `fall` failures in a row, and believed after `rise` good answers in a row, so that a blip changes
//! nothing. A role is not doubted: a server that says that it is a replica knows.

use crate::reason::{BackendState, CheckResult};
use std::time::{Duration, Instant};

/// How many answers in a row it takes; each at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    pub rise: u32,
    pub fall: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Up,
    /// Why; `None` before the first check has ended.
    Down(Option<CheckResult>),
    WrongRole,
}

/// A verdict that has become another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    pub from: Verdict,
    pub to: Verdict,
    /// From the first answer that spoke against the old verdict.
    pub doubted_for: Duration,
    /// Whether this is the first verdict that an answer stands behind.
    pub first: bool,
}

/// Hears the answers of one address of a backend, one after the other.
#[derive(Debug)]
pub struct Judge {
    rule: Rule,
    verdict: Verdict,
    /// Whether any answer stands behind the verdict.
    heard: bool,
    /// Answers in a row that speak against it.
    against: u32,
    doubted_since: Option<Instant>,
}

impl Verdict {
    pub fn at_start(up: bool) -> Self {
        if up { Self::Up } else { Self::Down(None) }
    }

    pub fn is_up(self) -> bool {
        self == Self::Up
    }

    pub fn state(self) -> BackendState {
        match self {
            Self::Up => BackendState::Up,
            Self::Down(_) => BackendState::Down,
            Self::WrongRole => BackendState::WrongRole,
        }
    }
}

impl Judge {
    pub fn new(rule: Rule, start: Verdict) -> Self {
        Self {
            rule,
            verdict: start,
            heard: false,
            against: 0,
            doubted_since: None,
        }
    }

    /// Whether the next answer is awaited with impatience.
    pub fn is_in_doubt(&self) -> bool {
        self.against > 0 || !self.heard
    }

    pub fn hear(&mut self, result: CheckResult, now: Instant) -> Option<Change> {
        // Nothing was learnt.
        if result == CheckResult::Local {
            return None;
        }
        let (says, needed) = match result {
            CheckResult::Ok => (Verdict::Up, self.rule.rise),
            CheckResult::WrongRole => (Verdict::WrongRole, 1),
            why => (Verdict::Down(Some(why)), self.rule.fall),
        };
        let first = !self.heard;
        // From the wrong role to the right one: as certain as the other way.
        let certain = first || self.verdict == Verdict::WrongRole && says == Verdict::Up;
        self.heard = true;
        if says.state() == self.verdict.state() {
            self.against = 0;
            self.doubted_since = None;
            if !first {
                return None;
            }
            // It was only supposed; from now on it has its reason.
            let from = std::mem::replace(&mut self.verdict, says);
            return (from != says).then_some(Change {
                from,
                to: says,
                doubted_for: Duration::ZERO,
                first,
            });
        }
        let since = *self.doubted_since.get_or_insert(now);
        self.against = self.against.saturating_add(1);
        if self.against < needed && !certain {
            return None;
        }
        let from = std::mem::replace(&mut self.verdict, says);
        self.against = 0;
        self.doubted_since = None;
        Some(Change {
            from,
            to: says,
            doubted_for: now.saturating_duration_since(since),
            first,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::Chance;
    use CheckResult::{Local, Ok as Good, Refused, Timeout, WrongRole};
    use proptest::prelude::*;

    fn judge(rise: u32, fall: u32) -> Judge {
        Judge::new(Rule { rise, fall }, Verdict::Up)
    }

    /// What the verdict is after each answer.
    fn verdicts(judge: &mut Judge, answers: &[CheckResult]) -> Vec<Verdict> {
        let now = Instant::now();
        let hear = |answer: &CheckResult| {
            judge.hear(*answer, now);
            judge.verdict
        };
        answers.iter().map(hear).collect()
    }

    const UP: Verdict = Verdict::Up;
    const DOWN: Verdict = Verdict::Down(Some(Refused));

    #[test]
    fn the_first_answer_decides_alone() {
        assert_eq!(verdicts(&mut judge(2, 3), &[Refused]), [DOWN]);
        let start = Verdict::at_start(false);
        let mut waiting = Judge::new(Rule { rise: 2, fall: 3 }, start);
        assert_eq!(verdicts(&mut waiting, &[Local, Good]), [start, UP]);
        let mut waiting = Judge::new(Rule { rise: 2, fall: 3 }, start);
        assert_eq!(verdicts(&mut waiting, &[Refused, Good]), [DOWN, DOWN]);
    }

    #[test]
    fn fall_failures_in_a_row_and_rise_good_ones() {
        let answers = [Good, Refused, Refused, Good, Refused, Timeout, Refused];
        let expected = [UP, UP, UP, UP, UP, UP, DOWN];
        let mut judge = judge(2, 3);
        assert_eq!(verdicts(&mut judge, &answers), expected);
        let answers = [Good, Refused, Good, Good];
        assert_eq!(verdicts(&mut judge, &answers), [DOWN, DOWN, DOWN, UP]);
    }

    #[test]
    fn one_answer_is_enough_for_a_role() {
        let answers = [Good, WrongRole, Good, WrongRole, Refused, Refused, Good];
        let role = Verdict::WrongRole;
        let expected = [UP, role, UP, role, role, role, UP];
        assert_eq!(verdicts(&mut judge(2, 3), &answers), expected);
        // Out of a failure it is known at once as well, and life has to be believed first.
        let answers = [Good, Refused, Refused, Refused, WrongRole, Good];
        let expected = [UP, UP, UP, DOWN, role, UP];
        assert_eq!(verdicts(&mut judge(2, 3), &answers), expected);
    }

    #[test]
    fn the_doubt_is_timed_from_the_first_answer_against() {
        let now = Instant::now();
        let mut judge = judge(2, 3);
        let after = |s| now + Duration::from_secs(s);
        for (result, at) in [(Good, 0), (Refused, 1), (Good, 2), (Refused, 3), (Local, 4)] {
            assert_eq!(judge.hear(result, after(at)), None);
        }
        assert!(judge.is_in_doubt());
        assert_eq!(judge.hear(Refused, after(5)), None);
        let change = judge.hear(Timeout, after(7)).expect("a change");
        assert_eq!(change.doubted_for, Duration::from_secs(4));
        assert_eq!(change.to, Verdict::Down(Some(Timeout)));
        assert!(!judge.is_in_doubt() && !change.first);
    }

    fn answer() -> impl Strategy<Value = CheckResult> {
        prop::sample::select(CheckResult::ALL.to_vec())
    }

    proptest! {
        /// The machine beside what its rules say of the whole sequence.
        #[test]
        fn agrees_with_its_rules(
            answers in prop::collection::vec(answer(), 0..60), rise in 1u32..5, fall in 1u32..5,
        ) {
            let mut judge = judge(rise, fall);
            let now = Instant::now();
            let mut heard: Vec<CheckResult> = Vec::new();
            let mut verdict = Verdict::Up;
            for result in answers {
                let change = judge.hear(result, now);
                if result != Local {
                    heard.push(result);
                }
                let failing = |r: &CheckResult| !matches!(r, Good | WrongRole);
                let tail = |holds: &dyn Fn(&CheckResult) -> bool| heard.iter().rev().take_while(|r| holds(r)).count() as u32;
                let expected = match (heard.len(), result, verdict) {
                    (_, Local, old) => old,
                    (_, WrongRole, _) => Verdict::WrongRole,
                    (1, Good, _) | (_, Good, Verdict::Up | Verdict::WrongRole) => Verdict::Up,
                    (_, Good, old) => if tail(&|r| *r == Good) >= rise { Verdict::Up } else { old },
                    (1, why, _) => Verdict::Down(Some(why)),
                    (_, _, old @ Verdict::Down(_)) => old,
                    (_, why, old) => if tail(&failing) >= fall { Verdict::Down(Some(why)) } else { old },
                };
                prop_assert_eq!(judge.verdict, expected);
                prop_assert_eq!(change.map(|c| (c.from, c.to)), (verdict != expected).then_some((verdict, expected)));
                verdict = expected;
            }
        }
    }

    /// Thousands of backends in virtual time that live, die, lose roles and answer late: a lasting change is noticed within
    /// the time that interval, fall and timeout allow, and never by fewer failures than `fall`.
    #[test]
    fn a_lasting_change_is_noticed_in_time() {
        let mut chance = Chance::from_seed(20_261_121);
        let rule = Rule { rise: 2, fall: 3 };
        let (interval, fast) = (Duration::from_secs(2), Duration::from_millis(500));
        let timeout = Duration::from_secs(1);
        let began = Instant::now();
        let schedule = super::super::Schedule::new(interval, fast);
        let mut noticed = 0;
        for _ in 0..5_000 {
            let mut judge = Judge::new(rule, Verdict::Up);
            let changes_at = began + Duration::from_millis(chance.draw() % 60_000);
            let to = [Refused, Timeout, WrongRole][(chance.draw() % 3) as usize];
            let blips = chance.draw() % 10;
            let mut at = began + schedule.first(chance.draw());
            let mut last_was_bad = false;
            loop {
                let is_bad = at >= changes_at;
                // Before the change one failure in a row at most: never a verdict.
                let blip =
                    !is_bad && !last_was_bad && at > began + interval && chance.draw() % 10 < blips;
                let result = if is_bad {
                    to
                } else if blip {
                    Timeout
                } else {
                    Good
                };
                last_was_bad = blip;
                let took = if result == Timeout {
                    timeout
                } else {
                    Duration::ZERO
                };
                let change = judge.hear(result, at + took);
                if let Some(change) = change {
                    assert!(is_bad, "a blip became a verdict: {change:?}");
                    assert_eq!(
                        change.to.state(),
                        if to == WrongRole {
                            BackendState::WrongRole
                        } else {
                            BackendState::Down
                        }
                    );
                    let most = if to == WrongRole {
                        interval
                    } else {
                        interval + fast * 2 + timeout * 3
                    };
                    let after = at + took - changes_at;
                    assert!(after <= most, "{to:?} noticed after {after:?}");
                    noticed += 1;
                    break;
                }
                let pause = schedule.next(at, at + took, judge.is_in_doubt(), chance.draw());
                assert!(pause >= at + took && pause <= (at + interval).max(at + took));
                at = pause;
            }
        }
        assert_eq!(noticed, 5_000);
    }
}

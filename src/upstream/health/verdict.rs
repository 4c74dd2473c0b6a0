//! From what single checks find to a verdict about a backend.
//!
//! Life is doubted until `fall` failures in a row, and believed after `rise` good answers in a row,
//! so that a blip changes nothing. A role is not doubted: a server knows whether it is a replica.
//! To be behind is a blip more often than not, so it takes `fall` answers as well; failures among
//! them count, for they do not prove that it has caught up, but a server that has answered in
//! between is not called dead.

use super::Evidence;
use crate::plan::reason::{BackendState, CheckResult};
use std::time::{Duration, Instant};

/// How many results in a row change a verdict; each at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RiseFall {
    pub rise: u32,
    pub fall: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Up,
    /// Why; `None` before the first check has ended.
    Down(Option<CheckResult>),
    WrongRole,
    /// Well, in the other role than the required one.
    Standby,
    /// Too far behind, or not replicating.
    Lagging,
    /// It claims to be the primary, and another one is believed. No check of one server finds this:
    /// see [`super::standings`].
    Doubtful,
}

/// A change of the verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerdictChange {
    pub from: Verdict,
    pub to: Verdict,
    /// From the first result against the old verdict until the change; from the beginning of its
    /// check where that got no answer.
    pub doubted_for: Duration,
    /// Whether this is the first verdict that is based on a check.
    pub first: bool,
}

/// Makes a verdict of the results of one address, one after the other.
#[derive(Debug)]
pub struct Judge {
    rule: RiseFall,
    verdict: Verdict,
    /// Whether the verdict is based on a check.
    has_result: bool,
    /// The last result that had a role, unless the server may have been restarted since.
    last_role: Option<CheckResult>,
    runs: Runs,
    /// Since when results have been against it.
    doubted_since: Option<Instant>,
}

/// How many results in a row, up to the last, were...
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Runs {
    pub good: u32,
    pub failed: u32,
    /// Good, or too far behind: the server is alive.
    pub alive: u32,
    /// Failed, or too far behind.
    pub poor: u32,
}

/// How far results have come on the way to another verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VerdictProgress {
    pub has_result: bool,
    pub last_role: Option<CheckResult>,
    pub runs: Runs,
    pub doubted_since: Option<Instant>,
}

impl Runs {
    fn count(&mut self, outcome: Verdict) {
        let count = |run: &mut u32, goes_on: bool| {
            *run = if goes_on { run.saturating_add(1) } else { 0 };
        };
        let (up, lags) = (outcome.is_up(), outcome == Verdict::Lagging);
        let failed = matches!(outcome, Verdict::Down(_));
        count(&mut self.good, up);
        count(&mut self.failed, failed);
        count(&mut self.alive, up || lags);
        count(&mut self.poor, failed || lags);
    }
}

impl Verdict {
    pub fn at_start(up: bool) -> Self {
        if up { Self::Up } else { Self::Down(None) }
    }

    pub fn is_up(self) -> bool {
        self == Self::Up
    }

    /// Whether the server has another role than the required one.
    pub fn is_other_role(self) -> bool {
        matches!(self, Self::WrongRole | Self::Standby)
    }

    pub fn state(self) -> BackendState {
        match self {
            Self::Up => BackendState::Up,
            Self::Down(_) => BackendState::Down,
            Self::WrongRole => BackendState::WrongRole,
            Self::Standby => BackendState::Standby,
            Self::Lagging => BackendState::Lagging,
            Self::Doubtful => BackendState::Doubtful,
        }
    }
}

impl Judge {
    pub fn new(rule: RiseFall, start: Verdict) -> Self {
        Self {
            rule,
            verdict: start,
            has_result: false,
            last_role: None,
            runs: Runs::default(),
            doubted_since: None,
        }
    }

    /// Goes on where another one has stopped.
    pub fn resume(rule: RiseFall, verdict: Verdict, progress: VerdictProgress) -> Self {
        Self {
            rule,
            verdict,
            has_result: progress.has_result,
            last_role: progress.last_role,
            runs: progress.runs,
            doubted_since: progress.doubted_since,
        }
    }

    pub fn progress(&self) -> VerdictProgress {
        VerdictProgress {
            has_result: self.has_result,
            last_role: self.last_role,
            runs: self.runs,
            doubted_since: self.doubted_since,
        }
    }

    /// Whether to check at the fast interval.
    pub fn is_in_doubt(&self) -> bool {
        self.doubted_since.is_some() || !self.has_result
    }

    /// Records the result of a check that began and ended then.
    pub fn record(
        &mut self,
        result: CheckResult,
        [began, now]: [Instant; 2],
    ) -> Option<VerdictChange> {
        // The check could not be made.
        if result == CheckResult::Local {
            return None;
        }
        let outcome = match self.replace_busy(result) {
            CheckResult::Ok => Verdict::Up,
            CheckResult::WrongRole => Verdict::WrongRole,
            CheckResult::Standby => Verdict::Standby,
            CheckResult::Lagging | CheckResult::NotReplicating => Verdict::Lagging,
            why => Verdict::Down(Some(why)),
        };
        let first = !self.has_result;
        self.has_result = true;
        self.runs.count(outcome);
        if outcome.state() == self.verdict.state() {
            self.doubted_since = None;
            if !first {
                return None;
            }
            // It was an assumption; from now on it has its reason.
            let from = std::mem::replace(&mut self.verdict, outcome);
            return (from != outcome).then_some(VerdictChange {
                from,
                to: outcome,
                doubted_for: Duration::ZERO,
                first,
            });
        }
        let sign = match Evidence::of(result) {
            // A session that came when the check did has got no answer either.
            Evidence::MayHaveRestarted | Evidence::Unknown if !first => began,
            Evidence::MayHaveRestarted
            | Evidence::Unknown
            | Evidence::Missing
            | Evidence::Role
            | Evidence::OtherRole
            | Evidence::Unchanged => now,
        };
        let since = *self.doubted_since.get_or_insert(sign);
        if !first && !self.is_enough(outcome) {
            return None;
        }
        let from = std::mem::replace(&mut self.verdict, outcome);
        self.doubted_since = None;
        Some(VerdictChange {
            from,
            to: outcome,
            doubted_for: now.saturating_duration_since(since),
            first,
        })
    }

    /// The result that counts: for a busy server the last one that had a role, which still holds.
    fn replace_busy(&mut self, result: CheckResult) -> CheckResult {
        match Evidence::of(result) {
            Evidence::Unchanged => return self.last_role.unwrap_or(result),
            Evidence::Role | Evidence::OtherRole => self.last_role = Some(result),
            Evidence::MayHaveRestarted => self.last_role = None,
            Evidence::Missing | Evidence::Unknown => {}
        }
        result
    }

    /// Whether there have been enough results for this verdict.
    fn is_enough(&self, outcome: Verdict) -> bool {
        let RiseFall { rise, fall } = self.rule;
        match (self.verdict, outcome) {
            (_, Verdict::WrongRole | Verdict::Standby) => true,
            (_, Verdict::Down(_)) => self.runs.failed >= fall,
            // From the wrong role to the right one: as conclusive as the other way.
            (Verdict::WrongRole | Verdict::Standby, _) => true,
            (_, Verdict::Up) => self.runs.good >= rise,
            // That it is alive has to be believed first.
            (Verdict::Down(_), _) => self.runs.alive >= rise,
            _ => self.runs.poor >= fall,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::balance::Chance;
    use CheckResult::{
        Busy, Lagging, Local, NotReplicating, Ok as Good, Refused, Standby, Timeout, WrongRole,
    };
    use proptest::prelude::*;

    fn judge(rise: u32, fall: u32) -> Judge {
        Judge::new(RiseFall { rise, fall }, Verdict::Up)
    }

    /// What the verdict is after each answer.
    fn verdicts(judge: &mut Judge, answers: &[CheckResult]) -> Vec<Verdict> {
        let now = Instant::now();
        let record = |answer: &CheckResult| {
            judge.record(*answer, [now; 2]);
            judge.verdict
        };
        answers.iter().map(record).collect()
    }

    const UP: Verdict = Verdict::Up;
    const DOWN: Verdict = Verdict::Down(Some(Refused));

    #[test]
    fn a_judge_goes_on_where_another_has_stopped() {
        let answers = [
            Good, Refused, Refused, Good, Lagging, Refused, Refused, Refused,
        ];
        for stop in 0..answers.len() {
            let (mut whole, mut first) = (judge(2, 3), judge(2, 3));
            let expected = verdicts(&mut whole, &answers);
            verdicts(&mut first, &answers[..stop]);
            let mut second = Judge::resume(first.rule, first.verdict, first.progress());
            let found = verdicts(&mut second, &answers[stop..]);
            assert_eq!(found, expected[stop..], "{stop}");
        }
    }

    #[test]
    fn the_first_answer_decides_alone() {
        assert_eq!(verdicts(&mut judge(2, 3), &[Refused]), [DOWN]);
        let start = Verdict::at_start(false);
        let mut waiting = Judge::new(RiseFall { rise: 2, fall: 3 }, start);
        assert_eq!(verdicts(&mut waiting, &[Local, Good]), [start, UP]);
        let mut waiting = Judge::new(RiseFall { rise: 2, fall: 3 }, start);
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
        // After a failure one answer is enough for a role as well; being up takes `rise` answers.
        let answers = [Good, Refused, Refused, Refused, WrongRole, Good];
        let expected = [UP, UP, UP, DOWN, role, UP];
        assert_eq!(verdicts(&mut judge(2, 3), &answers), expected);
    }

    #[test]
    fn a_standby_is_as_certain_as_a_wrong_role() {
        let (standby, role) = (Verdict::Standby, Verdict::WrongRole);
        let answers = [Standby, Good, Standby, WrongRole, Standby, Refused, Good];
        let expected = [standby, UP, standby, role, standby, standby, UP];
        assert_eq!(verdicts(&mut judge(2, 3), &answers), expected);
    }

    #[test]
    fn replication_that_does_not_run_takes_as_long_as_a_lag() {
        let lags = Verdict::Lagging;
        let answers = [
            Good,
            NotReplicating,
            Lagging,
            Good,
            NotReplicating,
            Lagging,
            NotReplicating,
        ];
        let expected = [UP, UP, UP, UP, UP, UP, lags];
        assert_eq!(verdicts(&mut judge(2, 3), &answers), expected);
        // The first answer decides alone: one whose first sync has not finished gets nothing.
        assert_eq!(
            verdicts(&mut judge(2, 3), &[NotReplicating, Good]),
            [lags, lags]
        );
    }

    #[test]
    fn a_busy_server_is_what_it_was() {
        let busy = Verdict::Down(Some(Busy));
        assert_eq!(
            verdicts(&mut judge(1, 3), &[Busy, Good, Busy]),
            [busy, UP, UP]
        );
        // It did not answer at all before it reported to be busy.
        let late = Verdict::Down(Some(Timeout));
        let answers = [Good, Timeout, Busy, Timeout, Timeout, Timeout, Busy, Busy];
        let expected = [UP, UP, UP, UP, UP, late, late, UP];
        assert_eq!(verdicts(&mut judge(2, 3), &answers), expected);
        let standby = Verdict::Standby;
        assert_eq!(verdicts(&mut judge(1, 1), &[Standby, Busy]), [standby; 2]);
        // Started again, it may be something else.
        let answers = [Good, Refused, Busy, Good];
        assert_eq!(verdicts(&mut judge(1, 1), &answers), [UP, DOWN, DOWN, UP]);
    }

    #[test]
    fn a_lag_is_a_blip_until_it_lasts() {
        let lags = Verdict::Lagging;
        let answers = [Good, Lagging, Lagging, Good, Lagging, Lagging, Lagging];
        let expected = [UP, UP, UP, UP, UP, UP, lags];
        let mut judge = judge(2, 3);
        assert_eq!(verdicts(&mut judge, &answers), expected);
        let answers = [Good, Lagging, Good, Good];
        assert_eq!(verdicts(&mut judge, &answers), [lags, lags, lags, UP]);
    }

    #[test]
    fn a_lag_among_failures() {
        let (lags, role) = (Verdict::Lagging, Verdict::WrongRole);
        // A failure does not prove that it has caught up; but a verdict of down still takes `fall`
        // of them in a row.
        let answers = [Good, Refused, Lagging, Refused, Refused, Lagging];
        let expected = [UP, UP, UP, UP, UP, lags];
        let mut judge = judge(2, 3);
        assert_eq!(verdicts(&mut judge, &answers), expected);
        let answers = [Refused, Refused, Lagging, Refused, Refused, Refused];
        let expected = [lags, lags, lags, lags, lags, DOWN];
        assert_eq!(verdicts(&mut judge, &answers), expected);
        // Back to life, which both prove; and then it has to catch up.
        let answers = [Good, Lagging, Good, Good];
        assert_eq!(verdicts(&mut judge, &answers), [DOWN, lags, lags, UP]);
        // The right role again, and behind: one answer is enough for both.
        let answers = [WrongRole, Lagging, WrongRole, Good];
        assert_eq!(verdicts(&mut judge, &answers), [role, lags, role, UP]);
    }

    #[test]
    fn the_doubt_is_timed_from_the_first_answer_against() {
        let now = Instant::now();
        let mut judge = judge(2, 3);
        let after = |s| now + Duration::from_secs(s);
        for (result, at) in [(Good, 0), (Refused, 1), (Good, 2), (Refused, 3), (Local, 4)] {
            assert_eq!(judge.record(result, [after(at); 2]), None);
        }
        assert!(judge.is_in_doubt());
        assert_eq!(judge.record(Refused, [after(5); 2]), None);
        let change = judge
            .record(Timeout, [after(6), after(7)])
            .expect("a change");
        assert_eq!(change.doubted_for, Duration::from_secs(4));
        assert_eq!(change.to, Verdict::Down(Some(Timeout)));
        assert!(!judge.is_in_doubt() && !change.first);
    }

    /// One that came with it has waited as long for nothing.
    #[test]
    fn a_check_without_an_answer_is_against_it_from_its_beginning() {
        let now = Instant::now();
        let after = |s| now + Duration::from_secs(s);
        let doubt = |results: &[(CheckResult, u64, u64)]| {
            let mut judge = judge(1, 2);
            judge.record(Good, [now; 2]);
            let changes = results.iter().map(|(result, began, ended)| {
                judge.record(*result, [after(*began), after(*ended)])
            });
            changes.flatten().next().expect("a change").doubted_for
        };
        let seconds = Duration::from_secs;
        assert_eq!(doubt(&[(Timeout, 2, 3), (Timeout, 4, 5)]), seconds(3));
        // A blip between two good answers is none of it.
        let blip = [(Timeout, 1, 2), (Good, 3, 3)];
        let lasting = [(Refused, 4, 4), (Timeout, 5, 6)];
        assert_eq!(doubt(&[blip, lasting].concat()), seconds(2));
        // An answer says what is when it comes, however late.
        assert_eq!(doubt(&[(WrongRole, 2, 3)]), seconds(0));
        // Before the first check there was nothing to doubt.
        let change = judge(1, 2).record(Timeout, [now, after(1)]);
        assert_eq!(change.expect("a change").doubted_for, seconds(0));
    }

    fn answer() -> impl Strategy<Value = CheckResult> {
        prop::sample::select(CheckResult::ALL.to_vec())
    }

    proptest! {
        /// Compares the state machine with its rules, applied to the whole sequence.
        #[test]
        fn agrees_with_its_rules(
            answers in prop::collection::vec(answer(), 0..60), rise in 1u32..5, fall in 1u32..5,
        ) {
            let mut judge = judge(rise, fall);
            let now = Instant::now();
            let mut results: Vec<CheckResult> = Vec::new();
            let mut verdict = Verdict::Up;
            let mut last_role = None;
            for result in answers {
                let change = judge.record(result, [now; 2]);
                let result = match result {
                    Busy => last_role.unwrap_or(Busy),
                    Good | Standby | WrongRole | Lagging | NotReplicating => {
                        *last_role.insert(result)
                    }
                    _ => {
                        let restarts = Evidence::of(result) == Evidence::MayHaveRestarted;
                        last_role = last_role.filter(|_| !restarts);
                        result
                    }
                };
                if result != Local {
                    results.push(result);
                }
                let lags = |r: &CheckResult| matches!(r, Lagging | NotReplicating);
                let failing = |r: &CheckResult| {
                    !(matches!(r, Good | WrongRole | Standby) || lags(r))
                };
                let tail = |holds: &dyn Fn(&CheckResult) -> bool| {
                    results.iter().rev().take_while(|r| holds(r)).count() as u32
                };
                let expected = match (results.len(), result, verdict) {
                    (_, Local, old) => old,
                    (_, WrongRole, _) => Verdict::WrongRole,
                    (_, Standby, _) => Verdict::Standby,
                    (1, Good, _)
                    | (_, Good, Verdict::Up | Verdict::WrongRole | Verdict::Standby) => Verdict::Up,
                    (_, Good, old) => if tail(&|r| *r == Good) >= rise { Verdict::Up } else { old },
                    (1, Lagging | NotReplicating, _)
                    | (
                        _,
                        Lagging | NotReplicating,
                        Verdict::Lagging | Verdict::WrongRole | Verdict::Standby,
                    ) => Verdict::Lagging,
                    (_, Lagging | NotReplicating, Verdict::Up)
                        if tail(&|r| lags(r) || failing(r)) >= fall => Verdict::Lagging,
                    (_, Lagging | NotReplicating, Verdict::Down(_))
                        if tail(&|r| *r == Good || lags(r)) >= rise => Verdict::Lagging,
                    (_, Lagging | NotReplicating, old) => old,
                    (1, why, _) => Verdict::Down(Some(why)),
                    (_, _, old @ Verdict::Down(_)) => old,
                    (_, why, _) if tail(&failing) >= fall => Verdict::Down(Some(why)),
                    (_, _, old) => old,
                };
                prop_assert_eq!(judge.verdict, expected);
                let expected_change = (verdict != expected).then_some((verdict, expected));
                prop_assert_eq!(change.map(|c| (c.from, c.to)), expected_change);
                verdict = expected;
                // A server that has not been well for so long is not used, whatever was wrong each
                // time.
                let poor = tail(&|r| lags(r) || failing(r));
                prop_assert!(poor <= 2 * (fall - 1) || !verdict.is_up(), "{results:?}");
            }
        }
    }

    /// Thousands of backends in virtual time that live, die, lose roles and answer late: a lasting
    /// change is noticed within the time that interval, fall and timeout allow, and never by fewer
    /// failures than `fall`.
    #[test]
    fn a_lasting_change_is_noticed_in_time() {
        let mut chance = Chance::from_seed(20_261_121);
        let rule = RiseFall { rise: 2, fall: 3 };
        let (interval, fast) = (Duration::from_secs(2), Duration::from_millis(500));
        let timeout = Duration::from_secs(1);
        let began = Instant::now();
        let schedule = super::super::Schedule::new(interval, fast, began);
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
                let change = judge.record(result, [at, at + took]);
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

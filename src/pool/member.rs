//! One address of a backend as a candidate: what is configured, and all that speaks for or against it now.

use super::Wished;
use crate::{
    backend::Backend,
    balance::{Average, FULL},
    health::{FailRule, Passive, Verdict},
    metrics::BackendMetrics,
    plan::{self, Place},
    probe::Told,
    reason::{BackendState, CheckResult},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

#[derive(Debug)]
pub(super) struct Member {
    pub(super) backend: Arc<Backend>,
    /// Which of the configured backends this is an address of.
    pub(super) of: usize,
    pub(super) weight: u32,
    pub(super) rule: FailRule,
    pub(super) max_connections: u64,
    pub(super) slow_start: Duration,
    pub(super) down: bool,
    pub(super) passive: Passive,
    /// What the checks say, beside what failed connects do: neither erases the other.
    pub(super) verdict: Verdict,
    /// Since when, if it has ever changed.
    pub(super) verdict_since: Option<Instant>,
    pub(super) checked: Option<Checked>,
    /// What the operator wants, beside all that.
    pub(super) wished: Wished,
    /// Counts how often sessions were told to leave it.
    pub(super) left: u32,
    /// When it came back, while it starts slowly.
    pub(super) back: Option<Instant>,
    pub(super) average: Average,
}

/// What the last check of an address found.
#[derive(Debug, Clone)]
pub struct Checked {
    pub at: Instant,
    pub took: Duration,
    pub result: CheckResult,
    pub told: Told,
    pub transcript: String,
}

impl Member {
    pub(super) fn new(
        of: usize,
        plan: &plan::Backend,
        place: &Place,
        metrics: &Arc<BackendMetrics>,
        verdict: Verdict,
    ) -> Self {
        Self {
            backend: Arc::new(Backend::new(place.clone(), Arc::clone(metrics))),
            of,
            weight: plan.weight,
            rule: FailRule {
                max_fails: plan.max_fails,
                fail_timeout: plan.fail_timeout,
            },
            max_connections: plan.max_connections,
            slow_start: plan.slow_start,
            down: plan.down,
            passive: Passive::default(),
            verdict,
            verdict_since: None,
            checked: None,
            wished: Wished::default(),
            left: 0,
            back: None,
            average: Average::default(),
        }
    }

    /// How much of its weight counts now; 0 if it can take nothing.
    pub(super) fn share(&self, single: bool, now: Instant) -> u32 {
        let can_take = self.weight > 0
            && !self.down
            && self.is_wanted()
            && self.verdict.is_up()
            && (single || self.passive.is_available(self.rule, now))
            && (self.max_connections == 0 || self.backend.active() < self.max_connections);
        match self.back {
            _ if !can_take => 0,
            Some(back) if !single => {
                let passed = now.saturating_duration_since(back).as_secs_f64();
                let part = passed / self.slow_start.as_secs_f64();
                // Never nothing: where it is the only one left it serves.
                ((part * f64::from(FULL)) as u32).clamp(1, FULL)
            }
            _ => FULL,
        }
    }

    /// How many percent of its weight count while it starts slowly.
    pub(super) fn starting(&self, now: Instant) -> Option<u32> {
        let share = self.share(false, now);
        (self.back.is_some() && 0 < share && share < FULL).then(|| share * 100 / FULL)
    }

    /// Whether it would be wrong to begin anew with it, were it gone.
    pub(super) fn is_worth_keeping(&self, now: Instant) -> bool {
        self.backend.active() > 0
            || !self.passive.is_available(self.rule, now)
            || self.back.is_some_and(|back| now < back + self.slow_start)
    }

    /// True when it has just ended.
    pub(super) fn end_slow_start(&mut self, now: Instant) -> bool {
        let ended = self.back.is_some_and(|back| now >= back + self.slow_start);
        if ended {
            self.back = None;
        }
        ended
    }

    /// Whether it takes sessions with the whole of its weight, and will until something happens to it.
    pub(super) fn is_plain(&self) -> bool {
        self.weight > 0
            && !self.down
            && self.is_wanted()
            && self.verdict.is_up()
            && self.max_connections == 0
            && (self.rule.max_fails == 0 || self.passive.fails() == 0)
            && self.back.is_none()
    }

    pub(super) fn start_slowly(&mut self, now: Instant) {
        self.back = Some(now).filter(|_| !self.slow_start.is_zero());
    }

    /// The backend, and the state that it is in.
    pub(super) fn as_it_is(&self) -> (Arc<Backend>, BackendState) {
        let state = self.wished.wish.state().unwrap_or(match self.verdict {
            _ if self.down => BackendState::Down,
            Verdict::Up if self.is_failed() => BackendState::Failed,
            verdict => verdict.state(),
        });
        (Arc::clone(&self.backend), state)
    }

    /// Whether it has failed often enough, whether or not its time has passed.
    pub(super) fn is_failed(&self) -> bool {
        self.rule.max_fails > 0 && self.passive.fails() >= self.rule.max_fails
    }
}

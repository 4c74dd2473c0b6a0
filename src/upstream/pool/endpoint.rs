//! One address of a backend as a candidate: what is configured, and all that speaks for or against
//! it now.

use super::{AdminSetting, Cause, Transition};
use crate::{
    plan::{
        self,
        reason::{BackendState, CheckResult},
    },
    upstream::{
        backend::Backend,
        balance::{Average, FULL},
        health::{Change, Claim, Epoch, FailRule, Finding, Passive, Verdict, may_restart},
    },
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
    pub(super) backup: bool,
    pub(super) passive: Passive,
    /// What the checks say of it alone...
    pub(super) said: Verdict,
    /// ... and what is thought of it beside the others, beside what failed connects say: neither
    /// erases the other.
    pub(super) verdict: Verdict,
    /// Since when, if it has ever changed.
    pub(super) verdict_since: Option<Instant>,
    /// Why the others make it another one than `said`.
    pub(super) why: Option<String>,
    /// When it came to be known here.
    pub(super) born: Instant,
    /// Whether any check has told anything of it.
    pub(super) heard: bool,
    /// Since when it has had the role that is asked for, without a break.
    pub(super) known: Option<Instant>,
    /// What it last proved as the primary, even if it is silent since.
    pub(super) epoch: Option<Epoch>,
    /// What the server called itself then.
    pub(super) server: Option<String>,
    /// The number of the one that has proven to be promoted later. Holds when that one has long
    /// been something else: whose data are out of date does not become the primary by being the
    /// last to say so.
    pub(super) superseded: Option<u64>,
    /// Whether it is one that the resolver no longer names.
    pub(super) departed: bool,
    /// The last answer that told its role; before that, `born`.
    pub(super) certain: Instant,
    /// Nothing certain has been heard of it for too long.
    pub(super) stale: bool,
    /// Nothing that checks say keeps sessions away from it.
    pub(super) open: bool,
    pub(super) checked: Option<Checked>,
    /// What the operator wants, beside all that.
    pub(super) admin_state_changed: AdminSetting,
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
    pub finding: Finding,
    pub transcript: String,
}

impl Member {
    pub(super) fn new(
        of: usize,
        plan: &plan::Backend,
        backend: Backend,
        verdict: Verdict,
        now: Instant,
    ) -> Self {
        Self {
            backend: Arc::new(backend),
            of,
            weight: plan.weight,
            rule: FailRule {
                max_fails: plan.max_fails,
                fail_timeout: plan.fail_timeout,
            },
            max_connections: plan.max_connections,
            slow_start: plan.slow_start,
            down: plan.down,
            backup: plan.backup,
            passive: Passive::default(),
            said: verdict,
            verdict,
            verdict_since: None,
            why: None,
            born: now,
            heard: false,
            known: None,
            epoch: None,
            server: None,
            superseded: None,
            departed: false,
            certain: now,
            stale: false,
            open: verdict.is_up(),
            checked: None,
            admin_state_changed: AdminSetting::default(),
            left: 0,
            back: None,
            average: Average::default(),
        }
    }

    /// A check has told something. Whether that may change what is to be thought of it or of
    /// others.
    pub(super) fn hear(&mut self, checked: Checked, change: Option<Change>, now: Instant) -> bool {
        let result = checked.result;
        let mut news = change.is_some();
        match result {
            CheckResult::Local => {}
            // What it said before still holds.
            CheckResult::Busy if change.map_or(self.said, |change| change.to).is_up() => {
                news |= self.stale || self.known.is_none();
                self.certain = now;
                self.known.get_or_insert(now);
            }
            CheckResult::Ok | CheckResult::Lagging | CheckResult::NotReplicating => {
                news |= self.stale || self.known.is_none();
                self.certain = now;
                if self.server != checked.finding.server {
                    self.server.clone_from(&checked.finding.server);
                    news = true;
                }
                // The first answer speaks for all the time before it: who answers first of all says
                // nothing.
                let since = if self.heard { now } else { self.born };
                self.known.get_or_insert(since);
                if self.epoch != checked.finding.epoch {
                    // Another one than before was begun by a promotion, or a new life.
                    if self.epoch.is_some() && checked.finding.epoch.is_some() {
                        self.superseded = None;
                    }
                    self.epoch.clone_from(&checked.finding.epoch);
                    news = true;
                }
            }
            CheckResult::WrongRole | CheckResult::Standby => {
                self.certain = now;
                self.known = None;
                self.epoch = None;
                self.server = None;
                self.superseded = None;
            }
            _ if may_restart(result) => {
                news |= self.known.is_some() || self.superseded.is_some();
                self.known = None;
                self.superseded = None;
            }
            _ => {}
        }
        if result != CheckResult::Local {
            news |= !self.heard;
            self.heard = true;
        }
        if let Some(change) = change {
            self.said = change.to;
            if matches!(change.to, Verdict::Down(_)) {
                self.known = None;
            }
            // The first verdict of all is no recovery; the first one after a maintenance is. And
            // one that was used all the same has nothing to get used to.
            let comes_back = !change.first || self.verdict_since.is_some();
            if change.to.is_up() && comes_back && !self.open {
                self.start_slowly(now);
            }
        }
        self.checked = Some(checked);
        news
    }

    /// What it says as the primary; `answers`: whether it is there to be believed.
    pub(super) fn claim(&self, answers: bool) -> Claim<'_> {
        Claim {
            known: self.known,
            epoch: self.epoch.as_ref(),
            place: &self.backend.place,
            server: self.server.as_deref(),
            answers,
        }
    }

    /// Whether the checks speak for it, and the operator does not speak against it.
    pub(super) fn is_well(&self) -> bool {
        self.verdict.is_up() && !self.stale && !self.down && self.is_wanted()
    }

    /// How much of its weight counts now; 0 if it can take nothing.
    pub(super) fn share(&self, single: bool, now: Instant) -> u32 {
        let can_take = self.may_take(single, now) && !self.is_full();
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

    /// Whether it may take sessions, however many it has.
    fn may_take(&self, single: bool, now: Instant) -> bool {
        self.weight > 0
            && !self.down
            && self.open
            && self.is_wanted()
            && (single || self.passive.is_available(self.rule, now))
    }

    fn is_full(&self) -> bool {
        self.max_connections > 0 && self.backend.active() >= self.max_connections
    }

    /// Whether nothing but its `max_connections` keeps a session away from it.
    pub(super) fn is_only_full(&self, single: bool, now: Instant) -> bool {
        self.is_full() && self.may_take(single, now)
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

    /// Whether it takes sessions with the whole of its weight, and will until something happens to
    /// it.
    pub(super) fn is_plain(&self) -> bool {
        self.weight > 0
            && !self.down
            && self.open
            && self.is_wanted()
            && self.max_connections == 0
            && (self.rule.max_fails == 0 || self.passive.fails() == 0)
            && self.back.is_none()
    }

    pub(super) fn start_slowly(&mut self, now: Instant) {
        self.back = Some(now).filter(|_| !self.slow_start.is_zero());
    }

    /// The backend, and the state that it is in.
    pub(super) fn as_it_is(&self) -> (Arc<Backend>, BackendState) {
        (Arc::clone(&self.backend), self.state())
    }

    /// A change of its state, which was this before.
    pub(super) fn transition(&self, from: BackendState, cause: Cause, now: Instant) -> Transition {
        Transition {
            backend: Arc::clone(&self.backend),
            is_backup: self.backup,
            from: Some(from),
            to: Some(self.state()),
            cause,
            doubted_for: Duration::ZERO,
            at: now,
        }
    }

    /// Without what time alone changes: a failed one stays so until it is proven to be back.
    pub(super) fn state(&self) -> BackendState {
        self.admin_state_changed
            .admin_state
            .state()
            .unwrap_or(match self.verdict {
                _ if self.down => BackendState::Disabled,
                Verdict::Up if self.is_failed() => BackendState::Failed,
                verdict => verdict.state(),
            })
    }

    /// Whether it has failed often enough, whether or not its time has passed.
    pub(super) fn is_failed(&self) -> bool {
        self.rule.max_fails > 0 && self.passive.fails() >= self.rule.max_fails
    }
}

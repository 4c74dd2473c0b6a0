//! What checks have found about an endpoint, and what is made of it beside the other endpoints.

use crate::{
    plan::{Role, reason::CheckResult},
    upstream::health::{Epoch, Evidence, Finding, Verdict, VerdictChange, VerdictProgress},
};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct CheckRecord {
    /// The verdict from the checks of this endpoint alone.
    pub(super) own: Verdict,
    /// The verdict beside the other endpoints: of several primaries one is believed.
    pub(super) effective: Verdict,
    /// When `effective` changed last, if it has.
    pub(super) since: Option<Instant>,
    /// Why `effective` is another one than `own`.
    pub(super) why: Option<String>,
    /// Whether sessions may come as far as checks are concerned. In panic they may although the
    /// verdict is against it.
    pub(super) admits: bool,
    /// Since when it waits for the answer to a check that begins later: it was put back into
    /// service, and may have another role by now, or its last check has failed. Until then
    /// `effective` does not become up.
    pub(super) awaits_answer: Option<Instant>,
    /// Whether any check has had a result.
    pub(super) checked_once: bool,
    pub(super) last: Option<Checked>,
    /// When checks of it began.
    pub(super) added_at: Instant,
    /// When a check last found its role; before that, `added_at`.
    pub(super) last_conclusive: Instant,
    /// `last_conclusive` is too long ago.
    pub(super) is_stale: bool,
    pub(super) evidence: PrimaryEvidence,
    /// Of the checks up to the last.
    pub(super) progress: VerdictProgress,
    /// Where the checks of another process have stopped, until those of this one go on.
    pub(super) handed: Option<VerdictProgress>,
}

/// What speaks for an endpoint where there is to be one primary.
#[derive(Debug, Default)]
pub(super) struct PrimaryEvidence {
    /// Since when it has had the required role without a break.
    pub(super) role_since: Option<Instant>,
    /// What it proved last, even if it has not answered since.
    pub(super) epoch: Option<Epoch>,
    /// The identity of the server then.
    pub(super) server: Option<String>,
    /// The id of the backend that was promoted later. It holds when that one has another role by
    /// now: a server whose data are out of date does not become the primary by being the last to
    /// claim it.
    pub(super) superseded_by: Option<u64>,
}

/// The last check of an endpoint.
#[derive(Debug, Clone)]
pub struct Checked {
    pub began: Instant,
    pub at: Instant,
    pub took: Duration,
    pub result: CheckResult,
    pub finding: Finding,
    pub transcript: String,
}

impl CheckRecord {
    pub(super) fn new(verdict: Verdict, now: Instant) -> Self {
        Self {
            own: verdict,
            effective: verdict,
            since: None,
            why: None,
            admits: verdict.is_up(),
            awaits_answer: None,
            checked_once: false,
            last: None,
            added_at: now,
            last_conclusive: now,
            is_stale: false,
            evidence: PrimaryEvidence::default(),
            progress: VerdictProgress::default(),
            handed: None,
        }
    }

    /// Records a check; `sign`: what a check of a primary shows. Returns whether the verdict on
    /// this endpoint or on others may change.
    pub(super) fn record(
        &mut self,
        checked: Checked,
        change: Option<VerdictChange>,
        sign: Evidence,
        now: Instant,
    ) -> bool {
        let own = change.map_or(self.own, |change| change.to);
        let mut may_change = change.is_some();
        let evidence = Evidence::of(checked.result);
        may_change |= self.take_answer(checked.began, evidence, own);
        match evidence {
            Evidence::Missing | Evidence::Unknown => {}
            Evidence::Unchanged if sign.is_of(own) => may_change |= self.confirm_role(now, now),
            Evidence::Unchanged if own.is_up() => may_change |= self.conclude(now),
            Evidence::Unchanged => {}
            Evidence::Role | Evidence::OtherRole if evidence == sign => {
                // The first answer speaks for all the time before it: the server that answers first
                // is not primary for longer.
                let since = if self.checked_once {
                    now
                } else {
                    self.added_at
                };
                may_change |= self.confirm_role(since, now);
                may_change |= self.evidence.record(&checked.finding);
                // It takes the place of replicas when it is in doubt no more.
                let last = self.last.as_ref().map(|last| Evidence::of(last.result));
                may_change |= last.is_some_and(|last| last != evidence);
            }
            Evidence::Role | Evidence::OtherRole => {
                may_change |= self.conclude(now);
                // Another claim may be the better one now, even before the verdict changes.
                let before = std::mem::take(&mut self.evidence);
                may_change |= before.role_since.is_some() || before.epoch.is_some();
            }
            Evidence::MayHaveRestarted => {
                let before = (
                    self.evidence.role_since.take(),
                    self.evidence.superseded_by.take(),
                );
                may_change |= before != (None, None);
            }
        }
        if evidence != Evidence::Missing {
            may_change |= !self.checked_once;
            self.checked_once = true;
        }
        self.own = own;
        if change.is_some() && matches!(own, Verdict::Down(_)) {
            self.evidence.role_since = None;
        }
        self.last = Some(checked);
        may_change
    }

    /// Whether the last check was answered, as far as it could be made.
    pub(super) fn has_answered(&self) -> bool {
        let last = self.last.as_ref().map(|last| Evidence::of(last.result));
        match last {
            Some(Evidence::MayHaveRestarted | Evidence::Unknown) => false,
            None
            | Some(
                Evidence::Missing | Evidence::Role | Evidence::OtherRole | Evidence::Unchanged,
            ) => true,
        }
    }

    /// Ends the wait for an answer, if this is one. Returns whether it does.
    fn take_answer(&mut self, began: Instant, evidence: Evidence, own: Verdict) -> bool {
        let is_answer = match evidence {
            Evidence::Role | Evidence::OtherRole => true,
            // The verdict, if these have made it one, does not rest on what was found before.
            Evidence::MayHaveRestarted | Evidence::Unknown => matches!(own, Verdict::Down(_)),
            // What was found before is what is in doubt.
            Evidence::Missing | Evidence::Unchanged => false,
        };
        let is_answer = is_answer && self.awaits_answer.is_some_and(|since| began >= since);
        if is_answer {
            self.awaits_answer = None;
        }
        is_answer
    }

    /// It was checked while it was drained, and is put back into service; `role`: the one that is
    /// required. What was found before keeps its weight against it. A last check that has passed
    /// speaks for it, unless the server may have got another role since.
    pub(super) fn return_from_drain(&mut self, role: Option<Role>, now: Instant) {
        let last = self.last.as_ref();
        let has_passed = last.is_some_and(|last| last.result == CheckResult::Ok);
        if has_passed && role.is_none() {
            return;
        }
        self.awaits_answer = Some(now);
        if self.effective.is_up() {
            self.effective = Verdict::Down(None);
        }
    }

    /// A check has found its role. Returns whether that may change the verdict.
    fn conclude(&mut self, now: Instant) -> bool {
        self.last_conclusive = now;
        self.is_stale
    }

    /// The same where that role is the primary, since then.
    fn confirm_role(&mut self, since: Instant, now: Instant) -> bool {
        let may_change = self.conclude(now) || self.evidence.role_since.is_none();
        self.evidence.role_since.get_or_insert(since);
        may_change
    }

    /// The endpoint comes out of maintenance: it may be another server, so nothing found before
    /// counts. Unlike at the start of the process it waits for a check, whatever `start` is.
    pub(super) fn reset(&mut self, now: Instant) {
        *self = Self {
            since: Some(now),
            ..Self::new(Verdict::Down(None), now)
        };
    }
}

impl PrimaryEvidence {
    /// Returns whether it proves something else than before.
    fn record(&mut self, finding: &Finding) -> bool {
        let is_other_server = self.server != finding.server;
        if is_other_server {
            self.server.clone_from(&finding.server);
        }
        let is_other_epoch = self.epoch != finding.epoch;
        if is_other_epoch {
            // A promotion, or a restart, has begun another epoch.
            if self.epoch.is_some() && finding.epoch.is_some() {
                self.superseded_by = None;
            }
            self.epoch.clone_from(&finding.epoch);
        }
        is_other_server || is_other_epoch
    }
}

//! Looks at all endpoints together, for what checks of single ones cannot decide: which of two
//! primaries is believed, whether the verdict on a primary is too old, and whether checks have
//! taken out more than they may.

use super::{
    Cause, Checked, Event, Inner, Pool, Transition,
    check_record::PrimaryEvidence,
    endpoint::{BoxedEndpoint, Endpoint},
};
use crate::{
    plan::{
        self, CheckAt, CheckKind, Role,
        reason::{BackendState, CheckResult},
    },
    upstream::{
        backend::Backend,
        health::{
            Epoch, Evidence, FailureOf, PrimaryClaim, Standing, Supersedes, Verdict, VerdictChange,
            count_servers, standings,
        },
    },
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// The rules of an upstream for reviews, and what the last one found.
#[derive(Debug, Default)]
pub(super) struct Review {
    /// Which role checks ask for; there is to be one primary.
    pub(super) role: Option<Role>,
    /// What a good check shows to be possible, so that it proves a failed endpoint good.
    check_shows: &'static [FailureOf],
    stale_after: Option<Duration>,
    /// In percent.
    panic_threshold: u32,
    /// How many backends of how many are up, while in panic.
    panic: Option<(usize, usize)>,
    /// Standbys are used while no other is up: readers of replicas go to the primary.
    role_fallback: bool,
    /// Whether they are used now.
    in_fallback: bool,
    /// When the next verdict may be stale; not after it is.
    due: Option<Instant>,
    /// Whether the rules are others than those of the last review, or what checks found has been
    /// replaced: every endpoint is to be looked at.
    pub(super) is_outdated: bool,
}

/// The check that led to a review, where it changed the verdict on its address.
pub(super) struct Trigger {
    backend: u64,
    cause: Cause,
    doubted_for: Duration,
}

/// What an upstream shows of its reviews.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guarded {
    /// How many servers claim to be the primary, where there is to be one. A server with two
    /// addresses counts once.
    pub primaries: Option<usize>,
    /// Whether all are used in spite of their checks, where there is a panic threshold.
    pub in_panic: Option<bool>,
    /// Whether primaries are used because no replica is up, where that is asked for.
    pub in_role_fallback: Option<bool>,
}

impl Review {
    pub(super) fn new(plan: &plan::Upstream) -> Self {
        let mut review = Self::default();
        review.set_plan(plan);
        review
    }

    pub(super) fn set_plan(&mut self, plan: &plan::Upstream) {
        let before = self.rules();
        let Some(check) = &plan.check else {
            // The next review ends what has begun, and says so.
            *self = Self {
                panic: self.panic,
                in_fallback: self.in_fallback,
                is_outdated: self.is_outdated,
                ..Self::default()
            };
            self.is_outdated |= before != self.rules();
            return;
        };
        self.role = check.kind.role();
        self.check_shows = shown_by(check);
        self.stale_after = check.stale_after;
        self.panic_threshold = check.panic_threshold;
        self.role_fallback = check.role_fallback;
        self.is_outdated |= before != self.rules();
    }

    fn rules(&self) -> (Option<Role>, Option<Duration>, u32, bool) {
        (
            self.role,
            self.stale_after,
            self.panic_threshold,
            self.role_fallback,
        )
    }

    /// Whether each endpoint is used for what is found about it alone, and has been looked at.
    pub(super) fn is_of_each(&self) -> bool {
        !self.is_outdated && self.panic.is_none() && !self.in_fallback
    }

    /// An endpoint has come whose verdict may be stale then.
    pub(super) fn expect_stale(&mut self, since: Instant) {
        let until = self.stale_after.map(|limit| since + limit);
        self.due = self.due.into_iter().chain(until).min();
    }

    /// What another process needs beside the rules: how many of how many are up while in panic, and
    /// whether standbys are used.
    pub(super) fn handed(&self) -> (Option<(usize, usize)>, bool) {
        (self.panic, self.in_fallback)
    }

    /// Goes on with that, as far as the rules are the same.
    pub(super) fn take_over(&mut self, panic: Option<(usize, usize)>, in_fallback: bool) {
        self.panic = panic.filter(|_| self.panic_threshold > 0);
        self.in_fallback = in_fallback && self.role_fallback;
    }

    /// When to review even if nothing happens.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        // An answer that comes from now on is stale no sooner.
        self.stale_after
            .map(|limit| self.due.unwrap_or(now + limit))
    }

    /// Why endpoints with this verdict are used although they are not up.
    pub(super) fn explain_use(&self, verdict: Verdict) -> Option<String> {
        if self.stands_in(verdict) {
            return Some("used while no replica is up".to_owned());
        }
        let (up, total) = self.panic?;
        Some(format!("panic threshold: {up} of {total} up"))
    }

    /// Whether of several primaries one is believed: sessions go to a primary.
    pub(super) fn elects(&self) -> bool {
        self.role == Some(Role::Primary) || self.role_fallback
    }

    /// Whether the verdict on an endpoint depends on the time, or on others: of one that is back or
    /// has another configuration it may be another than before.
    pub(super) fn compares(&self) -> bool {
        self.elects() || self.stale_after.is_some()
    }

    /// What the check of a primary shows.
    pub(super) fn sign_of_primary(&self) -> Evidence {
        match self.role {
            Some(Role::Replica) => Evidence::OtherRole,
            Some(Role::Primary) | None => Evidence::Role,
        }
    }

    /// The same, where one of several is believed.
    pub(super) fn sign_of_election(&self) -> Option<Evidence> {
        self.elects().then(|| self.sign_of_primary())
    }

    /// Whether standbys are used when no other is up.
    pub(super) fn falls_back(&self) -> bool {
        self.role_fallback
    }

    /// Whether an endpoint with this verdict is used in place of replicas.
    pub(super) fn stands_in(&self, verdict: Verdict) -> bool {
        self.in_fallback && verdict == Verdict::Standby
    }
}

impl Pool {
    /// A check of this address has ended; `change`: of the verdict on this address alone. Returns
    /// whether any address is well now.
    pub fn checked(
        &self,
        backend: &Backend,
        checked: Checked,
        change: Option<VerdictChange>,
        now: Instant,
    ) -> bool {
        let mut inner = self.lock();
        let sign = inner.review.sign_of_primary();
        let followed = match Evidence::of(checked.result) {
            shown @ (Evidence::Role | Evidence::OtherRole) if shown != sign => {
                checked.finding.epoch.clone()
            }
            _ => None,
        };
        let began = checked.began;
        let proves = checked.result == CheckResult::Ok;
        let awaits = |e: &mut Endpoint| e.check.awaits_answer.is_some();
        let may_decide = change.is_some() || inner.find(backend).is_some_and(awaits);
        let trigger = may_decide.then(|| Trigger {
            backend: backend.id,
            cause: Cause::Check {
                result: checked.result,
                transcript: checked.transcript.clone(),
            },
            doubted_for: change.map_or(Duration::ZERO, |change| change.doubted_for),
        });
        let number = inner.number_of(backend);
        let mut may_change = number
            .and_then(|number| inner.outlined_mut(number))
            .is_some_and(|e| e.record_check(checked, change, sign, now));
        if proves {
            may_change |= inner.prove_connect(backend, began, now);
        }
        if let Some(epoch) = followed {
            may_change |= inner.end_superseding(backend, &epoch);
        }
        if may_change {
            inner.review_some(number, trigger, now);
            self.changed();
        } else if let Some(number) = number {
            inner.recount(number);
        }
        inner.totals.counts.well > 0
    }

    /// The verdict from the checks of this address alone, or the one at the start.
    pub fn own_verdict(&self, backend: &Backend) -> Verdict {
        let found = self.lock().find(backend).map(|e| e.check.own);
        found.unwrap_or(Verdict::Down(None))
    }

    /// The role that checks ask for.
    pub fn role(&self) -> Option<Role> {
        self.lock().review.role
    }

    /// Whether all addresses are used, whatever their checks find.
    pub fn in_panic(&self) -> bool {
        self.lock().review.panic.is_some()
    }

    /// Whether this address is used although it has another role than the required one.
    pub fn stands_in(&self, backend: &Backend) -> bool {
        let mut inner = self.lock();
        let verdict = inner.find(backend).map(|e| e.check.effective);
        verdict.is_some_and(|verdict| inner.review.stands_in(verdict))
    }

    /// Whether readers would use the primary if this one were no replica any more: it is the last
    /// that they have, and another server was the primary at its last check.
    pub fn is_last_beside_primary(&self, backend: &Backend) -> bool {
        let mut inner = self.lock();
        let (review, counts) = (&inner.review, &inner.totals.counts);
        let may_begin = review.role_fallback && !review.in_fallback;
        let would_begin = may_begin && counts.serving_well == 1 && counts.serving_standby_sure > 0;
        let is_used = |e: &mut Endpoint| e.is_meant_to_serve() && e.check.effective.is_up();
        would_begin && inner.find(backend).is_some_and(is_used)
    }

    pub fn guarded(&self, now: Instant) -> Guarded {
        let mut inner = self.lock();
        inner.review_if_due(now);
        let claims = |e: &&BoxedEndpoint| {
            !e.config.is_down && e.check.checked_once && e.is_checked() && e.check.own.is_up()
        };
        let primaries = || {
            let claiming = inner.totals.counts.claiming.iter();
            let claiming = claiming.map(|i| &inner.endpoints[*i]).filter(claims);
            count_servers(&claiming.map(|e| e.claim(true)).collect::<Vec<_>>())
        };
        let review = &inner.review;
        Guarded {
            primaries: (review.role == Some(Role::Primary)).then(primaries),
            in_panic: (review.panic_threshold > 0).then_some(review.panic.is_some()),
            in_role_fallback: review.role_fallback.then_some(review.in_fallback),
        }
    }
}

impl Inner {
    /// A verdict can become stale without any event. Every pick makes sure of it, because the
    /// checker may have died.
    #[inline]
    pub(super) fn review_if_due(&mut self, now: Instant) {
        if self.review.due.is_some_and(|due| now >= due) {
            self.review(None, now);
        }
    }

    /// Looks at all endpoints together. Under the lock, so that no pick ever sees two primaries
    /// that are believed.
    pub(super) fn review(&mut self, trigger: Option<Trigger>, now: Instant) {
        self.review.due = None;
        self.review.is_outdated = false;
        let all = 0..self.endpoints.len() + self.departed.len();
        self.review_some(all, trigger, now);
    }

    /// The same where something has happened to these endpoints alone, or to ones that have
    /// departed, by their numbers: of thousands of others only those are looked at that it
    /// concerns.
    pub(super) fn review_some(
        &mut self,
        numbers: impl IntoIterator<Item = usize>,
        trigger: Option<Trigger>,
        now: Instant,
    ) {
        let mut numbers: Vec<usize> = numbers.into_iter().collect();
        for number in &numbers {
            self.find_stale(*number, now);
            self.recount(*number);
        }
        let elected = self.elect();
        if !elected.is_empty() {
            numbers.extend(elected.iter().map(|(number, _)| *number));
            numbers.sort_unstable();
            numbers.dedup();
        }
        let (mut elected, mut transitions) = (elected.into_iter().peekable(), Vec::new());
        for number in &numbers {
            let verdict = elected.next_if(|(of, _)| of == number);
            if let Some(endpoint) = self.outlined_mut(*number) {
                // One that has departed competes with no other.
                let verdict = verdict.map_or((endpoint.check.own, None), |(_, verdict)| verdict);
                transitions.extend(endpoint.follow_verdict(verdict, trigger.as_ref(), now));
            }
        }
        self.push_transitions(transitions);
        numbers.iter().for_each(|number| self.admit(*number));
        let is_other = self.review_panic() | self.review_fallback(now);
        if is_other {
            let all = 0..self.endpoints.len() + self.departed.len();
            all.for_each(|number| self.admit(number));
        }
        self.line.stop_probing();
        self.serve(now);
    }

    /// Applies the verdicts to one endpoint.
    fn admit(&mut self, number: usize) {
        let in_panic = self.review.panic.is_some();
        let falls_back = self.review.in_fallback;
        let Some(endpoint) = self.outlined_mut(number) else {
            return;
        };
        let check = &mut endpoint.check;
        let stands_in = falls_back && check.effective == Verdict::Standby;
        check.admits = in_panic || stands_in || check.effective.is_up() && !check.is_stale;
        self.recount(number);
    }

    /// First those that must not be used any more, then those that replace them.
    fn push_transitions(&mut self, mut transitions: Vec<Transition>) {
        transitions.sort_by_key(|transition| transition.to == Some(BackendState::Up));
        for transition in transitions {
            self.events.push(Event::Transition(transition));
        }
    }

    /// A check that began then was good. Returns whether that ends what failed connects began.
    fn prove_connect(&mut self, backend: &Backend, began: Instant, now: Instant) -> bool {
        // The only primary must not wait: no other can serve meanwhile.
        let at_once = self.review.role == Some(Role::Primary);
        let shows = self.review.check_shows;
        let Some(endpoint) = self.find(backend) else {
            return false;
        };
        let is_due = at_once || endpoint.passive.is_over(endpoint.config.rule, now);
        let before = endpoint.state();
        if !is_due || !endpoint.passive.answered(shows, began) {
            return false;
        }
        if (before, endpoint.state()) == (BackendState::Failed, BackendState::Up) {
            endpoint.start_slowly(now);
            let transition = endpoint.transition(before, Cause::CheckPassed, now);
            self.events.push(Event::Transition(transition));
        }
        // A review follows, which counts it.
        true
    }

    /// A server follows a primary with this epoch. If it had superseded that one, the
    /// two agree now. Returns whether it had.
    fn end_superseding(&mut self, backend: &Backend, epoch: &Epoch) -> bool {
        // One without an epoch has not been superseded.
        let claiming = self.totals.counts.claiming.iter();
        let found = claiming.copied().find(|i| {
            let evidence = &self.endpoints[*i].check.evidence;
            let own = evidence.epoch.as_ref();
            evidence.superseded_by == Some(backend.id)
                && own.is_some_and(|own| own.is_of_one_with(epoch))
        });
        found
            .map(|i| self.endpoints[i].check.evidence.superseded_by = None)
            .is_some()
    }

    /// Another role is required: what was found before was about that one.
    pub(super) fn forget_claims(&mut self) {
        for endpoint in self.endpoints.iter_mut().chain(&mut self.departed) {
            endpoint.check.evidence = PrimaryEvidence::default();
        }
    }

    fn find_stale(&mut self, number: usize, now: Instant) {
        let Some(endpoint) = self.endpoints.get_mut(number) else {
            return;
        };
        let is_used = !endpoint.config.is_down && endpoint.is_checked();
        let check = &mut endpoint.check;
        let is_used = is_used && check.own.is_up();
        // Without a limit, also where a reload has taken it away, nothing is stale.
        let limit = self.review.stale_after;
        let is_stale = is_used && limit.is_some_and(|limit| now >= check.last_conclusive + limit);
        if is_used && !is_stale {
            self.review.expect_stale(check.last_conclusive);
        }
        if std::mem::replace(&mut check.is_stale, is_stale) == is_stale {
            return;
        }
        if is_stale {
            // It may have had another role by the time it answers again.
            check.evidence.role_since = None;
        }
        let backend = Arc::clone(&endpoint.backend);
        if is_stale {
            self.events.push(Event::Stale(backend));
        } else if is_used {
            self.events.push(Event::Fresh(backend));
        }
    }

    /// The verdict on each endpoint that shows to be a primary, beside the others, and why it
    /// differs from its own; by their numbers, in their order.
    fn elect(&mut self) -> Vec<(usize, (Verdict, Option<String>))> {
        let Some(sign) = self.review.sign_of_election() else {
            return Vec::new();
        };
        let endpoints = &mut self.endpoints;
        let claiming: Vec<usize> = self.totals.counts.claiming.iter().copied().collect();
        let claims: Vec<PrimaryClaim<'_>> = claiming
            .iter()
            .map(|i| {
                let endpoint = &endpoints[*i];
                let check = &endpoint.check;
                // One in maintenance competes with no other; a drained one does: its sessions may
                // still write to it.
                let answers = sign.is_of(check.own) && !check.is_stale;
                let answers = answers && endpoint.is_checked();
                endpoint.claim(answers && check.evidence.superseded_by.is_none())
            })
            .collect();
        let standings = standings(&claims);
        for (standing, &i) in standings.iter().zip(&claiming) {
            if let Standing::Superseded { by } = standing {
                let by = endpoints[claiming[*by]].backend.id;
                endpoints[i].check.evidence.superseded_by = Some(by);
            }
        }
        let elected = standings.into_iter().zip(&claiming);
        let elected = elected.filter(|(_, i)| sign.is_of(endpoints[**i].check.own));
        elected
            .map(|(standing, &i)| {
                let other = |n: usize| &*endpoints[claiming[n]];
                (i, verdict_of(standing, &endpoints[i], other))
            })
            .collect()
    }

    /// Decides whether standbys are used because no other is up. They are primaries, where replicas
    /// are required. Returns whether that is another decision than before.
    fn review_fallback(&mut self, now: Instant) -> bool {
        let before = self.review.in_fallback;
        if !before && !self.review.role_fallback {
            return false;
        }
        let counts = &self.totals.counts;
        let is_any_up = counts.serving_well > 0;
        // A backend that is yet to be checked does not start it.
        let is_known = before || counts.serving_unchecked == 0;
        let starts = self.review.role_fallback && !is_any_up && is_known;
        // A primary whose checks fail now is about to be down as well: its replicas have lost it.
        let standbys = match before {
            true => counts.serving_standby,
            false => counts.serving_standby_sure,
        };
        let now_used = starts && standbys > 0;
        if before == now_used {
            return false;
        }
        self.review.in_fallback = now_used;
        let mut all = self.endpoints.iter().zip(&self.totals.counted);
        let standby = all.find(|(_, counted)| now_used && counted.can_begin_to_stand_in());
        self.events.push(match standby {
            Some((endpoint, _)) => Event::FallbackStarted {
                backend: Arc::clone(&endpoint.backend),
                at: now,
            },
            None => Event::FallbackEnded { is_any_up, at: now },
        });
        true
    }

    /// Decides whether so few backends are up that all are used. Returns whether that is another
    /// decision than before.
    fn review_panic(&mut self) -> bool {
        let review = &mut self.review;
        if review.panic_threshold == 0 {
            // A reload may have taken the threshold away in the middle of a panic.
            let has_ended = review.panic.take().is_some();
            if has_ended {
                self.events.push(Event::PanicEnded);
            }
            return has_ended;
        }
        let counts = &self.totals.counts;
        let (up, total) = (counts.up, self.totals.serving_backends);
        let few = up as u128 * 100 < u128::from(review.panic_threshold) * total as u128;
        // A backend that is yet to be checked neither starts nor ends it.
        let is_known = counts.undecided == 0 || review.panic.is_some();
        // Backups are there for the case that no other is up.
        let is_needed = up > 0 || counts.backups_up == 0;
        let panic = (few && is_known && is_needed).then_some((up, total));
        let is_other = panic.is_some() != review.panic.is_some();
        if is_other {
            self.events.push(match panic {
                Some((up, total)) => Event::PanicStarted { up, total },
                None => Event::PanicEnded,
            });
        }
        review.panic = panic;
        is_other
    }
}

/// What a good answer to this check shows to be possible for sessions.
fn shown_by(check: &plan::Check) -> &'static [FailureOf] {
    match (&check.at, &check.kind) {
        (CheckAt::Port(_) | CheckAt::Addr(_), _) => &[],
        (CheckAt::Backend, CheckKind::Tcp) => &[FailureOf::Connection],
        (CheckAt::Backend, CheckKind::Dns { .. }) => &[FailureOf::Flow],
        (
            CheckAt::Backend,
            CheckKind::SendExpect { .. }
            | CheckKind::Http { .. }
            | CheckKind::Redis { .. }
            | CheckKind::Postgres { .. }
            | CheckKind::Mysql { .. },
        ) => &[FailureOf::Connection, FailureOf::Answer],
    }
}

impl Endpoint {
    /// For how long connects have failed: those after the last good check, since sessions can find
    /// before the next one that it is gone.
    fn failing_beside_checks_for(&self, now: Instant) -> Option<Duration> {
        let since = self.passive.failing_since()?;
        let since = since.max(self.check.last_conclusive);
        Some(now.saturating_duration_since(since))
    }

    /// Takes over the verdict on it beside the others, with the reason where that is not its own.
    /// Returns the transition, if it is one.
    fn follow_verdict(
        &mut self,
        (to, why): (Verdict, Option<String>),
        trigger: Option<&Trigger>,
        now: Instant,
    ) -> Option<Transition> {
        if self.check.awaits_answer.is_some() && to.is_up() {
            return None;
        }
        self.check.why.clone_from(&why);
        let from = std::mem::replace(&mut self.check.effective, to);
        // A verdict that no check has confirmed is no event.
        if from == to || !self.check.checked_once {
            return None;
        }
        self.check.since = Some(now);
        let from = match from {
            // Sessions have found it already.
            Verdict::Up if self.is_failed() => BackendState::Failed,
            from => from.state(),
        };
        let trigger = trigger.filter(|t| t.backend == self.backend.id);
        let (cause, doubted_for) = match (why, trigger) {
            (Some(how), _) if to == Verdict::WrongRole => (Cause::Superseded(how), Duration::ZERO),
            (Some(why), _) => (Cause::TwoPrimaries(why), Duration::ZERO),
            (None, Some(trigger)) => {
                let is_death = from == BackendState::Up && matches!(to, Verdict::Down(_));
                let by_sessions = self.failing_beside_checks_for(now);
                let by_sessions = by_sessions.filter(|_| is_death).unwrap_or_default();
                (trigger.cause.clone(), trigger.doubted_for.max(by_sessions))
            }
            (None, None) => (Cause::OnePrimary, Duration::ZERO),
        };
        Some(Transition {
            to: Some(to.state()),
            is_kept_out: !self.is_meant_to_serve(),
            doubted_for,
            ..self.transition(from, cause, now)
        })
    }
}

/// The verdict on an endpoint that is up by its own checks, from its standing in the election.
fn verdict_of<'a>(
    standing: Standing,
    endpoint: &Endpoint,
    other: impl Fn(usize) -> &'a Endpoint,
) -> (Verdict, Option<String>) {
    let check = &endpoint.check;
    match standing {
        Standing::Believed => (check.own, None),
        Standing::Doubtful { .. } if !check.checked_once => {
            (Verdict::Doubtful, Some("not checked yet".to_owned()))
        }
        Standing::Doubtful { believed } => {
            let other = other(believed);
            let is_as_old = check.evidence.role_since == other.check.evidence.role_since;
            let why = match is_as_old {
                true => "stands before it in the configuration",
                false => "has been for longer",
            };
            let why = format!("{} is primary, too, and {why}", name(other));
            (Verdict::Doubtful, Some(why))
        }
        Standing::Superseded { by } => {
            let other = other(by);
            let how = match (&other.check.evidence.epoch, &check.evidence.epoch) {
                (Some(newer), Some(older)) => Supersedes(newer, older).to_string(),
                _ => String::new(),
            };
            let why = format!("superseded by {} ({how})", name(other));
            (Verdict::WrongRole, Some(why))
        }
        // That the other one no longer proves it changes nothing.
        Standing::Silent if check.evidence.superseded_by.is_some() => {
            (Verdict::WrongRole, check.why.clone())
        }
        // Silence does not make it more credible.
        Standing::Silent if check.effective == Verdict::Doubtful => {
            (Verdict::Doubtful, check.why.clone())
        }
        Standing::Silent => (check.own, None),
    }
}

/// Its address as configured, and where that is a name, which of its addresses.
fn name(endpoint: &Endpoint) -> String {
    let backend = &endpoint.backend;
    let (text, addr) = (backend.text(), backend.addr.to_string());
    match **text == *addr {
        true => addr,
        false => format!("{text} ({addr})"),
    }
}

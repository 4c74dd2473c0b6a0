//! What keeps an upstream from doing harm whatever single checks say: two primaries, one of which
//! nobody has heard of for long, and checks that take out more than they may.

use super::{AdminState, Cause, Checked, Event, Inner, Pool, Transition};
use crate::{
    plan::{
        self, CheckAt, Role,
        reason::{BackendState, CheckResult},
    },
    upstream::{
        backend::Backend,
        health::{Change, Claim, Epoch, Standing, Supersedes, Verdict, count_servers, standings},
        pool::endpoint::Member,
    },
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// What is guarded, and what is still to be told.
#[derive(Debug, Default)]
pub(super) struct Guard {
    /// There is to be one primary.
    one_primary: bool,
    /// A good check of it is the live try that failed connects leave a backend to: there is nobody
    /// else to go to meanwhile.
    check_is_try: bool,
    stale_after: Option<Duration>,
    /// In percent.
    panic_threshold: u32,
    /// Which backends are counted for that: those that are to serve, wherever their names lead.
    counted: Vec<bool>,
    /// How many of how many are up, while all are used whatever their checks say.
    panic: Option<(usize, usize)>,
    /// When the next address will have been silent for too long.
    due: Option<Instant>,
}

/// The check that led to a review, where it changed what checks say of its address.
pub(super) struct Trigger {
    backend: u64,
    cause: Cause,
    doubted_for: Duration,
}

/// What an upstream's guards show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guarded {
    /// How many servers say that they are the primary, where there is to be one. One that is
    /// reached in two ways is one.
    pub primaries: Option<usize>,
    /// Whether all are used whatever their checks say, where that can be.
    pub in_panic: Option<bool>,
}

impl Guard {
    pub(super) fn new(plan: &plan::Upstream) -> Self {
        let Some(check) = &plan.check else {
            return Self::default();
        };
        let serves = |b: &plan::Backend| !b.backup && !b.down && b.weight > 0;
        Self {
            one_primary: check.kind.role() == Some(Role::Primary),
            check_is_try: check.kind.role() == Some(Role::Primary) && check.at == CheckAt::Backend,
            stale_after: check.stale_after,
            panic_threshold: check.panic_threshold,
            counted: plan.backends.iter().map(serves).collect(),
            ..Self::default()
        }
    }

    /// When to review even if nothing happens.
    pub(super) fn next_review(&self, now: Instant) -> Option<Instant> {
        // An answer that comes from now on is stale no sooner.
        self.stale_after
            .map(|limit| self.due.unwrap_or(now + limit))
    }

    /// What is said of one that is used although it is not well.
    pub(super) fn panic(&self) -> Option<String> {
        let (up, of) = self.panic?;
        Some(format!("panic threshold: {up} of {of} up"))
    }
}

impl Pool {
    /// A check of this address has ended, and may have changed what is thought of it. Whether
    /// checks now speak for any address at all.
    pub fn checked(
        &self,
        backend: &Arc<Backend>,
        checked: Checked,
        change: Option<Change>,
        now: Instant,
    ) -> bool {
        let mut inner = self.lock();
        let follows = match checked.result {
            CheckResult::WrongRole | CheckResult::Standby => checked.finding.epoch.clone(),
            _ => None,
        };
        let asked = checked.at.checked_sub(checked.took).unwrap_or(checked.at);
        let good = checked.result == CheckResult::Ok && inner.guard.check_is_try;
        let trigger = change.map(|change| Trigger {
            backend: backend.id,
            cause: Cause::Check {
                result: checked.result,
                transcript: checked.transcript.clone(),
            },
            doubted_for: change.doubted_for,
        });
        let mut news = inner
            .find(backend)
            .is_some_and(|m| m.hear(checked, change, now));
        if good {
            news |= inner.is_tried(backend, asked, now);
        }
        if let Some(epoch) = follows {
            news |= inner.follows(backend, &epoch);
        }
        if news {
            inner.review(trigger, now);
            self.changed();
        }
        inner.members.iter().any(Member::is_well)
    }

    /// What the checks say of this address, or what is supposed before they do.
    pub fn said(&self, backend: &Arc<Backend>) -> Verdict {
        let found = self.lock().find(backend).map(|m| m.said);
        found.unwrap_or(Verdict::Down(None))
    }

    /// Whether all are used, whatever their checks say.
    pub fn in_panic(&self) -> bool {
        self.lock().guard.panic.is_some()
    }

    pub fn guarded(&self, now: Instant) -> Guarded {
        let mut inner = self.lock();
        inner.look_out(now);
        let claims = |m: &&Member| !m.down && m.heard && m.is_asked() && m.said.is_up();
        let primaries = || {
            let members = inner.members.iter().filter(claims);
            count_servers(&members.map(|m| m.claim(true)).collect::<Vec<_>>())
        };
        Guarded {
            primaries: inner.guard.one_primary.then(primaries),
            in_panic: (inner.guard.panic_threshold > 0).then_some(inner.guard.panic.is_some()),
        }
    }
}

impl Inner {
    /// Time alone can change what is to be thought: of this every pick makes sure, for the checks
    /// may be what has died.
    #[inline]
    pub(super) fn look_out(&mut self, now: Instant) {
        if self.guard.due.is_some_and(|due| now >= due) {
            self.review(None, now);
        }
    }

    /// Looks at all addresses together. Under the lock, so that no pick ever sees two that are
    /// believed.
    pub(super) fn review(&mut self, trigger: Option<Trigger>, now: Instant) {
        self.find_stale(now);
        let verdicts = self.compare();
        let Self {
            members, departed, ..
        } = self;
        // An address that is no longer named is a rival to nobody.
        let departed = departed.iter_mut().map(|m| {
            let said = m.said;
            (m, (said, None))
        });
        let mut transitions = Vec::new();
        for (member, (to, why)) in members.iter_mut().zip(verdicts).chain(departed) {
            member.why.clone_from(&why);
            let from = std::mem::replace(&mut member.verdict, to);
            // What is only supposed of one is no news.
            if from != to && member.heard {
                member.verdict_since = Some(now);
                let trigger = trigger.as_ref().filter(|t| t.backend == member.backend.id);
                let (cause, doubted_for) = match (why, trigger) {
                    (Some(why), _) if to == Verdict::WrongRole => {
                        (Cause::Superseded(why), Duration::ZERO)
                    }
                    (Some(why), _) => (Cause::TwoPrimaries(why), Duration::ZERO),
                    (None, Some(trigger)) => (trigger.cause.clone(), trigger.doubted_for),
                    (None, None) => (Cause::OnePrimary, Duration::ZERO),
                };
                transitions.push(Transition {
                    to: Some(to.state()),
                    doubted_for,
                    ..member.transition(from.state(), cause, now)
                });
            }
        }
        // First those that must not be used any more, then those that take their place.
        transitions.sort_by_key(|transition| transition.to == Some(BackendState::Up));
        for transition in transitions {
            self.events.push(Event::Transition(transition));
        }
        self.count();
        let panic = self.guard.panic.is_some();
        for member in &mut self.members {
            member.open = panic || member.verdict.is_up() && !member.stale;
        }
        self.all_plain = self.members.iter().all(Member::is_plain);
    }

    /// A check that began then has found it well. Whether it had failed.
    fn is_tried(&mut self, backend: &Arc<Backend>, asked: Instant, now: Instant) -> bool {
        let Some(member) = self.find(backend).filter(|m| m.passive.fails() > 0) else {
            return false;
        };
        let before = member.state();
        member.passive.answered(asked);
        if (before, member.state()) == (BackendState::Failed, BackendState::Up) {
            let transition = member.transition(before, Cause::CheckPassed, now);
            self.events.push(Event::Transition(transition));
        }
        true
    }

    /// A server says that it is no primary and follows one with this epoch. If that is one that it
    /// had superseded, both are now agreed. Whether it is.
    fn follows(&mut self, backend: &Backend, epoch: &Epoch) -> bool {
        let is_it = |m: &&mut Member| {
            let own = m.epoch.as_ref();
            m.superseded == Some(backend.id) && own.is_some_and(|own| own.is_of_one_with(epoch))
        };
        let found = self.members.iter_mut().find(is_it);
        found.map(|member| member.superseded = None).is_some()
    }

    fn find_stale(&mut self, now: Instant) {
        let guard = &mut self.guard;
        guard.due = None;
        let Some(limit) = guard.stale_after else {
            return;
        };
        for member in &mut self.members {
            let until = member.certain + limit;
            let used = member.said.is_up() && !member.down && member.is_asked();
            let stale = used && now >= until;
            if used && !stale {
                guard.due = guard.due.into_iter().chain([until]).min();
            }
            if stale != member.stale {
                member.stale = stale;
                let backend = Arc::clone(&member.backend);
                if stale {
                    // Whatever it is when it is heard again, nobody knows what it was meanwhile.
                    member.known = None;
                    self.events.push(Event::Stale(backend));
                } else if used {
                    self.events.push(Event::Fresh(backend));
                }
            }
        }
    }

    /// What is to be thought of each member, and what others have to do with it.
    fn compare(&mut self) -> Vec<(Verdict, Option<String>)> {
        let members = &mut self.members;
        let mut verdicts: Vec<_> = members.iter().map(|m| (m.said, None)).collect();
        if !self.guard.one_primary {
            return verdicts;
        }
        let claims = |m: &Member| !m.down && (m.said.is_up() || m.epoch.is_some());
        let claiming: Vec<usize> = (0..members.len())
            .filter(|i| claims(&members[*i]))
            .collect();
        let claims: Vec<Claim<'_>> = claiming
            .iter()
            .map(|i| &members[*i])
            .map(|m| {
                // One in maintenance is in nobody's way; one that is drained still says what it
                // says, and somebody may still be writing to it.
                m.claim(m.said.is_up() && !m.stale && m.is_asked() && m.superseded.is_none())
            })
            .collect();
        let standings = standings(&claims);
        for (standing, &i) in standings.iter().zip(&claiming) {
            if let Standing::Superseded { by } = standing {
                members[i].superseded = Some(members[claiming[*by]].backend.id);
            }
        }
        for (standing, &i) in standings.into_iter().zip(&claiming) {
            let member = &members[i];
            if !member.said.is_up() {
                continue;
            }
            verdicts[i] = match standing {
                Standing::Believed => (member.said, None),
                Standing::Doubtful { .. } if !member.heard => {
                    (Verdict::Doubtful, Some("not checked yet".to_owned()))
                }
                Standing::Doubtful { believed } => {
                    let other = &members[claiming[believed]];
                    let why = match member.known == other.known {
                        true => "stands before it in the configuration",
                        false => "has been for longer",
                    };
                    let why = format!("{} is primary, too, and {why}", name(other));
                    (Verdict::Doubtful, Some(why))
                }
                Standing::Superseded { by } => {
                    let other = &members[claiming[by]];
                    let how = match (&other.epoch, &member.epoch) {
                        (Some(newer), Some(older)) => Supersedes(newer, older).to_string(),
                        _ => String::new(),
                    };
                    let why = format!("superseded by {} ({how})", name(other));
                    (Verdict::WrongRole, Some(why))
                }
                // Whoever it was superseded by proves it no longer, and that changes nothing.
                Standing::Silent if member.superseded.is_some() => {
                    (Verdict::WrongRole, member.why.clone())
                }
                // Silence does not make it more credible.
                Standing::Silent if member.verdict == Verdict::Doubtful => {
                    (Verdict::Doubtful, member.why.clone())
                }
                Standing::Silent => (member.said, None),
            };
        }
        verdicts
    }

    /// Counts who is up, where it matters that not too many are out.
    fn count(&mut self) {
        let guard = &mut self.guard;
        if guard.panic_threshold == 0 {
            return;
        }
        let (primaries, backups) = self.members.split_at(self.balancer.primaries().end);
        let serves = |all: &&[Member]| all.iter().any(|m| !m.down && m.weight > 0 && m.is_wanted());
        let is_up = |all: &&[Member]| all.iter().any(|m| m.said.is_up());
        let one = |a: &Member, b: &Member| a.of == b.of;
        let (mut up, mut unknown) = (0, false);
        for backend in primaries.chunk_by(one).filter(serves) {
            up += usize::from(is_up(&backend));
            unknown |= backend.iter().all(|m| m.said == Verdict::Down(None));
        }
        let wanted = self
            .admin_states
            .iter()
            .map(|w| w.admin_state == AdminState::Ready);
        let counted = wanted
            .zip(&guard.counted)
            .filter(|(wanted, counted)| *wanted && **counted);
        let of = counted.count();
        let few = up as u128 * 100 < u128::from(guard.panic_threshold) * of as u128;
        // Backups are there for the case that nobody else is up.
        let backups = || backups.chunk_by(one).any(|b| serves(&b) && is_up(&b));
        // It does not begin before all have been checked, and does not end because one is yet to
        // be.
        let known = !unknown || guard.panic.is_some();
        let panic = (few && known && (up > 0 || !backups())).then_some((up, of));
        if panic.is_some() != guard.panic.is_some() {
            self.events.push(match panic {
                Some((up, total)) => Event::PanicStarted { up, total },
                None => Event::PanicEnded,
            });
        }
        guard.panic = panic;
    }
}

/// As it is configured, and if that is a name, which of its addresses.
fn name(member: &Member) -> String {
    let (text, place) = (member.backend.text(), member.backend.place.to_string());
    match **text == *place {
        true => place,
        false => format!("{text} ({place})"),
    }
}

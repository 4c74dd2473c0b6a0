//! The backends of one upstream and the policy that picks among them, behind one lock.
//!
//! All workers share one truth about turns and failures, so that seven sessions over weights 5/1/1
//! get 1 1 2 1 3 1 1 whichever workers they land on. A pick holds the lock for well under a
//! microsecond and happens once a connection.

use crate::{
    backend::{Backend, Lease},
    balance::{Average, Balancer, Candidates, Chance, Entry, FULL, Facts, Walk, numbered},
    health::{Change, FailRule, Passive, Verdict},
    metrics::BackendMetrics,
    plan::{self, Balance, Place, Role, TimeOf},
    reason::{BackendState, CheckResult},
};
use ahash::RandomState;
use smallvec::SmallVec;
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

#[derive(Debug)]
pub struct Pool {
    pub name: Arc<str>,
    balance: Balance,
    /// One for each configured backend, in that order.
    configured: Vec<(plan::Backend, Arc<BackendMetrics>)>,
    /// What is thought of an address before it has been checked; `None`: nothing is checked.
    supposed: Option<Verdict>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Primaries in the order of the config, then backups: the numbering of the balancer.
    members: Vec<Member>,
    /// Nothing is in anybody's way: what a pick finds most of the time, known without looking at each.
    all_plain: bool,
    balancer: Balancer,
    chance: Chance,
}

/// What the balancer asks about the members, as they are for one session at one moment.
struct Present<'a> {
    members: &'a [Member],
    tried: &'a [Arc<Backend>],
    /// Everybody can take a session, with the whole of its weight.
    all_plain: bool,
    single: bool,
    now: Instant,
}

impl Candidates for Present<'_> {
    fn share(&self, i: usize) -> u32 {
        if self.all_plain {
            return FULL;
        }
        let member = &self.members[i];
        if self.tried.iter().any(|b| Arc::ptr_eq(b, &member.backend)) {
            return 0;
        }
        member.share(self.single, self.now)
    }

    fn connections(&self, i: usize) -> u64 {
        self.members[i].backend.active()
    }

    fn time(&self, i: usize) -> f64 {
        let member = &self.members[i];
        member.average.at(self.now, member.rule.fail_timeout)
    }
}

#[derive(Debug)]
struct Member {
    backend: Arc<Backend>,
    /// Which of the configured backends this is an address of.
    of: usize,
    weight: u32,
    rule: FailRule,
    max_connections: u64,
    slow_start: Duration,
    down: bool,
    passive: Passive,
    /// What the checks say, beside what failed connects do: neither erases the other.
    verdict: Verdict,
    /// Since when, if it has ever changed.
    verdict_since: Option<Instant>,
    checked: Option<Checked>,
    /// Counts how often sessions were told to leave it.
    left: u32,
    /// When it came back, while it starts slowly.
    back: Option<Instant>,
    average: Average,
}

/// Where one session stands in its search for a backend.
#[derive(Debug, Default)]
pub struct Search {
    walk: Walk,
    /// Most sessions try one.
    tried: SmallVec<[Arc<Backend>; 1]>,
    /// How often the one that was picked last had been left when it was.
    left: u32,
}

/// What the last check of an address found.
#[derive(Debug, Clone)]
pub struct Checked {
    pub at: Instant,
    pub took: Duration,
    pub result: CheckResult,
    pub role: Option<Role>,
    pub transcript: String,
}

/// An address that sessions go to, as those see it who check it.
#[derive(Debug, Clone)]
pub struct Address {
    pub backend: Arc<Backend>,
    pub backup: bool,
    pub verdict: Verdict,
}

/// What a connect that succeeded has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterSuccess {
    Nothing,
    /// It had failed, and is back.
    Back,
    /// Since it was picked, sessions were told to leave it: this one must not stay either.
    Left,
}

/// What became of a failed attempt's backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterFailure {
    StillIn,
    /// This failure was the one that took it out.
    Out,
}

/// A backend as status and metrics show it.
#[derive(Debug)]
pub struct Snapshot {
    pub metrics: Arc<BackendMetrics>,
    pub weight: u32,
    pub backup: bool,
    pub state: BackendState,
    /// Why it is in that state, in words.
    pub why: String,
    /// How long ago the last failure was.
    pub last_failure: Option<Instant>,
    pub available: bool,
    /// The average that `least_time` compares, in seconds: the least of its addresses; `None` for other policies.
    pub average_time: Option<f64>,
    /// Since when the checks have been of one mind.
    pub since: Option<Instant>,
    /// The roles that its addresses have; `None` where no check asks.
    pub roles: Option<Vec<Role>>,
    /// The latest of its addresses.
    pub checked: Option<Checked>,
    /// What its name stands for now.
    pub addresses: Vec<Place>,
}

impl Pool {
    /// `addresses`: for each configured backend, what its address text stands for.
    pub fn new(
        name: &Arc<str>,
        plan: &plan::Upstream,
        metrics: impl Fn(&plan::Backend) -> BackendMetrics,
        addresses: &[Vec<Place>],
    ) -> Self {
        let configured: Vec<_> = plan
            .backends
            .iter()
            .map(|b| (b.clone(), Arc::new(metrics(b))))
            .collect();
        let supposed = plan.check.as_ref().map(|c| Verdict::at_start(c.start_up));
        let inner = assemble(&plan.balance, &configured, addresses, supposed, Vec::new());
        Self {
            supposed,
            name: Arc::clone(name),
            balance: plan.balance.clone(),
            configured,
            inner: Mutex::new(inner),
        }
    }

    pub fn balance(&self) -> &Balance {
        &self.balance
    }

    /// The search for a client's backend begins.
    pub fn search(&self, client: &Facts) -> Search {
        Search {
            walk: Walk::new(&self.balance, client),
            tried: SmallVec::new(),
            left: 0,
        }
    }

    /// The next backend for this session, none that it has tried.
    pub fn pick(&self, search: &mut Search, now: Instant) -> Option<Lease> {
        let mut inner = self.lock();
        let Inner {
            members,
            all_plain,
            balancer,
            chance,
        } = &mut *inner;
        let present = Present {
            single: balancer.is_single(),
            all_plain: *all_plain && search.tried.is_empty(),
            members,
            tried: &search.tried,
            now,
        };
        let picked = balancer.pick(&mut search.walk, &present, || chance.draw())?;
        let member = &mut members[picked.candidate];
        if !*all_plain {
            member.passive.picked(member.rule, now);
            if member.end_slow_start(now) {
                *all_plain = members.iter().all(Member::is_plain);
            }
        }
        let member = &members[picked.candidate];
        search.tried.push(Arc::clone(&member.backend));
        search.left = member.left;
        Some(Lease::new(Arc::clone(&member.backend)))
    }

    /// A connect to this backend failed, and the backend is to blame.
    pub fn failed(&self, backend: &Arc<Backend>, now: Instant) -> AfterFailure {
        let mut inner = self.lock();
        let Inner {
            members,
            all_plain,
            balancer,
            ..
        } = &mut *inner;
        // Whoever stands alone is never taken out: trying it is all that can be done.
        if balancer.is_single() {
            return AfterFailure::StillIn;
        }
        let Some(i) = position(members, backend) else {
            return AfterFailure::StillIn;
        };
        let member = &mut members[i];
        let was_out = member.is_failed();
        member.passive.failed(now);
        *all_plain &= member.is_plain();
        if let Some(share) = member.weight.checked_div(member.rule.max_fails) {
            balancer.penalize(i, share);
        }
        if !was_out && member.is_failed() {
            backend.metrics.entered(BackendState::Failed);
            return AfterFailure::Out;
        }
        AfterFailure::StillIn
    }

    /// A connect to the backend that `search` picked last succeeded, and took so long.
    pub fn succeeded(&self, search: &Search, time: Duration, now: Instant) -> AfterSuccess {
        let mut inner = self.lock();
        let found = search
            .tried
            .last()
            .and_then(|b| position(&inner.members, b));
        let Some(i) = found else {
            return AfterSuccess::Nothing;
        };
        let member = &mut inner.members[i];
        if self.balance == Balance::LeastTime(TimeOf::Connect) {
            member.average.add(time, now, member.rule.fail_timeout);
        }
        let was_out = member.is_failed();
        member.passive.succeeded();
        let back = was_out && !member.is_failed();
        if back {
            member.start_slowly(now);
            member.backend.metrics.entered(BackendState::Up);
        }
        let left = member.left != search.left;
        if !inner.all_plain {
            inner.all_plain = inner.members.iter().all(Member::is_plain);
        }
        match (left, back) {
            (true, _) => AfterSuccess::Left,
            (false, true) => AfterSuccess::Back,
            (false, false) => AfterSuccess::Nothing,
        }
    }

    /// The addresses that there are now, without those that the configuration has taken out.
    pub fn addresses(&self) -> Vec<Address> {
        let inner = self.lock();
        let one = |m: &Member| Address {
            backend: Arc::clone(&m.backend),
            backup: self.configured[m.of].0.backup,
            verdict: m.verdict,
        };
        let members = inner.members.iter();
        members.filter(|m| !m.down).map(one).collect()
    }

    /// A check of this address has ended, and may have changed what is thought of it. Whether checks now speak for any
    /// address at all.
    pub fn checked(
        &self,
        backend: &Arc<Backend>,
        checked: Checked,
        change: Option<Change>,
        now: Instant,
    ) -> bool {
        let mut inner = self.lock();
        if let Some(i) = position(&inner.members, backend) {
            let member = &mut inner.members[i];
            member.checked = Some(checked);
            if let Some(change) = change {
                member.verdict = change.to;
                member.verdict_since = Some(now);
                if change.to.is_up() && !change.first {
                    member.start_slowly(now);
                }
                backend.metrics.entered(change.to.state());
                inner.all_plain = inner.members.iter().all(Member::is_plain);
            }
        }
        let mut members = inner.members.iter();
        members.any(|m| m.verdict.is_up() && !m.down)
    }

    /// From now on a session that was picked for this address before, and reaches it only now, learns that it must not stay.
    pub fn leave(&self, backend: &Arc<Backend>) {
        let mut inner = self.lock();
        if let Some(i) = position(&inner.members, backend) {
            let left = &mut inner.members[i].left;
            *left = left.wrapping_add(1);
        }
    }

    /// Whether [`Self::answered`] wants to know.
    pub fn asks_for_first_byte(&self) -> bool {
        self.balance == Balance::LeastTime(TimeOf::FirstByte)
    }

    /// The first byte of an answer came, after so long.
    pub fn answered(&self, backend: &Arc<Backend>, time: Duration, now: Instant) {
        let mut inner = self.lock();
        if let Some(i) = position(&inner.members, backend) {
            let member = &mut inner.members[i];
            member.average.add(time, now, member.rule.fail_timeout);
        }
    }

    /// New answers from the resolver. Addresses that stay keep their failures and sessions.
    pub fn set_addresses(&self, addresses: &[Vec<Place>]) {
        let mut inner = self.lock();
        let old = std::mem::take(&mut inner.members);
        *inner = assemble(
            &self.balance,
            &self.configured,
            addresses,
            self.supposed,
            old,
        );
    }

    /// All configured backends as they are now.
    pub fn snapshot(&self, now: Instant) -> Vec<Snapshot> {
        let inner = self.lock();
        let single = inner.balancer.is_single();
        let one = |(index, (plan, metrics)): (usize, &(plan::Backend, Arc<BackendMetrics>))| {
            let members: Vec<&Member> = inner.members.iter().filter(|m| m.of == index).collect();
            let available = members.iter().any(|m| m.share(single, now) > 0);
            // Until a connect succeeds; that it may be tried again is what `available` says.
            let failed = !members.is_empty() && !single && members.iter().all(|m| m.is_failed());
            let fails: u32 = members.iter().map(|m| m.passive.fails()).sum();
            use BackendState::{Down, Failed, Up};
            let (state, why) = if plan.down {
                (Down, "the configuration says so".to_owned())
            } else if members.is_empty() {
                (Down, "its name does not resolve".to_owned())
            } else if let Some(judged) = judged(&members) {
                judged
            } else if failed {
                (Failed, {
                    let next = if available { "; to be tried again" } else { "" };
                    format!("{fails} failed connects{next}")
                })
            } else if plan.weight == 0 {
                (Up, "weight 0: takes nothing new".to_owned())
            } else if !available {
                (Up, "full: max_connections is reached".to_owned())
            } else if let Some(percent) = members.iter().filter_map(|m| m.starting(now)).min() {
                (Up, format!("slow start: {percent} % of its weight"))
            } else {
                (Up, String::new())
            };
            Snapshot {
                metrics: Arc::clone(metrics),
                weight: plan.weight,
                backup: plan.backup,
                state,
                why,
                last_failure: members
                    .iter()
                    .filter_map(|m| m.passive.last_failure())
                    .max(),
                available,
                average_time: matches!(self.balance, Balance::LeastTime(_))
                    .then(|| {
                        members
                            .iter()
                            .map(|m| m.average.at(now, m.rule.fail_timeout))
                    })
                    .and_then(|averages| averages.reduce(f64::min)),
                since: members.iter().filter_map(|m| m.verdict_since).max(),
                roles: self.supposed.map(|_| {
                    let role = |m: &&Member| m.checked.as_ref().and_then(|c| c.role);
                    members.iter().filter_map(role).collect()
                }),
                checked: members
                    .iter()
                    .filter_map(|m| m.checked.as_ref())
                    .max_by_key(|c| c.at)
                    .cloned(),
                addresses: members.iter().map(|m| m.backend.place.clone()).collect(),
            }
        };
        self.configured.iter().enumerate().map(one).collect()
    }

    /// Whether anything here could take a session now.
    pub fn is_available(&self, now: Instant) -> bool {
        let inner = self.lock();
        let single = inner.balancer.is_single();
        inner.members.iter().any(|m| m.share(single, now) > 0)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Member {
    fn new(
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
            left: 0,
            back: None,
            average: Average::default(),
        }
    }

    /// How much of its weight counts now; 0 if it can take nothing.
    fn share(&self, single: bool, now: Instant) -> u32 {
        let can_take = self.weight > 0
            && !self.down
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
    fn starting(&self, now: Instant) -> Option<u32> {
        let share = self.share(false, now);
        (self.back.is_some() && 0 < share && share < FULL).then(|| share * 100 / FULL)
    }

    /// True when it has just ended.
    fn end_slow_start(&mut self, now: Instant) -> bool {
        let ended = self.back.is_some_and(|back| now >= back + self.slow_start);
        if ended {
            self.back = None;
        }
        ended
    }

    /// Whether it takes sessions with the whole of its weight, and will until something happens to it.
    fn is_plain(&self) -> bool {
        self.weight > 0
            && !self.down
            && self.verdict.is_up()
            && self.max_connections == 0
            && (self.rule.max_fails == 0 || self.passive.fails() == 0)
            && self.back.is_none()
    }

    fn start_slowly(&mut self, now: Instant) {
        self.back = Some(now).filter(|_| !self.slow_start.is_zero());
    }

    /// Whether it has failed often enough, whether or not its time has passed.
    fn is_failed(&self) -> bool {
        self.rule.max_fails > 0 && self.passive.fails() >= self.rule.max_fails
    }
}

fn position(members: &[Member], backend: &Arc<Backend>) -> Option<usize> {
    members
        .iter()
        .position(|m| Arc::ptr_eq(&m.backend, backend))
}

/// What the checks have against a backend, if they speak for none of its addresses.
fn judged(members: &[&Member]) -> Option<(BackendState, String)> {
    if members.iter().any(|m| m.verdict.is_up()) {
        return None;
    }
    // One that lives says more than those that do not.
    let wrong = |m: &&&Member| m.verdict == Verdict::WrongRole;
    let member = members.iter().find(wrong).or(members.first())?;
    let why = match member.verdict {
        Verdict::Down(None) => "not checked yet".to_owned(),
        Verdict::Down(Some(result)) => format!("its check says: {}", result.word()),
        Verdict::WrongRole | Verdict::Up => match member.checked.as_ref().and_then(|c| c.role) {
            Some(role) => format!("its role is {}", role.word()),
            None => "it has another role".to_owned(),
        },
    };
    Some((member.verdict.state(), why))
}

fn assemble(
    balance: &Balance,
    configured: &[(plan::Backend, Arc<BackendMetrics>)],
    addresses: &[Vec<Place>],
    supposed: Option<Verdict>,
    mut old: Vec<Member>,
) -> Inner {
    let mut members = Vec::new();
    let mut primaries = 0;
    for (of, plan) in numbered(configured.iter().map(|(plan, _)| plan)) {
        for place in addresses.get(of).into_iter().flatten() {
            let known = old
                .iter()
                .position(|m| m.of == of && m.backend.place == *place);
            members.push(match known.map(|i| old.swap_remove(i)) {
                Some(member) => member,
                None => {
                    let verdict = supposed.unwrap_or(Verdict::Up);
                    Member::new(of, plan, place, &configured[of].1, verdict)
                }
            });
        }
        if !plan.backup {
            primaries = members.len();
        }
    }
    let entries: Vec<Entry<'_>> = members
        .iter()
        .map(|m| Entry {
            text: m.backend.text(),
            weight: m.weight,
        })
        .collect();
    let balancer = Balancer::new(balance, &entries[..primaries], &entries[primaries..]);
    Inner {
        all_plain: members.iter().all(Member::is_plain),
        members,
        balancer,
        chance: Chance::from_seed(RandomState::new().hash_one(())),
    }
}

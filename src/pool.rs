//! The backends of one upstream and the policy that picks among them, behind one lock.
//!
//! All workers share one truth about turns and failures, so that seven sessions over weights 5/1/1
//! get 1 1 2 1 3 1 1 whichever workers they land on. A pick holds the lock for well under a
//! microsecond and happens once a connection.

mod clock;

pub use clock::Clock;

use crate::{
    backend::{Backend, Lease},
    balance::{Average, Balancer, Candidates, Chance, Entry, FULL, Facts, Walk, numbered},
    health::{FailRule, Passive},
    metrics::BackendMetrics,
    plan::{self, Balance, Place, TimeOf},
};
use ahash::RandomState;
use smallvec::SmallVec;
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

#[derive(Debug)]
pub struct Pool {
    pub name: Arc<str>,
    balance: Balance,
    /// One for each configured backend, in that order.
    configured: Vec<(plan::Backend, Arc<BackendMetrics>)>,
    inner: Mutex<Inner>,
    /// Whether a backend here has been heard before its client said anything.
    speaks_first: AtomicBool,
}

#[derive(Debug)]
struct Inner {
    /// Primaries in the order of the config, then backups: the numbering of the balancer.
    members: Vec<Member>,
    /// Addresses that the resolver no longer names, with what is still to be known of them.
    departed: Vec<Member>,
    /// Nothing is in anybody's way: what a pick finds most of the time, known without looking at each.
    all_plain: bool,
    /// When the first of the averages that `least_time` compares is to be halved.
    halves: Option<Instant>,
    balancer: Balancer,
    chance: Chance,
}

/// What the balancer asks about the members, as they are for one session at one moment.
struct Present<'a> {
    members: &'a [Member],
    tried: &'a [u64],
    /// Everybody can take a session, with the whole of its weight.
    all_plain: bool,
    single: bool,
    now: Instant,
}

impl Present<'_> {
    /// Apart, so that the loops of the policies stay small.
    #[inline(never)]
    fn share_of(&self, member: &Member) -> u32 {
        if self.tried.contains(&member.backend.id) {
            return 0;
        }
        member.share(self.single, self.now)
    }
}

impl Candidates for Present<'_> {
    #[inline]
    fn share(&self, i: usize) -> u32 {
        if self.all_plain {
            FULL
        } else {
            self.share_of(&self.members[i])
        }
    }

    #[inline]
    fn connections(&self, i: usize) -> u64 {
        self.members[i].backend.active()
    }

    #[inline]
    fn time(&self, i: usize) -> f64 {
        self.members[i].average.seconds
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
    /// When it came back, while it starts slowly.
    back: Option<Instant>,
    average: Average,
}

/// Where one session stands in its search for a backend.
#[derive(Debug, Default)]
pub struct Search {
    walk: Walk,
    /// The backends' ids. Most sessions try one.
    tried: SmallVec<[u64; 2]>,
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
    pub state: &'static str,
    /// Why it is in that state, in words.
    pub why: String,
    /// How long ago the last failure was.
    pub last_failure: Option<Instant>,
    pub available: bool,
    /// The average that `least_time` compares, in seconds: the least of its addresses; `None` for other policies.
    pub average_time: Option<f64>,
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
        let inner = assemble(&plan.balance, &configured, addresses, Vec::new());
        Self {
            name: Arc::clone(name),
            balance: plan.balance.clone(),
            configured,
            inner: Mutex::new(inner),
            speaks_first: AtomicBool::new(false),
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
        }
    }

    /// The next backend for this session, none that it has tried.
    pub fn pick(&self, search: &mut Search, now: Instant) -> Option<Lease> {
        let mut inner = self.lock();
        inner.halve(now);
        let Inner {
            members,
            all_plain,
            balancer,
            chance,
            ..
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
        search.tried.push(member.backend.id);
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
            backend.metrics.transitions_failed.add(1);
            return AfterFailure::Out;
        }
        AfterFailure::StillIn
    }

    /// A connect succeeded. True when that brought the backend back.
    pub fn succeeded(&self, backend: &Arc<Backend>, now: Instant) -> bool {
        let mut inner = self.lock();
        // Nobody has failed: there is nothing to clear.
        if inner.all_plain {
            return false;
        }
        let Some(i) = position(&inner.members, backend) else {
            return false;
        };
        let member = &mut inner.members[i];
        let was_out = member.is_failed();
        member.passive.succeeded();
        let back = was_out && !member.is_failed();
        if back {
            member.back = Some(now).filter(|_| !member.slow_start.is_zero());
            backend.metrics.transitions_up.add(1);
        }
        if !inner.all_plain {
            inner.all_plain = inner.members.iter().all(Member::is_plain);
        }
        back
    }

    /// Which time the policy compares, if it does.
    fn compares(&self) -> Option<TimeOf> {
        match self.balance {
            Balance::LeastTime(of) => Some(of),
            _ => None,
        }
    }

    /// A session got what it waited for, after so long.
    fn add_time(&self, backend: &Arc<Backend>, time: Duration, now: Instant) {
        let mut inner = self.lock();
        if let Some(i) = position(&inner.members, backend) {
            inner.add_time(i, time, now);
        }
    }

    /// A session waited so long and got nothing. That says something where it is longer than is usual; and whoever
    /// has given nothing yet is no quicker than those who have.
    fn waited_in_vain(&self, backend: &Arc<Backend>, time: Duration, now: Instant) {
        let mut inner = self.lock();
        let Some(i) = position(&inner.members, backend) else {
            return;
        };
        let known = inner.members[i].average.seconds;
        if known == 0.0 {
            let seconds = inner.members.iter().map(|m| m.average.seconds);
            let slowest = Duration::from_secs_f64(seconds.fold(0.0, f64::max));
            inner.add_time(i, time.max(slowest), now);
        } else if known < time.as_secs_f64() {
            inner.add_time(i, time, now);
        }
    }

    /// New answers from the resolver. Addresses that stay keep their failures and sessions, and so do those that come
    /// back while either is still there: some resolvers name a part of the addresses at a time.
    pub fn set_addresses(&self, addresses: &[Vec<Place>], now: Instant) {
        let mut inner = self.lock();
        let mut old = std::mem::take(&mut inner.members);
        old.append(&mut inner.departed);
        *inner = assemble(&self.balance, &self.configured, addresses, old);
        inner.departed.retain(|m| m.is_worth_keeping(now));
    }

    /// All configured backends as they are now.
    pub fn snapshot(&self, now: Instant) -> Vec<Snapshot> {
        let mut inner = self.lock();
        inner.halve(now);
        let single = inner.balancer.is_single();
        let one = |(index, (plan, metrics)): (usize, &(plan::Backend, Arc<BackendMetrics>))| {
            let members: Vec<&Member> = inner.members.iter().filter(|m| m.of == index).collect();
            let available = members.iter().any(|m| m.share(single, now) > 0);
            // Until a connect succeeds; that it may be tried again is what `available` says.
            let failed = !members.is_empty() && !single && members.iter().all(|m| m.is_failed());
            let fails: u32 = members.iter().map(|m| m.passive.fails()).sum();
            let (state, why) = if plan.down {
                ("down", "the configuration says so".to_owned())
            } else if members.is_empty() {
                ("down", "its name does not resolve".to_owned())
            } else if failed {
                ("failed", {
                    let next = if available { "; to be tried again" } else { "" };
                    format!("{fails} failed connects{next}")
                })
            } else if plan.weight == 0 {
                ("up", "weight 0: takes nothing new".to_owned())
            } else if !available {
                ("up", "full: max_connections is reached".to_owned())
            } else if let Some(percent) = members.iter().filter_map(|m| m.starting(now)).min() {
                ("up", format!("slow start: {percent} % of its weight"))
            } else {
                ("up", String::new())
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
                    .then(|| members.iter().map(|m| m.average.seconds))
                    .and_then(|averages| averages.reduce(f64::min)),
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

impl Inner {
    fn add_time(&mut self, member: usize, time: Duration, now: Instant) {
        let member = &mut self.members[member];
        member.average.add(time, now, member.rule.fail_timeout);
        // No later than it may have been: coming too early does no harm.
        let halves = self.halves.into_iter().chain(member.average.halves);
        self.halves = halves.min();
    }

    /// Brings the averages up to date, if one is due.
    fn halve(&mut self, now: Instant) {
        if self.halves.is_none_or(|at| now < at) {
            return;
        }
        for member in &mut self.members {
            // One that is waited for is not idle.
            match member.backend.waiting.load(Relaxed) {
                0 => member.average.halve(now, member.rule.fail_timeout),
                _ => member.average.put_off(now, member.rule.fail_timeout),
            }
        }
        self.halves = self.members.iter().filter_map(|m| m.average.halves).min();
    }
}

impl Member {
    fn new(of: usize, plan: &plan::Backend, place: &Place, metrics: &Arc<BackendMetrics>) -> Self {
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
            back: None,
            average: Average::default(),
        }
    }

    /// How much of its weight counts now; 0 if it can take nothing.
    fn share(&self, single: bool, now: Instant) -> u32 {
        let can_take = self.weight > 0
            && !self.down
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

    /// Whether it would be wrong to begin anew with it, were it gone.
    fn is_worth_keeping(&self, now: Instant) -> bool {
        self.backend.active() > 0
            || !self.passive.is_available(self.rule, now)
            || self.back.is_some_and(|back| now < back + self.slow_start)
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
            && self.max_connections == 0
            && (self.rule.max_fails == 0 || self.passive.fails() == 0)
            && self.back.is_none()
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

fn assemble(
    balance: &Balance,
    configured: &[(plan::Backend, Arc<BackendMetrics>)],
    addresses: &[Vec<Place>],
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
                None => Member::new(of, plan, place, &configured[of].1),
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
        halves: members.iter().filter_map(|m| m.average.halves).min(),
        members,
        departed: old,
        balancer,
        chance: Chance::from_seed(RandomState::new().hash_one(())),
    }
}

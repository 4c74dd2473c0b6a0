//! The backends of one upstream and the policy that picks among them, behind one lock.
//!
//! All workers share one truth about turns and failures, so that seven sessions over weights 5/1/1
//! get 1 1 2 1 3 1 1 whichever workers they land on. A pick holds the lock for well under a
//! microsecond and happens once a connection.

mod admin_state;
mod connect_timer;
mod endpoint;
mod event;
mod flow;
mod review;
mod snapshot;
#[cfg(test)]
pub(crate) mod tests;

pub use crate::upstream::pool::admin_state::{AdminSetting, AdminState};
pub use crate::upstream::pool::connect_timer::Clock;
pub use crate::upstream::pool::endpoint::Checked;
pub use crate::upstream::pool::event::{AdminChange, AdminStateSet, Cause, Event, Transition};
pub use snapshot::Snapshot;

use crate::{
    plan::{
        self, Addr, Balance, TimeOf,
        reason::{BackendState, ConnectError},
    },
    telemetry::metrics::{BackendMetrics, UpstreamMetrics},
    upstream::{
        backend::{Backend, Lease},
        balance::{Balancer, Candidates, Chance, Entry, FULL, Facts, Walk, numbered},
        health::Verdict,
        notifier::Notifier,
        pool::{endpoint::Member, event::Events, review::Guard},
    },
};
use ahash::RandomState;
use smallvec::SmallVec;
use std::{
    cell::RefCell,
    fmt::Display,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

#[derive(Debug)]
pub struct Pool {
    pub name: Arc<str>,
    pub metrics: Arc<UpstreamMetrics>,
    balance: Balance,
    /// One for each configured backend, in that order.
    configured: Vec<(plan::Backend, Arc<BackendMetrics>)>,
    /// What is thought of an address before it has been checked; `None`: nothing is checked.
    supposed: Option<Verdict>,
    /// Whether the check hears what role a backend has.
    hears_roles: bool,
    inner: Mutex<Inner>,
    notifier: Arc<Notifier>,
    /// Whether a connect proves nothing before an answer has begun.
    pub fail_on_reset: bool,
    /// Whether a backend here has been heard before its client said anything.
    speaks_first: AtomicBool,
    /// For what flows go elsewhere...
    pub moves: plan::FlowsMove,
    /// ... and how often something has happened that may be such a reason.
    changes: AtomicU64,
}

#[derive(Debug)]
struct Inner {
    /// Primaries in the order of the config, then backups: the numbering of the balancer.
    members: Vec<Member>,
    /// Addresses that the resolver no longer names, with what is still to be known of them.
    departed: Vec<Member>,
    /// One for each configured backend, in that order.
    admin_states: Vec<AdminSetting>,
    /// Nothing is in anybody's way: what a pick finds most of the time, known without looking at
    /// each.
    all_plain: bool,
    /// How often sessions were told to leave a backend.
    left: u64,
    events: Events,
    /// When the first of the averages that `least_time` compares is to be halved.
    halves: Option<Instant>,
    guard: Guard,
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
    /// Members that were asked and could take nothing only because of their `max_connections`; some
    /// of them are enough.
    full: &'a RefCell<SmallVec<[usize; 4]>>,
}

impl Present<'_> {
    /// Apart, so that the loops of the policies stay small.
    #[inline(never)]
    fn share_of(&self, i: usize) -> u32 {
        let member = &self.members[i];
        if self.tried.contains(&member.backend.id) {
            return 0;
        }
        let share = member.share(self.single, self.now);
        if share == 0 && member.is_only_full(self.single, self.now) {
            let mut full = self.full.borrow_mut();
            if full.len() < full.inline_size() && !full.contains(&i) {
                full.push(i);
            }
        }
        share
    }
}

impl Candidates for Present<'_> {
    #[inline]
    fn share(&self, i: usize) -> u32 {
        if self.all_plain {
            FULL
        } else {
            self.share_of(i)
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

/// Where one session stands in its search for a backend.
#[derive(Debug, Default)]
pub struct Search {
    walk: Walk,
    /// The backends' ids. Most sessions try one.
    tried: SmallVec<[u64; 2]>,
    /// How often the one that was picked last had been left when it was, and how often any here.
    left: u32,
    left_in_all: u64,
}

/// An address that sessions go to, as those see it who check it.
#[derive(Debug, Clone)]
pub struct Address {
    pub backend: Arc<Backend>,
    pub backup: bool,
    pub verdict: Verdict,
    pub admin_state_changed: AdminSetting,
}

impl Pool {
    /// `addresses`: for each configured backend, what its address text stands for.
    pub fn new(
        of_all: &Arc<UpstreamMetrics>,
        plan: &plan::Upstream,
        metrics: impl Fn(&plan::Backend) -> BackendMetrics,
        addresses: &[Vec<Addr>],
        now: Instant,
    ) -> Self {
        let configured: Vec<_> = plan
            .backends
            .iter()
            .map(|b| (b.clone(), Arc::new(metrics(b))))
            .collect();
        let supposed = plan.check.as_ref().map(|c| Verdict::at_start(c.start_up));
        let events = Events::default();
        let notifier = Arc::clone(events.notifier());
        let inner = assemble(
            &plan.balance,
            &configured,
            addresses,
            supposed,
            Kept {
                guard: Guard::new(plan),
                admin_states: vec![AdminSetting::default(); configured.len()],
                events,
                left: 0,
                members: Vec::new(),
            },
            now,
        );
        Self {
            supposed,
            hears_roles: plan.check.as_ref().is_some_and(|c| c.kind.tells_role()),
            name: Arc::clone(&of_all.name),
            metrics: Arc::clone(of_all),
            balance: plan.balance.clone(),
            configured,
            inner: Mutex::new(inner),
            notifier,
            fail_on_reset: plan.fail_on_reset,
            speaks_first: AtomicBool::new(false),
            moves: plan.flows_move,
            changes: AtomicU64::new(1),
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
            left_in_all: 0,
        }
    }

    /// The next backend for this session, none that it has tried.
    pub fn pick(&self, search: &mut Search, now: Instant) -> Option<Lease> {
        let mut inner = self.lock();
        inner.halve(now);
        inner.look_out(now);
        let Inner {
            members,
            all_plain,
            left,
            balancer,
            chance,
            ..
        } = &mut *inner;
        let full = RefCell::default();
        let present = Present {
            single: balancer.is_single(),
            all_plain: *all_plain && search.tried.is_empty(),
            members,
            tried: &search.tried,
            now,
            full: &full,
        };
        let picked = balancer.pick(&mut search.walk, &present, || chance.draw());
        for i in full.into_inner() {
            members[i].backend.log_full(now);
        }
        let picked = picked?;
        let member = &mut members[picked.candidate];
        if !*all_plain {
            member.passive.picked(member.rule, now);
            if member.end_slow_start(now) {
                *all_plain = members.iter().all(Member::is_plain);
            }
        }
        let member = &members[picked.candidate];
        search.tried.push(member.backend.id);
        search.left = member.left;
        search.left_in_all = *left;
        Some(Lease::new(Arc::clone(&member.backend)))
    }

    /// A connect to this backend failed, or a session on it, and the backend is the cause.
    pub fn failed(
        &self,
        backend: &Arc<Backend>,
        reason: ConnectError,
        error: &dyn Display,
        now: Instant,
    ) {
        let mut inner = self.lock();
        let Inner {
            members,
            all_plain,
            balancer,
            events,
            ..
        } = &mut *inner;
        // A single backend is never taken out: trying it is all that can be done.
        if balancer.is_single() {
            return;
        }
        let Some(i) = position(members, backend) else {
            return;
        };
        let member = &mut members[i];
        let before = member.state();
        member.passive.failed(now);
        *all_plain &= member.is_plain();
        if let Some(share) = member.weight.checked_div(member.rule.max_fails) {
            balancer.penalize(i, share);
        }
        // One that is out for another reason is not taken out by this.
        if (before, member.state()) == (BackendState::Up, BackendState::Failed) {
            events.push(Event::Transition(Transition {
                doubted_for: member.passive.doubted_for(now),
                ..member.transition(
                    before,
                    Cause::Failure {
                        reason,
                        error: error.to_string(),
                    },
                    now,
                )
            }));
            self.changed();
        }
    }

    /// A connect to the backend that `search` picked last succeeded. Where that alone proves
    /// nothing, `answered` follows. Whether the session may stay there: the sessions of a backend
    /// can have been terminated since it was picked.
    pub fn succeeded(&self, search: &Search, now: Instant) -> bool {
        let mut inner = self.lock();
        // Nothing has failed, and no sessions were terminated: there is nothing to do.
        if inner.all_plain && inner.left == search.left_in_all && !inner.events.awaits_failover() {
            return true;
        }
        let Some(id) = search.tried.last() else {
            return true;
        };
        if !self.fail_on_reset {
            inner.restore(*id, Cause::Connected, now);
        }
        inner.may_stay(search, now)
    }

    /// The first byte of an answer came from a backend whose connect alone proved nothing.
    pub fn answered(&self, backend: &Backend, now: Instant) {
        let mut inner = self.lock();
        if !inner.all_plain {
            inner.restore(backend.id, Cause::Answered, now);
        }
    }

    /// The addresses that there are now, without those that the configuration has taken out, and
    /// with those that the resolver no longer names while there is something to be known of them:
    /// their sessions are to be looked after.
    pub fn addresses(&self) -> Vec<Address> {
        let inner = self.lock();
        let one = |m: &Member| Address {
            backend: Arc::clone(&m.backend),
            backup: m.backup,
            verdict: m.verdict,
            admin_state_changed: m.admin_state_changed,
        };
        let departed = inner.departed.iter().filter(|m| m.backend.active() > 0);
        let members = inner.members.iter().chain(departed);
        members.filter(|m| !m.down).map(one).collect()
    }

    /// All addresses that there are now, and those that the resolver no longer names but that are
    /// not forgotten.
    pub fn backends(&self) -> Vec<Arc<Backend>> {
        let inner = self.lock();
        let members = inner.members.iter().chain(&inner.departed);
        members.map(|m| Arc::clone(&m.backend)).collect()
    }

    /// The configured texts of backends that are checked and of which no check has ended yet with a
    /// finding, in the order of the configuration.
    pub fn unchecked_backends(&self) -> Vec<String> {
        if self.supposed.is_none() {
            return Vec::new();
        }
        let inner = self.lock();
        let is_unchecked = |m: &&Member| {
            !m.down && !m.heard && m.admin_state_changed.admin_state != AdminState::Maint
        };
        let mut of: Vec<usize> = inner
            .members
            .iter()
            .filter(is_unchecked)
            .map(|m| m.of)
            .collect();
        of.sort_unstable();
        of.dedup();
        of.into_iter()
            .map(|i| self.configured[i].0.text.clone())
            .collect()
    }

    /// Whether this address takes sessions now.
    pub fn takes(&self, backend: &Arc<Backend>, now: Instant) -> bool {
        let mut inner = self.lock();
        inner.look_out(now);
        let single = inner.balancer.is_single();
        position(&inner.members, backend).is_some_and(|i| inner.members[i].share(single, now) > 0)
    }

    /// From now on a session that was picked for this address before, and reaches it only now,
    /// learns that it must not stay.
    pub fn leave(&self, backend: &Arc<Backend>) {
        let mut inner = self.lock();
        inner.left += 1;
        if let Some(member) = inner.find(backend) {
            member.left = member.left.wrapping_add(1);
        }
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

    /// A session waited so long and got nothing. That says something where it is longer than is
    /// usual; and whoever has given nothing yet is no quicker than those who have.
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

    /// New answers from the resolver. Addresses that stay keep their failures and sessions, and so
    /// do those that come back while either is still there: some resolvers name a part of the
    /// addresses at a time.
    pub fn set_addresses(&self, addresses: &[Vec<Addr>], now: Instant) {
        let mut inner = self.lock();
        let before: Vec<_> = inner.members.iter().map(Member::as_it_is).collect();
        let mut old = std::mem::take(&mut inner.members);
        old.append(&mut inner.departed);
        let kept = Kept {
            guard: std::mem::take(&mut inner.guard),
            admin_states: std::mem::take(&mut inner.admin_states),
            events: std::mem::take(&mut inner.events),
            left: inner.left,
            members: old,
        };
        *inner = assemble(
            &self.balance,
            &self.configured,
            addresses,
            self.supposed,
            kept,
            now,
        );
        inner.push_moves(&before, now);
        inner.departed.retain(|m| m.is_worth_keeping(now));
        self.changed();
    }

    /// Whether anything here could take a session now.
    pub fn is_available(&self, now: Instant) -> bool {
        let mut inner = self.lock();
        inner.look_out(now);
        let single = inner.balancer.is_single();
        inner.members.iter().any(|m| m.share(single, now) > 0)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn find(&mut self, backend: &Arc<Backend>) -> Option<&mut Member> {
        let mut all = self.members.iter_mut().chain(&mut self.departed);
        all.find(|m| Arc::ptr_eq(&m.backend, backend))
    }

    /// A session found this backend good: its failures count no more.
    fn restore(&mut self, id: u64, cause: Cause, now: Instant) {
        let Some(member) = self.members.iter_mut().find(|m| m.backend.id == id) else {
            return;
        };
        let before = member.state();
        member.passive.succeeded();
        if (before, member.state()) == (BackendState::Failed, BackendState::Up) {
            member.start_slowly(now);
            let transition = member.transition(before, cause, now);
            self.events.push(Event::Transition(transition));
        }
        if !self.all_plain {
            self.all_plain = self.members.iter().all(Member::is_plain);
        }
    }

    /// A session is on the backend that `search` picked last. Whether it may stay there.
    fn may_stay(&mut self, search: &Search, now: Instant) -> bool {
        let picked = search.tried.last();
        let is_it = |m: &&Member| picked == Some(&m.backend.id);
        if let Some(member) = self.members.iter().find(is_it) {
            self.events.session_on(&member.backend, now);
        }
        // The resolver may have dropped it meanwhile.
        let mut all = self.members.iter().chain(&self.departed);
        all.find(is_it).is_none_or(|m| m.left == search.left)
    }

    /// What new answers of the resolver have changed.
    fn push_moves(&mut self, before: &[(Arc<Backend>, BackendState)], now: Instant) {
        let after: Vec<_> = self.members.iter().map(Member::as_it_is).collect();
        let is_in = |all: &[(Arc<Backend>, BackendState)], backend: &Backend| {
            all.iter().any(|(other, _)| other.id == backend.id)
        };
        let gone = before.iter().filter(|(b, _)| !is_in(&after, b));
        let came = after.iter().filter(|(b, _)| !is_in(before, b));
        let gone = gone.map(|(backend, state)| (backend, Some(*state), None));
        let came = came.map(|(backend, state)| (backend, None, Some(*state)));
        for (backend, from, to) in gone.chain(came) {
            self.events.push(Event::Transition(Transition {
                backend: Arc::clone(backend),
                is_backup: false,
                from,
                to,
                cause: Cause::Resolver,
                doubted_for: Duration::ZERO,
                at: now,
            }));
        }
    }

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

fn position(members: &[Member], backend: &Arc<Backend>) -> Option<usize> {
    members
        .iter()
        .position(|m| Arc::ptr_eq(&m.backend, backend))
}

/// What outlives a change of the addresses.
struct Kept {
    guard: Guard,
    admin_states: Vec<AdminSetting>,
    events: Events,
    left: u64,
    members: Vec<Member>,
}

fn assemble(
    balance: &Balance,
    configured: &[(plan::Backend, Arc<BackendMetrics>)],
    addresses: &[Vec<Addr>],
    supposed: Option<Verdict>,
    kept: Kept,
    now: Instant,
) -> Inner {
    let Kept {
        guard,
        admin_states,
        events,
        left,
        members: mut old,
    } = kept;
    let mut members = Vec::new();
    let mut primaries = 0;
    for (of, plan) in numbered(configured.iter().map(|(plan, _)| plan)) {
        for place in addresses.get(of).into_iter().flatten() {
            let known = old
                .iter()
                .position(|m| m.of == of && m.backend.place == *place);
            members.push(match known.map(|i| old.swap_remove(i)) {
                Some(mut member) => {
                    if std::mem::take(&mut member.departed) {
                        // What became of others meanwhile was not compared with it.
                        member.known = None;
                    }
                    member
                }
                None => {
                    let verdict = supposed.unwrap_or(Verdict::Up);
                    let notifier = Arc::clone(events.notifier());
                    let metrics = Arc::clone(&configured[of].1);
                    let backend = Backend::new(place.clone(), metrics, notifier, now);
                    Member::new(of, plan, backend, verdict, now)
                }
            });
        }
        if !plan.backup {
            primaries = members.len();
        }
    }
    for member in &mut old {
        member.departed = true;
    }
    let entries: Vec<Entry<'_>> = members
        .iter()
        .map(|m| Entry {
            text: m.backend.text(),
            weight: m.weight,
        })
        .collect();
    let balancer = Balancer::new(balance, &entries[..primaries], &entries[primaries..]);
    let mut inner = Inner {
        all_plain: false,
        halves: members.iter().filter_map(|m| m.average.halves).min(),
        members,
        departed: old,
        admin_states,
        left,
        events,
        guard,
        balancer,
        chance: Chance::from_seed(RandomState::new().hash_one(())),
    };
    inner.keep_admin_states();
    inner.review(None, now);
    inner
}

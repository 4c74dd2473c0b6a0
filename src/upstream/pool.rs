//! The backends of one upstream and the policy that picks among them, behind one lock.
//!
//! All workers share one state of rotation and failures, so that seven sessions over weights 5/1/1
//! get 1 1 2 1 3 1 1 whichever workers they land on. A pick holds the lock for well under a
//! microsecond and happens once a connection.

mod addresses;
mod admin_state;
mod ceilings;
mod check_record;
mod configured;
mod connect_timer;
mod effective_verdict;
mod endpoint;
mod endpoint_admission;
mod event;
mod flow;
mod forecast;
mod handover_state;
mod index;
mod locked;
mod operator_weight;
mod pick_hashes;
mod places;
mod preparation;
mod snapshot;
#[cfg(test)]
pub(crate) mod tests;
mod totals;
mod waiting_line;
mod waiting_session;

pub use crate::upstream::pool::admin_state::{AdminOrder, AdminSetting, AdminState};
pub use crate::upstream::pool::check_record::Checked;
pub use crate::upstream::pool::connect_timer::ConnectTimer;
pub use crate::upstream::pool::event::{AdminChange, AdminStateSet, Cause, Event, Transition};
pub use ceilings::Taker;
pub use forecast::candidates_of_new;
pub use operator_weight::{OperatorWeight, WeightError, WeightSet};
pub use snapshot::EndpointSnapshot;
pub use waiting_line::{Position, Served};
pub use waiting_session::{Carried, WaitProgress, WaitingSession};

use crate::{
    plan::{
        self, Addr, BackupWhen, Balance, Waits,
        reason::{BackendState, ConnectError, Shortage},
    },
    sys::mutex::Mutex,
    telemetry::metrics::{BackendMetrics, UpstreamMetrics},
    upstream::{
        backend::{Backend, Lease, ReleaseObserver, Releases},
        balance::{Balancer, Candidates, Chance, FULL, HashInput, LookupState},
        health::{FailureOf, Verdict},
        notifier::Notifier,
        pool::{
            configured::{Configured, Remembered},
            effective_verdict::Review,
            endpoint::{BoxedEndpoint, Endpoint, EndpointConfig},
            event::{Events, Outages},
            index::{DepartedIndex, Index},
            locked::Locked,
            places::Places,
            preparation::Outline,
            totals::Totals,
            waiting_line::Line,
        },
    },
};
use ahash::RandomState;
use smallvec::SmallVec;
use std::{
    cell::RefCell,
    collections::HashSet,
    fmt::Display,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64},
    },
    time::{Duration, Instant},
};

/// The settings of a plan, and what the pools of one upstream share over all plans.
#[derive(Debug)]
pub struct Pool {
    pub name: Arc<str>,
    pub metrics: Arc<UpstreamMetrics>,
    balance: Balance,
    /// Whether checks report the role of a backend.
    reports_roles: bool,
    inner: Arc<Mutex<Inner>>,
    /// Of the consumer of events alone.
    outages: Arc<Mutex<Outages>>,
    notifier: Arc<Notifier>,
    /// Whether a connect proves nothing before an answer has begun.
    pub fail_on_reset: bool,
    pub waits: Waits,
    /// Whether a backend has sent something before its client did.
    speaks_first: Arc<AtomicBool>,
    /// Counts the changes that may be such a reason.
    changes: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Inner {
    balance: Balance,
    /// Counts the changes of which endpoints there are, and of what is configured.
    generation: u64,
    /// In the order of the configuration.
    configured: Arc<Vec<Arc<Configured>>>,
    /// Those that are no backups in the order of the configuration, then backups: the numbering of
    /// the balancer.
    endpoints: Vec<BoxedEndpoint>,
    /// Of these endpoints.
    index: Arc<Index>,
    totals: Totals,
    /// Those that are no longer named, with state that would be lost with them; in the order in
    /// which they were made.
    departed: Vec<BoxedEndpoint>,
    departed_index: Arc<DepartedIndex>,
    /// What an operator has set for backends that have left.
    remembered: Arc<Vec<Remembered>>,
    /// The verdict on an address before it has been checked; `None`: nothing is checked.
    start_verdict: Option<Verdict>,
    /// For what reasons flows move to another backend.
    moves: plan::FlowsMove,
    /// Whether the admission of all endpoints is `Admission::Full`: what a pick finds most of the
    /// time, and then need not examine each.
    fast_path: bool,
    /// Whether endpoints may have ceilings.
    has_ceilings: bool,
    events: Events,
    /// When the first of the averages that `least_time` compares is to be halved.
    next_halving: Option<Instant>,
    review: Review,
    balancer: Balancer,
    chance: Chance,
    waits: Waits,
    backup_when: BackupWhen,
    line: Line,
    places: Places,
    /// When to look at the line even if nothing happens.
    service_due: Option<Instant>,
    /// Observed by this state itself while sessions wait for places.
    releases: Arc<Releases>,
}

/// The endpoints as they are for one session at one moment.
struct View<'a> {
    endpoints: &'a [BoxedEndpoint],
    /// Of these endpoints.
    backends: &'a [Arc<Backend>],
    tried: &'a [u64],
    fast_path: bool,
    single: bool,
    /// Whether backups take nothing, since a regular backend is in service.
    bars_backups: bool,
    respects_ceilings: bool,
    /// Whether `max_connections` does not count.
    ignores_full: bool,
    now: Instant,
    /// Endpoints that are barred by their `max_connections`; some are enough.
    full: &'a RefCell<SmallVec<[usize; 4]>>,
}

impl View<'_> {
    /// Apart, so that the loops of the policies stay small.
    #[inline(never)]
    fn share_of(&self, i: usize) -> u32 {
        let endpoint = &self.endpoints[i];
        if self.tried.contains(&endpoint.backend.id) {
            return 0;
        }
        if self.respects_ceilings && endpoint.is_at_ceiling() {
            return 0;
        }
        if self.bars_backups && endpoint.config.is_backup {
            return 0;
        }
        let admission = endpoint.admission(self.single, self.now);
        if admission.is_full() {
            if self.ignores_full {
                return FULL;
            }
            let mut full = self.full.borrow_mut();
            if full.len() < full.inline_size() && !full.contains(&i) {
                full.push(i);
            }
        }
        admission.share()
    }
}

impl Candidates for View<'_> {
    #[inline]
    fn share(&self, i: usize) -> u32 {
        if self.fast_path {
            FULL
        } else {
            self.share_of(i)
        }
    }

    #[inline]
    fn connections(&self, i: usize) -> u64 {
        self.backends[i].active()
    }

    #[inline]
    fn time(&self, i: usize) -> f64 {
        self.endpoints[i].latency.seconds
    }
}

/// The search of one session for a backend.
#[derive(Debug, Default)]
pub struct Search {
    lookup: LookupState,
    /// The backends' ids. Most sessions try one.
    tried: SmallVec<[u64; 2]>,
    /// [`Backend::terminations`] of the last one when it was picked.
    terminations: u64,
    /// Whether the session waits where the upstream lets it.
    may_wait: bool,
    /// Whether it is a connection, which goes to another process also while it waits.
    may_move: bool,
    /// The full backend of its key, which it waits for.
    own: Option<u64>,
    /// When it began to wait: for a backend, or for a connect that failed then. `None`: it has not
    /// waited.
    waits_since: Option<Instant>,
}

impl Search {
    pub fn waits_since(&self) -> Option<Instant> {
        self.waits_since
    }

    /// The session has been without a backend since then, if not for longer.
    pub fn note_wait(&mut self, since: Instant) {
        self.waits_since.get_or_insert(since);
    }
}

/// An address as the checker and the termination of sessions see it.
#[derive(Debug, Clone)]
pub struct EndpointAddress {
    pub backend: Arc<Backend>,
    pub is_backup: bool,
    /// Whether its sessions are there only because no other is up: it is a backup, or a primary
    /// that stands in for replicas.
    pub stands_in: bool,
    pub verdict: Verdict,
    pub admin: AdminSetting,
    /// Whether it waits for the answer to a check that is yet to begin.
    pub awaits_answer: bool,
}

impl Pool {
    /// `addresses`: of each backend of the plan.
    pub fn new(
        of_all: &Arc<UpstreamMetrics>,
        plan: &plan::Upstream,
        metrics: impl Fn(&plan::Backend) -> BackendMetrics,
        addresses: &[Vec<Addr>],
        now: Instant,
    ) -> Self {
        let backends = plan.backends.iter().zip(addresses);
        let configured = backends.map(|(backend, addresses)| {
            Arc::new(Configured {
                plan: backend.clone(),
                metrics: Arc::new(metrics(backend)),
                addresses: addresses.clone(),
                admin: AdminSetting::default(),
                operator_weight: None,
            })
        });
        let events = Events::default();
        let notifier = Arc::clone(events.notifier());
        let start_verdict = plan.check.as_ref().map(|c| Verdict::at_start(c.start_up));
        let inner = |releases: Arc<Releases>| Inner {
            balance: plan.balance.clone(),
            generation: 0,
            configured: Arc::default(),
            endpoints: Vec::new(),
            index: Arc::default(),
            totals: Totals::default(),
            departed: Vec::new(),
            departed_index: Arc::default(),
            remembered: Arc::default(),
            start_verdict,
            moves: plan.flows_move,
            fast_path: false,
            has_ceilings: false,
            events,
            next_halving: None,
            review: Review::new(plan),
            balancer: Balancer::new(&plan.balance, &[], &[]),
            chance: Chance::from_seed(RandomState::new().hash_one(())),
            waits: plan.waits,
            backup_when: plan.backup_when,
            line: Line::default(),
            places: Places::default(),
            service_due: None,
            releases,
        };
        let inner = Arc::new_cyclic(|this: &Weak<Mutex<Inner>>| {
            let observer = Weak::clone(this) as Weak<dyn ReleaseObserver>;
            let releases = Arc::new(Releases::new(observer));
            let outline = Outline::new(start_verdict, &notifier, &releases);
            let assembly = outline.assemble(configured.collect(), &plan.balance, now);
            let mut inner = inner(releases);
            drop(inner.put(assembly, now));
            Mutex::new(inner)
        });
        Self {
            reports_roles: plan.check.as_ref().is_some_and(|c| c.kind.tells_role()),
            name: Arc::clone(&of_all.name),
            metrics: Arc::clone(of_all),
            balance: plan.balance.clone(),
            inner,
            outages: Arc::default(),
            notifier,
            fail_on_reset: plan.fail_on_reset,
            waits: plan.waits,
            speaks_first: Arc::default(),
            changes: Arc::new(AtomicU64::new(1)),
        }
    }

    pub fn balance(&self) -> &Balance {
        &self.balance
    }

    /// Begins the search for a client's backend.
    pub fn search(&self, client: &HashInput) -> Search {
        Search {
            lookup: LookupState::new(&self.balance, client),
            ..Search::default()
        }
    }

    /// The next backend for this session, none that it has tried, and none that a session in the
    /// line could have.
    pub fn pick(&self, search: &mut Search, now: Instant) -> Result<Lease, Shortage> {
        let mut inner = self.lock();
        inner.halve_if_due(now);
        inner.review_if_due(now);
        inner.serve(now);
        if search.may_wait {
            if let Some(lacks) = inner.line_before() {
                return Err(lacks);
            }
            search.own = inner.full_own(search, now);
            if search.own.is_some() {
                return Err(Shortage::Full);
            }
        }
        let full = RefCell::default();
        let picked = inner.pick_for(search, &full, now);
        if !inner.places.are_handed() {
            for i in full.into_inner() {
                inner.endpoints[i].backend.log_full(now);
            }
        }
        picked
    }

    /// A connect to this backend failed, or a session on it, and the backend is the cause. `began`:
    /// the connect.
    pub fn failed(
        &self,
        backend: &Arc<Backend>,
        of: FailureOf,
        reason: ConnectError,
        error: &dyn Display,
        [began, now]: [Instant; 2],
    ) {
        let mut inner = self.lock();
        let Inner {
            endpoints,
            index,
            balancer,
            events,
            ..
        } = &mut *inner;
        // A single backend is never taken out: trying it is all that can be done.
        if balancer.is_single() {
            return;
        }
        let Some(i) = index.endpoint(backend.id) else {
            return;
        };
        let endpoint = &mut endpoints[i];
        let before = endpoint.state();
        endpoint.passive.failed(of, began, now);
        let EndpointConfig { weight, rule, .. } = &endpoint.config;
        if let Some(share) = weight.checked_div(rule.max_fails) {
            balancer.penalize(i, share);
        }
        // One that is out for another reason is not taken out by this.
        if (before, endpoint.state()) == (BackendState::Up, BackendState::Failed) {
            let error = error.to_string();
            let failed = u64::from(of == FailureOf::Connection);
            events.push(Event::Transition(Transition {
                doubted_for: endpoint.passive.doubted_for(now),
                sessions: backend.active().saturating_sub(failed),
                ..endpoint.transition(before, Cause::Failure { reason, error }, now)
            }));
            self.changed();
        }
        inner.recount(i);
    }

    /// A connect to this backend, which `search` picked last, succeeded. Where that alone proves
    /// nothing, `answered` follows. Whether the session may stay there: the sessions of a backend
    /// can have been terminated since it was picked.
    pub fn succeeded(&self, search: &Search, backend: &Backend, now: Instant) -> bool {
        let mut inner = self.lock();
        if !inner.fast_path && !self.fail_on_reset {
            inner.restore(backend.id, Cause::Connected, now);
        }
        if !inner.line.is_empty() {
            inner.line.stop_probing();
            inner.serve(now);
        }
        inner.may_stay(search, backend, now)
    }

    /// The first byte of an answer came from a backend whose connect alone proved nothing.
    pub fn answered(&self, backend: &Backend, now: Instant) {
        let mut inner = self.lock();
        if !inner.fast_path {
            inner.restore(backend.id, Cause::Answered, now);
        }
        inner.serve(now);
    }

    /// The addresses, except of backends that are `down` in the configuration; with those that are
    /// no longer named while they have sessions.
    pub fn addresses(&self) -> Vec<EndpointAddress> {
        self.read_endpoints(Inner::address)
    }

    /// One of these.
    pub fn address(&self, backend: &Backend) -> Option<EndpointAddress> {
        let inner = self.lock();
        inner.address(inner.number_of(backend)?)
    }

    /// All addresses, with those that are no longer named but not forgotten.
    pub fn backends(&self) -> Vec<Arc<Backend>> {
        let (index, departed) = self.indexes();
        let all = index.backends.iter().chain(&departed.backends);
        all.map(Arc::clone).collect()
    }

    /// The backend with this address as configured that is at `addr`, also if it is no longer named
    /// but not forgotten.
    pub fn backend_named(&self, text: &str, addr: &Addr) -> Option<Arc<Backend>> {
        let (index, departed) = self.indexes();
        let present = index.endpoint_at(text, addr).map(|i| &index.backends[i]);
        let of_text = departed.of(text).iter().map(|i| &departed.backends[*i]);
        let mut found = present.into_iter().chain(of_text);
        found.find(|backend| backend.addr == *addr).map(Arc::clone)
    }

    /// Whether no backend is configured, and no session is left.
    pub fn is_over(&self) -> bool {
        let is_left = || self.backends().iter().any(|backend| backend.active() > 0);
        self.configured().is_empty() && !is_left()
    }

    /// Where endpoints are now. To be read without the lock.
    fn indexes(&self) -> (Arc<Index>, Arc<DepartedIndex>) {
        let inner = self.lock();
        (Arc::clone(&inner.index), Arc::clone(&inner.departed_index))
    }

    /// The backends that are checked and of which no check has had a result yet, by their addresses
    /// as configured, in the order of the configuration.
    pub fn unchecked_backends(&self) -> Vec<String> {
        let unchecked = self.read_endpoints(|inner, number| {
            let endpoint = inner.endpoints.get(number)?;
            let text = || Arc::clone(endpoint.backend.text());
            inner.awaits_check(endpoint).then(text)
        });
        let unchecked: HashSet<Arc<str>> = unchecked.into_iter().collect();
        let configured = self.configured();
        let configured = configured.iter();
        configured
            .filter(|c| unchecked.contains(&c.metrics.text))
            .map(|c| c.plan.text.clone())
            .collect()
    }

    /// Whether this address takes sessions now.
    pub fn takes(&self, backend: &Backend, now: Instant) -> bool {
        let mut inner = self.lock();
        inner.review_if_due(now);
        let single = inner.balancer.is_single();
        let endpoint = inner.index.endpoint(backend.id);
        endpoint.is_some_and(|i| !inner.endpoints[i].admission(single, now).is_barred())
    }

    /// The sessions of this address are being terminated: one that was picked for it before, and
    /// reaches it only now, learns that it must not stay.
    pub fn terminate_sessions(&self, backend: &Backend) {
        // A session that asks under the lock sees the count, or is on the list of sessions already.
        let _inner = self.lock();
        backend.count_termination();
    }

    /// Whether any address is fit for sessions now, or would be with fewer sessions.
    pub fn is_available(&self, now: Instant) -> bool {
        let mut inner = self.lock();
        inner.review_if_due(now);
        if inner.totals.counts.restricted < inner.endpoints.len() {
            return true;
        }
        let single = inner.balancer.is_single();
        let mut endpoints = inner.endpoints.iter();
        endpoints.any(|e| e.admission(single, now).is_fit())
    }

    #[cfg_attr(test, track_caller)]
    fn lock(&self) -> Locked<'_> {
        Locked::lock(&self.inner)
    }
}

impl Inner {
    /// `full`: collects endpoints that are barred by their `max_connections`.
    fn pick_for(
        &mut self,
        search: &mut Search,
        full: &RefCell<SmallVec<[usize; 4]>>,
        now: Instant,
    ) -> Result<Lease, Shortage> {
        let fast_path = self.fast_path && search.tried.is_empty();
        let bars_backups = !fast_path && self.bars_backups(now);
        let Inner {
            endpoints,
            index,
            has_ceilings,
            balancer,
            chance,
            ..
        } = self;
        let single = balancer.is_single();
        let view = |respects_ceilings| View {
            single,
            bars_backups,
            respects_ceilings,
            fast_path,
            ignores_full: false,
            endpoints,
            backends: &index.backends,
            tried: &search.tried,
            now,
            full,
        };
        // A search that leads nowhere begins at the same place when the session has waited.
        let before = search.may_wait.then(|| search.lookup.clone());
        let mut pick = |view| balancer.pick(&mut search.lookup, &view, || chance.draw());
        let picked = match pick(view(*has_ceilings)) {
            // Each that could take it has as many as it is to have: they get one more.
            None if *has_ceilings => pick(view(false)),
            picked => picked,
        };
        match picked {
            Some(picked) => Ok(self.take(search, picked.candidate, now)),
            None => {
                if let Some(before) = before {
                    search.lookup = before;
                }
                Err(match full.borrow().is_empty() {
                    true => Shortage::NoneFit,
                    false => Shortage::Full,
                })
            }
        }
    }

    /// Whether backups take nothing now.
    fn bars_backups(&self, now: Instant) -> bool {
        let single = self.balancer.is_single();
        let regular = &self.endpoints[self.balancer.regular()];
        let is_in_service = |e: &BoxedEndpoint| e.admission(single, now).is_fit();
        self.backup_when == BackupWhen::Down && regular.iter().any(is_in_service)
    }

    /// Gives this endpoint to the session.
    fn take(&mut self, search: &mut Search, i: usize, now: Instant) -> Lease {
        if !self.fast_path {
            let endpoint = &mut self.endpoints[i];
            let rule = endpoint.config.rule;
            endpoint.passive.picked(rule, now);
            if endpoint.end_slow_start(now) {
                self.recount(i);
            }
        }
        let backend = &self.endpoints[i].backend;
        search.tried.push(backend.id);
        search.terminations = backend.terminations();
        Lease::new(Arc::clone(backend))
    }

    /// See [`Pool::addresses`].
    fn address(&self, number: usize) -> Option<EndpointAddress> {
        let e = self.outlined(number)?;
        let is_present = number < self.endpoints.len();
        if e.config.is_down || !is_present && e.backend.active() == 0 {
            return None;
        }
        let is_standby = self.is_fallback(e);
        Some(EndpointAddress {
            backend: Arc::clone(&e.backend),
            is_backup: e.config.is_backup,
            stands_in: e.config.is_backup || is_standby,
            verdict: e.check.effective,
            admin: e.admin,
            awaits_answer: e.check.awaits_answer.is_some(),
        })
    }

    /// Whether it is used in place of others although it has not the role that is asked for.
    fn is_fallback(&self, e: &Endpoint) -> bool {
        self.review.falls_back() && e.check.effective == Verdict::Standby
    }

    fn find(&mut self, backend: &Backend) -> Option<&mut Endpoint> {
        let number = self.number_of(backend)?;
        self.outlined_mut(number)
    }

    /// Whether an endpoint is checked, and no check of it has had a result yet.
    fn awaits_check(&self, e: &Endpoint) -> bool {
        let is_checked = self.start_verdict.is_some() && e.is_checked();
        is_checked && !e.config.is_down && !e.check.checked_once
    }

    /// A session found this backend good: its failures do not count any more.
    fn restore(&mut self, id: u64, cause: Cause, now: Instant) {
        let Some(i) = self.index.endpoint(id) else {
            return;
        };
        let endpoint = &mut self.endpoints[i];
        if endpoint.passive.fails() == 0 {
            return;
        }
        let before = endpoint.state();
        endpoint.passive.succeeded();
        if (before, endpoint.state()) == (BackendState::Failed, BackendState::Up) {
            endpoint.start_slowly(now);
            let transition = endpoint.transition(before, cause, now);
            self.events.push(Event::Transition(transition));
        }
        self.recount(i);
    }

    /// A session is on this backend, which `search` picked last. Whether it may stay there.
    fn may_stay(&mut self, search: &Search, backend: &Backend, now: Instant) -> bool {
        if self.events.may_report_session()
            && let Some(i) = self.index.endpoint(backend.id)
        {
            let stands_in = self.is_fallback(&self.endpoints[i]);
            let waited = search.waits_since;
            let waited =
                waited.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
            self.events.report_session(backend, stands_in, waited, now);
        }
        backend.terminations() == search.terminations
    }
}

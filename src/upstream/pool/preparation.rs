//! Endpoints and balancers made before they are needed. A ring or a table takes milliseconds, and
//! so do thousands of endpoints: meanwhile the lock of the pool, for which workers wait, is not
//! held. Under the lock what is ready is exchanged for what is there.

#[cfg(test)]
mod tests;

use super::{
    Cause, Inner, Pool, Transition,
    configured::{Configured, Remembered},
    endpoint::{BoxedEndpoint, Endpoint, EndpointConfig},
    index::Index,
    totals::{Counted, Totals},
};
use crate::{
    plan::Balance,
    upstream::{
        backend::{Backend, ReleaseObserver},
        balance::{Balancer, Entry, numbered},
        health::{Evidence, Verdict},
        notifier::Notifier,
    },
};
use ahash::HashMap;
use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

/// So many endpoints are looked at before workers get the lock again.
const PART: usize = 256;

/// What a pool consists of, without the state of its endpoints.
pub(super) struct Outline {
    /// [`Inner::generation`] by then.
    generation: u64,
    pub(super) configured: Arc<Vec<Arc<Configured>>>,
    pub(super) index: Arc<Index>,
    /// Of the endpoints that have departed.
    pub(super) departed: Vec<Arc<Backend>>,
    pub(super) remembered: Vec<Remembered>,
    pub(super) balance: Balance,
    /// See [`Inner::start_verdict`].
    pub(super) start_verdict: Option<Verdict>,
    /// What the check of a primary shows, where there is an election.
    sign: Option<Evidence>,
    notifier: Arc<Notifier>,
    observer: Weak<dyn ReleaseObserver>,
}

/// The endpoints and the balancer of what is to be configured.
pub(super) struct Assembly {
    generation: u64,
    departed: Vec<Arc<Backend>>,
    /// Which endpoints are to leave.
    gone: Vec<usize>,
    /// Those that leave, with those that have left before and do not come back, by their numbers in
    /// the outline; in the order in which they were made.
    left: Vec<usize>,
    /// Of the endpoints that stay: which get another configuration, or come back.
    changed: Vec<usize>,
    /// See [`Totals::serving_backends`].
    serving_backends: usize,
    configured: Arc<Vec<Arc<Configured>>>,
    balance: Balance,
    balancer: Balancer,
    index: Arc<Index>,
    places: Vec<Place>,
    /// For endpoints that stay a free slot, in the order of the places.
    slots: Vec<Option<BoxedEndpoint>>,
    /// Of those that are new.
    counted: Vec<Counted>,
}

/// Where an endpoint comes from.
#[derive(Debug)]
struct Place {
    /// Its number in the outline; `None`: it is new.
    before: Option<usize>,
    config: EndpointConfig,
}

/// What an assembly has replaced. Better dropped without the lock.
pub(super) struct Replaced {
    gone: Vec<usize>,
    places: Vec<Place>,
    index: Arc<Index>,
    _configured: Arc<Vec<Arc<Configured>>>,
    _balancer: Balancer,
    counted: Vec<Counted>,
    _endpoints: [Vec<Option<BoxedEndpoint>>; 2],
    _departed: Vec<Arc<Backend>>,
}

/// One set of endpoints has taken the place of another: what became of each.
#[derive(Debug)]
pub(super) struct Exchange {
    before: Arc<Index>,
    after: Arc<Index>,
    states_before: Vec<Counted>,
    states_after: Vec<Counted>,
    gone: Vec<usize>,
    places: Vec<Place>,
    cause: Cause,
    at: Instant,
}

impl Outline {
    /// Of a pool that has nothing yet.
    pub(super) fn new(
        start_verdict: Option<Verdict>,
        notifier: &Arc<Notifier>,
        observer: &Weak<dyn ReleaseObserver>,
    ) -> Self {
        Self {
            generation: 0,
            configured: Arc::default(),
            index: Arc::default(),
            departed: Vec::new(),
            remembered: Vec::new(),
            balance: Balance::default(),
            start_verdict,
            sign: None,
            notifier: Arc::clone(notifier),
            observer: Weak::clone(observer),
        }
    }

    /// Those of the endpoints, then those that have departed: the numbers of the outline.
    pub(super) fn backends(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.index.backends.iter().chain(&self.departed)
    }

    /// Makes what is missing for these backends. Endpoints that there are keep their state.
    pub(super) fn assemble(
        self,
        configured: Vec<Arc<Configured>>,
        balance: &Balance,
        now: Instant,
    ) -> Assembly {
        let mut known: HashMap<_, usize> = (self.backends().enumerate())
            .map(|(i, backend)| ((&**backend.text(), &backend.addr), i))
            .collect();
        let (mut places, mut slots) = (Vec::new(), Vec::new());
        let (mut counted, mut changed) = (Vec::new(), Vec::new());
        let (mut entries, mut regular) = (Vec::new(), 0);
        let (mut backends, mut ranges) = (Vec::new(), vec![0..0; configured.len()]);
        let all: Vec<&Arc<Backend>> = self.backends().collect();
        let present_count = self.index.backends.len();
        for (of, plan) in numbered(configured.iter().map(|c| &c.plan)) {
            let configured = &configured[of];
            let config = configured.of_endpoints();
            let present = self.index.configured(&configured.metrics.text);
            let present = present.map(|of| &self.configured[of]);
            let is_same =
                present.is_some_and(|p| Arc::ptr_eq(p, configured) || p.of_endpoints() == config);
            let first = places.len();
            for addr in &configured.addresses {
                let before = known.remove(&(&*configured.metrics.text, addr));
                let new = || {
                    let metrics = Arc::clone(&configured.metrics);
                    let (notifier, observer) = (Arc::clone(&self.notifier), &self.observer);
                    let observer = Weak::clone(observer);
                    let backend = Backend::new(addr.clone(), metrics, notifier, observer, now);
                    let verdict = self.start_verdict.unwrap_or(Verdict::Up);
                    let admin = configured.admin;
                    Box::new(Endpoint::new(backend, config.clone(), admin, verdict, now))
                };
                let slot = before.is_none().then(new);
                counted.push(match &slot {
                    Some(endpoint) => Counted::of(endpoint, self.sign, now),
                    None => Counted::NOT_YET,
                });
                if before.is_some_and(|i| !is_same || i >= present_count) {
                    changed.push(places.len());
                }
                let backend = slot.as_ref().map(|endpoint| &endpoint.backend);
                let backend = backend.or_else(|| all.get(before?).copied());
                backends.extend(backend.map(Arc::clone));
                slots.push(slot);
                places.push(Place {
                    before,
                    config: config.clone(),
                });
                entries.push(Entry {
                    text: &configured.metrics.text,
                    weight: config.weight,
                });
            }
            ranges[of] = first..places.len();
            if !plan.backup {
                regular = entries.len();
            }
        }
        let mut left: Vec<usize> = known.into_values().collect();
        left.sort_unstable();
        let gone = left.iter().copied().filter(|i| *i < present_count);
        let gone = gone.collect();
        left.sort_unstable_by_key(|i| all[*i].id);
        let serving_backends = configured.iter().filter(|c| c.is_to_serve()).count();
        let (of_regular, of_backups) = entries.split_at(regular);
        let balancer = Balancer::new(balance, of_regular, of_backups);
        Assembly {
            generation: self.generation,
            gone,
            left,
            changed,
            serving_backends,
            balancer,
            balance: balance.clone(),
            index: Arc::new(Index::new(backends, &configured, ranges)),
            places,
            slots,
            counted,
            configured: Arc::new(configured),
            departed: self.departed,
        }
    }
}

impl Pool {
    pub(super) fn outline(&self) -> Outline {
        let inner = self.lock();
        let departed = inner.departed.iter();
        Outline {
            generation: inner.generation,
            configured: Arc::clone(&inner.configured),
            index: Arc::clone(&inner.index),
            departed: departed.map(|e| Arc::clone(&e.backend)).collect(),
            remembered: inner.remembered.clone(),
            balance: inner.balance.clone(),
            start_verdict: inner.start_verdict,
            sign: inner.review.sign_of_election(),
            notifier: Arc::clone(inner.events.notifier()),
            observer: Weak::clone(&inner.observer),
        }
    }

    /// Prepares an assembly without the lock, then applies it under the lock. If something else has
    /// changed meanwhile it is prepared once more. What `apply` returns is dropped without the
    /// lock by the caller.
    pub(super) fn reassemble<T, X, E>(
        &self,
        now: Instant,
        mut prepare: impl FnMut(Outline) -> Result<(Assembly, X), E>,
        apply: impl FnOnce(&mut Inner, Assembly, X) -> T,
    ) -> Result<T, E> {
        let result = loop {
            let (assembly, besides) = prepare(self.outline())?;
            let mut inner = self.lock();
            if inner.generation == assembly.generation {
                break apply(&mut inner, assembly, besides);
            }
        };
        self.forget_departed(now);
        Ok(result)
    }

    /// Drops endpoints that have departed and have no state which is worth keeping: some at a time,
    /// so that workers get the lock meanwhile.
    fn forget_departed(&self, now: Instant) {
        let mut first = 0;
        loop {
            let mut inner = self.lock();
            let departed = &mut inner.departed;
            let part = first..departed.len().min(first + PART);
            if part.is_empty() {
                return;
            }
            for endpoint in &mut departed[part.clone()] {
                endpoint.departed.get_or_insert(now);
            }
            first = part.end;
            let forgotten = departed.extract_if(part, |e| !e.is_worth_keeping(now));
            let forgotten: Vec<BoxedEndpoint> = forgotten.collect();
            if !forgotten.is_empty() {
                first -= forgotten.len();
                // The numbers of others have changed.
                inner.generation += 1;
            }
            drop(inner);
            // Without the lock.
            drop(forgotten);
        }
    }

    /// What `read` finds in the pool as it was outlined; `None`: it has changed since.
    pub(super) fn read_outlined<T>(
        &self,
        outline: &Outline,
        read: impl FnOnce(&Inner) -> T,
    ) -> Option<T> {
        let inner = self.lock();
        (inner.generation == outline.generation).then(|| read(&inner))
    }
}

impl Inner {
    /// The endpoint with this number in an outline of this generation.
    pub(super) fn outlined(&self, number: usize) -> Option<&Endpoint> {
        match number.checked_sub(self.endpoints.len()) {
            None => self.endpoints.get(number).map(|e| &**e),
            Some(number) => self.departed.get(number).map(|e| &**e),
        }
    }

    pub(super) fn outlined_mut(&mut self, number: usize) -> Option<&mut Endpoint> {
        match number.checked_sub(self.endpoints.len()) {
            None => self.endpoints.get_mut(number).map(|e| &mut **e),
            Some(number) => self.departed.get_mut(number).map(|e| &mut **e),
        }
    }

    /// The number of the endpoint of this backend, also of one that has departed.
    pub(super) fn number_of(&self, backend: &Backend) -> Option<usize> {
        self.index.endpoint(backend.id).or_else(|| {
            let departed = &self.departed;
            let i = departed.binary_search_by_key(&backend.id, |e| e.backend.id);
            Some(self.endpoints.len() + i.ok()?)
        })
    }

    /// Exchanges what there is for an assembly of this generation.
    pub(super) fn put(&mut self, assembly: Assembly, now: Instant) -> Replaced {
        let Assembly {
            generation,
            departed,
            gone,
            left,
            changed,
            serving_backends,
            configured,
            balance,
            balancer,
            index,
            places,
            slots,
            mut counted,
        } = assembly;
        debug_assert_eq!(generation, self.generation, "it is out of date");
        self.generation += 1;
        for (counted, place) in counted.iter_mut().zip(&places) {
            let before = place.before.and_then(|i| self.totals.counted.get(i));
            *counted = before.copied().unwrap_or(*counted);
        }
        let totals = Totals::new(counted, &index, serving_backends);
        self.balance = balance;
        let mut replaced = Replaced {
            _endpoints: self.place_endpoints(&places, slots, &left),
            counted: std::mem::replace(&mut self.totals, totals).counted,
            gone,
            places,
            index: std::mem::replace(&mut self.index, index),
            _configured: std::mem::replace(&mut self.configured, configured),
            _balancer: std::mem::replace(&mut self.balancer, balancer),
            _departed: departed,
        };
        self.fast_path = self.totals.counts.restricted == 0;
        self.configure_endpoints(&mut replaced, &changed, now);
        if !self.review.is_of_each() {
            self.review(None, now);
            return replaced;
        }
        // What is new has been looked at, except beside the others.
        let claimed = replaced
            .gone
            .iter()
            .filter(|i| replaced.counted[**i].claims());
        let claimed = claimed.filter_map(|i| self.number_of(&replaced.index.backends[*i]));
        let numbers: Vec<usize> = changed.into_iter().chain(claimed).collect();
        self.review_some(numbers, None, now);
        replaced
    }

    /// `changed`: those that stay and get another configuration, or are back.
    fn configure_endpoints(&mut self, replaced: &mut Replaced, changed: &[usize], now: Instant) {
        let has_checks = self.start_verdict.is_some();
        let present = replaced.index.backends.len();
        for number in changed {
            let place = &mut replaced.places[*number];
            let is_back = place.before.is_some_and(|i| i >= present);
            let endpoint = &mut self.endpoints[*number];
            endpoint.configure(&mut place.config, is_back, has_checks, now);
            // No later than it may have been.
            let halvings = self.next_halving.into_iter().chain(endpoint.latency.halves);
            self.next_halving = halvings.min();
        }
        let is_new = |place: &Place| place.before.is_none_or(|i| i >= present);
        let places = replaced.places.iter().enumerate();
        let mut new = places.filter(|(_, place)| is_new(place)).map(|(i, _)| i);
        self.watch_new_endpoints(new.clone());
        if new.next().is_some() {
            self.review.expect_stale(now);
        }
    }

    pub(super) fn add_transitions(&mut self, replaced: &mut Replaced, cause: &Cause, now: Instant) {
        let exchange = Exchange {
            before: Arc::clone(&replaced.index),
            after: Arc::clone(&self.index),
            states_before: std::mem::take(&mut replaced.counted),
            states_after: self.totals.counted.clone(),
            gone: std::mem::take(&mut replaced.gone),
            places: std::mem::take(&mut replaced.places),
            cause: cause.clone(),
            at: now,
        };
        self.events.push_exchange(exchange);
    }

    /// Moves endpoints to their places, and those that have left. Returns what is to be dropped
    /// without the lock.
    fn place_endpoints(
        &mut self,
        places: &[Place],
        mut slots: Vec<Option<BoxedEndpoint>>,
        left: &[usize],
    ) -> [Vec<Option<BoxedEndpoint>>; 2] {
        // In place: an option of a box is as large as the box.
        let as_options = |of: Vec<BoxedEndpoint>| of.into_iter().map(Some).collect::<Vec<_>>();
        let mut endpoints = as_options(std::mem::take(&mut self.endpoints));
        let mut departed = as_options(std::mem::take(&mut self.departed));
        let mut take = |i: usize| match i.checked_sub(endpoints.len()) {
            None => endpoints[i].take(),
            Some(i) => departed[i].take(),
        };
        for (place, slot) in places.iter().zip(&mut slots) {
            if let Some(before) = place.before {
                *slot = take(before);
            }
        }
        self.departed = left.iter().filter_map(|i| take(*i)).collect();
        self.endpoints = slots.into_iter().flatten().collect();
        [endpoints, departed]
    }
}

impl Exchange {
    /// Whether an endpoint has left, or is in another state than before.
    pub(super) fn may_have_outage(&self) -> bool {
        let state = |counted: &Counted| (counted.is_backup, counted.state);
        let (before, after) = (self.states_before.iter(), self.states_after.iter());
        !self.gone.is_empty() || !before.map(state).eq(after.map(state))
    }

    /// First those that are gone, then those that came, then those whose state has changed.
    pub(super) fn transitions(&self) -> impl Iterator<Item = Transition> {
        let transition = |backend: &Arc<Backend>, is_backup, from, to| Transition {
            backend: Arc::clone(backend),
            is_backup,
            from,
            to,
            cause: self.cause.clone(),
            doubted_for: Duration::ZERO,
            at: self.at,
        };
        let gone = self.gone.iter().map(move |&i| {
            let Counted {
                is_backup, state, ..
            } = self.states_before[i];
            transition(&self.before.backends[i], is_backup, Some(state), None)
        });
        let before = |place: &Place| place.before.filter(|i| *i < self.before.backends.len());
        let after = || {
            let after = self.after.backends.iter().zip(&self.states_after);
            after.zip(&self.places)
        };
        let came = after().filter(move |(_, place)| before(place).is_none());
        let came = came.map(move |((backend, after), _)| {
            transition(backend, after.is_backup, None, Some(after.state))
        });
        let changed = after().filter_map(move |((backend, after), place)| {
            let (from, to) = (self.states_before[before(place)?].state, after.state);
            (from != to).then(|| transition(backend, after.is_backup, Some(from), Some(to)))
        });
        gone.chain(came).chain(changed)
    }
}

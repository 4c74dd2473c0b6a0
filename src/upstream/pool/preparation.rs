//! Endpoints and balancers made before they are needed. A ring or a table takes milliseconds, and
//! so do thousands of endpoints: meanwhile the lock of the pool, for which workers wait, is not
//! held. Under the lock what is ready is exchanged for what is there.

#[cfg(test)]
mod tests;

use super::{
    Cause, Inner, Pool, Transition,
    configured::{Configured, Remembered},
    endpoint::{Endpoint, EndpointConfig},
    index::Index,
};
use crate::{
    plan::{Balance, reason::BackendState},
    upstream::{
        backend::{Backend, ReleaseObserver},
        balance::{Balancer, Entry, numbered},
        health::Verdict,
        notifier::Notifier,
    },
};
use ahash::HashMap;
use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

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
    notifier: Arc<Notifier>,
    observer: Weak<dyn ReleaseObserver>,
}

/// The endpoints and the balancer of what is to be configured.
pub(super) struct Assembly {
    generation: u64,
    departed: Vec<Arc<Backend>>,
    /// Which endpoints are to leave.
    gone: Vec<usize>,
    /// Whether all endpoints stay at their places, and there are no others.
    is_same: bool,
    configured: Arc<Vec<Arc<Configured>>>,
    balance: Balance,
    balancer: Balancer,
    index: Arc<Index>,
    places: Vec<Place>,
    /// For endpoints that stay a free slot, in the order of the places.
    slots: Vec<Option<Endpoint>>,
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
    _slots: Vec<Option<Endpoint>>,
    _endpoints: Vec<Option<Endpoint>>,
    _departed: (Vec<Arc<Backend>>, Vec<Endpoint>),
}

/// One set of endpoints has taken the place of another: what became of each.
#[derive(Debug)]
pub(super) struct Exchange {
    before: Arc<Index>,
    after: Arc<Index>,
    /// Whether each was a backup, and its state.
    states_before: Vec<(bool, BackendState)>,
    states_after: Vec<(bool, BackendState)>,
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
        let (mut entries, mut regular) = (Vec::new(), 0);
        let (mut backends, mut ranges) = (Vec::new(), vec![0..0; configured.len()]);
        let all: Vec<&Arc<Backend>> = self.backends().collect();
        for (of, plan) in numbered(configured.iter().map(|c| &c.plan)) {
            let configured = &configured[of];
            let config = EndpointConfig {
                weight: configured.weight(),
                ..EndpointConfig::from(plan)
            };
            let first = places.len();
            for addr in &configured.addresses {
                let before = known.remove(&(&*configured.metrics.text, addr));
                let new = || {
                    let metrics = Arc::clone(&configured.metrics);
                    let (notifier, observer) = (Arc::clone(&self.notifier), &self.observer);
                    let observer = Weak::clone(observer);
                    let backend = Backend::new(addr.clone(), metrics, notifier, observer, now);
                    let verdict = self.start_verdict.unwrap_or(Verdict::Up);
                    Endpoint::new(backend, config.clone(), configured.admin, verdict, now)
                };
                let slot = before.is_none().then(new);
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
        let present = self.index.backends.len();
        let gone = known.into_values().filter(|i| *i < present);
        let mut gone: Vec<usize> = gone.collect();
        gone.sort_unstable();
        let stays = |(i, place): (usize, &Place)| place.before == Some(i);
        let is_same = places.len() == present && places.iter().enumerate().all(stays);
        let (of_regular, of_backups) = entries.split_at(regular);
        let balancer = Balancer::new(balance, of_regular, of_backups);
        Assembly {
            generation: self.generation,
            gone,
            is_same,
            balancer,
            balance: balance.clone(),
            index: Arc::new(Index::new(backends, &configured, ranges)),
            places,
            slots,
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
            notifier: Arc::clone(inner.events.notifier()),
            observer: Weak::clone(&inner.observer),
        }
    }

    /// Prepares an assembly without the lock, then applies it under the lock. If something else has
    /// changed meanwhile it is prepared once more. What `apply` returns is dropped without the
    /// lock by the caller.
    pub(super) fn reassemble<T, X, E>(
        &self,
        mut prepare: impl FnMut(Outline) -> Result<(Assembly, X), E>,
        apply: impl FnOnce(&mut Inner, Assembly, X) -> T,
    ) -> Result<T, E> {
        loop {
            let (assembly, besides) = prepare(self.outline())?;
            let mut inner = self.lock();
            if inner.generation == assembly.generation {
                return Ok(apply(&mut inner, assembly, besides));
            }
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
            None => self.endpoints.get(number),
            Some(number) => self.departed.get(number),
        }
    }

    pub(super) fn outlined_mut(&mut self, number: usize) -> Option<&mut Endpoint> {
        match number.checked_sub(self.endpoints.len()) {
            None => self.endpoints.get_mut(number),
            Some(number) => self.departed.get_mut(number),
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
            is_same,
            configured,
            balance,
            balancer,
            index,
            mut places,
            mut slots,
        } = assembly;
        debug_assert_eq!(generation, self.generation, "it is out of date");
        self.generation += 1;
        let left = match is_same {
            // Mostly only settings differ.
            true => {
                let has_checks = self.start_verdict.is_some();
                for (endpoint, place) in self.endpoints.iter_mut().zip(&mut places) {
                    endpoint.configure(&mut place.config, has_checks, now);
                }
                Vec::new()
            }
            false => self.place_endpoints(&mut places, std::mem::take(&mut slots), now),
        };
        self.balance = balance;
        let replaced = Replaced {
            gone,
            places,
            index: std::mem::replace(&mut self.index, index),
            _configured: std::mem::replace(&mut self.configured, configured),
            _balancer: std::mem::replace(&mut self.balancer, balancer),
            _slots: slots,
            _endpoints: left,
            _departed: (departed, self.forget_departed(now)),
        };
        self.watch_new_endpoints();
        self.next_halving = self.endpoints.iter().filter_map(|e| e.latency.halves).min();
        self.review(None, now);
        replaced
    }

    /// The states of all endpoints, and whether they are backups.
    pub(super) fn states(&self) -> Vec<(bool, BackendState)> {
        let state = |e: &Endpoint| (e.config.is_backup, e.state());
        self.endpoints.iter().map(state).collect()
    }

    /// `states`: before the endpoints were replaced.
    pub(super) fn add_transitions(
        &mut self,
        replaced: &mut Replaced,
        states: Vec<(bool, BackendState)>,
        cause: &Cause,
        now: Instant,
    ) {
        let exchange = Exchange {
            before: Arc::clone(&replaced.index),
            after: Arc::clone(&self.index),
            states_before: states,
            states_after: self.states(),
            gone: std::mem::take(&mut replaced.gone),
            places: std::mem::take(&mut replaced.places),
            cause: cause.clone(),
            at: now,
        };
        self.events.push_exchange(exchange);
    }

    /// Returns what is left of the endpoints that there were.
    fn place_endpoints(
        &mut self,
        places: &mut [Place],
        mut slots: Vec<Option<Endpoint>>,
        now: Instant,
    ) -> Vec<Option<Endpoint>> {
        let has_checks = self.start_verdict.is_some();
        // Both in place: an option of an endpoint is as large as the endpoint.
        let as_options = |of: Vec<Endpoint>| of.into_iter().map(Some).collect::<Vec<_>>();
        let mut endpoints = as_options(std::mem::take(&mut self.endpoints));
        let mut departed = as_options(std::mem::take(&mut self.departed));
        for (place, slot) in places.iter_mut().zip(&mut slots) {
            let Some(i) = place.before else { continue };
            let before = match i.checked_sub(endpoints.len()) {
                None => endpoints[i].take(),
                Some(i) => departed[i].take(),
            };
            if let Some(mut endpoint) = before {
                endpoint.configure(&mut place.config, has_checks, now);
                *slot = Some(endpoint);
            }
        }
        self.endpoints = slots.into_iter().flatten().collect();
        self.departed = departed.into_iter().flatten().collect();
        // Most of thousands have no session: those stay where they are.
        let kept = endpoints.iter_mut().filter_map(|left| {
            let kept = left.take_if(|endpoint| endpoint.is_worth_keeping(now))?;
            Some(Endpoint {
                departed: Some(now),
                ..kept
            })
        });
        self.departed.extend(kept);
        // In the order in which they were made.
        self.departed.sort_unstable_by_key(|e| e.backend.id);
        endpoints
    }

    /// Returns those that have no state which is worth keeping.
    fn forget_departed(&mut self, now: Instant) -> Vec<Endpoint> {
        let departed = &mut self.departed;
        departed
            .extract_if(.., |e| !e.is_worth_keeping(now))
            .collect()
    }
}

impl Exchange {
    /// Whether an endpoint has left, or is in another state than before.
    pub(super) fn may_have_outage(&self) -> bool {
        !self.gone.is_empty() || self.states_before != self.states_after
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
            let (is_backup, state) = self.states_before[i];
            transition(&self.before.backends[i], is_backup, Some(state), None)
        });
        let before = |place: &Place| place.before.filter(|i| *i < self.before.backends.len());
        let after = || {
            let after = self.after.backends.iter().zip(&self.states_after);
            after.zip(&self.places)
        };
        let came = after().filter(move |(_, place)| before(place).is_none());
        let came = came.map(move |((backend, (is_backup, state)), _)| {
            transition(backend, *is_backup, None, Some(*state))
        });
        let changed = after().filter_map(move |((backend, (is_backup, to)), place)| {
            let (_, from) = self.states_before[before(place)?];
            (from != *to).then(|| transition(backend, *is_backup, Some(from), Some(*to)))
        });
        gone.chain(came).chain(changed)
    }
}

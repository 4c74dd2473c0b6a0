//! Endpoints and balancers made before they are needed. A ring or a table takes milliseconds, and
//! so do thousands of endpoints: meanwhile the lock of the pool, for which workers wait, is not
//! held. Under the lock what is ready is exchanged for what is there.

#[cfg(test)]
mod tests;

use super::{
    Cause, Inner, Pool, Transition,
    configured::{Configured, Remembered},
    endpoint::{Endpoint, EndpointConfig},
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
    pub(super) configured: Arc<Vec<Configured>>,
    /// Of the endpoints, then of those that have departed.
    pub(super) backends: Vec<Arc<Backend>>,
    /// How many of them are endpoints.
    pub(super) present: usize,
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
    backends: Vec<Arc<Backend>>,
    /// Which of these are to leave, by number.
    gone: Vec<usize>,
    configured: Vec<Configured>,
    balance: Balance,
    balancer: Balancer,
    places: Vec<Place>,
    /// For endpoints that stay a free slot, in the order of the places.
    slots: Vec<Option<Endpoint>>,
}

/// Where an endpoint comes from.
struct Place {
    /// Its number in the outline; `None`: it is new.
    before: Option<usize>,
    config: EndpointConfig,
}

/// What an assembly has replaced. Better dropped without the lock.
pub(super) struct Replaced {
    /// As in the outline.
    backends: Vec<Arc<Backend>>,
    present: usize,
    gone: Vec<usize>,
    places: Vec<Place>,
    _configured: Arc<Vec<Configured>>,
    _balancer: Balancer,
    _endpoints: Vec<Endpoint>,
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
            backends: Vec::new(),
            present: 0,
            remembered: Vec::new(),
            balance: Balance::default(),
            start_verdict,
            notifier: Arc::clone(notifier),
            observer: Weak::clone(observer),
        }
    }

    /// Makes what is missing for these backends. Endpoints that there are keep their state.
    pub(super) fn assemble(
        self,
        configured: Vec<Configured>,
        balance: &Balance,
        now: Instant,
    ) -> Assembly {
        let backends = self.backends.iter().enumerate();
        let mut known: HashMap<_, usize> = backends
            .map(|(i, backend)| ((&**backend.text(), &backend.addr), i))
            .collect();
        let (mut places, mut slots) = (Vec::new(), Vec::new());
        let (mut entries, mut regular) = (Vec::new(), 0);
        for (of, plan) in numbered(configured.iter().map(|c| &c.plan)) {
            let configured = &configured[of];
            let config = EndpointConfig {
                weight: configured.weight(),
                ..EndpointConfig::from(plan)
            };
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
                slots.push(before.is_none().then(new));
                places.push(Place {
                    before,
                    config: config.clone(),
                });
                entries.push(Entry {
                    text: &configured.metrics.text,
                    weight: config.weight,
                });
            }
            if !plan.backup {
                regular = entries.len();
            }
        }
        let gone = known.into_values().filter(|i| *i < self.present);
        let mut gone: Vec<usize> = gone.collect();
        gone.sort_unstable();
        let (of_regular, of_backups) = entries.split_at(regular);
        Assembly {
            generation: self.generation,
            gone,
            balancer: Balancer::new(balance, of_regular, of_backups),
            balance: balance.clone(),
            places,
            slots,
            configured,
            backends: self.backends,
        }
    }
}

impl Pool {
    pub(super) fn outline(&self) -> Outline {
        let inner = self.lock();
        let all = inner.endpoints.iter().chain(&inner.departed);
        Outline {
            generation: inner.generation,
            configured: Arc::clone(&inner.configured),
            backends: all.map(|e| Arc::clone(&e.backend)).collect(),
            present: inner.endpoints.len(),
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

    /// Exchanges what there is for an assembly of this generation.
    pub(super) fn put(&mut self, assembly: Assembly, now: Instant) -> Replaced {
        let Assembly {
            generation,
            backends,
            gone: leave,
            configured,
            balance,
            balancer,
            mut places,
            slots,
        } = assembly;
        debug_assert_eq!(generation, self.generation, "it is out of date");
        self.generation += 1;
        let present = self.endpoints.len();
        let gone = self.place_endpoints(&mut places, slots, now);
        self.balance = balance;
        let replaced = Replaced {
            backends,
            present,
            gone: leave,
            places,
            _configured: std::mem::replace(&mut self.configured, Arc::new(configured)),
            _balancer: std::mem::replace(&mut self.balancer, balancer),
            _endpoints: gone,
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
        replaced: &Replaced,
        states: &[(bool, BackendState)],
        cause: &Cause,
        now: Instant,
    ) {
        let transition = |backend: &Arc<Backend>, is_backup, from, to| Transition {
            backend: Arc::clone(backend),
            is_backup,
            from,
            to,
            cause: cause.clone(),
            doubted_for: Duration::ZERO,
            at: now,
        };
        let gone = replaced.gone.iter().map(|&i| {
            let (is_backup, state) = states[i];
            transition(&replaced.backends[i], is_backup, Some(state), None)
        });
        let before = |place: &Place| place.before.filter(|i| *i < replaced.present);
        let endpoints = || self.endpoints.iter().zip(&replaced.places);
        let came = endpoints().filter(|(_, place)| before(place).is_none());
        let came =
            came.map(|(e, _)| transition(&e.backend, e.config.is_backup, None, Some(e.state())));
        let changed = endpoints().filter_map(|(e, place)| {
            let (from, to) = (states[before(place)?].1, e.state());
            (from != to).then(|| transition(&e.backend, e.config.is_backup, Some(from), Some(to)))
        });
        self.events.extend(gone.chain(came).chain(changed));
    }

    /// Returns endpoints that are not needed any more.
    fn place_endpoints(
        &mut self,
        places: &mut [Place],
        mut slots: Vec<Option<Endpoint>>,
        now: Instant,
    ) -> Vec<Endpoint> {
        let has_checks = self.start_verdict.is_some();
        let stay = places.len() == self.endpoints.len();
        if stay && (places.iter().enumerate()).all(|(i, place)| place.before == Some(i)) {
            // Mostly only settings differ.
            for (endpoint, place) in self.endpoints.iter_mut().zip(places) {
                endpoint.configure(&mut place.config, has_checks, now);
            }
            return self.forget_departed(now);
        }
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
        let left = endpoints.iter_mut().filter_map(Option::take);
        self.departed.extend(left.map(|endpoint| Endpoint {
            departed: Some(now),
            ..endpoint
        }));
        self.departed.extend(departed.into_iter().flatten());
        // In the order in which they were made.
        self.departed.sort_unstable_by_key(|e| e.backend.id);
        self.forget_departed(now)
    }

    /// Returns those that have no state which is worth keeping.
    fn forget_departed(&mut self, now: Instant) -> Vec<Endpoint> {
        let departed = &mut self.departed;
        departed
            .extract_if(.., |e| !e.is_worth_keeping(now))
            .collect()
    }
}

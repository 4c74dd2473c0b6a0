//! Endpoints and balancers made before they are needed. A ring or a table takes milliseconds, and
//! so do thousands of endpoints: meanwhile the lock of the pool, for which workers wait, is not
//! held. Under the lock what is ready is exchanged for what is there.

#[cfg(test)]
mod tests;

use super::{
    Cause, Inner, Pool, Transition,
    configured::{Configured, Remembered},
    endpoint::{BoxedEndpoint, Endpoint, EndpointConfig},
    index::{DepartedIndex, Index},
    locked::{self, Locked},
    totals::{Counted, Totals},
};
use crate::{
    plan::Balance,
    upstream::{
        backend::{Backend, Releases},
        balance::{Balancer, Entry, numbered},
        health::{Evidence, Verdict},
        notifier::Notifier,
    },
};
use ahash::HashMap;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// So many endpoints are looked at before workers get the lock again.
pub(super) const PART: usize = 256;

/// What a pool consists of, without the state of its endpoints.
pub(super) struct Outline {
    /// [`Inner::generation`] by then.
    pub(super) generation: u64,
    pub(super) configured: Arc<Vec<Arc<Configured>>>,
    pub(super) index: Arc<Index>,
    pub(super) departed: Arc<DepartedIndex>,
    pub(super) remembered: Arc<Vec<Remembered>>,
    pub(super) balance: Balance,
    /// See [`Inner::start_verdict`].
    pub(super) start_verdict: Option<Verdict>,
    /// What the check of a primary shows, where there is an election.
    sign: Option<Evidence>,
    notifier: Arc<Notifier>,
    releases: Arc<Releases>,
}

/// The endpoints and the balancer of what is to be configured.
pub(super) struct Assembly {
    generation: u64,
    departed: DepartedIndex,
    /// Which endpoints are to leave.
    gone: Vec<usize>,
    /// Those that leave, with those that have left before and do not come back, by their numbers in
    /// the outline; in the order in which they were made.
    left: Vec<usize>,
    /// As many free slots.
    left_slots: Vec<Option<BoxedEndpoint>>,
    /// Of the endpoints that stay: which get another configuration, or come back.
    changed: Vec<usize>,
    /// Whether there are endpoints that were not there, or had departed; and whether of the latter.
    has_new: bool,
    has_returned: bool,
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
    /// Room for as many. What the lock is held for allocates nothing of this size: memory that is
    /// written for the first time costs more than what is written.
    states_after: Vec<Counted>,
}

/// Where an endpoint comes from.
#[derive(Debug)]
struct Place {
    /// Its number in the outline; `None`: it is new.
    before: Option<usize>,
    /// What it gets if it has another, and then that one.
    config: Option<EndpointConfig>,
}

/// What an assembly has replaced. Better dropped without the lock.
pub(super) struct Replaced {
    /// How many events there were before those that follow from it.
    events: usize,
    gone: Vec<usize>,
    places: Vec<Place>,
    index: Arc<Index>,
    _configured: Arc<Vec<Arc<Configured>>>,
    _balancer: Balancer,
    counted: Vec<Counted>,
    states_after: Vec<Counted>,
    _departed: Arc<DepartedIndex>,
    _endpoints: [Vec<Option<BoxedEndpoint>>; 2],
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
        releases: &Arc<Releases>,
    ) -> Self {
        Self {
            generation: 0,
            configured: Arc::default(),
            index: Arc::default(),
            departed: Arc::default(),
            remembered: Arc::default(),
            balance: Balance::default(),
            start_verdict,
            sign: None,
            notifier: Arc::clone(notifier),
            releases: Arc::clone(releases),
        }
    }

    /// Those of the endpoints, then those that have departed: the numbers of the outline.
    pub(super) fn backends(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.index.backends.iter().chain(&self.departed.backends)
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
                    let (notifier, releases) = (&self.notifier, &self.releases);
                    let (notifier, releases) = (Arc::clone(notifier), Arc::clone(releases));
                    let backend = Backend::new(addr.clone(), metrics, notifier, releases, now);
                    let verdict = self.start_verdict.unwrap_or(Verdict::Up);
                    let admin = configured.admin;
                    Box::new(Endpoint::new(backend, config.clone(), admin, verdict, now))
                };
                let slot = before.is_none().then(new);
                counted.push(match &slot {
                    Some(endpoint) => Counted::of(endpoint, self.sign),
                    None => Counted::NOT_YET,
                });
                let is_changed = before.is_some_and(|i| !is_same || i >= present_count);
                if is_changed {
                    changed.push(places.len());
                }
                let backend = slot.as_ref().map(|endpoint| &endpoint.backend);
                let backend = backend.or_else(|| all.get(before?).copied());
                backends.extend(backend.map(Arc::clone));
                slots.push(slot);
                places.push(Place {
                    before,
                    config: is_changed.then(|| config.clone()),
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
        let since = |i: usize| i.checked_sub(present_count).map(|i| self.departed.since[i]);
        let departed = left
            .iter()
            .map(|i| (Arc::clone(all[*i]), since(*i).unwrap_or(now)));
        let departed = DepartedIndex::new(departed);
        let mut left_slots = Vec::new();
        left_slots.resize_with(left.len(), || None);
        let has_returned = known_before(&places).any(|i| i >= present_count);
        let serving_backends = configured.iter().filter(|c| c.is_to_serve()).count();
        let (of_regular, of_backups) = entries.split_at(regular);
        let balancer = Balancer::new(balance, of_regular, of_backups);
        Assembly {
            generation: self.generation,
            gone,
            left,
            left_slots,
            changed,
            has_new: has_returned || known_before(&places).count() < places.len(),
            has_returned,
            serving_backends,
            balancer,
            balance: balance.clone(),
            index: Arc::new(Index::new(backends, &configured, ranges)),
            places,
            slots,
            states_after: counted.clone(),
            counted,
            configured: Arc::new(configured),
            departed,
        }
    }
}

/// The numbers in the outline of those that are not new.
fn known_before(places: &[Place]) -> impl Iterator<Item = usize> {
    places.iter().filter_map(|place| place.before)
}

impl Pool {
    #[cfg_attr(test, track_caller)]
    pub(super) fn outline(&self) -> Outline {
        let inner = self.lock();
        Outline {
            generation: inner.generation,
            configured: Arc::clone(&inner.configured),
            index: Arc::clone(&inner.index),
            departed: Arc::clone(&inner.departed_index),
            remembered: Arc::clone(&inner.remembered),
            balance: inner.balance.clone(),
            start_verdict: inner.start_verdict,
            sign: inner.review.sign_of_election(),
            notifier: Arc::clone(inner.events.notifier()),
            releases: Arc::clone(&inner.releases),
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

    /// Drops endpoints that have departed and have no state which is worth keeping.
    fn forget_departed(&self, now: Instant) {
        loop {
            let Outline {
                generation,
                index,
                departed,
                ..
            } = self.outline();
            // Those with sessions stay.
            let idle = departed.backends.iter().zip(index.backends.len()..);
            let idle = idle.filter(|(backend, _)| backend.active() == 0);
            let forgotten =
                self.read_in_parts(generation, idle.map(|(_, n)| n), |inner, number| {
                    let endpoint = inner.outlined(number)?;
                    (!endpoint.is_worth_keeping(now)).then_some(number - index.backends.len())
                });
            let Some(forgotten) = forgotten else {
                continue;
            };
            if forgotten.is_empty() || self.forget(generation, &departed, &forgotten) {
                return;
            }
        }
    }

    /// Drops these of the departed endpoints, by their positions in the index. Returns whether they
    /// were still those.
    fn forget(&self, generation: u64, departed: &DepartedIndex, forgotten: &[usize]) -> bool {
        let mut is_forgotten = vec![false; departed.backends.len()];
        forgotten.iter().for_each(|i| is_forgotten[*i] = true);
        let backends = departed.backends.iter().zip(&departed.since);
        let left = backends.zip(&is_forgotten).filter(|(_, is_it)| !**is_it);
        let left = left.map(|((backend, since), _)| (Arc::clone(backend), *since));
        let mut index = Arc::new(DepartedIndex::new(left));
        let mut endpoints: Vec<Option<BoxedEndpoint>> = Vec::new();
        endpoints.resize_with(forgotten.len(), || None);
        let mut inner = self.lock();
        if inner.generation != generation {
            return false;
        }
        // The numbers of others have changed.
        inner.generation += 1;
        std::mem::swap(&mut inner.departed_index, &mut index);
        let mut is_forgotten = is_forgotten.into_iter();
        let all = inner
            .departed
            .extract_if(.., |_| is_forgotten.next().unwrap_or(false));
        for (slot, endpoint) in endpoints.iter_mut().zip(all) {
            *slot = Some(endpoint);
        }
        // What they consist of is dropped without the lock.
        drop(inner);
        true
    }

    /// What `read` finds of each endpoint, also of those that have departed, by their numbers.
    #[cfg_attr(test, track_caller)]
    pub(super) fn read_endpoints<T>(&self, read: impl Fn(&Inner, usize) -> Option<T>) -> Vec<T> {
        loop {
            let outline = self.outline();
            let numbers = 0..outline.backends().count();
            if let Some(read) = self.read_in_parts(outline.generation, numbers, &read) {
                return read;
            }
        }
    }

    /// The same for these numbers of an outline, some at a time so that workers get the lock
    /// meanwhile. `None`: other endpoints have come or gone.
    #[cfg_attr(test, track_caller)]
    pub(super) fn read_in_parts<T>(
        &self,
        generation: u64,
        numbers: impl Iterator<Item = usize>,
        read: impl Fn(&Inner, usize) -> Option<T>,
    ) -> Option<Vec<T>> {
        let mut numbers = numbers.peekable();
        let mut found = Vec::new();
        while numbers.peek().is_some() {
            // Memory for them is not to be looked for under the lock.
            found.reserve(PART);
            let part: Vec<usize> = numbers.by_ref().take(PART).collect();
            let inner = self.lock_again();
            if inner.generation != generation {
                return None;
            }
            found.extend(part.iter().filter_map(|number| read(&inner, *number)));
        }
        Some(found)
    }

    /// Takes the lock once more, for another part of what is to be done under it.
    #[cfg_attr(test, track_caller)]
    pub(super) fn lock_again(&self) -> Locked<'_> {
        locked::let_others_in();
        self.lock()
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
        let departed = || self.departed_index.endpoint(backend.id);
        let present = self.index.endpoint(backend.id);
        present.or_else(|| Some(self.endpoints.len() + departed()?))
    }

    /// Exchanges what there is for an assembly of this generation. Of thousands of endpoints none
    /// is looked at beyond what moves with it, unless it concerns others or is checked anew.
    pub(super) fn put(&mut self, mut assembly: Assembly, now: Instant) -> Replaced {
        debug_assert_eq!(assembly.generation, self.generation, "it is out of date");
        self.generation += 1;
        let endpoints = self.place_endpoints(&mut assembly);
        let Assembly {
            departed,
            gone,
            changed,
            has_new,
            has_returned,
            serving_backends,
            configured,
            balance,
            balancer,
            index,
            places,
            counted,
            states_after,
            ..
        } = assembly;
        let totals = Totals::new(counted, &index, serving_backends);
        self.balance = balance;
        let replaced = Replaced {
            events: self.events.len(),
            _endpoints: endpoints,
            counted: std::mem::replace(&mut self.totals, totals).counted,
            states_after,
            gone,
            places,
            index: std::mem::replace(&mut self.index, index),
            _configured: std::mem::replace(&mut self.configured, configured),
            _balancer: std::mem::replace(&mut self.balancer, balancer),
            _departed: std::mem::replace(&mut self.departed_index, Arc::new(departed)),
        };
        self.fast_path = self.totals.counts.restricted == 0;
        if has_new {
            self.review.expect_stale(now);
            self.hand_new_places();
        }
        if has_returned && matches!(self.balance, Balance::LeastTime(_)) {
            // The averages of those are older.
            self.next_halving = Some(now);
        }
        let reset = self.reset_checks(&replaced, &changed, now);
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
        let claimed: Vec<usize> = claimed.collect();
        let changed = match self.review.compares() {
            true => changed,
            false => reset,
        };
        self.review_some(changed.into_iter().chain(claimed), None, now);
        replaced
    }

    /// `changed`: those that have another configuration, or are back. Returns the numbers of those
    /// that wait for another check therefore.
    fn reset_checks(&mut self, replaced: &Replaced, changed: &[usize], now: Instant) -> Vec<usize> {
        let present = replaced.index.backends.len();
        let has_checks = self.start_verdict.is_some();
        let mut reset = Vec::new();
        for number in changed {
            let endpoint = &mut self.endpoints[*number];
            let Place { before, config } = &replaced.places[*number];
            if let Some(before) = config.as_ref().filter(|_| has_checks)
                && endpoint.is_reset_after(before)
            {
                endpoint.reset_after(before, self.review.role, now);
                reset.push(*number);
            }
            if self.review.compares() && before.is_some_and(|i| i >= present) {
                // It was not compared with the others meanwhile.
                endpoint.check.evidence.role_since = None;
            }
        }
        reset
    }

    pub(super) fn add_transitions(&mut self, replaced: &mut Replaced, cause: &Cause, now: Instant) {
        let mut states_after = std::mem::take(&mut replaced.states_after);
        states_after.clone_from(&self.totals.counted);
        // Before the verdicts that have followed from it, which are reported already.
        for transition in self.events.transitions_from(replaced.events) {
            let endpoint = self.index.endpoint(transition.backend.id);
            let state = endpoint.map(|i| &mut states_after[i].state);
            if let Some((state, from)) = state.zip(transition.from)
                && Some(*state) == transition.to
            {
                *state = from;
            }
        }
        let exchange = Exchange {
            before: Arc::clone(&replaced.index),
            after: Arc::clone(&self.index),
            states_before: std::mem::take(&mut replaced.counted),
            states_after,
            gone: std::mem::take(&mut replaced.gone),
            places: std::mem::take(&mut replaced.places),
            cause: cause.clone(),
            at: now,
        };
        self.events.insert_exchange(replaced.events, exchange);
    }

    /// Moves endpoints to their places, and those that have left, and counts them by their new
    /// configurations. Returns what is to be dropped without the lock.
    fn place_endpoints(&mut self, assembly: &mut Assembly) -> [Vec<Option<BoxedEndpoint>>; 2] {
        let sign = self.review.sign_of_election();
        // In place: an option of a box is as large as the box.
        let as_options = |of: Vec<BoxedEndpoint>| of.into_iter().map(Some).collect::<Vec<_>>();
        let mut endpoints = as_options(std::mem::take(&mut self.endpoints));
        let mut departed = as_options(std::mem::take(&mut self.departed));
        let mut take = |i: usize| match i.checked_sub(endpoints.len()) {
            None => endpoints[i].take(),
            Some(i) => departed[i].take(),
        };
        let slots = assembly.slots.iter_mut().zip(&mut assembly.counted);
        for (place, (slot, counted)) in assembly.places.iter_mut().zip(slots) {
            let Some(before) = place.before else {
                continue;
            };
            *slot = take(before);
            match (slot, &mut place.config) {
                (Some(endpoint), Some(config)) => {
                    std::mem::swap(&mut endpoint.config, config);
                    *counted = Counted::of(endpoint, sign);
                }
                _ => *counted = self.totals.counted[before],
            }
        }
        for (slot, i) in assembly.left_slots.iter_mut().zip(&assembly.left) {
            *slot = take(*i);
        }
        let as_endpoints = |of: &mut Vec<_>| std::mem::take(of).into_iter().flatten().collect();
        self.departed = as_endpoints(&mut assembly.left_slots);
        self.endpoints = as_endpoints(&mut assembly.slots);
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
            is_kept_out: false,
            doubted_for: Duration::ZERO,
            sessions: backend.active(),
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

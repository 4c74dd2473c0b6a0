//! The budget of descriptors for connections and flows: a part for each kind alone, and a part that
//! both share by demand, so that neither kind can use all of them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

#[derive(Debug)]
pub struct Descriptors {
    used: AtomicU64,
    for_connections: AtomicU64,
    for_flows: AtomicU64,
    shared: AtomicU64,
}

/// Both kinds in one number, so that they change as one: connections in the upper half, flows in
/// the lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Used {
    connections: u32,
    flows: u32,
}

/// A connection has one descriptor towards each side.
const CONNECTION: Used = Used {
    connections: 2,
    flows: 0,
};
const FLOW: Used = Used {
    connections: 0,
    flows: 1,
};

impl Used {
    fn of(bits: u64) -> Self {
        Self {
            connections: (bits >> 32) as u32,
            flows: bits as u32,
        }
    }

    fn bits(self) -> u64 {
        u64::from(self.connections) << 32 | u64::from(self.flows)
    }
}

impl Descriptors {
    pub fn new(for_connections: u64, for_flows: u64, shared: u64) -> Self {
        Self {
            used: AtomicU64::default(),
            for_connections: AtomicU64::new(for_connections),
            for_flows: AtomicU64::new(for_flows),
            shared: AtomicU64::new(shared),
        }
    }

    /// Divides them anew. What is in use beyond a part that got smaller stays in use.
    pub fn divide(&self, for_connections: u64, for_flows: u64, shared: u64) {
        self.for_connections.store(for_connections, Relaxed);
        self.for_flows.store(for_flows, Relaxed);
        self.shared.store(shared, Relaxed);
    }

    /// Takes those of a connection. Returns false when the part of connections and the shared part
    /// are used up.
    pub fn take_for_connection(&self) -> bool {
        self.take(CONNECTION, |next| self.is_of_connections(next))
    }

    /// Whether those of one more connection could be taken now.
    pub fn has_free_for_connection(&self) -> bool {
        let used = self.used.load(Relaxed);
        self.add(used, CONNECTION, |next| self.is_of_connections(next))
            .is_some()
    }

    fn is_of_connections(&self, used: Used) -> bool {
        u64::from(used.connections) <= self.for_connections.load(Relaxed)
    }

    /// Takes that of the socket of a flow.
    pub fn take_for_flow(&self) -> bool {
        self.take(FLOW, |next| self.is_of_flows(next))
    }

    /// Whether one more could be taken for a flow now.
    pub fn has_free_for_flow(&self) -> bool {
        let used = self.used.load(Relaxed);
        self.add(used, FLOW, |next| self.is_of_flows(next))
            .is_some()
    }

    fn is_of_flows(&self, used: Used) -> bool {
        u64::from(used.flows) <= self.for_flows.load(Relaxed)
    }

    /// Takes one even beyond the limit.
    pub fn take_for_flow_anyway(&self) {
        self.used.fetch_add(FLOW.bits(), Relaxed);
    }

    /// Takes those of a connection even beyond the limit.
    pub fn take_for_connection_anyway(&self) {
        self.used.fetch_add(CONNECTION.bits(), Relaxed);
    }

    pub fn give_back_of_connection(&self) {
        self.used.fetch_sub(CONNECTION.bits(), Relaxed);
    }

    pub fn give_back_of_flow(&self) {
        self.used.fetch_sub(FLOW.bits(), Relaxed);
    }

    fn take(&self, more: Used, is_own: impl Fn(Used) -> bool) -> bool {
        let take = |used| self.add(used, more, &is_own);
        self.used.fetch_update(Relaxed, Relaxed, take).is_ok()
    }

    /// What is used with these as well; `None` if they are too many.
    fn add(&self, used: u64, more: Used, is_own: impl Fn(Used) -> bool) -> Option<u64> {
        let next = Used::of(used.checked_add(more.bits())?);
        let fits = is_own(next) || self.shared_part(next) <= self.shared.load(Relaxed);
        (fits && self.is_within_all(next)).then(|| next.bits())
    }

    /// False while one kind still uses what has been given to the other.
    fn is_within_all(&self, used: Used) -> bool {
        let parts = [&self.for_connections, &self.for_flows, &self.shared];
        let all = parts.map(|part| part.load(Relaxed)).into_iter();
        u64::from(used.connections) + u64::from(used.flows) <= all.fold(0, u64::saturating_add)
    }

    /// How many of these come from the shared part.
    fn shared_part(&self, used: Used) -> u64 {
        let beyond = |used, own: &AtomicU64| u64::from(used).saturating_sub(own.load(Relaxed));
        beyond(used.connections, &self.for_connections) + beyond(used.flows, &self.for_flows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often it succeeds until it fails.
    fn times(take: impl Fn() -> bool) -> usize {
        std::iter::repeat_with(take)
            .take_while(|taken| *taken)
            .count()
    }

    #[test]
    fn each_kind_has_its_own_part_and_what_the_other_leaves_of_the_rest() {
        let descriptors = Descriptors::new(10, 10, 20);
        assert_eq!(times(|| descriptors.take_for_connection()), 15);
        assert!(!descriptors.has_free_for_connection() && descriptors.has_free_for_flow());
        assert_eq!(times(|| descriptors.take_for_flow()), 10);
        (0..15).for_each(|_| descriptors.give_back_of_connection());
        assert_eq!(times(|| descriptors.take_for_flow()), 20);
        assert_eq!(times(|| descriptors.take_for_connection()), 5);
        (0..30).for_each(|_| descriptors.give_back_of_flow());
        (0..5).for_each(|_| descriptors.give_back_of_connection());
        assert_eq!(descriptors.used.load(Relaxed), 0);
    }

    #[test]
    fn a_part_that_gets_smaller_is_given_back_first() {
        let descriptors = Descriptors::new(10, 0, 0);
        assert_eq!(times(|| descriptors.take_for_connection()), 5);
        descriptors.divide(4, 6, 0);
        assert!(!descriptors.take_for_connection());
        assert_eq!(
            times(|| descriptors.take_for_flow()),
            0,
            "connections use them still"
        );
        (0..3).for_each(|_| descriptors.give_back_of_connection());
        assert_eq!(times(|| descriptors.take_for_flow()), 6);
    }

    /// A flow that moves is not refused; one beyond the limit is missing to later flows.
    #[test]
    fn what_is_taken_anyway_counts() {
        let descriptors = Descriptors::new(0, 2, 1);
        (0..5).for_each(|_| descriptors.take_for_flow_anyway());
        assert!(!descriptors.take_for_flow() && !descriptors.take_for_connection());
        (0..5).for_each(|_| descriptors.give_back_of_flow());
        assert_eq!(times(|| descriptors.take_for_flow()), 3);
    }

    #[test]
    fn threads_that_take_and_give_back_never_exceed_the_whole() {
        let descriptors = Descriptors::new(4, 4, 4);
        let check = || {
            let used = Used::of(descriptors.used.load(Relaxed));
            assert!(descriptors.shared_part(used) <= descriptors.shared.load(Relaxed));
        };
        std::thread::scope(|scope| {
            for n in 0..8 {
                let descriptors = &descriptors;
                scope.spawn(move || {
                    for _ in 0..20_000 {
                        if n % 2 == 0 && descriptors.take_for_connection() {
                            check();
                            descriptors.give_back_of_connection();
                        } else if descriptors.take_for_flow() {
                            check();
                            descriptors.give_back_of_flow();
                        }
                    }
                });
            }
        });
        assert_eq!(descriptors.used.load(Relaxed), 0);
    }
}

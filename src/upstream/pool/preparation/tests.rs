use super::super::tests::{address, check, planned, pool, upstream};
use super::*;
use crate::{
    plan::{Addr, Backend as Planned, CheckKind},
    telemetry::metrics::{BackendMetrics, Exporter, UpstreamMetrics},
    upstream::pool::{AdminState, Event},
};
use proptest::prelude::*;

fn addresses(of: u8, count: u8) -> Vec<Addr> {
    (0..count).map(|n| address(of * 10 + n)).collect()
}

/// Distinct backends in any order, some of them backups.
fn backends() -> impl Strategy<Value = Vec<Planned>> {
    let settings = prop::collection::vec((0_u32..4, any::<bool>()), 8);
    let numbers = prop::sample::subsequence((1..=8).collect::<Vec<u8>>(), 1..=8).prop_shuffle();
    (numbers, settings).prop_map(|(numbers, settings)| {
        let of = |n: u8| {
            let (weight, backup) = settings[usize::from(n) - 1];
            Planned {
                weight,
                backup,
                ..planned(n)
            }
        };
        numbers.into_iter().map(of).collect()
    })
}

struct Adder {
    exporter: Exporter,
    of_all: Arc<UpstreamMetrics>,
}

impl Adder {
    fn new() -> Self {
        let exporter = Exporter::new(1);
        let of_all = exporter.upstream("u");
        Self { exporter, of_all }
    }

    fn add(&self, backend: &Planned) -> (Arc<BackendMetrics>, Vec<Addr>) {
        let metrics = self.exporter.backend(
            &self.of_all,
            &backend.text,
            Some(crate::plan::CheckProtocol::Redis),
        );
        (metrics.into(), addresses(10, 2))
    }
}

/// What the endpoints are to be, in their order: of each configured backend all its addresses,
/// backups last.
fn expected(pool: &Pool) -> Vec<(String, Addr, u32, bool)> {
    let inner = pool.lock();
    let plans = inner.configured.iter().map(|c| &c.plan);
    let of = |(i, plan): (usize, &Planned)| {
        let configured = &inner.configured[i];
        let (text, weight, backup) = (plan.text.clone(), configured.weight(), plan.backup);
        let addresses = configured.addresses.clone().into_iter();
        addresses.map(move |addr| (text.clone(), addr, weight, backup))
    };
    numbered(plans).flat_map(of).collect()
}

/// The endpoints are those that are expected, the departed are other ones, and the balancer numbers
/// them as they are.
fn assert_is_consistent(pool: &Pool) {
    let expected = expected(pool);
    let inner = pool.lock();
    let shown = |e: &BoxedEndpoint| {
        let (text, addr) = (e.backend.text().to_string(), e.backend.addr.clone());
        (text, addr, e.config.weight, e.config.is_backup)
    };
    let endpoints: Vec<_> = inner.endpoints.iter().map(shown).collect();
    assert_eq!(endpoints, expected);
    inner.assert_is_counted();
    let of = |i| {
        inner
            .index
            .owner(i)
            .map(|of| inner.configured[of].of_endpoints())
    };
    let configs = inner.endpoints.iter().map(|e| Some(e.config.clone()));
    assert!(configs.eq((0..expected.len()).map(of)));
    let of_index = inner.departed_index.backends.iter().map(|b| b.id);
    assert!(of_index.eq(inner.departed.iter().map(|e| e.backend.id)));
    for (i, e) in inner.departed.iter().enumerate() {
        assert!(inner.departed_index.of(e.backend.text()).contains(&i));
        assert_eq!(inner.number_of(&e.backend), Some(inner.endpoints.len() + i));
    }
    let regular = expected.iter().filter(|(.., backup)| !backup).count();
    assert_eq!(inner.balancer.regular(), 0..regular);
    let ids = |endpoints: &[BoxedEndpoint]| -> Vec<u64> {
        endpoints.iter().map(|e| e.backend.id).collect()
    };
    let (present, departed) = (ids(&inner.endpoints), ids(&inner.departed));
    assert!(departed.iter().all(|id| !present.contains(id)));
    assert!(departed.is_sorted());
}

/// Of each endpoint, by its backend and its address.
fn ids(pool: &Pool) -> HashMap<(String, Addr), u64> {
    let of = |e: &BoxedEndpoint| {
        let backend = &e.backend;
        (
            (backend.text().to_string(), backend.addr.clone()),
            backend.id,
        )
    };
    pool.lock().endpoints.iter().map(of).collect()
}

fn count_transitions(pool: &Pool, now: Instant) -> [usize; 2] {
    let (events, _) = pool.take_events(now);
    let mut counts = [0; 2];
    for event in events {
        if let Event::Transition(transition) = event {
            counts[0] += usize::from(transition.from.is_none());
            counts[1] += usize::from(transition.to.is_none());
        }
    }
    counts
}

proptest! {
    #[test]
    fn endpoints_are_those_of_the_configuration_and_keep_their_state(
        before in backends(),
        after in backends(),
        counts in prop::collection::vec(0_u8..3, 8),
        weight in prop::option::of(0_u32..9),
        leases in prop::collection::vec(any::<bool>(), 8),
    ) {
        let now = Instant::now();
        let pool = pool(before.clone(), true);
        assert_is_consistent(&pool);
        for (backend, count) in before.iter().zip(&counts) {
            pool.set_addresses(&backend.text, &addresses(9, *count), now);
            assert_is_consistent(&pool);
        }
        pool.set_weight(&before[0].text, weight, now).expect("a weight");
        assert_is_consistent(&pool);
        // Those with sessions stay in memory when they leave.
        let backends = pool.addresses().into_iter().map(|a| a.backend);
        let leased = backends.zip(leases).filter(|(_, leased)| *leased);
        let leased: Vec<_> = leased
            .map(|(backend, _)| crate::upstream::backend::Lease::new(backend))
            .collect();
        let adder = Adder::new();
        pool.take_events(now);
        // Backends that return have what the operator had set.
        for backends in [after, before] {
            let known = ids(&pool);
            let plan = upstream(backends, check(CheckKind::Tcp));
            pool.set_plan(&plan, |b| adder.add(b), &Cause::Plan, now);
            assert_is_consistent(&pool);
            let present = ids(&pool);
            let stay = known.iter().filter(|(at, id)| present.get(at) == Some(id)).count();
            let same_place = known.keys().filter(|at| present.contains_key(at)).count();
            prop_assert_eq!(stay, same_place);
            let [came, gone] = count_transitions(&pool, now);
            prop_assert_eq!((came, gone), (present.len() - stay, known.len() - stay));
        }
        for lease in &leased {
            let id = lease.backend().id;
            prop_assert!(pool.backends().iter().any(|b| b.id == id), "it has a session");
        }
    }
}

/// An operator and a resolver may be at work while a plan is prepared.
#[test]
fn a_change_meanwhile_is_not_lost() {
    let now = Instant::now();
    let pool = pool((1..=3).map(planned).collect(), true);
    let adder = Adder::new();
    let plan = upstream((2..=5).map(planned).collect(), check(CheckKind::Tcp));
    let mut asked = Vec::new();
    pool.set_plan(
        &plan,
        |backend| {
            if asked.is_empty() {
                let admin = AdminState::Drain.into();
                pool.set_admin_state("10.0.0.2:1", admin, now)
                    .expect("known");
                pool.set_weight("10.0.0.3:1", Some(7), now).expect("known");
            }
            asked.push(backend.text.clone());
            adder.add(backend)
        },
        &Cause::Plan,
        now,
    );
    assert_eq!(asked, ["10.0.0.4:1", "10.0.0.5:1"], "each once");
    assert_is_consistent(&pool);
    let snapshot = pool.snapshot(now);
    assert_eq!(snapshot[0].admin_state, AdminState::Drain);
    let weights: Vec<u32> = snapshot.iter().map(|s| s.weight).collect();
    assert_eq!(weights, [1, 7, 1, 1]);
}

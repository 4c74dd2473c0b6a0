use super::super::tests::{address, check, planned, pool, upstream};
use super::*;
use crate::{
    plan::{Addr, Backend as Planned, CheckKind},
    telemetry::metrics::Exporter,
    upstream::pool::{Cause, Pool},
};
use proptest::prelude::*;
use std::time::Instant;

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

/// What a change must find prepared, so that no ring or table is made under the lock.
fn assert_is_current(prepared: &Prepared, pool: &Pool) {
    let inner = pool.lock();
    assert_eq!(prepared.layout, inner.layout());
    assert_eq!(prepared.balance, inner.balance);
}

proptest! {
    #[test]
    fn what_is_prepared_is_what_is_needed(
        before in backends(),
        after in backends(),
        counts in prop::collection::vec(0_u8..3, 8),
        weight in prop::option::of(0_u32..9),
    ) {
        let now = Instant::now();
        let pool = pool(before.clone(), true);
        for (backend, count) in before.iter().zip(&counts) {
            let prepared = pool.prepare_addresses(&backend.text, usize::from(*count));
            if pool.set_addresses(&backend.text, &addresses(9, *count), now) {
                assert_is_current(&prepared, &pool);
            }
        }
        let text = &before[0].text;
        let prepared = pool.prepare_weight(text, weight).expect("a weight");
        pool.set_weight(text, weight, now).expect("a weight");
        assert_is_current(&prepared, &pool);

        let exporter = Exporter::new(1);
        let of_all = exporter.upstream("u");
        let add = |b: &Planned| {
            let metrics = exporter.backend(&of_all, &b.text, true);
            (metrics.into(), addresses(10, 2))
        };
        // Backends that return have what the operator had set.
        for backends in [after, before] {
            let plan = upstream(backends, check(CheckKind::Tcp));
            let prepared = pool.prepare_plan(&plan, now, |b| Placement::new(b, 2));
            pool.set_plan(&plan, add, &Cause::Plan, now);
            assert_is_current(&prepared, &pool);
        }
    }
}

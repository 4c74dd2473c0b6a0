use super::super::tests::{address, planned, pool_with, set_addresses};
use super::*;
use crate::{
    plan::{Backend as Planned, HashKey, TimeOf},
    upstream::balance::HashInput,
};
use std::net::{IpAddr, Ipv4Addr};

fn policies() -> Vec<Balance> {
    let key = HashKey::default;
    vec![
        Balance::RoundRobin,
        Balance::LeastConn,
        Balance::LeastTime(TimeOf::Connect),
        Balance::First,
        Balance::Hash(key()),
        Balance::IpHash,
        Balance::ConsistentHash(key(), None),
        Balance::Maglev(key(), None),
    ]
}

fn weighted(weights: [u32; 3]) -> Vec<Planned> {
    let of = |(n, weight)| Planned {
        weight,
        ..planned(n)
    };
    (1..).zip(weights).map(of).collect()
}

/// The backends of many clients that come one after the other.
fn picks(pool: &Pool, now: Instant) -> Vec<String> {
    let client = |n: u32| HashInput {
        remote_addr: Some(IpAddr::from(Ipv4Addr::from(n.wrapping_mul(0x9e37_79b9)))),
        remote_port: None,
        server_port: None,
        proxy_protocol_addr: None,
    };
    let pick = |n| {
        let lease = pool.pick(&mut pool.search(&client(n)), now);
        lease.map_or_else(|_| String::new(), |l| l.backend().text().to_string())
    };
    (0..200).map(pick).collect()
}

fn text(n: usize) -> String {
    format!("10.0.0.{n}:1")
}

#[test]
fn picks_are_those_of_a_pool_with_these_weights() {
    let now = Instant::now();
    for balance in policies() {
        for weights in [[5, 1, 1], [1, 0, 3], [0, 0, 2]] {
            let pool = pool_with(balance.clone(), weighted([1, 2, 3]), true);
            picks(&pool, now);
            for (n, weight) in (1..).zip(weights) {
                let set = pool.set_weight(&text(n), Some(weight), now).expect("set");
                assert_eq!((set.to, set.is_by_operator), (weight, true));
            }
            let fresh = pool_with(balance.clone(), weighted(weights), true);
            assert_eq!(
                picks(&pool, now),
                picks(&fresh, now),
                "{balance:?} {weights:?}"
            );
            for n in 1..=3 {
                pool.set_weight(&text(n), None, now).expect("reset");
            }
            let fresh = pool_with(balance.clone(), weighted([1, 2, 3]), true);
            assert_eq!(
                picks(&pool, now),
                picks(&fresh, now),
                "{balance:?} {weights:?}"
            );
        }
    }
}

#[test]
fn a_weight_holds_for_addresses_that_come_later() {
    let now = Instant::now();
    let pool = pool_with(Balance::RoundRobin, weighted([1, 1, 1]), true);
    pool.set_weight(&text(1), Some(3), now).expect("set");
    set_addresses(
        &pool,
        &[
            vec![address(1), address(9)],
            vec![address(2)],
            vec![address(3)],
        ],
        now,
    );
    let inner = pool.lock();
    let weights: Vec<u32> = inner.endpoints.iter().map(|e| e.config.weight).collect();
    drop(inner);
    assert_eq!(weights, [3, 3, 1, 1]);
    assert_eq!(pool.snapshot(now)[0].weight_in_file, 1);
}

#[test]
fn a_ring_has_a_limit_and_an_unknown_backend_no_weight() {
    let now = Instant::now();
    let key = HashKey::default();
    let pool = pool_with(
        Balance::ConsistentHash(key, None),
        weighted([1, 1, 1]),
        true,
    );
    let most = MOST_RING_WEIGHT;
    let sum = most + 1;
    let refused = pool.set_weight(&text(1), Some(65_535), now).err();
    assert_eq!(refused, Some(WeightError::TooMuch { sum, most }));
    let unknown = pool.set_weight("other:1", Some(1), now).err();
    assert_eq!(unknown, Some(WeightError::UnknownBackend));
    assert_eq!(pool.snapshot(now)[0].weight, 1);
    assert!(pool.take_events(now).0.is_empty());
}

/// Whatever else changes meanwhile, the balancer is that of the weights and addresses at the end.
#[test]
fn weights_and_addresses_change_at_once() {
    let now = Instant::now();
    let key = HashKey::default();
    for balance in [
        Balance::Maglev(key.clone(), None),
        Balance::ConsistentHash(key, None),
    ] {
        let pool = pool_with(balance.clone(), weighted([1, 1, 1]), true);
        std::thread::scope(|scope| {
            for n in 1..=2 {
                let pool = &pool;
                scope.spawn(move || {
                    for weight in (0..40).rev() {
                        pool.set_weight(&text(n), Some(weight), now).expect("set");
                    }
                    pool.set_weight(&text(n), Some(7), now).expect("set");
                });
            }
            scope.spawn(|| {
                for n in [4, 5].repeat(20) {
                    set_addresses(
                        &pool,
                        &[vec![address(1)], vec![address(2)], vec![address(n)]],
                        now,
                    );
                }
                set_addresses(
                    &pool,
                    &[vec![address(1)], vec![address(2)], vec![address(3)]],
                    now,
                );
            });
            scope.spawn(|| {
                for _ in 0..20 {
                    picks(&pool, now);
                }
            });
        });
        let fresh = pool_with(balance, weighted([7, 7, 1]), true);
        // By keys alone, whatever the state of the rotation.
        assert_eq!(picks(&pool, now), picks(&fresh, now));
    }
}

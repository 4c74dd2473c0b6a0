use super::*;
use crate::plan::{HashKey, TimeOf};
use proptest::prelude::*;
use std::net::IpAddr;

/// Candidates for which a rule holds, with the sessions given.
struct Now<F: Fn(usize) -> bool>(F, Vec<u64>);

impl<F: Fn(usize) -> bool> Candidates for Now<F> {
    fn share(&self, i: usize) -> u32 {
        if (self.0)(i) { FULL } else { 0 }
    }
    fn connections(&self, i: usize) -> u64 {
        self.1.get(i).copied().unwrap_or_default()
    }
    fn time(&self, i: usize) -> f64 {
        (i % 3) as f64
    }
}

pub(super) fn these(rule: impl Fn(usize) -> bool) -> impl Candidates {
    Now(rule, Vec::new())
}

/// Candidates with the share, the sessions and the time given for each.
pub(super) struct Each(pub(super) Vec<(u32, u64, f64)>);

impl Candidates for Each {
    fn share(&self, i: usize) -> u32 {
        self.0[i].0
    }
    fn connections(&self, i: usize) -> u64 {
        self.0[i].1
    }
    fn time(&self, i: usize) -> f64 {
        self.0[i].2
    }
}

/// The candidates that are picked, one after the other, while nothing changes.
pub(super) fn picks(
    balance: &Balance,
    weights: &[u32],
    now: Vec<(u32, u64, f64)>,
    times: usize,
) -> Vec<Option<usize>> {
    let mut balancer = balancer(balance, weights, &[]);
    let now = Each(now);
    let mut pick = || balancer.pick(&mut LookupState::Free, &now, || 0);
    (0..times).map(|_| pick().map(|p| p.candidate)).collect()
}

/// One that starts slowly, with a share of its own.
struct Starting(usize, u32);

impl Candidates for Starting {
    fn share(&self, i: usize) -> u32 {
        if i == self.0 { self.1 } else { FULL }
    }
    fn connections(&self, _: usize) -> u64 {
        0
    }
    fn time(&self, _: usize) -> f64 {
        1.0
    }
}

fn key() -> HashKey {
    HashKey::default()
}

fn every_policy() -> Vec<Balance> {
    vec![
        Balance::RoundRobin,
        Balance::LeastConn,
        Balance::RandomTwo,
        Balance::LeastTime(TimeOf::Connect),
        Balance::First,
        Balance::Hash(key()),
        Balance::IpHash,
        Balance::ConsistentHash(key(), None),
        Balance::ConsistentHash(key(), Some(125)),
        Balance::Maglev(key(), None),
        Balance::Maglev(key(), Some(125)),
    ]
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("10.0.0.{i}:6379")).collect()
}

fn balancer(balance: &Balance, regular: &[u32], backups: &[u32]) -> Balancer {
    let names = names(regular.len() + backups.len());
    let entry = |(text, &weight): (_, &u32)| -> Entry<'_> {
        let text: &String = text;
        Entry { text, weight }
    };
    let (first, rest) = names.split_at(regular.len());
    let regular: Vec<_> = first.iter().zip(regular).map(entry).collect();
    let backups: Vec<_> = rest.iter().zip(backups).map(entry).collect();
    Balancer::new(balance, &regular, &backups)
}

fn client(ip: impl Into<IpAddr>) -> HashInput {
    HashInput {
        remote_addr: Some(ip.into()),
        ..HashInput::default()
    }
}

/// A small generator: the same numbers at every run.
fn numbers(mut state: u64) -> impl FnMut() -> u64 {
    move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let mixed = (state ^ (state >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed ^ (mixed >> 33)
    }
}

#[test]
fn backups_serve_only_when_no_primary_can() {
    for balance in every_policy() {
        let mut b = balancer(&balance, &[1, 1], &[1]);
        let mut random = numbers(1);
        let mut pick = |rule: &dyn Fn(usize) -> bool| {
            let mut lookup = LookupState::new(&balance, &client([192, 0, 2, 1]));
            let picked = b.pick(&mut lookup, &these(rule), &mut random);
            picked.map(|p| p.candidate)
        };
        assert!(pick(&|_| true) < Some(2), "{balance:?}");
        assert_eq!(pick(&|i| i != 0), Some(1), "{balance:?}");
        assert_eq!(pick(&|i| i != 1), Some(0), "{balance:?}");
        assert_eq!(pick(&|i| i == 2), Some(2), "{balance:?}");
        assert_eq!(pick(&|_| false), None, "{balance:?}");
    }
}

#[test]
fn a_single_backend_is_picked_whatever_the_policy() {
    for balance in every_policy() {
        let mut b = balancer(&balance, &[1], &[]);
        assert!(b.is_single());
        let mut lookup = LookupState::new(&balance, &client([192, 0, 2, 1]));
        let picked = b.pick(&mut lookup, &these(|_| true), || 0);
        let why = Why::Only;
        assert_eq!(picked, Some(Pick { candidate: 0, why }), "{balance:?}");
    }
}

#[test]
fn first_fills_the_first_that_can_take() {
    let mut b = balancer(&Balance::First, &[0, 1, 5], &[]);
    let mut pick = |rule: &dyn Fn(usize) -> bool| {
        let picked = b.pick(&mut LookupState::Free, &these(rule), || 0);
        picked.map(|p| p.candidate)
    };
    for _ in 0..3 {
        assert_eq!(pick(&|_| true), Some(1));
    }
    assert_eq!(pick(&|i| i != 1), Some(2));
}

#[test]
fn random_two_follows_weight_and_load() {
    let mut random = numbers(7);
    let mut b = balancer(&Balance::RandomTwo, &[1, 1, 1, 1], &[]);
    // The one with most sessions is never picked: any other that is drawn has fewer.
    let loaded = Now(|_| true, vec![9, 1, 1, 1]);
    for _ in 0..1000 {
        let picked = b.pick(&mut LookupState::Free, &loaded, &mut random);
        assert_ne!(picked.map(|p| p.candidate), Some(0));
    }
    // Sessions that stay: each backend ends with its share of the weight.
    let weights = [1u32, 2, 5];
    let mut b = balancer(&Balance::RandomTwo, &weights, &[]);
    let mut sessions = vec![0u64; 3];
    for _ in 0..8000 {
        let now = Now(|_| true, sessions.clone());
        let picked = b.pick(&mut LookupState::Free, &now, &mut random);
        sessions[picked.expect("a candidate").candidate] += 1;
    }
    for (got, weight) in sessions.iter().zip(weights) {
        let wanted = 1000 * u64::from(weight);
        assert!(got.abs_diff(wanted) <= wanted / 20, "{sessions:?}");
    }
}

/// An empty key selects no candidate: the pick is made in rotation.
#[test]
fn an_empty_key_picks_in_rotation() {
    let empty = || HashKey(vec![]);
    for balance in [
        Balance::Hash(empty()),
        Balance::ConsistentHash(empty(), None),
        Balance::Maglev(empty(), None),
    ] {
        let mut b = balancer(&balance, &[1, 1, 1], &[]);
        let picks: Vec<_> = (0..6)
            .map(|_| {
                let mut lookup = LookupState::new(&balance, &client([192, 0, 2, 1]));
                let picked = b.pick(&mut lookup, &these(|_| true), || 0);
                picked.map(|p| p.candidate)
            })
            .collect();
        let expected = [0, 1, 2, 0, 1, 2].map(Some);
        assert_eq!(picks, expected, "{balance:?}");
    }
}

/// At a quarter of its weight a backend takes a quarter of what it takes otherwise, whatever the
/// policy; and of the keys it takes at a quarter it gives none back at a half.
#[test]
fn slow_start_scales_every_policy() {
    for balance in every_policy() {
        let mut random = numbers(3);
        let mut takes = |share: u32| -> Vec<bool> {
            let mut b = balancer(&balance, &[1, 1], &[]);
            (0..4000u32)
                .map(|n| {
                    // Every client from a network of its own, for ip_hash.
                    let [_, x, y, z] = n.wrapping_mul(0x9e37_79b1).to_be_bytes();
                    let mut lookup = LookupState::new(&balance, &client([x, y, z, 1]));
                    let now = Starting(0, share);
                    let picked = b.pick(&mut lookup, &now, &mut random);
                    picked.expect("a candidate").candidate == 0
                })
                .collect()
        };
        let count = |takes: &[bool]| takes.iter().filter(|t| **t).count() as f64;
        let (quarter, half, full) = (takes(FULL / 4), takes(FULL / 2), takes(FULL));
        let rotates = matches!(
            balance,
            Balance::RoundRobin | Balance::LeastConn | Balance::LeastTime(_) | Balance::RandomTwo
        );
        // In rotation, its part of the sum of the weights; by key or in order, of what would be its
        // own.
        let wanted = |share: f64| match rotates {
            true => 4000.0 * share / (1.0 + share),
            false => count(&full) * share,
        };
        for (got, share) in [(&quarter, 0.25), (&half, 0.5)] {
            let (got, wanted) = (count(got), wanted(share));
            assert!(
                (got - wanted).abs() < 120.0,
                "{balance:?}: {got}, not {wanted}"
            );
        }
        if balance.hash_key().is_some() {
            let given_back = quarter.iter().zip(&half).filter(|(q, h)| **q && !**h);
            assert_eq!(given_back.count(), 0, "{balance:?}");
        }
    }
}

/// Sessions that stay never pile up beyond the bound, and keys come home where there is capacity.
#[test]
fn bounded_load_bounds() {
    for balance in [
        Balance::ConsistentHash(key(), Some(110)),
        Balance::Maglev(key(), Some(110)),
    ] {
        let weights = [1u32, 2, 1];
        let mut b = balancer(&balance, &weights, &[]);
        let mut sessions = vec![0u64; 3];
        for n in 0..400u64 {
            // Four clients, each a hundred times: without a bound they would sit on at most four
            // backends' shares.
            let mut lookup = LookupState::new(&balance, &client([192, 0, 2, (n % 4) as u8]));
            let now = Now(|_| true, sessions.clone());
            let picked = b.pick(&mut lookup, &now, || 0).expect("a candidate");
            assert!(!matches!(picked.why, Why::RotationInsteadOfKey));
            sessions[picked.candidate] += 1;
            let capacity = ((n + 1) * 110).div_ceil(100);
            for (held, weight) in sessions.iter().zip(weights) {
                let most = (capacity * u64::from(weight)).div_ceil(4).max(1);
                assert!(*held <= most, "{held} of {most} after {n}: {balance:?}");
            }
        }
        // One client alone, whose sessions end at once, always comes home.
        let mut home = || {
            let mut lookup = LookupState::new(&balance, &client([192, 0, 2, 9]));
            let picked = b.pick(&mut lookup, &these(|_| true), || 0);
            picked.map(|p| p.candidate)
        };
        let first = home();
        assert!((0..20).all(|_| home() == first));
    }
}

/// One holds nearly all slots and points, and cannot be picked, or is full: no search passes all
/// of them.
#[test]
fn the_heaviest_away_does_not_move_other_keys() {
    for (balance, sessions) in [
        (Balance::Maglev(key(), None), 0),
        (Balance::Maglev(key(), Some(125)), 0),
        (Balance::ConsistentHash(key(), Some(125)), 0),
        (Balance::Maglev(key(), Some(125)), 1_000_000),
    ] {
        let mut b = balancer(&balance, &[60_000, 1, 1], &[]);
        let mut pick = |n: u8, up: &dyn Fn(usize) -> bool| {
            let mut lookup = LookupState::new(&balance, &client([192, 0, 2, n]));
            let picked = b.pick(&mut lookup, &Now(up, vec![sessions, 0, 0]), || 0);
            picked.expect("a candidate")
        };
        let without = |i: usize| i != 0;
        let firsts: Vec<_> = (0..100).map(|n| pick(n, &without).candidate).collect();
        let again: Vec<_> = (0..100).map(|n| pick(n, &without).candidate).collect();
        assert_eq!(firsts, again, "{balance:?}");
        let on_one = firsts.iter().filter(|c| **c == 1).count();
        assert!((30..70).contains(&on_one), "{on_one} of 100: {balance:?}");
        assert!((0..100).any(|n| matches!(pick(n, &without).why, Why::KeyAmongTheRest { .. })));
    }
}

proptest! {
    /// Whatever the policy, the weights, the key, the load and the failures: a pick is eligible,
    /// and where a candidate is eligible one is picked, backups last.
    #[test]
    fn picks_are_eligible_and_never_missed(
        weights in proptest::collection::vec(0u32..6, 1..12),
        backups in proptest::collection::vec(0u32..6, 0..4),
        keys in proptest::collection::vec(any::<[u8; 4]>(), 1..40),
        sessions in proptest::collection::vec(0u64..9, 16),
        mask in any::<u32>(),
        policy in any::<proptest::sample::Index>(),
    ) {
        let balance = policy.get(&every_policy()).clone();
        let all: Vec<u32> = weights.iter().chain(&backups).copied().collect();
        let up = |i: usize| mask >> (i % 32) & 1 == 1;
        let now = Now(up, sessions);
        let mut balancer = balancer(&balance, &weights, &backups);
        let mut random = numbers(u64::from(mask));
        for key in keys {
            let mut lookup = LookupState::new(&balance, &client(key));
            let picked = balancer.pick(&mut lookup, &now, &mut random);
            let possible = (0..all.len()).any(|i| up(i) && all[i] > 0);
            prop_assert_eq!(picked.is_some(), possible);
            if let Some(Pick { candidate, .. }) = picked {
                prop_assert!(up(candidate) && all[candidate] > 0);
                let primary_possible = (0..weights.len()).any(|i| up(i) && all[i] > 0);
                prop_assert_eq!(candidate < weights.len(), primary_possible);
            }
        }
    }
}

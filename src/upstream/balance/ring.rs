//! The consistent-hash ring, point for point that of nginx's `hash … consistent`.
//!
//! A fleet can be migrated one machine at a time, or run mixed permanently: while the address texts
//! and weights are the same, each client stays on its backend.
//! `tests/integration/hash_nginx.rs` holds this against a running nginx; the vectors below were
//! taken from one.

use super::{
    Candidates, Entry, KeyLookup, MOST_TRIES, Pick, RoundRobin, Why, bound::Capacity,
    share_for_key, weights::Weights,
};
use crate::upstream::balance::by_address::Named;
use crc32fast::Hasher;
use xxhash_rust::xxh3::xxh3_64_with_seed;

const POINTS_PER_WEIGHT: u32 = 160;
/// After so many points in a row without capacity the key is assigned to one of all candidates that
/// have some.
const MOST_STEPS: u32 = 1000;

#[derive(Debug)]
pub(super) struct Ring {
    /// Sorted by hash; of equal hashes the first configured is kept.
    points: Vec<Point>,
    named: Named,
    /// A hash of the points that several names wanted, and of which got them; 0: there is none.
    ties: u64,
}

#[derive(Debug, Clone, Copy)]
struct Point {
    hash: u32,
    name: u32,
}

impl Ring {
    /// In the order of the config.
    pub(super) fn new(regular: &[Entry<'_>]) -> Self {
        let (named, names) = Named::new(regular);
        let mut points: Vec<Point> = names
            .iter()
            .zip(0..)
            .flat_map(|(entry, name)| {
                hashes(entry.text, entry.weight).map(move |hash| Point { hash, name })
            })
            .collect();
        // The sort is stable: of equal hashes the first configured comes first and is kept.
        points.sort_by_key(|p| p.hash);
        let mut ties = 0;
        points.dedup_by(|point, kept| {
            let is_tie = point.hash == kept.hash && point.name != kept.name;
            if is_tie {
                let winner = names[kept.name as usize].text;
                ties = xxh3_64_with_seed(winner.as_bytes(), ties ^ u64::from(kept.hash));
            }
            point.hash == kept.hash
        });
        Self {
            points,
            named,
            ties,
        }
    }

    /// What the order of the configuration has decided.
    pub(super) fn ties(&self) -> u64 {
        self.ties
    }

    /// The backend at the session's point or, where that one cannot be used, at one of the next.
    /// `None` when the key is empty or after too many steps: the caller then picks in rotation.
    pub(super) fn pick(
        &self,
        lookup: &mut KeyLookup<u32>,
        weights: &Weights,
        rotation: &mut RoundRobin,
        candidates: &impl Candidates,
        capacity: Option<&Capacity<'_>>,
    ) -> Option<Pick> {
        let hash = lookup.hash?;
        if self.points.is_empty() {
            return None;
        }
        // With bounded load, which nginx does not have, there is a better fallback than rotation,
        // so it can come later.
        let most = match capacity {
            None => MOST_TRIES,
            Some(_) => lookup.steps + MOST_STEPS,
        };
        let start = self.points.partition_point(|p| p.hash < hash);
        while lookup.steps <= most {
            let point = self.points[(start + lookup.steps as usize) % self.points.len()];
            let share = |i| share_for_key(candidates, i, u64::from(hash), capacity);
            let named = self.named.of(point.name as usize);
            if let Some(candidate) = rotation.pick(named.iter().copied(), share) {
                return Some(Pick {
                    candidate,
                    why: Why::Point {
                        key: hash,
                        point: point.hash,
                        steps: lookup.steps,
                    },
                });
            }
            lookup.steps += 1;
        }
        capacity?;
        let share = |i| share_for_key(candidates, i, u64::from(hash), capacity);
        let spread = u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
        Some(Pick {
            candidate: weights.by_hash(spread, share)?,
            why: Why::KeyAmongTheRest { tries: MOST_STEPS },
        })
    }
}

/// The hashes of one address text: a chain in which each is seeded with the one before.
fn hashes(text: &str, weight: u32) -> impl Iterator<Item = u32> {
    let (host, port) = split(text);
    let mut seed = Hasher::new();
    seed.update(host.as_bytes());
    seed.update(&[0]);
    seed.update(port.as_bytes());
    let mut previous = 0u32;
    (0..u64::from(POINTS_PER_WEIGHT) * u64::from(weight)).map(move |_| {
        let mut hasher = seed.clone();
        hasher.update(&previous.to_le_bytes());
        previous = hasher.finalize();
        previous
    })
}

/// Host and port as the ring hashes them; the brackets of an IPv6 address stay with the host.
fn split(text: &str) -> (&str, &str) {
    if text.len() >= 5 && text.as_bytes()[..5].eq_ignore_ascii_case(b"unix:") {
        return (&text[5..], "");
    }
    let host = text.trim_end_matches(|c: char| c.is_ascii_digit());
    match host.strip_suffix(':') {
        Some(bare) => (bare, &text[host.len()..]),
        None => (text, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::these;
    use super::*;
    use proptest::prelude::*;

    const BACKENDS: [Entry<'_>; 3] = [
        Entry {
            text: "10.0.0.1:6379",
            weight: 1,
        },
        Entry {
            text: "10.0.0.2:6379",
            weight: 1,
        },
        Entry {
            text: "10.0.0.3:6379",
            weight: 2,
        },
    ];

    fn rotation(entries: &[Entry<'_>]) -> RoundRobin {
        RoundRobin::new(entries.iter().map(|e| e.weight))
    }

    fn pick_with(lookup: &mut KeyLookup<u32>, eligible: impl Fn(usize) -> bool) -> Option<usize> {
        let picked = Ring::new(&BACKENDS).pick(
            lookup,
            &Weights::new(0, &BACKENDS),
            &mut rotation(&BACKENDS),
            &these(eligible),
            None,
        );
        picked.map(|p| p.candidate)
    }

    fn pick(key: &str, eligible: impl Fn(usize) -> bool) -> Option<usize> {
        pick_with(&mut KeyLookup::ring(key.as_bytes()), eligible)
    }

    /// Taken from nginx 1.22.1 with `hash $remote_addr consistent` and these three servers.
    #[test]
    fn points_are_those_of_nginx() {
        let first: Vec<u32> = hashes("10.0.0.1:6379", 1).take(3).collect();
        assert_eq!(first, [0x29ce_8284, 0xbe8f_0eaa, 0x9144_4ce0]);
        let third: Vec<u32> = hashes("10.0.0.3:6379", 2).take(2).collect();
        assert_eq!(third, [0x2d3b_52b9, 0x5b14_1a3a]);
        let ring = Ring::new(&BACKENDS);
        assert_eq!(ring.points.len(), 640);
        let (low, high) = (ring.points[0], ring.points[639]);
        assert_eq!((low.hash, low.name), (0x0002_bbf9, 2));
        assert_eq!((high.hash, high.name), (0xff81_fd01, 1));
    }

    #[test]
    fn picks_are_those_of_nginx() {
        for (key, backend) in [
            ("192.0.2.1", 2),
            ("192.0.2.2", 0),
            ("192.0.2.3", 1),
            ("192.0.2.77", 1),
            ("198.51.100.200", 2),
            ("203.0.113.9", 2),
            ("2001:db8::1", 1),
        ] {
            assert_eq!(pick(key, |_| true), Some(backend), "{key}");
        }
        for key in ["192.0.2.1", "198.51.100.200", "203.0.113.9"] {
            assert_eq!(pick(key, |i| i != 2), Some(0), "{key} without the third");
        }
    }

    #[test]
    fn a_second_pick_goes_on_from_where_the_first_ended() {
        let mut lookup = KeyLookup::ring(b"192.0.2.1");
        assert_eq!(pick_with(&mut lookup, |_| true), Some(2));
        assert_eq!(pick_with(&mut lookup, |i| i != 2), Some(0));
        assert_eq!(pick_with(&mut lookup, |i| i == 1), Some(1));
    }

    #[test]
    fn after_twenty_steps_the_rotation_decides() {
        let mut lookup = KeyLookup::ring(b"192.0.2.1");
        assert_eq!(pick_with(&mut lookup, |_| false), None);
        assert_eq!(lookup.steps, 21);
    }

    #[test]
    fn one_name_with_two_addresses_shares_its_points() {
        let entries = ["db:1", "db:1", "other:1"].map(|text| Entry { text, weight: 1 });
        let ring = Ring::new(&entries);
        assert_eq!(ring.points.len(), 320);
        let (mut rotation, weights) = (rotation(&entries), Weights::new(0, &entries));
        let mut seen = [0u32; 3];
        for n in 0..200u32 {
            let mut lookup = KeyLookup::ring(&n.to_le_bytes());
            let picked = ring.pick(&mut lookup, &weights, &mut rotation, &these(|_| true), None);
            seen[picked.expect("all up").candidate] += 1;
        }
        assert!(seen[0].abs_diff(seen[1]) <= 1, "{seen:?}");
    }

    #[test]
    fn texts_are_split_as_nginx_does() {
        assert_eq!(split("10.0.0.1:6379"), ("10.0.0.1", "6379"));
        assert_eq!(split("[::1]:6379"), ("[::1]", "6379"));
        assert_eq!(split("db.example"), ("db.example", ""));
        assert_eq!(split("host9"), ("host9", ""));
        assert_eq!(split("UNIX:/run/a:5"), ("/run/a:5", ""));
        assert_eq!(split("a:"), ("a", ""));
    }

    proptest! {
        /// What a consistent hash is for: without one backend only its own keys move, and they go
        /// where they would go had it never been there.
        #[test]
        fn only_the_keys_of_a_lost_backend_move(
            weights in proptest::collection::vec(1u32..5, 2..8),
            lost in any::<proptest::sample::Index>(),
            keys in proptest::collection::vec(any::<u64>(), 10),
        ) {
            let lost = lost.index(weights.len());
            let names = (0..weights.len()).map(|i| format!("10.1.{i}.7:5432"));
            let names: Vec<String> = names.collect();
            let all: Vec<_> = names.iter().zip(&weights)
                .map(|(text, &weight)| Entry { text, weight })
                .collect();
            let others: Vec<_> = all.iter().enumerate()
                .filter(|(i, _)| *i != lost)
                .map(|(_, e)| *e)
                .collect();
            let pick = |entries: &[Entry<'_>], key: u64, eligible: &dyn Fn(usize) -> bool| {
                let mut lookup = KeyLookup::ring(&key.to_le_bytes());
                let ring = Ring::new(entries);
                let weights = Weights::new(0, entries);
                let rotation = &mut rotation(entries);
                let picked = ring.pick(&mut lookup, &weights, rotation, &these(eligible), None)?;
                Some(entries[picked.candidate].text.to_owned())
            };
            for key in keys {
                let before = pick(&all, key, &|_| true);
                let failed = pick(&all, key, &|i| i != lost);
                prop_assert_eq!(before.as_ref() == Some(&names[lost]), before != failed);
                // A lookup past more than twenty points of the lost one gives up: the pick is
                // then made in rotation.
                if failed.is_some() {
                    prop_assert_eq!(failed, pick(&others, key, &|_| true));
                }
            }
        }
    }
}

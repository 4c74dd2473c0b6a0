//! The consistent-hash ring, point for point that of nginx's `hash … consistent`.
//!
//! A fleet may be moved over one machine at a time, or run mixed for good: as long as the address
//! texts and weights are the same, each client stays on its backend. `tests/hash_nginx.rs` holds
//! this against a running nginx; the vectors below were taken from one.

use super::{Candidates, MOST_TRIES, RoundRobin};
use crc32fast::Hasher;

const POINTS_PER_WEIGHT: u32 = 160;

#[derive(Debug)]
pub struct Ring {
    /// Sorted by hash; of equal hashes the first configured is kept.
    points: Vec<Point>,
    /// For each address text, the candidates that carry it: one host name may be several addresses.
    named: Vec<Vec<usize>>,
}

#[derive(Debug, Clone, Copy)]
struct Point {
    hash: u32,
    name: u32,
}

/// Where a session stands on the ring.
#[derive(Debug, Clone, Copy)]
pub struct RingWalk {
    /// `None`: the key was empty, turns decide.
    hash: Option<u32>,
    /// Steps taken from the session's own point without finding anybody.
    steps: u32,
}

impl RingWalk {
    pub fn from_key(key: &[u8]) -> Self {
        Self {
            hash: (!key.is_empty()).then(|| crc32fast::hash(key)),
            steps: 0,
        }
    }
}

impl Ring {
    /// `candidates`: number, address text and weight, in the order of the config.
    pub fn new<'a>(candidates: impl IntoIterator<Item = (usize, &'a str, u32)>) -> Self {
        let mut names: Vec<&str> = Vec::new();
        let mut named: Vec<Vec<usize>> = Vec::new();
        let mut points = Vec::new();
        for (candidate, text, weight) in candidates {
            if let Some(known) = names.iter().position(|n| *n == text) {
                named[known].push(candidate);
                continue;
            }
            let name = u32::try_from(names.len()).unwrap_or(u32::MAX);
            names.push(text);
            named.push(vec![candidate]);
            points.extend(hashes(text, weight).map(|hash| Point { hash, name }));
        }
        // The sort is stable: of equal hashes the first configured comes first and is kept.
        points.sort_by_key(|p| p.hash);
        points.dedup_by_key(|p| p.hash);
        Self { points, named }
    }

    /// The backend at the session's point or, where that one cannot be used, at one of the next.
    /// `None` when the key is empty or the walk has become too long: the caller lets turns decide.
    pub fn pick(
        &self,
        walk: &mut RingWalk,
        turns: &mut RoundRobin,
        candidates: &impl Candidates,
    ) -> Option<usize> {
        let hash = walk.hash?;
        if self.points.is_empty() {
            return None;
        }
        let start = self.points.partition_point(|p| p.hash < hash);
        while walk.steps <= MOST_TRIES {
            let point = self.points[(start + walk.steps as usize) % self.points.len()];
            let named = self.named[point.name as usize].iter().copied();
            if let Some(found) = turns.pick(named, |i| candidates.eligible(i)) {
                return Some(found);
            }
            walk.steps += 1;
        }
        None
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
    use super::*;
    use proptest::prelude::*;

    struct Those<F: Fn(usize) -> bool>(F);

    impl<F: Fn(usize) -> bool> Candidates for Those<F> {
        fn eligible(&self, i: usize) -> bool {
            (self.0)(i)
        }
        fn connections(&self, _: usize) -> u64 {
            0
        }
    }

    const BACKENDS: [(usize, &str, u32); 3] = [
        (0, "10.0.0.1:6379", 1),
        (1, "10.0.0.2:6379", 1),
        (2, "10.0.0.3:6379", 2),
    ];

    fn pick(key: &str, eligible: impl Fn(usize) -> bool) -> Option<usize> {
        let ring = Ring::new(BACKENDS);
        let mut turns = RoundRobin::new(BACKENDS.map(|(_, _, w)| w));
        ring.pick(
            &mut RingWalk::from_key(key.as_bytes()),
            &mut turns,
            &Those(eligible),
        )
    }

    /// Taken from nginx 1.22.1 with `hash $remote_addr consistent` and these three servers.
    #[test]
    fn points_are_those_of_nginx() {
        let first: Vec<u32> = hashes("10.0.0.1:6379", 1).take(3).collect();
        assert_eq!(first, [0x29ce_8284, 0xbe8f_0eaa, 0x9144_4ce0]);
        let third: Vec<u32> = hashes("10.0.0.3:6379", 2).take(2).collect();
        assert_eq!(third, [0x2d3b_52b9, 0x5b14_1a3a]);
        let ring = Ring::new(BACKENDS);
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
        let ring = Ring::new(BACKENDS);
        let mut turns = RoundRobin::new([1, 1, 2]);
        let mut walk = RingWalk::from_key(b"192.0.2.1");
        assert_eq!(ring.pick(&mut walk, &mut turns, &Those(|_| true)), Some(2));
        assert_eq!(
            ring.pick(&mut walk, &mut turns, &Those(|i| i != 2)),
            Some(0)
        );
        assert_eq!(
            ring.pick(&mut walk, &mut turns, &Those(|i| i == 1)),
            Some(1)
        );
    }

    #[test]
    fn after_twenty_steps_turns_decide() {
        let mut walk = RingWalk::from_key(b"192.0.2.1");
        let mut turns = RoundRobin::new([1, 1, 2]);
        assert_eq!(
            Ring::new(BACKENDS).pick(&mut walk, &mut turns, &Those(|_| false)),
            None
        );
        assert_eq!(walk.steps, 21);
    }

    #[test]
    fn one_name_with_two_addresses_shares_its_points() {
        let ring = Ring::new([(0, "db:1", 1), (1, "db:1", 1), (2, "other:1", 1)]);
        assert_eq!(ring.points.len(), 320);
        let mut turns = RoundRobin::new([1, 1, 1]);
        let mut seen = [0u32; 3];
        for n in 0..200u32 {
            let mut walk = RingWalk::from_key(&n.to_le_bytes());
            seen[ring
                .pick(&mut walk, &mut turns, &Those(|_| true))
                .expect("all up")] += 1;
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
        /// What a consistent hash is for: without one backend only its own keys move, and they go where
        /// they would go had it never been there.
        #[test]
        fn only_the_keys_of_a_lost_backend_move(
            weights in proptest::collection::vec(1u32..5, 2..8),
            lost in any::<proptest::sample::Index>(),
            keys in proptest::collection::vec(any::<u64>(), 50),
        ) {
            let lost = lost.index(weights.len());
            let names: Vec<String> = (0..weights.len()).map(|i| format!("10.1.{i}.7:5432")).collect();
            let all = || weights.iter().enumerate().map(|(i, &w)| (i, names[i].as_str(), w));
            let (whole, without) = (Ring::new(all()), Ring::new(all().filter(|(i, ..)| *i != lost)));
            let pick = |ring: &Ring, key: u64, eligible: &dyn Fn(usize) -> bool| {
                let mut turns = RoundRobin::new(weights.iter().copied());
                ring.pick(&mut RingWalk::from_key(&key.to_le_bytes()), &mut turns, &Those(eligible))
            };
            for key in keys {
                let before = pick(&whole, key, &|_| true);
                let failed = pick(&whole, key, &|i| i != lost);
                prop_assert_eq!(before == Some(lost), before != failed);
                // A walk past more than twenty points of the lost one gives up: turns decide then.
                if failed.is_some() {
                    prop_assert_eq!(failed, pick(&without, key, &|_| true));
                }
            }
        }
    }
}

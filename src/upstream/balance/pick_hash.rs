//! A hash of all that picks by key depend on: equal on two machines where their picks are.

use super::MOST_TRIES;
use crate::plan::{Balance, HashKey, KeyPart};
use std::fmt::Write as _;
use xxhash_rust::xxh3::xxh3_64;

/// A backend, or one of its addresses, as far as picks depend on it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PickTarget {
    /// As configured.
    pub text: String,
    /// Where its sessions go; empty where that does not count.
    pub addr: String,
    pub weight: u32,
    pub readiness: Readiness,
}

/// Whether sessions can come to it, apart from how many it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Readiness {
    Away,
    /// It starts slowly: a part of its keys comes to it, which grows by the clock of its node.
    Starting,
    Ready,
}

/// Everything that can be picked, in the order of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Targets {
    pub regular: Vec<PickTarget>,
    pub backups: Vec<PickTarget>,
    /// [`super::Balancer::ties`].
    pub ties: u64,
}

impl Targets {
    pub fn add(&mut self, is_backup: bool, target: PickTarget) {
        match is_backup {
            true => self.backups.push(target),
            false => self.regular.push(target),
        }
    }

    /// The hash where every state of the targets may come, as 16 hexadecimal digits: equal where
    /// picks are, while the same targets are ready.
    pub fn ring_hash(&self, balance: &Balance) -> String {
        let mut text = policy(balance, self.ties);
        write_targets(&mut text, "regular", &in_order(balance, &self.regular));
        // They are used in rotation.
        write_targets(&mut text, "backup", &usable(&self.backups));
        hash(&text)
    }

    /// The hash with what is ready now: equal where picks are now.
    pub fn effective_hash(&self, balance: &Balance) -> String {
        let regular = usable(&self.regular);
        let mut text = String::new();
        match regular.as_slice() {
            // Whatever the policy and the key are.
            [only] => write_targets(&mut text, "only", &[only]),
            [] => write_targets(&mut text, "backup", &usable(&self.backups)),
            _ => {
                text = policy(balance, self.ties);
                write_targets(&mut text, "regular", &in_order(balance, &self.regular));
            }
        }
        hash(&text)
    }
}

fn hash(text: &str) -> String {
    format!("{:016x}", xxh3_64(text.as_bytes()))
}

/// Those that take part, as the policy sees them.
fn in_order<'a>(balance: &Balance, targets: &'a [PickTarget]) -> Vec<&'a PickTarget> {
    let mut targets: Vec<&PickTarget> = match balance {
        // A point of one that is away leads on to the next, as if there were none.
        Balance::ConsistentHash(..) => usable(targets),
        // It keeps its slots, or its share of the hashes.
        _ => targets.iter().filter(|target| target.weight > 0).collect(),
    };
    match balance {
        // Their order decides nothing but ties.
        Balance::ConsistentHash(..) | Balance::Maglev(..) => targets.sort(),
        _ => {}
    }
    targets
}

fn usable(targets: &[PickTarget]) -> Vec<&PickTarget> {
    let is_usable = |t: &&PickTarget| t.weight > 0 && t.readiness != Readiness::Away;
    targets.iter().filter(is_usable).collect()
}

/// The policy, its key and its limits.
fn policy(balance: &Balance, ties: u64) -> String {
    let mut text = balance.word().to_owned();
    let bound = match balance {
        Balance::ConsistentHash(_, bound) | Balance::Maglev(_, bound) => *bound,
        _ => None,
    };
    // Writing to a String does not fail.
    let _ = write!(
        text,
        " tries={MOST_TRIES} bound={bound:?} ties={ties:x} key="
    );
    if let Some(HashKey(parts)) = balance.hash_key() {
        for part in parts {
            let _ = match part {
                KeyPart::Text(part) => write!(text, "{part:?}"),
                KeyPart::Variable(variable) => write!(text, "${}", variable.word()),
            };
        }
    }
    text
}

/// Quoted, so that no text can end early.
fn write_targets(text: &mut String, group: &str, targets: &[&PickTarget]) {
    for PickTarget {
        text: name,
        addr,
        weight,
        readiness,
    } in targets
    {
        let (addr, state) = match readiness {
            // Where it is does not matter.
            Readiness::Away => ("", "away"),
            Readiness::Starting => (addr.as_str(), "starting"),
            Readiness::Ready => (addr.as_str(), "ready"),
        };
        let _ = write!(
            text,
            "\n{group} {name:?} at {addr:?} weight={weight} {state}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Balancer, Candidates, Entry, FULL, HashInput, LookupState, ring};
    use super::*;
    use proptest::prelude::*;
    use std::net::{IpAddr, Ipv4Addr};

    fn target(text: &str, weight: u32, readiness: Readiness) -> PickTarget {
        PickTarget {
            text: text.to_owned(),
            addr: text.to_owned(),
            weight,
            readiness,
        }
    }

    /// A node: its policy and what it knows of its backends.
    #[derive(Debug, Clone)]
    struct Node {
        balance: Balance,
        targets: Vec<(u8, u32, bool)>,
    }

    struct States<'a>(&'a [PickTarget]);

    impl Candidates for States<'_> {
        fn share(&self, i: usize) -> u32 {
            match self.0[i].readiness {
                Readiness::Ready => FULL,
                Readiness::Starting | Readiness::Away => 0,
            }
        }
        fn connections(&self, _: usize) -> u64 {
            0
        }
        fn time(&self, _: usize) -> f64 {
            0.0
        }
    }

    impl Node {
        fn targets(&self) -> Targets {
            let targets = self.targets.iter().map(|(name, weight, is_up)| {
                let readiness = if *is_up {
                    Readiness::Ready
                } else {
                    Readiness::Away
                };
                target(&format!("10.0.0.{name}:1"), *weight, readiness)
            });
            let regular: Vec<PickTarget> = targets.collect();
            let entries: Vec<Entry<'_>> = regular.iter().map(entry).collect();
            Targets {
                ties: Balancer::new(&self.balance, &entries, &[]).ties(),
                regular,
                backups: Vec::new(),
            }
        }

        /// The backend of each of many clients.
        fn picks(&self) -> Vec<Option<String>> {
            let targets = self.targets().regular;
            let entries: Vec<Entry<'_>> = targets.iter().map(entry).collect();
            let mut balancer = Balancer::new(&self.balance, &entries, &[]);
            let clients = (0..400u32).map(|n| Ipv4Addr::from(n.wrapping_mul(0x9e37_79b9)));
            let picks = clients.map(|client| {
                let input = HashInput {
                    remote_addr: Some(IpAddr::V4(client)),
                    remote_port: Some(1),
                    ..HashInput::default()
                };
                let mut lookup = LookupState::new(&self.balance, &input);
                let picked = balancer.pick(&mut lookup, &States(&targets), || 0)?;
                Some(targets[picked.candidate].text.clone())
            });
            picks.collect()
        }
    }

    fn entry(target: &PickTarget) -> Entry<'_> {
        Entry {
            text: &target.text,
            weight: target.weight,
        }
    }

    fn nodes() -> impl Strategy<Value = Node> {
        let key = |variable| HashKey(vec![KeyPart::Variable(variable)]);
        let addr = key(crate::plan::Variable::RemoteAddr);
        let binary = key(crate::plan::Variable::BinaryRemoteAddr);
        let balance = prop_oneof![
            Just(Balance::ConsistentHash(addr.clone(), None)),
            Just(Balance::ConsistentHash(binary, None)),
            Just(Balance::Maglev(addr.clone(), None)),
            Just(Balance::Hash(addr)),
            Just(Balance::IpHash),
        ];
        let up = prop_oneof![4 => Just(true), 1 => Just(false)];
        // Few enough for two nodes to be alike now and then.
        let targets = prop::collection::vec((1..4u8, 0..3u32, up), 1..4);
        (balance, targets).prop_map(|(balance, mut targets)| {
            let mut seen = std::collections::HashSet::new();
            targets.retain(|(name, ..)| seen.insert(*name));
            Node { balance, targets }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(150))]

        #[test]
        fn picks_agree_where_the_hashes_are_equal(a in nodes(), b in nodes()) {
            let (of_a, of_b) = (a.targets(), b.targets());
            let hash = |node: &Node, targets: &Targets| targets.effective_hash(&node.balance);
            if hash(&a, &of_a) == hash(&b, &of_b) {
                prop_assert_eq!(a.picks(), b.picks());
            } else {
                // By chance alone two tables or shares of other weights may agree.
                prop_assert!(a.picks() != b.picks() || is_alike(&of_a, &of_b));
            }
        }
    }

    /// Whether both have the same backends ready, with weights in the same proportion: then picks
    /// of 400 clients may be the same although those of all are not.
    fn is_alike(a: &Targets, b: &Targets) -> bool {
        let texts = |targets: &Targets| {
            let usable = usable(&targets.regular);
            let mut texts: Vec<String> = usable.iter().map(|t| t.text.clone()).collect();
            texts.sort_unstable();
            texts
        };
        texts(a) == texts(b)
    }

    #[test]
    fn what_changes_no_pick_changes_no_hash() {
        use Readiness::{Away, Ready};
        let hashes = |balance: &Balance, regular: Vec<PickTarget>| {
            let targets = Targets {
                regular,
                ..Targets::default()
            };
            (targets.ring_hash(balance), targets.effective_hash(balance))
        };
        let (a, b, c) = (
            target("a:1", 1, Ready),
            target("b:1", 2, Ready),
            target("c:1", 1, Ready),
        );
        let away = target("c:1", 1, Away);
        let none = target("d:1", 0, Ready);
        let ring = Balance::ConsistentHash(HashKey::default(), None);
        let of = |targets: &[&PickTarget]| targets.iter().map(|t| (*t).clone()).collect::<Vec<_>>();
        let whole = hashes(&ring, of(&[&a, &b, &c]));
        assert_eq!(hashes(&ring, of(&[&c, &a, &none, &b])), whole);
        assert_ne!(hashes(&ring, of(&[&a, &b])), whole);
        assert_eq!(
            hashes(&ring, of(&[&a, &b, &away])).1,
            hashes(&ring, of(&[&b, &a])).1
        );
        assert_ne!(
            hashes(&Balance::IpHash, of(&[&a, &b])),
            hashes(&Balance::IpHash, of(&[&b, &a]))
        );
        // The table of Maglev keeps the slots of one that is away.
        let maglev = Balance::Maglev(HashKey::default(), None);
        assert_eq!(
            hashes(&maglev, of(&[&a, &b])),
            hashes(&maglev, of(&[&b, &a]))
        );
        assert_ne!(
            hashes(&maglev, of(&[&a, &b, &away])).1,
            hashes(&maglev, of(&[&b, &a])).1
        );
        let only = hashes(&ring, of(&[&a])).1;
        assert_eq!(hashes(&maglev, of(&[&a, &away])).1, only);
        assert_eq!(whole.0.len(), 16);
    }

    #[test]
    fn backups_count_for_what_is_effective_once_nothing_else_is_ready() {
        let ring = Balance::ConsistentHash(HashKey::default(), None);
        let with = |regular, backups: &[&str]| Targets {
            regular: vec![target("a:1", 1, regular), target("b:1", 1, regular)],
            backups: backups
                .iter()
                .map(|b| target(b, 1, Readiness::Ready))
                .collect(),
            ties: 0,
        };
        let effective = |regular, backups| with(regular, backups).effective_hash(&ring);
        let ready = Readiness::Ready;
        assert_eq!(effective(ready, &["c:1"]), effective(ready, &[]));
        assert_ne!(
            with(ready, &["c:1"]).ring_hash(&ring),
            with(ready, &[]).ring_hash(&ring)
        );
        let away = Readiness::Away;
        assert_ne!(effective(away, &["c:1"]), effective(away, &["d:1"]));
    }

    #[test]
    fn the_order_counts_where_it_decides_a_tie() {
        // Two names of which a point is the same, found by trying.
        let entries = ["b427:1", "b430:1", "b1:1"].map(|text| Entry { text, weight: 1 });
        let ties = |order: &[usize]| {
            let entries: Vec<Entry<'_>> = order.iter().map(|i| entries[*i]).collect();
            ring::Ring::new(&entries).ties()
        };
        assert_ne!(ties(&[0, 1]), 0);
        assert_ne!(ties(&[0, 1]), ties(&[1, 0]));
        assert_eq!(ties(&[0, 1, 2]), ties(&[2, 0, 1]));
        assert_eq!(ties(&[0, 2]), 0);
    }
}

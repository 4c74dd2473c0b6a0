//! Which of several servers that claim to be the primary is believed.
//!
//! There is one primary at a time. Of several claims, the one with a proof of a later promotion is
//! right; without proofs, the one that has lasted longer without a break: a server that was away
//! and comes back may not know what happened meanwhile.

use super::Epoch;
use crate::plan::Addr;
use std::{fmt, time::Instant};

/// A server claims to be the primary.
#[derive(Debug, Clone, Copy)]
pub struct PrimaryClaim<'a> {
    /// Since when it has claimed it without a break; `None`: it does not at this moment.
    pub role_since: Option<Instant>,
    pub epoch: Option<&'a Epoch>,
    /// Where the server was checked, and its own identity, which no other running server has.
    pub addr: &'a Addr,
    pub server: Option<&'a str>,
    /// Whether it can be believed now. The proof of a server that no longer answers still counts.
    pub answers: bool,
}

/// The result for one claim; numbers are positions of claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Believed,
    /// Another one is believed, and either may be right.
    Doubtful {
        believed: usize,
    },
    /// Another one was promoted later, with proof.
    Superseded {
        by: usize,
    },
    /// It does not answer.
    Silent,
}

/// Where nothing else decides, the first claim is believed.
pub fn standings(claims: &[PrimaryClaim<'_>]) -> Vec<Standing> {
    let newer = |one: &PrimaryClaim<'_>, other: &PrimaryClaim<'_>| match (one.epoch, other.epoch) {
        (Some(one), Some(other)) => one.is_newer_than(other) && !other.is_newer_than(one),
        _ => false,
    };
    let servers = number_servers(claims);
    // An earlier claim of the same server is no contradiction.
    let superseded = |i: usize| {
        (0..claims.len()).find(|n| servers[*n] != servers[i] && newer(&claims[*n], &claims[i]))
    };
    let best = claims
        .iter()
        .enumerate()
        .filter(|(i, claim)| claim.answers && superseded(*i).is_none())
        .min_by_key(|(_, claim)| (claim.role_since.is_none(), claim.role_since))
        .map(|(i, _)| i);
    let standing = |(i, claim): (usize, &PrimaryClaim<'_>)| match (superseded(i), best) {
        (Some(by), _) => Standing::Superseded { by },
        _ if !claim.answers => Standing::Silent,
        (None, Some(best)) if servers[i] == servers[best] => Standing::Believed,
        (None, Some(believed)) => Standing::Doubtful { believed },
        (None, None) => Standing::Silent,
    };
    claims.iter().enumerate().map(standing).collect()
}

/// How many different servers make these claims.
pub fn count_servers(claims: &[PrimaryClaim<'_>]) -> usize {
    let servers = number_servers(claims);
    let is_first = |(i, server): (usize, &usize)| i == *server;
    servers
        .iter()
        .enumerate()
        .filter(|one| is_first(*one))
        .count()
}

/// For each claim the first one of the same server. Two claims that are the same as a third are the
/// same: one of two addresses may not have been checked since the server was restarted.
fn number_servers(claims: &[PrimaryClaim<'_>]) -> Vec<usize> {
    let mut servers: Vec<usize> = (0..claims.len()).collect();
    for i in 1..claims.len() {
        for n in 0..i {
            let (one, other) = (servers[n], servers[i]);
            if one != other && is_same(&claims[n], &claims[i]) {
                let (first, last) = (one.min(other), one.max(other));
                for server in servers.iter_mut().filter(|server| **server == last) {
                    *server = first;
                }
            }
        }
    }
    servers
}

/// Whether both are one server, reached in two ways. A Redis that is promoted gives its data a new
/// name, so no two primaries have the same.
fn is_same<'a>(one: &PrimaryClaim<'a>, other: &PrimaryClaim<'a>) -> bool {
    let data = |claim: &PrimaryClaim<'a>| match claim.epoch {
        Some(Epoch::Replication { id, .. }) => Some(id),
        Some(Epoch::Timeline(_)) | None => None,
    };
    let same_data = data(one).is_some() && data(one) == data(other);
    same_data || one.addr == other.addr || one.server.is_some() && one.server == other.server
}

/// How the first epoch supersedes the second, as text.
#[derive(Debug)]
pub struct Supersedes<'a>(pub &'a Epoch, pub &'a Epoch);

impl fmt::Display for Supersedes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0, self.1) {
            (Epoch::Timeline(newer), Epoch::Timeline(older)) => {
                write!(f, "timeline {newer} > {older}")
            }
            _ => f.write_str("promoted from a replica of this one"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Standing::*, *};
    use proptest::prelude::*;
    use std::time::Duration;

    fn redis(id: &str, before: Option<&str>) -> Epoch {
        Epoch::Replication {
            id: id.into(),
            before: before.map(str::to_owned),
        }
    }

    /// All different.
    fn addresses() -> Vec<Addr> {
        (1..9)
            .map(|n| Addr::Tcp(([10, 0, 0, n], 6379).into()))
            .collect()
    }

    fn claim<'a>(
        addr: &'a Addr,
        role_since: Option<Instant>,
        epoch: Option<&'a Epoch>,
    ) -> PrimaryClaim<'a> {
        PrimaryClaim {
            role_since,
            epoch,
            addr,
            server: None,
            answers: true,
        }
    }

    #[test]
    fn the_longest_claim_is_believed_and_then_the_first_in_order() {
        let now = Instant::now();
        let at = |s| Some(now + Duration::from_secs(s));
        let of = |role_since: &[Option<Instant>]| {
            let addresses = addresses();
            let claims = role_since.iter().zip(&addresses);
            let claims: Vec<_> = claims
                .map(|(role_since, at)| claim(at, *role_since, None))
                .collect();
            standings(&claims)
        };
        assert_eq!(of(&[]), []);
        assert_eq!(of(&[at(5)]), [Believed]);
        assert_eq!(of(&[None]), [Believed]);
        assert_eq!(of(&[at(5), at(4)]), [Doubtful { believed: 1 }, Believed]);
        assert_eq!(of(&[at(4), at(4)]), [Believed, Doubtful { believed: 0 }]);
        assert_eq!(of(&[None, at(4)]), [Doubtful { believed: 1 }, Believed]);
    }

    #[test]
    fn a_proof_outweighs_time() {
        let now = Instant::now();
        let later = Some(now + Duration::from_secs(60));
        let addresses = addresses();
        let claim = |n: usize, role_since, epoch| claim(&addresses[n], role_since, epoch);
        for (old, new) in [
            (Epoch::Timeline(2), Epoch::Timeline(3)),
            (redis("a", None), redis("b", Some("a"))),
        ] {
            let (old, new) = (
                self::claim(&addresses[0], Some(now), Some(&old)),
                self::claim(&addresses[1], later, Some(&new)),
            );
            assert_eq!(standings(&[old, new]), [Superseded { by: 1 }, Believed]);
            // Nor does it help that the other one has died since. One that died and has proven
            // nothing is forgotten.
            let dead = |claim| PrimaryClaim {
                answers: false,
                ..claim
            };
            assert_eq!(standings(&[old, dead(new)]), [Superseded { by: 1 }, Silent]);
            assert_eq!(
                standings(&[dead(old), new]),
                [Superseded { by: 1 }, Believed]
            );
            let unproven = PrimaryClaim { epoch: None, ..new };
            assert_eq!(standings(&[old, dead(unproven)]), [Believed, Silent]);
        }
        // Both descend from what is gone: no proof.
        let (one, other) = (redis("b", Some("a")), redis("c", Some("a")));
        assert_eq!(
            standings(&[
                claim(0, later, Some(&one)),
                claim(1, Some(now), Some(&other))
            ]),
            [Doubtful { believed: 1 }, Believed]
        );
    }

    #[test]
    fn one_server_under_two_addresses_is_one() {
        let now = Instant::now();
        let (one, older) = (redis("b", Some("a")), redis("a", None));
        let later = Some(now + Duration::from_secs(1));
        let addresses = addresses();
        let claim = |n: usize, role_since, epoch| claim(&addresses[n], role_since, epoch);
        assert_eq!(
            standings(&[claim(0, later, Some(&one)), claim(1, Some(now), Some(&one))]),
            [Believed, Believed]
        );
        let three = [
            claim(0, Some(now), Some(&older)),
            claim(1, later, Some(&one)),
            claim(2, later, Some(&one)),
        ];
        assert_eq!(
            standings(&three),
            [Superseded { by: 1 }, Believed, Believed]
        );
    }

    #[test]
    fn one_server_is_identified_by_its_address_or_by_its_name() {
        let now = Instant::now();
        let addresses = addresses();
        let (old, new) = (Epoch::Timeline(1), Epoch::Timeline(2));
        let at = |n: usize, server, epoch| PrimaryClaim {
            server,
            ..claim(&addresses[n], Some(now), Some(epoch))
        };
        let (a, b) = (Some("a"), Some("b"));
        for (claims, expected, servers) in [
            // Two names of one address, one of which has not been asked since the promotion.
            (
                [at(0, None, &old), at(0, None, &new)],
                [Believed, Believed],
                1,
            ),
            // Two addresses of one server.
            ([at(0, a, &new), at(1, a, &old)], [Believed, Believed], 1),
            // A standby that was promoted beside its primary has the same data, and is another
            // server.
            (
                [at(0, a, &new), at(1, b, &new)],
                [Believed, Doubtful { believed: 0 }],
                2,
            ),
            (
                [at(0, a, &old), at(1, b, &new)],
                [Superseded { by: 1 }, Believed],
                2,
            ),
            (
                [at(0, None, &new), at(1, None, &new)],
                [Believed, Doubtful { believed: 0 }],
                2,
            ),
        ] {
            assert_eq!(standings(&claims), expected, "{claims:?}");
            assert_eq!(count_servers(&claims), servers, "{claims:?}");
        }
        // The one in the middle has been asked again, and knows both.
        let three = [at(0, a, &new), at(1, b, &new), at(0, b, &new)];
        assert_eq!(standings(&three), [Believed; 3]);
        assert_eq!(count_servers(&three), 1);
    }

    fn epoch() -> impl Strategy<Value = Option<Epoch>> {
        let id = || prop::sample::select(vec!["a", "b", "c", "d"]);
        prop_oneof![
            Just(None),
            (1..5u32).prop_map(|n| Some(Epoch::Timeline(n))),
            (id(), prop::option::of(id())).prop_map(|(id, before)| Some(redis(id, before))),
        ]
    }

    proptest! {
        /// Whatever is claimed: no two different servers are believed, nor a silent or superseded
        /// one; and without proofs against it one is believed.
        #[test]
        fn one_is_believed(
            claims in prop::collection::vec(
                (
                    prop::option::of(0u64..5), epoch(), any::<bool>(), 0..8usize,
                    prop::option::of("[ab]"),
                ),
                0..6,
            ),
        ) {
            let began = Instant::now();
            let addresses = addresses();
            let claims: Vec<PrimaryClaim<'_>> = claims
                .iter()
                .map(|(role_since, epoch, answers, address, server)| PrimaryClaim {
                    role_since: role_since.map(|s| began + Duration::from_secs(s)),
                    epoch: epoch.as_ref(),
                    addr: &addresses[*address],
                    server: server.as_deref(),
                    answers: *answers,
                })
                .collect();
            let standings = standings(&claims);
            prop_assert_eq!(standings.len(), claims.len());
            let servers = number_servers(&claims);
            let believed: Vec<usize> =
                (0..claims.len()).filter(|i| standings[*i] == Believed).collect();
            for one in &believed {
                prop_assert!(claims[*one].answers);
                for other in &believed {
                    prop_assert_eq!(servers[*one], servers[*other]);
                }
            }
            for (i, j) in (0..claims.len()).flat_map(|i| (0..i).map(move |j| (i, j))) {
                prop_assert!(servers[i] == servers[j] || !is_same(&claims[i], &claims[j]));
            }
            for (claim, standing) in claims.iter().zip(&standings) {
                match standing {
                    Believed => {}
                    Doubtful { believed } => {
                        prop_assert_eq!(standings[*believed], Believed);
                        // Its claim is no older than the one that is believed.
                        let of = |c: &PrimaryClaim<'_>| (c.role_since.is_none(), c.role_since);
                        prop_assert!(of(&claims[*believed]) <= of(claim));
                    }
                    Superseded { by } => {
                        let proof = claims[*by].epoch.zip(claim.epoch);
                        prop_assert!(proof.is_some_and(|(new, old)| new.is_newer_than(old)));
                    }
                    Silent => prop_assert!(!claim.answers),
                }
            }
            let is_candidate = |(standing, claim): (&Standing, &PrimaryClaim<'_>)| {
                claim.answers && !matches!(standing, Superseded { .. })
            };
            let candidate = standings.iter().zip(&claims).any(is_candidate);
            prop_assert_eq!(candidate, !believed.is_empty());
        }
    }
}

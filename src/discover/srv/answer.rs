//! What the records of replies mean. Pure.

use super::{
    message::{Data, Record, Reply, Srv},
    name::Name,
};
use crate::{
    discover::Found,
    plan::{Rcode, RecordType},
};
use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
};

/// A longer chain of aliases is a loop.
pub(super) const MOST_ALIASES: usize = 16;
/// For how many seconds it is remembered that there is nothing, if the reply does not say.
const NOTHING: u32 = 60;

/// Where a reply leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Followed {
    Records(Vec<Data>),
    /// There are none.
    Nothing,
    /// The reply ends with an alias: this name is to be asked for.
    Alias(Name),
    /// The server knows others that may know.
    Referral,
    /// The aliases have no end.
    Loop,
}

/// What a reply says of records of this kind, and for how many seconds.
pub(super) fn follow(reply: &Reply, asked: &Name, kind: RecordType) -> (Followed, u32) {
    let mut name = asked;
    let mut ttl = u32::MAX;
    let exists = Rcode::of_extended(reply.code) != Some(Rcode::NxDomain);
    for _ in 0..=MOST_ALIASES {
        let here = |kind| {
            let records = reply.answers.iter();
            records.filter(move |r| r.name == *name && r.data.kind() == kind)
        };
        let found: Vec<&Record> = here(kind).collect();
        if !found.is_empty() {
            let ttl = found.iter().map(|r| r.ttl).fold(ttl, u32::min);
            let data = found.into_iter().map(|r| r.data.clone()).collect();
            return (Followed::Records(data), ttl);
        }
        let alias = here(RecordType::Cname).find_map(|r| match &r.data {
            Data::Cname(target) => Some((target, r.ttl)),
            _ => None,
        });
        match alias {
            Some((target, lasts)) => (name, ttl) = (target, ttl.min(lasts)),
            None if !exists || name == asked => {
                if exists && is_referral(reply) {
                    return (Followed::Referral, ttl);
                }
                return (Followed::Nothing, ttl.min(time_of_nothing(reply)));
            }
            None => return (Followed::Alias(name.clone()), ttl),
        }
    }
    (Followed::Loop, ttl)
}

/// A server that is not asked the right thing: what it does not have may exist.
fn is_referral(reply: &Reply) -> bool {
    let has = |kind| reply.authority.iter().any(|r| r.data.kind() == kind);
    !reply.is_authoritative && has(RecordType::Ns) && !has(RecordType::Soa)
}

fn time_of_nothing(reply: &Reply) -> u32 {
    let soa = reply.authority.iter().find_map(|r| match r.data {
        Data::Soa(minimum) => Some(minimum.min(r.ttl)),
        _ => None,
    });
    soa.unwrap_or(NOTHING)
}

/// The addresses of this kind that came with a reply without being asked for, and for how many
/// seconds they are valid. The set of a name and kind is there as a whole or not at all.
pub(super) fn additional(
    reply: &Reply,
    name: &Name,
    kind: RecordType,
) -> Option<(Vec<IpAddr>, u32)> {
    let records = reply.additional.iter().chain(&reply.answers);
    let records = records.filter(|r| r.name == *name && r.data.kind() == kind);
    let mut ttl = u32::MAX;
    let addresses: Vec<IpAddr> = records
        .filter_map(|record| {
            ttl = ttl.min(record.ttl);
            address(&record.data)
        })
        .collect();
    (!addresses.is_empty()).then_some((addresses, ttl))
}

pub(super) fn address(data: &Data) -> Option<IpAddr> {
    match data {
        Data::A(ip) => Some((*ip).into()),
        Data::Aaaa(ip) => Some((*ip).into()),
        Data::Srv(_) | Data::Cname(_) | Data::Ns | Data::Soa(_) => None,
    }
}

/// The backends: those beyond the lowest priority are backups. An address and port is one backend,
/// of the lowest priority and the greatest weight that it has.
pub(super) fn backends(records: &[Srv], addresses: &HashMap<Name, Vec<IpAddr>>) -> Vec<Found> {
    let mut all: BTreeMap<(IpAddr, u16), (&Srv, u32)> = BTreeMap::new();
    for record in records {
        // RFC 2782: very little chance, but some.
        let weight = u32::from(record.weight).max(1);
        for ip in addresses.get(&record.target).into_iter().flatten() {
            let key = (ip.to_canonical(), record.port);
            let known = all.entry(key).or_insert((record, weight));
            match record.priority.cmp(&known.0.priority) {
                std::cmp::Ordering::Less => *known = (record, weight),
                std::cmp::Ordering::Equal => known.1 = known.1.max(weight),
                std::cmp::Ordering::Greater => {}
            }
        }
    }
    let lowest = all.values().map(|(record, _)| record.priority).min();
    let found = |((ip, port), (record, weight)): ((IpAddr, u16), (&Srv, u32))| Found {
        weight,
        backup: Some(record.priority) != lowest,
        name: Some(record.target.to_string()),
        ..Found::new(SocketAddr::new(ip, port).to_string())
    };
    all.into_iter().map(found).collect()
}

#[cfg(test)]
mod tests {
    use super::super::message::tests::{name, record, srv};
    use super::*;
    use std::net::Ipv4Addr;

    fn reply(code: u16, answers: &[Record], authority: &[Record]) -> Reply {
        Reply {
            code,
            is_authoritative: false,
            is_truncated: false,
            answers: answers.to_vec(),
            authority: authority.to_vec(),
            additional: Vec::new(),
        }
    }

    #[test]
    fn aliases_are_followed_and_the_shortest_time_counts() {
        let cname = |from, ttl, to| record(from, ttl, Data::Cname(name(to)));
        let target = srv(0, 0, 80, "h");
        let records = [cname("a", 30, "b"), record("b", 20, target.clone())];
        let (asked, kind) = (name("a"), RecordType::Srv);
        let got = follow(&reply(0, &records, &[]), &asked, kind);
        assert_eq!(got, (Followed::Records(vec![target]), 20));
        let got = follow(&reply(0, &records[..1], &[]), &asked, kind);
        assert_eq!(got, (Followed::Alias(name("b")), 30));
        let got = follow(
            &reply(Rcode::NxDomain.number().into(), &records[..1], &[]),
            &asked,
            kind,
        );
        assert_eq!(got, (Followed::Nothing, 30));
        let circle = [cname("a", 3, "b"), cname("b", 3, "a")];
        let got = follow(&reply(0, &circle, &[]), &asked, kind);
        assert_eq!(got, (Followed::Loop, 3));
    }

    #[test]
    fn nothing_and_a_referral_are_not_the_same() {
        let soa = [record("example", 9, Data::Soa(5))];
        let ns = [record("example", 9, Data::Ns)];
        let (asked, kind) = (name("a"), RecordType::Srv);
        let got = |reply: &Reply| follow(reply, &asked, kind);
        assert_eq!(got(&reply(0, &[], &soa)), (Followed::Nothing, 5));
        assert_eq!(
            got(&reply(Rcode::NxDomain.number().into(), &[], &soa)),
            (Followed::Nothing, 5)
        );
        assert_eq!(got(&reply(0, &[], &[])), (Followed::Nothing, NOTHING));
        assert_eq!(got(&reply(0, &[], &ns)).0, Followed::Referral);
        let authoritative = Reply {
            is_authoritative: true,
            ..reply(0, &[], &ns)
        };
        assert_eq!(got(&authoritative).0, Followed::Nothing);
    }

    #[test]
    fn priorities_and_weights() {
        let records: Vec<Srv> = [
            srv(10, 0, 80, "a"),
            srv(10, 7, 81, "a"),
            srv(20, 5, 80, "b"),
            srv(5, 9, 80, "nowhere"),
            // The same as the first, and heavier.
            srv(10, 3, 80, "c"),
            srv(20, 9, 80, "c"),
        ]
        .into_iter()
        .map(|data| match data {
            Data::Srv(srv) => srv,
            _ => panic!("another kind"),
        })
        .collect();
        let ip = |n| IpAddr::from(Ipv4Addr::new(10, 0, 0, n));
        let addresses = HashMap::from([
            (name("a"), vec![ip(1)]),
            (
                name("b"),
                vec![ip(2), "fd00::2".parse().expect("an address")],
            ),
            (name("c"), vec![ip(1)]),
        ]);
        let got: Vec<(String, u32, bool, String)> = backends(&records, &addresses)
            .into_iter()
            .map(|b| (b.address, b.weight, b.backup, b.name.unwrap_or_default()))
            .collect();
        let expected = [
            ("10.0.0.1:80", 3, false, "a"),
            ("10.0.0.1:81", 7, false, "a"),
            ("10.0.0.2:80", 5, true, "b"),
            ("[fd00::2]:80", 5, true, "b"),
        ];
        let expected = expected.map(|(a, w, b, n)| (a.to_owned(), w, b, n.to_owned()));
        assert_eq!(got, expected);
        assert!(backends(&records, &HashMap::new()).is_empty());
    }
}

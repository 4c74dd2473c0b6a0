use super::*;
use crate::plan::{
    AcceptProxy, AccessRule, Addr, Backend, BackupWhen, Bind, FlowsMove, HashKey, KeyPart, Limits,
    Origin, PeerSet, Protocol, ProxyOn, SendProxy, SessionAction, SocketOptions, Target, TimeOf,
    UnixFile, Variable,
};
use std::{convert::Infallible, net::SocketAddr, time::Duration};

fn listener(access: Vec<AccessRule>) -> Listener {
    let address = Addr::Tcp(SocketAddr::from(([127, 0, 0, 1], 6379)));
    Listener {
        name: "l".to_owned(),
        protocol: Protocol::Tcp,
        bind: vec![Bind {
            text: "127.0.0.1:6379".to_owned(),
            addrs: vec![address],
        }],
        upstream: "u".to_owned(),
        connect_timeout: Duration::from_secs(1),
        idle_timeout: None,
        half_close_timeout: None,
        half_close: true,
        retries: 3,
        max_connections: 0,
        access,
        send_proxy: None,
        access_log: None,
        limits: Limits::default(),
        accept_proxy: None,
        backlog: 1,
        freebind: false,
        socket: SocketOptions {
            nodelay: true,
            keepalive: None,
            user_timeout: None,
        },
        unix: UnixFile {
            mode: 0o666,
            owner: None,
            group: None,
        },
    }
}

fn backend(text: &str, weight: u32) -> Backend {
    Backend {
        origin: Origin::Configured,
        text: text.to_owned(),
        target: Target::Addr(Addr::Tcp(text.parse().expect("an address"))),
        weight,
        max_fails: 1,
        fail_timeout: Duration::from_secs(10),
        max_connections: 0,
        slow_start: Duration::ZERO,
        backup: false,
        down: false,
    }
}

fn backup(text: &str, weight: u32) -> Backend {
    Backend {
        backup: true,
        ..backend(text, weight)
    }
}

fn upstream(balance: Balance, backends: Vec<Backend>) -> Upstream {
    Upstream {
        discover: None,
        name: "u".to_owned(),
        balance,
        backends,
        resolve_interval: None,
        resolve_required: true,
        send_proxy: SendProxy::Off,
        fail_on_reset: false,
        backup_when: BackupWhen::Full,
        waits: crate::plan::Waits::default(),
        on_drain: SessionAction::Keep,
        on_removed: SessionAction::Keep,
        send_proxy_on: ProxyOn::First,
        flows_move: FlowsMove::WITHOUT_UDP,
        check: None,
    }
}

/// Those of the vectors that were taken from nginx.
fn three() -> Vec<Backend> {
    vec![
        backend("10.0.0.1:6379", 1),
        backend("10.0.0.2:6379", 1),
        backend("10.0.0.3:6379", 2),
    ]
}

fn ring() -> Balance {
    Balance::ConsistentHash(HashKey::default(), None)
}

fn maglev() -> Balance {
    Balance::Maglev(HashKey::default(), None)
}

fn key(variable: Variable) -> HashKey {
    HashKey(vec![KeyPart::Variable(variable)])
}

fn client(text: &str) -> Client {
    text.parse().expect("a client")
}

fn sample(count: u64) -> Vec<Client> {
    let mut chance = Chance::from_seed(7);
    let sample = ClientSet::internet().sample(count, &mut chance);
    sample.expect("as many")
}

/// For each client the position of its backend in the configuration, and the reason.
fn asked(upstream: &Upstream, without: &[usize], clients: &[&str]) -> Vec<(Option<usize>, String)> {
    let listener = listener(Vec::new());
    let mut process = Process::new(&listener, upstream, Some(6379), without, 0);
    let each = clients.iter().map(|text| {
        let outcome = process.accept(client(text));
        let reason = process.reason(client(text), &outcome);
        (outcome.backend(), reason)
    });
    each.collect()
}

fn asked_one(upstream: &Upstream, without: &[usize], client: &str) -> (Option<usize>, String) {
    asked(upstream, without, &[client]).remove(0)
}

#[test]
fn the_vectors_of_nginx() {
    let upstream = upstream(ring(), three());
    for (client, whole, without_the_third) in [
        ("192.0.2.1", 2, 0),
        ("192.0.2.2", 0, 0),
        ("192.0.2.3", 1, 1),
        ("192.0.2.77", 1, 1),
        ("198.51.100.200", 2, 0),
        ("203.0.113.9", 2, 0),
        ("2001:db8::1", 1, 1),
        // The key has no port in it.
        ("192.0.2.1:5000", 2, 0),
    ] {
        assert_eq!(asked_one(&upstream, &[], client).0, Some(whole), "{client}");
        let after = asked_one(&upstream, &[2], client).0;
        assert_eq!(after, Some(without_the_third), "{client}");
    }
}

/// Where a listener accepts PROXY headers, the clients asked about are those that the headers name.
#[test]
fn the_address_in_a_header() {
    let balance = Balance::ConsistentHash(key(Variable::ProxyProtocolAddr), None);
    let (mut listener, upstream) = (listener(Vec::new()), upstream(balance, three()));
    listener.accept_proxy = Some(AcceptProxy {
        trust: vec![PeerSet::All],
        timeout: Duration::from_secs(3),
    });
    let mut process = Process::new(&listener, &upstream, Some(6379), &[], 0);
    for (text, backend) in [("192.0.2.1", 2), ("192.0.2.2", 0), ("192.0.2.3", 1)] {
        assert_eq!(process.accept(client(text)).backend(), Some(backend));
    }
}

/// Backups may stand anywhere in the file; an outcome numbers backends by their position in it.
#[test]
fn backends_are_numbered_by_their_position_in_the_file() {
    let mut backends = three();
    backends.insert(0, backup("10.0.0.9:6379", 5));
    backends.insert(2, backup("10.0.0.8:6379", 5));
    let all = upstream(ring(), backends);
    assert_eq!(asked_one(&all, &[], "192.0.2.1").0, Some(4));
    assert_eq!(asked_one(&all, &[], "192.0.2.2").0, Some(1));
    let listener = listener(Vec::new());
    let expected = |without: &[usize]| {
        let process = Process::new(&listener, &all, None, without, 0);
        process.expected()
    };
    assert_eq!(expected(&[]), [0.0, 0.25, 0.0, 0.25, 0.5]);
    assert_eq!(expected(&[4]), [0.0, 0.5, 0.0, 0.5, 0.0]);
    assert_eq!(expected(&[1, 3, 4]), [0.5, 0.0, 0.5, 0.0, 0.0]);
    assert_eq!(expected(&[0, 1, 2, 3, 4]), [0.0; 5]);
    let (backend, reason) = asked_one(&all, &[1, 3, 4], "192.0.2.1");
    assert_eq!(backend, Some(0));
    assert_eq!(
        reason,
        "no primary can be picked; of the backups, it was next in rotation"
    );
}

#[test]
fn first_expects_all_clients_on_one() {
    let mut backends = three();
    backends[0].down = true;
    backends[1].weight = 0;
    let first = upstream(Balance::First, backends);
    let listener = listener(Vec::new());
    let process = Process::new(&listener, &first, None, &[], 0);
    assert_eq!(process.expected(), [0.0, 0.0, 1.0]);
    assert_eq!(asked_one(&first, &[], "192.0.2.1").0, Some(2));
}

#[test]
fn ports_are_in_the_key() {
    let differ = |variable, one: (&str, Option<u16>), other: (&str, Option<u16>)| {
        let upstream = upstream(Balance::Hash(key(variable)), three());
        let listener = listener(Vec::new());
        let hash = |(text, server_port): (&str, Option<u16>)| {
            let mut process = Process::new(&listener, &upstream, server_port, &[], 0);
            match process.accept(client(text)) {
                Outcome::Backend {
                    why: Why::Hash { hash, .. },
                    ..
                } => Some(hash),
                _ => None,
            }
        };
        hash(one) != hash(other)
    };
    let port = Some(6379);
    let (one, other) = ("192.0.2.1:5000", "192.0.2.1:5001");
    assert!(differ(Variable::RemotePort, (one, port), (other, port)));
    assert!(!differ(Variable::ServerPort, (one, port), (other, port)));
    assert!(differ(Variable::ServerPort, (one, port), (one, Some(6380))));
    // On a unix socket there is none.
    assert!(differ(Variable::ServerPort, (one, port), ("unix:", port)));
}

#[test]
fn the_denied_are_counted_apart() {
    let rule = AccessRule {
        allow: false,
        peers: PeerSet::Net([192, 0, 2, 0].into(), 24),
    };
    let (listener, upstream) = (listener(vec![rule]), upstream(ring(), three()));
    let clients = ["192.0.2.1", "198.51.100.200", "unix:"].map(client);
    let process = |without: &[usize]| Process::new(&listener, &upstream, None, without, 0);
    let mut outcomes = Vec::new();
    let all = survey(
        &clients,
        &mut process(&[]),
        Some(&mut process(&[0, 1, 2])),
        |_, client, outcome| {
            outcomes.push((client, outcome.backend()));
            Ok::<_, Infallible>(())
        },
    );
    let all = all.expect("nothing fails");
    assert_eq!((all.whole.clients, all.whole.denied), (3, 1));
    assert_eq!((all.rest.denied, all.rest.no_backend), (1, 2));
    assert_eq!(outcomes[0], (clients[0], None));
    assert_eq!(all.whole.got.iter().sum::<u64>(), 2);
    let moved: Vec<Client> = all.moves.iter().map(|m| m.client).collect();
    assert_eq!(moved, clients[1..]);
    assert_eq!(all.whole.share(1), 0.5);
}

#[test]
fn only_the_clients_of_the_lost_backend_move() {
    let listener = listener(Vec::new());
    let clients = sample(5000);
    for balance in [
        ring(),
        maglev(),
        Balance::ConsistentHash(HashKey::default(), Some(125)),
    ] {
        let upstream = upstream(balance, three());
        let process = |without: &[usize]| Process::new(&listener, &upstream, None, without, 0);
        let mut rest = process(&[1]);
        let whole = &mut process(&[]);
        let survey = survey(&clients, whole, Some(&mut rest), |_, _, _| {
            Ok::<_, Infallible>(())
        });
        let survey = survey.expect("nothing fails");
        assert_eq!(survey.moves.len() as u64, survey.whole.got[1]);
        assert!(
            survey
                .moves
                .iter()
                .all(|m| m.from == Some(1) && m.to != Some(1))
        );
        assert_eq!((survey.rest.got[1], survey.whole.in_rotation), (0, 0));
        assert!((900..1600).contains(&survey.whole.got[1]), "{survey:?}");
    }
}

#[test]
fn chance_is_the_seeds() {
    let (listener, upstream) = (listener(Vec::new()), upstream(Balance::RandomTwo, three()));
    let picks = |seed| {
        let mut process = Process::new(&listener, &upstream, None, &[], seed);
        let each = sample(100).into_iter().map(|c| process.accept(c).backend());
        each.collect::<Vec<_>>()
    };
    assert_eq!(picks(1), picks(1));
    assert_ne!(picks(1), picks(2));
}

/// Without sessions and times all are equals.
#[test]
fn in_rotation_each_backend_gets_its_expected_share() {
    let listener = listener(Vec::new());
    for balance in [
        Balance::RoundRobin,
        Balance::LeastConn,
        Balance::LeastTime(TimeOf::Connect),
    ] {
        let upstream = upstream(balance, three());
        let mut process = Process::new(&listener, &upstream, None, &[], 0);
        let ignore = |_: &Process<'_>, _, _: &Outcome| Ok::<_, Infallible>(());
        let survey = survey(&sample(400), &mut process, None, ignore);
        let got = survey.expect("nothing fails").whole.got;
        assert_eq!(got, [100, 100, 200], "{:?}", upstream.balance);
    }
}

mod reasons;

//! Every released format is read for as long as its version is spoken: files with messages of each,
//! as hexadecimal text, which are written once and read by all later programs. `TEMBUKU_BLESS=1`
//! writes those that are missing.

use super::{
    counters::{self, Account, Figures},
    discovery,
    fields::Fields as _,
    hello::{Accept, Formats, Hello, Ready, Refusal},
    journal::JournalRecord,
    listeners::{self, ListeningRecord, Protocol},
    message::Kind,
    places::{self, PlaceRecord, PlacesRecord},
    pools,
    record::Malformed,
    remainder::Remainder,
    session::{
        AddressRecord, AttemptRecord, BackendRecord, PeerRecord, SocketRecord, read_all,
        waiting::{WaitRecord, WaitingRecord},
        write_all,
    },
};
use std::{env, fmt::Debug, fs, path::PathBuf, time::Duration};

/// What was sent is read from the file of this version, and is written the same if that is the best
/// version.
fn check<T: PartialEq + Debug>(
    kind: Kind,
    version: u16,
    value: &T,
    write: impl Fn(&T) -> Vec<u8>,
    read: impl Fn(&[u8]) -> Result<T, Malformed>,
) {
    let name = format!("{kind}-{version}.hex");
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../handover/golden"));
    let path = path.join(&name);
    let is_best = kind.versions().first() == Some(&version);
    if !path.exists() && is_best && env::var_os("TEMBUKU_BLESS").is_some() {
        fs::write(&path, to_hex(&write(value))).expect("a file");
    }
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
    let bytes = from_hex(&text);
    assert_eq!(read(&bytes).as_ref(), Ok(value), "{name}");
    if is_best {
        assert_eq!(to_hex(&write(value)), text, "{name} is written otherwise");
    }
}

fn to_hex(bytes: &[u8]) -> String {
    let line = |bytes: &[u8]| {
        let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
        digits.collect::<String>() + "\n"
    };
    bytes.chunks(48).map(line).collect()
}

pub(super) fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let digit = |byte: u8| char::from(byte).to_digit(16).expect("a digit") as u8;
    let pairs = digits.chunks(2);
    pairs
        .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
        .collect()
}

#[test]
fn released_formats_are_read() {
    let hello = Hello {
        program: "0.1.0".to_owned(),
        pid: 4711,
        hash: "0123456789abcdef".to_owned(),
        workers: 4,
        open_descriptors: 123,
        most_descriptors: 200_000,
        formats: Formats::from_map([("hello".to_owned(), vec![1])].into()),
    };
    check(Kind::Hello, 1, &hello, Hello::write, Hello::read);
    let refusal = Refusal {
        reason: "no".to_owned(),
    };
    check(Kind::Refusal, 1, &refusal, Refusal::write, Refusal::read);
    let ready = Ready {
        listeners: 3,
        unused: vec![1, 4],
    };
    check(Kind::Ready, 1, &ready, Ready::write, Ready::read);
    let accept = Accept { next_session: 77 };
    check(Kind::Accept, 1, &accept, Accept::write, Accept::read);
    let rest = Remainder {
        sessions: 5,
        flows: 6,
    };
    check(Kind::Remainder, 1, &rest, Remainder::write, Remainder::read);
    let journal = JournalRecord {
        begun: 1_790_000_000_000,
        first: 2,
        revision: 9,
        events: vec!["{\"number\":2}".to_owned()],
    };
    check(
        Kind::Journal,
        1,
        &journal,
        JournalRecord::write,
        JournalRecord::read,
    );
}

fn waiting_session() -> WaitingRecord {
    WaitingRecord {
        id: 4712,
        began: 1_000_001,
        left: Some(1_002_000),
        received: 5,
        listener: "front".to_owned(),
        upstream: "u".to_owned(),
        peer: PeerRecord::Ip("192.0.2.1:50000".parse().expect("an address")),
        named: Some(PeerRecord::Unix),
        server_port: Some(5432),
        header: Some((*b"header").into()),
        payload: (*b"hello").into(),
        attempts: vec![AttemptRecord {
            backend: BackendRecord {
                text: "unix:/run/db".to_owned(),
                address: AddressRecord::Path(b"/run/db".to_vec()),
            },
            result: "failed".to_owned(),
            reason: Some("refused".to_owned()),
            time: Duration::from_micros(12),
            waited: Duration::from_millis(1),
        }],
        waited: Duration::from_millis(2),
        to_client: SocketRecord {
            peer_end: "open".to_owned(),
            at_urgent_mark: false,
            is_unwritable: false,
            nodelay: "before_second_write".to_owned(),
            undelivered: None,
        },
        wait: Some(WaitRecord {
            ticket: Some(17),
            lacks: "queue".to_owned(),
            began: 1_000_500,
            left: [Duration::from_secs(9), Duration::ZERO],
            stick_left: Some(Duration::from_millis(300)),
        }),
    }
}

#[test]
fn released_formats_of_state_are_read() {
    let socket = |listener: &str, protocol, owns_file| ListeningRecord {
        listener: listener.to_owned(),
        configured: "127.0.0.1:0".to_owned(),
        protocol,
        owns_file,
    };
    let sockets = vec![
        socket("cache", Protocol::Stream, true),
        socket("dns", Protocol::Datagram, false),
        socket("", Protocol::Admin, true),
    ];
    let write = |sockets: &Vec<ListeningRecord>| listeners::write(sockets);
    check(Kind::Listeners, 1, &sockets, write, listeners::read);
    let account = Account {
        of: "backend".to_owned(),
        names: vec!["u".to_owned(), "10.0.0.1:1".to_owned()],
        figures: Figures {
            counts: [("connections".to_owned(), 5)].into(),
            amounts: [("connect_duration".to_owned(), 0.25)].into(),
        },
    };
    let write = |accounts: &Vec<Account>| counters::write(accounts);
    check(Kind::Counters, 1, &vec![account], write, counters::read);
    let discoveries = vec![discovery::tests::full()];
    let write = |records: &Vec<discovery::DiscoveryRecord>| discovery::write(records);
    check(Kind::Discovery, 1, &discoveries, write, discovery::read);
    let places = vec![PlacesRecord {
        upstream: "u".to_owned(),
        last_ticket: 200,
        has_line: true,
        backends: vec![PlaceRecord {
            text: "db.example:1".to_owned(),
            address: "10.0.0.1:1".to_owned(),
            sessions: 20,
        }],
    }];
    let write = |places: &Vec<PlacesRecord>| places::write(places);
    check(Kind::Places, 1, &places, write, places::read);
    let waiting = vec![waiting_session()];
    let write = |waiting: &Vec<WaitingRecord>| write_all(waiting);
    check(Kind::Waiting, 1, &waiting, write, read_all);
    let pools = vec![pools::tests::full()];
    let write = |records: &Vec<pools::PoolRecord>| pools::write(records);
    check(Kind::Pools, 2, &pools, write, pools::read);
    let mut pools = pools;
    pools[0].remembered.clear();
    for endpoint in pools.iter_mut().flat_map(|pool| &mut pool.endpoints) {
        endpoint.rotation = None;
    }
    check(Kind::Pools, 1, &pools, write, pools::read);
}

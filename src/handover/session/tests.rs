use super::*;
use proptest::prelude::*;

/// One session of the format as it was released, with every field.
fn golden() -> SessionRecord {
    let backend = BackendRecord {
        text: "db.example:5432".to_owned(),
        address: AddressRecord::Ip("10.0.0.1:5432".parse().expect("an address")),
    };
    SessionRecord {
        id: 4711,
        began: 1_000_001,
        active: 2_002,
        left: Some(1_002_000),
        received: 30,
        sent: 40,
        listener: "front".to_owned(),
        upstream: "back".to_owned(),
        peer: PeerRecord::Ip("192.0.2.1:50000".parse().expect("an address")),
        named: Some(PeerRecord::Ip(
            "[2001:db8::1]:1".parse().expect("an address"),
        )),
        server_port: Some(5432),
        backend: backend.clone(),
        connect_began: 17,
        first_byte: Some(1_000_300),
        attempts: vec![
            AttemptRecord {
                backend: BackendRecord {
                    text: "unix:/run/db".to_owned(),
                    address: AddressRecord::Path(b"/run/db".to_vec()),
                },
                result: "failed".to_owned(),
                reason: Some("refused".to_owned()),
                time: Duration::from_micros(12),
                waited: Duration::from_millis(1),
            },
            AttemptRecord {
                backend,
                result: "connected".to_owned(),
                reason: None,
                time: Duration::from_micros(250),
                waited: Duration::ZERO,
            },
        ],
        to_client: SocketRecord {
            peer_end: "ended".to_owned(),
            at_urgent_mark: true,
            is_unwritable: false,
            nodelay: "before_next_write".to_owned(),
            undelivered: Some((9, 1_000_400)),
        },
        to_backend: SocketRecord {
            peer_end: "open".to_owned(),
            at_urgent_mark: false,
            is_unwritable: true,
            nodelay: "done".to_owned(),
            undelivered: None,
        },
        up: DirectionRecord {
            held: HeldRecord::First {
                header: b"PROXY".to_vec(),
                payload: b"hello".to_vec(),
            },
            mode: "copy".to_owned(),
            count: 1,
            end: "clean".to_owned(),
            is_finished: false,
            has_begun: true,
            watch: "v1".to_owned(),
            watched: 3,
        },
        down: DirectionRecord {
            held: HeldRecord::Pipe(65_536),
            mode: "splice".to_owned(),
            count: 2,
            end: "reset".to_owned(),
            is_finished: true,
            has_begun: true,
            watch: "over".to_owned(),
            watched: 0,
        },
        broken: Some(BrokenRecord {
            side: "backend".to_owned(),
            cause: "timed_out".to_owned(),
        }),
        next_check: Some(2_500),
        pending_at: Some(2_400),
        has_keepalive: true,
    }
}

/// Version 1, as it was released. Records of that version must be understood for as long as
/// [`crate::handover::message::Kind::versions`] names it.
const VERSION_1: &[u8] = include_bytes!("version_1.bin");

#[test]
fn version_1_is_what_it_was() {
    let session = golden();
    let written = write_all([&session]);
    if std::env::var_os("TEMBUKU_BLESS").is_some() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../handover/session/version_1.bin"
        );
        std::fs::write(path, &written).expect("written");
        return;
    }
    assert_eq!(read_all(VERSION_1).as_deref(), Ok(&[session][..]));
    assert_eq!(written, VERSION_1);
}

#[test]
fn a_session_names_its_descriptors() {
    let mut session = golden();
    assert_eq!(session.descriptors(), 4);
    session.up.held = HeldRecord::Pipe(1);
    assert_eq!(session.descriptors(), 6);
    session.down.held = HeldRecord::Bytes(vec![1]);
    session.up.held = HeldRecord::Nothing;
    assert_eq!(session.descriptors(), 2);
}

#[test]
fn verdicts_are_read_in_their_order() {
    let body = write_verdicts([None, Some("no_backend"), None]);
    let read = read_verdicts(&body).expect("verdicts");
    assert_eq!(read, [None, Some("no_backend".to_owned()), None]);
    assert!(read_verdicts(b"x").is_err());
}

#[test]
fn a_record_without_a_field_that_it_needs_is_refused() {
    let written = golden().write();
    let whole = Record::parse_with(&written, SessionRecord::has).expect("a record");
    let tags: Vec<Tag> = (1..=23)
        .flat_map(|number| [Tag::new(number), Tag::required(number)])
        .filter(|tag| SessionRecord::has(*tag))
        .collect();
    assert_eq!(tags.len(), 23);
    for tag in tags.iter().filter(|tag| tag.must_be_understood()) {
        let mut writer = Writer::new();
        for other in tags.iter().filter(|other| *other != tag) {
            for value in whole.all(*other) {
                writer.bytes(*other, value);
            }
        }
        let is_optional = [Tag::required(9), Tag::required(19)].contains(tag);
        let read = SessionRecord::read(&writer.into_bytes());
        assert_eq!(read.is_ok(), is_optional, "{tag}: {read:?}");
        // And a version that does not know it refuses the record.
        let is_known = |other| other != *tag && SessionRecord::has(other);
        assert!(Record::parse_with(&written, is_known).is_err(), "{tag}");
    }
}

proptest! {
    #[test]
    fn garbage_is_refused_without_a_panic(bytes: Vec<u8>) {
        let _ = (read_all::<SessionRecord>(&bytes), read_verdicts(&bytes));
    }

    /// Also that which is almost a record.
    #[test]
    fn a_record_with_other_bytes_is_read_or_refused(
        changes in prop::collection::vec((0..VERSION_1.len(), any::<u8>()), 1..9),
        cut in 0..VERSION_1.len(),
    ) {
        let mut bytes = VERSION_1.to_vec();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        let _ = read_all::<SessionRecord>(&bytes);
        let _ = read_all::<SessionRecord>(&bytes[..cut]);
    }
}

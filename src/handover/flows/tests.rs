use super::*;
use crate::handover::golden::from_hex;
use proptest::prelude::*;
use std::net::{SocketAddrV4, SocketAddrV6};

const FROM: Tag = Tag::new(4);

/// A batch with every field, as written by version 1, in lines of 32 bytes. A later version reads
/// it, too: the file stays as it is.
const VERSION_1: &str = include_str!("version_1.hex");

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn sample() -> FlowBatch {
    let socket = SocketKey {
        address: address("0.0.0.0:53"),
        index: 1,
    };
    let v6 = SocketAddrV6::new("fe80::1".parse().expect("an address"), 53, 7, 3).into();
    let plain = FlowState {
        id: 41,
        socket,
        peer: address("192.0.2.1:40000"),
        local: None,
        named: None,
        per_packet: false,
        is_current: true,
        backend: "ns1.example:53".to_owned(),
        backend_address: "10.0.0.1:53".to_owned(),
        began_micros: 1_234_567,
        header: Vec::new(),
        progress: FlowProgress {
            active_millis: 1_500,
            taken: 3,
            sent: 2,
            replies: 1,
            bytes: [300, 4_000],
            datagrams: [3, 1],
            drops: 5,
            first_reply_micros: Some(0),
            flags: FlowFlags {
                is_proven: true,
                ..FlowFlags::default()
            },
            retired: None,
        },
    };
    let with_everything = FlowState {
        id: 42,
        socket: SocketKey {
            address: v6,
            index: 0,
        },
        local: Some(Local {
            ip: "fe80::2".parse().expect("an address"),
            interface: 3,
        }),
        named: Some((address("192.0.2.7:1"), address("[2001:db8::1]:2"))),
        per_packet: true,
        is_current: false,
        header: vec![1, 2, 3],
        progress: FlowProgress {
            first_reply_micros: None,
            flags: FlowFlags {
                is_unreachable: true,
                is_proven: true,
                is_coalescing: true,
                header_is_due: true,
                never_splits_to_backend: true,
                never_splits_to_client: true,
            },
            retired: Some("backend_drained".to_owned()),
            ..plain.progress.clone()
        },
        ..plain.clone()
    };
    FlowBatch {
        changes: vec![FlowChange {
            id: 40,
            progress: with_everything.progress.clone(),
        }],
        flows: vec![plain, with_everything],
        ended: vec![1, u64::MAX],
        peers: vec![
            NamedPeer {
                socket,
                peer: address("192.0.2.9:5"),
                local: Some(Local {
                    ip: address("10.0.0.9:0").ip(),
                    interface: 0,
                }),
                named: None,
                last_millis: 9,
            },
            NamedPeer {
                socket,
                peer: address("192.0.2.9:6"),
                local: None,
                named: Some((address("192.0.2.7:1"), address("192.0.2.8:2"))),
                last_millis: 10,
            },
        ],
        late: vec![LateSocket {
            listener: "dns".to_owned(),
            until_millis: 77,
        }],
        begin: vec![SocketBegin { socket, drops: 12 }],
    }
}

#[test]
fn what_version_1_has_written_is_read() {
    assert_eq!(FlowBatch::read(&from_hex(VERSION_1)), Ok(sample()));
}

/// Until there is a version 2.
#[test]
fn version_1_is_written() {
    assert_eq!(sample().write(), from_hex(VERSION_1));
}

#[test]
fn an_empty_batch_is_empty() {
    let empty = FlowBatch::default();
    assert!(empty.is_empty() && empty.write().is_empty());
    assert_eq!(FlowBatch::read(b""), Ok(empty));
    assert!(!sample().is_empty());
    assert_eq!(sample().descriptors(), 3);
}

#[test]
fn an_answer_is_read_as_it_was_written() {
    for refused in [vec![], vec![7, 9]] {
        let taken = FlowsTaken { refused };
        assert_eq!(FlowsTaken::read(&taken.write()), Ok(taken));
    }
}

/// A field that a later version adds.
#[test]
fn numbers_and_fields_of_a_later_version_are_skipped() {
    let mut w = Writer::new();
    sample().write_fields(&mut w);
    w.text(Tag::new(999), "new");
    w.record(Tag::new(2), |w| {
        w.u64(Tag::new(1), 5).numbers(PROGRESS, (0..20).map(|_| 0));
        w.u64(Tag::new(998), 1);
    });
    let batch = FlowBatch::read(&w.into_bytes()).expect("a batch");
    assert_eq!(batch.changes.len(), 2);
    assert_eq!(batch.changes[1].progress, FlowProgress::default());
}

#[test]
fn a_batch_that_is_cut_off_or_changed_is_an_error_or_another_batch() {
    let whole = sample().write();
    for len in 0..whole.len() {
        let _ = FlowBatch::read(&whole[..len]);
    }
    for at in 0..whole.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut changed = whole.clone();
            changed[at] = value;
            let _ = FlowBatch::read(&changed);
        }
    }
}

proptest! {
    #[test]
    fn garbage_is_an_error_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = FlowBatch::read(&bytes);
        let _ = FlowsTaken::read(&bytes);
    }

    #[test]
    fn addresses_are_read_as_they_were_written(
        v4 in any::<(u32, u16)>(),
        v6 in any::<(u128, u16, u32, u32)>(),
    ) {
        let v4 = SocketAddrV4::new(v4.0.into(), v4.1);
        let v6 = SocketAddrV6::new(v6.0.into(), v6.1, v6.2, v6.3);
        for address in [SocketAddr::V4(v4), SocketAddr::V6(v6)] {
            let mut w = Writer::new();
            address.write_field(FROM, &mut w);
            let bytes = w.into_bytes();
            let r = Record::parse(&bytes, &[FROM]).expect("a record");
            prop_assert_eq!(SocketAddr::read_field(FROM, &r), Ok(address));
        }
    }
}

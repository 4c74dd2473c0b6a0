//! What the kernel splits and puts together.

use super::*;

const SIZE: u16 = 1200;

fn segmented<'a>(parts: &'a [IoSlice<'a>], to: SocketAddr) -> Message<'a> {
    Message {
        segment: SIZE,
        ..message(parts, to)
    }
}

#[test]
fn what_is_sent_at_once_comes_whole_where_it_is_taken_coalesced() {
    for family in BOTH {
        let (a, b) = (bound(family), bound(family));
        never_forbid_fragments(&a, family.starts_with('[')).expect("fragments");
        take_coalesced(&b).expect("GRO");
        ask_for_destination(&b, family.starts_with('[')).expect("asked");
        let mut buffers = ReceiveBuffers::new(2);
        for len in [54 * 1200, 54 * 1200 - 7, 2 * 1200, 1201] {
            let whole = pattern(len, len);
            // Parts need not end where datagrams do.
            let parts: Vec<_> = whole.chunks(1013).map(IoSlice::new).collect();
            let reply_from = Local {
                ip: address(&a).ip(),
                interface: 0,
            };
            let one = Message {
                from: Some(reply_from),
                ..segmented(&parts, address(&b))
            };
            assert_eq!(send(&a, &[one, one]).0, 2);
            receive(&mut buffers, &b, 2);
            for slot in 0..2 {
                let got = buffers.get(slot);
                assert_eq!((got.payload.len(), got.segment), (len, SIZE), "{family}");
                assert!(got.payload == whole, "{family} {len}: other bytes");
                assert_eq!(got.from, Some(address(&a)));
                assert_eq!(got.to.map(|to| to.ip), Some(address(&b).ip()));
            }
        }
        // The size is found without names as well.
        let whole = pattern(3000, 0);
        assert_eq!(
            send(&a, &[segmented(&[IoSlice::new(&whole)], address(&b))]).0,
            1
        );
        wait(&b);
        assert_eq!(buffers.receive_plain(b.as_fd(), 1, 1).expect("received"), 1);
        assert_eq!(
            (buffers.get(1).payload.len(), buffers.get(1).segment),
            (3000, SIZE)
        );
    }
}

#[test]
fn what_is_sent_at_once_comes_as_many_where_it_is_not_coalesced() {
    for family in BOTH {
        let (a, b) = (bound(family), bound(family));
        let whole = pattern(54 * 1200 - 200, 5);
        let parts = [IoSlice::new(&whole)];
        assert_eq!(send(&a, &[segmented(&parts, address(&b))]).0, 1);
        let mut buffers = ReceiveBuffers::new(BATCH);
        receive(&mut buffers, &b, 54);
        for (slot, part) in whole.chunks(1200).enumerate() {
            assert_eq!(buffers.get(slot).payload.len(), part.len());
            assert!(
                buffers.get(slot).payload == part,
                "{family} {slot}: other bytes"
            );
            assert_eq!(buffers.get(slot).segment, 0);
        }
        let error = buffers.receive(b.as_fd(), 0, 1).expect_err("no more");
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }
}

/// A size that is not less than the whole asks for nothing: such a datagram may be larger than the
/// path's MTU, as the largest of IPv6 is even here.
#[test]
fn one_datagram_is_not_split() {
    for family in BOTH {
        let (a, b) = (bound(family), bound(family));
        take_coalesced(&b).expect("GRO");
        let whole = pattern(65_507, 3);
        let (all, little) = ([IoSlice::new(&whole)], [IoSlice::new(&whole[..1200])]);
        let one = Message {
            segment: 65_507,
            ..message(&all, address(&b))
        };
        let (sent, error) = send(&a, &[one, segmented(&little, address(&b))]);
        assert_eq!((sent, error.map(|e| e.kind())), (2, None), "{family}");
        let mut buffers = ReceiveBuffers::new(2);
        receive(&mut buffers, &b, 2);
        for (slot, len) in [65_507, 1200].into_iter().enumerate() {
            let got = buffers.get(slot);
            assert_eq!((got.payload.len(), got.segment), (len, 0));
        }
    }
}

#[test]
fn a_size_that_makes_one_datagram_is_none() {
    for (reported, len, segment) in [
        (None, 3000, 0),
        (Some(1200), 3000, 1200),
        (Some(1200), 1201, 1200),
        (Some(1200), 1200, 0),
        (Some(1200), 0, 0),
        (Some(0), 10, 0),
        (Some(-1), 10, 0),
        (Some(70_000), 65_536, 0),
    ] {
        assert_eq!(
            receive::segments(reported, len),
            segment,
            "{reported:?} {len}"
        );
    }
}

/// What the kernel has cut short for one socket is whole again for the next.
#[test]
fn one_inbox_serves_sockets_of_every_kind_in_turn() {
    let mut buffers = ReceiveBuffers::new(2);
    let whole = pattern(3000, 9);
    let parts = [IoSlice::new(&whole)];
    for round in 0..16 {
        let (v6, to, gro, plain) = (round & 1 > 0, round & 2 > 0, round & 4 > 0, round & 8 > 0);
        let family = BOTH[usize::from(v6)];
        let (a, b) = (bound(family), bound(family));
        if to {
            ask_for_destination(&b, v6).expect("asked");
        }
        if gro {
            take_coalesced(&b).expect("GRO");
        }
        let one = segmented(&parts, address(&b));
        assert_eq!(send(&a, &[one, one]).0, 2);
        wait(&b);
        let came = if plain {
            buffers.receive_plain(b.as_fd(), 0, 2)
        } else {
            buffers.receive(b.as_fd(), 0, 2)
        };
        for slot in 0..came.expect("received") {
            let got = buffers.get(slot);
            assert_eq!(got.from, (!plain).then(|| address(&a)), "{round}");
            assert_eq!(
                got.to.map(|to| to.ip),
                to.then(|| address(&b).ip()),
                "{round}"
            );
            assert_eq!(got.segment, if gro { SIZE } else { 0 }, "{round}");
        }
    }
}

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
        let mut inbox = Inbox::new(2);
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
            receive(&mut inbox, &b, 2);
            for slot in 0..2 {
                let got = inbox.get(slot);
                assert_eq!((got.payload.len(), got.segment), (len, SIZE), "{family}");
                assert!(got.payload == whole, "{family} {len}: other bytes");
                assert_eq!(got.from, Some(address(&a)));
                assert_eq!(got.to.map(|to| to.ip), Some(address(&b).ip()));
            }
        }
        // Without names the size is told all the same.
        let whole = pattern(3000, 0);
        assert_eq!(
            send(&a, &[segmented(&[IoSlice::new(&whole)], address(&b))]).0,
            1
        );
        wait(&b);
        assert_eq!(inbox.receive_plain(b.as_fd(), 1, 1).expect("received"), 1);
        assert_eq!(
            (inbox.get(1).payload.len(), inbox.get(1).segment),
            (3000, SIZE)
        );
    }
}

#[test]
fn what_is_sent_at_once_comes_as_many_elsewhere() {
    for family in BOTH {
        let (a, b) = (bound(family), bound(family));
        let whole = pattern(54 * 1200 - 200, 5);
        let parts = [IoSlice::new(&whole)];
        assert_eq!(send(&a, &[segmented(&parts, address(&b))]).0, 1);
        let mut inbox = Inbox::new(BATCH);
        receive(&mut inbox, &b, 54);
        for (slot, part) in whole.chunks(1200).enumerate() {
            assert_eq!(inbox.get(slot).payload.len(), part.len());
            assert!(
                inbox.get(slot).payload == part,
                "{family} {slot}: other bytes"
            );
            assert_eq!(inbox.get(slot).segment, 0);
        }
        let error = inbox.receive(b.as_fd(), 0, 1).expect_err("no more");
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }
}

/// A size that is not less than the whole asks for nothing: such a datagram may be larger than the path's MTU.
#[test]
fn one_datagram_is_not_split() {
    let (a, b) = (bound(BOTH[0]), bound(BOTH[0]));
    take_coalesced(&b).expect("GRO");
    let whole = pattern(65_507, 3);
    let parts = [IoSlice::new(&whole)];
    let one = Message {
        segment: 65_507,
        ..message(&parts, address(&b))
    };
    let (sent, error) = send(
        &a,
        &[one, segmented(&[IoSlice::new(&whole[..1200])], address(&b))],
    );
    assert_eq!((sent, error.map(|e| e.kind())), (2, None));
    let mut inbox = Inbox::new(2);
    receive(&mut inbox, &b, 2);
    assert_eq!(
        (inbox.get(0).payload.len(), inbox.get(0).segment),
        (65_507, 0)
    );
    assert_eq!(
        (inbox.get(1).payload.len(), inbox.get(1).segment),
        (1200, 0)
    );
}

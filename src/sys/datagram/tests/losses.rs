//! What does not pass, and how that is reported.

use super::*;
use std::time::{Duration, Instant};

#[test]
fn an_empty_socket_would_block() {
    let b = bound(BOTH[0]);
    let mut buffers = ReceiveBuffers::new(2);
    let error = buffers.receive(b.as_fd(), 0, 2).expect_err("nothing there");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    let error = buffers
        .receive_plain(b.as_fd(), 0, 2)
        .expect_err("nothing there");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_datagram_longer_than_its_slot_is_reported_as_truncated() {
    let (a, b) = (bound(BOTH[0]), bound(BOTH[0]));
    let mut buffers = ReceiveBuffers::with(3, 100);
    let whole = pattern(101, 0);
    for len in [101, 100, 99] {
        a.send_to(&whole[..len], address(&b)).expect("sent");
    }
    receive(&mut buffers, &b, 3);
    for (slot, (len, truncated)) in [(100, true), (100, false), (99, false)].iter().enumerate() {
        assert_eq!(buffers.get(slot).payload, &whole[..*len]);
        assert_eq!(buffers.get(slot).truncated, *truncated);
    }
}

#[test]
fn those_before_the_one_that_fails_are_sent_and_none_after_it() {
    for family in BOTH {
        let (a, b) = (bound(family), bound(family));
        let large = vec![0; 65_536];
        let good = [IoSlice::new(b"good")];
        let bad = [IoSlice::new(&large)];
        let (good, bad) = (message(&good, address(&b)), message(&bad, address(&b)));
        let mut buffers = ReceiveBuffers::new(BATCH * 2);
        for fails in [0, 1, 5, BATCH - 1, BATCH, BATCH + 1] {
            let mut messages = vec![good; BATCH + 4];
            messages[fails] = bad;
            let (sent, error) = send(&a, &messages);
            assert_eq!(sent, fails);
            // Where some were taken only the next call returns the error.
            let error = error.or_else(|| send(&a, &messages[sent..]).1);
            let error = error.expect("too long").raw_os_error();
            assert_eq!(error, Some(libc::EMSGSIZE));
            receive(&mut buffers, &b, fails);
            let after = buffers.receive(b.as_fd(), 0, 1).expect_err("none after it");
            assert_eq!(after.kind(), ErrorKind::WouldBlock);
        }
        assert_eq!(send(&a, &[]).0, 0);
    }
}

#[test]
fn datagrams_beyond_the_buffer_are_counted() {
    let (a, b) = (bound(BOTH[0]), bound(BOTH[0]));
    receive_buffer(&b, 1);
    assert_eq!(drops(&b).expect("a count"), 0);
    let sent = 50;
    for _ in 0..sent {
        a.send_to(&[0; 1000], address(&b)).expect("sent");
    }
    let limit = Instant::now() + Duration::from_secs(10);
    let mut buffers = ReceiveBuffers::new(50);
    let mut came = 0;
    // Nothing is taken before one was dropped.
    while came + drops(&b).expect("a count") < sent {
        assert!(Instant::now() < limit, "some are neither here nor counted");
        if drops(&b).expect("a count") > 0 {
            came += buffers.receive(b.as_fd(), 0, 50).unwrap_or(0) as u64;
        }
    }
    assert_eq!(came + drops(&b).expect("a count"), sent);
    assert!(came > 0, "all were dropped");
}

#[test]
fn buffers_are_as_large_as_is_allowed() {
    let a = bound(BOTH[0]);
    receive_buffer(&a, 100_000);
    send_buffer(&a, 90_000);
    let a = socket2::SockRef::from(&a);
    // The kernel doubles them, for what it needs itself.
    assert_eq!(a.recv_buffer_size().expect("a size"), 200_000);
    assert_eq!(a.send_buffer_size().expect("a size"), 180_000);
}

#[test]
fn fragments_are_never_forbidden() {
    for family in BOTH {
        let a = bound(family);
        let v6 = family.starts_with('[');
        never_forbid_fragments(&a, v6).expect("allowed");
        let dont = |level, option, value: libc::c_int| {
            let now: [u32; 1] = options::get(&a, level, option).expect("a value");
            assert_eq!(now, [value as u32], "{family} {level}");
        };
        if v6 {
            let (level, option) = (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER);
            dont(level, option, libc::IPV6_PMTUDISC_DONT);
        }
        dont(
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_DONT,
        );
    }
}

#[test]
fn a_peer_that_is_gone_is_an_error_of_the_next_call() {
    for family in BOTH {
        let (a, b) = (bound(family), bound(family));
        a.connect(address(&b)).expect("connected");
        drop(b);
        let parts = [IoSlice::new(b"question")];
        let one = Message {
            to: None,
            ..message(&parts, address(&a))
        };
        let mut buffers = ReceiveBuffers::new(1);
        // By receiving, and by sending one or several.
        assert_eq!(send(&a, &[one]).0, 1);
        wait(&a);
        let error = buffers.receive_plain(a.as_fd(), 0, 1).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{family}");
        for again in 1..3 {
            assert_eq!(send(&a, &[one]).0, 1);
            wait(&a);
            let (sent, error) = send(&a, &[one; 3][..again]);
            assert_eq!(sent, 0);
            let error = error.expect("refused");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{family}");
        }
        // It is reported once: the socket goes on.
        assert_eq!(send(&a, &[one]).0, 1);
    }
}

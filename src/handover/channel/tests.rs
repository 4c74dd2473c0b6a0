use super::*;
use rustix::{
    fs::{OFlags, fcntl_getfl},
    io::{FdFlags, fcntl_getfd},
    net::send,
    pipe::pipe,
};
use std::fs::File;
use std::io::{Read as _, Write as _};

const LONG: Duration = Duration::from_secs(10);

fn pair() -> (Channel, Channel) {
    let (ours, theirs) = Channel::pair().expect("a pair of sockets");
    (ours, Channel::new(theirs))
}

fn soon() -> Instant {
    Instant::now() + LONG
}

fn files(count: usize) -> Vec<OwnedFd> {
    let open = || File::open("/dev/null").expect("/dev/null").into();
    std::iter::repeat_with(open).take(count).collect()
}

fn borrowed(files: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    files.iter().map(AsFd::as_fd).collect()
}

#[test]
fn messages_arrive_as_they_were_sent() {
    let (mut a, mut b) = pair();
    let (reader, writer) = pipe().expect("a pipe");
    let sent = [reader.as_fd(), writer.as_fd()];
    assert_eq!(a.send(Kind::Pools, 1, b"body", &sent, soon()).ok(), Some(0));
    assert_eq!(a.send(Kind::End, 2, b"", &[], soon()).ok(), Some(1));
    let first = b.receive(soon()).expect("a message");
    assert_eq!(
        (first.kind, first.version, first.serial),
        (Kind::Pools, 1, 0)
    );
    assert_eq!(first.body, b"body");
    let [reader, writer] = <[OwnedFd; 2]>::try_from(first.descriptors).expect("two descriptors");
    for descriptor in [&reader, &writer] {
        let flags = fcntl_getfd(descriptor).expect("flags");
        assert!(flags.contains(FdFlags::CLOEXEC));
    }
    assert!(
        !fcntl_getfl(&reader)
            .expect("flags")
            .contains(OFlags::NONBLOCK)
    );
    File::from(writer).write_all(b"x").expect("a write");
    let mut byte = [0];
    File::from(reader).read_exact(&mut byte).expect("a read");
    assert_eq!(byte, *b"x");
    let second = b.receive(soon()).expect("a message");
    assert_eq!((second.kind, second.version), (Kind::End, 2));
    assert!(second.body.is_empty() && second.descriptors.is_empty());
}

#[test]
fn a_body_longer_than_the_buffers_goes_in_parts_with_all_descriptors() {
    let (mut a, mut b) = pair();
    let body: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let files = files(MOST_DESCRIPTORS);
            a.send(Kind::Counters, 1, &body, &borrowed(&files), soon())
        });
        let message = b.receive(soon()).expect("a message");
        assert_eq!(message.body.len(), body.len());
        assert!(message.body == body);
        assert_eq!(message.descriptors.len(), MOST_DESCRIPTORS);
        sending.join().expect("no panic").expect("sent");
    });
}

#[test]
fn more_descriptors_than_fit_are_not_sent() {
    let (mut a, _b) = pair();
    let files = files(MOST_DESCRIPTORS + 1);
    let sent = a.send(Kind::Sessions, 1, b"", &borrowed(&files), soon());
    assert!(matches!(sent, Err(ChannelError::TooManyDescriptors(251))));
}

#[test]
fn a_message_without_all_its_descriptors_is_none() {
    let (mut a, mut b) = pair();
    b.max_descriptors = 4;
    let (reader, writer) = pipe().expect("a pipe");
    let copies: Vec<OwnedFd> = (0..8)
        .map(|_| writer.try_clone().expect("a copy"))
        .collect();
    a.send(Kind::Sessions, 1, b"", &borrowed(&copies), soon())
        .expect("sent");
    drop((copies, writer));
    let received = b.receive(soon());
    assert!(matches!(received, Err(ChannelError::DescriptorsLost)));
    // Those that had arrived are closed: the reader sees the end.
    assert_eq!(File::from(reader).read(&mut [0]).ok(), Some(0));
}

/// The answer can report that some are missing.
#[test]
fn a_message_that_has_lost_descriptors_is_read_where_that_is_expected() {
    let (mut a, mut b) = pair();
    b.max_descriptors = 4;
    let copies = files(8);
    a.send(Kind::Sessions, 1, b"body", &borrowed(&copies), soon())
        .expect("sent");
    let message = b.receive_any(soon()).expect("a message");
    assert!(message.is_short && message.descriptors.len() < 8);
    assert_eq!(message.body, b"body");
    a.send(Kind::End, 1, b"", &[], soon()).expect("sent");
    assert!(!b.receive_any(soon()).expect("a message").is_short);
}

/// The kernel reports first that the other side has not read everything.
#[test]
fn messages_of_the_other_side_are_read_although_it_has_not_read_all() {
    let (mut a, mut b) = pair();
    b.send(Kind::Accept, 1, b"", &[], soon()).expect("sent");
    a.send(Kind::Ready, 1, b"", &[], soon()).expect("sent");
    drop(a);
    assert_eq!(b.receive(soon()).expect("a message").kind, Kind::Ready);
    assert!(matches!(b.receive(soon()), Err(ChannelError::Closed)));
}

#[test]
fn the_end_of_the_other_side_is_seen_at_once() {
    let (mut a, b) = pair();
    drop(b);
    assert!(matches!(a.receive(soon()), Err(ChannelError::Closed)));
    let sent = a.send(Kind::Accept, 1, b"", &[], soon());
    assert!(matches!(sent, Err(ChannelError::Closed)));
}

#[test]
fn messages_sent_before_an_end_arrive_before_it() {
    let (mut a, mut b) = pair();
    a.send(Kind::Ready, 1, b"", &[], soon()).expect("sent");
    drop(a);
    assert_eq!(b.receive(soon()).expect("a message").kind, Kind::Ready);
    assert!(matches!(b.receive(soon()), Err(ChannelError::Closed)));
}

#[test]
fn a_deadline_ends_a_wait() {
    let (mut a, mut b) = pair();
    let near = || Instant::now() + Duration::from_millis(20);
    assert!(matches!(a.has_message(), Ok(false)));
    assert!(matches!(a.receive(near()), Err(ChannelError::TimedOut)));
    // Nothing reads the other end: the buffers fill.
    let body = vec![0; 64 << 20];
    let sent = b.send(Kind::Pools, 1, &body, &[], near());
    assert!(matches!(sent, Err(ChannelError::TimedOut)));
}

#[test]
fn packets_that_are_no_messages_are_refused() {
    let head = Head {
        kind: Kind::Hello.number(),
        version: 1,
        serial: 0,
        offset: 0,
        length: 0,
    };
    let cases = [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0; HEAD],
        head.to_bytes()[..HEAD - 1].to_vec(),
        Head {
            offset: 9,
            length: 20,
            ..head
        }
        .to_bytes()
        .to_vec(),
        Head {
            length: u32::MAX,
            ..head
        }
        .to_bytes()
        .to_vec(),
        [&head.to_bytes()[..], b"more than its length"].concat(),
        Head { kind: 999, ..head }.to_bytes().to_vec(),
    ];
    for (n, packet) in cases.into_iter().enumerate() {
        let (a, mut b) = pair();
        send(&a, &packet, SendFlags::NOSIGNAL).expect("sent");
        let received = b.receive(soon());
        let is_refused = matches!(
            received,
            Err(ChannelError::Garbage(_) | ChannelError::UnknownKind(999))
        );
        assert!(is_refused, "{n}: {received:?}");
    }
}

#[test]
fn a_message_in_the_middle_of_another_is_refused() {
    let (a, mut b) = pair();
    let head = Head {
        kind: Kind::Pools.number(),
        version: 1,
        serial: 5,
        offset: 0,
        length: 8,
    };
    let first = [&head.to_bytes()[..], b"four"].concat();
    let other = Head {
        serial: 6,
        offset: 4,
        ..head
    };
    let second = [&other.to_bytes()[..], b"four"].concat();
    for packet in [first, second] {
        send(&a, &packet, SendFlags::NOSIGNAL).expect("sent");
    }
    assert!(matches!(b.receive(soon()), Err(ChannelError::Garbage(_))));
}

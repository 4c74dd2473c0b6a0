use super::*;
use rustix::event::{PollFd, PollFlags, poll};
use std::{
    io::{ErrorKind, IoSlice},
    net::{Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsFd,
};

mod losses;
mod segments;

const BOTH: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

fn bound(address: &str) -> UdpSocket {
    UdpSocket::bind(address).expect("a socket")
}

fn address(socket: &UdpSocket) -> SocketAddr {
    socket.local_addr().expect("an address")
}

/// Until something is there to be received, be it an error.
fn wait(socket: &UdpSocket) {
    let mut fds = [PollFd::new(socket, PollFlags::IN)];
    let limit = rustix::time::Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };
    assert_eq!(
        poll(&mut fds, Some(&limit)).expect("polled"),
        1,
        "nothing came"
    );
}

/// Receives until `count` have come; they are in the first slots.
fn receive(buffers: &mut ReceiveBuffers, socket: &UdpSocket, count: usize) {
    let mut came = 0;
    while came < count {
        wait(socket);
        came += buffers
            .receive(socket.as_fd(), came, count - came)
            .expect("received");
    }
}

fn send(socket: &UdpSocket, messages: &[Message<'_>]) -> (usize, Option<std::io::Error>) {
    SendHeaders::new().send(socket.as_fd(), messages)
}

fn message<'a>(parts: &'a [IoSlice<'a>], to: SocketAddr) -> Message<'a> {
    Message {
        parts,
        segment: 0,
        to: Some(to),
        from: None,
    }
}

/// Bytes that differ by their position and by the datagram they belong to.
fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i * 7 + i / 256 + seed * 31) as u8)
        .collect()
}

#[test]
fn datagrams_of_every_size_pass() {
    for family in BOTH {
        let (a, b) = (bound(family), bound(family));
        never_forbid_fragments(&a, family.starts_with('[')).expect("fragments");
        let mut buffers = ReceiveBuffers::new(4);
        for size in [0, 1, 1472, 9000, 65_507, 0] {
            let bytes = pattern(size, size);
            let (sent, error) = send(&a, &[message(&[IoSlice::new(&bytes)], address(&b))]);
            assert_eq!(
                (sent, error.map(|e| e.kind())),
                (1, None),
                "{family} {size}"
            );
            receive(&mut buffers, &b, 1);
            let got = buffers.get(0);
            assert_eq!(got.payload.len(), size, "{family}");
            assert!(got.payload == bytes, "{family} {size}: other bytes");
            assert_eq!(got.from, Some(address(&a)));
            assert_eq!((got.to, got.segment, got.truncated), (None, 0, false));
        }
    }
}

#[test]
fn batches_keep_their_order_and_continue_at_an_offset() {
    for family in BOTH {
        let (a, b) = (bound(family), bound(family));
        let payloads: Vec<_> = (0..BATCH + 6).map(|i| pattern(i, i)).collect();
        let parts: Vec<_> = payloads.iter().map(|p| [IoSlice::new(p)]).collect();
        let messages: Vec<_> = parts.iter().map(|p| message(p, address(&b))).collect();
        let (sent, error) = send(&a, &messages);
        assert_eq!((sent, error.map(|e| e.kind())), (BATCH + 6, None));

        let mut buffers = ReceiveBuffers::new(BATCH + 8);
        for i in 0..3 {
            wait(&b);
            assert_eq!(buffers.receive(b.as_fd(), i, 1).expect("received"), 1);
        }
        let mut came = 3;
        while came < BATCH + 6 {
            wait(&b);
            came += buffers
                .receive(b.as_fd(), came, usize::MAX)
                .expect("received");
        }
        for (slot, payload) in payloads.iter().enumerate() {
            assert_eq!(buffers.get(slot).payload, payload, "{family} {slot}");
            assert_eq!(buffers.get(slot).from, Some(address(&a)));
        }
        let end = buffers.slots();
        assert_eq!(buffers.receive(b.as_fd(), end, 1).expect("no free slot"), 0);
    }
}

#[test]
fn several_parts_are_one_datagram() {
    let (a, b) = (bound(BOTH[0]), bound(BOTH[0]));
    let whole = pattern(send::PARTS * 20, 1);
    let parts: Vec<_> = whole.chunks(20).map(IoSlice::new).collect();
    assert_eq!(parts.len(), send::PARTS);
    let empty = message(&[], address(&b));
    // The second by sendmmsg, and beside one that has no parts at all.
    assert_eq!(send(&a, &[message(&parts, address(&b))]).0, 1);
    assert_eq!(send(&a, &[empty, message(&parts, address(&b))]).0, 2);
    let mut buffers = ReceiveBuffers::new(3);
    receive(&mut buffers, &b, 3);
    assert!(buffers.get(0).payload == whole);
    assert!(buffers.get(1).payload.is_empty());
    assert!(buffers.get(2).payload == whole);
}

#[test]
fn a_wildcard_socket_gets_the_destination_and_answers_from_it() {
    for (wildcard, asked, destination) in [
        ("0.0.0.0:0", "127.0.0.2", "127.0.0.2"),
        ("0.0.0.0:0", "127.1.2.3", "127.1.2.3"),
        ("[::]:0", "::1", "::1"),
        ("[::]:0", "127.0.0.2", "::ffff:127.0.0.2"),
    ] {
        let server = bound(wildcard);
        ask_for_destination(&server, wildcard.starts_with('[')).expect("asked");
        let asked = SocketAddr::new(asked.parse().expect("an IP"), address(&server).port());
        let client = bound(if asked.is_ipv4() {
            "127.0.0.1:0"
        } else {
            "[::1]:0"
        });
        // From now on it takes answers of this peer alone.
        client.connect(asked).expect("connected");
        client.send(b"question").expect("sent");

        let mut buffers = ReceiveBuffers::new(1);
        receive(&mut buffers, &server, 1);
        let question = buffers.get(0);
        let destination = Local {
            ip: destination.parse().expect("an IP"),
            interface: 0,
        };
        assert_eq!(question.to, Some(destination));
        let parts = [IoSlice::new(question.payload)];
        let answer = Message {
            parts: &parts,
            segment: 0,
            to: question.from,
            from: question.to,
        };
        // By sendmsg and by sendmmsg.
        assert_eq!(send(&server, &[answer]).0, 1);
        assert_eq!(send(&server, &[answer, answer]).0, 2);
        let mut answers = ReceiveBuffers::new(3);
        receive(&mut answers, &client, 3);
        for slot in 0..3 {
            assert_eq!(answers.get(slot).payload, b"question");
            assert_eq!(answers.get(slot).from, Some(asked));
        }
    }
}

/// Of a link-local address the interface is part, and a reply goes out of it again.
#[test]
fn an_interface_is_kept_of_link_local_addresses_only() {
    let mut control = control::Control::EMPTY;
    for (ip, interface) in [
        ("fe80::1", 3),
        ("febf::1", 3),
        ("fec0::1", 0),
        ("2001:db8::1", 0),
    ] {
        let ip: Ipv6Addr = ip.parse().expect("an IP");
        let mut local = Local {
            ip: ip.into(),
            interface: 3,
        };
        let len = control.write(Some(local), 0);
        local.interface = interface;
        assert_eq!(control.read(len).to, Some(local));
        // A message that is not all there is none.
        assert_eq!(control.read(len - 5), super::control::Ancillary::default());
    }
}

#[test]
fn addresses_are_read_as_written() {
    let mut name = control::Name::EMPTY;
    for text in [
        "[fe80::1%7]:65535",
        "[::]:0",
        "192.0.2.1:53",
        "0.0.0.0:0",
        "[2001:db8::1]:443",
    ] {
        let address: SocketAddr = text.parse().expect("an address");
        let len = name.write(address);
        assert_eq!(name.read(len), Some(address));
        // Half of an IP is none.
        assert_eq!(name.read(6), None);
    }
    assert_eq!(name.read(0), None);
}

#[test]
fn connected_sockets_need_no_names() {
    for family in BOTH {
        let (a, b) = (bound(family), bound(family));
        a.connect(address(&b)).expect("connected");
        b.connect(address(&a)).expect("connected");
        let parts = [IoSlice::new(b"one")];
        let one = Message {
            to: None,
            ..message(&parts, address(&b))
        };
        assert_eq!(send(&a, &[one, one]).0, 2);
        let mut buffers = ReceiveBuffers::new(2);
        wait(&b);
        assert_eq!(buffers.receive_plain(b.as_fd(), 0, 1).expect("received"), 1);
        assert_eq!(
            (buffers.get(0).payload, buffers.get(0).from),
            (&b"one"[..], None)
        );
        wait(&b);
        assert_eq!(buffers.receive(b.as_fd(), 0, 1).expect("received"), 1);
        assert_eq!(buffers.get(0).from, Some(address(&a)));
    }
}

#[test]
fn slots_begin_at_cache_lines_that_share_no_set() {
    let buffers = ReceiveBuffers::new(64);
    let starts: Vec<_> = (0..64)
        .map(|slot| buffers.get(slot).payload.as_ptr() as usize)
        .collect();
    let mut sets: Vec<_> = starts.iter().map(|start| start / 64 % 64).collect();
    sets.sort_unstable();
    assert!(starts.iter().all(|start| start % 64 == 0));
    assert_eq!(sets, (0..64).collect::<Vec<_>>());
    assert!(
        starts
            .windows(2)
            .all(|two| two[1] - two[0] >= receive::SLOT)
    );
}

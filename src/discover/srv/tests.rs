//! What real name servers do seldom.

use super::{
    SrvRecords,
    message::{
        Data,
        tests::{record, reply, srv},
    },
};
use crate::discover::{Source as _, tests::settings};
use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// Answers each datagram with these.
struct Fake {
    address: SocketAddr,
    has_ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    fn start(answer: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let address = socket.local_addr().expect("an address");
        let has_ended = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let has_ended = has_ended.clone();
            move || {
                let mut buffer = [0; 2048];
                while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                    if has_ended.load(Ordering::SeqCst) {
                        return;
                    }
                    for bytes in answer(&buffer[..length]) {
                        let _ = socket.send_to(&bytes, peer);
                    }
                }
            }
        });
        Self {
            address,
            has_ended,
            thread: Some(thread),
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.has_ended.store(true, Ordering::SeqCst);
        if let Ok(socket) = UdpSocket::bind("127.0.0.1:0") {
            let _ = socket.send_to(b"", self.address);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The addresses, or the error.
fn ask(servers: &[SocketAddr]) -> Result<String, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let settings = settings(Duration::from_secs(1), Duration::from_secs(2));
    let mut source = SrvRecords::new("_a._tcp.example", servers, &settings);
    let answer = runtime.block_on(source.next()).map_err(|e| e.message)?;
    let addresses: Vec<String> = answer.backends.into_iter().map(|b| b.address).collect();
    let gap = answer.gap.map_or_else(String::new, |gap| {
        let unknown = gap.unknown.into_iter();
        let unknown = unknown.map(|u| format!(" {}:{} v6 {}", u.name, u.port, u.is_ipv6));
        format!("; {}:{}", gap.error.message, unknown.collect::<String>())
    });
    Ok(addresses.join(" ") + &gap)
}

/// The record, with the address of its target where the kind asked for is that of SRV.
fn good(asked: &[u8]) -> Vec<u8> {
    let is_srv = asked.windows(4).any(|four| four == [0, 33, 0, 1]);
    match is_srv {
        true => reply(
            asked,
            [0x84, 0],
            [
                &[record("_a._tcp.example", 9, srv(0, 0, 80, "h.example"))],
                &[],
                &[record("h.example", 9, Data::A([10, 0, 0, 1].into()))],
            ],
        ),
        false => reply(asked, [0x84, 0], [&[], &[], &[]]),
    }
}

#[test]
fn datagrams_that_are_no_reply_are_ignored() {
    let server = Fake::start(|asked| {
        let (mut other_id, mut other_name) = (good(asked), good(asked));
        other_id[0] ^= 1;
        other_name[13] = b'b';
        let mut other = asked.to_vec();
        other.truncate(5);
        vec![other_id, other_name, other, good(asked)]
    });
    assert_eq!(ask(&[server.address]), Ok("10.0.0.1:80".to_owned()));
}

#[test]
fn the_first_datagram_may_be_lost() {
    let is_first = AtomicBool::new(true);
    let server = Fake::start(move |asked| match is_first.swap(false, Ordering::SeqCst) {
        true => vec![],
        false => vec![good(asked)],
    });
    assert_eq!(ask(&[server.address]), Ok("10.0.0.1:80".to_owned()));
}

#[test]
fn a_server_may_not_know_edns() {
    let server = Fake::start(|asked| {
        let has_edns = asked[11] == 1;
        vec![match has_edns {
            true => reply(asked, [0x80, 1], [&[], &[], &[]]),
            false => good(asked),
        }]
    });
    assert_eq!(ask(&[server.address]), Ok("10.0.0.1:80".to_owned()));
}

#[test]
fn what_is_truncated_and_not_to_be_had_by_tcp_is_an_error() {
    let server = Fake::start(|asked| vec![reply(asked, [0x86, 0], [&[], &[], &[]])]);
    let error = ask(&[server.address]).expect_err("truncated");
    assert!(
        error.contains("truncated, and by TCP: Connection refused"),
        "{error}"
    );
    // Another server may have it whole.
    let other = Fake::start(|asked| vec![good(asked)]);
    assert_eq!(
        ask(&[server.address, other.address]),
        Ok("10.0.0.1:80".to_owned())
    );
}

#[test]
fn targets_of_which_nothing_is_known_are_an_error() {
    let server = Fake::start(|asked| {
        let is_srv = asked.windows(4).any(|four| four == [0, 33, 0, 1]);
        vec![match is_srv {
            true => {
                let both = ["h.example", "i.example"]
                    .map(|target| record("_a._tcp.example", 9, srv(0, 0, 80, target)));
                let known = [record("h.example", 9, Data::A([10, 0, 0, 1].into()))];
                reply(asked, [0x84, 0], [&both, &[], &known])
            }
            false => reply(asked, [0x80, 2], [&[], &[], &[]]),
        }]
    });
    let error = ask(&[server.address]).expect_err("half of the set");
    assert!(
        error.contains("example A") && error.contains("SERVFAIL"),
        "{error}"
    );
}

/// One family of addresses is enough, and of the other it is said what is not known. Without any
/// address nothing is known of the target.
#[test]
fn addresses_of_one_family_are_enough() {
    let of_kind = |asked: &[u8], kind: u8| asked.windows(4).any(|four| four == [0, kind, 0, 1]);
    // What A and AAAA lead to: an address, none, no such name, an error.
    let server = |v4: &'static str, v6: &'static str| {
        Fake::start(move |asked| {
            if of_kind(asked, 33) {
                let records = ["h.example", "i.example"]
                    .map(|target| record("_a._tcp.example", 9, srv(0, 0, 80, target)));
                let known = [
                    record("i.example", 9, Data::A([10, 0, 0, 9].into())),
                    record(
                        "i.example",
                        9,
                        Data::Aaaa("2001:db8::9".parse().expect("one")),
                    ),
                ];
                return vec![reply(asked, [0x84, 0], [&records, &[], &known])];
            }
            let (what, address) = match of_kind(asked, 1) {
                true => (v4, Data::A([10, 0, 0, 1].into())),
                false => (v6, Data::Aaaa("2001:db8::1".parse().expect("one"))),
            };
            let found = [record("h.example", 9, address)];
            vec![match what {
                "some" => reply(asked, [0x84, 0], [&found, &[], &[]]),
                "none" => reply(asked, [0x84, 0], [&[], &[], &[]]),
                "no name" => reply(asked, [0x84, 3], [&[], &[], &[]]),
                _ => reply(asked, [0x80, 5], [&[], &[], &[]]),
            }]
        })
    };
    let asked = |v4, v6| {
        let server = server(v4, v6);
        let port = server.address.to_string();
        ask(&[server.address]).map(|text| text.replace(&port, "SERVER"))
    };
    let one = |text: &str| Ok(text.to_owned());
    assert_eq!(
        asked("no name", "error"),
        one("10.0.0.9:80 [2001:db8::9]:80")
    );
    assert_eq!(
        asked("some", "error"),
        one("10.0.0.1:80 10.0.0.9:80 [2001:db8::9]:80; \
             h.example AAAA: SERVER: REFUSED: h.example:80 v6 true")
    );
    assert_eq!(
        asked("error", "some"),
        one("10.0.0.9:80 [2001:db8::1]:80 [2001:db8::9]:80; \
             h.example A: SERVER: REFUSED: h.example:80 v6 false")
    );
    for (v4, v6) in [("none", "error"), ("error", "none"), ("error", "error")] {
        let error = asked(v4, v6).expect_err("nothing is known of one target");
        assert!(error.contains("REFUSED"), "{error}");
    }
}

#[test]
fn a_referral_and_a_broken_reply_are_errors() {
    let server = Fake::start(|asked| {
        vec![reply(
            asked,
            [0x80, 0],
            [&[], &[record("example", 9, Data::Ns)], &[]],
        )]
    });
    let error = ask(&[server.address]).expect_err("a referral");
    assert!(error.contains("resolves recursively"), "{error}");
    let server = Fake::start(|asked| {
        let mut bytes = good(asked);
        bytes.truncate(bytes.len() - 3);
        vec![bytes]
    });
    let error = ask(&[server.address]).expect_err("broken");
    assert!(error.contains("the reply is malformed"), "{error}");
}

//! Checks over UDP: a name server that answers, one that does not, and servers that answer
//! something else.

use crate::{
    checks_mysql::setup,
    harness::{dnsmasq::Dnsmasq, ports, secs, wait_until},
};
use rustix::process::Signal;
use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

fn dnsmasq() -> Dnsmasq {
    Dnsmasq::start("host-record=db.example,10.0.0.1\n")
}

const QUICK: &str = "interval = \"100ms\"\nfast_interval = \"100ms\"\ntimeout = \"400ms\"";

#[test]
fn a_name_server_is_asked() {
    let mut server = dnsmasq();
    let backend = server.addr.to_string();
    for (check, result, expected) in [
        (
            "query = \"db.example\"",
            "ok",
            "asked db.example A: NOERROR, answers: 1",
        ),
        (
            "query = \"DB.Example.\"\nquery_type = \"AAAA\"",
            "ok",
            "asked DB.Example. AAAA: NOERROR, answers: 0",
        ),
        (
            "query = \"other.example\"",
            "unexpected",
            "asked other.example A: NXDOMAIN, answers: 0",
        ),
        (
            "query = \"other.example\"\nrcode = [\"NOERROR\", \"NXDOMAIN\"]",
            "ok",
            "asked other.example A: NXDOMAIN, answers: 0",
        ),
        ("", "unexpected", "asked . NS: REFUSED, answers: 0"),
        (
            "rcode = \"REFUSED\"",
            "ok",
            "asked . NS: REFUSED, answers: 0",
        ),
    ] {
        let setup = setup(
            &[&backend],
            "",
            &format!("kind = \"dns\"\n{QUICK}\n{check}"),
        );
        assert_eq!(setup.wait_result(&backend, result), expected, "{check}");
        setup.wait_state(&backend, if result == "ok" { "up" } else { "down" });
    }
    let setup = setup(
        &[&backend],
        "",
        &format!("kind = \"dns\"\n{QUICK}\nquery = \"db.example\""),
    );
    setup.wait_state(&backend, "up");
    server.proc.signal(Signal::STOP);
    setup.wait_state(&backend, "down");
    assert_eq!(
        setup.wait_result(&backend, "timeout"),
        "asked db.example A: no answer within 400ms"
    );
    server.proc.signal(Signal::CONT);
    setup.wait_state(&backend, "up");
    server.proc.kill();
    setup.wait_state(&backend, "down");
    assert_eq!(
        setup.wait_result(&backend, "refused"),
        "asked db.example A: Connection refused"
    );
}

/// Answers each question in this way, until it is dropped.
struct Fake {
    addr: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    fn start(reply: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> Fake {
        let socket = UdpSocket::bind(("127.0.0.1", ports::free_port())).unwrap();
        let addr = socket.local_addr().unwrap();
        socket
            .set_read_timeout(Some(std::time::Duration::from_millis(50)))
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut bytes = [0; 512];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, peer)) = socket.recv_from(&mut bytes) {
                    for reply in reply(&bytes[..length]) {
                        let _ = socket.send_to(&reply, peer);
                    }
                }
            }
        });
        Fake {
            addr,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The question as a reply to itself.
fn echo(asked: &[u8]) -> Vec<u8> {
    let mut reply = asked.to_vec();
    reply[2] |= 0x80;
    reply
}

fn with_another_id(asked: &[u8]) -> Vec<u8> {
    let mut reply = echo(asked);
    reply[1] ^= 1;
    reply
}

#[test]
fn what_is_no_reply_is_not_taken_for_one() {
    type Reply = fn(&[u8]) -> Vec<Vec<u8>>;
    let other_id: Reply = |asked| vec![with_another_id(asked)];
    let no_reply: Reply = |asked| vec![asked.to_vec()];
    let other_name: Reply = |asked| {
        let mut reply = echo(asked);
        reply[13] ^= 1;
        vec![reply]
    };
    let garbage: Reply = |_| vec![b"what is this? this is nothing".to_vec(), b"x".to_vec()];
    for (reply, part) in [
        (other_id, "; ignored 1, the last: another id, \""),
        (no_reply, "; ignored 1, the last: no reply to a query, \""),
        (other_name, "; ignored 1, the last: another question, \""),
        (garbage, "; ignored 2, the last: too short, \"x\""),
    ] {
        let fake = Fake::start(reply);
        let backend = fake.addr.to_string();
        let setup = setup(
            &[&backend],
            "",
            &format!("kind = \"dns\"\n{QUICK}\nquery = \"db.example\""),
        );
        setup.wait_state(&backend, "down");
        let transcript = setup.wait_result(&backend, "timeout");
        assert!(
            transcript.starts_with("asked db.example A: no answer within 400ms; ")
                && transcript.contains(part),
            "{transcript}"
        );
    }
    // What comes before the reply does not hide it.
    let fake = Fake::start(|asked| vec![with_another_id(asked), b"x".to_vec(), echo(asked)]);
    let backend = fake.addr.to_string();
    let setup = setup(
        &[&backend],
        "",
        &format!("kind = \"dns\"\n{QUICK}\nquery = \"db.example\""),
    );
    assert_eq!(
        setup.wait_result(&backend, "ok"),
        "asked db.example A: NOERROR, answers: 0"
    );
}

/// A number that is the same twice in a row, or that counts, could be guessed.
#[test]
fn each_question_has_another_id() {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let all = Arc::clone(&seen);
    let fake = Fake::start(move |asked| {
        all.lock()
            .unwrap()
            .push(u16::from_be_bytes([asked[0], asked[1]]));
        vec![echo(asked)]
    });
    let backend = fake.addr.to_string();
    let _setup = setup(
        &[&backend],
        "",
        &format!("kind = \"dns\"\n{QUICK}\nquery = \"db.example\""),
    );
    wait_until("twenty questions", secs(20), || {
        seen.lock().unwrap().len() >= 20
    });
    let seen = seen.lock().unwrap().clone();
    let steps: std::collections::HashSet<u16> = seen
        .windows(2)
        .map(|two| two[1].wrapping_sub(two[0]))
        .collect();
    let ids: std::collections::HashSet<&u16> = seen.iter().collect();
    assert!(ids.len() > 15 && steps.len() > 15, "{seen:?}");
}

//! Replies that come at the moment at which their flow is given up: no client gets those of
//! another.

use crate::harness::{
    millis, ports,
    programs::{again_in_own_place, place},
    rng::{self, Rng},
    secs,
    tembuku::Tembuku,
    udp::{UdpServer, V4, client, config},
    wait_until,
};
use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

const IDLE: Duration = millis(50);

type Due = Reverse<(Instant, SocketAddr, Vec<u8>)>;

/// Sends everything back after the idle time, from a millisecond before to so long after; one
/// datagram in sixteen well before, so that some replies are in time on a busy machine too.
struct Slow {
    server: Option<UdpServer>,
    addr: SocketAddr,
    thread: Option<JoinHandle<()>>,
    answered: Arc<AtomicUsize>,
}

impl Slow {
    fn start(seed: u64, after: Duration) -> Slow {
        let spread = (millis(1) + after).as_micros() as u64;
        let (sender, answers) = mpsc::channel::<(UdpSocket, Due)>();
        let mut rng = Rng::new(seed);
        let server = UdpServer::on(SocketAddr::new(V4, 0), move |socket, peer, bytes| {
            let after = match rng.below(16) {
                0 => IDLE / 2,
                _ => IDLE - millis(1) + Duration::from_micros(rng.below(spread)),
            };
            let due = Reverse((Instant::now() + after, peer, bytes.to_vec()));
            let _ = sender.send((socket.try_clone().unwrap(), due));
        });
        let answered = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&answered);
        let thread = thread::spawn(move || {
            let mut waiting: BinaryHeap<Due> = BinaryHeap::new();
            let mut socket = None;
            loop {
                let pause = waiting.peek().map_or(secs(60), |Reverse((at, ..))| {
                    at.saturating_duration_since(Instant::now())
                });
                match answers.recv_timeout(pause) {
                    Ok((own, due)) => {
                        socket = Some(own);
                        waiting.push(due);
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
                while waiting
                    .peek()
                    .is_some_and(|Reverse((at, ..))| *at <= Instant::now())
                {
                    let Some(Reverse((_, peer, bytes))) = waiting.pop() else {
                        break;
                    };
                    if let Some(socket) = &socket {
                        let _ = socket.send_to(&bytes, peer);
                        count.fetch_add(1, SeqCst);
                    }
                }
            }
        });
        Slow {
            addr: server.addr,
            server: Some(server),
            thread: Some(thread),
            answered,
        }
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.server = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// What came of the rounds of all clients.
#[derive(Debug, Default)]
struct Outcome {
    in_time: usize,
    lost: usize,
}

/// Each client asks, waits until the answer has come or certainly will not, and asks again:
/// alternately from the same port and from another. Every answer names the client that asked.
fn ask_at_the_edge(front: SocketAddr, clients: usize, rounds: usize) -> Outcome {
    let threads: Vec<JoinHandle<Outcome>> = (0..clients)
        .map(|id| {
            thread::spawn(move || {
                let mut outcome = Outcome::default();
                let (mut socket, mut port) = (client(front), 0);
                for round in 0..rounds {
                    if round % 2 == 1 {
                        socket = client(front);
                        port += 1;
                    }
                    socket.set_read_timeout(Some(2 * IDLE)).unwrap();
                    let own = format!("client {id}, port {port}, round ");
                    let sent = format!("{own}{round}");
                    socket.send(sent.as_bytes()).unwrap();
                    let mut bytes = [0; 200];
                    // What a port has asked may be answered as long as it is its own.
                    loop {
                        match socket.recv(&mut bytes) {
                            Ok(length) => {
                                let got = String::from_utf8_lossy(&bytes[..length]);
                                assert!(got.starts_with(&own), "{sent:?} was answered {got:?}");
                                if got == sent {
                                    outcome.in_time += 1;
                                    break;
                                }
                            }
                            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                                outcome.lost += 1;
                                break;
                            }
                            Err(error) => panic!("{sent}: {error}"),
                        }
                    }
                }
                outcome
            })
        })
        .collect();
    let mut all = Outcome::default();
    for thread in threads {
        let one = thread.join().unwrap_or_else(|what| resume_unwind(what));
        all.in_time += one.in_time;
        all.lost += one.lost;
    }
    all
}

/// Some are in time and some are not, or the edge was not hit.
fn at_the_edge(name: &str, process: &str, after: Duration, least: usize) {
    let seed = rng::seed(name);
    let slow = Slow::start(seed, after);
    let front = ports::free_addr();
    let config = config(front, "idle_timeout = \"50ms\"", "", &[slow.addr]);
    let tembuku = Tembuku::start(&config.replace("workers = 2", process));
    let outcome = ask_at_the_edge(front, 40, 40);
    println!("{outcome:?}");
    let sent = tembuku.metric("listener_sent_datagrams_total", &[]) as usize;
    assert!(sent >= outcome.in_time, "{sent} sent, {outcome:?}");
    wait_until("everything is answered", secs(10), || {
        tembuku.metric("listener_active_connections", &[]) == 0.0
    });
    let answered = slow.answered.load(SeqCst);
    println!(
        "{answered} answered, {sent} passed on, {} late",
        tembuku.metric("listener_dropped_datagrams_total", &[("reason", "late")])
    );
    assert!(answered >= least, "{answered}");
    assert!(outcome.in_time >= 1 && outcome.lost >= 50, "{outcome:?}");
    // Nothing vanishes: what was not passed on was too late, and that is counted a while later. The
    // last answers may come after the last flow has ended.
    wait_until("every answer is accounted for", secs(10), || {
        let late = tembuku.metric("listener_dropped_datagrams_total", &[("reason", "late")]);
        let sent = tembuku.metric("listener_sent_datagrams_total", &[]);
        (late + sent) as usize == slow.answered.load(SeqCst)
    });
    tembuku.wait_metric("sessions_closed_total", &[], |n| n >= 100.0);
}

#[test]
fn a_reply_at_the_edge_reaches_its_own_client_or_none() {
    at_the_edge(
        "a_reply_at_the_edge_reaches_its_own_client_or_none",
        "workers = 2",
        millis(1),
        1_000,
    );
}

/// With so few ports that a new flow would be given the one that another has just left: the
/// backend's late answer to that one would then come to the port of the new one. A flow for which
/// none is free for longer is refused.
#[test]
fn a_port_is_not_given_to_another_too_soon() {
    if place().is_none() {
        return again_in_own_place("udp_expiry::a_port_is_not_given_to_another_too_soon");
    }
    std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40299").unwrap();
    at_the_edge(
        "a_port_is_not_given_to_another_too_soon",
        "workers = 2\nmax_flows = 150",
        millis(100),
        300,
    );
}

/// The test is one: with answers that go to the next client that asks, it fails.
#[test]
#[should_panic(expected = "was answered")]
fn misdelivered_replies_fail_the_test() {
    let mut before: Option<Vec<u8>> = None;
    let server = UdpServer::on(SocketAddr::new(V4, 0), move |socket, peer, bytes| {
        let answer = before
            .replace(bytes.to_vec())
            .unwrap_or_else(|| bytes.to_vec());
        socket.send_to(&answer, peer).unwrap();
    });
    ask_at_the_edge(server.addr, 2, 4);
}

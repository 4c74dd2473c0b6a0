//! One listener is flooded from thousands of addresses: the others of the process do not notice.

use crate::harness::{
    millis, net, ports,
    rng::{self, Rng},
    secs,
    server::Server,
    tembuku::Tembuku,
    udp::{UdpServer, V4, client, list, receive},
};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

const SOURCES: u64 = 8_000;
const FLOWS: f64 = 500.0;

/// Speaks to it from every address of its list, over and over, each time from another port.
fn flood(front: SocketAddr, seed: u64, stop: &AtomicBool, sent: &AtomicUsize) {
    let mut rng = Rng::new(seed);
    while !stop.load(SeqCst) {
        let n = rng.below(SOURCES) as u32;
        let source = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 64, 0, 1)) + n * 7);
        let socket = UdpSocket::bind((source, 0)).unwrap();
        for _ in 0..3 {
            // A queue that is full is none of its business.
            if socket.send_to(b"flood", front).is_ok() {
                sent.fetch_add(1, SeqCst);
            }
        }
    }
}

/// What a client sees that waits for each answer.
#[derive(Debug)]
struct Seen {
    exchanges: usize,
    /// Nine of ten took no longer.
    ninth_decile: Duration,
    longest: Duration,
}

/// Each client makes at least so many exchanges, however long a busy machine takes for them.
const EXCHANGES: usize = 101;

/// One exchange after the other, at this pace. One that is lost ends the test.
fn paced(stop: &AtomicBool, mut exchange: impl FnMut(u64)) -> Seen {
    let mut took = Vec::new();
    while !stop.load(SeqCst) || took.len() < EXCHANGES {
        let began = Instant::now();
        exchange(took.len() as u64);
        took.push(began.elapsed());
        thread::sleep(millis(2));
    }
    took.sort_unstable();
    Seen {
        exchanges: took.len(),
        ninth_decile: took[took.len() * 9 / 10],
        longest: took[took.len() - 1],
    }
}

fn by_udp(front: SocketAddr, stop: &AtomicBool) -> Seen {
    let client = client(front);
    paced(stop, |n| {
        client.send(&n.to_le_bytes()).unwrap();
        assert_eq!(receive(&client), n.to_le_bytes());
    })
}

fn by_tcp(front: SocketAddr, stop: &AtomicBool) -> Seen {
    let (mut stream, _) = net::session(front).unwrap();
    stream.set_nodelay(true).unwrap();
    paced(stop, |n| {
        stream.write_all(&n.to_le_bytes()).unwrap();
        let mut back = [0; 8];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(back, n.to_le_bytes());
    })
}

/// New connections, too.
fn by_new_tcp(front: SocketAddr, stop: &AtomicBool) -> Seen {
    paced(stop, |_| assert_eq!(net::ask(front).unwrap(), "tcp"))
}

fn flooded(when_full: &str) {
    let seed = rng::seed("flooded");
    let (victim, udp, tcp) = (
        UdpServer::echo(V4),
        UdpServer::echo(V4),
        Server::named("tcp"),
    );
    let fronts = [ports::free_addr(), ports::free_addr(), ports::free_addr()];
    let tembuku = Tembuku::start(&format!(
        "[process]\nworkers = 2\n\
         [listeners.flooded]\nbind = \"{}\"\nprotocol = \"udp\"\nupstream = \"v\"\n\
         max_connections = {FLOWS}\n\
         idle_timeout = \"1s\"\nwhen_full = \"{when_full}\"\n\
         [listeners.udp]\nbind = \"{}\"\nprotocol = \"udp\"\nupstream = \"d\"\n\
         [listeners.tcp]\nbind = \"{}\"\nupstream = \"s\"\n\
         [upstreams.v]\nbackends = {}\n[upstreams.d]\nbackends = {}\n\
         [upstreams.s]\nbackends = {}\n",
        fronts[0],
        fronts[1],
        fronts[2],
        list(&[victim.addr]),
        list(&[udp.addr]),
        list(&[tcp.addr])
    ));
    let stop = Arc::new(AtomicBool::new(false));
    let sent = Arc::new(AtomicUsize::new(0));
    let clients: Vec<JoinHandle<Seen>> = [by_udp, by_udp, by_tcp, by_tcp, by_new_tcp]
        .into_iter()
        .zip([1, 1, 2, 2, 2])
        .map(|(run, front)| {
            let stop = Arc::clone(&stop);
            let front = fronts[front];
            thread::spawn(move || run(front, &stop))
        })
        .collect();
    let (count, front) = (Arc::clone(&sent), fronts[0]);
    let flood_stop = Arc::new(AtomicBool::new(false));
    let own = Arc::clone(&flood_stop);
    let flooder = thread::spawn(move || flood(front, seed, &own, &count));
    let labels = [("listener", "flooded")];
    let began = Instant::now();
    let mut most = 0.0_f64;
    // Until it has come from about every source, and for some seconds.
    while sent.load(SeqCst) < 5 * SOURCES as usize || began.elapsed() < secs(3) {
        assert!(began.elapsed() < secs(60), "{sent:?}");
        most = most.max(tembuku.metric("listener_active_connections", &labels));
    }
    stop.store(true, SeqCst);
    let seen: Vec<Seen> = clients.into_iter().map(|c| c.join().unwrap()).collect();
    // After the clients: all of their exchanges are made beside the flood.
    flood_stop.store(true, SeqCst);
    flooder.join().unwrap();
    for seen in seen {
        println!("{when_full}: {seen:?}");
        assert!(seen.exchanges >= EXCHANGES, "{seen:?}");
        // A single one may wait for a processor that has other work.
        assert!(seen.ninth_decile < millis(500), "{seen:?}");
        assert!(seen.longest < secs(10), "{seen:?}");
    }
    println!(
        "{when_full}: {sent:?} sent, {} arrived, at most {most} flows",
        victim.taken()
    );
    // A newcomer is let in while another worker ends a flow for it.
    let beyond = if when_full == "evict" { 16.0 } else { 0.0 };
    assert!(most <= FLOWS + beyond, "{most}");
    assert!(most > FLOWS / 2.0, "there was no flood: {most}");
    // Before the metrics: what waits in a socket still arrives meanwhile.
    let taken = victim.taken();
    let metrics = tembuku.metrics();
    let rejected = metrics.sum("listener_rejected_total", &[("reason", "max_connections")]);
    let evicted = metrics.sum("sessions_closed_total", &[("reason", "evicted")]);
    match when_full {
        "refuse" => assert!(rejected > 1_000.0, "{rejected}"),
        _ => assert!(evicted > 1_000.0, "{evicted}"),
    }
    for listener in ["udp", "tcp"] {
        let labels = [("listener", listener)];
        assert_eq!(
            metrics.sum("listener_dropped_datagrams_total", &labels),
            0.0
        );
        assert_eq!(metrics.sum("listener_rejected_total", &labels), 0.0);
    }
    // Nothing that has come is unaccounted for: it went on, or was dropped for a reason that is
    // counted.
    let received = metrics.sum("listener_received_datagrams_total", &labels);
    println!("{when_full}: {received} received, {rejected} rejected, {evicted} evicted");
    assert!(taken as f64 <= received, "{taken} of {received}");
    // When it is over the permit is free again.
    tembuku.wait_metric("listener_active_connections", &labels, |n| n == 0.0);
    let late = client(front);
    late.send(b"now").unwrap();
    assert_eq!(receive(&late), b"now");
}

#[test]
fn newcomers_are_refused_and_others_do_not_notice() {
    flooded("refuse");
}

#[test]
fn new_flows_evict_idle_ones_and_no_others() {
    flooded("evict");
}

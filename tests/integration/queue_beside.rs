//! Sessions that wait, beside HAProxy, and where the servers are real.

use crate::harness::{
    millis,
    net::{self, connect, read_all, read_line},
    ports,
    programs::{Haproxy, Redis, call},
    secs,
    server::named,
    tembuku::Tembuku,
    wait_until,
};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

fn wait_waiting(tembuku: &Tembuku, wait: &str, count: usize) {
    let labels = [("wait", wait)];
    tembuku.wait_metric("upstream_waiting_sessions", &labels, |n| n == count as f64);
}

/// What became of a client, and when.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Served,
    Refused,
}

/// Two places. Six clients arrive; those that are served first leave after a while, the next never.
/// Returns the fate of each client and how long it waited.
fn arrive(front: SocketAddr) -> Vec<(Fate, Duration)> {
    const STAY: Duration = millis(700);
    let began = Instant::now();
    let clients: Vec<TcpStream> = (0..6).map(|_| connect(front).unwrap()).collect();
    let waiting = clients.into_iter().enumerate().map(|(n, mut client)| {
        thread::spawn(move || {
            let fate = match read_line(&mut client) {
                Ok(_) => Fate::Served,
                Err(_) => Fate::Refused,
            };
            let waited = began.elapsed();
            if n < 2 {
                thread::sleep(STAY);
                drop(client);
            } else if fate == Fate::Served {
                // Until the others have been refused.
                let _ = client.set_read_timeout(Some(secs(4)));
                let _ = client.read(&mut [0]);
            }
            (fate, waited)
        })
    });
    let waiting: Vec<_> = waiting.collect();
    waiting.into_iter().map(|one| one.join().unwrap()).collect()
}

/// The same arrivals, with `maxconn` and `timeout queue` there: the same clients are served and
/// refused, after the same time.
#[test]
fn haproxy_serves_and_refuses_the_same() {
    let servers = named(1);
    let fronts = [ports::free_addr(), ports::free_addr()];
    let _haproxy = Haproxy::start(
        &fronts[..1],
        &format!(
            "global\n nbthread 1\nlisten f\n mode tcp\n bind {}\n timeout queue 2s\n \
             server s {} maxconn 2\n",
            fronts[0], servers[0].addr
        ),
    );
    let other = named(1);
    let _tembuku = Tembuku::start(&format!(
        "[process]\nworkers = 1\n[listeners.l]\nbind = \"{}\"\nupstream = \"u\"\n\
         [upstreams.u]\nqueue_timeout = \"2s\"\n\
         backends = [{{ address = \"{}\", max_connections = 2 }}]\n",
        fronts[1], other[0].addr
    ));
    let both = fronts.map(|front| thread::spawn(move || arrive(front)));
    let [haproxy, tembuku] = both.map(|one| one.join().unwrap());
    println!("HAProxy {haproxy:?}\ntembuku {tembuku:?}");
    for fates in [&haproxy, &tembuku] {
        let refused = fates.iter().map(|(fate, _)| *fate == Fate::Refused);
        let expected = [false, false, false, false, true, true];
        assert_eq!(refused.collect::<Vec<_>>(), expected, "{fates:?}");
        for (n, (_, waited)) in fates.iter().enumerate() {
            let (least, most) = match n {
                0 | 1 => (0, 650),
                2 | 3 => (650, 1900),
                _ => (1900, 6000),
            };
            let range = millis(least)..millis(most);
            assert!(range.contains(waited), "{n} waited {waited:?}: {fates:?}");
        }
    }
}

/// Many clients, two workers and one place, so that a client is served when the one before it has
/// noted that it was.
#[test]
fn no_session_is_overtaken_by_more_than_a_few() {
    const CLIENTS: usize = 300;
    /// So many arrive at once: on two workers, in any order.
    const TOGETHER: usize = 10;
    let servers = named(1);
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[process]\nworkers = 2\n[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nqueue_timeout = \"1m\"\n\
         backends = [{{ address = \"{}\", max_connections = 1 }}]\n",
        servers[0].addr
    ));
    let (holder, _) = net::session(front).unwrap();
    let served = Arc::new(Mutex::new(Vec::new()));
    let mut clients = Vec::new();
    for n in 0..CLIENTS {
        let mut client = connect(front).unwrap();
        if (n + 1) % TOGETHER == 0 {
            wait_waiting(&tembuku, "queue", n + 1);
        }
        let served = Arc::clone(&served);
        clients.push(thread::spawn(move || {
            read_line(&mut client).unwrap();
            served.lock().unwrap().push(n);
        }));
    }
    drop(holder);
    clients.into_iter().for_each(|c| c.join().unwrap());
    let order = served.lock().unwrap().clone();
    assert_eq!(order.len(), CLIENTS);
    let overtaken = |(at, n): (usize, &usize)| order[..at].iter().filter(|m| *m > n).count();
    let most = order.iter().enumerate().map(overtaken).max().unwrap();
    println!("overtaken by {most} at most");
    assert!(most < TOGETHER, "{most}: {order:?}");
}

fn redis_ping(client: &mut TcpStream) -> Option<String> {
    client.write_all(b"PING\r\n").ok()?;
    read_line(client).ok()
}

/// The server dies for real while sessions wait for a place there. Its clients are lost with it;
/// those that wait are held until another server comes up.
#[test]
fn what_waits_survives_the_death_of_a_server() {
    const WAITING: usize = 10;
    let mut first = Redis::start(ports::free_addr());
    let second = ports::free_addr();
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[process]\nworkers = 2\n[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nqueue_timeout = \"1m\"\nhold_timeout = \"1m\"\n\
         backends = [{{ address = \"{}\", max_connections = 1 }}, \
         {{ address = \"{second}\", max_connections = 100 }}]\n\
         check = {{ kind = \"redis\", interval = \"100ms\", timeout = \"1s\", \
         fall = 1, rise = 1 }}\n",
        first.addr
    ));
    tembuku.wait_metric("upstream_available_backends", &[], |n| n == 1.0);
    wait_until("it is served", secs(10), || {
        call(front, "PING").is_ok_and(|answer| answer == "+PONG")
    });
    tembuku.wait_idle();
    let mut holder = connect(front).unwrap();
    assert_eq!(redis_ping(&mut holder).unwrap().trim(), "+PONG");
    let mut waiting: Vec<_> = (0..WAITING).map(|_| connect(front).unwrap()).collect();
    wait_waiting(&tembuku, "queue", WAITING);
    first.proc.kill();
    read_all(&mut holder);
    wait_waiting(&tembuku, "hold", WAITING);
    let _second = Redis::start(second);
    for client in &mut waiting {
        assert_eq!(redis_ping(client).unwrap().trim(), "+PONG");
    }
    wait_waiting(&tembuku, "hold", 0);
}

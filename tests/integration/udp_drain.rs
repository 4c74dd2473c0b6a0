//! Stopping: earlier requests are answered, later ones are not, and it does not take longer than it
//! may.

use crate::harness::{
    bounded, millis,
    net::PATIENCE,
    ports, secs,
    tembuku::Tembuku,
    udp::{UdpServer, addrs, ask, client, config, named, receive_text},
    wait_until,
};
use rustix::process::Signal;
use std::{
    net::{SocketAddr, UdpSocket},
    time::Instant,
};

#[track_caller]
fn serve(drain_timeout: &str, listener: &str, servers: &[UdpServer]) -> (SocketAddr, Tembuku) {
    let front = ports::free_addr();
    let config = config(front, listener, "", &addrs(servers)).replacen(
        "[process]\n",
        &format!("[process]\ndrain_timeout = \"{drain_timeout}\"\n"),
        1,
    );
    (front, Tembuku::start(&config))
}

#[track_caller]
fn stop(tembuku: &Tembuku) {
    tembuku.proc.signal(Signal::TERM);
    wait_until("not ready any more", PATIENCE, || {
        tembuku.get("/readyz").status == 503
    });
}

#[test]
fn with_no_flows_it_ends_at_once() {
    let servers = named(1);
    let (front, mut tembuku) = serve("1m", "responses = 1", &servers);
    assert_eq!(ask(&client(front), "x"), "b1 x");
    tembuku.wait_flows(0.0);
    let began = Instant::now();
    assert_eq!(tembuku.terminate().code(), Some(0));
    assert!(began.elapsed() < secs(3), "{:?}", began.elapsed());
}

/// A flow without datagrams is no reason to wait.
#[test]
fn silent_flows_do_not_hold_it_up() {
    let servers = named(1);
    let (front, mut tembuku) = serve("1m", "idle_timeout = \"1h\"", &servers);
    let clients: Vec<UdpSocket> = (0..20).map(|_| client(front)).collect();
    for client in &clients {
        assert_eq!(ask(client, "x"), "b1 x");
    }
    let began = Instant::now();
    assert_eq!(tembuku.terminate().code(), Some(0));
    assert!(began.elapsed() < secs(5), "{:?}", began.elapsed());
    let records = tembuku.access_log(20);
    assert_eq!(records.len(), 20);
    for record in records {
        assert!(
            ["ok", "drained"].contains(&record["close_reason"].as_str().unwrap()),
            "{record}"
        );
    }
}

#[test]
fn pending_replies_are_delivered_and_new_clients_refused() {
    for listener in ["responses = 1", ""] {
        let servers = named(1);
        let (front, mut tembuku) = serve("1m", listener, &servers);
        let waiting = client(front);
        servers[0].hold();
        waiting.send(b"in flight").unwrap();
        servers[0].wait_held(1);
        let began = Instant::now();
        stop(&tembuku);
        let late_client = client(front);
        let _ = late_client.send(b"too late");
        if listener.is_empty() {
            // Nothing reports it in this second, and it would be given up then.
            assert!(
                began.elapsed() < millis(900),
                "too slow to know: {:?}",
                began.elapsed()
            );
        }
        servers[0].release();
        assert_eq!(receive_text(&waiting), "b1 in flight");
        let status = tembuku
            .proc
            .wait(secs(5))
            .expect("an end after the last flow");
        assert_eq!(status.code(), Some(0));
        assert_eq!(servers[0].taken(), 1, "{listener}");
        // The process has ended: what it has sent has come.
        late_client.set_nonblocking(true).unwrap();
        assert!(late_client.recv(&mut [0; 100]).is_err());
    }
}

/// The kernel shares clients out among the sockets that there are: a worker that has nothing to do
/// any more must keep its own.
#[test]
fn flows_of_other_workers_are_not_lost() {
    let servers = named(1);
    let front = ports::free_addr();
    let config = config(front, "", "", &addrs(&servers)).replacen(
        "workers = 2",
        "workers = 8\ndrain_timeout = \"3s\"",
        1,
    );
    let mut tembuku = Tembuku::start(&config);
    let clients: Vec<UdpSocket> = (0..3).map(|_| client(front)).collect();
    for client in &clients {
        assert_eq!(ask(client, "before"), "b1 before");
    }
    stop(&tembuku);
    for n in 0..20 {
        for client in &clients {
            assert_eq!(ask(client, &n.to_string()), format!("b1 {n}"));
        }
    }
    let status = tembuku.proc.wait(secs(10)).expect("an end in time");
    assert_eq!(status.code(), Some(0));
}

/// Flows that are used go on, until the limit.
#[test]
fn the_limit_cuts_those_that_go_on() {
    let servers = named(1);
    let (front, mut tembuku) = serve("3s", "", &servers);
    let client = client(front);
    assert_eq!(ask(&client, "before"), "b1 before");
    let began = Instant::now();
    stop(&tembuku);
    let mut n = 0;
    // The pace of a client that goes on asking.
    while began.elapsed() < millis(2_000) {
        assert_eq!(ask(&client, &n.to_string()), format!("b1 {n}"));
        std::thread::sleep(millis(50));
        n += 1;
    }
    while tembuku.proc.ended().is_none() && began.elapsed() < secs(10) {
        let _ = client.send(b"more");
        std::thread::sleep(millis(20));
    }
    let status = tembuku.proc.wait(secs(1)).expect("an end at the limit");
    assert_eq!(status.code(), Some(0));
    assert!(
        bounded(began.elapsed(), millis(2_900), secs(8)),
        "{:?}",
        began.elapsed()
    );
    let record = tembuku.access_log(1).remove(0);
    assert_eq!(record["close_reason"], "drained", "{record}");
}

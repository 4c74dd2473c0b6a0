//! `bandwidth`, `bandwidth_per_source` and `bandwidth_total`.
//!
//! How slow a machine is decides how little is carried in a time, so that the lower bounds are
//! loose. The upper ones hold always: what a limit allows from its beginning on, and a burst.

use crate::harness::{
    net::{connect, connect_with, echo, read_line, session},
    ports,
    programs::Nginx,
    rng::{Rng, seed},
    secs,
    server::{Server, named},
    tembuku::Tembuku,
    udp::{UdpServer, V4, client},
    wait_until,
};
use std::{
    io::{Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

const K: u64 = 1024;

fn config(front: SocketAddr, listener: &str, backend: SocketAddr) -> String {
    format!(
        "[log]\naccess = \"{{dir}}/access.log\"\n[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n{listener}\n\
         [upstreams.u]\nbackends = [\"{backend}\"]\n"
    )
}

/// Sends zeros without end, and reads nothing.
fn source_server() -> Server {
    Server::start(|mut stream| {
        let block = vec![0; 64 * 1024];
        while stream.write_all(&block).is_ok() {}
    })
}

/// What a limit of `rate` may have let pass in a time: what it allows, a burst of a tenth of a
/// second, and a read.
fn most(rate: u64, time: Duration) -> u64 {
    (rate as f64 * (time.as_secs_f64() + 0.1)) as u64 + 1024
}

/// Connects, reads for so long, and checks at every read that it is no more than a limit allows.
fn download(front: SocketAddr, rate: u64, time: Duration) -> (TcpStream, u64) {
    // The session may run before this thread does again.
    let began = Instant::now();
    let mut stream = connect(front).unwrap();
    let (mut total, mut block) = (0, vec![0; 64 * 1024]);
    while began.elapsed() < time {
        let n = stream.read(&mut block).unwrap() as u64;
        total += n;
        let most = most(rate, began.elapsed());
        assert!(total <= most, "{total} of {most} in {:?}", began.elapsed());
    }
    (stream, total)
}

#[test]
fn a_download_has_its_rate_and_comes_without_bursts() {
    let server = source_server();
    let front = ports::free_addr();
    let keys = "bandwidth = { down = \"1m\" }";
    let tembuku = Tembuku::start(&config(front, keys, server.addr));
    let (_, total) = download(front, 1024 * K, secs(2));
    assert!(total > 1024 * K, "{total}");
    let labels = [("limit", "bandwidth"), ("result", "delayed")];
    let pauses = tembuku.metric("listener_over_limit_total", &labels);
    // Not for every byte, and not once a second.
    assert!((20.0..=400.0).contains(&pauses), "{pauses}");
}

#[test]
fn an_upload_has_its_rate_and_the_other_way_none() {
    let server = Server::start(|mut stream| {
        let mut block = vec![0; 64 * 1024];
        let mut total = 0u64;
        let began = Instant::now();
        while began.elapsed() < secs(1) {
            match stream.read(&mut block) {
                Ok(0) | Err(_) => return,
                Ok(n) => total += n as u64,
            }
        }
        let _ = stream.write_all(&vec![1; 4 << 20]);
        let _ = writeln!(stream, "{total}");
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let front = ports::free_addr();
    let keys = "bandwidth = { up = \"512k\" }";
    let _tembuku = Tembuku::start(&config(front, keys, server.addr));
    let began = Instant::now();
    let mut stream = connect(front).unwrap();
    let mut sender = stream.try_clone().unwrap();
    thread::spawn(move || {
        let block = vec![0; 64 * 1024];
        while sender.write_all(&block).is_ok() {}
    });
    let mut back = vec![0; 4 << 20];
    stream.read_exact(&mut back).unwrap();
    assert!(back.iter().all(|byte| *byte == 1));
    // At the rate of the other way it would take eight seconds.
    assert!(began.elapsed() < secs(6), "{:?}", began.elapsed());
    let total: u64 = read_line(&mut stream).unwrap().parse().unwrap();
    let most = most(512 * K, began.elapsed());
    assert!(total <= most, "{total} of {most}");
    assert!(total > 256 * K, "{total}");
    stream.shutdown(Shutdown::Both).unwrap();
}

/// Bytes, their order and the ends, through a limit in each direction.
#[test]
fn no_byte_is_lost_and_ends_arrive() {
    const SIZE: usize = 3 << 20;
    let server = Server::start(|mut stream| {
        let mut other = stream.try_clone().unwrap();
        let _ = std::io::copy(&mut stream, &mut other);
        let _ = other.shutdown(Shutdown::Write);
    });
    let front = ports::free_addr();
    let keys = "bandwidth = { up = \"8m\", down = \"6m\" }";
    let tembuku = Tembuku::start(&config(front, keys, server.addr));
    let mut rng = Rng::new(seed("bandwidth"));
    let sent: Vec<u8> = (0..SIZE / 8)
        .flat_map(|_| rng.next().to_le_bytes())
        .collect();
    let began = Instant::now();
    let mut stream = connect(front).unwrap();
    let mut sender = stream.try_clone().unwrap();
    let to_send = sent.clone();
    let sending = thread::spawn(move || {
        sender.write_all(&to_send).unwrap();
        sender.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    sending.join().unwrap();
    assert!(back == sent, "{} of {SIZE} bytes", back.len());
    assert!(
        began.elapsed() > Duration::from_millis(350),
        "{:?}",
        began.elapsed()
    );
    let record = tembuku.access_log(1).remove(0);
    assert_eq!(record["close_reason"], "ok", "{record}");
    assert_eq!(record["bytes_sent"], SIZE, "{record}");
}

#[test]
fn a_fast_session_still_splices() {
    let server = source_server();
    let front = ports::free_addr();
    let keys = "bandwidth = { down = \"64m\" }";
    let tembuku = Tembuku::start(&config(front, keys, server.addr));
    let (_, total) = download(front, 65_536 * K, secs(1));
    let spliced = tembuku.metric("relayed_bytes_total", &[("mode", "splice")]);
    assert!(spliced > total as f64 * 0.8, "{spliced} of {total}");
}

fn at(last: u8) -> IpAddr {
    IpAddr::from([127, 5, 5, last])
}

/// How much each of these gets in a time.
fn download_together(streams: Vec<TcpStream>, time: Duration) -> Vec<u64> {
    let reading = streams.into_iter().map(|mut stream| {
        thread::spawn(move || {
            let began = Instant::now();
            let (mut total, mut block) = (0, vec![0; 64 * 1024]);
            while began.elapsed() < time {
                total += stream.read(&mut block).unwrap() as u64;
            }
            total
        })
    });
    let reading: Vec<_> = reading.collect();
    reading.into_iter().map(|one| one.join().unwrap()).collect()
}

#[test]
fn sessions_of_a_source_share_and_other_sources_do_not() {
    let server = source_server();
    let front = ports::free_addr();
    let keys = "bandwidth_per_source = { down = \"1m\" }";
    let _tembuku = Tembuku::start(&config(front, keys, server.addr));
    let began = Instant::now();
    let sources = [1, 1, 1, 2].map(at);
    let streams = sources.map(|source| connect_with(front, Some(source), 0, 0).unwrap());
    let totals = download_together(streams.into(), secs(2));
    let most = most(1024 * K, began.elapsed());
    let shared: u64 = totals[..3].iter().sum();
    // Each may have had a slice at once.
    assert!(shared <= most + 3 * 16 * K, "{totals:?} of {most}");
    assert!(totals[3] <= most + 16 * K, "{totals:?} of {most}");
    for total in &totals[..3] {
        assert!(*total > 200 * K, "{totals:?}");
    }
    assert!(totals[3] > 1024 * K, "{totals:?}");
}

#[test]
fn all_sessions_share_the_total() {
    let server = source_server();
    let front = ports::free_addr();
    let keys = "bandwidth_total = { down = \"2m\" }\nbandwidth = { down = \"1m\" }";
    let tembuku = Tembuku::start(&config(front, keys, server.addr));
    let began = Instant::now();
    let streams: Vec<_> = (0..8)
        .map(|n| connect_with(front, Some(at(n)), 0, 0).unwrap())
        .collect();
    let totals = download_together(streams, secs(2));
    let most = most(2048 * K, began.elapsed());
    let all: u64 = totals.iter().sum();
    assert!(all <= most + 8 * 32 * K, "{totals:?} of {most}");
    assert!(totals.iter().all(|total| *total > 128 * K), "{totals:?}");
    let labels = [("limit", "bandwidth_total"), ("result", "delayed")];
    assert!(tembuku.metric("listener_over_limit_total", &labels) > 0.0);
}

#[test]
fn a_reload_changes_the_rate_of_sessions_at_once() {
    let server = source_server();
    let front = ports::free_addr();
    let keys = |rate: &str| {
        let keys = format!("bandwidth = {{ down = \"{rate}\" }}");
        config(front, &keys, server.addr)
    };
    let tembuku = Tembuku::start(&keys("100k"));
    let (mut stream, slow) = download(front, 100 * K, secs(1));
    tembuku.reload(&keys("4m"));
    let mut drained = vec![0; 8 << 20];
    let began = Instant::now();
    stream.read_exact(&mut drained[..2 << 20]).unwrap();
    assert!(
        slow < 200 * K && began.elapsed() < secs(15),
        "{:?}",
        began.elapsed()
    );
    // No limit any more, for this session neither.
    tembuku.reload(&config(front, "", server.addr));
    let began = Instant::now();
    for _ in 0..4 {
        stream.read_exact(&mut drained).unwrap();
    }
    assert!(began.elapsed() < secs(6), "{:?}", began.elapsed());
}

/// A mistake, and its correction: nothing waits for what the old rate would have taken.
#[test]
fn a_limit_of_one_byte_can_be_taken_back() {
    let servers = named(1);
    let front = ports::free_addr();
    let keys = |rate: &str| {
        let keys =
            format!("bandwidth = {{ up = \"{rate}\" }}\nbandwidth_total = {{ up = \"{rate}\" }}");
        config(front, &keys, servers[0].addr)
    };
    let tembuku = Tembuku::start(&keys("1"));
    let mut clients: Vec<TcpStream> = (0..5).map(|_| session(front).unwrap().0).collect();
    for client in &mut clients {
        client.write_all(&[b'x'; 1000]).unwrap();
    }
    let labels = [("limit", "bandwidth_total"), ("result", "delayed")];
    tembuku.wait_metric("listener_over_limit_total", &labels, |n| n > 2.0);
    let began = Instant::now();
    tembuku.reload(&keys("1000000g"));
    for client in &mut clients {
        client.read_exact(&mut [0; 1000]).unwrap();
    }
    // Five thousand seconds at the old one.
    assert!(began.elapsed() < secs(10), "{:?}", began.elapsed());
}

/// A client that resets while what it has sent waits: all of it arrives, and then the reset.
#[test]
fn a_reset_arrives_after_a_pause() {
    const SIZE: usize = 40_000;
    let (sender, ends) = std::sync::mpsc::channel();
    let server = Server::start(move |mut stream| {
        let (bytes, end) = crate::harness::net::read_all(&mut stream);
        let _ = sender.send((bytes.len(), end));
    });
    let front = ports::free_addr();
    let keys = "bandwidth = { up = \"20k\" }";
    let tembuku = Tembuku::start(&config(front, keys, server.addr));
    let mut client = connect(front).unwrap();
    client.write_all(&[7; SIZE]).unwrap();
    let labels = [("limit", "bandwidth"), ("result", "delayed")];
    tembuku.wait_metric("listener_over_limit_total", &labels, |n| n > 2.0);
    crate::harness::net::reset(client);
    let (bytes, end) = ends.recv_timeout(secs(30)).unwrap();
    assert_eq!(bytes, SIZE);
    assert!(matches!(end, crate::harness::net::End::Reset), "{end:?}");
    let record = tembuku.access_log(1).remove(0);
    assert_eq!(record["close_reason"], "client_reset", "{record}");
}

/// The header for the backend goes there at once, and counts for no limit.
#[test]
fn a_header_for_the_backend_is_not_limited() {
    let (sender, lines) = std::sync::mpsc::channel();
    let server = Server::start(move |mut stream| {
        while let Ok(line) = read_line(&mut stream) {
            let _ = sender.send((line, Instant::now()));
        }
    });
    let front = ports::free_addr();
    let keys = "bandwidth = { up = \"10\" }\nsend_proxy = \"v1\"";
    let _tembuku = Tembuku::start(&config(front, keys, server.addr));
    let began = Instant::now();
    let mut client = connect(front).unwrap();
    let (header, at) = lines.recv_timeout(secs(20)).unwrap();
    assert!(header.starts_with("PROXY TCP4 127.0.0.1 "), "{header}");
    // At ten bytes in a second it would take five.
    assert!(at - began < secs(4), "{:?}", at - began);
    client.write_all(b"0123456789012345678\n").unwrap();
    let (line, _) = lines.recv_timeout(secs(30)).unwrap();
    assert_eq!(line, "0123456789012345678");
}

/// What it has sent is more than a limit allows within the idle time.
#[test]
fn a_pause_is_no_silence() {
    let servers = named(1);
    let front = ports::free_addr();
    let keys = "bandwidth = { up = \"4k\" }\nidle_timeout = \"500ms\"\n\
                half_close_timeout = \"200ms\"";
    let tembuku = Tembuku::start(&config(front, keys, servers[0].addr));
    let (mut stream, _) = session(front).unwrap();
    let began = Instant::now();
    let line = "x".repeat(8 * 1024 - 1);
    echo(&mut stream, &line).unwrap();
    assert!(
        began.elapsed() > Duration::from_millis(1500),
        "{:?}",
        began.elapsed()
    );
    drop(stream);
    let record = tembuku.access_log(1).remove(0);
    assert_eq!(record["close_reason"], "ok", "{record}");
}

#[test]
fn a_dry_run_counts_and_delays_nothing() {
    let server = source_server();
    let front = ports::free_addr();
    let keys = "bandwidth = { down = \"100k\" }\nlimits_dry_run = true";
    let tembuku = Tembuku::start(&config(front, keys, server.addr));
    let mut stream = connect(front).unwrap();
    let mut block = vec![0; 8 << 20];
    stream.read_exact(&mut block).unwrap();
    let passed = [("limit", "bandwidth"), ("result", "passed")];
    assert!(tembuku.metric("listener_over_limit_total", &passed) > 0.0);
    let delayed = [("limit", "bandwidth"), ("result", "delayed")];
    assert_eq!(tembuku.metric("listener_over_limit_total", &delayed), 0.0);
}

/// The same setting. nginx counts in whole seconds, so that it may be a second ahead.
#[test]
fn nginx_downloads_as_much() {
    let server = source_server();
    let fronts = [ports::free_addr(), ports::free_addr()];
    let _nginx = Nginx::start(
        fronts[0],
        &format!(
            "stream {{ server {{ listen {}; proxy_download_rate 1m; proxy_pass {}; }} }}",
            fronts[0], server.addr
        ),
    );
    let keys = "bandwidth = { down = \"1m\" }";
    let _tembuku = Tembuku::start(&config(fronts[1], keys, server.addr));
    let totals = fronts.map(|front| {
        thread::spawn(move || {
            let stream = connect(front).unwrap();
            download_together(vec![stream], secs(3))[0]
        })
    });
    let [nginx, tembuku] = totals.map(|total| total.join().unwrap());
    println!("nginx {nginx}, tembuku {tembuku}");
    assert!(
        nginx <= 5 << 20 && tembuku <= (3 << 20) + 300 * K,
        "{nginx} {tembuku}"
    );
    assert!(nginx > 1 << 20 && tembuku > 1 << 20, "{nginx} {tembuku}");
}

#[test]
fn datagrams_over_the_rate_are_dropped() {
    const SIZE: usize = 1000;
    let server = UdpServer::echo(V4);
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&config(
        front,
        "protocol = \"udp\"\nbandwidth = { down = \"100k\" }",
        server.addr,
    ));
    let flow = client(front);
    let began = Instant::now();
    let mut sent = 0.0;
    while began.elapsed() < secs(1) {
        for _ in 0..10 {
            flow.send(&[7; SIZE]).unwrap();
            sent += 1.0;
        }
        thread::sleep(Duration::from_millis(10));
    }
    let delivered = || tembuku.metric("listener_sent_datagrams_total", &[]);
    let dropped = || {
        tembuku.metric(
            "listener_dropped_datagrams_total",
            &[("reason", "bandwidth")],
        )
    };
    wait_until("all of them are accounted for", secs(10), || {
        delivered() + dropped() == sent
    });
    let burst = 64.0 * 1024.0 + 15.0 * 1024.0;
    let most = (100.0 * 1024.0 * began.elapsed().as_secs_f64() + burst) / SIZE as f64;
    assert!(delivered() <= most, "{} of {most}", delivered());
    assert!(delivered() >= 64.0 && dropped() > 0.0, "{sent}");
    // What comes from clients has no limit here.
    assert_eq!(
        tembuku.metric("backend_sent_bytes_total", &[]),
        sent * SIZE as f64
    );
}

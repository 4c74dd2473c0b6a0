//! What a burst has taken is given back.

use crate::harness::{
    net::{self, connect},
    poll, ports, secs,
    server::Server,
    tembuku::Tembuku,
    wait_until,
};
use std::{io::Write, net::TcpStream};

const MEGABYTE: u64 = 1 << 20;

/// A tenth of what the burst took may stay, and what was there before.
#[track_caller]
fn assert_given_back(tembuku: &Tembuku, before: u64) {
    let resident = || tembuku.proc.rss() / MEGABYTE;
    let given_back = poll(secs(30), || {
        (resident() <= before / MEGABYTE + 12).then_some(())
    });
    assert!(
        given_back.is_some(),
        "{} MB before, {} MB now",
        before / MEGABYTE,
        resident()
    );
}

/// A header of PROXY protocol 2 may be 64 KiB long, and need not be complete.
#[test]
fn long_headers_of_many_clients() {
    const CLIENTS: usize = 1_000;
    let server = Server::named("b1");
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         accept_proxy = {{ timeout = \"2m\" }}\n\
         [upstreams.u]\nbackends = [\"{}\"]\n",
        server.addr
    ));
    let before = tembuku.proc.rss();
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff".to_vec();
    header.resize(16 + 57_000, 0);
    let mut staying = Vec::new();
    let clients: Vec<TcpStream> = (0..CLIENTS)
        .map(|n| {
            // Sessions that stay: what lies beside theirs cannot be given back by moving the end
            // of the heap.
            if n % 20 == 0 {
                let mut client = connect(front).unwrap();
                client.write_all(b"PROXY UNKNOWN\r\n").unwrap();
                assert_eq!(net::read_line(&mut client).unwrap(), "b1");
                staying.push(client);
            }
            let mut client = connect(front).unwrap();
            client.write_all(&header).unwrap();
            client
        })
        .collect();
    let most = CLIENTS as u64 * 52_000;
    wait_until("all of them are read", secs(30), || {
        tembuku.proc.rss() > before + most
    });
    let grown = (tembuku.proc.rss() - before) / MEGABYTE;
    assert!(grown < 85, "{grown} MB for 57 MB");
    drop(clients);
    let live = staying.len() as f64;
    tembuku.wait_metric("listener_active_connections", &[], |n| n == live);
    assert_given_back(&tembuku, before);
}

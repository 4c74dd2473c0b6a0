//! More clients than wanted, or than there are descriptors for.

use crate::{
    bulk::cpu_over_a_second,
    harness::{
        net::{
            self, End, assert_closed_at_once, assert_ends_now, connect, connect_with, echo,
            read_all, reset,
        },
        poll, ports,
        proc::{command, run_ok},
        secs,
        server::{Server, ask_many, list, listen, named},
        tembuku::Tembuku,
        wait_until,
    },
};
use std::{
    io::{Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

fn config(front: SocketAddr, listener: &str, servers: &[Server]) -> String {
    format!(
        "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n{listener}\n\
         [upstreams.u]\nbackends = {}\n",
        list(servers)
    )
}

#[test]
fn a_listener_holds_its_max_connections() {
    let servers = named(2);
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&config(front, "max_connections = 3", &servers));
    let mut held: Vec<TcpStream> = (0..3).map(|_| net::session(front).unwrap().0).collect();
    for n in 1..=5 {
        assert_closed_at_once(front);
        let labels = [("listener", "l"), ("reason", "max_connections")];
        tembuku.wait_metric("listener_rejected_total", &labels, |rejected| {
            rejected == f64::from(n)
        });
    }
    for client in &mut held {
        echo(client, "still served").unwrap();
    }
    assert_eq!(servers.iter().map(Server::accepted).sum::<usize>(), 3);
    held.pop();
    tembuku.wait_metric("listener_active_connections", &[], |n| n == 2.0);
    let (mut client, _) = net::session(front).unwrap();
    echo(&mut client, "in again").unwrap();
}

#[test]
fn the_process_holds_its_max_connections_over_all_listeners() {
    let servers = named(1);
    let fronts = [ports::free_addr(), ports::free_addr()];
    let tembuku = Tembuku::start(&format!(
        "[process]\nmax_connections = 4\n\
         [listeners.one]\nbind = \"{}\"\nupstream = \"u\"\n\
         [listeners.two]\nbind = \"{}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = {}\n",
        fronts[0],
        fronts[1],
        list(&servers)
    ));
    let mut held: Vec<TcpStream> = (0..4)
        .map(|n| net::session(fronts[n % 2]).unwrap().0)
        .collect();
    for (front, listener) in fronts.iter().zip(["one", "two"]) {
        assert_closed_at_once(*front);
        let labels = [
            ("listener", listener),
            ("reason", "process_max_connections"),
        ];
        tembuku.wait_metric("listener_rejected_total", &labels, |n| n == 1.0);
    }
    held.clear();
    // As many as there may be: that those before have ended is for the program to notice, in its
    // own time.
    for _ in 0..3 {
        tembuku.wait_idle();
        assert_eq!(ask_many(fronts[0], 4).len(), 4);
    }
}

#[test]
fn access_rules_decide_by_the_source() {
    let servers = named(1);
    let front = ports::free_addr();
    let rules = "access = [\"deny 127.0.0.7\", \"allow 127.0.0.0/29\", \"allow 127.1.2.0/24\", \
        \"deny all\"]";
    let tembuku = Tembuku::start(&config(front, rules, &servers));
    let from = |source: &str| {
        let source: IpAddr = source.parse().unwrap();
        connect_with(front, Some(source), 0, 0).unwrap()
    };
    for source in ["127.0.0.1", "127.0.0.6", "127.1.2.0", "127.1.2.255"] {
        assert_eq!(net::read_line(&mut from(source)).unwrap(), "b1", "{source}");
    }
    for (n, source) in ["127.0.0.7", "127.0.0.8", "127.1.3.0", "127.200.0.1"]
        .iter()
        .enumerate()
    {
        assert_ends_now(&mut from(source));
        let labels = [("listener", "l"), ("reason", "access")];
        tembuku.wait_metric("listener_rejected_total", &labels, |rejected| {
            rejected == (n + 1) as f64
        });
    }
    assert_eq!(servers[0].accepted(), 4);
}

#[test]
fn without_a_rule_that_matches_access_is_allowed() {
    let servers = named(1);
    let front = ports::free_addr();
    let _tembuku = Tembuku::start(&config(front, "access = [\"deny 127.0.0.7\"]", &servers));
    assert_eq!(net::ask(front).unwrap(), "b1");
}

/// A burst of clients uses up the descriptors: it neither spins nor stops, and serves again as soon
/// as some are free.
#[test]
fn descriptors_may_run_out() {
    let servers = named(1);
    let front = ports::free_addr();
    let wanted = format!(
        "[process]\nmax_connections = 10000\nworkers = 2\n{}",
        config(front, "", &servers)
    );
    let tembuku = Tembuku::start(&wanted);
    // Lowered while it runs, so that no precaution taken at start can know of it.
    let limit = tembuku.proc.descriptors() + 40;
    let pid = tembuku.proc.id();
    run_ok(
        secs(5),
        command(&format!("prlimit --pid {pid} --nofile={limit}:")),
    );

    let mut clients: Vec<TcpStream> = (0..200).map(|_| connect(front).unwrap()).collect();
    // Those that were served have received a name; all have when no more names arrive.
    let mut names: Vec<String> = vec![String::new(); clients.len()];
    for client in &clients {
        client.set_nonblocking(true).unwrap();
    }
    let served = |clients: &mut [TcpStream], names: &mut [String]| {
        for (client, name) in clients.iter_mut().zip(names.iter_mut()) {
            let mut buffer = [0; 16];
            if let Ok(n @ 1..) = client.read(&mut buffer) {
                name.push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        }
        names.iter().filter(|name| *name == "b1\n").count()
    };
    let some = poll(secs(10), || {
        Some(served(&mut clients, &mut names)).filter(|&n| n >= 10)
    });
    assert!(
        some.is_some(),
        "{} of 200 clients were served",
        served(&mut clients, &mut names)
    );
    let used = cpu_over_a_second(&tembuku.proc);
    assert!(
        used.as_millis() < 300,
        "{used:?} of processor time in a second without a descriptor"
    );

    // One session that was there goes on.
    let at = names.iter().position(|name| name == "b1\n").unwrap();
    let mut kept = clients.swap_remove(at);
    kept.set_nonblocking(false).unwrap();
    echo(&mut kept, "goes on").unwrap();

    drop(clients);
    // Clients that have left are still in the queue, and must be accepted and closed first.
    let again = poll(secs(10), || {
        (0..20).all(|_| net::ask(front).is_ok()).then_some(())
    });
    assert!(
        again.is_some(),
        "new clients are not served after the others have left"
    );
    echo(&mut kept, "and on").unwrap();
    // Every rejected client was counted.
    println!(
        "rejected: {}",
        tembuku.metric("listener_rejected_total", &[])
    );
    let others = tembuku.metric("listener_rejected_total", &[])
        - tembuku.metric("listener_rejected_total", &[("reason", "no_descriptors")]);
    assert_eq!(others, 0.0);
}

/// The same when the limit is set from the start: then clients beyond it are rejected in order.
#[test]
fn a_low_limit_of_descriptors_is_respected() {
    let servers = named(1);
    let front = ports::free_addr();
    let config = format!("[process]\nworkers = 1\n{}", config(front, "", &servers));
    let tembuku = Tembuku::start_under("prlimit --nofile=64:64", &config);
    let clients: Vec<TcpStream> = (0..150).map(|_| connect(front).unwrap()).collect();
    let used = cpu_over_a_second(&tembuku.proc);
    assert!(
        used.as_millis() < 300,
        "{used:?} of processor time in a second"
    );
    drop(clients);
    assert!(poll(secs(10), || net::ask(front).ok()).is_some());
    assert_eq!(ask_many(front, 20).len(), 20);
}

/// Clients that come and go in every impolite way leave nothing behind.
#[test]
fn coming_and_going_costs_nothing_lasting() {
    let servers = named(2);
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&config(front, "", &servers));
    let settled = || {
        tembuku.wait_idle();
        tembuku.proc.settled_descriptors()
    };
    ask_many(front, 20);
    let before = settled();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for n in 0..500 {
                    let Ok(client) = connect(front) else { continue };
                    match (n + thread) % 4 {
                        0 => reset(client),
                        1 => drop(client),
                        2 => {
                            let _ = client.shutdown(Shutdown::Write);
                            let _ = read_all(&mut &client);
                        }
                        _ => {
                            let _ = net::read_line(&mut &client);
                            reset(client);
                        }
                    }
                }
            });
        }
    });
    let after = settled();
    assert!(
        after <= before,
        "{before} descriptors before, {after} after"
    );
    assert_eq!(ask_many(front, 20).len(), 20);
    // Every client that was accepted is gone, also those that a worker still had to accept.
    wait_until("every session is closed", secs(10), || {
        let metrics = tembuku.metrics();
        let taken = metrics.sum("listener_connections_total", &[]);
        let closed = metrics.sum("sessions_closed_total", &[]);
        taken >= 1_000.0 && closed == taken && metrics.sum("backend_active_connections", &[]) == 0.0
    });
    let errors = tembuku.metric("backend_connect_errors_total", &[]);
    assert_eq!(errors, 0.0);
}

/// A session whose end a client has seen has given its permit back.
#[test]
fn a_limit_of_one_serves_one_client_after_another() {
    let servers = named(1);
    let server = servers[0].addr;
    for (listener, backend) in [("max_connections = 1", ""), ("", ", max_connections = 1")] {
        let front = ports::free_addr();
        let tembuku = Tembuku::start(&format!(
            "[process]\nworkers = 2\n[log]\naccess = \"{{dir}}/access.log\"\n\
             [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n{listener}\n\
             [upstreams.u]\nbackends = [{{ address = \"{server}\"{backend} }}]\n"
        ));
        for n in 1..=1_000 {
            let (mut client, _) = net::session(front)
                .unwrap_or_else(|error| panic!("{listener}{backend}, client {n}: {error}"));
            // The client ends first: the end that it sees is that of the session.
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_all(&mut client), (vec![], End::Fin), "client {n}");
        }
        tembuku.wait_closed("ok", 1_000.0);
        assert_eq!(tembuku.metric("listener_rejected_total", &[]), 0.0);
    }
}

/// Accepts in one thread, sends its name and ends its side; returns the most connections whose end
/// it had not seen when another one came. On loopback an end has arrived when `close` returns.
fn count_open(listener: &TcpListener, clients: usize) -> usize {
    let (mut open, mut most): (Vec<TcpStream>, usize) = (Vec::new(), 0);
    for _ in 0..clients {
        let (mut stream, _) = listener.accept().unwrap();
        open.retain(|stream| {
            let peeked = stream.peek(&mut [0]);
            matches!(peeked, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
        });
        stream.write_all(b"b1\n").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        stream.set_nonblocking(true).unwrap();
        open.push(stream);
        most = most.max(open.len());
    }
    most
}

/// Closing takes its time here, so that whatever comes before it can be seen.
#[test]
fn a_backend_never_has_more_than_its_max_connections() {
    const CLIENTS: usize = 150;
    let listener = listen(ports::free_addr());
    let backend = listener.local_addr().unwrap();
    let counting = std::thread::spawn(move || count_open(&listener, CLIENTS));
    let front = ports::free_addr();
    let _tembuku = Tembuku::start_under(
        "strace -D -f -q -o /dev/null -e inject=close:delay_enter=3000",
        &format!(
            "[process]\nworkers = 2\n[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
             [upstreams.u]\nbackends = [{{ address = \"{backend}\", max_connections = 2 }}]\n"
        ),
    );
    let served = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for n in 0..6 {
            let served = &served;
            scope.spawn(move || {
                while served.load(SeqCst) < CLIENTS {
                    let Ok(mut client) = connect(front) else {
                        continue;
                    };
                    let (received, _) = read_all(&mut client);
                    if received == b"b1\n" {
                        served.fetch_add(1, SeqCst);
                    }
                    // In either way a session can end for the client.
                    match n % 2 {
                        0 => drop(client),
                        _ => reset(client),
                    }
                }
            });
        }
    });
    assert_eq!(counting.join().unwrap(), 2);
}

/// The soft limit is only where a process starts from: it raises it before it opens its sockets.
#[test]
fn more_ports_than_the_soft_limit_of_descriptors() {
    const PORTS: u16 = 200;
    let servers = named(1);
    let first = ports::free_range(PORTS);
    let last = first + PORTS - 1;
    let _tembuku = Tembuku::start_under(
        "prlimit --nofile=256:",
        &format!(
            "[process]\nworkers = 2\n\
             [listeners.l]\nbind = \"127.0.0.1:{first}-{last}\"\nupstream = \"u\"\n\
             [upstreams.u]\nbackends = {}\n",
            list(&servers)
        ),
    );
    for port in [first, first + PORTS / 2, last] {
        let front = SocketAddr::from(([127, 0, 0, 1], port));
        assert_eq!(net::ask(front).unwrap(), "b1", "{port}");
    }
}

/// With `half_close = false` the backend's end is the end of the session: a client that has seen it
/// finds its permit free.
#[test]
fn a_permit_is_free_once_the_client_has_seen_the_end() {
    let server = Server::start(|mut stream| {
        let _ = stream.read(&mut [0; 1]);
        let _ = stream.write_all(b"abc");
    });
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[process]\nworkers = 2\n[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         max_connections = 1\nhalf_close = false\n[upstreams.u]\nbackends = [\"{}\"]\n",
        server.addr
    ));
    for n in 0..300 {
        let mut client = net::connect(front).unwrap();
        client.write_all(b"x").unwrap();
        assert_eq!(
            read_all(&mut client),
            (b"abc".to_vec(), End::Fin),
            "client {n}"
        );
    }
    assert_eq!(tembuku.metric("listener_rejected_total", &[]), 0.0);
}

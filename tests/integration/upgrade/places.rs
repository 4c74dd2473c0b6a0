//! The limit of a backend, and the order of those that wait, while processes replace each other.

use super::{Succession, between, listener, upstream};
use crate::harness::{
    millis,
    net::{connect, read_line},
    poll, ports,
    proc::text,
    secs,
    server::Server,
    wait_until,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll as poll_now};
use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

const PLACES: usize = 20;
const WAITING: usize = 180;
const UPGRADES: usize = 5;
/// Between two sessions that end, so that they do all the time of an upgrade.
const PACE: Duration = millis(15);

/// A backend that counts its connections at the moment of each that it gets, and notes the first
/// line of each, in their order.
struct Counting {
    server: Server,
    most: Arc<AtomicUsize>,
    served: mpsc::Receiver<String>,
}

impl Counting {
    fn start() -> Self {
        let all = Mutex::new(Vec::<TcpStream>::new());
        let most = Arc::new(AtomicUsize::new(0));
        let (note, served) = mpsc::channel();
        let (note, counted) = (Mutex::new(note), Arc::clone(&most));
        let server = Server::start(move |mut stream| {
            {
                let mut all = all.lock().unwrap();
                all.push(stream.try_clone().unwrap());
                all.retain(is_open);
                counted.fetch_max(all.len(), SeqCst);
            }
            let mut line = String::new();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            if reader.read_line(&mut line).is_ok_and(|n| n > 0) {
                let line = line.trim_end();
                note.lock().unwrap().send(line.to_owned()).unwrap();
                let _ = writeln!(stream, "served {line}");
                let _ = reader.read_to_end(&mut Vec::new());
            }
            // There is another descriptor.
            let _ = stream.shutdown(Shutdown::Both);
        });
        Self {
            server,
            most,
            served,
        }
    }

    fn most(&self) -> usize {
        self.most.load(SeqCst)
    }

    /// The next that is served.
    #[track_caller]
    fn next(&self) -> String {
        self.served.recv_timeout(secs(30)).expect("one is served")
    }

    fn limited(&self, places: usize) -> String {
        let addr = self.server.addr;
        format!("{{ address = \"{addr}\", max_connections = {places} }}")
    }
}

/// Whether the other side has neither ended nor reset it.
fn is_open(stream: &TcpStream) -> bool {
    let ends = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    let mut looked = [PollFd::new(stream, PollFlags::RDHUP)];
    poll_now(&mut looked, Some(&Timespec::default())).unwrap();
    !looked[0].revents().intersects(ends)
}

/// A client with something to say.
fn client(front: SocketAddr, name: &str) -> TcpStream {
    let mut client = connect(front).unwrap();
    writeln!(client, "{name}").unwrap();
    client
}

impl Succession {
    fn waiting(&self, line: &str) -> u64 {
        self.status()["upstreams"][0][line].as_u64().unwrap()
    }

    #[track_caller]
    fn wait_for_line(&self, count: usize) {
        wait_until(&format!("{count} in the queue"), secs(20), || {
            self.waiting("queued") == count as u64
        });
    }
}

/// A line of clients in a known order, before a backend that is full.
struct Line {
    tembuku: Succession,
    backend: Counting,
    front: SocketAddr,
    clients: Vec<TcpStream>,
    /// How many of them have ended.
    ended: usize,
}

impl Line {
    #[track_caller]
    fn start(places: usize, waiting: usize, keys: &str) -> Self {
        let (backend, front) = (Counting::start(), ports::free_addr());
        let config = "[process]\nworkers = 2\n".to_owned()
            + &listener("l", &front.to_string(), "u")
            + &upstream("u", &backend.limited(places))
            + keys;
        let tembuku = Succession::start(&config);
        let mut line = Self {
            tembuku,
            backend,
            front,
            clients: Vec::new(),
            ended: 0,
        };
        for n in 0..places {
            line.come();
            assert_eq!(line.backend.next(), n.to_string());
        }
        for n in 1..=waiting {
            line.come();
            line.tembuku.wait_for_line(n);
        }
        line
    }

    fn come(&mut self) {
        let name = self.clients.len().to_string();
        self.clients.push(client(self.front, &name));
    }

    /// The first that is served leaves. Returns which is served instead.
    #[track_caller]
    fn leave(&mut self) -> usize {
        let first = &mut self.clients[self.ended];
        let greeting = read_line(first).expect("a greeting");
        assert_eq!(greeting, format!("served {}", self.ended));
        first.shutdown(Shutdown::Both).unwrap();
        self.ended += 1;
        self.backend.next().parse().unwrap()
    }
}

/// Those that wait go to the new process, in their order and before all that come later. No moment
/// of five upgrades lets the backend have more than it is to have.
#[test]
fn a_line_keeps_its_order_and_the_limit_holds() {
    let mut line = Line::start(PLACES, WAITING, "queue_timeout = \"2m\"\n");
    let mut next = PLACES;
    let each = WAITING / UPGRADES;
    for round in 0..UPGRADES {
        let began = next;
        thread::scope(|scope| {
            let tembuku = &line.tembuku;
            let upgrade = scope.spawn(|| tembuku.try_upgrade(&[]));
            let (clients, backend, ended) = (&mut line.clients, &line.backend, &mut line.ended);
            while next < began + each {
                let first = &mut clients[*ended];
                assert_eq!(read_line(first).unwrap(), format!("served {ended}"));
                first.shutdown(Shutdown::Both).unwrap();
                *ended += 1;
                assert_eq!(backend.next(), next.to_string(), "round {round}");
                next += 1;
                thread::sleep(PACE);
            }
            // It may come to either process, and is the last in the line.
            clients.push(client(line.front, &clients.len().to_string()));
            let output = upgrade.join().unwrap();
            assert_eq!(output.status.code(), Some(0), "{}", text(&output));
            assert!(
                text(&output).contains("nothing is left"),
                "{}",
                text(&output)
            );
        });
        line.tembuku.current = line.tembuku.pid();
        line.tembuku.wait_alone();
        line.tembuku
            .wait_for_line(WAITING - (round + 1) * each + round + 1);
    }
    for n in 0..UPGRADES {
        assert_eq!(line.leave(), PLACES + WAITING + n);
    }
    assert_eq!(line.backend.most(), PLACES);
    let waits = |result: &str| {
        let labels = [("upstream", "u"), ("wait", "queue"), ("result", result)];
        line.tembuku.first.metric("upstream_waits_total", &labels)
    };
    assert_eq!(waits("served"), (WAITING + UPGRADES) as f64);
    assert_eq!((waits("left"), waits("timed_out")), (0.0, 0.0));
}

/// Clients come and go all the time, so that places are free at any moment of an upgrade.
#[test]
fn no_client_is_refused_while_all_come_and_go() {
    let (backend, front) = (Counting::start(), ports::free_addr());
    let config = "[process]\nworkers = 2\n".to_owned()
        + &listener("l", &front.to_string(), "u")
        + &upstream("u", &backend.limited(PLACES))
        + "queue_timeout = \"1m\"\n";
    let mut tembuku = Succession::start(&config);
    let (is_over, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for n in 0..PLACES + WAITING {
            let (is_over, served) = (&is_over, &served);
            scope.spawn(move || {
                while !is_over.load(SeqCst) {
                    let mut client = client(front, &n.to_string());
                    let greeting = read_line(&mut client);
                    assert_eq!(greeting.unwrap(), format!("served {n}"));
                    served.fetch_add(1, SeqCst);
                    // As a query of a database would take.
                    thread::sleep(millis(5));
                }
            });
        }
        for _ in 0..UPGRADES {
            tembuku.upgrade();
            tembuku.wait_alone();
            let so_far = served.load(SeqCst);
            wait_until("clients are served", secs(20), || {
                served.load(SeqCst) > so_far + PLACES
            });
        }
        is_over.store(true, SeqCst);
    });
    let served = served.load(SeqCst);
    println!("{served} served, at most {} at once", backend.most());
    assert_eq!(backend.most(), PLACES);
    assert_eq!(backend.served.try_iter().count(), served);
}

/// The wait does not begin anew.
#[test]
fn what_is_left_of_the_wait_goes_over() {
    let limit = secs(8);
    let mut line = Line::start(1, 0, "queue_timeout = \"8s\"\n");
    let began = Instant::now();
    line.come();
    line.tembuku.wait_for_line(1);
    thread::sleep(secs(3));
    line.tembuku.upgrade();
    assert_eq!(line.tembuku.waiting("queued"), 1);
    assert_eq!(line.clients[1].read(&mut [0]).unwrap_or_default(), 0);
    let waited = began.elapsed();
    assert!(
        waited >= limit && waited < limit + millis(2_900),
        "{waited:?}"
    );
    let closed = [("reason", "queue_timeout")];
    let tembuku = &line.tembuku.first;
    tembuku.wait_metric("sessions_closed_total", &closed, |n| n == 1.0);
}

/// One that has left is not served, wherever it was when it left.
#[test]
fn a_client_that_leaves_is_noticed_by_the_new_process() {
    let mut line = Line::start(1, 3, "queue_timeout = \"1m\"\n");
    line.tembuku.upgrade();
    line.tembuku.wait_alone();
    line.tembuku.wait_for_line(3);
    crate::harness::net::reset(line.clients.remove(1));
    line.tembuku.wait_for_line(2);
    line.leave();
    assert_eq!(line.backend.most(), 1);
}

/// What the client has said by then goes to the backend first, after the header that names it.
#[test]
fn first_bytes_and_the_header_go_over() {
    let (backend, front) = (Counting::start(), ports::free_addr());
    let config = listener("l", &front.to_string(), "u")
        + "accept_proxy = true\n"
        + &upstream("u", &backend.limited(1))
        + "queue_timeout = \"1m\"\nsend_proxy = \"v1\"\n";
    let mut tembuku = Succession::start(&config);
    let proxied = |n: usize| {
        let mut client = connect(front).unwrap();
        let header = format!("PROXY TCP4 192.0.2.{n} 198.51.100.7 1234 80\r\n");
        client.write_all((header + "first ").as_bytes()).unwrap();
        client
    };
    let holder = proxied(1);
    let expected = |n: usize| format!("PROXY TCP4 192.0.2.{n} 198.51.100.7 1234 80");
    assert_eq!(backend.next(), expected(1));
    let waiting = proxied(2);
    tembuku.wait_for_line(1);
    tembuku.upgrade();
    tembuku.wait_alone();
    drop(holder);
    assert_eq!(backend.next(), expected(2));
    let connections = tembuku.status()["listeners"][0]["connections"].clone();
    assert_eq!(connections, 1);
    drop(waiting);
}

/// A place is free, and yet it is the new process that gives it: a session which looks for a
/// backend late finds it there.
#[test]
fn a_session_that_looks_for_a_backend_late_finds_it_in_the_new_process() {
    let (backend, front) = (Counting::start(), ports::free_addr());
    let config = listener("l", &front.to_string(), "u")
        + "accept_proxy = { trust = [\"127.0.0.1\"], timeout = \"1m\" }\n"
        + &upstream("u", &backend.limited(1));
    let mut tembuku = Succession::start(&config);
    let mut late = connect(front).unwrap();
    late.write_all(b"PROXY ").unwrap();
    wait_until("it has come", secs(10), || {
        tembuku.status()["listeners"][0]["connections"] == 1
    });
    tembuku.upgrade();
    late.write_all(b"UNKNOWN\r\nlate\n").unwrap();
    assert_eq!(read_line(&mut late).unwrap(), "served late");
    tembuku.wait_alone();
    assert_eq!(tembuku.status()["listeners"][0]["connections"], 1);
}

/// The listener that the sessions of the old process have is gone: they stay there, and the new
/// process gives none of their places.
#[test]
fn places_of_sessions_that_stay_are_taken() {
    let (backend, [goes, stays]) = (Counting::start(), [(); 2].map(|()| ports::free_addr()));
    let rest = listener("stays", &stays.to_string(), "u")
        + &upstream("u", &backend.limited(2))
        + "queue_timeout = \"1m\"\n";
    let config = rest.clone() + &listener("goes", &goes.to_string(), "u");
    let mut tembuku = Succession::start(&config);
    let old: Vec<TcpStream> = (0..2).map(|n| client(goes, &format!("old {n}"))).collect();
    let _ = (backend.next(), backend.next());
    tembuku.write(&rest);
    tembuku.upgrade();
    let _new = client(stays, "new");
    tembuku.wait_for_line(1);
    drop(old);
    assert_eq!(backend.next(), "new");
    assert_eq!(backend.most(), 2);
    tembuku.wait_alone();
}

/// One of both processes is killed while the line goes over. Those that the other has are served.
#[test]
fn a_line_survives_the_end_of_one_process() {
    for (behaviour, is_new, lost) in [
        ("kill-new at places 1", false, 0..=0),
        ("kill-new at waiting 1", false, 0..=0),
        // Those of the first message are its own.
        ("kill-new at sessions_taken 1", false, 1..=80),
        ("kill-new at places 2", false, 1..=80),
        // It has them, and their places are free.
        ("then-kill-old at waiting 1", true, 0..=60),
        ("then-kill-old at places 2", true, 0..=0),
    ] {
        let waiting = 60;
        let mut line = Line::start(1, waiting, "queue_timeout = \"1m\"\n");
        let program = between::program(&line.tembuku, behaviour);
        let output = line
            .tembuku
            .try_upgrade(&["--binary", program.to_str().unwrap()]);
        let new = between::done(&line.tembuku).expect("a new process");
        if is_new {
            line.tembuku.current = new;
        } else {
            assert_eq!(
                output.status.code(),
                Some(1),
                "{behaviour}: {}",
                text(&output)
            );
        }
        // The old process may have sent it, too, before it was killed.
        drop(line.clients.remove(0));
        let mut cut = 0;
        for client in line.clients.drain(..) {
            let mut client = client;
            match read_line(&mut client) {
                Ok(greeting) => assert!(greeting.starts_with("served "), "{greeting}"),
                Err(_) => cut += 1,
            }
        }
        assert!(lost.contains(&cut), "{behaviour}: {cut} lost");
        let served: Vec<usize> = line
            .backend
            .served
            .try_iter()
            .map(|n| n.parse().unwrap())
            .collect();
        assert!(served.is_sorted(), "{behaviour}: {served:?}");
        assert_eq!(served.len(), waiting - cut, "{behaviour}");
        assert_eq!(line.backend.most(), 1, "{behaviour}");
        let last = client(line.front, "last");
        assert_eq!(line.backend.next(), "last", "{behaviour}");
        drop(last);
        let there = poll(secs(10), || {
            (line.tembuku.waiting("queued") == 0).then_some(())
        });
        assert!(there.is_some(), "{behaviour}");
    }
}

/// It stands still for some time: the line waits, and goes over when it goes on.
#[test]
fn a_line_waits_for_a_new_process_that_stands_still() {
    let mut line = Line::start(1, 3, "queue_timeout = \"1m\"\n");
    let program = between::program(&line.tembuku, "delay at waiting 1");
    let output = line
        .tembuku
        .try_upgrade(&["--binary", program.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    line.tembuku.current = between::done(&line.tembuku).unwrap();
    line.tembuku.wait_alone();
    for n in 1..=3 {
        assert_eq!(line.leave(), n);
    }
    assert_eq!(line.backend.most(), 1);
}

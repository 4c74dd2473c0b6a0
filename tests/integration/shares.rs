//! What changes how much a backend gets while it is up: slow start, bounded load, and the time it
//! takes.

use crate::harness::{
    millis,
    net::{ask_from, connect, connect_with, read_line},
    ports, secs,
    server::{Crowded, Server, named},
    tembuku::Tembuku,
    wait_until,
};
use std::{
    collections::BTreeMap,
    io::Write,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

/// `upstream`: its lines but for the backends.
fn start(upstream: &str, backends: &[String]) -> (SocketAddr, Tembuku) {
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[process]\nworkers = 2\n[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         connect_timeout = \"30s\"\n\
         [upstreams.u]\n{upstream}\nbackends = [{}]\n",
        backends.join(", ")
    ));
    (front, tembuku)
}

fn client(n: usize) -> IpAddr {
    Ipv4Addr::new(127, (n * 37 % 256) as u8, (n * 101 % 256) as u8, 7).into()
}

/// A session that stays, and the name of its backend.
fn hold(front: SocketAddr, source: IpAddr) -> (TcpStream, String) {
    let mut stream = connect_with(front, Some(source), 0, 0).unwrap();
    let name = read_line(&mut stream).unwrap();
    (stream, name)
}

/// Ends the sessions; how many were on `name`.
fn drop_all(tembuku: &Tembuku, held: Vec<(TcpStream, String)>, name: &str) -> usize {
    let count = held.iter().filter(|(_, on)| on == name).count();
    drop(held);
    tembuku.wait_idle();
    count
}

fn count_names(names: impl IntoIterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name).or_default() += 1;
    }
    counts
}

fn backend(tembuku: &Tembuku, address: SocketAddr) -> serde_json::Value {
    let status = tembuku.status();
    let backends = status["upstreams"][0]["backends"].as_array().unwrap();
    let own = |b: &&serde_json::Value| b["address"] == address.to_string();
    backends.iter().find(own).unwrap().clone()
}

/// After a failure a backend gets little at first, then its share again; at the start of the
/// process it gets all at once.
#[test]
fn slow_start_after_a_failure_and_not_at_the_start() {
    for upstream in [
        "balance = \"round_robin\"",
        "balance = \"least_conn\"",
        "balance = \"random_two\"",
        "balance = \"first\"",
        "balance = \"hash\"",
        "balance = \"ip_hash\"",
        "balance = \"consistent_hash\"",
        "balance = \"maglev\"",
        "balance = \"maglev\"\nhash_balance_factor = 150",
    ] {
        let steady = Server::named("steady");
        let mut slow = Server::named("slow");
        let address = slow.addr;
        // Long: what is seen at its beginning must not depend on how fast the test is.
        let (front, tembuku) = start(
            upstream,
            &[
                format!(
                    "{{ address = \"{address}\", fail_timeout = \"100ms\", slow_start = \"1h\" }}"
                ),
                format!("\"{}\"", steady.addr),
            ],
        );
        let ask = |n: usize| ask_from(client(n), front).unwrap();
        // Sessions that stay: least_conn knows no difference between two that have none.
        let share = || {
            let held: Vec<_> = (0..60).map(|n| hold(front, client(n))).collect();
            tembuku.wait_metric("listener_active_connections", &[], |n| n == 60.0);
            drop_all(&tembuku, held, "slow")
        };
        assert!(share() >= 15, "{upstream}: at the start");
        drop(slow);
        assert_eq!(share(), 0, "{upstream}: gone");
        slow = Server::named_on("slow", &[address]);
        let mut n = 0;
        wait_until("the backend is back", secs(10), || {
            n += 1;
            ask(n);
            let state = backend(&tembuku, address);
            state["state"] == "up" && state["why"] == "slow start: 0 % of its weight"
        });
        assert!(share() <= 3, "{upstream}: just back");
        drop(steady);
        // No other is left: it serves all, however slowly it starts.
        assert_eq!(share(), 60, "{upstream}: alone");
        drop(slow);
    }
}

#[test]
fn slow_start_ends() {
    let (steady, slow) = (Server::named("steady"), Server::named("slow"));
    let address = slow.addr;
    let (front, tembuku) = start(
        "balance = \"round_robin\"",
        &[
            format!(
                "{{ address = \"{address}\", fail_timeout = \"50ms\", slow_start = \"300ms\" }}"
            ),
            format!("\"{}\"", steady.addr),
        ],
    );
    drop(slow);
    assert_eq!(
        count_names((0..4).map(|n| ask_from(client(n), front).unwrap())).len(),
        1
    );
    let _slow = Server::named_on("slow", &[address]);
    let mut seen = Vec::new();
    wait_until("it has its whole share", secs(10), || {
        seen.push(ask_from(client(1), front).unwrap());
        let state = backend(&tembuku, address);
        state["state"] == "up" && state["why"] == "" && seen.contains(&"slow".to_owned())
    });
    let names = count_names((0..20).map(|n| ask_from(client(n), front).unwrap()));
    assert_eq!(names["slow"], 10, "{names:?}");
}

/// One client with many sessions would have them all on one backend; with a bound they go on along
/// the ring, and no backend has more than its share and a quarter.
#[test]
fn bounded_load_spreads_what_does_not_fit() {
    for balance in ["consistent_hash", "maglev"] {
        let servers = named(4);
        let weights = [1, 1, 2, 1];
        let backends: Vec<String> = servers
            .iter()
            .zip(weights)
            .map(|(s, weight)| format!("{{ address = \"{}\", weight = {weight} }}", s.addr))
            .collect();
        let hold = |front| hold(front, client(3));
        let (unbounded, _tembuku) = start(&format!("balance = \"{balance}\""), &backends);
        let all: Vec<_> = (0..50).map(|_| hold(unbounded)).collect();
        assert_eq!(
            count_names(all.iter().map(|(_, name)| name.clone())).len(),
            1
        );
        let home = all[0].1.clone();

        let bounded = format!("balance = \"{balance}\"\nhash_balance_factor = 125");
        let (front, tembuku) = start(&bounded, &backends);
        let mut held = Vec::new();
        for n in 1..=100usize {
            held.push(hold(front));
            let names = count_names(held.iter().map(|(_, name)| name.clone()));
            for (i, weight) in weights.iter().enumerate() {
                let got = names.get(&format!("b{}", i + 1)).copied().unwrap_or(0);
                // At most its part of 1.25 times all sessions, in whole sessions.
                let most = ((n * 125).div_ceil(100) * weight).div_ceil(5).max(1);
                assert!(
                    got <= most,
                    "{balance}: {got} of {most} on b{} after {n}",
                    i + 1
                );
            }
        }
        assert_eq!(held[0].1, home, "{balance}");
        drop(held);
        tembuku.wait_idle();
        // Without other sessions the client gets its own backend again.
        assert_eq!(hold(front).1, home, "{balance}");
    }
}

/// The one that took a second to connect gets nothing more while the others take less, and is tried
/// again once its average has halved often enough.
#[test]
fn least_time_avoids_the_one_that_is_slow_to_connect() {
    let crowded = Crowded::start();
    let address = crowded.address();
    let quick = Server::named("quick");
    let (front, tembuku) = start(
        "balance = \"least_time\"",
        &[
            format!("{{ address = \"{address}\", fail_timeout = \"200ms\", weight = 2 }}"),
            format!("{{ address = \"{}\", fail_timeout = \"1h\" }}", quick.addr),
        ],
    );
    // No times yet: the pick is made in rotation, and the heavier one is first.
    let first = thread::spawn(move || read_line(&mut connect(front).unwrap()).unwrap());
    wait_until("the first is on its way", secs(5), || crowded.is_asked());
    let _listener = crowded.open("slow");
    assert_eq!(first.join().unwrap(), "slow");
    let average = backend(&tembuku, address)["average_time"].as_f64().unwrap();
    assert!(average > 0.0, "{average}");
    // The second pick is the other one, which has no time yet; from then on its times are far less.
    let mut picks = Vec::new();
    wait_until("the slow one is tried again", secs(20), || {
        picks.push(ask_from(client(1), front).unwrap());
        picks.last().is_some_and(|name| name == "slow")
    });
    let quick = picks.iter().filter(|name| *name == "quick").count();
    assert!(quick >= 10, "{quick}");
}

/// By the first byte: connecting is equally quick everywhere, but one keeps its answer back. A
/// client that sends nothing for a while is no fault of the backend.
#[test]
fn least_time_avoids_the_one_that_is_slow_to_answer() {
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let held = Arc::clone(&gate);
    let answer = |name: &'static str, wait: Option<Arc<(Mutex<bool>, Condvar)>>| {
        Server::start(move |mut stream| {
            use std::io::Read;
            let mut byte = [0];
            if stream.read_exact(&mut byte).is_err() {
                return;
            }
            if let Some(gate) = &wait {
                let mut open = gate.0.lock().unwrap();
                while !*open {
                    open = gate.1.wait(open).unwrap();
                }
            }
            let _ = stream.write_all(format!("{name}\n").as_bytes());
        })
    };
    let slow = answer("slow", Some(held));
    let quick = answer("quick", None);
    let (front, tembuku) = start(
        "balance = \"least_time\"\nleast_time = \"first_byte\"",
        &[slow.addr, quick.addr].map(|a| format!("{{ address = \"{a}\", fail_timeout = \"1h\" }}")),
    );
    let ask = || {
        let mut stream = connect(front).unwrap();
        stream.write_all(b"?").unwrap();
        stream
    };
    let time = |address| backend(&tembuku, address)["average_time"].as_f64().unwrap();
    // The first goes to the first and hangs; the second to the other, which answers.
    let mut first = ask();
    wait_until("the first is on its backend", secs(5), || slow.live() == 1);
    // This one asks late; the time until it asked must not count.
    let mut second = connect(front).unwrap();
    wait_until("the second is on its backend", secs(5), || {
        quick.live() == 1
    });
    let asked = std::time::Instant::now();
    second.write_all(b"?").unwrap();
    assert_eq!(read_line(&mut second).unwrap(), "quick");
    let answered = asked.elapsed();
    wait_until("its time is measured", secs(5), || time(quick.addr) > 0.0);
    let measured = time(quick.addr);
    assert!(
        measured <= answered.as_secs_f64() + 0.1,
        "{measured} for {answered:?}"
    );
    // Far longer than anything the other will take.
    let long = (20.0 * measured).max(0.5);
    wait_until("a long time has passed", secs(60), || {
        asked.elapsed().as_secs_f64() > long
    });
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    assert_eq!(read_line(&mut first).unwrap(), "slow");
    wait_until("its time is measured", secs(5), || time(slow.addr) > 0.0);
    assert!(time(slow.addr) > time(quick.addr));
    drop((first, second));
    tembuku.wait_idle();
    for _ in 0..20 {
        assert_eq!(read_line(&mut ask()).unwrap(), "quick");
        tembuku.wait_idle();
    }
}

/// A backend that never answers does not count as quick: neither without a time, nor when it was
/// quick before. It sends first, or waits for a request: both kinds of server can hang.
#[test]
fn least_time_avoids_the_one_that_does_not_answer() {
    for speaks_first in [true, false] {
        let hangs = Arc::new(AtomicBool::new(true));
        let server = |name: &'static str, hangs: Arc<AtomicBool>| {
            Server::start(move |mut stream| {
                use std::io::Read;
                let mut byte = [0];
                if !speaks_first && stream.read_exact(&mut byte).is_err() {
                    return;
                }
                if !hangs.load(Ordering::SeqCst) {
                    let _ = stream.write_all(format!("{name}\n").as_bytes());
                }
                while let Ok(1..) = stream.read(&mut byte) {}
            })
        };
        let never = Arc::new(AtomicBool::new(false));
        let hanging = server("hanging", Arc::clone(&hangs));
        let others = [server("b1", Arc::clone(&never)), server("b2", never)];
        let backends: Vec<String> = [&hanging, &others[0], &others[1]]
            .iter()
            .map(|s| format!("{{ address = \"{}\", fail_timeout = \"100ms\" }}", s.addr))
            .collect();
        let upstream = "balance = \"least_time\"\nleast_time = \"first_byte\"";
        let (front, tembuku) = start(upstream, &backends);
        // A client that gives up soon.
        let ask = || {
            let mut stream = connect(front).unwrap();
            stream.set_read_timeout(Some(millis(100))).unwrap();
            stream.write_all(b"?").unwrap();
            let answer = read_line(&mut stream).ok();
            drop(stream);
            tembuku.wait_idle();
            answer
        };
        let unanswered = |count: usize| (0..count).filter(|_| ask().is_none()).count();
        let missed = unanswered(40);
        assert!(missed <= 8, "{missed} of 40, speaks first: {speaks_first}");
        // It answers, until it has a time as the others have; and then it hangs again.
        hangs.store(false, Ordering::SeqCst);
        wait_until("it is used", secs(20), || {
            ask().as_deref() == Some("hanging")
        });
        assert_eq!(unanswered(40), 0);
        hangs.store(true, Ordering::SeqCst);
        let missed = unanswered(40);
        assert!(
            missed <= 12,
            "{missed} of 40 later, speaks first: {speaks_first}"
        );
    }
}

/// The times of equal backends differ by chance alone, and that is no reason to prefer one.
#[test]
fn least_time_shares_among_equals() {
    for of in ["connect", "first_byte"] {
        let servers = named(3);
        let backends: Vec<String> = servers
            .iter()
            .map(|s| format!("{{ address = \"{}\", fail_timeout = \"100ms\" }}", s.addr))
            .collect();
        let upstream = format!("balance = \"least_time\"\nleast_time = \"{of}\"");
        let (front, tembuku) = start(&upstream, &backends);
        let ask = |n| {
            let name = ask_from(client(n), front).unwrap();
            tembuku.wait_idle();
            name
        };
        // One at a time, so that sessions do not decide.
        let counts = count_names((0..300).map(ask));
        println!("by {of}: {counts:?}");
        assert_eq!(counts.len(), 3, "{of}: {counts:?}");
        assert!(
            counts.values().all(|count| *count >= 30),
            "{of}: {counts:?}"
        );
    }
}

//! A primary that dies under load: new connections wait for the next one instead of failing.

use crate::{
    checks_redis::{info, replicate},
    harness::{
        ports,
        programs::{Haproxy, Redis, call},
        secs,
        tembuku::Tembuku,
        wait_until,
    },
};
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

const CLIENTS: usize = 6;

/// One connection with one command.
struct Call {
    began: Instant,
    ended: Instant,
    /// What went wrong, if something did.
    error: Option<String>,
}

/// Clients that connect, write a value and leave, again and again.
struct Load {
    stop: Arc<AtomicBool>,
    calls: Arc<Mutex<Vec<Call>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(front: SocketAddr) -> Self {
        let (stop, calls) = (
            Arc::<AtomicBool>::default(),
            Arc::<Mutex<Vec<Call>>>::default(),
        );
        let threads = (0..CLIENTS).map(|client| {
            let (stop, calls) = (stop.clone(), calls.clone());
            thread::spawn(move || {
                let mut n = 0;
                while !stop.load(Relaxed) {
                    n += 1;
                    let began = Instant::now();
                    let error = match call(front, &format!("SET key:{client} {n}")) {
                        Ok(answer) if answer == "+OK" => None,
                        Ok(answer) => Some(answer),
                        Err(error) => Some(error.to_string()),
                    };
                    calls.lock().unwrap().push(Call {
                        began,
                        ended: Instant::now(),
                        error,
                    });
                    thread::sleep(Duration::from_millis(5));
                }
            })
        });
        Self {
            threads: threads.collect(),
            stop,
            calls,
        }
    }

    fn wait_for_calls(&self, count: usize) {
        let begun = self.calls.lock().unwrap().len();
        wait_until("calls are answered", secs(20), || {
            self.calls.lock().unwrap().len() >= begun + count
        });
    }

    fn stop(self) -> Vec<Call> {
        self.stop.store(true, Relaxed);
        self.threads.into_iter().for_each(|t| t.join().unwrap());
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

#[test]
fn new_connections_survive_the_death_of_a_primary() {
    let mut primary = Redis::start(ports::free_addr());
    let replica = Redis::start(ports::free_addr());
    replicate(&replica, &primary);
    wait_until("it replicates", secs(30), || {
        info(replica.addr, "replication").contains("master_link_status:up")
    });
    let fronts = [ports::free_addr(), ports::free_addr()];
    let tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{}\"\nupstream = \"u\"\n\
         [upstreams.u]\nhold_timeout = \"10s\"\nbackends = [\"{}\", \"{}\"]\n\
         [upstreams.u.check]\nkind = \"redis\"\nrole = \"primary\"\ninterval = \"100ms\"\n\
         timeout = \"1s\"\nrise = 1\nfall = 2\n",
        fronts[0], primary.addr, replica.addr
    ));
    let haproxy = |n: usize, server: &Redis| {
        format!(
            "server s{n} {} check inter 100ms rise 1 fall 2\n ",
            server.addr
        )
    };
    let _haproxy = Haproxy::start(
        &fronts[1..],
        &format!(
            "listen f\n mode tcp\n bind {}\n option tcp-check\n tcp-check connect\n \
             tcp-check send info\\ replication\\r\\n\n tcp-check expect string role:master\n \
             retries 3\n option redispatch\n {}{}",
            fronts[1],
            haproxy(1, &primary),
            haproxy(2, &replica)
        ),
    );
    wait_until("both see the primary", secs(20), || {
        fronts
            .iter()
            .all(|front| call(*front, "SET a 1").is_ok_and(|answer| answer == "+OK"))
    });
    let loads = fronts.map(Load::start);
    loads
        .iter()
        .for_each(|load| load.wait_for_calls(CLIENTS * 10));
    // Connections from before its death may be lost with it.
    primary.proc.kill();
    let died = Instant::now();
    // HAProxy tries a connect again after a second.
    thread::sleep(Duration::from_millis(2000));
    assert_eq!(call(replica.addr, "REPLICAOF NO ONE").unwrap(), "+OK");
    let promoted = Instant::now();
    loads[0].wait_for_calls(CLIENTS * 10);
    thread::sleep(Duration::from_millis(500));
    let [held, refused] = loads.map(Load::stop).map(|calls| {
        let after = calls.into_iter().filter(|call| call.began > died);
        after.collect::<Vec<_>>()
    });
    let errors = |calls: &[Call]| -> Vec<String> {
        calls.iter().filter_map(|call| call.error.clone()).collect()
    };
    let longest = held
        .iter()
        .map(|call| call.ended - call.began)
        .max()
        .unwrap();
    println!(
        "tembuku: {} new connections, {} errors, the longest took {longest:?}; HAProxy: {} errors \
         of {}",
        held.len(),
        errors(&held).len(),
        errors(&refused).len(),
        refused.len()
    );
    assert_eq!(errors(&held), [""; 0]);
    // They have waited for the promotion, and not for much longer.
    assert!(longest >= Duration::from_millis(500), "{longest:?}");
    assert!(held.iter().any(|call| call.ended > promoted));
    assert!(longest < secs(8), "{longest:?}");
    // Without a hold they fail.
    assert!(!errors(&refused).is_empty());
    assert_eq!(
        tembuku.metric("sessions_closed_total", &[("reason", "hold_timeout")]),
        0.0
    );
}

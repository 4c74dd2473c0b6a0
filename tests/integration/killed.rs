//! A server that is killed under load: its own sessions fail and no others, and clients that
//! come afterwards are served.

use crate::harness::{
    net, ports,
    proc::{self, command},
    programs::{Nginx, Redis, call, http_block},
    secs,
    tembuku::Tembuku,
    wait_until,
};
use std::{
    collections::BTreeMap,
    io::Write,
    net::SocketAddr,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

fn redis_servers() -> Vec<Redis> {
    let servers: Vec<Redis> = (0..3).map(|_| Redis::start(ports::free_addr())).collect();
    for (n, server) in servers.iter().enumerate() {
        call(server.addr, &format!("SET name r{n}")).unwrap();
    }
    servers
}

/// With and without checks the outcome is the same: what connects find out is enough.
fn in_front_of(addrs: &[SocketAddr], check: &str) -> (Tembuku, SocketAddr) {
    let front = ports::free_addr();
    let backends: Vec<String> = addrs.iter().map(|addr| format!("\"{addr}\"")).collect();
    let tembuku = Tembuku::start(&format!(
        "[process]\nworkers = 2\n[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [{}]\n{check}\n",
        backends.join(", ")
    ));
    (tembuku, front)
}

const CHECK: &str = "[upstreams.u.check]\nkind = \"redis\"\ninterval = \"300ms\"\nfall = 2";

fn active(tembuku: &Tembuku, addr: SocketAddr) -> usize {
    let labels = [("backend", &addr.to_string()[..])];
    tembuku.metric("backend_active_connections", &labels) as usize
}

/// What one client went through: on which server its sessions ended, and how many requests were
/// answered.
#[derive(Default)]
struct Log {
    failed_on: BTreeMap<String, usize>,
    /// Sessions that ended before they knew.
    unnamed: usize,
    answered: usize,
    sessions: usize,
}

/// Keeps a session and asks on it, again and again; where it fails, a new one.
fn client(front: SocketAddr, stop: &AtomicBool, log: &Mutex<Log>) {
    while !stop.load(SeqCst) {
        let mut stream = net::connect(front).expect("every connect succeeds");
        let mut ask = |question: &str| {
            stream.write_all(question.as_bytes())?;
            let first = net::read_line(&mut stream)?;
            match first.trim_end() {
                "" => Err(std::io::ErrorKind::UnexpectedEof.into()),
                "$2" => net::read_line(&mut stream).map(|line| line.trim_end().to_owned()),
                word => Ok(word.to_owned()),
            }
        };
        let Ok(name) = ask("GET name\r\n") else {
            log.lock().unwrap().unnamed += 1;
            continue;
        };
        log.lock().unwrap().sessions += 1;
        while !stop.load(SeqCst) {
            match ask("PING\r\n") {
                Ok(answer) => {
                    assert_eq!(answer, "+PONG");
                    log.lock().unwrap().answered += 1;
                }
                Err(_) => {
                    *log.lock().unwrap().failed_on.entry(name).or_default() += 1;
                    break;
                }
            }
        }
    }
}

#[test]
fn only_the_sessions_on_it_fail() {
    for check in ["", CHECK] {
        let mut servers = redis_servers();
        let addrs: Vec<SocketAddr> = servers.iter().map(|s| s.addr).collect();
        let (tembuku, front) = in_front_of(&addrs, check);
        let (stop, log) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::default()));
        let clients: Vec<_> = (0..30)
            .map(|_| {
                let (stop, log) = (Arc::clone(&stop), Arc::clone(&log));
                thread::spawn(move || client(front, &stop, &log))
            })
            .collect();
        let so_far = || log.lock().unwrap().answered;
        wait_until("all are at work", secs(20), || {
            log.lock().unwrap().sessions == 30 && so_far() > 3_000
        });
        // Between two requests: a session before its first answer is on it as well.
        let there = active(&tembuku, addrs[1]);
        assert!(there >= 5, "{there}");
        servers[1].proc.kill();
        let before = so_far();
        wait_until("they go on", secs(20), || so_far() > before + 6_000);
        stop.store(true, SeqCst);
        for client in clients {
            client.join().expect("no client saw what it must not see");
        }
        let log = log.lock().unwrap();
        assert_eq!(
            log.failed_on,
            BTreeMap::from([("r1".to_owned(), there)]),
            "{check:?}"
        );
        // A server that dies closes its sessions before its listening socket: a quick client is
        // still accepted there, for the last time. No other session may end without an answer.
        let taken = tembuku.metric(
            "backend_connections_total",
            &[("backend", &addrs[1].to_string())],
        );
        assert_eq!(log.unnamed, taken as usize - there, "{check:?}");
        assert!(log.unnamed <= there);
        assert_eq!(log.sessions, 30 + there);
        tembuku.wait_idle();
        let failed = tembuku.metric("sessions_closed_total", &[("reason", "connect_failed")]);
        assert_eq!(failed, 0.0);
    }
}

/// It gives up at the first error, so those that had a session there report it, and the others end
/// well.
#[test]
fn redis_benchmark_goes_on_at_other_backends() {
    let mut servers = redis_servers();
    let addrs: Vec<SocketAddr> = servers.iter().map(|s| s.addr).collect();
    let (tembuku, front) = in_front_of(&addrs, CHECK);
    let ended = Arc::new(AtomicUsize::new(0));
    let running: Vec<_> = (0..9)
        .map(|_| {
            let ended = Arc::clone(&ended);
            thread::spawn(move || {
                let mut command =
                    command("redis-benchmark -q -c 1 -n 60000 -t get -h 127.0.0.1 -p");
                command.arg(front.port().to_string());
                let output = proc::run(secs(120), command);
                ended.fetch_add(1, SeqCst);
                output
            })
        })
        .collect();
    let received = || tembuku.metric("backend_received_bytes_total", &[]);
    wait_until("all are at work", secs(20), || {
        tembuku.metric("listener_active_connections", &[]) == 9.0 && received() > 100_000.0
    });
    let there = active(&tembuku, addrs[1]);
    servers[1].proc.kill();
    // Those that came to their end before it did.
    let ended = ended.load(SeqCst);
    assert!(
        (1..=8).contains(&there),
        "{there} of 9 are on it, {ended} have ended"
    );
    let failed = running.into_iter().map(|one| one.join().unwrap());
    let failed = failed.filter(|output| !output.status.success()).count();
    assert!(
        failed <= there && failed + ended >= there,
        "{failed}, {there}, {ended}"
    );

    // A connection for each request: each of them finds a server.
    let mut command =
        command("redis-benchmark -q -c 20 -n 2000 -k 0 -t ping_mbulk -h 127.0.0.1 -p");
    command.arg(front.port().to_string());
    let output = proc::run(secs(120), command);
    assert!(output.status.success(), "{}", proc::text(&output));
}

/// Its errors are those of the sessions that were on the server; it connects again, which always
/// succeeds.
#[test]
fn wrk_loses_what_was_there() {
    let addrs: Vec<SocketAddr> = (0..3).map(|_| ports::free_addr()).collect();
    let mut servers: Vec<Nginx> = addrs
        .iter()
        .map(|addr| {
            let server = format!(
                "keepalive_requests 1000000; server {{ listen {addr} \
                 backlog=4096; return 200 ok; }}"
            );
            // One process each, which is gone when it is killed.
            Nginx::start(
                *addr,
                &format!("master_process off;\n{}", http_block(&server)),
            )
        })
        .collect();
    let (tembuku, front) = in_front_of(&addrs, "");
    let wrk = thread::spawn(move || {
        let mut command = Command::new("wrk");
        command.args(["--threads", "2", "--connections", "30", "--duration", "4s"]);
        command.arg(format!("http://{front}/"));
        proc::run_ok(secs(60), command)
    });
    wait_until("all are at work", secs(20), || {
        tembuku.metric("listener_active_connections", &[]) == 30.0
            && tembuku.metric("backend_received_bytes_total", &[]) > 100_000.0
    });
    let there = active(&tembuku, addrs[1]);
    assert!(there >= 5, "{there}");
    servers[1].proc.kill();
    let output = wrk.join().unwrap();
    let errors: Vec<usize> = output
        .lines()
        .find_map(|line| line.trim().strip_prefix("Socket errors: "))
        .map(|line| {
            let numbers = line.split(|c: char| !c.is_ascii_digit());
            numbers.filter_map(|n| n.parse().ok()).collect()
        })
        .unwrap_or_default();
    // connect, read, write, timeout. What is written to a session that is about to end is an error
    // of writing.
    let [0, read, write, 0] = errors[..] else {
        panic!("{output}");
    };
    // As above: some may have been taken once more.
    let taken = tembuku.metric(
        "backend_connections_total",
        &[("backend", &addrs[1].to_string())],
    );
    assert!(
        (1..=taken as usize).contains(&(read + write)) && taken as usize <= 2 * there,
        "{there} were there, {taken} in all: {output}"
    );
    tembuku.wait_idle();
    let failed = tembuku.metric("sessions_closed_total", &[("reason", "connect_failed")]);
    assert_eq!(failed, 0.0, "{output}");
}

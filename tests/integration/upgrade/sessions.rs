//! Sessions go over to the new process.

use super::{Succession, listener, streams::Streams, upstream};
use crate::{
    harness::{
        dnsmasq::Dnsmasq,
        load::Load,
        millis,
        net::{self, connect},
        ports,
        postgres::{Postgres, postgres_client},
        proc::{command, run, run_ok, text},
        programs::{Iperf3, Nginx, Redis},
        secs,
        server::Server,
        tembuku::binary,
        temp::TempDir,
        udp::{UdpServer, ask, client},
        wait_until,
    },
    udp_dns::{dnsmasq, dnsperf, report},
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

fn number(variable: &str, default: usize) -> usize {
    let number = std::env::var(variable).ok();
    number.map_or(default, |number| number.parse().unwrap())
}

/// Of the process that serves now: how many there are of each kind.
fn descriptors(tembuku: &Succession) -> BTreeMap<String, usize> {
    let folder = fs::read_dir(format!("/proc/{}/fd", tembuku.current)).unwrap();
    let mut kinds = BTreeMap::new();
    for entry in folder {
        // Those that are closed meanwhile do not count.
        if let Ok(target) = fs::read_link(entry.unwrap().path()) {
            let text = target.to_str().unwrap();
            let kind = text.split(":[").next().unwrap();
            *kinds.entry(kind.to_owned()).or_default() += 1;
        }
    }
    kinds
}

/// When those of commands and of the last upgrade are closed.
fn settled_descriptors(tembuku: &Succession) -> BTreeMap<String, usize> {
    let (mut last, mut times) = (descriptors(tembuku), 0);
    wait_until("its descriptors stay the same", secs(10), || {
        let now = descriptors(tembuku);
        times = if now == last { times + 1 } else { 0 };
        last = now;
        times == 20
    });
    last
}

/// Programs of all kinds keep their connections: each of them goes through all processes.
/// `TEMBUKU_TEST_UPGRADES`: how many there are.
#[test]
fn connections_of_real_programs_outlive_many_upgrades() {
    outlive_many_upgrades("");
}

/// Such a user has a limit on descriptors under way, and less room in receive buffers.
#[test]
fn the_same_holds_for_a_user_without_privileges() {
    let user = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    outlive_many_upgrades(&format!("prlimit --nofile=1500:1500 {user}"));
}

fn outlive_many_upgrades(wrapper: &str) {
    let upgrades = number("TEMBUKU_TEST_UPGRADES", 4);
    let time = (upgrades * 3 / 2).max(6);
    let all = Behind::start();
    let mut tembuku = Succession::start_under(wrapper, &all.config());
    tembuku.upgrade();
    tembuku.wait_alone();
    let before = settled_descriptors(&tembuku);
    let streams = Streams::start(all.fronts[4], 150);
    thread::scope(|scope| {
        let load = Load::start(all.fronts[4], thread::spawn);
        let wrk = scope.spawn(|| all.wrk(time));
        let benchmark = scope.spawn(|| all.redis_benchmark(time));
        let bulk = scope.spawn(|| all.iperf3(time));
        let bench = scope.spawn(|| all.pgbench(time));
        let names = scope.spawn(|| all.dnsperf(time));
        let one_way = scope.spawn(|| all.send_datagrams(time));
        let mut done = 0;
        let is_busy = || !(wrk.is_finished() && bulk.is_finished() && one_way.is_finished());
        while done < upgrades || is_busy() {
            let out = tembuku.upgrade();
            assert!(out.contains("nothing is left behind"), "{out}");
            tembuku.wait_alone();
            assert_eq!(streams.advance("an upgrade"), 0);
            done += 1;
        }
        println!("{done} upgrades");
        let counts = load.take("new clients");
        assert_eq!((counts.refused, counts.cut), (0, 0), "{counts:?}");
        for run in [wrk, benchmark, bulk, bench, names, one_way] {
            run.join().unwrap();
        }
    });
    assert_eq!(streams.finish(), 0);
    assert_eq!(drops(&[all.fronts[5], all.fronts[6]]), 0);
    wait_until("nothing is left", secs(20), || {
        let process = tembuku.status()["process"].take();
        process["connections"] == 0 && process["flows"] == 0
    });
    tembuku.upgrade();
    tembuku.wait_alone();
    wait_until("it has as many descriptors as before", secs(10), || {
        descriptors(&tembuku) == before
    });
}

/// Servers, each behind a listener.
struct Behind {
    fronts: [SocketAddr; 7],
    backends: [SocketAddr; 7],
    dir: TempDir,
    /// The number that the next datagram has to have.
    next: Arc<AtomicU64>,
    _web: Nginx,
    _redis: Redis,
    _iperf3: Iperf3,
    _postgres: Postgres,
    _echo: Server,
    _names: Dnsmasq,
    _numbers: UdpServer,
}

impl Behind {
    #[track_caller]
    fn start() -> Self {
        let (web, web_addr) = Nginx::web("file", 800);
        let redis = Redis::start(ports::free_addr());
        let iperf3 = Iperf3::start();
        let postgres = Postgres::start();
        let echo = Server::named("a");
        let names = dnsmasq();
        let next = Arc::<AtomicU64>::default();
        let numbers = {
            let next = Arc::clone(&next);
            UdpServer::on(SocketAddr::from(([127, 0, 0, 1], 0)), move |_, _, bytes| {
                let number = u64::from_le_bytes(bytes.try_into().unwrap());
                // The first that is missing or out of order stays.
                let _ = next.compare_exchange(number, number + 1, SeqCst, SeqCst);
            })
        };
        let mut fill = postgres_client("pgbench", postgres.addr);
        fill.args("-i -q -s 1".split(' '));
        run_ok(secs(60), fill);
        Self {
            fronts: [(); 7].map(|()| ports::free_addr()),
            backends: [
                web_addr,
                redis.addr,
                iperf3.addr,
                postgres.addr,
                echo.addr,
                names.addr,
                numbers.addr,
            ],
            dir: TempDir::new(),
            next,
            _web: web,
            _redis: redis,
            _iperf3: iperf3,
            _postgres: postgres,
            _echo: echo,
            _names: names,
            _numbers: numbers,
        }
    }

    /// The last two are of UDP.
    fn config(&self) -> String {
        let sections = (0..7).map(|n| {
            let (front, backend) = (self.fronts[n], self.backends[n]);
            let keys = match n {
                5.. => "protocol = \"udp\"\nidle_timeout = \"3s\"\n",
                _ => "",
            };
            listener(&format!("l{n}"), &front.to_string(), &format!("u{n}"))
                + keys
                + &upstream(&format!("u{n}"), &format!("\"{backend}\""))
        });
        sections.collect()
    }

    fn wrk(&self, time: usize) {
        let mut wrk = command(&format!("wrk -t 1 -c 16 --timeout 30s -d {time}s"));
        wrk.arg(format!("http://{}/file", self.fronts[0]));
        let printed = run_ok(limit(time), wrk);
        assert!(printed.contains("requests in"), "{printed}");
        for word in ["Socket errors", "Non-2xx"] {
            assert!(!printed.contains(word), "{printed}");
        }
    }

    /// Again and again.
    fn redis_benchmark(&self, time: usize) {
        let end = Instant::now() + secs(time as u64);
        while Instant::now() < end {
            let mut benchmark =
                command("redis-benchmark -q -c 10 -n 30000 -t set,get -h 127.0.0.1");
            benchmark.args(["-p", &self.fronts[1].port().to_string()]);
            let printed = run_ok(limit(time), benchmark);
            assert!(
                printed.contains("GET") && !printed.contains("rror"),
                "{printed}"
            );
        }
    }

    /// Both ways at once.
    fn iperf3(&self, time: usize) {
        let mut iperf3 = command("iperf3 --client 127.0.0.1 --bidir --json");
        let port = self.fronts[2].port().to_string();
        iperf3.args(["--port", &port, "--time", &time.to_string()]);
        let printed = run_ok(limit(time), iperf3);
        let report: Value = serde_json::from_str(&printed).unwrap();
        assert!(report.get("error").is_none(), "{printed}");
        for side in ["sum_sent", "sum_sent_bidir_reverse"] {
            let bytes = report["end"][side]["bytes"].as_u64().unwrap();
            assert!(bytes > 1 << 20, "{printed}");
        }
    }

    fn pgbench(&self, time: usize) {
        let mut bench = postgres_client("pgbench", self.fronts[3]);
        bench.args(["-n", "-c", "4", "-j", "1", "-T", &time.to_string()]);
        let output = run(limit(time), bench);
        let printed = text(&output);
        assert!(output.status.success(), "{printed}");
        let is_complete = printed.contains("number of failed transactions: 0 ");
        assert!(is_complete && !printed.contains("abort"), "{printed}");
    }

    fn dnsperf(&self, time: usize) {
        let mut asked = dnsperf(&self.dir, self.fronts[5], time * 3, 300);
        asked.args(["-l", &(2 * time + 30).to_string()]);
        let printed = run_ok(limit(2 * time), asked);
        let report = report(&printed);
        let all = 100 * 3 * time as u64;
        assert_eq!(
            (report.sent, report.noerror, report.lost),
            (all, all, 0),
            "{printed}"
        );
    }

    /// One way, numbered, five hundred a second.
    fn send_datagrams(&self, time: usize) {
        let client = client(self.fronts[6]);
        let end = Instant::now() + secs(time as u64);
        let mut sent = 0u64;
        while Instant::now() < end {
            client.send(&sent.to_le_bytes()).unwrap();
            sent += 1;
            thread::sleep(millis(2));
        }
        wait_until("all datagrams arrive in their order", secs(10), || {
            self.next.load(SeqCst) == sent
        });
        println!("{sent} datagrams one way");
    }
}

/// For a program that runs for so long.
fn limit(time: usize) -> Duration {
    secs(time as u64 + 90)
}

/// Datagrams that did not fit into the buffers of the sockets of these addresses.
fn drops(addresses: &[SocketAddr]) -> u64 {
    let local = |at: &SocketAddr| match at {
        SocketAddr::V4(at) => {
            format!(
                "{:08X}:{:04X}",
                u32::from_ne_bytes(at.ip().octets()),
                at.port()
            )
        }
        SocketAddr::V6(_) => panic!("{at} is not of IPv4"),
    };
    let wanted: Vec<String> = addresses.iter().map(local).collect();
    let table = fs::read_to_string("/proc/net/udp").unwrap();
    let of = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        wanted
            .iter()
            .any(|w| w == fields[1])
            .then(|| fields[12].parse::<u64>().unwrap())
    };
    let found: Vec<u64> = table.lines().skip(1).filter_map(of).collect();
    assert!(found.len() >= addresses.len(), "{table}");
    found.iter().sum()
}

fn ping(session: &mut TcpStream) {
    session.write_all(b"PING\r\n").unwrap();
    let mut answer = [0; 7];
    session.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"+PONG\r\n");
}

/// Prints for how long they are silent. `TEMBUKU_TEST_SESSIONS`: how many there are.
#[test]
fn idle_sessions_go_over_within_milliseconds() {
    go_over(number("TEMBUKU_TEST_SESSIONS", 1_000));
}

fn go_over(count: usize) {
    let redis = Redis::start(ports::free_addr());
    let front: SocketAddr = ports::free_addr();
    let config =
        listener("l", &front.to_string(), "u") + &upstream("u", &format!("\"{}\"", redis.addr));
    let mut tembuku = Succession::start(&config);
    let mut sessions: Vec<TcpStream> = (0..count).map(|_| connect(front).unwrap()).collect();
    sessions.iter_mut().for_each(ping);
    for _ in 0..2 {
        let began = Instant::now();
        let out = tembuku.upgrade();
        assert!(out.contains("nothing is left behind"), "{out}");
        tembuku.wait_alone();
        println!("{:?} until the old process has ended", began.elapsed());
        sessions.iter_mut().for_each(ping);
    }
    let log = tembuku.first.proc.stderr();
    let taken: Vec<Value> = log
        .lines()
        .filter(|line| line.contains("sessions taken over"))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(taken.len(), 2, "{log}");
    for line in taken {
        println!("{line}");
        let text = line.to_string();
        assert!(text.contains(&format!("\"sessions\":{count}")), "{text}");
    }
}

/// As many as a redis-server takes.
#[test]
fn nine_thousand_sessions_go_over() {
    go_over(9_000);
}

/// `TEMBUKU_TEST_PREVIOUS`: the program of an earlier version; without it, this one.
#[test]
fn sessions_and_flows_go_over_to_another_version_and_back() {
    let own = binary();
    let previous = std::env::var_os("TEMBUKU_TEST_PREVIOUS").map_or(own.clone(), PathBuf::from);
    let (server, names) = (Server::named("a"), UdpServer::named("b"));
    let (front, udp) = (ports::free_addr(), ports::free_addr());
    let config = "[process]\nworkers = 2\n".to_owned()
        + &listener("l", &front.to_string(), "u")
        + &listener("d", &udp.to_string(), "e")
        + "protocol = \"udp\"\n"
        + &upstream("u", &format!("\"{}\"", server.addr))
        + &upstream("e", &format!("\"{}\"", names.addr));
    let mut tembuku = Succession::start(&config);
    let streams = Streams::start(front, 100);
    let clients: Vec<_> = (0..50).map(|_| client(udp)).collect();
    for (n, program) in [&previous, &own, &previous, &own].into_iter().enumerate() {
        for client in &clients {
            assert_eq!(ask(client, "who"), "b who");
        }
        let output = tembuku.try_upgrade(&["--binary", program.to_str().unwrap()]);
        let printed = text(&output);
        assert_eq!(output.status.code(), Some(0), "{n}: {printed}");
        assert!(printed.contains("nothing is left behind"), "{n}: {printed}");
        tembuku.current = tembuku.pid();
        tembuku.wait_alone();
        assert_eq!(streams.advance("another version"), 0, "{n}");
        assert_eq!(net::ask(front).unwrap(), "a");
    }
    assert_eq!(names.peers().len(), 50, "each flow has had one socket");
    assert_eq!(streams.finish(), 0);
}

/// A setting of the operator holds in the new process.
#[test]
fn a_session_that_went_over_can_be_terminated_there() {
    let server = Server::named("a");
    let front = ports::free_addr();
    let config =
        listener("l", &front.to_string(), "u") + &upstream("u", &format!("\"{}\"", server.addr));
    let mut tembuku = Succession::start(&config);
    let (mut session, _) = net::session(front).unwrap();
    for _ in 0..3 {
        tembuku.upgrade();
        tembuku.wait_alone();
        net::echo(&mut session, "still").unwrap();
    }
    let socket = tembuku.socket();
    let killed =
        crate::harness::tembuku::cli(&["kill", "--socket", socket.to_str().unwrap(), "--all"]);
    let text = text(&killed);
    net::assert_ends_now(&mut session);
    assert!(text.contains('1'), "{text}");
}

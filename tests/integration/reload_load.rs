//! Reloads with random edits while real programs work through the listeners: nothing is lost, and
//! nothing is left over.
//!
//! `TEMBUKU_TEST_RELOADS`: how many, half of them by the command and half by HUP.

mod model;

use crate::harness::{
    dnsmasq::Dnsmasq,
    metrics::Metrics,
    net, poll, ports,
    postgres::{Postgres, postgres_client},
    proc::{command, run_ok},
    programs::{Nginx, Redis},
    rng::{Rng, seed},
    secs,
    server::Server,
    tembuku::Tembuku,
    temp::TempDir,
    udp, wait_until,
};
use model::{Kind, Model};
use rustix::process::Signal;
use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, TcpStream, UdpSocket},
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

/// In the normal run of tests.
const RELOADS: usize = 100;
/// Every so many-th file is not valid.
const INVALID: usize = 10;

struct Servers {
    web: [(Nginx, SocketAddr); 2],
    redis: [Redis; 2],
    postgres: Postgres,
    dns: [Dnsmasq; 2],
    lines: Vec<Server>,
    datagrams: Vec<udp::UdpServer>,
}

impl Servers {
    fn start() -> Self {
        let names: String = (0..9)
            .map(|n| format!("address=/n{n}.example/10.0.0.{n}\n"))
            .collect();
        let named = |n: usize| format!("b{n}");
        Self {
            web: [(); 2].map(|()| Nginx::web("file", 800)),
            redis: [(); 2].map(|()| Redis::start(ports::free_addr())),
            postgres: Postgres::start(),
            dns: [(); 2].map(|()| Dnsmasq::start(&names)),
            lines: (0..4).map(|n| Server::named(&named(n))).collect(),
            datagrams: (0..3).map(|n| udp::UdpServer::named(&named(n))).collect(),
        }
    }

    fn model(&self) -> Model {
        Model::new(vec![
            ("web", Kind::Http, self.web.iter().map(|w| w.1).collect()),
            (
                "redis",
                Kind::Redis,
                self.redis.iter().map(|r| r.addr).collect(),
            ),
            ("postgres", Kind::Postgres, vec![self.postgres.addr]),
            ("dns", Kind::Dns, self.dns.iter().map(|d| d.addr).collect()),
            (
                "lines",
                Kind::Lines,
                self.lines.iter().map(|s| s.addr).collect(),
            ),
            ("datagrams", Kind::Datagrams, udp::addrs(&self.datagrams)),
        ])
    }
}

/// Programs that work until it is over, and panic when anything fails.
struct Load<'a> {
    model: &'a Model,
    is_over: &'a AtomicBool,
    /// Rounds of programs, lines and datagrams that were answered.
    rounds: AtomicU64,
    lines: AtomicU64,
    datagrams: AtomicU64,
    connects: AtomicU64,
}

impl Load<'_> {
    /// A failure ends all.
    fn spawn<'scope>(
        &'scope self,
        scope: &'scope thread::Scope<'scope, '_>,
        work: impl FnOnce(&Self) + Send + 'scope,
    ) {
        scope.spawn(move || {
            let _end = EndOnDrop(self.is_over);
            work(self);
        });
    }

    fn run(&self, line: impl Fn(SocketAddr) -> Command, name: &str, fails: &[&str]) {
        let front = self.model.front(name);
        while !self.is_over.load(Relaxed) {
            let printed = run_ok(secs(60), yielding(&line(front)));
            for word in fails {
                assert!(!printed.contains(word), "{name}: {word} in\n{printed}");
            }
            self.rounds.fetch_add(1, Relaxed);
        }
    }

    fn wrk(&self, header: &str) {
        let wrk = |front| {
            let mut wrk = command("wrk -t 1 -c 6 -d 2s --timeout 20s");
            wrk.args(["-H", header, &format!("http://{front}/file")]);
            wrk
        };
        self.run(wrk, "web", &["Socket errors", "Non-2xx"]);
    }

    fn redis_benchmark(&self, options: &str) {
        let benchmark = |front: SocketAddr| {
            let mut benchmark = command("redis-benchmark -q -h 127.0.0.1 -p");
            benchmark
                .arg(front.port().to_string())
                .args(options.split(' '));
            benchmark
        };
        self.run(benchmark, "redis", &["rror"]);
    }

    fn pgbench(&self, options: &str) {
        let pgbench = |front| {
            let mut pgbench = postgres_client("pgbench", front);
            pgbench.args(options.split(' '));
            pgbench
        };
        self.run(pgbench, "postgres", &["aborted", "failed transactions: 1"]);
    }

    fn dnsperf(&self, dir: &TempDir) {
        let questions: String = (0..9).map(|n| format!("n{n}.example A\n")).collect();
        let file = dir.write("questions", &questions);
        let dnsperf = |front: SocketAddr| {
            let mut dnsperf = command("dnsperf -c 4 -q 100 -t 20 -l 2 -Q 500");
            dnsperf.args(["-s", "127.0.0.1", "-p", &front.port().to_string()]);
            dnsperf.arg("-d").arg(&file);
            dnsperf
        };
        let front = self.model.front("dns");
        while !self.is_over.load(Relaxed) {
            let printed = run_ok(secs(60), yielding(&dnsperf(front)));
            let lost = printed.lines().find(|line| line.contains("Queries lost:"));
            let lost = lost.unwrap_or_else(|| panic!("{printed}"));
            assert!(lost.contains(" 0 (0.00%)"), "{printed}");
            self.rounds.fetch_add(1, Relaxed);
        }
    }

    /// Lines on one session for each backend, which stays where it is.
    fn sequences(&self, mut sessions: Vec<TcpStream>) {
        for n in 0_u64.. {
            for session in &mut sessions {
                net::echo(session, &format!("line {n}")).unwrap();
                self.lines.fetch_add(1, Relaxed);
            }
            if self.is_over.load(Relaxed) {
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// The same with datagrams.
    fn flows(&self, clients: Vec<(UdpSocket, String)>) {
        for n in 0_u64.. {
            for (client, name) in &clients {
                let answer = udp::ask(client, &format!("datagram {n}"));
                assert_eq!(answer, format!("{name} datagram {n}"));
                self.datagrams.fetch_add(1, Relaxed);
            }
            if self.is_over.load(Relaxed) {
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn connects(&self) {
        let front = self.model.front("lines");
        while !self.is_over.load(Relaxed) {
            let (stream, _) = net::session(front).unwrap();
            net::reset(stream);
            self.connects.fetch_add(1, Relaxed);
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A program that leaves the processor to reloads: it would take all that there is.
fn yielding(load: &Command) -> Command {
    let mut nice = command("nice -n 10");
    nice.arg(load.get_program()).args(load.get_args());
    for (name, value) in load.get_envs() {
        nice.env(name, value.unwrap_or_default());
    }
    nice
}

/// One session for each backend of `lines`.
fn sessions(front: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut sessions = BTreeMap::new();
    while sessions.len() < count {
        let (stream, name) = net::session(front).unwrap();
        sessions.entry(name).or_insert(stream);
    }
    sessions.into_values().collect()
}

/// One flow for each backend of `datagrams`, with its name.
fn flows(front: SocketAddr, count: usize) -> Vec<(UdpSocket, String)> {
    let mut flows = BTreeMap::new();
    while flows.len() < count {
        let client = udp::client(front);
        let answer = udp::ask(&client, "first");
        let name = answer.split(' ').next().unwrap().to_owned();
        flows.entry(name).or_insert(client);
    }
    flows
        .into_iter()
        .map(|(name, client)| (client, name))
        .collect()
}

/// No counter is lower than before, as long as it is there.
fn assert_risen(before: &Metrics, after: &Metrics) {
    let key = |s: &crate::harness::metrics::Series| (s.name.clone(), s.labels.clone());
    let counters: BTreeMap<_, f64> = before
        .series
        .iter()
        .filter(|s| s.name.ends_with("_total") || s.name.ends_with("_count"))
        .map(|s| (key(s), s.value))
        .collect();
    for series in &after.series {
        if let Some(before) = counters.get(&key(series)) {
            assert!(series.value >= *before, "{series:?} was {before}");
        }
    }
}

/// Every client of a listener was turned away, has ended, or is there.
fn assert_sums(metrics: &Metrics) {
    for listener in ["web", "redis", "postgres", "dns", "lines", "datagrams"] {
        let of = |name: &str| metrics.sum(name, &[("listener", listener)]);
        let (closed, rejected) = (of("sessions_closed_total"), of("listener_rejected_total"));
        let active = of("listener_active_connections");
        let accepted = of("listener_connections_total");
        assert_eq!(accepted, closed + rejected + active, "{listener}");
        assert_eq!(rejected, 0.0, "{listener}");
    }
}

#[derive(Clone, Copy, Debug)]
enum By {
    Command,
    Hup,
}

/// Reloads, and returns how long that took.
fn reload(tembuku: &Tembuku, by: By, text: &str, is_valid: bool) -> Duration {
    let began = Instant::now();
    match by {
        By::Command => {
            let output = tembuku.try_reload(text);
            let expected = if is_valid { Some(0) } else { Some(1) };
            assert_eq!(output.status.code(), expected, "{output:?}\n{text}");
        }
        By::Hup => {
            let word = if is_valid {
                "configuration reloaded"
            } else {
                "reload failed"
            };
            let count = || tembuku.proc.stderr().matches(word).count();
            let before = count();
            tembuku.write(text);
            tembuku.proc.signal(Signal::HUP);
            wait_until("the reload is logged", secs(30), || count() > before);
        }
    }
    began.elapsed()
}

fn threads(tembuku: &Tembuku) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", tembuku.proc.id())).unwrap();
    tasks.count()
}

/// What the descriptors are, without pipes: workers keep those that are empty for later.
fn other_than_pipes(tembuku: &Tembuku) -> Vec<PathBuf> {
    let open = fs::read_dir(format!("/proc/{}/fd", tembuku.proc.id())).unwrap();
    let links = open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    let is_pipe = |link: &PathBuf| link.to_string_lossy().starts_with("pipe:");
    links.filter(|link| !is_pipe(link)).collect()
}

/// Descriptors and threads, when all clients have left.
fn resting(tembuku: &Tembuku) -> (usize, usize) {
    let active = || tembuku.metric("listener_active_connections", &[]);
    wait_until("the last session has ended", secs(90), || active() == 0.0);
    tembuku.proc.settled_descriptors();
    let descriptors = other_than_pipes(tembuku).len();
    let settled = poll(secs(20), || {
        let count = threads(tembuku);
        thread::sleep(Duration::from_millis(100));
        (count == threads(tembuku)).then_some(count)
    });
    (descriptors, settled.expect("the number of threads settles"))
}

/// Half of the reloads, under load.
fn phase(
    tembuku: &Tembuku,
    (servers, first): (&Servers, &Model),
    by: By,
    reloads: usize,
    rng: &mut Rng,
) {
    let (dir, is_over) = (TempDir::new(), AtomicBool::new(false));
    let load = Load {
        model: first,
        is_over: &is_over,
        rounds: AtomicU64::default(),
        lines: AtomicU64::default(),
        datagrams: AtomicU64::default(),
        connects: AtomicU64::default(),
    };
    let passing: Vec<u16> = (0..6).map(|_| ports::free_port()).collect();
    let lines = sessions(first.front("lines"), servers.lines.len());
    let datagrams = flows(first.front("datagrams"), servers.datagrams.len());
    let mut model = first.clone();
    let mut longest = Duration::ZERO;
    let mut counters = tembuku.metrics();
    thread::scope(|scope| {
        let end = EndOnDrop(&is_over);
        load.spawn(scope, |load| load.wrk("Connection: keep-alive"));
        load.spawn(scope, |load| load.wrk("Connection: close"));
        load.spawn(scope, |load| {
            load.redis_benchmark("-n 4000 -c 10 -t set,get")
        });
        load.spawn(scope, |load| {
            load.redis_benchmark("-n 500 -c 10 -k 0 -t ping_mbulk")
        });
        load.spawn(scope, |load| load.pgbench("-n -c 4 -T 2 -S"));
        load.spawn(scope, |load| load.pgbench("-n -C -c 2 -T 2 -S"));
        load.spawn(scope, |load| load.dnsperf(&dir));
        load.spawn(scope, |load| load.sequences(lines));
        load.spawn(scope, |load| load.flows(datagrams));
        load.spawn(scope, Load::connects);
        for n in 1..=reloads {
            let edits = rng.range(1, 4);
            (0..edits).for_each(|_| model.edit(rng, &passing));
            let is_valid = !n.is_multiple_of(INVALID);
            let mut text = model.text();
            if !is_valid {
                text += "[listeners.broken]\nbind = \"127.0.0.1:1\"\nupstream = \"nowhere\"\n";
            }
            longest = longest.max(reload(tembuku, by, &text, is_valid));
            // Every session and flow has gone on meanwhile.
            let (lines, datagrams) = (load.lines.load(Relaxed), load.datagrams.load(Relaxed));
            wait_until("sessions go on", secs(30), || {
                let more = load.lines.load(Relaxed) > lines + 4;
                more && load.datagrams.load(Relaxed) > datagrams + 3 || is_over.load(Relaxed)
            });
            let now = tembuku.metrics();
            assert_risen(&counters, &now);
            counters = now;
            if is_over.load(Relaxed) {
                break;
            }
        }
        drop(end);
    });
    // Flows have no end that a client could cause.
    tembuku.reload(&first.without_flows());
    tembuku.reload(&first.text());
    println!(
        "{reloads} reloads by {by:?}, the longest {longest:?}: {} rounds of programs, {} lines, {} \
         datagrams, {} connects",
        load.rounds.into_inner(),
        load.lines.into_inner(),
        load.datagrams.into_inner(),
        load.connects.into_inner()
    );
}

/// Ends the load also when the test fails.
struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn nothing_is_lost_or_left_over_by_many_reloads_under_load() {
    let mut rng = Rng::new(seed("reload_load"));
    let reloads = std::env::var("TEMBUKU_TEST_RELOADS")
        .map_or(RELOADS, |text| text.parse().expect("a number"));
    let servers = Servers::start();
    let first = servers.model();
    let tembuku = Tembuku::start(&first.text());
    let mut pgbench = postgres_client("pgbench", first.front("postgres"));
    pgbench.args(["-i", "-q", "-s", "1"]);
    run_ok(secs(60), pgbench);
    let mut rests = Vec::new();
    for by in [By::Command, By::Hup] {
        phase(&tembuku, (&servers, &first), by, reloads / 2, &mut rng);
        rests.push(resting(&tembuku));
        assert_sums(&tembuku.metrics());
    }
    println!("descriptors and threads at rest: {rests:?}");
    let [(before, threads_before), (after, threads_after)] = rests[..] else {
        panic!("two phases");
    };
    // A connection of a check or a scrape comes and goes; what has leaked stays.
    let settled = after <= before
        || poll(secs(20), || {
            (other_than_pipes(&tembuku).len() <= before).then_some(())
        })
        .is_some();
    assert!(settled, "{rests:?}: {:?}", other_than_pipes(&tembuku));
    assert_eq!(threads_before, threads_after);
    let printed = tembuku.proc.stderr();
    assert!(!printed.contains("panicked"), "{printed}");
}

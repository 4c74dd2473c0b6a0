//! A dry run tells what the reload then does: in random changes of a running process, with held
//! sessions and with clients whose backends are known before and after.

use super::Setup;
use crate::harness::{
    http,
    net::{self, ask_from},
    ports,
    rng::{self, Rng},
    secs,
    server::{Server, named},
    tembuku::Tembuku,
    wait_until,
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
};

const CASES: usize = 100;
const CLIENTS: usize = 60;
/// Of 60 clients four standard deviations, and those of the sample that is behind a prediction.
const TOLERANCE: f64 = 0.3;

const BY_KEY: [&str; 4] = ["maglev", "consistent_hash", "hash", "ip_hash"];
const BALANCE: [&str; 6] = [
    "maglev",
    "consistent_hash",
    "hash",
    "ip_hash",
    "round_robin",
    "least_conn",
];

#[derive(Clone, Default)]
struct Upstream {
    balance: &'static str,
    /// By the number of the server: the weight.
    backends: BTreeMap<usize, u64>,
    backup: Option<usize>,
    down: Option<usize>,
    closes: bool,
}

#[derive(Clone)]
struct Model {
    upstreams: Vec<Upstream>,
    /// The upstream of each listener.
    listeners: Vec<usize>,
    retries: u64,
    drain_timeout: u64,
}

impl Model {
    fn new(rng: &mut Rng) -> Self {
        let mut upstream = || Upstream {
            balance: BALANCE[rng.below(6) as usize],
            backends: (0..4).map(|n| (n, 1)).collect(),
            ..Upstream::default()
        };
        Self {
            upstreams: vec![upstream(), upstream(), upstream()],
            listeners: vec![0, 1],
            retries: 1,
            drain_timeout: 1,
        }
    }

    fn config(&self, servers: &[Server], fronts: &[SocketAddr]) -> String {
        let mut out = format!(
            "[process]\nworkers = 2\ndrain_timeout = \"{}s\"\n[log]\nformat = \"json\"\n\
             [admin]\nsocket = \"{{dir}}/admin.sock\"\n",
            self.drain_timeout
        );
        for (n, (upstream, front)) in self.listeners.iter().zip(fronts).enumerate() {
            let _ = write!(
                out,
                "[listeners.l{n}]\nbind = \"{front}\"\nupstream = \"u{upstream}\"\nretries = {}\n",
                self.retries
            );
        }
        for (n, upstream) in self.upstreams.iter().enumerate() {
            let backends = upstream.backends.iter().map(|(server, weight)| {
                format!(
                    "{{ address = \"{}\", weight = {weight}, backup = {}, down = {} }}",
                    servers[*server].addr,
                    upstream.backup == Some(*server),
                    upstream.down == Some(*server)
                )
            });
            let backends: Vec<String> = backends.collect();
            let _ = write!(
                out,
                "[upstreams.u{n}]\nbalance = \"{}\"\non_removed = \"{}\"\nbackends = [{}]\n",
                upstream.balance,
                if upstream.closes { "close" } else { "keep" },
                backends.join(", ")
            );
        }
        out
    }

    fn change(&mut self, rng: &mut Rng, servers: usize) {
        let of = rng.below(self.upstreams.len() as u64) as usize;
        let upstream = &mut self.upstreams[of];
        let server = rng.below(servers as u64) as usize;
        let is_there = upstream.backends.contains_key(&server);
        match rng.below(10) {
            0 | 1 if !is_there => {
                upstream.backends.insert(server, 1 + rng.below(3));
            }
            // Some that can be used are left, whatever else there is.
            0 | 1 if upstream.backends.len() > 4 => {
                upstream.backends.remove(&server);
                upstream.backup.take_if(|backup| *backup == server);
                upstream.down.take_if(|down| *down == server);
            }
            2 | 3 if is_there => {
                upstream.backends.insert(server, 1 + rng.below(4));
            }
            4 => upstream.backup = Some(server).filter(|_| is_there),
            5 => upstream.down = Some(server).filter(|_| is_there),
            6 => upstream.balance = BALANCE[rng.below(6) as usize],
            7 => upstream.closes = !upstream.closes,
            8 => {
                let listener = rng.below(self.listeners.len() as u64) as usize;
                self.listeners[listener] = of;
            }
            _ => {
                self.retries = rng.below(4);
                self.drain_timeout = 1 + rng.below(9);
            }
        }
    }

    fn is_by_key(&self, listener: usize) -> bool {
        BY_KEY.contains(&self.upstreams[self.listeners[listener]].balance)
    }
}

struct Held {
    stream: TcpStream,
    listener: usize,
    upstream: usize,
    server: String,
}

struct Test {
    setup: Setup,
    servers: Vec<Server>,
    fronts: Vec<SocketAddr>,
    clients: Vec<IpAddr>,
    held: Vec<Held>,
}

impl Test {
    fn request(&self, path: &str, body: &str) -> Value {
        let socket = self.setup.tembuku.dir.file("admin.sock");
        let answer = http::request_unix(&socket, "POST", path, body).unwrap();
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        serde_json::from_str(&answer.body).unwrap()
    }

    fn reload(&self, is_dry_run: bool) -> Value {
        self.request("/api/v1/reload", &format!("{{\"dry_run\": {is_dry_run}}}"))
    }

    /// The backend of each client on each listener.
    fn picks(&self) -> Vec<Vec<String>> {
        let ask = |front| {
            let clients = self.clients.iter();
            clients
                .map(|client| ask_from(*client, front).unwrap())
                .collect()
        };
        let picks = self.fronts.iter().map(|front| ask(*front)).collect();
        // Those sessions do not count in a report.
        let held = self.held.len() as f64;
        let active = || {
            let metrics = self.setup.tembuku.metrics();
            metrics.sum("backend_active_connections", &[])
        };
        wait_until("only held sessions are left", secs(10), || active() == held);
        picks
    }

    /// Exactly those held sessions end that the report says.
    fn assert_ended(&mut self, report: &Value, removed: &[(usize, String)]) {
        let changes = report["changes"].as_array().unwrap().iter();
        let predicted: u64 = changes.filter_map(|c| c["ended_sessions"].as_u64()).sum();
        let (ended, rest): (Vec<Held>, Vec<Held>) = std::mem::take(&mut self.held)
            .into_iter()
            .partition(|held| removed.contains(&(held.upstream, held.server.clone())));
        assert_eq!(ended.len() as u64, predicted, "{report:#}");
        for mut held in ended {
            net::assert_ends_now(&mut held.stream);
        }
        self.held = rest;
        for held in &mut self.held {
            net::echo(&mut held.stream, "still here").unwrap();
        }
    }

    fn hold(&mut self, model: &Model, listener: usize) {
        let (stream, server) = net::session(self.fronts[listener]).unwrap();
        self.held.push(Held {
            stream,
            listener,
            upstream: model.listeners[listener],
            server,
        });
    }

    /// The sessions of every object of the report are those that are held.
    fn assert_sessions(&self, report: &Value) {
        for change in report["changes"].as_array().unwrap() {
            let name = change["name"].as_str().unwrap();
            let is_on = |held: &Held| {
                let upstream = format!("u{}", held.upstream);
                match change["object"].as_str().unwrap() {
                    "listener" => name == format!("l{}", held.listener),
                    "upstream" => name == upstream,
                    _ => {
                        let mut servers = self.servers.iter().enumerate();
                        let (_, server) = servers
                            .find(|(n, _)| held.server == format!("b{}", n + 1))
                            .unwrap();
                        name == format!("{upstream}/{}", server.addr)
                    }
                }
            };
            let held = self.held.iter().filter(|held| is_on(held)).count();
            match change["object"] == "process" {
                true => assert!(change["sessions"].is_null(), "{change}"),
                false => assert_eq!(change["sessions"], held, "{change}"),
            }
        }
    }
}

/// What the report says of the clients of a listener.
fn predicted(report: &Value, listener: usize, upstream: usize) -> Option<f64> {
    let changes = report["changes"].as_array().unwrap();
    let share = |is_it: &dyn Fn(&str, &str) -> bool| {
        let mut found = changes.iter().filter(|change| {
            is_it(
                change["object"].as_str().unwrap(),
                change["name"].as_str().unwrap(),
            )
        });
        found.find_map(|change| change["moved_share"].as_f64())
    };
    let (listener, upstream) = (format!("l{listener}"), format!("u{upstream}"));
    let backends = format!("{upstream}/");
    share(&|object, name| object == "listener" && name == listener)
        .or_else(|| share(&|object, name| object == "upstream" && name == upstream))
        .or_else(|| share(&|object, name| object == "backend" && name.starts_with(&backends)))
}

fn start(model: &Model, rng: &mut Rng) -> Test {
    let servers = named(7);
    let fronts = vec![ports::free_addr(), ports::free_addr()];
    let tembuku = Tembuku::start(&model.config(&servers, &fronts));
    let mut client = || {
        let mut byte = || 1 + rng.below(254) as u8;
        IpAddr::from(Ipv4Addr::new(127, byte(), byte(), byte()))
    };
    Test {
        setup: Setup {
            tembuku,
            front: fronts[0],
            servers: Vec::new(),
        },
        clients: (0..CLIENTS).map(|_| client()).collect(),
        held: Vec::new(),
        servers,
        fronts,
    }
}

#[test]
fn a_dry_run_predicts_what_the_reload_does() {
    let mut rng = Rng::new(rng::seed("reload::prediction"));
    let mut model = Model::new(&mut rng);
    let mut test = start(&model, &mut rng);
    let dir = test.setup.tembuku.dir.path().display().to_string();
    let admin = format!("[admin]\nlisten = \"{}\"\n", test.setup.tembuku.admin);
    let mut before = test.picks();
    let (mut compared, mut bias) = (0, 0.0);
    let mut drained: Option<String> = None;
    for case in 0..CASES {
        if rng.chance(20) {
            // The operator takes a backend out of all upstreams' picks, or brings it back.
            let of = rng.below(3) as usize;
            let backends: Vec<&usize> = model.upstreams[of].backends.keys().collect();
            let server = *backends[rng.below(backends.len() as u64) as usize];
            let name = format!("u{of}/{}", test.servers[server].addr);
            if let Some(before) = drained.replace(name.clone()) {
                test.set_admin_state(&before, "ready");
            }
            test.set_admin_state(&name, "drain");
            before = test.picks();
        }
        if test.held.len() < 30 {
            test.hold(&model, rng.below(2) as usize);
        }
        let old = model.clone();
        for _ in 0..1 + rng.below(3) {
            model.change(&mut rng, test.servers.len());
        }
        let config = model.config(&test.servers, &test.fronts);
        let config = config
            .replace("{dir}", &dir)
            .replacen("[admin]\n", &admin, 1);
        test.setup.write(&config);
        let mut predicted_report = test.reload(true);
        test.assert_sessions(&predicted_report);
        let mut report = test.reload(false);
        assert_eq!(predicted_report["applied"].take(), false);
        assert_eq!(report["applied"].take(), true);
        let pause = report["longest_pause_seconds"].take();
        assert!(pause.is_f64(), "{pause}");
        assert_eq!(predicted_report, report, "case {case}");
        let mut removed = Vec::new();
        for (n, (before, after)) in old.upstreams.iter().zip(&model.upstreams).enumerate() {
            let gone = before
                .backends
                .keys()
                .filter(|s| !after.backends.contains_key(s));
            let gone = gone
                .filter(|_| after.closes)
                .map(|server| (n, format!("b{}", server + 1)));
            removed.extend(gone);
        }
        test.assert_ended(&report, &removed);
        let after = test.picks();
        for listener in 0..2 {
            if !old.is_by_key(listener) || !model.is_by_key(listener) {
                continue;
            }
            let share = predicted(&report, listener, model.listeners[listener]).unwrap_or(0.0);
            let both = before[listener].iter().zip(&after[listener]);
            let moved = both.filter(|(before, after)| before != after).count();
            let measured = moved as f64 / CLIENTS as f64;
            let distance = share - measured;
            assert!(
                distance.abs() < TOLERANCE,
                "case {case}, listener {listener}: {share} is not {measured}: {report:#}"
            );
            compared += 1;
            bias += distance;
        }
        before = after;
    }
    assert!(compared > CASES / 2, "{compared}");
    let bias = bias / f64::from(compared as u32);
    assert!(
        bias.abs() < 0.02,
        "on average the prediction is off by {bias}"
    );
}

impl Test {
    /// Does nothing if the backend has gone by now.
    fn set_admin_state(&self, name: &str, state: &str) {
        let config = self.setup.config();
        let (upstream, address) = name.split_once('/').unwrap();
        let (_, section) = config
            .split_once(&format!("[upstreams.{upstream}]"))
            .unwrap();
        let section = section.split("[upstreams.").next().unwrap();
        if section.contains(&format!("\"{address}\"")) {
            let path = format!("/api/v1/upstreams/{upstream}/backends/{address}");
            self.request(&path, &format!("{{\"admin_state\": \"{state}\"}}"));
        }
    }
}

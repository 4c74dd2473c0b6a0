//! Every kind of source, and everything that can be wrong with its server: the end of each case is
//! as docs/discovery.md has it, and no client ever loses a backend because a source has failed.

mod kinds;

use crate::{
    discover::Discovering,
    harness::{
        faulty::Fault, load::Load, millis, ports, secs, server::Server, temp::TempDir, wait_until,
    },
};
use kinds::{Etcd, File, Http, Kind, Redis, Registry, Sentinel, Srv};
use serde_json::Value;
use std::{
    fs,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

/// So many backends a large upstream has.
const MANY: usize = 5_000;
/// Keys of every kind: as short as the test needs them.
const TIMES: &str = "interval = \"200ms\"\ntimeout = \"500ms\"\nconfirm = \"2s\"\n";

/// One server at every address of this machine, so that each backend serves.
struct Place {
    _server: Server,
    port: u16,
}

impl Place {
    fn start() -> Self {
        let port = ports::free_port();
        let everywhere = SocketAddr::from(([0, 0, 0, 0], port));
        Self {
            _server: Server::named_on("b1", &[everywhere]),
            port,
        }
    }

    fn backends(&self, count: usize) -> Vec<SocketAddr> {
        let address = |n: usize| {
            let (high, low) = ((n / 250) as u8, (n % 250) as u8);
            SocketAddr::from(([127, 1, high, low + 1], self.port))
        };
        (0..count).map(address).collect()
    }
}

fn discovery(running: &Discovering) -> Value {
    running.upstream()["discovery"].take()
}

fn wait_count(running: &Discovering, count: usize) -> Duration {
    let began = Instant::now();
    wait_until(&format!("{count} backends"), secs(60), || {
        discovery(running)["backends"] == count
    });
    began.elapsed()
}

fn held(running: &Discovering) -> Vec<(String, String)> {
    let held = discovery(running)["held"].take();
    let held = held.as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    held.map(|h| (text(&h["address"]), text(&h["reason"])))
        .collect()
}

/// What a process keeps.
#[derive(Debug)]
struct Kept {
    descriptors: usize,
    series: usize,
    memory_kib: u64,
}

impl Kept {
    fn of(running: &Discovering) -> Self {
        let (proc, metrics) = (&running.tembuku.proc, running.tembuku.get("/metrics").body);
        let status = fs::read_to_string(format!("/proc/{}/status", proc.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.unwrap().split_whitespace().nth(1).unwrap();
        Self {
            descriptors: proc.descriptors(),
            series: metrics.lines().filter(|l| !l.starts_with('#')).count(),
            memory_kib: kib.parse().unwrap(),
        }
    }

    /// Nothing is kept besides, once sessions and questions that are under way have ended.
    #[track_caller]
    fn assert_is_all(&self, running: &Discovering, name: &str) {
        let is_all = || {
            let now = Self::of(running);
            let is_less = now.descriptors <= self.descriptors && now.series <= self.series;
            is_less && now.memory_kib <= self.memory_kib + (8 << 10)
        };
        let what = format!("{name}: no more than {self:?} is kept");
        wait_until(&what, secs(20), is_all);
        println!("{name}: {self:?} before, {:?} after", Self::of(running));
    }
}

/// Everything that can happen to this kind.
#[track_caller]
fn fails_as_documented(kind: &mut dyn Kind) {
    let (place, name) = (Place::start(), kind.word());
    let [two, three] = [2, 3].map(|count| place.backends(count));
    kind.set(&two);

    // Unreachable at the start.
    kind.fail(Fault::Gone);
    let keys = format!(
        "[upstreams.back.discover]\nkind = \"{name}\"\n{TIMES}{}",
        kind.keys()
    );
    let running = Discovering::start(&keys);
    assert_eq!(running.tembuku.get("/readyz").status, 503, "{name}");
    running.wait_error(kind.error(Fault::Gone));
    running.wait_backends(&[]);
    kind.fail(Fault::None);
    running.wait_backends(&two);
    assert_eq!(running.tembuku.get("/readyz").status, 200, "{name}");

    // Each failure while clients come, and changes meanwhile.
    let load = Load::start(running.front, thread::spawn);
    for fault in Fault::ALL {
        let began = Instant::now();
        kind.fail(fault);
        running.wait_error(kind.error(fault));
        println!("{name}: {fault:?} was known after {:?}", began.elapsed());
        kind.set(&three);
        running.wait_backends(&two);
        let failed = discovery(&running);
        assert!(failed["error_since"].is_string(), "{name}: {failed}");
        assert_eq!(failed["backends"], 2, "{name}: {failed}");
        kind.fail(Fault::None);
        let began = Instant::now();
        running.wait_answer();
        running.wait_backends(&three);
        println!("{name}: {fault:?} was over after {:?}", began.elapsed());
        kind.set(&two);
        running.wait_backends(&two);
    }

    // Empty: a second opinion is waited for.
    if kind.can_be_empty() {
        kind.set(&[]);
        wait_until("both are held", secs(20), || {
            let held = held(&running);
            held.len() == 2 && held.iter().all(|(_, reason)| reason == "empty")
        });
        running.wait_backends(&two);
        kind.set(&two);
        wait_until("nothing is held", secs(20), || held(&running).is_empty());
    }

    // Many, and a large loss.
    kind.set(&place.backends(MANY));
    println!("{name}: {MANY} after {:?}", wait_count(&running, MANY));
    kind.set(&two);
    let took = wait_count(&running, 2);
    assert!(took >= millis(1500), "{name}: {took:?}");
    running.wait_backends(&two);

    // Fifty changes a second.
    let changed = || {
        let labels = [("upstream", "back"), ("result", "changed")];
        running.tembuku.metric("discovery_updates_total", &labels)
    };
    let kept = Kept::of(&running);
    let (before, began) = (changed(), Instant::now());
    let mut others = place.backends(MANY).into_iter().skip(3);
    while began.elapsed() < secs(3) {
        // Another one each time, so that what is kept of one that is gone adds up.
        let with_another = [two[0], two[1], others.next().unwrap()];
        for backends in [&with_another[..], &two] {
            kind.set(backends);
            thread::sleep(millis(20)); // the pace
        }
    }
    running.wait_backends(&two);
    kept.assert_is_all(&running, name);
    // One at once, and the next ones 200 ms apart.
    let most = 1.0 + began.elapsed().as_secs_f64() * 5.0;
    let changes = changed() - before;
    println!("{name}: {changes} changes for 50 a second");
    assert!(changes <= most, "{name}: {changes}, {most}");

    let counts = load.take("at the end");
    assert_eq!((counts.refused, counts.cut), (0, 0), "{name}");
    // Gone for good, nothing changes.
    kind.fail(Fault::Gone);
    running.wait_error(kind.error(Fault::Gone));
    running.wait_backends(&two);
    let counts = load.take("without the source");
    assert_eq!((counts.refused, counts.cut), (0, 0), "{name}");
}

#[test]
fn a_file_fails_as_documented() {
    fails_as_documented(&mut File::start());
}

#[test]
fn a_list_of_a_web_server_fails_as_documented() {
    fails_as_documented(&mut Http::start());
}

#[test]
fn srv_records_fail_as_documented() {
    fails_as_documented(&mut Srv::start());
}

#[test]
fn a_key_of_redis_fails_as_documented() {
    fails_as_documented(&mut Redis::start());
}

#[test]
fn sentinel_fails_as_documented() {
    fails_as_documented(&mut Sentinel::start());
}

#[test]
fn etcd_fails_as_documented() {
    fails_as_documented(&mut Etcd::start());
}

#[test]
fn consul_fails_as_documented() {
    fails_as_documented(&mut Registry::consul());
}

#[test]
fn kubernetes_fails_as_documented() {
    fails_as_documented(&mut Registry::kubernetes());
}

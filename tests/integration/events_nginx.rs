//! One story for nginx and for us: backends of different weight, one `down`, one dead, backups;
//! sessions that stay and that end; backends that die and come back.

use crate::harness::{
    net::{ask_from, assert_ends_now, connect_with, read_line},
    pair::{Entry, Pair, sources_v4},
    poll, ports,
    rng::{self, Rng},
    secs,
    server::Server,
    wait_until,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
};

/// nginx first, then us.
type Both<T> = [T; 2];

const WEIGHTS: [u64; 4] = [3, 1, 2, 1];

struct Story {
    /// Before the programs, which would wait for them to end.
    held: Both<Vec<(TcpStream, String)>>,
    /// Sessions so far, on each of the two.
    opened: usize,
    pair: Pair,
    rng: Rng,
    /// `p1` … with the [`WEIGHTS`]. Whom none stands for is dead.
    primaries: Vec<Option<Server>>,
    addrs: Vec<SocketAddr>,
    _others: Vec<Server>,
}

impl Story {
    /// `backups`: nginx does not allow them with every method.
    fn begin(
        name: &str,
        directive: &str,
        balance: &str,
        backups: bool,
        fail_timeout: &'static str,
    ) -> Story {
        let rng = Rng::new(rng::seed(name));
        let addrs: Vec<SocketAddr> = WEIGHTS.iter().map(|_| ports::free_addr()).collect();
        let primaries: Vec<Option<Server>> = (1..)
            .zip(&addrs)
            .map(|(n, &addr)| Some(Server::named_on(&format!("p{n}"), &[addr])))
            .collect();
        let mut entries: Vec<Entry> = addrs
            .iter()
            .zip(WEIGHTS)
            .map(|(addr, weight)| Entry::new(addr, weight))
            .collect();
        let down = Server::named("down");
        entries.insert(1, Entry::new(down.addr, 2).down());
        entries.insert(4, Entry::new(ports::free_addr(), 2));
        let mut others = vec![down];
        if backups {
            for (n, weight) in [(1, 2), (2, 1)] {
                let server = Server::named(&format!("s{n}"));
                entries.insert(n, Entry::new(server.addr, weight).backup());
                others.push(server);
            }
        }
        let entries: Vec<Entry> = entries
            .into_iter()
            .map(|entry| entry.failing_for(fail_timeout))
            .collect();
        Story {
            pair: Pair::start_with(&entries, directive, balance, "127.0.0.1"),
            rng,
            primaries,
            addrs,
            _others: others,
            held: [Vec::new(), Vec::new()],
            opened: 0,
        }
    }

    fn fronts(&self) -> Both<SocketAddr> {
        [self.pair.nginx, self.pair.tembuku]
    }

    /// A session from the same source to each, held from now on; where they are.
    #[track_caller]
    fn open_from(&mut self, source: IpAddr) -> Both<String> {
        let mut names = [String::new(), String::new()];
        self.opened += 1;
        for (n, front) in self.fronts().into_iter().enumerate() {
            let mut stream = connect_with(front, Some(source), 0, 0).unwrap();
            names[n] = read_line(&mut stream)
                .unwrap_or_else(|error| panic!("{}, from {source}: {error}", program(n)));
            self.held[n].push((stream, names[n].clone()));
        }
        names
    }

    #[track_caller]
    fn open(&mut self) -> Both<String> {
        let source = sources_v4(&mut self.rng, 1)[0];
        self.open_from(source)
    }

    /// So many sessions, each to the same backend by both.
    #[track_caller]
    fn open_alike(&mut self, count: usize) -> BTreeSet<String> {
        let mut used = BTreeSet::new();
        for n in 1..=count {
            let [nginx, tembuku] = self.open();
            assert_eq!(
                tembuku, nginx,
                "session {n} of {count}: tembuku is left, nginx right"
            );
            used.insert(nginx);
        }
        used
    }

    /// Ends the session with this number on both, and returns when both know.
    fn close(&mut self, n: usize) {
        for held in &mut self.held {
            end(held.remove(n).0);
        }
        self.wait_settled();
    }

    /// Until we have counted out what has ended.
    #[track_caller]
    fn wait_settled(&self) {
        let left = self.held[1].len() as f64;
        let settled = poll(secs(10), || {
            let now = self.pair.program.metrics();
            (now.sum("backend_active_connections", &[]) == left).then_some(())
        });
        if settled.is_none() {
            let status = self.pair.program.get("/api/v1/status").body;
            let opened = self.pair.program.metric("listener_connections_total", &[]);
            let opened_here = self.opened;
            panic!("{left} are held, of {opened_here} opened here and {opened} in all: {status}");
        }
    }

    fn close_some(&mut self, count: usize) {
        for _ in 0..count {
            let n = self.rng.below(self.held[0].len() as u64) as usize;
            self.close(n);
        }
    }

    /// Opens a session and ends it.
    #[track_caller]
    fn visit_alike(&mut self, count: usize) {
        for _ in 0..count {
            self.open_alike(1);
            self.close(self.held[0].len() - 1);
        }
    }

    /// Its sessions stay.
    fn kill(&mut self, n: usize) {
        self.primaries[n] = None;
    }

    /// These listen again, after their last sessions have ended. Returns when both use them.
    fn revive(&mut self, primaries: &[usize]) {
        let name = |n: usize| format!("p{}", n + 1);
        for &n in primaries {
            for held in &mut self.held {
                for (stream, _) in held.extract_if(.., |(_, on)| *on == name(n)) {
                    end(stream);
                }
            }
            self.primaries[n] = Some(Server::named_on(&name(n), &[self.addrs[n]]));
        }
        self.wait_settled();
        for front in self.fronts() {
            let mut missing: BTreeSet<String> = primaries.iter().map(|&n| name(n)).collect();
            wait_until("the backends are used again", secs(20), || {
                let source = sources_v4(&mut self.rng, 1)[0];
                missing.remove(&ask_from(source, front).unwrap());
                missing.is_empty()
            });
        }
        self.wait_settled();
    }

    fn count_names(&self, n: usize) -> BTreeMap<&str, u64> {
        let mut counts = BTreeMap::new();
        for (_, name) in &self.held[n] {
            *counts.entry(name.as_str()).or_default() += 1;
        }
        counts
    }

    /// The sessions on the primaries are those of their weight, to within `most`, on both.
    #[track_caller]
    fn assert_by_weight(&self, most: f64) {
        let weights: u64 = WEIGHTS.iter().sum();
        for n in 0..2 {
            let counts = self.count_names(n);
            let on = |i: usize| counts.get(&*format!("p{}", i + 1)).copied().unwrap_or(0);
            let total: u64 = (0..WEIGHTS.len()).map(on).sum();
            for (i, weight) in WEIGHTS.iter().enumerate() {
                let wanted = total as f64 * *weight as f64 / weights as f64;
                assert!(
                    (on(i) as f64 - wanted).abs() <= most,
                    "{}: {counts:?}",
                    program(n)
                );
            }
        }
    }
}

/// Ends a session. When the end comes back, nginx has counted it out.
fn end(mut stream: TcpStream) {
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

fn program(n: usize) -> &'static str {
    ["nginx", "tembuku"][n]
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

/// Pick by pick, and what has failed stays so.
fn the_same_picks(name: &str, directive: &str, balance: &str, backups: bool) {
    let mut story = Story::begin(name, directive, balance, backups, "1h");
    story.open_alike(20);
    story.close_some(8);
    story.open_alike(15);
    story.visit_alike(10);
    story.kill(3);
    let used = story.open_alike(20);
    assert!(used.is_subset(&names(["p1", "p2", "p3"])), "{used:?}");
    story.close_some(15);
    story.open_alike(10);
    story.visit_alike(10);
    for n in 0..3 {
        story.kill(n);
    }
    if !backups {
        for front in story.fronts() {
            assert_ends_now(&mut connect_with(front, None, 0, 0).unwrap());
        }
        return;
    }
    let used = story.open_alike(15);
    assert_eq!(used, names(["s1", "s2"]));
    story.close_some(20);
    story.open_alike(10);
    story.visit_alike(5);
    let tried = story
        .pair
        .program
        .metric("backend_connect_errors_total", &[]);
    assert_eq!(tried, 5.0, "each dead one is tried once");
}

#[test]
fn round_robin_picks_the_same() {
    let balance = "balance = \"round_robin\"";
    the_same_picks("events_nginx::round_robin_picks", "", balance, true);
}

#[test]
fn least_conn_picks_the_same() {
    let balance = "balance = \"least_conn\"";
    the_same_picks(
        "events_nginx::least_conn_picks",
        "least_conn;",
        balance,
        true,
    );
}

#[test]
fn hash_picks_the_same() {
    let balance = "balance = \"hash\"\nhash_key = \"$remote_addr\"";
    let directive = "hash $remote_addr;";
    the_same_picks("events_nginx::hash_picks", directive, balance, false);
}

#[test]
fn consistent_hash_picks_the_same() {
    let balance = "balance = \"consistent_hash\"\nhash_key = \"$remote_addr\"";
    let directive = "hash $remote_addr consistent;";
    let name = "events_nginx::consistent_hash_picks";
    the_same_picks(name, directive, balance, false);
}

/// What has failed is tried again. When, the two find out each for itself, so that it is not pick
/// by pick: none is sent to the dead, backups serve while no other can and no longer, and a
/// backend that is back gets its share.
fn coming_back(name: &str, directive: &str, balance: &str, backups: bool) -> Story {
    let mut story = Story::begin(name, directive, balance, backups, "1s");
    for _ in 0..14 {
        story.open();
    }
    story.kill(0);
    for _ in 0..14 {
        for (n, on) in story.open().into_iter().enumerate() {
            assert!(["p2", "p3", "p4"].contains(&&*on), "{} on {on}", program(n));
        }
    }
    if backups {
        for n in 1..4 {
            story.kill(n);
        }
        let mut used = [BTreeSet::new(), BTreeSet::new()];
        for _ in 0..6 {
            for (used, on) in used.iter_mut().zip(story.open()) {
                used.insert(on);
            }
        }
        assert_eq!(used, [names(["s1", "s2"]), names(["s1", "s2"])]);
        story.revive(&[2]);
        for _ in 0..6 {
            assert_eq!(story.open(), ["p3", "p3"], "a primary is back");
        }
        story.revive(&[0, 1, 3]);
    } else {
        story.revive(&[0]);
    }
    story
}

#[test]
fn round_robin_takes_back() {
    let balance = "balance = \"round_robin\"";
    let name = "events_nginx::round_robin_takes_back";
    let mut story = coming_back(name, "", balance, true);
    // A share that a failure has lowered grows back by one a pick.
    for _ in 0..14 {
        story.open();
    }
    story.held = [Vec::new(), Vec::new()];
    for _ in 0..70 {
        story.open();
    }
    story.assert_by_weight(2.0);
}

#[test]
fn least_conn_takes_back() {
    let balance = "balance = \"least_conn\"";
    let name = "events_nginx::least_conn_takes_back";
    let mut story = coming_back(name, "least_conn;", balance, true);
    for _ in 0..70 {
        story.open();
    }
    story.assert_by_weight(1.5);
}

#[test]
fn random_two_takes_back() {
    let balance = "balance = \"random_two\"";
    let name = "events_nginx::random_two_takes_back";
    let mut story = coming_back(name, "random two least_conn;", balance, false);
    for _ in 0..210 {
        story.open();
    }
    // By chance alone the heaviest would be ten away every third time.
    story.assert_by_weight(8.0);
}

/// A client of a dead one has one heir, however often the dead one is tried again meanwhile.
fn keys_come_back(name: &str, directive: &str, balance: &str) {
    let mut story = coming_back(name, directive, balance, false);
    let sources = sources_v4(&mut story.rng, 40);
    let before = story.pair.compare(&sources, 1);
    story.kill(0);
    let meanwhile = story.pair.compare(&sources, 2);
    for source in &sources {
        let stays = meanwhile[source] == before[source];
        assert_eq!(stays, before[source] != "p1", "{source}");
    }
    story.revive(&[0]);
    assert_eq!(story.pair.compare(&sources, 2), before);
}

#[test]
fn hash_takes_back() {
    let balance = "balance = \"hash\"\nhash_key = \"$remote_addr\"";
    let name = "events_nginx::hash_takes_back";
    keys_come_back(name, "hash $remote_addr;", balance);
}

#[test]
fn consistent_hash_takes_back() {
    let balance = "balance = \"consistent_hash\"\nhash_key = \"$remote_addr\"";
    let name = "events_nginx::consistent_hash_takes_back";
    keys_come_back(name, "hash $remote_addr consistent;", balance);
}

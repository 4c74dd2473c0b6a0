//! `tembuku kill` and `tembuku rebalance`: which sessions they end, how fast, and when they stop.

use crate::harness::{
    http,
    net::{connect, connect_with, echo, read_line},
    ports, proc,
    proc::text,
    programs::Redis,
    secs,
    server::{self, Server},
    tembuku::{Tembuku, binary},
    udp::{self, UdpServer},
    wait_until,
};
use rustix::process::Signal;
use serde_json::Value;
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

fn start(servers: &[Server], named: &UdpServer) -> (Tembuku, SocketAddr, SocketAddr) {
    let (front, dns) = (ports::free_addr(), ports::free_addr());
    let tembuku = Tembuku::start(&format!(
        "[process]\nworkers = 2\n[log]\nformat = \"json\"\naccess = \"{{dir}}/access.log\"\n\
         [admin]\nsocket = \"{{dir}}/admin.sock\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [listeners.dns]\nbind = \"{dns}\"\nprotocol = \"udp\"\nupstream = \"names\"\n\
         [upstreams.u]\nbackends = {}\n[upstreams.names]\nbackends = [\"{}\"]\n",
        server::list(servers),
        named.addr,
    ));
    (tembuku, front, dns)
}

/// Connections with the backends that they have got.
fn connect_many(front: SocketAddr, count: usize) -> Vec<(TcpStream, String)> {
    let connect = |_| {
        let mut stream = connect(front).unwrap();
        let name = read_line(&mut stream).unwrap();
        (stream, name)
    };
    (0..count).map(connect).collect()
}

fn is_over(stream: &mut TcpStream) -> bool {
    !matches!(stream.read(&mut [0; 64]), Ok(1..))
}

#[test]
fn only_sessions_that_match_are_killed() {
    let servers = server::named(2);
    let named = UdpServer::named("names");
    let (tembuku, front, dns) = start(&servers, &named);
    let mut clients = connect_many(front, 20);
    let flow = udp::client(dns);
    udp::ask(&flow, "x");
    let b1 = servers[0].addr.to_string();
    let shown = tembuku.succeed(&["kill", "--backend", &b1, "--dry-run"]);
    assert_eq!(shown, "10 sessions would be terminated (dry run)\n");
    assert_eq!(servers[0].live(), 10);
    let shown = tembuku.succeed(&["kill", &b1]);
    assert_eq!(shown, "terminated 10 sessions\n");
    for (stream, name) in &mut clients {
        match name.as_str() {
            "b1" => assert!(is_over(stream)),
            _ => echo(stream, "still here").unwrap(),
        }
    }
    let records = tembuku.access_log(10);
    assert!(
        records
            .iter()
            .all(|r| r["close_reason"] == "killed" && r["backend"] == b1)
    );
    let labels = [("listener", "l"), ("reason", "killed")];
    assert_eq!(tembuku.metric("sessions_closed_total", &labels), 10.0);
    let shown = tembuku.succeed(&["kill", "--listener", "dns"]);
    assert_eq!(shown, "terminated 1 session\n");
    assert_eq!(tembuku.access_log(11)[10]["close_reason"], "killed");
    // Its next datagram begins another flow.
    assert_eq!(udp::ask(&flow, "y"), "names y");
    let shown = tembuku.succeed(&["kill", "--all"]);
    assert_eq!(shown, "terminated 11 sessions\n");
    assert!(clients.iter_mut().all(|(stream, _)| is_over(stream)));
}

/// Those that wait get the places of those that are killed, and stay.
#[test]
fn sessions_that_take_the_places_of_killed_ones_stay() {
    const PLACES: usize = 10;
    let server = Server::named("b1");
    let (addr, front) = (server.addr, ports::free_addr());
    let tembuku = Tembuku::start(&format!(
        "[process]\nworkers = 2\n[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nqueue_timeout = \"1m\"\n\
         backends = [{{ address = \"{addr}\", max_connections = {PLACES} }}]\n"
    ));
    let mut killed = connect_many(front, PLACES);
    let mut waiting: Vec<TcpStream> = (0..3 * PLACES).map(|_| connect(front).unwrap()).collect();
    let waits = [("upstream", "u"), ("wait", "queue")];
    tembuku.wait_metric("upstream_waiting_sessions", &waits, |n| n == 30.0);
    // Places are free before the last is killed.
    let shown = tembuku.succeed(&["kill", &addr.to_string(), "--rate", "10/s"]);
    assert_eq!(shown, "terminated 10 sessions\n");
    assert!(killed.iter_mut().all(|(stream, _)| is_over(stream)));
    tembuku.wait_metric("upstream_waiting_sessions", &waits, |n| n == 20.0);
    // They are in the order in which the workers accepted them, which may be another.
    assert_eq!(server.live(), PLACES);
    let mut served = 0;
    for stream in &mut waiting {
        stream.set_nonblocking(true).unwrap();
        let named = stream.read(&mut [0; 3]).is_ok_and(|n| n == 3);
        stream.set_nonblocking(false).unwrap();
        if named {
            echo(stream, "still here").unwrap();
            served += 1;
        }
    }
    assert_eq!(served, PLACES);
}

#[test]
fn without_a_filter_nothing_is_killed() {
    let servers = server::named(1);
    let named = UdpServer::named("names");
    let (tembuku, front, _) = start(&servers, &named);
    let mut client = connect_many(front, 1).remove(0).0;
    for (arguments, code, expected) in [
        (&["kill"][..], 2, "--all"),
        (&["kill", "--all", "--listener", "l"], 2, "exclude"),
        (&["kill", "--all", "--rate", "10"], 2, "10/s"),
        (
            &["kill", "--upstream", "x"],
            1,
            "there is no upstream \"x\"",
        ),
        (&["rebalance", "uu"], 1, "there is no upstream \"uu\""),
        (&["rebalance"], 2, "UPSTREAM"),
    ] {
        let output = tembuku.command(arguments);
        let shown = text(&output);
        assert_eq!(output.status.code(), Some(code), "{shown}");
        assert!(
            shown.contains(expected) && output.stdout.is_empty(),
            "{shown}"
        );
    }
    let socket = tembuku.dir.file("admin.sock");
    for (method, path, body, status, expected) in [
        ("POST", "/api/v1/sessions/kill", "", 400, "without a filter"),
        (
            "POST",
            "/api/v1/sessions/kill",
            "{\"al\": true}",
            400,
            "did you mean \\\"all\\\"?",
        ),
        (
            "POST",
            "/api/v1/sessions/kill",
            "{\"all\": 1}",
            400,
            "`all` is 1",
        ),
        ("GET", "/api/v1/sessions/kill", "", 405, "POST"),
        (
            "POST",
            "/api/v1/rebalance",
            "{}",
            400,
            "`upstream` is missing",
        ),
    ] {
        let answer = http::request_unix(&socket, method, path, body).unwrap();
        assert_eq!(answer.status, status, "{path} {body}");
        assert!(answer.body.contains(expected), "{}", answer.body);
    }
    for path in ["/api/v1/sessions/kill", "/api/v1/rebalance"] {
        let answer = http::request(tembuku.admin, "POST", path).unwrap();
        assert_eq!(answer.status, 404);
    }
    echo(&mut client, "still here").unwrap();
}

#[test]
fn a_rate_bounds_a_kill() {
    let servers = server::named(1);
    let named = UdpServer::named("names");
    let (tembuku, front, _) = start(&servers, &named);
    let clients = connect_many(front, 30);
    let began = Instant::now();
    let shown = tembuku.succeed(&["kill", "--upstream", "u", "--rate", "20/s"]);
    let took = began.elapsed();
    assert_eq!(shown, "terminated 30 sessions\n");
    // A tenth of a second's worth ends at once.
    assert!(took >= Duration::from_millis(1_350), "{took:?}");
    drop(clients);
}

/// Neither more sessions than those that were there, nor any once the command has ended.
#[test]
fn a_command_that_is_interrupted_kills_no_more() {
    let servers = server::named(1);
    let named = UdpServer::named("names");
    let (tembuku, front, _) = start(&servers, &named);
    let _clients = connect_many(front, 40);
    let socket = tembuku.dir.file("admin.sock");
    // So slow that the command goes on for long after the first sessions, also on a busy machine.
    let arguments = ["kill", "--all", "--rate", "2/s", "--socket"];
    let mut command = Command::new(binary());
    command.args(arguments).arg(&socket);
    let mut killing = proc::Proc::start("kill", tembuku.dir.path(), command);
    wait_until("some are killed", secs(10), || servers[0].live() <= 37);
    killing.signal(Signal::INT);
    assert!(killing.wait(secs(10)).is_some());
    let shown = killing.stderr();
    let count = shown.strip_prefix("stopped: terminated ");
    let count = count.and_then(|rest| rest.split_once(" of 40 sessions, the others stay\n"));
    let count: usize = count.expect(&shown).0.parse().unwrap();
    assert!((1..=20).contains(&count), "{shown}");
    let mut line = None;
    wait_until("the log reports it", secs(10), || {
        let log = tembuku.log();
        let mut lines = log.into_iter();
        line = lines.find(|line| {
            line.to_string()
                .contains("termination stopped before its end")
        });
        line.is_some()
    });
    let line = line.unwrap();
    let fields = line.get("fields").unwrap_or(&line);
    let killed = fields["sessions"].as_u64().unwrap() as usize;
    assert!((3..=20).contains(&killed), "{line}");
    wait_until("they have ended", secs(10), || {
        servers[0].live() == 40 - killed
    });
    let found = tembuku.succeed(&["sessions", "--json"]);
    let found: Value = serde_json::from_str(&found).unwrap();
    assert_eq!(found["count"], 40 - killed);
}

/// Clients of Redis that connect again whenever they are cut.
struct Clients {
    stop: Arc<AtomicBool>,
    cuts: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    fn start(front: SocketAddr, count: u8) -> Self {
        let (stop, cuts) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let client = |n| {
            let (stop, cuts) = (Arc::clone(&stop), Arc::clone(&cuts));
            thread::spawn(move || ping(front, Ipv4Addr::new(127, 0, 11, n).into(), &stop, &cuts))
        };
        let threads = (1..=count).map(client).collect();
        Self {
            stop,
            cuts,
            threads,
        }
    }

    fn cuts(&self) -> usize {
        self.cuts.load(SeqCst)
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn ping(front: SocketAddr, source: IpAddr, stop: &AtomicBool, cuts: &AtomicUsize) {
    while !stop.load(SeqCst) {
        let Ok(mut stream) = connect_with(front, Some(source), 0, 0) else {
            continue;
        };
        while !stop.load(SeqCst) {
            let sent = stream.write_all(b"PING\r\n");
            let answer = sent.and_then(|()| read_line(&mut stream));
            if answer.is_err() {
                cuts.fetch_add(1, SeqCst);
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

struct Redises {
    redis: Vec<Redis>,
    tembuku: Tembuku,
    front: SocketAddr,
}

impl Redises {
    /// Two servers behind a policy, a third that is not in the file.
    fn start(policy: &str) -> Self {
        let redis: Vec<Redis> = (0..3).map(|_| Redis::start(ports::free_addr())).collect();
        let front = ports::free_addr();
        let tembuku = Tembuku::start(&format!(
            "[process]\nworkers = 2\n[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
             [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
             [upstreams.u]\n{policy}\nbackends = [\"{}\", \"{}\"]\n",
            redis[0].addr, redis[1].addr
        ));
        Self {
            redis,
            tembuku,
            front,
        }
    }

    /// Writes these servers into the file, and reloads.
    #[track_caller]
    fn reload(&self, backends: &[String]) {
        let path = self.tembuku.dir.file("tembuku.toml");
        let config = fs::read_to_string(&path).unwrap();
        let (before, after) = config.split_once("backends = ").unwrap();
        let (_, after) = after.split_once('\n').unwrap();
        let list = backends.join(", ");
        fs::write(&path, format!("{before}backends = [{list}]\n{after}")).unwrap();
        self.tembuku.succeed(&["reload"]);
    }

    fn all(&self) -> Vec<String> {
        self.redis
            .iter()
            .map(|redis| format!("\"{}\"", redis.addr))
            .collect()
    }

    /// Sessions on each server.
    fn live(&self) -> Vec<u64> {
        let status = self.tembuku.status();
        let backends = status["upstreams"][0]["backends"].as_array().unwrap();
        backends
            .iter()
            .map(|b| b["connections"].as_u64().unwrap())
            .collect()
    }

    #[track_caller]
    fn wait_live(&self, count: u64) {
        wait_until("all clients are connected", secs(20), || {
            self.live().iter().sum::<u64>() == count
        });
    }
}

/// Each number of the table's column.
fn column(table: &str, column: usize) -> Vec<u64> {
    let lines = table.lines().skip(1).take_while(|line| !line.is_empty());
    let number = |line: &str| {
        line.split_whitespace()
            .nth(column)
            .unwrap()
            .parse()
            .unwrap()
    };
    lines.map(number).collect()
}

#[test]
fn sessions_spread_over_a_server_that_was_added() {
    for policy in ["", "balance = \"least_conn\"", "balance = \"random_two\""] {
        let setup = Redises::start(policy);
        let clients = Clients::start(setup.front, 60);
        setup.wait_live(60);
        setup.reload(&setup.all());
        let before = setup.live();
        let excess: u64 = before.iter().map(|n| n.saturating_sub(20)).sum();
        let shown = setup.tembuku.succeed(&["rebalance", "u", "--dry-run"]);
        assert_eq!(
            (column(&shown, 1), column(&shown, 2)),
            (before, vec![20; 3]),
            "{shown}"
        );
        assert!(shown.ends_with(&format!(
            "{excess} sessions would be terminated (dry run)\n"
        )));
        assert_eq!(clients.cuts(), 0);
        let began = Instant::now();
        let shown = setup.tembuku.succeed(&["rebalance", "u", "--rate", "20/s"]);
        let took = began.elapsed();
        // Not one more than needed, and no faster.
        assert!(
            shown.ends_with(&format!("terminated {excess} sessions\n")),
            "{shown}"
        );
        assert!(
            took >= Duration::from_secs_f64((excess as f64 - 3.0) / 20.0),
            "{took:?}"
        );
        setup.wait_live(60);
        assert_eq!(clients.cuts() as u64, excess, "{policy}");
        let live = setup.live();
        assert!(
            live.iter().all(|n| (19..=21).contains(n)),
            "{policy}: {live:?}"
        );
        let labels = [("reason", "rebalanced")];
        assert_eq!(
            setup.tembuku.metric("sessions_closed_total", &labels),
            excess as f64
        );
        // There is nothing left to do.
        let shown = setup.tembuku.succeed(&["rebalance", "u", "--dry-run"]);
        let left: u64 = live.iter().map(|n| n.saturating_sub(20)).sum();
        assert!(shown.contains(&format!("\n{left} session")), "{shown}");
    }
}

#[test]
fn shares_follow_weights_and_leave_out_what_takes_nothing() {
    let setup = Redises::start("");
    let clients = Clients::start(setup.front, 60);
    setup.wait_live(60);
    let [one, two, three] = &setup.all()[..] else {
        panic!("three");
    };
    let weighted = format!("{{ address = {three}, weight = 4 }}");
    setup.reload(&[one.clone(), two.clone(), weighted]);
    setup.tembuku.succeed(&["rebalance", "u"]);
    setup.wait_live(60);
    assert_eq!(setup.live(), [10, 10, 40]);
    assert_eq!(clients.cuts(), 40);
    // One that is drained keeps what it has, and the others share the rest.
    let drained = format!("u/{}", setup.redis[2].addr);
    setup.tembuku.succeed(&["drain", &drained]);
    let shown = setup.tembuku.succeed(&["rebalance", "u"]);
    assert!(shown.ends_with("\nterminated 0 sessions\n"), "{shown}");
    assert_eq!(setup.live(), [10, 10, 40]);
}

#[test]
fn sessions_on_servers_that_remain_spread_again_after_one_is_gone() {
    let setup = Redises::start("");
    setup.reload(&setup.all());
    let clients = Clients::start(setup.front, 60);
    setup.wait_live(60);
    // All that were on the third go to the first.
    let [one, two, three] = &setup.all()[..] else {
        panic!("three");
    };
    let off = |address: &str| format!("{{ address = {address}, down = true }}");
    setup.reload(&[one.clone(), off(two), off(three)]);
    let third = setup.redis[2].addr.to_string();
    setup.tembuku.succeed(&["kill", "--backend", &third]);
    setup.wait_live(60);
    setup.reload(&[one.clone(), two.clone()]);
    assert_eq!(setup.live(), [40, 20]);
    let cuts = clients.cuts();
    setup.tembuku.succeed(&["rebalance", "u"]);
    setup.wait_live(60);
    assert_eq!(setup.live(), [30, 30]);
    assert_eq!(clients.cuts() - cuts, 10);
}

#[test]
fn where_a_key_decides_only_sessions_that_it_leads_to_others_are_ended() {
    for policy in ["consistent_hash", "maglev", "hash"] {
        let keys = format!("balance = \"{policy}\"\nhash_key = \"$remote_addr\"");
        let setup = Redises::start(&keys);
        let clients = Clients::start(setup.front, 60);
        setup.wait_live(60);
        let shown = setup.tembuku.succeed(&["rebalance", "u"]);
        assert!(
            shown.ends_with("\nterminated 0 sessions\n"),
            "{policy}: {shown}"
        );
        setup.reload(&setup.all());
        let shown = setup.tembuku.succeed(&["rebalance", "u", "--dry-run"]);
        let targets = column(&shown, 2);
        let (_, wanted) = shown.trim_end().rsplit_once('\n').unwrap();
        let wanted: usize = wanted.split(' ').next().unwrap().parse().unwrap();
        assert!((10..60).contains(&wanted), "{policy}: {shown}");
        assert!(
            policy != "consistent_hash" || wanted as u64 == targets[2],
            "{shown}"
        );
        let shown = setup.tembuku.succeed(&["rebalance", "u"]);
        assert!(
            shown.ends_with(&format!("\nterminated {wanted} sessions\n")),
            "{shown}"
        );
        setup.wait_live(60);
        // Each session that was ended has gone where the table had it.
        assert_eq!(
            (setup.live(), clients.cuts()),
            (targets, wanted),
            "{policy}"
        );
        let shown = setup.tembuku.succeed(&["rebalance", "u", "--dry-run"]);
        assert!(
            shown.ends_with("\n0 sessions would be terminated (dry run)\n"),
            "{shown}"
        );
    }
}

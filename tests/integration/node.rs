//! Whether this node should get clients: faults of its own, and never those of its backends.

use crate::harness::{
    http, millis, net, poll, ports, secs,
    server::{Server, list, named},
    tembuku::{Tembuku, cli},
    threads::{stall, thread_id},
    udp::{self, UdpServer, V4},
    wait_until,
};
use std::{fs, net::SocketAddr, process::Output, time::Instant};

const NODE: &str = "/readyz/node";

fn config(process: &str, front: SocketAddr, backends: &[SocketAddr]) -> String {
    let backends: Vec<String> = backends.iter().map(|b| format!("\"{b}\"")).collect();
    format!(
        "[process]\nworkers = 2\n{process}\n[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
         [log]\nformat = \"json\"\n[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [{}]\n",
        backends.join(", ")
    )
}

fn status_node(tembuku: &Tembuku) -> Output {
    let socket = tembuku.dir.file("admin.sock");
    cli(&["status", "--node", "--socket", socket.to_str().unwrap()])
}

#[test]
fn dead_backends_are_no_fault_of_the_node() {
    let front = ports::free_addr();
    let dead = ports::free_addr();
    let check = "[upstreams.u.check]\nkind = \"tcp\"\ninterval = \"50ms\"\nfall = 1\n";
    let tembuku = Tembuku::start(&(config("", front, &[dead]) + check));
    wait_until("the backend is down", secs(10), || {
        tembuku.get("/readyz").body.contains("no backend of u")
    });
    assert_eq!(tembuku.get("/readyz").status, 503);
    let node = tembuku.get(NODE);
    assert_eq!((node.status, node.body.as_str()), (200, "ok\n"));
    let output = status_node(&tembuku);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stdout, b"ok\n");
}

#[test]
fn a_listener_can_be_asked_about_alone() {
    let servers = named(1);
    let (alive, dead) = (ports::free_addr(), ports::free_addr());
    let tembuku = Tembuku::start(&format!(
        "[listeners.\"a.b\"]\nbind = \"{alive}\"\nupstream = \"u\"\n\
         [listeners.dead]\nbind = \"{dead}\"\nupstream = \"v\"\n[upstreams.u]\nbackends = {}\n\
         [upstreams.v]\nbackends = [{{ address = \"127.0.0.1:9\", down = true }}]\n",
        list(&servers)
    ));
    let status = |query: &str| tembuku.get(&format!("/readyz?{query}")).status;
    assert_eq!(status("listener=a%2Eb"), 200);
    assert_eq!(status("listener=dead"), 503);
    assert_eq!(status("listener=dead&listener=a%2Eb"), 503);
    assert_eq!(status(""), 503);
    assert_eq!(status("listener=other"), 404);
    assert_eq!(status("listner=dead"), 400);
}

#[test]
fn a_worker_whose_loop_does_not_run_is_a_fault() {
    let (server, echo) = (Server::named("a"), UdpServer::echo(V4));
    let (front, dns) = (ports::free_addr(), ports::free_addr());
    let tembuku = Tembuku::start(&format!(
        "{}[listeners.d]\nprotocol = \"udp\"\nbind = \"{dns}\"\nupstream = \"d\"\n\
         [upstreams.d]\nbackends = {}\n",
        config("ready_file = \"{dir}/ready\"", front, &[server.addr]),
        udp::list(&[echo.addr])
    ));
    assert_eq!(tembuku.get(NODE).status, 200);
    let file = || fs::read_to_string(tembuku.dir.file("ready")).unwrap_or_default();
    for (thread, other) in [("worker-1", "udp-1"), ("udp-0", "worker-0")] {
        let stalled = stall(&tembuku.proc, tembuku.dir.path(), thread);
        wait_until("the fault", secs(20), || {
            let node = tembuku.get(NODE);
            node.status == 503 && node.body.contains(&format!("{thread}: has not run"))
        });
        let asked = Instant::now();
        let node = tembuku.get(NODE);
        assert!(!node.body.contains(other), "{}", node.body);
        // It is cached by now: a monitor with a short limit gets its answer.
        assert!(asked.elapsed() < secs(1), "{:?}", asked.elapsed());
        let output = status_node(&tembuku);
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stdout).contains(thread));
        wait_until("the file has it", secs(10), || file() == "1\n");
        // The process as such works.
        assert_eq!(tembuku.get("/livez").status, 200);
        drop(stalled);
        wait_until("the fault is gone", secs(20), || {
            tembuku.get(NODE).status == 200
        });
        wait_until("the file has it", secs(10), || file() == "0\n");
    }
}

#[test]
fn an_idle_worker_is_not_woken_for_its_heartbeat() {
    let server = Server::named("a");
    let tembuku = Tembuku::start(&config("", ports::free_addr(), &[server.addr]));
    let switches = || -> Vec<u64> {
        let of = |name| {
            let id = thread_id(&tembuku.proc, name);
            let path = format!("/proc/{}/task/{id}/status", tembuku.proc.id());
            let text = fs::read_to_string(path).unwrap();
            let mut lines = text.lines();
            let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            count.unwrap().trim().parse().unwrap()
        };
        ["worker-0", "worker-1"].map(of).to_vec()
    };
    // Whatever a start leaves behind has been done when a second has passed without any.
    let mut last = switches();
    let mut quiet_since = Instant::now();
    let quiet = poll(secs(20), || {
        let now = switches();
        if now != last {
            (last, quiet_since) = (now, Instant::now());
        }
        (quiet_since.elapsed() >= millis(2_500)).then_some(())
    });
    assert!(quiet.is_some(), "it is woken all the time: {last:?}");
    // A question wakes each of them.
    assert_eq!(tembuku.get(NODE).status, 200);
    wait_until("each was woken", secs(10), || {
        let mut pairs = last.iter().zip(switches());
        pairs.all(|(last, now)| *last < now)
    });
}

#[test]
fn a_node_without_descriptors_says_so() {
    let servers = named(1);
    let front = ports::free_addr();
    let config = config("", front, &[servers[0].addr]);
    let tembuku = Tembuku::start_under("prlimit --nofile=120:120", &config);
    assert_eq!(tembuku.get(NODE).status, 200);
    let sessions = (0..120).map_while(|_| net::session(front).ok());
    let sessions: Vec<_> = sessions.collect();
    let node = tembuku.get(NODE);
    assert_eq!(node.status, 503, "{} sessions", sessions.len());
    assert!(node.body.contains("no file descriptor"), "{}", node.body);
    drop(sessions);
    wait_until("it is well again", secs(10), || {
        tembuku.get(NODE).status == 200
    });
}

#[test]
fn a_drain_is_a_reason() {
    let servers = named(1);
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&config("", front, &[servers[0].addr]));
    let session = net::session(front).unwrap();
    tembuku.proc.signal(rustix::process::Signal::TERM);
    wait_until("draining", secs(10), || {
        http::get(tembuku.admin, NODE).is_ok_and(|r| r.status == 503 && r.body == "draining\n")
    });
    let output = status_node(&tembuku);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stdout, b"draining\n");
    drop(session);
}

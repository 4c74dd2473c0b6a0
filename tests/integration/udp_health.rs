//! Backends that are gone, called down, or taken out: what becomes of the flows that they had.

use crate::harness::{
    millis,
    net::PATIENCE,
    ports,
    server::Server,
    tembuku::{Tembuku, cli},
    udp::{
        UdpServer, addrs, ask, ask_until_answered, client, config, list, named, receive_if_any,
        receive_text, serve,
    },
    wait_until,
};
use std::{
    net::{SocketAddr, UdpSocket},
    thread,
};

/// `first`: all clients go to b1 as long as it can be used.
const FIRST: &str = "balance = \"first\"";

#[track_caller]
fn refused(tembuku: &Tembuku, count: f64) {
    let labels = [("reason", "refused")];
    tembuku.wait_metric("backend_connect_errors_total", &labels, |n| n == count);
}

/// The datagram that finds out is lost: its sender's kernel only hears of it afterwards. The next
/// one is not.
#[test]
fn a_flow_leaves_a_port_that_is_closed() {
    // All at once: each flow is looked after for five seconds.
    thread::scope(|scope| {
        for upstream in [
            "",
            "max_fails = 0",
            "max_fails = 10",
            "fail_timeout = \"1h\"",
        ] {
            scope.spawn(move || assert_leaves_closed_port(upstream));
        }
    });
}

fn assert_leaves_closed_port(upstream: &str) {
    let mut servers = named(2);
    let front = ports::free_addr();
    let backends: Vec<String> = servers
        .iter()
        .map(|server| format!("{{ address = \"{}\", {upstream} }}", server.addr))
        .collect();
    let tembuku = Tembuku::start(&format!(
        "[process]\nworkers = 2\n[log]\naccess = \"{{dir}}/access.log\"\n\
         [listeners.l]\nbind = \"{front}\"\nprotocol = \"udp\"\nupstream = \"u\"\n\
         [upstreams.u]\n{FIRST}\nbackends = [{}]\n",
        backends
            .join(", ")
            .replace(", ,", ",")
            .replace(",  }", " }")
    ));
    let client = client(front);
    assert_eq!(ask(&client, "before"), "b1 before");
    drop(servers.remove(0));
    client.send(b"lost").unwrap();
    refused(&tembuku, 1.0);
    for n in 0..5 {
        assert_eq!(
            ask(&client, &n.to_string()),
            format!("b2 {n}"),
            "{upstream}"
        );
    }
    assert_eq!(receive_if_any(&client), None);
    tembuku.wait_flows(1.0);
}

/// The flow stays, since the server may be back by the next datagram; its record tells what became
/// of the last one.
#[test]
fn a_flow_on_the_only_backend_that_is_gone_ends_as_refused() {
    for keys in ["responses = 1", ""] {
        let mut servers = named(1);
        let listener = format!("idle_timeout = \"1s\"\n{keys}");
        let (front, tembuku) = serve(&listener, "", &servers);
        let client = client(front);
        assert_eq!(ask(&client, "before"), "b1 before");
        tembuku.wait_flows(0.0);
        let addr = servers.remove(0).addr;
        client.send(b"lost").unwrap();
        refused(&tembuku, 1.0);
        tembuku.wait_closed("backend_refused", 1.0);
        let results = tembuku.access_log(2).into_iter().map(|record| {
            let result = &record["attempts"][0]["result"];
            result.as_str().unwrap().to_owned()
        });
        assert_eq!(results.collect::<Vec<_>>(), ["ok", "backend_refused"]);
        // One that gets an answer at last ends as any other.
        client.send(b"lost").unwrap();
        refused(&tembuku, 2.0);
        let _back = UdpServer::named_on("back", addr);
        assert_eq!(ask_until_answered(&client, "after"), "back after");
        tembuku.wait_flows(0.0);
        tembuku.wait_closed("backend_refused", 1.0);
    }
}

/// Also when the notice and the next datagram come at the same time.
#[test]
fn the_third_datagram_at_the_latest_arrives() {
    for _ in 0..20 {
        let mut servers = named(2);
        let (front, tembuku) = serve("", FIRST, &servers);
        let client = client(front);
        assert_eq!(ask(&client, "before"), "b1 before");
        drop(servers.remove(0));
        client.send(b"1").unwrap();
        client.send(b"2").unwrap();
        let labels = [("reason", "refused")];
        tembuku.wait_metric("backend_connect_errors_total", &labels, |n| n >= 1.0);
        let mut answer = ask(&client, "3");
        if answer == "b2 2" {
            answer = receive_text(&client);
        }
        assert_eq!(answer, "b2 3");
    }
}

#[test]
fn what_is_called_failed_gets_no_new_flows() {
    let mut servers = named(2);
    let (front, tembuku) = serve("", FIRST, &servers);
    let dead = servers.remove(0);
    let addr = dead.addr;
    drop(dead);
    let first = client(front);
    first.send(b"lost").unwrap();
    refused(&tembuku, 1.0);
    // max_fails is 1: no other client has to find out.
    for _ in 0..10 {
        assert_eq!(ask(&client(front), "x"), "b2 x");
    }
    refused(&tembuku, 1.0);
    let labels = [("backend", &addr.to_string()[..]), ("state", "failed")];
    assert_eq!(tembuku.metric("backend_state", &labels), 1.0);
}

/// One-way traffic has no reply that could prove that a failed backend is there again: a second
/// without an error does, where its flow is over then, and a part of it does not.
#[test]
fn time_proves_that_a_silent_backend_is_back() {
    for (idle, comes_back) in [("1500ms", true), ("200ms", false)] {
        let servers = named(2);
        let front = ports::free_addr();
        let [one, two] = [servers[0].addr, servers[1].addr];
        let tembuku = Tembuku::start(&format!(
            "[process]\nworkers = 1\n[listeners.l]\nbind = \"{front}\"\nprotocol = \"udp\"\n\
             upstream = \"u\"\nidle_timeout = \"{idle}\"\n[upstreams.u]\n{FIRST}\n\
             backends = [{{ address = \"{one}\", fail_timeout = \"100ms\" }}, \"{two}\"]\n"
        ));
        let [first, ..] = <[UdpServer; 2]>::try_from(servers).ok().unwrap();
        drop(first);
        let begin = client(front);
        begin.send(b"lost").unwrap();
        refused(&tembuku, 1.0);
        let silent = UdpServer::on(one, |_, _, _| {});
        // A new flow each time: those of the second one stay there.
        wait_until("it is tried again", PATIENCE, || {
            client(front).send(b"heard?").unwrap();
            thread::sleep(millis(20));
            silent.taken() > 0
        });
        tembuku.wait_flows(0.0);
        let one = one.to_string();
        let labels = [("backend", &one[..]), ("state", "up")];
        let state = tembuku.metric("backend_state", &labels);
        assert_eq!(state == 1.0, comes_back, "{idle}");
    }
}

/// A check that passes, or the lack of another backend, keeps a silent backend in service. Its
/// figures show which one it is all the same.
#[test]
fn replies_that_are_missing_are_counted_for_their_backend() {
    let silent = UdpServer::sink();
    let answers = UdpServer::named("b2");
    let health = Server::named("health");
    let check = format!(
        "{FIRST}\n[upstreams.u.check]\nkind = \"tcp\"\nport = {}\ninterval = \"100ms\"\nrise = 1",
        health.addr.port()
    );
    let (one, two) = (silent.addr.to_string(), answers.addr.to_string());
    for (upstream, servers) in [
        (&check[..], vec![silent.addr, answers.addr]),
        ("", vec![silent.addr]),
    ] {
        let front = ports::free_addr();
        let listener = "responses = 1\nidle_timeout = \"200ms\"";
        let tembuku = Tembuku::start(&config(front, listener, upstream, &servers));
        // They stay open: the port of one that is closed may be that of the next.
        let clients = [(); 3].map(|()| client(front));
        for client in &clients {
            client.send(b"hello").unwrap();
        }
        tembuku.wait_closed("response_timeout", 3.0);
        let errors = |backend: &str| {
            let labels = [("backend", backend), ("reason", "timeout")];
            tembuku.metric("backend_connect_errors_total", &labels)
        };
        assert_eq!(errors(&one), 3.0, "{upstream}");
        if servers.len() > 1 {
            assert_eq!(errors(&two), 0.0, "{upstream}");
        }
        let labels = [("backend", &one[..]), ("state", "up")];
        assert_eq!(tembuku.metric("backend_state", &labels), 1.0, "{upstream}");
    }
}

#[test]
fn kept_flows_stay() {
    let mut servers = named(2);
    let upstream = format!("{FIRST}\non_down = \"keep\"");
    let (front, tembuku) = serve("", &upstream, &servers);
    let client = client(front);
    assert_eq!(ask(&client, "before"), "b1 before");
    let gone = servers.remove(0);
    let addr = gone.addr;
    drop(gone);
    client.send(b"lost").unwrap();
    refused(&tembuku, 1.0);
    client.send(b"lost, too").unwrap();
    refused(&tembuku, 2.0);
    // It is back, and has its flow again.
    let again = UdpServer::named_on("again", addr);
    assert_eq!(ask_until_answered(&client, "after"), "again after");
    assert_eq!(servers[0].taken(), 0);
    assert_eq!(again.peers().len(), 1);
    assert_eq!(tembuku.metric("listener_connections_total", &[]), 1.0);
}

/// Backends whose health is checked by TCP, on that port of an address of their own.
struct Checked {
    front: SocketAddr,
    tembuku: Tembuku,
    servers: Vec<UdpServer>,
    health: Vec<Option<Server>>,
    asked_at: Vec<SocketAddr>,
}

impl Checked {
    #[track_caller]
    fn start(upstream: &str) -> Checked {
        let (port, health_port) = (ports::free_port(), ports::free_port());
        let ip = |n| [127, 0, 7, n];
        let servers: Vec<UdpServer> = (1..=2)
            .map(|n| UdpServer::named_on(&format!("b{n}"), SocketAddr::from((ip(n), port))))
            .collect();
        let asked_at: Vec<SocketAddr> = (1..=2)
            .map(|n| SocketAddr::from((ip(n), health_port)))
            .collect();
        let front = ports::free_addr();
        let mut checked = Checked {
            front,
            health: vec![None, None],
            asked_at,
            tembuku: Tembuku::start(&format!(
                "[process]\nworkers = 2\n[log]\naccess = \"{{dir}}/access.log\"\n\
                 [admin]\nsocket = \"{{dir}}/admin.sock\"\n\
                 [listeners.l]\nbind = \"{front}\"\nprotocol = \"udp\"\nupstream = \"u\"\n\
                 [upstreams.u]\n{FIRST}\n{upstream}\nbackends = {}\n\
                 [upstreams.u.check]\nkind = \"tcp\"\nport = {health_port}\ninterval = \"100ms\"\n\
                 rise = 1\nfall = 2\n\
                 start = \"down\"\n",
                list(&addrs(&servers))
            )),
            servers,
        };
        for n in 0..2 {
            checked.heal(n);
        }
        checked
    }

    fn heal(&mut self, n: usize) {
        self.health[n] = Some(Server::on(&[self.asked_at[n]], |mut stream| {
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        }));
        self.wait_state(n, "up");
    }

    fn sicken(&mut self, n: usize) {
        self.health[n] = None;
        self.wait_state(n, "down");
    }

    #[track_caller]
    fn wait_state(&self, n: usize, state: &str) {
        let backend = self.servers[n].addr.to_string();
        let labels = [("backend", &backend[..]), ("state", state)];
        self.tembuku
            .wait_metric("backend_state", &labels, |n| n == 1.0);
    }

    /// A command of the program about a backend.
    #[track_caller]
    fn command(&self, name: &str, n: usize) {
        let socket = self.tembuku.dir.file("admin.sock");
        let target = format!("u/{}", self.servers[n].addr);
        let output = cli(&[name, &target, "--socket", socket.to_str().unwrap()]);
        assert!(output.status.success(), "{output:?}");
    }

    /// A client whom b1 owes an answer to `question`.
    #[track_caller]
    fn waiting(&self, question: &str) -> UdpSocket {
        let client = client(self.front);
        assert_eq!(ask(&client, "first"), "b1 first");
        self.servers[0].hold();
        client.send(question.as_bytes()).unwrap();
        self.servers[0].wait_held(1);
        client
    }
}

type Act = fn(&mut Checked);

const LEAVE: [(&str, Act, Act); 3] = [
    ("down", |c| c.sicken(0), |c| c.heal(0)),
    (
        "drain",
        |c| c.command("drain", 0),
        |c| c.command("ready", 0),
    ),
    (
        "maint",
        |c| c.command("maint", 0),
        |c| {
            c.command("ready", 0);
            c.wait_state(0, "up");
        },
    ),
];

/// The next datagram goes to another backend; earlier requests are still answered.
#[test]
fn flows_fail_over_with_their_next_datagram() {
    for (what, leave, back) in LEAVE {
        let mut checked = Checked::start("");
        let client = checked.waiting("held");
        leave(&mut checked);
        assert_eq!(ask(&client, "after"), "b2 after", "{what}");
        checked.servers[0].release();
        assert_eq!(receive_text(&client), "b1 held", "{what}");
        assert_eq!(ask(&client, "again"), "b2 again", "{what}");
        back(&mut checked);
        // A flow that has moved stays; new ones go to the first one again.
        assert_eq!(ask(&client, "more"), "b2 more", "{what}");
        wait_until("the first one is used again", PATIENCE, || {
            ask(&crate::harness::udp::client(checked.front), "x") == "b1 x"
        });
    }
}

/// Without a next datagram nothing happens to it: it may be waiting for an answer.
#[test]
fn a_pending_reply_of_a_backend_that_leaves_is_delivered() {
    for (what, leave, _) in LEAVE {
        let mut checked = Checked::start("");
        let client = checked.waiting("held");
        leave(&mut checked);
        checked.servers[0].release();
        assert_eq!(receive_text(&client), "b1 held", "{what}");
    }
}

/// The same where there is no other backend: its client gets no service, but what it had asked is
/// answered, and the flow goes on when the backend is ready again.
#[test]
fn what_the_only_backend_owes_is_delivered() {
    for (name, back) in [("drain", true), ("drain", false), ("maint", true)] {
        let servers = named(1);
        let (front, tembuku) = serve("", "", &servers);
        let socket = tembuku.dir.file("admin.sock");
        let command = |name: &str| {
            let target = format!("u/{}", servers[0].addr);
            let output = cli(&[name, &target, "--socket", socket.to_str().unwrap()]);
            assert!(output.status.success(), "{output:?}");
        };
        let client = client(front);
        assert_eq!(ask(&client, "first"), "b1 first");
        servers[0].hold();
        client.send(b"held").unwrap();
        servers[0].wait_held(1);
        command(name);
        for n in 1..=3 {
            client.send(b"too late").unwrap();
            tembuku.wait_dropped("no_backend", f64::from(n));
        }
        servers[0].release();
        assert_eq!(receive_text(&client), "b1 held", "{name}");
        if back {
            command("ready");
            assert_eq!(ask(&client, "after"), "b1 after", "{name}");
            assert_eq!(servers[0].peers().len(), 1, "the same flow");
        } else {
            // Nothing more is waited for after a while.
            tembuku.wait_closed("backend_drained", 1.0);
            tembuku.wait_flows(0.0);
            command("ready");
            assert_eq!(ask(&client, "after"), "b1 after");
        }
        let labels = [("reason", "late")];
        let late = tembuku.metric("listener_dropped_datagrams_total", &labels);
        assert_eq!(late, 0.0, "{name}");
    }
}

#[test]
fn flows_are_ended_where_that_is_wanted() {
    for ((what, leave, _), reason) in
        LEAVE
            .into_iter()
            .zip(["backend_down", "backend_drained", "backend_drained"])
    {
        let mut checked = Checked::start("on_down = \"close\"\non_drain = \"close\"");
        let client = checked.waiting("held");
        leave(&mut checked);
        checked.tembuku.wait_closed(reason, 1.0);
        checked.tembuku.wait_flows(0.0);
        let record = checked.tembuku.access_log(1).remove(0);
        assert_eq!(record["close_reason"], reason, "{what}: {record}");
        // The next datagram begins another one.
        assert_eq!(ask(&client, "after"), "b2 after", "{what}");
        assert_eq!(
            checked.tembuku.metric("listener_connections_total", &[]),
            2.0
        );
    }
}

#[test]
fn flows_are_kept_where_that_is_wanted() {
    for (what, leave, _) in LEAVE {
        let mut checked = Checked::start("on_down = \"keep\"\non_drain = \"keep\"");
        let client = client(checked.front);
        assert_eq!(ask(&client, "before"), "b1 before");
        leave(&mut checked);
        for n in 0..5 {
            assert_eq!(ask(&client, &n.to_string()), format!("b1 {n}"), "{what}");
        }
        let newcomer = crate::harness::udp::client(checked.front);
        assert_eq!(ask(&newcomer, "new"), "b2 new", "{what}");
    }
}

#[test]
fn with_no_backend_there_is_nothing_to_be_done_until_one_is_back() {
    let mut checked = Checked::start("");
    let old = client(checked.front);
    assert_eq!(ask(&old, "before"), "b1 before");
    checked.sicken(0);
    checked.sicken(1);
    let new = client(checked.front);
    new.send(b"lost").unwrap();
    checked.tembuku.wait_dropped("no_backend", 1.0);
    assert_eq!(checked.servers[1].taken(), 0);
    checked.heal(1);
    assert_eq!(ask_until_answered(&new, "after"), "b2 after");
    assert_eq!(ask_until_answered(&old, "after"), "b2 after");
    assert_eq!(checked.servers[0].taken(), 1);
}

/// No server at any address: what is refused is counted, and the first that is back serves.
#[test]
fn when_all_refuse_the_first_that_is_back_serves() {
    let servers = named(2);
    let (front, tembuku) = serve("", "", &servers);
    let addr = servers[1].addr;
    drop(servers);
    let client = client(front);
    for _ in 0..10 {
        client.send(b"lost").unwrap();
    }
    let labels = [("reason", "refused")];
    tembuku.wait_metric("backend_connect_errors_total", &labels, |n| n >= 1.0);
    let _again = UdpServer::named_on("again", addr);
    // Those that the program has not looked at yet may be answered first.
    wait_until("the one that is back serves", PATIENCE, || {
        let answer = ask_until_answered(&client, "after");
        assert!(
            ["again lost", "again after"].contains(&&*answer),
            "{answer}"
        );
        answer == "again after"
    });
}

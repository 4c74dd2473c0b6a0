//! Events of a backend that went out of service: since when, why, when its sessions were over and
//! which backend took the next.

use crate::harness::{
    net, ports, secs,
    server::{Server, greet_and_echo},
    tembuku::Tembuku,
    wait_until,
};
use serde_json::Value;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

struct Setup {
    tembuku: Tembuku,
    front: SocketAddr,
    well: Arc<AtomicBool>,
    first: Server,
    _second: Server,
}

/// Two backends that greet; the check looks at the greeting. The first is used as long as it is
/// well.
fn setup(upstream: &str) -> Setup {
    let well = Arc::new(AtomicBool::new(true));
    let mood = Arc::clone(&well);
    let first = Server::start(move |stream| {
        let greeting = if mood.load(SeqCst) {
            "one ok\n"
        } else {
            "one is ill\n"
        };
        greet_and_echo(&stream, greeting);
    });
    let second = Server::named("two ok");
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[log]\nformat = \"json\"\n[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbalance = \"first\"\nbackends = [\"{}\", \"{}\"]\n{upstream}\n\
         [upstreams.u.check]\nkind = \"send_expect\"\nexpect_regex = \"ok\\n\"\n\
         interval = \"200ms\"\n\
         fast_interval = \"200ms\"\ntimeout = \"150ms\"\nfall = 3\nrise = 2\n",
        first.addr, second.addr
    ));
    wait_until("both have been checked", secs(10), || {
        tembuku.metric("check_results_total", &[("result", "ok")]) >= 2.0
    });
    Setup {
        tembuku,
        front,
        well,
        first,
        _second: second,
    }
}

impl Setup {
    /// Waits until there are so many events; the last.
    #[track_caller]
    fn event(&self, count: usize) -> Value {
        wait_until("an event", secs(10), || {
            self.tembuku.events().len() >= count
        });
        let mut events = self.tembuku.events();
        assert_eq!(events.len(), count, "{events:#?}");
        events.remove(count - 1)
    }

    fn histogram(&self, name: &str) -> (f64, f64) {
        let of = |part: &str| {
            let name = format!("upstream_{name}_duration_seconds_{part}");
            self.tembuku.metric(&name, &[("upstream", "u")])
        };
        (of("count"), of("sum"))
    }
}

#[test]
fn from_the_first_doubt_to_the_next_session() {
    let setup = setup("");
    let (mut held, name) = net::session(setup.front).unwrap();
    assert_eq!(name, "one ok");
    let fell_ill = Instant::now();
    setup.well.store(false, SeqCst);
    let event = setup.event(1);
    let reported_after = fell_ill.elapsed();
    for (key, value) in [("from", "up"), ("to", "down"), ("reason", "timeout")] {
        assert_eq!(event[key], value, "{event}");
    }
    assert_eq!(event["address"], setup.first.addr.to_string());
    assert!(event["transcript"].as_str().unwrap().contains("one is ill"));
    assert_eq!(event["sessions"], 1);
    // Three failures, two pauses of 180 to 200 ms between them, of which a machine that stalls may
    // take some away; what began before the verdict is within it.
    let doubt = event["doubt_seconds"].as_f64().unwrap();
    assert!(
        (0.3..reported_after.as_secs_f64()).contains(&doubt),
        "{doubt}"
    );
    assert_eq!(event["last_session_closed_seconds"], Value::Null);
    assert_eq!(event["next_session_seconds"], Value::Null);
    assert_eq!(setup.histogram("doubt"), (1.0, doubt_of(&setup)));

    // The next client goes to the other backend; the session on this one goes on.
    let (next, name) = net::session(setup.front).unwrap();
    assert_eq!(name, "two ok");
    net::echo(&mut held, "still there").unwrap();
    wait_until("the event has it", secs(10), || {
        setup.event(1)["next_session_seconds"].is_number()
    });
    let event = setup.event(1);
    assert_eq!(
        event["next_session_on"],
        event_backend(&setup, 1),
        "{event}"
    );
    assert_eq!(event["last_session_closed_seconds"], Value::Null);
    let resumed = event["next_session_seconds"].as_f64().unwrap();
    assert_eq!(setup.histogram("resume").0, 1.0);
    assert_eq!(setup.histogram("leave").0, 0.0);

    drop(held);
    wait_until("the last is gone", secs(10), || {
        setup.event(1)["last_session_closed_seconds"].is_number()
    });
    let closed = setup.event(1)["last_session_closed_seconds"]
        .as_f64()
        .unwrap();
    assert!(resumed < closed && closed < fell_ill.elapsed().as_secs_f64());
    let (count, sum) = setup.histogram("leave");
    assert!(
        count == 1.0 && (sum - closed).abs() < 0.001,
        "{sum} {closed}"
    );
    let log = setup.tembuku.proc.stderr();
    for message in ["last session of the backend ended", "next session served"] {
        assert_eq!(log.matches(message).count(), 1, "{log}");
    }
    drop(next);
}

/// In the status as in the metrics.
fn doubt_of(setup: &Setup) -> f64 {
    let (_, sum) = setup.histogram("doubt");
    let doubt = setup.tembuku.events()[0]["doubt_seconds"].as_f64().unwrap();
    assert!((sum - doubt).abs() < 0.001, "{sum} {doubt}");
    sum
}

fn event_backend(setup: &Setup, index: usize) -> Value {
    let status = setup.tembuku.status();
    status["upstreams"][0]["backends"][index]["address"].clone()
}

/// With `close` the sessions are over at once, and the event has the time; a recovery leaves the
/// other times empty.
#[test]
fn closed_sessions_and_a_recovery() {
    let setup = setup("on_down = \"close\"");
    let held: Vec<_> = (0..20)
        .map(|_| net::session(setup.front).unwrap().0)
        .collect();
    setup.well.store(false, SeqCst);
    for mut client in held {
        net::read_all(&mut client);
    }
    wait_until("all are gone", secs(10), || {
        setup.event(1)["last_session_closed_seconds"].is_number()
    });
    let event = setup.event(1);
    assert_eq!(event["sessions"], 20);
    let closed = event["last_session_closed_seconds"].as_f64().unwrap();
    assert!(closed < 2.0, "{event}");
    assert_eq!(event["next_session_seconds"], Value::Null);

    setup.well.store(true, SeqCst);
    let back = setup.event(2);
    assert_eq!((&back["from"], &back["to"]), (&"down".into(), &"up".into()));
    // A session that comes now does not answer for the time in which there was none.
    assert_eq!(net::session(setup.front).unwrap().1, "one ok");
    setup.tembuku.wait_idle();
    assert_eq!(
        setup.tembuku.events()[0]["next_session_seconds"],
        Value::Null
    );
    assert_eq!(setup.histogram("resume").0, 0.0);
    assert_eq!(setup.histogram("leave").0, 1.0);
}

/// What connects find out: the session that found it is itself the first on another backend.
#[test]
fn a_backend_that_refuses() {
    let front = ports::free_addr();
    let (gone, there) = (ports::free_addr(), Server::named("there"));
    let tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n[upstreams.u]\nbalance = \"first\"\n\
         backends = [{{ address = \"{gone}\", max_fails = 2 }}, \"{}\"]\n",
        there.addr
    ));
    let began = Instant::now();
    assert_eq!(net::ask(front).unwrap(), "there");
    let between = Duration::from_millis(30);
    let first = began.elapsed();
    wait_until("some time has passed", secs(10), || {
        began.elapsed() > first + between
    });
    assert_eq!(net::ask(front).unwrap(), "there");
    wait_until("the event has it", secs(10), || {
        tembuku.events().len() == 1 && tembuku.events()[0]["next_session_seconds"].is_number()
    });
    let event = tembuku.events().remove(0);
    for (key, value) in [("from", "up"), ("to", "failed"), ("reason", "refused")] {
        assert_eq!(event[key], value, "{event}");
    }
    assert_eq!(event["next_session_on"], there.addr.to_string());
    let doubt = event["doubt_seconds"].as_f64().unwrap();
    assert!(
        doubt >= between.as_secs_f64() && doubt <= began.elapsed().as_secs_f64(),
        "{event}"
    );
    assert!(event["next_session_seconds"].as_f64().unwrap() < 5.0);
    // It had none whose end could be waited for.
    assert_eq!(
        (&event["sessions"], &event["last_session_closed_seconds"]),
        (&0.into(), &Value::Null)
    );
    assert_eq!(event["next_session_waited_seconds"], 0.0, "{event}");
}

/// The first client waits for its connect to time out, and that is part of the outage.
#[test]
fn an_outage_begins_with_the_connect_that_fails_first() {
    let front = ports::free_addr();
    let (silent, there) = (net::BlackHole::new(), Server::named("there"));
    let tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\nconnect_timeout = \"700ms\"\n\
         [upstreams.u]\nbalance = \"first\"\nbackends = [\"{}\", \"{}\"]\n",
        silent.addr, there.addr
    ));
    let began = Instant::now();
    assert_eq!(net::ask(front).unwrap(), "there");
    let took = began.elapsed().as_secs_f64();
    wait_until("the event has it", secs(10), || {
        tembuku.events().len() == 1 && tembuku.events()[0]["next_session_seconds"].is_number()
    });
    let event = tembuku.events().remove(0);
    let seconds = |key: &str| event[key].as_f64().unwrap();
    let outage = seconds("doubt_seconds") + seconds("next_session_seconds");
    assert_eq!(event["reason"], "timeout", "{event}");
    // As the client saw it, to the millisecond of each figure.
    assert!((0.699..took + 0.002).contains(&outage), "{took}: {event}");
    let waited = seconds("next_session_waited_seconds");
    assert!((0.699..took + 0.002).contains(&waited), "{took}: {event}");
    assert_eq!(event["unserved_clients"], 0, "{event}");
}

/// Clients that get nothing are counted, and where none came no client has lost that time.
#[test]
fn a_time_without_a_backend_counts_where_clients_came() {
    let front = ports::free_addr();
    let servers = [Server::named("one"), Server::named("two")];
    let [one, two] = [0, 1].map(|n| servers[n].addr.to_string());
    let tembuku = Tembuku::start(&format!(
        "[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [\"{one}\", \"{two}\"]\n"
    ));
    tembuku.set_admin_state("u", &two, "drain");
    for refused in [2, 0] {
        tembuku.set_admin_state("u", &one, "drain");
        let number = tembuku.events().len() - 1;
        for _ in 0..refused {
            net::assert_closed_at_once(front);
        }
        tembuku.wait_closed("no_backend", 2.0);
        tembuku.set_admin_state("u", &two, "ready");
        assert_eq!(net::ask(front).unwrap(), "two");
        wait_until("the event has it", secs(10), || {
            tembuku.events()[number]["next_session_seconds"].is_number()
        });
        let event = tembuku.events().remove(number);
        assert_eq!(event["backend"], one, "{event}");
        assert_eq!(event["unserved_clients"], refused, "{event}");
        assert_eq!(event["next_session_waited_seconds"], 0.0, "{event}");
        let text = tembuku.succeed(&["events"]);
        let line = text.lines().nth(number).unwrap();
        let end = match refused {
            0 => format!(" s on {two}, no client came before"),
            _ => format!(" s on {two}; 2 clients got none before"),
        };
        assert!(line.ends_with(&end), "{text}");
        tembuku.set_admin_state("u", &one, "ready");
        tembuku.set_admin_state("u", &two, "drain");
    }
}

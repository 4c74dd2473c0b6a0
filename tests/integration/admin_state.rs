//! What becomes of a backend and its sessions when the operator drains it or takes it into
//! maintenance.

use crate::harness::{
    bounded,
    checked::Nodes,
    millis,
    net::{self, End, ask, echo},
    ports,
    proc::{self, command},
    programs::{self, Redis, place},
    secs,
    server::{Server, ask_many},
    tembuku::Tembuku,
    wait_until,
};
use serde_json::Value;
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

/// Nodes `b1`, `b2`..., each with keys of its own; `keys` are the upstream's.
#[track_caller]
fn unchecked(node_keys: &[&str], keys: &str) -> Nodes {
    Nodes::start(6, node_keys, keys, "")
}

#[track_caller]
fn checked(node_keys: &[&str], keys: &str) -> Nodes {
    let check = "interval = \"100ms\"\nrise = 1\nfall = 2";
    Nodes::start(6, node_keys, keys, check)
}

/// The states that a backend went through, with the reasons.
fn events(tembuku: &Tembuku, backend: &str) -> Vec<(String, String, String)> {
    let text = |event: &Value, key: &str| event[key].as_str().unwrap().to_owned();
    let all = tembuku.events();
    all.iter()
        .filter(|e| e["backend"] == backend)
        .map(|e| (text(e, "from"), text(e, "to"), text(e, "reason")))
        .collect()
}

#[test]
fn a_drained_backend_keeps_its_sessions_and_gets_no_new_ones() {
    let setup = unchecked(&["", ""], "");
    let mut held = setup.session_on(0);
    for (word, state) in [("drain", "drained"), ("maint", "maintenance")] {
        assert_eq!(setup.admin_state(0, word)["state"], state);
        assert_eq!(ask_many(setup.front, 10), vec!["b2"; 10]);
        setup.wait_state(0, state);
        echo(&mut held, "still here").unwrap();
    }
    // No backend is left: then no client is served, and the process reports it.
    setup.admin_state(1, "drain");
    net::assert_ends_now(&mut net::connect(setup.front).unwrap());
    setup.wait_closed("no_backend", 1.0);
    assert_eq!(setup.tembuku.get("/readyz").status, 503);
    let available = || setup.tembuku.metric("upstream_available_backends", &[]);
    assert_eq!(available(), 0.0);
    assert_eq!(setup.admin_state(0, "ready")["state"], "up");
    assert_eq!(ask_many(setup.front, 10), vec!["b1"; 10]);
    setup.admin_state(1, "ready");
    assert_eq!(available(), 2.0);
    let mut both = ask_many(setup.front, 2);
    both.sort();
    assert_eq!(both, ["b1", "b2"], "in rotation");
    echo(&mut held, "all the time").unwrap();

    let word = |(from, to, why): &(String, String, String)| format!("{from} {to} {why}");
    let events: Vec<_> = events(&setup.tembuku, &setup.text(0))
        .iter()
        .map(word)
        .collect();
    let expected = ["up drained", "drained maintenance", "maintenance up"];
    assert_eq!(events, expected.map(|e| format!("{e} operator")));
    let backend = setup.text(0);
    for to in ["drained", "maintenance", "up"] {
        let labels = [("backend", backend.as_str()), ("to", to)];
        let times = setup.tembuku.metric("backend_transitions_total", &labels);
        assert_eq!(times, 1.0, "{to}");
    }
}

#[test]
fn the_only_backend_can_be_drained() {
    let setup = unchecked(&[""], "");
    setup.admin_state(0, "drain");
    net::assert_ends_now(&mut net::connect(setup.front).unwrap());
    setup.wait_closed("no_backend", 1.0);
    setup.admin_state(0, "ready");
    assert_eq!(ask(setup.front).unwrap(), "b1");
}

#[test]
fn on_drain_close_ends_those_of_this_backend_alone() {
    let setup = unchecked(&["", ""], "on_drain = \"close\"");
    for (n, word) in ["drain", "maint"].into_iter().enumerate() {
        let (mut lost, mut kept) = (setup.session_on(0), setup.session_on(1));
        let began = Instant::now();
        setup.admin_state(0, word);
        assert_eq!(net::read_all(&mut lost).1, End::Reset, "not a whole answer");
        println!("{word}: closed after {:?}", began.elapsed());
        setup.wait_closed("backend_drained", n as f64 + 1.0);
        echo(&mut kept, "still here").unwrap();
        setup.admin_state(0, "ready");
        // Clients that come now are not affected by it.
        let mut new = setup.session_on(0);
        echo(&mut new, "welcome").unwrap();
    }
    // The journal has the end of the last one.
    let events = setup.tembuku.events();
    let out: Vec<_> = events.iter().filter(|e| e["from"] == "up").collect();
    assert_eq!(out.len(), 2, "{events:?}");
    for event in out {
        assert_eq!(event["sessions"], 1);
        let seconds = event["last_session_closed_seconds"].as_f64().unwrap();
        assert!(seconds < 5.0, "{event}");
    }
    let records = setup.tembuku.access_log(2);
    let drained = records
        .iter()
        .filter(|r| r["close_reason"] == "backend_drained");
    assert_eq!(drained.count(), 2, "{records:?}");
}

/// Six hundred sessions get their time, then go one after the other.
#[test]
fn on_drain_may_give_time_and_ends_them_at_a_pace() {
    let keys = "on_drain = { close_after = \"1s\" }\nbalance = \"first\"";
    let mut setup = unchecked(&["", ""], keys);
    let mut drained = Instant::now();
    let ends = setup.ends_of(600, |setup| {
        drained = Instant::now();
        assert_eq!(setup.admin_state(0, "drain")["connections"], 600);
    });
    let first = *ends.iter().min().unwrap() - drained;
    let last = *ends.iter().max().unwrap() - drained;
    println!("600 sessions ended from {first:?} to {last:?} after the drain");
    // 200 at once, and the others at 2,000 a second.
    assert!(bounded(first, millis(990), secs(4)), "{first:?}");
    assert!(bounded(last, millis(1_180), secs(9)), "{last:?}");
    setup.wait_closed("backend_drained", 600.0);
    assert_eq!(setup.active(0), 0.0);
}

/// A `ready` in between calls off what has not happened, and a drain after that has its whole time
/// again.
#[test]
fn ready_calls_off_what_has_not_happened() {
    let setup = unchecked(&["", ""], "on_drain = { close_after = \"1500ms\" }");
    let mut held = setup.session_on(0);
    setup.admin_state(0, "drain");
    // From a drain to maintenance it does not begin anew.
    setup.admin_state(0, "maint");
    setup.admin_state(0, "ready");
    let called_off = Instant::now();
    let other = setup.session_on(1);
    setup.admin_state(1, "drain");
    // The other one's time began later, and has passed.
    let mut other = other;
    assert_eq!(net::read_all(&mut other).1, End::Reset);
    assert!(
        called_off.elapsed() >= millis(1_450),
        "{:?}",
        called_off.elapsed()
    );
    echo(&mut held, "still here").unwrap();
    setup.wait_closed("backend_drained", 1.0);

    let began = Instant::now();
    setup.admin_state(0, "drain");
    thread::sleep(millis(1_000)); // a part of its time
    setup.admin_state(0, "maint");
    assert_eq!(net::read_all(&mut held).1, End::Reset);
    let took = began.elapsed();
    assert!(bounded(took, millis(1_450), millis(2_450)), "{took:?}");
}

/// Neither erases the other.
#[test]
fn a_drain_outlives_what_its_check_finds() {
    let mut setup = checked(&["", ""], "");
    setup.admin_state(0, "drain");
    setup.nodes[0].sicken();
    let why = |setup: &Nodes| {
        let backend = setup.backend(0);
        assert_eq!(backend["state"], "drained");
        backend["why"].as_str().unwrap().to_owned()
    };
    wait_until("its check goes on", secs(10), || {
        why(&setup).starts_with("set by the operator; besides, its check reports: refused: ")
    });
    setup.nodes[0].heal();
    wait_until("its check says something else", secs(10), || {
        why(&setup) == "set by the operator"
    });
    assert_eq!(ask_many(setup.front, 10), vec!["b2"; 10], "still drained");
    // Down, and then wanted: it waits for its check.
    setup.nodes[0].sicken();
    wait_until("it is down", secs(10), || why(&setup).contains("refused"));
    assert_eq!(setup.admin_state(0, "ready")["state"], "down");
    assert_eq!(ask_many(setup.front, 10), vec!["b2"; 10]);
    setup.bring_up(0);
    let mut both = ask_many(setup.front, 2);
    both.sort();
    assert_eq!(both, ["b1", "b2"]);
}

/// What was begun by a drain is not called off by a check that has changed its mind.
#[test]
fn a_recovery_does_not_call_off_a_drain() {
    let keys = "on_drain = { close_after = \"2s\" }\non_down = { close_after = \"30s\" }";
    let mut setup = checked(&["", ""], keys);
    let mut held = setup.session_on(0);
    setup.admin_state(0, "drain");
    setup.nodes[0].sicken();
    wait_until("it is down", secs(2), || setup.results(0, "refused") >= 2.0);
    setup.nodes[0].heal();
    setup.wait_checks(0, 2.0);
    echo(&mut held, "still here").unwrap();
    assert_eq!(net::read_all(&mut held).1, End::Reset);
    setup.wait_closed("backend_drained", 1.0);
}

/// Counted at the server: it is not checked while it is in maintenance, and at once when it is not.
#[test]
fn maintenance_stops_the_checks() {
    let mut setup = checked(&["", ""], "");
    setup.admin_state(0, "maint");
    // One that is under way may still arrive; by the second check of the other it has.
    setup.wait_checks(1, 2.0);
    let before = setup.nodes[0].asked();
    setup.wait_checks(1, 10.0);
    assert_eq!(setup.nodes[0].asked(), before, "asked in maintenance");
    setup.wait_state(0, "maintenance");

    // It is worked on: it goes down, and no check notices.
    setup.nodes[0].sicken();
    setup.wait_checks(1, 5.0);
    let began = Instant::now();
    assert_eq!(
        setup.admin_state(0, "ready")["state"],
        "down",
        "no check has begun yet"
    );
    assert_eq!(ask_many(setup.front, 5), vec!["b2"; 5]);
    setup.wait_checks(0, 1.0);
    println!("asked {:?} after `ready`", began.elapsed());
    assert_eq!(ask_many(setup.front, 5), vec!["b2"; 5]);
    setup.bring_up(0);

    // Through maintenance to a drain the checks go on as well.
    setup.admin_state(0, "maint");
    setup.admin_state(0, "drain");
    setup.wait_checks(0, 3.0);
    setup.wait_state(0, "drained");
    let word = |(from, to, why): &(String, String, String)| format!("{from} {to} {why}");
    let events: Vec<_> = events(&setup.tembuku, &setup.text(0))
        .iter()
        .map(word)
        .collect();
    let expected = [
        "up maintenance operator",
        "maintenance down operator",
        "down down refused",
        "down up ok",
        "up maintenance operator",
        "maintenance drained operator",
        "down up ok",
    ];
    assert_eq!(events, expected);
}

/// Out of maintenance the first good answer is enough, however many `rise` asks for; `start` does
/// not count.
#[test]
fn out_of_maintenance_the_first_answer_decides() {
    let check = "interval = \"100ms\"\nstart = \"up\"\nrise = 1000\nfall = 1000";
    let setup = Nodes::start(6, &["", ""], "", check);
    setup.admin_state(0, "maint");
    let began = Instant::now();
    assert_eq!(setup.admin_state(0, "ready")["state"], "down");
    setup.wait_state(0, "up");
    let took = began.elapsed();
    println!("up {took:?} after `ready`");
    assert!(took < secs(5), "{took:?}");
}

#[test]
fn a_drained_primary_that_recovers_triggers_no_failback() {
    let mut setup = checked(&["", "backup = true"], "on_recover = \"close\"");
    setup.admin_state(0, "drain");
    let mut standing_in = setup.session_on(1);
    setup.nodes[0].sicken();
    let refused = [("result", "refused")];
    setup
        .tembuku
        .wait_metric("check_results_total", &refused, |n| n >= 3.0);
    setup.nodes[0].heal();
    // Some checks later a session that was called back would be gone.
    setup.wait_checks(0, 5.0);
    echo(&mut standing_in, "still here").unwrap();
    setup.wait_closed("recovered", 0.0);
    // Wanted again, it is back.
    setup.admin_state(0, "ready");
    assert_eq!(net::read_all(&mut standing_in).1, End::Reset);
    setup.wait_closed("recovered", 1.0);
    assert_eq!(ask(setup.front).unwrap(), "b1");
}

#[test]
fn draining_the_last_primary_makes_the_backups_needed() {
    let keys = "on_recover = { close_after = \"1s\" }";
    let mut setup = checked(&["", "", "backup = true"], keys);
    setup.admin_state(1, "maint");
    setup.take_down(0);
    let mut standing_in = setup.session_on(2);
    setup.bring_up(0);
    let due = Instant::now() + millis(1_000);
    setup.admin_state(0, "drain");
    wait_until("it would have been called back", secs(5), || {
        Instant::now() > due + millis(500)
    });
    echo(&mut standing_in, "needed").unwrap();
    setup.wait_closed("recovered", 0.0);
    // Out of maintenance, through its check.
    setup.admin_state(1, "ready");
    assert_eq!(net::read_all(&mut standing_in).1, End::Reset);
    setup.wait_closed("recovered", 1.0);
}

/// The admin state belongs to the configured backend, whatever its name resolves to.
#[test]
fn an_admin_state_applies_to_all_addresses_of_a_name() {
    let Some(place) = place() else {
        return programs::again_in_own_place(
            "admin_state::an_admin_state_applies_to_all_addresses_of_a_name",
        );
    };
    let port = ports::free_port();
    let on = |name, n| Server::named_on(name, &[SocketAddr::from(([127, 0, 7, n], port))]);
    let _servers = [on("b1", 1), on("b2", 2), on("b3", 3), on("other", 9)];
    let hosts = |hosts: &[u8]| {
        let line = |n: &u8| format!("127.0.7.{n} backend.test\n");
        place.set_hosts(&hosts.iter().map(line).collect::<String>());
    };
    hosts(&[1, 2]);
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [\"backend.test:{port}\", {{ address = \"127.0.7.9:{port}\", \
         backup = true }}]\n\
         resolve_interval = \"100ms\"\non_drain = \"close\"\n"
    ));
    let text = format!("backend.test:{port}");
    let mut held: Vec<_> = (0..2).map(|_| net::session(front).unwrap()).collect();
    assert_ne!(held[0].1, held[1].1, "on both addresses");
    // The first is no longer named, and has a session.
    hosts(&[2]);
    wait_until("the name means one", secs(10), || {
        ask_many(front, 4) == vec!["b2"; 4]
    });
    tembuku.set_admin_state("u", &text, "drain");
    for (stream, name) in &mut held {
        assert_eq!(net::read_all(stream).1, End::Reset, "{name}");
    }
    assert_eq!(ask_many(front, 4), vec!["other"; 4]);
    // An address that is resolved later gets the same admin state.
    let resolved = |count: usize| {
        let status = tembuku.status();
        let backend = &status["upstreams"][0]["backends"][0];
        assert_eq!(backend["admin_state"], "drain");
        backend["resolved"].as_array().unwrap().len() == count
    };
    hosts(&[1, 2, 3]);
    wait_until("the name means three", secs(10), || resolved(3));
    assert_eq!(ask_many(front, 6), vec!["other"; 6]);
    tembuku.set_admin_state("u", &text, "ready");
    let mut names = ask_many(front, 3);
    names.sort();
    assert_eq!(names, ["b1", "b2", "b3"]);
}

/// Under load nothing fails while backends are drained and come back.
#[test]
fn a_drain_under_load_costs_no_request() {
    let servers: Vec<Redis> = (0..2).map(|_| Redis::start(ports::free_addr())).collect();
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[process]\nworkers = 2\n[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [\"{}\", \"{}\"]\n",
        servers[0].addr, servers[1].addr
    ));
    let done = AtomicBool::new(false);
    let rounds = thread::scope(|scope| {
        let operator = scope.spawn(|| {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) {
                let backend = servers[rounds % 2].addr.to_string();
                let word = ["drain", "maint"][rounds / 2 % 2];
                tembuku.set_admin_state("u", &backend, word);
                tembuku.set_admin_state("u", &backend, "ready");
                rounds += 1;
            }
            rounds
        });
        // One connection for each request, and lasting ones.
        for options in [
            "-n 6000 -c 20 -k 0 -t ping_mbulk",
            "-n 60000 -c 50 -t set,get",
        ] {
            let mut command = command("redis-benchmark -q -h 127.0.0.1 -p");
            command
                .arg(front.port().to_string())
                .args(options.split(' '));
            let output = proc::run(secs(60), command);
            let report = proc::text(&output);
            assert!(output.status.success(), "{options}\n{report}");
            assert!(
                !report.to_lowercase().contains("error"),
                "{options}\n{report}"
            );
        }
        done.store(true, Ordering::Relaxed);
        operator.join().unwrap()
    });
    println!("{rounds} drains under load");
    assert!(rounds > 20, "{rounds}");
    tembuku.wait_idle();
    let metrics = tembuku.metrics();
    for reason in ["no_backend", "connect_failed", "backend_drained"] {
        let closed = metrics.sum("sessions_closed_total", &[("reason", reason)]);
        assert_eq!(closed, 0.0, "{reason}");
    }
    for server in &servers {
        let backend = server.addr.to_string();
        let labels = [("backend", backend.as_str())];
        assert!(metrics.sum("backend_connections_total", &labels) > 100.0);
    }
}

/// Clients come without a pause: whenever a backend is drained, all sessions on it end, those that
/// were just being connected among them.
#[test]
fn no_session_starts_on_a_drained_backend() {
    let setup = unchecked(&["", ""], "on_drain = \"close\"\nbalance = \"first\"");
    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let backend = setup.text(0);
    let on_it = [("backend", backend.as_str())];
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut held = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    if held.len() > 40 {
                        held.clear();
                    }
                    held.extend(net::connect(setup.front));
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..10 {
            let before = served.load(Ordering::Relaxed);
            wait_until("clients come", secs(10), || {
                served.load(Ordering::Relaxed) > before + 100
            });
            setup.admin_state(0, "drain");
            setup
                .tembuku
                .wait_metric("backend_active_connections", &on_it, |n| n == 0.0);
            setup.admin_state(0, "ready");
        }
        stop.store(true, Ordering::Relaxed);
    });
    let closed = [("reason", "backend_drained")];
    assert!(setup.tembuku.metric("sessions_closed_total", &closed) > 10.0);
    let none = [("reason", "connect_failed")];
    assert_eq!(setup.tembuku.metric("sessions_closed_total", &none), 0.0);
}

/// Fifty operators at once, while sessions come and go: at the end all is as the last of each
/// wanted it.
#[test]
fn many_operators_at_once() {
    let setup = checked(&["", "", ""], "on_drain = \"close\"");
    let (stop, failed) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let setup = Arc::new(setup);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // Whether it is served depends on the admin state at the moment.
                    let _ = ask(setup.front);
                }
            });
        }
        let operators: Vec<_> = (0..50)
            .map(|n| {
                let (setup, failed) = (&setup, &failed);
                scope.spawn(move || {
                    for round in 0..12 {
                        let word = ["drain", "maint", "ready"][(n + round / 3) % 3];
                        // In step, the operators still differ about each backend.
                        let done = setup.admin_state((n / 3 + round) % 3, word);
                        if done["admin_state"] != word {
                            failed.lock().unwrap().push(done);
                        }
                    }
                })
            })
            .collect();
        operators.into_iter().for_each(|o| o.join().unwrap());
        stop.store(true, Ordering::Relaxed);
    });
    assert!(failed.lock().unwrap().is_empty());
    for node in 0..3 {
        setup.admin_state(node, "ready");
    }
    for node in 0..3 {
        setup.wait_state(node, "up");
    }
    setup.tembuku.wait_idle();
    assert_eq!(setup.tembuku.metric("backend_active_connections", &[]), 0.0);
    // The rotation from before they were taken out goes on, so the first few may be
    // uneven.
    let names = ask_many(setup.front, 60);
    let counts = ["b1", "b2", "b3"].map(|b| names.iter().filter(|name| *name == b).count());
    println!("60 sessions went {counts:?}");
    assert!(counts.iter().all(|n| (17..=23).contains(n)), "{counts:?}");
    // Each is asked by one task and no more: ten checks of one are about ten of another.
    let asked = || [0, 1, 2].map(|n| setup.nodes[n].asked());
    let before = asked();
    setup.wait_checks(0, 20.0);
    let more: Vec<_> = asked().iter().zip(before).map(|(n, b)| n - b).collect();
    println!("checks in the same time: {more:?}");
    assert!(more.iter().all(|n| (10..40).contains(n)), "{more:?}");
    // Every change of an admin state that had an effect is in the counters: as many ways in as out,
    // for each is ready now.
    let entered = |to: &str| {
        setup
            .tembuku
            .metric("backend_transitions_total", &[("to", to)])
    };
    let (drained, maintained) = (entered("drained"), entered("maintenance"));
    println!("drained {drained}, in maintenance {maintained} times");
    assert!(drained > 10.0 && maintained > 10.0);
}

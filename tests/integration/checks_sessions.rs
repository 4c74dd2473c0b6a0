//! What becomes of sessions when a check changes its mind about their backend.

use crate::harness::{
    checked::Nodes,
    millis,
    net::{self, End, ask, echo},
    ports,
    programs::{self, place},
    secs,
    server::{Server, ask_many},
    tembuku::Tembuku,
    wait_until,
};
use std::{
    io::Write,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Instant,
};

/// Nodes `b1`, `b2`..., each with keys of its own; `keys` are the upstream's.
#[track_caller]
fn setup(node_keys: &[&str], keys: &str) -> Nodes {
    let check = "interval = \"200ms\"\nrise = 1\nfall = 2";
    Nodes::start(5, node_keys, keys, check)
}

#[test]
fn sessions_of_a_backend_that_is_down_are_kept_by_default() {
    let mut setup = setup(&["", ""], "");
    let mut held = setup.session_on(0);
    setup.take_down(0);
    assert_eq!(ask_many(setup.front, 10), vec!["b2"; 10]);
    echo(&mut held, "still here").unwrap();
    // No backend is left: then no client is served, and the process reports it.
    setup.take_down(1);
    net::assert_ends_now(&mut net::connect(setup.front).unwrap());
    assert_eq!(setup.tembuku.get("/readyz").status, 503);
    assert_eq!(
        setup.tembuku.metric("upstream_available_backends", &[]),
        0.0
    );
    setup.bring_up(0);
    assert_eq!(ask_many(setup.front, 10), vec!["b1"; 10]);
    echo(&mut held, "all the time").unwrap();
}

#[test]
fn on_down_close_ends_those_of_this_backend_alone() {
    let mut setup = setup(&["", ""], "on_down = \"close\"");
    let (mut lost, mut kept) = (setup.session_on(0), setup.session_on(1));
    setup.nodes[0].sicken();
    let ill = Instant::now();
    let (_, end) = net::read_all(&mut lost);
    println!("closed after {:?}", ill.elapsed());
    assert_eq!(end, End::Reset, "it must not believe that this was all");
    setup.wait_closed("backend_down", 1.0);
    echo(&mut kept, "still here").unwrap();
    let records = setup.tembuku.access_log(1);
    assert!(
        records.iter().any(|r| r["close_reason"] == "backend_down"),
        "{records:?}"
    );
}

#[test]
fn on_down_may_wait_and_see() {
    let mut setup = setup(&["", ""], "on_down = { close_after = \"2s\" }");
    let mut held = setup.session_on(0);
    // Back in time: nothing happens.
    setup.take_down(0);
    setup.bring_up(0);
    std::thread::sleep(millis(2_300)); // longer than it would have had
    echo(&mut held, "still here").unwrap();
    setup.take_down(0);
    echo(&mut held, "for a while").unwrap();
    let (_, end) = net::read_all(&mut held);
    assert_eq!(end, End::Reset);
    setup.wait_closed("backend_down", 1.0);
}

/// A primary that takes nothing is none to go back to; and what was begun is not forgotten because
/// the backup was away for a moment.
#[test]
fn sessions_on_backups_end_only_where_there_is_somewhere_to_go() {
    let keys = "on_recover = { close_after = \"1s\" }";
    let mut setup = setup(&["", "backup = true"], keys);
    setup.take_down(0);
    let mut standing_in = setup.session_on(1);
    setup.bring_up(0);
    setup.take_down(1);
    setup.bring_up(1);
    assert_eq!(net::read_all(&mut standing_in).1, End::Reset);
    setup.wait_closed("recovered", 1.0);
}

#[test]
fn a_primary_at_its_limit_triggers_no_failback() {
    let mut setup = setup(&["weight = 0", "backup = true"], "on_recover = \"close\"");
    let mut held = setup.session_on(1);
    setup.take_down(0);
    setup.bring_up(0);
    // Some checks later a session that was called back would be gone.
    setup.wait_results(0, "ok", 5.0);
    echo(&mut held, "still here").unwrap();
    setup.wait_closed("recovered", 0.0);
}

/// Sessions on an address that the resolver no longer names are still looked after.
#[test]
fn an_address_that_is_no_longer_named_is_checked_while_it_has_sessions() {
    let Some(place) = place() else {
        return programs::again_in_own_place(
            "checks_sessions::an_address_that_is_no_longer_named_is_checked_while_it_has_sessions",
        );
    };
    let (port, health) = (ports::free_port(), ports::free_port());
    let _data = [("b1", 1), ("b2", 2)]
        .map(|(name, n)| Server::named_on(name, &[SocketAddr::from(([127, 0, 7, n], port))]));
    let sink = |n| {
        Server::on(
            &[SocketAddr::from(([127, 0, 7, n], health))],
            |mut stream| {
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            },
        )
    };
    let (first, _second) = (sink(1), sink(2));
    place.set_hosts("127.0.7.1 backend.test");
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [\"backend.test:{port}\"]\nresolve_interval = \"100ms\"\n\
         on_down = \"close\"\n\
         [upstreams.u.check]\nkind = \"tcp\"\nport = {health}\ninterval = \"100ms\"\n"
    ));
    let (mut held, name) = net::session(front).unwrap();
    assert_eq!(name, "b1");
    place.set_hosts("127.0.7.2 backend.test");
    wait_until("the name means another", secs(10), || {
        ask(front).unwrap() == "b2"
    });
    echo(&mut held, "still here").unwrap();
    drop(first);
    assert_eq!(net::read_all(&mut held).1, End::Reset);
    tembuku.wait_closed("backend_down", 1.0);
}

#[test]
fn sessions_on_backups_end_when_a_server_is_back() {
    let mut setup = setup(&["", "backup = true"], "on_recover = \"close\"");
    let mut before = setup.session_on(0);
    setup.take_down(0);
    let mut standing_in = setup.session_on(1);
    setup.nodes[0].heal();
    assert_eq!(net::read_all(&mut standing_in).1, End::Reset);
    setup.wait_closed("recovered", 1.0);
    assert_eq!(ask_many(setup.front, 5), vec!["b1"; 5]);
    echo(&mut before, "still here").unwrap();
}

/// The second time as the first, although another server was up all the time.
#[test]
fn each_recovery_calls_sessions_back_from_backups() {
    let keys = ["", "max_connections = 1", "backup = true"];
    let mut setup = setup(&keys, "on_recover = \"close\"");
    let _full = setup.session_on(1);
    for round in 1..=3 {
        setup.take_down(0);
        let mut standing_in = setup.session_on(2);
        setup.nodes[0].heal();
        let healed = Instant::now();
        assert_eq!(net::read_all(&mut standing_in).1, End::Reset);
        println!("called back after {:?}", healed.elapsed());
        setup.wait_closed("recovered", f64::from(round));
    }
}

/// Sessions that came after others were called back from a backup end when it goes down itself.
#[test]
fn a_backup_that_was_called_back_from_goes_down_like_any_other() {
    let keys = "on_recover = \"close\"\non_down = \"close\"";
    let mut setup = setup(&["max_connections = 1", "backup = true"], keys);
    setup.take_down(0);
    let mut standing_in = setup.session_on(1);
    setup.nodes[0].heal();
    assert_eq!(net::read_all(&mut standing_in).1, End::Reset);
    setup.wait_closed("recovered", 1.0);
    let mut full = setup.session_on(0);
    let mut besides = setup.session_on(1);
    setup.nodes[1].sicken();
    assert_eq!(net::read_all(&mut besides).1, End::Reset);
    setup.wait_closed("backend_down", 1.0);
    echo(&mut full, "still here").unwrap();
}

/// Whether it has capacity when its check finds it up, or gets some within `close_after`.
#[test]
fn a_primary_that_is_full_calls_sessions_back_when_it_has_capacity() {
    for (on_recover, wait) in [("\"close\"", 0), ("{ close_after = \"1s\" }", 1)] {
        let keys = format!("on_recover = {on_recover}");
        let mut setup = setup(&["max_connections = 1", "backup = true"], &keys);
        let before = setup.session_on(0);
        setup.take_down(0);
        let mut standing_in = setup.session_on(1);
        let full = match wait {
            0 => {
                setup.bring_up(0);
                before
            }
            _ => {
                drop(before);
                setup.bring_up(0);
                setup.session_on(0)
            }
        };
        // Time enough for a termination.
        setup.wait_results(0, "ok", if wait == 0 { 5.0 } else { 10.0 });
        echo(&mut standing_in, "still here").unwrap();
        setup.wait_closed("recovered", 0.0);
        drop(full);
        let freed = Instant::now();
        assert_eq!(net::read_all(&mut standing_in).1, End::Reset);
        println!("called back after {:?}", freed.elapsed());
        setup.wait_closed("recovered", 1.0);
    }
}

/// Six hundred clients do not come back in one instant.
#[test]
fn many_sessions_end_one_after_the_other() {
    let mut setup = setup(&["", ""], "on_down = \"close\"\nbalance = \"first\"");
    setup.ends_of(600, |setup| setup.nodes[0].sicken());
    setup.wait_closed("backend_down", 600.0);
    let mut took = None;
    wait_until("the journal has the end of the last", secs(10), || {
        let events = setup.tembuku.events();
        let down = events.iter().find(|event| event["to"] == "down");
        took = down.and_then(|event| event["last_session_closed_seconds"].as_f64());
        took.is_some()
    });
    // 200 at once, and the others at 2,000 a second.
    let took = took.unwrap();
    assert!((0.195..5.0).contains(&took), "{took}");
}

/// Clients come without a pause while a backend goes and comes: whenever it is down, all sessions
/// on it end, those that were just being connected among them.
#[test]
fn no_session_starts_on_a_backend_marked_down() {
    let mut setup = setup(
        &["max_connections = 400", ""],
        "on_down = \"close\"\nbalance = \"first\"",
    );
    let (stop, served) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (front, stop, served) = (setup.front, Arc::clone(&stop), Arc::clone(&served));
            std::thread::spawn(move || {
                let mut held = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    if held.len() > 40 {
                        held.clear();
                    }
                    held.extend(net::connect(front));
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let backend = setup.nodes[0].data.addr.to_string();
    for _ in 0..5 {
        let before = served.load(Ordering::Relaxed);
        wait_until("clients come", secs(10), || {
            served.load(Ordering::Relaxed) > before + 100
        });
        setup.take_down(0);
        setup.tembuku.wait_metric(
            "backend_active_connections",
            &[("backend", &backend)],
            |n| n == 0.0,
        );
        setup.bring_up(0);
    }
    stop.store(true, Ordering::Relaxed);
    clients
        .into_iter()
        .for_each(|client| client.join().unwrap());
}

#[test]
fn what_comes_back_starts_slowly() {
    let mut setup = setup(&["slow_start = \"30s\"", ""], "");
    let why = |setup: &Nodes| setup.backend(0)["why"].as_str().unwrap().to_owned();
    assert_eq!(why(&setup), "", "not at the start");
    setup.take_down(0);
    let expected = "its check reports: refused: connecting: Connection refused";
    assert_eq!(why(&setup), expected);
    setup.bring_up(0);
    assert!(why(&setup).starts_with("slow start: "), "{}", why(&setup));
    let names = ask_many(setup.front, 20);
    assert!(
        names.iter().filter(|name| *name == "b1").count() <= 5,
        "{names:?}"
    );
}

/// Nothing is asked any more, and no connection of a check stays behind.
#[test]
fn checks_end_with_the_process() {
    let mut setup = setup(&[""], "");
    setup.wait_state(0, "up");
    let began = Instant::now();
    assert!(setup.tembuku.terminate().success());
    assert!(began.elapsed() < secs(5));
    let mut left = net::connect(setup.nodes[0].health().addr).unwrap();
    assert!(left.write_all(b"x").is_ok());
    wait_until("only this connection is left", secs(5), || {
        setup.nodes[0].health().live() == 1
    });
}

/// The addresses of a name are checked each for itself, and those that come later, too.
#[test]
fn checks_follow_the_resolver() {
    let Some(place) = place() else {
        return programs::again_in_own_place("checks_sessions::checks_follow_the_resolver");
    };
    let port = ports::free_port();
    let on = |name, n| Server::named_on(name, &[SocketAddr::from(([127, 0, 7, n], port))]);
    let _first = on("b1", 1);
    place.set_hosts("127.0.7.1 backend.test");
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [\"backend.test:{port}\"]\nresolve_interval = \"100ms\"\n\
         [upstreams.u.check]\nkind = \"tcp\"\ninterval = \"100ms\"\n"
    ));
    let results = |result| tembuku.metric("check_results_total", &[("result", result)]);
    assert_eq!(ask(front).unwrap(), "b1");
    // One more, where no process listens: a check finds out before it gets sessions for long.
    place.set_hosts("127.0.7.1 backend.test\n127.0.7.2 backend.test");
    wait_until("the new address is checked", secs(10), || {
        results("refused") >= 3.0
    });
    assert_eq!(ask_many(front, 10), vec!["b1"; 10]);
    let _second = on("b2", 2);
    wait_until("it is used", secs(10), || ask(front).unwrap() == "b2");
    // The first one leaves: it is not asked any more.
    place.set_hosts("127.0.7.2 backend.test");
    wait_until("the old address is forgotten", secs(10), || {
        ask_many(front, 5) == vec!["b2"; 5]
    });
}

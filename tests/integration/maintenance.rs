//! Maintenance by the command line: servers by their address, limits for their sessions, and
//! waiting.

use crate::harness::{
    bounded, millis,
    net::{self, End, ask, echo},
    ports,
    proc::{self, Proc},
    programs::{self, place},
    secs,
    server::{Server, ask_many},
    tembuku::{Tembuku, binary},
    wait_until,
};
use serde_json::Value;
use std::{net::SocketAddr, process::Command, time::Instant};

/// What a command complained of that did nothing.
#[track_caller]
fn fail(tembuku: &Tembuku, arguments: &[&str]) -> String {
    let output = tembuku.command(arguments);
    assert_eq!(output.status.code(), Some(1), "{}", proc::text(&output));
    String::from_utf8(output.stderr).unwrap()
}

fn backend(tembuku: &Tembuku, upstream: &str, address: &str) -> Value {
    let status = tembuku.status();
    let find = |all: &Value, key: &str, name: &str| {
        let mut all = all.as_array().unwrap().iter();
        all.find(|one| one[key] == name).unwrap().clone()
    };
    let upstream = find(&status["upstreams"], "name", upstream);
    find(&upstream["backends"], "address", address)
}

#[test]
fn an_address_acts_on_every_upstream_that_has_it() {
    let (one, other) = (Server::named("one"), Server::named("other"));
    let (read, write) = (ports::free_addr(), ports::free_addr());
    let tembuku = Tembuku::start(&format!(
        "[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
         [listeners.read]\nbind = \"{read}\"\nupstream = \"read\"\n\
         [listeners.write]\nbind = \"{write}\"\nupstream = \"write\"\n\
         [upstreams.read]\nbackends = [\"{one}\", \"{other}\"]\n\
         [upstreams.write]\nbackends = [\"{other}\", \"{one}\"]\n\
         [upstreams.spare]\nbackends = [\"{other}\", \"unix:/run/spare.sock\"]\n",
        one = one.addr,
        other = other.addr
    ));
    let (one, other) = (one.addr.to_string(), other.addr.to_string());
    assert_eq!(
        tembuku.succeed(&["drain", &one]),
        format!("read/{one}: up -> drained, 0 sessions\nwrite/{one}: up -> drained, 0 sessions\n")
    );
    for front in [read, write] {
        assert_eq!(ask_many(front, 6), vec!["other"; 6]);
    }
    // Beside a backend of one upstream, which is the same by then.
    let target = format!("write/{one}");
    assert_eq!(
        tembuku.succeed(&["maint", &one, &target, "unix:/run/spare.sock"]),
        format!(
            "read/{one}: drained -> maintenance, 0 sessions\n\
             write/{one}: drained -> maintenance, 0 sessions\n\
             {target}: maintenance already, 0 sessions\n\
             spare/unix:/run/spare.sock: up -> maintenance, 0 sessions\n"
        )
    );
    let printed = tembuku.succeed(&["ready", &one]);
    assert_eq!(printed.matches("maintenance -> up").count(), 2, "{printed}");

    // An address that is not there leads to those that are, and an upstream to its backends.
    let near = format!("{one}9");
    let printed = fail(&tembuku, &["drain", &near]);
    assert!(
        printed.contains(&format!("no upstream has a backend \"{near}\"")),
        "{printed}"
    );
    assert!(printed.contains("hint: did you mean"), "{printed}");
    let printed = fail(&tembuku, &["drain", "db.example:1"]);
    assert!(
        printed.contains("hint: there is ") && printed.contains(&other),
        "{printed}"
    );
    let printed = fail(&tembuku, &["drain", "write"]);
    assert!(
        printed.contains(&format!(
            "write is an upstream: name a backend, as write/{other}"
        )),
        "{printed}"
    );
    // One name that is not there keeps the command from acting on the others.
    let printed = fail(&tembuku, &["drain", "write", &other]);
    assert!(
        printed.contains(&format!("hint: write write/{other}\nnothing was changed")),
        "{printed}"
    );
    let printed = fail(&tembuku, &["maint", &format!("read/{other}"), &near]);
    assert!(printed.contains("no upstream has a backend"), "{printed}");
    for state in ["drained", "maintenance"] {
        let is_in_state = |upstream| backend(&tembuku, upstream, &other)["state"] == state;
        assert!(
            !["read", "write", "spare"].into_iter().any(is_in_state),
            "nothing was changed"
        );
    }
}

/// Those that it has at the time; the other upstream keeps the one that both have.
#[test]
fn an_asterisk_acts_on_every_backend_of_the_upstream() {
    let (one, other) = (Server::named("one"), Server::named("other"));
    let (read, write) = (ports::free_addr(), ports::free_addr());
    let tembuku = Tembuku::start(&format!(
        "[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
         [listeners.read]\nbind = \"{read}\"\nupstream = \"read\"\n\
         [listeners.write]\nbind = \"{write}\"\nupstream = \"write\"\n\
         [upstreams.read]\nbackends = [\"{one}\", \"{other}\"]\n\
         [upstreams.write]\nbackends = [\"{one}\"]\n",
        one = one.addr,
        other = other.addr
    ));
    let output = tembuku.command(&["drain", "read/*", "--wait"]);
    assert_eq!(output.status.code(), Some(0), "{}", proc::text(&output));
    let [one, other] = [one.addr, other.addr];
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        format!("read/{one}: up -> drained, 0 sessions\nread/{other}: up -> drained, 0 sessions\n")
    );
    // Once, with the last of them.
    let complaints = String::from_utf8(output.stderr).unwrap();
    let warning = "warning: upstream read has no backend left that takes sessions";
    assert_eq!(complaints.matches(warning).count(), 1, "{complaints}");
    assert!(ask(read).is_err());
    assert_eq!(ask(write).unwrap(), "one");
    // Beside another argument, each is looked up first.
    let printed = fail(&tembuku, &["maint", "read/*", "wrote/*"]);
    for part in ["there is no upstream \"wrote\"", "nothing was changed"] {
        assert!(printed.contains(part), "{printed}");
    }
    let printed = tembuku.succeed(&["ready", "read/*", "write/*"]);
    assert_eq!(printed.matches("drained -> up").count(), 2, "{printed}");
    assert!(
        printed.contains(&format!("write/{one}: up already")),
        "{printed}"
    );
    assert_eq!(ask_many(read, 2).len(), 2);
    let printed = fail(&tembuku, &["drain", "read"]);
    assert!(printed.contains("`tembuku drain 'read/*'`"), "{printed}");
}

#[test]
fn an_address_of_a_name_is_the_whole_backend_or_refused() {
    let Some(place) = place() else {
        return programs::again_in_own_place(
            "maintenance::an_address_of_a_name_is_the_whole_backend_or_refused",
        );
    };
    let port = ports::free_port();
    let on = |name, n| Server::named_on(name, &[SocketAddr::from(([127, 0, 8, n], port))]);
    let _servers = [on("b1", 1), on("b2", 2)];
    place.set_hosts("127.0.8.1 one.test\n127.0.8.1 both.test\n127.0.8.2 both.test\n");
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"one\"\n\
         [upstreams.one]\nbackends = [\"one.test:{port}\", \"127.0.8.2:{port}\"]\n\
         [upstreams.two]\nbackends = [\"both.test:{port}\"]\n\
         resolve_interval = \"100ms\"\n"
    ));
    let first = format!("127.0.8.1:{port}");
    let printed = fail(&tembuku, &["drain", &first]);
    for part in [
        &format!("\"{first}\" is one of 2 addresses of the backend \"both.test:{port}\""),
        "nothing was changed",
        &format!("hint: a backend is set as a whole: two/both.test:{port}"),
    ] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    assert_eq!(
        backend(&tembuku, "one", &format!("one.test:{port}"))["state"],
        "up"
    );
    place.set_hosts("127.0.8.1 one.test\n127.0.8.1 both.test\n");
    let text = format!("both.test:{port}");
    wait_until("the name means one", secs(10), || {
        backend(&tembuku, "two", &text)["resolved"]
            .as_array()
            .unwrap()
            .len()
            == 1
    });
    assert_eq!(
        tembuku.succeed(&["drain", &first]),
        format!(
            "one/one.test:{port}: up -> drained, 0 sessions\n\
             two/{text}: up -> drained, 0 sessions\n"
        )
    );
    assert_eq!(ask_many(front, 4), vec!["b2"; 4]);
    assert_eq!(
        tembuku.succeed(&["ready", &text]),
        format!("two/{text}: drained -> up, 0 sessions\n")
    );
}

/// Two backends and `keys` of their upstream `u`.
fn two(keys: &str) -> (Tembuku, SocketAddr, [Server; 2]) {
    let servers = [Server::named("b1"), Server::named("b2")];
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[log]\nformat = \"json\"\n[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
         [listeners.front]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [\"{}\", \"{}\"]\n{keys}\n",
        servers[0].addr, servers[1].addr
    ));
    (tembuku, front, servers)
}

#[test]
fn close_after_limits_sessions_that_on_drain_would_keep() {
    let (tembuku, front, servers) = two("balance = \"first\"");
    let target = format!("u/{}", servers[0].addr);
    let (mut first, _) = net::session(front).unwrap();
    let began = Instant::now();
    tembuku.succeed(&["drain", &target, "--close-after", "400ms"]);
    assert_eq!(net::read_all(&mut first).1, End::Reset);
    let took = began.elapsed();
    assert!(bounded(took, millis(400), secs(4)), "{took:?}");
    let closed = [("reason", "backend_drained")];
    tembuku.wait_metric("sessions_closed_total", &closed, |n| n == 1.0);

    // The last order holds: an hour instead of a drain's nothing, then no time at all.
    tembuku.succeed(&["ready", &target]);
    let (mut second, name) = net::session(front).unwrap();
    assert_eq!(name, "b1");
    tembuku.succeed(&["drain", &target]);
    let printed = tembuku.succeed(&["drain", &target, "--close-after", "1h"]);
    assert_eq!(printed, format!("{target}: drained already, 1 session\n"));
    echo(&mut second, "still here").unwrap();
    // An order that changes nothing tells when the one before it ends them.
    let output = tembuku.command(&["drain", &target]);
    let printed = proc::text(&output);
    assert!(
        printed.contains("1 session on it, terminated after 59m"),
        "{printed}"
    );
    tembuku.succeed(&["drain", &target, "--close-after", "0s", "--wait"]);
    assert_eq!(net::read_all(&mut second).1, End::Reset);
    let logged = tembuku.log();
    let orders = logged
        .iter()
        .filter(|line| line["message"] == "sessions of the backend are to end");
    assert_eq!(orders.count(), 3, "{logged:?}");
}

#[test]
fn close_after_allows_more_time_than_on_drain_and_ready_cancels_it() {
    let (tembuku, front, servers) = two("balance = \"first\"\non_drain = \"close\"");
    let address = servers[0].addr.to_string();
    let (mut held, _) = net::session(front).unwrap();
    tembuku.succeed(&["maint", &address, "--close-after", "1500ms"]);
    let (_other, name) = net::session(front).unwrap();
    assert_eq!(name, "b2");
    echo(&mut held, "not at once").unwrap();
    tembuku.succeed(&["ready", &address]);
    let began = Instant::now();
    wait_until("its time has passed", secs(10), || {
        began.elapsed() > millis(1_700)
    });
    echo(&mut held, "nor later").unwrap();
    assert_eq!(
        tembuku.metric("sessions_closed_total", &[("reason", "backend_drained")]),
        0.0
    );
    for (value, hint) in [("5M", "unit"), ("30", "30s")] {
        let output = tembuku.command(&["drain", &address, "--close-after", value]);
        let printed = proc::text(&output);
        assert_eq!(output.status.code(), Some(2), "{printed}");
        assert!(printed.contains(hint), "{printed}");
    }
    let output = tembuku.command(&["ready", &address, "--close-after", "1s"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn ready_waits_for_the_check() {
    let health = ports::free_addr();
    let check = format!(
        "[upstreams.u.check]\nkind = \"tcp\"\ninterval = \"100ms\"\naddress = \"{health}\"\n"
    );
    let accept = || {
        Server::on(&[health], |mut stream| {
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        })
    };
    let well = accept();
    let (tembuku, front, servers) = two(&check);
    let target = format!("u/{}", servers[0].addr);
    wait_until("both are up", secs(10), || ask(front).is_ok());
    tembuku.succeed(&["maint", &target]);
    drop(well);
    let printed = fail(
        &tembuku,
        &["ready", &target, "--wait", "--timeout", "500ms"],
    );
    assert!(
        printed.contains(&format!(
            "error: {target}: still down, its check reports: refused"
        )),
        "{printed}"
    );

    let socket = tembuku.dir.file("admin.sock");
    let mut waiting = Command::new(binary());
    waiting.args([
        "ready",
        &target,
        "--wait",
        "--socket",
        socket.to_str().unwrap(),
    ]);
    let mut waiting = Proc::start("ready", tembuku.dir.path(), waiting);
    wait_until("it reports what is pending", secs(10), || {
        waiting
            .stderr()
            .contains("still down, its check reports: refused")
    });
    let _well = accept();
    let status = waiting.wait(secs(10)).expect("an end");
    assert!(status.success(), "{}", waiting.stderr());
    let printed = waiting.stdout();
    let lines = format!("{target}: no operator setting, down, 0 sessions\n{target}: up\n");
    assert_eq!(printed, lines);
    assert_eq!(
        backend(&tembuku, "u", &servers[0].addr.to_string())["awaits_check"],
        false
    );
}

/// Its check goes on while it is drained, and asks for no role.
#[test]
fn after_a_drain_a_backend_whose_check_passes_is_up_at_once() {
    let check = "[upstreams.u.check]\nkind = \"tcp\"\ninterval = \"1h\"\n";
    let (tembuku, front, servers) = two(check);
    let target = format!("u/{}", servers[0].addr);
    wait_until("both are up", secs(10), || ask(front).is_ok());
    tembuku.succeed(&["drain", &target]);
    let printed = tembuku.succeed(&["ready", &target, "--wait"]);
    assert_eq!(printed, format!("{target}: drained -> up, 0 sessions\n"));
    let events = tembuku.events();
    let to: Vec<_> = events.iter().map(|event| &event["to"]).collect();
    assert_eq!(to, ["drained", "up"]);
}

#[test]
fn ready_without_a_check_does_not_wait() {
    let (tembuku, front, servers) = two("");
    let address = servers[0].addr.to_string();
    tembuku.succeed(&["maint", &address]);
    let began = Instant::now();
    let printed = tembuku.succeed(&["ready", &address, "--wait", "--timeout", "50s"]);
    let line = format!("u/{address}: maintenance -> up, 0 sessions\n");
    assert_eq!(printed, line, "once");
    assert!(began.elapsed() < secs(10));
    ask(front).unwrap();
}

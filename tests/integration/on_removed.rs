//! What becomes of the sessions of a backend that is no longer named, and where they are shown.

use crate::harness::{
    net::{self, End, echo},
    ports,
    programs::{self, place},
    secs,
    server::{Server, ask_many, named},
    tembuku::{Tembuku, cli},
    udp, wait_until,
};
use serde_json::Value;
use std::net::{SocketAddr, TcpStream};

/// Two backends, of which the first takes every session.
struct Setup {
    tembuku: Tembuku,
    front: SocketAddr,
    servers: Vec<Server>,
}

fn setup(keys: &str) -> Setup {
    let (servers, front) = (named(2), ports::free_addr());
    let tembuku = Tembuku::start(&config(front, keys, &[servers[0].addr, servers[1].addr]));
    Setup {
        tembuku,
        front,
        servers,
    }
}

fn config(front: SocketAddr, keys: &str, backends: &[SocketAddr]) -> String {
    format!(
        "{}[listeners.front]\nbind = \"{front}\"\nupstream = \"back\"\n\
         [upstreams.back]\nbalance = \"first\"\n{keys}\nbackends = {}\n",
        base(),
        udp::list(backends)
    )
}

fn base() -> String {
    "[process]\nworkers = 2\n[admin]\nsocket = \"{dir}/admin.sock\"\n".to_owned()
}

impl Setup {
    /// Reloads with these of the backends.
    #[track_caller]
    fn set_backends(&self, keys: &str, backends: &[usize]) {
        let backends: Vec<_> = backends.iter().map(|n| self.servers[*n].addr).collect();
        self.tembuku.reload(&config(self.front, keys, &backends));
    }

    /// The sessions that a reload would end with this object.
    fn forecast(&self, object: &str, name: &str) -> u64 {
        let socket = self.tembuku.dir.file("admin.sock");
        let socket = socket.to_str().unwrap();
        let output = cli(&["reload", "--dry-run", "--json", "--socket", socket]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let mut changes = report["changes"].as_array().unwrap().iter();
        let change = changes.find(|c| c["object"] == object && c["name"] == name);
        change.unwrap()["ended_sessions"].as_u64().unwrap()
    }

    fn sessions(&self, count: usize) -> Vec<TcpStream> {
        let session = |_| net::session(self.front).unwrap();
        (0..count)
            .map(session)
            .map(|(stream, name)| {
                assert_eq!(name, "b1");
                stream
            })
            .collect()
    }

    /// The state and the sessions of a backend; `None`: it is not shown.
    fn shown(&self, n: usize) -> Option<(String, u64)> {
        let status = self.tembuku.status();
        let upstreams = status["upstreams"].as_array().unwrap().iter();
        let mut backends = upstreams.flat_map(|u| u["backends"].as_array().unwrap());
        let address = self.servers[n].addr.to_string();
        let backend = backends.find(|b| b["address"] == *address)?;
        let state = backend["state"].as_str().unwrap().to_owned();
        Some((state, backend["connections"].as_u64().unwrap()))
    }

    #[track_caller]
    fn wait_shown(&self, n: usize, state: Option<(&str, u64)>) {
        let expected = state.map(|(state, sessions)| (state.to_owned(), sessions));
        let what = format!("backend {n} is shown as {state:?}");
        wait_until(&what, secs(10), || self.shown(n) == expected);
    }
}

#[track_caller]
fn assert_reset(sessions: &mut [TcpStream]) {
    for session in sessions {
        assert_eq!(net::read_all(session).1, End::Reset);
    }
}

#[test]
fn a_removed_backend_is_shown_until_its_last_session_has_ended() {
    let setup = setup("");
    let mut sessions = setup.sessions(2);
    setup.set_backends("", &[1]);
    setup.wait_shown(0, Some(("removed", 2)));
    for session in &mut sessions {
        echo(session, "still here").unwrap();
    }
    assert_eq!(ask_many(setup.front, 2), ["b2", "b2"]);
    let text = setup.tembuku.get("/").body;
    assert!(text.contains("1 of 1 available"), "{text}");
    let address = setup.servers[0].addr.to_string();
    let removed = [("backend", address.as_str()), ("state", "removed")];
    assert_eq!(setup.tembuku.metric("backend_state", &removed), 1.0);
    // Added again, it goes on counting where it was.
    setup.set_backends("", &[0, 1]);
    setup.wait_shown(0, Some(("up", 2)));
    let counted = [("backend", address.as_str())];
    let total = || setup.tembuku.metric("backend_connections_total", &counted);
    assert_eq!(total(), 2.0);
    setup.set_backends("", &[1]);
    sessions.pop();
    setup.wait_shown(0, Some(("removed", 1)));
    drop(sessions);
    setup.wait_shown(0, None);
}

#[test]
fn sessions_of_a_removed_backend_are_closed_where_that_is_wanted() {
    let setup = setup("on_removed = \"close\"");
    let mut sessions = setup.sessions(3);
    setup.set_backends("on_removed = \"close\"", &[1]);
    assert_reset(&mut sessions);
    setup.tembuku.wait_closed("backend_removed", 3.0);
    setup.wait_shown(0, None);
    assert_eq!(ask_many(setup.front, 1), ["b2"]);
}

/// The plan that removes a backend decides, not the one that had it.
#[test]
fn a_backend_that_is_back_in_time_keeps_its_sessions() {
    let setup = setup("");
    let mut sessions = setup.sessions(1);
    setup.set_backends("on_removed = { close_after = \"1500ms\" }", &[1]);
    setup.set_backends("on_removed = { close_after = \"1500ms\" }", &[0, 1]);
    let events = || setup.tembuku.metric("sessions_closed_total", &[]);
    // A second removal, whose time passes.
    let mut others = setup.sessions(1);
    let began = std::time::Instant::now();
    wait_until("the first time would have passed", secs(10), || {
        began.elapsed() > secs(2)
    });
    echo(&mut sessions[0], "still here").unwrap();
    assert_eq!(events(), 0.0);
    setup.set_backends("on_removed = { close_after = \"100ms\" }", &[1]);
    assert_reset(&mut sessions);
    assert_reset(&mut others);
    setup.tembuku.wait_closed("backend_removed", 2.0);
}

/// With its upstream and its listener.
#[test]
fn sessions_of_a_removed_upstream_end_by_its_last_plan() {
    for (keys, closes) in [("", false), ("on_removed = \"close\"", true)] {
        let setup = setup(keys);
        let mut sessions = setup.sessions(2);
        let other = Server::named("other");
        let addr = ports::free_addr();
        let without = format!(
            "{}[listeners.other]\nbind = \"{addr}\"\nupstream = \"other\"\n\
             [upstreams.other]\nbackends = [\"{}\"]\n",
            base(),
            other.addr
        );
        setup.tembuku.reload(&without);
        assert_eq!(ask_many(addr, 1), ["other"]);
        if closes {
            assert_reset(&mut sessions);
            setup.wait_shown(0, None);
            continue;
        }
        setup.wait_shown(0, Some(("removed", 2)));
        setup.wait_shown(1, None);
        echo(&mut sessions[0], "still here").unwrap();
        // Back with both backends, it has the counters of before.
        setup.set_backends(keys, &[0, 1]);
        setup.wait_shown(0, Some(("up", 2)));
        let address = setup.servers[0].addr.to_string();
        let counted = [("backend", address.as_str())];
        let total = setup.tembuku.metric("backend_connections_total", &counted);
        assert_eq!(total, 2.0);
        setup.tembuku.reload(&without);
        drop(sessions);
        setup.wait_shown(0, None);
        let series = setup.tembuku.metric("backend_connections_total", &counted);
        assert_eq!(series, 0.0, "its series are gone");
    }
}

/// Its upstream stays.
#[test]
fn sessions_of_a_removed_listener_end_by_its_upstream() {
    for (keys, closes) in [("", false), ("on_removed = \"close\"", true)] {
        let setup = setup(keys);
        let mut sessions = setup.sessions(2);
        let both = config(setup.front, keys, &[setup.servers[0].addr]);
        let addr = ports::free_addr();
        let other = format!("[listeners.other]\nbind = \"{addr}\"\nupstream = \"back\"\n");
        let text = format!(
            "[listeners.front]\nbind = \"{}\"\nupstream = \"back\"\n",
            setup.front
        );
        let without = both.replace(&text, &other);
        assert_ne!(both, without);
        setup.tembuku.write(&without);
        assert_eq!(
            setup.forecast("listener", "front"),
            if closes { 2 } else { 0 }
        );
        setup.tembuku.reload(&without);
        assert_eq!(ask_many(addr, 1), ["b1"]);
        let front = [("listener", "front")];
        let count = |name: &str| setup.tembuku.metric(name, &front);
        let shown = || setup.tembuku.get("/").body.contains("front (removed)");
        if closes {
            assert_reset(&mut sessions);
            let closed = || setup.tembuku.get("/metrics").body;
            wait_until("it is not shown any more", secs(10), || {
                !closed().contains("listener=\"front\"") && !shown()
            });
            continue;
        }
        assert!(shown());
        echo(&mut sessions[0], "still here").unwrap();
        assert_eq!(count("listener_active_connections"), 2.0);
        // Back, it has the counters of before.
        setup.tembuku.reload(&both);
        assert!(!shown());
        sessions.extend(setup.sessions(1));
        assert_eq!(count("listener_connections_total"), 3.0);
    }
}

#[test]
fn flows_move_from_a_removed_backend_or_stay_or_end() {
    for (keys, after) in [
        ("", "b2 after"),
        ("on_removed = \"move\"", "b2 after"),
        ("on_removed = \"keep\"", "b1 after"),
        ("on_removed = \"close\"", "b2 after"),
    ] {
        let servers = udp::named(2);
        let keys = format!("balance = \"first\"\n{keys}");
        let (front, tembuku) = udp::serve("", &keys, &servers);
        let client = udp::client(front);
        assert_eq!(udp::ask(&client, "before"), "b1 before");
        tembuku.reload(&udp::config(front, "", &keys, &[servers[1].addr]));
        if keys.contains("close") {
            tembuku.wait_closed("backend_removed", 1.0);
        }
        assert_eq!(udp::ask(&client, "after"), after, "{keys}");
        let flows = tembuku.metric("listener_connections_total", &[]);
        assert_eq!(flows, if after == "b1 after" { 1.0 } else { 2.0 }, "{keys}");
    }
}

#[test]
fn sessions_of_an_address_that_left_its_name_end_alike() {
    let Some(place) = place() else {
        return programs::again_in_own_place(
            "on_removed::sessions_of_an_address_that_left_its_name_end_alike",
        );
    };
    let port = ports::free_port();
    let on = |name, n| Server::named_on(name, &[SocketAddr::from(([127, 0, 8, n], port))]);
    let _servers = [on("b1", 1), on("b2", 2)];
    place.set_hosts("127.0.8.1 backend.test\n127.0.8.2 backend.test\n");
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [\"backend.test:{port}\"]\n\
         resolve_interval = \"100ms\"\non_removed = \"close\"\n"
    ));
    let mut held: Vec<_> = (0..2).map(|_| net::session(front).unwrap()).collect();
    held.sort_by(|(_, one), (_, other)| one.cmp(other));
    place.set_hosts("127.0.8.2 backend.test\n");
    let [(gone, _), (stays, name)] = &mut held[..] else {
        panic!("two sessions");
    };
    assert_eq!(net::read_all(gone).1, End::Reset);
    echo(stays, name).unwrap();
    tembuku.wait_closed("backend_removed", 1.0);
}

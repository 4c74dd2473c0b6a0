//! What a changed setting does to clients, one after the other in a process that goes on.

use super::{Setup, list, of, setup};
use crate::harness::{
    net::{self, assert_closed_at_once, assert_ends_now},
    poll, ports, secs,
    server::Server,
    wait_until,
};
use std::io::Write as _;

/// Puts these keys into `[listeners.front]`, and these into `[upstreams.back]`, beside those that
/// every test has.
#[track_caller]
fn set(setup: &Setup, original: &str, listener: &str, upstream: &str) {
    let config = original.replace(
        "upstream = \"back\"\n",
        &format!("upstream = \"back\"\n{listener}\n"),
    );
    setup.write(&format!("{config}{upstream}\n"));
    setup.reload();
}

#[test]
fn settings_of_a_listener_apply_to_new_sessions() {
    let setup = setup();
    let original = setup.config();
    let set = |keys: &str| set(&setup, &original, keys, "");
    let (mut held, _) = net::session(setup.front).unwrap();
    set("access = [\"deny all\"]");
    assert_closed_at_once(setup.front);
    set("max_connections = 1");
    // The one that there is counts.
    assert_closed_at_once(setup.front);
    net::echo(&mut held, "still here").unwrap();
    set("idle_timeout = \"200ms\"");
    let (mut idle, _) = net::session(setup.front).unwrap();
    assert_ends_now(&mut idle);
    net::echo(&mut held, "without a limit").unwrap();
    set("accept_proxy = { trust = [\"127.0.0.0/8\"] }\n\
         access = [\"allow 192.0.2.0/24\", \"deny all\"]");
    let mut named = net::connect(setup.front).unwrap();
    named
        .write_all(b"PROXY TCP4 192.0.2.7 192.0.2.8 1 2\r\n")
        .unwrap();
    assert!(net::read_line(&mut named).unwrap().starts_with('b'));
    let mut other = net::connect(setup.front).unwrap();
    other
        .write_all(b"PROXY TCP4 198.51.100.7 192.0.2.8 1 2\r\n")
        .unwrap();
    assert_ends_now(&mut other);
    set("");
    assert_eq!(setup.picks(4), of(&[("b1", 2), ("b2", 2)]));
}

#[test]
fn settings_of_an_upstream_apply_to_new_sessions() {
    let setup = setup();
    let original = setup.config();
    let set = |keys: &str| set(&setup, &original, "", keys);
    set("balance = \"first\"");
    assert_eq!(setup.picks(4), of(&[("b1", 4)]));
    set("balance = \"ip_hash\"");
    assert_eq!(setup.picks(4).len(), 1);
    set("send_proxy = \"v1\"");
    // The servers send back what they receive.
    let (mut stream, _) = net::session(setup.front).unwrap();
    let header = net::read_line(&mut stream).unwrap();
    assert!(header.starts_with("PROXY TCP4 127.0.0.1 "), "{header}");
    drop(stream);
    let dead = ports::free_addr();
    let [one, two] = [0, 1].map(|n| setup.servers[n].addr);
    let with = |backends: &str, more: &str| {
        let (before, _) = original.split_once("backends = ").unwrap();
        setup.write(&format!("{before}backends = [{backends}]\n{more}\n"));
        setup.reload();
    };
    with(
        &format!("\"{dead}\", \"{one}\""),
        "check = { kind = \"tcp\", interval = \"100ms\" }",
    );
    wait_until("the check takes it out", secs(10), || {
        setup.status()["upstreams"][0]["backends"][0]["state"] == "down"
    });
    with(&format!("\"{dead}\", \"{one}\""), "");
    assert_eq!(setup.status()["upstreams"][0]["backends"][0]["state"], "up");
    with(
        &format!("{{ address = \"{one}\", down = true }}, \"{two}\""),
        "",
    );
    assert_eq!(setup.picks(2), of(&[("b2", 2)]));
    with(
        &format!("{{ address = \"{one}\", backup = true }}, \"{two}\""),
        "",
    );
    assert_eq!(setup.picks(2), of(&[("b2", 2)]));
    with(
        &format!(
            "{{ address = \"{one}\", max_connections = 1 }}, {{ address = \"{two}\", \
             backup = true }}"
        ),
        "",
    );
    // Earlier sessions would count.
    setup.tembuku.wait_idle();
    let (_first, name) = net::session(setup.front).unwrap();
    assert_eq!([name, net::ask(setup.front).unwrap()], ["b1", "b2"]);
}

#[test]
fn settings_of_the_process_apply() {
    let setup = setup();
    let (_held, _) = net::session(setup.front).unwrap();
    setup.replace("workers = 2", "workers = 2\nmax_connections = 1");
    setup.reload();
    assert_closed_at_once(setup.front);
    setup.replace("max_connections = 1", "max_connections = 2");
    setup.reload();
    let (_second, _) = net::session(setup.front).unwrap();
    // A host that is a name of this server from now on.
    let ask = |host: &str| {
        let mut stream = net::connect(setup.tembuku.admin).unwrap();
        let request = format!("GET /livez HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        net::read_line(&mut stream).unwrap()
    };
    assert!(ask("lb.example").contains(" 421 "));
    setup.replace("[admin]\n", "[admin]\nhosts = [\"lb.example\"]\n");
    setup.reload();
    assert!(ask("lb.example").contains(" 200 "));
}

#[test]
fn a_listener_changes_its_upstream_and_its_addresses() {
    let setup = setup();
    let other = Server::named("other");
    let added = ports::free_addr();
    let original = setup.config();
    setup.write(&format!(
        "{}[upstreams.other]\nbackends = {}\n",
        original
            .replace("upstream = \"back\"", "upstream = \"other\"")
            .replace(
                &format!("\"{}\"", setup.front),
                &format!("[\"{}\", \"{added}\"]", setup.front)
            ),
        list(std::slice::from_ref(&other))
    ));
    setup.reload();
    for front in [setup.front, added] {
        assert_eq!(net::ask(front).unwrap(), "other");
    }
    setup.write(&original);
    setup.reload();
    assert_eq!(setup.picks(2), of(&[("b1", 1), ("b2", 1)]));
    let refused = poll(secs(10), || net::connect(added).is_err().then_some(()));
    assert!(refused.is_some(), "{added} is open still");
}

//! Backends from Kubernetes and Consul, which Debian does not have: by servers that speak as they
//! do.

use crate::{
    discover::Discovering,
    harness::{
        millis,
        net::{ask, echo, session},
        registry::{Consul, DRAINING, Kubernetes, NOT_READY, READY},
        secs,
        server::{Server, named},
        temp::TempDir,
        wait_until,
    },
};
use std::{
    fs,
    net::SocketAddr,
    thread::sleep,
    time::{Duration, Instant},
};

/// With one port on addresses of their own.
fn pods(count: u8) -> (Vec<Server>, Vec<SocketAddr>) {
    let port = crate::harness::ports::free_port();
    let addrs: Vec<SocketAddr> = (1..=count)
        .map(|n| SocketAddr::from(([127, 0, 9, n], port)))
        .collect();
    let servers = (1..)
        .zip(&addrs)
        .map(|(n, addr)| Server::named_on(&format!("b{n}"), &[*addr]));
    (servers.collect(), addrs)
}

fn of_kubernetes(url: &str, token: &std::path::Path) -> String {
    format!(
        "[upstreams.back.discover]\nkind = \"kubernetes\"\nservice = \"prod/db\"\nport = \"sql\"\n\
         url = \"{url}\"\n\
         token_file = \"{}\"\ntimeout = \"1s\"\nmax_removed = 100\nempty_after = \"1s\"\n",
        token.display()
    )
}

#[test]
fn slices_of_kubernetes() {
    let ((_servers, addrs), dir) = (pods(3), TempDir::new());
    let api = Kubernetes::start("first");
    let token = dir.write("token", "first\n");
    api.set("db-a", &[(addrs[0], READY)]);
    api.set("db-b", &[(addrs[1], READY), (addrs[2], NOT_READY)]);
    let running = Discovering::start(&of_kubernetes(&api.url(), &token));
    running.wait_backends(&addrs[..2]);

    // One that drains keeps its session and gets no other.
    let (mut client, name) = loop {
        let (client, name) = session(running.front).unwrap();
        if name == "b2" {
            break (client, name);
        }
    };
    api.set("db-b", &[(addrs[1], DRAINING), (addrs[2], READY)]);
    wait_until("it drains", secs(10), || {
        let states = running.backends();
        states.contains(&(addrs[1].to_string(), "drained".to_owned()))
    });
    let asked: Vec<String> = (0..6).map(|_| ask(running.front).unwrap()).collect();
    assert!(
        asked.contains(&"b3".to_owned()) && !asked.contains(&name),
        "{asked:?}"
    );
    echo(&mut client, "still here").unwrap();
    drop(client);

    // The stream breaks in the middle of an event, and something has happened before the next.
    api.cut();
    api.remove("db-a");
    running.wait_backends(&addrs[1..]);
    // The events of the time before are gone.
    api.set("db-b", &[(addrs[2], READY)]);
    api.compact();
    api.cut();
    running.wait_backends(&addrs[2..]);
    running.wait_answer();

    // Another token.
    api.set_token("second");
    api.cut();
    running.wait_error("status 401: Unauthorized");
    fs::write(&token, "second").unwrap();
    api.set("db-c", &[(addrs[0], READY)]);
    running.wait_backends(&[addrs[0], addrs[2]]);
    running.wait_answer();
    api.remove("db-b");
    api.remove("db-c");
    running.wait_backends(&[]);
    drop(api);
    running.wait_error("Connection refused");
}

#[test]
fn refusals_of_kubernetes_are_reported() {
    let ((_servers, addrs), dir) = (pods(1), TempDir::new());
    let api = Kubernetes::start("t");
    let token = dir.write("token", "t");
    api.set("db-a", &[(addrs[0], READY)]);
    let fixed = format!("backends = [\"{}\"]\n", addrs[0]);
    let keys = of_kubernetes(&api.url(), &token);
    let other = keys.replace("prod/db", "test/db");
    let running = Discovering::start(&format!("{fixed}{other}"));
    running.wait_error("a role with get, list and watch on endpointslices");
    running.reload(&format!("{fixed}{}", keys.replace("\"sql\"", "\"http\"")));
    running.wait_error("set `port` to one of");
    assert_eq!(ask(running.front).unwrap(), "b1");
}

#[test]
fn instances_of_consul() {
    let servers = named(3);
    let addrs: Vec<SocketAddr> = servers.iter().map(|server| server.addr).collect();
    let consul = Consul::start();
    consul.set(50, &[(addrs[0], "passing"), (addrs[1], "critical")]);
    let keys = format!(
        "[upstreams.back.discover]\nkind = \"consul\"\nurl = \"{}\"\nservice = \"db\"\n\
         max_removed = 100\n\
         empty_after = \"1s\"\n",
        consul.url()
    );
    let running = Discovering::start(&keys);
    running.wait_backends(&addrs[..1]);
    consul.set(51, &[(addrs[0], "passing"), (addrs[1], "passing")]);
    running.wait_backends(&addrs[..2]);
    // There is an election, and nothing in the answer.
    consul.set_leader(false);
    running.wait_error("the servers have no leader");
    sleep(millis(1500));
    running.wait_backends(&addrs[..2]);
    consul.set_leader(true);
    running.wait_answer();
    // Restored from an older copy.
    consul.set(7, &[(addrs[2], "warning")]);
    running.wait_backends(&addrs[2..]);
    consul.set(8, &[(addrs[1], "passing"), (addrs[2], "passing")]);
    running.wait_backends(&addrs[1..]);
    consul.set(9, &[(addrs[1], "critical"), (addrs[2], "critical")]);
    running.wait_backends(&[]);
    running.reload(&format!("{keys}use_health = false\n"));
    running.wait_backends(&addrs[1..]);
    drop(consul);
    running.wait_error("Connection refused");
}

/// The median of the times from a change to the first session at the new backend.
fn median(mut add: impl FnMut(), mut remove: impl FnMut(), running: &Discovering) -> Duration {
    let mut took: Vec<Duration> = (0..9)
        .map(|_| {
            add();
            let began = Instant::now();
            while ask(running.front).unwrap() != "b2" {}
            let took = began.elapsed();
            remove();
            wait_until("one is left", secs(10), || running.backends().len() == 1);
            // A change soon after another is put off.
            sleep(millis(250));
            took
        })
        .collect();
    took.sort();
    println!("from a change to a pick: {took:?}");
    took[4]
}

#[test]
fn changes_are_soon_in_picks() {
    let ((_servers, addrs), dir) = (pods(2), TempDir::new());
    let (one, two) = (addrs[0], addrs[1]);
    let api = Kubernetes::start("t");
    let token = dir.write("token", "t");
    api.set("db-a", &[(one, READY)]);
    let running = Discovering::start(&of_kubernetes(&api.url(), &token));
    running.wait_backends(&[one]);
    let both = || api.set("db-a", &[(one, READY), (two, READY)]);
    let took = median(both, || api.set("db-a", &[(one, READY)]), &running);
    assert!(took < millis(200), "kubernetes: {took:?}");

    let consul = Consul::start();
    consul.set(50, &[(one, "passing")]);
    let running = Discovering::start(&format!(
        "[upstreams.back.discover]\nkind = \"consul\"\nurl = \"{}\"\nservice = \"db\"\n\
         max_removed = 100\n",
        consul.url()
    ));
    running.wait_backends(&[one]);
    let index = std::cell::Cell::new(50);
    let next = || {
        index.set(index.get() + 1);
        index.get()
    };
    let both = || consul.set(next(), &[(one, "passing"), (two, "passing")]);
    let took = median(both, || consul.set(next(), &[(one, "passing")]), &running);
    assert!(took < millis(200), "consul: {took:?}");
}

//! Backends from etcd.

use crate::{
    discover::Discovering,
    harness::{
        certs::Authority,
        etcd::Etcd,
        net::ask,
        secs,
        server::{Server, named},
        temp::TempDir,
        wait_until,
    },
};
use std::{
    fs,
    time::{Duration, Instant},
};

fn keys(endpoints: &[String], more: &str) -> String {
    format!(
        "[upstreams.back.discover]\nkind = \"etcd\"\nendpoints = {endpoints:?}\n\
         prefix = \"/app/\"\n\
         interval = \"500ms\"\ntimeout = \"1s\"\nmax_removed = 100\nempty_after = \"1s\"\n{more}"
    )
}

fn put(etcd: &Etcd, number: usize, server: &Server) {
    etcd.put(&format!("/app/{number}"), &server.addr.to_string());
}

#[test]
fn keys_come_and_go_over_restarts_and_compactions() {
    let servers = named(3);
    let mut etcd = Etcd::start();
    put(&etcd, 1, &servers[0]);
    etcd.put("/apple", "not below the prefix");
    let running = Discovering::start(&keys(&[etcd.url()], ""));
    running.wait_backends(&[servers[0].addr]);
    assert_eq!(ask(running.front).unwrap(), "b1");
    let heavy = format!(
        r#"{{"address":"{}","weight":3,"name":"two"}}"#,
        servers[1].addr
    );
    etcd.put("/app/2", &heavy);
    running.wait_backends(&[servers[0].addr, servers[1].addr]);

    // A value that is none changes nothing, until it is one.
    etcd.put("/app/3", "{}");
    running.wait_error("the value of the key \"/app/3\"");
    running.wait_backends(&[servers[0].addr, servers[1].addr]);
    put(&etcd, 3, &servers[2]);
    running.wait_answer();
    let all: Vec<_> = servers.iter().map(|server| server.addr).collect();
    running.wait_backends(&all);

    etcd.kill();
    running.wait_error("Connection refused");
    running.wait_backends(&all);
    etcd.restart();
    // It may be too late for a resumption already.
    etcd.delete("/app/1");
    for n in 0..5 {
        etcd.put("/app/2", &servers[1].addr.to_string());
        etcd.put("/other", &n.to_string());
    }
    let revision = etcd.ctl("get /app/2 -w json");
    let revision: serde_json::Value = serde_json::from_str(&revision).unwrap();
    etcd.ctl(&format!("compact {}", revision["header"]["revision"]));
    running.wait_answer();
    running.wait_backends(&all[1..]);
    etcd.ctl("del /app/ --prefix");
    running.wait_backends(&[]);
    put(&etcd, 9, &servers[0]);
    running.wait_backends(&all[..1]);
}

#[test]
fn users_log_in_and_again_after_a_restart() {
    let (servers, dir) = (named(2), TempDir::new());
    let mut etcd = Etcd::start();
    put(&etcd, 1, &servers[0]);
    for line in [
        "user add root:secret",
        "user grant-role root root",
        "user add balancer:pass",
        "role add reader",
        "role grant-permission reader --prefix=true read /app/",
        "user grant-role balancer reader",
    ] {
        etcd.ctl(line);
    }
    let password = dir.write("password", "wrong\n");
    let login = format!(
        "user = \"balancer\"\npassword_file = \"{}\"\n",
        password.display()
    );
    // As long as there are no users, none is needed.
    let running = Discovering::start(&keys(&[etcd.url()], &login));
    running.wait_backends(&[servers[0].addr]);
    etcd.ctl("auth enable");
    running.wait_error("authentication failed, invalid user ID or password");
    running.wait_backends(&[servers[0].addr]);
    fs::write(&password, "pass\n").unwrap();
    running.wait_answer();

    // Tokens do not outlive the process.
    etcd.restart();
    let address = servers[1].addr;
    etcd.ctl(&format!("--user root:secret put /app/2 {address}"));
    running.wait_backends(&[servers[0].addr, address]);
    running.wait_answer();

    let other = keys(&[etcd.url()], &login).replace("/app/", "/secret/");
    let refused = Discovering::start(&format!("backends = [\"{address}\"]\n{other}"));
    refused.wait_error("etcdserver: permission denied");
    assert_eq!(ask(refused.front).unwrap(), "b2");
}

#[test]
fn a_member_may_be_lost() {
    let servers = named(2);
    let [mut first, second, third] = Etcd::start_three();
    put(&second, 1, &servers[0]);
    let endpoints = [first.url(), second.url(), third.url()];
    let running = Discovering::start(&keys(&endpoints, ""));
    running.wait_backends(&[servers[0].addr]);
    first.kill();
    let began = Instant::now();
    wait_until(
        "the others have a leader and take the key",
        secs(20),
        || {
            let address = servers[1].addr.to_string();
            third.try_put("/app/2", &address).is_ok()
        },
    );
    running.wait_backends(&[servers[0].addr, servers[1].addr]);
    println!(
        "member lost: the change was there after {:?}",
        began.elapsed()
    );
}

#[test]
fn the_servers_certificate_is_verified() {
    let (servers, authority) = (named(1), Authority::new("registry"));
    let issued = authority.issue("etcd", "IP:127.0.0.1", 2);
    let client = authority.issue("client", "DNS:client", 2);
    let etcd = Etcd::start_with(&[
        format!("--cert-file={}", issued.certificate.display()),
        format!("--key-file={}", issued.key.display()),
        format!("--trusted-ca-file={}", authority.file().display()),
        "--client-cert-auth".to_owned(),
    ]);
    let mut ctl = crate::harness::proc::command("etcdctl");
    ctl.env("ETCDCTL_API", "3").args([
        "--endpoints".to_owned(),
        etcd.url(),
        format!("--cacert={}", authority.file().display()),
        format!("--cert={}", client.certificate.display()),
        format!("--key={}", client.key.display()),
        "put".to_owned(),
        "/app/1".to_owned(),
        servers[0].addr.to_string(),
    ]);
    crate::harness::proc::run_ok(secs(20), ctl);
    let ca = |file: &std::path::Path| format!("tls_ca = \"{}\"\n", file.display());
    let identity = format!(
        "cert = \"{}\"\nkey = \"{}\"\n",
        client.certificate.display(),
        client.key.display()
    );
    let good = format!("{}{identity}", ca(&authority.file()));
    let running = Discovering::start(&keys(&[etcd.url()], &good));
    running.wait_backends(&[servers[0].addr]);
    let static_one = format!("backends = [\"{}\"]\n", servers[0].addr);
    let other = Authority::new("another");
    let wrong = format!("{}{identity}", ca(&other.file()));
    let refused = Discovering::start(&format!("{static_one}{}", keys(&[etcd.url()], &wrong)));
    refused.wait_error("TLS: invalid peer certificate");
    let nameless = Discovering::start(&format!(
        "{static_one}{}",
        keys(&[etcd.url()], &ca(&authority.file()))
    ));
    nameless.wait_error("received fatal alert");
}

/// From the answer to the first session at the new backend: half of them in 200 ms, although the
/// machine may be busy.
#[test]
fn a_change_is_soon_in_picks() {
    let servers = named(2);
    let etcd = Etcd::start();
    put(&etcd, 1, &servers[0]);
    let running = Discovering::start(&keys(&[etcd.url()], ""));
    running.wait_backends(&[servers[0].addr]);
    let mut took: Vec<Duration> = (0..9)
        .map(|_| {
            put(&etcd, 2, &servers[1]);
            let began = Instant::now();
            while ask(running.front).unwrap() != "b2" {}
            let took = began.elapsed();
            etcd.delete("/app/2");
            running.wait_backends(&[servers[0].addr]);
            // A change soon after another is put off.
            std::thread::sleep(Duration::from_millis(250));
            took
        })
        .collect();
    took.sort();
    println!("etcd, from put to pick: {took:?}");
    assert!(took[4] < Duration::from_millis(200), "{took:?}");
}

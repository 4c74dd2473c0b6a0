//! Listeners on addresses that this host does not have.

use crate::harness::{
    net, ports,
    proc::text,
    secs,
    server::{Server, list},
    tembuku::{Tembuku, cli},
    temp::TempDir,
    wait_until,
};

/// Addresses for documentation: no host has them.
fn config(port: u16, freebind: bool, backend: &Server) -> String {
    format!(
        "[process]\nworkers = 2\n\
         [listeners.t]\nbind = [\"192.0.2.7:{port}\", \"[2001:db8::7]:{port}\"]\n\
         freebind = {freebind}\nupstream = \"u\"\n\
         [listeners.d]\nprotocol = \"udp\"\n\
         bind = [\"192.0.2.7:{port}\", \"[2001:db8::7]:{port}\"]\n\
         freebind = {freebind}\nupstream = \"u\"\n[upstreams.u]\nbackends = {}\n",
        list(std::slice::from_ref(backend))
    )
}

#[test]
fn an_address_that_comes_later_is_bound() {
    let backend = Server::named("a");
    let port = ports::free_port();
    let tembuku = Tembuku::start(&config(port, true, &backend));
    wait_until("it listens", secs(10), || net::listening(port));
    assert_eq!(tembuku.get("/readyz/node").status, 200);
    let log = tembuku.log();
    let of_it = |line: &&serde_json::Value| line["message"] == "listening";
    assert_eq!(log.iter().filter(of_it).count(), 4, "{log:?}");
}

#[test]
fn without_it_the_error_and_a_warning_name_the_way_out() {
    let backend = Server::named("a");
    let dir = TempDir::new();
    let config = dir.write("tembuku.toml", &config(ports::free_port(), false, &backend));
    let path = config.to_str().unwrap();
    let run = cli(&["run", "-c", path]);
    assert_eq!(run.status.code(), Some(1));
    assert!(
        text(&run).contains("freebind = true binds it"),
        "{}",
        text(&run)
    );
    let check = cli(&["check", "-c", path]);
    assert_eq!(check.status.code(), Some(0));
    let warned = String::from_utf8(check.stderr).unwrap();
    for listener in ["t", "d"] {
        for ip in ["192.0.2.7", "2001:db8::7"] {
            let warning = format!(
                "warning: listener {listener}: no interface of this machine has the address {ip}\n"
            );
            assert!(warned.contains(&warning), "{warned}");
        }
    }
}

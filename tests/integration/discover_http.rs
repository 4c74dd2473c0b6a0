//! Backends from a list that a web server has.

use crate::{
    discover::Discovering,
    harness::{
        certs::Authority,
        net, ports,
        programs::{Nginx, http_block},
        server::{Server, ask_many, named},
        tembuku::cli,
        temp::TempDir,
    },
};
use std::{fs, net::SocketAddr, path::Path};

/// Replaced in one step.
fn write(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

fn json(servers: &[&Server]) -> String {
    let all: Vec<String> = servers
        .iter()
        .map(|server| server.addr.to_string())
        .collect();
    serde_json::to_string(&all).unwrap()
}

#[test]
fn a_list_changes_and_a_server_that_fails_changes_nothing() {
    let (servers, addr) = (named(3), ports::free_addr());
    let block = http_block(&format!(
        "server {{ listen {addr}; root {{dir}}; location /moved {{ return 301 /list.json; }} }}"
    ));
    let nginx = Nginx::start(addr, &block);
    let list = nginx.file("list.json");
    write(&list, &json(&[&servers[0], &servers[1]]));
    let keys = |path: &str| {
        format!(
            "[upstreams.back.discover]\nkind = \"http\"\nurl = \"http://{addr}/{path}\"\n\
             headers = [\"X-Key: secret\"]\ninterval = \"200ms\"\nmax_removed = 100\n\
             empty_after = \"1s\"\n"
        )
    };
    let running = Discovering::start(&keys("list.json"));
    let addrs: Vec<SocketAddr> = servers.iter().map(|server| server.addr).collect();
    running.wait_backends(&addrs[..2]);
    assert!(ask_many(running.front, 4).contains(&"b2".to_owned()));
    write(&list, &json(&[&servers[1], &servers[2]]));
    running.wait_backends(&addrs[1..]);
    for (text, error) in [
        ("<html>", "this is no JSON"),
        ("", "this is no JSON"),
        ("[\"10.0.0.1\"]", "10.0.0.1"),
        ("{\"a\": 1}", "backends"),
    ] {
        write(&list, text);
        running.wait_error(error);
        running.wait_backends(&addrs[1..]);
    }
    fs::remove_file(&list).unwrap();
    running.wait_error("status 404");
    running.reload(&keys("moved"));
    running.wait_error("redirects are not followed");
    running.reload(&keys("list.json"));
    drop(nginx);
    running.wait_error("Connection refused");
    running.wait_backends(&addrs[1..]);
    assert_eq!(ask_many(running.front, 4).len(), 4);

    let nginx = Nginx::start(addr, &block);
    write(&nginx.file("list.json"), "[]");
    running.wait_backends(&[]);
    net::assert_closed_at_once(running.front);
}

#[test]
fn one_answer_is_printed_over_tls() {
    let (servers, addr) = (named(1), ports::free_addr());
    let authority = Authority::new("registry");
    let issued = authority.issue("list", "IP:127.0.0.1", 2);
    let nginx = Nginx::with_files_over_tls(addr, &issued);
    write(&nginx.file("list.json"), &json(&[&servers[0]]));
    let dir = TempDir::new();
    let discover = |ca: &Path| {
        let config = dir.write(
            "tembuku.toml",
            &format!(
                "[listeners.l]\nbind = \"127.0.0.1:0\"\nupstream = \"u\"\n\
                 [upstreams.u.discover]\nkind = \"http\"\n\
                 url = \"https://{addr}/list.json\"\ntls_ca = \"{}\"\n",
                ca.display()
            ),
        );
        cli(&["discover", "-c", config.to_str().unwrap(), "u"])
    };
    let output = discover(&authority.file());
    let text = crate::harness::proc::text(&output);
    assert!(
        output.status.success() && text.contains(&servers[0].addr.to_string()),
        "{text}"
    );
    let output = discover(&Authority::new("another").file());
    let text = crate::harness::proc::text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("invalid peer certificate"), "{text}");
}

//! Files that checks name are read again at a reload, also of an upstream that has not changed.

use super::{Setup, setup};
use crate::harness::{
    certs::Authority,
    net, ports,
    proc::text,
    programs::{Nginx, Redis, http_block},
    secs, wait_until,
};
use std::{fs, io::Write as _, net::SocketAddr};

/// Adds an upstream `checked` with this backend and check, which nothing uses.
fn add_checked(setup: &Setup, backend: SocketAddr, check: &str) {
    let front = ports::free_addr();
    let config = setup.config();
    setup.write(&format!(
        "{config}[listeners.checked]\nbind = \"{front}\"\nupstream = \"checked\"\n\
         [upstreams.checked]\nbackends = [\"{backend}\"]\n\
         [upstreams.checked.check]\ninterval = \"100ms\"\ntimeout = \"5s\"\n{check}\n"
    ));
    setup.reload();
}

#[track_caller]
fn wait_check(setup: &Setup, result: &str) {
    wait_until(&format!("the check reports {result}"), secs(20), || {
        let last = &setup.status()["upstreams"][1]["backends"][0]["last_check"];
        last["result"] == result
    });
}

#[test]
fn another_authority_in_the_same_file_is_used_after_a_reload() {
    let (one, two) = (Authority::new("one"), Authority::new("two"));
    let issued = two.issue("server", "IP:127.0.0.1", 2);
    let addr = ports::free_addr();
    let _server = Nginx::start(
        addr,
        &http_block(&format!(
            "server {{ listen {addr} ssl; ssl_certificate {}; ssl_certificate_key {}; \
         location / {{ return 200 ok; }} }}",
            issued.certificate.display(),
            issued.key.display()
        )),
    );
    let setup = setup();
    let file = setup.tembuku.dir.file("ca.pem");
    fs::copy(one.file(), &file).unwrap();
    let tls = format!("tls = \"verify\"\ntls_ca = \"{}\"", file.display());
    add_checked(&setup, addr, &format!("kind = \"http\"\n{tls}"));
    wait_check(&setup, "tls");
    assert!(setup.reload().starts_with("no changes, "));
    fs::copy(two.file(), &file).unwrap();
    let report = setup.reload();
    let change = "upstream checked: changed\n  check.tls_ca: (contents) -> (other contents)\n  \
                  sessions: 0\n1 change, ";
    assert!(report.starts_with(change), "{report}");
    wait_check(&setup, "ok");
    assert!(setup.reload().starts_with("no changes, "));
    // The same certificates, written in another way.
    let commented = format!("# Of the cluster\n{}", fs::read_to_string(&file).unwrap());
    fs::write(&file, commented).unwrap();
    assert!(setup.reload().starts_with("no changes, "));
    for contents in [
        "",
        "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n",
    ] {
        fs::write(&file, contents).unwrap();
        let printed = setup.fail_to_reload();
        assert!(
            printed.contains("upstream checked: ") && printed.contains("ca.pem"),
            "{printed}"
        );
    }
    wait_check(&setup, "ok");
}

#[test]
fn another_password_in_the_same_file_is_used_after_a_reload() {
    let server = Redis::start_with(ports::free_addr(), &["--requirepass", "one"]);
    let setup = setup();
    let file = setup.tembuku.dir.write("password", "one\n");
    let check = format!(
        "kind = \"redis\"\nrole = \"any\"\npassword_file = \"{}\"",
        file.display()
    );
    add_checked(&setup, server.addr, &check);
    wait_check(&setup, "ok");
    // A server that accepts the old one as well never refuses it.
    let mut stream = net::connect(server.addr).unwrap();
    let commands = "AUTH one\r\nACL SETUSER default >two\r\n";
    stream.write_all(commands.as_bytes()).unwrap();
    for _ in 0..2 {
        assert_eq!(net::read_line(&mut stream).unwrap().trim_end(), "+OK");
    }
    fs::write(&file, "two").unwrap();
    let report = setup.reload();
    let change = "upstream checked: changed\n  check.password_file: (contents) -> (other contents)";
    assert!(report.starts_with(change), "{report}");
    assert!(!report.contains("two"), "{report}");
    // From now on it is the only one.
    stream
        .write_all(b"ACL SETUSER default <one\r\nCLIENT KILL TYPE normal\r\n")
        .unwrap();
    assert_eq!(net::read_line(&mut stream).unwrap().trim_end(), "+OK");
    let counted = |result: &str| {
        let labels = [("upstream", "checked"), ("result", result)];
        setup.tembuku.metric("check_results_total", &labels)
    };
    let good = counted("ok");
    wait_until("five checks are good", secs(10), || {
        counted("ok") >= good + 5.0
    });
    assert_eq!(counted("auth"), 0.0);
    fs::remove_file(&file).unwrap();
    let printed = setup.fail_to_reload();
    let start = "upstream checked: check: cannot read the password file ";
    assert!(
        printed.contains(start) && printed.contains("password"),
        "{printed}"
    );
    let output = setup.try_reload(&["--dry-run"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    wait_check(&setup, "ok");
}

//! Checks of PostgreSQL: every way of logging in, and what the server logs about it.

use crate::harness::{
    certs::{Authority, Certificate},
    poll, ports,
    postgres::Postgres,
    programs::account,
    secs,
    tembuku::Tembuku,
    temp::TempDir,
    wait_until,
};
use std::net::SocketAddr;

pub(crate) struct Setup {
    pub(crate) front: SocketAddr,
    pub(crate) tembuku: Tembuku,
}

/// A listener before these servers. `keys` belong to the upstream, `check` to its check.
pub(crate) fn setup(servers: &[SocketAddr], keys: &str, check: &str) -> Setup {
    let front = ports::free_addr();
    let backends: Vec<String> = servers.iter().map(|s| format!("\"{s}\"")).collect();
    let tembuku = Tembuku::start(&format!(
        "[process]\nworkers = 1\n\
         [log]\nlevel = \"trace\"\nformat = \"json\"\naccess = \"{{dir}}/access.log\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [{}]\n{keys}\n\
         [upstreams.u.check]\nkind = \"postgres\"\ninterval = \"500ms\"\n{check}\n",
        backends.join(", ")
    ));
    Setup { front, tembuku }
}

impl Setup {
    /// The backend in the status.
    pub(crate) fn status(&self, server: SocketAddr) -> serde_json::Value {
        let status = self.tembuku.status();
        let backends = status["upstreams"][0]["backends"].as_array().unwrap();
        let address = server.to_string();
        let found = backends.iter().find(|b| b["address"] == address);
        found.unwrap().clone()
    }

    /// Waits for this state and this result of the last check; what the check saw.
    #[track_caller]
    pub(crate) fn wait(&self, server: SocketAddr, state: &str, result: &str) -> String {
        let found = poll(secs(20), || {
            let backend = self.status(server);
            let last = &backend["last_check"];
            let holds = backend["state"] == state && last["result"] == result;
            holds.then(|| last["transcript"].as_str().unwrap().to_owned())
        });
        found.unwrap_or_else(|| panic!("not {state}, {result}: {}", self.status(server)))
    }

    pub(crate) fn results(&self, server: SocketAddr, result: &str) -> f64 {
        let labels = [("backend", &*server.to_string()), ("result", result)];
        self.tembuku.metric("check_results_total", &labels)
    }

    /// Waits until so many checks more have ended so.
    #[track_caller]
    pub(crate) fn wait_for_more(&self, server: SocketAddr, result: &str, count: f64) {
        let before = self.results(server, result);
        wait_until(&format!("{count} more {result}"), secs(20), || {
            self.results(server, result) >= before + count
        });
    }
}

/// That the server has written down nothing since it was ready.
#[track_caller]
pub(crate) fn assert_no_complaint(server: &Postgres) {
    let log = server.log();
    let (_, since) = log.split_once("ready to accept connections").unwrap();
    // The harness may have connected just before it was ready.
    let harmless = ["checkpoint", "background worker", "is starting up"];
    let complaint = since
        .lines()
        .find(|line| !line.is_empty() && !harmless.iter().any(|part| line.contains(part)));
    assert_eq!(complaint, None, "{log}");
}

/// An authority, and settings for a server of the name db.example whose certificate comes from it.
fn with_tls() -> (Authority, Vec<String>) {
    let authority = Authority::new("one");
    let certificate = authority.issue("db.example", "DNS:db.example", 2);
    (authority, settings_of(certificate))
}

fn settings_of(certificate: Certificate) -> Vec<String> {
    let Certificate { certificate, key } = certificate.owned_by(account("postgres"));
    vec![
        "ssl=on".to_owned(),
        format!("ssl_cert_file={}", certificate.display()),
        format!("ssl_key_file={}", key.display()),
    ]
}

fn start(settings: &[String], rules: &str) -> Postgres {
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    Postgres::start_with(&settings, rules)
}

/// A server with a role for each way of logging in.
fn start_with_roles(settings: &[String]) -> Postgres {
    let rules = "local all plain password\n\
        host all trusted,many 127.0.0.1/32 trust\n\
        host all md5 127.0.0.1/32 md5\n\
        host all scram 127.0.0.1/32 scram-sha-256\n\
        host all plain 127.0.0.1/32 password\n\
        hostssl all tls 127.0.0.1/32 scram-sha-256\n\
        host all away 127.0.0.1/32 reject";
    let server = start(settings, rules);
    server.sql(
        "set password_encryption = 'md5'; create role md5 login password 'pass word'; \
         set password_encryption = 'scram-sha-256'; create role scram login password 'pass word'; \
         create role plain login password 'pass word'; create role tls login password 'pass word'; \
         create role trusted login; create role away login; \
         create role many login connection limit 0",
    );
    server
}

/// Keys of a check that verifies the server's certificate.
fn verify(by: &Authority, name: &str) -> String {
    let by = by.file();
    format!(
        "tls = \"verify\"\ntls_ca = \"{}\"\ntls_name = \"{name}\"",
        by.display()
    )
}

#[test]
fn every_way_of_logging_in() {
    let (authority, settings) = with_tls();
    let server = start_with_roles(&settings);
    let other = Authority::new("other");
    let dir = TempDir::new();
    let right = format!(
        "password_file = \"{}\"",
        dir.write("right", "pass word\n").display()
    );
    let wrong = format!(
        "password_file = \"{}\"",
        dir.write("wrong", "passw0rd").display()
    );
    let (by_it, by_other) = (
        verify(&authority, "db.example"),
        verify(&other, "db.example"),
    );
    let as_another = verify(&authority, "db2.example");
    let tls = "tls = \"require\"";
    let primary = ("ok", "primary, timeline 1");
    let no_password = ("auth", "it asks for a password, and none is configured");
    let fails =
        |user: &str| format!("FATAL 28P01: password authentication failed for user \"{user}\"");
    let (md5_fails, scram_fails, tls_fails) = (fails("md5"), fails("scram"), fails("tls"));
    let plain_fails = fails("plain");
    let unix = format!("address = \"unix:{}\"", server.socket().display());
    for (user, keys, (result, saw)) in [
        ("trusted", vec![], primary),
        ("trusted", vec![tls], primary),
        ("md5", vec![&*right], primary),
        ("md5", vec![&*right, tls], primary),
        ("md5", vec![&*wrong], ("auth", &*md5_fails)),
        ("md5", vec![], no_password),
        ("scram", vec![&*right], primary),
        ("scram", vec![&*right, tls], primary),
        ("scram", vec![&*wrong], ("auth", &*scram_fails)),
        ("scram", vec![&*wrong, tls], ("auth", &*scram_fails)),
        ("scram", vec![], no_password),
        ("plain", vec![&*right, tls], primary),
        // What does not leave the machine cannot be listened in to.
        ("plain", vec![&*right, &*unix], primary),
        ("plain", vec![&*wrong, &*unix], ("auth", &*plain_fails)),
        (
            "plain",
            vec![&*right],
            (
                "auth",
                "it asks for the password in clear text, which is sent only inside TLS",
            ),
        ),
        ("tls", vec![&*right, &*by_it], primary),
        ("tls", vec![&*wrong, &*by_it], ("auth", &*tls_fails)),
        (
            "tls",
            vec![&*right],
            (
                "auth",
                "FATAL 28000: no pg_hba.conf entry for host \"127.0.0.1\", \
                 user \"tls\", database \"postgres\", no encryption",
            ),
        ),
        ("tls", vec![&*right, &*by_other], ("tls", "UnknownIssuer")),
        (
            "tls",
            vec![&*right, &*as_another],
            ("tls", "not valid for name \"db2.example\""),
        ),
        (
            "away",
            vec![],
            ("auth", "FATAL 28000: pg_hba.conf rejects connection"),
        ),
        (
            "many",
            vec![],
            (
                "unexpected",
                "FATAL 53300: too many connections for role \"many\"",
            ),
        ),
        (
            "trusted",
            vec!["database = \"nowhere\""],
            (
                "unexpected",
                "FATAL 3D000: database \"nowhere\" does not exist",
            ),
        ),
    ] {
        let check = format!("role = \"primary\"\nuser = \"{user}\"\n{}", keys.join("\n"));
        let setup = setup(&[server.addr], "", &check);
        let state = if result == "ok" { "up" } else { "down" };
        let transcript = setup.wait(server.addr, state, result);
        assert!(transcript.contains(saw), "{check}\n{transcript}");
    }
}

/// Neither checks that log in nor those that do not cause log lines, and both end properly.
#[test]
fn checks_leave_nothing_in_the_log() {
    let (_authority, mut settings) = with_tls();
    for encrypted in [true, false] {
        if !encrypted {
            settings = vec!["ssl=off".to_owned()];
        }
        let server = start(&settings, "host all monitor 127.0.0.1/32 scram-sha-256");
        server.sql("create role monitor login password 'secret'");
        let dir = TempDir::new();
        let file = dir.write("password", "secret");
        let user = format!(
            "user = \"monitor\"\nrole = \"primary\"\npassword_file = \"{}\"",
            file.display()
        );
        let inside = "it lets in";
        let asked = "user = \"monitor\"\nlogin = false".to_owned();
        let tls = "tls = \"require\"";
        let mut checks = vec![
            (String::new(), inside),
            (asked, "it asks for a password"),
            (user.clone(), "primary, timeline 1"),
        ];
        if encrypted {
            checks.push((tls.to_owned(), inside));
            checks.push((format!("{user}\n{tls}"), "primary, timeline 1"));
        }
        // A process that is stopped ends a check midway, so none is before the log has been read.
        let mut running = Vec::new();
        for (check, saw) in checks {
            // A check that is given up is a complaint, too.
            let check = format!("timeout = \"20s\"\n{check}");
            let setup = setup(&[server.addr], "", &check);
            assert_eq!(setup.wait(server.addr, "up", "ok"), saw);
            running.push(setup);
        }
        for setup in &running {
            setup.wait_for_more(server.addr, "ok", 5.0);
        }
        assert_no_complaint(&server);
    }
}

/// Without verification a certificate without a signature algorithm is accepted, too. A login is
/// not bound to it then, which the server gets to see.
#[test]
fn a_certificate_of_version_1() {
    let authority = Authority::new("one");
    let dir = TempDir::new();
    let file = dir.write("password", "secret");
    let user = format!(
        "role = \"primary\"\nuser = \"monitor\"\npassword_file = \"{}\"",
        file.display()
    );
    let verify = format!(
        "{user}\ntls = \"verify\"\ntls_ca = \"{}\"\ntls_name = \"db.example\"",
        authority.file().display()
    );
    for version in ["TLSv1.2", "TLSv1.3"] {
        let certificate = authority.issue_version_1("db.example");
        let mut settings = settings_of(certificate);
        settings.push(format!("ssl_min_protocol_version={version}"));
        settings.push(format!("ssl_max_protocol_version={version}"));
        let server = start(&settings, "hostssl all monitor 127.0.0.1/32 scram-sha-256");
        server.sql("create role monitor login password 'secret'");
        let inside = (String::new(), "it lets in");
        let login = (format!("{user}\ntls = \"require\""), "primary, timeline 1");
        let mut running = Vec::new();
        for (check, saw) in [inside, login] {
            let setup = setup(&[server.addr], "", &format!("timeout = \"20s\"\n{check}"));
            assert_eq!(setup.wait(server.addr, "up", "ok"), saw, "{version}");
            running.push(setup);
        }
        for setup in &running {
            setup.wait_for_more(server.addr, "ok", 3.0);
        }
        assert_no_complaint(&server);
        let setup = setup(&[server.addr], "", &verify);
        let saw = setup.wait(server.addr, "down", "tls");
        assert!(saw.contains("UnsupportedCertVersion"), "{saw}");
    }
}

/// Whatever the database puts in front of what the server has: it is not run.
#[test]
fn no_schema_shadows_the_functions_a_check_calls() {
    let server = start(&[], "host all monitor 127.0.0.1/32 trust");
    let mut sql = "create schema own; grant usage on schema own to public; ".to_owned();
    for (function, kind) in [
        ("pg_is_in_recovery()", "boolean"),
        ("substr(text, int, int)", "text"),
        ("pg_walfile_name(pg_lsn)", "text"),
        ("pg_current_wal_lsn()", "pg_lsn"),
        ("pg_last_wal_receive_lsn()", "pg_lsn"),
        ("pg_last_wal_replay_lsn()", "pg_lsn"),
        ("pg_wal_lsn_diff(pg_lsn, pg_lsn)", "numeric"),
        ("pg_last_xact_replay_timestamp()", "timestamptz"),
        ("now()", "timestamptz"),
        ("extract(text, interval)", "numeric"),
        ("date_part(text, interval)", "float8"),
        ("minus(timestamptz, timestamptz)", "interval"),
    ] {
        sql += &format!(
            "create function own.{function} returns {kind} language plpgsql as \
             'begin raise exception ''taken in''; end'; "
        );
    }
    sql += "create operator own.- \
            (leftarg = timestamptz, rightarg = timestamptz, function = own.minus); \
            create view own.pg_stat_wal_receiver as select 1 where own.pg_is_in_recovery(); \
            create role monitor login; alter role monitor set search_path = own, pg_catalog";
    server.sql(&sql);
    let setup = setup(
        &[server.addr],
        "",
        "timeout = \"20s\"\nrole = \"primary\"\nuser = \"monitor\"",
    );
    let saw = setup.wait(server.addr, "up", "ok");
    assert_eq!(saw, "primary, timeline 1");
    setup.wait_for_more(server.addr, "ok", 2.0);
    assert_no_complaint(&server);
}

/// The password comes from a file or the environment, and gets to the server alone.
#[test]
fn passwords_are_used_and_not_shown() {
    const SECRET: &str = "xyzzy-plugh-4711";
    const OTHER: &str = "zork-frotz-0815";
    let (_authority, settings) = with_tls();
    let rules = "host all scram 127.0.0.1/32 scram-sha-256\nhost all plain 127.0.0.1/32 password";
    let server = start(&settings, rules);
    server.sql(&format!(
        "create role scram login password '{SECRET}'; create role plain login password '{SECRET}'"
    ));
    for (user, keys) in [("scram", ""), ("plain", "tls = \"require\"")] {
        let dir = TempDir::new();
        let file = dir.write("password", SECRET);
        let check = format!(
            "role = \"primary\"\nuser = \"{user}\"\npassword_file = \"{}\"\n{keys}",
            file.display()
        );
        let setup = setup(&[server.addr], "", &check);
        setup.wait(server.addr, "up", "ok");
        // The server gets another one, and so does the file: after one refusal it is read again.
        dir.write("password", OTHER);
        server.sql(&format!("alter role {user} password '{OTHER}'"));
        wait_until("it has been refused", secs(20), || {
            setup.results(server.addr, "auth") >= 1.0
        });
        setup.wait_for_more(server.addr, "ok", 2.0);
        setup.wait(server.addr, "up", "ok");
        server.sql(&format!("alter role {user} password 'else'"));
        let saw = setup.wait(server.addr, "down", "auth");
        assert!(saw.contains("password authentication failed"), "{saw}");

        setup.tembuku.assert_not_shown(&[SECRET, OTHER]);
    }
}

//! Checks of a Redis that requires a login, and secrets that are not shown.

use crate::{
    checks_redis::setup,
    harness::{
        net, ports,
        proc::{run_ok, text},
        programs::Redis,
        secs,
        tembuku::cli,
        temp::TempDir,
        wait_until,
    },
};
use std::io::Write;

/// The password comes from a file or the environment, and gets to the server alone.
#[test]
fn passwords_are_used_and_not_shown() {
    const SECRET: &str = "xyzzy-plugh-4711";
    const OTHER: &str = "zork-frotz-0815";
    let rule = format!(">{SECRET}");
    let server = Redis::start_with(
        ports::free_addr(),
        &[
            "--requirepass",
            "hidden",
            "--user",
            "check",
            "+ping",
            "+role",
            "on",
            &rule,
        ],
    );
    let dir = TempDir::new();
    let file = dir.write("password", &format!("{SECRET}\n"));
    let check = format!(
        "role = \"primary\"\nuser = \"check\"\npassword_file = \"{}\"",
        file.display()
    );
    let setup = setup(&[&server], "", &check);
    setup.wait_state(&server, "up");
    assert_eq!(
        setup.status(&server)["last_check"]["transcript"],
        "PING: PONG, ROLE: master"
    );

    // Another one in the file, of which the server knows nothing: that is not looked at while the
    // old one works.
    dir.write("password", OTHER);
    let reset = |password: &str| {
        let mut stream = net::connect(server.addr).unwrap();
        stream
            .write_all(
                format!("AUTH hidden\r\nACL SETUSER check resetpass >{password}\r\n").as_bytes(),
            )
            .unwrap();
        assert_eq!(net::read_line(&mut stream).unwrap().trim_end(), "+OK");
        assert_eq!(net::read_line(&mut stream).unwrap().trim_end(), "+OK");
    };
    // The server gets it as well: after one refusal the file is read again.
    reset(OTHER);
    wait_until("the new password is used", secs(10), || {
        let metric = |result| {
            setup
                .tembuku
                .metric("check_results_total", &[("result", result)])
        };
        metric("auth") == 1.0 && setup.status(&server)["last_check"]["result"] == "ok"
    });
    setup.wait_state(&server, "up");
    reset("something-else");
    setup.wait_state(&server, "down");
    let status = setup.status(&server);
    assert_eq!(status["last_check"]["result"], "auth");
    assert_eq!(status["last_check"]["transcript"], "AUTH: WRONGPASS");
    assert_eq!(status["why"], "its check reports: auth: AUTH: WRONGPASS");

    setup.tembuku.assert_not_shown(&[SECRET, OTHER]);
}

/// Every backend of an upstream gets the new password, and a login that never succeeded is
/// reported.
#[test]
fn a_new_password_reaches_all_backends() {
    let servers: Vec<Redis> = (0..3)
        .map(|_| Redis::start_with(ports::free_addr(), &["--requirepass", "first-one"]))
        .collect();
    let dir = TempDir::new();
    let file = dir.write("password", "wrong-one");
    let check = format!("password_file = \"{}\"\nrole = \"any\"", file.display());
    let all: Vec<&Redis> = servers.iter().collect();
    let setup = setup(&all, "", &check);
    for server in &servers {
        wait_until("the reason is reported", secs(10), || {
            setup.status(server)["why"] == "its check reports: auth: AUTH: WRONGPASS"
        });
    }
    dir.write("password", "first-one");
    servers.iter().for_each(|s| setup.wait_state(s, "up"));
    dir.write("password", "second-one");
    for server in &servers {
        let mut stream = net::connect(server.addr).unwrap();
        let command = "AUTH first-one\r\nCONFIG SET requirepass second-one\r\n";
        stream.write_all(command.as_bytes()).unwrap();
        assert_eq!(net::read_line(&mut stream).unwrap().trim_end(), "+OK");
        assert_eq!(net::read_line(&mut stream).unwrap().trim_end(), "+OK");
    }
    for server in &servers {
        let address = server.addr.to_string();
        let count = |result| {
            let labels = [("backend", address.as_str()), ("result", result)];
            setup.tembuku.metric("check_results_total", &labels)
        };
        wait_until("it has been refused again", secs(10), || {
            count("auth") >= 1.0
        });
        let good = count("ok");
        wait_until("it is let in again", secs(10), || count("ok") >= good + 3.0);
        setup.wait_state(server, "up");
    }
}

/// A password that does not come (a pipe without a writer, a file server that hangs) keeps no check
/// from noticing what happens to the server.
#[test]
fn a_password_that_cannot_be_read_again_stops_no_check() {
    let mut server = Redis::start_with(ports::free_addr(), &["--requirepass", "first-one"]);
    let dir = TempDir::new();
    let pipe = dir.file("password");
    let mut mkfifo = std::process::Command::new("mkfifo");
    mkfifo.arg(&pipe);
    run_ok(secs(10), mkfifo);
    // Its writer goes with the first reader.
    let writer = {
        let pipe = pipe.clone();
        std::thread::spawn(move || std::fs::write(pipe, "first-one").unwrap())
    };
    let check = format!("role = \"primary\"\npassword_file = \"{}\"", pipe.display());
    let setup = setup(&[&server], "", &check);
    writer.join().unwrap();
    setup.wait_state(&server, "up");
    let mut stream = net::connect(server.addr).unwrap();
    stream
        .write_all(b"AUTH first-one\r\nCONFIG SET requirepass second-one\r\n")
        .unwrap();
    let count = |result| {
        let labels = [("result", result)];
        setup.tembuku.metric("check_results_total", &labels)
    };
    // More than one, and the verdict.
    wait_until("it is refused, again and again", secs(10), || {
        count("auth") >= 5.0
    });
    setup.wait_state(&server, "down");
    server.proc.kill();
    wait_until("that it is dead is seen as well", secs(10), || {
        count("refused") >= 2.0
    });
    // So that no thread waits for the pipe at the end.
    let _ = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&pipe);
}

/// With `start = "down"`, as with a role, nothing changes its state; all the same the reason is
/// reported.
#[test]
fn a_login_that_fails_from_the_start_is_reported() {
    let server = Redis::start_with(ports::free_addr(), &["--requirepass", "hidden"]);
    let setup = setup(&[&server], "", "role = \"primary\"");
    wait_until("the event is there", secs(10), || {
        let events = setup.tembuku.get("/api/v1/events").body;
        events.contains("\"auth\"")
    });
    let expected = "its check reports: auth: PING: \"NOAUTH Authentication required.\"";
    assert_eq!(setup.status(&server)["why"], expected);
}

/// Without a password, with a wrong one, and where the account may not ask.
#[test]
fn a_refused_login_is_reported_with_the_servers_words() {
    let addr = ports::free_addr();
    let server = Redis::start_with(
        addr,
        &[
            "--requirepass",
            "hidden",
            "--user",
            "mute",
            "+ping",
            "on",
            ">mute-password",
        ],
    );
    let dir = TempDir::new();
    let check = |password: &str, user: &str| {
        let file = dir.write("password", password);
        format!(
            "role = \"primary\"\n{user}\npassword_file = \"{}\"",
            file.display()
        )
    };
    for (check, transcript) in [
        (
            "role = \"primary\"".to_owned(),
            "PING: \"NOAUTH Authentication required.\"",
        ),
        (check("wrong", ""), "AUTH: WRONGPASS"),
        (check("mute-password", "user = \"mute\""), "ROLE: NOPERM"),
    ] {
        let setup = setup(&[&server], "", &check);
        wait_until(&check, secs(10), || {
            setup.status(&server)["last_check"]["result"] == "auth"
        });
        setup.wait_state(&server, "down");
        assert_eq!(
            setup.status(&server)["last_check"]["transcript"],
            transcript
        );
    }
    setup(&[&server], "", &check("hidden", "")).wait_state(&server, "up");
}

#[test]
fn a_password_that_cannot_be_had_is_an_error_at_the_start() {
    for (key, part) in [
        (
            "password_file = \"/nonexistent/redis.password\"",
            "No such file",
        ),
        (
            "password_env = \"TEMBUKU_TEST_UNSET\"",
            "TEMBUKU_TEST_UNSET is not set",
        ),
    ] {
        let dir = TempDir::new();
        let config = dir.write(
            "c.toml",
            &format!(
                "[listeners.l]\nbind = \"127.0.0.1:0\"\nupstream = \"u\"\n\
                 [upstreams.u]\nbackends = [\"127.0.0.1:1\"]\n\
                 [upstreams.u.check]\nkind = \"redis\"\n{key}\n"
            ),
        );
        let output = cli(&["run", "-c", config.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            text(&output).contains(part) && text(&output).contains("upstream u: check"),
            "{}",
            text(&output)
        );
    }
}

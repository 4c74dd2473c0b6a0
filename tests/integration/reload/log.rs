//! The log and the access log follow a reload.

use super::{Setup, setup};
use crate::harness::{net, poll, secs, wait_until};
use rustix::process::Signal;
use std::{fs, net::TcpStream, path::Path};

/// Replaces `[log]` and what is in it.
fn set_log(setup: &Setup, keys: &str) {
    let config = setup.config();
    let (before, rest) = config.split_once("[log]\n").unwrap();
    let (_, after) = rest.split_once("[admin]\n").unwrap();
    setup.write(&format!("{before}[log]\n{keys}\n[admin]\n{after}"));
}

/// The records of a session of this port, once there is one.
#[track_caller]
fn wait_record(path: &Path, port: u16) {
    let number = format!("\"remote_port\":{port},");
    wait_until("the session is in the access log", secs(10), || {
        fs::read_to_string(path).is_ok_and(|text| text.contains(&number))
    });
}

/// A session, and the port that it has in records.
fn open(setup: &Setup) -> (TcpStream, u16) {
    let (stream, _) = net::session(setup.front).unwrap();
    let port = stream.local_addr().unwrap().port();
    (stream, port)
}

#[test]
fn the_access_log_follows_and_sessions_keep_theirs() {
    let setup = setup();
    let [one, two] = ["one.log", "two.log"].map(|name| setup.tembuku.dir.file(name));
    let access = |path: &Path| set_log(&setup, &format!("access = \"{}\"", path.display()));
    let (unlogged, _) = open(&setup);
    access(&one);
    // A dry run creates no file.
    setup.try_reload(&["--dry-run"]);
    assert!(!one.exists());
    let printed = setup.reload();
    assert!(
        printed.starts_with("process log: changed\n  access: \"off\" -> "),
        "{printed}"
    );
    let (first, first_port) = open(&setup);
    access(&two);
    setup.reload();
    let (second, second_port) = open(&setup);
    drop((unlogged, first, second));
    wait_record(&one, first_port);
    wait_record(&two, second_port);
    // Rotated, by its new name and by the old one that sessions began with.
    let (third, third_port) = open(&setup);
    let moved = setup.tembuku.dir.file("moved.log");
    fs::rename(&two, &moved).unwrap();
    setup.tembuku.proc.signal(Signal::USR1);
    wait_until("the file is there again", secs(10), || two.exists());
    drop(third);
    wait_record(&two, third_port);
    set_log(&setup, "");
    setup.reload();
    let (fourth, _) = open(&setup);
    drop(fourth);
    setup.tembuku.wait_idle();
    let lines = |path: &Path| fs::read_to_string(path).unwrap().lines().count();
    assert_eq!([&one, &two, &moved].map(|path| lines(path)), [1, 1, 1]);
    assert_eq!(setup.tembuku.metric("access_log_dropped_total", &[]), 0.0);
}

#[test]
fn an_access_log_that_cannot_be_opened_refuses_the_reload() {
    let setup = setup();
    let before = setup.status();
    set_log(&setup, "access = \"/dev/null/access.log\"");
    let printed = setup.fail_to_reload();
    assert!(
        printed.contains("`access` in [log]: cannot open"),
        "{printed}"
    );
    assert!(printed.contains("/dev/null/access.log"), "{printed}");
    assert_eq!(setup.status(), before);
    // The key that names it is named.
    set_log(&setup, "");
    let key = "access_log = \"/dev/null/other.log\"\n";
    let config = setup.config();
    let begin = config.find("upstream = ").unwrap();
    let config = format!("{}{key}{}", &config[..begin], &config[begin..]);
    setup.write(&config);
    let printed = setup.fail_to_reload();
    assert!(printed.contains(": `access_log`: cannot open"), "{printed}");
    assert!(printed.contains("/dev/null/other.log"), "{printed}");
    assert_eq!(setup.status(), before);
}

#[test]
fn level_and_format_follow() {
    let setup = setup();
    let find = |message: &str| {
        let log = setup.tembuku.proc.stderr();
        let mut lines = log.lines().map(str::to_owned);
        lines.rfind(|line| line.contains(message))
    };
    let wait = |message: &str| {
        poll(secs(10), || find(message)).unwrap_or_else(|| panic!("{message} is not logged"))
    };
    let changed = "configuration reloaded";
    setup.reload();
    let first = wait(changed);
    assert!(first.starts_with('{'), "{first}");
    set_log(&setup, "format = \"text\"");
    setup.reload();
    wait_until("the log is text", secs(10), || {
        find(changed).is_some_and(|line| !line.starts_with('{') && line.contains(" INFO "))
    });
    // Nothing of level info is logged any more, and warnings are.
    set_log(&setup, "format = \"json\"\nlevel = \"warn\"");
    setup.reload();
    let count = || setup.tembuku.proc.stderr().matches(changed).count();
    let informed = count();
    setup.replace("workers = 2", "workers = 3");
    setup.try_reload(&[]);
    let warning = wait("reload has a warning");
    assert!(warning.starts_with('{'), "{warning}");
    assert_eq!(count(), informed);
    set_log(&setup, "level = \"debug\"\nformat = \"json\"");
    setup.try_reload(&[]);
    wait_until("info is logged again", secs(10), || count() > informed);
}

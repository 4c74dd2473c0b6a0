//! Files that cannot take over, and a process that sees nothing in /proc.

use super::{Succession, front_of, streams::Streams};
use crate::harness::{
    proc::{command, run_ok, text},
    secs,
    server::Server,
    tembuku::{binary, copy_binary},
    temp::TempDir,
};
use std::{fs, path::Path};

fn allow_execution(path: &Path) {
    let mut chmod = command("chmod 755");
    chmod.arg(path);
    run_ok(secs(5), chmod);
}

/// Begins as a program of this machine does, and is one of another.
fn of_another_architecture() -> Vec<u8> {
    let mut program = fs::read(binary()).unwrap();
    // e_machine: EM_S390.
    program[18..20].copy_from_slice(&22_u16.to_ne_bytes());
    program.truncate(1 << 20);
    program
}

#[test]
fn a_file_that_is_no_program_changes_nothing() {
    let server = Server::named("a");
    let (front, config) = front_of(&server);
    let mut tembuku = Succession::start(&config);
    let streams = Streams::start(front, 20);
    let dir = TempDir::new();
    let place = |name: &str, content: &[u8]| {
        let path = dir.file(name);
        fs::write(&path, content).unwrap();
        allow_execution(&path);
        path
    };
    let whole = fs::read(binary()).unwrap();
    let plain = dir.write("plain", "not executable");
    let linked = dir.file("linked");
    std::os::unix::fs::symlink("nowhere", &linked).unwrap();
    for (path, words) in [
        (dir.path().to_owned(), "Permission denied"),
        (plain, "Permission denied"),
        (linked, "No such file"),
        (place("empty", b""), "Exec format error"),
        (place("text", b"no program\n"), "Exec format error"),
        (
            place("other", &of_another_architecture()),
            "Exec format error",
        ),
        (place("script", b"#!/nonexistent/shell\n"), "No such file"),
        // A disk that was full when it was copied. Most of a file may be debug information, which
        // is not loaded.
        (place("part", &whole[..1 << 20]), "signal: "),
    ] {
        let output = tembuku.try_upgrade(&["--binary", path.to_str().unwrap()]);
        let printed = text(&output);
        assert_eq!(output.status.code(), Some(1), "{path:?}: {printed}");
        assert!(printed.contains(words), "{path:?}: {printed}");
        assert!(printed.contains(path.to_str().unwrap()), "{printed}");
        assert_eq!(tembuku.pid(), tembuku.current, "{path:?}");
        assert_eq!(streams.advance(&path.display().to_string()), 0);
    }
    tembuku.upgrade();
    assert_eq!(streams.finish(), 0);
}

/// As in a container that hides it.
#[test]
fn an_upgrade_needs_nothing_of_proc() {
    let server = Server::named("a");
    let (front, config) = front_of(&server);
    let dir = TempDir::new();
    let hide = dir.write(
        "hide",
        "mount --make-rprivate / && mount -t tmpfs none /proc && exec \"$@\"\n",
    );
    let mut tembuku =
        Succession::start_under(&format!("unshare --mount sh {}", hide.display()), &config);
    let streams = Streams::start(front, 50);
    for round in 0..3 {
        let out = tembuku.upgrade();
        assert!(out.contains("nothing is left behind"), "{round}: {out}");
        tembuku.wait_alone();
        assert_eq!(streams.advance("without /proc"), 0);
    }
    assert_eq!(streams.finish(), 0);
}

/// The program at its path is replaced, removed, and there again.
#[test]
fn the_binary_is_the_one_that_is_at_the_path_now() {
    let server = Server::named("a");
    let (front, config) = front_of(&server);
    let dir = TempDir::new();
    let own = dir.file("tembuku");
    copy_binary(&own);
    // Runs this copy in place of the program that the harness names.
    let run = dir.write("run", &format!("shift; exec {} \"$@\"\n", own.display()));
    let mut tembuku = Succession::start_under(&format!("sh {}", run.display()), &config);
    let streams = Streams::start(front, 20);
    fs::remove_file(&own).unwrap();
    let output = tembuku.try_upgrade(&[]);
    let printed = text(&output);
    assert_eq!(output.status.code(), Some(1), "{printed}");
    assert!(
        printed.contains("cannot run") && printed.contains("No such file"),
        "{printed}"
    );
    copy_binary(&own);
    tembuku.upgrade();
    tembuku.wait_alone();
    assert_eq!(streams.finish(), 0);
}

//! The rights to connect to a unix listener: `unix_mode`, `unix_owner`, `unix_group`.

use crate::harness::{
    ports,
    proc::{self, command, text},
    secs,
    server::{list, named},
    tembuku::{Tembuku, binary, copy_binary},
    temp::TempDir,
};
use std::{
    fs,
    net::TcpListener,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

fn config(bind: &str, keys: &str, backends: &str) -> String {
    format!(
        "[listeners.l]\nbind = {bind}\nupstream = \"u\"\n{keys}\n\
         [upstreams.u]\nbackends = {backends}\n"
    )
}

/// Starts it under a umask that takes everything from others.
fn start(keys: &str, backends: &str) -> (Tembuku, PathBuf) {
    let config = config("\"unix:{dir}/l.sock\"", keys, backends);
    let dir = TempDir::new();
    let umask = dir.write("umask.sh", "umask 077; exec \"$@\"");
    let tembuku = Tembuku::start_under(&format!("sh {}", umask.display()), &config);
    let path = tembuku.dir.file("l.sock");
    // Others have to get through the folder of the test.
    fs::set_permissions(tembuku.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    (tembuku, path)
}

/// What a user with these numbers reads from the socket, or the error.
fn ask_as(user: u32, group: u32, path: &Path) -> String {
    let mut setpriv = Command::new("setpriv");
    setpriv.args(["--reuid", &user.to_string(), "--regid", &group.to_string()]);
    setpriv.args(["--clear-groups", "socat", "-u"]);
    setpriv.arg(format!("UNIX-CONNECT:{},readbytes=3", path.display()));
    setpriv.arg("STDOUT");
    text(&proc::run(secs(10), setpriv))
}

fn rights(path: &Path) -> (u32, u32, u32) {
    let meta = fs::metadata(path).unwrap();
    (meta.mode() & 0o7777, meta.uid(), meta.gid())
}

#[test]
fn every_user_may_connect_by_default() {
    let servers = named(1);
    let (_tembuku, path) = start("", &list(&servers));
    assert_eq!(rights(&path), (0o666, 0, 0));
    let message = ask_as(54_321, 54_321, &path);
    assert!(message.contains("b1"), "{message}");
}

#[test]
fn only_the_owner_or_the_group() {
    let servers = named(1);
    let keys = "unix_mode = \"0660\"\nunix_owner = \"nobody\"\nunix_group = \"54322\"";
    let (_tembuku, path) = start(keys, &list(&servers));
    let nobody = 65_534;
    assert_eq!(rights(&path), (0o660, nobody, 54_322));
    for (user, group, may) in [
        (nobody, 54_321, true),
        (54_321, 54_322, true),
        (54_321, 54_321, false),
    ] {
        let message = ask_as(user, group, &path);
        assert_eq!(message.contains("b1"), may, "{user}:{group}: {message}");
        assert_eq!(message.contains("Permission denied"), !may, "{message}");
    }
}

#[test]
fn an_unknown_name_is_an_error_before_anything_is_bound() {
    let dir = TempDir::new();
    let (front, path) = (ports::free_addr(), dir.file("l.sock"));
    let bind = format!("[\"{front}\", \"unix:{}\"]", path.display());
    let keys = "unix_owner = \"no-such-user\"\nunix_group = \"root\"";
    let file = dir.write("t.toml", &config(&bind, keys, "[\"127.0.0.1:1\"]"));
    // Bound already: a later step would report another error.
    let _taken = TcpListener::bind(front).unwrap();
    let mut run = Command::new(binary());
    run.args(["run", "-c"]).arg(&file);
    let output = proc::run(secs(10), run);
    let message = text(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    let wanted = "listener l: unix_owner: there is no user \"no-such-user\"";
    assert!(message.contains(wanted), "{message}");
    assert!(
        !message.contains("cannot listen") && !path.exists(),
        "{message}"
    );
}

/// A process without privileges cannot give a file away.
#[test]
fn an_owner_takes_privileges() {
    let dir = TempDir::new();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let copy = dir.file("tembuku");
    copy_binary(&copy);
    let path = dir.file("l.sock");
    let bind = format!("\"unix:{}\"", path.display());
    let text_of = config(&bind, "unix_owner = \"root\"", "[\"127.0.0.1:1\"]");
    let file = dir.write("t.toml", &text_of);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let line = format!(
        "setpriv --reuid 54321 --regid 54321 --clear-groups {} run -c {}",
        copy.display(),
        file.display()
    );
    let output = proc::run(secs(10), command(&line));
    let message = text(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(
        message.contains("cannot be given to that owner"),
        "{message}"
    );
    assert!(!path.exists(), "its file is gone");
}

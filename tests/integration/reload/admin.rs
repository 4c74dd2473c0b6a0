//! Addresses of the admin side that a reload changes.

use super::{Setup, setup};
use crate::harness::{
    http, net, ports,
    proc::{self, text},
    secs,
    tembuku::cli,
    wait_until,
};
use rustix::process::Signal;
use serde_json::Value;
use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Output,
};

fn reload_by(socket: &Path) -> Output {
    cli(&["reload", "--socket", socket.to_str().unwrap()])
}

#[track_caller]
fn succeed(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", text(output));
    assert!(output.stderr.is_empty(), "{}", text(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn answers(addr: SocketAddr) -> bool {
    http::get(addr, "/livez").is_ok_and(|answer| answer.status == 200)
}

fn is_served(socket: &Path) -> bool {
    http::request_unix(socket, "GET", "/livez", "").is_ok_and(|answer| answer.status == 200)
}

impl Setup {
    fn socket(&self, name: &str) -> PathBuf {
        self.tembuku.dir.file(name)
    }

    /// The value of this key below `[admin]`, as TOML; `None`: without it.
    #[track_caller]
    fn set_admin(&self, key: &str, value: Option<&str>) {
        let prefix = format!("{key} = ");
        let config = self.config();
        let (before, after) = config.split_once("[admin]\n").unwrap();
        let (keys, rest) = after.split_once("\n[").unwrap();
        let mut keys: Vec<&str> = keys.lines().filter(|l| !l.starts_with(&prefix)).collect();
        let line = value.map(|value| format!("{prefix}{value}"));
        keys.extend(line.as_deref());
        self.write(&format!("{before}[admin]\n{}\n[{rest}", keys.join("\n")));
    }
}

fn quoted(value: impl ToString) -> String {
    format!("\"{}\"", value.to_string())
}

#[test]
fn the_socket_moves_and_its_client_gets_the_report() {
    let setup = setup();
    let (mut client, _) = net::session(setup.front).unwrap();
    let names = ["admin.sock", "two.sock"].map(|name| setup.socket(name));
    for n in 1..=20 {
        let [old, new] = [&names[(n + 1) % 2], &names[n % 2]];
        setup.set_admin("socket", Some(&quoted(new.display())));
        let shown = succeed(&reload_by(old));
        assert!(shown.contains("process admin: changed"), "{shown}");
        assert!(shown.contains(new.to_str().unwrap()), "{shown}");
        assert!(!old.exists(), "its file is removed");
        assert!(is_served(new));
        // By the file, which names the new one.
        let shown = succeed(&cli(&["reload", "-c", &setup.file()]));
        assert!(shown.contains("no changes"), "{shown}");
    }
    net::echo(&mut client, "still").unwrap();
    let mode = fs::metadata(&names[0]).unwrap();
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
}

#[test]
fn the_address_moves_also_to_the_wildcard_and_back() {
    let setup = setup();
    let socket = setup.socket("admin.sock");
    let first = setup.tembuku.admin;
    let other = ports::free_addr();
    let wildcard = SocketAddr::from(([0, 0, 0, 0], other.port()));
    for listen in [other, wildcard, other, first, wildcard, first] {
        setup.set_admin("listen", Some(&quoted(listen)));
        succeed(&reload_by(&socket));
        let (is_there, is_gone) = match listen == first {
            true => (first, other),
            false => (other, first),
        };
        assert!(answers(is_there), "{listen}");
        assert!(TcpStream::connect(is_gone).is_err(), "{listen}");
    }
}

/// Each binds beside the other, which leaves when both are bound. A failure leaves all as it was.
#[test]
fn addresses_move_between_a_listener_and_the_admin_side() {
    let setup = setup();
    let socket = setup.socket("admin.sock");
    let (front, admin) = (setup.front, setup.tembuku.admin);
    let (mut held, _) = net::session(front).unwrap();
    let first = setup.config();
    let swapped = first
        .replace(&front.to_string(), "FRONT")
        .replace(&admin.to_string(), &front.to_string())
        .replace("FRONT", &admin.to_string());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let more = format!(
        "[listeners.more]\nbind = \"{}\"\nupstream = \"back\"\n",
        taken.local_addr().unwrap()
    );
    for _ in 0..3 {
        setup.write(&(swapped.clone() + &more));
        let failed = reload_by(&socket);
        assert_eq!(failed.status.code(), Some(1), "{}", text(&failed));
        assert!(answers(admin));
        assert!(net::ask(front).is_ok());
        setup.write(&swapped);
        succeed(&reload_by(&socket));
        for _ in 0..20 {
            assert!(answers(front));
            assert!(net::ask(admin).is_ok());
        }
        setup.write(&first);
        succeed(&reload_by(&socket));
        for _ in 0..20 {
            assert!(answers(admin));
            assert!(net::ask(front).is_ok());
        }
    }
    net::echo(&mut held, "still").unwrap();
    // One of the two alone.
    let other = ports::free_addr();
    let moved = first
        .replace(&admin.to_string(), &other.to_string())
        .replace(&front.to_string(), &admin.to_string());
    setup.write(&moved);
    succeed(&reload_by(&socket));
    assert!(answers(other) && net::ask(admin).is_ok());
    setup.write(&first);
    succeed(&reload_by(&socket));
    assert!(answers(admin) && net::ask(front).is_ok());
}

/// Although the move needs SO_REUSEPORT, a second process does not share the address by mistake.
#[test]
fn a_moved_address_is_in_use_for_others() {
    let setup = setup();
    let listen = SocketAddr::from(([0, 0, 0, 0], setup.tembuku.admin.port()));
    setup.set_admin("listen", Some(&quoted(listen)));
    succeed(&reload_by(&setup.socket("admin.sock")));
    let front = ports::free_addr();
    let config = setup.tembuku.dir.write(
        "second.toml",
        &format!(
            "[admin]\nlisten = \"{listen}\"\n\
             [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
             [upstreams.u]\nbackends = [\"127.9.0.1:1\"]\n"
        ),
    );
    let second = cli(&["run", "-c", config.to_str().unwrap()]);
    assert_eq!(second.status.code(), Some(1), "{}", text(&second));
    assert!(
        text(&second).contains("Address already in use"),
        "{}",
        text(&second)
    );
}

#[test]
fn addresses_come_and_go_and_a_signal_does_the_same() {
    let setup = setup();
    let socket = setup.socket("admin.sock");
    setup.set_admin("listen", None);
    succeed(&reload_by(&socket));
    assert!(TcpStream::connect(setup.tembuku.admin).is_err());
    assert!(is_served(&socket));
    let with_admin = setup.config();
    let (before, after) = with_admin.split_once("[admin]\n").unwrap();
    let (_, after) = after.split_once("\n[").unwrap();
    setup.write(&format!("{before}[{after}"));
    succeed(&reload_by(&socket));
    assert!(!socket.exists(), "its file is removed");
    assert_eq!(net::ask(setup.front).unwrap(), "b1");
    setup.write(&with_admin);
    setup.tembuku.proc.signal(Signal::HUP);
    wait_until("the socket is served", secs(10), || is_served(&socket));
    setup.set_admin("listen", Some(&quoted(setup.tembuku.admin)));
    setup.tembuku.proc.signal(Signal::HUP);
    wait_until("the address is served", secs(10), || {
        answers(setup.tembuku.admin)
    });
}

#[test]
fn an_address_that_cannot_be_had_changes_nothing() {
    let setup = setup();
    let socket = setup.socket("admin.sock");
    let before = setup.status();
    let config = setup.config();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let assert_unchanged = || {
        assert!(answers(setup.tembuku.admin));
        assert!(is_served(&socket));
        assert_eq!(setup.status()["process"], before["process"]);
    };
    // An address of another program.
    let addr = taken.local_addr().unwrap();
    setup.set_admin("listen", Some(&quoted(addr)));
    let shown = setup.fail_to_reload();
    assert!(
        shown.contains(&format!("admin: cannot listen on {addr}")),
        "{shown}"
    );
    assert_unchanged();
    // A good address beside a socket without a folder.
    let free = ports::free_addr();
    setup.set_admin("listen", Some(&quoted(free)));
    setup.set_admin(
        "socket",
        Some(&quoted(setup.socket("missing/too/admin.sock").display())),
    );
    let shown = setup.fail_to_reload();
    assert!(shown.contains("its folder must be there"), "{shown}");
    assert!(TcpStream::connect(free).is_err(), "nothing is left over");
    assert_unchanged();
    // Good addresses of the admin side, and a listener that cannot be bound.
    setup.write(&config);
    let other = setup.socket("other.sock");
    setup.set_admin("listen", Some(&quoted(free)));
    setup.set_admin("socket", Some(&quoted(other.display())));
    setup.replace(
        &quoted(setup.front),
        &format!("[\"{}\", \"{addr}\"]", setup.front),
    );
    let shown = setup.fail_to_reload();
    assert!(shown.contains("listener front: cannot listen"), "{shown}");
    assert!(TcpStream::connect(free).is_err(), "nothing is left over");
    assert!(!other.exists(), "nothing is left over");
    assert_unchanged();
    let dry = proc::text(&setup.try_reload(&["--dry-run"]));
    assert!(dry.contains("process admin: changed"), "{dry}");
    assert!(!other.exists(), "a dry run binds nothing");
}

/// A client that asks again and again at an address that goes away is answered or refused, never
/// cut off in an answer.
#[test]
fn what_was_asked_before_is_answered() {
    let setup = setup();
    let (old, new) = (setup.socket("admin.sock"), setup.socket("new.sock"));
    let mut waiting = UnixStream::connect(&old).unwrap();
    waiting.set_read_timeout(Some(secs(10))).unwrap();
    let cursor: Value = serde_json::from_str(&setup.tembuku.get("/api/v1/events").body).unwrap();
    let cursor = cursor["cursor"]
        .as_str()
        .map_or_else(String::new, |c| format!("&after={c}"));
    write!(
        waiting,
        "GET /api/v1/events?wait=1s{cursor} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )
    .unwrap();
    setup.set_admin("socket", Some(&quoted(new.display())));
    succeed(&reload_by(&old));
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.trim_end().ends_with('}'), "{answer}");
}

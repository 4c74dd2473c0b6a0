//! What else takes part in an upgrade: the service manager, limits, other commands.

use super::{Succession, front_of, listener, upstream};
use crate::harness::{
    http, millis, net, poll, ports, proc::text, secs, server::Server, tembuku::cli, temp::TempDir,
    wait_until,
};
use rustix::process::Signal;
use std::{os::unix::net::UnixDatagram, thread};

#[test]
fn the_service_manager_learns_of_the_new_process_from_the_old_one() {
    let dir = TempDir::new();
    let path = dir.file("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(millis(50))).unwrap();
    let receive_message = || {
        let mut bytes = [0; 4096];
        let received = poll(secs(10), || manager.recv(&mut bytes).ok());
        String::from_utf8(bytes[..received.expect("a message")].to_vec()).unwrap()
    };
    let server = Server::named("a");
    let (_, config) = front_of(&server);
    let environment = format!("env NOTIFY_SOCKET={}", path.display());
    let mut tembuku = Succession::start_under(&environment, &config);
    assert!(receive_message().starts_with("READY=1"));
    tembuku.upgrade();
    let first = format!("MAINPID={}\nREADY=1\nSTATUS=1 listener", tembuku.current);
    assert_eq!(receive_message(), first);
    tembuku.upgrade();
    // Nothing else comes in between: neither says that it stops, nor that it starts.
    assert!(receive_message().starts_with(&format!("MAINPID={}\n", tembuku.current)));
}

/// More sockets than go into a message, by a user without privileges.
#[test]
fn many_sockets_go_over_and_too_many_are_refused() {
    let server = Server::named("a");
    // Where no other test takes ports.
    let host = std::net::Ipv4Addr::new(127, 9, 9, 9);
    let (first, many) = (21_000, 150);
    let config = "[process]\nworkers = 2\n".to_owned()
        + &listener("l", &format!("{host}:{first}-{}", first + many - 1), "u")
        + &upstream("u", &format!("\"{}\"", server.addr));
    let user = "setpriv --reuid=nobody --regid=nogroup --clear-groups";
    let mut tembuku = Succession::start_under(&format!("prlimit --nofile=2000 {user}"), &config);
    tembuku.upgrade();
    tembuku.wait_alone();
    for port in [first, first + many - 1] {
        let served = net::ask((host, port).into());
        assert_eq!(served.unwrap(), "a");
    }
    drop(tembuku);
    // There is no room for a second descriptor of each.
    let tembuku = Succession::start_under(&format!("prlimit --nofile=500 {user}"), &config);
    let output = tembuku.try_upgrade(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output).contains("cannot copy the listening sockets"),
        "{}",
        text(&output)
    );
    assert!(text(&output).contains("LimitNOFILE="));
    assert_eq!(tembuku.pid(), tembuku.current);
    let served = net::ask((host, first).into());
    assert_eq!(served.unwrap(), "a");
}

#[test]
fn one_upgrade_at_a_time_and_none_during_a_drain() {
    let server = Server::named("a");
    let front = ports::free_addr();
    let config = "[process]\ndrain_delay = \"20s\"\n".to_owned()
        + &listener("l", &front.to_string(), "u")
        + &upstream("u", &format!("\"{}\"", server.addr));
    let mut tembuku = Succession::start(&config);
    let outputs = thread::scope(|scope| {
        let upgrade = || tembuku.try_upgrade(&[]);
        let both = [scope.spawn(upgrade), scope.spawn(upgrade)];
        both.map(|one| one.join().unwrap())
    });
    tembuku.current = tembuku.pid();
    let failed = outputs.iter().filter(|o| o.status.code() != Some(0));
    for output in failed {
        let printed = text(output);
        let is_known = [
            "another upgrade is under way",
            "the process stops",
            "cannot reach",
            "still has",
        ]
        .iter()
        .any(|words| printed.contains(words));
        assert!(is_known, "{printed}");
    }
    assert!(outputs.iter().any(|output| output.status.success()));
    tembuku.wait_alone();
    let pid = rustix::process::Pid::from_raw(tembuku.current as i32).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    wait_until("it drains", secs(10), || {
        http::request_unix(&tembuku.socket(), "GET", "/readyz/node", "")
            .is_ok_and(|answer| answer.status == 503)
    });
    let socket = tembuku.socket();
    let output = cli(&["upgrade", "--socket", socket.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output).contains("the process stops"),
        "{}",
        text(&output)
    );
    drop(net::session(front).unwrap());
}

#[test]
fn sessions_stay_with_the_old_process_where_the_file_says_so() {
    let server = Server::named("a");
    let (front, config) = front_of(&server);
    let mut tembuku =
        Succession::start(&("[process]\nhandover = \"listeners\"\n".to_owned() + &config));
    let (mut session, _) = net::session(front).unwrap();
    let out = tembuku.upgrade();
    assert!(out.contains("1 session and 0 flows stay"), "{out}");
    net::echo(&mut session, "still served").unwrap();
    let previous = tembuku.status()["process"]["previous"].take();
    assert_eq!(previous["pid"], tembuku.first.proc.id());
    drop(session);
    tembuku.wait_alone();
}

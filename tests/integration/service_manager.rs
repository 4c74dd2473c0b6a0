//! What a service manager hears of the process, by sd_notify.

use crate::harness::{
    millis, poll, ports,
    proc::Proc,
    secs,
    server::Server,
    tembuku::{Tembuku, cli},
    temp::TempDir,
    threads::stall,
    wait_until,
};
use rustix::process::Signal;
use std::{
    fs,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    time::{Duration, Instant},
};

struct Setup {
    tembuku: Tembuku,
    manager: UnixDatagram,
    _server: Server,
    _dir: TempDir,
}

/// `environment`: as for `env`.
fn setup(manager: UnixDatagram, environment: &str) -> Setup {
    let server = Server::named("a");
    let dir = TempDir::new();
    let config = format!(
        "[process]\nworkers = 2\n[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
         [log]\nformat = \"json\"\n[listeners.l]\nbind = \"{}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [\"{}\"]\n",
        ports::free_addr(),
        server.addr
    );
    manager.set_read_timeout(Some(millis(50))).unwrap();
    Setup {
        tembuku: Tembuku::start_under(&format!("env {environment}"), &config),
        manager,
        _server: server,
        _dir: dir,
    }
}

fn with_file(more: &str) -> Setup {
    let dir = TempDir::new();
    let path = dir.file("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let environment = format!("NOTIFY_SOCKET={} {more}", path.display());
    let setup = setup(manager, &environment);
    Setup { _dir: dir, ..setup }
}

impl Setup {
    /// The next message that is none of a watchdog; those are counted.
    #[track_caller]
    fn receive(&self) -> String {
        let received = poll(secs(10), || {
            Some(self.try_hear()?).filter(|m| m != "WATCHDOG=1")
        });
        received.expect("a message")
    }

    fn try_hear(&self) -> Option<String> {
        let mut bytes = [0; 4096];
        let length = self.manager.recv(&mut bytes).ok()?;
        Some(String::from_utf8(bytes[..length].to_vec()).unwrap())
    }

    #[track_caller]
    fn reload(&self, code: i32) {
        let socket = self.tembuku.dir.file("admin.sock");
        let output = cli(&["reload", "--socket", socket.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(code));
    }

    /// Whether a watchdog is fed within `limit`.
    fn is_fed(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            if self
                .try_hear()
                .is_some_and(|message| message == "WATCHDOG=1")
            {
                return true;
            }
        }
        false
    }
}

#[test]
fn start_reload_and_stop_are_announced() {
    let mut setup = with_file("");
    assert_eq!(setup.receive(), "READY=1\nSTATUS=1 listener");
    setup.reload(0);
    let reloading = setup.receive();
    let micros = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
    let micros: u64 = micros.expect("the time").parse().unwrap();
    let uptime = fs::read_to_string("/proc/uptime").unwrap();
    let uptime: f64 = uptime.split_whitespace().next().unwrap().parse().unwrap();
    let ago = uptime - micros as f64 / 1e6;
    assert!((-1.0..60.0).contains(&ago), "{ago}");
    assert_eq!(setup.receive(), "READY=1\nSTATUS=1 listener");

    fs::write(setup.tembuku.dir.file("tembuku.toml"), "nonsense").unwrap();
    setup.reload(1);
    assert!(setup.receive().starts_with("RELOADING=1\n"));
    assert_eq!(
        setup.receive(),
        "READY=1\nSTATUS=the last reload failed, nothing was changed"
    );

    setup.tembuku.proc.signal(Signal::TERM);
    // drain_timeout and the margin.
    assert_eq!(
        setup.receive(),
        "STOPPING=1\nEXTEND_TIMEOUT_USEC=40000000\nSTATUS=draining, 0 sessions"
    );
    let status = setup.tembuku.proc.wait(secs(10)).expect("an end");
    assert_eq!(status.code(), Some(0));
    assert_eq!(setup.try_hear(), None, "no watchdog was asked for");
}

#[test]
fn a_watchdog_is_fed_while_all_workers_run() {
    let name = format!("tembuku-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let manager = UnixDatagram::bind_addr(&address).unwrap();
    let setup = setup(
        manager,
        &format!("NOTIFY_SOCKET=@{name} WATCHDOG_USEC=600000"),
    );
    assert!(setup.is_fed(secs(10)));
    let stalled: Proc = stall(&setup.tembuku.proc, setup.tembuku.dir.path(), "worker-1");
    wait_until("the watchdog is not fed", secs(20), || {
        // The queue of the manager is short.
        while setup.try_hear().is_some() {}
        setup.tembuku.proc.stderr().contains("watchdog is not fed")
    });
    while setup.try_hear().is_some() {}
    assert!(!setup.is_fed(millis(1_500)));
    drop(stalled);
    assert!(setup.is_fed(secs(20)));
}

#[test]
fn an_address_that_is_none_is_logged() {
    let server = Server::named("a");
    let tembuku = Tembuku::start_under(
        "env NOTIFY_SOCKET=vsock:2:1",
        &format!(
            "[listeners.l]\nbind = \"{}\"\nupstream = \"u\"\n[upstreams.u]\nbackends = [\"{}\"]\n",
            ports::free_addr(),
            server.addr
        ),
    );
    wait_until("a line in the log", secs(10), || {
        let log = tembuku.proc.stderr();
        log.contains("NOTIFY_SOCKET is not understood") && log.contains("vsock:2:1")
    });
}

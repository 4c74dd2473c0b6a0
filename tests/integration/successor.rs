//! A process that starts while its predecessor drains.

use crate::harness::{
    http, net, poll, ports,
    proc::text,
    secs,
    server::Server,
    tembuku::{Tembuku, cli},
    temp::TempDir,
    udp::{self, UdpServer, V4},
    wait_until,
};
use rustix::process::Signal;
use std::{net::SocketAddr, os::unix::net::UnixStream, path::PathBuf};

struct Setup {
    tcp: SocketAddr,
    udp: SocketAddr,
    dir: TempDir,
    server: Server,
    echo: UdpServer,
}

impl Setup {
    fn new() -> Setup {
        Setup {
            tcp: ports::free_addr(),
            udp: ports::free_addr(),
            dir: TempDir::new(),
            server: Server::named("a"),
            echo: UdpServer::echo(V4),
        }
    }

    fn start(&self, drain_delay: &str) -> Tembuku {
        Tembuku::start(&format!(
            "[process]\nworkers = 2\ndrain_delay = \"{drain_delay}\"\ndrain_timeout = \"1m\"\n\
             [admin]\nsocket = \"{}\"\n[log]\nformat = \"json\"\n\
             [listeners.t]\nbind = \"{}\"\nupstream = \"s\"\n\
             [listeners.x]\nbind = \"unix:{}\"\nupstream = \"s\"\n\
             [listeners.d]\nprotocol = \"udp\"\nbind = \"{}\"\nupstream = \"e\"\n\
             [upstreams.s]\nbackends = [\"{}\"]\n[upstreams.e]\nbackends = [\"{}\"]\n",
            self.socket().display(),
            self.tcp,
            self.dir.file("x.sock").display(),
            self.udp,
            self.server.addr,
            self.echo.addr
        ))
    }

    /// With the configuration of `old`, and so all its addresses.
    #[track_caller]
    fn start_after(&self, old: &Tembuku) -> Tembuku {
        let config = old.dir.file("tembuku.toml");
        let args = ["run", "-c", config.to_str().unwrap()];
        let new = Tembuku::start_with(&args, old.admin);
        wait_until("it answers", secs(10), || {
            self.pid() == Some(u64::from(new.proc.id()))
        });
        new
    }

    fn socket(&self) -> PathBuf {
        self.dir.file("admin.sock")
    }

    /// Of the process that answers on the admin socket.
    fn pid(&self) -> Option<u64> {
        let answer = http::request_unix(&self.socket(), "GET", "/api/v1/status", "").ok()?;
        let status: serde_json::Value = serde_json::from_str(&answer.body).ok()?;
        status["process"]["pid"].as_u64()
    }

    #[track_caller]
    fn assert_served(&self) {
        drop(net::session(self.tcp).unwrap());
        let mut unix = UnixStream::connect(self.dir.file("x.sock")).unwrap();
        assert_eq!(net::read_line(&mut unix).unwrap(), "a");
        let client = udp::client(self.udp);
        assert_eq!(udp::ask(&client, "hello"), "hello");
    }
}

#[test]
fn it_gets_every_address_and_the_sessions_stay() {
    let setup = Setup::new();
    let mut old = setup.start("0s");
    let (mut client, _) = net::session(setup.tcp).unwrap();
    let flow = udp::client(setup.udp);
    assert_eq!(udp::ask(&flow, "one"), "one");
    old.proc.signal(Signal::TERM);
    wait_until("it drains", secs(10), || {
        old.get("/readyz/node").status == 503
    });
    let mut new = setup.start_after(&old);
    setup.assert_served();
    assert_eq!(new.get("/readyz/node").status, 200);
    // What was there goes on: the connection where it was, the flow at the successor.
    net::echo(&mut client, "still here").unwrap();
    assert_eq!(udp::ask(&flow, "two"), "two");
    assert!(old.proc.ended().is_none());
    drop(client);
    let ended = old
        .proc
        .wait(secs(10))
        .expect("an end with the last session");
    assert_eq!(ended.code(), Some(0));
    // The files are the successor's.
    setup.assert_served();
    assert_eq!(setup.pid(), Some(u64::from(new.proc.id())));
    assert_eq!(new.terminate().code(), Some(0));
}

#[test]
fn a_process_that_does_not_drain_keeps_everything() {
    let setup = Setup::new();
    let old = setup.start("0s");
    let config = old.dir.file("tembuku.toml");
    let second = cli(&["run", "-c", config.to_str().unwrap()]);
    assert_eq!(second.status.code(), Some(1), "{}", text(&second));
    let socket = setup.socket();
    let refused = http::request_unix(&socket, "POST", "/api/v1/release", "").unwrap();
    assert_eq!(refused.status, 409);
    // A node that the operator has drained is not about to stop.
    let drained = cli(&["drain", "--node", "--socket", socket.to_str().unwrap()]);
    assert_eq!(drained.status.code(), Some(0));
    let second = cli(&["run", "-c", config.to_str().unwrap()]);
    assert_eq!(second.status.code(), Some(1), "{}", text(&second));
    setup.assert_served();
    assert_eq!(setup.pid(), Some(u64::from(old.proc.id())));
}

#[test]
fn it_ends_the_delay_of_its_predecessor() {
    let setup = Setup::new();
    let mut old = setup.start("1m");
    old.proc.signal(Signal::TERM);
    wait_until("it leaves", secs(10), || {
        old.get("/readyz/node").status == 503
    });
    setup.assert_served();
    let new = setup.start_after(&old);
    let ended = poll(secs(10), || old.proc.ended());
    assert_eq!(ended.expect("an end").code(), Some(0));
    setup.assert_served();
    assert_eq!(new.get("/readyz/node").status, 200);
}

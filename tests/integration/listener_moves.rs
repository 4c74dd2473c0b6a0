//! Listening sockets are closed and replaced by reloads, and no client that has connected is lost.

use crate::harness::{
    net::{self, echo},
    ports, secs,
    server::Server,
    tembuku::Tembuku,
    wait_until,
};
use std::{
    io,
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

/// Reloads; the address moves, or a listener comes and goes, in each.
const MOVES: usize = 50;
/// Between two connects of one thread: the machine has other work, too.
const PAUSE: Duration = Duration::from_micros(500);

/// What clients of one address met.
#[derive(Default)]
struct Storm {
    served: AtomicU64,
    refused: AtomicU64,
    /// Connected, and then not served.
    lost: AtomicU64,
}

impl Storm {
    fn connect<S: io::Read>(&self, connect: impl FnOnce() -> io::Result<S>, end: impl FnOnce(S)) {
        let count = match connect() {
            Err(_) => &self.refused,
            Ok(mut stream) => match net::read_line(&mut stream) {
                Ok(line) => {
                    assert_eq!(line, "b");
                    end(stream);
                    &self.served
                }
                Err(error) => {
                    println!("connected, and then: {error}");
                    &self.lost
                }
            },
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn tcp(&self, addr: SocketAddr) {
        // A reset leaves no port in TIME_WAIT.
        self.connect(|| TcpStream::connect(addr), net::reset);
    }

    fn unix(&self, path: &Path) {
        self.connect(|| UnixStream::connect(path), drop);
    }

    fn counts(&self) -> [u64; 3] {
        [&self.served, &self.refused, &self.lost].map(|n| n.load(Ordering::Relaxed))
    }
}

/// Calls `connect` again and again until the end.
fn storm<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    is_over: &'scope AtomicBool,
    connect: impl Fn() + Send + 'scope,
) {
    scope.spawn(move || {
        while !is_over.load(Ordering::Relaxed) {
            connect();
            thread::sleep(PAUSE);
        }
    });
}

#[test]
fn no_client_is_lost_when_listening_sockets_are_replaced_or_closed() {
    let server = Server::named("b");
    let (moving, passing) = (ports::free_addr(), ports::free_addr());
    let config = |n: usize| {
        let ip = ["127.0.0.1", "0.0.0.0"][n % 2];
        let name = ["one", "two"][n % 2];
        let mut text = format!(
            "[process]\nworkers = 2\n[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
             [listeners.moving]\nbind = \"{ip}:{}\"\nupstream = \"u\"\n\
             [listeners.{name}]\nbind = \"unix:{{dir}}/stays\"\nupstream = \"u\"\n\
             [upstreams.u]\nbackends = [\"{}\"]\n",
            moving.port(),
            server.addr
        );
        if n.is_multiple_of(2) {
            text += &format!(
                "[listeners.passing]\nbind = [\"{passing}\", \"unix:{{dir}}/passes\"]\n\
                 upstream = \"u\"\n"
            );
        }
        text
    };
    let tembuku = Tembuku::start(&config(0));
    let [stays, passes]: [PathBuf; 2] = ["stays", "passes"].map(|name| tembuku.dir.file(name));
    let (mut held, _) = net::session(moving).unwrap();
    let storms: [Storm; 4] = Default::default();
    let [at_moving, at_passing, at_stays, at_passes] = &storms;
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        storm(scope, &is_over, || at_moving.tcp(moving));
        storm(scope, &is_over, || at_moving.tcp(moving));
        storm(scope, &is_over, || at_passing.tcp(passing));
        storm(scope, &is_over, || at_stays.unix(&stays));
        storm(scope, &is_over, || at_passes.unix(&passes));
        for n in 1..=MOVES {
            tembuku.reload(&config(n));
            echo(&mut held, &format!("line {n}")).unwrap();
            // A client that is refused by the kernel tries again after a second.
            let served = || at_moving.counts()[0];
            let before = served();
            wait_until("clients are served", secs(20), || served() > before + 1);
        }
        is_over.store(true, Ordering::Relaxed);
    });
    for (what, storm) in ["moving", "passing", "stays", "passes"].iter().zip(&storms) {
        let [served, refused, lost] = storm.counts();
        println!("{what}: {served} served, {refused} refused, {lost} lost");
        assert!(served > 0, "{what}");
        assert_eq!(lost, 0, "{what}");
    }
    assert_eq!(at_moving.counts()[1], 0, "refused at an address that stays");
    assert_eq!(at_stays.counts()[1], 0, "refused at a path that stays");
    drop(held);
    tembuku.wait_idle();
}

#[test]
fn sessions_of_an_older_plan_are_counted() {
    let server = Server::named("b");
    let front = ports::free_addr();
    let config = |retries: u32| {
        format!(
            "[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
             [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\nretries = {retries}\n\
             [upstreams.u]\nbackends = [\"{}\"]\n",
            server.addr
        )
    };
    let tembuku = Tembuku::start(&config(1));
    let counts = || {
        let status = tembuku.status();
        let listener = &status["listeners"][0];
        ["connections", "older_plan"].map(|key| listener[key].as_u64().unwrap())
    };
    let sessions: Vec<_> = (0..3).map(|_| net::session(front).unwrap()).collect();
    assert_eq!(counts(), [3, 0]);
    tembuku.reload(&config(1));
    assert_eq!(counts(), [3, 0], "nothing has changed");
    tembuku.reload(&config(2));
    assert_eq!(counts(), [3, 3]);
    let more = net::session(front).unwrap();
    assert_eq!(counts(), [4, 3]);
    assert!(
        tembuku
            .get("/")
            .body
            .contains("3 sessions with earlier settings")
    );
    tembuku.reload(&config(3));
    assert_eq!(counts(), [4, 4]);
    drop((sessions, more));
    tembuku.wait_idle();
    assert_eq!(counts(), [0, 0]);
}

//! Streams of known bytes through many sessions at once, all on one thread.

use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};
use tembuku::internals::{plan::Addr, socket::unacknowledged};

/// Nothing has moved for so long: bytes were lost.
const STUCK: Duration = Duration::from_secs(20);
/// Each way is written in so many parts, one after each step of the moves: they are made while
/// bytes flow, however slow they are.
pub const STEPS: usize = 12;
/// A prime, so that no shift by a usual buffer size leads to the same bytes.
const PERIOD: usize = 65_521;
const CHUNK: usize = 64 << 10;

/// How a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// Each side ends when it has sent everything.
    Ends,
    /// As that, with a byte of urgent data on the way to the backend.
    EndsAfterUrgentData,
    /// The client sends everything, and resets when that has arrived.
    ClientResets,
    BackendResets,
}

impl Finish {
    pub const ALL: &'static [Self] = &[
        Self::Ends,
        Self::EndsAfterUrgentData,
        Self::ClientResets,
        Self::BackendResets,
    ];

    pub fn of_number(number: usize) -> Self {
        match number % 8 {
            0 => Self::ClientResets,
            1 => Self::BackendResets,
            2 => Self::EndsAfterUrgentData,
            _ => Self::Ends,
        }
    }
}

/// Where sessions arrive, one at a time, so that both ends of each are known.
pub struct Pairing {
    tcp: TcpListener,
    unix: UnixListener,
    path: PathBuf,
}

impl Pairing {
    pub fn new(folder: &Path) -> Self {
        let path = folder.join("backend");
        Self {
            tcp: TcpListener::bind("127.0.0.1:0").expect("a port"),
            unix: UnixListener::bind(&path).expect("a socket"),
            path,
        }
    }

    pub fn tcp_address(&self) -> SocketAddr {
        self.tcp.local_addr().expect("an address")
    }

    pub fn unix_path(&self) -> &Path {
        &self.path
    }

    fn accept(&self, listener: &str) -> Socket {
        match listener {
            "to_unix" => self.unix.accept().expect("accepted").0.into(),
            _ => self.tcp.accept().expect("accepted").0.into(),
        }
    }
}

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) % n as u64) as usize
    }
}

/// One way of a session.
struct Way {
    shift: usize,
    total: usize,
    written: usize,
    read: usize,
    has_ended: bool,
    /// The reader and the writer pause until then.
    read_at: Instant,
    write_at: Instant,
    /// Bytes at a time, at most.
    chunk: usize,
}

struct Session {
    number: usize,
    finish: Finish,
    /// Of the client, and of the backend; `None` once it is closed.
    ends: [Option<Socket>; 2],
    /// From the client, and from the backend.
    ways: [Way; 2],
    /// Where the urgent byte goes.
    urgent_at: Option<usize>,
}

pub struct Traffic {
    rng: Rng,
    seed: u64,
    bytes: Vec<u8>,
    sessions: Vec<Session>,
}

#[derive(Debug)]
pub struct Carried {
    /// That were written.
    pub bytes: usize,
    /// That were read.
    pub delivered: usize,
}

impl Traffic {
    pub fn new(listeners: [(&str, Addr); 3], pairing: &Pairing, count: usize) -> Self {
        let given = std::env::var("TEMBUKU_TEST_SEED").ok();
        let seed = given.and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
            let mut bytes = [0; 8];
            let mut random = std::fs::File::open("/dev/urandom").expect("randomness");
            random.read_exact(&mut bytes).expect("randomness");
            u64::from_ne_bytes(bytes) | 1
        });
        let _ = writeln!(io::stderr(), "TEMBUKU_TEST_SEED={seed}");
        let mut rng = Rng(seed);
        let once: Vec<u8> = (0..PERIOD).map(|_| rng.below(256) as u8).collect();
        let bytes = once.repeat(3);
        let sessions = (0..count).map(|number| {
            let (listener, address) = &listeners[number / 8 % 3];
            Session::open(number, address, || pairing.accept(listener), &mut rng)
        });
        let sessions = sessions.collect();
        Self {
            rng,
            seed,
            bytes,
            sessions,
        }
    }

    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Until every session is over. `steps`: of the moves so far.
    pub fn carry(mut self, steps: &AtomicUsize) -> Carried {
        let mut last = Instant::now();
        loop {
            let now = Instant::now();
            let part = (steps.load(Relaxed) + 1).min(STEPS);
            let (mut moved, mut is_over) = (false, true);
            for session in &mut self.sessions {
                moved |= session.step(&self.bytes, &mut self.rng, now, part);
                is_over &= session.is_over();
            }
            if is_over {
                break;
            }
            if moved {
                last = now;
                continue;
            }
            thread::sleep(Duration::from_micros(300));
            assert!(
                last.elapsed() < STUCK,
                "seed {}: stuck: {}",
                self.seed,
                self.stuck()
            );
        }
        let ways = || self.sessions.iter().flat_map(|session| &session.ways);
        Carried {
            bytes: ways().map(|way| way.written).sum(),
            delivered: ways().map(|way| way.read).sum(),
        }
    }

    fn stuck(&self) -> String {
        let mut text = String::new();
        for session in self.sessions.iter().filter(|session| !session.is_over()) {
            let [up, down] = session.ways.each_ref().map(Way::describe);
            text += &format!("{} {:?}: {up}; {down}\n", session.number, session.finish);
        }
        text
    }
}

impl Way {
    fn new(total: usize, rng: &mut Rng, now: Instant) -> Self {
        Self {
            shift: rng.below(PERIOD),
            total,
            written: 0,
            read: 0,
            has_ended: false,
            read_at: now,
            write_at: now,
            chunk: match total {
                ..10_000 => 40,
                10_000..100_000 => 2_000,
                _ => CHUNK,
            },
        }
    }

    /// The bytes from `at` on.
    fn at<'a>(&self, bytes: &'a [u8], at: usize, n: usize) -> &'a [u8] {
        &bytes[(self.shift + at) % PERIOD..][..n]
    }

    fn describe(&self) -> String {
        let Self {
            total,
            written,
            read,
            has_ended,
            ..
        } = self;
        format!("{written} of {total} written, {read} read, ended: {has_ended}")
    }
}

impl Session {
    fn open(number: usize, address: &Addr, accept: impl FnOnce() -> Socket, rng: &mut Rng) -> Self {
        let finish = Finish::of_number(number);
        let client = match address {
            Addr::Tcp(address) => {
                let domain = Domain::for_address(*address);
                let socket = Socket::new(domain, Type::STREAM, None).expect("a socket");
                socket.connect(&(*address).into()).expect("connected");
                socket
            }
            Addr::Unix(path) => {
                let socket = Socket::new(Domain::UNIX, Type::STREAM, None).expect("a socket");
                let address = SockAddr::unix(path).expect("an address");
                socket.connect(&address).expect("connected");
                socket
            }
        };
        let backend = accept();
        for socket in [&client, &backend] {
            socket.set_nonblocking(true).expect("set");
        }
        let now = Instant::now();
        let mut total = || match rng.below(5) {
            // A way without bytes would never end: what ends it is the last write.
            0 | 1 => 1 + rng.below(2_000),
            2 | 3 => 1 + rng.below(300_000),
            // More than fits into the buffers of both sockets and a pipe.
            _ => 500_000 + rng.below(4_000_000),
        };
        let totals = [total(), total()];
        let ways = totals.map(|total| Way::new(total, rng, now));
        let is_tcp = |socket: &Socket| {
            let domain = SockRef::from(socket).domain().expect("a domain");
            domain != Domain::UNIX
        };
        let has_urgent = finish == Finish::EndsAfterUrgentData && is_tcp(&client);
        Self {
            urgent_at: has_urgent.then(|| rng.below(ways[0].total + 1)),
            number,
            finish,
            ends: [Some(client), Some(backend)],
            ways,
        }
    }

    fn is_over(&self) -> bool {
        self.ends.iter().all(Option::is_none)
    }

    /// Which end resets.
    fn resetting(&self) -> Option<usize> {
        match self.finish {
            Finish::ClientResets => Some(0),
            Finish::BackendResets => Some(1),
            Finish::Ends | Finish::EndsAfterUrgentData => None,
        }
    }

    /// Returns whether something has moved.
    fn step(&mut self, bytes: &[u8], rng: &mut Rng, now: Instant, part: usize) -> bool {
        let mut moved = false;
        for way in 0..2 {
            let most = self.ways[way].total * part / STEPS;
            moved |= self.write(way, bytes, rng, now, most);
            moved |= self.read(way, bytes, rng, now);
        }
        self.close_what_is_over();
        moved
    }

    /// `most`: how far this may go so far.
    fn write(
        &mut self,
        from: usize,
        bytes: &[u8],
        rng: &mut Rng,
        now: Instant,
        most: usize,
    ) -> bool {
        let (way, resetting) = (&mut self.ways[from], self.finish);
        let Some(socket) = &self.ends[from] else {
            return false;
        };
        if way.written >= most || now < way.write_at {
            return false;
        }
        if self.urgent_at == Some(way.written) && from == 0 {
            match socket.send_out_of_band(b"!") {
                Ok(_) => self.urgent_at = None,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
                // The backend may be gone.
                Err(_) => self.urgent_at = None,
            }
        }
        let to = match (from, self.urgent_at) {
            (0, Some(at)) => at.min(most),
            _ => most,
        };
        let n = (1 + rng.below(way.chunk)).min(to - way.written);
        match socket.send(way.at(bytes, way.written, n)) {
            Ok(n) => way.written += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
            // The other end has reset.
            Err(e) => {
                let is_expected = matches!(resetting, Finish::ClientResets | Finish::BackendResets);
                assert!(is_expected, "{}: {e}", self.number);
                way.total = way.written;
            }
        }
        if rng.below(40) == 0 {
            way.write_at = now + pause(rng);
        }
        let is_done = way.written == way.total;
        if is_done && self.resetting().is_none() {
            socket.shutdown(std::net::Shutdown::Write).expect("ended");
        }
        true
    }

    fn read(&mut self, from: usize, bytes: &[u8], rng: &mut Rng, now: Instant) -> bool {
        let to = 1 - from;
        let (number, resetting) = (self.number, self.resetting());
        let way = &mut self.ways[from];
        let Some(socket) = &self.ends[to] else {
            return false;
        };
        if way.has_ended || now < way.read_at {
            return false;
        }
        let mut buffer = [0; CHUNK];
        let most = 1 + rng.below(way.chunk);
        match (&*socket).read(&mut buffer[..most]) {
            Ok(0) => way.has_ended = true,
            Ok(n) => {
                let expected = way.at(bytes, way.read, n);
                assert!(
                    buffer[..n] == *expected,
                    "{number}: other bytes at {}",
                    way.read
                );
                way.read += n;
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
            Err(e) => {
                assert!(resetting == Some(from), "{number}: {e}");
                way.has_ended = true;
            }
        }
        if way.has_ended && resetting != Some(to) {
            assert_eq!(way.read, way.total, "{number}: bytes are missing");
        }
        if rng.below(60) == 0 {
            way.read_at = now + pause(rng);
        }
        true
    }

    fn close_what_is_over(&mut self) {
        match self.resetting() {
            None => {
                let is_read = self.ways.iter().all(|way| way.has_ended);
                if is_read && self.ways.iter().all(|way| way.written == way.total) {
                    self.ends = [None, None];
                }
            }
            Some(resetting) => {
                let (own, other) = (&self.ways[resetting], 1 - resetting);
                // What is still on the way to the server would be lost with the reset.
                if let Some(socket) = &self.ends[resetting]
                    && own.written == own.total
                    && unacknowledged(socket).expect("a count") == 0
                {
                    socket.set_linger(Some(Duration::ZERO)).expect("set");
                    self.ends[resetting] = None;
                }
                if self.ends[resetting].is_none() && own.has_ended {
                    self.ends[other] = None;
                }
            }
        }
    }
}

/// Mostly short, sometimes long enough to fill pipes.
fn pause(rng: &mut Rng) -> Duration {
    Duration::from_millis(match rng.below(6) {
        0 => 50 + rng.below(200) as u64,
        _ => rng.below(10) as u64,
    })
}

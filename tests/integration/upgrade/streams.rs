//! Sessions whose bytes are numbered, on one thread: whatever comes back through an echo server is
//! compared with what was sent.

use crate::harness::{net, secs, wait_until};
use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// A prime, so that no shift by a usual size of a buffer leads to the same bytes.
const PERIOD: usize = 251;
/// Sent and not back yet, at most.
const UNDER_WAY: u64 = 6_000;
/// Between two writes of a session.
const PAUSE: Duration = Duration::from_millis(4);

/// Until it is dropped.
pub(crate) struct Streams {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    stop: AtomicBool,
    sessions: Vec<Counts>,
}

#[derive(Default)]
struct Counts {
    /// Bytes that have come back.
    back: AtomicU64,
    is_cut: AtomicBool,
}

struct Session {
    stream: TcpStream,
    number: usize,
    sent: u64,
    next: Instant,
}

impl Streams {
    /// Through a listener before servers that greet and echo.
    #[track_caller]
    pub(crate) fn start(front: SocketAddr, count: usize) -> Self {
        let sessions = (0..count).map(|number| {
            let (stream, _) = net::session(front).unwrap();
            stream.set_nonblocking(true).unwrap();
            Session {
                stream,
                number,
                sent: 0,
                next: Instant::now(),
            }
        });
        let sessions: Vec<Session> = sessions.collect();
        let shared = Arc::new(Shared {
            stop: AtomicBool::default(),
            sessions: sessions.iter().map(|_| Counts::default()).collect(),
        });
        let run = {
            let shared = Arc::clone(&shared);
            move || run(sessions, &shared)
        };
        let streams = Self {
            shared,
            thread: Some(thread::spawn(run)),
        };
        streams.advance("the first bytes");
        streams
    }

    /// Waits until bytes of each session that is left have gone both ways; returns how many are
    /// cut.
    #[track_caller]
    pub(crate) fn advance(&self, what: &str) -> usize {
        let back = |counts: &Counts| counts.back.load(SeqCst);
        let before: Vec<u64> = self.shared.sessions.iter().map(back).collect();
        wait_until(&format!("{what}: all sessions go on"), secs(20), || {
            let mut all = self.shared.sessions.iter().zip(&before);
            let is_over = self.thread.as_ref().unwrap().is_finished();
            assert!(
                !is_over || self.cut() == before.len(),
                "{what}: other bytes"
            );
            // More than may have been under way.
            all.all(|(now, before)| now.is_cut.load(SeqCst) || back(now) > before + UNDER_WAY)
        });
        self.cut()
    }

    /// How many have ended.
    pub(crate) fn cut(&self) -> usize {
        let all = self.shared.sessions.iter();
        all.filter(|counts| counts.is_cut.load(SeqCst)).count()
    }

    /// All bytes that were sent come back; returns how many sessions were cut.
    #[track_caller]
    pub(crate) fn finish(mut self) -> usize {
        self.shared.stop.store(true, SeqCst);
        self.thread.take().unwrap().join().unwrap();
        self.cut()
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn byte(number: usize, at: u64) -> u8 {
    ((at as usize + 7 * number) % PERIOD) as u8
}

fn run(mut sessions: Vec<Session>, shared: &Shared) {
    let mut end = None;
    while !sessions.is_empty() {
        let is_over = shared.stop.load(SeqCst);
        let end = *end.get_or_insert_with(|| is_over.then(|| Instant::now() + secs(20)));
        let mut moved = false;
        sessions.retain_mut(|session| {
            let counts = &shared.sessions[session.number];
            let back = counts.back.load(SeqCst);
            if is_over && back == session.sent {
                return false;
            }
            let now = Instant::now();
            let is_open = session.read(counts, &mut moved)
                && (is_over || now < session.next || session.write(back, now, &mut moved));
            if !is_open {
                counts.is_cut.store(true, SeqCst);
            }
            is_open
        });
        assert!(
            end.is_none_or(|end| Instant::now() < end),
            "bytes have not come back"
        );
        if !moved {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Session {
    /// Returns whether it is open still.
    fn read(&mut self, counts: &Counts, moved: &mut bool) -> bool {
        let mut bytes = [0; 4096];
        match self.stream.read(&mut bytes) {
            Ok(0) => false,
            Ok(n) => {
                let back = counts.back.load(SeqCst);
                for (i, got) in bytes[..n].iter().enumerate() {
                    let at = back + i as u64;
                    assert_eq!(
                        *got,
                        byte(self.number, at),
                        "session {} at {at}",
                        self.number
                    );
                }
                counts.back.store(back + n as u64, SeqCst);
                *moved = true;
                true
            }
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        }
    }

    fn write(&mut self, back: u64, now: Instant, moved: &mut bool) -> bool {
        let length = (UNDER_WAY - (self.sent - back)).min(997);
        if length == 0 {
            return true;
        }
        self.next = now + PAUSE;
        let bytes = (self.sent..self.sent + length).map(|at| byte(self.number, at));
        match self.stream.write(&bytes.collect::<Vec<_>>()) {
            Ok(n) => {
                self.sent += n as u64;
                *moved = true;
                true
            }
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        }
    }
}

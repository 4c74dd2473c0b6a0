//! More bulk sessions at once than there are pipes for.

use crate::{
    harness::{rng, rng::Rng, secs, server::listen, tembuku::Tembuku, temp::TempDir, wait_until},
    transfer::{PERIOD, content},
};
use rustix::{
    fs::{Mode, OFlags, open},
    pipe::fcntl_getpipe_size,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use socket2::SockRef;
use std::{
    collections::BTreeMap,
    fs, io,
    net::TcpListener as StdListener,
    os::unix::fs::chown,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

const SESSIONS: usize = 1_200;
/// Each way.
const BYTES: usize = 1 << 20;
/// A client that has so much waits for all the others. What is left does not fit into the buffer of
/// its socket: what has been taken for it must wait, too, and a pipe with some of it in cannot be
/// given back.
const ENOUGH: usize = 640 << 10;
const PIECE: usize = 64 << 10;
/// Pages of the pipes that the program asks for.
const LARGE_PIPE: usize = 64;
/// So many of these it has at most, or as many pages as there may be descriptors, where that is
/// less.
const MOST_PIPES: usize = 1024;
/// How long a broken program is given.
const LIMIT: Duration = secs(60);

/// Used by no other test: the budget is one for all processes of a user, and other tests use up
/// that of `nobody`.
const USER: u32 = 61_234;

/// What all ends of all sessions share.
struct Shared {
    seed: u64,
    /// Clients that wait.
    waiting: AtomicUsize,
    go: watch::Receiver<bool>,
    /// What came of each session at each of its ends.
    ends: mpsc::Sender<Result<(), String>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Up,
    Down,
}

impl Shared {
    /// Where in the block the content of a direction begins.
    fn start(&self, session: usize, way: Way) -> usize {
        let mut rng = Rng::new(self.seed ^ (session as u64 * 2 + way as u64));
        rng.below(PERIOD as u64) as usize
    }

    async fn send(
        &self,
        mut to: impl AsyncWrite + Unpin,
        session: usize,
        way: Way,
    ) -> io::Result<()> {
        let start = self.start(session, way);
        let mut sent = 0;
        while sent < BYTES {
            let piece = content(start, sent, PIECE.min(BYTES - sent));
            to.write_all(piece).await?;
            sent += piece.len();
        }
        to.shutdown().await
    }

    async fn receive(
        &self,
        mut from: impl AsyncRead + Unpin,
        session: usize,
        way: Way,
    ) -> io::Result<()> {
        let start = self.start(session, way);
        let mut buffer = vec![0; PIECE];
        let mut got = 0;
        loop {
            if got == ENOUGH && way == Way::Down {
                self.waiting.fetch_add(1, SeqCst);
                let mut go = self.go.clone();
                go.wait_for(|go| *go).await.map_err(io::Error::other)?;
            }
            let limit = if got < ENOUGH { ENOUGH - got } else { PIECE };
            let n = from.read(&mut buffer[..limit.min(PIECE)]).await?;
            if n == 0 {
                break;
            }
            if got + n > BYTES || buffer[..n] != *content(start, got, n) {
                return Err(io::Error::other(format!(
                    "other bytes than were sent, after {got}"
                )));
            }
            got += n;
        }
        if got == BYTES {
            return Ok(());
        }
        Err(io::Error::other(format!("ended after {got} of {BYTES}")))
    }

    async fn carry(
        &self,
        (read, write): (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
        session: usize,
        [out, back]: [Way; 2],
    ) {
        let (sent, received) = tokio::join!(
            self.send(write, session, out),
            self.receive(read, session, back)
        );
        self.report(session, out, sent.and(received));
    }

    fn report(&self, session: usize, out: Way, end: io::Result<()>) {
        let side = match out {
            Way::Up => "client",
            Way::Down => "backend",
        };
        // The receiver is gone once the test has failed.
        let _ = self
            .ends
            .send(end.map_err(|error| format!("session {session}, {side}: {error}")));
    }
}

/// The first bytes of a session are its number.
async fn client(shared: Arc<Shared>, front: PathBuf, session: usize) {
    let connect = async {
        let mut stream = UnixStream::connect(front).await?;
        stream.write_all(&(session as u64).to_le_bytes()).await?;
        Ok(stream.into_split())
    };
    match connect.await {
        Ok(halves) => shared.carry(halves, session, [Way::Up, Way::Down]).await,
        Err(error) => shared.report(session, Way::Up, Err(error)),
    }
}

async fn backend(shared: Arc<Shared>, mut stream: TcpStream) {
    let mut number = [0; 8];
    match stream.read_exact(&mut number).await {
        Ok(_) => {
            let session = u64::from_le_bytes(number) as usize;
            let halves = stream.into_split();
            shared.carry(halves, session, [Way::Down, Way::Up]).await;
        }
        Err(error) => shared.report(usize::MAX, Way::Down, Err(error)),
    }
}

async fn accept(shared: Arc<Shared>, listener: StdListener) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(backend(Arc::clone(&shared), stream));
    }
}

/// On a thread of its own, until `stop`.
fn run(stop: &CancellationToken, work: impl Future<Output = ()> + Send + 'static) {
    let stop = stop.clone();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .unwrap();
        runtime.block_on(async {
            tokio::spawn(work);
            stop.cancelled().await;
        });
    });
}

/// What the descriptors of a process are: sockets, and the sizes of its pipes in pages.
fn open_files(pid: u32) -> (usize, Vec<usize>) {
    let mut pipes = BTreeMap::new();
    let mut sockets = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let path = entry.unwrap().path();
        // Some are closed while we look.
        let Ok(target) = fs::read_link(&path) else {
            continue;
        };
        let target = target.to_string_lossy().into_owned();
        if target.starts_with("socket:") {
            sockets += 1;
        } else if target.starts_with("pipe:") && !pipes.contains_key(&target) {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            if let Ok(pipe) = open(&path, flags, Mode::empty()) {
                pipes.insert(target, fcntl_getpipe_size(pipe).unwrap() / 4096);
            }
        }
    }
    (sockets, pipes.into_values().collect())
}

/// Both ends of all sessions are open in here. How many descriptors there may be.
fn raise_descriptors() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, wanted).unwrap();
    limit.maximum.map_or(usize::MAX, |most| most as usize)
}

/// In pages. Beyond it the kernel gives pipes of two pages and refuses to enlarge any.
fn pipe_budget() -> usize {
    let budget = fs::read_to_string("/proc/sys/fs/pipe-user-pages-soft").unwrap();
    match budget.trim().parse().unwrap() {
        0 => usize::MAX,
        pages => pages,
    }
}

#[test]
fn more_sessions_than_pipes_lose_nothing() {
    let descriptors = raise_descriptors();
    let seed = rng::seed("relay_many");
    let listener = listen(([127, 0, 0, 1], 0).into());
    SockRef::from(&listener)
        .set_send_buffer_size(PIECE)
        .unwrap();
    listener.set_nonblocking(true).unwrap();
    let dir = TempDir::new();
    chown(dir.path(), Some(USER), Some(USER)).unwrap();
    let front = dir.file("front");
    let tembuku = Tembuku::start_under(
        &format!("setpriv --reuid={USER} --regid={USER} --clear-groups"),
        &format!(
            "[process]\nworkers = 2\n[listeners.l]\nbind = \"unix:{}\"\nupstream = \"u\"\n\
             [upstreams.u]\nbackends = [\"{}\"]\n",
            front.display(),
            listener.local_addr().unwrap()
        ),
    );
    let pid = tembuku.proc.id();
    tembuku.proc.settled_descriptors();
    let (sockets_before, _) = open_files(pid);

    let began = Instant::now();
    let (start, go) = watch::channel(false);
    let (ends, ended) = mpsc::channel();
    let shared = Arc::new(Shared {
        seed,
        waiting: AtomicUsize::new(0),
        go,
        ends,
    });
    let stop = CancellationToken::new();
    let _stopped = stop.clone().drop_guard();
    let accepting = Arc::clone(&shared);
    run(&stop, async move {
        accept(accepting, listener).await.unwrap();
    });
    let connecting = Arc::clone(&shared);
    run(&stop, async move {
        for session in 0..SESSIONS {
            tokio::spawn(client(Arc::clone(&connecting), front.clone(), session));
        }
    });
    let mut over = 0;
    wait_until("all sessions are under way", LIMIT, || {
        // A backend's end is over once the kernel has the rest of what it sends.
        over += ended.try_iter().map(Result::unwrap).count();
        shared.waiting.load(SeqCst) == SESSIONS
    });
    let under_way = began.elapsed();
    assert_eq!(
        tembuku.metric("listener_active_connections", &[]),
        SESSIONS as f64
    );
    let no_pipe = [("reason", "no_pipe")];
    tembuku.wait_metric("splice_fallbacks_total", &no_pipe, |n| n > 0.0);
    // No side reads: what holds a pipe keeps it.
    let most = pipe_budget().min(descriptors).min(MOST_PIPES * LARGE_PIPE);
    wait_until("all pipes that there may be are held", secs(10), || {
        let pages: usize = open_files(pid).1.iter().sum();
        pages + LARGE_PIPE > most
    });

    start.send(true).unwrap();
    for _ in over..2 * SESSIONS {
        let left = LIMIT.saturating_sub(began.elapsed());
        match ended.recv_timeout(left) {
            Ok(end) => end.unwrap(),
            Err(_) => panic!("not all sessions were over after {LIMIT:?}"),
        }
    }
    println!(
        "under way after {under_way:?}, over after {:?}",
        began.elapsed()
    );
    assert_all_is_counted(&tembuku);
    // The answer to the look at the metrics may still have one.
    wait_until("no socket is left", secs(10), || {
        open_files(pid).0 <= sockets_before
    });
    let (_, pipes) = open_files(pid);
    // Some are kept for the next.
    assert!(pipes.len() <= 2 * 16 + 2, "{} pipes are left", pipes.len());
}

/// That the metrics have every byte of every session.
fn assert_all_is_counted(tembuku: &Tembuku) {
    tembuku.wait_idle();
    let metrics = tembuku.metrics();
    let sum = |name, labels: &[_]| metrics.sum(name, labels);
    let down = (SESSIONS * BYTES) as f64;
    let up = down + (8 * SESSIONS) as f64;
    assert_eq!(sum("listener_received_bytes_total", &[]), up);
    assert_eq!(sum("backend_sent_bytes_total", &[]), up);
    assert_eq!(sum("backend_received_bytes_total", &[]), down);
    assert_eq!(sum("listener_sent_bytes_total", &[]), down);
    let mode = |mode| sum("relayed_bytes_total", &[("mode", mode)]);
    let (spliced, copied) = (mode("splice"), mode("copy"));
    println!(
        "{spliced} bytes spliced, {copied} copied, {} times no pipe",
        sum("splice_fallbacks_total", &[("reason", "no_pipe")])
    );
    assert_eq!(spliced + copied, up + down);
    assert!(spliced > 0.0 && copied > 0.0);
    assert_eq!(
        sum("sessions_closed_total", &[("reason", "ok")]),
        SESSIONS as f64
    );
    assert_eq!(sum("sessions_closed_total", &[]), SESSIONS as f64);
    assert_eq!(sum("backend_active_connections", &[]), 0.0);
}

//! Thousands of sessions of every shape, every byte compared.
//!
//! A lane is a listener and a backend that belong together, and carries one session at a time: so
//! the backend's side identifies the session without receiving a byte, and may send first or
//! never. What a session does follows from the seed and its number alone.

use crate::harness::{
    metrics::Metrics,
    net::{End, PATIENCE, connect_with, end_of, reset, session, set_buffers, wait_delivered},
    ports,
    proc::{Proc, command, run_ok},
    programs,
    rng::{self, Rng},
    secs,
    server::{Server, listen},
    tembuku::Tembuku,
    temp::TempDir,
    wait_until,
};
use socket2::SockRef;
use std::{
    fmt,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

// ----------------------------------------------------------------------------------------------
// what is sent

/// A prime, so that no loss of a round number of bytes leads to the same content again.
pub(crate) const PERIOD: usize = 1_048_573;
const LARGEST_PIECE: usize = 256 * 1024;

/// The bytes of a direction: this block over and over, from a start of the direction's own.
pub(crate) fn content(start: usize, position: usize, length: usize) -> &'static [u8] {
    static BLOCK: OnceLock<Vec<u8>> = OnceLock::new();
    let block = BLOCK.get_or_init(|| {
        let mut rng = Rng::new(1);
        let mut block: Vec<u8> = (0..PERIOD.div_ceil(8))
            .flat_map(|_| rng.next().to_le_bytes())
            .collect();
        block.truncate(PERIOD);
        block.extend_from_within(..LARGEST_PIECE);
        block
    });
    let first = (start + position) % PERIOD;
    &block[first..first + length]
}

/// One direction of a session.
#[derive(Debug, Clone, Copy)]
struct Flow {
    bytes: usize,
    start: usize,
    /// Each write, and each read, is of up to 2^this bytes.
    write_bits: u32,
    read_bits: u32,
    /// How often the writer, and the reader, takes a rest.
    write_rests: u32,
    read_rests: u32,
}

impl Flow {
    /// In large pieces and without a rest.
    fn plain(bytes: usize) -> Flow {
        Flow {
            bytes,
            start: 0,
            write_bits: 18,
            read_bits: 18,
            write_rests: 0,
            read_rests: 0,
        }
    }

    fn new(rng: &mut Rng, bytes: usize) -> Flow {
        // Not more than some thousand pieces.
        let least = (bytes / 2_000).checked_ilog2().map_or(0, |bits| bits + 1);
        let bits = |rng: &mut Rng| (rng.range(0, 18) as u32).max(least).min(18);
        Flow {
            bytes,
            start: rng.below(PERIOD as u64) as usize,
            write_bits: bits(rng),
            read_bits: bits(rng),
            write_rests: if rng.chance(30) {
                rng.range(1, 20) as u32
            } else {
                0
            },
            read_rests: if rng.chance(30) {
                rng.range(1, 60) as u32
            } else {
                0
            },
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Backend,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Both send and end when they are done.
    Both,
    /// This one sends and half-closes; the other starts only when it has seen the end.
    First(Side),
    /// This one resets.
    Reset {
        by: Side,
        /// Only when everything that it sent has left it: then all of it must arrive.
        delivered: bool,
        /// Having read what it was sent; otherwise that is lost.
        has_read: bool,
        /// After the other side's half-close.
        half_closed: bool,
    },
}

#[derive(Debug, Clone, Copy)]
struct Session {
    number: u64,
    shape: Shape,
    to_backend: Flow,
    to_client: Flow,
    /// Sizes of the client's and the backend's socket buffers; 0 is the kernel's choice.
    client_buffers: [usize; 2],
    backend_buffers: [usize; 2],
}

impl Session {
    fn new(seed: u64, number: u64, resets: bool) -> Session {
        let mut rng = Rng::new(
            seed.wrapping_mul(0x2545_F491_4F6C_DD1D) ^ number.wrapping_mul(0x9E6C_63D0_876A_46D1),
        );
        let rng = &mut rng;
        let side = if rng.chance(50) {
            Side::Client
        } else {
            Side::Backend
        };
        let shape = if resets {
            let has_read = rng.chance(60);
            Shape::Reset {
                by: side,
                delivered: rng.chance(60),
                has_read,
                half_closed: has_read && rng.chance(40),
            }
        } else if rng.chance(40) {
            Shape::Both
        } else {
            Shape::First(side)
        };
        let buffers = |rng: &mut Rng| -> [usize; 2] {
            [0, 1].map(|_| {
                if rng.chance(12) {
                    4_096 << rng.below(4)
                } else {
                    0
                }
            })
        };
        let (client_buffers, backend_buffers) = (buffers(rng), buffers(rng));
        let small = client_buffers
            .iter()
            .chain(&backend_buffers)
            .any(|&size| size > 0);
        // From a byte to 32 MiB, small ones far more often; through small buffers everything takes
        // long.
        let bits = if small { 17.0 } else { 25.0 };
        let all = 2f64.powf(rng.unit().powf(2.5) * bits) as usize;
        let share = match rng.below(4) {
            0 => 0,
            1 => all,
            _ => rng.range(0, all as u64) as usize,
        };
        let (mut to_backend, mut to_client) = (share, all - share);
        if let Shape::Reset { by, has_read, .. } = shape {
            let (sent, received_bytes) = match by {
                Side::Client => (&mut to_backend, &mut to_client),
                Side::Backend => (&mut to_client, &mut to_backend),
            };
            // The first byte shows that the session stands; without one a reset could as well be a
            // failed connect.
            *sent = (*sent).max(1);
            if !has_read {
                *received_bytes = (*received_bytes).min(64 * 1024);
            }
        }
        Session {
            number,
            shape,
            to_backend: Flow::new(rng, to_backend),
            to_client: Flow::new(rng, to_client),
            client_buffers,
            backend_buffers,
        }
    }
}

// ----------------------------------------------------------------------------------------------
// one session

/// What went wrong, or how many bytes were written to and read from the proxy by the client.
type Outcome<T> = Result<T, String>;

fn fail<T>(what: impl fmt::Display) -> Outcome<T> {
    Err(what.to_string())
}

struct Rests {
    left: u32,
}

impl Rests {
    fn maybe(&mut self, position: usize) {
        if self.left > 0 {
            self.left -= 1;
            thread::sleep(Duration::from_micros(500 + (position as u64 % 5) * 500));
        }
    }
}

/// Sizes of the pieces of a flow, the same in every run.
fn piece(rng: &mut Rng, bits: u32) -> usize {
    (rng.range(1, 1 << bits) as usize).min(LARGEST_PIECE)
}

/// Writes a whole flow. The error is the connection's.
fn send(mut stream: &TcpStream, flow: Flow) -> std::io::Result<()> {
    let mut rng = Rng::new(flow.start as u64);
    let mut rests = Rests {
        left: flow.write_rests,
    };
    let mut position = 0;
    while position < flow.bytes {
        let length = piece(&mut rng, flow.write_bits).min(flow.bytes - position);
        stream.write_all(content(flow.start, position, length))?;
        position += length;
        rests.maybe(position);
    }
    Ok(())
}

/// Reads a flow to its end, and compares; calls `first` after the first byte.
fn receive(mut stream: &TcpStream, flow: Flow, mut first: impl FnMut()) -> Outcome<(usize, End)> {
    let mut rng = Rng::new(!(flow.start as u64));
    let mut rests = Rests {
        left: flow.read_rests,
    };
    let mut buffer = vec![0; 1 << flow.read_bits];
    let mut position = 0;
    loop {
        let length = piece(&mut rng, flow.read_bits);
        let n = match stream.read(&mut buffer[..length]) {
            Ok(0) => return Ok((position, End::Fin)),
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Ok((position, end_of(&error))),
        };
        let expected = content(flow.start, position, n);
        if buffer[..n] != *expected {
            let at = buffer
                .iter()
                .zip(expected)
                .position(|(a, b)| a != b)
                .unwrap_or(0);
            return fail(format_args!(
                "the byte at {} of {} is wrong",
                position + at,
                flow.bytes
            ));
        }
        if position == 0 {
            first();
        }
        position += n;
        if position > flow.bytes {
            return fail(format_args!(
                "{position} bytes have come, {} were sent",
                flow.bytes
            ));
        }
        rests.maybe(position);
    }
}

/// One side of a session that ends in order. `waits`: starts only when it has seen the other's end.
fn orderly(stream: &TcpStream, out: Flow, into: Flow, waits: bool) -> Outcome<()> {
    thread::scope(|scope| {
        let (seen, end_seen) = mpsc::channel();
        let reader = scope.spawn(move || {
            let result = receive(stream, into, || ());
            let _ = seen.send(());
            result
        });
        if waits {
            let _ = end_seen.recv();
        }
        let written = send(stream, out).and_then(|()| stream.shutdown(Shutdown::Write));
        let (got, end) = reader.join().unwrap()?;
        if (got, end) != (into.bytes, End::Fin) {
            return fail(format_args!(
                "got {got} of {} bytes and then {end:?}",
                into.bytes
            ));
        }
        written.or_else(|error| fail(format_args!("writing {} bytes: {error}", out.bytes)))
    })
}

/// The side that resets, once `established` has a message.
fn resetting(
    stream: TcpStream,
    out: Flow,
    into: Flow,
    established: &mpsc::Receiver<()>,
    (delivered, has_read, half_closed): (bool, bool, bool),
) -> Outcome<()> {
    if half_closed {
        let (got, end) = receive(&stream, into, || ())?;
        if (got, end) != (into.bytes, End::Fin) {
            return fail(format_args!(
                "before its reset: got {got} of {} bytes and then {end:?}",
                into.bytes
            ));
        }
    } else if has_read {
        let mut all = vec![0; into.bytes];
        (&stream)
            .read_exact(&mut all)
            .map_err(|error| format!("before its reset: {error}"))?;
        let mut position = 0;
        for piece in all.chunks(LARGEST_PIECE) {
            if *piece != *content(into.start, position, piece.len()) {
                return fail("before its reset: a byte is wrong");
            }
            position += piece.len();
        }
    }
    send(&stream, out).map_err(|error| format!("before its reset: {error}"))?;
    if delivered {
        wait_delivered(&stream).map_err(|error| format!("before its reset: {error}"))?;
    }
    established
        .recv_timeout(PATIENCE)
        .map_err(|_| "nothing of what was sent has arrived".to_owned())?;
    reset(stream);
    Ok(())
}

/// The side that is reset.
fn suffering(
    stream: &TcpStream,
    out: Flow,
    into: Flow,
    established: &mpsc::Sender<()>,
    (delivered, half_closes): (bool, bool),
) -> Outcome<()> {
    thread::scope(|scope| {
        let writer = scope.spawn(move || {
            send(stream, out)?;
            if half_closes {
                stream.shutdown(Shutdown::Write)
            } else {
                Ok(())
            }
        });
        let (got, end) = receive(stream, into, || _ = established.send(()))?;
        // The reset is reported once, by the first call after it.
        let reported = writer
            .join()
            .unwrap()
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionReset);
        if end != End::Reset && !(reported && end == End::Fin) {
            return fail(format_args!(
                "got {got} of {} bytes and then {end:?}, not a reset",
                into.bytes
            ));
        }
        if delivered && got != into.bytes {
            return fail(format_args!(
                "got {got} of {} bytes before the reset",
                into.bytes
            ));
        }
        Ok(())
    })
}

fn play(session: &Session, side: Side, stream: TcpStream, established: Established) -> Outcome<()> {
    let (out, into) = match side {
        Side::Client => (session.to_backend, session.to_client),
        Side::Backend => (session.to_client, session.to_backend),
    };
    match session.shape {
        Shape::Both => orderly(&stream, out, into, false),
        Shape::First(first) => orderly(&stream, out, into, first != side),
        Shape::Reset {
            by,
            delivered,
            has_read,
            half_closed,
        } => match established {
            Established::Waits(channel) if by == side => resetting(
                stream,
                out,
                into,
                &channel,
                (delivered, has_read, half_closed),
            ),
            Established::Sends(channel) => {
                suffering(&stream, out, into, &channel, (delivered, half_closed))
            }
            Established::Waits(_) => unreachable!("only the side that resets waits"),
        },
    }
}

/// How the other side reports to the one that resets that a first byte has arrived.
enum Established {
    Sends(mpsc::Sender<()>),
    Waits(mpsc::Receiver<()>),
}

/// A front address and the backend behind it.
pub(crate) struct Lane {
    pub(crate) front: SocketAddr,
    backend: TcpListener,
}

impl Lane {
    /// `front` returns the front address for the backend's address.
    pub(crate) fn new(front: impl FnOnce(SocketAddr) -> SocketAddr) -> Lane {
        let backend = listen(SocketAddr::from(([127, 0, 0, 1], 0)));
        // Bounds the wait in accept, too.
        SockRef::from(&backend)
            .set_read_timeout(Some(PATIENCE))
            .unwrap();
        Lane {
            front: front(backend.local_addr().unwrap()),
            backend,
        }
    }

    fn carry(&self, session: &Session) -> Outcome<()> {
        let (sends, waits) = mpsc::channel();
        let (sends, waits) = (Established::Sends(sends), Established::Waits(waits));
        let by_client = matches!(
            session.shape,
            Shape::Reset {
                by: Side::Client,
                ..
            }
        );
        let (of_client, of_backend) = if by_client {
            (waits, sends)
        } else {
            (sends, waits)
        };
        // Inherited by the connection that comes. On one that is there already a smaller buffer
        // would shrink the window that the peer was given, and the kernel would drop what it then
        // sends, acknowledgements included.
        let [receive, send] = session.backend_buffers;
        let receive = if receive > 0 { receive } else { 1 << 20 };
        set_buffers(SockRef::from(&self.backend), receive, 0)
            .map_err(|error| format!("options: {error}"))?;
        thread::scope(|scope| {
            let backend = scope.spawn(move || {
                let (stream, _) = self
                    .backend
                    .accept()
                    .map_err(|error| format!("accept: {error}"))?;
                set_buffers(SockRef::from(&stream), 0, send)
                    .and_then(|()| stream.set_read_timeout(Some(PATIENCE)))
                    .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
                    .map_err(|error| format!("options: {error}"))?;
                play(session, Side::Backend, stream, of_backend)
            });
            let [receive, send] = session.client_buffers;
            let client = connect_with(self.front, None, receive, send)
                .map_err(|error| format!("connect: {error}"))
                .and_then(|stream| play(session, Side::Client, stream, of_client));
            let backend = backend.join().unwrap();
            match (client, backend) {
                (Ok(()), Ok(())) => Ok(()),
                (client, backend) => {
                    fail(format_args!("client: {client:?}\n  backend: {backend:?}"))
                }
            }
        })
    }
}

// ----------------------------------------------------------------------------------------------
// all of them

/// What the sessions of the lanes without resets amount to.
#[derive(Default, Debug)]
pub(crate) struct Sum {
    orderly: u64,
    received: u64,
    sent: u64,
    client_resets: u64,
    backend_resets: u64,
}

/// Carries `count` sessions; those that end by a reset have lanes of their own.
pub(crate) fn carry_all(seed: u64, count: u64, orderly: &[Lane], resets: &[Lane]) -> Sum {
    const EVERY: u64 = 5;
    let failures = Mutex::new(Vec::new());
    let failed = AtomicUsize::new(0);
    let sum = Mutex::new(Sum::default());
    let next = [AtomicU64::new(0), AtomicU64::new(0)];
    let start = Instant::now();
    thread::scope(|scope| {
        for (lane, is_reset) in orderly
            .iter()
            .map(|lane| (lane, false))
            .chain(resets.iter().map(|lane| (lane, true)))
        {
            let (failures, failed, sum, next) =
                (&failures, &failed, &sum, &next[usize::from(is_reset)]);
            scope.spawn(move || {
                loop {
                    // Every fifth number is one of a reset; the others are shared among the rest.
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let number = if is_reset {
                        n * EVERY
                    } else {
                        n / (EVERY - 1) * EVERY + n % (EVERY - 1) + 1
                    };
                    if number >= count || failed.load(Ordering::Relaxed) >= 5 {
                        return;
                    }
                    let session = Session::new(seed, number, is_reset);
                    if let Err(what) = lane.carry(&session) {
                        failed.fetch_add(1, Ordering::Relaxed);
                        failures
                            .lock()
                            .unwrap()
                            .push(format!("session {}: {session:?}\n  {what}", session.number));
                        // The backend of this lane may have a connection waiting that belongs to no
                        // session.
                        return;
                    }
                    sum.lock().unwrap().add(&session);
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(
        failures.is_empty(),
        "TEMBUKU_TEST_SEED={seed} TEMBUKU_TEST_SESSIONS={count}: sessions failed:\n{}",
        failures.join("\n")
    );
    let sum = sum.into_inner().unwrap();
    println!("{count} sessions in {:?}: {sum:?}", start.elapsed());
    sum
}

impl Sum {
    fn add(&mut self, session: &Session) {
        match session.shape {
            Shape::Reset {
                by: Side::Client, ..
            } => self.client_resets += 1,
            Shape::Reset {
                by: Side::Backend, ..
            } => self.backend_resets += 1,
            Shape::Both | Shape::First(_) => {
                self.orderly += 1;
                self.received += session.to_backend.bytes as u64;
                self.sent += session.to_client.bytes as u64;
            }
        }
    }
}

struct Lanes {
    orderly: Vec<Lane>,
    resets: Vec<Lane>,
    config: String,
}

/// Lanes and the configuration that connects them: the upstream `orderly` would mix the backends,
/// so each lane is a listener and an upstream of its own.
fn lanes(orderly: usize, resets: usize) -> Lanes {
    let mut config = String::new();
    let mut make = |kind: &str, count: usize| -> Vec<Lane> {
        (0..count)
            .map(|n| {
                Lane::new(|backend| {
                    let front = ports::free_addr();
                    config += &format!(
                        "[listeners.{kind}{n}]\nbind = \"{front}\"\nupstream = \"{kind}{n}\"\n\
                         [upstreams.{kind}{n}]\nbackends = [\"{backend}\"]\n"
                    );
                    front
                })
            })
            .collect()
    };
    let (orderly, resets) = (make("orderly", orderly), make("reset", resets));
    Lanes {
        orderly,
        resets,
        config,
    }
}

fn assert_agrees(metrics: &Metrics, sum: &Sum) {
    // Only the bytes of lanes without resets are exact.
    let bytes = |name: &str, label: &str| -> f64 {
        let name = format!("tembuku_{name}");
        let of_orderly = |value: &String| value.starts_with("orderly");
        let series = metrics.series.iter().filter(|series| series.name == name);
        series
            .filter(|series| series.labels.get(label).is_some_and(of_orderly))
            .map(|series| series.value)
            .sum()
    };
    assert_eq!(
        bytes("listener_received_bytes_total", "listener"),
        sum.received as f64
    );
    assert_eq!(
        bytes("listener_sent_bytes_total", "listener"),
        sum.sent as f64
    );
    assert_eq!(
        bytes("backend_sent_bytes_total", "upstream"),
        sum.received as f64
    );
    assert_eq!(
        bytes("backend_received_bytes_total", "upstream"),
        sum.sent as f64
    );
    let closed = |reason| metrics.sum("sessions_closed_total", &[("reason", reason)]);
    assert_eq!(closed("ok"), sum.orderly as f64);
    assert_eq!(closed("client_reset"), sum.client_resets as f64);
    assert_eq!(closed("backend_reset"), sum.backend_resets as f64);
    assert_eq!(metrics.sum("backend_active_connections", &[]), 0.0);
    let relayed = metrics.sum("relayed_bytes_total", &[]);
    let sent = metrics.sum("listener_sent_bytes_total", &[])
        + metrics.sum("backend_sent_bytes_total", &[]);
    assert_eq!(relayed, sent, "bytes by mode against bytes by direction");
}

fn sessions(default: u64) -> u64 {
    std::env::var("TEMBUKU_TEST_SESSIONS")
        .map_or(default, |text| text.parse().expect("TEMBUKU_TEST_SESSIONS"))
}

#[test]
fn thousands_of_sessions_lose_no_byte() {
    let seed = rng::seed("transfer::thousands_of_sessions");
    let lanes = lanes(50, 14);
    let tembuku = Tembuku::start(&format!("[process]\nworkers = 2\n{}", lanes.config));
    let before = tembuku.proc.settled_descriptors();
    let sum = carry_all(seed, sessions(3_000), &lanes.orderly, &lanes.resets);
    tembuku.wait_idle();
    let metrics = tembuku.metrics();
    // Pipes are kept for the next, but not many, and memory not at all.
    let (after, memory) = (tembuku.proc.settled_descriptors(), tembuku.proc.rss());
    println!("descriptors {before}, then {after}; resident memory {memory}");
    assert!(
        after <= before + 2 * 2 * 32,
        "{before} descriptors before, {after} after"
    );
    assert!(memory < 64 << 20, "{memory} bytes of resident memory");
    assert_agrees(&metrics, &sum);
    for mode in ["splice", "copy"] {
        assert!(
            metrics.sum("relayed_bytes_total", &[("mode", mode)]) > 0.0,
            "nothing by {mode}"
        );
    }
}

/// A user other than root has a budget of pipe buffers. Beyond it the kernel gives pipes of two
/// pages and refuses to enlarge any.
#[test]
fn nothing_is_lost_when_the_pipe_budget_is_used_up() {
    let seed = rng::seed("transfer::pipe_budget");
    let _hog = PipeHog::start();
    let lanes = lanes(24, 8);
    let tembuku = Tembuku::start_under(AS_NOBODY, &lanes.config);
    let sum = carry_all(seed, sessions(3_000) / 6, &lanes.orderly, &lanes.resets);
    tembuku.wait_idle();
    assert_agrees(&tembuku.metrics(), &sum);
}

/// Sessions stand already, and then no descriptor is left for a pipe.
#[test]
fn nothing_is_lost_when_no_pipe_is_to_be_had() {
    const BYTES: usize = 24 << 20;
    let backend = Server::named("b");
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n[upstreams.u]\nbackends = [\"{}\"]\n",
        backend.addr
    ));
    let clients: Vec<TcpStream> = (0..8).map(|_| session(front).unwrap().0).collect();
    tembuku.wait_metric("listener_active_connections", &[], |n| n == 8.0);
    let limit = |limit: usize| {
        let pid = tembuku.proc.id();
        run_ok(
            secs(5),
            command(&format!("prlimit --pid {pid} --nofile={limit}:")),
        );
    };
    // A connection to the admin address may still be on its way out.
    tembuku.proc.settled_descriptors();
    limit(3);
    thread::scope(|scope| {
        for (number, client) in clients.iter().enumerate() {
            let flow = Flow {
                start: number * 1_000,
                ..Flow::plain(BYTES)
            };
            scope.spawn(move || {
                send(client, flow)
                    .and_then(|()| client.shutdown(Shutdown::Write))
                    .unwrap()
            });
            scope.spawn(move || {
                assert_eq!(
                    receive(client, flow, || ()),
                    Ok((BYTES, End::Fin)),
                    "session {number}"
                )
            });
        }
    });
    limit(10_000);
    tembuku.wait_idle();
    let metrics = tembuku.metrics();
    let all = (clients.len() * BYTES) as f64;
    assert_eq!(metrics.sum("listener_received_bytes_total", &[]), all);
    assert!(metrics.sum("relayed_bytes_total", &[("mode", "copy")]) >= 2.0 * all);
    assert_eq!(
        metrics.sum("sessions_closed_total", &[("reason", "ok")]),
        8.0
    );
    // With descriptors there again, bulk is spliced again. It need not be so at once: asking for
    // what there is none of has a price, too.
    wait_until("splicing begins again", secs(10), || {
        let (client, _) = session(front).unwrap();
        let flow = Flow::plain(4 << 20);
        thread::scope(|scope| {
            scope.spawn(|| {
                send(&client, flow)
                    .and_then(|()| client.shutdown(Shutdown::Write))
                    .unwrap()
            });
            assert_eq!(receive(&client, flow, || ()), Ok((flow.bytes, End::Fin)));
        });
        tembuku.metric("relayed_bytes_total", &[("mode", "splice")]) > 0.0
    });
}

const AS_NOBODY: &str = "setpriv --reuid=nobody --regid=nogroup --clear-groups";

/// Holds so many pipes as the user `nobody` that the user's budget is gone.
struct PipeHog {
    _proc: Proc,
    _dir: TempDir,
}

impl PipeHog {
    fn start() -> PipeHog {
        let dir = TempDir::new();
        let budget = std::fs::read_to_string("/proc/sys/fs/pipe-user-pages-soft").unwrap();
        // A pipe has 16 pages by default.
        let pipes = budget.trim().parse::<u64>().unwrap() / 16 + 50;
        let (user, group) = programs::account("nobody");
        std::os::unix::fs::chown(dir.path(), Some(user), Some(group)).unwrap();
        let mut hog = command(&format!(
            "prlimit --nofile={0}:{0} {AS_NOBODY} bash -c",
            pipes + 100
        ));
        hog.arg(format!(
            "for n in $(seq {pipes}); do names+=($n); done; mkfifo \"${{names[@]}}\" || exit 1; \
             for n in \"${{names[@]}}\"; do exec {{fd}}<>$n || exit 1; done; echo held; \
             exec sleep 600"
        ));
        hog.current_dir(dir.path());
        let proc = Proc::start("hog", dir.path(), hog);
        wait_until("the pipes are held", secs(20), || {
            proc.stdout().contains("held")
        });
        PipeHog {
            _proc: proc,
            _dir: dir,
        }
    }
}

/// The test itself loses nothing: the same without anything in between.
#[test]
fn the_sessions_are_right_without_a_proxy() {
    let seed = rng::seed("transfer::without_a_proxy");
    let direct =
        |count: usize| -> Vec<Lane> { (0..count).map(|_| Lane::new(|backend| backend)).collect() };
    let sum = carry_all(seed, sessions(3_000) / 10, &direct(12), &direct(4));
    assert!(
        sum.orderly > 0 && sum.client_resets > 0 && sum.backend_resets > 0,
        "{sum:?}"
    );
}

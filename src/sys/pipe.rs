//! Pipes for splicing: pooled per worker, limited per process, never pooled with bytes in them.

use rustix::{
    io::Errno,
    pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice},
};
use std::{
    cell::RefCell,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// The size that is requested. Measured: 64 KiB doubles the CPU of bulk; a reader that has stalled
/// holds what is inside.
pub const SIZE: usize = 256 * 1024;
/// For transfers that fill the others repeatedly: saves another tenth of the CPU of bulk.
const LARGE: usize = 1 << 20;
/// Large pipes of the process: bounds what stalled readers can hold, and the share of the budget
/// that the kernel gives a user without privileges, 64 MiB.
const MOST_LARGE: usize = 16;
/// Smaller pipes, which the kernel gives when that budget is spent, are not worth splicing through.
const LEAST: usize = 64 * 1024;
/// Empty pipes that a worker keeps.
const POOLED: usize = 16;
/// The same of large ones, which other workers need, too.
const POOLED_LARGE: usize = 4;
/// Pause after a failure: an attempt costs three system calls.
const PAUSE: Duration = Duration::from_millis(200);

static LIVE: AtomicUsize = AtomicUsize::new(0);
static LIVE_LARGE: AtomicUsize = AtomicUsize::new(0);
static LIMIT: AtomicUsize = AtomicUsize::new(256);
/// A system call that splicing needs is forbidden to this process.
static FORBIDDEN: AtomicBool = AtomicBool::new(false);

thread_local! {
    static POOL: RefCell<PipePool> = const { RefCell::new(PipePool::new()) };
    static LARGE_POOL: RefCell<PipePool> = const { RefCell::new(PipePool::new()) };
}

/// The pipes of one size of a worker.
struct PipePool {
    pipes: Vec<Pipe>,
    /// An attempt has failed; none is made before this time.
    none_until: Option<Instant>,
}

impl PipePool {
    const fn new() -> Self {
        Self {
            pipes: Vec::new(),
            none_until: None,
        }
    }

    fn take(&mut self, now: Instant, make: impl FnOnce() -> Option<Pipe>) -> Option<Pipe> {
        if let Some(pipe) = self.pipes.pop() {
            return Some(pipe);
        }
        if self.none_until.is_some_and(|until| now < until) {
            return None;
        }
        let made = make();
        self.none_until = made.is_none().then(|| now + PAUSE);
        made
    }
}

/// How many pipes there may be at once, over all workers.
pub fn set_limit(pipes: usize) {
    LIMIT.store(pipes, Relaxed);
}

/// An empty pipe from this worker's pool, or a new one; `None` when there is none. `large`: one of
/// the few that hold more, if possible.
pub fn take(now: Instant, large: bool) -> Option<Pipe> {
    let large = large.then(|| LARGE_POOL.with_borrow_mut(|pool| pool.take(now, Pipe::large)));
    large
        .flatten()
        .or_else(|| POOL.with_borrow_mut(|pool| pool.take(now, Pipe::usual)))
        .or_else(|| LARGE_POOL.with_borrow_mut(|pool| pool.pipes.pop()))
}

/// Whether a seccomp filter or a security module forbids splicing to this process.
pub fn is_forbidden() -> bool {
    FORBIDDEN.load(Relaxed)
}

/// Records that `call` was refused with `error`. Returns whether it will always be.
pub fn note_refusal(call: &'static str, error: &io::Error) -> bool {
    let is_forbidden = matches!(
        error.raw_os_error(),
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS)
    );
    if is_forbidden && !FORBIDDEN.swap(true, Relaxed) {
        tracing::warn!(call, %error, "splicing is not permitted, bulk data is copied from now on");
    }
    is_forbidden
}

#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    // 32 bits, since each session has space for two pipes.
    capacity: u32,
    /// Bytes inside.
    len: u32,
    is_large: bool,
}

impl Pipe {
    fn usual() -> Option<Self> {
        if LIVE.fetch_add(1, Relaxed) >= LIMIT.load(Relaxed) {
            LIVE.fetch_sub(1, Relaxed);
            return None;
        }
        let pipe = Self::new().or_else(|| {
            LIVE.fetch_sub(1, Relaxed);
            None
        })?;
        (pipe.capacity() >= LEAST).then_some(pipe)
    }

    fn large() -> Option<Self> {
        if LIVE_LARGE.load(Relaxed) >= MOST_LARGE {
            return None;
        }
        let mut pipe = Self::usual()?;
        // From here on dropping it counts it out. Two workers at the same time may make one too
        // many.
        LIVE_LARGE.fetch_add(1, Relaxed);
        pipe.is_large = true;
        pipe.capacity = u32::try_from(fcntl_setpipe_size(&pipe.write, LARGE).ok()?).ok()?;
        Some(pipe)
    }

    fn new() -> Option<Self> {
        let ends = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK);
        let (read, write) = ends
            .inspect_err(|&error| {
                note_refusal("pipe2", &error.into());
            })
            .ok()?;
        // The kernel may refuse the size, or grant another.
        let capacity = fcntl_setpipe_size(&write, SIZE)
            .or_else(|_| fcntl_getpipe_size(&write))
            .unwrap_or(0);
        Some(Self {
            read,
            write,
            capacity: u32::try_from(capacity).unwrap_or(0),
            len: 0,
            is_large: false,
        })
    }

    /// Another pair of descriptors for the same pipe, to be sent to another process.
    pub fn copy(&self) -> io::Result<Self> {
        Self::take_over(self.read.try_clone()?, self.write.try_clone()?, self.len)
    }

    /// A pipe that another process has filled with `len` bytes. It counts, even beyond the limit.
    /// An error if it is none, or holds something else.
    pub fn take_over(read: OwnedFd, write: OwnedFd, len: u32) -> io::Result<Self> {
        let capacity = fcntl_getpipe_size(&write)?;
        let inside = rustix::io::ioctl_fionread(&read)?;
        if fcntl_getpipe_size(&read)? != capacity || inside != u64::from(len) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let is_large = capacity > SIZE;
        LIVE.fetch_add(1, Relaxed);
        if is_large {
            LIVE_LARGE.fetch_add(1, Relaxed);
        }
        Ok(Self {
            read,
            write,
            capacity: u32::try_from(capacity).unwrap_or(u32::MAX),
            len,
            is_large,
        })
    }

    /// For reading, and for writing.
    pub fn ends(&self) -> [BorrowedFd<'_>; 2] {
        [self.read.as_fd(), self.write.as_fd()]
    }

    /// Bytes inside.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether a fill of so many bytes has filled it.
    pub fn was_filled_by(&self, bytes: usize) -> bool {
        bytes >= self.capacity()
    }

    fn capacity(&self) -> usize {
        self.capacity as usize
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// From a socket into the pipe, at most so many bytes. The pipe must be empty: only then does
    /// "would block" mean that the socket has nothing, and not that the pipe is full.
    pub fn fill(&mut self, from: impl AsFd, most: usize) -> io::Result<usize> {
        debug_assert!(self.is_empty(), "a pipe is filled only when empty");
        let most = most.min(self.capacity());
        let n = splice(from, None, &self.write, None, most, flags())?;
        self.len = n as u32;
        Ok(n)
    }

    /// From the pipe into a socket.
    pub fn drain(&mut self, to: impl AsFd) -> io::Result<usize> {
        let n = splice(&self.read, None, to, None, self.len as usize, flags())?;
        self.len -= n as u32;
        Ok(n)
    }

    /// Everything inside, for when the socket does not take it by splicing.
    pub fn into_bytes(mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.len as usize];
        let mut at = 0;
        while at < bytes.len() {
            match rustix::io::read(&self.read, &mut bytes[at..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => at += n,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.len = 0;
        self.give_back();
        Ok(bytes)
    }

    /// Returns it to the pool; a pipe that still holds bytes is closed instead.
    pub fn give_back(self) {
        if self.is_empty() {
            let (pool, most) = match self.is_large {
                true => (&LARGE_POOL, POOLED_LARGE),
                false => (&POOL, POOLED),
            };
            pool.with_borrow_mut(|pool| {
                if pool.pipes.len() < most {
                    pool.pipes.push(self);
                }
            });
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        LIVE.fetch_sub(1, Relaxed);
        if self.is_large {
            LIVE_LARGE.fetch_sub(1, Relaxed);
        }
    }
}

/// Without MORE: it holds the end of a burst back for up to 200 ms.
fn flags() -> SpliceFlags {
    SpliceFlags::MOVE | SpliceFlags::NONBLOCK
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn bytes_pass_and_the_pipe_is_pooled_only_when_empty() {
        let (mut a, b) = UnixStream::pair().expect("socket pair");
        let (c, mut d) = UnixStream::pair().expect("socket pair");
        a.write_all(b"hello world").expect("written");
        let mut pipe = take(Instant::now(), false).expect("a pipe");
        assert_eq!(pipe.fill(&b, SIZE).expect("filled"), 11);
        assert_eq!(pipe.drain(&c).expect("drained"), 11);
        assert!(pipe.is_empty());
        let mut got = [0; 11];
        d.read_exact(&mut got).expect("read");
        assert_eq!(&got, b"hello world");

        a.write_all(b"left").expect("written");
        pipe.fill(&b, SIZE).expect("filled");
        let before = pooled();
        pipe.give_back();
        assert_eq!(pooled(), before);
    }

    fn pooled() -> usize {
        POOL.with_borrow(|pool| pool.pipes.len())
    }

    /// One test: the count is that of the process.
    #[test]
    fn large_pipes_are_limited_and_reused() {
        let now = Instant::now();
        let mut all: Vec<Pipe> = (0..MOST_LARGE)
            .map(|_| take(now, true).expect("a pipe"))
            .collect();
        assert!(all.iter().all(|pipe| pipe.capacity() == LARGE));
        let one_more = take(now, true).expect("a usual one instead");
        assert_eq!(one_more.capacity(), SIZE);
        one_more.give_back();
        all.pop().expect("a large one").give_back();
        // Those of this worker are reused, even if the process has as many as it may have.
        assert_eq!(take(now, true).expect("a pipe").capacity(), LARGE);
        drop(all);
        assert_eq!(take(now + PAUSE, true).expect("a pipe").capacity(), LARGE);
    }

    #[test]
    fn a_pipe_goes_on_with_what_is_inside() {
        let (mut a, b) = UnixStream::pair().expect("socket pair");
        let (c, mut d) = UnixStream::pair().expect("socket pair");
        a.write_all(b"inside").expect("written");
        let mut pipe = take(Instant::now(), false).expect("a pipe");
        pipe.fill(&b, SIZE).expect("filled");
        let ends = || {
            pipe.ends()
                .map(|end| end.try_clone_to_owned().expect("a copy"))
        };
        let [read, write] = ends();
        assert!(Pipe::take_over(read, write, 7).is_err());
        let [read, _] = ends();
        let socket = c.try_clone().expect("a copy");
        assert!(Pipe::take_over(read, socket.into(), 6).is_err());
        let mut taken = pipe.copy().expect("taken over");
        drop(pipe);
        assert_eq!(taken.drain(&c).expect("drained"), 6);
        let mut got = [0; 6];
        d.read_exact(&mut got).expect("read");
        assert_eq!(&got, b"inside");
        assert!(taken.is_empty());
        taken.give_back();
    }

    #[test]
    fn what_cannot_be_spliced_out_can_be_read_out() {
        let (mut a, b) = UnixStream::pair().expect("socket pair");
        a.write_all(b"residue").expect("written");
        let mut pipe = take(Instant::now(), false).expect("a pipe");
        pipe.fill(&b, SIZE).expect("filled");
        assert_eq!(pipe.into_bytes().expect("read out"), b"residue");
    }
}

//! Pipes for splicing: pooled per worker, limited over the process, never given back with bytes in.

use rustix::pipe::{
    PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice,
};
use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::{AsFd, OwnedFd},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// Asked for; measured: 64 KiB doubles the CPU of bulk, 1 MiB gains little over this and holds four
/// times the memory for a reader that has stalled.
pub const SIZE: usize = 256 * 1024;
/// What the kernel gives once an unprivileged user's budget is spent is not worth splicing through.
const LEAST: usize = 64 * 1024;
/// Empty pipes that a worker keeps.
const POOLED: usize = 16;
/// After a failure nobody asks again for so long: a pipe that cannot be had costs three system calls.
const PAUSE: Duration = Duration::from_millis(200);

static LIVE: AtomicUsize = AtomicUsize::new(0);
static LIMIT: AtomicUsize = AtomicUsize::new(256);

thread_local! {
    static POOL: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
    static NONE_UNTIL: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// How many pipes there may be at once, over all workers.
pub fn set_limit(pipes: usize) {
    LIMIT.store(pipes, Relaxed);
}

/// An empty pipe from this worker's pool, or a new one; `None` when there is none to be had.
pub fn take(now: Instant) -> Option<Pipe> {
    if let Some(pipe) = POOL.with_borrow_mut(Vec::pop) {
        return Some(pipe);
    }
    if NONE_UNTIL.get().is_some_and(|until| now < until) {
        return None;
    }
    let made = Pipe::new();
    NONE_UNTIL.set(made.is_none().then(|| now + PAUSE));
    made
}

#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    capacity: usize,
    /// Bytes inside.
    len: usize,
}

impl Pipe {
    fn new() -> Option<Self> {
        if LIVE.fetch_add(1, Relaxed) >= LIMIT.load(Relaxed) {
            LIVE.fetch_sub(1, Relaxed);
            return None;
        }
        let Ok((read, write)) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK) else {
            LIVE.fetch_sub(1, Relaxed);
            return None;
        };
        let mut pipe = Self {
            read,
            write,
            capacity: 0,
            len: 0,
        };
        // The kernel may refuse the size, or grant another: what counts is what it has.
        pipe.capacity = fcntl_setpipe_size(&pipe.write, SIZE)
            .or_else(|_| fcntl_getpipe_size(&pipe.write))
            .unwrap_or(0);
        (pipe.capacity >= LEAST).then_some(pipe)
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// From a socket into the pipe, which must be empty: only then does "would block" mean that the
    /// socket has nothing, and not that the pipe is full.
    pub fn fill(&mut self, from: impl AsFd) -> io::Result<usize> {
        debug_assert!(self.is_empty(), "a pipe is filled only when empty");
        let n = splice(from, None, &self.write, None, self.capacity, flags())?;
        self.len = n;
        Ok(n)
    }

    /// From the pipe into a socket.
    pub fn drain(&mut self, to: impl AsFd) -> io::Result<usize> {
        let n = splice(&self.read, None, to, None, self.len, flags())?;
        self.len -= n;
        Ok(n)
    }

    /// Everything inside, for when the socket does not take it by splicing.
    pub fn into_bytes(mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.len];
        let mut at = 0;
        while at < bytes.len() {
            match rustix::io::read(&self.read, &mut bytes[at..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => at += n,
            }
        }
        self.len = 0;
        self.give_back();
        Ok(bytes)
    }

    /// Back to the pool; a pipe that still holds bytes is closed instead, for they belong to nobody.
    pub fn give_back(self) {
        if self.is_empty() {
            POOL.with_borrow_mut(|pool| {
                if pool.len() < POOLED {
                    pool.push(self);
                }
            });
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        LIVE.fetch_sub(1, Relaxed);
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
        let mut pipe = take(Instant::now()).expect("a pipe");
        assert_eq!(pipe.fill(&b).expect("filled"), 11);
        assert_eq!(pipe.drain(&c).expect("drained"), 11);
        assert!(pipe.is_empty());
        let mut got = [0; 11];
        d.read_exact(&mut got).expect("read");
        assert_eq!(&got, b"hello world");

        a.write_all(b"left").expect("written");
        pipe.fill(&b).expect("filled");
        let before = POOL.with_borrow(Vec::len);
        pipe.give_back();
        assert_eq!(POOL.with_borrow(Vec::len), before);
    }

    #[test]
    fn what_cannot_be_spliced_out_can_be_read_out() {
        let (mut a, b) = UnixStream::pair().expect("socket pair");
        a.write_all(b"residue").expect("written");
        let mut pipe = take(Instant::now()).expect("a pipe");
        pipe.fill(&b).expect("filled");
        assert_eq!(pipe.into_bytes().expect("read out"), b"residue");
    }
}

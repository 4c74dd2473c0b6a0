//! What is to be written when a turn ends.
//!
//! A turn reads from all that have something, and then writes to all that get something. Were each
//! written to at once, a peer that serves many of them would wake up for the first, have nothing to
//! do before the second, and so on: measured, up to a fifth of what a small request costs is in
//! these wake-ups.

use super::{Core, Socket, here, socket};
use crate::sys;
use ahash::AHashMap;
use std::{
    io,
    os::fd::RawFd,
    task::{Poll, ready},
    time::{Duration, Instant},
};

/// About so many bytes wait at most.
const WAITING: usize = 128 * 1024;
/// At most so many are read at once.
const READ: usize = 128 * 1024;
/// And about so long they wait, however much a turn has to do.
const PATIENCE: Duration = Duration::from_micros(100);

#[derive(Default)]
pub(super) struct Outbox {
    letters: Vec<Letter>,
    /// Up to here the room is taken.
    end: usize,
    /// When the first of them was posted, or a little earlier.
    since: Option<Instant>,
    /// By source: what could not be written.
    left: AHashMap<u32, Left>,
}

struct Letter {
    source: u32,
    /// Open: closing a socket writes its letters first.
    fd: RawFd,
    /// Where it lies in the room.
    at: usize,
    len: usize,
}

/// Where a thread reads to, behind what is to be written: that need not be moved then.
pub(super) fn room() -> Box<[u8]> {
    vec![0; WAITING + READ].into()
}

/// What was read last on this thread. It lies where it is until something else is read or posted.
#[derive(Debug)]
pub struct Fresh {
    at: usize,
    len: usize,
}

impl Fresh {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn look<R>(&self, f: impl FnOnce(&[u8]) -> R) -> R {
        here(|core| f(&core.room.borrow()[self.at..][..self.len]))
    }
}

impl Socket {
    /// Reads at most once, as [`Self::poll_read`] does.
    pub fn poll_read_fresh(&self, stream: bool) -> Poll<io::Result<Fresh>> {
        here(|core| {
            let at = core.outbox.borrow().end;
            let mut room = core.room.borrow_mut();
            let len = ready!(self.poll_read(&mut room[at..at + READ], stream))?;
            Poll::Ready(Ok(Fresh { at, len }))
        })
    }
}

/// What could not be written when the turn ended.
#[derive(Debug)]
pub struct Left {
    pub bytes: Vec<u8>,
    /// Why none of it ever can be, if so.
    pub error: Option<io::Error>,
}

#[cfg(test)]
impl Outbox {
    pub(super) fn has_left(&self) -> bool {
        !self.left.is_empty()
    }
}

impl Core {
    /// Takes all of it, which is at most as much as may wait. What the kernel does not take at the
    /// end of the turn is left, and the task that is polled now is polled again.
    pub(super) fn post(&self, source: u32, fd: RawFd, bytes: &[u8]) {
        let at = self.outbox.borrow().end;
        self.room.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        let len = bytes.len();
        self.post_fresh(source, fd, &Fresh { at, len });
    }

    /// The same of what was read last: that stays where it is.
    pub(super) fn post_fresh(&self, source: u32, fd: RawFd, &Fresh { at, len }: &Fresh) {
        if let Some(sender) = self.sources.borrow_mut().get_mut(source as usize) {
            sender.task = self.current.get();
            sender.flags |= socket::POSTED;
        }
        let mut outbox = self.outbox.borrow_mut();
        debug_assert!(outbox.end <= at, "something else was posted meanwhile");
        outbox.since.get_or_insert_with(|| self.now.get());
        outbox.end = at + len;
        outbox.letters.push(Letter {
            source,
            fd,
            at,
            len,
        });
        let is_full = outbox.end > WAITING;
        drop(outbox);
        if is_full {
            self.write_letters();
        }
    }

    pub(super) fn write_old_letters(&self) {
        let since = self.outbox.borrow().since;
        if since.is_some_and(|since| self.now.get().saturating_duration_since(since) >= PATIENCE) {
            self.write_letters();
        }
    }

    pub(super) fn write_letters(&self) {
        let (mut outbox, room) = (self.outbox.borrow_mut(), self.room.borrow());
        let Outbox {
            letters,
            end,
            since,
            left,
        } = &mut *outbox;
        (*end, *since) = (0, None);
        for Letter {
            source,
            fd,
            at,
            len,
        } in letters.drain(..)
        {
            let letter = &room[at..at + len];
            let mut sources = self.sources.borrow_mut();
            let Some(sender) = sources.get_mut(source as usize) else {
                continue;
            };
            sender.flags &= !socket::POSTED;
            if let Some(before) = left.get_mut(&source) {
                before.bytes.extend_from_slice(letter);
                continue;
            }
            let (written, error) = match sender.flags & socket::WRITE {
                0 => (0, None),
                _ => match sys::socket::send_now(fd, letter) {
                    Ok(n) if n == len => continue,
                    Ok(n) => (n, None),
                    Err(error) => (0, Some(error)),
                },
            };
            sender.flags = sender.flags & !socket::WRITE | socket::LEFT;
            if error.is_some() {
                sender.flags |= socket::WRITE | socket::UNWRITABLE;
            }
            let bytes = letter[written..].to_vec();
            left.insert(source, Left { bytes, error });
            let task = sender.task;
            drop(sources);
            self.wake(task);
        }
    }

    pub(super) fn take_left(&self, source: u32) -> Option<Left> {
        self.outbox.borrow_mut().left.remove(&source)
    }
}

//! What is to be written when a turn ends.
//!
//! A turn reads from all that have something, and then writes to all that get something. Were each written to at once, a peer that serves
//! many of them would wake up for the first, have nothing to do before the second, and so on: measured, up to a fifth of what a small
//! request costs is in these wake-ups.

use super::{Core, socket};
use crate::sys;
use ahash::AHashMap;
use std::{
    io,
    os::fd::RawFd,
    time::{Duration, Instant},
};

/// So many bytes wait at most.
const ROOM: usize = 128 * 1024;
/// And about so long, however much a turn has to do.
const PATIENCE: Duration = Duration::from_micros(100);

#[derive(Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    letters: Vec<Letter>,
    /// When the first of them was posted, or a little earlier.
    since: Option<Instant>,
    /// By source: what could not be written.
    left: AHashMap<u32, Left>,
}

struct Letter {
    source: u32,
    /// Open: closing a socket writes its letters first.
    fd: RawFd,
    len: usize,
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
    /// Takes all of it. What the kernel does not take at the end of the turn is left, and the task that is polled now is polled again.
    pub(super) fn post(&self, source: u32, fd: RawFd, bytes: &[u8]) {
        if self.outbox.borrow().bytes.len() + bytes.len() > ROOM {
            self.write_letters();
        }
        if let Some(sender) = self.sources.borrow_mut().get_mut(source as usize) {
            sender.task = self.current.get();
            sender.flags |= socket::POSTED;
        }
        let mut outbox = self.outbox.borrow_mut();
        outbox.since.get_or_insert_with(|| self.now.get());
        outbox.bytes.extend_from_slice(bytes);
        outbox.letters.push(Letter {
            source,
            fd,
            len: bytes.len(),
        });
    }

    pub(super) fn write_old_letters(&self) {
        let since = self.outbox.borrow().since;
        if since.is_some_and(|since| self.now.get().saturating_duration_since(since) >= PATIENCE) {
            self.write_letters();
        }
    }

    pub(super) fn write_letters(&self) {
        let mut outbox = self.outbox.borrow_mut();
        let Outbox {
            bytes,
            letters,
            since,
            left,
        } = &mut *outbox;
        *since = None;
        let mut rest = &bytes[..];
        for Letter { source, fd, len } in letters.drain(..) {
            let (letter, others) = rest.split_at(len);
            rest = others;
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
        bytes.clear();
    }

    pub(super) fn take_left(&self, source: u32) -> Option<Left> {
        self.outbox.borrow_mut().left.remove(&source)
    }
}

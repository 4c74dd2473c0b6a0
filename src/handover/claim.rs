//! Which of two processes has the sessions of a message: a counter of the kernel that both have,
//! and that one of them can take, once. It stays as it is when either of them dies or hangs, so
//! that no answer is needed to know whose the sessions are.

use rustix::{
    event::{EventfdFlags, eventfd},
    io::{Errno, read},
};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

#[derive(Debug)]
pub struct Claim(OwnedFd);

impl Claim {
    /// Which neither has taken.
    pub fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(eventfd(1, flags)?))
    }

    /// `descriptor`: that came with a message.
    pub fn of_descriptor(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    /// Whether this process has them from now on: once at most, in one of the two. Otherwise the
    /// other has taken them.
    pub fn take(&self) -> bool {
        let mut count = [0; size_of::<u64>()];
        loop {
            match read(&self.0, &mut count) {
                Err(Errno::INTR) => {}
                result => return result == Ok(count.len()),
            }
        }
    }
}

impl AsFd for Claim {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_can_be_taken_once_through_any_descriptor() {
        let claim = Claim::new().expect("a counter");
        let copy = claim.as_fd().try_clone_to_owned().expect("a copy");
        let other = Claim::of_descriptor(copy);
        assert!(other.take());
        assert!(!claim.take() && !other.take());
    }

    #[test]
    fn what_is_no_counter_cannot_be_taken() {
        let (reader, _writer) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).expect("a pipe");
        assert!(!Claim::of_descriptor(reader).take());
    }
}

//! How other threads reach the thread of a reactor.

use crate::sys::mutex::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    task::{Wake, Waker},
};

#[derive(Debug, PartialEq, Eq)]
pub enum Message<O> {
    Order(O),
    /// The task or flow with this token has something to check.
    Wake(u64),
    /// The thread ends with this turn.
    Stop,
}

/// Messages to one thread, and the descriptor by which its reactor is notified of them.
pub struct Mailbox<O> {
    event: OwnedFd,
    messages: Mutex<Vec<Message<O>>>,
}

impl<O> Mailbox<O> {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            messages: Mutex::default(),
        })
    }

    pub fn send(&self, message: Message<O>) {
        let mut messages = self.messages.lock();
        messages.push(message);
        if messages.len() == 1 {
            // The reactor is registered edge-triggered, and each write is an edge: the counter is
            // never read. It would overflow after 2^64 writes.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// All messages since the last call.
    pub fn take(&self) -> Vec<Message<O>> {
        let mut messages = self.messages.lock();
        std::mem::take(&mut messages)
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl<O: Send + 'static> Mailbox<O> {
    /// A waker that sends [`Message::Wake`]. A token may be reused by the time that it arrives: a
    /// wake-up is a hint, not a fact.
    pub fn waker(self: &Arc<Self>, token: u64) -> Waker {
        let mailbox = Arc::clone(self);
        Waker::from(Arc::new(TokenWaker { mailbox, token }))
    }
}

struct TokenWaker<O> {
    mailbox: Arc<Mailbox<O>>,
    token: u64,
}

impl<O: Send> Wake for TokenWaker<O> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.mailbox.send(Message::Wake(self.token));
    }
}

//! How other threads reach one that carries datagrams.

use super::Binding;
use rustix::event::{EventfdFlags, eventfd};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    task::Wake,
};

/// What it is to do.
pub(super) enum Order {
    Listen(Box<Binding>),
    /// Begin no flow any more, and end those that fall silent.
    Drain,
    /// End the flow of this listener that has been idle for longest: another worker needs the
    /// place.
    Evict(usize),
    /// A flow was told something: see [`super::token::Token`].
    Look(u64),
    Quit,
}

pub(super) struct Bell {
    event: OwnedFd,
    orders: Mutex<Vec<Order>>,
}

impl Bell {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            orders: Mutex::default(),
        })
    }

    pub(super) fn ring(&self, order: Order) {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        orders.push(order);
        if orders.len() == 1 {
            // The event loop waits for edges, and each write is one: the number is never read, and
            // a read that fails cannot leave the event loop with an event that never ends. 2^64
            // writes would fill it.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// Everything since the last time.
    pub(super) fn answer(&self) -> Vec<Order> {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut orders)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// Rings for one flow, when it is told to end.
pub(super) struct FlowBell {
    pub(super) bell: Arc<Bell>,
    pub(super) token: u64,
}

impl Wake for FlowBell {
    fn wake(self: Arc<Self>) {
        self.bell.ring(Order::Look(self.token));
    }
}

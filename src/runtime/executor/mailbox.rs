//! How other threads wake a task.

use super::HERE;
use rustix::event::{EventfdFlags, eventfd};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    task::Wake,
};

pub(super) struct Bell {
    event: OwnedFd,
    /// Tasks that are to be polled.
    rung: Mutex<Vec<u32>>,
}

impl Bell {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            rung: Mutex::default(),
        })
    }

    fn ring(&self, task: u32) {
        let mut rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        rung.push(task);
        if rung.len() == 1 {
            // The event loop waits for edges, and each write is one: the number is never read, and
            // a read that fails cannot leave the event loop with an event that never ends. 2^64
            // writes would fill it.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// Everybody since the last time.
    pub(super) fn answer(&self, mut wake: impl FnMut(u32)) {
        let rung = {
            let mut rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *rung)
        };
        rung.into_iter().for_each(&mut wake);
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// Wakes one task. Another one that has its number after it is polled once for nothing.
pub(super) struct TaskBell {
    bell: Arc<Bell>,
    task: u32,
}

impl TaskBell {
    pub(super) fn new(bell: &Arc<Bell>, task: u32) -> Self {
        Self {
            bell: Arc::clone(bell),
            task,
        }
    }
}

impl Wake for TaskBell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // On its own thread nobody need be woken.
        let is_here = HERE.try_with(|here| match here.get() {
            Some(core) if Arc::ptr_eq(&core.bell, &self.bell) => {
                core.wake(self.task);
                true
            }
            _ => false,
        });
        if !is_here.unwrap_or(false) {
            self.bell.ring(self.task);
        }
    }
}

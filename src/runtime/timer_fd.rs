//! A timer that ends the reactor's wait.
//!
//! Not the timeout of the wait itself, for which the kernel would set up and take down a timer each
//! time: sessions come, go and are active all the time, and the earliest of their times hardly ever
//! changes.

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use std::{
    cell::Cell,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Once,
    time::Duration,
};

pub(super) struct TimerFd {
    /// `None` where the kernel refuses to make one.
    fd: Option<OwnedFd>,
    /// When it expires, in milliseconds of the reactor's clock; `None` while it is not set.
    due: Cell<Option<u64>>,
}

impl TimerFd {
    pub(super) fn create() -> Self {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let fd = timerfd_create(TimerfdClockId::Monotonic, flags);
        Self {
            fd: fd.inspect_err(|&error| warn(&error.into())).ok(),
            due: Cell::new(None),
        }
    }

    /// Makes it expire at `due` or before: an earlier time is left alone, and the timer is set
    /// again after that. Where that is refused, returns how long the wait itself may take.
    pub(super) fn set(&self, due: u64, now: impl FnOnce() -> u64) -> Option<Timespec> {
        if self.due.get().is_some_and(|earlier| earlier <= due) {
            return None;
        }
        // Zero would turn it off.
        let wait = Duration::from_millis(due.saturating_sub(now())).max(Duration::from_nanos(1));
        let wait = Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        };
        let Some(fd) = &self.fd else {
            return Some(wait);
        };
        let time = Itimerspec {
            it_interval: Timespec::default(),
            it_value: wait,
        };
        match timerfd_settime(fd, TimerfdTimerFlags::empty(), &time) {
            Ok(_) => {
                self.due.set(Some(due));
                None
            }
            Err(error) => {
                warn(&error.into());
                Some(wait)
            }
        }
    }

    pub(super) fn note_expired(&self) {
        self.due.set(None);
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }
}

/// Once for the process: it would be the same for every wait of every worker.
fn warn(error: &io::Error) {
    static WARNED: Once = Once::new();
    WARNED.call_once(|| {
        tracing::warn!(%error, "timerfd is not permitted, waits are limited by epoll instead");
    });
}

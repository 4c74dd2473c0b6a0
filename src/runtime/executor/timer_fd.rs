//! Wakes the thread at a time.
//!
//! Not by the timeout of the wait itself, which the kernel would set up and take down with each of
//! them: sessions come, go and are active all the time, and the earliest of their times hardly ever
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

pub struct TimerFd {
    /// `None` where the kernel refuses to make one.
    timer: Option<OwnedFd>,
    /// In the milliseconds of the loop; `None` while it is not set.
    at: Cell<Option<u64>>,
}

impl TimerFd {
    pub fn create() -> Self {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags);
        Self {
            timer: timer.inspect_err(|&error| warn(&error.into())).ok(),
            at: Cell::new(None),
        }
    }

    /// Rings at `at` or before: one that is set for an earlier time is left alone, and set anew
    /// when it has rung. Where that is refused, returns how long the wait itself may take.
    pub fn set(&self, at: u64, now: impl FnOnce() -> u64) -> Option<Timespec> {
        if self.at.get().is_some_and(|earlier| earlier <= at) {
            return None;
        }
        // Zero would turn it off.
        let wait = Duration::from_millis(at.saturating_sub(now())).max(Duration::from_nanos(1));
        let wait = Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        };
        let Some(timer) = &self.timer else {
            return Some(wait);
        };
        let time = Itimerspec {
            it_interval: Timespec::default(),
            it_value: wait,
        };
        match timerfd_settime(timer, TimerfdTimerFlags::empty(), &time) {
            Ok(_) => {
                self.at.set(Some(at));
                None
            }
            Err(error) => {
                warn(&error.into());
                Some(wait)
            }
        }
    }

    pub fn expired(&self) {
        self.at.set(None);
    }

    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.timer.as_ref().map(AsFd::as_fd)
    }
}

/// Once for the process: it would be the same for every wait of every worker.
fn warn(error: &io::Error) {
    static WARNED: Once = Once::new();
    WARNED.call_once(|| {
        tracing::warn!(%error, "timerfd is not permitted, waits are limited by epoll instead");
    });
}

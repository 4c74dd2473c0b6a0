//! Wakes the thread at a time.
//!
//! Not by the timeout of the wait itself, which the kernel would set up and take down with each of them: sessions come, go and are
//! active all the time, and the earliest of their times hardly ever changes.

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use std::{
    cell::Cell,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

pub struct Alarm {
    timer: OwnedFd,
    /// In the milliseconds of the loop; `None` while it is not set.
    at: Cell<Option<u64>>,
}

impl Alarm {
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self {
            timer: timerfd_create(TimerfdClockId::Monotonic, flags)?,
            at: Cell::new(None),
        })
    }

    /// Rings at `at` or before: one that is set for an earlier time is left alone, and set anew when it has rung.
    pub fn set(&self, at: u64, now: impl FnOnce() -> u64) {
        if self.at.get().is_some_and(|earlier| earlier <= at) {
            return;
        }
        // Zero would turn it off.
        let wait = Duration::from_millis(at.saturating_sub(now())).max(Duration::from_nanos(1));
        let time = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: wait.subsec_nanos().into(),
            },
        };
        match timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &time) {
            Ok(_) => self.at.set(Some(at)),
            Err(error) => tracing::error!(%error, "cannot set a timer"),
        }
    }

    pub fn has_rung(&self) {
        self.at.set(None);
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

//! The timers of tasks: one for each.

use crate::runtime::timer_wheel::TimerWheel;

/// Milliseconds that the near wheel reaches ahead.
const NEAR: u64 = 500;
/// Milliseconds of a tick of the far wheel.
const COARSE: u64 = 256;
/// Ticks of a wheel's timeout.
const TICKS: u64 = 256;

/// Accurate to the millisecond. A timer that is far ahead waits on a coarse wheel until it is near,
/// so that one of an idle session is touched once in two minutes, and not twice a second.
pub(super) struct Timers {
    near: TimerWheel,
    far: TimerWheel,
    /// By task.
    due: Vec<u64>,
    /// Kept for its memory.
    found: Vec<u32>,
}

impl Timers {
    pub(super) fn new() -> Self {
        Self {
            near: TimerWheel::new(TICKS, 0),
            far: TimerWheel::new(TICKS * COARSE, 0),
            due: Vec::new(),
            found: Vec::new(),
        }
    }

    pub(super) fn set(&mut self, task: u32, due: u64, now: u64) {
        self.unset(task);
        let i = task as usize;
        if self.due.len() <= i {
            self.due.resize(i + 1, 0);
        }
        self.due[i] = due;
        self.insert(task, now);
    }

    pub(super) fn unset(&mut self, task: u32) {
        self.near.remove(task);
        self.far.remove(task);
    }

    fn insert(&mut self, task: u32, now: u64) {
        let due = self.due[task as usize];
        if due <= now + NEAR {
            self.near.insert(task, due, now);
        } else {
            // A wheel expires up to a tick late.
            self.far.insert(task, due - COARSE, now);
        }
    }

    /// When [`Self::expire`] has something to do.
    pub(super) fn next(&self) -> Option<u64> {
        let (near, far) = (self.near.next(), self.far.next());
        near.into_iter().chain(far).min()
    }

    pub(super) fn expire(&mut self, now: u64, mut wake: impl FnMut(u32)) {
        if self.next().is_none_or(|next| next > now) {
            return;
        }
        let mut found = std::mem::take(&mut self.found);
        self.far.take_due(now, &mut found);
        self.near.take_due(now, &mut found);
        for task in found.drain(..) {
            if self.due[task as usize] <= now {
                wake(task);
            } else {
                self.insert(task, now);
            }
        }
        self.found = found;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        /// Against a map from task to time: no timer expires early, and none later than the time
        /// that `next` returned.
        #[test]
        fn timers_expire_at_their_times(
            steps in prop::collection::vec(
                (0u32..20, 0u64..3, 0u64..1_000_000, any::<bool>()),
                1..200,
            ),
        ) {
            let mut timers = Timers::new();
            let mut all: HashMap<u32, u64> = HashMap::new();
            let mut now = 0;
            for (task, scale, ahead, unset) in steps {
                let due = now + ahead / [1, 1_000, 100_000][scale as usize];
                if unset {
                    timers.unset(task);
                    all.remove(&task);
                } else {
                    timers.set(task, due, now);
                    all.insert(task, due);
                }
                // To some time between now and far beyond the last.
                let until = now + ahead / 7;
                while let Some(next) = timers.next().filter(|next| *next <= until) {
                    prop_assert!(all.values().all(|due| *due >= now || next >= *due));
                    now = now.max(next);
                    let mut expired = Vec::new();
                    timers.expire(now, |task| expired.push(task));
                    for task in expired {
                        prop_assert_eq!(all.remove(&task).map(|due| due.max(now)), Some(now));
                    }
                    prop_assert!(all.values().all(|due| *due > now));
                }
                now = now.max(until);
                prop_assert!(all.values().all(|due| *due > now), "{:?} at {}", all, now);
            }
        }
    }
}

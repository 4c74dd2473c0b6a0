//! Whether the sockets of a listener accept and receive, and the pauses after failures.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// The state of one listener, over all workers.
#[derive(Debug, Default)]
pub struct Intake {
    failing: AtomicU64,
}

impl Intake {
    /// A socket could not be served at all, and will not be.
    pub fn note_lost_socket(&self) {
        self.failing.fetch_add(1, Relaxed);
    }

    /// False while a call that accepts or receives keeps failing on one of the sockets.
    pub fn is_working(&self) -> bool {
        self.failing.load(Relaxed) == 0
    }
}

/// The failures in a row of one socket.
#[derive(Debug, Default)]
pub struct Failures(u32);

/// The first pause; each further one is twice as long, up to the longest.
const FIRST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(1);

impl Failures {
    /// Counts a failed call and returns how long to wait before the next. A single failure may
    /// concern one client: from the second in a row on the socket counts as failing.
    pub fn add(&mut self, intake: &Intake) -> Duration {
        self.0 = self.0.saturating_add(1);
        if self.0 == 2 {
            intake.failing.fetch_add(1, Relaxed);
        }
        FIRST.saturating_mul(1 << (self.0 - 1).min(10)).min(LONGEST)
    }

    /// A call has succeeded, or has found nothing.
    pub fn clear(&mut self, intake: &Intake) {
        if std::mem::take(&mut self.0) >= 2 {
            intake.failing.fetch_sub(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_one_failure_is_none() {
        let intake = Intake::default();
        let (mut one, mut two) = (Failures::default(), Failures::default());
        assert_eq!(one.add(&intake), FIRST);
        assert!(intake.is_working());
        one.clear(&intake);
        assert_eq!(one.add(&intake), FIRST);
        assert_eq!(one.add(&intake), 2 * FIRST);
        assert!(!intake.is_working());
        two.add(&intake);
        two.add(&intake);
        one.clear(&intake);
        assert!(!intake.is_working(), "the other one still fails");
        for _ in 0..100 {
            two.add(&intake);
        }
        assert_eq!(two.add(&intake), LONGEST);
        two.clear(&intake);
        two.clear(&intake);
        assert!(intake.is_working());
    }
}

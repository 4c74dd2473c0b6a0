//! How long a connection of the admin side may last: clients that do not read must not occupy all
//! connections for ever.

use crate::sys::mutex::Mutex;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct Lifetime {
    length: Duration,
    end: Mutex<Instant>,
}

impl Lifetime {
    pub(super) fn new(length: Duration) -> Self {
        Self {
            length,
            end: Mutex::new(Instant::now() + length),
        }
    }

    /// Begins again.
    pub(super) fn extend(&self) {
        let mut end = self.end.lock();
        *end = Instant::now() + self.length;
    }

    /// Returns when it is over.
    pub(super) async fn passed(&self) {
        loop {
            let end = *self.end.lock();
            if end <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(end.into()).await;
        }
    }
}

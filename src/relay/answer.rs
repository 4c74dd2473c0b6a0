//! How long a backend takes to answer.

use crate::{backend::Backend, pool::Pool};
use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

/// Measures one session for a policy that compares backends by it.
///
/// The time is that of the connect and of the wait from the client's first byte to the backend's. What a client
/// leaves a connection idle before it asks is no fault of the backend: pools connect long before they ask.
#[derive(Debug)]
pub struct AnswerClock {
    pool: Arc<Pool>,
    backend: Arc<Backend>,
    connect_time: Duration,
    connected: Instant,
    asked: OnceLock<Instant>,
}

impl AnswerClock {
    /// `None` where the policy does not ask.
    pub fn start(
        pool: &Arc<Pool>,
        backend: &Arc<Backend>,
        connect_time: Duration,
        connected: Instant,
    ) -> Option<Box<Self>> {
        pool.asks_for_first_byte().then(|| {
            Box::new(Self {
                pool: Arc::clone(pool),
                backend: Arc::clone(backend),
                connect_time,
                connected,
                asked: OnceLock::new(),
            })
        })
    }

    /// At every turn of the relay until an answer has begun.
    pub(super) fn look(&self, has_asked: bool, has_answered: bool, now: Instant) {
        if has_answered {
            let since = self.asked.get().copied().unwrap_or(self.connected);
            let waited = now.saturating_duration_since(since);
            let time = self.connect_time + waited;
            self.pool.answered(&self.backend, time, now);
        } else if has_asked {
            self.asked.get_or_init(|| now);
        }
    }
}

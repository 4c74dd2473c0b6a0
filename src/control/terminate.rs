//! Terminations that an operator asks for: paced, and only for as long as the command waits.

mod kill;
mod rebalance;
mod targets;

pub use kill::Kill;
pub use rebalance::{NotRebalanced, Rebalance, RebalanceOutcome, Share};

use crate::{
    session::registry::Session,
    sys::mutex::Mutex,
    upstream::{balance::Chance, health::Pace},
};
use ahash::RandomState;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// From one report of progress to the next.
const REPORT: Duration = Duration::from_millis(200);
/// How long terminated sessions have to end.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks whether they have.
const LOOK: Duration = Duration::from_millis(50);

/// The pace of the process, and one of the command's own.
struct Pacing {
    shared: Arc<Mutex<Pace>>,
    own: Option<Pace>,
    chance: Chance,
}

impl Pacing {
    /// `per_second`: of the command.
    fn new(shared: &Arc<Mutex<Pace>>, per_second: Option<f64>, now: Instant) -> Self {
        Self {
            shared: Arc::clone(shared),
            own: per_second.map(|rate| Pace::with_rate(rate, now)),
            chance: Chance::from_seed(RandomState::new().hash_one(())),
        }
    }

    /// How many of `wanted` may end now.
    fn take(&mut self, wanted: usize, now: Instant) -> usize {
        let by_own = match &mut self.own {
            Some(pace) => pace.take(wanted, now),
            None => wanted,
        };
        let mut shared = self.shared.lock();
        let granted = shared.take(by_own, now);
        if let Some(pace) = &mut self.own {
            pace.give_back(by_own - granted);
        }
        granted
    }

    async fn pause(&mut self) {
        tokio::time::sleep(Pace::pause(self.chance.draw())).await;
    }
}

/// Sessions that were terminated and have not ended.
#[derive(Default)]
struct Pending(Vec<Arc<Session>>);

impl Pending {
    fn push(&mut self, session: Arc<Session>) {
        self.0.push(session);
    }

    /// How many there are. Where nothing else has a session any more, it has ended.
    fn count(&mut self) -> usize {
        self.0.retain(|session| Arc::strong_count(session) > 1);
        self.0.len()
    }
}

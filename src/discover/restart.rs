//! Spaces the restarts of a watch: a server that ends each at once must not be asked without end.

use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// After the second restart in a row; then doubled with each.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// Restarts since the watch last reported something.
#[derive(Debug, Default)]
pub(super) struct Restart {
    pause: Duration,
    not_before: Option<Instant>,
    count: u32,
}

impl Restart {
    /// Waits before a restart; the first one need not. What waits can be dropped.
    pub(super) async fn wait(&mut self) {
        if let Some(not_before) = self.not_before {
            sleep_until(not_before).await;
        }
        self.not_before = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).clamp(FIRST, LONGEST);
        self.count = self.count.saturating_add(1);
    }

    /// How many there have been.
    pub(super) fn in_row(&self) -> u32 {
        self.count
    }

    /// The watch works.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_in_a_row_get_rarer() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let began = Instant::now();
            let mut restart = Restart::default();
            restart.wait().await;
            restart.wait().await;
            assert!(began.elapsed() < FIRST, "two at once");
            restart.wait().await;
            assert!(began.elapsed() >= FIRST);
            assert_eq!(restart.in_row(), 3);
            restart.forget();
            assert_eq!(restart.in_row(), 0);
            let again = Instant::now();
            restart.wait().await;
            assert!(again.elapsed() < FIRST);
        });
    }
}

//! The upstreams whose discovered backends are to be put into effect.

use crate::sys::mutex::Mutex;
use std::{collections::BTreeSet, sync::Arc};
use tokio::sync::Notify;

/// Each upstream is in it once, however often its backends have changed.
#[derive(Debug, Default)]
pub struct DiscoveryQueue {
    upstreams: Mutex<BTreeSet<Arc<str>>>,
    added: Notify,
}

impl DiscoveryQueue {
    pub(super) fn add(&self, upstream: &Arc<str>) {
        let mut upstreams = self.upstreams.lock();
        upstreams.insert(Arc::clone(upstream));
        self.added.notify_one();
    }

    /// The next one; it can be dropped without loss.
    pub async fn next(&self) -> Arc<str> {
        loop {
            // Not across the wait.
            let first = {
                let mut upstreams = self.upstreams.lock();
                upstreams.pop_first()
            };
            match first {
                Some(upstream) => return upstream,
                None => self.added.notified().await,
            }
        }
    }
}

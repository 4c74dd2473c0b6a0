//! Upstreams that are not in the plan any more, for as long as sessions are on their backends:
//! these are checked, and their sessions terminated, as before.

use super::upstream::UpstreamRuntime;
use crate::{
    sys::{mutex::Mutex, task::boxed},
    upstream::pool::Pool,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Duration,
};

/// From one look whether sessions are left to the next.
const POLL: Duration = Duration::from_secs(1);

/// By their names.
#[derive(Default)]
pub(super) struct RemovedUpstreams(Arc<Upstreams>);

type Upstreams = Mutex<BTreeMap<String, UpstreamRuntime>>;

impl RemovedUpstreams {
    pub(super) fn add(&self, upstream: UpstreamRuntime) {
        if upstream.pool.is_over() {
            upstream.finish();
            return;
        }
        let mut upstreams = self.0.lock();
        // One task is enough for all.
        if upstreams.is_empty() {
            tokio::spawn(boxed(finish_when_over(Arc::downgrade(&self.0))));
        }
        upstreams.insert(upstream.plan.name.clone(), upstream);
    }

    /// The upstream of this name, if a plan has it again before its last session has ended.
    pub(super) fn take(&self, name: &str) -> Option<UpstreamRuntime> {
        self.0.lock().remove(name)
    }

    pub(super) fn pools(&self) -> Vec<Arc<Pool>> {
        let upstreams = self.0.lock();
        upstreams.values().map(|u| Arc::clone(&u.pool)).collect()
    }

    /// Handles what has happened to all of them, at the end of the process.
    pub(super) fn finish(&self) {
        let upstreams = std::mem::take(&mut *self.0.lock());
        upstreams.into_values().for_each(UpstreamRuntime::finish);
    }
}

async fn finish_when_over(upstreams: Weak<Upstreams>) {
    loop {
        tokio::time::sleep(POLL).await;
        let Some(upstreams) = upstreams.upgrade() else {
            return;
        };
        let mut upstreams = upstreams.lock();
        let all = std::mem::take(&mut *upstreams).into_iter();
        let (over, rest) = all.partition(|(_, upstream)| upstream.pool.is_over());
        *upstreams = rest;
        BTreeMap::into_values(over).for_each(UpstreamRuntime::finish);
        if upstreams.is_empty() {
            return;
        }
    }
}

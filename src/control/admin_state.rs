//! The operator's wish about a backend, put into effect.

use super::State;
use crate::{
    control::{draining::Leaving, journal::Event, outage::follow},
    plan::reason::BackendState,
    upstream::pool::{Pool, Turned, Wish},
};
use std::{sync::Arc, time::Instant};
use tokio::sync::Notify;

/// Of every change that a wish makes.
const REASON: &str = "operator";

/// An upstream, as far as an operator can do something to it.
pub(super) struct Controlled {
    pub(super) pool: Arc<Pool>,
    pub(super) leaving: Arc<Leaving>,
    /// Of whoever checks its addresses.
    pub(super) changed: Arc<Notify>,
}

/// What became of a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wished {
    pub from: BackendState,
    pub to: BackendState,
    /// On the backend now, those being connected included.
    pub sessions: u64,
}

/// There is nothing of that name; with the names that there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unknown {
    Upstream(Vec<String>),
    Backend(Vec<String>),
}

impl State {
    /// Must be called on the control thread: its checks and wishes take turns, and so never
    /// contradict each other.
    pub fn wish(&self, upstream: &str, backend: &str, wish: Wish) -> Result<Wished, Unknown> {
        let controlled = self.controlled.iter().find(|c| *c.pool.name == *upstream);
        let Some(Controlled {
            pool,
            leaving,
            changed,
        }) = controlled
        else {
            let known = self.pools.iter().map(|p| p.name.to_string());
            return Err(Unknown::Upstream(known.collect()));
        };
        let Some(of) = pool.texts().position(|text| text == backend) else {
            return Err(Unknown::Backend(pool.texts().map(str::to_owned).collect()));
        };
        let now = Instant::now();
        let before = pool.snapshot(now).swap_remove(of);
        let turned = pool.set_wish(of, wish, now);
        let after = pool.snapshot(now).swap_remove(of);
        let done = Wished {
            from: before.state,
            to: after.state,
            sessions: after.metrics.active(),
        };
        if let Some(turned) = turned {
            after.metrics.entered(after.state);
            leaving.wished(pool, wish, &turned);
            changed.notify_one();
            let (from, to) = (done.from.word(), done.to.word());
            tracing::info!(%upstream, backend, from, to, reason = REASON, sessions = done.sessions,
                "the operator wishes {}", wish.word());
            self.write_down(pool, turned, now);
        }
        Ok(done)
    }

    fn write_down(&self, pool: &Arc<Pool>, turned: Vec<Turned>, now: Instant) {
        let journal = &self.process.journal;
        for Turned {
            backend, from, to, ..
        } in turned
        {
            let event = Event::new(&pool.name, &backend, from.word(), to.word());
            let recorded = journal.record(Event {
                reason: REASON,
                ..event
            });
            if from == BackendState::Up && to != BackendState::Up {
                follow(pool, &backend, journal, recorded, now);
            }
        }
    }
}

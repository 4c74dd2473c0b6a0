//! Puts the admin state that an operator sets into effect.

use super::State;
use crate::{
    control::{draining::Leaving, journal::Event, outage::follow},
    plan::reason::BackendState,
    upstream::pool::{AdminState, Pool, Turned},
};
use std::{sync::Arc, time::Instant};
use tokio::sync::Notify;

/// The reason of every change of state that follows from an admin state.
const REASON: &str = "operator";

/// An upstream, as far as an operator can do something to it.
pub(super) struct Controlled {
    pub(super) pool: Arc<Pool>,
    pub(super) leaving: Arc<Leaving>,
    /// Of whoever checks its addresses.
    pub(super) changed: Arc<Notify>,
}

/// What a change of the admin state did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdminChange {
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
    /// Must be called on the control thread: checks run there too, so the two never interleave.
    pub fn admin_state(
        &self,
        upstream: &str,
        backend: &str,
        admin_state: AdminState,
    ) -> Result<AdminChange, Unknown> {
        let view = self.view();
        let controlled = view.upstreams.iter().find(|c| *c.pool.name == *upstream);
        let Some(Controlled {
            pool,
            leaving,
            changed,
        }) = controlled
        else {
            let known = view.pools().map(|p| p.name.to_string());
            return Err(Unknown::Upstream(known.collect()));
        };
        let Some(of) = pool.texts().position(|text| text == backend) else {
            return Err(Unknown::Backend(pool.texts().map(str::to_owned).collect()));
        };
        let now = Instant::now();
        let before = pool.snapshot(now).swap_remove(of);
        let turned = pool.set_admin_state(of, admin_state, now);
        let after = pool.snapshot(now).swap_remove(of);
        let done = AdminChange {
            from: before.state,
            to: after.state,
            sessions: after.metrics.active(),
        };
        if let Some(turned) = turned {
            after.metrics.entered(after.state);
            leaving.admin_state_changed(pool, admin_state, &turned);
            changed.notify_one();
            let (from, to) = (done.from.word(), done.to.word());
            tracing::info!(%upstream, backend, from, to, reason = REASON, sessions = done.sessions,
                admin_state = admin_state.word(), "admin state changed");
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

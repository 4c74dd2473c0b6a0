//! Sets the admin state of a backend for an operator.

use super::State;
use crate::upstream::pool::{AdminChange, AdminState};
use std::time::Instant;

/// There is no upstream or backend of that name; with the names that there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unknown {
    Upstream(Vec<String>),
    Backend(Vec<String>),
}

impl State {
    pub fn set_admin_state(
        &self,
        upstream: &str,
        backend: &str,
        admin_state: AdminState,
    ) -> Result<AdminChange, Unknown> {
        let view = self.view();
        let Some(pool) = view.pools.iter().find(|p| *p.name == *upstream) else {
            let known = view.pools.iter().map(|p| p.name.to_string());
            return Err(Unknown::Upstream(known.collect()));
        };
        let change = pool.set_admin_state(backend, admin_state, Instant::now());
        change.ok_or_else(|| Unknown::Backend(pool.texts()))
    }
}

//! Listeners that are not in the plan any more, for as long as they have sessions.

use super::Runtime;
use crate::{
    control::draining::terminate_of_listener, plan::SessionAction, session::service::Service,
};
use std::{collections::BTreeMap, sync::Arc};
use tokio_util::sync::DropGuard;

/// By their names.
#[derive(Default)]
pub(super) struct RemovedListeners(BTreeMap<String, Removed>);

struct Removed {
    service: Arc<Service>,
    /// Dropping it lets sessions stay that have not been terminated yet.
    _terminating: Option<DropGuard>,
}

impl RemovedListeners {
    /// The last service of the listener, if a plan has it again: its sessions stay.
    pub(super) fn take(&mut self, name: &str) -> Option<Arc<Service>> {
        Some(self.0.remove(name)?.service)
    }

    /// Those with sessions.
    pub(super) fn services(&self) -> Vec<Arc<Service>> {
        let services = self.0.values().map(|removed| &removed.service);
        services
            .filter(|s| s.metrics.active() > 0)
            .cloned()
            .collect()
    }
}

impl Runtime {
    /// `on_removed` of the upstream that they used decides about their sessions.
    pub(super) fn add_removed_listeners(&mut self, services: Vec<Arc<Service>>) {
        let removed = &mut self.removed_listeners.0;
        removed.retain(|_, removed| removed.service.metrics.active() > 0);
        for service in services.into_iter().filter(|s| s.metrics.active() > 0) {
            let upstream = self.upstreams.get(&*service.pool.name);
            let how = upstream.map_or(SessionAction::Keep, |u| u.plan.on_removed);
            let name = service.plan.name.clone();
            let sessions = &self.process.sessions;
            let terminating =
                terminate_of_listener(&name, how, sessions, &self.pace, &self.checks.stop);
            let removed_listener = Removed {
                service,
                _terminating: terminating,
            };
            removed.insert(name, removed_listener);
        }
    }
}

//! What flows of datagrams ask of the pool: there is no connect that could succeed, and they may go
//! elsewhere at any time.

use super::{Pool, Search};
use crate::{
    plan::{
        FlowsMove,
        reason::{BackendState, CloseReason},
    },
    upstream::{backend::Backend, pool::endpoint::Member},
};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

impl Pool {
    /// Is another number whenever a backend may have been left since: while it is the same, nobody
    /// has to go.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    pub(super) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// Whether it says anything that this one gave no reply. Checks know better; and where it is
    /// the last that can be used, whoever asks what nobody answers would take all away.
    pub fn may_be_blamed_for_silence(&self, backend: &Arc<Backend>, now: Instant) -> bool {
        if self.supposed.is_some() {
            return false;
        }
        let inner = self.lock();
        let mut others = inner
            .members
            .iter()
            .filter(|m| !Arc::ptr_eq(&m.backend, backend));
        others.any(|m| m.share(false, now) > 0)
    }

    /// A flow is on the backend that `search` picked last, and has said so. Whether it may stay:
    /// sessions can have been told to leave since it was picked.
    pub fn taken(&self, search: &Search, now: Instant) -> bool {
        let mut inner = self.lock();
        inner.left == search.left_in_all && !inner.events.awaits_failover()
            || inner.may_stay(search, now)
    }

    /// Why a flow on this backend is to go to another one, if it is.
    pub fn must_go(&self, backend: &Arc<Backend>) -> Option<CloseReason> {
        let inner = self.lock();
        let single = inner.balancer.is_single();
        let Some(member) = inner
            .members
            .iter()
            .find(|m| Arc::ptr_eq(&m.backend, backend))
        else {
            return self.moves.drain.then_some(CloseReason::BackendDrained);
        };
        reason(member, single).filter(|reason| self.moves.does(*reason))
    }
}

/// Why nothing new is to go to this one.
fn reason(member: &Member, single: bool) -> Option<CloseReason> {
    match member.state() {
        BackendState::Failed | BackendState::Unproven if single => None,
        BackendState::Failed | BackendState::Unproven => Some(CloseReason::BackendDown),
        BackendState::Drained | BackendState::Maintenance => Some(CloseReason::BackendDrained),
        // Used whatever its checks say.
        _ if member.open && !member.down => None,
        BackendState::Down | BackendState::Disabled => Some(CloseReason::BackendDown),
        BackendState::WrongRole | BackendState::Standby => Some(CloseReason::RoleLost),
        BackendState::Lagging => Some(CloseReason::Lagging),
        // It may be right, or is only silent: who is there stays.
        BackendState::Up | BackendState::Doubtful => None,
    }
}

impl FlowsMove {
    pub fn does(self, reason: CloseReason) -> bool {
        match reason {
            CloseReason::RoleLost => self.role_lost,
            CloseReason::Lagging => self.lag,
            CloseReason::BackendDrained => self.drain,
            CloseReason::BackendDown | CloseReason::BackendRefused => self.down,
            CloseReason::Ok
            | CloseReason::IdleTimeout
            | CloseReason::HalfCloseTimeout
            | CloseReason::ClientReset
            | CloseReason::BackendReset
            | CloseReason::ClientTimedOut
            | CloseReason::BackendTimedOut
            | CloseReason::ClientLeft
            | CloseReason::ConnectFailed
            | CloseReason::NoBackend
            | CloseReason::Drained
            | CloseReason::UntrustedHeader
            | CloseReason::Recovered
            | CloseReason::ResponseTimeout
            | CloseReason::Evicted => false,
        }
    }
}

impl Search {
    /// This one is not to be picked, as if it had been tried.
    pub fn avoid(&mut self, backend: &Backend) {
        self.tried.push(backend.id);
    }
}

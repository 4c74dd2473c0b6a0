//! Admission of a new flow, also where a limit is reached: `when_full = "evict"`.

use super::Listener;
use crate::{
    plan::{
        WhenFull,
        reason::{CloseReason, RejectReason},
    },
    proxy::udp::context::Context,
    session::{
        admission::{self, Limit, Permits},
        registry::Arrival,
        sockets::SocketPermit,
    },
};
use std::sync::Arc;

/// Flows that are evicted for a new one, at most.
const EVICTIONS: usize = 3;

impl Listener {
    /// Admits a flow. Where a limit on their number is reached, `when_full = "evict"` ends others
    /// for it.
    pub(super) fn admit(
        &mut self,
        context: &mut Context,
        arrival: Arrival,
        moves: bool,
    ) -> Result<(Permits, SocketPermit), RejectReason> {
        // The shared flag is set before `/readyz` reports it; this worker may not have woken since.
        if self.is_draining || self.service.process.sessions.is_stopping() {
            return Err(RejectReason::Drained);
        }
        // Sockets that are kept for late replies count: refusing a flow is better than giving it
        // the port of a late reply. A flow that moves leaves such a socket behind, and was admitted
        // before.
        let for_socket = match moves {
            true => Limit::Exceeded,
            false => Limit::Enforced,
        };
        // Before any flow is evicted. A flow that moves does not begin.
        if !moves {
            admission::admit_client_of_flow(&self.service, &arrival)?;
        }
        let (service, sockets) = (Arc::clone(&self.service), Arc::clone(&context.sockets));
        let admit = |for_listener| {
            admission::admit_flow(&service, arrival, for_listener, &sockets, for_socket)
        };
        let mut admitted = admit(Limit::Enforced);
        // Another worker may take the permit that an eviction frees.
        for _ in 0..EVICTIONS {
            let Err(reason) = &admitted else {
                break;
            };
            if self.udp.when_full == WhenFull::Refuse || !reason.is_cured_by_eviction() {
                break;
            }
            if for_socket == Limit::Enforced && !sockets.has_free() {
                admitted = Err(RejectReason::NoPorts);
                break;
            }
            admitted = match self.evict_on_another_worker(*reason, || admit(Limit::Exceeded)) {
                Some(admitted) => admitted,
                None if self.flows.is_empty() => break,
                None => {
                    self.evict_oldest(context);
                    admit(Limit::Enforced)
                }
            };
        }
        if admitted.is_err() && !moves {
            admission::give_back_rate(&service, &arrival);
        }
        admitted
    }

    /// Where this worker has less than its share of the listener's flows, another one that has more
    /// evicts one of its own: idle flows there must not cost active ones here.
    fn evict_on_another_worker<T>(
        &self,
        reason: RejectReason,
        admit: impl FnOnce() -> T,
    ) -> Option<T> {
        let share = self.peers.share(self.service.plan.max_connections);
        let is_of_listener = reason == RejectReason::MaxConnections;
        (is_of_listener && (self.flows.len() as u64) < share)
            .then(|| self.peers.evict_one(&self.own_worker, admit))?
    }

    /// Another worker has admitted a flow beyond the limit: evicts one here, if there are still too
    /// many.
    pub(in crate::proxy::udp) fn evict_for_another_worker(&mut self, context: &mut Context) {
        self.peers.note_executed();
        if self.service.metrics.active() > self.service.plan.max_connections {
            self.evict_oldest(context);
        }
    }

    /// Ends the flow that has been idle for longest.
    fn evict_oldest(&mut self, context: &mut Context) {
        // Datagrams that were taken for it are sent first.
        self.deliver_all(context);
        let flows = &self.flows;
        let due = |number| flows[number as usize].due(false);
        if let Some(oldest) = self.wheel.oldest(context.ms, due)
            && !self.is_held(oldest)
        {
            self.close(context, oldest, CloseReason::Evicted);
        }
    }
}

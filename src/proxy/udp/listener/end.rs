//! The end of flows: by time, by termination, and when the process stops.

use super::{
    super::flow::{Flow, QUIET},
    Listener, Reception,
};
use crate::{
    plan::reason::{CloseReason, DropReason},
    proxy::udp::context::Context,
};
use std::sync::{Arc, atomic::Ordering::Relaxed};

/// Batches that are still received when a stop begins: datagrams that came before it.
const LAST_BATCHES: usize = 64;
/// From one look at a flow that goes from one process to the other to the next, in milliseconds.
const HELD: u64 = 100;

impl Listener {
    pub(super) fn flow(&mut self, serial: u32, number: u32) -> Option<&mut Flow> {
        let flow = self.flows.get_mut(number as usize);
        flow.filter(|flow| flow.serial == serial)
    }

    /// Whether it stands still while it goes from one process to the other.
    pub(super) fn is_held(&self, number: u32) -> bool {
        let flow = self.flows.get(number as usize);
        flow.is_some_and(|flow| self.reception_of(flow) == Reception::Held)
    }

    /// Ends a flow that was terminated.
    pub(in crate::proxy::udp) fn check_termination(
        &mut self,
        context: &mut Context,
        serial: u32,
        number: u32,
    ) {
        if self.is_held(number) {
            // It is looked at again when it goes on here.
            return;
        }
        let reason = self
            .flow(serial, number)
            .and_then(|flow| flow.permits.session().must_end());
        if let Some(reason) = reason {
            self.close(context, number, reason);
        }
    }

    /// Keeps a flow only for replies that are owed: its key leads to another flow from now on.
    pub(super) fn retire(
        &mut self,
        context: &Context,
        serial: u32,
        number: u32,
        reason: CloseReason,
    ) {
        // It may have been evicted for the other.
        let Some(flow) = self.flow(serial, number) else {
            return;
        };
        // Each later datagram of the client comes here again: the wait begins once.
        if !flow.retire(reason) {
            return;
        }
        flow.set_last_ms(context.ms);
        let due = self.due(number);
        self.wheel.remove(number);
        self.wheel.insert(number, due, context.ms);
    }

    /// When [`Self::expire`] is to be called next, in milliseconds.
    pub(in crate::proxy::udp) fn next_expiry(&self) -> Option<u64> {
        let times = [
            self.wheel.next(),
            self.named.next_sweep(),
            self.next_resume,
            self.waiting.next_due(),
        ];
        times.into_iter().flatten().min()
    }

    /// Ends flows that were idle for too long, and does what else is due.
    pub(in crate::proxy::udp) fn expire(&mut self, context: &mut Context) {
        let (table, flows) = (&self.table, &self.flows);
        let has_flow = |key: &_| table.find(key, |n| &flows[n as usize].key).is_some();
        self.named.sweep(context.ms, has_flow);
        self.resume(context);
        self.advance_due(context);
        let mut found = Vec::new();
        self.wheel.take_due(context.ms, &mut found);
        for number in found {
            if self.is_held(number) {
                self.wheel.insert(number, context.ms + HELD, context.ms);
                continue;
            }
            let due = self.due(number);
            if due > context.ms {
                self.wheel.insert(number, due, context.ms);
                let drops = self.flows[number as usize].new_drops();
                self.service
                    .drop_datagrams(DropReason::ReceiveBuffer, drops, None, context.now);
                continue;
            }
            let flow = &self.flows[number as usize];
            let is_owed = flow.responses() > 0 && !flow.has_all_replies();
            let stays = !self.is_draining && flow.retired.is_none();
            let reason = if stays && flow.is_unreachable {
                // No other backend could take it, and nothing has come since the last report.
                CloseReason::BackendRefused
            } else if is_owed && !self.is_draining && !flow.has_left_backend() {
                self.report_silence(context, number);
                CloseReason::ResponseTimeout
            } else if let Some(reason) = flow.retired {
                reason
            } else if self.is_draining {
                CloseReason::Drained
            } else {
                CloseReason::IdleTimeout
            };
            self.close(context, number, reason);
        }
    }

    /// The backend owed replies to this flow and sent none in time. An error from the network was
    /// counted already.
    fn report_silence(&self, context: &Context, number: u32) {
        let flow = &self.flows[number as usize];
        if !flow.is_unreachable {
            let backend = flow.lease.backend();
            let is_silent = backend.last_reply_ms.load(Relaxed) < flow.last_ms();
            let service = flow.service();
            service.report_silence(backend, is_silent, context.now);
        }
    }

    /// Begins no more flows, and ends those that fall silent. Datagrams that came before are still
    /// received.
    pub(in crate::proxy::udp) fn drain(&mut self, context: &mut Context) {
        if self.is_draining {
            return;
        }
        let ports: Vec<usize> = self.ports.iter().map(|(port, _)| port).collect();
        for port in ports {
            for _ in 0..LAST_BATCHES {
                if !self.receive(context, port as u16) {
                    break;
                }
            }
        }
        self.is_draining = true;
        self.end_all_waiting(context);
        // Fine enough for `QUIET`; flows that may be silent for longer are only looked at more
        // often.
        self.rebuild_wheel(self.idle_ms.min(QUIET), context.ms);
    }

    /// Lets a stop end when the last flow has ended. The sockets stay open: without them the kernel
    /// would distribute clients anew, and those of flows on other workers would reach the wrong
    /// one.
    pub(in crate::proxy::udp) fn release_when_empty(&mut self) {
        if self.is_draining && self.flows.is_empty() {
            self.alive = None;
        }
    }

    /// Ends a flow now. Its socket is kept for a while if replies are owed.
    pub(super) fn close(&mut self, context: &mut Context, number: u32, reason: CloseReason) {
        let Some(mut flow) = self.flows.try_remove(number as usize) else {
            return;
        };
        self.count_flows();
        self.wheel.remove(number);
        self.table.remove(&flow.key, number);
        if let Some(sending) = &mut self.sending {
            sending.note_end(number, flow.permits.session().id);
        }
        let service = Arc::clone(flow.service());
        if flow.has_passed_trial(context.now, true) {
            service.pool.answered(flow.lease.backend(), context.now);
        }
        let drops = flow.new_drops();
        service.drop_datagrams(DropReason::ReceiveBuffer, drops, None, context.now);
        let is_owed = !flow.has_all_replies();
        let link = flow.end(&service, reason, context.now);
        if is_owed && !self.is_draining {
            context.keep_late(service, link);
        }
    }

    /// When this flow will have been idle for too long, in milliseconds.
    pub(super) fn due(&self, number: u32) -> u64 {
        self.flows[number as usize].due(self.is_draining)
    }
}

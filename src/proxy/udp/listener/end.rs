//! A flow ends, or only waits for what it is still owed.

use super::{
    super::flow::{Flow, QUIET},
    Listener,
};
use crate::{
    plan::reason::{CloseReason, DropReason},
    proxy::udp::context::Context,
    runtime::wheel::Wheel,
};
use std::{io, sync::atomic::Ordering::Relaxed};

/// What came before the process was told to end is still taken: so many batches of it.
const LAST: usize = 64;

impl Listener {
    pub(super) fn flow(&mut self, serial: u32, number: u32) -> Option<&mut Flow> {
        let flow = self.flows.get_mut(number as usize);
        flow.filter(|flow| flow.serial == serial)
    }

    /// It was told something.
    pub(in crate::proxy::udp) fn look(&mut self, gear: &mut Context, serial: u32, number: u32) {
        let reason = self
            .flow(serial, number)
            .and_then(|flow| flow.permits.session().must_end());
        if let Some(reason) = reason {
            self.close(gear, number, reason);
        }
    }

    /// From now on its key leads to another flow; it waits for what it is still owed.
    pub(super) fn retire(&mut self, gear: &Context, serial: u32, number: u32, reason: CloseReason) {
        // It may have had to make room for the other.
        let Some(flow) = self.flow(serial, number) else {
            return;
        };
        // Each datagram that is not for it any more finds it so: the wait begins once.
        if flow.retired.replace(reason).is_some() {
            return;
        }
        flow.last = gear.ms;
        let due = self.due(number);
        self.wheel.remove(number);
        self.wheel.insert(number, due, gear.ms);
    }

    pub(in crate::proxy::udp) fn next(&self) -> Option<u64> {
        let sweep = (!self.named.is_empty()).then(|| self.swept + self.idle);
        let next = self.wheel.next().into_iter();
        next.chain(sweep).chain(self.resumes()).min()
    }

    /// Ends those that were idle for too long.
    pub(in crate::proxy::udp) fn expire(&mut self, gear: &mut Context) {
        self.sweep(gear.ms);
        self.resume(gear);
        let mut found = Vec::new();
        self.wheel.take_due(gear.ms, &mut found);
        for number in found {
            let due = self.due(number);
            if due > gear.ms {
                self.wheel.insert(number, due, gear.ms);
                let drops = self.flows[number as usize].new_drops();
                self.service
                    .drop_datagrams(DropReason::ReceiveBuffer, drops, None, gear.now);
                continue;
            }
            let flow = &self.flows[number as usize];
            let is_owed = self.udp.responses > 0 && !flow.has_all_replies(self.udp.responses);
            let reason = if is_owed && !self.is_draining && !flow.has_left_backend() {
                self.report_silence(gear, number);
                CloseReason::ResponseTimeout
            } else if let Some(reason) = flow.retired {
                reason
            } else if self.is_draining {
                CloseReason::Drained
            } else {
                CloseReason::IdleTimeout
            };
            self.close(gear, number, reason);
        }
    }

    /// The backend owed replies to this flow and sent none in time. That is no failure of a backend
    /// that replied to another flow meanwhile, and an error from the network was counted already.
    fn report_silence(&self, gear: &Context, number: u32) {
        let flow = &self.flows[number as usize];
        let backend = flow.lease.backend();
        let is_silent = backend.heard.load(Relaxed) < flow.last;
        let pool = &self.service.pool;
        if is_silent && !flow.refused && pool.may_be_blamed_for_silence(backend, gear.now) {
            let error = io::ErrorKind::TimedOut.into();
            self.service.report_failure(backend, &error, gear.now);
        }
    }

    /// Begins no flow any more, and ends those that are silent. What came before is still taken.
    pub(in crate::proxy::udp) fn drain(&mut self, gear: &mut Context) {
        if self.is_draining {
            return;
        }
        for port in 0..self.ports.len() {
            for _ in 0..LAST {
                if !self.receive_some(gear, port as u16) {
                    break;
                }
            }
        }
        self.is_draining = true;
        // Fine enough for a second; who waits longer is looked at more often.
        self.wheel = Wheel::new(self.idle.min(QUIET), gear.ms);
        let numbers: Vec<u32> = self.flows.iter().map(|(number, _)| number as u32).collect();
        for number in numbers {
            self.wheel.insert(number, self.due(number), gear.ms);
        }
    }

    /// Where the last flow has ended while the process ends, nobody waits for this any more. The
    /// sockets stay: without them the kernel would share out among the other workers' anew, and
    /// flows that live there would lose their clients.
    pub(in crate::proxy::udp) fn let_go(&mut self) {
        if self.is_draining && self.flows.is_empty() {
            self.alive = None;
        }
    }

    pub(super) fn close(&mut self, gear: &mut Context, number: u32, reason: CloseReason) {
        let Some(mut flow) = self.flows.try_remove(number as usize) else {
            return;
        };
        self.count_flows();
        self.wheel.remove(number);
        self.table.remove(&flow.key, number);
        if flow.has_passed_trial(gear.now, true) {
            self.service.pool.answered(flow.lease.backend(), gear.now);
        }
        let drops = flow.new_drops();
        self.service
            .drop_datagrams(DropReason::ReceiveBuffer, drops, None, gear.now);
        let is_owed = !flow.has_all_replies(self.udp.responses);
        let link = flow.end(&self.service, reason, gear.now);
        if is_owed && !self.is_draining {
            gear.keep_late(self.index, link);
        }
    }

    /// When it will have been idle for too long.
    fn due(&self, number: u32) -> u64 {
        let flow = &self.flows[number as usize];
        flow.due(self.idle, self.udp.responses, self.is_draining)
    }
}

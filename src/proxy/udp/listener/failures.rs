//! Errors of a flow's socket: which of them count as failures of its backend.

use super::Listener;
use crate::{
    plan::{
        Addr,
        reason::{CloseReason, ErrorCause, Party},
    },
    proxy::udp::context::Context,
    session::service::Call,
    sys::datagram::{Origin, next_report},
};
use std::{
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd,
    time::Instant,
};

/// More reports than fit into the receive buffer of a flow, which they share with replies.
const MAX_REPORTS: usize = 4_096;

/// After so many failures in a row a socket will not receive any more.
const MAX_FAILURES: u8 = 16;

/// What was in the error queue of a socket.
#[derive(Default)]
pub(super) struct Reported {
    /// The first error for which the backend or the way to it is the cause.
    of_backend: Option<io::Error>,
    /// Whether there was any report about a datagram that was sent before. The kernel also returns
    /// such an error from the next call, whatever that call does.
    of_earlier: bool,
}

/// What is to be done with a datagram that was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AfterError {
    /// The error was that of an earlier datagram.
    SendAgain,
    /// It is lost. Others of the same flow may be sent.
    Drop,
    /// The backend cannot be reached.
    TryAnother { again_here: bool },
}

impl Listener {
    /// The event loop reports an error of this flow's socket.
    pub(in crate::proxy::udp) fn take_reports_of(&mut self, serial: u32, number: u32) {
        if self.flow(serial, number).is_some() {
            self.take_reports(number);
        }
    }

    /// Takes all reports from the error queue of this flow's socket, until which the event loop
    /// reports it as ready. Returns whether one of them is about the backend.
    pub(super) fn take_reports(&mut self, number: u32) -> bool {
        let Some(flow) = self.flows.get(number as usize) else {
            return false;
        };
        let backend = flow.lease.backend();
        let reported = read_reports(&flow.link.socket, &backend.addr);
        if let Some(error) = &reported.of_backend {
            self.mark_unreachable(number, error);
        }
        reported.of_backend.is_some()
    }

    /// A call on this flow's socket has failed.
    pub(super) fn receive_failed(&mut self, context: &mut Context, number: u32, error: &io::Error) {
        // A report that came meanwhile is the same error with more details.
        if self.take_reports(number) {
            return;
        }
        if ErrorCause::of(error).is_of_backend() {
            self.mark_unreachable(number, error);
        }
        let Some(flow) = self.flows.get_mut(number as usize) else {
            return;
        };
        flow.receive_failures += 1;
        if flow.receive_failures >= MAX_FAILURES {
            // The event loop would report its socket again and again.
            self.service.process.metrics.accept_errors.add(1);
            self.service
                .log_failed_call(Call::Receive, error, context.now);
            self.close(context, number, CloseReason::BackendRefused);
        }
    }

    /// A datagram could not be sent on this flow's socket.
    pub(super) fn send_failed(&mut self, number: u32, error: &io::Error) -> AfterError {
        let Some(flow) = self.flows.get(number as usize) else {
            return AfterError::Drop;
        };
        let backend = flow.lease.backend();
        let reported = read_reports(&flow.link.socket, &backend.addr);
        let cause = ErrorCause::of(error);
        if let Some(error) = reported.of_backend {
            self.mark_unreachable(number, &error);
            return AfterError::TryAnother { again_here: true };
        }
        match cause.party {
            Party::Peer | Party::Path => {
                self.mark_unreachable(number, error);
                // Without a report the kernel has refused this very datagram, and will again.
                let again_here = matches!(cause.party, Party::Peer);
                AfterError::TryAnother { again_here }
            }
            Party::Message if reported.of_earlier => AfterError::SendAgain,
            Party::Message | Party::Local => AfterError::Drop,
        }
    }

    /// The backend of this flow cannot be reached.
    fn mark_unreachable(&mut self, number: u32, error: &io::Error) {
        let Some(flow) = self.flows.get_mut(number as usize) else {
            return;
        };
        flow.is_unreachable = true;
        let service = flow.service();
        service.report_failure(flow.lease.backend(), error, [Instant::now(); 2]);
    }
}

fn read_reports(socket: &UdpSocket, backend: &Addr) -> Reported {
    let mut reported = Reported::default();
    for _ in 0..MAX_REPORTS {
        let Some(report) = next_report(socket.as_fd()) else {
            break;
        };
        // What the kernel has refused at once is an error of that call.
        if report.origin != Origin::Icmp {
            continue;
        }
        reported.of_earlier = true;
        let is_of_backend = ErrorCause::of_errno(report.errno).is_of_backend()
            && report.to.is_some_and(|to| is_at(backend, to));
        if is_of_backend && reported.of_backend.is_none() {
            reported.of_backend = Some(io::Error::from_raw_os_error(report.errno));
        }
    }
    reported
}

/// The scope of an address is not compared: the kernel leaves it out of some reports.
fn is_at(backend: &Addr, to: SocketAddr) -> bool {
    match backend {
        Addr::Tcp(address) => (address.ip(), address.port()) == (to.ip(), to.port()),
        Addr::Unix(_) => false,
    }
}

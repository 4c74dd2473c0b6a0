//! One flow: its socket towards a backend, and what it has carried.

use super::{batch::Piece, batch_size::BatchSize, port::PortUse, table::Key};
use crate::{
    plan::{Addr, reason::CloseReason},
    runtime::net::connect_datagrams,
    session::{
        admission::{self, Permits},
        bandwidth::{SessionBandwidth, Way},
        service::Service,
        sockets::SocketPermit,
        summary::{Attempt, Summary},
    },
    sys,
    upstream::{backend::Lease, pool::ConnectTimer},
};
use std::{
    io,
    net::UdpSocket,
    os::fd::AsFd as _,
    sync::Arc,
    time::{Duration, Instant},
};

pub(super) struct Flow {
    pub(super) key: Key,
    /// Distinguishes it from earlier flows with the same number.
    pub(super) serial: u32,
    pub(super) link: FlowSocket,
    /// Keeps the sockets open that its datagrams come to.
    pub(super) _port: PortUse,
    pub(super) permits: Permits,
    pub(super) lease: Lease,
    /// [`crate::upstream::pool::Pool::changes`] when the pool was last asked whether this flow may
    /// stay.
    pub(super) changes: u64,
    /// Datagrams from the client.
    pub(super) taken: u32,
    /// Those of them that were sent to the backend.
    pub(super) sent: u32,
    pub(super) replies: u32,
    /// The kernel's count of dropped replies when it was last read.
    pub(super) drops: u32,
    /// Why it gets no more datagrams and only waits for replies. Its key leads to another flow, or
    /// still to this one while there is no other backend.
    pub(super) retired: Option<CloseReason>,
    /// The network reports that the backend cannot be reached.
    pub(super) is_unreachable: bool,
    /// It has not proven yet that the backend works: see [`Self::has_passed_trial`].
    pub(super) is_on_trial: bool,
    /// Whether the kernel splits runs of datagrams on the way to the backend.
    pub(super) splits_to_backend: bool,
    pub(super) splits_to_client: bool,
    /// Whether the kernel joins replies to runs.
    pub(super) is_coalescing: bool,
    /// Calls in a row that failed to receive from the backend without a report of the network.
    pub(super) receive_failures: u8,
    pub(super) batch_size: BatchSize,
    /// In a box, since most flows have no such limit.
    pub(super) bandwidth: Option<Box<SessionBandwidth>>,
    /// What few flows have.
    pub(super) extras: Option<Box<Extras>>,
}

/// A socket towards a backend, and the permit to have one.
pub(super) struct FlowSocket {
    pub(super) socket: UdpSocket,
    pub(super) _permit: SocketPermit,
}

#[derive(Default)]
pub(super) struct Extras {
    /// The PROXY protocol header that the backend gets in front of a datagram.
    pub(super) header: Box<[u8]>,
    /// Whether the next datagram to the backend gets the header.
    pub(super) header_is_due: bool,
    /// Runs until the first reply, for a policy that compares times.
    pub(super) clock: Option<Box<ConnectTimer>>,
    /// This field and those below are for the access log.
    pub(super) attempts: Vec<Attempt>,
    pub(super) first_reply: Option<Duration>,
    /// How many came from the client, and how many went to it.
    pub(super) datagrams: [u64; 2],
}

/// The idle timeout of a flow where none is configured.
const IDLE: Duration = Duration::from_secs(60);
/// After this time without an error the backend counts as working even without a reply: one-way
/// traffic has no other proof.
const TRIAL: Duration = Duration::from_secs(5);
/// The time for a flow that ends.
const SHORT_TRIAL: Duration = Duration::from_secs(1);

/// How long a flow that has left its backend waits for replies that are owed, in milliseconds.
const LINGER: u64 = 5_000;
/// While the process stops, a flow that is silent for so long ends, in milliseconds.
pub(super) const QUIET: u64 = 1_000;

impl Flow {
    pub(super) fn new(
        key: Key,
        serial: u32,
        link: FlowSocket,
        port: PortUse,
        permits: Permits,
        lease: Lease,
        now: Instant,
    ) -> Self {
        Self {
            bandwidth: admission::bandwidth(&permits, now).map(Box::new),
            key,
            serial,
            link,
            _port: port,
            permits,
            lease,
            changes: 0,
            taken: 0,
            sent: 0,
            replies: 0,
            drops: 0,
            retired: None,
            is_unreachable: false,
            is_on_trial: true,
            splits_to_backend: true,
            splits_to_client: true,
            is_coalescing: false,
            receive_failures: 0,
            batch_size: BatchSize::ONE,
            extras: None,
        }
    }

    /// `header`: for the backend, in front of its first datagram or of each.
    pub(super) fn with_extras(
        mut self,
        header: Option<Box<[u8]>>,
        clock: Option<Box<ConnectTimer>>,
        attempts: Vec<Attempt>,
    ) -> Self {
        // Attempts are noted only if there is an access log.
        if header.is_some() || clock.is_some() || !attempts.is_empty() {
            self.extras = Some(Box::new(Extras {
                header_is_due: header.is_some(),
                header: header.unwrap_or_default(),
                clock,
                attempts,
                ..Extras::default()
            }));
        }
        self
    }

    /// When it will have been idle for too long, in milliseconds.
    pub(super) fn due(&self, is_draining: bool) -> u64 {
        // Where `responses` is set, the replies that are owed are waited for.
        let is_owed = self.responses() > 0 && !self.has_all_replies();
        let idle_ms = idle_ms(self.service());
        self.last_ms() + longest_silence(idle_ms, self.retired, is_draining && !is_owed)
    }

    /// When a datagram was last carried in either direction, in the worker's milliseconds.
    pub(super) fn last_ms(&self) -> u64 {
        self.permits.session().active_millis()
    }

    pub(super) fn set_last_ms(&mut self, ms: u64) {
        self.permits.session().set_active(ms);
    }

    /// The service that it began with.
    pub(super) fn service(&self) -> &Arc<Service> {
        self.permits.service()
    }

    /// Replies that are awaited for each datagram; 0: any number.
    pub(super) fn responses(&self) -> u32 {
        self.service().udp().map_or(0, |udp| udp.responses)
    }

    /// Datagrams that it may have; 0: any number.
    pub(super) fn requests(&self) -> u32 {
        self.service().udp().map_or(0, |udp| udp.requests)
    }

    pub(super) fn count_taken(&mut self, datagrams: usize) {
        self.taken = self.taken.saturating_add(datagrams as u32);
    }

    pub(super) fn has_all_replies(&self) -> bool {
        let responses = self.responses();
        responses > 0 && u64::from(self.replies) >= u64::from(self.sent) * u64::from(responses)
    }

    /// Whether as many datagrams have come as it may have.
    pub(super) fn has_all_requests(&self) -> bool {
        self.taken >= self.requests()
    }

    /// Whether a datagram is within the limits of bytes in a second. If it is, it is counted.
    pub(super) fn admits(&self, way: Way, piece: Piece, now: Instant) -> bool {
        match &self.bandwidth {
            None => true,
            Some(bandwidth) => bandwidth.admits(way, piece.len as u64, now),
        }
    }

    /// Gives it no more datagrams. Returns whether it had any before.
    pub(super) fn retire(&mut self, reason: CloseReason) -> bool {
        self.permits.session().set_closing();
        self.retired.replace(reason).is_none()
    }

    /// Gives it datagrams again.
    pub(super) fn resume(&mut self) {
        if self.retired.take().is_some() {
            let session = self.permits.session();
            session.set_socket(self.link.socket.as_fd());
        }
    }

    /// Whether it was replaced because its backend is not to be used.
    pub(super) fn has_left_backend(&self) -> bool {
        self.retired.is_some_and(CloseReason::leaves_backend)
    }

    /// Returns true once: when the flow proves that its backend works, by a reply or by time.
    /// `is_over`: the flow ends.
    pub(super) fn has_passed_trial(&mut self, now: Instant, is_over: bool) -> bool {
        if !self.is_on_trial || self.is_unreachable {
            return false;
        }
        let age = now.saturating_duration_since(self.permits.began_at());
        let passed = is_proven(self.replies, age, is_over);
        self.is_on_trial = !passed;
        passed
    }

    /// How many replies the kernel dropped since the last call.
    pub(super) fn new_drops(&mut self) -> u64 {
        let drops = sys::datagram::drops(&self.link.socket).unwrap_or(0);
        // The kernel's counter has 32 bits as well.
        let new = (drops as u32).wrapping_sub(self.drops);
        self.drops = drops as u32;
        u64::from(new)
    }

    /// Counts and logs that it is over. The socket is still there.
    pub(super) fn end(self, service: &Service, reason: CloseReason, now: Instant) -> FlowSocket {
        let extras = self.extras.as_deref();
        let log = service.access_log();
        let local = log.and_then(|_| self.link.socket.local_addr().ok());
        let summary = Summary {
            session: self.permits.session(),
            reason,
            error: None,
            backend: Some(self.lease.backend()),
            backend_port: local.map(|address| address.port()),
            attempts: extras.map_or(&[], |extras| &extras.attempts),
            duration: self.permits.began_at().elapsed(),
            waited: Duration::ZERO,
            first_byte: extras.and_then(|extras| extras.first_reply),
            datagrams: extras.map_or([0; 2], |extras| extras.datagrams),
        };
        service.finish(&summary, log, now);
        self.permits.session().set_closing();
        self.link
    }
}

/// The idle timeout of flows in milliseconds.
pub(super) fn idle_ms(service: &Service) -> u64 {
    let idle = service.plan.idle_timeout.unwrap_or(IDLE);
    u64::try_from(idle.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// Whether a flow of this age, with so many replies, proves that its backend works.
fn is_proven(replies: u32, age: Duration, is_over: bool) -> bool {
    let trial = if is_over { SHORT_TRIAL } else { TRIAL };
    replies > 0 || age > trial
}

/// How long a flow may be silent, in milliseconds. `is_last`: the process stops, and no reply is
/// owed.
fn longest_silence(idle_ms: u64, retired: Option<CloseReason>, is_last: bool) -> u64 {
    let idle = match retired.is_some_and(CloseReason::leaves_backend) {
        true => idle_ms.min(LINGER),
        false => idle_ms,
    };
    match is_last {
        true => idle.min(QUIET),
        false => idle,
    }
}

/// A socket whose other end is this backend. It has a local port of its own, by which replies find
/// their flow.
pub(super) fn connect(backend: &Addr) -> io::Result<UdpSocket> {
    let socket = connect_datagrams(backend)?;
    if let Addr::Tcp(address) = backend {
        sys::datagram::never_forbid_fragments(&socket, address.is_ipv6())?;
        sys::datagram::ask_for_reports(&socket, address)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_or_time_proves_that_a_backend_works() {
        let instant = Duration::from_millis(1);
        for (is_over, limit) in [(false, TRIAL), (true, SHORT_TRIAL)] {
            assert!(!is_proven(0, Duration::ZERO, is_over));
            assert!(!is_proven(0, limit, is_over));
            assert!(is_proven(0, limit + instant, is_over));
            assert!(is_proven(1, Duration::ZERO, is_over));
        }
        // A flow that ends has no later moment.
        assert!(
            is_proven(0, SHORT_TRIAL + instant, true)
                && !is_proven(0, SHORT_TRIAL + instant, false)
        );
    }

    #[test]
    fn silence_is_limited_by_the_replies_that_are_owed() {
        let (ok, gone) = (Some(CloseReason::Ok), Some(CloseReason::BackendDrained));
        for (idle, retired, is_last, longest) in [
            (60_000, None, false, 60_000),
            (60_000, ok, false, 60_000),
            (60_000, gone, false, LINGER),
            (60_000, None, true, QUIET),
            (60_000, ok, true, QUIET),
            (60_000, gone, true, QUIET),
            (200, None, true, 200),
            (200, gone, false, 200),
        ] {
            let found = longest_silence(idle, retired, is_last);
            assert_eq!(found, longest, "{idle} {retired:?} {is_last}");
        }
    }
}

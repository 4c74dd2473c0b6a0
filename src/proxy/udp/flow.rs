//! One flow: its socket towards a backend, and what it has carried.

use super::{batch_size::BatchSize, table::Key};
use crate::{
    plan::{Addr, reason::CloseReason},
    runtime::net::connect_datagrams,
    session::{
        admission::Permits,
        service::Service,
        sockets::SocketPermit,
        summary::{Attempt, Summary},
    },
    sys,
    upstream::{backend::Lease, pool::Clock},
};
use std::{
    io,
    net::UdpSocket,
    time::{Duration, Instant},
};

pub(super) struct Flow {
    pub(super) key: Key,
    /// Tells it from others that had its number before.
    pub(super) serial: u32,
    pub(super) link: Link,
    pub(super) permits: Permits,
    pub(super) lease: Lease,
    pub(super) opened: Instant,
    /// When a datagram last went either way, in the worker's milliseconds.
    pub(super) last: u64,
    /// What [`crate::upstream::pool::Pool::changes`] was when it was last asked whether this may
    /// stay.
    pub(super) changes: u64,
    /// Datagrams that were taken for it, those that were sent to the backend, and those from it.
    pub(super) taken: u32,
    pub(super) sent: u32,
    pub(super) replies: u32,
    /// What the kernel had no room for, as far as it was counted.
    pub(super) dropped: u32,
    /// Why it gets no more datagrams and only waits for replies. Its key leads to another flow, or
    /// still to this one while there is no other backend.
    pub(super) retired: Option<CloseReason>,
    /// The network says that the backend is not there.
    pub(super) refused: bool,
    /// The backend had failed when it was picked, and has not proven yet that it is there.
    pub(super) on_trial: bool,
    /// Whether the kernel splits runs of datagrams on the way to the backend.
    pub(super) splits: bool,
    /// The same on the way to the client.
    pub(super) splits_back: bool,
    /// Whether it puts together what comes from the backend.
    pub(super) coalesces: bool,
    /// Calls in a row that failed to receive from the backend without a report of the network.
    pub(super) receive_failures: u8,
    pub(super) batch_size: BatchSize,
    /// What few flows have.
    pub(super) rare: Option<Box<Rare>>,
}

/// A socket towards a backend, and the permit to have one.
pub(super) struct Link {
    pub(super) socket: UdpSocket,
    pub(super) _permit: SocketPermit,
}

#[derive(Default)]
pub(super) struct Rare {
    /// For the backend, in front of a datagram.
    pub(super) header: Box<[u8]>,
    /// Whether the next datagram gets it.
    pub(super) header_is_due: bool,
    /// For the policy that asks for times, until the first reply.
    pub(super) clock: Option<Box<Clock>>,
    /// What only the access log wants to know.
    pub(super) attempts: Vec<Attempt>,
    pub(super) first_reply: Option<Duration>,
    pub(super) datagrams: [u64; 2],
}

/// After a while without an error it is believed that somebody is there, even if nobody replies:
/// one-way traffic has no other proof.
const PROVEN: Duration = Duration::from_secs(5);
/// The same of one that is over.
const SHORT: Duration = Duration::from_secs(1);

/// For how long a flow that has gone elsewhere waits for what its old backend still owes, in
/// milliseconds.
const LINGER: u64 = 5_000;
/// While the process ends, a flow that was silent for so long is over.
pub(super) const QUIET: u64 = 1_000;

impl Flow {
    pub(super) fn new(
        key: Key,
        serial: u32,
        link: Link,
        permits: Permits,
        lease: Lease,
        opened: Instant,
    ) -> Self {
        Self {
            key,
            serial,
            link,
            permits,
            lease,
            opened,
            last: 0,
            changes: 0,
            taken: 0,
            sent: 0,
            replies: 0,
            dropped: 0,
            retired: None,
            refused: false,
            on_trial: true,
            splits: true,
            splits_back: true,
            coalesces: false,
            receive_failures: 0,
            batch_size: BatchSize::ONE,
            rare: None,
        }
    }

    /// `header`: for the backend, in front of its first datagram or of each.
    pub(super) fn with_extras(
        mut self,
        header: Option<Box<[u8]>>,
        clock: Option<Box<Clock>>,
        attempts: Vec<Attempt>,
    ) -> Self {
        // Attempts are noted only if there is an access log.
        if header.is_some() || clock.is_some() || !attempts.is_empty() {
            self.rare = Some(Box::new(Rare {
                header_is_due: header.is_some(),
                header: header.unwrap_or_default(),
                clock,
                attempts,
                ..Rare::default()
            }));
        }
        self
    }

    /// When it will have been idle for too long.
    pub(super) fn due(&self, idle: u64, responses: u32, is_draining: bool) -> u64 {
        // Where it is known what is owed, that is waited for.
        let is_owed = responses > 0 && !self.has_all_replies(responses);
        self.last + longest_silence(idle, self.retired, is_draining && !is_owed)
    }

    pub(super) fn has_all_replies(&self, responses: u32) -> bool {
        responses > 0 && u64::from(self.replies) >= u64::from(self.sent) * u64::from(responses)
    }

    /// Whether as many datagrams have come as it may have; 0: any number.
    pub(super) fn has_all_requests(&self, requests: u32) -> bool {
        self.taken >= requests
    }

    /// Whether it was replaced because its backend is not to be used.
    pub(super) fn has_left_backend(&self) -> bool {
        self.retired.is_some_and(CloseReason::leaves_backend)
    }

    /// Whether the trial is over, and well.
    pub(super) fn has_passed_trial(&mut self, now: Instant, is_over: bool) -> bool {
        let age = now.saturating_duration_since(self.opened);
        let passed = self.on_trial && !self.refused && is_proven(self.replies, age, is_over);
        if passed {
            self.on_trial = false;
        }
        passed
    }

    /// What the kernel dropped since this was asked last.
    pub(super) fn new_drops(&mut self) -> u64 {
        let drops = sys::datagram::drops(&self.link.socket).unwrap_or(0);
        // The kernel's counter is of 32 bits as well.
        let new = (drops as u32).wrapping_sub(self.dropped);
        self.dropped = drops as u32;
        u64::from(new)
    }

    /// Counts and logs that it is over. The socket is still there.
    pub(super) fn end(self, service: &Service, reason: CloseReason, now: Instant) -> Link {
        let rare = self.rare.as_deref();
        let summary = Summary {
            session: self.permits.session(),
            reason,
            error: None,
            backend: Some(self.lease.backend()),
            attempts: rare.map_or(&[], |rare| &rare.attempts),
            duration: self.opened.elapsed(),
            first_byte: rare.and_then(|rare| rare.first_reply),
            datagrams: rare.map_or([0; 2], |rare| rare.datagrams),
        };
        service.finish(&summary, service.access_log(), now);
        self.link
    }
}

/// Whether the backend of a flow of this age, with so many replies, is there.
fn is_proven(replies: u32, age: Duration, is_over: bool) -> bool {
    let proven = if is_over { SHORT } else { PROVEN };
    replies > 0 || age > proven
}

/// For how many milliseconds a flow may be silent. `is_last`: the process ends, and this flow is
/// not known to wait for anything.
fn longest_silence(idle: u64, retired: Option<CloseReason>, is_last: bool) -> u64 {
    let idle = match retired.is_some_and(CloseReason::leaves_backend) {
        true => idle.min(LINGER),
        false => idle,
    };
    match is_last {
        true => idle.min(QUIET),
        false => idle,
    }
}

/// A socket whose other end is this backend. It has a local port of its own, by which replies find
/// their flow.
pub(super) fn connect(place: &Addr) -> io::Result<UdpSocket> {
    let socket = connect_datagrams(place)?;
    if let Addr::Tcp(address) = place {
        sys::datagram::never_forbid_fragments(&socket, address.is_ipv6())?;
        sys::datagram::ask_for_reports(&socket, address)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_proves_that_a_backend_is_there_and_so_does_time() {
        let instant = Duration::from_millis(1);
        for (is_over, limit) in [(false, PROVEN), (true, SHORT)] {
            assert!(!is_proven(0, Duration::ZERO, is_over));
            assert!(!is_proven(0, limit, is_over));
            assert!(is_proven(0, limit + instant, is_over));
            assert!(is_proven(1, Duration::ZERO, is_over));
        }
        // One that is over has no later moment.
        assert!(is_proven(0, SHORT + instant, true) && !is_proven(0, SHORT + instant, false));
    }

    #[test]
    fn silence_is_limited_by_what_is_still_waited_for() {
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

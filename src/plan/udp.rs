//! What only datagrams need.

use super::reason::CloseReason;

/// The transport protocol of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    #[default]
    Tcp,
    Udp(Udp),
}

/// A flow is what one client address and port sends to one address of a listener, and what comes
/// back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Udp {
    /// So many replies are awaited for each datagram, and the flow is over with the last; 0: it is
    /// over when idle.
    pub responses: u32,
    /// After so many datagrams of a client the next one begins a new flow; 0: never.
    pub requests: u32,
    /// Every datagram is balanced on its own.
    pub per_packet: bool,
    pub when_full: WhenFull,
}

/// Which flow yields when there are as many as there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenFull {
    /// The new one.
    #[default]
    Refuse,
    /// The one that has been idle for longest.
    Evict,
}

/// For what reasons a flow whose backend is no longer to be used goes to another one at its next
/// datagram. Otherwise it stays until it is idle or is terminated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FlowsMove {
    /// It does not answer, by its check or by errors of the network.
    pub down: bool,
    pub role_lost: bool,
    pub lag: bool,
    /// The operator has taken it out.
    pub drain: bool,
    /// The configuration or the resolver no longer names it.
    pub removed: bool,
}

impl FlowsMove {
    /// By default, where no UDP listener uses the upstream.
    pub const WITHOUT_UDP: Self = Self {
        down: false,
        role_lost: true,
        lag: false,
        drain: false,
        removed: false,
    };

    pub fn does(self, reason: CloseReason) -> bool {
        match reason {
            CloseReason::RoleLost => self.role_lost,
            CloseReason::Lagging => self.lag,
            CloseReason::BackendDrained => self.drain,
            CloseReason::BackendRemoved => self.removed,
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
            | CloseReason::BackendsFull
            | CloseReason::QueueTimeout
            | CloseReason::HoldTimeout
            | CloseReason::Drained
            | CloseReason::UntrustedHeader
            | CloseReason::Recovered
            | CloseReason::ListenerRemoved
            | CloseReason::ResponseTimeout
            | CloseReason::Evicted
            | CloseReason::Killed
            | CloseReason::Rebalanced => false,
        }
    }
}

/// Which datagrams to a backend begin with a PROXY protocol header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProxyOn {
    /// The first of each flow.
    #[default]
    First,
    Each,
}

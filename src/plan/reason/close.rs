//! What follows from the reason for the end of a session.

use super::{CloseReason, ConnectError, DropReason};

/// What a session that ended does to a side that has not received everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Nothing: both sides have ended.
    Nothing,
    /// Nothing: this peer failed, and that is passed on to the other.
    PassedOn(Peer, ConnectError),
    /// Resets both sides: nothing that came from the client is to be used.
    Both,
    /// Resets every side whose source had not ended: it may always have had more to send.
    MidStream,
    /// Resets a side only if bytes for it are still under way: the session was silent.
    Undelivered,
}

/// One of the two ends of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Client,
    Backend,
}

/// Which sessions can end for a reason.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Befalls {
    All,
    Connections,
    Flows,
}

/// Whether a termination is cancelled when all backends are used whatever their checks say.
#[derive(Clone, Copy, PartialEq, Eq)]
enum InPanic {
    Stands,
    Cancelled,
}

/// Whether a flow that should leave its backend goes on there while no other one is available.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FlowOnBackend {
    Leaves,
    MayStay,
}

/// Whether the session has ended without a backend although its client wanted one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Demand {
    Served,
    /// A datagram that began the flow was dropped for this.
    Unserved(DropReason),
}

/// What follows from a reason.
struct Consequences {
    befalls: Befalls,
    cut: Cut,
    in_panic: InPanic,
    flow: FlowOnBackend,
    demand: Demand,
}

impl CloseReason {
    /// Each reason has a row, and each row an answer to every question.
    fn consequences(self) -> Consequences {
        use self::{Befalls::*, Cut::*, Demand::*, FlowOnBackend::*, InPanic::*};
        use DropReason::{BackendsFull, NoBackend};
        let row = |befalls, cut, in_panic, flow, demand| Consequences {
            befalls,
            cut,
            in_panic,
            flow,
            demand,
        };
        let failed = |peer, error| row(Connections, PassedOn(peer, error), Stands, Leaves, Served);
        match self {
            Self::Ok => row(All, Nothing, Stands, Leaves, Served),
            Self::IdleTimeout => row(All, Undelivered, Stands, Leaves, Served),
            Self::HalfCloseTimeout => row(Connections, Undelivered, Stands, Leaves, Served),
            Self::ClientReset => failed(Peer::Client, ConnectError::Reset),
            Self::BackendReset => failed(Peer::Backend, ConnectError::Reset),
            Self::ClientTimedOut => failed(Peer::Client, ConnectError::Timeout),
            Self::BackendTimedOut => failed(Peer::Backend, ConnectError::Timeout),
            Self::ClientLeft => row(Connections, Undelivered, Stands, Leaves, Served),
            Self::ConnectFailed => row(All, Undelivered, Stands, Leaves, Unserved(NoBackend)),
            Self::NoBackend => row(All, Undelivered, Stands, Leaves, Unserved(NoBackend)),
            Self::BackendsFull => row(All, Undelivered, Stands, Leaves, Unserved(BackendsFull)),
            Self::QueueTimeout => row(All, Undelivered, Stands, Leaves, Unserved(BackendsFull)),
            Self::HoldTimeout => row(All, Undelivered, Stands, Leaves, Unserved(NoBackend)),
            Self::Drained => row(All, MidStream, Stands, Leaves, Served),
            Self::UntrustedHeader => row(Connections, Both, Stands, Leaves, Served),
            Self::BackendDown => row(All, MidStream, Cancelled, MayStay, Served),
            Self::RoleLost => row(All, MidStream, Stands, Leaves, Served),
            Self::Lagging => row(All, MidStream, Cancelled, Leaves, Served),
            Self::Recovered => row(All, MidStream, Stands, Leaves, Served),
            Self::BackendDrained => row(All, MidStream, Stands, Leaves, Served),
            Self::BackendRemoved => row(All, MidStream, Stands, MayStay, Served),
            Self::ListenerRemoved => row(All, MidStream, Stands, Leaves, Served),
            Self::BackendRefused => row(Flows, Undelivered, Stands, MayStay, Served),
            Self::ResponseTimeout => row(Flows, Undelivered, Stands, Leaves, Served),
            Self::Evicted => row(Flows, Undelivered, Stands, Leaves, Served),
            Self::Killed => row(All, MidStream, Stands, Leaves, Served),
            Self::Rebalanced => row(All, MidStream, Stands, Leaves, Served),
        }
    }

    /// Whether a flow can end so, or else a connection.
    pub fn can_befall(self, flow: bool) -> bool {
        match self.consequences().befalls {
            Befalls::All => true,
            Befalls::Connections => !flow,
            Befalls::Flows => flow,
        }
    }

    pub fn cut(self) -> Cut {
        self.consequences().cut
    }

    /// The peer that ended a session by a failure of its own, and that failure.
    pub fn failed_peer(self) -> Option<(Peer, ConnectError)> {
        match self.cut() {
            Cut::PassedOn(peer, error) => Some((peer, error)),
            Cut::Nothing | Cut::Both | Cut::MidStream | Cut::Undelivered => None,
        }
    }

    /// Whether a termination for this reason is cancelled when all backends are used whatever the
    /// results of their checks.
    pub fn is_cancelled_by_panic(self) -> bool {
        self.consequences().in_panic == InPanic::Cancelled
    }

    /// Whether a flow that should leave its backend for this reason goes on there while no other
    /// backend is available.
    pub fn lets_flow_stay(self) -> bool {
        self.consequences().flow == FlowOnBackend::MayStay
    }

    /// Whether the session has ended without a backend although its client wanted one.
    pub fn leaves_unserved(self) -> bool {
        self.unserved_drop().is_some()
    }

    /// Why the datagram that began a flow was dropped, if the flow has found no backend for this.
    pub fn unserved_drop(self) -> Option<DropReason> {
        match self.consequences().demand {
            Demand::Served => None,
            Demand::Unserved(reason) => Some(reason),
        }
    }

    /// Whether a flow that was replaced for this reason has left a backend that is not to be used:
    /// it waits only briefly for late replies, and they do not prolong it.
    pub fn leaves_backend(self) -> bool {
        self.cut() != Cut::Nothing
    }
}

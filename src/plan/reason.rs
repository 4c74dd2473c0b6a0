//! Reasons for the end of things. Each has a word, at once the label of a metric and a value in
//! the log.

mod close;
mod errno;

pub use close::{Cut, Peer};
pub use errno::{ErrorCause, Party};

/// Declares an enum whose variants carry their word. More may be derived for it.
#[macro_export]
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            pub const ALL: [Self; Self::COUNT] = [$(Self::$variant,)*];
            pub const COUNT: usize = [$($word,)*].len();

            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            /// `None`: it is none of them, or one of another version of the program.
            pub fn of_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

pub use crate::words;

words! {
    /// Why a session ended.
    CloseReason {
        /// Both sides ended after all their data was delivered.
        Ok = "ok",
        IdleTimeout = "idle_timeout",
        HalfCloseTimeout = "half_close_timeout",
        ClientReset = "client_reset",
        BackendReset = "backend_reset",
        /// Its client's host did not acknowledge what was sent to it, or did not answer keepalive
        /// probes.
        ClientTimedOut = "client_timed_out",
        /// The same of its backend's host.
        BackendTimedOut = "backend_timed_out",
        /// The client disconnected before a backend was reached.
        ClientLeft = "client_left",
        /// Every backend that was tried failed.
        ConnectFailed = "connect_failed",
        /// No backend could even be tried: all are out of service.
        NoBackend = "no_backend",
        /// No backend could even be tried: those in service have their `max_connections`.
        BackendsFull = "backends_full",
        /// It has waited in the queue for `queue_timeout`.
        QueueTimeout = "queue_timeout",
        /// It has been held for `hold_timeout`.
        HoldTimeout = "hold_timeout",
        /// Cut when `drain_timeout` had passed, or at a stop when one side had ended and the
        /// other was silent.
        Drained = "drained",
        /// A client that is not trusted to send a PROXY protocol header began one.
        UntrustedHeader = "untrusted_proxy_header",
        /// Its backend went down, and `on_down` terminates its sessions.
        BackendDown = "backend_down",
        /// Its backend has another role than the required one.
        RoleLost = "role_lost",
        /// Its backend is too far behind, and `on_lag` terminates its sessions.
        Lagging = "lagging",
        /// It was on a backup, and a regular backend is up again.
        Recovered = "recovered",
        /// The operator drained its backend, and `on_drain` terminates its sessions.
        BackendDrained = "backend_drained",
        /// Its backend left the configuration, or the address left the backend's name, and
        /// `on_removed` terminates its sessions.
        BackendRemoved = "backend_removed",
        /// Its listener left the configuration, and `on_removed` terminates its sessions.
        ListenerRemoved = "listener_removed",
        /// The host of its backend, or a router, reported it as unreachable (a flow).
        BackendRefused = "backend_refused",
        /// A flow that was idle for too long while its backend owed replies.
        ResponseTimeout = "response_timeout",
        /// A flow that was ended for another one.
        Evicted = "evicted",
        /// An operator terminated it.
        Killed = "killed",
        /// Its backend had more than its share, or its key leads to another one by now, and an
        /// operator had the upstream rebalanced.
        Rebalanced = "rebalanced",
    }
}

words! {
    /// What a session lacks for which a pick found no backend. The word is for its wait.
    Shortage {
        /// A place: what could take it has `max_connections` sessions.
        Full = "queue",
        /// A fit backend: all are out of service, or it has tried them.
        NoneFit = "hold",
    }
}

words! {
    /// How the wait of a session for a backend ended.
    WaitResult {
        Served = "served",
        TimedOut = "timed_out",
        /// The session ended first: its client has left, or the process stops.
        Left = "left",
    }
}

words! {
    /// What state a backend is in.
    BackendState {
        Up = "up",
        /// By its check, or because its name has no address.
        Down = "down",
        /// Its connects failed, and `fail_timeout` has not passed.
        Failed = "failed",
        /// Its connects failed and `fail_timeout` has passed: the next session tries it. It comes
        /// by time alone, so that it is seen where states are shown, and not counted as a change.
        Unproven = "unproven",
        /// By `down = true` in the configuration.
        Disabled = "disabled",
        /// Healthy, in the other role than the required one.
        Standby = "standby",
        /// It answers, and is not what is required: a primary that another one has superseded, an
        /// unhealthy server of another role, or one that is neither a primary nor a replica.
        WrongRole = "wrong_role",
        /// A replica that is too far behind its primary, or does not replicate.
        Lagging = "lagging",
        /// It claims to be the primary, and so does another one with better evidence.
        Doubtful = "doubtful",
        /// By the operator: it gets nothing new.
        Drained = "drained",
        /// By the operator: it gets nothing new and is not checked.
        Maintenance = "maintenance",
        /// It left the configuration, and sessions are still on it.
        Removed = "removed",
    }
}

words! {
    /// What one check of a backend found.
    CheckResult {
        Ok = "ok",
        /// A certain answer of a healthy server in the other role than the required one.
        Standby = "standby",
        /// A certain answer, and not the required role.
        WrongRole = "wrong_role",
        Refused = "refused",
        Timeout = "timeout",
        Unreachable = "unreachable",
        Reset = "reset",
        /// It ended the connection before the answer was there.
        Closed = "closed",
        /// What came is not the protocol.
        Protocol = "protocol",
        /// A well-formed answer, and not the one that was expected.
        Unexpected = "unexpected",
        /// The login or a query was refused.
        Auth = "auth",
        /// It answers, and refuses writes, which are required.
        RefusesWrites = "refuses_writes",
        /// It is busy with a script, and answers nothing until that ends: the result before still
        /// holds.
        Busy = "busy",
        /// It is still reading its data.
        Loading = "loading",
        /// A replica that has lost its primary and answers nothing until it is back.
        MasterDown = "master_down",
        /// A certain answer, and too far behind.
        Lagging = "lagging",
        /// A replica that does not replicate: not connected to its primary, not synced yet, or
        /// stopped.
        NotReplicating = "not_replicating",
        /// No encryption could be agreed on, or the certificate is not to be trusted.
        Tls = "tls",
        /// A shortage of this host: it shows nothing about the backend.
        Local = "local",
    }
}

words! {
    /// Why a connection or a flow was turned away before a backend was looked for.
    RejectReason {
        Access = "access",
        MaxConnections = "max_connections",
        ProcessMaxConnections = "process_max_connections",
        /// Its source had as many sessions as it may have.
        MaxConnectionsPerSource = "max_connections_per_source",
        /// Too many began shortly before it, in all or of its source.
        ConnectionRate = "connection_rate",
        ConnectionRatePerSource = "connection_rate_per_source",
        ProcessMaxFlows = "process_max_flows",
        /// All sockets that flows may have are in use, or kept for late replies.
        NoPorts = "no_ports",
        NoDescriptors = "no_descriptors",
        /// The first bytes are no valid PROXY protocol header.
        ProxyHeader = "proxy_header",
        /// The connection ended before the header was complete.
        ProxyEnded = "proxy_ended",
        ProxyTimeout = "proxy_timeout",
        /// `drain_timeout` had passed before the header was complete.
        Drained = "drained",
    }
}

words! {
    /// A limit that a client may be over without being refused.
    LimitKind {
        MaxConnectionsPerSource = "max_connections_per_source",
        ConnectionRate = "connection_rate",
        ConnectionRatePerSource = "connection_rate_per_source",
        Bandwidth = "bandwidth",
        BandwidthPerSource = "bandwidth_per_source",
        BandwidthTotal = "bandwidth_total",
    }
}

words! {
    /// What became of a client that was over a limit, and was not refused.
    OverLimit {
        /// By `limits_dry_run`.
        Passed = "passed",
        Delayed = "delayed",
    }
}

words! {
    /// Why a datagram was not delivered.
    DropReason {
        /// It began no flow: see [`RejectReason`].
        Rejected = "rejected",
        /// There was no backend for it, or none that could be reached.
        NoBackend = "no_backend",
        /// All backends that could take it have their `max_connections`.
        BackendsFull = "backends_full",
        /// Its flow waits before it begins, and has a datagram already.
        Waiting = "waiting",
        /// It was over a limit of bytes in a second.
        Bandwidth = "bandwidth",
        /// A send buffer was full.
        SendBuffer = "send_buffer",
        /// A receive buffer was full.
        ReceiveBuffer = "receive_buffer",
        /// It was longer than a buffer for datagrams.
        Truncated = "truncated",
        /// It was too long for the network, or with its PROXY protocol header.
        TooLarge = "too_large",
        /// The kernel did not send it for another reason.
        SendFailed = "send_failed",
        /// Its source is the address of a listener of this process: it is forged, and the reply to
        /// it would come back.
        OwnAddress = "own_address",
        /// It is a reply that came after the end of its flow.
        Late = "late",
    }
}

words! {
    /// Why a backend could not be reached.
    ConnectError {
        Refused = "refused",
        Timeout = "timeout",
        Unreachable = "unreachable",
        /// A firewall or a route of this host, or of one on the way, does not allow it.
        Prohibited = "prohibited",
        Reset = "reset",
        /// All source ports towards this backend are in use: not the backend's fault.
        NoPorts = "no_ports",
        NoDescriptors = "no_descriptors",
        /// The kernel has no memory for it: not the backend's fault either.
        NoMemory = "no_memory",
        Other = "other",
    }
}

words! {
    /// Why bytes that could have been spliced were copied.
    SpliceFallback {
        NoPipe = "no_pipe",
        Refused = "refused",
    }
}

/// What the state of a backend asks of an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    Good,
    /// It is out of service, and that is no fault: it was set so, or the next session tries it.
    SetAside,
    /// An alert is for this.
    Fault,
}

impl BackendState {
    /// Whether only a check that asks for the role, or the replication, can bring a backend there.
    pub fn is_of_role(self) -> bool {
        match self {
            Self::Standby | Self::WrongRole | Self::Lagging | Self::Doubtful => true,
            Self::Up
            | Self::Down
            | Self::Failed
            | Self::Unproven
            | Self::Disabled
            | Self::Drained
            | Self::Maintenance
            | Self::Removed => false,
        }
    }

    pub fn condition(self) -> Condition {
        match self {
            Self::Up | Self::Standby => Condition::Good,
            Self::Unproven | Self::Disabled | Self::Drained | Self::Maintenance | Self::Removed => {
                Condition::SetAside
            }
            Self::Down | Self::Failed | Self::WrongRole | Self::Lagging | Self::Doubtful => {
                Condition::Fault
            }
        }
    }
}

impl RejectReason {
    /// Whether a flow can be turned away so, or else a connection.
    pub fn can_befall(self, flow: bool) -> bool {
        match self {
            Self::ProcessMaxConnections
            | Self::NoDescriptors
            | Self::ProxyEnded
            | Self::ProxyTimeout => !flow,
            Self::ProcessMaxFlows | Self::NoPorts => flow,
            Self::Access
            | Self::MaxConnections
            | Self::MaxConnectionsPerSource
            | Self::ConnectionRate
            | Self::ConnectionRatePerSource
            | Self::ProxyHeader
            | Self::Drained => true,
        }
    }

    /// Whether the end of another flow may let this one in.
    pub fn is_cured_by_eviction(self) -> bool {
        match self {
            Self::MaxConnections | Self::ProcessMaxFlows => true,
            Self::Access
            | Self::ProcessMaxConnections
            | Self::MaxConnectionsPerSource
            | Self::ConnectionRate
            | Self::ConnectionRatePerSource
            | Self::NoPorts
            | Self::NoDescriptors
            | Self::ProxyHeader
            | Self::ProxyEnded
            | Self::ProxyTimeout
            | Self::Drained => false,
        }
    }
}

impl ConnectError {
    pub fn of(error: &std::io::Error) -> Self {
        ErrorCause::of(error).word
    }

    /// Whether it shows anything about the backend; a shortage of this host does not.
    pub fn is_of_backend(self) -> bool {
        match self {
            Self::Refused
            | Self::Timeout
            | Self::Unreachable
            | Self::Prohibited
            | Self::Reset
            | Self::Other => true,
            Self::NoPorts | Self::NoDescriptors | Self::NoMemory => false,
        }
    }

    /// A shortage that is the same for all backends and passes by itself.
    pub fn is_shortage(self) -> bool {
        match self {
            Self::NoDescriptors | Self::NoMemory => true,
            Self::Refused
            | Self::Timeout
            | Self::Unreachable
            | Self::Prohibited
            | Self::Reset
            | Self::NoPorts
            | Self::Other => false,
        }
    }
}

impl CheckResult {
    /// Of a connection that failed, whenever it did.
    pub fn of(error: &std::io::Error) -> Self {
        match ConnectError::of(error) {
            ConnectError::Refused => Self::Refused,
            ConnectError::Timeout => Self::Timeout,
            ConnectError::Reset => Self::Reset,
            ConnectError::NoPorts | ConnectError::NoDescriptors | ConnectError::NoMemory => {
                Self::Local
            }
            ConnectError::Unreachable | ConnectError::Prohibited | ConnectError::Other => {
                Self::Unreachable
            }
        }
    }
}
